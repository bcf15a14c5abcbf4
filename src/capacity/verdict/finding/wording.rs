//! The message and the remedy of each finding.

use std::fmt;

use super::{ForeignDeclaration, Given, Groups, Growth, Matter, Members, Object};
use crate::capacity::gpu::Unknown;
use crate::capacity::verdict::{Advice, Violation, count, matter_and_advice, quoted};

/// The message: what is the matter, with the numbers.
impl fmt::Display for Matter {
    #[expect(clippy::too_many_lines, reason = "one arm for each sentence, and no catch-all")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Matter::Violation(violation) => write!(f, "{violation}"),
            Matter::Infrastructure(violation) => {
                write!(f, "infrastructure that mode Enforce would refuse when its node is replaced: {violation}")
            }
            Matter::Advice(advice) => write!(f, "{advice}"),
            Matter::NeverFits(never) => write!(f, "waits until the cluster changes: {never}"),
            Matter::Overcommitted { gpu: Some(gpu), resource, held, allocatable, by } => write!(
                f,
                "GPU {gpu} of {resource}: {held} held of {allocatable} allocatable, {by} more than it has; its pods can run out \
                 of memory at any time"
            ),
            Matter::Overcommitted { gpu: None, resource, held, allocatable, by } => write!(
                f,
                "one GPU of {resource} may be overcommitted by up to {by}, depending on which pod is on which GPU: {held} of \
                 {allocatable} held in all"
            ),
            Matter::GpusUnknown { resource, why } => {
                write!(f, "{resource}: {why}, so what fits on its GPUs is not known")
            }
            Matter::GpusMissing { resource } => {
                write!(f, "pods that request {resource} are bound here, and the node was not read or does not offer it")
            }
            Matter::GpusUnusable { resource, has, usable: 0 } => write!(
                f,
                "none of {has} {resource} can be requested (allocatable 0): the device plugin does not run, or all its devices \
                 are unhealthy; no new pod gets a GPU here"
            ),
            Matter::GpusUnusable { resource, has, usable } => write!(
                f,
                "only {usable} of {has} {resource} can be requested (allocatable): the device plugin reports the others as \
                 unhealthy"
            ),
            Matter::TooManyReplicas { resource, replicas, median, allocatable, fits } => write!(
                f,
                "the device plugin offers {replicas} replicas of each GPU of {resource}, but its {allocatable} hold {} of the \
                 median demand here, {median}; without a guard, kube-scheduler places {replicas}",
                pods(*fits)
            ),
            Matter::Stranded { free, smallest } => {
                write!(f, "{free} are free for one pod, and the smallest demand that waits is {smallest}")
            }
            Matter::Foreign(ForeignDeclaration { container, key, text, amount, tool, given, .. }) => {
                if let Some(container) = container {
                    write!(f, "container {container:?}: ")?;
                }
                write!(f, "{key}: {} is for {tool}, and the stock scheduler does not count it", quoted(text))?;
                match amount {
                    Ok(amount) => write!(f, "; it means {amount}"),
                    Err(why) => write!(f, "; it {why}"),
                }?;
                match given {
                    Given::Nothing => Ok(()),
                    Given::Counted(amount) => {
                        write!(f, "; by {tool}'s record it holds {amount}, which counts here, without an overhead")
                    }
                    Given::Unrecorded => {
                        write!(
                            f,
                            "; no record of {tool} says what it holds, so it counts as a container that declares nothing"
                        )
                    }
                }
            }
            Matter::Environment(fault) => {
                write!(f, "container {:?} sets {}={}, {}", fault.container, fault.name, quoted(&fault.value), fault.why)
            }
            Matter::Bypass { what } => {
                write!(f, "reaches GPUs past the device plugin: {}; what it takes is not counted", quoted(what))
            }
            Matter::ExceedsRoom { growth, demand, bound, wanted, fits, is_exact, groups } => {
                let wanted = groups.map_or_else(|| pods(*wanted), |groups| in_groups(*wanted, groups));
                match growth {
                    Growth::Autoscaler(name) => {
                        write!(f, "HorizontalPodAutoscaler {name:?} may scale it to {wanted}")?;
                    }
                    Growth::Rollout => write!(f, "a rollout needs {wanted} at a time")?,
                    Growth::Replicas => write!(f, "it should have {wanted}")?,
                    Growth::Parallelism => write!(f, "a run needs {wanted} at a time")?,
                }
                let certain = if *is_exact { "" } else { " for certain" };
                write!(f, " of {demand}; {bound} run, and {fits} more fit now{certain}")
            }
            Matter::KeptOff { resource } => {
                write!(f, "no node that has {resource} is one that its pods may land on, so none of them can run")
            }
            Matter::OnlyShared { container, resource, count: requested, node, others } => {
                write!(
                    f,
                    "container {container:?} requests {requested} of {resource}, and no node that its pod may land on has GPUs that \
                     are not shared: node {node:?}"
                )?;
                if *others > 0 {
                    write!(f, " and {} share theirs", count(*others, "other"))?;
                } else {
                    f.write_str(" shares them")?;
                }
                f.write_str(
                    "; several replicas may be one GPU, so such a pod is kept off these nodes, and a device plugin with \
                     failRequestsGreaterThanOne fails it",
                )
            }
            Matter::Rerouted(rerouted) => write!(f, "{rerouted}"),
            Matter::OverQuota { of_policy: true, held, quota } => {
                write!(f, "its pods hold {held}, above the policy's quota of {quota}")
            }
            Matter::OverQuota { of_policy: false, held, quota } => write!(
                f,
                "its pods hold {held}, above the {quota} of its ResourceQuota, which counts no pod without a request for VRAM"
            ),
            Matter::DeviceOvercommitted { device, held, memory, .. } if held > memory => {
                write!(f, "device {device:?}: its claims take {held} of {memory}")
            }
            Matter::DeviceOvercommitted { device, held, memory, reserve } => write!(
                f,
                "device {device:?}: its claims take {held} of {memory}, of which the driver and CUDA contexts need some {reserve}"
            ),
            Matter::ClaimWithoutMemory { device } => {
                write!(f, "it has a share of device {device:?} and names no amount of memory, so it counts as nothing")
            }
            Matter::BothWorlds { driver, resource } => write!(
                f,
                "the device plugin offers {resource}, and DRA driver {driver} offers GPUs of the same node; neither knows \
                 what the other gave"
            ),
            Matter::Use(found) => {
                f.write_str(matter_and_advice(&found.found).0)?;
                match found.pods {
                    0 | 1 => Ok(()),
                    several => write!(
                        f,
                        "; the same of {} of this owner, with {} in use together",
                        pods(several),
                        found.together
                    ),
                }
            }
            Matter::AgentStale(outdated) => write!(
                f,
                "what is used on this node is not known: its node agent {outdated}, and what it saw then is shown as it was"
            ),
            Matter::AgentUnreadable { gpu: None, why } => {
                write!(f, "what is used on this node is not known: {why}")
            }
            Matter::AgentUnreadable { gpu: Some(gpu), why } => {
                write!(f, "what is used of GPU {} is not known: {why}", quoted(gpu))
            }
        }
    }
}

