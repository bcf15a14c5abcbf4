//! Why a node has no place for a pod, for the binding guard and for the scheduler extender. Owns [`Unplaced`] and its
//! two wordings; [`crate::capacity::binding`] and [`crate::capacity::filter`] decide which reason applies.
//!
//! The binding guard answers for one node, so `Display` of [`Unplaced`] names the numbers. The extender answers for
//! thousands of nodes at once. kube-scheduler adds equal reasons up ("3 node(s) had …") and writes out different ones
//! one by one, into an event and into the pod's status, at each attempt. Therefore [`Unplaced::countable`] leaves out
//! all that differs from node to node. The event `VramShortfall` has the numbers of the best node.

use std::fmt;

use super::{Reason, count};
use crate::capacity::gpu::{Accounting, Resource, Unknown};
use crate::capacity::node::usage::{PoolTotals, PoolUsage};
use crate::capacity::vram::Vram;

/// A reason for which a node has no place for a pod. The extender holds one for each of thousands of nodes, so it is small.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unplaced {
    /// The node has no GPU of the requested resource, as far as this replica of the server knows.
    NoGpu {
        /// The GPU resource that the pod requests; `None` if it is not known here.
        resource: Option<Resource>,
    },
    /// The pod requests GPUs of several resources.
    SeveralResources,
    /// The node's GPUs are not known, for this cause.
    Unknown(Box<Unknown>),
    /// The pod has reservations on too many other nodes.
    TooManyPlaces {
        /// The number of other nodes with a reservation.
        places: usize,
    },
    /// A pod is starting on each GPU that has room. The policy lets one pod at a time start on a GPU.
    Starting,
    /// Too little VRAM is free.
    Shortfall {
        /// The demand of the pod, in MiB.
        demand: Vram,
        /// The largest demand that the pool can take now from such a pod, in MiB.
        free: Vram,
        /// Totals of the pool, for the message.
        pool: PoolTotals,
    },
}

impl Unplaced {
    /// The reason for a pool whose `free` is less than the demand: a starting pod, or a shortfall.
    pub fn short(demand: Vram, free: Vram, pool: &PoolUsage) -> Unplaced {
        if pool.is_kept_by_startup(free) {
            return Unplaced::Starting;
        }
        Unplaced::Shortfall { demand, free, pool: pool.totals() }
    }

    /// The machine reason of a refusal for this cause.
    pub fn reason(&self) -> Reason {
        match self {
            Unplaced::NoGpu { .. } | Unplaced::Unknown(_) | Unplaced::SeveralResources => Reason::NodeUnaccounted,
            Unplaced::TooManyPlaces { .. } => Reason::Undecided,
            Unplaced::Starting => Reason::GpuStarting,
            Unplaced::Shortfall { .. } => Reason::VramShortfall,
        }
    }

    /// The reason without what differs from node to node. It continues a sentence that begins with a number of nodes.
    pub fn countable(&self) -> impl fmt::Display + '_ {
        Countable(self)
    }
}

/// The message for one node. It continues a sentence that begins with `node "name"`.
impl fmt::Display for Unplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unplaced::NoGpu { resource: Some(resource) } => write!(f, "has no {resource} that is accounted for"),
            Unplaced::NoGpu { resource: None } => write!(f, "has no GPU that is accounted for"),
            Unplaced::SeveralResources => {
                write!(f, "has GPUs behind several resources, of which a pod that declares VRAM may request one")
            }
            Unplaced::Unknown(why) => write!(f, "has GPUs that are not accounted for: {why}"),
            Unplaced::Starting => write!(
                f,
                "has a pod that is starting, and policy lets one pod at a time start on a GPU; wait until it is ready"
            ),
            Unplaced::TooManyPlaces { places } => {
                write!(f, "gets no pod that is promised a place on {} already", count(*places, "other node"))
            }
            Unplaced::Shortfall { demand, free, pool } => shortfall(f, *demand, *free, pool),
        }
    }
}

/// Writes the message of [`Unplaced::Shortfall`].
fn shortfall(f: &mut fmt::Formatter<'_>, demand: Vram, free: Vram, pool: &PoolTotals) -> fmt::Result {
    let largest = match pool.accounting {
        Accounting::Slot => "one slot there",
        Accounting::Confirmed => "any GPU that it may be given there",
        Accounting::Steered => "the freest GPU there",
        Accounting::Exact | Accounting::Exclusive | Accounting::Unknown => "the GPU there",
    };
    write!(f, "has no room: {demand} demanded, {largest} has {free} left (")?;
    if let Some(total) = pool.allocatable {
        write!(f, "{} of {total} held by {}, ", pool.held, count(pool.holders, "pod"))?;
    }
    write!(f, "{} accounting)", pool.accounting)
}

/// Displays what [`Unplaced::countable`] returns.
struct Countable<'u>(&'u Unplaced);

impl fmt::Display for Countable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Unplaced::NoGpu { resource: Some(resource) } => {
                write!(f, "node(s) had no {resource} that is accounted for")
            }
            Unplaced::NoGpu { resource: None } => f.write_str("node(s) had no GPU that is accounted for"),
            Unplaced::SeveralResources => {
                f.write_str("node(s) had GPUs behind several resources that were asked for at once")
            }
            Unplaced::Unknown(_) => f.write_str("node(s) had GPUs that are not accounted for"),
            Unplaced::TooManyPlaces { places } => {
                write!(f, "node(s) were refused to a pod that is promised a place on {places} others already")
            }
            Unplaced::Starting => f.write_str("node(s) had a pod starting on each GPU that has room"),
            Unplaced::Shortfall { demand, pool, .. } => {
                write!(f, "node(s) had no room for {demand} on one GPU ({} accounting)", pool.accounting)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_reads_after_a_number_of_nodes_and_fits_a_line() {
        let gpu = Resource("nvidia.com/gpu".into());
        let demand = Vram::from_mib(8912);
        let pool = PoolTotals { accounting: Accounting::Slot, allocatable: None, held: Vram::ZERO, holders: 0 };
        for (unplaced, text) in [
            (Unplaced::NoGpu { resource: Some(gpu) }, "node(s) had no nvidia.com/gpu that is accounted for"),
            (Unplaced::NoGpu { resource: None }, "node(s) had no GPU that is accounted for"),
            (
                Unplaced::Unknown(Box::new(Unknown::ReportedNone { resource: Resource("nvidia.com/gpu".into()) })),
                "node(s) had GPUs that are not accounted for",
            ),
            (
                Unplaced::TooManyPlaces { places: 4 },
                "node(s) were refused to a pod that is promised a place on 4 others already",
            ),
            (Unplaced::Starting, "node(s) had a pod starting on each GPU that has room"),
            (
                Unplaced::Shortfall { demand, free: Vram::ZERO, pool },
                "node(s) had no room for 8912Mi on one GPU (slot accounting)",
            ),
        ] {
            assert_eq!(unplaced.countable().to_string(), text);
        }
    }
}
