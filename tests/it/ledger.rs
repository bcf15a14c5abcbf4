//! Bindings and `GpuLedger` objects of nodes with several GPUs, on a real control plane.
//!
//! A test that needs the report of a node agent writes the agent's section of the ledger itself.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use serde_json::{Value, json};

use crate::support::objects::{ENFORCE, agent_report, cluster_policy, deployment, gpu_pod, node_of};
use crate::support::{Component, GpuNode, GuardedCluster, PATIENCE, eventually};

/// A node with two A10 of 24 GiB and four replicas each, so that a slot is 5,967 MiB.
fn two_gpus(name: &str) -> GpuNode {
    GpuNode { gpus: 2, ..GpuNode::new(name) }
}

impl GuardedCluster {
    async fn ledger(&self, node: &str) -> anyhow::Result<Value> {
        let ended = self.plane.kubectl(&["get", "gpuledger", node, "-o", "json"]).await;
        ensure!(ended.status.success(), "{}", ended.stderr);
        Ok(serde_json::from_str(&ended.stdout)?)
    }

    /// Waits until the ledger of a node has exactly `count` reservations, all in `state`, and returns them.
    async fn reservations(&self, node: &str, state: &str, count: usize) -> Vec<Value> {
        eventually(&format!("{count} reservations in state {state} on {node}"), PATIENCE, async || {
            let ledger = self.ledger(node).await?;
            let rows = ledger["spec"]["reservations"].as_array().cloned().unwrap_or_default();
            let in_state = rows.iter().filter(|row| row["state"] == state).count();
            ensure!(in_state == count && rows.len() == count, "{rows:#?}{}", self.guard.server.log_tail());
            Ok(rows)
        })
        .await
    }

    /// Writes the report of a node agent: the GPUs of the node, and how the device plugin allocates their replicas.
    async fn agent_reports(&self, node: &GpuNode, allocation_policy: &str) {
        let name = &node.name;
        eventually("the node to have a ledger", PATIENCE, async || self.ledger(name).await).await;
        let patch = agent_report(node, allocation_policy);
        let patch = ["patch", "gpuledger", name, "--subresource=status", "--type=merge", "-p", &patch];
        self.plane.kubectl(&patch).await.expect_success();
    }

    async fn mode(&self, node: &str, mode: &str) {
        eventually(&format!("{node} to be under {mode} accounting"), PATIENCE, async || {
            let ledger = self.ledger(node).await?;
            ensure!(ledger["status"]["mode"] == mode, "{:#}", ledger["status"]);
            Ok(())
        })
        .await;
    }

    /// Creates a Binding as the administrator, or as the user in an argument `--as`. Returns kubectl's message on failure.
    async fn bind(&self, pod: &str, node: &str, metadata: Value, arguments: &[&str]) -> Result<(), String> {
        let mut binding = json!({ "apiVersion": "v1", "kind": "Binding",
            "metadata": { "name": pod, "namespace": "ml" }, "target": { "kind": "Node", "name": node } });
        for (key, value) in metadata.as_object().into_iter().flatten() {
            binding["metadata"][key] = value.clone();
        }
        let path = format!("/api/v1/namespaces/ml/pods/{pod}/binding");
        let create = [&["create", "--raw", &path, "-f", "-"], arguments].concat();
        let ended = self.plane.kubectl_with_input(&create, &binding.to_string()).await;
        if ended.status.success() { Ok(()) } else { Err(ended.stderr) }
    }
}

fn annotations(pod: &Pod) -> BTreeMap<String, String> {
    pod.metadata.annotations.clone().unwrap_or_default()
}

fn gpu_of(pod: &Pod) -> Option<String> {
    annotations(pod).remove("vramguard.dev/gpu.main")
}

