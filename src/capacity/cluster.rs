//! [`Cluster`]: a snapshot of all nodes. It answers which resources are guarded, how large slots and GPUs are, and
//! which node has the most room. Owns this snapshot, from which reviews are answered, and rankings of the nodes that
//! make each answer a lookup; one node's accounting is [`crate::capacity::node`]'s. Events update the snapshot one by
//! one, in any order, and may repeat.

use std::collections::{BTreeMap, BTreeSet};

use crate::capacity::cluster::interner::Interner;
use crate::capacity::gpu::{Pool, Resource, Rules};
use crate::capacity::list::List;
use crate::capacity::name::{Name, PodUid};
use crate::capacity::node::holder::Holder;
use crate::capacity::node::ledger::NodeLedger;
use crate::capacity::node::usage::NodeUsage;
use crate::capacity::pod::placement::{NodeProfile, Placement};
use crate::capacity::time::Moment;
use crate::capacity::verdict::{BestNode, Shortfall};
use crate::capacity::vram::Vram;

/// Facts about a node that do not depend on its pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its labels and taints, which decide which pods may land on it.
    pub profile: NodeProfile,
    /// Its pools: from its labels, or as accounted for if [`Cluster::node`] returns them.
    pub pools: Vec<Pool>,
    /// Whether its status has an amount of `vramguard.dev/vram`, which only vramguard writes.
    pub advertises_vram: bool,
}

/// One node: its facts, once the node is seen, and its holders, which may be seen before the node.
#[derive(Debug, Default)]
struct Node {
    /// Its pools from its labels alone.
    labelled: Vec<Pool>,
    /// Its facts, with the agent's report applied to the pools.
    facts: NodeFacts,
    ledger: NodeLedger,
    usage: Option<NodeUsage>,
    /// Its name, shared in memory with the records of its pods.
    name: Name,
    /// The lowest priority of the pods on it that request VRAM; `None` without such pods.
    lowest: Option<i32>,
}

/// A view of one node of a cluster.
#[derive(Clone, Copy, Debug)]
pub struct NodeView<'c> {
    /// Its pools, labels and taints. The report of its agent is applied to the pools.
    pub facts: &'c NodeFacts,
    /// Its holders and reservations.
    pub ledger: &'c NodeLedger,
    /// Its held, free and published amounts.
    pub usage: &'c NodeUsage,
}

/// Nodes ordered by amount, then by name. A search for the most room reads it from the end.
type Ranking = BTreeSet<(Vram, String)>;

/// A snapshot of the cluster.
#[derive(Debug)]
pub struct Cluster {
    rules: Rules,
    guarded: Guarded,
    nodes: BTreeMap<String, Node>,
    node_of: BTreeMap<PodUid, Name>,
    /// The nodes whose `GpuLedger` has a reservation for each pod, sorted. It is one node in most cases, so a list and
    /// not a set.
    reserved_on: BTreeMap<PodUid, List<Name>>,
    interner: Interner,
    /// Pods that ended recently: the first set since `ended_since`, the second in the period before.
    ended: [BTreeSet<PodUid>; 2],
    ended_since: Moment,
    /// The number of pods on nodes that request VRAM, by GPU resource and priority.
    requested: BTreeMap<Resource, BTreeMap<i32, usize>>,
    by_free: BTreeMap<Resource, Ranking>,
    slots: BTreeMap<Resource, Ranking>,
    max_demands: BTreeMap<Resource, Ranking>,
    kinds: Kinds,
    changed: BTreeSet<String>,
    touched: BTreeSet<String>,
    /// Whether ranking is suspended because the initial lists are still being read.
    ranking_deferred: bool,
    /// A report of a node agent that is older than this is stale.
    reports_from: Moment,
    /// Pods that are gone from the API, and count until their memory is free.
    lingering: BTreeMap<PodUid, Lingers>,
    agents: Agents,
}

