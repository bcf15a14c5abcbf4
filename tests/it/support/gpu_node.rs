//! Owns the objects of nodes on which NVIDIA's device plugin and GPU Feature Discovery would run.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::components::KWOK_NODE;

/// A node that kwok simulates. A test sets the fields that matter: `GpuNode { replicas: 3, ..GpuNode::new("gpu-0") }`.
#[derive(Debug, Clone)]
pub(crate) struct GpuNode {
    pub name: String,
    /// Extended resource of which the device plugin advertises `gpus` × `replicas`.
    pub resource: String,
    /// Number of GPUs. With 0 the node has no labels of GPUs and no resource.
    pub gpus: u32,
    /// Replicas of each GPU; 1 means that a GPU is not shared.
    pub replicas: u32,
    /// Total memory of each GPU in MiB, as in the label of GPU Feature Discovery.
    pub memory_mib: u64,
    pub product: String,
    /// `time-slicing` or `mps`; ignored with one replica.
    pub sharing: String,
    /// Further labels, which win over those that follow from the other fields.
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Value>,
}

impl GpuNode {
    /// One A10 of 24 GiB, time-sliced into four replicas.
    pub(crate) fn new(name: &str) -> Self {
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

    /// The labels of GPU Feature Discovery and those of the test.
    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
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

    /// The status that a kubelet would write. kwok is configured to leave it alone.
    pub(super) fn status(&self) -> Value {
        let mut resources = json!({"cpu": "64", "memory": "512Gi", "pods": "500", "ephemeral-storage": "1Ti"});
        if self.gpus > 0 {
            resources[&self.resource] = json!((self.gpus * self.replicas).to_string());
        }
        let condition = |kind: &str, status: &str, reason: &str| {
            let at = "2025-01-01T00:00:00Z"; // liveness comes from the Lease, not from this time
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
