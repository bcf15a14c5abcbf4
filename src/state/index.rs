//! The index: folds the nodes, pods and ledgers that the watches deliver into the [`Cluster`] that reviews are answered
//! from. Owns the lock, what is cached next to the cluster (what nodes advertise, which pods are unschedulable), and
//! whether the first lists have been read. Objects are not stored: each one is folded in and dropped.
//!
//! Each kind has three synchronous methods: apply, delete, and reset after a relist. A relist is folded in object by
//! object. What the list did not name is removed only at its end, so that the state is never empty in between.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::{RwLock, RwLockReadGuard};
use serde_json::Value;
use tokio::sync::watch;

use crate::capacity::cluster::{Cluster, Undeclared};
use crate::capacity::gpu::{Resource, Rules};
use crate::capacity::name::PodUid;
use crate::capacity::node::ledger::LedgerContent;
use crate::capacity::time::Moment;
use crate::k8s::agent_pod::agent_pod;
use crate::k8s::gpu_ledger::{GpuLedger, status};
use crate::k8s::node::{self, Advertised, Override};
use crate::k8s::object::{NodeObject, PodObject};
use crate::k8s::pod::{self, Guarded, Stage};
use crate::k8s::snapshot::Snapshot;
use crate::state::unbound::Unbound;

mod oversized;

use oversized::Oversized;

mod freshness;
mod rerouted;
mod waiting;

use freshness::Freshness;
pub use freshness::{Kind, SILENT};
pub use rerouted::Rerouted;
pub use waiting::{PlacementKept, Waiting, WaitingPods};

/// The state that all parts of a server share.
#[derive(Debug)]
pub struct Index {
    state: RwLock<State>,
    oversized: Oversized,
    changed: watch::Sender<()>,
    freshness: Freshness,
}

/// The state behind the lock. The lock is held only for work in memory.
#[derive(Debug)]
pub struct State {
    /// Nodes, their GPUs, and the pods that hold them.
    pub cluster: Cluster,
    /// Unschedulable pods that request VRAM.
    pub waiting: WaitingPods,
    /// The demand of pods that declare nothing, per resource, as of the last tick. A change is logged.
    undeclared: BTreeMap<Resource, Undeclared>,
    overrides: Vec<Override>,
    several_schedulers: bool,
    advertised: BTreeMap<String, Advertised>,
    repair: BTreeSet<String>,
    ledgers: BTreeMap<String, LedgerSnapshot>,
    /// Pods without a node that request neither GPU nor VRAM. Their bindings need no review.
    without_gpu: BTreeSet<PodUid>,
    unbound: Unbound,
    /// Pods that were bound outside of their own pool, since the last call of [`Index::take_rerouted`].
    rerouted: VecDeque<Rerouted>,
    nodes_listed: bool,
    pods_listed: bool,
    ledgers_listed: bool,
}

/// A `GpuLedger` as the watch last reported it.
#[derive(Clone, Debug)]
pub struct LedgerSnapshot {
    /// The ledger's resourceVersion.
    pub version: String,
    /// The uid of the node that owns the ledger.
    pub owner: Option<String>,
    /// The ledger's creation time.
    pub created: Option<Moment>,
    /// The ledger's status, with a digest in place of the section of the node agent.
    pub status: Value,
}

impl Index {
    /// Creates an empty state under these rules.
    pub fn new(rules: Rules, overrides: Vec<Override>) -> Index {
        let mut cluster = Cluster::new(rules, node::guarded_by(&overrides));
        // The watch delivers every pod that has not ended.
        cluster.follow_agent_pods();
        Index::of_cluster(cluster, overrides)
    }

    /// As [`Index::new`], for an agent: it does not compare its own claim to steer with its pod.
    pub fn of_agent(rules: Rules, overrides: Vec<Override>) -> Index {
        let mut cluster = Cluster::new(rules, node::guarded_by(&overrides));
        cluster.ignore_agent_pods();
        Index::of_cluster(cluster, overrides)
    }

