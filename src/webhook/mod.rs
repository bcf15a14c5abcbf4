//! The HTTPS side: reviews in, answers out. Owns routes and what is counted; parsing and writing reviews is `k8s::review`,
//! deciding is `capacity::admission`. Bodies and their budget are `intake`'s; what kube-scheduler asks is answered in
//! `extender`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Router};
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::TimeoutLayer;

use self::bindings::BindingGuard;
use self::intake::{Intake, Received, Room};
pub use self::listen::listen;
pub use self::pieces::in_pieces;
use crate::capacity::admission;
use crate::capacity::policy::Mode;
use crate::index::Index;
use crate::k8s::review::{self, Answer, Request};
use crate::k8s::{patch, pod};
use crate::metrics::{Answered, Metrics};
use crate::policies::PolicyStore;

pub mod bindings;
pub mod client;
mod connections;
mod extender;
mod intake;
mod listen;
mod pieces;
pub mod plain;
pub mod server;

/// For a request as a whole; the API server gives up before that.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// What the handlers share.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// The picture of the cluster.
    pub index: Arc<Index>,
    /// The policies in force.
    pub policies: Arc<PolicyStore>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// The routes of the HTTPS port on a picture of a cluster, where nothing is bound.
pub fn routes(webhook: Webhook) -> Router {
    limited(reviews(webhook))
}

/// What the API server asks about pods.
pub fn reviews(webhook: Webhook) -> Router {
    Router::new().route("/mutate/pods", post(mutate)).route("/validate/pods", post(validate)).with_state(webhook)
}

/// What the API server asks about bindings.
pub fn bindings(webhook: Webhook, guard: Arc<BindingGuard>) -> Router {
    Router::new().route("/mutate/bindings", post(bindings::bind)).with_state((webhook, guard))
}

/// What kube-scheduler asks an extender. Not served unless somebody configured a scheduler to ask: a question may be about
/// thousands of nodes, and anybody who reaches the port could ask it.
pub fn filter(webhook: Webhook) -> Router {
    Router::new().route("/scheduler/filter", post(extender::filter)).with_state(webhook)
}

/// Puts the limits around routes: room for bodies, a deadline, and a panic that stays with its request.
pub fn limited(routes: Router) -> Router {
    routes
        .layer(Extension(Arc::new(Intake::default())))
        .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, REQUEST_DEADLINE))
        .layer(CatchPanicLayer::new())
}

async fn mutate(State(webhook): State<Webhook>, body: Received) -> Response {
    webhook.answer("mutate", body, Webhook::mutate).await
}

async fn validate(State(webhook): State<Webhook>, body: Received) -> Response {
    webhook.answer("validate", body, Webhook::validate).await
}

/// Sums over half a list are too small, so nothing is answered from them.
fn not_synced() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "not ready: nodes, pods and ledgers have not been listed yet").into_response()
}

/// A review, with the room that it takes until it is dropped.
struct Read<T> {
    request: Request<T>,
    _arrived: Room,
    /// Of the parsed body; a handler that waits for somebody gives it back before.
    parsed: OwnedSemaphorePermit,
}

/// An answer and how it is counted.
struct Decided {
    answer: Answer,
    verdict: &'static str,
    reason: String,
}

impl Decided {
    fn untouched(request: &Request) -> Decided {
        Decided { answer: Answer::untouched(request.uid.clone()), verdict: "allowed", reason: String::new() }
    }
}

impl Webhook {
    async fn answer(&self, name: &'static str, body: Received, decide: fn(&Webhook, &Request) -> Decided) -> Response {
        let start = Instant::now();
        match self.request(body).await {
            Ok(read) => {
                let decided = decide(self, &read.request);
                self.respond(name, start, read.request.namespace, decided)
            }
            Err(response) => response,
        }
    }

    /// The review in a body, if it can be answered; else what is answered instead.
    async fn request<T: DeserializeOwned>(&self, body: Received) -> Result<Read<T>, Response> {
        let parsed = body.room_to_parse().await;
        let request = review::read(&body).map_err(|error| {
            self.metrics.refused_body();
            (StatusCode::BAD_REQUEST, error.to_string()).into_response()
        })?;
        if !self.index.is_synced() {
            // The API server asks another replica, or applies failurePolicy.
            return Err(not_synced());
        }
        Ok(Read { request, _arrived: body.into_room(), parsed })
    }

    fn respond(&self, name: &'static str, start: Instant, namespace: Option<String>, decided: Decided) -> Response {
        let body = serde_json::to_vec(&decided.answer).expect("an answer of strings is JSON");
        let namespace = namespace.unwrap_or_default();
        let Decided { verdict, reason, .. } = decided;
        self.metrics.answered(Answered { webhook: name, verdict, reason, namespace }, start.elapsed());
        ([(header::CONTENT_TYPE, "application/json")], body).into_response()
    }

    fn mutate(&self, request: &Request) -> Decided {
        let generation = self.policies.current();
        let namespace = request.namespace.as_deref().unwrap_or_default();
        let (Some(object), Some((policy, _))) = (request.created_pod(), generation.of(namespace)) else {
            return Decided::untouched(request);
        };
        let pod = pod::translate(object, request.namespace.as_deref(), Some(&request.user_info.username));
        let state = self.index.read();
        let changes = admission::assess(&pod, policy, &state.cluster).changes();
        drop(state);
        let operations = patch::operations(object, &changes);
        let verdict = if operations.0.is_empty() { "allowed" } else { "patched" };
        let answer = Answer::mutated(request.uid.clone(), &operations, &changes);
        Decided { answer, verdict, reason: String::new() }
    }

    fn validate(&self, request: &Request) -> Decided {
        let generation = self.policies.current();
        let namespace = request.namespace.as_deref().unwrap_or_default();
        let (Some(object), Some((policy, previous))) = (request.created_pod(), generation.of(namespace)) else {
            return Decided::untouched(request);
        };
        if policy.mode == Mode::Off {
            return Decided::untouched(request);
        }
        let pod = pod::translate(object, request.namespace.as_deref(), Some(&request.user_info.username));
        let state = self.index.read();
        let judgement = admission::judge(&pod, policy, previous, &state.cluster);
        drop(state);
        let reason = judgement.violations.first().map(|violation| violation.reason().to_string());
        let verdict = match (&reason, judgement.mode) {
            (None, _) => "allowed",
            (Some(_), Mode::Enforce) => "denied",
            (Some(_), Mode::Warn | Mode::Audit | Mode::Off) => "would_deny",
        };
        if let Some(reason) = &reason {
            // As debug text: a name is anyone's, and may not end the line.
            tracing::info!(namespace = ?pod.name.namespace, pod = ?pod.name.name, mode = %judgement.mode, %reason, verdict, "policy violated");
        }
        let answer = Answer::judged(request.uid.clone(), &pod.name, judgement);
        Decided { answer, verdict, reason: reason.unwrap_or_default() }
    }
}
