//! What is said to people: why a pod is refused ([`Violation`]), what it is told on the way ([`Advice`]), and the machine
//! reason of each ([`Reason`], a closed enum). Every sentence of a review stands in this file; deciding which of them
//! applies is [`super::admission`]'s work.
//!
//! A denial is user interface: it names the object, the numbers with units, the limit and the remedy. Lower case, no
//! full stop. Text that a user wrote is quoted, escaped and cut at [`QUOTED`] characters.

use std::fmt;

use super::gpu::{Accounting, Resource};
use super::pod::Excess;
use super::vram::Vram;
use crate::keys;

mod advice;
mod binding;
mod never_fits;
mod node;
mod reason;
mod unfit;

pub use advice::Advice;
pub use binding::{Refusal, Unplaced};
pub use never_fits::{LargestNode, MadeOf, NeverFits, Remedy, never_fits};
pub use node::undone;
pub use reason::Reason;
pub use unfit::Unfit;

/// How much of a user's own text is repeated in a message.
pub const QUOTED: usize = 64;

/// A user's text as it may appear in a message.
pub fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// One thing about a pod that breaks policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// See [`Reason::VramUndeclared`].
    Undeclared { container: String, resource: Resource, key: String },
    /// See [`Reason::VramUnreadable`].
    Unreadable { key: String, text: String, why: String },
    /// See [`Reason::VramZero`].
    Zero { key: String },
    /// See [`Reason::VramConflict`].
    Conflict { container: String, first: (String, Vram), second: (String, Vram) },
    /// See [`Reason::VramAmbiguous`].
    Ambiguous { key: String, text: String, containers: Vec<String> },
    /// See [`Reason::UnknownContainer`].
    UnknownContainer { key: String, containers: Vec<String> },
    /// See [`Reason::VramWithoutGpu`]. `container` where the declaration names one.
    WithoutGpu { key: String, container: Option<String> },
    /// See [`Reason::VramUnaccounted`].
    Unaccounted { key: String, resource: Resource, why: Unaccounted },
    /// See [`Reason::UnknownModel`].
    UnknownModel { name: String, known: Vec<String> },
    /// See [`Reason::BadProcesses`].
    BadProcesses { text: String },
    /// See [`Reason::VramBelowMinimum`].
    BelowMinimum { container: String, declared: Vram, minimum: Vram },
    /// See [`Reason::VramAboveMaximum`].
    AboveMaximum { container: String, declared: Vram, maximum: Vram },
    /// See [`Reason::VramTooLarge`].
    TooLarge { container: String, declared: Vram },
    /// See [`Reason::SlotUnknown`].
    SlotUnknown { container: String, resource: Resource },
    /// See [`Reason::RequestMismatch`]. `requested` as written, or `None` where there is none.
    RequestMismatch { container: String, requested: Option<String>, demand: Vram, basis: String },
    /// See [`Reason::PodMaxUnchecked`].
    PodMaxUnchecked { request: Vram },
    /// See [`Reason::SharedReplicas`].
    SharedReplicas {
        container: String,
        resource: Resource,
        count: u64,
        /// A node that shares the resource and does not carry the label that says so.
        unlabelled: Option<String>,
    },
    /// See [`Reason::NodeNameSet`].
    NodeNameSet { node: String, demand: Option<Vram>, room: Option<Vram> },
    /// See [`Reason::VramShortfall`].
    Shortfall(Shortfall),
    /// See [`Reason::NeverFits`].
    NeverFits(NeverFits),
    /// See [`Reason::VisibleDevicesWithoutGpu`].
    VisibleDevices { container: String },
    /// See [`Reason::EnvironmentConflict`].
    EnvironmentConflict { container: String, conflict: EnvConflict },
    /// See [`Reason::TooManyEntries`].
    TooMany(Excess),
    /// See [`Reason::ReservedAnnotation`].
    ReservedAnnotation { key: String },
}

/// A demand and the best that any node it may land on can offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortfall {
    /// The pod's demand.
    pub demand: Vram,
    /// The resource it needs.
    pub resource: Resource,
    /// What the demand is made of, where that is known.
    pub made_of: Option<MadeOf>,
    /// The node with the most room, or `None` where no node has the resource and takes the pod.
    pub best: Option<BestNode>,
}

/// The node with the most room for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BestNode {
    /// Name.
    pub node: String,
    /// Largest demand it can take now.
    pub room: Vram,
    /// What its GPUs can be promised in all; `None` where that is not known.
    pub allocatable: Option<Vram>,
    /// What is promised.
    pub held: Vram,
    /// By how many pods.
    pub holders: usize,
    /// How it counts.
    pub accounting: Accounting,
}