    fn of_cluster(cluster: Cluster, overrides: Vec<Override>) -> Index {
        let state = State {
            cluster,
            waiting: WaitingPods::default(),
            undeclared: BTreeMap::new(),
            overrides,
            several_schedulers: false,
            advertised: BTreeMap::new(),
            repair: BTreeSet::new(),
            ledgers: BTreeMap::new(),
            without_gpu: BTreeSet::new(),
            unbound: Unbound::default(),
            rerouted: VecDeque::new(),
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

    /// Creates the index of a static snapshot of a cluster, which may lack the pods of agents.
    pub fn of_snapshot(snapshot: &Snapshot, rules: Rules, overrides: Vec<Override>) -> Index {
        let index = Index::of_cluster(Cluster::new(rules, node::guarded_by(&overrides)), overrides);
        snapshot.nodes.iter().for_each(|node| index.apply_node(node));
        snapshot.pods.iter().for_each(|pod| index.apply_pod(pod));
        let mut state = index.state.write();
        for ledger in &snapshot.ledgers {
            state.cluster.apply_ledger(ledger.node(), Some(ledger.content_or_fault()));
        }
        (state.nodes_listed, state.pods_listed, state.ledgers_listed) = (true, true, true);
        drop(state);
        index
    }

    /// Declares that the snapshot has all pods of the cluster, so that an agent whose pod it lacks no longer runs.
    #[must_use]
    pub fn with_all_pods(self) -> Index {
        self.update(|state| state.cluster.follow_agent_pods());
        self
    }

    /// Marks that several schedulers place guarded pods. No policy field states this.
    #[must_use]
    pub fn with_several_schedulers(self) -> Index {
        let mut state = self.state.write();
        state.several_schedulers = true;
        let rules = *state.cluster.rules();
        let guarded = node::guarded_by(&state.overrides);
        state.apply_rules(rules, guarded);
        drop(state);
        self
    }

    /// Locks the state for reading. Never hold the guard across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read()
    }

    /// Whether nodes, pods and ledgers have each been listed once. Before that, every sum may be too small.
    pub fn is_synced(&self) -> bool {
        self.state.read().is_synced()
    }

    /// Notes that the API server has just sent something about a kind, even if no object changed.
    pub fn heard(&self, kind: Kind) {
        self.freshness.heard(kind, Instant::now());
    }

    /// How long the API server has been silent about a kind. `None` if it never sent anything, as with a snapshot.
    pub fn silent_for(&self, kind: Kind) -> Option<Duration> {
        self.freshness.silent_for(kind, Instant::now())
    }

    /// Whether this replica has lost the API server. Its state is then minutes old, and it can bind nothing.
    pub fn is_cut_off(&self) -> bool {
        self.freshness.is_lost(Instant::now())
    }

    /// Changes the state under the lock, then notifies the subscribers.
    fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state.write());
        self.changed.send_replace(());
        result
    }

    /// Puts other rules in force. Returns whether the nodes must be listed again, because the overrides changed.
    pub fn set_rules(&self, rules: Rules, overrides: &[Override]) -> bool {
        self.update(|state| {
            let relist = state.overrides != overrides;
            if relist {
                state.overrides = overrides.to_vec();
            }
            state.apply_rules(rules, node::guarded_by(overrides));
            relist
        })
    }

    /// Notes that a list begins. Until the first lists are complete nothing queries the index, so no node is ranked.
    pub fn list_begins(&self) {
        let mut state = self.state.write();
        if !state.is_synced() {
            state.cluster.defer_ranking();
        }
    }

    /// Folds in a node that a list or watch delivered.
    pub fn apply_node(&self, object: &NodeObject) {
        let Some(name) = object.metadata.name.as_deref() else {
            return;
        };
        self.update(|state| {
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
        });
    }

    /// Removes a deleted node.
    pub fn delete_node(&self, name: &str) {
        self.update(|state| {
            state.forget_node(name);
        });
    }

    /// Removes the nodes that a complete list does not name.
    pub fn reset_nodes(&self, listed: &BTreeSet<String>) {
        self.update(|state| {
            let known = state.cluster.node_names().chain(state.advertised.keys().map(String::as_str));
            let gone: Vec<String> = known.filter(|name| !listed.contains(*name)).map(str::to_owned).collect();
            for name in gone {
                state.forget_node(&name);
            }
            state.mark_listed(|state| &mut state.nodes_listed);
        });
    }

    /// Folds in a pod that a list or watch delivered.
    pub fn apply_pod(&self, object: &PodObject) {
        let uid = pod::uid(&object.metadata);
        let stage = pod::stage(object);
        self.oversized.note(&uid, object, &stage);
        let waiting = waiting::of(object);
        let of_agent = agent_pod(object);
        let bound = object.spec.node_name.as_ref().is_some_and(|node| !node.is_empty());
        self.update(|state| {
            if stage == Stage::WithoutGpu && !bound {
                state.without_gpu.insert(uid.clone());
            } else {
                state.without_gpu.remove(&uid);
            }
            match of_agent {
                Some(pod) => state.cluster.apply_agent_pod(&uid, pod),
                None => state.cluster.delete_agent_pod(&uid),
            }
            state.note_rerouted(&uid, object, &stage);
            state.unbound.see(object, &stage);
            match stage {
                Stage::Holds(node, holder) => state.cluster.apply_pod(&uid, &node, holder),
                Stage::Ended => state.cluster.end_pod(&uid),
                Stage::WithoutGpu | Stage::Unbound => {}
            }
            match waiting {
                Some(waiting) => state.waiting.insert(uid, waiting),
                None => state.waiting.remove(&uid),
            }
        });
    }

    /// Removes a pod that was deleted or that ended, as soon as its memory is free: see [`Cluster::end_pod`]. A watch with
    /// [`LIVE_PODS`](super::watch::LIVE_PODS) reports both as deleted.
    pub fn delete_pod(&self, object: &PodObject) {
        let uid = &pod::uid(&object.metadata);
        let concerned = pod::stage(object) != Stage::WithoutGpu;
        self.oversized.forget(uid);
        self.update(|state| {
            state.without_gpu.remove(uid);
            state.unbound.forget(uid);
            state.cluster.delete_agent_pod(uid);
            if concerned {
                state.cluster.end_pod(uid);
            }
            state.waiting.remove(uid);
        });
    }

    /// Removes the pods that a complete list does not name.
    pub fn reset_pods(&self, listed: &BTreeSet<PodUid>) {
        self.update(|state| {
            self.oversized.keep(|uid| listed.contains(uid));
            let held = |uid: &&PodUid| !listed.contains(*uid);
            let gone: Vec<PodUid> = state.cluster.pods().filter(held).cloned().collect();
            for uid in gone {
                state.cluster.end_pod(&uid);
            }
            let gone: Vec<PodUid> = state.cluster.agent_pods().filter(held).cloned().collect();
            gone.iter().for_each(|uid| state.cluster.delete_agent_pod(uid));
            state.waiting.retain(|uid| listed.contains(uid));
            state.without_gpu.retain(|uid| listed.contains(uid));
            state.unbound.retain(|uid| listed.contains(uid));
            state.mark_listed(|state| &mut state.pods_listed);
        });
    }

    /// Whether the index keeps anything of a pod. A relist need not remember the uids of other pods.
    pub fn knows(&self, uid: &PodUid) -> bool {
        let state = self.state.read();
        state.cluster.holds(uid)
            || state.cluster.is_agent_pod(uid)
            || state.waiting.contains(uid)
            || state.without_gpu.contains(uid)
            || state.unbound.get(uid).is_some()
    }

    /// Folds in a `GpuLedger` that a list or watch delivered.
    pub fn apply_ledger(&self, object: &GpuLedger) {
        let name = object.node().to_owned();
        let content = object.content().unwrap_or_else(|error| {
            tracing::error!("{error}; nothing is placed on the node until it can be read");
            LedgerContent { fault: Some(error.to_string()), ..LedgerContent::default() }
        });
        let mut status = object.status.clone();
        if let Some(agent) = status.get_mut("agent") {
            *agent = status::digest(agent);
        }
        let Some(version) = object.metadata.resource_version.clone() else {
            // A write without a resourceVersion is no compare-and-swap: it would overwrite any ledger.
            tracing::error!(ledger = name, "has no resourceVersion and is passed over");
            return;
        };
        let owner = object.owner().map(str::to_owned);
        let created = object.metadata.creation_timestamp.as_ref().map(|time| Moment(time.0.as_millisecond()));
        self.update(|state| {
            state.cluster.apply_ledger(&name, Some(content));
            state.ledgers.insert(name, LedgerSnapshot { version, owner, created, status });
        });
    }

    /// Removes a deleted `GpuLedger`.
    pub fn delete_ledger(&self, name: &str) {
        self.update(|state| {
            state.cluster.apply_ledger(name, None);
            state.ledgers.remove(name);
        });
    }

    /// Removes the ledgers that a complete list does not name.
    pub fn reset_ledgers(&self, listed: &BTreeSet<String>) {
        self.update(|state| {
            let gone: Vec<String> = state.ledgers.keys().filter(|name| !listed.contains(*name)).cloned().collect();
            for name in gone {
                state.cluster.apply_ledger(&name, None);
                state.ledgers.remove(&name);
            }
            state.mark_listed(|state| &mut state.ledgers_listed);
        });
    }

    /// Advances the cluster's time. Logs the demand of pods that declare nothing whenever it changes.
    pub fn tick(&self, now: Moment) {
        let (before, undeclared) = self.update(|state| {
            state.cluster.tick(now);
            let undeclared = if state.nodes_listed { state.cluster.undeclared() } else { BTreeMap::new() };
            (std::mem::replace(&mut state.undeclared, undeclared.clone()), undeclared)
        });
        for (resource, Undeclared { demand, fitting, nodes }) in undeclared {
            if before.get(&resource).is_none_or(|before| before.demand != demand) {
                tracing::info!(
                    %resource, %demand, fitting, nodes, "pods that declare nothing count as the smallest slot"
                );
            }
        }
    }

    /// Takes the nodes whose ledger may need a write: a pod or reservation changed since the last call.
    pub fn take_touched(&self) -> BTreeSet<String> {
        self.state.write().cluster.take_touched()
    }

    /// Whether a pod is known to have no node and to request neither GPU nor VRAM.
    pub fn is_without_gpu(&self, uid: &PodUid) -> bool {
        self.state.read().without_gpu.contains(uid)
    }

    /// Number of pods that may hold a GPU and exceed the limits on what is read of a pod.
    pub fn oversized_pods(&self) -> usize {
        self.oversized.count()
    }

    /// Subscribes to changes of the state.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Takes the pods that were bound outside of their own pool since the last call, the latest of them.
    pub fn take_rerouted(&self) -> VecDeque<Rerouted> {
        // Without a look at it first, each change would take the lock for writing.
        if self.state.read().rerouted.is_empty() { VecDeque::new() } else { self.state.write().take_rerouted() }
    }

    /// Takes the nodes whose usage or advertised values changed since the last call.
    pub fn take_stale_nodes(&self) -> BTreeSet<String> {
        let mut state = self.state.write();
        let mut nodes = state.cluster.take_changed();
        nodes.append(&mut state.repair);
        nodes
    }

    /// All nodes that have GPUs or holders or advertise something. A new leader checks every one of them.
    pub fn all_nodes(&self) -> BTreeSet<String> {
        let state = self.state.read();
        state.cluster.node_names().chain(state.advertised.keys().map(String::as_str)).map(str::to_owned).collect()
    }
}

