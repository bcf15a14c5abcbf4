//! The streams that feed the index: nodes, pods and ledgers of the whole cluster, on every replica. Owns which objects
//! are followed; [`stream`] owns how, and the index knows what an object means.

use std::collections::BTreeSet;
use std::sync::Arc;

use kube::Client;
use tokio::sync::watch::Receiver;

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
pub async fn nodes(client: Client, fields: &str, index: &Index, policies: &PolicyStore) {
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
