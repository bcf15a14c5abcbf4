//! Keeps each node's `GpuLedger` true to what is seen: confirms, adopts, forgets and releases reservations, writes its status,
//! and says which pods lack annotations ([`super::back_fill`] writes those). Owns when and how often; what is written is the
//! core's.
//!
//! Every write of reservations is a compare-and-swap on the version that was seen, so a leader that does not yet know it lost
//! does no harm, and neither does one whose watch lags.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::back_fill::{BackFills, Lacking};
use super::events::Recorder;
use super::turns::Turns;
use super::{Controller, RETRY, bounded, now};
use crate::capacity::binding;
use crate::capacity::gpu::{Pool, Rules};
use crate::capacity::ledger::{NodeLedger, PodUid};
use crate::capacity::moment::Moment;
use crate::capacity::pod::PodName;
use crate::capacity::policy::Mode;
use crate::capacity::reservation::{Found, Patience, Upkeep};
use crate::capacity::verdict::{self, Reason};
use crate::k8s::gpu_ledger::{self, GpuLedger, spec, status};
use crate::k8s::object::PodObject;
use crate::k8s::pod;
use crate::ledgers::{self, Known, WriteError};

/// Changes are gathered for this long. Nobody waits for these writes: an ended pod stops counting when it is seen to. While
/// pods are bound, each of them makes a binding's write lose and begin again.
const GATHER: Duration = Duration::from_secs(2);
/// Reservations come of age without any event.
const LOOK_AGAIN: Duration = Duration::from_secs(15);
/// Nodes in hand at a time.
const PARALLEL: usize = 8;
/// Clocks of replicas apart, and a write behind its request.
const SKEW: Duration = Duration::from_secs(30);

pub async fn run(controller: Controller) {
    let patience = Patience { request_timeout: controller.api_request_timeout, skew: SKEW };
    let mut changed = controller.index.subscribe();
    let mut turns = Turns::new(PARALLEL);
    turns.add(controller.index.all_nodes());
    let mut back_fills = BackFills::new(controller.client.clone());
    let recorder = Arc::new(Recorder::new(&controller));
    let mut kept = JoinSet::new();
    // When what has changed is looked at, once something has.
    let mut gathered: Option<Instant> = None;
    let mut look_again = tokio::time::interval(LOOK_AGAIN);
    loop {
        for node in turns.take(Instant::now()) {
            let (controller, recorder) = (controller.clone(), recorder.clone());
            kept.spawn(async move {
                let kept = keep(&controller, &recorder, &patience, &node).await;
                (node, kept)
            });
        }
        let retry = turns.next_retry();
        tokio::select! {
            changed = changed.changed(), if gathered.is_none() => {
                if changed.is_err() {
                    return;
                }
                gathered = Some(Instant::now() + GATHER);
            }
            () = until(gathered) => {
                gathered = None;
                turns.add(controller.index.take_touched());
                turns.add(back_fills.failed());
            }
            _ = look_again.tick() => {
                turns.add(with_ledger(&controller));
                turns.add(back_fills.failed());
            }
            Some(ended) = kept.join_next() => {
                let (node, kept) = ended.expect("the upkeep of a ledger does not panic and is not aborted by itself");
                let again = match kept {
                    Ok(lacking) => !back_fills.begin(&node, lacking),
                    // A lost race comes back as an event; anything else is tried again.
                    Err(error) => {
                        tracing::warn!("ledger of node {node:?}: {error:#}; trying again");
                        true
                    }
                };
                turns.ended(node, again.then(|| Instant::now() + RETRY));
            }
            () = until(retry) => {}
        }
    }
}

/// Waits for a time; for ever where there is none.
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

/// A node with its ledger as they are seen now.
struct Seen {
    known: Known,
    /// Whether it has a ledger, or needs one.
    has_ledger: bool,
    created: Option<Moment>,
    /// The node's uid, where the ledger is owned by another one of that name.
    owner: Option<String>,
    ledger: NodeLedger,
    pools: Vec<Pool>,
    rules: Rules,
    upkeep: Upkeep,
    status: Option<Value>,
}

impl Seen {
    /// `None` for a node without guarded GPUs and without a ledger.
    fn of(controller: &Controller, node: &str, patience: &Patience, now: Moment) -> Option<Seen> {
        let state = controller.index.read();
        let cluster = &state.cluster;
        let seen = state.ledger(node);
        let guarded = cluster.node(node)?.0.pools.iter().any(|pool| cluster.guards(&pool.resource));
        if seen.is_none() && !guarded {
            return None;
        }
        let has_ledger = seen.is_some() || cluster.needs_ledger(node);
        let uid = state.advertised(node).uid;
        let owner = seen.and_then(|seen| uid.filter(|uid| seen.owner.as_ref() != Some(uid)));
        let (facts, ledger, standing) = cluster.node(node)?;
        let rules = *cluster.rules();
        let guards = |resource: &_| cluster.guards(resource);
        let upkeep = ledger.upkeep(&facts.pools, &rules, guards, patience, now);
        let at = super::now();
        let status = seen.and_then(|seen| status::patch(facts, ledger, standing, &rules, guards, &seen.status, at));
        let known = Known {
            version: seen.map(|seen| seen.version.clone()),
            shared: ledger.shared().cloned().unwrap_or_default(),
        };
        let created = seen.and_then(|seen| seen.created);
        let (ledger, pools) = (ledger.clone(), facts.pools.clone());
        Some(Seen { known, has_ledger, created, owner, ledger, pools, rules, upkeep, status })
    }

