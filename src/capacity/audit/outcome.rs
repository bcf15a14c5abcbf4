//! [`Audit`]: the results of an audit. Owns their shapes and the totals.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::capacity::gpu::{Accounting, Resource};
use crate::capacity::name::Name;
use crate::capacity::node::inventory::Source;
use crate::capacity::observation::finding::Problem;
use crate::capacity::pod::PodName;
use crate::capacity::policy::Mode;
use crate::capacity::time::Moment;
use crate::capacity::verdict::finding::{Finding, Object};
use crate::capacity::verdict::{BoundedBy, Outdated, Violation};
use crate::capacity::vram::Vram;

/// The results of an audit. All amounts are in MiB.
#[derive(Clone, Debug, Default)]
pub struct Audit {
    /// Each GPU whose size is known, by node, resource and index.
    pub gpus: Vec<GpuState>,
    /// Each node with GPUs, by name.
    pub nodes: Vec<NodeState>,
    /// Each namespace with pods or templates that request GPUs, by name.
    pub namespaces: Vec<NamespaceState>,
    /// Each workload that requests shared GPUs.
    pub workloads: Vec<WorkloadState>,
    /// The findings, most severe first, then by reason and object.
    pub findings: Vec<Finding>,
    /// What mode Enforce would change.
    pub enforced: Enforced,
    /// The totals.
    pub totals: Totals,
}

/// How a GPU is shared and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sharing {
    /// Behind a resource of the device plugin, counted in this mode.
    Plugin(Accounting),
    /// By claims, through dynamic resource allocation.
    Claims,
}

/// State of a GPU or a node, the best first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Room is left.
    #[default]
    Ok,
    /// Nothing more fits.
    Full,
    /// The GPUs are not known.
    Unknown,
    /// A GPU may be overcommitted.
    MaybeOvercommitted,
    /// A GPU is overcommitted.
    Overcommitted,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuState {
    /// Name of the node.
    pub node: String,
    /// Identity on the node.
    pub id: String,
    /// The resource that containers request, or the DRA driver.
    pub resource: String,
    /// Product name, from the node's labels.
    pub product: Option<String>,
    /// How it is shared and counted.
    pub sharing: Sharing,
    /// Replicas that the device plugin makes of it.
    pub replicas: u32,
    /// All its memory.
    pub total: Vram,
    /// What pods can be given.
    pub allocatable: Vram,
    /// What the driver and the headroom take.
    pub headroom: Vram,
    /// What the pods that are known to be on it hold.
    pub held: Vram,
    /// The largest demand that fits now; `None` if known for the node only.
    pub free: Option<Vram>,
    /// State of the GPU.
    pub state: State,
    /// The containers that are known to be on it.
    pub holders: Vec<Held>,
    /// What is really used of it.
    pub in_use: GpuUse,
}

/// What is really used of a GPU, as the agent of its node reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuUse {
    /// Memory in use, without what the driver keeps; `None` if not known.
    pub used: Option<Vram>,
    /// What of it no pod counts with; `None` if not known.
    pub outside: Option<Vram>,
    /// Why these amounts are not current; `None` if they are, or if there are none.
    pub outdated: Option<Outdated>,
}

/// What a container really uses, as the agent of its node reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HolderUse {
    /// Memory in use; `None` if the driver does not tell.
    pub used: Option<Vram>,
    /// The most that it has used.
    pub peak: Vram,
    /// How long none of its processes has computed; `None` if one does, or if the driver does not tell.
    pub idle: Option<Duration>,
    /// What the agent found wrong.
    pub problem: Option<Problem>,
    /// Why these amounts are not current; `None` if they are.
    pub outdated: Option<Outdated>,
}

/// The agent of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentState {
    /// When it reported last; `None` if its report names no time.
    pub reported: Option<Moment>,
    /// Where it reads the GPUs, which decides whether it can tell what a pod uses.
    pub source: Source,
    /// How long ago that is; `None` if not known.
    pub age: Option<Duration>,
    /// Why what it reported is not current; `None` if it is.
    pub outdated: Option<Outdated>,
}

/// One container that holds memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The pod.
    pub pod: PodName,
    /// The container.
    pub container: Name,
    /// What it counts as; `None` if not known.
    pub amount: Option<Vram>,
    /// Whether it declares or requests an amount.
    pub declared: bool,
    /// Whether it counts as what it was seen to use, because its pod declares nothing and it uses more than its slots.
    pub seen: bool,
    /// What bounds it; `None` if it takes no part of a shared GPU, or if its pod was not read.
    pub bounded_by: Option<BoundedBy>,
    /// What it really uses; `None` if no agent has seen it on a GPU.
    pub in_use: Option<HolderUse>,
}

