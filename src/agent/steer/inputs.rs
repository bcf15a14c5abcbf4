//! What the API server tells about the node, for the decisions of steering. Owns which pods are kept and for how long.
//!
//! Amounts are those of the core: the agent folds its Node, its pods and its `GpuLedger` into the same [`Index`] as the
//! server does, only of one node. Next to it [`NodePods`] keeps the pods of the node by name, because the kubelet asks
//! about pods that hold nothing any more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::ReadPod;
use crate::capacity::name::PodUid;
use crate::capacity::pod::PodName;
use crate::capacity::steering::known::PodOnNode;
use crate::capacity::steering::{KnownNode, KnownPod};
use crate::k8s::gpu_ledger::GpuLedger;
use crate::k8s::known_pod::PodRecord;
use crate::k8s::object::PodObject;
use crate::k8s::pod;
use crate::state;
use crate::state::index::{Index, State};
use crate::state::policies::PolicyStore;
use crate::state::watch::stream::{Event, Source};

/// How long a deleted pod is kept. The kubelet asks for a pod that was deleted by force before it was admitted.
const KEEP_DELETED: Duration = Duration::from_secs(300);
/// The largest number of deleted pods that are kept.
const MAX_DELETED: usize = 1_000;

/// The pods of one node.
#[derive(Debug, Default)]
pub struct NodePods {
    pods: Mutex<BTreeMap<PodUid, Entry>>,
}

#[derive(Debug)]
struct Entry {
    record: PodRecord,
    deleted: Option<Instant>,
}

impl NodePods {
    /// Folds in a pod that a list or watch delivered.
    pub fn apply(&self, object: &PodObject) {
        let record = PodRecord::of(object);
        self.pods.lock().insert(record.uid.clone(), Entry { record, deleted: None });
    }

    /// Marks a pod as deleted.
    pub fn delete(&self, object: &PodObject) {
        self.delete_where(|uid| *uid == pod::uid(&object.metadata));
    }

    /// Marks the pods as deleted that a complete list does not name.
    pub fn reset(&self, listed: &BTreeSet<PodUid>) {
        self.delete_where(|uid| !listed.contains(uid));
    }

    fn delete_where(&self, is_deleted: impl Fn(&PodUid) -> bool) {
        let now = Instant::now();
        let mut pods = self.pods.lock();
        for (_, entry) in pods.iter_mut().filter(|(uid, entry)| entry.deleted.is_none() && is_deleted(uid)) {
            entry.deleted = Some(now);
        }
        pods.retain(|_, entry| entry.deleted.is_none_or(|since| now.duration_since(since) < KEEP_DELETED));
        let mut deleted: Vec<(Instant, PodUid)> =
            pods.iter().filter_map(|(uid, entry)| Some((entry.deleted?, uid.clone()))).collect();
        deleted.sort();
        for (_, uid) in deleted.iter().rev().skip(MAX_DELETED) {
            pods.remove(uid);
        }
    }
}

/// The node as the decisions see it. Its pools are `None` until the index has read everything once.
pub fn known_node(index: &Index, pods: &NodePods, node: &str) -> KnownNode {
    let is_synced = index.is_synced();
    let state = index.read();
    let known = |entry: &Entry| known_pod(&state, node, &entry.record, entry.deleted.is_some());
    KnownNode {
        pods: pods.pods.lock().values().map(known).collect(),
        pools: is_synced.then(|| KnownNode::pools(&state.cluster, node)).flatten(),
    }
}

fn known_pod(state: &State, node: &str, record: &PodRecord, deleted: bool) -> KnownPod {
    let pod = PodOnNode {
        uid: &record.uid,
        name: &record.name,
        containers: &record.containers,
        phase: record.phase,
        deleted,
        holder: record.holder.as_ref(),
    };
    KnownNode::pod(state.cluster.node(node).as_ref(), state.cluster.rules(), &pod)
}

/// Follows the pods of the node until cancelled, those that have ended included.
pub async fn follow_pods(client: Client, node: &str, index: &Index, pods: &NodePods) {
    let mut listed = BTreeSet::new();
    let tell = |event| match event {
        Event::ListBegins => {
            listed.clear();
            index.list_begins();
        }
        Event::Listed(object) => {
            let object: PodObject = object;
            // The list of pods by name comes first: a change of the index is what is waited for.
            pods.apply(&object);
            index.apply_pod(&object);
            listed.insert(pod::uid(&object.metadata));
        }
        Event::ListEnds => {
            let listed = std::mem::take(&mut listed);
            pods.reset(&listed);
            index.reset_pods(&listed);
        }
        Event::Applied(object) => {
            pods.apply(&object);
            index.apply_pod(&object);
        }
        Event::Deleted(object) => {
            pods.delete(&object);
            index.delete_pod(&object);
        }
        Event::Heard => {}
    };
    Source::new(client, format!("spec.nodeName={node}")).follow(tell).await;
}

/// Follows the Node object and the policies until cancelled.
pub async fn follow_node(client: Client, node: &str, index: &Index, policies: &PolicyStore) {
    state::watch::nodes(client, &format!("metadata.name={node}"), index, policies).await;
}

/// Follows the `GpuLedger` of the node until cancelled.
pub async fn follow_ledger(client: Client, node: &str, index: &Index) {
    state::watch::ledgers_of(Source::new(client, format!("metadata.name={node}")), index).await;
}

/// Sends the node after each change of the index, until nobody receives it.
pub async fn send_node(index: &Index, pods: &NodePods, node: &str, sender: watch::Sender<Arc<KnownNode>>) {
    let mut changed = index.subscribe();
    changed.mark_changed();
    while !sender.is_closed() && changed.changed().await.is_ok() {
        sender.send_replace(Arc::new(known_node(index, pods, node)));
    }
}

/// Reads single pods of the node, and its ledger, from the API server.
pub fn read_pod(client: Client, node: String, index: Arc<Index>) -> ReadPod {
    Arc::new(move |name: PodName| {
        let (client, node, index) = (client.clone(), node.clone(), index.clone());
        async move {
            let pods: Api<PodObject> = Api::namespaced(client.clone(), &name.namespace);
            let ledgers: Api<GpuLedger> = Api::all(client);
            let (object, ledger) = tokio::join!(pods.get_opt(&name.name), ledgers.get_opt(&node));
            match ledger {
                // The watch may deliver an older one after this. Then its next event puts that right.
                Ok(ledger) => ledger.iter().for_each(|ledger| index.apply_ledger(ledger)),
                Err(error) => tracing::warn!("GpuLedger {node:?} cannot be read: {error}"),
            }
            let object = match object {
                Ok(object) => object?,
                Err(error) => {
                    tracing::warn!("pod {name} cannot be read: {error}");
                    return None;
                }
            };
            let record = (object.spec.node_name.as_deref() == Some(&*node)).then(|| PodRecord::of(&object))?;
            Some(known_pod(&index.read(), &node, &record, false))
        }
        .boxed()
    })
}
