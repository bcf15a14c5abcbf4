//! Ledgers as the API server stores them.

use serde_json::json;

use super::*;
use crate::capacity::gpu::AllocationPolicy;

fn ledger(spec: Value, status: Value) -> GpuLedger {
    let object = json!({
        "apiVersion": "vramguard.dev/v1alpha1", "kind": "GpuLedger",
        "metadata": { "name": "gpu-0", "resourceVersion": "7" }, "spec": spec, "status": status,
    });
    serde_json::from_value(object).unwrap()
}

fn rows() -> Value {
    json!({ "reservations": [
        { "uid": "a", "namespace": "ml", "pod": "llm-0", "container": "main", "resource": "nvidia.com/gpu", "replicas": 1,
          "gpu": "GPU-1", "mib": 8912, "basis": "Request", "state": "Assumed",
          "since": "2026-11-22T21:00:00.123Z" },
        { "uid": "b", "namespace": "ml", "pod": "two", "container": "init", "role": "Init", "resource": "nvidia.com/gpu",
          "replicas": 1, "mib": 100, "basis": "Declaration", "state": "Adopted", "since": "2026-11-22T21:00:01.000Z" },
        { "uid": "b", "namespace": "ml", "pod": "two", "container": "main", "resource": "nvidia.com/gpu",
          "replicas": 1, "basis": "Slot", "state": "Adopted", "since": "2026-11-22T21:00:01.000Z" },
    ] })
}

#[test]
fn what_is_read_is_what_would_be_written() {
    let shared = ledger(rows(), Value::Null).content().unwrap();
    assert_eq!(spec(&shared.reservations, &Rules::default()), rows());
    let patch = spec_patch(&shared.reservations, &Rules::default(), "7");
    assert_eq!(patch["metadata"], json!({ "resourceVersion": "7", "managedFields": [{}] }));
}

#[test]
fn a_reservation_holds_what_its_rows_say() {
    let shared = ledger(rows(), Value::Null).content().unwrap();
    let first = shared.reservations.of(&PodUid::from("a")).unwrap();
    assert_eq!((first.state, first.gpu.clone()), (State::Assumed, Some(GpuId::Uuid("GPU-1".into()))));
    assert_eq!(first.holder.request, Some(Vram::from_mib(8912)));
    assert_eq!(first.holder.starting, Some(first.since));
    let second = shared.reservations.of(&PodUid::from("b")).unwrap();
    assert_eq!((second.holder.request, second.holder.parts.len()), (None, 2));
    // The init container releases its replica before the other container starts.
    assert_eq!(second.holder.gpus, [(Resource("nvidia.com/gpu".into()), 1)]);
}

#[test]
fn a_report_is_read_with_identity_and_size() {
    let status = json!({ "agent": {
        "allocationPolicy": "Packed",
        "gpus": [{ "resource": "nvidia.com/gpu", "replicas": 4, "uuid": "GPU-1", "index": 0, "totalMiB": 81_559,
                   "reservedMiB": 480, "outOfBandMiB": 7 }],
        "pods": [{ "uid": "a", "container": "main", "gpu": "GPU-1" }],
    } });
    let inventory = ledger(Value::Null, status).content().unwrap().inventory.unwrap();
    assert_eq!(inventory.allocation_policy, AllocationPolicy::Packed);
    let gpu = &inventory.gpus[&Resource("nvidia.com/gpu".into())][0].gpu;
    assert_eq!((gpu.driver_reserved, gpu.out_of_band), (Some(Vram::from_mib(480)), Vram::from_mib(7)));
    assert_eq!(inventory.assigned[&PodUid::from("a")], [("main".into(), GpuId::Uuid("GPU-1".into()))]);
}

