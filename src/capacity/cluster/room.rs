//! How many more pods of one demand fit, and how many there are of some. Owns these counts over all nodes.

use std::collections::BTreeSet;

use super::{Cluster, NodeView, Resource, Vram};
use crate::capacity::gpu::{Accounting, Pool};
use crate::capacity::name::PodUid;
use crate::capacity::node::holder::Holder;
use crate::capacity::node::usage::PoolUsage;
use crate::capacity::pod::placement::Placement;
use crate::keys;

/// The number of further pods that fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// That many fit for certain.
    pub pods: u64,
    /// Whether no more fit, or not all nodes were counted because enough fit already. If not, which GPU each pod gets
    /// decides how many fit.
    pub is_exact: bool,
}

/// The nodes of which each shares a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnlyShared {
    /// The first of them.
    pub node: String,
    /// The number of the others.
    pub others: usize,
}

impl Cluster {
    /// The number of further pods with this demand that fit now on the nodes that they may land on, counted up to
    /// `at_most`. Each takes one replica of the resource.
    pub fn room(&self, resource: &Resource, demand: Vram, placement: &Placement, at_most: u64) -> Room {
        let mut room = Room { pods: 0, is_exact: true };
        if at_most == 0 {
            return room;
        }
        for name in self.fitting(resource, demand, placement) {
            let on_node = self.node(name).map_or_else(Room::default, |node| on_node(&node, resource, demand));
            room.pods = room.pods.saturating_add(on_node.pods);
            room.is_exact &= on_node.is_exact;
            if room.pods >= at_most {
                return Room { pods: at_most, is_exact: true };
            }
        }
        room
    }
}

impl Cluster {
    /// The number of pods that count on a node and that `is_wanted` names. It looks at all of them.
    pub fn count_pods(&self, is_wanted: impl Fn(&Holder) -> bool) -> u64 {
        let all = self.nodes.values().flat_map(|node| node.ledger.counted());
        // A pod that is seen on one node may still have a reservation on another.
        let found: BTreeSet<&PodUid> = all.filter(|(_, holder)| is_wanted(holder)).map(|(uid, _)| uid).collect();
        found.len() as u64
    }

    /// Whether a node that has the resource is one that the pod may land on, however full it is.
    pub fn may_land(&self, resource: &Resource, placement: &Placement) -> bool {
        let ranked = self.by_free.get(resource).into_iter().flatten();
        ranked.take(placement.max_nodes_compared()).any(|(_, name)| self.allows(placement, name))
    }

    /// The nodes that share a resource, if a pod that requests several of it may land on no node that does not. `None` if
    /// it may, if no node has the resource, or if there are too many nodes to compare.
    pub fn only_shared(&self, resource: &Resource, placement: &Placement) -> Option<OnlyShared> {
        let shared_labels = [keys::SHARING_TIME_SLICING, keys::SHARING_MPS];
        // The webhook adds that requirement, so a pod without it fares the same.
        let is_kept_off = placement.excludes_everywhere(keys::GFD_SHARING, &shared_labels);
        let most = placement.max_nodes_compared();
        let mut found: Option<OnlyShared> = None;
        for (looked, (name, node)) in self.nodes.iter().enumerate() {
            let Some(pool) = node.facts.pools.iter().find(|pool| pool.resource == *resource) else { continue };
            if looked >= most {
                return None;
            }
            let may_land = placement.allows(name, &node.facts.profile);
            match &mut found {
                _ if !pool.sharing.is_shared() => {
                    if may_land {
                        return None;
                    }
                }
                _ if !may_land && !is_kept_off => {}
                Some(found) => found.others = found.others.saturating_add(1),
                None => found = Some(OnlyShared { node: name.clone(), others: 0 }),
            }
        }
        found
    }
}

/// The number of further pods on a node that can take at least one.
fn on_node(node: &NodeView<'_>, resource: &Resource, demand: Vram) -> Room {
    let mut pools = node.facts.pools.iter().zip(&node.usage.pools);
    let Some((pool, usage)) = pools.find(|(pool, _)| pool.resource == *resource) else { return Room::default() };
    let Ok(contents) = &pool.contents else { return Room::default() };
    let replicas = (contents.gpus.len() as u64).saturating_mul(u64::from(contents.replicas.get()));
    let taken = node.ledger.counted().filter_map(|(_, holder)| holder.takes(resource)).fold(0, u64::saturating_add);
    let left = replicas.saturating_sub(taken);
    let (by_memory, is_exact) = by_memory(pool, usage, demand);
    Room { pods: by_memory.min(left), is_exact: is_exact || by_memory >= left }
}

/// The number of further pods by memory, and whether no more fit.
fn by_memory(pool: &Pool, usage: &PoolUsage, demand: Vram) -> (u64, bool) {
    match pool.accounting() {
        Accounting::Exact => (demand.times_in(usage.free).max(1), true),
        Accounting::Exclusive => (u64::MAX, true),
        // Each pod takes a slot of its own, however small it is, while every pod fits in one.
        Accounting::Slot if usage.free_total > usage.free => (u64::MAX, true),
        // The room of each GPU in the worst case, one GPU after the other.
        Accounting::Steered => {
            let of_gpus = usage.gpus.iter().filter_map(|gpu| gpu.free).map(|free| demand.times_in(free));
            (of_gpus.fold(0, u64::saturating_add).max(1), true)
        }
        Accounting::Slot | Accounting::Confirmed => (1, false),
        Accounting::Unknown => (0, true),
    }
}

#[cfg(test)]
mod tests;
