//! What breaks policy in a pod. Owns [`Violation`] and one message for each variant; [`crate::capacity::admission`]
//! decides which of them apply to a pod.

use std::fmt;

use super::{NeverFits, Reason, Shortfall, cut, lines, names, quoted};
use crate::capacity::gpu::Resource;
use crate::capacity::pod::Excess;
use crate::capacity::vram::Vram;
use crate::keys;

/// One way in which a pod breaks policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// See [`Reason::VramUndeclared`].
    Undeclared {
        /// Name of the container.
        container: String,
        /// The GPU resource that it requests.
        resource: Resource,
        /// The annotation that the user should add.
        key: String,
    },
    /// See [`Reason::VramUnreadable`].
    Unreadable {
        /// The annotation.
        key: String,
        /// Its value, as written.
        text: String,
        /// What is wrong with the value: the end of a sentence that begins with the value.
        why: String,
    },
    /// See [`Reason::VramZero`].
    Zero {
        /// The annotation.
        key: String,
    },
    /// See [`Reason::VramConflict`].
    Conflict {
        /// Name of the container.
        container: String,
        /// An annotation and the amount that it declares, in MiB.
        first: (String, Vram),
        /// Another annotation and its amount, in MiB, which differs.
        second: (String, Vram),
    },
    /// See [`Reason::VramAmbiguous`].
    Ambiguous {
        /// The annotation.
        key: String,
        /// Its value, as written.
        text: String,
        /// Names of the GPU containers that it may mean; at least two.
        containers: Vec<String>,
    },
    /// See [`Reason::UnknownContainer`].
    UnknownContainer {
        /// The annotation, which ends in the name of the missing container.
        key: String,
        /// Names of all containers of the pod.
        containers: Vec<String>,
    },
    /// See [`Reason::VramWithoutGpu`].
    WithoutGpu {
        /// The annotation.
        key: String,
        /// Name of the container that the annotation is for; `None` if it is for the whole pod.
        container: Option<String>,
    },
    /// See [`Reason::VramUnaccounted`].
    Unaccounted {
        /// The annotation.
        key: String,
        /// The GPU resource that the container requests.
        resource: Resource,
        /// Why nothing accounts for that resource.
        why: Unaccounted,
    },
    /// See [`Reason::UnknownModel`].
    UnknownModel {
        /// The model that the annotation names.
        name: String,
        /// Names of the models in the policy; may be empty.
        known: Vec<String>,
    },
    /// See [`Reason::BadProcesses`].
    BadProcesses {
        /// Value of the annotation `vramguard.dev/processes`, as written.
        text: String,
    },
    /// See [`Reason::VramBelowMinimum`].
    BelowMinimum {
        /// Name of the container.
        container: String,
        /// Its declared amount, in MiB.
        declared: Vram,
        /// `declaration.min` of the policy, in MiB.
        minimum: Vram,
    },
    /// See [`Reason::VramAboveMaximum`].
    AboveMaximum {
        /// Name of the container.
        container: String,
        /// Its declared amount, in MiB.
        declared: Vram,
        /// `declaration.max` of the policy, in MiB.
        maximum: Vram,
    },
    /// See [`Reason::VramTooLarge`].
    TooLarge {
        /// Name of the container.
        container: String,
        /// Its declared amount without the overhead, in MiB.
        declared: Vram,
    },
    /// See [`Reason::SlotUnknown`].
    SlotUnknown {
        /// Name of the container.
        container: String,
        /// The GPU resource that it requests.
        resource: Resource,
    },
    /// See [`Reason::RequestMismatch`].
    RequestMismatch {
        /// Name of the container.
        container: String,
        /// Its request for `vramguard.dev/vram`, as written; `None` if it has none.
        requested: Option<String>,
        /// What it should request, in MiB; zero if it requests no shared GPU.
        demand: Vram,
        /// How the demand was computed, for the message; empty if the demand is zero.
        basis: String,
    },
    /// See [`Reason::PodMaxUnchecked`].
    PodMaxUnchecked {
        /// What the pod requests of `vramguard.dev/vram`, in MiB.
        request: Vram,
    },
    /// See [`Reason::SharedReplicas`].
    SharedReplicas {
        /// Name of the container.
        container: String,
        /// The GPU resource that it requests.
        resource: Resource,
        /// How many replicas of the resource it requests; at least 2.
        count: u64,
        /// A node that the pod may land on and that shares the resource without a sharing label; `None` if there is no
        /// such node.
        unlabelled: Option<String>,
    },
    /// See [`Reason::NodeNameSet`].
    NodeNameSet {
        /// `spec.nodeName` of the pod.
        node: String,
        /// The pod's demand, in MiB; `None` if it has none or a declaration is refused.
        demand: Option<Vram>,
        /// The largest demand that the node can take now, in MiB; `None` if that is not known.
        free: Option<Vram>,
    },
    /// See [`Reason::VramShortfall`].
    Shortfall(Shortfall),
    /// See [`Reason::NeverFits`].
    NeverFits(NeverFits),
    /// See [`Reason::VisibleDevicesWithoutGpu`].
    VisibleDevices {
        /// Name of the container.
        container: String,
    },
    /// See [`Reason::EnvironmentConflict`].
    EnvironmentConflict {
        /// Name of the container.
        container: String,
        /// The variable, the user's value, and the injected value if there is one.
        conflict: EnvConflict,
    },
    /// See [`Reason::TooManyEntries`].
    TooMany(Excess),
    /// See [`Reason::ReservedAnnotation`].
    ReservedAnnotation {
        /// The annotation.
        key: String,
    },
}

/// A user's value of an environment variable that vramguard injects, or that only the device plugin may set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvConflict {
    /// Name of the variable.
    pub name: &'static str,
    /// The user's value; `None` if the entry uses `valueFrom`.
    pub theirs: Option<String>,
    /// What vramguard injects; `None` if the user must not set the variable at all.
    pub ours: Option<String>,
}

impl Violation {
    /// The machine reason of this violation.
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

    /// Whether the violation follows from the nodes of the cluster, and not from the pod and the policy alone.
    pub fn depends_on_nodes(&self) -> bool {
        matches!(
            self.reason(),
            Reason::VramShortfall | Reason::NeverFits | Reason::SlotUnknown | Reason::VramUnaccounted
        )
    }
}

/// The largest number of CUDA processes that a container may declare.
pub const MAX_PROCESSES: u32 = 1024;

/// The message of each violation.
impl fmt::Display for Violation {
    #[expect(clippy::too_many_lines, reason = "one arm for each sentence, and no catch-all")]
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
            Violation::NodeNameSet { node, demand, free } => {
                write!(f, "spec.nodeName {node:?} passes by kube-scheduler, which accounts for VRAM")?;
                match (demand, free) {
                    (Some(demand), Some(free)) => write!(f, " ({demand} demanded, {free} left there)")?,
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
    /// A node that the pod may land on does not advertise how its GPUs are shared.
    Unstated {
        /// Name of that node.
        node: String,
    },
    /// No node has the resource, so it is not known whether it will be shared.
    NoNode,
}

impl Unaccounted {
    /// The cause and the remedy for this resource, as part of a sentence.
    pub(super) fn about(&self, resource: &Resource) -> String {
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
