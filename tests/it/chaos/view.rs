//! The few fields of pods and nodes that the checker and the stand-ins read, by their own reading.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Node, Pod};

use super::hardware::Hardware;

const VRAM: &str = "vramguard.dev/vram";
const GPU: &str = "nvidia.com/gpu";
/// What a CUDA context costs under the default policy.
const CONTEXT_MIB: u64 = 720;

/// A node of the test.
#[derive(Debug, Clone)]
pub struct NodeView {
    pub hardware: Hardware,
    pub labels: BTreeMap<String, String>,
    /// MiB of VRAM that it advertises as allocatable.
    pub published: Option<u64>,
    /// Reason of the condition `VramAccounted`.
    pub accounted: Option<String>,
}

impl NodeView {
    /// With its name; `None` for a node that is none of the test's.
    pub fn of(node: &Node) -> Option<(String, NodeView)> {
        let labels = node.metadata.labels.clone().unwrap_or_default();
        let hardware = Hardware::of(&labels)?;
        let status = node.status.clone().unwrap_or_default();
        let published = status.allocatable.and_then(|list| list.get(VRAM).map(|quantity| mib(&quantity.0)));
        let condition = status.conditions.into_iter().flatten().find(|condition| condition.type_ == "VramAccounted");
        let accounted = condition.and_then(|condition| condition.reason);
        Some((node.metadata.name.clone()?, NodeView { hardware, labels, published, accounted }))
    }
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodView {
    pub uid: String,
    /// With its namespace.
    pub name: String,
    pub node: Option<String>,
    /// Succeeded or Failed: it holds nothing.
    pub ended: bool,
    /// Is being deleted.
    pub leaving: bool,
    pub selector: BTreeMap<String, String>,
    /// Those that request a GPU.
    pub containers: Vec<GpuContainer>,
    /// MiB that it should request, by what it declares.
    pub expected: Option<u64>,
}

/// A container with a replica of a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuContainer {
    pub name: String,
    /// MiB that it requests.
    pub mib: Option<u64>,
    /// It sees what the annotation names, and nothing else.
    pub pinned: bool,
    /// What the annotation names.
    pub gpu: Option<String>,
}

impl PodView {
    pub fn of(pod: &Pod) -> PodView {
        let metadata = &pod.metadata;
        let annotations = metadata.annotations.clone().unwrap_or_default();
        let spec = pod.spec.clone().unwrap_or_default();
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let containers: Vec<GpuContainer> =
            spec.containers.iter().filter_map(|container| GpuContainer::of(container, &annotations)).collect();
        let declared = |container: &GpuContainer| {
            let own = annotations.get(&format!("{VRAM}.{}", container.name));
            own.or(annotations.get(VRAM)).map(|amount| mib(amount) + CONTEXT_MIB)
        };
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        PodView {
            uid: metadata.uid.clone().expect("a pod has a uid"),
            name: format!("{namespace}/{}", metadata.name.as_deref().unwrap_or_default()),
            node: spec.node_name,
            ended: matches!(phase, Some("Succeeded" | "Failed")),
            leaving: metadata.deletion_timestamp.is_some(),
            selector: spec.node_selector.unwrap_or_default(),
            expected: (!containers.is_empty()).then(|| containers.iter().filter_map(declared).sum()),
            containers,
        }
    }

    /// MiB that it requests; `None` where one of its containers requests none.
    pub fn demand(&self) -> Option<u64> {
        let each: Option<Vec<u64>> = self.containers.iter().map(|container| container.mib).collect();
        each.filter(|each| !each.is_empty()).map(|each| each.iter().sum())
    }
}

impl GpuContainer {
    fn of(container: &Container, annotations: &BTreeMap<String, String>) -> Option<GpuContainer> {
        let requests = container.resources.as_ref()?.requests.as_ref()?;
        requests.get(GPU)?;
        let env = container.env.iter().flatten().find(|variable| variable.name == "NVIDIA_VISIBLE_DEVICES");
        let key = format!("vramguard.dev/gpu.{}", container.name);
        let field = env.and_then(|env| env.value_from.as_ref()?.field_ref.as_ref());
        let pinned = field.is_some_and(|field| field.field_path == format!("metadata.annotations['{key}']"));
        let gpu = annotations.get(&key).cloned();
        Some(GpuContainer { name: container.name.clone(), mib: requests.get(VRAM).map(|q| mib(&q.0)), pinned, gpu })
    }
}

/// MiB of a quantity, rounded up. Panics at what no test writes.
pub fn mib(quantity: &str) -> u64 {
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
