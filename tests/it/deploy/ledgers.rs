//! The schema of GpuLedger: stored fields, refused values, and the columns of `kubectl get`.

use std::path::Path;

use serde_json::{Value, json};

use super::kubectl;
use crate::support::ControlPlane;

const FILE: &str = "deploy/crds/customresourcedefinition-gpuledgers.yaml";

fn definition() -> Value {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE)).expect("it is shipped");
    serde_saphyr::from_str(&text).expect("it is YAML")
}

/// A control plane that serves GpuLedgers.
async fn start() -> ControlPlane {
    let plane = ControlPlane::start().await;
    plane.apply(&definition().to_string()).await;
    kubectl(&plane, "wait --for=condition=Established --timeout=30s crd/gpuledgers.vramguard.dev", "")
        .await
        .expect_success();
    plane
}

/// A valid GpuLedger with every field.
fn full() -> Value {
    let reservation = |pod: &str, container: &str, more: Value| {
        let mut entry = json!({
            "uid": format!("0b6f1b1c-5e8e-4a3c-9a34-7d1f1f0a1c2{}", pod.len()), "namespace": "ml", "pod": pod,
            "container": container, "role": "App", "resource": "nvidia.com/gpu", "replicas": 1, "basis": "Slot",
            "state": "Assumed", "since": "2026-11-22T21:00:00.123Z",
        });
        entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        entry
    };
    json!({
        "apiVersion": "vramguard.dev/v1alpha1",
        "kind": "GpuLedger",
        "metadata": {"name": "gpu-0.example.com", "ownerReferences":
            [{"apiVersion": "v1", "kind": "Node", "name": "gpu-0.example.com", "uid": "d3adb33f-0000-4000-8000-000000000000"}]},
        "spec": {"reservations": [
            reservation("llm-0", "main", json!({"gpu": "GPU-0b6f1b1c-5e8e-4a3c-9a34-7d1f1f0a1c2e", "mib": 8912,
                "basis": "Request"})),
            reservation("llm-0", "warm-up", json!({"role": "Init", "gpu": "1", "mib": 0, "basis": "Declaration",
                "state": "Confirmed"})),
            reservation("older", "beside", json!({"role": "Sidecar", "state": "Adopted"})),
        ]},
        "status": {
            "mode": "steered", "gpuCount": 4, "reservations": 2,
            "allocatableMiB": 95480, "allocatable": "95480Mi",
            "heldMiB": 17824, "held": "17824Mi",
            "placeableMiB": 23870, "placeable": "23870Mi",
            "gpus": [
                {"gpu": "GPU-0b6f1b1c-5e8e-4a3c-9a34-7d1f1f0a1c2e", "index": 0, "resource": "nvidia.com/gpu", "mode": "steered",
                 "totalMiB": 24576, "allocatableMiB": 23870, "heldMiB": 8912, "freeMiB": 15528},
                {"gpu": "1", "index": 1, "migIndex": 0, "resource": "nvidia.com/mig-1g.10gb", "mode": "slot", "totalMiB": 9856,
                 "allocatableMiB": 9600, "heldMiB": 0},
            ],
            "agent": {
                "time": "2026-11-22T21:00:00Z", "source": "NVML", "allocationPolicy": "Steered",
                "pod": {"namespace": "vramguard-agent", "name": "vramguard-agent-x", "uid": "u", "containerID": "4c01"},
                "driverVersion": "580.159.04", "cudaVersion": "13.0", "unreadable": "no", "usedMiB": 9374, "used": "9374Mi",
                "containers": [{"uid": "u", "container": "main", "namespace": "ml", "pod": "llm-0", "gpu": "GPU-0b6f1b1c",
                    "usedMiB": 8868, "peakMiB": 8868, "demandMiB": 8912, "since": "2026-11-22T21:00:00Z",
                    "idleSince": "2026-11-22T21:00:00Z", "cycles": 3, "problem": "Idle", "message": "computes nothing"}],
                "gpus": [{"resource": "nvidia.com/gpu", "replicas": 4, "uuid": "GPU-0b6f1b1c-5e8e-4a3c-9a34-7d1f1f0a1c2e",
                    "index": 0, "migIndex": 6, "totalMiB": 24576, "reservedMiB": 512, "usedMiB": 8868, "outOfBandMiB": 0, "unreadable": "lost"}],
                "pods": [{"uid": "u", "container": "main", "gpu": "MIG-GPU-0b6f1b1c-5e8e-4a3c-9a34-7d1f1f0a1c2e/1/0"}],
            },
            "conditions": [
                {"type": "Accounted", "status": "True", "reason": "Steered", "message": "", "observedGeneration": 1,
                 "lastTransitionTime": "2026-11-22T21:00:00Z"},
                {"type": "Overcommitted", "status": "False", "reason": "Fits", "message": "nothing is above its allocatable",
                 "lastTransitionTime": "2026-11-22T21:00:00Z"},
            ],
        },
    })
}