    /// Pods without annotations that could be given to them.
    fn lacking(&self) -> Vec<Lacking> {
        let pools: Arc<[Pool]> = self.pools.as_slice().into();
        let gpu_of = |(uid, holder)| (uid, holder, self.ledger.known_gpu(uid, holder, &pools));
        let holders = self.ledger.holders().iter().map(gpu_of);
        let lacking = holders.filter(|(_, holder, gpu)| binding::lacks_annotations(holder, gpu.as_ref(), &pools));
        let lacking = lacking.map(|(uid, holder, gpu)| {
            let (uid, holder, pools) = (uid.clone(), holder.clone(), pools.clone());
            Lacking { uid, holder, gpu, pools }
        });
        lacking.collect()
    }
}

/// Returns the pods of the node that lack annotations.
async fn keep(
    controller: &Controller,
    recorder: &Recorder,
    patience: &Patience,
    node: &str,
) -> anyhow::Result<Vec<Lacking>> {
    let at = moment();
    let Some(mut seen) = Seen::of(controller, node, patience, at) else { return Ok(Vec::new()) };
    if let Some(why) = seen.known.shared.fault.clone() {
        write_status(controller, node, &seen).await?;
        anyhow::bail!("{why}");
    }
    if seen.has_ledger && !write_reservations(controller, recorder, patience, node, at, &mut seen).await? {
        return Ok(Vec::new()); // whoever won wrote an event that brings us here again
    }
    write_status(controller, node, &seen).await?;
    Ok(seen.lacking())
}

/// Whether the ledger says what it should now; not where somebody else wrote it first.
async fn write_reservations(
    controller: &Controller,
    recorder: &Recorder,
    patience: &Patience,
    node: &str,
    at: Moment,
    seen: &mut Seen,
) -> anyhow::Result<bool> {
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
    let before = spec(&seen.known.shared.reservations, &seen.rules);
    if seen.known.version.is_none() || before != spec(&seen.upkeep.reservations, &seen.rules) {
        let written = ledgers::write(&controller.client, node, &seen.known, &seen.upkeep.reservations, &seen.rules);
        match tokio::time::timeout(super::CALL_DEADLINE, written).await? {
            Ok(_) => report_slips(controller, recorder, node, seen).await?,
            Err(WriteError::Conflict | WriteError::NodeGone | WriteError::Busy) => return Ok(false),
            Err(WriteError::Api(error)) => return Err(error.into()),
        }
    }
    Ok(true)
}

async fn write_status(controller: &Controller, node: &str, seen: &Seen) -> anyhow::Result<()> {
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

/// What a quorum says of a pod.
async fn find(controller: &Controller, uid: &PodUid, name: &PodName, node: &str) -> anyhow::Result<Found> {
    let pods: Api<PodObject> = Api::namespaced(controller.client.clone(), &name.namespace);
    let found = bounded(pods.get_opt(&name.name)).await?;
    Ok(pod::found(found.as_ref(), uid, node))
}

/// Pods that were bound without the guard although it should have been asked: counted and said. Those from before their node
/// had a ledger are no slip, nor are those of namespaces that nothing is injected in.
async fn report_slips(controller: &Controller, recorder: &Recorder, node: &str, seen: &Seen) -> anyhow::Result<()> {
    let policies = controller.policies.current();
    let injected = |name: &PodName| {
        let policy = policies.of(&name.namespace).map(|(policy, _)| policy.mode);
        matches!(policy, Some(Mode::Enforce | Mode::Warn))
    };
    for uid in &seen.upkeep.adopted {
        let Some(holder) = seen.ledger.holders().get(uid) else { continue };
        let name = &holder.name;
        let since = seen.created.is_some_and(|created| holder.bound.is_some_and(|bound| bound >= created));
        if holder.request.is_none() || !since || !injected(name) {
            continue;
        }
        // Another replica may have seen it end, and taken its reservation back, before this one did.
        if find(controller, uid, name, node).await? != Found::Here {
            continue;
        }
        controller.metrics.slips.inc();
        tracing::warn!(node, pod = %name, "bound past the guard");
        recorder.warn_pod(uid, name, Reason::BoundPastGuard, verdict::slipped(node), "Binding").await;
    }
    Ok(())
}

fn moment() -> Moment {
    Moment(now().as_millisecond())
}

#[cfg(test)]
mod tests;
