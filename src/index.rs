//! Watch → state: folds nodes and pods, as they are seen, into the [`Cluster`] that reviews are answered from. Owns the
//! lock, what is remembered beside the cluster (what nodes advertise, which pods wait) and whether the first lists have
//! been read. No store of pods: an object is folded in and dropped.
//!
//! Three synchronous methods a kind: apply, delete, and reset after a relist. A relist is folded in object by object, and
//! what it did not name goes at its end, so that the picture is never empty in between.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use parking_lot::{RwLock, RwLockReadGuard};
use serde_json::Value;
use tokio::sync::watch;

use crate::capacity::cluster::{Cluster, Undeclared};
use crate::capacity::gpu::{Resource, Rules};
use crate::capacity::ledger::{PodUid, Shared};
use crate::capacity::moment::Moment;
use crate::k8s::gpu_ledger::GpuLedger;
use crate::k8s::node::{self, Advertised, Override};
use crate::k8s::object::{NodeObject, PodObject};
use crate::k8s::pod::{self, Stage};
use crate::k8s::snapshot::Snapshot;
use crate::unbound::{Guarded, Unbound};

mod oversized;

use oversized::Oversized;

mod freshness;
mod waiting;

use freshness::Freshness;
pub use freshness::{Kind, SILENT};
pub use waiting::{Landing, Waiting, WaitingPods};

/// The state that all parts of a server share.
#[derive(Debug)]
pub struct Index {
    state: RwLock<State>,
    oversized: Oversized,
    changed: watch::Sender<()>,
    freshness: Freshness,
}

/// What is behind the lock. Held for memory work only.
#[derive(Debug)]
pub struct State {
    /// Nodes, GPUs and who holds what.
    pub cluster: Cluster,
    /// Pods that kube-scheduler found no node for, and that request VRAM.
    pub waiting: WaitingPods,
    /// What pods count as that declare nothing, as it was said last.
    undeclared: BTreeMap<Resource, Undeclared>,
    overrides: Vec<Override>,
    several_schedulers: bool,
    advertised: BTreeMap<String, Advertised>,
    repair: BTreeSet<String>,
    ledgers: BTreeMap<String, SeenLedger>,
    /// Pods without a node of which it is known that they have no share in any GPU: their bindings need no look.
    unconcerned: BTreeSet<PodUid>,
    unbound: Unbound,
    nodes_listed: bool,
    pods_listed: bool,
    ledgers_listed: bool,
}

/// A `GpuLedger` as it was seen last.
#[derive(Clone, Debug)]
pub struct SeenLedger {
    /// Its resourceVersion.
    pub version: String,
    /// The uid of the node that owns it.
    pub owner: Option<String>,
    /// When it was made.
    pub created: Option<Moment>,
    /// Its status without the agent's section.
    pub status: Value,
}

impl Index {
    /// An empty state under these rules.
    pub fn new(rules: Rules, overrides: Vec<Override>) -> Index {
        let state = State {
            cluster: Cluster::new(rules, node::guarded_by(&overrides)),
            waiting: WaitingPods::default(),
            undeclared: BTreeMap::new(),
            overrides,
            several_schedulers: false,
            advertised: BTreeMap::new(),
            repair: BTreeSet::new(),
            ledgers: BTreeMap::new(),
            unconcerned: BTreeSet::new(),
            unbound: Unbound::default(),
            nodes_listed: false,
            pods_listed: false,
            ledgers_listed: false,
        };
        Index {
            state: RwLock::new(state),
            oversized: Oversized::default(),
            changed: watch::Sender::new(()),
            freshness: Freshness::default(),
        }
    }

