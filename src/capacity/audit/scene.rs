//! [`Scene`]: what an audit looks at. Owns the shapes; [`crate::k8s`] fills them from objects.

use std::collections::BTreeMap;

use crate::capacity::cluster::Cluster;
use crate::capacity::gpu::Resource;
use crate::capacity::name::{Name, PodUid};
use crate::capacity::node::inventory::Source;
use crate::capacity::observation::{self, containers::ContainerKey};
use crate::capacity::pod::Pod;
use crate::capacity::policy::Policies;
use crate::capacity::time::Moment;
use crate::capacity::verdict::finding::{EnvironmentFault, ForeignDeclaration, Members, Object, Place};
use crate::capacity::vram::Vram;

/// A cluster at one moment, or manifests that are to be applied to one.
#[derive(Debug)]
pub struct Scene {
    /// Nodes with GPUs, and the pods on them.
    pub cluster: Cluster,
    /// The policies in force.
    pub policies: Policies,
    /// Whether vramguard publishes memory on a node, so that kube-scheduler counts it.
    pub installed: bool,
    /// Pods and templates of pods that request GPUs, or that an audit has something to say about.
    pub subjects: Vec<Subject>,
    /// Workloads with a template that requests a GPU.
    pub workloads: Vec<Workload>,
    /// Hard limit on `vramguard.dev/vram` by namespace; the smallest if there are several ResourceQuotas.
    pub quotas: BTreeMap<String, Vram>,
    /// GPUs that are shared through dynamic resource allocation (DRA).
    pub devices: Vec<SharedDevice>,
    /// Resources of nodes of which pods can request less than there is.
    pub unusable: Vec<Unusable>,
    /// What node agents reported of what is really used, by node. A node without an agent has no entry.
    pub observed: BTreeMap<String, Observed>,
    /// When the cluster was read, or the newest time that files name; `None` if they name none. The age of a report is
    /// counted up to it.
    pub at: Option<Moment>,
}

/// What the agent of one node reported of what is really used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// When the agent wrote it; `None` if it names no time.
    pub reported: Option<Moment>,
    /// Where the agent reads the GPUs.
    pub source: Source,
    /// Why the agent cannot read the driver at present, or why its report cannot be read. The other values are those that
    /// were read last.
    pub unreadable: Option<String>,
    /// Each GPU. A GPU that several resources offer is listed once.
    pub gpus: Vec<ObservedGpu>,
    /// Each container that was seen on a GPU. Its pod may have ended since.
    pub containers: BTreeMap<ContainerKey, ObservedContainer>,
}

/// What is used of one GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedGpu {
    /// Its UUID.
    pub uuid: Name,
    /// Memory in use, without what the driver keeps; `None` if not known.
    pub used: Option<Vram>,
    /// Memory that no pod counts with; `None` if not known.
    pub outside: Option<Vram>,
    /// Why the GPU cannot be read at present; its amounts are then those read last.
    pub unreadable: Option<String>,
}

/// What one container uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedContainer {
    /// Memory that it uses; `None` if the driver does not tell.
    pub used: Option<Vram>,
    /// The most that it has used.
    pub peak: Vram,
    /// Since when none of its processes computes; `None` if one does, or if the driver does not tell.
    pub idle_since: Option<Moment>,
    /// UUID of the GPU on which it uses most.
    pub gpu: Name,
    /// What it counts with, as the agent knows it; `None` if it declares nothing.
    pub demand: Option<Vram>,
    /// What the agent found wrong with that.
    pub finding: Option<observation::finding::Finding>,
}

/// A GPU resource of which the device plugin offers less than the node has, or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    /// The node.
    pub node: Name,
    /// The resource.
    pub resource: Resource,
    /// What the node has, by its capacity, or by its labels where the capacity is zero too.
    pub has: u64,
    /// What pods can request together: `status.allocatable`. It is less than `has`.
    pub usable: u64,
}

impl Scene {
    /// Whether there is a cluster, and not only manifests.
    pub fn has_nodes(&self) -> bool {
        self.cluster.node_names().next().is_some()
    }
}

/// One pod, or the template of a workload.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The pod.
    pub pod: Pod,
    /// Its uid; that of a template is empty.
    pub uid: PodUid,
    /// Where it is in its life.
    pub stage: Stage,
    /// The object that findings are about: the topmost workload that owns the pod, or the pod itself.
    pub object: Object,
    /// Kind of the pod's direct owner; `DaemonSet` marks what may be infrastructure. `None` without an owner.
    pub owner_kind: Option<Name>,
    /// Where the object is written, if it was read from a file.
    pub place: Option<Place>,
    /// Declarations for other tools.
    pub foreign: Vec<ForeignDeclaration>,
    /// Variables that have no effect, or a dangerous one.
    pub environment: Vec<EnvironmentFault>,
    /// Ways to a GPU past the device plugin, each as what it is: `hostPath volume /dev/nvidia0`.
    pub bypasses: Vec<String>,
}

/// Where a pod is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It is the template of a workload, and no pod.
    Template,
    /// It has no node yet.
    Waiting,
    /// It is bound to this node and has not ended.
    Bound(Name),
}

/// A workload that makes pods from a template.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The workload.
    pub object: Object,
    /// Its templates: one, or those of the leaders and of the workers of its groups.
    pub templates: Vec<Template>,
    /// Number of replicas that it should have now: pods, or groups of pods.
    pub replicas: u64,
    /// Number of replicas that a rollout adds while it lasts; 0 if it replaces them in place.
    pub surge: u64,
    /// `maxReplicas` and name of the HorizontalPodAutoscaler that scales it.
    pub autoscaler: Option<(Name, u64)>,
}

/// A template of a workload.
#[derive(Clone, Debug)]
pub struct Template {
    /// Its index in [`Scene::subjects`].
    pub subject: usize,
    /// Which pods of each group are made of it; `None` if the replicas are pods.
    pub members: Option<Members>,
    /// Number of pods in each replica that are made of it.
    pub each: u64,
    /// Number of its pods that are bound now.
    pub bound: u64,
}

/// A GPU that several claims may share, by a ResourceSlice with `allowMultipleAllocations`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedDevice {
    /// Node of the device; `None` if the slice is not for one node.
    pub node: Option<Name>,
    /// DRA driver, such as `gpu.nvidia.com`.
    pub driver: Name,
    /// Pool of the device.
    pub pool: Name,
    /// Name of the device in its pool.
    pub device: Name,
    /// Name of the ResourceSlice that offers it.
    pub slice: Name,
    /// Its memory, as the slice says; `None` if the slice has none that can be read.
    pub memory: Option<Vram>,
    /// The claims that it is allocated to.
    pub claims: Vec<DeviceClaim>,
}

/// One ResourceClaim that has a share of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceClaim {
    /// Namespace of the claim.
    pub namespace: Name,
    /// Name of the claim.
    pub name: Name,
    /// The memory that it consumes, by `consumedCapacity`; `None` if it names none.
    pub memory: Option<Vram>,
    /// The pods that it is reserved for.
    pub pods: Vec<Name>,
}
