//! A large cluster as `kubectl get nodes,pods,deployments -A -o json` prints it: indented by four spaces, members sorted,
//! `kind` after `items`. The same numbers make the same text. It is generated as it is read, because it is larger than
//! the memory of many machines.

use std::io::{self, Read};

use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};
use serde_json::{Value, json};

/// The numbers of a cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cluster {
    /// Nodes, each with [`GPUS`] GPUs in [`REPLICAS`] replicas.
    pub(crate) nodes: usize,
    /// Pods that request a GPU, spread evenly over the nodes.
    pub(crate) pods: usize,
}

/// GPUs of each node.
pub(crate) const GPUS: usize = 8;
/// Replicas of each GPU.
pub(crate) const REPLICAS: usize = 4;
/// Pods of each Deployment.
const OF_DEPLOYMENT: usize = 50;
const NAMESPACES: usize = 200;

impl Cluster {
    /// The largest cluster that figures are given for.
    pub(crate) const LARGE: Cluster = Cluster { nodes: 5_000, pods: 150_000 };

    /// The text of the cluster.
    pub(crate) fn text(self) -> Text {
        Text { cluster: self, next: 0, piece: Vec::new(), at: 0 }
    }

    fn deployments(self) -> usize {
        self.pods.div_ceil(OF_DEPLOYMENT)
    }

    /// The piece of the text with this number; `None` after the last one.
    fn piece(self, number: usize) -> Option<Vec<u8>> {
        let (nodes, pods, all) = (self.nodes, self.nodes + self.pods, self.nodes + self.pods + self.deployments());
        let item = match number.checked_sub(1) {
            None => return Some(b"{\n    \"apiVersion\": \"v1\",\n    \"items\": [\n".to_vec()),
            Some(number) if number < nodes => node(number),
            Some(number) if number < pods => pod(number - nodes, (number - nodes) % self.nodes),
            Some(number) if number < all => deployment(number - pods),
            Some(number) if number == all => {
                let end = "    ],\n    \"kind\": \"List\",\n    \"metadata\": {\n        \"resourceVersion\": \"\"\n    }\n}\n";
                return Some(end.into());
            }
            Some(_) => return None,
        };
        let mut text = b"        ".to_vec();
        text.extend(indented(&item));
        text.extend(if number == all { &b"\n"[..] } else { b",\n" });
        Some(text)
    }
}

fn indented(item: &Value) -> Vec<u8> {
    let mut text = Vec::with_capacity(8 << 10);
    let formatter = PrettyFormatter::with_indent(b"    ");
    item.serialize(&mut Serializer::with_formatter(&mut text, formatter)).expect("it is written to memory");
    let mut moved = Vec::with_capacity(2 * text.len());
    for byte in text {
        moved.push(byte);
        if byte == b'\n' {
            moved.extend(b"        ");
        }
    }
    moved
}

/// The text of a cluster, as it is read.
#[derive(Debug)]
pub(crate) struct Text {
    cluster: Cluster,
    next: usize,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Text {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            self.piece = self.cluster.piece(self.next).unwrap_or_default();
            self.next += 1;
            self.at = 0;
        }
        let length = buffer.len().min(self.piece.len() - self.at);
        buffer[..length].copy_from_slice(&self.piece[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

fn uid(kind: usize, number: usize) -> String {
    format!("5a3b5a0e-{kind:04}-4000-8000-{number:012}")
}

fn node(number: usize) -> Value {
    let name = format!("gpu-{number:05}");
    let capacity = json!({
        "cpu": "192", "ephemeral-storage": "1856177Mi", "hugepages-1Gi": "0", "memory": "2113Gi",
        "nvidia.com/gpu": (GPUS * REPLICAS).to_string(), "pods": "250",
    });
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "uid": uid(1, number), "labels": {
            "beta.kubernetes.io/arch": "amd64", "kubernetes.io/arch": "amd64", "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux", "node.kubernetes.io/instance-type": "p5.48xlarge",
            "nvidia.com/cuda.driver.major": "580", "nvidia.com/gpu.compute.major": "9", "nvidia.com/gpu.count": GPUS.to_string(),
            "nvidia.com/gpu.family": "hopper", "nvidia.com/gpu.memory": "81559",
            "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3-SHARED", "nvidia.com/gpu.replicas": REPLICAS.to_string(),
            "nvidia.com/gpu.sharing-strategy": "time-slicing", "topology.kubernetes.io/zone": format!("zone-{}", number % 3),
        } },
        "spec": { "podCIDR": "10.0.0.0/24", "taints": [{ "effect": "NoSchedule", "key": "nvidia.com/gpu", "value": "present" }] },
        "status": { "allocatable": capacity, "capacity": capacity, "conditions": [
            condition("MemoryPressure", "False"), condition("DiskPressure", "False"), condition("Ready", "True"),
        ] },
    })
}

fn condition(kind: &str, status: &str) -> Value {
    json!({ "lastProbeTime": null, "lastTransitionTime": "2026-11-20T08:15:30Z", "message": "as the kubelet reports it",
        "observedGeneration": 1, "status": status, "type": kind })
}

/// Of ten pods, eight declare VRAM, one declares it for another tool, and one declares nothing.
fn declaration(number: usize) -> Value {
    match number % 10 {
        0 => json!({}),
        1 => json!({ "gpu-memory": "8192" }),
        _ => json!({ "vramguard.dev/vram": format!("{}Gi", 2 + number % 16) }),
    }
}