impl Cluster {
    /// An empty cluster. `always_guarded` are the resources that configuration guards.
    pub fn new(rules: Rules, always_guarded: BTreeSet<Resource>) -> Cluster {
        Cluster {
            rules,
            guarded: Guarded::new(always_guarded),
            nodes: BTreeMap::new(),
            node_of: BTreeMap::new(),
            reserved_on: BTreeMap::new(),
            interner: Interner::default(),
            ended: Default::default(),
            ended_since: Moment::default(),
            requested: BTreeMap::new(),
            by_free: BTreeMap::new(),
            slots: BTreeMap::new(),
            max_demands: BTreeMap::new(),
            kinds: Kinds::default(),
            changed: BTreeSet::new(),
            touched: BTreeSet::new(),
            ranking_deferred: false,
            reports_from: Moment::default(),
            lingering: BTreeMap::new(),
            agents: Agents::default(),
        }
    }

    /// Replaces the rules and the resources that configuration guards, and computes the usage of every node again.
    pub fn set_rules(&mut self, rules: Rules, always_guarded: BTreeSet<Resource>) {
        if self.rules == rules && *self.guarded.always() == always_guarded {
            return;
        }
        self.rules = rules;
        self.guarded.set_always(always_guarded);
        self.rebuild();
        self.touched.extend(self.nodes.keys().cloned());
    }

    /// The rules in force.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Records a node that was seen.
    pub fn apply_node(&mut self, name: &str, mut facts: NodeFacts) {
        if facts.pools.is_empty() && !self.nodes.contains_key(name) {
            return; // a node without GPUs and holders needs no record
        }
        self.interner.profile(&mut facts.profile);
        let is_new = self.node_mut(name).usage.is_none();
        let remembered = if is_new { self.guarded.remember(name, &facts) } else { BTreeSet::new() };
        let node = self.node_mut(name);
        node.facts.profile = facts.profile;
        let before = std::mem::replace(&mut node.labelled, facts.pools);
        let labelled_as_before = before == node.labelled;
        self.account(name, !labelled_as_before);
        self.rerank(&remembered);
    }

    /// Computes the pools of a node from its labels and its agent's report. If they changed, or `changed` is set, the
    /// node is ranked again.
    fn account(&mut self, name: &str, changed: bool) {
        let Some(node) = self.nodes.get(name) else { return };
        let pools = node.ledger.reported(&node.labelled);
        let facts = NodeFacts { profile: node.facts.profile.clone(), pools, advertises_vram: false };
        let unchanged = !changed && node.facts.pools == facts.pools;
        let other_guarded = self.guarded.note(name, &node.facts.pools, &facts);
        if unchanged {
            return self.rerank(&other_guarded);
        }
        self.touched.insert(name.to_owned());
        self.unrank(name);
        let node = self.nodes.get_mut(name).expect("found above");
        if node.facts.pools != facts.pools || node.usage.is_none() {
            // Reported even if the usage stays equal: the reason why the GPUs are unknown may be another one.
            self.changed.insert(name.to_owned());
        }
        node.facts = facts;
        self.rank(name);
        self.rerank(&other_guarded);
    }

    /// Records that a node is gone. Its pods then hold nothing, but are remembered until they are gone too.
    pub fn delete_node(&mut self, name: &str) {
        self.apply_node(name, NodeFacts::default());
        self.forget_if_empty(name);
        self.changed.remove(name);
        self.touched.remove(name);
    }

