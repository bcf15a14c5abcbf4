//! Why the binding guard refuses a binding. Owns [`Refusal`] and its messages, which kube-scheduler shows in the event
//! `FailedScheduling`; [`crate::capacity::binding`] decides which one applies.

use std::fmt;

use super::{Reason, Unplaced, count, quoted};
use crate::capacity::pod::PodName;

/// A reason for which the binding guard refuses a binding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The Binding carries an annotation that only vramguard sets.
    ReservedAnnotation {
        /// The annotation.
        key: String,
    },
    /// The user who binds is not a scheduler that may bind guarded pods.
    ForeignBinder {
        /// Name of that user.
        user: String,
        /// The users that may bind guarded pods (`--binder`).
        binders: Vec<String>,
    },
    /// The Binding names the uid of another pod of the same name.
    OtherUid,
    /// The pod is bound already.
    Bound {
        /// The node that it is bound to.
        node: String,
    },
    /// The node has no place for the pod.
    Unplaced {
        /// The node of the Binding.
        node: String,
        /// Why it has no place.
        why: Unplaced,
    },
    /// The ledger could not be read or written in time: an API call failed, or other replicas always wrote first.
    Undecided {
        /// The node of the Binding.
        node: String,
        /// The error, for the message.
        why: String,
    },
}

impl Refusal {
    /// The machine reason of this refusal.
    pub fn reason(&self) -> Reason {
        match self {
            Refusal::ReservedAnnotation { .. } => Reason::ReservedAnnotation,
            Refusal::ForeignBinder { .. } => Reason::ForeignBinder,
            Refusal::OtherUid => Reason::OtherUid,
            Refusal::Bound { .. } => Reason::AlreadyBound,
            Refusal::Unplaced { why, .. } => why.reason(),
            Refusal::Undecided { .. } => Reason::Undecided,
        }
    }

    /// Whether the refusal may rest on an outdated cache: it ends when a pod leaves or becomes ready.
    ///
    /// The scheduler may have seen that event already, if its watch is ahead of the watch of this replica of the
    /// server.
    pub fn may_be_outdated(&self) -> bool {
        matches!(self, Refusal::Unplaced { why: Unplaced::Shortfall { .. } | Unplaced::Starting, .. })
    }

    /// The message of the denial: the pod, then the reason.
    pub fn message(&self, pod: &PodName) -> String {
        format!("pod {pod}: {self}")
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::ReservedAnnotation { key } => {
                write!(f, "annotation {} of its Binding is set by vramguard only; remove it", quoted(key))
            }
            Refusal::ForeignBinder { user, binders } => write!(
                f,
                "{} is not a scheduler that may bind guarded pods (those are {}); add it to --binder if it should be",
                quoted(user),
                super::names(binders)
            ),
            Refusal::OtherUid => {
                write!(f, "its Binding names the uid of another pod, so it was replaced in between; bind the new one")
            }
            Refusal::Bound { node } => write!(f, "it is bound to node {node:?} already"),
            // The cause is the pod's own reservations, so the message does not name the node.
            Refusal::Unplaced { why: Unplaced::TooManyPlaces { places }, .. } => write!(
                f,
                "it is promised a place on {} already, and each bind that was allowed may still commit; the promises end in a \
                 minute or two",
                count(*places, "other node")
            ),
            Refusal::Unplaced { node, why } => write!(f, "node {node:?} {why}"),
            Refusal::Undecided { node, why } => {
                write!(f, "a place on node {node:?} could not be reserved ({why}); it will be tried again")
            }
        }
    }
}
