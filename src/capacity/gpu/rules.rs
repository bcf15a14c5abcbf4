//! The cluster-wide settings that turn the size of a GPU into what can be promised of it. Owns their defaults and their
//! arithmetic; where they are written is the policy's.

use std::fmt;

use super::Gpu;
use crate::capacity::vram::Vram;

/// The cluster-wide settings that turn sizes into promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// What a CUDA context costs that no framework counts, for each process.
    pub per_process_overhead: Vram,
    /// What the driver of each GPU keeps for itself. Comes off before headroom.
    pub driver_reserve: DriverReserve,
    /// Kept free on each GPU.
    pub headroom: Headroom,
    /// Scales what may be promised.
    pub overcommit: Overcommit,
    /// Whether a GPU on which a pod starts takes no other one until that is ready.
    pub serialize_per_gpu: bool,
    /// Whether more than one scheduler places guarded pods. Each sums up a node by itself, so two can fill the same GPU.
    pub several_schedulers: bool,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            // On an H100 one process takes 518 MiB (driver alone) to 682 MiB (PyTorch with cuBLAS) next to what it allocates.
            per_process_overhead: Vram::from_mib(720),
            driver_reserve: DriverReserve::Auto,
            headroom: Headroom { percent: 1, minimum: Vram::from_mib(256) },
            overcommit: Overcommit::NONE,
            serialize_per_gpu: false,
            several_schedulers: false,
        }
    }
}

/// What the driver of a GPU keeps for itself: no process can allocate it, and the size that GPU Feature Discovery writes
/// includes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverReserve {
    /// What the agent reports; until then 0.6 % of the total, at least 450 MiB.
    Auto,
    /// This amount on every GPU, whatever the agent reports.
    Amount(Vram),
}

impl DriverReserve {
    /// The larger of two estimates: an H100 of 81,559 MiB keeps 480, and a smaller card keeps hardly less.
    const MINIMUM: Vram = Vram::from_mib(450);
    const THOUSANDTHS: u32 = 6;

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

/// Kept free on each GPU: the larger of a share of its total, rounded up, and a minimum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headroom {
    /// 0 to 100, of the total.
    pub percent: u8,
    /// At least this much.
    pub minimum: Vram,
}

impl Headroom {
    pub(super) fn of(self, total: Vram) -> Vram {
        total.percent_rounded_up(self.percent).max(self.minimum)
    }
}

/// By how much more than the memory of a GPU may be promised, in thousandths. Above 1 the promise of no overcommit is
/// off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overcommit(u32);

impl Overcommit {
    /// Exactly what is there.
    pub const NONE: Overcommit = Overcommit(1000);
    const MAX: u32 = 10_000;

    /// From thousandths: 1 to 10,000.
    pub fn from_thousandths(thousandths: u32) -> Option<Overcommit> {
        (1..=Overcommit::MAX).contains(&thousandths).then_some(Overcommit(thousandths))
    }

    /// Whether more is promised than is there.
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
