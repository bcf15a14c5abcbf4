//! The amounts of a document as amounts of the core, which sums and compares them for tables and bars.

use super::{Gpu, Holder, Node};
use crate::capacity::audit::amounts::Amounts;
use crate::capacity::vram::Vram;

/// An amount of a document. One that is larger than any memory, as only a report of a stranger has, is the largest.
pub(in crate::report) fn vram(mib: u64) -> Vram {
    Vram::checked_from_mib(mib).unwrap_or(Vram::MAX)
}

impl Gpu {
    /// Its amounts.
    pub(in crate::report) fn amounts(&self) -> Amounts {
        Amounts {
            total: Some(vram(self.total_mib)),
            headroom: Some(vram(self.headroom_mib)),
            allocatable: Some(vram(self.allocatable_mib)),
            held: Some(vram(self.held_mib)),
            free: self.free_mib.map(vram),
            used: self.used_mib.map(vram),
        }
    }

    /// What of it is in use and no pod counts with.
    pub(in crate::report) fn outside(&self) -> Option<Vram> {
        self.outside_mib.map(vram)
    }
}

impl Node {
    /// Its amounts, and of its GPUs those that only they tell: all their memory, and what is in use.
    pub(in crate::report) fn amounts(&self, gpus: &[&Gpu]) -> Amounts {
        let all: Vec<Amounts> = gpus.iter().map(|gpu| gpu.amounts()).collect();
        let together = Amounts::together(&all);
        let all_known = self.gpus > 0 && usize::try_from(self.gpus).is_ok_and(|number| number == gpus.len());
        Amounts {
            total: together.total.filter(|_| all_known),
            headroom: None,
            allocatable: self.allocatable_mib.map(vram),
            held: Some(vram(self.held_mib)),
            free: self.free_mib.map(vram),
            used: together.used.filter(|_| all_known),
        }
    }
}

impl Holder {
    /// What it counts as; `None` if not known.
    pub(in crate::report) fn amount(&self) -> Option<Vram> {
        self.vram_mib.map(vram)
    }
}
