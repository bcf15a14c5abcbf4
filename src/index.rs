//! Watch → state: folds nodes and pods, as they are seen, into the [`Cluster`] that reviews are answered from. Owns the
//! lock, what is remembered beside the cluster (what nodes advertise, which pods wait) and whether the first lists have
//! been read. No store of pods: an object is folded in and dropped.
//!
//! Three synchronous methods a kind: apply, delete, and reset after a relist. A relist is folded in object by object, and
//! what it did not name goes at its end, so that the picture is never empty in between.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::{RwLock, RwLockReadGuard};
use serde_json::Value;
use tokio::sync::watch;

use crate::capacity::cluster::Cluster;
use crate::capacity::gpu::{Resource, Rules};
use crate::capacity::ledger::{PodUid, Shared};
use crate::capacity::makeup::Makeup;
use crate::capacity::moment::Moment;
use crate::capacity::placement::Placement;
use crate::capacity::pod::PodName;
use crate::capacity::vram::Vram;
use crate::k8s::gpu_ledger::GpuLedger;
use crate::k8s::node::{self, Advertised, Override};
use crate::k8s::object::{NodeObject, PodObject};
use crate::k8s::pod::{self, Stage};
use crate::k8s::snapshot::Snapshot;
use crate::unbound::{Guarded, Unbound, waiting};

mod oversized;

use oversized::Oversized;

/// The state that all parts of a server share.
#[derive(Debug)]
pub struct Index {
    state: RwLock<State>,
    oversized: Oversized,
    changed: watch::Sender<()>,
}

/// What is behind the lock. Held for memory work only.
#[derive(Debug)]
pub struct State {
    /// Nodes, GPUs and who holds what.
    pub cluster: Cluster,
    /// Pods that kube-scheduler found no node for, and that request VRAM.
    pub waiting: BTreeMap<PodUid, Waiting>,
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

/// A pod that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Namespace and name.
    pub name: PodName,
    /// What it demands.
    pub demand: Vram,
    /// Of which resource.
    pub resource: Resource,
    /// Where it may land.
    pub placement: Placement,
    /// What the demand is made of, where its declaration says so.
    pub makeup: Option<Makeup>,
}