/// A user's own value where vramguard injects another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvConflict {
    /// The variable.
    pub name: &'static str,
    /// The user's value; `None` where it is taken from elsewhere (`valueFrom`).
    pub theirs: Option<String>,
    /// What would be injected; `None` where the variable should not be set at all.
    pub ours: Option<String>,
}

impl Violation {
    /// Its machine reason.
    pub fn reason(&self) -> Reason {
        match self {
            Violation::Undeclared { .. } => Reason::VramUndeclared,
            Violation::Unreadable { .. } => Reason::VramUnreadable,
            Violation::Zero { .. } => Reason::VramZero,
            Violation::Conflict { .. } => Reason::VramConflict,
            Violation::Ambiguous { .. } => Reason::VramAmbiguous,
            Violation::UnknownContainer { .. } => Reason::UnknownContainer,
            Violation::WithoutGpu { .. } => Reason::VramWithoutGpu,
            Violation::Unaccounted { .. } => Reason::VramUnaccounted,
            Violation::UnknownModel { .. } => Reason::UnknownModel,
            Violation::BadProcesses { .. } => Reason::BadProcesses,
            Violation::BelowMinimum { .. } => Reason::VramBelowMinimum,
            Violation::AboveMaximum { .. } => Reason::VramAboveMaximum,
            Violation::TooLarge { .. } => Reason::VramTooLarge,
            Violation::SlotUnknown { .. } => Reason::SlotUnknown,
            Violation::RequestMismatch { .. } => Reason::RequestMismatch,
            Violation::PodMaxUnchecked { .. } => Reason::PodMaxUnchecked,
            Violation::SharedReplicas { .. } => Reason::SharedReplicas,
            Violation::NodeNameSet { .. } => Reason::NodeNameSet,
            Violation::Shortfall(_) => Reason::VramShortfall,
            Violation::NeverFits(_) => Reason::NeverFits,
            Violation::VisibleDevices { .. } => Reason::VisibleDevicesWithoutGpu,
            Violation::EnvironmentConflict { .. } => Reason::EnvironmentConflict,
            Violation::ReservedAnnotation { .. } => Reason::ReservedAnnotation,
            Violation::TooMany(_) => Reason::TooManyEntries,
        }
    }
}

/// Most CUDA processes that a container may declare.
pub const MAX_PROCESSES: u32 = 1024;

