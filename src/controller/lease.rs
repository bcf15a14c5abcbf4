//! Leadership by a `coordination.k8s.io` Lease. Owns acquiring, renewing and giving back; who leads does what is
//! [`super::Controller`]'s.
//!
//! Expiry is judged by the local clock, from the moment a change of the Lease was seen, so clocks need not agree. Whoever
//! cannot renew stops leading before anybody else may start.

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
/// After so long without a renewal others may take over.
const DURATION: Duration = Duration::from_secs(15);
/// A leader that could not renew for so long stops leading.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Between attempts.
const PERIOD: Duration = Duration::from_secs(2);

/// One candidate.
pub struct Lease {
    api: Api<LeaseObject>,
    identity: String,
    /// The resourceVersion last seen, and since when.
    seen: Option<(String, Instant)>,
}

/// What one attempt led to.
enum Held {
    Mine,
    Anothers,
    /// Somebody wrote the Lease in between; the next attempt reads who.
    Unclear,
}

impl Lease {
    /// A candidate for the Lease of a namespace.
    pub fn new(client: Client, namespace: &str, identity: &str) -> Lease {
        Lease { api: Api::namespaced(client, namespace), identity: identity.to_owned(), seen: None }
    }

    /// Tries to hold it until `stop`, and tells whether it does.
    pub async fn keep(mut self, leading: watch::Sender<bool>, stop: CancellationToken) {
        let mut renewed = Instant::now();
        loop {
            let began = Instant::now();
            let leads = *leading.borrow();
            // A leader has only what is left until it must have stopped; a candidate has time.
            let left = RENEW_DEADLINE.saturating_sub(renewed.elapsed());
            let limit = if leads { left.min(RENEW_DEADLINE / 2) } else { RENEW_DEADLINE / 2 };
            let held = tokio::select! {
                held = tokio::time::timeout(limit, self.attempt()) => held,
                () = stop.cancelled() => break,
            };
            match held {
                Ok(Ok(Held::Mine)) => {
                    // Others count from the write, which was after this.
                    renewed = began;
                    leading.send_if_modified(|leads| !std::mem::replace(leads, true));
                }
                Ok(Ok(Held::Anothers)) => _ = leading.send_if_modified(|leads| std::mem::replace(leads, false)),
                Ok(Ok(Held::Unclear)) => {}
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

    async fn attempt(&mut self) -> kube::Result<Held> {
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
            return Ok(Held::Anothers);
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

    /// Nobody's, so that the next candidate need not wait.
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

/// Of a write, which is refused if somebody was faster.
fn settled(written: kube::Result<LeaseObject>) -> kube::Result<Held> {
    match written {
        Ok(_) => Ok(Held::Mine),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Held::Unclear),
        Err(error) => Err(error),
    }
}
