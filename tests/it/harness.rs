//! The harness itself, and the facts of Kubernetes that the product relies on.
//!
//! If one of these tests fails, a Kubernetes release behaves differently, and other tests fail for that reason.
#![allow(clippy::disallowed_methods)] // a test measures time

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use crate::support::objects::VRAM;
use crate::support::{Component, ControlPlane, GpuNode, RealNode, eventually, stays};

fn pod(name: &str, requests: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: default}}, spec: {{containers: \
         [{{name: main, image: none, resources: {{limits: {{{requests}}}}}}}]}}}}"
    )
}

/// Waits until a pod runs and all its containers are ready.
async fn running(plane: &ControlPlane, name: &str) -> Pod {
    let pods: Api<Pod> = Api::default_namespaced(plane.client());
    eventually(&format!("pod {name} to run"), Duration::from_secs(20), async || {
        let pod = pods.get(name).await?;
        let status = pod.status.clone().unwrap_or_default();
        let ready = status.container_statuses.unwrap_or_default().iter().all(|container| container.ready);
        ensure!(status.phase.as_deref() == Some("Running") && ready, "phase {:?}, ready {ready}", status.phase);
        Ok(pod)
    })
    .await
}

#[tokio::test]
async fn a_pod_waits_for_an_extended_resource_and_is_bound_when_it_is_published() {
    let plane = ControlPlane::start().await;
    plane.add_gpu_node(&GpuNode::new("gpu-0")).await;
    plane.apply(&pod("waits", "nvidia.com/gpu: 1, vramguard.dev/vram: 8Gi")).await;
    let pods: Api<Pod> = Api::default_namespaced(plane.client());
    eventually("the scheduler to say what is missing", Duration::from_secs(20), async || {
        let status = pods.get("waits").await?.status.unwrap_or_default();
        let message = status.conditions.unwrap_or_default().into_iter().find_map(|condition| condition.message);
        ensure!(message.context("no condition")?.contains("Insufficient vramguard.dev/vram"));
        Ok(())
    })
    .await;

    let published = Instant::now();
    plane.publish("gpu-0", VRAM, Some("23Gi")).await;
    running(&plane, "waits").await;
    println!("bound and running {:?} after the number was published", published.elapsed());

    plane.kubectl(&["delete", "pod", "waits"]).await.expect_success();
    let node = plane.kubectl(&["get", "node", "gpu-0", "-o", "jsonpath={.status.allocatable}"]).await.expect_success();
    assert!(node.contains(r#""vramguard.dev/vram":"23Gi""#) && node.contains(r#""nvidia.com/gpu":"4""#), "{node}");
}

/// The binding guard decides on a pod from its watch cache, and leaves the check of uid and node to the API server.
#[tokio::test]
async fn the_api_server_commits_a_binding_for_the_pod_with_its_uid_and_without_a_node_alone() {
    let plane = ControlPlane::start().await;
    for node in ["gpu-0", "gpu-1"] {
        plane.add_gpu_node(&GpuNode::new(node)).await;
    }
    plane.stop_component(Component::Scheduler);
    plane.apply(&pod("llm", "nvidia.com/gpu: 1")).await;
    let uid = plane.kubectl(&["get", "pod", "llm", "-o", "jsonpath={.metadata.uid}"]).await.expect_success();
    let bind = async |uid: &str, node: &str| {
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": { "name": "llm", "namespace": "default", "uid": uid },
            "target": { "apiVersion": "v1", "kind": "Node", "name": node },
        });
        let create = ["create", "--raw", "/api/v1/namespaces/default/pods/llm/binding", "-f", "-"];
        plane.kubectl_with_input(&create, &binding.to_string()).await
    };
    let other = bind("00000000-0000-4000-8000-000000000000", "gpu-0").await.expect_failure();
    assert!(other.contains("Precondition failed: UID in precondition"), "{other}");
    bind(&uid, "gpu-0").await.expect_success();
    let again = bind(&uid, "gpu-1").await.expect_failure();
    assert!(again.contains("is already assigned to node"), "{again}");
}

