//! The report in JSON, as the program writes it, against the schema that is shipped.

use serde_json::Value;

use super::{audit, json};
use crate::support::schema::violation;
use crate::support::write;

#[test]
fn what_is_written_matches_the_schema_and_a_wrong_value_does_not() {
    let schema: Value =
        serde_json::from_str(include_str!("../../../docs/audit.schema.json")).expect("the schema is JSON");
    let snapshot = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots/time-slicing.yaml");
    let folder = tempfile::tempdir().expect("a folder");
    let earlier = folder.path().join("earlier.json");
    write(&earlier, include_str!("../../reports/sample.json"));
    let baseline = format!("--baseline={}", earlier.display());
    let written = json(&audit(&["--snapshot", snapshot, &baseline, "--assume=mode=Enforce", "--output=json"]));
    assert!(written["baseline"].is_object() && written["assumed"].is_object(), "all parts are written");
    assert_eq!(violation(&schema, &written), None);
    for (at, wrong) in [
        ("/schemaVersion", Value::from("v2")),
        ("/summary/gpus", Value::from("4")),
        ("/gpus/0/status", Value::from("broken")),
        ("/gpus/0/totalMib", Value::from(-1)),
        ("/findings/0/severity", Value::Null),
        ("/findings/0/numbers", Value::from(7)),
        ("/assumed/report/nodes", Value::from("none")),
    ] {
        let mut report = written.clone();
        *report.pointer_mut(at).expect("a field") = wrong;
        assert!(violation(&schema, &report).is_some(), "{at}");
    }
}
