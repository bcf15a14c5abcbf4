//! `POST /scheduler/filter`: kube-scheduler asks which of the nodes that passed its own filters can take a pod.
//!
//! Owns the retries of a doubtful refusal, and the time limit for reading an answer. `k8s::extender` parses the
//! arguments, and `capacity::filter` decides.

use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::OwnedSemaphorePermit;

use super::intake::Received;
use super::pieces::chunked;
use super::{Webhook, not_synced};
use crate::capacity::filter::{self, Filter};
use crate::capacity::name::PodUid;
use crate::capacity::node::holder::Holder;
use crate::k8s::extender::{self, Answer, Args, ArgsError};
use crate::k8s::pod;
use crate::metrics::Answered;

/// Pauses before the nodes are looked up again after a doubtful refusal ([`filter::is_doubtful`]).
///
/// kube-scheduler may have seen a pod go that this replica's watch has not shown yet. It retries a refused pod at the
/// next event of the cluster. If memory passes from one pod to another and the published amount stays the same, that
/// event may be minutes away. kube-scheduler waits for the answer, so the sum of the pauses is short.
const LOOK_AGAIN: [Duration; 4] =
    [Duration::from_millis(5), Duration::from_millis(10), Duration::from_millis(20), Duration::from_millis(40)];

/// Time limit for reading an answer. kube-scheduler waits for the answer, by default 30 s in all.
const FETCH_DEADLINE: Duration = Duration::from_secs(10);

/// Handles one call of kube-scheduler.
pub(super) async fn filter(State(webhook): State<Webhook>, body: Received) -> Response {
    let start = Instant::now();
    let turn = body.answer_permit().await;
    let _parsed = body.room_to_parse().await;
    let args = match extender::read(&body) {
        Ok(args) => args,
        Err(error) => {
            webhook.metrics.refused_body();
            return match error {
                ArgsError::Malformed { .. } => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
                // kube-scheduler logs the text of an error in its own format. Of a status it logs only the number.
                ArgsError::TooMany { .. } => in_time(extender::error(&error), turn),
            };
        }
    };
    if !webhook.index.is_synced() {
        // kube-scheduler continues without this extender if it is `ignorable`, and retries the pod later if not.
        return not_synced();
    }
    let (uid, holder) = (pod::uid(&args.pod.metadata), pod::would_hold(&args.pod));
    let answers = match &holder {
        Some(holder) => webhook.filtered(&args, &uid, holder).await,
        None => vec![Ok(()); args.nodes.len()],
    };
    let mut answer = Vec::with_capacity(body.len());
    serde_json::to_writer(&mut answer, &args.result(&answers)).expect("a result of strings is JSON");
    let passes = answers.is_empty() || answers.iter().any(Result::is_ok);
    let first = answers.iter().find_map(|answer| answer.as_ref().err()).filter(|_| !passes);
    let answered = Answered {
        webhook: "filter",
        verdict: if passes { "allowed" } else { "denied" },
        reason: first.map(|rejected| rejected.why.reason().to_string()).unwrap_or_default(),
        namespace: args.pod.metadata.namespace.clone().unwrap_or_default(),
    };
    webhook.metrics.answered(answered, start.elapsed());
    in_time(answer, turn)
}

fn in_time(answer: Vec<u8>, turn: OwnedSemaphorePermit) -> Response {
    let body = chunked(answer.into(), turn, FETCH_DEADLINE);
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

impl Webhook {
    /// The answer for each node, after up to four further lookups.
    async fn filtered(&self, args: &Args<'_>, uid: &PodUid, holder: &Holder) -> Vec<Answer> {
        let mut changes = self.index.subscribe();
        let mut answers = self.looked_up(args, uid, holder);
        for pause in LOOK_AGAIN {
            if !filter::is_doubtful(&answers) {
                break;
            }
            tokio::time::sleep(pause).await;
            if changes.has_changed().is_ok_and(|changed| changed) {
                changes.mark_unchanged();
                answers = self.looked_up(args, uid, holder);
            }
        }
        answers
    }

    fn looked_up(&self, args: &Args<'_>, uid: &PodUid, holder: &Holder) -> Vec<Answer> {
        let state = self.index.read();
        let filter = Filter::of(&state.cluster, uid, holder);
        args.nodes.iter().map(|node| filter.node(&node.name)).collect()
    }
}

#[cfg(test)]
mod tests;
