//! The three forms of a report: passes, failures with diffs, unreadable files, and texts of an attacker.

use serde_json::Value;

use super::diff::{Side, lines};
use super::*;

const SUITE: &str = "
nodes: [{name: a10, memory: 24Gi, replicas: 4}]
policies:
  - {apiVersion: vramguard.dev/v1alpha1, kind: ClusterVramPolicy, metadata: {name: c}, spec: {mode: Enforce}}
cases:
  - name: a pod that declares 4Gi is admitted
    pod: &small
      metadata: {namespace: ml, name: small, annotations: {vramguard.dev/vram: 4Gi}}
      spec: {containers: [{name: main, resources: {limits: {nvidia.com/gpu: '1'}}}]}
    expect: {verdict: Allow, demand: 4816Mi}
  - name: \"a pod\\e[31m <&\\\"\\n of an attacker\"
    pod: *small
    expect:
      verdict: Deny
      message: [too large, 'vramguard.dev/vram']
      demand: 4815Mi
      patch: [{op: remove, path: /spec}]
      filter: {a10: {exactly: 'node(s) had no room for the demand of this pod, which is what this text is about'}}
";

fn report(filter: &str) -> Report {
    let suite = case::read("s.yaml", SUITE, &|path| Err(path.to_owned())).unwrap();
    let mut report = Report::new("0.0.0");
    report.play("s.yaml", &suite, filter);
    let (file, message) = ("t.yaml".to_owned(), "is <wrong>".to_owned());
    report.unreadable([Unreadable { file, line: Some(3), field: "cases".into(), message }]);
    report
}

#[test]
fn the_table_shows_passes_by_name_and_failures_with_both_sides() {
    insta::assert_snapshot!(table::render(&report(""), false));
}

#[test]
fn junit_has_a_case_for_each_case_and_for_each_unreadable_file() {
    insta::assert_snapshot!(junit::render(&report("")));
}

#[test]
fn a_filter_leaves_cases_out_and_counts_them() {
    let report = report("4Gi");
    assert_eq!((report.summary.cases, report.summary.passed, report.summary.left_out), (1, 1, 1));
    let none = self::report("no such case");
    assert_eq!((none.summary.cases, none.summary.left_out, none.files.len()), (0, 2, 0));
}

#[test]
fn colour_is_added_where_it_is_asked_for_and_texts_cannot_add_their_own() {
    let plain = table::render(&report(""), false);
    assert!(!plain.contains('\u{1b}') && plain.contains("a pod\\u{1b}[31m <&\"\\n of an attacker"), "{plain}");
    let coloured = table::render(&report(""), true);
    assert!(coloured.contains("\u{1b}[1;31mFAIL\u{1b}[0m") && !coloured.contains("\u{1b}[31m <"), "{coloured}");
    for xml in [junit::render(&report("")), report("").json()] {
        assert!(xml.chars().all(|character| character == '\n' || !character.is_control()), "{xml:?}");
    }
}

fn difference(expected: &str, got: &str) -> Difference {
    Difference { field: "patch".into(), expected: Wanted::Value(expected.into()), got: Some(got.into()) }
}

#[test]
fn of_long_values_only_the_changed_lines_and_some_around_them_are_shown() {
    let text = |changed: &str| {
        (0..40)
            .map(|line| if line == 20 { changed.to_owned() } else { line.to_string() })
            .collect::<Vec<_>>()
            .join("\n")
    };
    let shown = lines(&difference(&text("old"), &text("new")));
    let sides: Vec<Side> = shown.iter().map(|line| line.side).collect();
    let same = [Side::Same; 3];
    assert_eq!(sides, [&same[..], &[Side::Minus, Side::Plus], &same].concat());
    assert_eq!((shown[0].text.as_str(), shown[3].text.as_str(), shown[4].text.as_str()), ("17", "old", "new"));
}

#[test]
fn of_one_long_line_the_changed_words_are_marked() {
    let long = |word: &str| {
        format!("a text that is longer than sixty characters, of which {word} is the only one that changes")
    };
    let shown = lines(&difference(&long("this"), &long("that")));
    assert_eq!(shown.len(), 3);
    assert!(shown[2].text.contains("of which [-this-]{+that+} is"), "{shown:?}");
    assert_eq!(lines(&difference("short", "text")).len(), 2);
}

#[test]
fn the_names_of_the_json_fields_are_a_contract() {
    let report: Value = serde_json::from_str(&report("").json()).unwrap();
    let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(names(&report), "errors files generatedBy schemaVersion summary");
    assert_eq!(names(&report["summary"]), "cases errors failed files leftOut passed");
    assert_eq!(names(&report["files"][0]["cases"][1]), "differences error line name status");
    assert_eq!(names(&report["errors"][0]), "field file line message");
}