impl Index {
    /// An empty state under these rules.
    pub fn new(rules: Rules, overrides: Vec<Override>) -> Index {
        let state = State {
            cluster: Cluster::new(rules, node::guarded_by(&overrides)),
            waiting: BTreeMap::new(),
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
        Index { state: RwLock::new(state), oversized: Oversized::default(), changed: watch::Sender::new(()) }
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
        let state = self.state.read();
        state.nodes_listed && state.pods_listed && state.ledgers_listed
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
        state.nodes_listed = true;
        drop(state);
        self.changed.send_replace(());
    }

    /// A pod was seen.
    pub fn apply_pod(&self, object: &PodObject) {
        let uid = pod::uid(&object.metadata);
        let stage = pod::stage(object);
        self.oversized.note(&uid, object, &stage);
        let waiting = waiting(object);
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
            Some(waiting) => _ = state.waiting.insert(uid, waiting),
            None => _ = state.waiting.remove(&uid),
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
        state.waiting.retain(|uid, _| listed.contains(uid));
        state.unconcerned.retain(|uid| listed.contains(uid));
        state.unbound.retain(|uid| listed.contains(uid));
        state.pods_listed = true;
        drop(state);
        self.changed.send_replace(());
    }

    /// Whether a pod is kept at all, so that a relist need not remember the others.
    pub fn knows(&self, uid: &PodUid) -> bool {
        let state = self.state.read();
        state.cluster.holds(uid)
            || state.waiting.contains_key(uid)
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
        state.ledgers_listed = true;
        drop(state);
        self.changed.send_replace(());
    }

    /// Time passes.
    pub fn tick(&self, now: Moment) {
        self.state.write().cluster.tick(now);
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
mod tests {
    use serde_json::json;

    use super::*;

    fn index() -> Index {
        Index::new(Rules::default(), Vec::new())
    }

    fn node(capacity: Value) -> NodeObject {
        serde_json::from_value(json!({
            "metadata": { "name": "gpu-0", "labels": {
                "nvidia.com/gpu.memory": "24576", "nvidia.com/gpu.count": "1", "nvidia.com/gpu.replicas": "4",
                "nvidia.com/gpu.sharing-strategy": "time-slicing",
            } },
            "status": { "capacity": capacity, "allocatable": capacity },
        }))
        .unwrap()
    }

    fn gpus() -> Value {
        json!({ "nvidia.com/gpu": "4" })
    }

    fn pod(uid: &str, node: Option<&str>, phase: &str) -> PodObject {
        let resources = json!({ "nvidia.com/gpu": "1", "vramguard.dev/vram": "8Gi" });
        let conditions = if node.is_none() {
            json!([{ "type": "PodScheduled", "status": "False", "reason": "Unschedulable" }])
        } else {
            json!([])
        };
        serde_json::from_value(json!({
            "metadata": { "name": uid, "namespace": "ml", "uid": uid },
            "spec": { "nodeName": node, "containers": [{ "name": "main", "resources": { "limits": resources } }] },
            "status": { "phase": phase, "conditions": conditions },
        }))
        .unwrap()
    }

    fn placeable(index: &Index) -> Vram {
        index.read().cluster.node("gpu-0").unwrap().2.placeable
    }

    #[test]
    fn a_pod_counts_until_it_ends() {
        let index = index();
        index.apply_node(&node(gpus()));
        index.apply_pod(&pod("a", Some("gpu-0"), "Running"));
        assert_eq!(placeable(&index), Vram::from_mib(23_870 - 8192));
        index.apply_pod(&pod("a", Some("gpu-0"), "Succeeded"));
        assert_eq!(placeable(&index), Vram::from_mib(23_870));
    }

    #[test]
    fn it_is_not_synced_before_all_lists_are_read() {
        let index = index();
        assert!(!index.is_synced());
        index.reset_nodes(&BTreeSet::new());
        assert!(!index.is_synced());
        index.reset_pods(&BTreeSet::new());
        assert!(!index.is_synced());
        index.reset_ledgers(&BTreeSet::new());
        assert!(index.is_synced());
    }

    #[test]
    fn a_relist_takes_away_what_it_does_not_name() {
        let index = index();
        index.apply_node(&node(gpus()));
        index.apply_pod(&pod("a", Some("gpu-0"), "Running"));
        index.apply_pod(&pod("b", None, "Pending"));
        index.reset_pods(&BTreeSet::from([PodUid("b".into())]));
        assert_eq!(placeable(&index), Vram::from_mib(23_870));
        assert_eq!(index.read().waiting.len(), 1);
        index.reset_pods(&BTreeSet::new());
        assert!(index.read().waiting.is_empty());
        index.reset_nodes(&BTreeSet::new());
        assert!(index.read().cluster.node("gpu-0").is_none());
    }

    #[test]
    fn a_pod_waits_until_it_is_bound() {
        let index = index();
        index.apply_pod(&pod("a", None, "Pending"));
        assert_eq!(index.read().waiting.values().next().unwrap().demand, Vram::from_mib(8192));
        index.apply_pod(&pod("a", Some("gpu-0"), "Pending"));
        assert!(index.read().waiting.is_empty());
    }

    #[test]
    fn a_pod_that_is_not_read_whole_is_counted_by_what_was_read_and_named() {
        let index = index();
        index.apply_node(&node(gpus()));
        let large = |containers: usize, node: Option<&str>| {
            let idle = (0..containers).map(|n| json!({ "name": format!("idle-{n}") }));
            let resources = json!({ "limits": { "nvidia.com/gpu": "1", "vramguard.dev/vram": "8Gi" } });
            let containers: Vec<Value> = idle.chain([json!({ "name": "main", "resources": resources })]).collect();
            serde_json::from_value(json!({
                "metadata": { "name": "a", "namespace": "ml", "uid": "a" },
                "spec": { "nodeName": node, "containers": containers },
            }))
            .unwrap()
        };
        index.apply_pod(&large(127, Some("gpu-0")));
        assert_eq!(index.oversized_pods(), 0);
        index.apply_pod(&large(10_000, Some("gpu-0")));
        assert_eq!(index.oversized_pods(), 1);
        assert_eq!(placeable(&index), Vram::from_mib(23_870 - 8192));
        index.reset_pods(&BTreeSet::from([PodUid("a".into())]));
        assert_eq!(index.oversized_pods(), 1);
        index.delete_pod(&large(10_000, Some("gpu-0")));
        assert_eq!((index.oversized_pods(), placeable(&index)), (0, Vram::from_mib(23_870)));
    }

    #[test]
    fn a_figure_that_somebody_takes_away_makes_its_node_stale() {
        let index = index();
        let published = json!({ "nvidia.com/gpu": "4", "vramguard.dev/vram": "23870Mi" });
        index.apply_node(&node(published.clone()));
        index.take_stale_nodes();
        index.apply_node(&node(published));
        assert_eq!(index.take_stale_nodes(), BTreeSet::new());
        index.apply_node(&node(gpus()));
        assert_eq!(index.take_stale_nodes(), BTreeSet::from(["gpu-0".to_owned()]));
    }

    #[test]
    fn other_overrides_need_the_nodes_again() {
        let index = index();
        let described = Override {
            names: ["gpu-0".to_owned()].into(),
            labels: BTreeMap::new(),
            resource: Resource("nvidia.com/gpu".into()),
            sharing: crate::capacity::gpu::Sharing::SomeWay,
            replicas: 2.try_into().unwrap(),
            gpus: vec![Vram::from_mib(1000)],
        };
        assert!(index.set_rules(Rules::default(), std::slice::from_ref(&described)));
        assert!(!index.set_rules(Rules::default(), &[described]));
        assert!(index.read().cluster.guards(&Resource("nvidia.com/gpu".into())));
    }
}
