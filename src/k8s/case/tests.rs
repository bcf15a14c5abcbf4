//! The format of a case file, and the errors about a wrong one.

use std::collections::BTreeSet;

use serde_json::json;

use super::*;
use crate::k8s::testing::fields_of;

mod strict;

const NO_FILES: Load<'static> = &|path| Err(format!("nothing is loaded in this test, {path:?} neither"));

fn suite(text: &str) -> Suite {
    read("suite.yaml", text, NO_FILES).unwrap_or_else(|errors| panic!("{errors:?}"))
}

fn errors_with(text: &str, load: Load<'_>) -> Vec<String> {
    read("suite.yaml", text, load).unwrap_err().iter().map(ToString::to_string).collect()
}

/// The error of a file that has exactly one.
fn error(text: &str) -> String {
    let [error] = errors_with(text, NO_FILES).try_into().unwrap();
    error
}

/// A list of one case; a file needs one.
const CASES: &str = "cases: [{name: n, pod: {}, expect: {verdict: Allow}}]";

/// A file with one node in shorthand.
fn node(fields: &str) -> String {
    format!("{CASES}\nnodes:\n  - {{{fields}}}\n")
}

/// A file with one case that has this expectation.
fn expecting(expect: &str) -> String {
    let nodes = "nodes: [{name: a, memory: 24Gi}, {name: b, memory: 24Gi}]";
    format!("cases:\n  - name: n\n    pod: {{metadata: {{name: p}}}}\n    expect:\n      {expect}\n{nodes}\n")
}

fn starts_with(error: &str, start: &str) {
    assert!(error.starts_with(start), "\n{error}\n{start}");
}

#[test]
fn a_node_in_short_stands_for_the_labels_and_the_capacity_of_a_real_one() {
    let short = suite(&node("name: a, gpus: 2, memory: 24Gi, replicas: 4"));
    let long = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": "a", "labels": {
            "nvidia.com/gpu.memory": "24576", "nvidia.com/gpu.count": "2",
            "nvidia.com/gpu.replicas": "4", "nvidia.com/gpu.sharing-strategy": "time-slicing",
        } },
        "status": { "capacity": { "nvidia.com/gpu": "8" } },
    });
    assert_eq!(short.cluster, [long]);
}

#[test]
fn a_node_in_short_has_one_gpu_that_is_not_shared_unless_it_says_so() {
    let labels = |fields: &str| suite(&node(fields)).cluster[0]["metadata"]["labels"].clone();
    let whole = labels("name: a, memory: 81559");
    assert_eq!((&whole["nvidia.com/gpu.memory"], &whole["nvidia.com/gpu.count"]), (&json!("81559"), &json!("1")));
    assert_eq!(
        (&whole["nvidia.com/gpu.replicas"], &whole["nvidia.com/gpu.sharing-strategy"]),
        (&json!("1"), &json!("none"))
    );
    let mps = labels("name: a, memory: 24Gi, replicas: 2, sharing: mps, product: NVIDIA-L4-SHARED");
    assert_eq!(mps["nvidia.com/gpu.sharing-strategy"], "mps");
    assert_eq!(mps["nvidia.com/gpu.product"], "NVIDIA-L4-SHARED");
    let renamed = suite(&node("name: a, memory: 24Gi, replicas: 2, resource: nvidia.com/gpu.shared"));
    assert_eq!(renamed.cluster[0]["status"]["capacity"], json!({ "nvidia.com/gpu.shared": "2" }));
    assert!(renamed.simulation().cluster().node("a").unwrap().facts.pools[0].contents.is_ok());
}

