//! `POST /scheduler/filter`: kube-scheduler asks which of the nodes that it found no fault with can take a pod. Owns when a
//! question is asked again, and how long an answer is kept for who does not fetch it; the arguments are `k8s::extender`'s,
//! the answer `capacity::filter`'s.

use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::OwnedSemaphorePermit;

use super::intake::Received;
use super::pieces::in_pieces;
use super::{Webhook, not_synced};
use crate::capacity::filter::{self, Filter};
use crate::capacity::ledger::{Holder, PodUid};
use crate::k8s::extender::{self, Answer, Args, ArgsError};
use crate::k8s::pod;
use crate::metrics::Answered;

/// How long after a refusal that kube-scheduler should not have asked for it is looked again, each time. A pod that went was
/// seen by the scheduler and not here yet, say. The scheduler wakes a refused pod at the next event of the cluster, and where
/// the room of a node changes hands without a change of its number none may come for minutes. It waits for the answer,
/// so all of this together is short.
const LOOK_AGAIN: [Duration; 4] =
    [Duration::from_millis(5), Duration::from_millis(10), Duration::from_millis(20), Duration::from_millis(40)];

/// For an answer to be fetched. kube-scheduler waits for one, and by default 30 s for all of it.
const FETCH_DEADLINE: Duration = Duration::from_secs(10);

/// The handler.
pub(super) async fn filter(State(webhook): State<Webhook>, body: Received) -> Response {
    let start = Instant::now();
    let turn = body.turn_to_answer().await;
    let _parsed = body.room_to_parse().await;
    let args = match extender::read(&body) {
        Ok(args) => args,
        Err(error) => {
            webhook.metrics.refused_body();
            return match error {
                ArgsError::Malformed { .. } => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
                // kube-scheduler logs what stands in its own form of an error, and of a status only the number.
                ArgsError::TooMany { .. } => in_time(extender::error(&error), turn),
            };
        }
    };
    if !webhook.index.is_synced() {
        // kube-scheduler goes on without us where the extender is `ignorable`, and tries again later where it is not.
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
    let first = answers.iter().find_map(|answer| answer.err()).filter(|_| !passes);
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
    let body = in_pieces(answer.into(), turn, FETCH_DEADLINE);
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

impl Webhook {
    /// The answer for each node.
    async fn filtered<'p>(&self, args: &Args<'_>, uid: &PodUid, holder: &'p Holder) -> Vec<Answer<'p>> {
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

    fn looked_up<'p>(&self, args: &Args<'_>, uid: &PodUid, holder: &'p Holder) -> Vec<Answer<'p>> {
        let state = self.index.read();
        let filter = Filter::of(&state.cluster, uid, holder);
        args.nodes.iter().map(|node| filter.node(&node.name)).collect()
    }
}

#[cfg(test)]
mod tests;
