//! What pods without a declaration count as, and whether anything accounts for a resource that a pod requests. Owns
//! these answers; the rankings of nodes are [`super`]'s.

use std::collections::{BTreeMap, BTreeSet};

use super::{Cluster, Ranking};
use crate::capacity::gpu::Resource;
use crate::capacity::pod::placement::Placement;
use crate::capacity::verdict::Unaccounted;
use crate::capacity::vram::Vram;

/// What a pod without a declaration counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Undeclared {
    /// Its demand in MiB: the smallest slot above zero.
    pub demand: Vram,
    /// The number of nodes that can take the demand when empty.
    pub fitting: usize,
    /// The number of nodes that have the resource.
    pub nodes: usize,
}

impl Cluster {
    /// The smallest slot of the nodes that share a resource and that the pod may land on. If the pod may land on none
    /// of them now, it is the smallest slot of all of them.
    ///
    /// A pod without a declaration counts as that amount: it fits each of these nodes, and a node that joins makes no
    /// other node too small for it. If no node shares the resource (any more), a whole GPU is the slot. A slot of zero
    /// is skipped, because it would fit everywhere, any number of times.
    ///
    /// At most [`Placement::max_nodes_compared`] nodes are compared with the pod, smallest slot first. If the pod may land on none
    /// of them and there are more nodes, the next slot counts without a comparison. It is no larger than the slots of
    /// the remaining nodes, and no smaller than the slots that were compared.
    pub fn slot_for(&self, resource: &Resource, placement: &Placement) -> Option<Vram> {
        let slots = self.slot_ranking(resource)?.iter().filter(|(slot, _)| !slot.is_zero());
        let smallest = slots.clone().next()?;
        let looks = placement.max_nodes_compared();
        let allowed = slots.enumerate().find(|(number, (_, name))| *number == looks || self.allows(placement, name));
        Some(allowed.map_or(smallest, |(_, slot)| slot).0)
    }

    /// Whether an amount is the slot of a node that the pod may land on.
    pub fn is_slot(&self, resource: &Resource, amount: Vram, placement: &Placement) -> bool {
        let slots = self.slot_ranking(resource).into_iter().flat_map(|slots| slots.range((amount, String::new())..));
        slots
            .take_while(|(slot, _)| *slot == amount)
            .take(placement.max_nodes_compared())
            .any(|(_, name)| self.allows(placement, name))
    }

    /// For each guarded resource, what a pod counts as that declares nothing and may land on any node.
    pub fn undeclared(&self) -> BTreeMap<Resource, Undeclared> {
        let of = |resource: Resource| {
            let (demand, _) = *self.slot_ranking(&resource)?.iter().find(|(slot, _)| !slot.is_zero())?;
            let nodes = self.by_free.get(&resource).map_or(0, BTreeSet::len);
            let from = (demand, String::new());
            let fitting = self.max_demands.get(&resource).map_or(0, |max_demands| max_demands.range(from..).count());
            Some((resource, Undeclared { demand, fitting, nodes }))
        };
        self.guarded().into_iter().filter_map(of).collect()
    }

    /// Why nothing accounts for a resource that is not guarded, for this pod. `None` if that is harmless: every node
    /// that the pod may land on states that each of its GPUs goes to one container.
    pub fn unaccounted(&self, resource: &Resource, placement: &Placement) -> Option<Unaccounted> {
        if let Some(node) = self.first_allowed(self.guarded.unstated(resource), placement) {
            return Some(Unaccounted::Unstated { node: node.to_owned() });
        }
        (!self.by_free.contains_key(resource) && !resource.is_mig()).then_some(Unaccounted::NoNode)
    }

    fn slot_ranking(&self, resource: &Resource) -> Option<&Ranking> {
        self.slots.get(resource).or_else(|| self.max_demands.get(resource))
    }
}