#[tokio::test]
async fn pods_on_several_gpus_are_promised_a_slot_each_and_the_promise_ends_with_them() {
    let cluster = GuardedCluster::start(&[two_gpus("gpu-0")], &[("cluster.yaml", ENFORCE)]).await;
    cluster.plane.apply(&deployment("ml", "agent", 3, "{vramguard.dev/vram: 5Gi}")).await;
    let pods = cluster.settles("ml", 3, 0).await;
    for pod in &pods {
        let annotations = annotations(pod);
        // The GPU of the pod is unknown, but its size is not, because all GPUs of the node are alike.
        assert_eq!(annotations["vramguard.dev/gpu-total-mib"], "24576");
        assert_eq!(annotations["vramguard.dev/vram-fraction.main"], "0.2083");
        assert!(!annotations.contains_key("vramguard.dev/gpu.main"));
    }
    let rows = cluster.reservations("gpu-0", "Confirmed", 3).await;
    assert!(rows.iter().all(|row| row["mib"] == 5840 && row["basis"] == "Request" && row.get("gpu").is_none()));
    cluster.mode("gpu-0", "slot").await;
    let owner = &cluster.ledger("gpu-0").await.expect("it is there")["metadata"]["ownerReferences"][0];
    assert_eq!((&owner["kind"], &owner["name"]), (&json!("Node"), &json!("gpu-0")));

    cluster.plane.kubectl(&["scale", "deployment", "agent", "-n", "ml", "--replicas=1"]).await.expect_success();
    cluster.settles("ml", 1, 0).await;
    cluster.reservations("gpu-0", "Confirmed", 1).await;
    // A pod larger than a slot waits and gets an event.
    cluster.plane.apply(&gpu_pod("ml", "large", "{vramguard.dev/vram: 10Gi}", "")).await;
    cluster.event("ml", "NeverFits", "none takes more than 5967Mi for one pod").await;
}

/// The published sum of a node can have more free than a slot, and still more after a preemption, but no pod gets it.
///
/// Without the label, kube-scheduler and a cluster autoscaler would keep trying.
#[tokio::test]
async fn a_pod_larger_than_a_slot_is_kept_off_by_kube_scheduler_and_preempts_nobody() {
    const MAX: &str = "vramguard.dev/pod-max-mib";
    let cluster = GuardedCluster::start(&[two_gpus("gpu-0")], &[("cluster.yaml", ENFORCE)]).await;
    let label = async |wanted: Option<&str>| {
        let nodes: Api<Node> = Api::all(cluster.plane.client());
        eventually(&format!("{MAX}={wanted:?}"), PATIENCE, async || {
            let labels = nodes.get("gpu-0").await?.metadata.labels.unwrap_or_default();
            ensure!(labels.get(MAX).map(String::as_str) == wanted, "{labels:?}");
            Ok(())
        })
        .await;
    };
    label(Some("5967")).await;
    assert_eq!(cluster.published("gpu-0").await, "47736Mi");
    cluster
        .plane
        .apply("{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: high}, value: 1000}")
        .await;
    // The node is full: each replica has its slot. The DaemonSet controller selects the node by a field of the affinity.
    cluster.plane.apply(&deployment("ml", "agent", 7, "{vramguard.dev/vram: 5247Mi}")).await;
    let daemon = deployment("ml", "exporter", 1, "{vramguard.dev/vram: 1Gi}");
    cluster.plane.apply(&daemon.replace("kind: Deployment", "kind: DaemonSet").replace("replicas: 1\n", "\n")).await;
    cluster.settles("ml", 8, 0).await;
    assert_eq!(cluster.published("gpu-0").await, "47736Mi");

    let large = gpu_pod("ml", "large", "{vramguard.dev/vram: 10Gi}", "priorityClassName: high,");
    cluster.plane.apply(&large).await;
    cluster
        .event("ml", "FailedScheduling", "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector")
        .await;
    cluster.event("ml", "NeverFits", "none takes more than 5967Mi for one pod").await;
    cluster.settles("ml", 8, 1).await;
    let large: Api<Pod> = Api::namespaced(cluster.plane.client(), "ml");
    let nominated = large.get("large").await.expect("it waits").status.and_then(|status| status.nominated_node_name);
    assert_eq!(nominated, None);
    // A preemption does free a slot.
    cluster.plane.apply(&gpu_pod("ml", "small", "{vramguard.dev/vram: 5Gi}", "priorityClassName: high,")).await;
    cluster.bound("ml", "small").await;

    // The controller repairs a changed label.
    for change in ["=99999", "-"] {
        cluster
            .plane
            .kubectl(&["label", "node", "gpu-0", "--overwrite", &format!("{MAX}{change}")])
            .await
            .expect_success();
        label(Some("5967")).await;
    }
}

