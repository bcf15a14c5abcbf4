//! `onShortfall: Reroute` on a real control plane: kube-scheduler places pods in further pools, and vramguard says why.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // a test starts programs

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;

use crate::support::objects::{cluster_policy, deployment, gpu_pod, node_of};
use crate::support::{GpuNode, GuardedCluster, PATIENCE, eventually, run};

const A10: &str = "nodeSelector: {nvidia.com/gpu.product: NVIDIA-A10-SHARED},";
const AGENT: &str = "{vramguard.dev/vram: 8Gi}";

/// An L40S of 45 GiB with two replicas: room for two agents by memory and by replicas.
fn l40s(name: &str) -> GpuNode {
    GpuNode { memory_mib: 46_068, replicas: 2, product: "NVIDIA-L40S".to_owned(), ..GpuNode::new(name) }
}

fn reroutes_to(products: &[&str]) -> String {
    let pools: Vec<String> = products
        .iter()
        .map(|product| format!("{{matchLabels: {{nvidia.com/gpu.product: {product}-SHARED}}}}"))
        .collect();
    cluster_policy(&format!("{{mode: Enforce, onShortfall: Reroute, reroute: {{pools: [{}]}}}}", pools.join(", ")))
}

async fn node(cluster: &GuardedCluster, pod: &str) -> String {
    cluster.bound("ml", pod).await;
    let pods: Api<Pod> = Api::namespaced(cluster.plane.client(), "ml");
    let pod = pods.get(pod).await.expect("the pod can be read");
    node_of(&pod).expect("it is bound").to_owned()
}

async fn create(cluster: &GuardedCluster, pod: &str, spec: &str) {
    cluster.plane.apply(&gpu_pod("ml", pod, AGENT, spec)).await;
}

async fn delete(cluster: &GuardedCluster, pod: &str) {
    cluster.plane.kubectl(&["-n", "ml", "delete", "pod", pod, "--wait=true"]).await.expect_success();
}

#[tokio::test]
async fn a_full_pool_sends_its_pods_to_the_further_pool_and_new_ones_come_back_when_room_is_free() {
    let nodes = [GpuNode::new("a10-0"), l40s("l40s-0")];
    let policy = reroutes_to(&["NVIDIA-L40S"]);
    let cluster = GuardedCluster::start(&nodes, &[("cluster.yaml", &policy)]).await;
    for (pod, expected) in [("first", "a10-0"), ("second", "a10-0"), ("third", "l40s-0")] {
        create(&cluster, pod, A10).await;
        assert_eq!(node(&cluster, pod).await, expected, "{pod}");
    }
    let why = cluster.event("ml", "Rerouted", "own pool").await;
    assert_eq!(
        why,
        "runs on node \"l40s-0\", outside of its own pool \"nvidia.com/gpu.product=NVIDIA-A10-SHARED\", as the policy allows; its own \
         pool has no room now: 8912Mi demanded, but the best node it may land on, \"a10-0\", has room for 6046Mi (17824Mi of \
         23870Mi held by 2 pods, exact accounting)"
    );
    eventually("the counter", PATIENCE, async || {
        let counted = cluster.guard.metric("vramguard_pods_rerouted_total");
        ensure!(counted == Some(1.0), "{counted:?}");
        Ok(())
    })
    .await;

    // An audit of the live cluster says the same, as something to know.
    let policies = cluster.guard.policies.to_str().expect("a plain path");
    let mut audit = Command::new(env!("CARGO_BIN_EXE_vramguard"));
    audit
        .args(["audit", "--policies", policies, "--fail-on", "warn"])
        .env("KUBECONFIG", cluster.plane.admin_kubeconfig());
    let audit = run(&mut audit, PATIENCE).expect_success();
    assert!(audit.contains("Rerouted") && audit.contains("outside of its own pool"), "{audit}");

    delete(&cluster, "first").await;
    create(&cluster, "fourth", A10).await;
    assert_eq!(node(&cluster, "fourth").await, "a10-0", "its own pool is preferred");

    // With both pools full, a pod waits, and learns the best node of all pools.
    create(&cluster, "fifth", A10).await;
    assert_eq!(node(&cluster, "fifth").await, "l40s-0");
    create(&cluster, "sixth", A10).await;
    cluster.settles("ml", 4, 1).await;
    cluster.event("ml", "FailedScheduling", "Insufficient").await;
}