/// Creates the object and its status under strict validation, and returns the stored object.
async fn store(plane: &ControlPlane, object: &Value) -> Value {
    kubectl(plane, "create --validate=strict -f -", &object.to_string()).await.expect_success();
    let replace = "replace --subresource=status --validate=strict -f -";
    kubectl(plane, replace, &object.to_string()).await.expect_success();
    let name = object["metadata"]["name"].as_str().unwrap();
    let stored = kubectl(plane, &format!("get gpuledger {name} -o json"), "").await.expect_success();
    serde_json::from_str(&stored).expect("kubectl prints JSON")
}

#[tokio::test]
async fn a_ledger_keeps_every_field_and_reads_well() {
    let plane = start().await;
    let full = full();
    let stored = store(&plane, &full).await;
    assert_eq!((&stored["spec"], &stored["status"]), (&full["spec"], &full["status"]));
    assert_eq!(stored["metadata"]["ownerReferences"], full["metadata"]["ownerReferences"]);
    let stored = kubectl(&plane, "get crd gpuledgers.vramguard.dev -o json", "").await.expect_success();
    assert!(!stored.contains("NonStructuralSchema"), "{stored}");

    let columns = async |arguments: &str| -> Vec<String> {
        let table = kubectl(&plane, arguments, "").await.expect_success();
        println!("{table}");
        table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    };
    let heading = "NAME MODE GPUS ALLOCATABLE HELD PLACEABLE PODS ACCOUNTED OVERCOMMITTED AGE";
    let row = "gpu-0.example.com steered 4 95480Mi 17824Mi 23870Mi 2 True False ";
    for names in ["gpuledgers", "gpul", "vramguard"] {
        let table = columns(&format!("get {names}")).await;
        assert_eq!(table[0], heading);
        assert!(table[1].starts_with(row), "{}", table[1]);
    }
    let wide = columns("get gpul -o wide").await;
    assert_eq!(wide[0], format!("{heading} ALLOCATION USED SOURCE AGENT"));
    assert!(wide[1].starts_with(row) && wide[1].contains(" Steered 9374Mi NVML "), "{}", wide[1]);

    // A write of the spec keeps the status, so two replicas do not overwrite each other.
    let mut emptied = full.clone();
    emptied["spec"]["reservations"] = json!([]);
    emptied["status"] = json!({"mode": "unknown"});
    kubectl(&plane, "replace --validate=strict -f -", &emptied.to_string()).await.expect_success();
    let stored = kubectl(&plane, "get gpul gpu-0.example.com -o json", "").await.expect_success();
    let stored: Value = serde_json::from_str(&stored).unwrap();
    assert_eq!((&stored["spec"]["reservations"], &stored["status"]), (&json!([]), &full["status"]));
}

