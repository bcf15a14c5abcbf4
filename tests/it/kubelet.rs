//! vramguard beside a real kubelet and containerd: what is published outlives what kubelets do, and no running pod dies of
//! it. Skipped, with the reason printed, where the host cannot run a kubelet.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use serde_json::{Value, json};

use crate::guard::Guard;
use crate::support::{ControlPlane, GpuNode, RealNode, eventually};

const VRAM: &str = "vramguard.dev/vram";
const PATIENCE: Duration = Duration::from_secs(60);

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: vramguard.dev/v1alpha1\nkind: ClusterVramPolicy\nmetadata: {{name: cluster}}\nspec: {{mode: Enforce{spec}}}\n"
    )
}

/// A GPU container and one without, as the test image runs them.
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

/// A guarded cluster with one real node. Dropped in this order: the control plane holds the machine-wide lock, and whoever
/// gets it next must find the node's cgroups gone.
struct Host {
    guard: Guard,
    node: RealNode,
    plane: ControlPlane,
}

impl Host {
    async fn start() -> Option<Host> {
        let plane = ControlPlane::start().await;
        let node = match RealNode::try_start(&plane, &GpuNode::new(RealNode::NAME)).await {
            Ok(node) => node,
            Err(skip) => {
                println!("{skip}");
                return None;
            }
        };
        let guard = Guard::start(&plane, &[("cluster.yaml", &policy(""))]).await;
        plane.kubectl(&["create", "namespace", "ml"]).await.expect_success();
        let host = Host { guard, node, plane };
        host.publishes("23870Mi").await;
        Some(host)
    }

    /// What capacity and allocatable say of VRAM.
    async fn published(&self) -> anyhow::Result<String> {
        let nodes: Api<Node> = Api::all(self.plane.client());
        let status = nodes.get(RealNode::NAME).await?.status.context("no status")?;
        let of = |list: Option<BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>| {
            list.and_then(|mut list| list.remove(VRAM)).map(|quantity| quantity.0)
        };
        let (capacity, allocatable) = (of(status.capacity), of(status.allocatable));
        ensure!(capacity == allocatable, "capacity {capacity:?}, allocatable {allocatable:?}");
        capacity.context("nothing is published")
    }

    async fn publishes(&self, expected: &str) {
        eventually(&format!("the node to publish {expected}"), PATIENCE, async || {
            let published = self.published().await?;
            ensure!(published == expected, "{published}{}", self.guard.server.log_tail());
            Ok(())
        })
        .await;
    }

    /// Waits until a pod runs and returns what a restart or a replacement would change.
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
    let Some(mut host) = Host::start().await else { return };
    // 2 × 8,912 + 6,046 = 23,870: not a MiB is left.
    let names = [("first", "8Gi"), ("second", "8Gi"), ("third", "5326Mi")];
    for (name, vram) in names {
        host.plane.apply(&pod(name, vram, &json!({}))).await;
        host.running(name).await;
    }
    let environment = RealNode::exec_env(&host.plane, "ml", "first", "main").await;
    assert_eq!(environment["VRAMGUARD_VRAM_MIB"], "8192");
    assert_eq!(environment["CUDA_DEVICE_ORDER"], "PCI_BUS_ID");
    assert!(environment["NVIDIA_VISIBLE_DEVICES"].starts_with("GPU-"), "the device plugin's own");
    let beside = RealNode::exec_env(&host.plane, "ml", "first", "beside").await;
    assert_eq!(beside["NVIDIA_VISIBLE_DEVICES"], "void");

    let before = containers(&host, names).await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(30) {
        assert_eq!(host.published().await.expect("always there"), "23870Mi");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }

    host.node.restart_kubelet(&host.plane).await;
    assert_eq!(containers(&host, names).await, before, "after a restart");
    host.publishes("23870Mi").await;

    // Half the GPU as headroom: twice as much is bound as may be promised. What is published stays what is bound.
    host.guard.policy("cluster.yaml", &policy(", headroom: {percent: 50}")).await;
    eventually("the deficit to be said", PATIENCE, async || {
        let path = "jsonpath={.status.conditions[?(@.type==\"VramAccounted\")].reason}";
        let reason = host.plane.kubectl(&["get", "node", RealNode::NAME, "-o", path]).await.expect_success();
        ensure!(reason == "Overcommitted", "{reason}");
        Ok(())
    })
    .await;
    host.publishes("23870Mi").await;
    host.node.restart_kubelet(&host.plane).await;
    assert_eq!(containers(&host, names).await, before, "after a restart under a lowered policy");
    host.publishes("23870Mi").await;

    // What older kubelets do at a start without their checkpoint, and what a person may do.
    for tampered in [Some("0"), None] {
        host.plane.publish(RealNode::NAME, VRAM, tampered).await;
        host.publishes("23870Mi").await;
    }
    host.node.stop_kubelet(&host.plane).await;
    host.node.empty_device_plugin_folder();
    host.node.restart_kubelet(&host.plane).await;
    host.publishes("23870Mi").await;
    assert_eq!(containers(&host, names).await, before, "after the loss of the device checkpoint");
}

