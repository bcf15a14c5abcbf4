//! The cluster-wide settings from which allocatable memory and demands are computed.
//!
//! Owns their defaults and their arithmetic; [`policy`](crate::capacity::policy) owns where they are set.

use std::fmt;

use super::Gpu;
use crate::capacity::vram::Vram;

/// The cluster-wide settings from which allocatable memory and demands are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Memory of a CUDA context that no framework counts as its own, for each process.
    pub per_process_overhead: Vram,
    /// Memory that the driver of each GPU keeps, subtracted before the headroom.
    pub driver_reserve: DriverReserve,
    /// Memory that is kept free on each GPU.
    pub headroom: Headroom,
    /// Factor on the memory that pods can be given.
    pub overcommit: Overcommit,
    /// Whether a GPU takes no further pod while a pod on it is bound and not yet ready.
    pub serialize_per_gpu: bool,
    /// Whether more than one scheduler places guarded pods.
    ///
    /// Each scheduler computes its own sum over a node, so two of them can fill the same GPU.
    pub several_schedulers: bool,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            // On an H100, one process takes 518 MiB (driver alone) to 682 MiB (PyTorch with cuBLAS) on top of what it
            // allocates.
            per_process_overhead: Vram::from_mib(720),
            driver_reserve: DriverReserve::Auto,
            headroom: Headroom { percent: 1, minimum: Vram::from_mib(256) },
            overcommit: Overcommit::NONE,
            serialize_per_gpu: false,
            several_schedulers: false,
        }
    }
}

/// Memory that the driver of a GPU keeps for itself.
///
/// No process can allocate it, and the size that GPU Feature Discovery writes includes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverReserve {
    /// What the node agent reports; until then 0.6 % of the total, at least 450 MiB.
    Auto,
    /// This amount on every GPU, whatever the node agent reports.
    Amount(Vram),
}

impl DriverReserve {
    /// Lower bound of the estimate: an H100 of 81,559 MiB keeps 480 MiB, and a smaller GPU keeps hardly less.
    const MINIMUM: Vram = Vram::from_mib(450);
    /// The estimate as a share of the total, in thousandths.
    const THOUSANDTHS: u32 = 6;

    /// Memory that the driver of `gpu` keeps.
    pub(super) fn of(self, gpu: &Gpu) -> Vram {
        match (self, gpu.driver_reserved) {
            (DriverReserve::Amount(amount), _) => amount,
            (DriverReserve::Auto, Some(reported)) => reported,
            (DriverReserve::Auto, None) => {
                gpu.total.thousandths_rounded_up(DriverReserve::THOUSANDTHS).max(DriverReserve::MINIMUM)
            }
        }
    }
}

/// Memory that is kept free on each GPU: a share of its total, rounded up, or a minimum if that is larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headroom {
    /// Share of the total in percent, 0 to 100.
    pub percent: u8,
    /// Lower bound of the headroom.
    pub minimum: Vram,
}

impl Headroom {
    pub(super) fn of(self, total: Vram) -> Vram {
        total.percent_rounded_up(self.percent).max(self.minimum)
    }
}

/// Factor on the memory of a GPU that pods can be given, in thousandths, from 0.001 to 10.
///
/// Above 1, it is no longer guaranteed that no GPU is overcommitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overcommit(u32);

impl Overcommit {
    /// Factor 1: exactly the memory of the GPU.
    pub const NONE: Overcommit = Overcommit(1000);
    const MAX: u32 = 10_000;

    /// Makes a factor from thousandths; `None` outside 1 to 10,000.
    pub fn from_thousandths(thousandths: u32) -> Option<Overcommit> {
        (1..=Overcommit::MAX).contains(&thousandths).then_some(Overcommit(thousandths))
    }

    /// Whether more can be given to pods than the GPU has.
    pub fn is_on(self) -> bool {
        self > Overcommit::NONE
    }

    pub(super) fn of(self, usable: Vram) -> Vram {
        usable.scaled_down(self.0).expect("ten times a GPU is still an amount of VRAM")
    }
}

impl fmt::Display for Overcommit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:03}", self.0 / 1000, self.0 % 1000);
        let short = text.trim_end_matches('0');
        if short.ends_with('.') { write!(f, "{short}0") } else { f.write_str(short) }
    }
}
