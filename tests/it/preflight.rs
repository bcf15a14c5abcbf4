//! `vramguard preflight`: of each node, whether it can be steered and what is missing.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::{Finished, run};

fn preflight(arguments: &[&str]) -> Finished {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vramguard"));
    run(command.arg("preflight").args(arguments), Duration::from_secs(60))
}

#[test]
fn each_node_with_gpus_is_listed_with_what_it_lacks() {
    let finished = preflight(&["-f", "tests/it/preflight/nodes.yaml"]);
    assert_eq!(finished.status.code(), Some(1), "a node lacks something\n{}", finished.stderr);
    insta::assert_snapshot!(finished.stdout);
}

#[test]
fn programs_get_the_same_as_json() {
    let finished = preflight(&["-f", "tests/it/preflight/nodes.yaml", "--output", "json"]);
    let report: Value = serde_json::from_str(&finished.stdout).expect("JSON");
    let nodes = report["nodes"].as_array().expect("a list");
    let steering: Vec<&str> = nodes.iter().filter_map(|node| node["steering"].as_str()).collect();
    assert_eq!(steering, ["missing", "missing", "missing", "missing", "notNeeded", "steered", "missing"]);
}

#[test]
fn a_file_that_cannot_be_read_is_no_empty_cluster() {
    let missing = preflight(&["-f", "does-not-exist.yaml"]);
    assert_eq!(missing.status.code(), Some(2), "{}", missing.stdout);
    assert!(missing.stderr.contains("does-not-exist.yaml"), "{}", missing.stderr);
}