#[tokio::test]
async fn the_control_plane_survives_stops_of_its_parts() {
    let plane = ControlPlane::start().await;
    plane.add_gpu_node(&GpuNode::new("gpu-0")).await;

    plane.stop_component(Component::Scheduler);
    plane.stop_component(Component::ApiServer);
    plane.start_component(Component::ApiServer);
    plane.ready().await;
    plane.apply(&pod("later", "nvidia.com/gpu: 1")).await;
    plane.start_component(Component::Scheduler);
    running(&plane, "later").await;
}

#[tokio::test]
async fn a_service_account_may_do_what_its_role_allows_and_no_more() {
    let plane = ControlPlane::start().await;
    plane.kubectl(&["create", "clusterrole", "reader", "--verb=get", "--resource=nodes"]).await.expect_success();
    let bind = ["create", "clusterrolebinding", "reader", "--clusterrole=reader", "--serviceaccount=default:default"];
    plane.kubectl(&bind).await.expect_success();
    let account = plane.service_account_kubeconfig("default", "default").await;
    let account = account.to_str().expect("temporary folders have plain names");

    let nodes = plane.kubectl(&["--kubeconfig", account, "auth", "can-i", "get", "nodes"]).await;
    assert_eq!(nodes.stdout.trim(), "yes", "{}", nodes.stderr);
    let pods = plane.kubectl(&["--kubeconfig", account, "auth", "can-i", "list", "pods"]).await;
    assert_eq!(pods.stdout.trim(), "no", "{}", pods.stderr);
}

/// A pod for the real node, which sleeps and can be deleted within a second.
fn real_pod(name: &str, limits: &Value) -> String {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "annotations": {"injected": "8192"}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main", "image": RealNode::IMAGE, "imagePullPolicy": "Never",
                "env": [{"name": "INJECTED", "valueFrom": {"fieldRef": {"fieldPath": "metadata.annotations['injected']"}}}],
                "resources": {"limits": limits},
            }],
        },
    });
    pod.to_string()
}

/// A real node with one GPU of four replicas that publishes `vram`. Prints the reason if the host cannot run one.
async fn real_node(plane: &ControlPlane, vram: &str) -> Option<RealNode> {
    match RealNode::try_start(plane, &GpuNode::new(RealNode::NAME)).await {
        Ok(node) => {
            plane.publish(RealNode::NAME, VRAM, Some(vram)).await;
            Some(node)
        }
        Err(skip) => {
            println!("{skip}");
            None
        }
    }
}

/// The quantity of a resource of the real node, which capacity and allocatable share.
async fn resource(plane: &ControlPlane, name: &str) -> String {
    plane.published(RealNode::NAME, name).await.expect("the number is there")
}

/// Starts three pods with 7Gi and one replica each, one after the other, and returns them.
async fn three_pods(plane: &ControlPlane) -> Vec<Pod> {
    let mut pods = Vec::new();
    for name in ["first", "second", "third"] {
        plane.apply(&real_pod(name, &json!({"nvidia.com/gpu": "1", VRAM: "7Gi"}))).await;
        pods.push(running(plane, name).await);
    }
    pods
}

/// Id and restart count of the first container, which a restart or replacement would change.
fn container(pod: &Pod) -> (Option<String>, Option<i32>) {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let status = statuses.and_then(|statuses| statuses.first());
    (status.and_then(|status| status.container_id.clone()), status.map(|status| status.restart_count))
}

async fn assert_untouched(plane: &ControlPlane, pods: &[Pod]) {
    for before in pods {
        let now = running(plane, before.metadata.name.as_deref().expect("created with a name")).await;
        assert_eq!(container(&now), container(before));
    }
}

