//! Why a pod is not bound to a node: what kube-scheduler shows in the event `FailedScheduling`. Owns those sentences, beside
//! the refusals of creation in [`super`].

use std::fmt;

use super::{Reason, count, quoted};
use crate::capacity::gpu::{Accounting, Resource, Unknown};
use crate::capacity::ledger::PoolStanding;
use crate::capacity::pod::PodName;
use crate::capacity::vram::Vram;

/// Why a node has no place for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unplaced {
    /// The node has none of the GPUs it asks for, as far as is known.
    NoGpu { resource: Option<Resource> },
    /// The pod takes GPUs of several of its resources.
    SeveralResources,
    /// Its GPUs are not known.
    Unknown(Unknown),
    /// The pod takes its GPU from our annotation, and the node is not verified to honour that.
    PinUnverified { accounting: Accounting },
    /// A pod that starts there keeps every other one off.
    Starting,
    /// Not enough room.
    Shortfall { demand: Vram, room: Vram, stands: Box<PoolStanding> },
}

/// Why the binding guard refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The Binding carries an annotation that only vramguard sets.
    ReservedAnnotation { key: String },
    /// Whoever binds is not on the list.
    ForeignBinder { user: String, binders: Vec<String> },
    /// The Binding is made for another pod of that name.
    OtherUid,
    /// The pod is bound already.
    Bound { node: String },
    /// It is promised a place on too many other nodes.
    TooManyPlaces { places: usize },
    /// No place.
    Unplaced { node: String, why: Unplaced },
    /// No answer in time, from the API server or because others were always faster.
    Undecided { node: String, why: String },
}

impl Refusal {
    /// Its machine reason.
    pub fn reason(&self) -> Reason {
        match self {
            Refusal::ReservedAnnotation { .. } => Reason::ReservedAnnotation,
            Refusal::ForeignBinder { .. } => Reason::ForeignBinder,
            Refusal::OtherUid => Reason::OtherUid,
            Refusal::Bound { .. } => Reason::AlreadyBound,
            Refusal::Unplaced { why, .. } => match why {
                Unplaced::NoGpu { .. } | Unplaced::Unknown(_) | Unplaced::SeveralResources => Reason::NodeUnaccounted,
                Unplaced::PinUnverified { .. } => Reason::PinUnverified,
                Unplaced::Starting => Reason::GpuStarting,
                Unplaced::Shortfall { .. } => Reason::VramShortfall,
            },
            Refusal::TooManyPlaces { .. } | Refusal::Undecided { .. } => Reason::Undecided,
        }
    }

    /// The message of the denial.
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
            Refusal::TooManyPlaces { places } => write!(
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

/// Reads after `node "name"`.
impl fmt::Display for Unplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unplaced::NoGpu { resource: Some(resource) } => write!(f, "has no {resource} that is accounted for"),
            Unplaced::NoGpu { resource: None } => write!(f, "has no GPU that is accounted for"),
            Unplaced::SeveralResources => {
                write!(f, "has GPUs behind several resources, of which a pod that declares VRAM may request one")
            }
            Unplaced::Unknown(why) => write!(f, "has GPUs that are not accounted for: {why}"),
            Unplaced::PinUnverified { accounting } => write!(
                f,
                "is under {accounting} accounting, and the pod takes its GPU from an annotation (visibleDevices: Pin), \
                 which the node is not verified to honour; without it the container would see no GPU"
            ),
            Unplaced::Starting => write!(
                f,
                "has a pod that is starting, and policy lets one pod at a time start on a GPU; wait until it is ready"
            ),
            Unplaced::Shortfall { demand, room, stands } => shortfall(f, *demand, *room, stands),
        }
    }
}

fn shortfall(f: &mut fmt::Formatter<'_>, demand: Vram, room: Vram, stands: &PoolStanding) -> fmt::Result {
    let largest = match stands.accounting {
        Accounting::Slot => "one slot there",
        Accounting::Confirmed => "any GPU that it may be given there",
        Accounting::Pinned => "the freest GPU there",
        Accounting::Exact | Accounting::Exclusive | Accounting::Unknown => "the GPU there",
    };
    write!(f, "has no room: {demand} demanded, {largest} has {room} left (")?;
    if let Some(total) = stands.allocatable {
        write!(f, "{} of {total} held by {}, ", stands.held, count(stands.holders, "pod"))?;
    }
    write!(f, "{} accounting)", stands.accounting)
}
