//! Tests `vramguard explain` as a user starts it: the shipped policies, a workload on a snapshot, and garbage.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::{Finished, run, write};

const BINARY: &str = env!("CARGO_BIN_EXE_vramguard");

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: agent, namespace: team-agents}
spec:
  template:
    metadata: {annotations: {vramguard.dev/vram: 8Gi}}
    spec: {containers: [{name: main, resources: {limits: {nvidia.com/gpu: '1'}}}]}
";

fn explain(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(BINARY);
    command.arg("explain").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("CLICOLOR_FORCE");
    let Finished { status, stdout, stderr, .. } = run(&mut command, Duration::from_secs(60));
    (status.code().expect("it was not killed"), stdout, stderr)
}

fn good(arguments: &[&str]) -> String {
    let (code, stdout, stderr) = explain(arguments);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    stdout
}

fn file(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    write(&path, text);
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn the_shipped_policies_are_explained_with_file_and_line() {
    let table = good(&["--namespace", "team-agents", "--policies", "policies"]);
    let text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/policies/team-agents.yaml")).expect("a file");
    let line = 1 + text.lines().position(|line| line.trim() == "max: 16Gi").expect("the bound");
    let setting = table.lines().find(|line| line.starts_with("declaration.max")).expect("a line for each field");
    assert_eq!(
        setting.split_whitespace().collect::<Vec<_>>(),
        ["declaration.max", "16Gi", &format!("policies/team-agents.yaml:{line}")]
    );
    assert!(table.contains("(Warn of policies/cluster.yaml:"), "{table}");
}

#[test]
fn a_workload_is_followed_to_the_nodes_that_can_take_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let pod = file(folder.path(), "agent.yaml", DEPLOYMENT);
    let cluster = "src/cli/demo/cluster.yaml";
    let json = good(&["--pod", &pod, "--snapshot", cluster, "--output", "json"]);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((&json["namespace"], &json["pod"]["demandMib"]), (&"team-agents".into(), &8912.into()));
    assert_eq!(json["pod"]["validate"]["verdict"], "Allow");
    assert!(json["nodes"]["now"].as_array().is_some_and(|now| !now.is_empty()), "{json}");
    let table = good(&["--pod", &pod, "--snapshot", cluster]);
    assert!(table.contains("can take the pod now") && table.contains("deployment team-agents/agent"), "{table}");
    let without = good(&["--pod", &pod, "--policies", "policies"]);
    assert!(without.contains("note: no cluster was given") && !without.contains("nodes:"), "{without}");
}

/// The webhook adds a node affinity that keeps such a pod off nodes that share their GPUs.
#[test]
fn a_pod_of_two_replicas_cannot_land_where_gpus_are_shared() {
    let folder = tempfile::tempdir().expect("a folder");
    let pod = file(folder.path(), "agent.yaml", &DEPLOYMENT.replace("nvidia.com/gpu: '1'", "nvidia.com/gpu: '2'"));
    let snapshot = "tests/snapshots/time-slicing.yaml";
    let answer = good(&["--policies", "policies", "--pod", &pod, "--snapshot", snapshot, "--output", "json"]);
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    assert_eq!(answer["nodes"]["now"], serde_json::json!([]), "{answer:#}");
}

#[test]
fn outputs_go_to_files_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out.json");
    let output = format!("json={}", out.display());
    let table = good(&["-n", "ml", "--output", "table", "--output", &output]);
    assert!(table.starts_with("namespace ml\n") && table.contains("no policy document was given"), "{table}");
    let json: Value = serde_json::from_str(&std::fs::read_to_string(out).expect("it was written")).expect("JSON");
    assert_eq!((&json["schemaVersion"], &json["pod"]), (&"v1".into(), &Value::Null));
}

