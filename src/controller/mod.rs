//! What one replica at a time does to the cluster: publish, keep the ledgers, explain waiting, keep the webhook configurations, keep the
//! certificate. Owns leadership and the life of those tasks. All of them write what the state says, whatever was there
//! before, so that a leader that does not yet know it lost does no harm.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::index::Index;
use crate::metrics::Metrics;
use crate::policies::PolicyStore;

mod back_fill;
pub mod certificate;
mod events;
pub mod lease;
mod ledger;
mod preflight;
mod publish;
#[cfg(test)]
mod tests;
mod turns;
mod waiting;
pub mod webhook_configuration;

use certificate::Announce;
use webhook_configuration::{Ca, Trust};

/// What the tasks share.
#[derive(Clone)]
pub struct Controller {
    /// The cluster.
    pub client: Client,
    /// The picture of it.
    pub index: Arc<Index>,
    /// The policies in force.
    pub policies: Arc<PolicyStore>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Own namespace, for the Lease and the Secret.
    pub namespace: String,
    /// Own name, for the Lease and the events.
    pub identity: String,
    /// The API server's `--request-timeout`.
    pub api_request_timeout: Duration,
    /// Name of both webhook configurations.
    pub webhook_configuration: String,
    /// The certificate to keep, if it is ours to keep.
    pub certificate: Option<certificate::Kept>,
}

/// For one call to the API server.
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// Between a failed attempt and the next.
const RETRY: Duration = Duration::from_secs(2);

impl Controller {
    /// Leads whenever the Lease allows, until `stop`; then gives the Lease back. Not before nodes and pods have been listed:
    /// whoever knows nothing yet leaves the lead to those who do, and points nobody at a webhook that cannot answer.
    pub async fn run(self, stop: CancellationToken) {
        let mut changed = self.index.subscribe();
        while !self.index.is_synced() {
            tokio::select! {
                _ = changed.changed() => {}
                () = stop.cancelled() => return,
            }
        }
        let lease = lease::Lease::new(self.client.clone(), &self.namespace, &self.identity);
        let (leading, mut leads) = watch::channel(false);
        // Beside the tasks and ended with them: a Lease that is kept with nobody at work would be the worst of all.
        let keep = lease.keep(leading, stop);
        let lead = async {
            while leads.wait_for(|leading| *leading).await.is_ok() {
                self.lead(leads.clone()).await;
            }
        };
        tokio::pin!(keep, lead);
        tokio::select! {
            () = &mut keep => {}
            () = &mut lead => keep.await,
        }
        self.metrics.leading.set(0);
    }

    /// Runs the tasks until leadership ends.
    async fn lead(&self, mut leads: watch::Receiver<bool>) {
        tracing::info!(identity = %self.identity, "leading");
        self.metrics.leading.set(1);
        let mut tasks = JoinSet::new();
        tasks.spawn(publish::run(self.clone()));
        tasks.spawn(ledger::run(self.clone()));
        tasks.spawn(waiting::run(self.clone()));
        tasks.spawn(preflight::run(self.clone()));
        let ca = self.certificate.clone().map(|kept| {
            let ((wanted, to_write), (seen, as_seen)) = (watch::channel(None), watch::channel(Trust::Unseen));
            tasks.spawn(kept.keep(Announce { wanted, seen: as_seen }));
            Ca { wanted: to_write, seen }
        });
        tasks.spawn(webhook_configuration::run(self.clone(), ca));
        let ended = tokio::select! {
            _ = leads.wait_for(|leading| !*leading) => None,
            ended = tasks.join_next() => Some(ended),
        };
        tasks.shutdown().await;
        self.metrics.waiting(|_| 0);
        self.metrics.refused_if_created(&BTreeMap::new());
        self.metrics.leading.set(0);
        match ended {
            None => tracing::info!(identity = %self.identity, "not leading any more"),
            Some(ended) => {
                tracing::error!("a controller task ended: {ended:?}; starting all of them anew");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// A call to the API server that does not hang for ever: on a connection that nobody answers, and nobody closes, a client
/// would wait for minutes, and whatever waits for it too.
async fn bounded<T>(call: impl Future<Output = kube::Result<T>>) -> anyhow::Result<T> {
    Ok(tokio::time::timeout(CALL_DEADLINE, call).await.context("no answer from the API server")??)
}

/// The clock, in one place.
fn now() -> Timestamp {
    Timestamp::now()
}