fn pods(number: u64) -> String {
    counted(number, "pod")
}

fn counted(number: u64, noun: &str) -> String {
    count(usize::try_from(number).unwrap_or(usize::MAX), noun)
}

/// A number of pods with that of their groups.
fn in_groups(number: u64, Groups { members, each, .. }: Groups) -> String {
    let noun = match members {
        Members::All => "pod",
        Members::Leaders => "leader",
        Members::Workers => "worker",
    };
    format!("{} with {}", counted(number / each.max(1), "group"), counted(number, noun))
}

impl Matter {
    /// The message and the remedy as one sentence about an object, for a warning to its author.
    pub fn warning(&self, Object { kind, namespace, name }: &Object) -> String {
        let remedy = self.remedy();
        let remedy = if remedy.is_empty() { remedy } else { format!("; remedy: {remedy}") };
        format!("{kind} \"{namespace}/{name}\": {self}{remedy}")
    }

    /// A line to paste, or what to do; empty if the message has it.
    pub fn remedy(&self) -> String {
        match self {
            Matter::Violation(violation) => violation.line().unwrap_or_default(),
            Matter::Infrastructure(_) => "add its namespace to exemptNamespaces of the ClusterVramPolicy".to_owned(),
            Matter::Advice(Advice::CountsAsSlot { key, .. }) => {
                format!("{key}: 8Gi  # an example; write what the model needs")
            }
            Matter::Advice(Advice::CountsAsSeen { key, write, .. }) => format!("{key}: {write}"),
            Matter::Advice(Advice::Violates(violation)) => Violation::line(violation).unwrap_or_default(),
            Matter::Advice(_) | Matter::NeverFits(_) => String::new(),
            Matter::Overcommitted { .. } => {
                "lower what its pods declare, or delete one of them; mode Enforce keeps it from happening again"
                    .to_owned()
            }
            Matter::GpusUnknown { why, .. } => unknown(why).to_owned(),
            Matter::GpusMissing { .. } => {
                "start the device plugin on the node; if it is gone, delete its pods; in a snapshot, give its Node"
                    .to_owned()
            }
            Matter::GpusUnusable { .. } => {
                "look at the device plugin's pod on the node and its log; a kubelet that just started takes some seconds"
                    .to_owned()
            }
            Matter::TooManyReplicas { fits, .. } if *fits > 1 => {
                format!("replicas: {fits}  # or keep them, and let vramguard count memory")
            }
            Matter::TooManyReplicas { .. } => "share none of these GPUs, or let vramguard count memory".to_owned(),
            Matter::Stranded { .. } => {
                "lower the demand of a pod that waits, or the replicas of the device plugin: vramguard plan".to_owned()
            }
            Matter::Foreign(ForeignDeclaration { amount: Ok(amount), ours, .. }) => format!("{ours}: {amount}"),
            Matter::Foreign(declaration) => {
                format!("{}: 8Gi  # an example; write what the model needs", declaration.ours)
            }
            Matter::Environment(fault) => format!("remove {} from container {:?}", fault.name, fault.container),
            Matter::Bypass { .. } => {
                "request the GPU instead, or see the page on ways past the guard (docs/security.md)".to_owned()
            }
            Matter::ExceedsRoom { is_exact: false, .. } => {
                "let vramguard count memory, or run one GPU a node: then the number that fits is known".to_owned()
            }
            Matter::ExceedsRoom { growth, bound, fits, groups, .. } => {
                largest(growth, bound.saturating_add(*fits), *groups)
            }
            Matter::KeptOff { .. } => {
                "look at its nodeSelector, affinity and tolerations, and whether the nodes are cordoned".to_owned()
            }
            Matter::OnlyShared { resource, .. } => {
                format!("{resource}: 1  # under resources.limits; or add a node whose GPUs are not shared")
            }
            Matter::Rerouted(_) => "recreate it once its own pool has room, if it should run there".to_owned(),
            Matter::OverQuota { of_policy: true, held, .. } => format!("quota: {held}  # or fewer pods"),
            Matter::OverQuota { of_policy: false, .. } => "let its pods declare, or raise the ResourceQuota".to_owned(),
            Matter::DeviceOvercommitted { .. } => "lower the memory that its claims request".to_owned(),
            Matter::ClaimWithoutMemory { .. } => "capacity: {requests: {memory: 8Gi}}  # an example".to_owned(),
            Matter::BothWorlds { .. } => {
                "give the node to one of them: a nodeSelector on the device plugin's or the driver's DaemonSet"
                    .to_owned()
            }
            Matter::Use(found) => matter_and_advice(&found.found).1.to_owned(),
            Matter::AgentStale(_) => {
                "look at the agent of this node; if it was removed, delete the GpuLedger of the node".to_owned()
            }
            Matter::AgentUnreadable { .. } => {
                "see \"When something is wrong\" of docs/agent.md, and the agent's log".to_owned()
            }
        }
    }
}

