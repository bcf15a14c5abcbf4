//! [`Finding`]: one result of an audit. Owns its severity, reason, message and remedy; what is found is decided in
//! [`crate::capacity::audit`].

use std::time::Duration;

use super::{Advice, NeverFits, Outdated, Reason, Rerouted, Violation};
use crate::capacity::gpu::{GpuId, Resource, Unknown};
use crate::capacity::name::Name;
use crate::capacity::vram::Vram;

mod about;
mod wording;

/// One result of an audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The object that it is about.
    pub object: Object,
    /// What is the matter.
    pub matter: Matter,
    /// How grave it is.
    pub severity: Severity,
    /// The node, if it is about one that is not the object.
    pub node: Option<Name>,
    /// Number of pods of the object that it applies to; 0 if it is not about pods.
    pub pods: u64,
    /// Where the object is written, if it was read from a file.
    pub place: Option<Place>,
}

/// A Kubernetes object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    /// Its kind.
    pub kind: Name,
    /// Its namespace; empty if it has none.
    pub namespace: Name,
    /// Its name.
    pub name: Name,
}

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file, as it was given.
    pub file: Name,
    /// First line of the object, from 1.
    pub line: u64,
}

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Pods can die, can never run, or are refused by the policy in force.
    Deny,
    /// Something does not work as its author expects, or mode Enforce would refuse it.
    Warn,
    /// Good to know.
    Info,
}

/// A declaration of VRAM for another tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignDeclaration {
    /// The container that it is for; `None` for all of the pod.
    pub container: Option<String>,
    /// Key of the annotation, or name of the resource.
    pub key: String,
    /// Its value.
    pub text: String,
    /// The amount, or why it is not known.
    pub amount: Result<Vram, String>,
    /// The tool.
    pub tool: &'static str,
    /// The annotation that declares the same for vramguard.
    pub ours: String,
    /// What the tool gave the container.
    pub given: Given,
}

/// What another tool gave a container, by that tool's own record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// Nothing yet: the pod is not bound.
    Nothing,
    /// This much, which is what the container holds in a report.
    Counted(Vram),
    /// There is no record that can be read. The container holds what one that declares nothing holds.
    Unrecorded,
}

/// A variable that has no effect, or a dangerous one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvironmentFault {
    /// Name of the container.
    pub container: String,
    /// Name of the variable.
    pub name: String,
    /// The literal value.
    pub value: String,
    /// What is wrong with it, as the end of a sentence, and what to do.
    pub why: &'static str,
    /// Whether it has no effect; else it is dangerous.
    pub is_dead: bool,
}

