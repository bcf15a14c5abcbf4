//! What a cluster knows of the `GpuLedger` objects of its nodes: which promises are void because their pod ended or is bound
//! elsewhere, and what becomes of a node when time passes. Owns that memory; a node's own sum is [`super::super::ledger`]'s.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Cluster;
use crate::capacity::binding;
use crate::capacity::gpu::Pool;
use crate::capacity::ledger::{NodeLedger, PodUid, Shared};
use crate::capacity::moment::Moment;
use crate::capacity::name::Name;

/// How long a pod that starts keeps others off its GPU under `serializePerGpu`. One that hangs must not keep it for ever.
pub const STARTUP_DEADLINE: Duration = Duration::from_secs(600);
/// How long it is remembered that a pod ended: longer than a watch of another kind lags behind.
const REMEMBER_ENDED: Duration = Duration::from_secs(300);

impl Cluster {
    /// The `GpuLedger` of a node was seen, or seen gone (`None`).
    pub fn apply_ledger(&mut self, name: &str, shared: Option<Shared>) {
        if shared.is_none() && !self.nodes.contains_key(name) {
            return;
        }
        let mut shared = shared;
        if let Some(shared) = &mut shared {
            let node = self.nodes.get(name);
            self.interner.ledger(shared, |uid| node?.ledger.holders().get(uid));
        }
        let node = self.node_mut(name);
        let known_as = node.name.clone();
        let reserved = |ledger: &NodeLedger| -> BTreeSet<PodUid> {
            let reservations = ledger.shared().into_iter().flat_map(|shared| shared.reservations.iter());
            reservations.map(|(uid, _)| uid.clone()).collect()
        };
        let before = reserved(&node.ledger);
        node.ledger.share(shared);
        let after = reserved(&node.ledger);
        for uid in before.difference(&after) {
            let nodes = self.reserved_on.remove(uid).expect("a reservation that is known is known by pod");
            let others: Box<[Name]> = nodes.into_iter().filter(|node| *node != name).collect();
            if !others.is_empty() {
                self.reserved_on.insert(uid.clone(), others);
            }
        }
        for uid in after.difference(&before) {
            let before = self.reserved_on.remove(uid).unwrap_or_default();
            let mut nodes: Vec<Name> = before.into_iter().chain([known_as.clone()]).collect();
            nodes.sort_unstable();
            self.reserved_on.insert(uid.clone(), nodes.into());
        }
        self.depart_from(name, after);
        self.account(name, true);
        self.forget_if_empty(name);
    }

    /// Tells a node's ledger which of these pods hold nothing there for certain.
    pub(super) fn depart_from(&mut self, name: &str, pods: BTreeSet<PodUid>) {
        let departed: Vec<PodUid> = pods.into_iter().filter(|uid| self.is_elsewhere(uid, name)).collect();
        let Some(node) = self.nodes.get_mut(name) else { return };
        for uid in departed {
            node.ledger.depart(&uid);
        }
    }

    /// Whether it is certain that a pod holds nothing on a node and never will.
    pub(super) fn is_elsewhere(&self, uid: &PodUid, node: &str) -> bool {
        self.has_ended(uid) || self.node_of.get(uid).is_some_and(|bound| bound != node)
    }

    pub(super) fn has_ended(&self, uid: &PodUid) -> bool {
        self.ended.iter().any(|ended| ended.contains(uid))
    }

    /// The ledger of a node with another state of its `GpuLedger` than was last seen, and its pools.
    pub fn with_shared(&self, name: &str, shared: Shared) -> Option<(NodeLedger, Vec<Pool>)> {
        let node = self.nodes.get(name)?;
        let mut ledger = node.ledger.clone();
        ledger.share(Some(shared));
        let reservations = ledger.shared().into_iter().flat_map(|shared| shared.reservations.iter());
        let gone: Vec<PodUid> =
            reservations.map(|(uid, _)| uid).filter(|uid| self.is_elsewhere(uid, name)).cloned().collect();
        for uid in gone {
            ledger.depart(&uid);
        }
        let pools = ledger.reported(&node.labelled);
        Some((ledger, pools))
    }

    /// Whether a node needs a `GpuLedger`: kube-scheduler's sum over it does not keep each of its GPUs.
    pub fn needs_ledger(&self, name: &str) -> bool {
        let pools = self.nodes.get(name).into_iter().flat_map(|node| &node.facts.pools);
        pools.into_iter().any(|pool| self.guards(&pool.resource) && binding::needs_reservations(pool, &self.rules))
    }

    /// Leaves rankings alone until [`Cluster::settle`]. While the first lists are read, nobody may ask yet, and each node would be
    /// computed once for each of its pods.
    pub fn hold(&mut self) {
        self.held = true;
    }

    /// Ranks each node once, after the first lists. What is kept of pods moves together: maps that were filled in any order are
    /// a third larger than those made of what is sorted.
    pub fn settle(&mut self) {
        self.held = false;
        self.node_of = std::mem::take(&mut self.node_of).into_iter().collect();
        self.reserved_on = std::mem::take(&mut self.reserved_on).into_iter().collect();
        self.nodes.values_mut().for_each(|node| node.ledger.pack());
        self.rebuild();
    }

    /// Time passes: startups come to their deadline, and what ended long ago is forgotten.
    pub fn tick(&mut self, now: Moment) {
        if self.ended_since.after(REMEMBER_ENDED) <= now {
            let [recent, _] = std::mem::take(&mut self.ended);
            self.ended = [BTreeSet::new(), recent];
            self.ended_since = now;
        }
        let unguarded = self.guarded.tick(now);
        self.rerank(&unguarded);
        if !self.rules.serialize_per_gpu {
            return;
        }
        let from = now.before(STARTUP_DEADLINE);
        let mut ended = Vec::new();
        for (name, node) in &mut self.nodes {
            if node.ledger.startups_from(from) {
                ended.push(name.clone());
            }
        }
        for name in ended {
            self.unrank(&name);
            self.rank(&name);
        }
    }

    /// Takes back what was promised to a pod on nodes that it is not on.
    pub(super) fn depart_but(&mut self, uid: &PodUid, bound: Option<&str>) {
        let nodes = self.reserved_on.get(uid).cloned().unwrap_or_default();
        for name in nodes.iter().map(Name::as_str).filter(|name| Some(*name) != bound) {
            let Some(node) = self.nodes.get_mut(name) else { continue };
            if node.ledger.depart(uid) {
                self.touched.insert(name.to_owned());
                self.unrank(name);
                self.rank(name);
            }
        }
    }
}