async fn failed(plane: &ControlPlane, name: &str, reason: &str) {
    let pods: Api<Pod> = Api::default_namespaced(plane.client());
    eventually(&format!("pod {name} to fail with {reason}"), Duration::from_secs(30), async || {
        let status = pods.get(name).await?.status.unwrap_or_default();
        let seen = (status.phase.as_deref(), status.reason.as_deref());
        ensure!(seen == (Some("Failed"), Some(reason)), "{seen:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_real_kubelet_runs_a_pod_with_a_device_and_env() {
    let plane = ControlPlane::start().await;
    let Some(_node) = real_node(&plane, "24Gi").await else {
        return;
    };
    plane.apply(&real_pod("one", &json!({"nvidia.com/gpu": "1", VRAM: "7Gi"}))).await;
    running(&plane, "one").await;
    let environment = RealNode::exec_env(&plane, "default", "one", "main").await;
    assert_eq!(environment["NVIDIA_VISIBLE_DEVICES"], "GPU-00000000-0000-4000-8000-000000000000");
    assert_eq!(environment["INJECTED"], "8192");
}

/// The kubelet recomputes allocatable from capacity at each status sync, so both must have the same number.
#[tokio::test]
async fn the_published_number_survives_status_syncs() {
    let plane = ControlPlane::start().await;
    let Some(_node) = real_node(&plane, "24Gi").await else {
        return;
    };
    let nodes: Api<Node> = Api::all(plane.client());
    let headroom =
        json!({"status": {"capacity": {"test.example/odd": "24Gi"}, "allocatable": {"test.example/odd": "20Gi"}}});
    let patch = Patch::Merge(headroom);
    nodes.patch_status(RealNode::NAME, &PatchParams::default(), &patch).await.expect("status can be patched");

    stays("the published number", Duration::from_secs(35), async || {
        let published = plane.published(RealNode::NAME, VRAM).await?;
        ensure!(published == "24Gi", "{published}");
        Ok(())
    })
    .await;
    assert_eq!(resource(&plane, "test.example/odd").await, "24Gi");
}

#[tokio::test]
async fn a_kubelet_restart_keeps_running_pods_and_the_published_number() {
    let plane = ControlPlane::start().await;
    let Some(mut node) = real_node(&plane, "24Gi").await else {
        return;
    };
    let pods = three_pods(&plane).await;
    // A device plugin in a pod starts after the kubelet. Until then, and often until the next status sync, the node has no
    // devices. An inventory from the status would find no GPU under the running pods.
    node.stop_device_plugin();
    node.stop_kubelet(&plane).await;
    node.start_kubelet();
    node.reported(&plane).await;
    assert_eq!(resource(&plane, "nvidia.com/gpu").await, "0");
    assert_eq!(resource(&plane, VRAM).await, "24Gi");
    node.start_device_plugin();
    node.ready(&plane).await;
    assert_untouched(&plane, &pods).await;
    assert_eq!(resource(&plane, VRAM).await, "24Gi");
}

/// A starting kubelet admits all its pods again, the oldest first.
#[tokio::test]
async fn a_kubelet_restart_refuses_the_youngest_pod_that_exceeds_a_lowered_number() {
    let plane = ControlPlane::start().await;
    let Some(mut node) = real_node(&plane, "24Gi").await else {
        return;
    };
    let pods = three_pods(&plane).await;
    plane.publish(RealNode::NAME, VRAM, Some("14Gi")).await;
    node.restart_kubelet(&plane).await;
    failed(&plane, "third", "OutOfvramguard.dev/vram").await;
    assert_untouched(&plane, &pods[..2]).await;
}

/// Kubernetes 1.35 starts the device manager before it registers the node, and then takes its own socket for a checkpoint.
///
/// Older kubelets set all extended resources to zero here.
#[tokio::test]
async fn without_its_device_checkpoint_the_kubelet_keeps_extended_resources_until_it_starts_once_more() {
    let plane = ControlPlane::start().await;
    let Some(mut node) = real_node(&plane, "24Gi").await else {
        return;
    };
    let pods = three_pods(&plane).await;
    node.stop_kubelet(&plane).await;
    node.empty_device_plugin_folder();
    node.restart_kubelet(&plane).await;
    assert_untouched(&plane, &pods).await;
    assert_eq!(resource(&plane, VRAM).await, "24Gi");

    // The kubelet has lost the device allocations, so at its next start, before the plugin registers, it has no devices for
    // these pods, with or without VRAM in their requests.
    node.stop_device_plugin();
    node.stop_kubelet(&plane).await;
    node.start_kubelet();
    for pod in ["first", "second", "third"] {
        failed(&plane, pod, "OutOfnvidia.com/gpu").await;
    }
}
