//! What one replica at a time does to the cluster: publish, explain waiting, keep the webhook configurations, keep the
//! certificate. Owns leadership and the life of those tasks. All of them write what the state says, whatever was there
//! before, so that a leader that does not yet know it lost does no harm.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::Client;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::index::Index;
use crate::metrics::Metrics;
use crate::policies::PolicyStore;

pub mod certificate;
pub mod lease;
mod publish;
mod waiting;
mod webhook_configuration;

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
    /// Name of both webhook configurations.
    pub webhook_configuration: String,
    /// The certificate to keep, if it is ours to keep.
    pub certificate: Option<certificate::Kept>,
}

/// Between a failed attempt and the next.
const RETRY: Duration = Duration::from_secs(2);

impl Controller {
    /// Leads whenever the Lease allows, until `stop`; then gives the Lease back.
    pub async fn run(self, stop: CancellationToken) {
        let lease = lease::Lease::new(self.client.clone(), &self.namespace, &self.identity);
        let (leading, mut leads) = watch::channel(false);
        let mut keeper = tokio::spawn(lease.keep(leading, stop));
        loop {
            let lead = async {
                if leads.wait_for(|leading| *leading).await.is_err() {
                    return false;
                }
                self.lead(leads.clone()).await;
                true
            };
            tokio::select! {
                again = lead => if !again { break },
                _ = &mut keeper => break,
            }
        }
        self.metrics.leading.set(0);
    }

    /// Runs the tasks until leadership ends.
    async fn lead(&self, mut leads: watch::Receiver<bool>) {
        tracing::info!(identity = %self.identity, "leading");
        self.metrics.leading.set(1);
        let mut tasks = JoinSet::new();
        let (ca, trusted) = watch::channel(None);
        tasks.spawn(publish::run(self.clone()));
        tasks.spawn(waiting::run(self.clone()));
        match self.certificate.clone() {
            Some(kept) => {
                tasks.spawn(kept.keep(ca));
                tasks.spawn(webhook_configuration::run(self.clone(), Some(trusted)));
            }
            None => _ = tasks.spawn(webhook_configuration::run(self.clone(), None)),
        }
        tokio::select! {
            _ = leads.wait_for(|leading| !*leading) => {}
            ended = tasks.join_next() => tracing::error!("a controller task ended: {ended:?}; leading anew"),
        }
        tasks.shutdown().await;
        self.metrics.leading.set(0);
        tracing::info!(identity = %self.identity, "not leading any more");
    }
}

/// The clock, in one place.
fn now() -> Timestamp {
    Timestamp::now()
}
