//! [`Plan`]: the results of planning. Owns their shapes, and how many pods of a demand each pool takes.

use std::num::NonZeroU32;

use crate::capacity::gpu::Accounting;
use crate::capacity::vram::Vram;

/// A plan for all pools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What each pool should be, in the order of the pools.
    pub pools: Vec<Planned>,
    /// What becomes of each demand, in the order of the demands.
    pub demands: Vec<Outcome>,
    /// The demand with which the pools are filled after those with a count, if there are any without.
    pub filled_with: Option<usize>,
    /// A choice with which more VRAM is used, at the price of one demand that then has no place.
    pub alternative: Option<Alternative>,
}

impl Plan {
    /// What all placed pods take.
    pub fn held(&self) -> Vram {
        self.pools.iter().map(|planned| planned.held).sum()
    }
}

/// What a pool should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Replicas of each GPU; 1 means that the GPUs are not shared.
    pub replicas: NonZeroU32,
    /// Why not more.
    pub bound: Bound,
    /// The accounting mode with these replicas.
    pub accounting: Accounting,
    /// One slot with these replicas.
    pub slot: Vram,
    /// Pods that are placed.
    pub placed: u64,
    /// Allocatable memory of all nodes together.
    pub allocatable: Vram,
    /// What the placed pods take.
    pub held: Vram,
    /// What is free and no pod with one of these demands could take.
    pub stranded: Vram,
}

/// Why a pool has not more replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// With one more, this demand would not fit a slot.
    Slot {
        /// Index of the demand.
        demand: usize,
    },
    /// More pods with this demand, the smallest, do not fit one GPU.
    Memory {
        /// Index of the demand.
        demand: usize,
    },
    /// The operator wants no more.
    Cap {
        /// What memory allows.
        by_memory: u32,
    },
    /// The GPUs are busy.
    Saturated {
        /// What memory allows.
        by_memory: u32,
    },
    /// No demand fits the pool, so it stays as it is.
    NoDemand,
}

/// What becomes of a demand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// How many fit. A demand without a count is counted alone, after all demands with a count.
    pub fits: u64,
    /// How many of them each pool takes, by index.
    pub on: Vec<(usize, u64)>,
    /// The largest demand that its pools could take at all, if this demand is larger.
    pub too_large_for: Option<Vram>,
}

/// Another choice, and what it gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alternative {
    /// Replicas of each pool.
    pub replicas: Vec<NonZeroU32>,
    /// Pods that are placed then, in place of those of the plan.
    pub placed: u64,
    /// What they take.
    pub held: Vram,
    /// Index of the demand that has no place then.
    pub homeless: usize,
}

impl Outcome {
    /// How many of the pods a pool takes.
    pub(super) fn of(&self, pool: usize) -> u64 {
        self.on.iter().filter(|(other, _)| *other == pool).map(|(_, count)| *count).sum()
    }

    /// Adds pods that a pool takes.
    pub(super) fn add(&mut self, pool: usize, count: u64) {
        if count == 0 {
            return;
        }
        self.fits += count;
        match self.on.iter_mut().find(|(other, _)| *other == pool) {
            Some((_, known)) => *known += count,
            None => self.on.push((pool, count)),
        }
    }

    /// Moves pods from one pool to another.
    pub(super) fn shift(&mut self, from: usize, to: usize, count: u64) {
        self.on.iter_mut().filter(|(pool, _)| *pool == from).for_each(|(_, known)| *known -= count);
        self.on.retain(|(_, count)| *count > 0);
        self.fits -= count;
        self.add(to, count);
    }
}