    /// Records a pod that was seen on a node. A pod that ended is ignored: such an event is older than the event that
    /// ended it.
    pub fn apply_pod(&mut self, uid: &PodUid, node: &str, mut holder: Holder) {
        if self.has_ended(uid) {
            return;
        }
        self.lingering.remove(uid);
        if self.node_of.get(uid).is_some_and(|before| before != node) {
            self.leave(uid);
        }
        let name = self.node_mut(node).name.clone();
        if self.node_of.insert(uid.clone(), name).is_none() {
            self.void_reservations_except(uid, Some(node));
        }
        let entry = self.node_mut(node);
        if entry.ledger.holders().get(uid) == Some(&holder) {
            return;
        }
        self.interner.holder(&mut holder);
        let promised = self.nodes.get(node).and_then(|node| node.ledger.content()?.reservations.of(uid));
        if let Some(promised) = promised.filter(|promised| promised.holder.name == holder.name) {
            holder.name = promised.holder.name.clone();
        }
        self.note_requested(&holder);
        if let Some(before) = self.nodes.get_mut(node).expect("made above").ledger.confirm(uid.clone(), holder) {
            self.forget_requested(&before);
        }
        self.touched.insert(node.to_owned());
        self.unrank(node);
        self.rank(node);
    }

    /// Records that a pod ended or is gone. It holds nothing any more, and its reservations on all nodes are void.
    pub fn delete_pod(&mut self, uid: &PodUid) {
        self.ended[0].insert(uid.clone());
        self.leave(uid);
        self.void_reservations_except(uid, None);
    }

    fn leave(&mut self, uid: &PodUid) {
        let Some(node) = self.node_of.remove(uid) else { return };
        let ledger = &mut self.nodes.get_mut(node.as_str()).expect("a pod's node is kept while the pod is").ledger;
        if let Some(before) = ledger.release(uid) {
            self.forget_requested(&before);
        }
        self.touched.insert(node.to_string());
        self.unrank(&node);
        self.rank(&node);
        self.forget_if_empty(&node);
    }

