//! Steering: which devices a container gets, when the kubelet asks before it allocates them. Owns the decision; the
//! node agent carries question and answer.
//!
//! The kubelet does not tell for which container it asks. So a decision has two steps: [`identify()`] finds out who asks,
//! and [`pick()`] chooses devices on the GPU that the ledger reserved. [`Steering`] joins them and remembers what was
//! answered until the API server shows it.

use std::collections::{BTreeMap, BTreeSet};

use crate::capacity::gpu::{GpuId, GpuIndex, Resource};
use crate::capacity::name::{Name, PodUid};
use crate::capacity::pod::PodName;
use crate::capacity::pod::demand::Role;
use crate::capacity::vram::{Balance, Vram};

pub mod identify;
pub mod known;
pub mod pick;
pub mod takeover;
pub mod trust;

use self::identify::{Allocations, Caller, Identity, identify};
use self::pick::{Asker, Choice, Question, pick};

/// What the API server tells about one node: its pods and the free memory of its GPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownNode {
    /// Pods of the node, among them those that ended or were deleted lately.
    pub pods: Vec<KnownPod>,
    /// The guarded resources of the node with their GPUs. `None` until nodes, pods and ledger have been read.
    pub pools: Option<BTreeMap<Resource, Vec<GpuRoom>>>,
}

/// A pod of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPod {
    /// The uid of the pod.
    pub uid: PodUid,
    /// Namespace and name.
    pub name: PodName,
    /// Its containers that request a GPU, in the order in which the kubelet allocates: init containers and sidecars,
    /// then app containers. Empty for a pod without GPU.
    pub containers: Vec<GpuContainer>,
    /// How far the pod is.
    pub phase: Phase,
    /// Whether the API server no longer has the pod. The kubelet may still ask for it.
    pub deleted: bool,
    /// The memory that the pod holds, in MiB; `None` if it is not known.
    pub demand: Option<Vram>,
    /// The GPU that the ledger reserved for the pod; `None` if there is none, or none that is known yet.
    pub reserved: Option<GpuId>,
}

/// A container that requests devices of a GPU resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuContainer {
    /// Name of the container.
    pub name: Name,
    /// When the container runs.
    pub role: Role,
    /// The resource.
    pub resource: Resource,
    /// The number of devices that it requests.
    pub devices: u64,
}

/// How far a pod is, as its status tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No app container has started.
    Pending,
    /// An app container has started.
    Started,
    /// The pod succeeded or failed.
    Ended,
}

/// A GPU and what is left of its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuRoom {
    /// UUID of the GPU, or of the MIG device.
    pub uuid: Name,
    /// Index of the GPU or MIG device on the node.
    pub index: GpuIndex,
    /// Allocatable minus what the pods hold that are on the GPU or have it reserved, in MiB.
    pub room: Balance,
}

impl GpuRoom {
    /// Whether `id` names this GPU, as [`Gpu::has_id`](crate::capacity::gpu::Gpu::has_id).
    pub fn has_id(&self, id: &GpuId) -> bool {
        match id {
            GpuId::Uuid(uuid) => *uuid == self.uuid,
            GpuId::Index(_) => self.index.names(Some(self.uuid.as_str()), id),
        }
    }
}

/// Why an answer is not simply the GPU that the ledger reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fallback {
    /// The resource is not guarded on this node. The device plugin answers.
    Unguarded,
    /// Nodes, pods and ledger have not been read yet. The device plugin answers.
    LedgerUnknown,
    /// The ledger knows none of the GPUs whose devices are available. The device plugin answers.
    GpusUnknown,
    /// No GPU has as many free devices as the container requests. The device plugin answers.
    SeveralGpus,
    /// The question contradicts itself: more devices are requested than are available. The device plugin answers.
    Contradiction,
    /// No container that may be asking is known. It gets the GPU with most free memory.
    NoCandidate,
    /// Several containers may be asking. It gets the GPU with most free memory.
    SeveralCandidates,
    /// The kubelet lists a pod that neither the watch nor the API server knows. It gets the GPU with most free memory.
    PodNotFound,
    /// The ledger has no GPU for the pod: the binding guard did not see its binding. It gets the smallest room that
    /// is large enough.
    NotReserved,
    /// The reserved GPU has no free device. The pod gets the smallest room that is large enough, on another GPU.
    ReservedFull,
    /// No GPU with a free device has room for the pod. It gets the GPU with most free memory.
    NoRoom,
    /// The demand of the pod is not known, and no GPU is reserved. It gets the GPU with most free memory.
    DemandUnknown,
    /// The kubelet did not list its pods in time. The device plugin answers.
    ListFailed,
    /// Devices must be included that the kubelet has not recorded. Listing its pods could make it forget them, so the
    /// device plugin answers.
    Unrecorded,
    /// The decision took too long. The device plugin answers.
    Late,
    /// The decision failed because of a defect in vramguard. The device plugin answers.
    Internal,
}

