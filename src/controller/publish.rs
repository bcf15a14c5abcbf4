//! Writes what each node stands for into its status, and puts it back when somebody takes it away. Owns when and how
//! often; what is written is `k8s::publication`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use tokio::time::Instant;

use super::{Controller, RETRY, bounded, events, now};
use crate::capacity::verdict::Reason;
use crate::k8s::publication;

/// Events come in bursts; a node is written once for all that came within this time. Short, because a waiting pod is bound
/// only after the write.
const GATHER: Duration = Duration::from_millis(10);
/// Writes in flight.
const PARALLEL: usize = 16;

pub async fn run(controller: Controller) {
    let mut changed = controller.index.subscribe();
    let mut stale = controller.index.all_nodes();
    // A node whose write failed waits by itself. One whose write hangs holds up the next round, as long as a call may take.
    let mut again: BTreeMap<String, Instant> = BTreeMap::new();
    loop {
        stale.append(&mut controller.index.take_stale_nodes());
        let due = Instant::now();
        stale.extend(again.extract_if(.., |_, at| *at <= due).map(|(name, _)| name));
        stale.retain(|name| !again.contains_key(name));
        let failed = write_all(&controller, std::mem::take(&mut stale)).await;
        again.extend(failed.into_iter().map(|name| (name, Instant::now() + RETRY)));
        let next = again.values().min().copied();
        tokio::select! {
            changed = changed.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(next.unwrap_or(due)), if next.is_some() => {}
        }
        tokio::time::sleep(GATHER).await;
    }
}

/// Returns the nodes that could not be written.
async fn write_all(controller: &Controller, nodes: BTreeSet<String>) -> BTreeSet<String> {
    let writes = nodes.into_iter().map(|name| async {
        let written = write(controller, &name).await;
        (name, written)
    });
    let mut results = futures::stream::iter(writes).buffer_unordered(PARALLEL);
    let mut failed = BTreeSet::new();
    while let Some((name, written)) = results.next().await {
        if let Err(error) = written {
            controller.metrics.publish_errors.inc();
            tracing::warn!("publishing on node {name:?}: {error:#}; trying again");
            failed.insert(name);
        }
    }
    failed
}

async fn write(controller: &Controller, name: &str) -> anyhow::Result<()> {
    let patch = {
        let state = controller.index.read();
        let cluster = &state.cluster;
        let none = Default::default();
        let (facts, standing) =
            cluster.node(name).map_or((&none, None), |(facts, _, standing)| (facts, Some(standing)));
        let guards = |resource: &_| cluster.guards(resource);
        publication::status_patch(facts, standing, cluster.rules(), guards, &state.advertised(name), now())
    };
    let Some(patch) = patch else { return Ok(()) };
    let overcommitted = publication::says_overcommitted(&patch);
    let nodes: Api<Node> = Api::all(controller.client.clone());
    let written = async {
        match nodes.patch_status(name, &PatchParams::default(), &Patch::Strategic(&patch)).await {
            // Gone between its last event and now.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            written => written.map(|_| true),
        }
    };
    if bounded(written).await? {
        controller.metrics.published.inc();
        tracing::debug!(node = name, %patch, "published");
        if let Some(note) = overcommitted {
            tracing::warn!(node = name, "{note}");
            events::warn_node(controller, name, Reason::GpuOvercommitted, note).await;
        }
    }
    Ok(())
}
