//! What a node agent sees on the GPUs of its node, and what follows from it.
//!
//! Owns the [`Look`]: the memory of each GPU and of each process at one moment, as the shell read it. Its modules decide
//! whose memory that is, what is reported of it, and when. The shell reads NVML, `/proc` and the clock, and writes.
//!
//! A value that could not be read is [`Unreadable`] and carries its reason. It is never zero, and the last value that
//! was read stays in the report, with the reason next to it.

use std::fmt;

use crate::capacity::gpu::GpuIndex;
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
    /// Its index.
    pub index: GpuIndex,
    /// Whether this is a MIG device.
    pub mig: bool,
    /// Whether an MPS server runs on it.
    pub mps: bool,
    /// Its memory.
    pub memory: Result<GpuMemory, Unreadable>,
    /// The processes on it, each once.
    pub processes: Listing<Process>,
}

/// The processes on one GPU, as far as they are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listing<P> {
    /// These processes, and no others.
    Listed(Vec<P>),
    /// They could not be read this time. What was read last still counts.
    Unreadable(Unreadable),
    /// The source never tells processes. What another source told before is not current any more.
    NotTold,
}

impl<P> Listing<P> {
    /// The processes, if they were listed.
    pub fn listed(&self) -> Option<&[P]> {
        match self {
            Listing::Listed(processes) => Some(processes),
            Listing::Unreadable(_) | Listing::NotTold => None,
        }
    }

    /// Why they could not be read.
    pub fn unreadable(&self) -> Option<&Unreadable> {
        match self {
            Listing::Unreadable(why) => Some(why),
            Listing::Listed(_) | Listing::NotTold => None,
        }
    }
}

impl<P> From<Result<Vec<P>, Unreadable>> for Listing<P> {
    fn from(read: Result<Vec<P>, Unreadable>) -> Listing<P> {
        read.map_or_else(Listing::Unreadable, Listing::Listed)
    }
}

/// The memory of one GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuMemory {
    /// All its memory, including what the driver keeps.
    pub total: Vram,
    /// Memory that the driver keeps; `None` if the source does not tell.
    pub reserved: Option<Vram>,
    /// Memory in use, without what the driver keeps.
    pub used: Vram,
}

/// Parts of a GPU's memory that were each rounded to MiB add up to its total with an error below this.
const ROUNDING: Vram = Vram::from_mib(4);

impl GpuMemory {
    /// The memory of a GPU from its parts. If the total is not told, it is the sum of the parts, which lacks what the driver
    /// keeps where that is not told either. `None` if the parts contradict each other.
    pub fn of_parts(used: Vram, free: Vram, reserved: Option<Vram>, total: Option<Vram>) -> Option<GpuMemory> {
        let parts = used.plus(free).plus(reserved.unwrap_or_default());
        let total = total.unwrap_or(parts);
        let fits = !total.is_zero() && parts <= total.plus(ROUNDING);
        fits.then_some(GpuMemory { total, reserved, used })
    }

    /// This reading after an earlier one. A total that is the sum of rounded parts moves by a few MiB as memory is used, and
    /// each change of a total is written at once. The largest sum is the closest to the truth.
    pub fn after(self, earlier: GpuMemory) -> GpuMemory {
        let (one, other) = (self.total.max(earlier.total), self.total.min(earlier.total));
        let total = if one.minus(other).free() < ROUNDING { one } else { self.total };
        GpuMemory { total, ..self }
    }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mib(mib: u64) -> Vram {
        Vram::from_mib(mib)
    }

    #[test]
    fn a_total_that_is_not_told_is_the_sum_of_the_parts_and_an_unknown_reserve_is_not_zero() {
        let of = |reserved: Option<u64>, total: Option<u64>| {
            GpuMemory::of_parts(mib(9_374), mib(71_705), reserved.map(mib), total.map(mib))
        };
        let memory = |total, reserved: Option<u64>| {
            Some(GpuMemory { total: mib(total), reserved: reserved.map(mib), used: mib(9_374) })
        };
        assert_eq!(of(Some(480), None), memory(81_559, Some(480)));
        assert_eq!(of(None, None), memory(81_079, None));
        assert_eq!(of(None, Some(81_559)), memory(81_559, None));
        assert_eq!(of(Some(480), Some(81_559)), memory(81_559, Some(480)));
        assert_eq!(of(Some(480), Some(81_555)), memory(81_555, Some(480)), "each part was rounded");
        assert_eq!(of(Some(480), Some(81_554)), None, "the parts are more than the whole");
        assert_eq!(GpuMemory::of_parts(mib(0), mib(0), None, None), None, "a GPU has memory");
    }

    proptest! {
        /// The oracle is the size of the GPU in bytes, which the parts do not show.
        #[test]
        fn a_total_from_rounded_parts_settles_and_is_never_more_than_the_gpu_has(
            reserved in 1_u64..1_000_000_000, used in prop::collection::vec(0_u64..80_000_000_000, 8..30),
        ) {
            const MIB: u64 = 1 << 20;
            let bytes = 85_520_809_984_u64;
            let read = |used: u64| {
                let free = bytes - reserved - used;
                GpuMemory::of_parts(mib(used / MIB), mib(free / MIB), Some(mib(reserved / MIB)), None).unwrap()
            };
            let mut totals = Vec::new();
            let mut known = read(used[0]);
            for used in &used {
                known = read(*used).after(known);
                prop_assert!(known.total <= mib(bytes / MIB) && known.total >= mib(bytes / MIB - 3));
                prop_assert_eq!(known.used, mib(used / MIB));
                totals.push(known.total);
            }
            prop_assert!(totals.is_sorted(), "it only rises, so it changes three times at most");
        }

        #[test]
        fn a_total_that_really_changed_is_taken_over(before in 1_000_u64..100_000, now in 1_000_u64..100_000) {
            let of = |total| GpuMemory { total: mib(total), reserved: None, used: mib(0) };
            let taken = of(now).after(of(before)).total;
            prop_assert_eq!(taken == mib(now), now >= before || before - now >= 4);
        }
    }
}