/// What a finding is about. Each variant has one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Matter {
    /// The pod breaks policy.
    Violation(Violation),
    /// Infrastructure breaks policy: its node would lose its GPUs when it is created again.
    Infrastructure(Violation),
    /// Something to know about a pod that breaks nothing.
    Advice(Advice),
    /// No node that the pod may land on could take it, even when empty.
    NeverFits(NeverFits),
    /// A GPU is overcommitted for certain, or one of a pool may be.
    Overcommitted {
        /// The GPU; `None` if it is one of the pool.
        gpu: Option<GpuId>,
        /// Resource name of the pool.
        resource: Resource,
        /// What is held of the GPU or pool.
        held: Vram,
        /// Allocatable of the GPU or pool.
        allocatable: Vram,
        /// By how much the worst GPU is, or may be, overcommitted.
        by: Vram,
    },
    /// The GPUs of a pool are not known.
    GpusUnknown {
        /// Resource name of the pool.
        resource: Resource,
        /// Why.
        why: Unknown,
    },
    /// The device plugin offers less of a resource than the node has.
    GpusUnusable {
        /// The resource.
        resource: Resource,
        /// What the node has.
        has: u64,
        /// What pods can request together.
        usable: u64,
    },
    /// Pods that request GPUs are bound to a node that was not read, or has none.
    GpusMissing {
        /// A resource that they request.
        resource: Resource,
    },
    /// The device plugin offers more replicas than the pods that run here could use at once.
    TooManyReplicas {
        /// Resource name of the pool.
        resource: Resource,
        /// Replicas of each GPU.
        replicas: u32,
        /// The median demand of the pods of the pool.
        median: Vram,
        /// Allocatable of the smallest GPU.
        allocatable: Vram,
        /// The largest number of replicas of that demand that one GPU holds.
        fits: u64,
    },
    /// Memory is free, and no pod that waits fits in it.
    Stranded {
        /// What is free for one pod.
        free: Vram,
        /// The smallest demand that waits.
        smallest: Vram,
    },
    /// A pod holds memory by a declaration for another tool.
    Foreign(ForeignDeclaration),
    /// A variable has no effect, or a dangerous one.
    Environment(EnvironmentFault),
    /// A pod has a way to a GPU past the device plugin.
    Bypass {
        /// What it is.
        what: String,
    },
    /// A workload may grow beyond what fits.
    ExceedsRoom {
        /// Why it may grow.
        growth: Growth,
        /// Demand of one pod.
        demand: Vram,
        /// Number of pods that it has.
        bound: u64,
        /// Number of pods that it may get.
        wanted: u64,
        /// Number of further pods that fit now for certain.
        fits: u64,
        /// Whether no more than that fit. If not, which GPU a pod gets decides.
        is_exact: bool,
        /// The groups in which it makes its pods; `None` if it makes them one by one.
        groups: Option<Groups>,
    },
    /// No node with the resource is one that the pods of a workload may land on.
    KeptOff {
        /// The resource that they request.
        resource: Resource,
    },
    /// A container requests several GPUs, and no node that its pod may land on has GPUs that are not shared.
    OnlyShared {
        /// Name of the container.
        container: String,
        /// The resource.
        resource: Resource,
        /// How many of them it requests.
        count: u64,
        /// A node that shares them.
        node: String,
        /// How many further nodes do.
        others: usize,
    },
    /// A pod runs in another pool than its own, as the policy allows.
    Rerouted(Rerouted),
    /// What a namespace holds exceeds its quota.
    OverQuota {
        /// Whether the quota is that of the policy; else it is that of a ResourceQuota.
        of_policy: bool,
        /// What its pods hold.
        held: Vram,
        /// The quota.
        quota: Vram,
    },
    /// Claims on a shared GPU take more memory than it can give.
    DeviceOvercommitted {
        /// The device, as `pool/device`.
        device: String,
        /// The sum over its claims.
        held: Vram,
        /// Its memory, as the slice says.
        memory: Vram,
        /// Driver reserve and headroom, which the slice does not take off.
        reserve: Vram,
    },
    /// A claim has a share of a GPU and names no amount of memory.
    ClaimWithoutMemory {
        /// The device, as `pool/device`.
        device: String,
    },
    /// The device plugin and a DRA driver offer GPUs of the same node, and neither knows what the other gave.
    BothWorlds {
        /// The DRA driver.
        driver: Name,
        /// The resource of the device plugin.
        resource: Resource,
    },
    /// A container uses its GPU in another way than it declares.
    Use(Use),
    /// The report of a node's agent is not current.
    AgentStale(Outdated),
    /// The agent of a node cannot read the driver, or a GPU.
    AgentUnreadable {
        /// UUID of the GPU; `None` for all GPUs of the node.
        gpu: Option<Name>,
        /// Why.
        why: String,
    },
}

/// What a node agent found of a container's use. Where it is about several pods of one owner, the amounts are those of the
/// pod of which the most is to be said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// The agent's name of the problem.
    pub reason: Reason,
    /// Name of the container.
    pub container: Name,
    /// The agent's sentence, with what to do.
    pub found: String,
    /// Memory in use; `None` if the driver does not tell.
    pub used: Option<Vram>,
    /// The most that it has used.
    pub peak: Vram,
    /// What it counts with; `None` if it declares nothing.
    pub demand: Option<Vram>,
    /// How long it has computed nothing; `None` if it computes, or if the driver does not tell.
    pub idle: Option<Duration>,
    /// Number of pods of the owner that it is about.
    pub pods: u64,
    /// What these pods use together, as far as known.
    pub together: Vram,
}