#[tokio::test]
async fn pools_are_used_in_their_order_and_a_taint_keeps_its_pool_closed() {
    let h100 = |name: &str| GpuNode { product: "NVIDIA-H100".to_owned(), ..l40s(name) };
    let tainted = GpuNode {
        taints: vec![serde_json::json!({ "key": "team", "value": "b", "effect": "NoSchedule" })],
        product: "NVIDIA-T4".to_owned(),
        ..GpuNode::new("t4-0")
    };
    let nodes = [GpuNode::new("a10-0"), h100("h100-0"), l40s("l40s-0"), tainted];
    let policy = reroutes_to(&["NVIDIA-T4", "NVIDIA-L40S", "NVIDIA-H100"]);
    let cluster = GuardedCluster::start(&nodes, &[("cluster.yaml", &policy)]).await;
    let mut places = Vec::new();
    for number in 0..6 {
        let pod = format!("agent-{number}");
        create(&cluster, &pod, A10).await;
        places.push(node(&cluster, &pod).await);
    }
    assert_eq!(places, ["a10-0", "a10-0", "l40s-0", "l40s-0", "h100-0", "h100-0"]);
    create(&cluster, "tolerates", &format!("{A10} tolerations: [{{key: team, operator: Exists}}],")).await;
    assert_eq!(node(&cluster, "tolerates").await, "t4-0");
}

#[tokio::test]
async fn an_urgent_pod_takes_the_further_pool_before_it_preempts() {
    let nodes = [GpuNode::new("a10-0"), l40s("l40s-0")];
    let policy = reroutes_to(&["NVIDIA-L40S"]);
    let cluster = GuardedCluster::start(&nodes, &[("cluster.yaml", &policy)]).await;
    let class = "{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: urgent}, value: 1000}";
    cluster.plane.apply(class).await;
    for pod in ["low-0", "low-1"] {
        create(&cluster, pod, A10).await;
        assert_eq!(node(&cluster, pod).await, "a10-0");
    }
    let urgent = format!("{A10} priorityClassName: urgent,");
    for pod in ["urgent-0", "urgent-1"] {
        create(&cluster, pod, &urgent).await;
        assert_eq!(node(&cluster, pod).await, "l40s-0", "room in the further pool is used first");
    }
    create(&cluster, "urgent-2", &urgent).await;
    assert_eq!(node(&cluster, "urgent-2").await, "a10-0", "all are full, so it preempts");
    let left = cluster.pods("ml").await.len();
    assert_eq!(left, 4, "one pod of low priority is gone");
}

#[tokio::test]
async fn spreading_counts_the_further_pools_and_the_binding_guard_places_there() {
    // The further pool has two GPUs, so the binding guard decides there.
    let several = GpuNode { gpus: 2, replicas: 4, ..l40s("l40s-0") };
    let nodes = [GpuNode::new("a10-0"), several];
    let policy = reroutes_to(&["NVIDIA-L40S"]);
    let cluster = GuardedCluster::start(&nodes, &[("cluster.yaml", &policy)]).await;
    let spread = "topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, \
                  labelSelector: {matchLabels: {app: agent}}}]";
    let deployment = deployment("ml", "agent", 4, AGENT).replacen(
        "      terminationGracePeriodSeconds: 0\n",
        &format!("      terminationGracePeriodSeconds: 0\n      {spread}\n      {}\n", A10.trim_end_matches(',')),
        1,
    );
    cluster.plane.apply(&deployment).await;
    let pods = cluster.settles("ml", 4, 0).await;
    let on = |node: &str| pods.iter().filter(|pod| node_of(pod) == Some(node)).count();
    assert_eq!((on("a10-0"), on("l40s-0")), (2, 2));
    let placed = pods.iter().filter(|pod| node_of(pod) == Some("l40s-0"));
    for pod in placed {
        let annotations = pod.metadata.annotations.as_ref().unwrap();
        assert!(
            annotations.contains_key("vramguard.dev/gpu-total-mib"),
            "the binding guard placed it: {annotations:?}"
        );
        assert_eq!(annotations["vramguard.dev/own-pool"], "nvidia.com/gpu.product=NVIDIA-A10-SHARED");
    }
    assert_eq!(cluster.guard.metric("vramguard_bindings_past_guard_total"), Some(0.0));
}

#[tokio::test]
async fn the_pods_of_a_daemon_set_are_not_rerouted() {
    let nodes = [GpuNode::new("a10-0"), l40s("l40s-0")];
    let policy = reroutes_to(&["NVIDIA-L40S"]);
    let cluster = GuardedCluster::start(&nodes, &[("cluster.yaml", &policy)]).await;
    let daemon_set = deployment("ml", "daemon", 1, AGENT)
        .replace("kind: Deployment", "kind: DaemonSet")
        .replace("  replicas: 1\n", "")
        .replacen("    spec:\n", &format!("    spec:\n      {}\n", A10.trim_end_matches(',')), 1);
    cluster.plane.apply(&daemon_set).await;
    let pods = cluster.settles("ml", 1, 0).await;
    let pod = pods.first().context("a pod").unwrap();
    assert_eq!(node_of(pod), Some("a10-0"));
    let spec = pod.spec.as_ref().unwrap();
    assert_eq!(spec.node_selector.as_ref().unwrap()["nvidia.com/gpu.product"], "NVIDIA-A10-SHARED", "untouched");
    assert!(!pod.metadata.annotations.as_ref().unwrap().contains_key("vramguard.dev/own-pool"));
    cluster.stays_settled("ml", 1, 0, Duration::from_secs(3)).await;
}
