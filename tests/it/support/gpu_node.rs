//! Nodes as the control plane sees them when NVIDIA's device plugin and GPU Feature Discovery run there.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::components::KWOK_NODE;

/// A node that kwok plays. Fill in what matters to the test: `GpuNode { replicas: 3, ..GpuNode::new("gpu-0") }`.
#[derive(Debug, Clone)]
pub struct GpuNode {
    pub name: String,
    /// What the device plugin advertises: `gpus` × `replicas` of this.
    pub resource: String,
    /// 0 makes a node without GPUs: no labels, no resource.
    pub gpus: u32,
    /// Replicas of each GPU; 1 is a GPU that is not shared.
    pub replicas: u32,
    /// Total memory of each GPU, as GPU Feature Discovery labels it.
    pub memory_mib: u64,
    pub product: String,
    /// `time-slicing` or `mps`; nothing is shared with one replica, whatever this says.
    pub sharing: String,
    /// Added to the labels that follow from the above, or put in their place.
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Value>,
}

impl GpuNode {
    /// One A10 of 24 GiB, time-sliced into four replicas.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            resource: "nvidia.com/gpu".to_owned(),
            gpus: 1,
            replicas: 4,
            memory_mib: 24_576,
            product: "NVIDIA-A10".to_owned(),
            sharing: "time-slicing".to_owned(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
        }
    }

    /// The labels of GPU Feature Discovery, and the test's own.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let shared = self.replicas > 1;
        let mut labels = BTreeMap::from([("kubernetes.io/hostname".to_owned(), self.name.clone())]);
        let mut label = |key: &str, value: String| labels.insert(format!("nvidia.com/{key}"), value);
        if self.gpus > 0 {
            label("gpu.present", "true".to_owned());
            label("gpu.count", self.gpus.to_string());
            label("gpu.memory", self.memory_mib.to_string());
            label("gpu.product", format!("{}{}", self.product, if shared { "-SHARED" } else { "" }));
            label("gpu.replicas", self.replicas.to_string());
            label("gpu.sharing-strategy", if shared { self.sharing.clone() } else { "none".to_owned() });
        }
        labels.extend(self.labels.clone());
        labels
    }

    pub(super) fn object(&self) -> Value {
        let metadata = json!({"name": self.name, "labels": self.labels(), "annotations": {(KWOK_NODE.0): KWOK_NODE.1}});
        json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"taints": self.taints}})
    }

    /// The status that a kubelet would write: kwok is told to leave it alone.
    pub(super) fn status(&self) -> Value {
        let mut resources = json!({"cpu": "64", "memory": "512Gi", "pods": "500", "ephemeral-storage": "1Ti"});
        if self.gpus > 0 {
            resources[&self.resource] = json!((self.gpus * self.replicas).to_string());
        }
        let condition = |kind: &str, status: &str, reason: &str| {
            let at = "2025-01-01T00:00:00Z"; // the lease says that the node lives, not this
            json!({"type": kind, "status": status, "reason": reason, "message": "", "lastHeartbeatTime": at,
                   "lastTransitionTime": at})
        };
        json!({"status": {
            "capacity": resources,
            "allocatable": resources,
            "addresses": [{"type": "Hostname", "address": self.name}, {"type": "InternalIP", "address": "127.0.0.1"}],
            "conditions": [
                condition("Ready", "True", "KubeletReady"),
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID"),
            ],
            "nodeInfo": {"architecture": "amd64", "operatingSystem": "linux", "kubeletVersion": "kwok",
                "bootID": "", "containerRuntimeVersion": "kwok", "kernelVersion": "", "kubeProxyVersion": "",
                "machineID": "", "osImage": "", "systemUUID": ""},
        }})
    }
}
