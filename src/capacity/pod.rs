//! [`Pod`]: everything vramguard wants to know of a pod, validated once at the edge. Owns the shape only; the
//! translation from the API object is `k8s::pod`, the decisions are the other modules of this tier.

use std::fmt;

use super::declaration::Declarations;
use super::demand::Role;
use super::gpu::Resource;
use super::name::Name;
use super::placement::Placement;
use super::vram::Vram;

/// Namespace and name, written `"ml/llm-0"`. The name ends in `*` while the API server has not generated it yet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodName {
    /// Namespace.
    pub namespace: Name,
    /// Name, or generateName and `*`.
    pub name: Name,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}/{}\"", self.namespace, self.name)
    }
}

/// What a pod asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub name: PodName,
    /// In start order: init containers and sidecars, then app containers.
    pub containers: Vec<Container>,
    /// What its annotations declare.
    pub declarations: Declarations,
    /// Annotations that only vramguard sets, found on it.
    pub reserved_annotations: Vec<String>,
    /// Annotations under our prefix that mean nothing.
    pub unknown_annotations: Vec<String>,
    /// Where it may land.
    pub placement: Placement,
    /// What it reaches of its node by itself.
    pub access: HostAccess,
    /// Whether it comes from a kubelet's own manifest. The annotation alone does not make it one: see `k8s::pod`.
    pub origin: Origin,
    /// The first part of it that is larger than what was read; what follows from the rest is not known.
    pub excess: Option<Excess>,
}

/// A part of a pod of which not all was read, so that no pod, however it is written, takes more than a bounded memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excess {
    /// Its path in the object.
    pub field: String,
    /// How many entries it has; of a name, how many bytes.
    pub count: usize,
    /// How many are read at most.
    pub most: usize,
    /// Whether what was not read could request a GPU or show one.
    pub hides_gpus: bool,
}

/// What a pod reaches of its node, whatever vramguard says. The admission of the cluster (Pod Security, say) decides who may
/// create such pods, so a tenant cannot claim it; and who may has every GPU of the node within reach anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostAccess {
    /// Nothing beyond what a container runtime gives to any container.
    None,
    /// A privileged container, or a folder of the node that only device plugins, exporters of metrics and drivers mount.
    Host,
}

/// Who made a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A user or a controller, through the API.
    Api,
    /// A kubelet mirrors a static pod that already runs: refusing it only hides it.
    Mirror,
}

/// One container of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its name, unique in the pod.
    pub name: String,
    /// When it runs.
    pub role: Role,
    /// GPU resources it requests, each with the count, which is above zero.
    pub gpus: Vec<(Resource, u64)>,
    /// Its own `vramguard.dev/vram` request.
    pub vram_request: VramRequest,
    /// The entries of its environment that vramguard has a say in, in order.
    pub env: Vec<EnvEntry>,
}

/// A container's request for the `vramguard.dev/vram` resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VramRequest {
    /// None.
    Absent,
    /// Limits and requests alike, a whole number of MiB.
    Exactly(Vram),
    /// Anything else: limits and requests that differ, a fraction of a MiB, or no quantity at all.
    Odd {
        /// As written, for the message.
        text: String,
        /// What Kubernetes will count, rounded up; `None` where it is no quantity.
        counted: Option<Vram>,
    },
}

impl VramRequest {
    /// What Kubernetes counts for it.
    pub fn counted(&self) -> Option<Vram> {
        match self {
            VramRequest::Absent => None,
            VramRequest::Exactly(amount) => Some(*amount),
            VramRequest::Odd { counted, .. } => *counted,
        }
    }
}

/// One entry of a container's environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvEntry {
    /// Name.
    pub name: String,
    /// The literal value, or `None` where it is taken from elsewhere (`valueFrom`).
    pub value: Option<String>,
    /// The field of the pod that it is taken from, where it is one.
    pub field: Option<String>,
}

impl Container {
    /// The last entry of that name, which is the one that counts.
    pub fn env(&self, name: &str) -> Option<&EnvEntry> {
        self.env.iter().rev().find(|entry| entry.name == name)
    }
}
