//! Owns the objects that tests apply to a control plane, as YAML, and what tests read in a pod.
//!
//! Names and annotations are literals on purpose: a renamed constant of the product must break a test.

use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::{Value, json};

use super::GpuNode;

/// Name of the extended resource that nodes advertise and pods request.
pub(crate) const VRAM: &str = "vramguard.dev/vram";

/// A cluster policy with mode Enforce and defaults.
pub(crate) const ENFORCE: &str =
    "apiVersion: vramguard.dev/v1alpha1\nkind: ClusterVramPolicy\nmetadata: {name: cluster}\nspec: {mode: Enforce}\n";

/// The cluster policy with `spec` in flow style.
pub(crate) fn cluster_policy(spec: &str) -> String {
    format!("apiVersion: vramguard.dev/v1alpha1\nkind: ClusterVramPolicy\nmetadata: {{name: cluster}}\nspec: {spec}\n")
}

/// The policy of a namespace with `spec` in flow style.
pub(crate) fn namespace_policy(namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: vramguard.dev/v1alpha1\nkind: VramPolicy\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// A Deployment of pods with one GPU replica each; `annotations` in flow style.
pub(crate) fn deployment(namespace: &str, name: &str, replicas: u32, annotations: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  replicas: {replicas}\n  \
         selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}}}, annotations: {annotations}}}\n    \
         spec:\n      terminationGracePeriodSeconds: 0\n      containers:\n        - name: main\n          image: none\n          \
         resources: {{limits: {{nvidia.com/gpu: 1}}}}\n"
    )
}

/// A pod with one GPU replica; `annotations` in flow style, `extra` are further fields of its spec, each with a comma.
pub(crate) fn gpu_pod(namespace: &str, name: &str, annotations: &str, extra: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, annotations: {annotations}}}, spec: {{{extra} \
         terminationGracePeriodSeconds: 0, containers: [{{name: main, image: none, resources: {{limits: {{nvidia.com/gpu: 1}}}}}}]}}}}"
    )
}

/// A pod without GPUs.
pub(crate) fn plain_pod(namespace: &str, name: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}}}, spec: {{containers: [{{name: main, image: none}}]}}}}"
    )
}

/// A merge patch of a `GpuLedger` with the report of an agent on `node`, under an allocation policy such as `Steered`.
pub(crate) fn agent_report(node: &GpuNode, allocation_policy: &str) -> String {
    let GpuNode { name, resource, replicas, memory_mib, .. } = node;
    let gpu = |index: u32| {
        json!({ "resource": resource, "replicas": replicas, "uuid": format!("GPU-{name}-{index}"), "index": index,
                "totalMiB": memory_mib, "reservedMiB": 0, "outOfBandMiB": 0 })
    };
    let gpus: Vec<Value> = (0..node.gpus).map(gpu).collect();
    let agent =
        json!({ "time": jiff::Timestamp::now(), "allocationPolicy": allocation_policy, "gpus": gpus, "pods": [] });
    json!({ "status": { "agent": agent } }).to_string()
}

/// The node that a pod is bound to.
pub(crate) fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// VRAM in MiB that the containers of a pod request together.
pub(crate) fn requested(pod: &Pod) -> u64 {
    let containers = &pod.spec.as_ref().expect("a pod has a spec").containers;
    let of = |c: &Container| Some(mib(&c.resources.as_ref()?.requests.as_ref()?.get(VRAM)?.0));
    containers.iter().filter_map(of).sum()
}

/// A quantity in MiB, rounded up. It is read here a second time, so that the product's reading is not its own proof.
///
/// # Panics
/// At a quantity in a form that no test uses.
pub(crate) fn mib(quantity: &str) -> u64 {
    let suffixes = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1_u64 << 30),
        ("Ti", 1 << 40),
        ("k", 1000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
    ];
    let bytes = suffixes
        .iter()
        .find_map(|(suffix, unit)| Some(quantity.strip_suffix(suffix)?.parse::<u64>().ok()? * unit))
        .or_else(|| quantity.parse().ok());
    bytes.unwrap_or_else(|| panic!("no quantity: {quantity:?}")).div_ceil(1 << 20)
}
