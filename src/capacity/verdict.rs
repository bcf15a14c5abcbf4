//! All messages for users, and the machine reason of each ([`Reason`], a closed enum). Owns why a pod is refused
//! ([`Violation`]), what its author is warned of ([`Advice`]), why a binding is refused ([`Refusal`]), and what
//! conditions and events report. Which message applies is decided by [`super::admission`], [`super::binding`] and
//! [`super::cluster`].
//!
//! A denial is a user interface: it names the object, the numbers with their units, the limit and the remedy. It is in
//! lower case and has no full stop. Text that a user wrote is quoted, escaped and cut at [`QUOTED`] characters.

use crate::keys;

pub mod estimate;
pub mod finding;

mod advice;
mod binding;
mod bounded;
mod condition;
mod explanation;
mod never_fits;
mod node;
mod observation;
mod plugin_config;
mod policy;
mod presence;
mod reason;
mod recommendation;
mod rerouted;
mod shortfall;
mod unplaced;
mod violation;

pub use advice::Advice;
pub use binding::Refusal;
pub use bounded::{Bound, BoundedBy, Why};
pub use condition::{Condition, OVERCOMMITTED, unknown};
pub use explanation::{
    Counts, NO_CLUSTER, NO_GPU_AT_ALL, NO_POLICY, Source, Unsuitable, exists_already, hami_not_read, more_not_steered,
    not_for_us, not_held_back, not_steered, requirement, source,
};
pub use never_fits::{LargestNode, MadeOf, NeverFits, Remedy, never_fits};
pub use node::{publication_undone, quota_not_kept};
pub use observation::{
    GLANCE_NOT_TOLD, MIG_NOT_TOLD, Outdated, Subject, TOTALS_ONLY, Unreadable, hours, idles, matter_and_advice,
    uses_far_less, uses_more, uses_undeclared,
};
pub use plugin_config::{NoPluginConfig, SelectedBy};
pub use policy::{EARLIER_IN_FORCE, not_in_force, unreadable_policy};
pub use reason::Reason;
pub use recommendation::{Missing, Recommendation};
pub use rerouted::Rerouted;
pub use shortfall::{BestNode, Shortfall, waiting, waiting_anywhere};
pub use unplaced::Unplaced;
pub use violation::{EnvConflict, MAX_PROCESSES, Unaccounted, Violation};

/// The largest number of characters of a user's own text that a message repeats.
pub const QUOTED: usize = 64;

/// The largest number of violations, and of pieces of advice, in one answer.
pub const MAX_FINDINGS: usize = 16;

/// A user's text for a message: quoted, escaped, and cut at [`QUOTED`] characters.
pub fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// The answer to `/validate/pods`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The pod is created, with warnings.
    Allow {
        /// The warnings, in the order in which they were found.
        advice: Vec<Advice>,
    },
    /// The pod is refused.
    Deny {
        /// What breaks policy; at least one and at most [`MAX_FINDINGS`].
        violations: Vec<Violation>,
        /// Warnings in addition to the violations.
        advice: Vec<Advice>,
    },
}

/// The note of the event on a pod that was bound without the binding guard.
pub fn bound_past_guard(node: &str) -> String {
    format!(
        "bound to node {node:?} without the binding guard, which counts it now; whether its GPU has room for it was not \
         decided by anybody"
    )
}

/// The note of the event on a running pod that would be refused if it were created again.
pub fn refused_if_created(violations: &[Violation]) -> String {
    let all: Vec<String> = violations.iter().map(Violation::to_string).collect();
    format!(
        "runs, but would be refused if it were created again, as when its node is replaced: {}; change it or exempt its namespace",
        all.join("; also, ")
    )
}

/// The message of a denial: the pod, then all its violations.
pub fn denial(pod: &crate::capacity::pod::PodName, violations: &[Violation]) -> String {
    let all: Vec<String> = violations.iter().map(Violation::to_string).collect();
    format!("pod {pod}: {}", all.join("; also, "))
}

/// The largest number of names in one message; a message counts the others.
const LISTED: usize = 8;

/// The first [`LISTED`] names, quoted, and how many more there are.
fn names(list: &[String]) -> String {
    let mut listed: Vec<String> = list.iter().take(LISTED).map(|name| quoted(name)).collect();
    if list.len() > LISTED {
        listed.push(format!("and {} more", list.len() - LISTED));
    }
    listed.join(", ")
}

/// The annotations to write for the first [`LISTED`] of these containers, and how many more there are.
fn lines(containers: &[String]) -> String {
    let line = |name: &String| format!("{}{}: <amount>", keys::VRAM_OF, cut(name));
    let mut lines: Vec<String> = containers.iter().take(LISTED).map(line).collect();
    if containers.len() > LISTED {
        lines.push(format!("and {} more", containers.len() - LISTED));
    }
    lines.join(", ")
}

/// A key for a message, cut at twice [`QUOTED`] characters: the key of an annotation can be 316 characters long.
fn cut(key: &str) -> &str {
    key.char_indices().nth(2 * QUOTED).map_or(key, |(end, _)| &key[..end])
}

/// A number with its noun, in the plural if it is not 1: `1 pod`, `2 pods`.
pub fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("{number} {noun}") } else { format!("{number} {noun}s") }
}
