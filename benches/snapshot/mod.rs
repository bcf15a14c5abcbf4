//! The objects that benchmarks build a snapshot from: nodes, pods and ledgers as large as those of a real API server.

#![allow(dead_code)] // no benchmark uses all of them

use serde_json::{Map, Value, json};

pub(crate) mod printed;

/// A node with one time-sliced A100 of 80 GB.
pub(crate) fn node(name: &str) -> Value {
    json!({
        "metadata": { "name": name, "labels": {
            "kubernetes.io/hostname": name, "nvidia.com/gpu.memory": "81920", "nvidia.com/gpu.count": "1",
            "nvidia.com/gpu.replicas": "32", "nvidia.com/gpu.sharing-strategy": "time-slicing",
        } },
        "status": { "capacity": { "nvidia.com/gpu": "32" }, "allocatable": { "nvidia.com/gpu": "32" } },
    })
}

/// A node with `gpus` time-sliced A100s of 80 GB, with four replicas each.
pub(crate) fn node_of(name: &str, gpus: usize) -> Value {
    let replicas = (gpus * 4).to_string();
    json!({
        "metadata": { "name": name, "labels": {
            "kubernetes.io/hostname": name, "nvidia.com/gpu.memory": "81920", "nvidia.com/gpu.count": gpus.to_string(),
            "nvidia.com/gpu.replicas": "4", "nvidia.com/gpu.sharing-strategy": "time-slicing",
        } },
        "status": { "capacity": { "nvidia.com/gpu": replicas }, "allocatable": { "nvidia.com/gpu": replicas } },
    })
}

/// The `GpuLedger` of such a node. Its agent steers the device plugin, and it has a reservation for each pod
/// `(number, GPU, MiB)`.
pub(crate) fn ledger(node: &str, gpus: usize, pods: impl Iterator<Item = (usize, usize, u64)>) -> Value {
    let reservation = |(number, gpu, mib): (usize, usize, u64)| {
        json!({
            "uid": uid(number), "namespace": "ml", "pod": format!("p{number}"), "container": "main",
            "resource": "nvidia.com/gpu", "replicas": 1, "gpu": gpu_uuid(gpu), "mib": mib, "basis": "Request",
            "state": "Confirmed", "since": "2026-11-22T21:00:00.000Z",
        })
    };
    let gpu = |index: usize| json!({ "resource": "nvidia.com/gpu", "replicas": 4, "uuid": gpu_uuid(index), "index": index, "totalMiB": 81_920 });
    json!({
        "apiVersion": "vramguard.dev/v1alpha1", "kind": "GpuLedger",
        "metadata": { "name": node, "resourceVersion": "1" },
        "spec": { "reservations": pods.map(reservation).collect::<Vec<_>>() },
        "status": { "agent": { "time": "2026-11-22T21:00:00Z", "allocationPolicy": "Steered", "gpus": (0..gpus).map(gpu).collect::<Vec<_>>(), "pods": [] } },
    })
}

fn gpu_uuid(index: usize) -> String {
    format!("GPU-00000000-0000-4000-8000-{index:012}")
}

