//! Checks values against the JSON Schemas that this repository ships. Owns the keywords that they use.

use serde_json::Value;

/// Returns the first violation of a schema by a value.
///
/// It knows only the keywords that our schemas use, and panics at others.
pub(crate) fn violation(schema: &Value, value: &Value) -> Option<String> {
    at_place(schema, schema, value, "")
}

fn at_place(root: &Value, schema: &Value, value: &Value, at: &str) -> Option<String> {
    let check = |(word, rule): (&String, &Value)| -> Option<String> {
        let wrong = |is_wrong: bool| is_wrong.then(|| format!("{at}: {word}: {rule}"));
        let within = |key: &str, schema: &Value, value: &Value| at_place(root, schema, value, &format!("{at}/{key}"));
        let (object, list, text) = (value.as_object(), value.as_array(), value.as_str());
        let bound = || rule.as_u64().expect("a number");
        match word.as_str() {
            "$schema" | "$defs" | "title" | "description" | "default" => None,
            "$ref" => {
                let pointer = rule.as_str().and_then(|rule| rule.strip_prefix('#')).expect("a local reference");
                at_place(root, root.pointer(pointer).expect("it is defined"), value, at)
            }
            "type" => {
                let types = rule.as_array().map_or(std::slice::from_ref(rule), Vec::as_slice);
                wrong(!types.iter().any(|name| is_of(value, name.as_str().expect("a type"))))
            }
            "const" => wrong(value != rule),
            "enum" => wrong(!rule.as_array().expect("a list").contains(value)),
            "anyOf" => {
                let any = rule.as_array().expect("a list").iter();
                wrong(any.map(|schema| at_place(root, schema, value, at)).all(|violation| violation.is_some()))
            }
            "required" => {
                let mut names = rule.as_array().expect("a list").iter().filter_map(Value::as_str);
                wrong(object.is_some_and(|object| names.any(|name| !object.contains_key(name))))
            }
            "properties" => object?.iter().find_map(|(key, value)| within(key, rule.get(key)?, value)),
            "additionalProperties" => {
                let known = schema.get("properties").and_then(Value::as_object);
                let mut others = object?.iter().filter(|(key, _)| known.is_none_or(|known| !known.contains_key(*key)));
                match rule {
                    Value::Bool(false) => others.next().map(|(key, _)| format!("{at}: {key} is not a field")),
                    rule => others.find_map(|(key, value)| within(key, rule, value)),
                }
            }
            "items" => list?.iter().enumerate().find_map(|(index, value)| within(&index.to_string(), rule, value)),
            "minItems" => wrong(list.is_some_and(|list| (list.len() as u64) < bound())),
            "minProperties" => wrong(object.is_some_and(|object| (object.len() as u64) < bound())),
            "minLength" => wrong(text.is_some_and(|text| (text.chars().count() as u64) < bound())),
            "minimum" => wrong(value.as_i64().is_some_and(|number| number < rule.as_i64().expect("a number"))),
            "pattern" => {
                assert_eq!(rule, "^[^/]", "the only pattern");
                wrong(text.is_some_and(|text| text.is_empty() || text.starts_with('/')))
            }
            other => panic!("{other} is no word of our schemas"),
        }
    };
    schema.as_object().expect("a schema").iter().find_map(check)
}

fn is_of(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("{other} is no type of our schemas"),
    }
}