impl Fallback {
    /// All reasons, in the order of their declaration.
    pub const ALL: [Fallback; 16] = [
        Fallback::Unguarded,
        Fallback::LedgerUnknown,
        Fallback::GpusUnknown,
        Fallback::SeveralGpus,
        Fallback::Contradiction,
        Fallback::NoCandidate,
        Fallback::SeveralCandidates,
        Fallback::PodNotFound,
        Fallback::NotReserved,
        Fallback::ReservedFull,
        Fallback::NoRoom,
        Fallback::DemandUnknown,
        Fallback::ListFailed,
        Fallback::Unrecorded,
        Fallback::Late,
        Fallback::Internal,
    ];

    /// The name of the reason in metrics and logs. It is the name of the variant.
    pub fn label(self) -> &'static str {
        match self {
            Fallback::Unguarded => "Unguarded",
            Fallback::LedgerUnknown => "LedgerUnknown",
            Fallback::GpusUnknown => "GpusUnknown",
            Fallback::SeveralGpus => "SeveralGpus",
            Fallback::Contradiction => "Contradiction",
            Fallback::NoCandidate => "NoCandidate",
            Fallback::SeveralCandidates => "SeveralCandidates",
            Fallback::PodNotFound => "PodNotFound",
            Fallback::NotReserved => "NotReserved",
            Fallback::ReservedFull => "ReservedFull",
            Fallback::NoRoom => "NoRoom",
            Fallback::DemandUnknown => "DemandUnknown",
            Fallback::ListFailed => "ListFailed",
            Fallback::Unrecorded => "Unrecorded",
            Fallback::Late => "Late",
            Fallback::Internal => "Internal",
        }
    }
}

/// The largest number of answers that are remembered. A node runs some hundred pods.
const MAX_ANSWERS: usize = 4_096;

/// The decisions on one node, with the memory of those that the API server does not show yet.
#[derive(Debug, Default)]
pub struct Steering {
    /// The GPU that each container was given, oldest first.
    answers: Vec<Answer>,
    /// The GPUs that were given to callers that were not known, since the view changed. It contains neither them nor what
    /// they take.
    unknown: Vec<Name>,
}

#[derive(Debug)]
struct Answer {
    pod: PodUid,
    container: Name,
    gpu: Name,
}

/// A decision on one question of the kubelet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The container that asks, if it is known.
    pub caller: Option<CallerName>,
    /// The GPU that it should get; `None` if there is none.
    pub wanted: Option<GpuId>,
    /// What is answered.
    pub choice: Choice,
}

/// The names of a container and its pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallerName {
    /// The uid of the pod.
    pub uid: PodUid,
    /// Namespace and name of the pod.
    pub pod: PodName,
    /// Name of the container.
    pub container: Name,
}

/// A decision, or the pods that must be read from the API server before there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The decision.
    Decided(Decision),
    /// Read these pods and the ledger once from the API server, replace them in the view, and decide again. The kubelet
    /// lists a pod that no watch has shown, or one for which no GPU is reserved in the ledger as it is known.
    Read(Vec<PodName>),
}

/// Whether pods and ledger may still be read from the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// They have not been read.
    Due,
    /// They have been read, and what was found is in the view.
    Done,
}

