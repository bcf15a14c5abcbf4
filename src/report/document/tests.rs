use std::collections::BTreeSet;

use serde_json::Value;

use super::*;
use crate::k8s::testing::fields_of;
use crate::report::testing::compared;

/// `tests/reports/sample.json` has each field and texts of an attacker. The tests of all formats render it.
#[test]
fn the_sample_is_read_and_written_without_loss() {
    let sample: Value =
        serde_json::from_str(include_str!("../../../tests/reports/sample.json")).expect("the sample is JSON");
    let report = Report::deserialize(&sample).expect("the sample is a report");
    assert_eq!(serde_json::to_value(&report).expect("a report is JSON"), sample);
}

fn schema() -> Value {
    serde_json::from_str(include_str!("../../../docs/audit.schema.json")).expect("the schema is JSON")
}

#[test]
fn the_schema_describes_the_fields_of_the_contract_and_no_others() {
    let schema = schema();
    let types = [
        ("", fields_of::<Report>()),
        ("/$defs/gap", fields_of::<Gap>()),
        ("/$defs/summary", fields_of::<Summary>()),
        ("/$defs/gpu", fields_of::<Gpu>()),
        ("/$defs/holder", fields_of::<Holder>()),
        ("/$defs/agent", fields_of::<Agent>()),
        ("/$defs/node", fields_of::<Node>()),
        ("/$defs/namespace", fields_of::<Namespace>()),
        ("/$defs/workload", fields_of::<Workload>()),
        ("/$defs/finding", fields_of::<Finding>()),
        ("/$defs/source", fields_of::<Source>()),
        ("/$defs/enforced", fields_of::<Enforced>()),
        ("/$defs/refused", fields_of::<Refused>()),
        ("/$defs/moved", fields_of::<Moved>()),
        ("/$defs/assumed", fields_of::<Assumed>()),
        ("/$defs/baseline", fields_of::<Baseline>()),
    ];
    for (at, fields) in &types {
        let properties = schema.pointer(at).expect("a definition")["properties"].as_object().expect("properties");
        let described: BTreeSet<&str> = properties.keys().map(String::as_str).collect();
        assert_eq!(&described, fields, "{at}");
        assert!(properties.values().all(|field| field["description"].is_string()), "{at}");
    }
    let with_fields = schema["$defs"].as_object().expect("definitions").values();
    assert_eq!(with_fields.filter(|object| object.get("properties").is_some()).count() + 1, types.len());
}

/// A report in which each field is written.
fn full() -> Value {
    let mut report = compared();
    let finding = &mut report.findings[2];
    (finding.container, finding.node) = (Some("llm".into()), Some("gpu-b".into()));
    finding.numbers.insert("heldMib".into(), 7);
    let stale = || Some("reported 3 hours ago".to_owned());
    let gpu = &mut report.gpus[0];
    (gpu.stale, gpu.holders[0].stale, gpu.holders[0].problem) = (stale(), stale(), Some("Idle".into()));
    (gpu.holders[0].idle_seconds, gpu.holders[0].bounded_by) = (Some(7), Some("plan".into()));
    let agent = report.nodes[0].agent.as_mut().expect("the sample has an agent");
    (agent.stale, agent.totals_only) = (stale(), Some("of a DCGM exporter".into()));
    serde_json::to_value(report).expect("a report is JSON")
}

/// One object of each definition in the full report.
const OBJECTS: [(&str, &str); 15] = [
    ("", ""),
    ("/$defs/gap", "/gaps/0"),
    ("/$defs/summary", "/summary"),
    ("/$defs/gpu", "/gpus/0"),
    ("/$defs/holder", "/gpus/0/holders/0"),
    ("/$defs/agent", "/nodes/0/agent"),
    ("/$defs/node", "/nodes/0"),
    ("/$defs/namespace", "/namespaces/0"),
    ("/$defs/workload", "/workloads/0"),
    ("/$defs/finding", "/findings/2"),
    ("/$defs/source", "/findings/2/source"),
    ("/$defs/refused", "/enforced/refused/0"),
    ("/$defs/moved", "/enforced/waiting/0"),
    ("/$defs/assumed", "/assumed"),
    ("/$defs/baseline", "/baseline"),
];

#[test]
fn a_field_that_the_schema_does_not_require_may_be_left_out_and_another_may_not() {
    let schema = schema();
    for (definition, at) in OBJECTS {
        let definition = schema.pointer(definition).expect("a definition");
        let required: Vec<&str> =
            definition["required"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
        for (name, field) in definition["properties"].as_object().expect("properties") {
            let mut report = full();
            let object = report.pointer_mut(at).and_then(Value::as_object_mut).expect("an object");
            assert!(object.remove(name).is_some(), "{at}/{name} is written");
            // serde reads a nullable field that is missing as null. Such a field is still always written.
            let is_nullable = field["type"].as_array().is_some_and(|types| types.contains(&"null".into()));
            let must = required.contains(&name.as_str()) && !is_nullable;
            assert_eq!(Report::deserialize(&report).is_err(), must, "{at}/{name}");
        }
    }
}