    /// A static picture of a cluster.
    pub fn of_snapshot(snapshot: &Snapshot, rules: Rules, overrides: Vec<Override>) -> Index {
        let index = Index::new(rules, overrides);
        snapshot.nodes.iter().for_each(|node| index.apply_node(node));
        snapshot.pods.iter().for_each(|pod| index.apply_pod(pod));
        let mut state = index.state.write();
        for ledger in &snapshot.ledgers {
            state.cluster.apply_ledger(ledger.node(), Some(ledger.shared_or_fault()));
        }
        (state.nodes_listed, state.pods_listed, state.ledgers_listed) = (true, true, true);
        drop(state);
        index
    }

    /// Says that more than one scheduler places guarded pods, which no policy knows.
    #[must_use]
    pub fn with_several_schedulers(self) -> Index {
        let mut state = self.state.write();
        state.several_schedulers = true;
        let rules = *state.cluster.rules();
        let guarded = node::guarded_by(&state.overrides);
        state.put_in_force(rules, guarded);
        drop(state);
        self
    }

    /// The state, to read. Never hold it across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read()
    }

    /// Whether nodes, pods and ledgers have all been listed once: before that every sum is too small.
    pub fn is_synced(&self) -> bool {
        self.state.read().is_synced()
    }

    /// The API server has just sent something about objects of this kind, be it that nothing happened.
    pub fn heard(&self, kind: Kind) {
        self.freshness.heard(kind, Instant::now());
    }

    /// How long the API server has been silent about objects of a kind; `None` where it never said anything, as beside a
    /// snapshot.
    pub fn silent_for(&self, kind: Kind) -> Option<Duration> {
        self.freshness.silent_for(kind, Instant::now())
    }

    /// Whether this replica has lost the API server: what it answers from is minutes old, and it can bind nothing.
    pub fn is_cut_off(&self) -> bool {
        Kind::ALL.iter().any(|kind| self.silent_for(*kind).is_some_and(|silent| silent >= SILENT))
    }

    /// Other rules. The nodes have to be listed again for other overrides to reach them; returns whether.
    pub fn set_rules(&self, rules: Rules, overrides: &[Override]) -> bool {
        let mut state = self.state.write();
        let relist = state.overrides != overrides;
        if relist {
            state.overrides = overrides.to_vec();
        }
        state.put_in_force(rules, node::guarded_by(overrides));
        drop(state);
        self.changed.send_replace(());
        relist
    }

    /// A list begins. Before the first ones have all been read, nobody asks, and no node is ranked.
    pub fn list_begins(&self) {
        let mut state = self.state.write();
        if !state.is_synced() {
            state.cluster.hold();
        }
    }

    /// A node was seen.
    pub fn apply_node(&self, object: &NodeObject) {
        let Some(name) = object.metadata.name.as_deref() else {
            return;
        };
        let mut state = self.state.write();
        let facts = node::facts(object, &state.overrides);
        state.cluster.apply_node(name, facts);
        let advertised = node::advertised(object);
        let before = if advertised == Advertised::default() {
            state.advertised.remove(name).unwrap_or_default()
        } else {
            state.advertised.insert(name.to_owned(), advertised.clone()).unwrap_or_default()
        };
        if before != advertised {
            state.repair.insert(name.to_owned());
        }
        drop(state);
        self.changed.send_replace(());
    }

    /// A node is gone.
    pub fn delete_node(&self, name: &str) {
        let mut state = self.state.write();
        state.forget_node(name);
        drop(state);
        self.changed.send_replace(());
    }

    /// All nodes have been listed: those not named are gone.
    pub fn reset_nodes(&self, listed: &BTreeSet<String>) {
        let mut state = self.state.write();
        let known = state.cluster.node_names().chain(state.advertised.keys().map(String::as_str));
        let gone: Vec<String> = known.filter(|name| !listed.contains(*name)).map(str::to_owned).collect();
        for name in gone {
            state.forget_node(&name);
        }
        state.is_listed(|state| &mut state.nodes_listed);
        drop(state);
        self.changed.send_replace(());
    }

    /// A pod was seen.
    pub fn apply_pod(&self, object: &PodObject) {
        let uid = pod::uid(&object.metadata);
        let stage = pod::stage(object);
        self.oversized.note(&uid, object, &stage);
        let waiting = waiting::of(object);
        let bound = object.spec.node_name.as_ref().is_some_and(|node| !node.is_empty());
        let mut state = self.state.write();
        if stage == Stage::Unconcerned && !bound {
            state.unconcerned.insert(uid.clone());
        } else {
            state.unconcerned.remove(&uid);
        }
        state.unbound.see(object, &stage);
        match stage {
            Stage::Holds(node, holder) => state.cluster.apply_pod(&uid, &node, holder),
            Stage::Ended => state.cluster.delete_pod(&uid),
            Stage::Unconcerned | Stage::Unbound => {}
        }
        match waiting {
            Some(waiting) => state.waiting.insert(uid, waiting),
            None => state.waiting.remove(&uid),
        }
        drop(state);
        self.changed.send_replace(());
    }

    /// A pod is gone, or ended, which looks the same to a watch of those that live.
    pub fn delete_pod(&self, object: &PodObject) {
        let uid = &pod::uid(&object.metadata);
        let concerned = pod::stage(object) != Stage::Unconcerned;
        self.oversized.forget(uid);
        let mut state = self.state.write();
        state.unconcerned.remove(uid);
        state.unbound.forget(uid);
        if concerned {
            state.cluster.delete_pod(uid);
        }
        state.waiting.remove(uid);
        drop(state);
        self.changed.send_replace(());
    }

    /// All pods have been listed: those not named are gone.
    pub fn reset_pods(&self, listed: &BTreeSet<PodUid>) {
        let mut state = self.state.write();
        self.oversized.keep(|uid| listed.contains(uid));
        let held = |uid: &&PodUid| !listed.contains(*uid);
        let gone: Vec<PodUid> = state.cluster.pods().filter(held).cloned().collect();
        for uid in gone {
            state.cluster.delete_pod(&uid);
        }
        state.waiting.retain(|uid| listed.contains(uid));
        state.unconcerned.retain(|uid| listed.contains(uid));
        state.unbound.retain(|uid| listed.contains(uid));
        state.is_listed(|state| &mut state.pods_listed);
        drop(state);
        self.changed.send_replace(());
    }

    /// Whether a pod is kept at all, so that a relist need not remember the others.
    pub fn knows(&self, uid: &PodUid) -> bool {
        let state = self.state.read();
        state.cluster.holds(uid)
            || state.waiting.contains(uid)
            || state.unconcerned.contains(uid)
            || state.unbound.get(uid).is_some()
    }

    /// A `GpuLedger` was seen.
    pub fn apply_ledger(&self, object: &GpuLedger) {
        let name = object.node().to_owned();
        let shared = object.shared().unwrap_or_else(|error| {
            tracing::error!("{error}; nothing is placed on the node until it can be read");
            Shared { fault: Some(error.to_string()), ..Shared::default() }
        });
        let mut status = object.status.clone();
        if let Some(fields) = status.as_object_mut() {
            fields.remove("agent");
        }
        let Some(version) = object.metadata.resource_version.clone() else {
            // A write that names no version would overwrite whatever is there.
            tracing::error!(ledger = name, "has no resourceVersion and is passed over");
            return;
        };
        let owner = object.owner().map(str::to_owned);
        let created = object.metadata.creation_timestamp.as_ref().map(|time| Moment(time.0.as_millisecond()));
        let mut state = self.state.write();
        state.cluster.apply_ledger(&name, Some(shared));
        state.ledgers.insert(name, SeenLedger { version, owner, created, status });
        drop(state);
        self.changed.send_replace(());
    }

    /// A `GpuLedger` is gone.
    pub fn delete_ledger(&self, name: &str) {
        let mut state = self.state.write();
        state.cluster.apply_ledger(name, None);
        state.ledgers.remove(name);
        drop(state);
        self.changed.send_replace(());
    }

    /// All ledgers have been listed: those not named are gone.
    pub fn reset_ledgers(&self, listed: &BTreeSet<String>) {
        let mut state = self.state.write();
        let gone: Vec<String> = state.ledgers.keys().filter(|name| !listed.contains(*name)).cloned().collect();
        for name in gone {
            state.cluster.apply_ledger(&name, None);
            state.ledgers.remove(&name);
        }
        state.is_listed(|state| &mut state.ledgers_listed);
        drop(state);
        self.changed.send_replace(());
    }

    /// Time passes.
    pub fn tick(&self, now: Moment) {
        let mut state = self.state.write();
        state.cluster.tick(now);
        let undeclared = if state.nodes_listed { state.cluster.undeclared() } else { BTreeMap::new() };
        let before = std::mem::replace(&mut state.undeclared, undeclared.clone());
        drop(state);
        for (resource, Undeclared { demand, fitting, nodes }) in undeclared {
            if before.get(&resource).is_none_or(|before| before.demand != demand) {
                tracing::info!(
                    %resource, %demand, fitting, nodes, "pods that declare nothing count as the smallest slot"
                );
            }
        }
        self.changed.send_replace(());
    }

    /// Nodes whose ledger may have to be written since this was last asked.
    pub fn take_touched(&self) -> BTreeSet<String> {
        self.state.write().cluster.take_touched()
    }

    /// Whether it is known of a pod without a node that it has no share in any GPU.
    pub fn is_unconcerned(&self, uid: &PodUid) -> bool {
        self.state.read().unconcerned.contains(uid)
    }

    /// Pods that may hold a GPU and are larger than what is read of them.
    pub fn oversized_pods(&self) -> usize {
        self.oversized.count()
    }

    /// Tells that something changed.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Nodes that stand elsewhere or advertise something else than when this was last asked.
    pub fn take_stale_nodes(&self) -> BTreeSet<String> {
        let mut state = self.state.write();
        let mut nodes = state.cluster.take_changed();
        nodes.append(&mut state.repair);
        nodes
    }

    /// Every node that has GPUs, holders or something advertised: a new leader looks at all of them.
    pub fn all_nodes(&self) -> BTreeSet<String> {
        let state = self.state.read();
        state.cluster.node_names().chain(state.advertised.keys().map(String::as_str)).map(str::to_owned).collect()
    }
}

