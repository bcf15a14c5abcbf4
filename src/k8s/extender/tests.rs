//! Both wire forms as kube-scheduler writes and reads them, and bodies that are refused.

use serde_json::{Value, json};

use super::*;
use crate::capacity::gpu::Accounting;
use crate::capacity::node::usage::PoolTotals;
use crate::capacity::verdict::Unplaced;
use crate::capacity::vram::Vram;

fn names<'a>(args: &'a Args<'_>) -> Vec<&'a str> {
    args.nodes.iter().map(|node| node.name.as_ref()).collect()
}

fn rejected() -> Answer {
    let pool = PoolTotals { accounting: Accounting::Slot, allocatable: None, held: Vram::ZERO, holders: 0 };
    let why = Unplaced::Shortfall { demand: Vram::from_mib(8912), free: Vram::ZERO, pool };
    Err(Rejected { why, published: false })
}

fn answered(args: &Args<'_>, answers: &[Answer]) -> Value {
    serde_json::to_value(args.result(answers)).unwrap()
}

#[test]
fn keys_are_read_in_any_case_and_unknown_ones_are_skipped() {
    for body in [
        r#"{"Pod":{"metadata":{"name":"llm"}},"Nodes":null,"NodeNames":["a","b"]}"#,
        r#"{"pod":{"metadata":{"name":"llm"}},"nodes":null,"nodenames":["a","b"]}"#,
        r#"{"nodeNames":["a","b"],"more":[{"deep":{}}],"pod":{"spec":{},"metadata":{"name":"llm","labels":{}}}}"#,
        r#"{"NODENAMES":["\u0061","b"],"POD":{"metadata":{"name":"llm"}}}"#,
    ] {
        let args = read(body.as_bytes()).unwrap_or_else(|error| panic!("{body}: {error}"));
        assert_eq!(names(&args), ["a", "b"], "{body}");
        assert_eq!(args.pod.metadata.name.as_deref(), Some("llm"), "{body}");
    }
}

#[test]
fn names_are_not_copied() {
    let body = br#"{"Pod":{},"NodeNames":["gpu-0","gp\u0075-1"]}"#;
    let args = read(body).unwrap();
    assert!(matches!(args.nodes[0].name, Cow::Borrowed("gpu-0")));
    assert!(matches!(&args.nodes[1].name, Cow::Owned(name) if name == "gpu-1"), "what is escaped has to be");
}

#[test]
fn who_sends_names_gets_names() {
    let args = read(br#"{"Pod":{},"NodeNames":["a","b","c","d"]}"#).unwrap();
    let why = "node(s) had no room for 8912Mi on one GPU (slot accounting)";
    assert_eq!(
        answered(&args, &[Ok(()), rejected(), Ok(()), rejected()]),
        json!({
            "Nodes": null, "NodeNames": ["a", "c"], "FailedNodes": { "b": why, "d": why },
            "FailedAndUnresolvableNodes": { "b": why, "d": why }, "Error": "",
        })
    );
}

/// If `NodeNames` is null, kube-scheduler looks for whole nodes instead.
#[test]
fn names_are_a_list_even_where_none_is_left() {
    let args = read(br#"{"Pod":{},"NodeNames":["a"]}"#).unwrap();
    assert_eq!(answered(&args, &[rejected()])["NodeNames"], json!([]));
    let nobody = read(br#"{"Pod":{},"NodeNames":[]}"#).unwrap();
    assert_eq!(answered(&nobody, &[])["NodeNames"], json!([]));
}

/// The scheduler continues with the objects of the answer, so fields that are not read must not be lost.
#[test]
fn who_sends_whole_nodes_gets_them_back_as_they_were() {
    let node = r#"{ "kind":"Node", "metadata":{"labels":{"x":"\u0079"},"name":"a"}, "spec":{"taints":[ ]} }"#;
    let other = r#"{"metadata":{"name":"b"}}"#;
    let body = format!(r#"{{"Pod":{{}},"Nodes":{{"metadata":{{}},"items":[{node},{other}]}},"NodeNames":null}}"#);
    let args = read(body.as_bytes()).unwrap();
    assert_eq!(names(&args), ["a", "b"]);
    let answer = serde_json::to_string(&args.result(&[Ok(()), rejected()])).unwrap();
    assert!(answer.starts_with(&format!(r#"{{"Nodes":{{"items":[{node}]}},"NodeNames":null,"#)), "{answer}");

    let empty = read(br#"{"Pod":{},"Nodes":{"metadata":{},"items":null}}"#).unwrap();
    assert_eq!(answered(&empty, &[])["Nodes"], json!({ "items": [] }));
}

#[test]
fn what_is_no_such_thing_is_refused_with_its_place_and_without_its_content() {
    let marker = "hunter2";
    for (name, body, line, column) in [
        ("empty", String::new(), 1, 0),
        ("a list", format!("[\"{marker}\"]"), 1, 0),
        ("an object without keys", "{}".to_owned(), 1, 2),
        ("no pod", r#"{"NodeNames":[]}"#.to_owned(), 1, 16),
        ("a pod that is null", r#"{"Pod":null,"NodeNames":[]}"#.to_owned(), 1, 27),
        ("a pod that is a list", r#"{"Pod":[],"NodeNames":[]}"#.to_owned(), 1, 7),
        ("no nodes", "{\n\"Pod\":{}}".to_owned(), 2, 9),
        ("nodes that are null", r#"{"Pod":{},"Nodes":null,"NodeNames":null}"#.to_owned(), 1, 40),
        ("both lists", r#"{"Pod":{},"Nodes":{"items":[]},"NodeNames":[]}"#.to_owned(), 1, 46),
        ("the same key twice", r#"{"Pod":{},"pod":{},"NodeNames":[]}"#.to_owned(), 1, 18),
        ("a name that is a number", r#"{"Pod":{},"NodeNames":[1]}"#.to_owned(), 1, 24),
        ("a node without a name", format!(r#"{{"Pod":{{}},"Nodes":{{"items":[{{"{marker}":1}}]}}}}"#), 1, 44),
        ("a node that is a string", format!(r#"{{"Pod":{{}},"Nodes":{{"items":["{marker}"]}}}}"#), 1, 40),
        ("more behind it", r#"{"Pod":{},"NodeNames":[]}{}"#.to_owned(), 1, 26),
        ("half of it", r#"{"Pod":{},"NodeNames":["#.to_owned(), 1, 23),
    ] {
        let error = read(body.as_bytes()).map(|_| ()).expect_err(name);
        assert_eq!(error, ArgsError::Malformed { line, column }, "{name}");
        assert!(!error.to_string().contains(marker), "{name}: {error}");
    }
}