#[test]
fn a_ledger_that_cannot_be_read_names_object_and_field() {
    let spec = |reservation: Value| json!({ "reservations": [reservation] });
    let with = |field: &str, value: Value| {
        let mut row = rows()["reservations"][0].clone();
        row[field] = value;
        ledger(spec(row), Value::Null).content().unwrap_err().to_string()
    };
    assert_eq!(
        with("since", json!("yesterday")),
        "GpuLedger \"gpu-0\": spec.reservations[0].since: is no RFC 3339 time"
    );
    assert!(with("mib", json!(-1)).starts_with("GpuLedger \"gpu-0\": spec.reservations[0].mib: "));
    assert!(with("mib", json!(u64::MAX)).ends_with("is more than a quantity can say"));
    assert!(with("state", json!("Perhaps")).contains("spec.reservations[0].state: \"Perhaps\" is not one of"));
    let gpu = json!({ "resource": "r", "replicas": 0, "uuid": "u", "index": 0, "totalMiB": 1 });
    let error = ledger(Value::Null, json!({ "agent": { "gpus": [gpu] } })).content().unwrap_err();
    assert!(error.field.starts_with("status.agent.gpus[0].replicas"), "{error}");
}

#[test]
fn a_ledger_without_reservations_is_empty_and_not_unreadable() {
    for spec in [Value::Null, json!({}), json!({ "reservations": [] })] {
        assert!(ledger(spec, Value::Null).content().unwrap().reservations.is_empty());
    }
}

#[test]
fn what_is_used_is_read_without_a_zero_for_what_is_missing() {
    let gpu = json!({"resource": "r", "replicas": 4, "uuid": "GPU-0", "index": 0, "totalMiB": 24_576});
    let container = json!({"uid": "u", "container": "main", "namespace": "ml", "pod": "p", "gpu": "GPU-0", "peakMiB": 900,
                           "since": "2026-11-30T02:00:00Z"});
    let section = json!({"time": "1970-01-01T00:00:01Z", "gpus": [gpu, gpu], "containers": [container]});
    let seen = ledger(Value::Null, json!({ "agent": section })).observed().unwrap();
    assert_eq!((seen.reported, seen.unreadable.clone()), (Some(Moment(1000)), None));
    assert_eq!(seen.gpus.len(), 1, "a GPU that is behind two resources is one");
    assert_eq!((seen.gpus[0].used, seen.gpus[0].outside), (None, None));
    let container = seen.containers.values().next().unwrap();
    assert_eq!((container.used, container.peak.mib(), container.demand), (None, 900, None));
    assert_eq!(ledger(Value::Null, Value::Null).observed(), None);
    assert_eq!(ledger(Value::Null, json!({ "agent": null })).observed(), None);
}

#[test]
fn a_report_of_use_that_cannot_be_read_names_the_field_and_tells_no_amount() {
    let container = json!({"uid": "u", "container": "main", "namespace": "ml", "pod": "p", "gpu": "GPU-0", "peakMiB": 900,
                           "since": "2026-11-30T02:00:00Z"});
    let gpu = json!({"resource": "r", "replicas": 4, "uuid": "GPU-0", "index": 0, "totalMiB": 24_576});
    let wrong = |list: &str, field: &str, value: Value| {
        let mut section = json!({"time": "1970-01-01T00:00:01Z", "gpus": [gpu], "containers": [container]});
        section[list][0][field] = value;
        let seen = ledger(Value::Null, json!({ "agent": section })).observed().unwrap();
        assert_eq!((seen.reported, seen.gpus.len(), seen.containers.len()), (Some(Moment(1000)), 0, 0));
        seen.unreadable.unwrap()
    };
    assert_eq!(
        wrong("containers", "problem", json!("Bored")),
        "GpuLedger \"gpu-0\": status.agent.containers[0].problem: \"Bored\" is not one of OverDeclaration, Undeclared, Idle, FarUnder"
    );
    assert!(wrong("containers", "idleSince", json!("today")).ends_with("idleSince: is no RFC 3339 time"));
    assert!(wrong("containers", "usedMiB", json!(u64::MAX)).ends_with("usedMiB: is more than a quantity can say"));
    assert!(wrong("gpus", "usedMiB", json!(1_u64 << 40)).ends_with("gpus[0].usedMiB: is more than any GPU has"));
    assert!(wrong("gpus", "usedMiB", json!(-1)).contains("status.agent.gpus[0].usedMiB"));
}