    /// Returns the nodes whose usage or pools changed since the last call.
    pub fn take_changed(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.changed)
    }

    /// Returns the nodes of which an input changed since the last call: holders, reservations, pools, rules or guarded
    /// resources.
    pub fn take_touched(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.touched)
    }

    /// Whether a resource is guarded: a node shares it, configuration names it, or a node shared it until recently.
    pub fn guards(&self, resource: &Resource) -> bool {
        self.guarded.contains(resource)
    }

    /// Whether any resource is guarded.
    pub fn guards_any(&self) -> bool {
        !self.guarded.is_empty()
    }

    /// All guarded resources.
    pub fn guarded(&self) -> BTreeSet<Resource> {
        self.guarded.all()
    }

    /// The first node that the pod may land on and that shares the resource without stating so by label. The label is
    /// `nvidia.com/gpu.sharing-strategy`; a node affinity on it could not keep the pod off this node.
    pub fn shares_unlabelled(&self, resource: &Resource, placement: &Placement) -> Option<&str> {
        self.first_allowed(self.guarded.unlabelled(resource), placement)
    }

    /// The first of the nodes that the pod may land on.
    ///
    /// At most [`Placement::max_nodes_compared`] nodes are compared with the pod. If that finds none and there are more nodes, the
    /// next node is returned without a comparison. Callers use the result to keep a pod off, so an unchecked node must
    /// not let a pod in.
    fn first_allowed<'n>(&self, names: impl Iterator<Item = &'n str>, placement: &Placement) -> Option<&'n str> {
        let looks = placement.max_nodes_compared();
        names.enumerate().find(|(number, name)| *number == looks || self.allows(placement, name)).map(|(_, name)| name)
    }

    /// Names of the nodes that have GPUs, holders or a `GpuLedger`.
    pub fn node_names(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }

    /// The pods that are seen on a node.
    pub fn pods(&self) -> impl Iterator<Item = &PodUid> {
        self.node_of.keys()
    }

    /// Whether a pod is seen on a node.
    pub fn holds(&self, pod: &PodUid) -> bool {
        self.node_of.contains_key(pod)
    }

    /// The nodes on which a pod counts: it is seen there, or has a reservation there.
    pub fn counts_on(&self, pod: &PodUid) -> impl Iterator<Item = &str> {
        self.node_of
            .get(pod)
            .into_iter()
            .chain(self.reserved_on.get(pod).into_iter().flat_map(|nodes| nodes.iter()))
            .map(Name::as_str)
    }

    /// The number of places that a pod has on nodes other than `node`.
    pub fn places_except(&self, node: &str, pod: &PodUid) -> usize {
        self.counts_on(pod).filter(|place| *place != node).count()
    }

    /// The lowest priority of the pods that take the resource and request VRAM.
    pub fn lowest_priority(&self, resource: &Resource) -> Option<i32> {
        self.requested.get(resource)?.keys().next().copied()
    }

    /// A view of one node, as of the last event that concerned it; `None` if the node is not known.
    pub fn node(&self, name: &str) -> Option<NodeView<'_>> {
        let node = self.nodes.get(name)?;
        Some(NodeView { facts: &node.facts, ledger: &node.ledger, usage: node.usage.as_ref()? })
    }

    /// Returns by how much a demand falls short on the nodes that the pod may land on.
    ///
    /// The result names the best of these nodes. `None` if the demand fits one of them now, or may fit once pods of
    /// lower priority are preempted. `None` too if there are more nodes than may be checked for one answer.
    pub fn shortfall(&self, resource: &Resource, demand: Vram, placement: &Placement) -> Option<Shortfall> {
        let looks = placement.max_nodes_compared();
        let by_free = || self.by_free.get(resource).into_iter().flat_map(|by_free| by_free.iter().rev());
        let best = by_free().take(looks).find(|(_, name)| self.allows(placement, name));
        // Not all nodes were compared with the pod, so nothing may be refused or reported; or the best node has room.
        if best.is_none() && by_free().nth(looks).is_some() || best.is_some_and(|(free, _)| demand <= *free) {
            return None;
        }
        match self.by_preemption(resource, demand, placement, MAX_NODES_PREEMPTED) {
            ByPreemption::Fits | ByPreemption::Unknown => return None,
            ByPreemption::Short => {}
        }
        Some(Shortfall {
            demand,
            resource: resource.clone(),
            made_of: None,
            best: best.and_then(|(_, name)| self.describe(resource, name)),
        })
    }

    /// The nodes that can take the demand now and that the pod may land on, smallest free amount first.
    pub fn fitting<'a>(
        &'a self,
        resource: &Resource,
        demand: Vram,
        placement: &'a Placement,
    ) -> impl Iterator<Item = &'a str> {
        let by_free = self.by_free.get(resource).into_iter();
        let enough = by_free.flat_map(move |by_free| by_free.range((demand, String::new())..));
        enough.map(|(_, name)| name.as_str()).filter(|name| self.allows(placement, name))
    }

    /// The largest demand that a node can take now; `None` if it does not have the resource.
    pub fn free_on(&self, node: &str, resource: &Resource) -> Option<Vram> {
        let NodeView { facts, usage, .. } = self.node(node)?;
        facts.pools.iter().any(|pool| pool.resource == *resource).then_some(usage.free)
    }

    fn allows(&self, placement: &Placement, name: &str) -> bool {
        self.nodes.get(name).is_some_and(|node| placement.allows(name, &node.facts.profile))
    }

    fn describe(&self, resource: &Resource, name: &str) -> Option<BestNode> {
        let NodeView { usage, .. } = self.node(name)?;
        let pool = usage.pools.iter().find(|pool| pool.resource == *resource)?;
        Some(BestNode {
            node: name.to_owned(),
            free: usage.free,
            allocatable: pool.allocatable,
            held: pool.held,
            holders: pool.holders,
            accounting: pool.accounting,
        })
    }

    /// Removes a node from the rankings. Its entries have the amounts of its current usage and pools, so it must be
    /// called before these change.
    fn unrank(&mut self, name: &str) {
        let Some(node) = self.nodes.get(name) else { return };
        for pool in &node.facts.pools {
            self.kinds.remove(pool, name);
            for ranking in [&mut self.by_free, &mut self.slots, &mut self.max_demands] {
                if let Some(entries) = ranking.get_mut(&pool.resource) {
                    let free = node.usage.as_ref().map(|usage| usage.free);
                    for amount in [free, pool.slot(&self.rules), pool.max_demand(&self.rules)].into_iter().flatten() {
                        entries.remove(&(amount, name.to_owned()));
                    }
                    if entries.is_empty() {
                        ranking.remove(&pool.resource);
                    }
                }
            }
        }
    }

    /// Computes the usage of a node and adds the node to the rankings.
    fn rank(&mut self, name: &str) {
        if self.ranking_deferred {
            return;
        }
        let Some(node) = self.nodes.get_mut(name) else { return };
        let guarded = &self.guarded;
        let usage = node.ledger.usage(&node.facts.pools, &self.rules, |resource| guarded.contains(resource));
        for pool in &node.facts.pools {
            let enter = |rankings: &mut BTreeMap<Resource, Ranking>, amount: Vram| {
                rankings.entry(pool.resource.clone()).or_default().insert((amount, name.to_owned()));
            };
            self.kinds.add(pool, name);
            enter(&mut self.by_free, usage.free);
            if let Some(max_demand) = pool.max_demand(&self.rules) {
                enter(&mut self.max_demands, max_demand);
            }
            if let Some(slot) = pool.slot(&self.rules).filter(|_| pool.sharing.is_shared()) {
                enter(&mut self.slots, slot);
            }
        }
        if node.usage.as_ref() != Some(&usage) {
            self.changed.insert(name.to_owned());
        }
        node.usage = Some(usage);
        node.lowest = node.ledger.lowest_priority();
    }

    /// Ranks the nodes again that have one of these resources, because it became guarded or unguarded.
    fn rerank(&mut self, resources: &BTreeSet<Resource>) {
        let ranked = resources.iter().filter_map(|resource| self.by_free.get(resource)).flatten();
        let names: BTreeSet<String> = ranked.map(|(_, name)| name.clone()).collect();
        for name in names {
            self.unrank(&name);
            self.rank(&name);
            // Reported even if no amount changed: the condition of the node depends on what is guarded.
            self.touched.insert(name.clone());
            self.changed.insert(name);
        }
    }

    fn rebuild(&mut self) {
        for rankings in [&mut self.by_free, &mut self.slots, &mut self.max_demands] {
            rankings.clear();
        }
        self.kinds.clear();
        let names: Vec<String> = self.nodes.keys().cloned().collect();
        for name in names {
            self.rank(&name);
        }
    }

    /// The record of a node, created at its first mention.
    fn node_mut(&mut self, name: &str) -> &mut Node {
        if !self.nodes.contains_key(name) {
            self.nodes.insert(name.to_owned(), Node { name: name.into(), ..Node::default() });
        }
        self.nodes.get_mut(name).expect("put there above")
    }

    /// Removes the record of a node that is gone, after its last pod and its ledger. Its published amount is gone with
    /// it.
    fn forget_if_empty(&mut self, name: &str) {
        let empty = |node: &Node| {
            node.facts.pools.is_empty() && node.ledger.holders().is_empty() && node.ledger.content().is_none()
        };
        if self.nodes.get(name).is_some_and(empty) {
            self.nodes.remove(name);
        }
    }
}

mod agents;
mod guarded;
mod interner;
mod kinds;
mod ledgers;
mod lingering;
mod outlook;
mod preemption;
mod room;
mod undeclared;

use self::agents::Agents;
use self::guarded::Guarded;
use self::kinds::Kinds;
use self::lingering::Lingers;
use self::preemption::{ByPreemption, MAX_NODES_PREEMPTED};
pub use guarded::LINGER;
pub use kinds::{Landing, Limits};
pub use ledgers::{REPORT_DEADLINE, STARTUP_DEADLINE};
pub use lingering::RELEASE_DEADLINE;
pub use outlook::Outlook;
pub use room::{OnlyShared, Room};
pub use undeclared::Undeclared;

#[cfg(test)]
mod tests;
