//! Tests the format of case files: the schema that editors use, and the example in the documentation.

use serde_json::Value;

use super::{FOLDER, files, read};
use crate::support::schema::violation;

fn schema() -> Value {
    let text = std::fs::read_to_string(format!("{FOLDER}/case.schema.json")).expect("the schema");
    serde_json::from_str(&text).expect("JSON")
}

/// Reads YAML as editors and the parser do: `n` is a string.
fn yaml(text: &str) -> Value {
    serde_saphyr::from_str_with_options(text, serde_saphyr::options! { strict_booleans: true }).expect("YAML")
}

fn forbids(text: &str) -> Option<String> {
    violation(&schema(), &yaml(text))
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
    let case = |rest: &str| {
        format!(
            "{{nodes: [{{name: a, memory: 1Gi}}, {{name: b, memory: 1Gi}}], cases: [{{name: n, pod: {{}}, {rest}}}]}}"
        )
    };
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
