//! Whether a pod finds room once pods of lower priority are preempted. Owns how many nodes are computed for that: each takes some
//! ten microseconds, and a tenant may have any number of pods that wait.

use super::{Cluster, Node};
use crate::capacity::gpu::Resource;
use crate::capacity::ledger::Viewpoint;
use crate::capacity::placement::{Placement, Preemption};
use crate::capacity::vram::Vram;

/// Nodes that are computed for one question: less than a millisecond under the lock.
pub(super) const LOOKS: usize = 32;

/// What preemption would do for a pod that finds no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ByPreemption {
    /// It fits a node.
    Fits,
    /// It fits none.
    Short,
    /// It fits none of those that were computed, and there are more.
    Unknown,
}

impl Cluster {
    /// Computes at most so many nodes. Only those count that are large enough when empty, that the pod may land on, and that
    /// have a pod of lower priority; the one with the least to spare comes first.
    pub(super) fn by_preemption(
        &self,
        resource: &Resource,
        demand: Vram,
        placement: &Placement,
        looks: usize,
    ) -> ByPreemption {
        let lowest = self.lowest_priority(resource);
        if placement.preemption == Preemption::Never || lowest.is_none_or(|lowest| lowest >= placement.priority) {
            return ByPreemption::Short; // nobody there to preempt
        }
        let large_enough =
            self.ceilings.get(resource).into_iter().flat_map(|nodes| nodes.range((demand, String::new())..));
        let mut candidates = large_enough.filter_map(|(_, name)| {
            let node = self.nodes.get(name)?;
            let preempts = node.lowest.is_some_and(|lowest| lowest < placement.priority);
            (preempts && placement.allows(name, &node.facts.site)).then_some(node)
        });
        if candidates.by_ref().take(looks).any(|node| self.has_room_without(node, demand, placement.priority)) {
            return ByPreemption::Fits;
        }
        if candidates.next().is_some() { ByPreemption::Unknown } else { ByPreemption::Short }
    }

    /// Whether a node has room for a demand without the pods of lower priority.
    fn has_room_without(&self, node: &Node, demand: Vram, priority: i32) -> bool {
        let viewpoint = Viewpoint::Preempting(priority);
        let guarded = node.facts.pools.iter().filter(|pool| self.guards(&pool.resource));
        let rooms = guarded.map(|pool| node.ledger.pool_standing(pool, &self.rules, viewpoint).room);
        rooms.min().is_some_and(|room| demand <= room)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{cluster, gpu, holder, node, uid};
    use super::*;
    use crate::capacity::gpu::Sharing;

    /// Each node, without any shortcut.
    fn brute_force(cluster: &Cluster, demand: Vram, placement: &Placement) -> bool {
        placement.preemption != Preemption::Never
            && cluster.nodes.iter().any(|(name, node)| {
                placement.allows(name, &node.facts.site)
                    && node.ledger.holders().values().any(|holder| holder.priority < placement.priority)
                    && cluster.has_room_without(node, demand, placement.priority)
            })
    }

    proptest! {
        #[test]
        fn the_answer_is_that_of_a_scan_of_all_nodes_or_none(
            nodes in proptest::collection::vec((8_000u64..50_000, 1u32..4, 1u32..4), 1..6),
            pods in proptest::collection::vec((0usize..6, 1u64..20_000, 0i32..4), 0..24),
            (demand, priority, looks) in (1u64..60_000, 0i32..5, 0usize..4),
        ) {
            let mut cluster = cluster();
            for (number, (size, gpus, replicas)) in nodes.iter().enumerate() {
                cluster.apply_node(&format!("n{number}"), node(*size, *gpus, *replicas, Sharing::TimeSlicing));
            }
            for (number, (on, request, priority)) in pods.iter().enumerate() {
                cluster.apply_pod(&uid(number), &format!("n{on}"), holder(*request, *priority));
            }
            let (demand, placement) = (Vram::from_mib(demand), Placement { priority, ..Placement::default() });
            let expected = if brute_force(&cluster, demand, &placement) { ByPreemption::Fits } else { ByPreemption::Short };
            prop_assert_eq!(cluster.by_preemption(&gpu(), demand, &placement, usize::MAX), expected);
            let bounded = cluster.by_preemption(&gpu(), demand, &placement, looks);
            prop_assert!(bounded == expected || bounded == ByPreemption::Unknown, "{bounded:?}, not {expected:?}");
        }
    }

    #[test]
    fn a_question_that_would_compute_every_node_is_given_up_without_a_refusal() {
        let mut cluster = cluster();
        for number in 0..LOOKS + 1 {
            let name = format!("n{number}");
            cluster.apply_node(&name, node(24_576, 1, 4, Sharing::TimeSlicing));
            cluster.apply_pod(&uid(2 * number), &name, holder(1000, 0));
            cluster.apply_pod(&uid(2 * number + 1), &name, holder(20_000, 9));
        }
        let (demand, placement) = (Vram::from_mib(8000), Placement { priority: 5, ..Placement::default() });
        assert_eq!(cluster.by_preemption(&gpu(), demand, &placement, LOOKS), ByPreemption::Unknown);
        assert_eq!(cluster.shortfall(&gpu(), demand, &placement), None);
        assert_eq!(cluster.by_preemption(&gpu(), demand, &placement, LOOKS + 1), ByPreemption::Short);
        // A demand that no node could take is refused without any look.
        assert_eq!(cluster.by_preemption(&gpu(), Vram::from_mib(30_000), &placement, 0), ByPreemption::Short);
    }
}
