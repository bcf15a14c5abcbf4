//! Tests the format of case files: the schema that editors use, and the example in the documentation.

use serde_json::Value;

use super::{FOLDER, files, read};

fn schema() -> Value {
    let text = std::fs::read_to_string(format!("{FOLDER}/case.schema.json")).expect("the schema");
    serde_json::from_str(&text).expect("JSON")
}

/// Reads YAML as editors and the parser do: `n` is a string.
fn yaml(text: &str) -> Value {
    serde_saphyr::from_str_with_options(text, serde_saphyr::options! { strict_booleans: true }).expect("YAML")
}

/// Returns the first violation of a schema by a value.
///
/// It knows only the keywords that our schema uses, and panics at others.
fn violation(root: &Value, schema: &Value, value: &Value, at: &str) -> Option<String> {
    let check = |(word, rule): (&String, &Value)| -> Option<String> {
        let wrong = |is_wrong: bool| is_wrong.then(|| format!("{at}: {word}: {rule}"));
        let within = |key: &str, schema: &Value, value: &Value| violation(root, schema, value, &format!("{at}/{key}"));
        let (object, list, text) = (value.as_object(), value.as_array(), value.as_str());
        let bound = || rule.as_u64().expect("a number");
        match word.as_str() {
            "$schema" | "$defs" | "title" | "description" | "default" => None,
            "$ref" => {
                let pointer = rule.as_str().and_then(|rule| rule.strip_prefix('#')).expect("a local reference");
                violation(root, root.pointer(pointer).expect("it is defined"), value, at)
            }
            "type" => wrong(match rule.as_str().expect("one type") {
                "object" => object.is_none(),
                "array" => list.is_none(),
                "string" => text.is_none(),
                "integer" => !value.is_u64() && !value.is_i64(),
                other => panic!("{other} is no type of this schema"),
            }),
            "enum" => wrong(!rule.as_array().expect("a list").contains(value)),
            "anyOf" => {
                let any = rule.as_array().expect("a list").iter();
                wrong(any.map(|schema| violation(root, schema, value, at)).all(|violation| violation.is_some()))
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
            other => panic!("{other} is no word of this schema"),
        }
    };
    schema.as_object().expect("a schema").iter().find_map(check)
}

fn forbids(text: &str) -> Option<String> {
    violation(&schema(), &schema(), &yaml(text), "")
}

#[test]
fn every_case_file_is_what_the_schema_describes() {
    for (path, text) in files() {
        assert_eq!(forbids(&text), None, "{}", path.display());
    }
}

/// A schema that is more lenient than the parser makes an editor accept files that then fail.
///
/// A schema that is stricter makes an editor report errors where there are none.
#[test]
fn schema_and_parser_refuse_the_same_files() {
    let case = |rest: &str| format!("cases: [{{name: n, pod: {{}}, {rest}}}]");
    let with = |rest: &str| format!("{{cases: [{{name: n, pod: {{}}, expect: {{verdict: Allow}}}}], {rest}}}");
    let node = |rest: &str| with(&format!("nodes: [{{{rest}}}]"));
    let good = [
        case("expect: {verdict: Allow}"),
        case("user: alice, expect: {filter: {a: fits}}"),
        case("expect: {bind: {a: {verdict: Deny, message: [x, y]}, b: {annotations: {}}}}"),
        case("expect: {verdict: Deny, message: {exactly: x}, warnings: [], patch: []}"),
        node("name: a, memory: 1Gi"),
        node("name: a, memory: 1024, gpus: 2, replicas: 4, sharing: mps, product: X, resource: nvidia.com/gpu.shared"),
    ];
    for text in good {
        assert_eq!((forbids(&text), read("good.yaml", &text).err()), (None, None), "{text}");
    }
    let bad = [
        "{}".to_owned(),
        "cases: []".to_owned(),
        "cases: [{name: '', pod: {}, expect: {verdict: Allow}}]".to_owned(),
        with("suites: []"),
        with("snapshot: /etc/passwd"),
        with("policies: ['']"),
        with("cluster: [node.yaml]"),
        "cases: [{name: n, expect: {verdict: Allow}}]".to_owned(),
        "cases: [{name: n, pod: [], expect: {verdict: Allow}}]".to_owned(),
        case("expect: {}"),
        case("expect: {verdict: Maybe}"),
        case("expect: {verdict: Deny, message: ''}"),
        case("expect: {verdict: Deny, message: {exact: x}}"),
        case("expect: {bind: {a: {}}}"),
        case("expect: {bind: {a: {why: x}}}"),
        case("expect: {filter: {a: 3}}"),
        node("name: a"),
        node("name: '', memory: 1Gi"),
        node("name: a, memory: 0"),
        node("name: a, memory: 1Gi, gpus: 0"),
        node("name: a, memory: 1Gi, sharing: TimeSlicing"),
        node("name: a, memory: 1Gi, taints: []"),
    ];
    for text in bad {
        assert!(forbids(&text).is_some(), "the schema lets pass: {text}");
        assert!(read("bad.yaml", &text).is_err(), "the parser lets pass: {text}");
    }
}

#[test]
fn the_example_in_the_documentation_holds() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/policy-tests.md");
    let text = std::fs::read_to_string(page).expect("the page");
    let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let examples: Vec<&str> = blocks.filter(|block| block.contains("\ncases:\n")).collect();
    assert_eq!(examples.len(), 1);
    assert_eq!(forbids(examples[0]), None);
    let suite = read("policy-tests.md", examples[0]).unwrap_or_else(|errors| panic!("\n{errors}"));
    let simulation = suite.simulation();
    for case in &suite.cases {
        assert_eq!(case.check(&simulation), Ok(()), "{}", case.name);
    }
}
