//! What a node agent sees on the GPUs of its node, and what follows from it.
//!
//! Owns the [`Look`]: the memory of each GPU and of each process at one moment, as the shell read it. Its modules decide
//! whose memory that is, what is reported of it, and when. The shell reads NVML, `/proc` and the clock, and writes.
//!
//! A value that could not be read is [`Unreadable`] and carries its reason. It is never zero, and the last value that
//! was read stays in the report, with the reason next to it.

use std::fmt;

use crate::capacity::name::{Name, PodUid};
use crate::capacity::time::Moment;
use crate::capacity::verdict::Unreadable;
use crate::capacity::vram::Vram;

pub mod containers;
pub mod finding;
pub mod observer;
pub mod outside;
pub mod owners;
pub mod pace;
pub mod policy;
pub mod replicas;
pub mod report;

/// What one look at the GPUs of a node found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// When it was made, by the clock of the node.
    pub at: Moment,
    /// Each physical GPU and, where MIG is on, each MIG device in place of its GPU.
    pub gpus: Vec<GpuLook>,
}

/// One GPU, or one MIG device, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuLook {
    /// The UUID that NVML reports.
    pub uuid: Name,
    /// Index of the GPU, or of the GPU that the MIG device is a part of.
    pub index: u32,
    /// Whether this is a MIG device.
    pub mig: bool,
    /// Whether an MPS server runs on it.
    pub mps: bool,
    /// Its memory.
    pub memory: Result<GpuMemory, Unreadable>,
    /// The processes on it, each once.
    pub processes: Result<Vec<Process>, Unreadable>,
}

/// The memory of one GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuMemory {
    /// All its memory, including what the driver keeps.
    pub total: Vram,
    /// Memory that the driver keeps.
    pub reserved: Vram,
    /// Memory in use, without what the driver keeps.
    pub used: Vram,
}

/// One process on one GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// The container or the pod that it belongs to.
    pub owner: Owner,
    /// Memory that it uses; `None` if the driver does not tell.
    pub memory: Option<Vram>,
    /// Whether it computed lately; `None` if the driver was not asked in this look, or does not tell.
    pub busy: Option<bool>,
}

/// Whose process it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A container of a pod of this node.
    Container {
        /// Uid of the pod in the API.
        pod: PodUid,
        /// Name of the container; empty if the status of the pod does not name it yet.
        container: Name,
    },
    /// A pod that the agent has not heard of yet. It may have arrived a moment ago.
    Arriving(PodUid),
    /// A pod that was on this node and is gone from the API, although its process is still there.
    Departed(PodUid),
    /// No pod of this node.
    Outside,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Container { pod, container } => write!(f, "{pod}/{container}"),
            Owner::Arriving(pod) | Owner::Departed(pod) => write!(f, "{pod}"),
            Owner::Outside => f.write_str("no pod"),
        }
    }
}
