//! How many pods fit the pools of several equal nodes, and what is left. Owns the packing; the choice of replicas is
//! made by the parent.

use crate::capacity::gpu::{Accounting, Pool, Rules};
use crate::capacity::vram::Vram;

/// The equal pools of several nodes while pods are placed on them.
#[derive(Clone, Debug)]
pub(super) struct Space {
    pub(super) bins: Bins,
    /// Allocatable memory of all nodes together.
    pub(super) allocatable: Vram,
    /// Pods that are placed.
    pub(super) placed: u64,
    /// What they take.
    pub(super) held: Vram,
}

/// What a pool counts in.
#[derive(Clone, Debug)]
pub(super) enum Bins {
    /// Mode slot and exclusive: a pod takes a slot, whatever it demands.
    Slots {
        /// The largest demand of a pod.
        slot: Vram,
        /// Slots that are free.
        free: u64,
    },
    /// Modes exact, confirmed and steered: the sum on a GPU counts.
    Gpus(Vec<Gpus>),
}

/// GPUs with the same memory and as many replicas left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gpus {
    number: u64,
    free: Vram,
    replicas: u64,
}

impl Space {
    pub(super) fn of(pool: &Pool, nodes: u64, rules: &Rules) -> Space {
        let allocatable = pool.allocatable(rules).checked_times(nodes).unwrap_or(Vram::MAX);
        let bins = match (&pool.contents, pool.max_demand(rules)) {
            (Ok(contents), Some(most)) => {
                let replicas = u64::from(contents.replicas.get());
                match pool.accounting() {
                    Accounting::Slot | Accounting::Exclusive => {
                        let gpus = u64::try_from(contents.gpus.len()).unwrap_or(u64::MAX);
                        let free = gpus.saturating_mul(replicas).saturating_mul(nodes);
                        Bins::Slots { slot: most, free }
                    }
                    Accounting::Exact | Accounting::Confirmed | Accounting::Steered => {
                        let gpus = contents.gpus.iter().map(|gpu| gpu.allocatable(rules).free());
                        Bins::Gpus(gpus.map(|free| Gpus { number: nodes, free, replicas }).collect())
                    }
                    Accounting::Unknown => Bins::Gpus(Vec::new()),
                }
            }
            (Ok(_) | Err(_), _) => Bins::Gpus(Vec::new()),
        };
        Space { bins, allocatable, placed: 0, held: Vram::ZERO }
    }

    /// Places up to `count` pods with this demand, and returns how many were placed.
    pub(super) fn place(&mut self, demand: Vram, count: u64) -> u64 {
        let placed = match &mut self.bins {
            Bins::Slots { slot, free } => {
                let placed = if demand <= *slot { count.min(*free) } else { 0 };
                *free -= placed;
                placed
            }
            Bins::Gpus(gpus) => place_on(gpus, demand, count),
        };
        self.placed += placed;
        self.held = self.held.plus(demand.checked_times(placed).unwrap_or(Vram::MAX));
        placed
    }

    /// The number of free slots that a pod with this demand fits; `None` if it fits none, or the pool counts by memory.
    pub(super) fn free_slots(&self, demand: Vram) -> Option<u64> {
        match self.bins {
            Bins::Slots { slot, free } => (demand <= slot).then_some(free),
            Bins::Gpus(_) => None,
        }
    }

    /// Takes out pods with this demand that were placed in slots.
    pub(super) fn take_out(&mut self, demand: Vram, count: u64) {
        if let Bins::Slots { free, .. } = &mut self.bins {
            *free += count;
        }
        self.placed -= count;
        self.held = self.held.minus(demand.checked_times(count).unwrap_or(Vram::MAX)).free();
    }

    /// What is free and no pod with this demand, or a larger one, could take. All of it without a demand.
    pub(super) fn stranded(&self, smallest: Option<Vram>) -> Vram {
        let free = self.allocatable.minus(self.held);
        let takes = |most: Vram| smallest.is_some_and(|smallest| smallest <= most);
        let usable = match &self.bins {
            Bins::Slots { slot, free } if takes(*slot) => slot.checked_times(*free).unwrap_or(Vram::MAX),
            Bins::Slots { .. } => Vram::ZERO,
            Bins::Gpus(gpus) => gpus
                .iter()
                .filter(|gpus| gpus.replicas > 0 && takes(gpus.free))
                .map(|gpus| gpus.free.checked_times(gpus.number).unwrap_or(Vram::MAX))
                .sum(),
        };
        free.minus(usable).free()
    }
}

/// First fit: fills GPU after GPU.
fn place_on(gpus: &mut Vec<Gpus>, demand: Vram, count: u64) -> u64 {
    let mut left = count;
    let mut after = Vec::with_capacity(gpus.len() + 2);
    for group in gpus.drain(..) {
        let each = group.free.mib().checked_div(demand.mib()).unwrap_or(0).min(group.replicas);
        let full = left.checked_div(each).unwrap_or(0).min(group.number);
        let rest = if full < group.number && each > 0 { left - full * each } else { 0 };
        let with = |number: u64, pods: u64| Gpus {
            number,
            free: group.free.minus(demand.checked_times(pods).unwrap_or(Vram::MAX)).free(),
            replicas: group.replicas - pods,
        };
        after.push(with(full, each));
        after.push(with(u64::from(rest > 0), rest));
        after.push(with(group.number - full - u64::from(rest > 0), 0));
        left -= full * each + rest;
    }
    after.retain(|group| group.number > 0);
    *gpus = after;
    count - left
}