/// Why a workload may grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Growth {
    /// `maxReplicas` of this HorizontalPodAutoscaler.
    Autoscaler(Name),
    /// The surge of a rollout.
    Rollout,
    /// Its own `replicas`.
    Replicas,
    /// The `parallelism` of a Job.
    Parallelism,
}

/// The groups in which a workload such as a LeaderWorkerSet makes its pods, as far as they are compared with the room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Which pods of each group these are.
    pub members: Members,
    /// Number of these pods in each group; at least 1.
    pub each: u64,
    /// Whether the other pods of each group need room of a guarded resource too, which is compared apart.
    pub others_need: bool,
}

/// Pods of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Members {
    /// All of them.
    All,
    /// Its first pod.
    Leaders,
    /// All but its first pod.
    Workers,
}

impl Matter {
    /// The machine reason of the finding.
    pub fn reason(&self) -> Reason {
        match self {
            Matter::Violation(violation) => violation.reason(),
            Matter::Infrastructure(_) => Reason::RefusedIfCreated,
            Matter::Advice(advice) => advice.reason(),
            Matter::NeverFits(_) => Reason::NeverFits,
            Matter::Overcommitted { gpu: Some(_), .. } => Reason::GpuOvercommitted,
            Matter::Overcommitted { gpu: None, .. } => Reason::GpuMayBeOvercommitted,
            Matter::GpusUnknown { .. } | Matter::GpusMissing { .. } => Reason::GpusUnknown,
            Matter::GpusUnusable { .. } => Reason::GpusUnusable,
            Matter::TooManyReplicas { .. } => Reason::TooManyReplicas,
            Matter::Stranded { .. } => Reason::VramStranded,
            Matter::Foreign(_) => Reason::ForeignDeclaration,
            Matter::Environment(fault) if fault.is_dead => Reason::DeadEnvironment,
            Matter::Environment(_) => Reason::DangerousEnvironment,
            Matter::Bypass { .. } => Reason::GpuBypass,
            Matter::ExceedsRoom { growth: Growth::Autoscaler(_), .. } => Reason::AutoscalerExceedsRoom,
            Matter::ExceedsRoom { growth: Growth::Rollout, .. } => Reason::RolloutExceedsRoom,
            Matter::ExceedsRoom { growth: Growth::Replicas | Growth::Parallelism, .. } => Reason::ReplicasExceedRoom,
            Matter::KeptOff { .. } => Reason::NoNodeAllowed,
            Matter::OnlyShared { .. } => Reason::OnlySharedGpus,
            Matter::Rerouted(_) => Reason::Rerouted,
            Matter::OverQuota { .. } => Reason::QuotaExceeded,
            Matter::DeviceOvercommitted { held, memory, .. } if held > memory => Reason::DeviceOvercommitted,
            Matter::DeviceOvercommitted { .. } => Reason::DeviceWithoutHeadroom,
            Matter::ClaimWithoutMemory { .. } => Reason::ClaimWithoutMemory,
            Matter::BothWorlds { .. } => Reason::NodeInBothWorlds,
            Matter::Use(found) => found.reason,
            Matter::AgentStale(_) => Reason::AgentStale,
            Matter::AgentUnreadable { .. } => Reason::AgentUnreadable,
        }
    }

