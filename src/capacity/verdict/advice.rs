//! Warnings that the author of an admitted pod sees. Owns [`Advice`] and its messages; refusals are [`Violation`]'s.

use std::fmt;

use super::{EnvConflict, NeverFits, Unaccounted, Violation, Why, cut, quoted};
use crate::capacity::gpu::Resource;
use crate::capacity::pod::placement::MAX_ALTERNATIVES;
use crate::capacity::pod::software::Framework;
use crate::capacity::vram::Vram;
use crate::keys;

/// A warning about a pod that is admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Advice {
    /// The container declares nothing, which the policy allows.
    CountsAsSlot {
        /// Name of the container.
        container: String,
        /// The demand that it counts as, in MiB: one slot, or the demand of `declaration.min` if that is larger.
        slot: Vram,
        /// The annotation that would declare an amount.
        key: String,
    },
    /// The container declares nothing, and was seen to use more than it would count as.
    CountsAsSeen {
        /// Name of the container.
        container: String,
        /// The most that it was seen to use, in MiB, which it counts as.
        seen: Vram,
        /// The annotation that would declare an amount.
        key: String,
        /// The amount to declare, in MiB.
        write: Vram,
    },
    /// `/mutate/pods` removed an annotation that only vramguard sets.
    Stripped {
        /// The annotation.
        key: String,
    },
    /// An annotation under the prefix `vramguard.dev/` has no meaning.
    UnknownAnnotation {
        /// The annotation.
        key: String,
    },
    /// The user's value of an injected variable is kept, under `onConflict: Warn`.
    KeptEnvironment {
        /// Name of the container.
        container: String,
        /// The variable, with the user's value and the injected one.
        conflict: EnvConflict,
    },
    /// A framework is not told its budget, and its author can do so.
    Unbounded {
        /// Name of the container.
        container: String,
        /// Why it is not told.
        why: Why,
    },
    /// An annotation names no framework.
    UnknownFramework {
        /// The annotation.
        key: String,
        /// Its value.
        text: String,
    },
    /// `/mutate/pods` removed the user's own choice of GPUs from the environment.
    RemovedEnvironment {
        /// Name of the container.
        container: String,
        /// The variable and the user's value.
        conflict: EnvConflict,
    },
    /// The pod's node affinity or nodeSelector used the label `vramguard.dev/pod-max-mib` and was replaced.
    ReplacedAffinity,
    /// The pod is not rerouted, because its node affinity is too large for that.
    NotRerouted,
    /// No node that the pod may land on could take it, even when empty.
    NeverFits(NeverFits),
    /// A declaration has no effect, because each GPU of the resource goes to one container.
    NotGuarded {
        /// The annotation.
        key: String,
        /// The GPU resource that the container requests.
        resource: Resource,
    },
    /// A container declares nothing, and nothing accounts for the resource that it requests.
    NothingAccounts {
        /// Name of the container.
        container: String,
        /// The GPU resource that it requests.
        resource: Resource,
        /// Why nothing accounts for that resource.
        why: Unaccounted,
    },
    /// A container declares an amount, but nothing accounts for the resource that it requests.
    Unaccounted {
        /// The annotation.
        key: String,
        /// The GPU resource that the container requests.
        resource: Resource,
        /// Why nothing accounts for that resource.
        why: Unaccounted,
    },
    /// A violation in a namespace of mode `Warn`.
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
            Advice::CountsAsSeen { container, seen, key, write } => write!(
                f,
                "container {container:?} declares no VRAM and counts {seen} that it has been seen to use; set {key} to {write}"
            ),
            Advice::Stripped { key } => write!(f, "annotation {key} is set by vramguard only and was removed"),
            Advice::UnknownAnnotation { key } => write!(
                f,
                "annotation {} means nothing to vramguard; known are {}, {}<container>, {}, {} and {}",
                quoted(key),
                keys::VRAM,
                keys::VRAM_OF,
                keys::MODEL,
                keys::PROCESSES,
                keys::FRAMEWORK
            ),
            Advice::KeptEnvironment { container, conflict } => {
                write!(f, "container {container:?} sets {conflict}; its own value is kept")
            }
            Advice::Unbounded { container, why } => {
                write!(f, "nothing bounds the GPU memory of container {container:?}: {why}")
            }
            Advice::UnknownFramework { key, text } => {
                let names = Framework::ALL.map(Framework::name).join(", ");
                write!(
                    f,
                    "annotation {}: {} names no framework; write one of {names}, or a name with its version, as in PyTorch@2.11",
                    cut(key),
                    quoted(text)
                )
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
            Advice::NotRerouted => write!(
                f,
                "the pod is not rerouted and may use its own pool only: with the fallback pools of the policy, its node \
                 affinity would have more than {MAX_ALTERNATIVES} terms, or too many requirements or values"
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
