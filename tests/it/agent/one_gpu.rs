//! A node with one GPU, where kube-scheduler keeps the sum, and an agent that sees what pods leave behind.

use std::time::Duration;

use serde_json::json;

use super::cluster::{agent, install, json_of, section};
use super::fake::Machine;
use crate::support::objects::{ENFORCE, gpu_pod};
use crate::support::{GpuNode, GuardedCluster, PATIENCE, eventually};

const DEMANDS: &str = "{vramguard.dev/vram: 8Gi}";

/// Creates a pod, waits until it is bound, and returns the line of its process in a cgroup file.
async fn runs(cluster: &GuardedCluster, name: &str) -> String {
    cluster.plane.apply(&gpu_pod("ml", name, DEMANDS, "")).await;
    cluster.bound("ml", name).await;
    let pod = json_of(&cluster.plane, &format!("-n ml get pod {name}")).await.expect("it is bound");
    format!("0::/kubepods/besteffort/pod{}/4c01db0b339c4de2", pod["metadata"]["uid"].as_str().expect("a uid"))
}

#[tokio::test]
async fn on_one_gpu_the_successor_of_a_pod_deleted_by_force_waits_until_the_card_shows_its_memory_free() {
    let cluster = GuardedCluster::start(&[GpuNode::new("gpu-0")], &[("cluster.yaml", ENFORCE)]).await;
    install(&cluster.plane, "deploy/agent").await;
    let machine = Machine::new("gpu GPU-aaaa 24576 450 0\n");
    let (mut agent, _) = agent(&cluster.plane, "gpu-0", &machine).await;
    agent.start();
    section(&cluster.plane, &agent, "a report", |section| section["gpus"][0]["totalMiB"] == 24_576).await;

    machine.process(101, "first", &runs(&cluster, "first").await);
    machine.process(102, "second", &runs(&cluster, "second").await);
    machine.shows("gpu GPU-aaaa 24576 450 16396\nprocess 101 8192 90\nprocess 102 8192 90\n");
    let both = |section: &serde_json::Value| section["containers"].as_array().is_some_and(|rows| rows.len() == 2);
    section(&cluster.plane, &agent, "the use of both pods", both).await;
    let ledger = json_of(&cluster.plane, "get gpuledger gpu-0").await.expect("a ledger");
    assert_eq!((&ledger["status"]["mode"], &ledger["status"]["reservations"]), (&json!("exact"), &json!(2)));
    cluster.plane.apply(&gpu_pod("ml", "successor", DEMANDS, "")).await;
    cluster.settles("ml", 2, 1).await;

    // Its object goes at once, and its process lives on.
    cluster
        .plane
        .kubectl(&["-n", "ml", "delete", "pod", "first", "--force", "--grace-period=0"])
        .await
        .expect_success();
    cluster.stays_settled("ml", 1, 1, Duration::from_secs(8)).await;
    let left = |section: &serde_json::Value| section["gpus"][0]["outOfBandMiB"].as_u64() >= Some(8_192);
    section(&cluster.plane, &agent, "what the process still holds", left).await;

    machine.shows("gpu GPU-aaaa 24576 450 8204\nprocess 102 8192 90\n");
    cluster.bound("ml", "successor").await;
    assert_eq!(cluster.guard.metric("vramguard_bindings_past_guard_total"), Some(0.0), "no false alarm");

    // A pod that ends in order has left nothing when it is gone.
    machine.shows("gpu GPU-aaaa 24576 450 0\n");
    cluster.plane.kubectl(&["-n", "ml", "delete", "pod", "second", "--wait=true"]).await.expect_success();
    runs(&cluster, "third").await;
    eventually("the reservation of each pod, and of no other", PATIENCE, async || {
        let ledger = json_of(&cluster.plane, "get gpuledger gpu-0").await?;
        anyhow::ensure!(ledger["status"]["reservations"] == 2, "{ledger}");
        Ok(())
    })
    .await;
}