impl Steering {
    /// Decides which devices a container of `resource` gets.
    pub fn decide(
        &self,
        resource: &Resource,
        question: &Question<'_>,
        node: &KnownNode,
        allocations: &Allocations,
        reading: Reading,
    ) -> Step {
        let stock = |why| Step::Decided(Decision { caller: None, wanted: None, choice: Choice::Stock(why) });
        let Some(pools) = &node.pools else { return stock(Fallback::LedgerUnknown) };
        let Some(gpus) = pools.get(resource) else { return stock(Fallback::Unguarded) };
        let answered = self.answered();
        let unplaced = self.unplaced(node, gpus);
        let unknown = |why| Decision {
            caller: None,
            wanted: None,
            choice: pick(question, &Asker::Unknown { why, before: self.unknown.clone() }, gpus, &unplaced),
        };
        match identify(resource, question.size, allocations, &node.pods, &answered) {
            // The watch of the ledger may be behind the kubelet, which learned of the pod by another one.
            Identity::Caller(caller) if reading == Reading::Due && caller.pod.reserved.is_none() => {
                Step::Read(vec![caller.pod.name.clone()])
            }
            Identity::Caller(caller) => {
                let wanted = self.wanted(&caller, question, gpus);
                let asker = Asker::Known { demand: caller.pod.demand, wanted: wanted.clone() };
                let choice = pick(question, &asker, gpus, &unplaced);
                Step::Decided(Decision { caller: Some(CallerName::of(&caller)), wanted, choice })
            }
            Identity::Unlisted(names) if reading == Reading::Due => Step::Read(names),
            Identity::Unlisted(_) => Step::Decided(unknown(Fallback::PodNotFound)),
            Identity::None => Step::Decided(unknown(Fallback::NoCandidate)),
            Identity::Several => Step::Decided(unknown(Fallback::SeveralCandidates)),
        }
    }

    /// Remembers a decision whose devices were answered.
    pub fn remember(&mut self, decision: &Decision) {
        let Choice::Devices { gpu, .. } = &decision.choice else { return };
        let Some(caller) = &decision.caller else {
            if self.unknown.len() < MAX_ANSWERS {
                self.unknown.push(gpu.clone());
            }
            return;
        };
        self.answers.retain(|answer| answer.pod != caller.uid || answer.container != caller.container);
        if self.answers.len() == MAX_ANSWERS {
            self.answers.remove(0);
        }
        let answer = Answer { pod: caller.uid.clone(), container: caller.container.clone(), gpu: gpu.clone() };
        self.answers.push(answer);
    }

    /// Forgets the answers to pods that the view does not contain.
    pub fn retain(&mut self, node: &KnownNode) {
        let known: BTreeSet<&PodUid> = node.pods.iter().map(|pod| &pod.uid).collect();
        self.answers.retain(|answer| known.contains(&answer.pod));
        self.unknown.clear();
    }

    fn answered(&self) -> BTreeSet<(PodUid, Name)> {
        self.answers.iter().map(|answer| (answer.pod.clone(), answer.container.clone())).collect()
    }

    /// The GPU that a container should get. The first that exists decides: the GPU of devices that it must include,
    /// that of an earlier container of its pod, the reserved one. So one pod stays on one GPU, even if it was moved.
    fn wanted(&self, caller: &Caller<'_>, question: &Question<'_>, gpus: &[GpuRoom]) -> Option<GpuId> {
        let of_container = |gpu: &str| gpus.iter().find(|room| room.uuid == *gpu).map(|room| room.uuid.clone());
        let included = question.must_include.first().and_then(|id| of_container(pick::gpu_of(id)));
        let earlier = || {
            let mut answers = self.answers.iter().rev();
            answers.find(|answer| answer.pod == caller.pod.uid).map(|answer| answer.gpu.clone())
        };
        included.or_else(earlier).map(GpuId::Uuid).or_else(|| caller.pod.reserved.clone())
    }

    /// The demands that the rooms do not contain yet: of pods that were given another GPU than the reserved one.
    fn unplaced(&self, node: &KnownNode, gpus: &[GpuRoom]) -> Vec<(Name, Vram)> {
        let moved = |pod: &KnownPod| {
            if pod.phase == Phase::Ended || pod.deleted {
                return None;
            }
            let given = self.answers.iter().rev().find(|answer| answer.pod == pod.uid)?;
            let counted = pod.reserved.as_ref().and_then(|id| gpus.iter().find(|gpu| gpu.has_id(id)));
            let elsewhere = counted.is_none_or(|counted| counted.uuid != given.gpu);
            Some((given.gpu.clone(), pod.demand.filter(|_| elsewhere)?))
        };
        node.pods.iter().filter_map(moved).collect()
    }
}

impl CallerName {
    fn of(caller: &Caller<'_>) -> CallerName {
        CallerName {
            uid: caller.pod.uid.clone(),
            pod: caller.pod.name.clone(),
            container: caller.container.name.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
