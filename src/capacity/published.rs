//! What a node says that it has of VRAM. Owns which figures are right; Σ and room are [`super::ledger`]'s.
//!
//! kube-scheduler sees as free what a node says less what is bound there. Σ + placeable is the least that is right: the
//! largest pod that fits finds its room. Where nobody knows which GPU a pod gets (slot accounting), one pod may have a slot, but
//! several may take more together, on whichever GPU they come to lie; a node that said one slot only would take one pod for each time it
//! is written. So while pods wait it may say the more, and does where it has to be written anyway; unless one of them is larger
//! than what one may have, which would be sent there, and refused when it is bound. Whatever it says, no pods that
//! kube-scheduler places by it can overcommit a GPU, the guard present or not.

use std::collections::BTreeMap;

use super::gpu::{Accounting, Resource};
use super::ledger::{PoolStanding, Standing};
use super::vram::Vram;

/// The largest demand that waits for a node, by resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waiting(BTreeMap<Resource, Vram>);

impl Waiting {
    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Of all that wait.
    pub fn of<'a>(demands: impl IntoIterator<Item = (&'a Resource, Vram)>) -> Waiting {
        let mut largest: BTreeMap<Resource, Vram> = BTreeMap::new();
        for (resource, demand) in demands {
            match largest.get_mut(resource) {
                Some(before) => *before = demand.max(*before),
                None => _ = largest.insert(resource.clone(), demand),
            }
        }
        Waiting(largest)
    }
}

/// The figures that a node may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    least: Vram,
    /// The one to write, where it says none of them.
    pub most: Vram,
}

impl Published {
    /// Whether a node that says so is right.
    pub fn accepts(&self, said: Vram) -> bool {
        (self.least..=self.most).contains(&said)
    }
}

impl Standing {
    /// What the node may say while such pods wait; `None` where it should say nothing.
    pub fn may_publish(&self, guards: impl Fn(&Resource) -> bool, waiting: &Waiting) -> Option<Published> {
        let least = self.published?;
        let waits = self.pools.iter().any(|pool| guards(&pool.resource) && waiting.0.contains_key(&pool.resource));
        let shown = |pool: &PoolStanding| match waiting.0.get(&pool.resource) {
            Some(largest) if *largest > pool.room => pool.room,
            Some(_) | None => pool.together,
        };
        let together = of_all(&self.pools, &guards, shown).map(|room| self.bound.plus(room));
        let most = together.filter(|_| waits).map_or(least, |together| together.max(least));
        Some(Published { least, most })
    }
}

/// One number serves all resources of a node, so it is what the fullest of them can keep; `None` where none is guarded.
pub(super) fn of_all(
    pools: &[PoolStanding],
    guards: impl Fn(&Resource) -> bool,
    room: impl Fn(&PoolStanding) -> Vram,
) -> Option<Vram> {
    let guarded = || pools.iter().filter(|pool| guards(&pool.resource));
    // Where whole GPUs are all taken, their count says so, and the shared ones beside them may go on.
    let full = |pool: &&PoolStanding| pool.accounting == Accounting::Exclusive && pool.room.is_zero();
    let rooms = guarded().filter(|pool| !full(pool)).map(room);
    rooms.min().or_else(|| guarded().next().map(|_| Vram::ZERO))
}

#[cfg(test)]
mod tests;
