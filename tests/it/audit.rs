//! `vramguard audit` as a user runs it: on a real control plane with rights to read alone, and on files.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // a test starts programs

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};

use crate::support::guard::Guard;
use crate::support::http::get;
use crate::support::objects::{ENFORCE, deployment, gpu_pod, node_of};
use crate::support::{ControlPlane, Finished, GpuNode, PATIENCE, eventually, run};

mod files;
mod policy_reports;
mod schema;
mod used;

const BINARY: &str = env!("CARGO_BIN_EXE_vramguard");

/// Runs an audit with these arguments.
fn audit(arguments: &[&str]) -> Finished {
    audit_as("/nonexistent", arguments)
}

/// Runs an audit as the user of a kubeconfig.
fn audit_as(kubeconfig: &str, arguments: &[&str]) -> Finished {
    let mut command = Command::new(BINARY);
    command.arg("audit").args(arguments).env("KUBECONFIG", kubeconfig).env_remove("COLUMNS");
    run(&mut command, Duration::from_secs(120))
}

fn json(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}\n{}", finished.stdout, finished.stderr))
}

fn reasons(report: &Value) -> Vec<String> {
    let findings = report["findings"].as_array().expect("findings");
    findings
        .iter()
        .map(|finding| format!("{} {}", finding["reason"].as_str().unwrap(), finding["name"].as_str().unwrap()))
        .collect()
}

/// A service account that may do this, as its kubeconfig.
async fn account(plane: &ControlPlane, name: &str, roles: &[&str]) -> String {
    plane.kubectl(&["create", "serviceaccount", name]).await.expect_success();
    for role in roles {
        let (binding, role) = (format!("{name}-{role}"), format!("--clusterrole={role}"));
        let subject = format!("--serviceaccount=default:{name}");
        plane.kubectl(&["create", "clusterrolebinding", &binding, &role, &subject]).await.expect_success();
    }
    let kubeconfig = plane.service_account_kubeconfig("default", name).await;
    kubeconfig.to_str().expect("temporary folders have plain names").to_owned()
}

/// A cluster without vramguard, on which kube-scheduler has overcommitted a GPU: three agents of 8 GiB on 24 GiB.
async fn overcommitted() -> ControlPlane {
    let plane = ControlPlane::start().await;
    plane.add_gpu_node(&GpuNode::new("gpu-0")).await;
    plane.kubectl(&["create", "namespace", "ml"]).await.expect_success();
    plane.apply(&deployment("ml", "agent", 3, "{vramguard.dev/vram: 8Gi}")).await;
    plane.apply(&gpu_pod("ml", "notebook", "{}", "")).await;
    eventually("the pods to be bound", PATIENCE, async || {
        let pods: kube::Api<k8s_openapi::api::core::v1::Pod> = kube::Api::namespaced(plane.client(), "ml");
        let pods = pods.list(&kube::api::ListParams::default()).await?.items;
        let bound = pods.iter().filter(|pod| node_of(pod).is_some()).count();
        ensure!(bound == 4, "{bound} of {}", pods.len());
        Ok(())
    })
    .await;
    plane
}

