//! Publishes the usage of each node in its status, and restores it when another writer changes it. Owns when and how
//! often; `k8s::publication` owns what is written, and [`dispute`] how long to wait for a writer who keeps changing it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::events::Recorder;
use super::queue::WorkQueue;
use super::{Controller, RETRY, bounded, now};
use crate::capacity::cluster::NodeView;
use crate::capacity::verdict::{self, Reason};
use crate::k8s::node::{self, Advertised};
use crate::k8s::object::NodeObject;
use crate::k8s::ownership::{self, Field};
use crate::k8s::publication::{self, Publication};

mod dispute;

use dispute::{Dispute, MOST_DELAY};

/// Time during which changes are collected. Events come in bursts, and a node is written once for all of a burst. It is
/// short, because a waiting pod is bound only after the write.
const GATHER: Duration = Duration::from_millis(10);
/// Nodes that are written at a time.
const PARALLEL: usize = 16;

/// What this leader last wrote to a node, and the dispute with another writer about it.
#[derive(Debug, Default)]
struct Published {
    /// The values that the node advertised right after the write.
    written: Option<Advertised>,
    dispute: Dispute,
}

pub(super) async fn run(controller: Controller) {
    let mut changed = controller.index.subscribe();
    let mut turns = WorkQueue::new(PARALLEL);
    turns.add(controller.index.all_nodes());
    // The nodes that were written, still exist and are in no task now.
    let mut published: BTreeMap<String, Published> = BTreeMap::new();
    let recorder = Arc::new(Recorder::new(&controller));
    let mut writes = JoinSet::new();
    loop {
        for name in turns.take(Instant::now()) {
            let (controller, recorder) = (controller.clone(), recorder.clone());
            let mut before = published.remove(&name).unwrap_or_default();
            writes.spawn(async move {
                let written = write(&controller, &recorder, &name, &mut before).await;
                (name, before, written)
            });
        }
        let retry = turns.next_retry();
        tokio::select! {
            changed = changed.changed() => {
                if changed.is_err() {
                    return;
                }
                tokio::time::sleep(GATHER).await;
                turns.add(controller.index.take_stale_nodes());
            }
            Some(ended) = writes.join_next() => {
                let (name, after, written) = ended.expect("a write does not panic and is not aborted by itself");
                if let Err(error) = &written {
                    controller.metrics.publish_errors.inc();
                    tracing::warn!("publishing on node {name:?}: {error:#}; trying again");
                }
                if after.written.is_some() {
                    published.insert(name.clone(), after);
                }
                turns.ended(name, written.unwrap_or_else(|_| Some(Instant::now() + RETRY)));
            }
            () = tokio::time::sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => {}
        }
    }
}

/// Publishes one node. Returns when to try again, if another writer keeps another value there.
async fn write(
    controller: &Controller,
    recorder: &Recorder,
    name: &str,
    published: &mut Published,
) -> anyhow::Result<Option<Instant>> {
    let (publication, seen) = {
        let state = controller.index.read();
        let cluster = &state.cluster;
        let none = Default::default();
        let (facts, usage) =
            cluster.node(name).map_or((&none, None), |NodeView { facts, usage, .. }| (facts, Some(usage)));
        let guards = |resource: &_| cluster.guards(resource);
        let advertised = state.advertised(name);
        let publication = publication::status_patch(facts, usage, cluster.rules(), guards, &advertised, now());
        if usage.is_none() && advertised == Advertised::default() {
            *published = Published::default(); // the node is gone
        }
        (publication, advertised)
    };
    let Some(Publication { patch, overcommitted }) = publication else { return Ok(None) };
    if published.dispute.next_write().is_none() && published.written.as_ref().is_some_and(|written| *written != seen) {
        undone(controller, recorder, name, published).await?;
        // Those calls took time, in which a pod may have got a reservation. So the next attempt decides on fresh state.
        return Ok(published.dispute.next_write().map(|owed| owed.max(Instant::now())));
    }
    if let Some(owed) = published.dispute.next_write().filter(|owed| *owed > Instant::now()) {
        return Ok(Some(owed));
    }
    let nodes: Api<NodeObject> = Api::all(controller.client.clone());
    let parameters = PatchParams { field_manager: Some(ownership::PUBLISH_MANAGER.into()), ..PatchParams::default() };
    let written = async {
        match nodes.patch_status(name, &parameters, &Patch::Strategic(&patch)).await {
            // The node was deleted after its last event.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            written => written.map(Some),
        }
    };
    let Some(written) = bounded(written).await? else {
        *published = Published::default();
        return Ok(None);
    };
    published.written = Some(node::advertised(&written));
    published.dispute.wrote(Instant::now());
    controller.metrics.published.inc();
    tracing::debug!(node = name, %patch, "published");
    if let Some(note) = overcommitted {
        tracing::warn!(node = name, "{note}");
        recorder.warn_node(name, Reason::GpuOvercommitted, note).await;
    }
    Ok(None)
}

/// Detects and reports that another writer changed what this leader wrote last. The watch may lag behind that write, so
/// the node is read again. Its managedFields are read only if it was changed.
async fn undone(
    controller: &Controller,
    recorder: &Recorder,
    name: &str,
    published: &mut Published,
) -> anyhow::Result<()> {
    let Some(written) = &published.written else { return Ok(()) };
    let nodes: Api<NodeObject> = Api::all(controller.client.clone());
    let Some(found) = bounded(nodes.get_opt(name)).await? else { return Ok(()) };
    let Some(field) = Field::undone(written, &node::advertised(&found)) else { return Ok(()) };
    let manager = last_manager(&controller.client, name, field).await?;
    if manager.as_deref() == Some(ownership::RAISE_MANAGER) {
        return Ok(());
    }
    let times = published.dispute.undone(Instant::now());
    controller.metrics.undone(manager.as_deref());
    tracing::warn!(node = name, ?manager, times, "what was published is undone: {field}");
    // One change is usually a starting kubelet, or a person. Events follow at the second, fourth, eighth change, and
    // so on.
    if times > 1 && times.is_power_of_two() {
        let note = verdict::publication_undone(
            &field.to_string(),
            manager.as_deref(),
            times,
            &format!("{}s", MOST_DELAY.as_secs()),
        );
        recorder.warn_node(name, Reason::PublicationUndone, note).await;
    }
    Ok(())
}

/// The field manager that last wrote a field of vramguard's, as far as managedFields show.
async fn last_manager(client: &Client, name: &str, field: Field) -> anyhow::Result<Option<String>> {
    let nodes: Api<Node> = Api::all(client.clone());
    let metadata = bounded(nodes.get_metadata_opt(name)).await?.map(|node| node.metadata);
    let managed = metadata.and_then(|metadata| metadata.managed_fields).unwrap_or_default();
    Ok(field.last_manager(&managed).map(str::to_owned))
}

#[cfg(test)]
mod tests;
