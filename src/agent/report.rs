//! The reports of an agent: writes `status.agent` of its node's `GpuLedger`, and creates the object if it is missing.
//! Owns retries; what a report says and when it is due is decided in [`crate::capacity::observation`].

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::metrics::Metrics;
use super::node::{Ledger, Node, now};
use crate::capacity::gpu::Rules;
use crate::capacity::node::reservation::Reservations;
use crate::capacity::observation::pace;
use crate::capacity::observation::report::{Report, Written};
use crate::k8s::gpu_ledger::{GpuLedger, report};

/// Time limit of one call to the API server.
const DEADLINE: Duration = Duration::from_secs(30);
/// Shortest time between two questions whether a report is due.
const INTERVAL: Duration = Duration::from_secs(1);
/// Pause after a failed write: the first value, doubled up to the second while writes fail.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// Writes reports until `stop` is cancelled. A write that has begun is awaited.
pub(super) async fn follow(client: Client, node: Arc<Node>, metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut written: Option<Written> = None;
    let mut pause = BACK_OFF.0;
    let spread = spread(&node.name);
    let mut waiting = false;
    loop {
        let next = Instant::now() + INTERVAL;
        tokio::select! {
            () = stop.cancelled() => return,
            // Several changes within a second are one question.
            () = async { node.changed.notified().await; sleep_until(next).await; } => {}
        }
        let (ledger, uid) = node.read(|state| (state.ledger, state.uid.clone()));
        // The first report should be complete: further amounts have to wait for their turn.
        let looked = node.read(|state| state.look.is_some() && state.observer.owners.are_listed());
        if ledger == Ledger::Unknown || !looked {
            continue;
        }
        let report = node.report();
        if ledger == Ledger::Missing {
            written = None;
            // Without a GPU behind a resource there is nothing to account for, and no ledger is needed.
            if report.gpus.is_empty() {
                if !std::mem::replace(&mut waiting, true) {
                    tracing::info!("no GPU of this node is behind a resource yet; no GpuLedger is made for it");
                }
                continue;
            }
        }
        waiting = false;
        let at = now();
        if !pace::is_due(&report, written.as_ref(), spread, at) {
            continue;
        }
        let wrote = timeout(DEADLINE, write(&client, &node, ledger, uid.as_deref(), &report)).await;
        match wrote.unwrap_or_else(|_| Err(Unwritten::Other(format!("no answer within {} s", DEADLINE.as_secs())))) {
            Ok(()) => {
                metrics.wrote(at);
                log_findings(&report, written.as_ref());
                written = Some(Written { report, at });
                pause = BACK_OFF.0;
            }
            Err(why) => {
                metrics.write_errors.inc();
                tracing::warn!("the report cannot be written: {why}; trying again in {} s", pause.as_secs());
                tokio::select! { () = stop.cancelled() => return, () = sleep(pause) => {} }
                pause = (pause * 2).min(BACK_OFF.1);
                node.changed.notify_one();
            }
        }
    }
}

/// Why a report was not written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unwritten {
    /// The API server does not accept the agent's identity any more (401), or does not permit the write (403).
    #[error("{0}")]
    Refused(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl Unwritten {
    /// `what` could not be done.
    fn new(what: &str, error: &kube::Error) -> Unwritten {
        let why = format!("{what}: {error}");
        match error {
            kube::Error::Api(status) if [401, 403].contains(&status.code) => Unwritten::Refused(why),
            _ => Unwritten::Other(why),
        }
    }
}

/// Writes the report as it is now, if there is a ledger.
///
/// # Errors
/// It cannot be written; the error says why.
pub(super) async fn write_now(client: &Client, node: &Node) -> Result<(), Unwritten> {
    let (ledger, uid) = node.read(|state| (state.ledger, state.uid.clone()));
    match ledger {
        Ledger::Missing => Ok(()),
        Ledger::Present => write(client, node, ledger, uid.as_deref(), &node.report()).await,
        Ledger::Unknown => Err(Unwritten::Other("the GpuLedger has not been read".to_owned())),
    }
}

async fn write(
    client: &Client,
    node: &Node,
    ledger: Ledger,
    uid: Option<&str>,
    report: &Report,
) -> Result<(), Unwritten> {
    let ledgers: Api<GpuLedger> = Api::all(client.clone());
    if ledger == Ledger::Missing {
        let without = || format!("node {:?} is not in the API, so no GpuLedger can be made for it", node.name);
        let uid = uid.ok_or_else(|| Unwritten::Other(without()))?;
        let new = GpuLedger::new(&node.name, uid, &Reservations::default(), &Rules::default());
        match ledgers.create(&PostParams::default(), &new).await {
            Ok(_) => tracing::info!("GpuLedger {:?} created", node.name),
            // The server, or another run of this agent, was first.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(Unwritten::new(&format!("GpuLedger {:?} cannot be created", node.name), &error)),
        }
    }
    let patch = Patch::Merge(report::patch(report, now()));
    match ledgers.patch_status(&node.name, &PatchParams::default(), &patch).await {
        Ok(_) => {
            // The watch may lag, and a ledger that seems to be missing would be written again.
            node.update(|state| state.ledger = Ledger::Present);
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.code == 404 => {
            node.update(|state| state.ledger = Ledger::Missing);
            Err(Unwritten::Other(format!("GpuLedger {:?} is gone", node.name)))
        }
        Err(error) => Err(Unwritten::new(&format!("status of GpuLedger {:?}", node.name), &error)),
    }
}

/// Logs each finding that the report before did not have.
fn log_findings(report: &Report, before: Option<&Written>) {
    for (key, container) in &report.containers {
        let known = before.and_then(|before| before.report.containers.get(key)?.finding.as_ref());
        if let Some(finding) = &container.finding
            && known.map(|known| known.problem) != Some(finding.problem)
        {
            tracing::warn!(problem = %finding.problem, "{}", finding.message);
        }
    }
}

/// A number that differs between nodes, so that their heartbeats do not come together.
fn spread(node: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    node.hash(&mut hasher);
    hasher.finish()
}