#[tokio::test]
async fn a_live_cluster_is_audited_with_rights_to_read_alone_and_a_snapshot_of_it_says_the_same() {
    let plane = overcommitted().await;
    let roles = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples/auditor.yaml"));
    plane.kubectl(&["create", "namespace", "vramguard-system"]).await.expect_success();
    plane.apply(&roles.expect("the example")).await;
    let auditor = account(&plane, "auditor", &["vramguard-auditor"]).await;
    let own = [
        "-n",
        "vramguard-system",
        "create",
        "rolebinding",
        "auditor",
        "--role=vramguard-auditor",
        "--serviceaccount=default:auditor",
    ];
    plane.kubectl(&own).await.expect_success();

    let live = audit_as(&auditor, &["--output", "json"]);
    assert_eq!(live.status.code(), Some(1), "a GPU is overcommitted: {}", live.stderr);
    let live = json(&live);
    assert_eq!(live["summary"]["overcommittedGpus"], 1);
    let gpu = &live["gpus"][0];
    // Three times 8,192 + 720, and one slot of a quarter for the notebook.
    assert_eq!((&gpu["heldMib"], &gpu["allocatableMib"]), (&json!(3 * 8912 + 5967), &json!(23_870)), "{gpu}");
    assert_eq!(gpu["holders"].as_array().map(Vec::len), Some(4));
    let found = reasons(&live);
    for expected in ["GpuOvercommitted gpu-0", "VramUndeclared notebook", "TooManyReplicas gpu-0"] {
        assert!(found.iter().any(|reason| reason == expected), "{expected}: {found:?}");
    }
    // The third agent does not fit; the notebook, which counts as a slot, still does.
    assert_eq!(live["enforced"]["waiting"].as_array().map(Vec::len), Some(1), "{}", live["enforced"]);

    let kinds = "nodes,pods,deployments,replicasets,statefulsets,daemonsets,jobs,cronjobs,hpa,resourcequotas,resourceslices,resourceclaims";
    let objects = plane.kubectl(&["get", kinds, "-A", "-o", "json"]).await.expect_success();
    let file = plane.folder().join("cluster.json");
    std::fs::write(&file, objects).expect("a file");
    let snapshot = json(&audit(&["--snapshot", file.to_str().unwrap(), "--output", "json"]));
    let same = |report: &Value| {
        let mut report = report.clone();
        for field in ["generatedAt", "cluster", "gaps"] {
            report[field] = Value::Null;
        }
        for finding in report["findings"].as_array_mut().into_iter().flatten() {
            finding.as_object_mut().expect("a finding").remove("source");
        }
        report
    };
    // There is no ConfigMap with policies, which is no gap.
    assert_eq!(live["gaps"], json!([]));
    assert_eq!(same(&live), same(&snapshot));
}

#[tokio::test]
async fn the_policies_of_the_cluster_are_used_and_those_of_a_folder_take_their_place() {
    let plane = overcommitted().await;
    let admin = plane.admin_kubeconfig().to_str().expect("a plain path").to_owned();
    plane.kubectl(&["create", "namespace", "vramguard-system"]).await.expect_success();
    let policy = format!("--from-literal=cluster.yaml={ENFORCE}");
    let create = ["-n", "vramguard-system", "create", "configmap", "vramguard-policies", &policy];
    plane.kubectl(&create).await.expect_success();
    let mode = |arguments: &[&str]| {
        let report = json(&audit_as(&admin, &[arguments, &["--output", "json"]].concat()));
        report["namespaces"][0]["mode"].as_str().expect("a mode").to_owned()
    };
    assert_eq!(mode(&[]), "Enforce");
    let folder = plane.folder().join("other");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::write(folder.join("off.yaml"), ENFORCE.replace("Enforce", "Off")).expect("a file");
    assert_eq!(mode(&["--policies", folder.to_str().unwrap()]), "Off");
}

