//! Reports of agents that steer, next to the pods in which they run.

use super::*;
use crate::capacity::gpu::Accounting;

/// A node of two GPUs, and a report that its agent steers.
fn node_and_report() -> [Value; 2] {
    let gpu = |index: u32| {
        json!({"resource": "nvidia.com/gpu", "replicas": 4, "uuid": format!("GPU-{index}"), "index": index,
            "totalMiB": 24_576, "usedMiB": 0})
    };
    let agent = json!({
        "time": "2026-11-22T21:00:00Z", "allocationPolicy": "Steered", "gpus": [gpu(0), gpu(1)],
        "pod": {"namespace": "vramguard-agent", "name": "agent-x", "uid": "u", "containerID": "4c01"},
    });
    let shared = json!({"nvidia.com/gpu.sharing-strategy": "time-slicing"});
    [
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "gpu-0", "labels": shared},
            "status": {"capacity": {"nvidia.com/gpu": "8"}}}),
        json!({"apiVersion": "vramguard.dev/v1alpha1", "kind": "GpuLedger", "metadata": {"name": "gpu-0"}, "spec": {},
            "status": {"agent": agent}}),
    ]
}

/// The pod that the report names, with this container running.
fn agent_pod(container: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "agent-x", "namespace": "vramguard-agent", "uid": "u"},
        "spec": {"nodeName": "gpu-0", "containers": [
            {"name": "agent", "env": [{"name": "VRAMGUARD_AGENT_POD_UID", "value": "u"}]}]},
        "status": {"phase": "Running", "containerStatuses": [
            {"name": "agent", "containerID": format!("containerd://{container}"), "state": {"running": {}}}]},
    })
}

#[test]
fn a_report_whose_agent_is_in_no_pod_claims_nothing_once_all_pods_were_read() {
    let mode = |pod: Option<Value>, all_pods: bool| {
        let objects: Vec<Value> = node_and_report().into_iter().chain(pod).collect();
        let mut reader = read(&objects).unwrap();
        if all_pods {
            reader.follow_agent_pods();
        }
        let scene = reader.finish(Policies::new(&Documents::default(), "vramguard-system"), &[]);
        scene.cluster.node("gpu-0").unwrap().usage.pools[0].accounting
    };
    assert_eq!(mode(None, false), Accounting::Steered, "a file may lack the pod");
    assert_eq!(mode(None, true), Accounting::Slot);
    assert_eq!(mode(Some(agent_pod("4c01")), true), Accounting::Steered);
    assert_eq!(mode(Some(agent_pod("4c02")), true), Accounting::Slot, "it has restarted since");
}
