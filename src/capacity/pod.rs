//! [`Pod`]: everything that vramguard needs to know of a pod, validated once at the edge.
//!
//! Owns the shape only. `k8s::pod` translates the API object, and the other modules of this tier decide.

use std::collections::BTreeMap;
use std::fmt;

use crate::capacity::gpu::Resource;
use crate::capacity::name::Name;
use crate::capacity::pod::demand::Role;
use crate::capacity::pod::placement::Placement;
use crate::capacity::pod::software::Software;
use crate::capacity::vram::Vram;

pub mod demand;
pub mod placement;
pub mod software;

/// Namespace and name of a pod, displayed as `"ml/llm-0"`.
///
/// While the API server has not generated the name, it ends in `*`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodName {
    /// Namespace.
    pub namespace: Name,
    /// Name, or `generateName` and `*`.
    pub name: Name,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}/{}\"", self.namespace, self.name)
    }
}

/// What a pod requests, what it declares, and where it may be placed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub name: PodName,
    /// Containers in start order: init containers and sidecars, then app containers.
    pub containers: Vec<Container>,
    /// Declarations in its annotations.
    pub declarations: Declarations,
    /// Keys of annotations that only vramguard sets, but that the pod carries.
    pub reserved_annotations: Vec<String>,
    /// What bounds each container, as an earlier `/mutate/pods` wrote it, or anybody: values of
    /// `vramguard.dev/bounded-by.<container>`, by container.
    pub bounded_by: BTreeMap<String, String>,
    /// Keys of annotations with the prefix `vramguard.dev/` that vramguard does not know.
    pub unknown_annotations: Vec<String>,
    /// Constraints on the node.
    pub placement: Placement,
    /// Access to the node that the pod has by itself.
    pub access: HostAccess,
    /// Who created the pod. The annotation of a mirror pod alone is not trusted: see `k8s::pod`.
    pub origin: Origin,
    /// The first part of the pod that exceeds a bound and was not read completely, preferably one that hides GPUs.
    ///
    /// What follows from the unread rest is not known.
    pub excess: Option<Excess>,
}

/// The declarations in a pod's annotations, each as it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declarations {
    /// `vramguard.dev/vram`.
    pub pod: Option<Written>,
    /// `vramguard.dev/vram.<container>`, by container.
    pub containers: BTreeMap<String, Written>,
    /// `vramguard.dev/model`.
    pub model: Option<String>,
    /// KAI's `nvidia.com/container.<container>.gpu-memory.*`, by container: request, limit or both.
    pub foreign: BTreeMap<String, Vec<Written>>,
    /// `vramguard.dev/processes`: the count, or the text if it is not a count.
    pub processes: Option<Result<u32, String>>,
    /// `vramguard.dev/framework`.
    pub framework: Option<String>,
    /// `vramguard.dev/framework.<container>`, by container.
    pub frameworks: BTreeMap<String, String>,
}

/// An amount as it was written in an annotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Key of the annotation.
    pub key: String,
    /// Value of the annotation.
    pub text: String,
    /// The amount, or the reason why the text is not one.
    pub amount: Result<Vram, String>,
}

/// The amount of `vramguard.dev/vram` that Kubernetes counts for these containers.
///
/// A request for zero is `None`, because it tells nothing about what the pod takes.
pub fn requested(containers: &[Container]) -> Option<Vram> {
    let requests = containers.iter().filter_map(|c| Some((c.role, c.vram_request.counted()?)));
    Some(demand::of_pod(requests)).filter(|request| !request.is_zero())
}

impl Pod {
    /// The amount of `vramguard.dev/vram` that Kubernetes counts for the pod: see [`requested`].
    pub fn requested(&self) -> Option<Vram> {
        requested(&self.containers)
    }
}

/// A part of a pod that exceeds a bound and was not read completely.
///
/// The bounds limit the memory that a pod takes here, however the pod is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excess {
    /// Path of the part in the object.
    pub field: String,
    /// Number of its entries; of a name, its length in bytes.
    pub count: usize,
    /// Largest number of entries, or of bytes, that is read.
    pub most: usize,
    /// Whether the unread rest could request a GPU or make one visible.
    pub hides_gpus: bool,
}

/// Access of a pod to its node that does not depend on vramguard.
///
/// Other admission in the cluster, such as Pod Security, decides who may create pods with access to the host. So a
/// tenant cannot claim it, and a user who may create such pods can reach every GPU of the node anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostAccess {
    /// Nothing beyond what a container runtime gives to every container.
    None,
    /// A privileged container, or a host folder that only device plugins, metrics exporters and drivers mount.
    Host,
}

/// Who created a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A user or a controller, through the API.
    Api,
    /// A kubelet, which mirrors a static pod that already runs: refusing the mirror only hides that pod.
    Mirror,
}

/// One container of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Name, unique in the pod.
    pub name: String,
    /// When it runs.
    pub role: Role,
    /// GPU resources that it requests, each with a count above zero.
    pub gpus: Vec<(Resource, u64)>,
    /// Its own request for `vramguard.dev/vram`.
    pub vram_request: VramRequest,
    /// Entries of its environment that vramguard reads or changes, in order.
    pub env: Vec<EnvEntry>,
    /// What it runs. It is recognised only if the container requests a GPU.
    pub software: Software,
}

/// A container's request for the `vramguard.dev/vram` resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VramRequest {
    /// No request.
    Absent,
    /// Limits and requests that are equal: a whole number of MiB.
    Exactly(Vram),
    /// Anything else: limits and requests that differ, a fraction of a MiB, or a text that is not a quantity.
    Irregular {
        /// The request as written, for the message.
        text: String,
        /// What Kubernetes will count, rounded up to MiB; `None` if the text is not a quantity.
        counted: Option<Vram>,
    },
}

impl VramRequest {
    /// The amount that Kubernetes counts for this request.
    pub fn counted(&self) -> Option<Vram> {
        match self {
            VramRequest::Absent => None,
            VramRequest::Exactly(amount) => Some(*amount),
            VramRequest::Irregular { counted, .. } => *counted,
        }
    }
}

/// One entry of a container's environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvEntry {
    /// Name.
    pub name: String,
    /// The literal value; `None` if it comes from a source (`valueFrom`).
    pub value: Option<String>,
    /// Path of the pod's field that the value comes from, if it comes from one (`fieldRef`).
    pub field: Option<String>,
}

impl Container {
    /// The last entry with that name, which is the one that takes effect.
    pub fn env(&self, name: &str) -> Option<&EnvEntry> {
        self.env.iter().rev().find(|entry| entry.name == name)
    }
}