#[test]
fn a_mistake_in_a_node_names_its_field_and_what_is_expected() {
    for (fields, expected) in [
        ("name: a", "suite.yaml:3: nodes[0]: memory is missing"),
        ("name: '', memory: 1Gi", "suite.yaml:3: nodes[0].name: is empty; write the name of the node"),
        (
            "name: a, memory: 24GB",
            "suite.yaml:3: nodes[0].memory: \"24GB\" is not a whole number of MiB; write a quantity such as 24Gi",
        ),
        ("name: a, memory: '24576'", "suite.yaml:3: nodes[0].memory: \"24576\" is not a whole number of MiB"),
        ("name: a, memory: 0", "suite.yaml:3: nodes[0].memory: is zero; write the memory of one GPU"),
        ("name: a, memory: -1", "suite.yaml:3: nodes[0].memory: is negative"),
        ("name: a, memory: 17Ti", "suite.yaml:3: nodes[0].memory: is more than 16384Gi; no GPU is that large"),
        ("name: a, memory: 18446744073709551615", "suite.yaml:3: nodes[0].memory: is more than 16384Gi"),
        (
            "name: a, memory: [1]",
            "suite.yaml:3: nodes[0].memory: is a list, expected the memory of one GPU: a quantity such as 24Gi",
        ),
        (
            "name: a, memory: 1Gi, gpus: 0",
            "suite.yaml:3: nodes[0].gpus: is the number 0, expected a whole number above zero",
        ),
        (
            "name: a, memory: 1Gi, sharing: TimeSlicing",
            "suite.yaml:3: nodes[0].sharing: \"TimeSlicing\" is not one of time-slicing, mps, none",
        ),
        (
            "name: a, memory: 1Gi, replicas: 4, sharing: none",
            "suite.yaml:3: nodes[0].sharing: none contradicts replicas: 4; leave one of them out",
        ),
        (
            "name: a, memory: 1Gi, resource: cpu",
            "suite.yaml:3: nodes[0].resource: \"cpu\" is not a GPU resource; those are nvidia.com/gpu",
        ),
        (
            "name: a, memory: 1Gi, taints: []",
            "suite.yaml:3: nodes[0].taints: there is no field \"taints\" here; expected one of name, gpus",
        ),
    ] {
        starts_with(&error(&node(fields)), expected);
    }
}

#[test]
fn a_mistake_in_an_expectation_names_its_field_and_what_is_expected() {
    for (expect, expected) in [
        ("verdict: Maybe", "suite.yaml:5: cases[0].expect.verdict: \"Maybe\" is not one of Allow, Deny"),
        (
            "reason: X",
            "suite.yaml:5: cases[0].expect: verdict is missing; write Allow or Deny, or expect something of filter or bind",
        ),
        ("filter: {}", "suite.yaml:5: cases[0].expect: verdict is missing"),
        (
            "{verdict: Deny, message: ''}",
            "suite.yaml:5: cases[0].expect.message: is empty, which every text contains; write a part of the text",
        ),
        ("{verdict: Deny, message: []}", "suite.yaml:5: cases[0].expect.message: is empty"),
        (
            "{verdict: Deny, message: 3}",
            "suite.yaml:5: cases[0].expect.message: is the number 3, expected a part of the text, a list of its parts, or exactly: <the whole text>",
        ),
        (
            "{verdict: Deny, message: {exact: x}}",
            "suite.yaml:5: cases[0].expect.message.exact: there is no field \"exact\" here; expected exactly",
        ),
        (
            "bind: {a: {}}",
            "suite.yaml:5: cases[0].expect.bind.a: nothing is expected; write a verdict, annotations, or a reason and a message",
        ),
        (
            "bind: {a: {annotations: {}, reason: X}}",
            "suite.yaml:5: cases[0].expect.bind.a: annotations are for a pod that is bound",
        ),
        (
            "bind: {a: {verdict: Deny, annotations: {}}}",
            "suite.yaml:5: cases[0].expect.bind.a: a pod that is refused gets no annotations",
        ),
        (
            "bind: {a: {verdict: Allow, message: x}}",
            "suite.yaml:5: cases[0].expect.bind.a: a pod that is bound has no reason and no message",
        ),
        (
            "{verdict: Allow, binds: {}}",
            "suite.yaml:5: cases[0].expect.binds: there is no field \"binds\" here; expected one of verdict",
        ),
    ] {
        starts_with(&error(&expecting(expect)), expected);
    }
}

#[test]
fn what_is_written_in_the_file_itself_is_named_by_line_and_field() {
    let text = "
policies:
  - {apiVersion: vramguard.dev/v1alpha1, kind: ClusterVramPolicy, metadata: {name: a}, spec: {}}
  - {apiVersion: vramguard.dev/v1alpha1, kind: ClusterVramPolicy, metadata: {name: b}, spec: {mode: On}}
cluster:
  - {apiVersion: v1, kind: Node, metadata: {name: gpu}}
  - {apiVersion: v1, kind: Node, metadata: {name: gpu}}
  - {metadata: {name: m}}
nodes: [{name: gpu, memory: 1Gi}]
cases:
  - name: one
    pod: {spec: {containers: 3}}
    expect: {verdict: Allow}
  - name: other
    expect: {verdict: Allow}
    pod:
      kind: Deployment
";
    let errors = errors_with(text, NO_FILES);
    let starts = [
        "suite.yaml:6: cluster[0]: Node gpu is there twice",
        "suite.yaml:7: cluster[1]: Node gpu is there twice",
        "suite.yaml:8: cluster[2]: holds no Kubernetes object: kind is missing",
        "suite.yaml:4: policies[1].spec.mode: \"On\" is not one of",
        "suite.yaml:12: cases[0].pod.spec.containers: is the number 3",
        "suite.yaml:17: cases[1].pod.kind: \"Deployment\" is not Pod; a case is about one pod",
    ];
    assert_eq!(errors.len(), starts.len(), "{errors:#?}");
    for (error, start) in errors.iter().zip(starts) {
        starts_with(error, start);
    }
}