#[tokio::test]
async fn what_may_not_be_read_is_said_and_without_nodes_there_is_no_report() {
    let plane = overcommitted().await;
    plane
        .kubectl(&["create", "clusterrole", "nodes-and-pods", "--verb=list", "--resource=nodes,pods"])
        .await
        .expect_success();
    plane.kubectl(&["create", "clusterrole", "nodes-only", "--verb=list", "--resource=nodes"]).await.expect_success();

    let some = account(&plane, "some", &["nodes-and-pods"]).await;
    let report = json(&audit_as(&some, &["--output", "json"]));
    assert_eq!(report["summary"]["overcommittedGpus"], 1, "nodes and pods are enough");
    let gaps: Vec<&str> = report["gaps"].as_array().unwrap().iter().map(|gap| gap["what"].as_str().unwrap()).collect();
    assert!(gaps.contains(&"deployments") && gaps.contains(&"resourceclaims"), "{gaps:?}");
    // Without ReplicaSets, the owner is known by the hash in the name of the pod.
    assert!(report["findings"].as_array().unwrap().iter().all(|finding| finding["kind"] != "ReplicaSet"));

    let narrow = account(&plane, "narrow", &["nodes-only"]).await;
    plane.kubectl(&["-n", "ml", "create", "role", "pods", "--verb=list", "--resource=pods"]).await.expect_success();
    let bind = ["-n", "ml", "create", "rolebinding", "pods", "--role=pods", "--serviceaccount=default:narrow"];
    plane.kubectl(&bind).await.expect_success();
    let refused = audit_as(&narrow, &[]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(refused.stderr.contains("/api/v1/pods") && refused.stderr.contains("auditor.yaml"), "{}", refused.stderr);
    let one = json(&audit_as(&narrow, &["-n", "ml", "--output", "json"]));
    assert_eq!(one["summary"]["gpuPods"], 4);
    let gap = one["gaps"].as_array().unwrap().iter().find(|gap| gap["what"] == "pods").expect("a gap").to_string();
    assert!(gap.contains("GPUs look emptier than they are"), "{gap}");

    let nobody = account(&plane, "nobody", &[]).await;
    let refused = audit_as(&nobody, &[]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(refused.stderr.contains("/api/v1/nodes"), "{}", refused.stderr);
}

#[tokio::test]
async fn a_credential_plugin_of_the_kubeconfig_is_run() {
    let plane = ControlPlane::start().await;
    let reader = account(&plane, "reader", &["cluster-admin"]).await;
    let mut kubeconfig: Value = serde_json::from_str(&std::fs::read_to_string(&reader).expect("a kubeconfig"))
        .expect("kubeconfigs of tests are JSON");
    let token = kubeconfig["users"][0]["user"]["token"].take();
    let credential = json!({
        "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": token},
    });
    kubeconfig["users"][0]["user"] = json!({"exec": {
        "apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never", "command": "echo",
        "args": [credential.to_string()],
    }});
    let file = plane.folder().join("exec.kubeconfig");
    std::fs::write(&file, kubeconfig.to_string()).expect("a file");
    let finished = audit_as(file.to_str().unwrap(), &["--output", "json"]);
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
    assert_eq!(json(&finished)["summary"]["gpus"], 0);
}

#[tokio::test]
async fn kubectl_runs_it_as_a_plugin() {
    let plane = ControlPlane::start().await;
    let folder = plane.folder().join("plugins");
    std::fs::create_dir(&folder).expect("a folder");
    std::os::unix::fs::symlink(BINARY, folder.join("kubectl-vramguard")).expect("a link");
    let kubeconfig = plane.admin_kubeconfig().display();
    let script = format!("PATH={}:$PATH KUBECONFIG={kubeconfig} kubectl vramguard audit", folder.display());
    let finished = plane.shell(&script).await;
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
    assert!(finished.stdout.starts_with("no GPUs"), "{}", finished.stdout);
}

#[tokio::test]
async fn explain_reads_the_policies_and_the_nodes_of_a_live_cluster() {
    let plane = overcommitted().await;
    plane.kubectl(&["create", "namespace", "vramguard-system"]).await.expect_success();
    let policy = format!("--from-literal=cluster.yaml={ENFORCE}");
    let create = ["-n", "vramguard-system", "create", "configmap", "vramguard-policies", &policy];
    plane.kubectl(&create).await.expect_success();
    let manifest = plane.folder().join("pod.yaml");
    std::fs::write(&manifest, gpu_pod("ml", "more", "{vramguard.dev/vram: 8Gi}", "")).expect("a file");
    let mut command = Command::new(BINARY);
    command.args(["explain", "--live", "--namespace", "ml", "--output", "json", "--pod"]).arg(&manifest);
    command.env("KUBECONFIG", plane.admin_kubeconfig());
    let answer = run(&mut command, Duration::from_secs(60)).expect_success();
    assert!(answer.contains("ConfigMap vramguard-policies: cluster.yaml"), "{answer}");
    // Three agents and a notebook hold more than the only GPU has.
    assert!(answer.contains("gpu-0") && answer.contains("8912"), "{answer}");
}
