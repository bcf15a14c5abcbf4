//! What the controller writes to nodes and events, on a real control plane.
//!
//! Covers a second writer of the same fields, pods that never fit, events as kubectl sorts them, and the documented removal.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::{Event, Node};
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::support::objects::{ENFORCE, VRAM, deployment, gpu_pod};
use crate::support::{GpuNode, GuardedCluster, PATIENCE, eventually};

/// How long the second writer keeps its value, in wall-clock time.
const TUG: Duration = Duration::from_secs(12);

/// Overwrites the published number as soon as it changes, and returns how often.
async fn tug(client: kube::Client) -> usize {
    let nodes: Api<Node> = Api::all(client);
    let parameters = PatchParams { field_manager: Some("label-syncer".into()), ..PatchParams::default() };
    let theirs = json!({"status": {"capacity": {VRAM: "99Gi"}, "allocatable": {VRAM: "99Gi"}}});
    let (start, mut times) = (Instant::now(), 0);
    while start.elapsed() < TUG {
        let status = nodes.get("gpu-0").await.expect("the node is there").status.expect("it has a status");
        if status.capacity.is_some_and(|capacity| capacity[VRAM].0 != "99Gi") {
            times += 1;
            nodes
                .patch_status("gpu-0", &parameters, &Patch::Merge(&theirs))
                .await
                .expect("the administrator may write");
        }
        tokio::time::sleep(Duration::from_millis(10)).await; // the pace of the second writer
    }
    times
}

#[tokio::test]
async fn a_second_writer_of_the_number_is_named_and_met_with_few_writes() {
    let cluster = GuardedCluster::start(&[GpuNode::new("gpu-0")], &[("cluster.yaml", ENFORCE)]).await;
    // The API server shows the first write before the controller has counted it.
    let before = eventually("the first write to be counted", PATIENCE, async || {
        let written = cluster.guard.metric("vramguard_node_publications_total").context("no metric")?;
        ensure!(written > 0.0, "{written} writes");
        Ok(written)
    })
    .await;
    let undone = tug(cluster.plane.client()).await;
    let written = cluster.guard.metric("vramguard_node_publications_total").expect("as before") - before;
    println!("{written} writes and {undone} changes in {TUG:?}");
    // The controller writes 0, 0, 0.25, 0.75, 1.75, 3.75 and 7.75 s after the first change; on a busy machine less often.
    assert!((2.0..=8.0).contains(&written), "{written} writes");
    let note = cluster.event("default", "PublicationUndone", "field manager \"label-syncer\" has changed").await;
    assert!(note.contains("vramguard.dev/vram in its capacity"), "{note}");
    let metrics = cluster.guard.metrics();
    assert!(metrics.contains("vramguard_node_publications_undone_total{manager=\"label-syncer\"}"), "{metrics}");
    eventually("the number to be repaired once the second writer has stopped", PATIENCE, async || {
        let published = cluster.published("gpu-0").await;
        ensure!(published == "23870Mi", "{published}");
        Ok(())
    })
    .await;
}

/// Value of the metric `waiting_pods` for a reason.
fn waiting(cluster: &GuardedCluster, reason: &str) -> Option<f64> {
    cluster.guard.metric(&format!("vramguard_waiting_pods{{reason=\"{reason}\"}}"))
}

