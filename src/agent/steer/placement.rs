//! Whether the kubelet allocated what it was answered, and recorded it. Owns the comparison and its memory.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Shared;
use super::plugin::Plugin;
use crate::agent::kubelet::checkpoint;
use crate::agent::kubelet::messages::ListPodResourcesResponse;
use crate::agent::node;
use crate::capacity::gpu::Resource;
use crate::capacity::steering::CallerName;
use crate::k8s::checkpoint::Checkpoint;

/// Answers whose outcome decides whether the latest ones match.
const LATEST: usize = 8;
/// Pause after an allocation before the kubelet's records are read. It writes them after the call.
const AFTER: Duration = Duration::from_millis(500);
/// How long the kubelet's records are read for an allocation. A pod that was rejected or deleted never appears there.
const GIVE_UP: Duration = Duration::from_secs(10);
/// How long after a registration an allocation may belong to a question before it.
const JUST_REGISTERED: Duration = Duration::from_secs(2);
/// Time limit of one list.
const LIST: Duration = Duration::from_secs(2);
/// The largest number of allocations that wait for a comparison.
const MAX_PENDING: usize = 1_024;

/// A question of the kubelet and its answer, until the allocation that follows it.
#[derive(Debug)]
pub(super) struct Asked {
    /// The container, if it is known.
    pub caller: Option<CallerName>,
    /// The ids of the answer; empty if it was the device plugin's.
    pub ids: Vec<String>,
}

/// Allocations that wait for a comparison, and the outcomes of the latest.
#[derive(Default)]
pub(super) struct Placements {
    pending: Mutex<VecDeque<Pending>>,
    added: Notify,
    latest: Mutex<BTreeMap<Resource, VecDeque<bool>>>,
}

struct Pending {
    resource: Resource,
    caller: CallerName,
    ids: BTreeSet<String>,
    since: Instant,
}

/// Notes an allocation that succeeded.
pub(super) async fn allocated(plugin: &Plugin, ids: BTreeSet<String>) {
    let shared = &plugin.shared;
    plugin.allocated.lock().passes(ids.clone(), node::now());
    let Some(asked) = plugin.asked.lock().take() else {
        // An app container may use the devices of its init container again, and then the kubelet does not ask.
        let recorded = checkpoint::read(&shared.config.kubelet).await.ok().flatten().unwrap_or_default();
        let recorded: BTreeSet<&String> = recorded.of(&plugin.resource).flat_map(|entry| &entry.devices).collect();
        // The kubelet may have asked the plugin a moment before the agent registered after it.
        let just_registered = plugin.registered_at.lock().is_some_and(|at| at.elapsed() < JUST_REGISTERED);
        if just_registered {
            return;
        }
        if !ids.iter().all(|id| recorded.contains(id)) {
            tracing::warn!(resource = %plugin.resource, ?ids, "the kubelet allocated devices without asking");
            shared.outputs.counters.unasked.inc();
            shared.update_health(&plugin.resource.0, |health| health.unasked += 1);
        }
        return;
    };
    if asked.ids.is_empty() {
        return;
    }
    if asked.ids.iter().collect::<BTreeSet<_>>() != ids.iter().collect() {
        tracing::warn!(resource = %plugin.resource, answered = ?asked.ids, ?ids, "the kubelet allocated other devices");
        shared.outcome(&plugin.resource, false);
    } else if let Some(caller) = asked.caller {
        let mut pending = shared.placements.pending.lock();
        if pending.len() == MAX_PENDING {
            pending.pop_front();
        }
        pending.push_back(Pending { resource: plugin.resource.clone(), caller, ids, since: Instant::now() });
        shared.placements.added.notify_one();
    }
}

/// Compares allocations with what the kubelet recorded, forever.
pub(super) async fn verify(shared: &Shared) {
    loop {
        if shared.placements.pending.lock().is_empty() {
            shared.placements.added.notified().await;
        }
        tokio::time::sleep(AFTER).await;
        let due: Vec<Pending> = {
            let mut pending = shared.placements.pending.lock();
            let due = pending.iter().take_while(|pending| pending.since.elapsed() >= AFTER).count();
            pending.drain(..due).collect()
        };
        if due.is_empty() {
            continue;
        }
        let listed = shared.pod_resources.list(LIST).await.unwrap_or_default();
        let recorded = checkpoint::read(&shared.config.kubelet).await.ok().flatten().unwrap_or_default();
        for pending in due {
            match compare(&pending, &listed, &recorded) {
                Some(matches) => shared.outcome(&pending.resource, matches),
                None if pending.since.elapsed() < GIVE_UP => shared.placements.pending.lock().push_back(pending),
                None => {}
            }
        }
    }
}

/// Whether the kubelet recorded the answered devices for the container; `None` if it recorded none for it.
fn compare(pending: &Pending, listed: &ListPodResourcesResponse, recorded: &Checkpoint) -> Option<bool> {
    let caller = &pending.caller;
    let in_checkpoint = recorded.of(&pending.resource);
    let mut in_checkpoint =
        in_checkpoint.filter(|entry| entry.pod == caller.uid && entry.container == caller.container);
    if let Some(entry) = in_checkpoint.next() {
        return Some(entry.devices.iter().eq(pending.ids.iter()));
    }
    // A kubelet that has lost its checkpoint still lists what it allocates.
    let pods =
        listed.pod_resources.iter().filter(|pod| caller.pod.name == pod.name && caller.pod.namespace == pod.namespace);
    let containers = pods.flat_map(|pod| &pod.containers).filter(|container| caller.container == container.name);
    let devices = containers.flat_map(|container| &container.devices);
    let of_resource = devices.filter(|devices| pending.resource.0 == devices.resource_name);
    let ids: BTreeSet<&String> = of_resource.flat_map(|devices| &devices.device_ids).collect();
    (!ids.is_empty()).then(|| ids.into_iter().eq(pending.ids.iter()))
}

impl Shared {
    /// Remembers whether an answer matched, and derives the health.
    fn outcome(&self, resource: &Resource, matches: bool) {
        let counters = &self.outputs.counters;
        if matches {
            counters.matched.inc()
        } else {
            counters.mismatched.inc()
        };
        let all = {
            let mut latest = self.placements.latest.lock();
            let latest = latest.entry(resource.clone()).or_default();
            if latest.len() == LATEST {
                latest.pop_front();
            }
            latest.push_back(matches);
            latest.iter().all(|matches| *matches)
        };
        self.update_health(&resource.0, |health| health.placements_match = Some(all));
    }
}
