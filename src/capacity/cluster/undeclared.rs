//! What pods count as that declare nothing, and whether anything accounts for what a pod asks for. Owns how many nodes are asked
//! for one pod; the orders that nodes are in are [`super`]'s.

use std::collections::{BTreeMap, BTreeSet};

use super::{Cluster, Ranking};
use crate::capacity::gpu::Resource;
use crate::capacity::placement::Placement;
use crate::capacity::verdict::Unaccounted;
use crate::capacity::vram::Vram;

/// Nodes that are asked, smallest slot first, whether a pod may land on them. A tenant writes the affinity that each of them is
/// compared with, and everybody waits meanwhile. Past it, the smallest slot of all nodes counts.
const LOOKED_AT: usize = 512;

/// What a pod counts as that declares nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Undeclared {
    /// Its demand: the smallest slot.
    pub demand: Vram,
    /// How many nodes take it when they are empty.
    pub fitting: usize,
    /// How many nodes have the resource.
    pub nodes: usize,
}

impl Cluster {
    /// The smallest slot of the nodes that share a resource and that a pod may land on; of all that share it where it may
    /// land on none of them now. A pod that declares nothing counts as that: it fits each of these nodes, and one that joins makes
    /// no other one too small. Where no node shares the resource (any more), a whole GPU is the slot. A slot of nothing would
    /// fit everywhere, any number of times, so it is passed over.
    pub fn slot_for(&self, resource: &Resource, placement: &Placement) -> Option<Vram> {
        let slots = self.slot_ranking(resource)?.iter().filter(|(slot, _)| !slot.is_zero());
        let smallest = slots.clone().next()?;
        let allowed = slots.take(LOOKED_AT).find(|(_, name)| self.allows(placement, name));
        Some(allowed.unwrap_or(smallest).0)
    }

    /// Whether an amount is the slot of a node that a pod may land on.
    pub fn is_slot(&self, resource: &Resource, amount: Vram, placement: &Placement) -> bool {
        let slots = self.slot_ranking(resource).into_iter().flat_map(|slots| slots.range((amount, String::new())..));
        slots.take_while(|(slot, _)| *slot == amount).take(LOOKED_AT).any(|(_, name)| self.allows(placement, name))
    }

    /// What a pod counts as that declares nothing and may land anywhere, for each guarded resource.
    pub fn undeclared(&self) -> BTreeMap<Resource, Undeclared> {
        let of = |resource: Resource| {
            let (demand, _) = *self.slot_ranking(&resource)?.iter().find(|(slot, _)| !slot.is_zero())?;
            let nodes = self.rooms.get(&resource).map_or(0, BTreeSet::len);
            let from = (demand, String::new());
            let fitting = self.ceilings.get(&resource).map_or(0, |ceilings| ceilings.range(from..).count());
            Some((resource, Undeclared { demand, fitting, nodes }))
        };
        self.guarded().into_iter().filter_map(of).collect()
    }

    /// Why nothing accounts for a resource that is not guarded, as far as a pod is concerned; `None` where that is harmless, because
    /// every node that the pod may land on says that each of its GPUs goes to one container.
    pub fn unaccounted(&self, resource: &Resource, placement: &Placement) -> Option<Unaccounted> {
        if let Some(node) = self.guarded.unstated(resource).find(|name| self.allows(placement, name)) {
            return Some(Unaccounted::Unstated { node: node.to_owned() });
        }
        (!self.rooms.contains_key(resource) && !resource.is_mig()).then_some(Unaccounted::NoNode)
    }

    fn slot_ranking(&self, resource: &Resource) -> Option<&Ranking> {
        self.slots.get(resource).or_else(|| self.ceilings.get(resource))
    }
}