#[test]
fn a_case_file_refers_to_snapshots_policies_and_pods() {
    let load: Load<'_> = &|path| {
        match path {
        "../nodes.yaml" => Ok("kind: List\nitems: [{apiVersion: v1, kind: Node, metadata: {name: gpu}}]\n".into()),
        "crs.yaml" => Ok("{apiVersion: vramguard.dev/v1alpha1, kind: VramPolicy, metadata: {name: p, namespace: quiet}, spec: {mode: Off}}".into()),
        "p/cluster.json" => Ok(r#"{"apiVersion": "vramguard.dev/v1alpha1", "kind": "ClusterVramPolicy", "metadata": {"name": "c"}, "spec": {"mode": "Warn"}}"#.into()),
        "pod.yaml" => Ok("metadata: {name: from-file}\n".into()),
        other => Err(format!("{other:?} was not asked for")),
    }
    };
    let text = "
snapshot: [../nodes.yaml, crs.yaml]
policies: p/cluster.json
cases: [{name: n, pod: pod.yaml, expect: {verdict: Allow}}]
";
    let suite = read("suite.yaml", text, load).unwrap();
    assert_eq!(suite.cluster[0]["metadata"]["name"], "gpu");
    assert_eq!(suite.cases[0].pod["metadata"]["name"], "from-file");
    let simulation = suite.simulation();
    let mode = |namespace| simulation.policies().of(namespace).unwrap().mode.to_string();
    assert_eq!((mode("ml"), mode("quiet")), ("Warn".to_owned(), "Off".to_owned()), "also that of the snapshot");
    assert_eq!(suite.policies.len(), 2);
}

#[test]
fn an_error_in_a_referenced_file_names_the_case_file_the_field_and_the_path() {
    let load: Load<'_> = &|path| {
        match path {
        "broken.yaml" => Ok("\nkind: List\nitems: 3\n".into()),
        "twice.yaml" => Ok(
            "{apiVersion: v1, kind: Node, metadata: {name: gpu}}\n---\n{apiVersion: v1, kind: Node, metadata: {name: gpu}}"
                .into(),
        ),
        "policy.yaml" => {
            Ok("apiVersion: vramguard.dev/v1alpha1\nkind: ClusterVramPolicy\nmetadata: {name: c}\nspec: {mode: On}\n"
                .into())
        }
        "pods.yaml" => Ok("kind: Pod\n---\nkind: Pod\n".into()),
        "deployment.yaml" => Ok("kind: Deployment\n".into()),
        "odd.yaml" => Ok("spec: {nodeName: [a]}\n".into()),
        _ => Err("no such file".into()),
    }
    };
    let text = "
snapshot:
  - broken.yaml
  - twice.yaml
  - missing.yaml
policies: [policy.yaml]
cases:
  - name: many
    pod: pods.yaml
    expect: {verdict: Allow}
  - {name: none, pod: gone.yaml, expect: {verdict: Allow}}
  - {name: other, pod: deployment.yaml, expect: {verdict: Allow}}
  - {name: odd, pod: odd.yaml, expect: {verdict: Allow}}
";
    let errors = errors_with(text, load);
    let starts = [
        "suite.yaml:3: snapshot[0]: broken.yaml:1: List holds no list of items",
        "suite.yaml:5: snapshot[2]: missing.yaml: no such file",
        "suite.yaml:4: snapshot[1]: twice.yaml:3: Node gpu is there twice",
        "suite.yaml:6: policies[0]: policy.yaml:4: spec.mode: \"On\" is not one of",
        "suite.yaml:9: cases[0].pod: pods.yaml: holds 2 objects; a case is about one pod",
        "suite.yaml:11: cases[1].pod: gone.yaml: no such file",
        "suite.yaml:12: cases[2].pod: deployment.yaml: kind: \"Deployment\" is not Pod; a case is about one pod",
        "suite.yaml:13: cases[3].pod: odd.yaml: spec.nodeName: is a list, expected a text",
    ];
    assert_eq!(errors.len(), starts.len(), "{errors:#?}");
    for (error, start) in errors.iter().zip(starts) {
        starts_with(error, start);
    }
}

