//! Leadership by a `coordination.k8s.io` Lease. Owns how the Lease is acquired, renewed and given back;
//! [`super::Controller`] owns what the leader does.
//!
//! Expiry is measured by the local clock, from when this replica saw the Lease change, so the clocks of replicas need
//! not agree. A replica that cannot renew stops leading before any other may start.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease as LeaseObject, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::now;

/// Name of the Lease.
pub const NAME: &str = "vramguard";
/// Time without a renewal after which other replicas may take over.
const DURATION: Duration = Duration::from_secs(15);
/// Time without a renewal after which the leader stops leading.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Pause between attempts.
const PERIOD: Duration = Duration::from_secs(2);

/// A candidate for the Lease.
pub struct Lease {
    api: Api<LeaseObject>,
    identity: String,
    /// The last resourceVersion seen, and when it was first seen.
    seen: Option<(String, Instant)>,
}

/// Outcome of one attempt.
enum Attempt {
    Ours,
    Theirs,
    /// Another replica wrote the Lease in between. The next attempt reads the result.
    Unclear,
}

impl Lease {
    /// Creates a candidate for the Lease of a namespace.
    pub fn new(client: Client, namespace: &str, identity: &str) -> Lease {
        Lease { api: Api::namespaced(client, namespace), identity: identity.to_owned(), seen: None }
    }

    /// Tries to hold the Lease until `stop`, and sends whether this replica leads.
    pub async fn keep(mut self, leading: watch::Sender<bool>, stop: CancellationToken) {
        let mut renewed = Instant::now();
        loop {
            let began = Instant::now();
            let leads = *leading.borrow();
            // A leader has only the time left until it must stop; a candidate has more time.
            let left = RENEW_DEADLINE.saturating_sub(renewed.elapsed());
            let limit = if leads { left.min(RENEW_DEADLINE / 2) } else { RENEW_DEADLINE / 2 };
            let held = tokio::select! {
                held = tokio::time::timeout(limit, self.attempt()) => held,
                () = stop.cancelled() => break,
            };
            match held {
                Ok(Ok(Attempt::Ours)) => {
                    // Other replicas measure from the write, which came after this instant.
                    renewed = began;
                    leading.send_if_modified(|leads| !std::mem::replace(leads, true));
                }
                Ok(Ok(Attempt::Theirs)) => _ = leading.send_if_modified(|leads| std::mem::replace(leads, false)),
                Ok(Ok(Attempt::Unclear)) => {}
                Ok(Err(error)) => tracing::warn!("lease {NAME}: {error}"),
                Err(_) => tracing::warn!("lease {NAME}: no answer"),
            }
            let left = RENEW_DEADLINE.saturating_sub(renewed.elapsed());
            if left.is_zero() {
                leading.send_if_modified(|leads| std::mem::replace(leads, false));
            }
            let pause = if left.is_zero() { PERIOD } else { PERIOD.min(left) };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => break,
            }
        }
        let led = leading.send_if_modified(|leads| std::mem::replace(leads, false));
        if led && let Err(error) = self.give_back().await {
            tracing::warn!("lease {NAME} not given back, others wait {}s: {error}", DURATION.as_secs());
        }
    }

    async fn attempt(&mut self) -> kube::Result<Attempt> {
        let Some(current) = self.api.get_opt(NAME).await? else {
            let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
            let lease = LeaseObject { metadata, spec: Some(self.spec(&LeaseSpec::default())) };
            return settled(self.api.create(&PostParams::default(), &lease).await);
        };
        let version = current.metadata.resource_version.clone().unwrap_or_default();
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != version) {
            self.seen = Some((version, Instant::now()));
        }
        let spec = current.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let expired = self.seen.as_ref().is_some_and(|(_, since)| since.elapsed() > DURATION);
        if holder != self.identity && !holder.is_empty() && !expired {
            return Ok(Attempt::Theirs);
        }
        let lease = LeaseObject { spec: Some(self.spec(&spec)), ..current };
        settled(self.api.replace(NAME, &PostParams::default(), &lease).await)
    }

    fn spec(&self, before: &LeaseSpec) -> LeaseSpec {
        let now = MicroTime(now());
        let kept = before.holder_identity.as_deref() == Some(&self.identity);
        let transitions = before.lease_transitions.unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: if kept { before.acquire_time.clone() } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: Some(if kept { transitions } else { transitions + 1 }),
            ..LeaseSpec::default()
        }
    }

    /// Clears the holder, so that the next candidate need not wait for the expiry.
    async fn give_back(&self) -> kube::Result<()> {
        let Some(current) = self.api.get_opt(NAME).await? else {
            return Ok(());
        };
        let spec = current.spec.clone().unwrap_or_default();
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            return Ok(());
        }
        let spec = LeaseSpec { holder_identity: None, ..spec };
        let lease = LeaseObject { spec: Some(spec), ..current };
        self.api.replace(NAME, &PostParams::default(), &lease).await.map(|_| ())
    }
}

/// Converts the result of a write. A conflict means that another replica was first.
fn settled(written: kube::Result<LeaseObject>) -> kube::Result<Attempt> {
    match written {
        Ok(_) => Ok(Attempt::Ours),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Attempt::Unclear),
        Err(error) => Err(error),
    }
}
