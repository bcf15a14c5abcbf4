//! A pod for which no node has enough free VRAM now. Owns [`Shortfall`] and its messages; [`crate::capacity::cluster`]
//! finds the best node.

use std::fmt;

use super::{MadeOf, count};
use crate::capacity::gpu::{Accounting, Resource};
use crate::capacity::vram::Vram;

/// A demand that no node can take now, and the node that comes closest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortfall {
    /// The pod's demand, in MiB.
    pub demand: Vram,
    /// The GPU resource that it requests.
    pub resource: Resource,
    /// The parts of the demand; `None` if they are not known.
    pub made_of: Option<MadeOf>,
    /// The node with the most free VRAM; `None` if the pod may land on no node that has the resource.
    pub best: Option<BestNode>,
}

/// The node with the most free VRAM, of the nodes that a pod may land on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BestNode {
    /// Name of the node.
    pub node: String,
    /// The largest demand that it can take now, in MiB.
    pub free: Vram,
    /// Allocatable of all its GPUs behind the resource, in MiB; `None` if that is not known.
    pub allocatable: Option<Vram>,
    /// What is held of these GPUs, in MiB.
    pub held: Vram,
    /// The number of holders of these GPUs.
    pub holders: usize,
    /// The accounting mode of these GPUs.
    pub accounting: Accounting,
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
                        best.free, best.held
                    ),
                    (Some(total), mode) => {
                        write!(
                            f,
                            "has room for {} ({} of {total} held by {holders}, {mode} accounting)",
                            best.free, best.held
                        )
                    }
                }
            }
        }
    }
}

/// The note of the event on a pod that waits for VRAM.
pub fn waiting(shortfall: &Shortfall) -> String {
    format!("waits for VRAM: {shortfall}")
}

/// The note of the event on a waiting pod whose selectors, affinity and tolerations are too long for the cache.
///
/// For such a pod no node is ruled out, so the note says that the numbers may be of a node where the pod may not land.
pub fn waiting_anywhere(shortfall: &Shortfall) -> String {
    let why =
        "its selectors, affinity and tolerations are too long to be kept, so nodes that rule it out are counted too";
    format!("{}; {why}", waiting(shortfall))
}
