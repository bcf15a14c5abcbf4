//! Whether a pod finds room once pods of lower priority are preempted. Owns the limit on the nodes that are computed
//! for one answer: each takes some ten microseconds, and a tenant may have any number of waiting pods.

use super::{Cluster, Node};
use crate::capacity::gpu::Resource;
use crate::capacity::node::holder::Holder;
use crate::capacity::node::usage::Counted;
use crate::capacity::pod::placement::{Placement, Preemption};
use crate::capacity::vram::Vram;

/// The most nodes that are computed for one answer: less than a millisecond under the lock.
pub(super) const MAX_NODES_PREEMPTED: usize = 32;

/// What preemption would achieve for a pod that finds no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ByPreemption {
    /// The pod fits a node.
    Fits,
    /// The pod fits no node.
    Short,
    /// The pod fits none of the computed nodes, and there are more.
    Unknown,
}

impl Cluster {
    /// Counts the resources and the priority of a holder.
    pub(super) fn note_requested(&mut self, holder: &Holder) {
        for resource in holder.requested_resources() {
            *self.requested.entry(resource.clone()).or_default().entry(holder.priority).or_default() += 1;
        }
    }

    /// Takes back what [`Cluster::note_requested`] counted.
    pub(super) fn forget_requested(&mut self, holder: &Holder) {
        for resource in holder.requested_resources() {
            let counted = "a holder that was confirmed was counted";
            let priorities = self.requested.get_mut(resource).expect(counted);
            let count = priorities.get_mut(&holder.priority).expect(counted);
            *count -= 1;
            if *count == 0 {
                priorities.remove(&holder.priority);
            }
            if priorities.is_empty() {
                self.requested.remove(resource);
            }
        }
    }

    /// Computes whether the demand fits once pods of lower priority are preempted, for at most `looks` nodes.
    ///
    /// A node is a candidate if it is large enough when empty, if the pod may land on it, and if it has a pod of lower
    /// priority. The smallest candidate comes first.
    pub(super) fn by_preemption(
        &self,
        resource: &Resource,
        demand: Vram,
        placement: &Placement,
        looks: usize,
    ) -> ByPreemption {
        let lowest = self.lowest_priority(resource);
        if placement.preemption == Preemption::Never || lowest.is_none_or(|lowest| lowest >= placement.priority) {
            return ByPreemption::Short; // no pod to preempt
        }
        let large_enough =
            self.max_demands.get(resource).into_iter().flat_map(|nodes| nodes.range((demand, String::new())..));
        let mut candidates = large_enough.filter_map(|(_, name)| {
            let node = self.nodes.get(name)?;
            let preempts = node.lowest.is_some_and(|lowest| lowest < placement.priority);
            (preempts && placement.allows(name, &node.facts.profile)).then_some(node)
        });
        if candidates.by_ref().take(looks).any(|node| self.has_room_without(node, demand, placement.priority)) {
            return ByPreemption::Fits;
        }
        if candidates.next().is_some() { ByPreemption::Unknown } else { ByPreemption::Short }
    }

    /// Whether a node has room for a demand if its pods of lower priority are gone.
    fn has_room_without(&self, node: &Node, demand: Vram, priority: i32) -> bool {
        let counting = Counted::NotPreemptibleBy(priority);
        let guarded = node.facts.pools.iter().filter(|pool| self.guards(&pool.resource));
        let free = guarded.map(|pool| node.ledger.pool_usage(pool, &self.rules, counting).free);
        free.min().is_some_and(|free| demand <= free)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{cluster, gpu, holder, node, uid};
    use super::*;
    use crate::capacity::gpu::Sharing;

    /// Checks every node, without shortcuts.
    fn brute_force(cluster: &Cluster, demand: Vram, placement: &Placement) -> bool {
        placement.preemption != Preemption::Never
            && cluster.nodes.iter().any(|(name, node)| {
                placement.allows(name, &node.facts.profile)
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
        for number in 0..MAX_NODES_PREEMPTED + 1 {
            let name = format!("n{number}");
            cluster.apply_node(&name, node(24_576, 1, 4, Sharing::TimeSlicing));
            cluster.apply_pod(&uid(2 * number), &name, holder(1000, 0));
            cluster.apply_pod(&uid(2 * number + 1), &name, holder(20_000, 9));
        }
        let (demand, placement) = (Vram::from_mib(8000), Placement { priority: 5, ..Placement::default() });
        assert_eq!(cluster.by_preemption(&gpu(), demand, &placement, MAX_NODES_PREEMPTED), ByPreemption::Unknown);
        assert_eq!(cluster.shortfall(&gpu(), demand, &placement), None);
        assert_eq!(cluster.by_preemption(&gpu(), demand, &placement, MAX_NODES_PREEMPTED + 1), ByPreemption::Short);
        // No node could ever take this demand, so it is refused without computing any.
        assert_eq!(cluster.by_preemption(&gpu(), Vram::from_mib(30_000), &placement, 0), ByPreemption::Short);
    }
}
