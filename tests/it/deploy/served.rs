//! The manifests with a running server: its writes pass the shipped schema, RBAC and admission policies.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::kubectl;
use crate::support::guard::{Guard, configurations_reread};
use crate::support::objects::{ENFORCE, gpu_pod, plain_pod};
use crate::support::{ControlPlane, GpuNode, PATIENCE, eventually, stays};

fn pod(name: &str) -> String {
    gpu_pod("ml", name, "{vramguard.dev/vram: 5Gi}", "")
}

async fn json_of(plane: &ControlPlane, arguments: &str) -> anyhow::Result<Value> {
    let found = kubectl(plane, &format!("{arguments} -o json"), "").await;
    ensure!(found.status.success(), "{}", found.stderr);
    serde_json::from_str(&found.stdout).context("kubectl prints JSON")
}

/// Waits for a row of `kubectl get gpuledgers` that begins with `columns`, and returns the table.
async fn row(plane: &ControlPlane, columns: &str) -> String {
    eventually(&format!("the row {columns}"), PATIENCE, async || {
        let table = kubectl(plane, "get gpuledgers", "").await.stdout;
        let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        ensure!(rows.any(|row| row.starts_with(columns)), "{table}");
        Ok(table)
    })
    .await
}

/// Sets `failurePolicy: Ignore` in all webhook entries.
async fn fail_open(plane: &ControlPlane) {
    for kind in ["mutatingwebhookconfiguration", "validatingwebhookconfiguration"] {
        let configuration = json_of(plane, &format!("get {kind} vramguard")).await.expect("it is applied");
        let entries = configuration["webhooks"].as_array().expect("it has entries").len();
        let replace =
            |index| json!({"op": "replace", "path": format!("/webhooks/{index}/failurePolicy"), "value": "Ignore"});
        let patch = Value::Array((0..entries).map(replace).collect());
        kubectl(plane, &format!("patch {kind} vramguard --type=json -p {patch}"), "").await.expect_success();
    }
    configurations_reread().await;
}

#[tokio::test]
async fn a_ledger_is_written_read_and_made_anew_under_the_manifests() {
    let plane = ControlPlane::start().await;
    plane.add_gpu_node(&GpuNode { gpus: 4, ..GpuNode::new("gpu-0") }).await;
    let mut guard = Guard::start_from(&plane, "deploy/fail-closed", &[("cluster.yaml", ENFORCE)]).await;
    kubectl(&plane, "create namespace ml", "").await.expect_success();
    for name in ["a", "b"] {
        plane.apply(&pod(name)).await;
    }
    let row = async |columns| row(&plane, columns).await;
    println!("{}", row("gpu-0 slot 4 95480Mi 11680Mi 5967Mi 2 True False").await);
    let ledger = json_of(&plane, "get gpul gpu-0").await.unwrap();
    assert_eq!(ledger["metadata"]["ownerReferences"][0]["kind"], "Node");
    let states = ledger["spec"]["reservations"].as_array().unwrap().iter().map(|row| row["state"].clone());
    assert!(states.eq(["Confirmed", "Confirmed"]), "{ledger}");
    let annotated = json_of(&plane, "-n ml get pod a").await.unwrap();
    assert_eq!(annotated["metadata"]["annotations"]["vramguard.dev/gpu-total-mib"], "24576");

    // The controller recreates a deleted ledger with the bound pods.
    kubectl(&plane, "delete gpul gpu-0", "").await.expect_success();
    row("gpu-0 slot 4 95480Mi 11680Mi 5967Mi 2 True False").await;

    // No pod is bound while the server is stopped, and the waiting pod is bound once it runs again.
    guard.server.stop();
    plane.apply(&plain_pod("ml", "web")).await;
    stays("the pod without a node", Duration::from_secs(3), async || {
        let pod = json_of(&plane, "-n ml get pod web").await?;
        ensure!(pod["spec"]["nodeName"] == Value::Null, "{}", pod["spec"]);
        Ok(())
    })
    .await;
    guard.server.start();
    guard.ready(&plane).await;
    eventually("the pod to be bound", PATIENCE, async || {
        ensure!(json_of(&plane, "-n ml get pod web").await?["spec"]["nodeName"] == "gpu-0");
        Ok(())
    })
    .await;

    // A pod that was bound without the guard is counted and annotated later, under the shipped RBAC and policies.
    guard.server.stop();
    fail_open(&plane).await;
    plane.apply(&pod("slipped").replace("nvidia.com/gpu: 1", "nvidia.com/gpu: 1, vramguard.dev/vram: 5840Mi")).await;
    eventually("the pod to be bound", PATIENCE, async || {
        ensure!(json_of(&plane, "-n ml get pod slipped").await?["spec"]["nodeName"] == "gpu-0");
        Ok(())
    })
    .await;
    guard.server.start();
    row("gpu-0 slot 4 95480Mi 17520Mi 5967Mi 3 True False").await;
    eventually("the annotation to be filled in", PATIENCE, async || {
        let pod = json_of(&plane, "-n ml get pod slipped").await?;
        ensure!(
            pod["metadata"]["annotations"]["vramguard.dev/gpu-total-mib"] == "24576",
            "{}{}",
            pod["metadata"],
            guard.server.log_tail()
        );
        Ok(())
    })
    .await;
    assert!(!guard.server.log_tail().contains("orbidden"), "{}", guard.server.log_tail());
}