/// One table of sentences, longer than a function should be so that no arm is a catch-all.
impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::Undeclared { container, resource, key } => write!(
                f,
                "container {container:?} requests {resource} but declares no VRAM, which this namespace requires; add \
                 the annotation {key}: <amount>, as in {key}: 8Gi"
            ),
            Violation::Unreadable { key, text, why } => write!(f, "annotation {key}: {} {why}", quoted(text)),
            Violation::Zero { key } => {
                write!(f, "annotation {key} declares nothing; write what the container needs, or remove the annotation")
            }
            Violation::Conflict { container, first, second } => write!(
                f,
                "container {container:?} is declared twice: {} says {}, {} says {}; keep one",
                first.0, first.1, second.0, second.1
            ),
            Violation::Ambiguous { key, text, containers } => write!(
                f,
                "annotation {key}: {} does not say which of the GPU containers {} it means; replace it by {}",
                quoted(text),
                names(containers),
                lines(containers)
            ),
            Violation::UnknownContainer { key, containers } => {
                write!(
                    f,
                    "annotation {} names a container that the pod does not have; it has {}",
                    cut(key),
                    names(containers)
                )
            }
            Violation::WithoutGpu { key, container: None } => write!(
                f,
                "annotation {key} is set, but no container requests a shared GPU; add {}: 1 to the limits of the \
                 container that needs it, or remove the annotation",
                keys::GPU_RESOURCE
            ),
            Violation::WithoutGpu { key, container: Some(container) } => write!(
                f,
                "annotation {key} is set, but container {container:?} requests no shared GPU; add {}: 1 to its \
                 limits, or remove the annotation",
                keys::GPU_RESOURCE
            ),
            Violation::Unaccounted { key, resource, why } => write!(
                f,
                "annotation {key}: nothing accounts for it, because {}, or set declaration.onUnaccounted: Warn",
                why.about(resource)
            ),
            Violation::UnknownModel { name, known } if known.is_empty() => write!(
                f,
                "annotation {}: {} names a model, but the policy lists none; declare {} instead",
                keys::MODEL,
                quoted(name),
                keys::VRAM
            ),
            Violation::UnknownModel { name, known } => write!(
                f,
                "annotation {}: {} is not in the policy's models ({}); use one of them or declare {}",
                keys::MODEL,
                quoted(name),
                names(known),
                keys::VRAM
            ),
            Violation::BadProcesses { text } => write!(
                f,
                "annotation {}: {} is not a whole number from 1 to {MAX_PROCESSES}",
                keys::PROCESSES,
                quoted(text)
            ),
            Violation::BelowMinimum { container, declared, minimum } => write!(
                f,
                "container {container:?}: {declared} declared, below the policy's minimum of {minimum}; raise {}",
                keys::VRAM
            ),
            Violation::AboveMaximum { container, declared, maximum } => write!(
                f,
                "container {container:?}: {declared} declared, above the policy's maximum of {maximum}; lower {}",
                keys::VRAM
            ),
            Violation::TooLarge { container, declared } => write!(
                f,
                "container {container:?}: {declared} declared, which with its overhead is 2^63 bytes or more; lower {}",
                keys::VRAM
            ),
            Violation::SlotUnknown { container, resource } => write!(
                f,
                "container {container:?} declares no VRAM, and no node that shares {resource} says how large a slot \
                 is; add the annotation {}: <amount>",
                keys::VRAM
            ),
            Violation::RequestMismatch { container, requested: Some(requested), demand, .. } if demand.is_zero() => {
                write!(
                    f,
                    "container {container:?} requests {requested} of {}, but no shared GPU; remove the request",
                    keys::VRAM_RESOURCE
                )
            }
            Violation::RequestMismatch { container, requested: Some(requested), demand, basis } => write!(
                f,
                "container {container:?} requests {requested} of {}, but its demand is {demand} ({basis}); remove the \
                 request, the webhook writes it",
                keys::VRAM_RESOURCE
            ),
            Violation::RequestMismatch { container, requested: None, demand, basis } => write!(
                f,
                "container {container:?} does not request its demand of {demand} ({basis}) of {}: the mutating webhook \
                 was not reached or was undone; create the pod again",
                keys::VRAM_RESOURCE
            ),
            Violation::PodMaxUnchecked { request } => write!(
                f,
                "required node affinity does not keep the pod off nodes whose label {} is below its request of {request}: the mutating \
                 webhook was not reached or was undone; create the pod again",
                keys::POD_MAX_MIB
            ),
            Violation::SharedReplicas { container, resource, count, unlabelled } => {
                write!(
                    f,
                    "container {container:?} requests {count} of {resource}, and where it is shared those may all be one GPU"
                )?;
                match unlabelled {
                    None => write!(f, "; require nodes with label {} not in (time-slicing, mps)", keys::GFD_SHARING),
                    Some(node) => write!(
                        f,
                        "; node {node:?} shares it without the label {}={}, which would keep the pod off it: have the node \
                         labelled",
                        keys::GFD_SHARING,
                        keys::SHARING_TIME_SLICING
                    ),
                }
            }
            Violation::NodeNameSet { node, demand, room } => {
                write!(f, "spec.nodeName {node:?} passes by kube-scheduler, which accounts for VRAM")?;
                match (demand, room) {
                    (Some(demand), Some(room)) => write!(f, " ({demand} demanded, {room} left there)")?,
                    (Some(demand), None) => write!(f, " ({demand} demanded, what is left there is not known)")?,
                    (None, _) => {}
                }
                write!(f, "; use nodeSelector kubernetes.io/hostname instead")
            }
            Violation::Shortfall(shortfall) => write!(f, "{shortfall}; lower {} or try later", keys::VRAM),
            Violation::NeverFits(never) => write!(f, "{never}"),
            Violation::VisibleDevices { container } => write!(
                f,
                "container {container:?} sets {} without requesting a GPU, which can show it every GPU of the node; \
                 request {} or remove the variable",
                keys::ENV_VISIBLE_DEVICES,
                keys::GPU_RESOURCE
            ),
            Violation::EnvironmentConflict { container, conflict } => {
                write!(f, "container {container:?} sets {conflict}; remove it")
            }
            Violation::ReservedAnnotation { key } => {
                write!(f, "annotation {key} is set by vramguard only; remove it")
            }
            Violation::TooMany(Excess { field, count, most, .. }) => write!(
                f,
                "{field} has a length of {count}, and vramguard reads {most} at most, so it cannot tell what the pod \
                 demands or where it may land; shorten it"
            ),
        }
    }
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} demanded", self.demand)?;
        if let Some(made_of) = &self.made_of {
            write!(f, " ({made_of})")?;
        }
        write!(f, ", but ")?;
        match &self.best {
            None => write!(f, "no node that the pod may land on offers {}", self.resource),
            Some(best) => {
                write!(f, "the best node it may land on, {:?}, ", best.node)?;
                let holders = count(best.holders, "pod");
                match (best.allocatable, best.accounting) {
                    (None, _) => write!(f, "has GPUs of unknown size, see its condition VramAccounted"),
                    (Some(total), Accounting::Slot) => write!(
                        f,
                        "has room for {} ({} of {total} held by {holders}; which GPU a pod gets is not known there, so none \
                         may take more than one slot)",
                        best.room, best.held
                    ),
                    (Some(total), mode) => {
                        write!(
                            f,
                            "has room for {} ({} of {total} held by {holders}, {mode} accounting)",
                            best.room, best.held
                        )
                    }
                }
            }
        }
    }
}