fn spec(number: usize) -> Value {
    let variable =
        |index: usize| json!({ "name": format!("SETTING_{index}"), "value": format!("value-{}", index * 37 % 11) });
    let probe = |path: &str| {
        json!({ "failureThreshold": 3, "httpGet": { "path": path, "port": "http", "scheme": "HTTP" }, "periodSeconds": 10,
            "successThreshold": 1, "timeoutSeconds": 1 })
    };
    let mut variables: Vec<Value> = (0..5).map(variable).collect();
    variables.push(json!({ "name": "PYTORCH_CUDA_ALLOC_CONF", "value": "expandable_segments:True" }));
    variables.push(
        json!({ "name": "POD_IP", "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": "status.podIP" } } }),
    );
    let toleration =
        |key: &str| json!({ "effect": "NoExecute", "key": key, "operator": "Exists", "tolerationSeconds": 300 });
    json!({
        "containers": [{
            "args": ["--model", "/models/llm", "--max-model-len", "16384", "--port", "8000"], "env": variables,
            "image": "registry.example.com/ml/server:v0.29.0", "imagePullPolicy": "IfNotPresent",
            "name": "server",
            "ports": [{ "containerPort": 8000, "name": "http", "protocol": "TCP" }], "readinessProbe": probe("/ready"),
            "resources": {
                "limits": { "cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "1" },
                "requests": { "cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1" },
            },
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            "volumeMounts": [
                { "mountPath": "/models", "name": "models" }, { "mountPath": "/dev/shm", "name": "shm" },
                { "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "name": "kube-api-access", "readOnly": true },
            ],
        }],
        "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "nodeSelector": { "kubernetes.io/os": "linux" },
        "preemptionPolicy": "PreemptLowerPriority", "priority": number % 3 * 100, "restartPolicy": "Always",
        "schedulerName": "default-scheduler", "securityContext": {}, "serviceAccountName": "default",
        "terminationGracePeriodSeconds": 30,
        "tolerations": [
            toleration("node.kubernetes.io/not-ready"), toleration("node.kubernetes.io/unreachable"),
            { "effect": "NoSchedule", "key": "nvidia.com/gpu", "operator": "Exists" },
        ],
        "volumes": [
            { "name": "models", "persistentVolumeClaim": { "claimName": "models", "readOnly": true } },
            { "emptyDir": { "medium": "Memory", "sizeLimit": "8Gi" }, "name": "shm" },
            { "name": "kube-api-access", "projected": { "defaultMode": 420, "sources": [
                { "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } },
                { "configMap": { "items": [{ "key": "ca.crt", "path": "ca.crt" }], "name": "kube-root-ca.crt" } },
            ] } },
        ],
    })
}

fn names(deployment: usize) -> (String, String) {
    (format!("team-{:03}", deployment % NAMESPACES), format!("llm-{deployment:05}"))
}

fn pod(number: usize, node: usize) -> Value {
    let (namespace, deployment) = names(number / OF_DEPLOYMENT);
    let replica_set = format!("{deployment}-7c9d8f6b5d");
    let mut spec = spec(number / OF_DEPLOYMENT);
    spec["nodeName"] = format!("gpu-{node:05}").into();
    let status = |name: &str| {
        json!({ "containerID": format!("containerd://{:064x}", number), "image": "registry.example.com/ml/server:v0.29.0",
            "imageID": format!("registry.example.com/ml/server@sha256:{:064x}", number / 7), "lastState": {}, "name": name,
            "ready": true, "restartCount": 0, "started": true, "state": { "running": { "startedAt": "2026-11-20T08:15:30Z" } } })
    };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "annotations": declaration(number / OF_DEPLOYMENT), "creationTimestamp": "2026-11-20T08:15:00Z",
            "generateName": format!("{replica_set}-"), "labels": {
                "app.kubernetes.io/instance": deployment, "app.kubernetes.io/name": "llm", "pod-template-hash": "7c9d8f6b5d",
                "team": namespace,
            },
            "name": format!("{replica_set}-{:05x}", number % OF_DEPLOYMENT), "namespace": namespace,
            "ownerReferences": [{ "apiVersion": "apps/v1", "blockOwnerDeletion": true, "controller": true,
                "kind": "ReplicaSet", "name": replica_set, "uid": uid(2, number / OF_DEPLOYMENT) }],
            "resourceVersion": (100_000_000 + number).to_string(), "uid": uid(3, number),
        },
        "spec": spec,
        "status": {
            "conditions": [
                condition("PodReadyToStartContainers", "True"), condition("Initialized", "True"), condition("Ready", "True"),
                condition("ContainersReady", "True"), condition("PodScheduled", "True"),
            ],
            "containerStatuses": [status("server")], "hostIP": "10.20.30.40", "phase": "Running",
            "podIP": "10.1.2.3", "podIPs": [{ "ip": "10.1.2.3" }], "qosClass": "Burstable", "startTime": "2026-11-20T08:15:00Z",
        },
    })
}

fn deployment(number: usize) -> Value {
    let (namespace, name) = names(number);
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": name, "namespace": namespace, "uid": uid(4, number) },
        "spec": {
            "replicas": OF_DEPLOYMENT, "selector": { "matchLabels": { "app.kubernetes.io/instance": name } },
            "strategy": { "rollingUpdate": { "maxSurge": "25%", "maxUnavailable": "25%" }, "type": "RollingUpdate" },
            "template": {
                "metadata": { "annotations": declaration(number), "labels": { "app.kubernetes.io/instance": name } },
                "spec": spec(number),
            },
        },
        "status": { "availableReplicas": OF_DEPLOYMENT, "replicas": OF_DEPLOYMENT },
    })
}