#[test]
fn garbage_is_named_by_file_line_and_field() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str, text: &str| file(folder.path(), name, text);
    let error = |arguments: &[&str]| {
        let (code, stdout, stderr) = explain(arguments);
        assert_eq!((code, stdout.as_str()), (2, ""), "{stderr}");
        stderr
    };
    assert!(error(&[]).contains("--namespace"));
    let gone = error(&["--pod", "gone.yaml"]);
    assert_eq!(gone, "error: gone.yaml: there is no such file\n");
    let service = at("service.yaml", "kind: Service\n");
    assert_eq!(
        error(&["--pod", &service]),
        format!("error: {service}:1: holds no Pod and no workload with a pod template\n")
    );
    let odd = at("odd.yaml", "kind: Deployment\nspec: {template: {spec: {containers: [{name: []}]}}}\n");
    assert!(error(&["--pod", &odd]).starts_with(&format!("error: {odd}:1: spec.template.spec.containers[0].name: ")));
    let good_pod = at("pod.yaml", DEPLOYMENT);
    assert!(
        error(&["--pod", &good_pod, "-n", "other"]).contains("metadata.namespace: \"team-agents\" is not \"other\"")
    );
    let binary = folder.path().join("binary.yaml");
    std::fs::write(&binary, b"\xff").expect("a file");
    assert!(
        error(&["--pod", &good_pod, "--snapshot", binary.to_str().expect("UTF-8")])
            .contains("line 1 is not UTF-8 text")
    );
    let list = at("list.yaml", "kind: NodeList\nitems: 3\n");
    assert_eq!(
        error(&["-n", "ml", "--snapshot", &list]),
        format!("error: {list}:1: NodeList holds no list of items\n")
    );
    let policies = folder.path().join("policies");
    std::fs::create_dir(&policies).expect("a folder");
    let of_policies = ["-n", "ml", "--policies", policies.to_str().expect("UTF-8")];
    assert!(error(&of_policies).contains("holds no policy files"));
    write(
        &policies.join("p.yaml"),
        "apiVersion: vramguard.dev/v1alpha1\nkind: ClusterVramPolicy\nmetadata: {name: c}\nspec: {modes: Warn}\n",
    );
    assert!(error(&of_policies).contains("p.yaml:4: spec"), "{}", error(&of_policies));
}

#[test]
fn a_manifest_or_a_snapshot_may_come_through_a_pipe() {
    let folder = tempfile::tempdir().expect("a folder");
    file(folder.path(), "pod.yaml", DEPLOYMENT);
    let script =
        |arguments: &str| crate::plan::shell(folder.path(), &format!("vramguard explain {arguments} < pod.yaml"));
    assert!(script("--pod -").expect_success().contains("container main"), "the manifest");
    assert!(
        script("--pod pod.yaml --snapshot -").expect_success().contains("deployment team-agents/agent"),
        "the snapshot"
    );
    let twice = script("--pod - --snapshot -");
    assert_eq!(twice.status.code(), Some(2));
    assert!(twice.stderr.contains("standard input can be read once"), "{}", twice.stderr);
}

#[test]
fn a_kubeconfig_may_be_named_by_both_commands_that_read_a_cluster() {
    for arguments in ["audit", "explain -n ml", "explain -n ml --live"] {
        let folder = tempfile::tempdir().expect("a folder");
        let kubeconfig = "apiVersion: v1\nkind: Config\ncurrent-context: there\nclusters: [{name: there, cluster: {server: \
                          'https://127.0.0.1:1'}}]\nusers: [{name: there, user: {}}]\ncontexts: [{name: there, context: \
                          {cluster: there, user: there}}]\n";
        file(folder.path(), "kubeconfig", kubeconfig);
        let run = |flag: &str| {
            crate::plan::shell(folder.path(), &format!("KUBECONFIG=/nonexistent vramguard {arguments} {flag}"))
        };
        let missing = run("--kubeconfig missing");
        assert_eq!(missing.status.code(), Some(2), "{}", missing.stderr);
        assert!(missing.stderr.contains("--kubeconfig missing: cannot be read as a kubeconfig"), "{}", missing.stderr);
        let unknown = run("--kubeconfig kubeconfig --context elsewhere");
        assert!(unknown.stderr.contains("context \"elsewhere\" of the kubeconfig"), "{}", unknown.stderr);
        let unreachable = run("--kubeconfig kubeconfig");
        assert_eq!(unreachable.status.code(), Some(1), "it is read, and nobody answers: {}", unreachable.stderr);
    }
}
