//! What part of a pod a violation, or a piece of advice, is about: its container, and what tells it from another one of
//! the same reason.

use crate::capacity::verdict::{Advice, Reason, Violation};
use crate::keys;

impl Violation {
    /// The container that it is about; `None` if it is about the pod.
    pub fn container(&self) -> Option<&str> {
        match self {
            Violation::Undeclared { container, .. }
            | Violation::Conflict { container, .. }
            | Violation::BelowMinimum { container, .. }
            | Violation::AboveMaximum { container, .. }
            | Violation::TooLarge { container, .. }
            | Violation::SlotUnknown { container, .. }
            | Violation::RequestMismatch { container, .. }
            | Violation::SharedReplicas { container, .. }
            | Violation::VisibleDevices { container }
            | Violation::EnvironmentConflict { container, .. } => Some(container),
            Violation::WithoutGpu { container, .. } => container.as_deref(),
            Violation::Unreadable { .. }
            | Violation::Zero { .. }
            | Violation::Ambiguous { .. }
            | Violation::UnknownContainer { .. }
            | Violation::Unaccounted { .. }
            | Violation::UnknownModel { .. }
            | Violation::BadProcesses { .. }
            | Violation::PodMaxUnchecked { .. }
            | Violation::NodeNameSet { .. }
            | Violation::Shortfall(_)
            | Violation::NeverFits(_)
            | Violation::TooMany(_)
            | Violation::ReservedAnnotation { .. } => None,
        }
    }

    /// The container, annotation, variable or field that it is about; `None` if it is about the pod as a whole.
    pub fn about(&self) -> Option<String> {
        match self {
            Violation::Unreadable { key, .. }
            | Violation::Zero { key }
            | Violation::Ambiguous { key, .. }
            | Violation::UnknownContainer { key, .. }
            | Violation::WithoutGpu { key, .. }
            | Violation::Unaccounted { key, .. }
            | Violation::ReservedAnnotation { key } => Some(key.clone()),
            Violation::UnknownModel { .. } => Some(keys::MODEL.to_owned()),
            Violation::BadProcesses { .. } => Some(keys::PROCESSES.to_owned()),
            Violation::EnvironmentConflict { container, conflict } => Some(format!("{container} {}", conflict.name)),
            Violation::TooMany(excess) => Some(excess.field.clone()),
            other => other.container().map(str::to_owned),
        }
    }

    /// The line of a manifest to paste, without its amount where only the user knows it; `None` if there is no such
    /// line and the message says what to do.
    pub fn line(&self) -> Option<String> {
        match self {
            Violation::Undeclared { key, .. } => Some(format!("{key}: 8Gi  # an example; write what the model needs")),
            Violation::SlotUnknown { .. } => {
                Some(format!("{}: 8Gi  # an example; write what the model needs", keys::VRAM))
            }
            Violation::Unreadable { key, .. } => Some(format!("{key}: 8Gi  # an example of an amount")),
            Violation::BelowMinimum { minimum: amount, .. } | Violation::AboveMaximum { maximum: amount, .. } => {
                Some(format!("{}: {amount}", keys::VRAM))
            }
            Violation::WithoutGpu { .. } => Some(format!("{}: 1  # under resources.limits", keys::GPU_RESOURCE)),
            Violation::NodeNameSet { node, .. } => Some(format!("nodeSelector: {{kubernetes.io/hostname: {node:?}}}")),
            _ => None,
        }
    }
}

impl Advice {
    /// The machine reason under which an audit reports it.
    pub fn reason(&self) -> Reason {
        match self {
            Advice::CountsAsSlot { .. } | Advice::CountsAsSeen { .. } => Reason::VramUndeclared,
            Advice::Stripped { .. } => Reason::ReservedAnnotation,
            Advice::UnknownAnnotation { .. } => Reason::UnknownAnnotation,
            Advice::KeptEnvironment { .. } | Advice::RemovedEnvironment { .. } => Reason::EnvironmentConflict,
            Advice::Unbounded { .. } => Reason::Unbounded,
            Advice::UnknownFramework { .. } => Reason::UnknownFramework,
            Advice::ReplacedAffinity => Reason::PodMaxUnchecked,
            Advice::NotRerouted => Reason::NotRerouted,
            Advice::NeverFits(_) => Reason::NeverFits,
            Advice::NotGuarded { .. } => Reason::NotGuarded,
            Advice::NothingAccounts { .. } | Advice::Unaccounted { .. } => Reason::VramUnaccounted,
            Advice::Violates(violation) => violation.reason(),
        }
    }

    /// The container that it is about; `None` if it is about the pod.
    pub fn container(&self) -> Option<&str> {
        match self {
            Advice::CountsAsSlot { container, .. }
            | Advice::CountsAsSeen { container, .. }
            | Advice::KeptEnvironment { container, .. }
            | Advice::RemovedEnvironment { container, .. }
            | Advice::Unbounded { container, .. }
            | Advice::NothingAccounts { container, .. } => Some(container),
            Advice::Violates(violation) => violation.container(),
            Advice::Stripped { .. }
            | Advice::UnknownAnnotation { .. }
            | Advice::UnknownFramework { .. }
            | Advice::ReplacedAffinity
            | Advice::NotRerouted
            | Advice::NeverFits(_)
            | Advice::NotGuarded { .. }
            | Advice::Unaccounted { .. } => None,
        }
    }

    /// The container, annotation or variable that it is about; `None` if it is about the pod as a whole.
    pub fn about(&self) -> Option<String> {
        match self {
            Advice::Stripped { key }
            | Advice::UnknownAnnotation { key }
            | Advice::UnknownFramework { key, .. }
            | Advice::NotGuarded { key, .. }
            | Advice::Unaccounted { key, .. } => Some(key.clone()),
            Advice::KeptEnvironment { container, conflict } | Advice::RemovedEnvironment { container, conflict } => {
                Some(format!("{container} {}", conflict.name))
            }
            Advice::Violates(violation) => violation.about(),
            other => other.container().map(str::to_owned),
        }
    }
}
