//! The manifests with a server behind them: what it writes passes the schema, the rights and the policies that are shipped.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::kubectl;
use crate::guard::Guard;
use crate::support::{ControlPlane, GpuNode, eventually, pause};

const PATIENCE: Duration = Duration::from_secs(60);
const ENFORCE: &str =
    "apiVersion: vramguard.dev/v1alpha1\nkind: ClusterVramPolicy\nmetadata: {name: cluster}\nspec: {mode: Enforce}\n";

fn pod(name: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: ml, annotations: {{vramguard.dev/vram: 5Gi}}}}, spec: {{containers: \
         [{{name: main, image: none, resources: {{limits: {{nvidia.com/gpu: 1}}}}}}]}}}}"
    )
}

async fn json_of(plane: &ControlPlane, arguments: &str) -> anyhow::Result<Value> {
    let found = kubectl(plane, &format!("{arguments} -o json"), "").await;
    ensure!(found.status.success(), "{}", found.stderr);
    serde_json::from_str(&found.stdout).context("kubectl prints JSON")
}

/// Waits for a row of `kubectl get gpuledgers`; returns the table.
async fn row(plane: &ControlPlane, columns: &str) -> String {
    eventually(&format!("the row {columns}"), PATIENCE, async || {
        let table = kubectl(plane, "get gpuledgers", "").await.stdout;
        let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        ensure!(rows.any(|row| row.starts_with(columns)), "{table}");
        Ok(table)
    })
    .await
}

/// Lets everything pass that no server answers for.
async fn fail_open(plane: &ControlPlane) {
    for kind in ["mutatingwebhookconfiguration", "validatingwebhookconfiguration"] {
        let configuration = json_of(plane, &format!("get {kind} vramguard")).await.expect("it is applied");
        let entries = configuration["webhooks"].as_array().expect("it has entries").len();
        let replace =
            |index| json!({"op": "replace", "path": format!("/webhooks/{index}/failurePolicy"), "value": "Ignore"});
        let patch = Value::Array((0..entries).map(replace).collect());
        kubectl(plane, &format!("patch {kind} vramguard --type=json -p {patch}"), "").await.expect_success();
    }
    // The API server reads webhook configurations through a watch of its own.
    pause(Duration::from_secs(2)).await;
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

    // Taken away by hand, it comes back with who is there.
    kubectl(&plane, "delete gpul gpu-0", "").await.expect_success();
    row("gpu-0 slot 4 95480Mi 11680Mi 5967Mi 2 True False").await;

    // Nothing is bound while nobody answers, and what waited is bound when somebody does.
    guard.server.stop();
    plane.apply("{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: ml}, spec: {containers: [{name: main, image: none}]}}").await;
    pause(Duration::from_secs(3)).await;
    assert_eq!(json_of(&plane, "-n ml get pod web").await.unwrap()["spec"]["nodeName"], Value::Null);
    guard.server.start();
    guard.ready(&plane).await;
    eventually("the pod to be bound", PATIENCE, async || {
        ensure!(json_of(&plane, "-n ml get pod web").await?["spec"]["nodeName"] == "gpu-0");
        Ok(())
    })
    .await;

    // Past the guard: bound all the same, counted, and told its GPU's size, under the rights and policies that are shipped.
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
