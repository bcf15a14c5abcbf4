//! The streams that feed the index: nodes and pods of the whole cluster, from every replica. Owns listing, watching and
//! resuming; what an object means is the index's work.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::StreamExt;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::sync::watch::Receiver;

use crate::index::Index;
use crate::k8s::gpu_ledger::GpuLedger;
use crate::k8s::object::{NodeObject, PodObject};
use crate::k8s::pod;
use crate::policies::PolicyStore;

/// Pods that ended hold nothing, so the API server need not send them: one that ends is seen as deleted.
const LIVE_PODS: &str = "status.phase!=Succeeded,status.phase!=Failed";

/// Follows the pods until cancelled.
pub async fn pods(client: Client, index: Arc<Index>) {
    let config = watcher::Config::default().fields(LIVE_PODS);
    let mut events = watcher(Api::<PodObject>::all(client), config).default_backoff().boxed();
    let mut listed = BTreeSet::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed = BTreeSet::new(),
            Ok(Event::InitApply(object)) => {
                index.apply_pod(&object);
                let uid = pod::uid(&object.metadata);
                if index.knows(&uid) {
                    listed.insert(uid);
                }
            }
            Ok(Event::InitDone) => index.reset_pods(&std::mem::take(&mut listed)),
            Ok(Event::Apply(object)) => index.apply_pod(&object),
            Ok(Event::Delete(object)) => index.delete_pod(&object),
            Err(error) => tracing::warn!("watching pods: {error}; trying again"),
        }
    }
}

/// Follows the ledgers until cancelled. They are small in number and large in size: one for each node with several GPUs.
pub async fn ledgers(client: Client, index: Arc<Index>) {
    let mut events = watcher(Api::<GpuLedger>::all(client), watcher::Config::default()).default_backoff().boxed();
    let mut listed = BTreeSet::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed = BTreeSet::new(),
            Ok(Event::InitApply(object)) => {
                index.apply_ledger(&object);
                listed.insert(object.node().to_owned());
            }
            Ok(Event::InitDone) => index.reset_ledgers(&std::mem::take(&mut listed)),
            Ok(Event::Apply(object)) => index.apply_ledger(&object),
            Ok(Event::Delete(object)) => index.delete_ledger(object.node()),
            Err(error) => tracing::warn!("watching GpuLedgers: {error}; trying again"),
        }
    }
}

/// Follows the nodes until cancelled, from a new list whenever the policies say something else about nodes.
pub async fn nodes(client: Client, index: Arc<Index>, policies: Arc<PolicyStore>) {
    let mut changed = policies.subscribe();
    // Policies may have changed since the index was made of them.
    changed.mark_changed();
    loop {
        tokio::select! {
            () = follow_nodes(client.clone(), &index) => return,
            () = other_overrides(&mut changed, &index, &policies) => {}
        }
    }
}

/// Puts each new generation in force, until one describes nodes differently.
async fn other_overrides(changed: &mut Receiver<u64>, index: &Index, policies: &PolicyStore) {
    while changed.changed().await.is_ok() {
        let generation = policies.current();
        if index.set_rules(*generation.policies.rules(), &generation.overrides) {
            return;
        }
    }
}

async fn follow_nodes(client: Client, index: &Index) {
    let mut events = watcher(Api::<NodeObject>::all(client), watcher::Config::default()).default_backoff().boxed();
    let mut listed = BTreeSet::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed = BTreeSet::new(),
            Ok(Event::InitApply(object)) => {
                index.apply_node(&object);
                listed.extend(object.metadata.name);
            }
            Ok(Event::InitDone) => index.reset_nodes(&std::mem::take(&mut listed)),
            Ok(Event::Apply(object)) => index.apply_node(&object),
            Ok(Event::Delete(object)) => index.delete_node(&object.metadata.name.unwrap_or_default()),
            Err(error) => tracing::warn!("watching nodes: {error}; trying again"),
        }
    }
}
