//! All nodes together: which resources are guarded, how large slots and GPUs are, where the most room is. Owns the
//! picture that reviews are answered from and keeps it in orders that make each answer a lookup; events fold into it one
//! by one, in any order, any number of times.

use std::collections::{BTreeMap, BTreeSet};

use super::gpu::{Pool, Resource, Rules};
use super::ledger::{Holder, NodeLedger, PodUid, Standing};
use super::moment::Moment;
use super::name::Name;
use super::placement::{Placement, Site};
use super::sharing::Interner;
use super::verdict::{BestNode, Shortfall};
use super::vram::Vram;

/// What is known of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Who may land on it.
    pub site: Site,
    /// Its GPUs: as labels say, or as accounted for where [`Cluster::node`] gives them.
    pub pools: Vec<Pool>,
    /// Whether its status carries a number of `vramguard.dev/vram`, which only vramguard writes.
    pub advertises_vram: bool,
}

/// One node: its facts, if it has been seen, and who holds on it, which may be seen before it.
#[derive(Debug, Default)]
struct Node {
    /// Its pools as labels say.
    labelled: Vec<Pool>,
    /// With what the agent reports in their place.
    facts: NodeFacts,
    ledger: NodeLedger,
    standing: Option<Standing>,
    /// As what is kept of its pods names it.
    name: Name,
    /// The lowest priority of the pods on it that request VRAM.
    lowest: Option<i32>,
}

/// By amount, then name: the first from the end is the best, and where it does not take the pod, the next one.
type Ranking = BTreeSet<(Vram, String)>;

/// The picture of the cluster.
#[derive(Debug)]
pub struct Cluster {
    rules: Rules,
    guarded: Guarded,
    nodes: BTreeMap<String, Node>,
    node_of: BTreeMap<PodUid, Name>,
    /// The nodes whose `GpuLedger` has a reservation for a pod, sorted: mostly one, so no set.
    reserved_on: BTreeMap<PodUid, Box<[Name]>>,
    interner: Interner,
    /// Pods that ended lately, the second half since before `ended_since`.
    ended: [BTreeSet<PodUid>; 2],
    ended_since: Moment,
    /// How many pods of each priority on nodes request VRAM beside each resource.
    requested: BTreeMap<Resource, BTreeMap<i32, usize>>,
    rooms: BTreeMap<Resource, Ranking>,
    slots: BTreeMap<Resource, Ranking>,
    ceilings: BTreeMap<Resource, Ranking>,
    changed: BTreeSet<String>,
    touched: BTreeSet<String>,
    /// Whether no node is ranked, because the first lists are still being read.
    held: bool,
}