/// A kubelet that starts checks the required affinity of its pods again, so the label of what one pod can get never falls below
/// what one has.
#[tokio::test]
async fn a_pod_larger_than_a_slot_outlives_a_kubelet_and_dies_where_its_nodes_label_is_too_low() {
    const MAX: &str = "vramguard.dev/pod-max-mib";
    let Some(mut host) = Host::start().await else { return };
    host.plane.apply(&pod("large", "15Gi", &json!({}))).await;
    let before = host.running("large").await;
    let label = async |labels: &[&str]| {
        let arguments = [&["label", "node", RealNode::NAME, "--overwrite"], labels].concat();
        host.plane.kubectl(&arguments).await.expect_success();
    };
    // From one GPU with four replicas to two with two each: a slot of 11,935 MiB, and one pod of 16,080.
    label(&["nvidia.com/gpu.count=2", "nvidia.com/gpu.replicas=2"]).await;
    eventually("the label to say what one pod can get", PATIENCE, async || {
        let labels = ["get", "node", RealNode::NAME, "-o", "jsonpath={.metadata.labels}"];
        let labels: Value = serde_json::from_str(&host.plane.kubectl(&labels).await.expect_success())?;
        ensure!(labels[MAX] == "16080", "{labels}{}", host.guard.server.log_tail());
        Ok(())
    })
    .await;
    // Beside it there is room for what a GPU of 23,870 has left.
    host.publishes("23870Mi").await;
    for restart in 1..=2 {
        host.node.restart_kubelet(&host.plane).await;
        assert_eq!(host.running("large").await, before, "after restart {restart}");
    }

    host.guard.server.stop();
    label(&[&format!("{MAX}=11935")]).await;
    host.node.restart_kubelet(&host.plane).await;
    let pods: Api<Pod> = Api::namespaced(host.plane.client(), "ml");
    eventually("the kubelet to end it", PATIENCE, async || {
        let status = pods.get("large").await?.status.unwrap_or_default();
        ensure!(status.phase.as_deref() == Some("Failed"), "{:?}", status.phase);
        // Not `NodeAffinity`: the kubelet looks at the node once more, and then forgets that it gave the pod a GPU.
        ensure!(status.reason.as_deref() == Some("OutOfnvidia.com/gpu"), "{:?}", status.reason);
        Ok(())
    })
    .await;
}

async fn containers(host: &Host, names: [(&str, &str); 3]) -> Vec<Vec<(Option<String>, i32)>> {
    let mut containers = Vec::new();
    for (name, _) in names {
        containers.push(host.running(name).await);
    }
    containers
}

#[tokio::test]
async fn a_pod_that_names_a_full_node_is_refused_by_the_webhook_and_without_it_by_the_kubelet() {
    let Some(mut host) = Host::start().await else { return };
    host.plane.apply(&pod("first", "20Gi", &json!({}))).await;
    host.running("first").await;
    let direct = json!({ "nodeName": RealNode::NAME });
    let create = ["create", "-f", "-"];
    let refused = host.plane.kubectl_with_input(&create, &pod("direct", "8Gi", &direct)).await.expect_failure();
    assert!(
        refused.contains("passes by kube-scheduler, which accounts for VRAM (8912Mi demanded, 2670Mi left there)"),
        "{refused}"
    );

    host.guard.server.stop();
    host.plane.kubectl(&["delete", "validatingwebhookconfiguration", "vramguard"]).await.expect_success();
    // The mutating webhook is Ignore: unreachable, it changes nothing, so the request is the user's own.
    let request = json!({ "nvidia.com/gpu": "1", "vramguard.dev/vram": "8912Mi" });
    let mut object: Value = serde_json::from_str(&pod("direct", "8Gi", &direct)).expect("made above");
    object["spec"]["containers"][0]["resources"]["limits"] = request;
    let create_it = async || host.plane.kubectl_with_input(&create, &object.to_string()).await;
    eventually("the API server to forget the webhook", PATIENCE, async || {
        let created = create_it().await;
        ensure!(created.status.success(), "{}", created.stderr);
        Ok(())
    })
    .await;
    let pods: Api<Pod> = Api::namespaced(host.plane.client(), "ml");
    let message = eventually("the kubelet to refuse it", PATIENCE, async || {
        let status = pods.get("direct").await?.status.unwrap_or_default();
        ensure!(status.phase.as_deref() == Some("Failed"), "{:?}", status.phase);
        ensure!(status.reason.as_deref() == Some("OutOfvramguard.dev/vram"), "{:?}", status.reason);
        status.message.context("no message")
    })
    .await;
    println!("the kubelet: {message}");
    host.running("first").await;
}
