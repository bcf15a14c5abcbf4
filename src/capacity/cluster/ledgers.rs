//! The cluster's record of the `GpuLedger` objects of its nodes, and the passing of time. Owns which reservations are
//! void, because their pod ended or is bound to another node. The sum over one node is
//! [`crate::capacity::node::ledger`]'s.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Cluster;
use crate::capacity::gpu::Pool;
use crate::capacity::list::List;
use crate::capacity::name::{Name, PodUid};
use crate::capacity::node::ledger::{LedgerContent, NodeLedger};
use crate::capacity::time::Moment;

/// How long a starting pod blocks its GPU under `serializePerGpu`. A pod that hangs must not block it forever.
pub const STARTUP_DEADLINE: Duration = Duration::from_secs(600);
/// How long a report of the node agent is believed. It is two and a half times the interval at which an agent renews
/// a report that does not change.
pub const REPORT_DEADLINE: Duration = Duration::from_secs(600);
/// How long ended pods are remembered: longer than the watch of another kind of object lags.
const REMEMBER_ENDED: Duration = Duration::from_secs(300);

impl Cluster {
    /// Records the content of a node's `GpuLedger`; `None` if the object is gone.
    pub fn apply_ledger(&mut self, name: &str, content: Option<LedgerContent>) {
        if content.is_none() && !self.nodes.contains_key(name) {
            return;
        }
        let mut content = content;
        if let Some(content) = &mut content {
            let node = self.nodes.get(name);
            self.interner.ledger(content, |uid| node?.ledger.holders().get(uid));
        }
        let reports_from = self.reports_from;
        let doubt = content.as_ref().and_then(|content| self.agents.doubt(name, content));
        let node = self.node_mut(name);
        let known_as = node.name.clone();
        let reserved = |ledger: &NodeLedger| -> BTreeSet<PodUid> {
            let reservations = ledger.content().into_iter().flat_map(|content| content.reservations.iter());
            reservations.map(|(uid, _)| uid.clone()).collect()
        };
        let before = reserved(&node.ledger);
        node.ledger.set_content(content);
        node.ledger.set_doubt(doubt);
        node.ledger.expire_reports(reports_from);
        let after = reserved(&node.ledger);
        for uid in before.difference(&after) {
            let nodes = self.reserved_on.remove(uid).expect("a reservation that is known is known by pod");
            let mut others: List<Name> = nodes.iter().filter(|node| **node != name).cloned().collect();
            if !others.is_empty() {
                self.interner.nodes(&mut others);
                self.reserved_on.insert(uid.clone(), others);
            }
        }
        for uid in after.difference(&before) {
            let before = self.reserved_on.remove(uid);
            let before = before.iter().flat_map(|nodes| nodes.iter()).cloned();
            let mut nodes: Vec<Name> = before.chain([known_as.clone()]).collect();
            nodes.sort_unstable();
            let mut nodes = nodes.into();
            self.interner.nodes(&mut nodes);
            self.reserved_on.insert(uid.clone(), nodes);
        }
        self.depart_from(name, after);
        self.account(name, true);
        self.release_unshown(name);
        self.forget_if_empty(name);
    }

    /// Marks those of these pods as departed that certainly hold nothing on the node.
    pub(super) fn depart_from(&mut self, name: &str, pods: BTreeSet<PodUid>) {
        let departed: Vec<PodUid> = pods.into_iter().filter(|uid| self.has_left(uid, name)).collect();
        let Some(node) = self.nodes.get_mut(name) else { return };
        for uid in departed {
            node.ledger.void(&uid);
        }
    }

    /// Whether it is certain that a pod holds nothing on a node and never will.
    pub(super) fn has_left(&self, uid: &PodUid, node: &str) -> bool {
        self.has_ended(uid) || self.node_of.get(uid).is_some_and(|bound| bound != node)
    }

