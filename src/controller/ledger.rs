//! Reconciles the `GpuLedger` of each node with what the watches report.
//!
//! It confirms, adopts and drops reservations, writes the status of the ledger, and finds the pods that lack
//! annotations, which [`super::back_fill`] writes. Owns when and how often this happens; `capacity` decides what is
//! written.
//!
//! Every write of reservations is a compare-and-swap on the version that the watch reported. So a leader that has not
//! noticed the loss of its Lease does no harm, and neither does a leader whose watch lags.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::back_fill::{BackFills, MissingAnnotations};
use super::events::Recorder;
use super::queue::WorkQueue;
use super::{Controller, RETRY, bounded, now};
use crate::capacity::binding::upkeep::Upkeep;
use crate::capacity::binding::{self, upkeep};
use crate::capacity::cluster::NodeView;
use crate::capacity::gpu::{Pool, Rules};
use crate::capacity::name::PodUid;
use crate::capacity::node::ledger::NodeLedger;
use crate::capacity::node::reservation::{Found, Patience};
use crate::capacity::pod::PodName;
use crate::capacity::time::Moment;
use crate::capacity::verdict::{self, Reason};
use crate::k8s::gpu_ledger::{self, GpuLedger, spec, status};
use crate::k8s::object::PodObject;
use crate::k8s::pod;
use crate::state::ledgers::{self, VersionedLedger, WriteError};

/// Time for which changes are collected before the changed nodes are due.
///
/// A write here may come late, because an ended pod stops counting as soon as the watch reports its end. It should be
/// rare, because it makes the write of a concurrent binding conflict and start again.
const GATHER_TIME: Duration = Duration::from_secs(2);
/// Interval at which all ledgers are reconciled, because reservations expire without any event.
const RESYNC_INTERVAL: Duration = Duration::from_secs(15);
/// Number of nodes that are reconciled at the same time.
const PARALLEL: usize = 8;
/// Allowance for the difference between the clocks of two replicas of vramguard, plus the delay of a write after its
/// request.
const SKEW: Duration = Duration::from_secs(30);

/// Reconciles the nodes that are due, until the task is aborted.
pub(super) async fn run(controller: Controller) {
    let patience = Patience { request_timeout: controller.api_request_timeout, skew: SKEW };
    let mut changed = controller.index.subscribe();
    let mut queue = WorkQueue::new(PARALLEL);
    queue.add(controller.index.all_nodes());
    let mut back_fills = BackFills::new(controller.client.clone());
    let recorder = Arc::new(Recorder::new(&controller));
    let mut tasks = JoinSet::new();
    // When the changes collected so far become due; `None` if nothing has changed.
    let mut gather_until: Option<Instant> = None;
    let mut resync = tokio::time::interval(RESYNC_INTERVAL);
    loop {
        for node in queue.take(Instant::now()) {
            let (controller, recorder) = (controller.clone(), recorder.clone());
            tasks.spawn(async move {
                let reconciled = reconcile(&controller, &recorder, &patience, &node).await;
                (node, reconciled)
            });
        }
        let retry = queue.next_retry();
        tokio::select! {
            changed = changed.changed(), if gather_until.is_none() => {
                if changed.is_err() {
                    return;
                }
                gather_until = Some(Instant::now() + GATHER_TIME);
            }
            () = until(gather_until) => {
                gather_until = None;
                queue.add(controller.index.take_touched());
                queue.add(back_fills.failed());
            }
            _ = resync.tick() => {
                queue.add(with_ledger(&controller));
                queue.add(back_fills.failed());
            }
            Some(ended) = tasks.join_next() => {
                let (node, reconciled) = ended.expect("the upkeep of a ledger does not panic and is not aborted by itself");
                let again = match reconciled {
                    Ok(missing) => !back_fills.begin(&node, missing),
                    // A conflict is no error: the other writer's event makes the node due again. Errors need a retry.
                    Err(error) => {
                        tracing::warn!("ledger of node {node:?}: {error:#}; trying again");
                        true
                    }
                };
                queue.ended(node, again.then(|| Instant::now() + RETRY));
            }
            () = until(retry) => {}
        }
    }
}

/// Waits until a time; forever if there is none.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

fn with_ledger(controller: &Controller) -> BTreeSet<String> {
    let state = controller.index.read();
    state.ledger_names().map(str::to_owned).collect()
}