/// Without the guard, only the published number, the label and the replicas limit kube-scheduler.
#[tokio::test]
async fn with_the_guard_away_kube_scheduler_fills_slots_and_nothing_larger() {
    let mut cluster = GuardedCluster::start(&[two_gpus("gpu-0")], &[("cluster.yaml", ENFORCE)]).await;
    cluster.plane.kubectl(&["cordon", "gpu-0"]).await.expect_success();
    cluster.plane.apply(&gpu_pod("ml", "large", "{vramguard.dev/vram: 10Gi}", "")).await;
    cluster.plane.apply(&deployment("ml", "agent", 9, "{vramguard.dev/vram: 5247Mi}")).await;
    cluster.settles("ml", 0, 10).await;
    cluster.guard.server.stop();
    cluster.plane.kubectl(&["uncordon", "gpu-0"]).await.expect_success();
    let pods = cluster.settles("ml", 8, 2).await;
    assert!(pods.iter().any(|pod| pod.metadata.name.as_deref() == Some("large") && node_of(pod).is_none()));
    // The large pod waits even when the sum of the node has room for it.
    cluster.plane.kubectl(&["scale", "deployment", "agent", "-n", "ml", "--replicas=4"]).await.expect_success();
    cluster.settles("ml", 4, 1).await;
    cluster.stays_settled("ml", 4, 1, Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_steered_pod_gets_a_gpu_with_room_and_its_annotation_with_its_node() {
    let node = two_gpus("gpu-0");
    let cluster = GuardedCluster::start(std::slice::from_ref(&node), &[("cluster.yaml", ENFORCE)]).await;
    cluster.agent_reports(&node, "Steered").await;
    cluster.mode("gpu-0", "steered").await;
    // Each pod demands 8,912 MiB, so a GPU of 23,870 MiB holds two.
    cluster.plane.apply(&deployment("ml", "agent", 5, "{vramguard.dev/vram: 8Gi}")).await;
    let pods = cluster.settles("ml", 4, 1).await;
    let mut on: BTreeMap<String, usize> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| node_of(pod).is_some()) {
        *on.entry(gpu_of(pod).expect("a bound pod names its GPU")).or_default() += 1;
    }
    assert_eq!(on, BTreeMap::from([("GPU-gpu-0-0".to_owned(), 2), ("GPU-gpu-0-1".to_owned(), 2)]));
    // The waiting pod gets the GPU on which another pod was deleted.
    let first = pods.iter().find(|pod| node_of(pod).is_some()).expect("one is bound");
    let (name, gpu) = (first.metadata.name.clone().expect("a name"), gpu_of(first));
    cluster.plane.kubectl(&["delete", "pod", "-n", "ml", &name, "--wait=true"]).await.expect_success();
    let after = cluster.settles("ml", 4, 1).await;
    assert_eq!(after.iter().filter(|pod| gpu_of(pod) == gpu).count(), 2);
    cluster.reservations("gpu-0", "Confirmed", 4).await;
}

/// Regression: kube-scheduler has a hundred bindings under review at once, and each had a ledger write of its own.
///
/// The queue of writes outlasted the webhook's deadline: 300 pods at once had 453 refused bindings.
#[tokio::test]
async fn bindings_that_come_together_are_written_together() {
    const PODS: u32 = 40;
    let node = GpuNode { replicas: 32, memory_mib: 81_920, ..two_gpus("gpu-0") };
    let cluster = GuardedCluster::start(std::slice::from_ref(&node), &[("cluster.yaml", ENFORCE)]).await;
    cluster.agent_reports(&node, "Steered").await;
    cluster.mode("gpu-0", "steered").await;
    cluster.plane.pause_component(Component::Scheduler);
    cluster.plane.apply(&deployment("ml", "agent", PODS, "{vramguard.dev/vram: 1Gi}")).await;
    cluster.settles("ml", 0, PODS as usize).await;
    cluster.plane.resume_component(Component::Scheduler);
    cluster.settles("ml", PODS as usize, 0).await;
    cluster.reservations("gpu-0", "Confirmed", PODS as usize).await;
    let ledger = cluster.ledger("gpu-0").await.expect("it is there");
    // These include the controller's writes, which confirm bound pods.
    let writes = ledger["metadata"]["generation"].as_u64().expect("each write of the spec is a generation");
    println!("{PODS} bindings in {writes} writes");
    assert!(writes < u64::from(PODS) / 2, "{writes} writes");
    assert_eq!(ledger["metadata"].get("managedFields"), None, "larger than the rows, and worked out at each write");
}

#[tokio::test]
async fn bindings_are_refused_by_rule_and_a_dry_run_promises_nothing() {
    let cluster = GuardedCluster::start(&[two_gpus("gpu-0"), two_gpus("gpu-1")], &[("cluster.yaml", ENFORCE)]).await;
    cluster.plane.pause_component(Component::Scheduler);
    cluster.plane.apply(&gpu_pod("ml", "agent", "{vramguard.dev/vram: 5Gi}", "")).await;
    cluster.plane.apply(&gpu_pod("ml", "large", "{vramguard.dev/vram: 20Gi}", "")).await;
    let scheduler = ["--as=system:kube-scheduler"];
    let none = || json!({});

    let refused = cluster.bind("agent", "gpu-0", none(), &[]).await.expect_err("not a scheduler");
    assert!(
        refused.contains("is not a scheduler that may bind guarded pods (those are \"system:kube-scheduler\")"),
        "{refused}"
    );
    let uid = json!({ "uid": "00000000-0000-0000-0000-000000000000" });
    let refused = cluster.bind("agent", "gpu-0", uid, &scheduler).await.expect_err("another pod");
    assert!(refused.contains("its Binding names the uid of another pod"), "{refused}");
    let forged = json!({ "annotations": { "vramguard.dev/gpu.main": "1" } });
    let refused = cluster.bind("agent", "gpu-0", forged, &scheduler).await.expect_err("an annotation of ours");
    assert!(refused.contains("\"vramguard.dev/gpu.main\" of its Binding is set by vramguard only"), "{refused}");
    let refused = cluster.bind("large", "gpu-0", none(), &scheduler).await.expect_err("larger than a slot");
    assert!(
        refused.contains(
            "node \"gpu-0\" has no room: 21200Mi demanded, one slot there has 5967Mi left (0Mi of 47740Mi held by 0 pods, slot \
             accounting)"
        ),
        "{refused}"
    );
    let dry_run = "/api/v1/namespaces/ml/pods/agent/binding?dryRun=All";
    let binding = json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": "agent", "namespace": "ml" },
        "target": { "kind": "Node", "name": "gpu-0" } });
    let create = ["create", "--raw", dry_run, "-f", "-", scheduler[0]];
    cluster.plane.kubectl_with_input(&create, &binding.to_string()).await.expect_success();
    cluster.reservations("gpu-0", "Assumed", 0).await;

    cluster.bind("agent", "gpu-0", json!({ "annotations": { "other": "kept" } }), &scheduler).await.expect("room");
    cluster.reservations("gpu-0", "Confirmed", 1).await;
    let pods = cluster.pods("ml").await;
    let bound = pods.iter().find(|pod| node_of(pod).is_some()).expect("it is bound");
    assert_eq!(annotations(bound)["other"], "kept");
    assert_eq!(annotations(bound)["vramguard.dev/gpu-total-mib"], "24576");
}

