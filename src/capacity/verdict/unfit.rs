//! Why a node is none for a pod, as the scheduler extender says it. Owns those sentences, beside the longer ones of the binding
//! guard in [`super::binding`].
//!
//! kube-scheduler counts equal reasons together ("3 node(s) had …"), and what it cannot count together it writes out one by
//! one, into an event and uncut into the pod's status, at each attempt. So nothing that differs from node to node is said
//! here: the figures of the best node stand in the event `VramShortfall`.

use std::fmt;

use super::Reason;
use crate::capacity::gpu::{Accounting, Resource};
use crate::capacity::ledger::PoolStanding;
use crate::capacity::vram::Vram;

/// Why a node is none for a pod. Reads after a number of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit<'a> {
    /// It has none of the GPUs that are asked for, as far as is known.
    NoGpu {
        /// What is asked for.
        resource: Option<&'a Resource>,
    },
    /// The pod takes GPUs of several of its resources.
    SeveralResources,
    /// Its GPUs are not known.
    Unknown,
    /// The pod takes its GPU from our annotation, and the node is not verified to honour that.
    PinUnverified,
    /// The pod is promised a place on too many other nodes.
    TooManyPlaces {
        /// How many.
        places: usize,
    },
    /// A pod that starts there keeps others off.
    Starting,
    /// Not enough room.
    Shortfall {
        /// What is demanded.
        demand: Vram,
        /// How the node is counted.
        accounting: Accounting,
    },
}

impl<'a> Unfit<'a> {
    /// Of a pool that has not enough room for a demand. `room` is what it has.
    pub fn short(demand: Vram, room: Vram, stands: &PoolStanding) -> Unfit<'a> {
        if stands.is_kept_by_startup(room) {
            return Unfit::Starting;
        }
        Unfit::Shortfall { demand, accounting: stands.accounting }
    }

    /// Its machine reason.
    pub fn reason(&self) -> Reason {
        match self {
            Unfit::NoGpu { .. } | Unfit::SeveralResources | Unfit::Unknown => Reason::NodeUnaccounted,
            Unfit::PinUnverified => Reason::PinUnverified,
            Unfit::TooManyPlaces { .. } => Reason::Undecided,
            Unfit::Starting => Reason::GpuStarting,
            Unfit::Shortfall { .. } => Reason::VramShortfall,
        }
    }
}

impl fmt::Display for Unfit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfit::NoGpu { resource: Some(resource) } => {
                write!(f, "node(s) had no {resource} that is accounted for")
            }
            Unfit::NoGpu { resource: None } => f.write_str("node(s) had no GPU that is accounted for"),
            Unfit::SeveralResources => {
                f.write_str("node(s) had GPUs behind several resources that were asked for at once")
            }
            Unfit::Unknown => f.write_str("node(s) had GPUs that are not accounted for"),
            Unfit::PinUnverified => f.write_str("node(s) were not verified to honour visibleDevices: Pin"),
            Unfit::TooManyPlaces { places } => {
                write!(f, "node(s) were refused to a pod that is promised a place on {places} others already")
            }
            Unfit::Starting => f.write_str("node(s) had a pod starting on each GPU that has room"),
            Unfit::Shortfall { demand, accounting } => {
                write!(f, "node(s) had no room for {demand} on one GPU ({accounting} accounting)")
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
        for (unfit, text) in [
            (Unfit::NoGpu { resource: Some(&gpu) }, "node(s) had no nvidia.com/gpu that is accounted for"),
            (Unfit::NoGpu { resource: None }, "node(s) had no GPU that is accounted for"),
            (Unfit::Unknown, "node(s) had GPUs that are not accounted for"),
            (Unfit::PinUnverified, "node(s) were not verified to honour visibleDevices: Pin"),
            (
                Unfit::TooManyPlaces { places: 4 },
                "node(s) were refused to a pod that is promised a place on 4 others already",
            ),
            (Unfit::Starting, "node(s) had a pod starting on each GPU that has room"),
            (
                Unfit::Shortfall { demand, accounting: Accounting::Slot },
                "node(s) had no room for 8912Mi on one GPU (slot accounting)",
            ),
        ] {
            assert_eq!(unfit.to_string(), text);
        }
    }
}