/// Snapshot of a node and its ledger, and what reconciling should write.
struct NodeSnapshot {
    /// The `GpuLedger` as the watch reported it, without a version if it does not exist.
    known: VersionedLedger,
    /// Whether reservations are to be written: the node has a `GpuLedger`, or needs one.
    has_ledger: bool,
    /// When the `GpuLedger` was created.
    created: Option<Moment>,
    /// The node's uid, if the owner reference of the `GpuLedger` has another one: that of an earlier node of that name.
    owner: Option<String>,
    /// The holders of the node, with the content of `known`.
    ledger: NodeLedger,
    pools: Vec<Pool>,
    rules: Rules,
    upkeep: Upkeep,
    /// The patch that brings the status of the `GpuLedger` up to date; `None` if it is.
    status: Option<Value>,
}

impl NodeSnapshot {
    /// Takes a snapshot. `None` for a node that the watch does not show, or that has neither guarded GPUs nor a ledger.
    fn of(controller: &Controller, node: &str, patience: &Patience, now: Moment) -> Option<NodeSnapshot> {
        let state = controller.index.read();
        let cluster = &state.cluster;
        let seen = state.ledger(node);
        let guarded = cluster.node(node)?.facts.pools.iter().any(|pool| cluster.guards(&pool.resource));
        if seen.is_none() && !guarded {
            return None;
        }
        let has_ledger = seen.is_some() || cluster.needs_ledger(node);
        let uid = state.advertised(node).uid;
        let owner = seen.and_then(|seen| uid.filter(|uid| seen.owner.as_ref() != Some(uid)));
        let NodeView { facts, ledger, usage } = cluster.node(node)?;
        let rules = *cluster.rules();
        let guards = |resource: &_| cluster.guards(resource);
        let upkeep = ledger.upkeep(&facts.pools, &rules, guards, patience, now);
        let at = super::now();
        let status = seen.and_then(|seen| status::patch(facts, ledger, usage, &rules, guards, &seen.status, at));
        let known = VersionedLedger {
            version: seen.map(|seen| seen.version.clone()),
            content: ledger.content().cloned().unwrap_or_default(),
        };
        let created = seen.and_then(|seen| seen.created);
        let (ledger, pools) = (ledger.clone(), facts.pools.clone());
        Some(NodeSnapshot { known, has_ledger, created, owner, ledger, pools, rules, upkeep, status })
    }

    /// The bound pods that lack an annotation, although its value is known.
    fn missing(&self) -> Vec<MissingAnnotations> {
        let pools: Arc<[Pool]> = self.pools.as_slice().into();
        let gpu_of = |(uid, holder)| (uid, holder, self.ledger.known_gpu(uid, holder, &pools));
        let holders = self.ledger.holders().iter().map(gpu_of);
        let missing = holders.filter(|(_, holder, gpu)| binding::lacks_annotations(holder, gpu.as_ref(), &pools));
        let missing = missing.map(|(uid, holder, gpu)| {
            let (uid, holder, pools) = (uid.clone(), holder.clone(), pools.clone());
            MissingAnnotations { uid, holder, gpu, pools }
        });
        missing.collect()
    }
}

/// Reconciles the ledger of one node, and returns the pods of the node that lack annotations.
async fn reconcile(
    controller: &Controller,
    recorder: &Recorder,
    patience: &Patience,
    node: &str,
) -> anyhow::Result<Vec<MissingAnnotations>> {
    let at = moment();
    let Some(mut seen) = NodeSnapshot::of(controller, node, patience, at) else { return Ok(Vec::new()) };
    if let Some(why) = seen.known.content.fault.clone() {
        write_status(controller, node, &seen).await?;
        anyhow::bail!("{why}");
    }
    if seen.has_ledger && !write_reservations(controller, recorder, patience, node, at, &mut seen).await? {
        return Ok(Vec::new()); // the latest write leads to an event, which makes the node due again
    }
    write_status(controller, node, &seen).await?;
    Ok(seen.missing())
}