impl State {
    fn put_in_force(&mut self, rules: Rules, guarded: BTreeSet<Resource>) {
        self.cluster.set_rules(Rules { several_schedulers: self.several_schedulers, ..rules }, guarded);
    }

    fn is_synced(&self) -> bool {
        self.nodes_listed && self.pods_listed && self.ledgers_listed
    }

    /// One kind has been listed. With the last one, all nodes are ranked.
    fn is_listed(&mut self, kind: fn(&mut State) -> &mut bool) {
        let was_synced = self.is_synced();
        *kind(self) = true;
        if !was_synced && self.is_synced() {
            self.cluster.settle();
        }
    }

    fn forget_node(&mut self, name: &str) {
        self.cluster.delete_node(name);
        self.advertised.remove(name);
        self.repair.remove(name);
    }

    /// A guarded pod without a node, if it is kept.
    pub fn unbound(&self, uid: &PodUid) -> Option<&Guarded> {
        self.unbound.get(uid)
    }

    /// The `GpuLedger` of a node as it was seen last.
    pub fn ledger(&self, node: &str) -> Option<&SeenLedger> {
        self.ledgers.get(node)
    }

    /// The nodes that have a `GpuLedger`.
    pub fn ledger_names(&self) -> impl Iterator<Item = &str> {
        self.ledgers.keys().map(String::as_str)
    }

    /// What a node says of itself.
    pub fn advertised(&self, node: &str) -> Advertised {
        self.advertised.get(node).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