/// One node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeState {
    /// Its name.
    pub name: String,
    /// The least certain accounting mode of its pools; `None` if only DRA devices are known.
    pub accounting: Option<Accounting>,
    /// Product name, from its labels.
    pub product: Option<String>,
    /// Its GPU resources.
    pub resources: Vec<Resource>,
    /// Number of its GPUs whose size is known.
    pub gpus: usize,
    /// What it should publish; `None` if nothing on it is shared.
    pub published: Option<Vram>,
    /// What further pods may request together; `None` if nothing on it is shared.
    pub placeable: Option<Vram>,
    /// Allocatable of all its GPUs; `None` if the GPUs of a pool are not known.
    pub allocatable: Option<Vram>,
    /// What its pods hold, as far as that is known.
    pub held: Vram,
    /// The largest demand of one more pod; `None` if the GPUs of a pool are not known.
    pub free: Option<Vram>,
    /// The most that one pod can ever get; `None` if not known.
    pub pod_max: Option<Vram>,
    /// Free, and smaller than the smallest demand that waits; `None` if none waits.
    pub stranded: Option<Vram>,
    /// Pods that hold a GPU here.
    pub pods: usize,
    /// Pods that hold a shared GPU here and declare nothing.
    pub undeclared: usize,
    /// The containers whose GPU is not known.
    pub unassigned: Vec<Held>,
    /// Why the GPUs of a pool are not known.
    pub unknown: Option<String>,
    /// State of the node.
    pub state: State,
    /// Its agent; `None` if none has reported.
    pub agent: Option<AgentState>,
}

/// One namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceState {
    /// Its name.
    pub name: Name,
    /// Mode in force; `None` if it is exempt.
    pub mode: Option<Mode>,
    /// What its pods on nodes declare or request, as far as the amounts are known.
    pub declared: Vram,
    /// What its pods on nodes hold, as far as the amounts are known.
    pub held: Vram,
    /// The smaller of the policy's quota and that of its ResourceQuotas.
    pub quota: Option<Vram>,
    /// Pods on nodes.
    pub pods: usize,
    /// Those of them that declare nothing.
    pub undeclared: usize,
    /// Pods that mode Enforce would refuse.
    pub refused: usize,
    /// Pods without a node that request a GPU.
    pub waiting: usize,
}

/// One workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadState {
    /// The workload.
    pub object: Object,
    /// Demand of one pod; `None` if not known.
    pub demand: Option<Vram>,
    /// Pods that it should have now. Of a workload that makes groups, these are the pods that decide how many fit.
    pub replicas: u64,
    /// The most that it may have.
    pub most: u64,
    /// How many more of its pods fit now for certain, counted up to what it may have; `None` if the demand is not known.
    pub fits: Option<u64>,
}

/// What mode Enforce would change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Enforced {
    /// Pods that would be refused, with all violations.
    pub refused: Vec<(PodName, Vec<Violation>)>,
    /// Running pods that would wait, each with its node.
    pub waiting: Vec<(PodName, Name)>,
    /// Running pods that would be on another node: pod, node and the other node.
    pub elsewhere: Vec<(PodName, Name, String)>,
}

/// The totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// GPUs whose size is known.
    pub gpus: usize,
    /// GPUs that are overcommitted.
    pub overcommitted: usize,
    /// What is held beyond the allocatable of its GPU, for certain.
    pub overcommitted_by: Vram,
    /// Nodes with GPUs.
    pub nodes: usize,
    /// Nodes on which a GPU may be overcommitted.
    pub maybe_overcommitted: usize,
    /// Nodes whose GPUs are not known.
    pub unknown: usize,
    /// Pods that hold a GPU.
    pub pods: usize,
    /// Pods without a node that request a GPU.
    pub waiting: usize,
    /// Pods that hold a shared GPU and declare nothing.
    pub undeclared: usize,
    /// Pods that mode Enforce would refuse.
    pub refused: usize,
    /// Allocatable of all known GPUs.
    pub allocatable: Vram,
    /// Held on all nodes.
    pub held: Vram,
    /// Free, and smaller than the smallest demand that waits; `None` if none waits.
    pub stranded: Option<Vram>,
    /// In use on the GPUs whose agents report currently; `None` if there is no such GPU.
    pub used: Option<Vram>,
    /// Number of these GPUs.
    pub used_gpus: usize,
}

impl Totals {
    pub(super) fn of(gpus: &[GpuState], nodes: &[NodeState], refused: usize, waiting: usize) -> Totals {
        // A GPU that several resources offer is used once.
        let current = gpus.iter().filter(|gpu| gpu.in_use.outdated.is_none());
        let used: BTreeMap<(&str, &str), Vram> =
            current.filter_map(|gpu| Some(((&*gpu.node, &*gpu.id), gpu.in_use.used?))).collect();
        let in_state = |state| nodes.iter().filter(|node| node.state == state).count();
        Totals {
            gpus: gpus.len(),
            overcommitted: gpus.iter().filter(|gpu| gpu.state == State::Overcommitted).count(),
            overcommitted_by: gpus.iter().filter_map(|gpu| gpu.allocatable.minus(gpu.held).deficit()).sum(),
            nodes: nodes.len(),
            maybe_overcommitted: in_state(State::MaybeOvercommitted),
            unknown: nodes.iter().filter(|node| node.unknown.is_some()).count(),
            pods: nodes.iter().map(|node| node.pods).sum(),
            waiting,
            undeclared: nodes.iter().map(|node| node.undeclared).sum(),
            refused,
            allocatable: gpus.iter().map(|gpu| gpu.allocatable).sum(),
            held: nodes.iter().map(|node| node.held).sum(),
            stranded: nodes.iter().filter_map(|node| node.stranded).reduce(Vram::plus),
            used: used.values().copied().reduce(Vram::plus),
            used_gpus: used.len(),
        }
    }
}
