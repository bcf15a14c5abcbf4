//! [`Reading`]: what one reading of the GPUs found, by either source. Owns the shape that [`super::nvml`] and
//! [`super::dcgm`] fill.

use crate::capacity::gpu::GpuIndex;
use crate::capacity::name::Name;
use crate::capacity::observation::report::Driver;
use crate::capacity::observation::{GpuMemory, Listing};
use crate::capacity::verdict::Unreadable;
use crate::capacity::vram::Vram;

/// What one reading found.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Versions of the driver; `None` if the source does not tell.
    pub driver: Option<Driver>,
    /// Each GPU, or each MIG device of a GPU with MIG on.
    pub gpus: Vec<GpuReading>,
    /// Whether all lists of processes were read, as far as the source tells them.
    pub full: bool,
}

/// One GPU, or one MIG device.
#[derive(Clone, Debug)]
pub struct GpuReading {
    /// Its UUID; empty for a GPU that was lost before its UUID was ever read.
    pub uuid: Name,
    /// Its index. A DCGM exporter does not tell the index of a MIG device on its GPU.
    pub index: GpuIndex,
    /// Its product name; empty if it could not be read.
    pub product: String,
    /// Whether it is a MIG device.
    pub mig: bool,
    /// Whether an MPS server has clients on it.
    pub mps: bool,
    /// Its memory.
    pub memory: Result<GpuMemory, Unreadable>,
    /// Its processes, each once.
    pub processes: Listing<ProcessReading>,
}

/// One process on one GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessReading {
    /// Its id in the PID namespace of the agent.
    pub pid: u32,
    /// Memory that it uses; `None` if the driver does not tell.
    pub memory: Option<Vram>,
    /// Utilization of the SMs by this process since the question before, in percent; `None` if the driver was not
    /// asked, or does not tell.
    pub utilization: Option<u32>,
}
