//! The streams that feed the index and the policies: nodes, pods, ledgers and policy documents of the whole cluster, on
//! every replica. Owns which objects are followed; [`stream`] owns how, and the index knows what an object means.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::sync::watch::Receiver;

use crate::k8s::document::resource::{ClusterKind, InventoryKind, NamespaceKind, OfKind, PolicyObject};
use crate::k8s::gpu_ledger::GpuLedger;
use crate::k8s::object::{NodeObject, PodObject};
use crate::k8s::pod;
use crate::state::index::{Index, Kind};
use crate::state::policies::PolicyStore;

pub mod json;
pub mod stream;

use stream::{Event, Source};

/// Field selector of pods that have not ended. An ended pod holds nothing, so the API server need not send it: the
/// watch reports a pod that ends as deleted.
pub const LIVE_PODS: &str = "status.phase!=Succeeded,status.phase!=Failed";

/// Follows the pods until cancelled.
pub async fn pods(client: Client, index: Arc<Index>) {
    let mut listed = BTreeSet::new();
    let tell = |event| {
        if !matches!(event, Event::ListBegins) {
            index.heard(Kind::Pods);
        }
        match event {
            Event::ListBegins => {
                listed.clear();
                index.list_begins();
            }
            Event::Listed(object) => {
                let object: PodObject = object;
                index.apply_pod(&object);
                let uid = pod::uid(&object.metadata);
                if index.knows(&uid) {
                    listed.insert(uid);
                }
            }
            Event::ListEnds => index.reset_pods(&std::mem::take(&mut listed)),
            Event::Applied(object) => index.apply_pod(&object),
            Event::Deleted(object) => index.delete_pod(&object),
            Event::Heard => {}
        }
    };
    Source::new(client, LIVE_PODS).follow(tell).await;
}

/// Follows the ledgers until cancelled. They are few but large: one for each node with several GPUs.
pub async fn ledgers(client: Client, index: Arc<Index>) {
    ledgers_of(Source::new(client, ""), &index).await;
}

/// Folds the ledgers of a source into an index until cancelled.
pub(crate) async fn ledgers_of(source: Source, index: &Index) {
    let mut listed = BTreeSet::new();
    let tell = |event| {
        if !matches!(event, Event::ListBegins) {
            index.heard(Kind::Ledgers);
        }
        match event {
            Event::ListBegins => {
                listed.clear();
                index.list_begins();
            }
            Event::Listed(object) => {
                let object: GpuLedger = object;
                index.apply_ledger(&object);
                listed.insert(object.node().to_owned());
            }
            Event::ListEnds => index.reset_ledgers(&std::mem::take(&mut listed)),
            Event::Applied(object) => index.apply_ledger(&object),
            Event::Deleted(object) => index.delete_ledger(object.node()),
            Event::Heard => {}
        }
    };
    source.follow(tell).await;
}

/// Follows the nodes until cancelled. Starts again with a new list whenever the policies describe nodes differently.
///
/// It waits until the policies are known. An index without nodes is not synced, so nobody gets an answer before that.
pub async fn nodes(client: Client, fields: &str, index: &Index, policies: &PolicyStore) {
    policies.known().await;
    let mut changed = policies.subscribe();
    // The policies may have changed since the index was created from them.
    changed.mark_changed();
    loop {
        tokio::select! {
            () = nodes_of(Source::new(client.clone(), fields.to_owned()), index) => return,
            () = other_overrides(&mut changed, index, policies) => {}
        }
    }
}

/// Puts each new generation in force, and returns after one that describes nodes differently.
async fn other_overrides(changed: &mut Receiver<u64>, index: &Index, policies: &PolicyStore) {
    while changed.changed().await.is_ok() {
        let generation = policies.current();
        if index.set_rules(*generation.policies.rules(), &generation.overrides) {
            return;
        }
    }
}

/// Folds the nodes of a source into an index until cancelled.
async fn nodes_of(source: Source, index: &Index) {
    let mut listed = BTreeSet::new();
    let tell = |event| {
        if !matches!(event, Event::ListBegins) {
            index.heard(Kind::Nodes);
        }
        match event {
            Event::ListBegins => {
                listed.clear();
                index.list_begins();
            }
            Event::Listed(object) => {
                let object: NodeObject = object;
                index.apply_node(&object);
                listed.extend(object.metadata.name);
            }
            Event::ListEnds => index.reset_nodes(&std::mem::take(&mut listed)),
            Event::Applied(object) => index.apply_node(&object),
            Event::Deleted(object) => index.delete_node(object.name()),
            Event::Heard => {}
        }
    };
    source.follow(tell).await;
}

/// Follows the policy documents that are resources until cancelled. An API server without their definitions has none.
pub async fn policies(client: Client, store: &PolicyStore, index: &Index) {
    let source = Source::new(client, "");
    tokio::join!(
        policies_of::<ClusterKind>(source.clone(), store, index),
        policies_of::<NamespaceKind>(source.clone(), store, index),
        policies_of::<InventoryKind>(source, store, index),
        store.settle(),
    );
}

/// Duration of a watch of policies by a node agent. There is one agent for each node, and policies rarely change.
const WATCH_OF_AGENTS: Duration = Duration::from_secs(290);

/// Follows the policy documents that concern nodes until cancelled, for a node agent: those of the cluster, and
/// inventories.
pub async fn policies_of_nodes(client: Client, store: &PolicyStore, index: &Index) {
    let source = Source { watch: WATCH_OF_AGENTS, ..Source::new(client, "") };
    tokio::join!(
        policies_of::<ClusterKind>(source.clone(), store, index),
        policies_of::<InventoryKind>(source, store, index),
        store.settle(),
    );
}

/// Folds the documents of one kind into a store until cancelled.
async fn policies_of<K: OfKind>(source: Source, store: &PolicyStore, index: &Index) {
    let mut listed = BTreeSet::new();
    let tell = |event| {
        if !matches!(event, Event::ListBegins) {
            index.heard(K::KIND.into());
        }
        match event {
            Event::ListBegins => listed.clear(),
            Event::Listed(object) => {
                let object: PolicyObject<K> = object;
                store.apply(&object);
                listed.insert(object.resource_name());
            }
            Event::ListEnds => store.listed(K::KIND, &std::mem::take(&mut listed)),
            Event::Applied(object) => store.apply(&object),
            Event::Deleted(object) => store.delete(&object.resource_name()),
            Event::Heard => {}
        }
    };
    Source { optional: true, ..source }.follow(tell).await;
}
