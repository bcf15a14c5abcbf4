//! Workloads from before the installation of vramguard: NVIDIA's own pods, and nodes with whole GPUs.

use anyhow::ensure;
use serde_json::{Value, json};

use crate::support::guard::Guard;
use crate::support::objects::{ENFORCE, cluster_policy, gpu_pod, node_of};
use crate::support::{ControlPlane, GpuNode, GuardedCluster, PATIENCE, eventually};

/// The DaemonSet of NVIDIA's device plugin, as its chart renders it, in a namespace that is not exempt.
fn device_plugin() -> String {
    let host_path = |name: &str, path: &str| json!({"name": name, "hostPath": {"path": path}});
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": "nvdp-nvidia-device-plugin", "namespace": "monitoring"},
        "spec": {
            "selector": {"matchLabels": {"app.kubernetes.io/name": "nvidia-device-plugin"}},
            "template": {
                "metadata": {"labels": {"app.kubernetes.io/name": "nvidia-device-plugin"}},
                "spec": {
                    "priorityClassName": "system-node-critical",
                    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
                    "containers": [{
                        "name": "nvidia-device-plugin-ctr", "image": "none", "command": ["nvidia-device-plugin"],
                        "env": [
                            {"name": "MPS_ROOT", "value": "/run/nvidia/mps"},
                            {"name": "NVIDIA_MIG_MONITOR_DEVICES", "value": "all"},
                            {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"},
                            {"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "compute,utility"},
                        ],
                        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                        "volumeMounts": [{"name": "plugins", "mountPath": "/var/lib/kubelet/device-plugins"}],
                    }],
                    "volumes": [
                        host_path("plugins", "/var/lib/kubelet/device-plugins"), host_path("mps-root", "/run/nvidia/mps"),
                        host_path("mps-shm", "/run/nvidia/mps/shm"), host_path("cdi-root", "/var/run/cdi"),
                    ],
                },
            },
        },
    })
    .to_string()
}

/// Waits until exactly one pod of the device plugin is bound to the node.
async fn has_a_device_plugin(cluster: &GuardedCluster) {
    eventually("the device plugin to have a node", PATIENCE, async || {
        let pods = cluster.pods("monitoring").await;
        ensure!(pods.iter().filter(|pod| node_of(pod) == Some("gpu-0")).count() == 1, "{} pods", pods.len());
        Ok(())
    })
    .await;
}

/// A refused device plugin would show at the next replacement of a node: without it the node has no GPUs.
#[tokio::test]
async fn the_device_plugin_is_created_wherever_it_is_installed_and_while_no_server_answers() {
    let mut cluster = GuardedCluster::start(&[GpuNode::new("gpu-0")], &[("cluster.yaml", ENFORCE)]).await;
    cluster.namespace("monitoring").await;
    cluster.plane.apply(&device_plugin()).await;
    has_a_device_plugin(&cluster).await;
    cluster.guard.server.stop();
    cluster.plane.kubectl(&["-n", "monitoring", "delete", "pods", "--all", "--wait=true"]).await.expect_success();
    has_a_device_plugin(&cluster).await;
}

#[tokio::test]
async fn pods_that_run_and_would_be_refused_are_named_when_the_guard_comes() {
    let plane = ControlPlane::start().await;
    plane.add_gpu_node(&GpuNode::new("gpu-0")).await;
    for namespace in ["ml", "monitoring"] {
        plane.kubectl(&["create", "namespace", namespace]).await.expect_success();
    }
    plane.apply(&device_plugin()).await;
    let peeping = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "peeping", "namespace": "ml"}, "spec": {"containers": [
        {"name": "main", "image": "none", "env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]}]}});
    plane.apply(&peeping.to_string()).await;
    plane.apply(&gpu_pod("ml", "undeclared", "{}", "")).await;
    plane.apply(&gpu_pod("ml", "declared", "{vramguard.dev/vram: 1Gi}", "")).await;
    let required = cluster_policy("{mode: Enforce, declaration: {required: true}}");
    let guard = Guard::start(&plane, &[("cluster.yaml", &required)]).await;
    let told = eventually("the events", PATIENCE, async || {
        let events =
            plane.kubectl(&["get", "events", "-A", "--field-selector=reason=RefusedIfCreated", "-o", "json"]).await;
        let events: Value = serde_json::from_str(&events.expect_success())?;
        let items = events["items"].as_array().cloned().unwrap_or_default();
        let mut told: Vec<(String, String)> = items
            .iter()
            .map(|event| {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                (text(&event["involvedObject"]["name"]), text(&event["message"]))
            })
            .collect();
        told.sort();
        ensure!(told.len() == 2, "{told:?}");
        Ok(told)
    })
    .await;
    assert_eq!((told[0].0.as_str(), told[1].0.as_str()), ("peeping", "undeclared"));
    assert!(told[0].1.starts_with("runs, but would be refused if it were created again"), "{}", told[0].1);
    assert!(told[0].1.contains("NVIDIA_VISIBLE_DEVICES") && told[1].1.contains("declares no VRAM"), "{told:?}");
    drop(guard);
}

/// Regression: nodes of whole GPUs published only one GPU, so kube-scheduler evicted seven pods of 10 GiB for one of 70.
#[tokio::test]
async fn on_a_node_of_whole_gpus_a_pod_that_preempts_evicts_one_pod() {
    let whole = GpuNode { gpus: 8, replicas: 1, memory_mib: 81_559, ..GpuNode::new("whole") };
    let cluster = GuardedCluster::start(&[GpuNode::new("shared"), whole], &[("cluster.yaml", ENFORCE)]).await;
    let plane = &cluster.plane;
    plane.apply("{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: urgent}, value: 1000}").await;
    let there = "nodeSelector: {kubernetes.io/hostname: whole},";
    for number in 0..8 {
        plane.apply(&gpu_pod("ml", &format!("low-{number}"), "{vramguard.dev/vram: 10Gi}", there)).await;
    }
    cluster.settles("ml", 8, 0).await;
    let urgent = format!("priorityClassName: urgent, {there}");
    plane.apply(&gpu_pod("ml", "high", "{vramguard.dev/vram: 70Gi}", &urgent)).await;
    let names = eventually("the urgent pod to take a GPU", PATIENCE, async || {
        let pods = cluster.pods("ml").await;
        let bound: Vec<String> =
            pods.iter().filter(|pod| node_of(pod).is_some()).filter_map(|pod| pod.metadata.name.clone()).collect();
        ensure!(bound.iter().any(|name| name == "high"), "{bound:?}");
        Ok(bound)
    })
    .await;
    assert_eq!(names.len(), 8, "one of eight left: {names:?}");
}
