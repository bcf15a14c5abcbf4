//! JSON schemas as `schemars` makes them, turned into structural schemas of Kubernetes, and access to parts of them.

use serde_json::{Map, Value, json};

/// Turns a schema without references into a structural schema, in place. `path` is its field, for messages.
///
/// - There are no defaults: the API server would write them into users' objects, and hide what users set.
/// - There are no nulls: the API server drops them before it validates.
/// - Unknown fields need no keyword: the API server refuses or prunes them.
///
/// # Panics
/// If the schema has a keyword that Kubernetes would refuse or misread.
pub(super) fn structural(path: &str, schema: &mut Value) {
    let fields = schema.as_object_mut().unwrap_or_else(|| panic!("{path}: the schema is not an object"));
    without_null(path, fields);
    for keyword in ["title", "default"] {
        fields.remove(keyword);
    }
    if fields.get("additionalProperties") == Some(&json!(false)) {
        fields.remove("additionalProperties");
    }
    if let Some(Value::String(description)) = fields.get_mut("description") {
        *description = description.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    if fields.get("format") == Some(&json!("uint32")) {
        fields.insert("format".to_owned(), json!("int64"));
        fields.insert("maximum".to_owned(), json!(u32::MAX));
    }
    if fields.get("type") == Some(&json!("array")) {
        let kind = if fields.remove("uniqueItems").is_some() { "set" } else { "atomic" };
        fields.insert("x-kubernetes-list-type".to_owned(), json!(kind));
    }
    for keyword in ["$ref", "$defs", "anyOf", "oneOf", "allOf", "const", "uniqueItems", "patternProperties"] {
        assert!(!fields.contains_key(keyword), "{path}: Kubernetes does not read {keyword} as it is meant here");
    }
    for (name, schema) in fields.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        structural(&format!("{path}.{name}"), schema);
    }
    for keyword in ["items", "additionalProperties"] {
        if let Some(schema) = fields.get_mut(keyword) {
            structural(&format!("{path}[]"), schema);
        }
    }
}

/// Takes null out of the allowed values: `schemars` adds it for an `Option`.
fn without_null(path: &str, fields: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = fields.get_mut("type") {
        types.retain(|name| name != "null");
        let [only] = types.as_slice() else { panic!("{path}: one type is allowed, not {types:?}") };
        let only = only.clone();
        fields.insert("type".to_owned(), only);
    }
    if let Some(Value::Array(values)) = fields.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    if let Some(Value::Array(mut alternatives)) = fields.remove("anyOf") {
        alternatives.retain(|schema| schema["type"] != "null");
        let [Value::Object(only)] = alternatives.as_slice() else { panic!("{path}: alternatives {alternatives:?}") };
        for (keyword, value) in only {
            fields.entry(keyword).or_insert_with(|| value.clone());
        }
    }
}

/// The schema of a field below `schema`, such as `declaration.min`, `nodes[].gpus[]` (items) or `models{}` (values).
/// An empty path is `schema` itself.
///
/// # Panics
/// If there is no such field.
pub(super) fn at<'a>(schema: &'a mut Value, path: &str) -> &'a mut Value {
    let mut found = schema;
    for step in path.split('.').filter(|step| !step.is_empty()) {
        let name = step.trim_end_matches(['[', ']', '{', '}']);
        let mut pointer = format!("/properties/{name}");
        for (suffix, keyword) in [("[]", "/items"), ("{}", "/additionalProperties")] {
            pointer += if step.ends_with(suffix) { keyword } else { "" };
        }
        found = found.pointer_mut(&pointer).unwrap_or_else(|| panic!("there is no {step} in {path}"));
    }
    found
}