/// `Off` is a mode, and a name may be `n`.
#[test]
fn of_plain_texts_only_true_and_false_are_booleans() {
    let policy =
        "{apiVersion: vramguard.dev/v1alpha1, kind: ClusterVramPolicy, metadata: {name: n}, spec: {mode: Off}}";
    let load: Load<'_> =
        &|_| Ok("{apiVersion: v1, kind: Node, metadata: {name: n}, spec: {unschedulable: true}}".into());
    let text = format!("snapshot: node.yaml\npolicies: {policy}\n{CASES}\n");
    let suite = read("suite.yaml", &text, load).unwrap();
    assert_eq!(suite.simulation().policies().of("ml").unwrap().mode.to_string(), "Off");
    assert_eq!(
        (&suite.cluster[0]["metadata"]["name"], &suite.cluster[0]["spec"]["unschedulable"]),
        (&json!("n"), &json!(true))
    );
}

#[test]
fn a_path_is_relative_to_the_case_file() {
    let absolute = error(&format!("snapshot: /etc/passwd\n{CASES}\n"));
    assert_eq!(
        absolute,
        "suite.yaml:1: snapshot: \"/etc/passwd\" is absolute; write a path relative to the case file, so that both can be moved"
    );
    assert!(
        error(&format!("policies: ['']\n{CASES}\n")).starts_with("suite.yaml:1: policies[0]: is empty; write the path")
    );
    assert!(error(&format!("{CASES}\npolicies: 3\n")).ends_with("expected a list, or its only entry"));
    assert!(
        error(&format!("{CASES}\npolicies: [3]\n"))
            .ends_with("expected an object, or the path of a file that holds it")
    );
}

#[test]
fn where_nodes_are_asked_about_the_pod_has_to_be_admitted() {
    let verdict = |expect: &str| suite(&expecting(expect)).cases[0].expect.verdict;
    assert_eq!(verdict("filter: {a: fits}"), Expected::Allow);
    assert_eq!(verdict("bind: {a: {reason: X}}"), Expected::Allow);
    assert_eq!(verdict("{verdict: Deny, bind: {a: {reason: X}}}"), Expected::Deny);
}

#[test]
fn a_text_is_met_by_its_parts_or_as_a_whole() {
    let met = |text: &str, got: &str| {
        let expect = suite(&expecting(&format!("{{verdict: Deny, message: {text}}}"))).cases[0].expect.clone();
        let denied = Outcome { verdict: Expected::Deny, message: Some(got.to_owned()), ..allowed() };
        expect.compare(&denied).is_empty()
    };
    let message = "node \"a\" has no room: 8Gi demanded";
    assert!(
        met("no room", message) && met("[8Gi, no room]", message) && met(&format!("{{exactly: '{message}'}}"), message)
    );
    assert!(!met("9Gi", message) && !met("[no room, 9Gi]", message) && !met("{exactly: no room}", message));
}

/// The outcome of a pod that is admitted without a change.
fn allowed() -> Outcome {
    Outcome {
        verdict: Expected::Allow,
        reason: None,
        message: None,
        demand: Some("1Mi".into()),
        warnings: Vec::new(),
        patch: json!([]),
        filter: BTreeMap::new(),
        bind: BTreeMap::new(),
    }
}

/// The differences of an expectation from an outcome, as text.
fn differences(expect: &str, outcome: &Outcome) -> Vec<String> {
    let expect = suite(&expecting(expect)).cases[0].expect.clone();
    expect.compare(outcome).iter().map(ToString::to_string).collect()
}

