//! What the author of an admitted pod is told. Owns those sentences, beside the refusals of [`super`].

use std::fmt;

use super::{EnvConflict, NeverFits, Unaccounted, Violation, quoted};
use crate::capacity::gpu::Resource;
use crate::capacity::vram::Vram;
use crate::keys;

/// What a pod's author is told although the pod is admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Nothing declared, and that is allowed.
    CountsAsSlot { container: String, slot: Vram, key: String },
    /// A reserved annotation was taken off.
    Stripped { key: String },
    /// An annotation under our prefix means nothing.
    UnknownAnnotation { key: String },
    /// The user's own environment is kept.
    KeptEnvironment { container: String, conflict: EnvConflict },
    /// The user's own choice of GPUs was taken out.
    RemovedEnvironment { container: String, conflict: EnvConflict },
    /// Its node affinity or nodeSelector named our label.
    ReplacedAffinity,
    /// No node that it may land on could take it, even an empty one.
    NeverFits(NeverFits),
    /// Declared, but each GPU of the resource goes to one container, so there is nothing to account for.
    NotGuarded { key: String, resource: Resource },
    /// Nothing declared, and nothing accounts for the resource.
    NothingAccounts { container: String, resource: Resource, why: Unaccounted },
    /// Declared, but nothing accounts for the resource.
    Unaccounted { key: String, resource: Resource, why: Unaccounted },
    /// A violation in a namespace that only warns.
    Violates(Violation),
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Advice::CountsAsSlot { container, slot, key } => write!(
                f,
                "container {container:?} declares no VRAM and counts as one slot of {slot}; add the annotation {key}: \
                 <amount>"
            ),
            Advice::Stripped { key } => write!(f, "annotation {key} is set by vramguard only and was removed"),
            Advice::UnknownAnnotation { key } => write!(
                f,
                "annotation {} means nothing to vramguard; known are {}, {}<container>, {} and {}",
                quoted(key),
                keys::VRAM,
                keys::VRAM_OF,
                keys::MODEL,
                keys::PROCESSES
            ),
            Advice::KeptEnvironment { container, conflict } => {
                write!(f, "container {container:?} sets {conflict}; its own value is kept")
            }
            Advice::NeverFits(never) => write!(f, "the pod waits until the cluster changes: {never}"),
            Advice::RemovedEnvironment { container, conflict } => {
                write!(f, "container {container:?} sets {conflict}; it was removed")
            }
            Advice::ReplacedAffinity => write!(
                f,
                "node affinity and nodeSelector on label {} are set by vramguard only and were replaced",
                keys::POD_MAX_MIB
            ),
            Advice::NotGuarded { key, resource } => {
                write!(f, "annotation {key} is not accounted for: no node is known to share {resource}")
            }
            Advice::NothingAccounts { container, resource, why } => {
                write!(f, "container {container:?} is not accounted for: {}", why.about(resource))
            }
            Advice::Unaccounted { key, resource, why } => {
                write!(f, "annotation {key} is not accounted for: {}", why.about(resource))
            }
            Advice::Violates(violation) => write!(f, "would be refused under mode Enforce: {violation}"),
        }
    }
}