    pub(super) fn has_ended(&self, uid: &PodUid) -> bool {
        self.ended.iter().any(|ended| ended.contains(uid))
    }

    /// Returns a copy of a node's ledger with other content of its `GpuLedger`, and the node's pools under that
    /// content.
    pub fn with_content(&self, name: &str, content: LedgerContent) -> Option<(NodeLedger, Vec<Pool>)> {
        let node = self.nodes.get(name)?;
        let mut ledger = node.ledger.clone();
        ledger.set_doubt(self.agents.doubt(name, &content));
        ledger.set_content(Some(content));
        let reservations = ledger.content().into_iter().flat_map(|content| content.reservations.iter());
        let gone: Vec<PodUid> =
            reservations.map(|(uid, _)| uid).filter(|uid| self.has_left(uid, name)).cloned().collect();
        for uid in gone {
            ledger.void(&uid);
        }
        let pools = ledger.reported(&node.labelled);
        Some((ledger, pools))
    }

    /// Whether a node needs a `GpuLedger`, because kube-scheduler's sum over the node does not protect each of its
    /// GPUs.
    pub fn needs_ledger(&self, name: &str) -> bool {
        let pools = self.nodes.get(name).into_iter().flat_map(|node| &node.facts.pools);
        pools.into_iter().any(|pool| self.guards(&pool.resource) && pool.needs_reservations(&self.rules))
    }

    /// Suspends ranking until [`Cluster::rank_all`]. While the initial lists are read, no review is answered, and ranking
    /// would compute each node once for each of its pods.
    pub fn defer_ranking(&mut self) {
        self.ranking_deferred = true;
    }

    /// Ranks each node once, after the initial lists. Maps are rebuilt from sorted entries, because maps that were
    /// filled in any order take a third more memory.
    pub fn rank_all(&mut self) {
        self.ranking_deferred = false;
        self.node_of = std::mem::take(&mut self.node_of).into_iter().collect();
        self.reserved_on = std::mem::take(&mut self.reserved_on).into_iter().collect();
        self.nodes.values_mut().for_each(|node| node.ledger.pack());
        self.rebuild();
    }

    /// Advances time: startups time out, reports of node agents become stale, pods that ended long ago are forgotten, and
    /// resources stop lingering.
    pub fn tick(&mut self, now: Moment) {
        if self.ended_since.after(REMEMBER_ENDED) <= now {
            let [recent, _] = std::mem::take(&mut self.ended);
            self.ended = [BTreeSet::new(), recent];
            self.ended_since = now;
        }
        self.release_overdue(now);
        let unguarded = self.guarded.tick(now);
        self.rerank(&unguarded);
        self.reports_from = now.before(REPORT_DEADLINE);
        let mut stale = Vec::new();
        for (name, node) in &mut self.nodes {
            if node.ledger.expire_reports(self.reports_from) {
                stale.push(name.clone());
            }
        }
        for name in stale {
            self.account(&name, true);
        }
        if !self.rules.serialize_per_gpu {
            return;
        }
        let from = now.before(STARTUP_DEADLINE);
        let mut ended = Vec::new();
        for (name, node) in &mut self.nodes {
            if node.ledger.expire_startups(from) {
                ended.push(name.clone());
            }
        }
        for name in ended {
            self.unrank(&name);
            self.rank(&name);
        }
    }

    /// Voids the reservations of a pod on all nodes except `bound`, the node that it is bound to.
    pub(super) fn void_reservations_except(&mut self, uid: &PodUid, bound: Option<&str>) {
        let Some(nodes) = self.reserved_on.get(uid).cloned() else { return };
        for name in nodes.iter().map(Name::as_str).filter(|name| Some(*name) != bound) {
            let Some(node) = self.nodes.get_mut(name) else { continue };
            if node.ledger.void(uid) {
                self.touched.insert(name.to_owned());
                self.unrank(name);
                self.rank(name);
            }
        }
    }
}