    /// What tells this finding from another one of the same reason about the same object: a container, an annotation, a
    /// GPU. It has no amounts, so it is the same in the next report.
    pub fn detail(&self) -> String {
        match self {
            Matter::Violation(violation) | Matter::Infrastructure(violation) => violation.about().unwrap_or_default(),
            Matter::Advice(advice) => advice.about().unwrap_or_default(),
            Matter::NeverFits(_) | Matter::OverQuota { .. } | Matter::Stranded { .. } => String::new(),
            Matter::Overcommitted { gpu, resource, .. } => {
                gpu.as_ref().map_or_else(|| resource.to_string(), |gpu| format!("{resource} {gpu}"))
            }
            Matter::GpusUnknown { resource, .. }
            | Matter::KeptOff { resource }
            | Matter::GpusMissing { resource }
            | Matter::GpusUnusable { resource, .. }
            | Matter::TooManyReplicas { resource, .. } => resource.to_string(),
            Matter::Foreign(declaration) => {
                format!("{} {}", declaration.container.as_deref().unwrap_or_default(), declaration.key)
            }
            Matter::Environment(fault) => format!("{} {}", fault.container, fault.name),
            Matter::OnlyShared { container, resource, .. } => format!("{container} {resource}"),
            Matter::Bypass { what } => what.clone(),
            Matter::Rerouted(rerouted) => rerouted.node.to_string(),
            Matter::ExceedsRoom { growth: Growth::Autoscaler(name), .. } => name.to_string(),
            Matter::ExceedsRoom { .. } => String::new(),
            Matter::DeviceOvercommitted { device, .. } | Matter::ClaimWithoutMemory { device } => device.clone(),
            Matter::BothWorlds { driver, .. } => driver.to_string(),
            Matter::Use(found) => found.container.to_string(),
            Matter::AgentStale(_) => String::new(),
            Matter::AgentUnreadable { gpu, .. } => gpu.as_ref().map(Name::to_string).unwrap_or_default(),
        }
    }

    /// The container that the finding is about.
    pub fn container(&self) -> Option<&str> {
        match self {
            Matter::Violation(violation) | Matter::Infrastructure(violation) => violation.container(),
            Matter::Advice(advice) => advice.container(),
            Matter::Foreign(declaration) => declaration.container.as_deref(),
            Matter::Environment(fault) => Some(&fault.container),
            Matter::OnlyShared { container, .. } => Some(container),
            Matter::Use(found) => Some(&found.container),
            _ => None,
        }
    }

    /// The numbers of the message, each with its unit at the end of its name.
    pub fn numbers(&self) -> Vec<(&'static str, u64)> {
        match self {
            Matter::NeverFits(never) | Matter::Advice(Advice::NeverFits(never)) => {
                vec![("demandMib", never.demand.mib()), ("largestMib", never.largest.most.mib())]
            }
            Matter::Overcommitted { held, allocatable, by, .. } => {
                vec![("heldMib", held.mib()), ("allocatableMib", allocatable.mib()), ("deficitMib", by.mib())]
            }
            Matter::GpusUnusable { has, usable, .. } => vec![("capacity", *has), ("allocatable", *usable)],
            Matter::TooManyReplicas { replicas, median, allocatable, fits, .. } => vec![
                ("replicas", u64::from(*replicas)),
                ("medianDemandMib", median.mib()),
                ("allocatableMib", allocatable.mib()),
                ("fits", *fits),
            ],
            Matter::Stranded { free, smallest } => vec![("freeMib", free.mib()), ("smallestDemandMib", smallest.mib())],
            Matter::Foreign(ForeignDeclaration { amount: Ok(amount), .. }) => {
                vec![("amountMib", amount.mib())]
            }
            Matter::ExceedsRoom { demand, bound, wanted, fits, .. } => {
                vec![("demandMib", demand.mib()), ("pods", *bound), ("wanted", *wanted), ("fitsMore", *fits)]
            }
            Matter::OnlyShared { count, .. } => vec![("requested", *count)],
            Matter::OverQuota { held, quota, .. } => vec![("heldMib", held.mib()), ("quotaMib", quota.mib())],
            Matter::DeviceOvercommitted { held, memory, reserve, .. } => {
                vec![("heldMib", held.mib()), ("memoryMib", memory.mib()), ("headroomMib", reserve.mib())]
            }
            Matter::Use(found) => found.numbers(),
            Matter::AgentStale(Outdated::Old(age)) => vec![("ageSeconds", age.as_secs())],
            _ => Vec::new(),
        }
    }
}

impl Use {
    fn numbers(&self) -> Vec<(&'static str, u64)> {
        let known = [
            ("usedMib", self.used.map(Vram::mib)),
            ("peakMib", Some(self.peak.mib())),
            ("demandMib", self.demand.map(Vram::mib)),
            ("idleSeconds", self.idle.map(|idle| idle.as_secs())),
            ("usedTogetherMib", (self.pods > 1).then(|| self.together.mib())),
        ];
        known.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}