#[tokio::test]
async fn a_ledger_that_makes_no_sense_is_refused_by_field() {
    let plane = start().await;
    let full = full();
    store(&plane, &full).await;
    // JSON pointer, value (null removes the field), and the refusal with … for quoted values; no refusal if it is empty.
    let cases = [
        ("/spec/reservations/0/uid", json!(null), "spec.reservations[0].uid: Required value"),
        (
            "/spec/reservations/0/mib",
            json!(null),
            "spec.reservations[0].mib: Invalid value: … is required unless basis is Slot",
        ),
        ("/spec/reservations/0/mib", json!(-1), "spec.reservations[0].mib"),
        ("/spec/reservations/0/mib", json!("8Gi"), "spec.reservations[0].mib"),
        ("/spec/reservations/0/mib", json!(1_u64 << 43), "spec.reservations[0].mib"),
        ("/spec/reservations/0/replicas", json!(0), "spec.reservations[0].replicas"),
        (
            "/spec/reservations/0/resource",
            json!("gpu"),
            "spec.reservations[0].resource: Invalid value: … must be the name of an extended",
        ),
        ("/spec/reservations/0/gpu", json!("Gpu 7"), "spec.reservations[0].gpu: Invalid value: … must be a GPU's UUID"),
        ("/spec/reservations/0/gpu", json!("01"), "spec.reservations[0].gpu: Invalid value: … must be a GPU's UUID"),
        ("/spec/reservations/0/pod", json!("Llm_0"), "spec.reservations[0].pod"),
        ("/spec/reservations/0/namespace", json!("a.b"), "spec.reservations[0].namespace"),
        ("/spec/reservations/0/role", json!("Ephemeral"), "spec.reservations[0].role: Unsupported value"),
        ("/spec/reservations/0/basis", json!("Guess"), "spec.reservations[0].basis: Unsupported value"),
        ("/spec/reservations/0/state", json!(null), "spec.reservations[0].state: Required value"),
        ("/spec/reservations/0/since", json!("yesterday"), "spec.reservations[0].since"),
        ("/spec/reservations/1", full["spec"]["reservations"][0].clone(), "spec.reservations[1]: Duplicate value"),
        ("/spec/reservations/0/surprise", json!(1), "unknown field \"spec.reservations[0].surprise\""),
        ("/status/mode", json!("guessed"), "status.mode: Unsupported value"),
        ("/status/held", json!("17824"), ""),
        ("/status/held", json!("-1Mi"), "status.held"),
        ("/status/gpus/1/gpu", json!(full["status"]["gpus"][0]["gpu"].clone()), ""),
        ("/status/gpus/1", full["status"]["gpus"][0].clone(), "status.gpus[1]: Duplicate value"),
        ("/status/gpus/0/heldMiB", json!(null), "status.gpus[0].heldMiB: Required value"),
        ("/status/agent/time", json!(null), "status.agent.time: Required value"),
        ("/status/agent/allocationPolicy", json!("Random"), "status.agent.allocationPolicy: Unsupported value"),
        ("/status/agent/gpus/0/uuid", json!("0"), "status.agent.gpus[0].uuid: Invalid value: … must be a GPU's UUID"),
        ("/status/agent/gpus/0/totalMiB", json!(0), "status.agent.gpus[0].totalMiB"),
        ("/status/agent/pods/0/gpu", json!("0"), "status.agent.pods[0].gpu: Invalid value: … must be a GPU's UUID"),
        ("/status/conditions/0/status", json!("Yes"), "status.conditions[0].status: Unsupported value"),
        ("/status/conditions/0/reason", json!(""), "status.conditions[0].reason"),
        ("/status/surprise", json!(1), "unknown field \"status.surprise\""),
    ];
    for (at, value, refusal) in cases {
        let mut object = full.clone();
        let (parent, last) = at.rsplit_once('/').unwrap();
        let parent = object.pointer_mut(parent).unwrap();
        match (parent, &value) {
            (Value::Object(fields), Value::Null) => drop(fields.remove(last)),
            (Value::Object(fields), _) => drop(fields.insert(last.to_owned(), value.clone())),
            (parent, _) => parent[last.parse::<usize>().unwrap()] = value.clone(),
        }
        let subresource = if at.starts_with("/status") { "--subresource=status " } else { "" };
        let replace = format!("replace {subresource}--dry-run=server --validate=strict -f -");
        let answer = kubectl(&plane, &replace, &object.to_string()).await;
        assert_eq!(answer.status.success(), refusal.is_empty(), "{at} = {value}: {}", answer.stderr);
        assert!(refusal.split(" … ").all(|part| answer.stderr.contains(part)), "{at} = {value}: {}", answer.stderr);
    }
    // The role of a pod has a default.
    let mut object = full.clone();
    object["spec"]["reservations"][2].as_object_mut().unwrap().remove("role");
    let replaced = kubectl(&plane, "replace --dry-run=server -o json -f -", &object.to_string()).await.expect_success();
    let replaced: Value = serde_json::from_str(&replaced).unwrap();
    assert_eq!(replaced["spec"]["reservations"][2]["role"], "App");
}

#[test]
fn every_field_of_a_ledger_is_described_and_bounded() {
    fn walk(path: &str, schema: &Value, silent: &mut Vec<String>) {
        let bounded = match schema["type"].as_str() {
            Some("array") => schema["maxItems"].is_u64() && schema["x-kubernetes-list-type"] == "map",
            Some("string") => schema["maxLength"].is_u64() || schema["enum"].is_array(),
            Some("integer") => schema["minimum"].is_i64() && schema["format"].is_string(),
            Some("object") => schema["properties"].is_object(),
            Some("boolean") => true,
            _ => false,
        };
        // The description of an array covers its items.
        if !bounded || (schema["description"].is_null() && !path.ends_with("[]")) {
            silent.push(path.to_owned());
        }
        for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
            walk(&format!("{path}.{name}"), schema, silent);
        }
        if schema["items"].is_object() {
            walk(&format!("{path}[]"), &schema["items"], silent);
        }
    }
    let definition = definition();
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    let mut silent = Vec::new();
    walk("spec", &schema["spec"], &mut silent);
    walk("status", &schema["status"], &mut silent);
    assert_eq!(silent, Vec::<String>::new());
    assert!(schema["status"]["properties"].as_object().unwrap().len() > 10);
}
