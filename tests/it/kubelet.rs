//! vramguard next to a real kubelet and containerd: the published number survives kubelet restarts, and so do running pods.
//!
//! The tests print a reason and pass if the host cannot run a kubelet.

use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde_json::{Value, json};

use crate::support::guard::Guard;
use crate::support::objects::{ENFORCE, VRAM, cluster_policy};
use crate::support::{ControlPlane, GpuNode, PATIENCE, RealNode, eventually, stays};

/// A pod of the test image with one GPU container and one without a GPU.
fn pod(name: &str, vram: &str, extra: &Value) -> String {
    let container = |name: &str, limits: Value| json!({ "name": name, "image": RealNode::IMAGE, "imagePullPolicy": "Never", "resources": { "limits": limits } });
    let mut spec = json!({
        "hostNetwork": true, "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 1,
        "containers": [container("main", json!({ "nvidia.com/gpu": "1" })), container("beside", json!({}))],
    });
    spec.as_object_mut().expect("a map").extend(extra.as_object().expect("a map").clone());
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "ml", "annotations": { "vramguard.dev/vram": vram } },
        "spec": spec,
    })
    .to_string()
}

/// A guarded cluster with one real node.
struct RealNodeCluster {
    // Dropped in this order: the control plane holds the machine-wide lock, and the cgroups of the node must be removed
    // before the next test gets the lock.
    guard: Guard,
    node: RealNode,
    plane: ControlPlane,
}

impl RealNodeCluster {
    async fn start() -> Option<RealNodeCluster> {
        let plane = ControlPlane::start().await;
        let node = match RealNode::try_start(&plane, &GpuNode::new(RealNode::NAME)).await {
            Ok(node) => node,
            Err(skip) => {
                println!("{skip}");
                return None;
            }
        };
        let guard = Guard::start(&plane, &[("cluster.yaml", ENFORCE)]).await;
        plane.kubectl(&["create", "namespace", "ml"]).await.expect_success();
        let cluster = RealNodeCluster { guard, node, plane };
        cluster.publishes("23870Mi").await;
        Some(cluster)
    }

    /// The published VRAM of the node.
    async fn published(&self) -> anyhow::Result<String> {
        self.plane.published(RealNode::NAME, VRAM).await
    }

    async fn publishes(&self, expected: &str) {
        eventually(&format!("the node to publish {expected}"), PATIENCE, async || {
            let published = self.published().await?;
            ensure!(published == expected, "{published}{}", self.guard.server.log_tail());
            Ok(())
        })
        .await;
    }

    /// Waits until a pod runs, and returns ids and restart counts of its containers.
    async fn running(&self, name: &str) -> Vec<(Option<String>, i32)> {
        let pods: Api<Pod> = Api::namespaced(self.plane.client(), "ml");
        eventually(&format!("pod {name} to run"), PATIENCE, async || {
            let status = pods.get(name).await?.status.unwrap_or_default();
            let containers = status.container_statuses.unwrap_or_default();
            ensure!(
                status.phase.as_deref() == Some("Running") && containers.iter().all(|container| container.ready),
                "{:?} {:?} {:?}",
                status.phase,
                status.reason,
                status.message
            );
            Ok(containers.into_iter().map(|container| (container.container_id, container.restart_count)).collect())
        })
        .await
    }
}

#[tokio::test]
async fn a_full_node_keeps_its_number_and_its_pods_whatever_its_kubelet_does() {
    let Some(mut cluster) = RealNodeCluster::start().await else { return };
    // 2 × 8,912 + 6,046 = 23,870 MiB, so nothing is free.
    let names = [("first", "8Gi"), ("second", "8Gi"), ("third", "5326Mi")];
    for (name, vram) in names {
        cluster.plane.apply(&pod(name, vram, &json!({}))).await;
        cluster.running(name).await;
    }
    let environment = RealNode::exec_env(&cluster.plane, "ml", "first", "main").await;
    assert_eq!(environment["VRAMGUARD_VRAM_MIB"], "8192");
    assert_eq!(environment["CUDA_DEVICE_ORDER"], "PCI_BUS_ID");
    assert!(environment["NVIDIA_VISIBLE_DEVICES"].starts_with("GPU-"), "the device plugin's own");
    let beside = RealNode::exec_env(&cluster.plane, "ml", "first", "beside").await;
    assert_eq!(beside["NVIDIA_VISIBLE_DEVICES"], "void");

    let before = containers(&cluster, names).await;
    stays("the published number", Duration::from_secs(30), async || {
        let published = cluster.published().await?;
        ensure!(published == "23870Mi", "{published}");
        Ok(())
    })
    .await;

    cluster.node.restart_kubelet(&cluster.plane).await;
    assert_eq!(containers(&cluster, names).await, before, "after a restart");
    cluster.publishes("23870Mi").await;

    // With half of the GPU as headroom the node is overcommitted. It then publishes as much as is bound.
    cluster.guard.policy("cluster.yaml", &cluster_policy("{mode: Enforce, headroom: {percent: 50}}")).await;
    eventually("the deficit to be said", PATIENCE, async || {
        let path = "jsonpath={.status.conditions[?(@.type==\"VramAccounted\")].reason}";
        let reason = cluster.plane.kubectl(&["get", "node", RealNode::NAME, "-o", path]).await.expect_success();
        ensure!(reason == "Overcommitted", "{reason}");
        Ok(())
    })
    .await;
    cluster.publishes("23870Mi").await;
    cluster.node.restart_kubelet(&cluster.plane).await;
    assert_eq!(containers(&cluster, names).await, before, "after a restart under a lowered policy");
    cluster.publishes("23870Mi").await;

    // An older kubelet without its checkpoint does this at its start, and a person may do it.
    for tampered in [Some("0"), None] {
        cluster.plane.publish(RealNode::NAME, VRAM, tampered).await;
        cluster.publishes("23870Mi").await;
    }
    cluster.node.stop_kubelet(&cluster.plane).await;
    cluster.node.empty_device_plugin_folder();
    cluster.node.restart_kubelet(&cluster.plane).await;
    cluster.publishes("23870Mi").await;
    assert_eq!(containers(&cluster, names).await, before, "after the loss of the device checkpoint");
}