/// Writes the reservations if they should change, after a quorum read of each doubtful pod.
///
/// Returns `false` if the snapshot is outdated, because this function or another writer changed the ledger or the node.
/// The watch reports that change, and the node is then reconciled again.
async fn write_reservations(
    controller: &Controller,
    recorder: &Recorder,
    patience: &Patience,
    node: &str,
    at: Moment,
    seen: &mut NodeSnapshot,
) -> anyhow::Result<bool> {
    // First the owner reference: with that of an earlier node, the garbage collector would delete the ledger.
    if let (Some(uid), Some(version)) = (&seen.owner, &seen.known.version) {
        let ledgers: Api<GpuLedger> = Api::all(controller.client.clone());
        let patch = gpu_ledger::owner_patch(node, uid, version);
        return bounded(async {
            match ledgers.patch(node, &PatchParams::default(), &Patch::Merge(patch)).await {
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
                written => written.map(|_| false),
            }
        })
        .await;
    }
    for (uid, name) in std::mem::take(&mut seen.upkeep.doubtful) {
        let found = find(controller, &uid, &name, node).await?;
        let reservation = seen.upkeep.reservations.of(&uid);
        if reservation.is_some_and(|reservation| !reservation.survives(found, patience, at)) {
            tracing::info!(node, pod = %name, ?found, "reservation forgotten");
            seen.upkeep.reservations.remove(&uid);
        }
    }
    let before = spec(&seen.known.content.reservations, &seen.rules);
    if seen.known.version.is_none() || before != spec(&seen.upkeep.reservations, &seen.rules) {
        // Found before the write: afterwards the pods have reservations, and a retry would not find them again.
        let slips = slips(controller, node, seen).await?;
        let written = ledgers::write(&controller.client, node, &seen.known, &seen.upkeep.reservations, &seen.rules);
        match tokio::time::timeout(super::CALL_DEADLINE, written).await? {
            Ok(_) => report_slips(controller, recorder, node, slips).await,
            Err(WriteError::Conflict | WriteError::NodeGone | WriteError::Busy) => return Ok(false),
            Err(WriteError::Api(error)) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// Writes the status of the ledger, if it should change. A ledger that is gone, or was written since, is no error: the
/// watch reports that change, and the node is then reconciled again.
async fn write_status(controller: &Controller, node: &str, seen: &NodeSnapshot) -> anyhow::Result<()> {
    if let Some(patch) = &seen.status {
        let ledgers: Api<GpuLedger> = Api::all(controller.client.clone());
        bounded(async {
            match ledgers.patch_status(node, &PatchParams::default(), &Patch::Merge(patch)).await {
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
                written => written.map(|_| ()),
            }
        })
        .await?;
    }
    Ok(())
}

/// Finds out by a quorum read what became of a pod: see [`Found`].
async fn find(controller: &Controller, uid: &PodUid, name: &PodName, node: &str) -> anyhow::Result<Found> {
    let pods: Api<PodObject> = Api::namespaced(controller.client.clone(), &name.namespace);
    let found = bounded(pods.get_opt(&name.name)).await?;
    Ok(pod::found(found.as_ref(), uid, node))
}

/// The slips among the adopted pods, which were bound past the guard: see [`upkeep::is_slip`].
async fn slips(controller: &Controller, node: &str, seen: &NodeSnapshot) -> anyhow::Result<Vec<(PodUid, PodName)>> {
    let policies = controller.policies.current();
    let mut slips = Vec::new();
    for uid in &seen.upkeep.adopted {
        let Some(holder) = seen.ledger.holders().get(uid) else { continue };
        let mode = policies.of(&holder.name.namespace).map(|(policy, _)| policy.mode);
        // This replica's watch may lag. If another replica has seen the pod end and removed its reservation, the pod
        // seems to be bound without one.
        if upkeep::is_slip(holder, seen.created, mode)
            && find(controller, uid, &holder.name, node).await? == Found::Here
        {
            slips.push((uid.clone(), holder.name.clone()));
        }
    }
    Ok(slips)
}

/// Counts slips, and reports each in the log and as an event on its pod.
async fn report_slips(controller: &Controller, recorder: &Recorder, node: &str, slips: Vec<(PodUid, PodName)>) {
    for (uid, name) in slips {
        controller.metrics.slips.inc();
        tracing::warn!(node, pod = %name, "bound past the guard");
        recorder.warn_pod(&uid, &name, Reason::BoundPastGuard, verdict::bound_past_guard(node), "Binding").await;
    }
}

fn moment() -> Moment {
    Moment(now().as_millisecond())
}

#[cfg(test)]
mod tests;