#[test]
fn what_differs_is_said_with_both_sides() {
    let bound = |annotation: &str| Bound::Allow { annotations: BTreeMap::from([("k".into(), annotation.to_owned())]) };
    let denied = Bound::Deny { reason: "R".into(), message: "why".into() };
    let outcome = Outcome {
        filter: [("a", FITS), ("b", "no room")].map(|(node, answer)| (node.to_owned(), answer.to_owned())).into(),
        bind: BTreeMap::from([("a".into(), bound("v")), ("b".into(), denied)]),
        ..allowed()
    };
    for (text, expected) in [
        ("{verdict: Allow, filter: {a: fits, b: room}, bind: {a: {verdict: Allow}, b: {verdict: Deny}}}", vec![]),
        ("bind: {a: {annotations: {k: v}}, b: {reason: R, message: {exactly: why}}}", vec![]),
        (
            "{verdict: Deny, message: x}",
            vec!["verdict: expected Deny, got Allow", "message: expected a text that contains \"x\", got none"],
        ),
        (
            "{verdict: Allow, demand: 2Mi, reason: R}",
            vec!["reason: expected R, got none", "demand: expected 2Mi, got 1Mi"],
        ),
        (
            "filter: {a: it, b: fits}",
            vec!["filter.a: expected a text that contains \"it\", got fits", "filter.b: expected fits, got no room"],
        ),
        ("bind: {a: {reason: R}}", vec!["bind.a.verdict: expected Deny, got Allow"]),
        ("bind: {b: {annotations: {}}}", vec!["bind.b.verdict: expected Allow, got Deny, R: why"]),
        (
            "bind: {b: {reason: S, message: [how, why]}}",
            vec!["bind.b.reason: expected S, got R", "bind.b.message: expected a text that contains \"how\", got why"],
        ),
        ("bind: {a: {annotations: {k: w}}}", vec!["bind.a.annotations: expected k: \"w\", got k: \"v\""]),
        ("{verdict: Allow, warnings: [x]}", vec!["warnings: expected a text that contains \"x\", got []"]),
        ("{verdict: Allow, patch: [3]}", vec!["patch: expected 3, got []"]),
    ] {
        assert_eq!(differences(text, &outcome), expected, "{text}");
    }
}

#[test]
fn a_denial_that_is_not_expected_is_shown_with_its_cause() {
    let denied = Outcome {
        verdict: Expected::Deny,
        reason: Some("R".into()),
        message: Some("pod \"a/b\": why".into()),
        ..allowed()
    };
    let expected = ["verdict: expected Allow, got Deny, R: pod \"a/b\": why"];
    assert_eq!(differences("verdict: Allow", &denied), expected);
}

#[test]
fn warnings_are_compared_in_number_and_order_each_by_a_part() {
    let warned = Outcome { warnings: vec!["one thing".into(), "other thing".into()], ..allowed() };
    assert_eq!(differences("{verdict: Allow, warnings: [one, {exactly: other thing}]}", &warned), [""; 0]);
    for (text, expected) in [
        ("[]", "warnings: expected [], got one thing\nother thing"),
        ("[one]", "warnings: expected one thing, got one thing\nother thing"),
        ("[one, {exactly: other}]", "warnings: expected one thing\nother, got one thing\nother thing"),
        (
            "[other, one]",
            "warnings: expected a text that contains \"other\"\na text that contains \"one\", got one thing\nother thing",
        ),
    ] {
        assert_eq!(differences(&format!("{{verdict: Allow, warnings: {text}}}"), &warned), [expected]);
    }
}

#[test]
fn a_file_without_cases_and_a_case_without_a_name_of_its_own_are_errors() {
    assert_eq!(
        error("nodes: []\ncases: []\n"),
        "suite.yaml:2: cases: is empty, so nothing would be tested; write at least one case"
    );
    let case = |name: &str| format!("  - name: {name}\n    pod: {{}}\n    expect: {{verdict: Allow}}\n");
    let text = format!("cases:\n{}{}{}", case("a"), case("' '"), case("a"));
    assert_eq!(
        errors_with(&text, NO_FILES),
        [
            "suite.yaml:5: cases[1].name: is empty; write what is true if the case passes",
            "suite.yaml:8: cases[2].name: is the name of cases[0] too; write another",
        ]
    );
    assert_eq!(suite(&format!("# a comment\ncases:\n{}", case("a"))).cases[0].line, 3);
}

#[test]
fn schema_and_parser_know_the_same_fields() {
    let schema: Value = serde_json::from_str(include_str!("../../../tests/cases/case.schema.json")).unwrap();
    let types = [
        ("", fields_of::<format::File>()),
        ("/$defs/node", fields_of::<node::Node>()),
        ("/$defs/case", fields_of::<format::CaseText>()),
        ("/$defs/expectation", fields_of::<format::ExpectationText>()),
        ("/$defs/binding", fields_of::<format::BindText>()),
        ("/$defs/exactly", fields_of::<format::Exactly>()),
    ];
    for (at, parsed) in types {
        let object = schema.pointer(at).unwrap();
        let described: BTreeSet<&str> = object["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(described, parsed, "{at}");
        assert!(!parsed.is_empty() && object["additionalProperties"] == false, "{at}");
    }
    // No other object of the schema has fields of its own.
    let with_fields = schema["$defs"].as_object().unwrap().values().filter(|object| object.get("properties").is_some());
    assert_eq!(with_fields.count(), 5);
}