impl fmt::Display for EnvConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.theirs {
            Some(value) => write!(f, "{}={}", self.name, quoted(value))?,
            None => write!(f, "{} from elsewhere", self.name)?,
        }
        match &self.ours {
            Some(ours) => write!(f, " where vramguard sets {ours:?}"),
            None => write!(f, ", which decides in place of the device plugin which GPUs it sees"),
        }
    }
}

/// Why nothing accounts for a resource that a pod declares VRAM for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unaccounted {
    /// A node that the pod may land on does not say how its GPUs are shared.
    Unstated {
        /// That node.
        node: String,
    },
    /// No node has the resource.
    NoNode,
}

impl Unaccounted {
    /// The reason and what to do about it, as part of a sentence.
    fn about(&self, resource: &Resource) -> String {
        match self {
            Unaccounted::Unstated { node } => format!(
                "node {node:?} does not say whether it shares {resource}; run GPU Feature Discovery there, or describe the node in a \
                 GpuInventory"
            ),
            Unaccounted::NoNode => {
                format!(
                    "no node has {resource}, so nothing says whether it will be shared; describe such nodes in a GpuInventory"
                )
            }
        }
    }
}

/// The answer to `/validate/pods`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Created; the author is told so much.
    Allow {
        /// In the order they were found.
        advice: Vec<Advice>,
    },
    /// Not created.
    Deny {
        /// All that is wrong with it; at least one.
        violations: Vec<Violation>,
        /// Beside that.
        advice: Vec<Advice>,
    },
}

/// The note of the event on a pod that waits.
pub fn waiting(shortfall: &Shortfall) -> String {
    format!("waits for VRAM: {shortfall}")
}

/// The same of a pod whose selectors, affinity and tolerations are not kept.
pub fn waiting_anywhere(shortfall: &Shortfall) -> String {
    let why =
        "its selectors, affinity and tolerations are too long to be kept, so nodes that rule it out are counted too";
    format!("{}; {why}", waiting(shortfall))
}

/// The note of the event on a pod that was bound without the guard.
pub fn slipped(node: &str) -> String {
    format!(
        "bound to node {node:?} without the binding guard, which counts it now; whether its GPU has room for it was not \
         decided by anybody"
    )
}

/// The note of the event on a pod that runs and would be refused.
pub fn refused_if_created(violations: &[Violation]) -> String {
    let all: Vec<String> = violations.iter().map(Violation::to_string).collect();
    format!(
        "runs, but would be refused if it were created again, as when its node is replaced: {}; change it or exempt its namespace",
        all.join("; also, ")
    )
}

/// The message of a denial: the pod, then everything that is wrong with it.
pub fn denial(pod: &super::pod::PodName, violations: &[Violation]) -> String {
    let all: Vec<String> = violations.iter().map(Violation::to_string).collect();
    format!("pod {pod}: {}", all.join("; also, "))
}

/// Names in a message; past a few, how many more.
const LISTED: usize = 8;

fn names(list: &[String]) -> String {
    let mut listed: Vec<String> = list.iter().take(LISTED).map(|name| quoted(name)).collect();
    if list.len() > LISTED {
        listed.push(format!("and {} more", list.len() - LISTED));
    }
    listed.join(", ")
}

/// The annotations to write for these containers; past a few, how many more.
fn lines(containers: &[String]) -> String {
    let line = |name: &String| format!("{}{}: <amount>", keys::VRAM_OF, cut(name));
    let mut lines: Vec<String> = containers.iter().take(LISTED).map(line).collect();
    if containers.len() > LISTED {
        lines.push(format!("and {} more", containers.len() - LISTED));
    }
    lines.join(", ")
}

/// A key as it may appear in a message: an annotation's name can be 316 characters long.
fn cut(key: &str) -> &str {
    key.char_indices().nth(2 * QUOTED).map_or(key, |(end, _)| &key[..end])
}

/// `1 pod`, `2 pods`.
pub fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("{number} {noun}") } else { format!("{number} {noun}s") }
}
