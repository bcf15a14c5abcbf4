//! `vramguard recommend` as a user runs it: on a snapshot, and its patches on the objects of a real API server.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // a test starts programs

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::{ControlPlane, Finished, run};

const BINARY: &str = env!("CARGO_BIN_EXE_vramguard");
const SNAPSHOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots/observed.yaml");

fn recommend(arguments: &[&str]) -> Finished {
    let mut command = Command::new(BINARY);
    command.args(["recommend", "--snapshot", SNAPSHOT]).args(arguments).env("KUBECONFIG", "/nonexistent");
    run(&mut command, Duration::from_secs(60))
}

#[test]
fn each_workload_is_told_what_to_declare_or_what_is_missing() {
    let table = recommend(&[]).expect_success();
    let lines: Vec<String> =
        table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let expected = [
        "CronJob ml/nightly eval 1 1 2100Mi 8Gi lower 1472Mi",
        "Deployment ml/agent main 2 1 9421Mi - declare 9152Mi no node agent reports on gpu-1",
        "Pod lab/notebook notebook 1 0 - - not enough data - no node agent reports on gpu-1",
        "Pod ml/ollama-0 ollama 1 1 4000Mi 8Gi not enough data - seen for 3 hours of 24 hours",
    ];
    for line in expected {
        assert!(lines.iter().any(|found| found == line), "{line}\n{table}");
    }
    assert_eq!(lines.len(), expected.len(), "{table}");
    let soon = recommend(&["--min-observed", "3h", "--namespace", "ml"]).expect_success();
    assert!(soon.contains("lower") && !soon.contains("not enough data") && !soon.contains("lab/"), "{soon}");
}

#[test]
fn the_json_says_the_same_and_leaves_out_what_is_not_known() {
    let read: Value = serde_json::from_str(&recommend(&["--output", "json"]).expect_success()).expect("JSON");
    let row = |name: &str| {
        let rows = read["rows"].as_array().expect("rows");
        rows.iter().find(|row| row["name"] == name).cloned().unwrap_or_else(|| panic!("{read}"))
    };
    assert_eq!((&row("agent")["writeMiB"], &row("agent")["cycles"]), (&9_152.into(), &12.into()));
    assert_eq!(row("agent")["nodesWithoutAgent"], serde_json::json!(["gpu-1"]));
    assert_eq!(row("nightly")["observedSeconds"], 48 * 3600);
    assert!(row("notebook").get("peakMiB").is_none() && row("notebook").get("writeMiB").is_none());
}

#[test]
fn files_that_cannot_be_read_and_wrong_arguments_exit_2() {
    for arguments in [&["--min-observed", "soon"][..], &["--output", "html"], &["--snapshot", "/nonexistent.yaml"]] {
        assert_eq!(recommend(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

/// The workloads of the snapshot, without what an API server would add.
const WORKLOADS: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: agent, namespace: ml}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}, annotations: {example.com/kept: here}}
    spec: {containers: [{name: main, image: none, resources: {limits: {nvidia.com/gpu: 1}}}]}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly, namespace: ml}
spec:
  schedule: 0 3 * * *
  jobTemplate:
    spec:
      template:
        metadata: {annotations: {vramguard.dev/vram: 8Gi}}
        spec: {restartPolicy: Never, containers: [{name: eval, image: none, resources: {limits: {nvidia.com/gpu: 1}}}]}
";

#[tokio::test]
async fn a_patch_applies_to_the_template_of_a_real_deployment_and_a_real_cronjob() {
    let plane = ControlPlane::start().await;
    plane.kubectl(&["create", "namespace", "ml"]).await.expect_success();
    plane.apply(WORKLOADS).await;
    let patches = recommend(&["--output", "patch"]).expect_success();
    let folder = tempfile::tempdir().expect("a folder");
    let mut patched = 0;
    for patch in patches.split("---\n").filter(|patch| !patch.is_empty()) {
        let read: Value = serde_saphyr::from_str(patch).unwrap_or_else(|error| panic!("{error}: {patch}"));
        let text = |pointer: &str| read.pointer(pointer).and_then(Value::as_str).expect("a text").to_owned();
        let file = folder.path().join("patch.yaml");
        std::fs::write(&file, patch).expect("a file");
        let file = format!("--patch-file={}", file.display());
        let (kind, name, namespace) = (text("/kind"), text("/metadata/name"), text("/metadata/namespace"));
        let arguments = ["patch", &kind, &name, "-n", &namespace, "--type=strategic", &file];
        plane.kubectl(&arguments).await.expect_success();
        patched += 1;
    }
    assert_eq!(patched, 2, "{patches}");
    let annotations = async |kind: &str, name: &str, pointer: &str| {
        let object = plane.kubectl(&["get", kind, name, "-n", "ml", "-o", "json"]).await.expect_success();
        let object: Value = serde_json::from_str(&object).expect("JSON");
        object.pointer(pointer).cloned().unwrap_or_else(|| panic!("{object}"))
    };
    let agent = annotations("deployment", "agent", "/spec/template/metadata/annotations").await;
    assert_eq!(agent, serde_json::json!({"vramguard.dev/vram": "9152Mi", "example.com/kept": "here"}));
    let nightly = annotations("cronjob", "nightly", "/spec/jobTemplate/spec/template/metadata/annotations").await;
    assert_eq!(nightly, serde_json::json!({"vramguard.dev/vram": "1472Mi"}));
}
