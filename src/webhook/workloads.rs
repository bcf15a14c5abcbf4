//! `/validate/workloads`: the handler for reviews of workloads and autoscalers. It warns and never refuses.
//!
//! Owns the read of an autoscaler's target, and the verdict that is counted. `k8s::workload` owns what a review asks and
//! how it is answered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{Request as HttpRequest, StatusCode};
use axum::response::{IntoResponse, Response};
use kube::Client;
use serde::de::IgnoredAny;
use tokio::sync::Semaphore;

use super::intake::Received;
use super::{Decided, Webhook, not_synced};
use crate::capacity::admission::workload::{self, Workload, WorkloadJudgement};
use crate::capacity::policy::Mode;
use crate::k8s::review::{self, Answer, Request, ReviewError};
use crate::k8s::workload::{Asked, Autoscaler, Unparsed, WorkloadObject, asked, told, unread};

/// Largest body that is judged, in bytes.
///
/// It has two versions of an object. etcd stores none of more than 1.5 MiB, and this keeps the two within the memory that
/// `intake` reserves for one parsed body.
const MAX_BODY: usize = 4 << 20;
/// Time limit for the read of a target, which the API server's 2 s for the whole review have to cover.
const TARGET_DEADLINE: Duration = Duration::from_secs(1);
/// Targets that are read at a time. A target can take some MiB in memory.
const TARGETS_AT_ONCE: usize = 2;

/// Reads the targets of autoscalers.
pub struct Targets {
    /// `None` for a snapshot, which has no workloads.
    client: Option<Client>,
    turns: Semaphore,
}

impl Targets {
    /// Targets of a live cluster, or of none.
    pub fn new(client: Option<Client>) -> Targets {
        Targets { client, turns: Semaphore::new(TARGETS_AT_ONCE) }
    }

    /// The workload that an autoscaler scales; `None` if nothing is known of its pods.
    ///
    /// # Errors
    /// The target was not read in time, or cannot be read. The text says why.
    async fn read(&self, autoscaler: Autoscaler) -> Result<Option<Workload>, String> {
        let client = self.client.as_ref().ok_or("there is no cluster to read it from")?;
        let path = autoscaler.target_path().ok_or("no object can have its name")?;
        let request = HttpRequest::get(path).body(Vec::new()).map_err(|error| error.to_string())?;
        let reading = async {
            let _turn = self.turns.acquire().await.expect("the semaphore is never closed");
            client.request::<WorkloadObject>(request).await
        };
        let read = tokio::time::timeout(TARGET_DEADLINE, reading).await;
        let target = read.map_err(|_| format!("no answer within {TARGET_DEADLINE:?}"))?;
        autoscaler.scaled(target.map_err(|error| described(&error))?)
    }
}

/// What went wrong, without the content of the target.
fn described(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("the API server answered {} {}", status.code, status.reason),
        kube::Error::SerdeError(_) => "it has not the shape of a workload".to_owned(),
        _ => "the API server could not be asked".to_owned(),
    }
}

/// What a review asks, without what it borrows from the body.
struct Question {
    uid: String,
    namespace: Option<String>,
    asked: Asked,
}

pub(super) async fn review(State((webhook, targets)): State<(Webhook, Arc<Targets>)>, body: Received) -> Response {
    let start = Instant::now();
    let parsed = body.room_to_parse().await;
    let Question { uid, namespace, asked } = match webhook.question(&body) {
        Ok(question) => question,
        Err(error) => {
            webhook.metrics.refused_body();
            return (StatusCode::BAD_REQUEST, error.to_string()).into_response();
        }
    };
    let _arrived = body.into_room();
    if !webhook.index.is_synced() {
        return not_synced();
    }
    let workload = match asked {
        Asked::Nothing => Ok(None),
        Asked::Unread(why) => Err(why),
        Asked::Workload(workload) => Ok(Some(*workload)),
        Asked::Autoscaler(autoscaler) => {
            drop(parsed); // a parsed autoscaler is small, and waits for the API server now
            let target = format!("{} {:?}", autoscaler.target.kind, autoscaler.target.name);
            let read = targets.read(autoscaler).await;
            read.map_err(|why| format!("its target {target} was not read, so its pods are not known: {why}"))
        }
    };
    let decided = match workload {
        Err(why) => Decided { answer: unread(uid, &why), verdict: "allowed", reason: String::new() },
        Ok(workload) => webhook.told(uid, namespace.as_deref(), workload),
    };
    webhook.respond("workloads", start, namespace, decided)
}

impl Webhook {
    /// Reads what a body asks. Objects of namespaces about which nothing is said are not parsed.
    ///
    /// # Errors
    /// The body is not a review.
    fn question(&self, body: &[u8]) -> Result<Question, ReviewError> {
        if body.len() > MAX_BODY {
            let Request { uid, namespace, .. } = review::read::<IgnoredAny>(body)?;
            let asked = Asked::Unread(format!("the review is larger than {} MiB", MAX_BODY >> 20));
            return Ok(Question { uid, namespace, asked });
        }
        let request: Unparsed<'_> = review::read_update(body)?;
        let generation = self.policies.current();
        let policy = generation.of(request.namespace.as_deref().unwrap_or_default());
        let is_heard = policy.is_some_and(|(policy, _)| policy.mode != Mode::Off);
        let asked = if is_heard { asked(&request) } else { Asked::Nothing };
        Ok(Question { uid: request.uid, namespace: request.namespace, asked })
    }

    fn told(&self, uid: String, namespace: Option<&str>, workload: Option<Workload>) -> Decided {
        let generation = self.policies.current();
        let policy = generation.of(namespace.unwrap_or_default());
        let judgement = workload
            .zip(policy)
            .and_then(|(workload, (policy, _))| workload::judge(&workload, policy, &self.cluster()));
        let Some(judgement) = judgement else {
            return Decided { answer: Answer::untouched(uid), verdict: "allowed", reason: String::new() };
        };
        let WorkloadJudgement { object, mode, matter, .. } = &judgement;
        let reason = matter.as_ref().map(|matter| matter.reason().to_string());
        if let Some(reason) = &reason {
            let (kind, namespace, name) = (object.kind.as_str(), object.namespace.as_str(), object.name.as_str());
            tracing::info!(kind, ?namespace, ?name, %mode, %reason, "not all pods of a workload fit");
        }
        let verdict = if reason.is_some() { "warned" } else { "allowed" };
        Decided { answer: told(uid, &judgement), verdict, reason: reason.unwrap_or_default() }
    }
}

#[cfg(test)]
mod tests;