#[tokio::test]
async fn a_pod_that_never_fits_is_told_which_replicas_would_hold_it_and_events_sort() {
    let large = GpuNode { gpus: 8, memory_mib: 81_559, ..GpuNode::new("h0") };
    let cluster = GuardedCluster::start(&[large], &[("cluster.yaml", ENFORCE)]).await;
    cluster.plane.apply(&gpu_pod("ml", "llm", "{vramguard.dev/vram: 30Gi}", "")).await;
    let note = cluster.event("ml", "NeverFits", "fits no node as the cluster is").await;
    assert!(note.contains("(30Gi declared + "), "{note}");
    assert!(note.contains("with replicas: 2 in place of 4"), "{note}");
    eventually("it to be counted", PATIENCE, async || {
        let seen = (waiting(&cluster, "NeverFits"), waiting(&cluster, "VramShortfall"));
        ensure!(seen == (Some(1.0), Some(0.0)), "{seen:?}");
        Ok(())
    })
    .await;

    let events: Api<Event> = Api::namespaced(cluster.plane.client(), "ml");
    let listed = events.list(&ListParams::default()).await.expect("events can be listed").items;
    let ours = listed.iter().find(|event| event.reason.as_deref() == Some("NeverFits")).expect("it was seen above");
    assert!(ours.last_timestamp.is_some() && ours.first_timestamp.is_some(), "{ours:?}");
    assert_eq!((ours.count, ours.reporting_component.as_deref()), (Some(1), Some("vramguard")));
    let sorted = ["-n", "ml", "get", "events", "--sort-by=.lastTimestamp", "--no-headers"];
    let sorted = cluster.plane.kubectl(&sorted).await.expect_success();
    let line = sorted.lines().find(|line| line.contains("NeverFits")).expect("it is listed");
    assert!(!line.starts_with("<unknown>"), "{sorted}");

    // With two replicas per GPU, as the event advised, the pod fits.
    cluster.plane.kubectl(&["label", "node", "h0", "--overwrite", "nvidia.com/gpu.replicas=2"]).await.expect_success();
    cluster.plane.publish("h0", "nvidia.com/gpu", Some("16")).await;
    cluster.settles("ml", 1, 0).await;
    eventually("it to be counted no more", PATIENCE, async || {
        let seen = waiting(&cluster, "NeverFits");
        ensure!(seen == Some(0.0), "{seen:?}");
        Ok(())
    })
    .await;
}

/// The shell commands in a section of the operator's guide.
fn documented(section: &str) -> String {
    let guide = include_str!("../../docs/install.md");
    let (_, section) = guide.split_once(&format!("\n## {section}\n")).expect("the guide has the section");
    let section = section.split("\n## ").next().expect("up to the next section");
    let blocks = section.split("```sh\n").skip(1).map(|block| block.split("```").next().expect("a block ends"));
    blocks.collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn the_documented_commands_take_everything_off_nodes_and_pending_pods_away() {
    let mut cluster = GuardedCluster::start(
        &[GpuNode { gpus: 2, ..GpuNode::new("gpu-0") }, GpuNode::new("gpu-1")],
        &[("cluster.yaml", ENFORCE)],
    )
    .await;
    cluster.plane.apply(&deployment("ml", "agent", 1, "{vramguard.dev/vram: 4Gi}")).await;
    cluster.settles("ml", 1, 0).await;
    cluster.plane.apply(&gpu_pod("ml", "waits", "{vramguard.dev/vram: 40Gi}", "")).await;
    cluster.plane.apply(&gpu_pod("kube-system", "other", "{}", "nodeSelector: {no: where},")).await;
    cluster.settles("ml", 1, 1).await;
    let kinds = "mutatingwebhookconfiguration,validatingwebhookconfiguration";
    cluster.plane.kubectl(&["delete", kinds, "vramguard"]).await.expect_success();
    cluster.guard.server.stop();

    let said = cluster.plane.shell(&documented("Removing vramguard")).await.expect_success();
    let nodes: Api<Node> = Api::all(cluster.plane.client());
    for name in ["gpu-0", "gpu-1"] {
        let node: Value = serde_json::to_value(nodes.get(name).await.expect("it is there")).expect("it is JSON");
        assert!(!node["metadata"]["labels"].to_string().contains("vramguard.dev"), "{node}");
        for list in ["capacity", "allocatable", "conditions"] {
            let text = node["status"][list].to_string();
            assert!(!text.contains("vramguard.dev") && !text.contains("VramAccounted"), "{text}");
        }
        // Fields of other writers remain.
        assert!(node["status"]["conditions"].to_string().contains("Ready"), "{node}");
        assert!(node["status"]["capacity"]["nvidia.com/gpu"].is_string(), "{node}");
    }
    let pods = cluster.pods("ml").await;
    let names: Vec<_> = pods.iter().filter_map(|pod| pod.metadata.name.as_deref()).collect();
    assert!(names.len() == 1 && names[0].starts_with("agent-"), "{names:?} {said}");
    assert_eq!(cluster.pods("kube-system").await.len(), 1, "it requests no VRAM");
}
