//! Writes what each node stands for into its status, and puts it back when somebody takes it away. Owns when and how
//! often; what is written is `k8s::publication`'s, how long to wait for somebody who keeps undoing it is [`dispute`]'s.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::events::Recorder;
use super::turns::Turns;
use super::{Controller, RETRY, bounded, now};
use crate::capacity::verdict::{self, Reason};
use crate::k8s::node::{self, Advertised};
use crate::k8s::object::NodeObject;
use crate::k8s::ownership::{self, Field};
use crate::k8s::publication;

mod dispute;

use dispute::{Dispute, MOST_DELAY};

/// Events come in bursts; a node is written once for all that came within this time. Short, because a waiting pod is bound
/// only after the write.
const GATHER: Duration = Duration::from_millis(10);
/// Writes in flight.
const PARALLEL: usize = 16;

/// What this leader wrote to a node last, and who disputes it.
#[derive(Debug, Default)]
struct Published {
    /// As the node advertised it right after the write.
    written: Option<Advertised>,
    dispute: Dispute,
}

pub async fn run(controller: Controller) {
    let mut changed = controller.index.subscribe();
    let mut turns = Turns::new(PARALLEL);
    turns.add(controller.index.all_nodes());
    // Of nodes that are there and in no task.
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

/// Brings one node to where it stands. Returns when to come back, where somebody else keeps another value.
async fn write(
    controller: &Controller,
    recorder: &Recorder,
    name: &str,
    published: &mut Published,
) -> anyhow::Result<Option<Instant>> {
    let (patch, seen) = {
        let state = controller.index.read();
        let cluster = &state.cluster;
        let none = Default::default();
        let (facts, standing) =
            cluster.node(name).map_or((&none, None), |(facts, _, standing)| (facts, Some(standing)));
        let guards = |resource: &_| cluster.guards(resource);
        let advertised = state.advertised(name);
        let patch = publication::status_patch(facts, standing, cluster.rules(), guards, &advertised, now());
        if standing.is_none() && advertised == Advertised::default() {
            *published = Published::default(); // the node is gone
        }
        (patch, advertised)
    };
    let Some(patch) = patch else { return Ok(None) };
    if published.dispute.owed().is_none() && published.written.as_ref().is_some_and(|written| *written != seen) {
        undone(controller, recorder, name, published).await?;
        // That took calls to the API server, and a pod may have been promised a place meanwhile: decided anew.
        return Ok(published.dispute.owed().map(|owed| owed.max(Instant::now())));
    }
    if let Some(owed) = published.dispute.owed().filter(|owed| *owed > Instant::now()) {
        return Ok(Some(owed));
    }
    let overcommitted = publication::says_overcommitted(&patch);
    let nodes: Api<NodeObject> = Api::all(controller.client.clone());
    let parameters = PatchParams { field_manager: Some(ownership::PUBLISHES.into()), ..PatchParams::default() };
    let written = async {
        match nodes.patch_status(name, &parameters, &Patch::Strategic(&patch)).await {
            // Gone between its last event and now.
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

/// Notes it, and says so, if somebody changed what was written here last. What the watch shows may be older than that write,
/// so the node is read once more; who it was is read only where somebody did.
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
    if manager.as_deref() == Some(ownership::RAISES) {
        return Ok(());
    }
    let times = published.dispute.undone(Instant::now());
    controller.metrics.undone(manager.as_deref());
    tracing::warn!(node = name, ?manager, times, "what was published is undone: {field}");
    // Once is a kubelet that starts, or a person. After that, said less and less often too.
    if times > 1 && times.is_power_of_two() {
        let note =
            verdict::undone(&field.to_string(), manager.as_deref(), times, &format!("{}s", MOST_DELAY.as_secs()));
        recorder.warn_node(name, Reason::PublicationUndone, note).await;
    }
    Ok(())
}

/// Who wrote a field of ours last, as far as the node's managedFields tell.
async fn last_manager(client: &Client, name: &str, field: Field) -> anyhow::Result<Option<String>> {
    let nodes: Api<Node> = Api::all(client.clone());
    let metadata = bounded(nodes.get_metadata_opt(name)).await?.map(|node| node.metadata);
    let managed = metadata.and_then(|metadata| metadata.managed_fields).unwrap_or_default();
    Ok(field.last_manager(&managed).map(str::to_owned))
}

#[cfg(test)]
mod tests;