fn uid(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

/// A pod that is bound, with the annotation that names its GPU.
pub(crate) fn placed(number: usize, node: &str, gpu: usize, mib: u64) -> Value {
    let limits = json!({ "nvidia.com/gpu": "1", "vramguard.dev/vram": format!("{mib}Mi") });
    json!({
        "metadata": {
            "name": format!("p{number}"), "namespace": "ml", "uid": uid(number),
            "annotations": { "vramguard.dev/gpu.main": gpu_uuid(gpu) },
        },
        "spec": {
            "nodeName": node,
            "containers": [{ "name": "main", "resources": { "limits": limits } }],
        },
        "status": { "phase": "Running" },
    })
}

/// A pod as kube-scheduler sends it: the pod of [`created`] with a uid and a VRAM request.
pub(crate) fn looking(vram: &str) -> Value {
    let mut pod = created();
    pod["metadata"]["uid"] = json!("7f7b1c7e-6ee5-4d5c-8f0e-000000000001");
    if let Some(metadata) = pod["metadata"].as_object_mut() {
        metadata.remove("managedFields"); // kube-scheduler drops managedFields when it reads pods
    }
    let container = &mut pod["spec"]["containers"][0];
    for list in ["limits", "requests"] {
        container["resources"][list]["vramguard.dev/vram"] = json!(vram);
    }
    pod
}

/// A pod bound to node `n<node>`.
pub(crate) fn bound(number: usize, node: usize) -> Value {
    json!({
        "metadata": { "name": format!("p{number}"), "namespace": "ml", "uid": format!("00000000-0000-4000-8000-{number:012}") },
        "spec": {
            "nodeName": format!("n{node}"),
            "containers": [{ "name": "main", "resources": { "limits": { "nvidia.com/gpu": "1", "vramguard.dev/vram": "4000Mi" } } }],
        },
        "status": { "phase": "Running" },
    })
}

/// A pod as the API server sends it at creation: two containers, volumes, probes, tolerations and managedFields.
pub(crate) fn created() -> Value {
    let mut env: Vec<Value> =
        (0..20).map(|n| json!({ "name": format!("SETTING_{n}"), "value": format!("value-{n}") })).collect();
    env.push(
        json!({ "name": "NODE", "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": "spec.nodeName" } } }),
    );
    let probe = json!({ "httpGet": { "path": "/health", "port": 8000, "scheme": "HTTP" }, "periodSeconds": 10, "timeoutSeconds": 1 });
    let container = |name: &str, resources: Value| {
        json!({
            "name": name, "image": format!("registry.example/{name}:1.0"), "args": ["--model", "qwen3-8b", "--port", "8000"],
            "env": env, "resources": resources, "livenessProbe": probe, "readinessProbe": probe, "imagePullPolicy": "IfNotPresent",
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            "volumeMounts": (0..6).map(|n| json!({ "name": format!("v{n}"), "mountPath": format!("/mnt/v{n}"), "readOnly": true })).collect::<Vec<_>>(),
        })
    };
    let gpu = json!({ "limits": { "cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1" }, "requests": { "cpu": "1", "memory": "8Gi", "nvidia.com/gpu": "1" } });
    let fields: Map<String, Value> =
        (0..115).map(|n| (format!("f:field-{n}"), json!({ ".": {}, "f:name": {}, "f:value": {} }))).collect();
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {
            "name": "agent-7d9c5b6f4-x2x2x", "generateName": "agent-7d9c5b6f4-", "namespace": "ml", "creationTimestamp": null,
            "labels": { "app": "agent", "pod-template-hash": "7d9c5b6f4" },
            "annotations": { "vramguard.dev/vram": "8Gi", "example.com/checksum": "0123456789abcdef0123456789abcdef" },
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "agent-7d9c5b6f4", "uid": "u", "controller": true }],
            "managedFields": [{ "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": fields }],
        },
        "spec": {
            "volumes": (0..6).map(|n| json!({ "name": format!("v{n}"), "configMap": { "name": format!("c{n}"), "defaultMode": 420 } })).collect::<Vec<_>>(),
            "containers": [container("vllm", gpu), container("langchain", json!({}))],
            "tolerations": [
                { "key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule" },
                { "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 },
            ],
            "restartPolicy": "Always", "serviceAccountName": "agent", "priority": 0, "preemptionPolicy": "PreemptLowerPriority",
            "schedulerName": "default-scheduler", "securityContext": {},
        },
        "status": {},
    })
}

/// The body of the review for the creation of that pod.
pub(crate) fn review() -> Vec<u8> {
    json!({
        "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002", "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "resource": { "group": "", "version": "v1", "resource": "pods" }, "requestKind": { "group": "", "version": "v1", "kind": "Pod" },
            "name": "agent-7d9c5b6f4-x2x2x", "namespace": "ml", "operation": "CREATE",
            "userInfo": { "username": "system:serviceaccount:kube-system:replicaset-controller", "groups": ["system:serviceaccounts"] },
            "object": created(), "oldObject": null, "dryRun": false, "options": { "kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1" },
        },
    })
    .to_string()
    .into_bytes()
}
