//! The tasks that one replica at a time performs in the cluster: publish amounts, keep ledgers, explain waiting pods,
//! keep the webhook configurations, keep the certificate. Owns leadership and the life of those tasks. Each task writes
//! what follows from the state, whatever the cluster contains, so a leader that has not noticed the loss of its Lease
//! does no harm.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::state::index::Index;
use crate::state::policies::PolicyStore;

pub mod audit;
mod back_fill;
pub mod certificate;
mod events;
pub mod lease;
mod ledger;
mod policies;
mod preflight;
mod publish;
mod queue;
mod quota;
mod rerouted;
#[cfg(test)]
mod tests;
mod waiting;
pub mod webhook_configuration;

use certificate::Announce;
use webhook_configuration::{Ca, Trust};

/// What the tasks share.
#[derive(Clone)]
pub struct Controller {
    /// Client of the cluster's API server.
    pub client: Client,
    /// The state that the watches feed.
    pub index: Arc<Index>,
    /// The policies in force.
    pub policies: Arc<PolicyStore>,
    /// The metrics that the tasks update.
    pub metrics: Arc<Metrics>,
    /// Namespace of this server, which holds the Lease and the Secret.
    pub namespace: String,
    /// Name of this replica, used in the Lease and in events.
    pub identity: String,
    /// The API server's `--request-timeout`.
    pub api_request_timeout: Duration,
    /// Name of both webhook configurations, the mutating and the validating one.
    pub webhook_configuration: String,
    /// The certificate to keep; `None` if it is provided by others.
    pub certificate: Option<certificate::CertificateSecret>,
    /// Audits at an interval; `None` if nobody asked for them.
    pub audits: Option<audit::Audits>,
}

/// Time limit of one call to the API server.
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// Pause between a failed attempt and the next.
const RETRY: Duration = Duration::from_secs(2);

impl Controller {
    /// Leads while this replica holds the Lease, until `stop`; then gives the Lease back. It does not compete for the
    /// Lease before policies, nodes, pods and ledgers have been listed. A replica without state leaves the lead to others, and
    /// directs no API server to a webhook that cannot answer.
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
        // The Lease is kept concurrently with the tasks and ends with them: if it were renewed while no task runs,
        // nobody would do the work.
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
        tasks.spawn(rerouted::run(self.clone()));
        tasks.spawn(quota::run(self.clone()));
        tasks.spawn(policies::run(self.clone()));
        tasks.spawn(preflight::run(self.clone()));
        if let Some(audits) = self.audits.clone() {
            tasks.spawn(audit::run(self.clone(), audits));
        }
        let ca = self.certificate.clone().map(|kept| {
            let ((wanted, to_write), (seen, as_seen)) = (watch::channel(None), watch::channel(Trust::Unknown));
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
        self.metrics.quotas.clear();
        self.metrics.refused_if_created(&BTreeMap::new());
        self.metrics.audited(None);
        if let Some(page) = self.audits.as_ref().and_then(|audits| audits.page.as_ref()) {
            page.store(None);
        }
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

/// Limits the time of a call to the API server. On a connection that is neither answered nor closed, a client waits for
/// minutes, and everything that depends on the call waits with it.
///
/// # Errors
/// If the call fails or exceeds [`CALL_DEADLINE`].
async fn bounded<T>(call: impl Future<Output = kube::Result<T>>) -> anyhow::Result<T> {
    Ok(tokio::time::timeout(CALL_DEADLINE, call).await.context("no answer from the API server")??)
}

/// The current time. All tasks read the clock here.
fn now() -> Timestamp {
    Timestamp::now()
}
