//! Owns the fields of pods and nodes that the checker and the stand-ins read, independently of the product.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Node, Pod};

use super::hardware::Hardware;
use crate::support::objects::{VRAM, mib};

const GPU: &str = "nvidia.com/gpu";
/// VRAM of a CUDA context under the default policy.
const CONTEXT_MIB: u64 = 720;

/// A node of the test.
#[derive(Debug, Clone)]
pub(super) struct NodeView {
    pub hardware: Hardware,
    pub labels: BTreeMap<String, String>,
    /// Allocatable VRAM in MiB.
    pub published: Option<u64>,
    /// Reason of condition `VramAccounted`.
    pub accounted: Option<String>,
}

impl NodeView {
    /// Name and view of a node, if it is a node of the test.
    pub(super) fn of(node: &Node) -> Option<(String, NodeView)> {
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
pub(super) struct PodView {
    pub uid: String,
    /// Namespace and name.
    pub name: String,
    pub node: Option<String>,
    /// Whether the phase is Succeeded or Failed; such a pod holds nothing.
    pub ended: bool,
    /// Whether the pod is being deleted.
    pub leaving: bool,
    pub selector: BTreeMap<String, String>,
    /// The containers that request a GPU.
    pub containers: Vec<GpuContainer>,
    /// MiB that the pod should request by its declaration.
    pub expected: Option<u64>,
}

/// A container with a replica of a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GpuContainer {
    pub name: String,
    /// Requested MiB.
    pub mib: Option<u64>,
    /// GPU in the annotation.
    pub gpu: Option<String>,
}

impl PodView {
    pub(super) fn of(pod: &Pod) -> PodView {
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

    /// Requested MiB of the pod; `None` if one of its GPU containers requests none.
    pub(super) fn demand(&self) -> Option<u64> {
        let each: Option<Vec<u64>> = self.containers.iter().map(|container| container.mib).collect();
        each.filter(|each| !each.is_empty()).map(|each| each.iter().sum())
    }
}

impl GpuContainer {
    fn of(container: &Container, annotations: &BTreeMap<String, String>) -> Option<GpuContainer> {
        let requests = container.resources.as_ref()?.requests.as_ref()?;
        requests.get(GPU)?;
        let key = format!("vramguard.dev/gpu.{}", container.name);
        let gpu = annotations.get(&key).cloned();
        Some(GpuContainer { name: container.name.clone(), mib: requests.get(VRAM).map(|q| mib(&q.0)), gpu })
    }
}