impl State {
    fn apply_rules(&mut self, rules: Rules, guarded: BTreeSet<Resource>) {
        self.cluster.set_rules(Rules { several_schedulers: self.several_schedulers, ..rules }, guarded);
    }

    fn is_synced(&self) -> bool {
        self.nodes_listed && self.pods_listed && self.ledgers_listed
    }

    /// Marks one kind as listed. After the last kind, all nodes are ranked.
    fn mark_listed(&mut self, kind: fn(&mut State) -> &mut bool) {
        let was_synced = self.is_synced();
        *kind(self) = true;
        if !was_synced && self.is_synced() {
            self.cluster.rank_all();
        }
    }

    fn forget_node(&mut self, name: &str) {
        self.cluster.delete_node(name);
        self.advertised.remove(name);
        self.repair.remove(name);
    }

    /// The guarded pod without a node that has this uid, if it is cached.
    pub fn unbound(&self, uid: &PodUid) -> Option<&Guarded> {
        self.unbound.get(uid)
    }

    /// The `GpuLedger` of a node as the watch last reported it.
    pub fn ledger(&self, node: &str) -> Option<&LedgerSnapshot> {
        self.ledgers.get(node)
    }

    /// Names of the nodes that have a `GpuLedger`.
    pub fn ledger_names(&self) -> impl Iterator<Item = &str> {
        self.ledgers.keys().map(String::as_str)
    }

    /// What the node's object advertises of vramguard's fields.
    pub fn advertised(&self, node: &str) -> Advertised {
        self.advertised.get(node).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