impl Cluster {
    /// An empty cluster.
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
            rooms: BTreeMap::new(),
            slots: BTreeMap::new(),
            ceilings: BTreeMap::new(),
            changed: BTreeSet::new(),
            touched: BTreeSet::new(),
            held: false,
        }
    }

    /// Other rules: every node stands elsewhere.
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

    /// A node was seen.
    pub fn apply_node(&mut self, name: &str, mut facts: NodeFacts) {
        if facts.pools.is_empty() && !self.nodes.contains_key(name) {
            return; // without GPUs and without holders there is nothing to keep
        }
        self.interner.site(&mut facts.site);
        let is_new = self.node_mut(name).standing.is_none();
        let remembered = if is_new { self.guarded.remember(name, &facts) } else { BTreeSet::new() };
        let node = self.node_mut(name);
        node.facts.site = facts.site;
        let before = std::mem::replace(&mut node.labelled, facts.pools);
        let labelled_as_before = before == node.labelled;
        self.account(name, !labelled_as_before);
        self.rerank(&remembered);
    }

    /// The pools of a node as they are accounted for, from its labels and its agent's report.
    fn account(&mut self, name: &str, changed: bool) {
        let Some(node) = self.nodes.get(name) else { return };
        let pools = node.ledger.reported(&node.labelled);
        let facts = NodeFacts { site: node.facts.site.clone(), pools, advertises_vram: false };
        let unchanged = !changed && node.facts.pools == facts.pools;
        let other_guarded = self.guarded.note(name, &node.facts.pools, &facts);
        if unchanged {
            return self.rerank(&other_guarded);
        }
        self.touched.insert(name.to_owned());
        self.unrank(name);
        let node = self.nodes.get_mut(name).expect("found above");
        if node.facts.pools != facts.pools || node.standing.is_none() {
            // Also where it stands as before: why it is not known may have changed.
            self.changed.insert(name.to_owned());
        }
        node.facts = facts;
        self.rank(name);
        self.rerank(&other_guarded);
    }

    /// A node is gone. Its pods hold on to nothing, but are remembered until they are gone too.
    pub fn delete_node(&mut self, name: &str) {
        self.apply_node(name, NodeFacts::default());
        self.forget_if_empty(name);
        self.changed.remove(name);
        self.touched.remove(name);
    }

    /// A pod was seen on a node. One that ended does not come back: what says so is older than what said it ended.
    pub fn apply_pod(&mut self, uid: &PodUid, node: &str, mut holder: Holder) {
        if self.has_ended(uid) {
            return;
        }
        if self.node_of.get(uid).is_some_and(|before| before != node) {
            self.leave(uid);
        }
        let name = self.node_mut(node).name.clone();
        if self.node_of.insert(uid.clone(), name).is_none() {
            self.depart_but(uid, Some(node));
        }
        let entry = self.node_mut(node);
        if entry.ledger.holders().get(uid) == Some(&holder) {
            return;
        }
        self.interner.holder(&mut holder);
        let promised = self.nodes.get(node).and_then(|node| node.ledger.shared()?.reservations.of(uid));
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

    /// A pod ended or is gone: it holds nothing, wherever it was promised a place.
    pub fn delete_pod(&mut self, uid: &PodUid) {
        self.ended[0].insert(uid.clone());
        self.leave(uid);
        self.depart_but(uid, None);
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

    /// Nodes that stand elsewhere than when this was last asked.
    pub fn take_changed(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.changed)
    }

    /// Nodes on which a pod or a reservation came, went or changed since this was last asked.
    pub fn take_touched(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.touched)
    }

    /// Whether a resource is guarded: a node shares it, configuration names it, or a node shared it until lately.
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

    /// A node that a pod may land on and that shares a resource without the label that says so, by which the pod could be kept
    /// off it.
    pub fn shares_unlabelled(&self, resource: &Resource, placement: &Placement) -> Option<&str> {
        self.guarded.unlabelled(resource).find(|name| self.allows(placement, name))
    }

    /// Names of the nodes that have GPUs or holders.
    pub fn node_names(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }

    /// Pods that hold on some node.
    pub fn pods(&self) -> impl Iterator<Item = &PodUid> {
        self.node_of.keys()
    }

    /// Whether a pod holds on some node.
    pub fn holds(&self, pod: &PodUid) -> bool {
        self.node_of.contains_key(pod)
    }

    /// The nodes on which a pod counts: it is seen there, or was promised a place.
    pub fn counts_on(&self, pod: &PodUid) -> impl Iterator<Item = &str> {
        self.node_of.get(pod).into_iter().chain(self.reserved_on.get(pod).into_iter().flatten()).map(Name::as_str)
    }

    /// Nodes other than this one on which a pod is promised a place.
    pub fn places_but(&self, node: &str, pod: &PodUid) -> usize {
        self.counts_on(pod).filter(|place| *place != node).count()
    }

    /// The lowest priority of the pods that hold a resource with a request.
    pub fn lowest_priority(&self, resource: &Resource) -> Option<i32> {
        self.requested.get(resource)?.keys().next().copied()
    }

    /// What is known of a node and where it stands.
    pub fn node(&self, name: &str) -> Option<(&NodeFacts, &NodeLedger, &Standing)> {
        let node = self.nodes.get(name)?;
        Some((&node.facts, &node.ledger, node.standing.as_ref()?))
    }

    /// How a demand fits the nodes that it may land on now: the best that there is; `None` where it fits one, or may fit one once
    /// pods of lower priority are preempted.
    pub fn shortfall(&self, resource: &Resource, demand: Vram, placement: &Placement) -> Option<Shortfall> {
        let rooms = self.rooms.get(resource);
        let best = rooms.and_then(|rooms| rooms.iter().rev().find(|(_, name)| self.allows(placement, name)));
        if best.is_some_and(|(room, _)| demand <= *room) {
            return None;
        }
        match self.by_preemption(resource, demand, placement, LOOKS) {
            // Nobody may be refused, or told, what was not looked at to the end.
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

    /// Nodes that can take a demand now and that the pod may land on, the one with the least room first.
    pub fn fitting<'a>(
        &'a self,
        resource: &Resource,
        demand: Vram,
        placement: &'a Placement,
    ) -> impl Iterator<Item = &'a str> {
        let rooms = self.rooms.get(resource).into_iter();
        let enough = rooms.flat_map(move |rooms| rooms.range((demand, String::new())..));
        enough.map(|(_, name)| name.as_str()).filter(|name| self.allows(placement, name))
    }

    /// The largest demand that a node can take now for a resource.
    pub fn room_on(&self, node: &str, resource: &Resource) -> Option<Vram> {
        let (facts, _, standing) = self.node(node)?;
        facts.pools.iter().any(|pool| pool.resource == *resource).then_some(standing.placeable)
    }

    fn allows(&self, placement: &Placement, name: &str) -> bool {
        self.nodes.get(name).is_some_and(|node| placement.allows(name, &node.facts.site))
    }

    fn describe(&self, resource: &Resource, name: &str) -> Option<BestNode> {
        let (_, _, standing) = self.node(name)?;
        let pool = standing.pools.iter().find(|pool| pool.resource == *resource)?;
        Some(BestNode {
            node: name.to_owned(),
            room: standing.placeable,
            allocatable: pool.allocatable,
            held: pool.held,
            holders: pool.holders,
            accounting: pool.accounting,
        })
    }

    /// Takes a node out of the rankings, under the amounts it is in with.
    fn unrank(&mut self, name: &str) {
        let Some(node) = self.nodes.get(name) else { return };
        for pool in &node.facts.pools {
            for ranking in [&mut self.rooms, &mut self.slots, &mut self.ceilings] {
                if let Some(entries) = ranking.get_mut(&pool.resource) {
                    let room = node.standing.as_ref().map(|standing| standing.placeable);
                    for amount in [room, pool.slot(&self.rules), pool.ceiling(&self.rules)].into_iter().flatten() {
                        entries.remove(&(amount, name.to_owned()));
                    }
                    if entries.is_empty() {
                        ranking.remove(&pool.resource);
                    }
                }
            }
        }
    }

    /// Computes where a node stands and puts it into the rankings.
    fn rank(&mut self, name: &str) {
        if self.held {
            return;
        }
        let Some(node) = self.nodes.get_mut(name) else { return };
        let guarded = &self.guarded;
        let standing = node.ledger.standing(&node.facts.pools, &self.rules, |resource| guarded.contains(resource));
        for pool in &node.facts.pools {
            let enter = |rankings: &mut BTreeMap<Resource, Ranking>, amount: Vram| {
                rankings.entry(pool.resource.clone()).or_default().insert((amount, name.to_owned()));
            };
            enter(&mut self.rooms, standing.placeable);
            if let Some(ceiling) = pool.ceiling(&self.rules) {
                enter(&mut self.ceilings, ceiling);
            }
            if let Some(slot) = pool.slot(&self.rules).filter(|_| pool.sharing.is_shared()) {
                enter(&mut self.slots, slot);
            }
        }
        if node.standing.as_ref() != Some(&standing) {
            self.changed.insert(name.to_owned());
        }
        node.standing = Some(standing);
        node.lowest = node.ledger.lowest_priority();
    }

    /// Ranks the nodes again that have one of these resources, which became guarded or unguarded.
    fn rerank(&mut self, resources: &BTreeSet<Resource>) {
        let ranked = resources.iter().filter_map(|resource| self.rooms.get(resource)).flatten();
        let names: BTreeSet<String> = ranked.map(|(_, name)| name.clone()).collect();
        for name in names {
            self.unrank(&name);
            self.rank(&name);
            // What its condition says depends on what is guarded, also where the amounts stay.
            self.touched.insert(name.clone());
            self.changed.insert(name);
        }
    }

    fn rebuild(&mut self) {
        for rankings in [&mut self.rooms, &mut self.slots, &mut self.ceilings] {
            rankings.clear();
        }
        let names: Vec<String> = self.nodes.keys().cloned().collect();
        for name in names {
            self.rank(&name);
        }
    }

    /// What is kept of a node, from its first mention on.
    fn node_mut(&mut self, name: &str) -> &mut Node {
        if !self.nodes.contains_key(name) {
            self.nodes.insert(name.to_owned(), Node { name: name.into(), ..Node::default() });
        }
        self.nodes.get_mut(name).expect("put there above")
    }

    /// A node that is gone, after its last pod. What it published went with it.
    fn forget_if_empty(&mut self, name: &str) {
        let empty = |node: &Node| {
            node.facts.pools.is_empty() && node.ledger.holders().is_empty() && node.ledger.shared().is_none()
        };
        if self.nodes.get(name).is_some_and(empty) {
            self.nodes.remove(name);
        }
    }

    fn note_requested(&mut self, holder: &Holder) {
        for resource in holder.requested_resources() {
            *self.requested.entry(resource.clone()).or_default().entry(holder.priority).or_default() += 1;
        }
    }

    fn forget_requested(&mut self, holder: &Holder) {
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
}

mod guarded;
mod outlook;
mod preemption;
mod shared;
mod undeclared;

use self::guarded::Guarded;
use self::preemption::{ByPreemption, LOOKS};
pub use guarded::LINGER;
pub use outlook::Outlook;
pub use shared::STARTUP_DEADLINE;
pub use undeclared::Undeclared;

#[cfg(test)]
mod tests;