/// The line that keeps a workload from growing beyond `most` pods.
fn largest(growth: &Growth, most: u64, groups: Option<Groups>) -> String {
    let field = match growth {
        Growth::Rollout if groups.is_some() => {
            return "rolloutStrategy: {rollingUpdateConfiguration: {maxSurge: 0, maxUnavailable: 1}}".to_owned();
        }
        Growth::Rollout => return "strategy: {rollingUpdate: {maxSurge: 0, maxUnavailable: 1}}".to_owned(),
        Growth::Autoscaler(_) => "maxReplicas",
        Growth::Replicas => "replicas",
        Growth::Parallelism => "parallelism",
    };
    match most / groups.map_or(1, |groups| groups.each.max(1)) {
        0 => "lower what it declares, or add room".to_owned(),
        most if groups.is_some_and(|groups| groups.others_need) => {
            format!("{field}: {most}  # or fewer: the other pods of each group need room too")
        }
        most => format!("{field}: {most}"),
    }
}

/// What makes the GPUs of a pool known.
fn unknown(why: &Unknown) -> &'static str {
    match why {
        Unknown::Ledger { .. } => "repair or delete the GpuLedger of the node",
        Unknown::ReportContradicts { .. } | Unknown::ReportedNone { .. } | Unknown::UnevenReplicas { .. } => {
            "make the node agent and the device plugin agree"
        }
        Unknown::Unlabelled { .. }
        | Unknown::BadLabel { .. }
        | Unknown::Contradiction { .. }
        | Unknown::BadCapacity { .. }
        | Unknown::Renamed { .. } => "run GPU Feature Discovery on the node, or describe it in a GpuInventory",
        Unknown::Unsupported { .. } => "describe the node in a GpuInventory",
    }
}
