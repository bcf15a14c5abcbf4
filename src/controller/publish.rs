//! Writes what each node stands for into its status, and puts it back when somebody takes it away. Owns when and how
//! often; what is written is `k8s::publication`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use tokio::task::JoinSet;
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
    let mut turns = Turns::default();
    turns.add(controller.index.all_nodes());
    let mut writes = JoinSet::new();
    loop {
        for name in turns.take(Instant::now()) {
            let controller = controller.clone();
            writes.spawn(async move {
                let written = write(&controller, &name).await;
                (name, written)
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
                let (name, written) = ended.expect("a write does not panic and is not aborted by itself");
                if let Err(error) = &written {
                    controller.metrics.publish_errors.inc();
                    tracing::warn!("publishing on node {name:?}: {error:#}; trying again");
                }
                turns.ended(name, written.is_err().then(|| Instant::now() + RETRY));
            }
            () = tokio::time::sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => {}
        }
    }
}

/// Whose turn it is to be written. A node is in hand once at a time, so that of two writes the later one is of the later
/// state; one that failed waits by itself, and one that hangs keeps nobody else waiting.
#[derive(Debug, Default)]
struct Turns {
    due: BTreeSet<String>,
    in_hand: BTreeSet<String>,
    again: BTreeMap<String, Instant>,
}

impl Turns {
    fn add(&mut self, nodes: BTreeSet<String>) {
        self.due.extend(nodes);
    }

    /// Those to begin with now; they are in hand until they [`ended`](Self::ended).
    fn take(&mut self, now: Instant) -> Vec<String> {
        self.due.extend(self.again.extract_if(.., |_, at| *at <= now).map(|(name, _)| name));
        let Turns { due, in_hand, again } = self;
        let places = PARALLEL - in_hand.len();
        let free = |name: &String| !in_hand.contains(name) && !again.contains_key(name);
        let taken: Vec<String> = due.iter().filter(|name| free(name)).take(places).cloned().collect();
        for name in &taken {
            due.remove(name);
            in_hand.insert(name.clone());
        }
        taken
    }

    /// With when it is to be tried again, if it failed.
    fn ended(&mut self, name: String, retry: Option<Instant>) {
        self.in_hand.remove(&name);
        self.again.extend(retry.map(|at| (name, at)));
    }

    fn next_retry(&self) -> Option<Instant> {
        self.again.values().min().copied()
    }
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

#[cfg(test)]
mod tests;