/// A starting kubelet checks the required affinity of its pods again.
///
/// The label with the largest demand per pod therefore never falls below the demand of a bound pod.
#[tokio::test]
async fn a_pod_larger_than_a_slot_outlives_a_kubelet_and_dies_where_its_nodes_label_is_too_low() {
    const MAX: &str = "vramguard.dev/pod-max-mib";
    let Some(mut cluster) = RealNodeCluster::start().await else { return };
    cluster.plane.apply(&pod("large", "15Gi", &json!({}))).await;
    let before = cluster.running("large").await;
    let label = async |labels: &[&str]| {
        let arguments = [&["label", "node", RealNode::NAME, "--overwrite"], labels].concat();
        cluster.plane.kubectl(&arguments).await.expect_success();
    };
    // The node changes from one GPU with four replicas to two with two each: a slot has 11,935 MiB, the pod 16,080 MiB.
    label(&["nvidia.com/gpu.count=2", "nvidia.com/gpu.replicas=2"]).await;
    eventually("the label to say what one pod can get", PATIENCE, async || {
        let labels = ["get", "node", RealNode::NAME, "-o", "jsonpath={.metadata.labels}"];
        let labels: Value = serde_json::from_str(&cluster.plane.kubectl(&labels).await.expect_success())?;
        ensure!(labels[MAX] == "16080", "{labels}{}", cluster.guard.server.log_tail());
        Ok(())
    })
    .await;
    // The rest of a GPU of 23,870 MiB is free.
    cluster.publishes("23870Mi").await;
    for restart in 1..=2 {
        cluster.node.restart_kubelet(&cluster.plane).await;
        assert_eq!(cluster.running("large").await, before, "after restart {restart}");
    }

    cluster.guard.server.stop();
    label(&[&format!("{MAX}=11935")]).await;
    cluster.node.restart_kubelet(&cluster.plane).await;
    let pods: Api<Pod> = Api::namespaced(cluster.plane.client(), "ml");
    eventually("the kubelet to end it", PATIENCE, async || {
        let status = pods.get("large").await?.status.unwrap_or_default();
        ensure!(status.phase.as_deref() == Some("Failed"), "{:?}", status.phase);
        // The reason is not `NodeAffinity`, because the kubelet admits the pod twice and has then lost its device allocation.
        ensure!(status.reason.as_deref() == Some("OutOfnvidia.com/gpu"), "{:?}", status.reason);
        Ok(())
    })
    .await;
}

async fn containers(cluster: &RealNodeCluster, names: [(&str, &str); 3]) -> Vec<Vec<(Option<String>, i32)>> {
    let mut containers = Vec::new();
    for (name, _) in names {
        containers.push(cluster.running(name).await);
    }
    containers
}

#[tokio::test]
async fn a_pod_that_names_a_full_node_is_refused_by_the_webhook_and_without_it_by_the_kubelet() {
    let Some(mut cluster) = RealNodeCluster::start().await else { return };
    cluster.plane.apply(&pod("first", "20Gi", &json!({}))).await;
    cluster.running("first").await;
    let direct = json!({ "nodeName": RealNode::NAME });
    let create = ["create", "-f", "-"];
    let refused = cluster.plane.kubectl_with_input(&create, &pod("direct", "8Gi", &direct)).await.expect_failure();
    assert!(
        refused.contains("passes by kube-scheduler, which accounts for VRAM (8912Mi demanded, 2670Mi left there)"),
        "{refused}"
    );

    cluster.guard.server.stop();
    cluster.plane.kubectl(&["delete", "validatingwebhookconfiguration", "vramguard"]).await.expect_success();
    // The mutating webhook has failurePolicy Ignore and is unreachable, so the test sets the request itself.
    let request = json!({ "nvidia.com/gpu": "1", "vramguard.dev/vram": "8912Mi" });
    let mut object: Value = serde_json::from_str(&pod("direct", "8Gi", &direct)).expect("made above");
    object["spec"]["containers"][0]["resources"]["limits"] = request;
    let create_it = async || cluster.plane.kubectl_with_input(&create, &object.to_string()).await;
    eventually("the API server to forget the webhook", PATIENCE, async || {
        let created = create_it().await;
        ensure!(created.status.success(), "{}", created.stderr);
        Ok(())
    })
    .await;
    let pods: Api<Pod> = Api::namespaced(cluster.plane.client(), "ml");
    let message = eventually("the kubelet to refuse it", PATIENCE, async || {
        let status = pods.get("direct").await?.status.unwrap_or_default();
        ensure!(status.phase.as_deref() == Some("Failed"), "{:?}", status.phase);
        ensure!(status.reason.as_deref() == Some("OutOfvramguard.dev/vram"), "{:?}", status.reason);
        status.message.context("no message")
    })
    .await;
    println!("the kubelet: {message}");
    cluster.running("first").await;
}