#[tokio::test]
async fn a_promise_that_nobody_came_for_is_forgotten_when_it_is_old_and_not_before() {
    let cluster = GuardedCluster::start(&[two_gpus("gpu-0")], &[("cluster.yaml", ENFORCE)]).await;
    cluster.reservations("gpu-0", "Assumed", 0).await;
    let now = k8s_openapi::jiff::Timestamp::now();
    let row = |uid: &str, since: k8s_openapi::jiff::Timestamp| {
        json!({ "uid": uid, "namespace": "ml", "pod": uid, "container": "main", "resource": "nvidia.com/gpu", "replicas": 1,
                "mib": 6000, "basis": "Request", "state": "Assumed", "since": since.to_string() })
    };
    let old = now - k8s_openapi::jiff::SignedDuration::from_secs(120);
    let patch = json!({ "spec": { "reservations": [row("young", now), row("old", old)] } }).to_string();
    cluster.plane.kubectl(&["patch", "gpuledger", "gpu-0", "--type=merge", "-p", &patch]).await.expect_success();
    let left = cluster.reservations("gpu-0", "Assumed", 1).await;
    assert_eq!(left[0]["uid"], "young");
}

#[tokio::test]
async fn what_is_bound_while_the_guard_is_away_is_counted_and_reported_when_it_is_back() {
    let mut cluster = GuardedCluster::start(&[two_gpus("gpu-0")], &[("cluster.yaml", ENFORCE)]).await;
    cluster.plane.pause_component(Component::Scheduler);
    for name in ["a", "b", "c"] {
        cluster.plane.apply(&gpu_pod("ml", name, "{vramguard.dev/vram: 5Gi}", "")).await;
    }
    cluster.plane.apply(&gpu_pod("ml", "large", "{vramguard.dev/vram: 20Gi}", "")).await;
    cluster.guard.server.stop();
    for name in ["a", "b", "c", "large"] {
        cluster.bind(name, "gpu-0", json!({}), &[]).await.expect("nobody guards");
    }
    cluster.guard.server.start();
    cluster.guard.ready(&cluster.plane).await;
    cluster.reservations("gpu-0", "Adopted", 4).await;
    cluster.event("ml", "BoundPastGuard", "bound to node \"gpu-0\" without the binding guard").await;
    // In the worst case all four pods are on one GPU.
    let said = cluster.event("default", "GpuOvercommitted", "one GPU may be overcommitted by 14850Mi").await;
    assert!(said.contains("slot accounting"), "{said}");
    eventually("the ledger to say so", PATIENCE, async || {
        let ledger = cluster.ledger("gpu-0").await?;
        let conditions = ledger["status"]["conditions"].as_array().context("conditions")?;
        let said = conditions.iter().find(|c| c["type"] == "Overcommitted").context("the condition")?;
        ensure!(said["status"] == "True" && said["reason"] == "GpuMayBeOvercommitted", "{said:#}");
        Ok(())
    })
    .await;
    // The controller counts one pod after the other, each with an event of its own.
    eventually("every slip to be counted", PATIENCE, async || {
        let slips = cluster.guard.metric("vramguard_bindings_past_guard_total");
        ensure!(slips == Some(4.0), "{slips:?}{}", cluster.guard.server.log_tail());
        Ok(())
    })
    .await;
    // The controller writes the annotations that the bindings would have written.
    eventually("the annotations", PATIENCE, async || {
        let pods = cluster.pods("ml").await;
        ensure!(pods.iter().all(|pod| annotations(pod).contains_key("vramguard.dev/gpu-total-mib")), "not on all");
        Ok(())
    })
    .await;
}

/// kwok makes pods ready, so pods keep starting while it is paused.
#[tokio::test]
async fn with_serialize_per_gpu_one_pod_at_a_time_starts_on_a_gpu() {
    let policy = cluster_policy("{mode: Enforce, startup: {serializePerGpu: true}}");
    let cluster = GuardedCluster::start(&[GpuNode::new("gpu-0")], &[("cluster.yaml", &policy)]).await;
    cluster.plane.pause_component(Component::Kwok);
    cluster.plane.apply(&deployment("ml", "agent", 2, "{vramguard.dev/vram: 5Gi}")).await;
    cluster.settles("ml", 1, 1).await;
    cluster.stays_settled("ml", 1, 1, Duration::from_secs(5)).await;
    cluster.plane.resume_component(Component::Kwok);
    cluster.settles("ml", 2, 0).await;
}
