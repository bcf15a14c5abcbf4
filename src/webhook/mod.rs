//! The webhook server: receives reviews and answers them.
//!
//! Owns the routes and the counters of answers. `k8s::review` parses and writes reviews. `pods` answers reviews of
//! pods, `bindings` those of bindings, `workloads` those of workloads and autoscalers, and `extender` the requests of
//! kube-scheduler. `intake` owns bodies and their memory budget.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Router};
use parking_lot::{MappedRwLockReadGuard, RwLockReadGuard};
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::TimeoutLayer;

use self::bindings::BindingGuard;
use self::intake::{Intake, Received, Room};
pub use self::listen::listen;
pub use self::pieces::chunked;
use self::workloads::Targets;
use crate::capacity::cluster::Cluster;
use crate::k8s::review::{self, Answer, Request};
use crate::metrics::{Answered, Metrics};
use crate::state::index::Index;
use crate::state::policies::PolicyStore;

pub mod bindings;
pub mod client;
mod connections;
mod extender;
mod intake;
mod listen;
mod pieces;
pub mod plain;
mod pods;
pub mod server;
pub mod workloads;

/// Time limit for a whole request. The API server gives up earlier.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// State that the handlers share.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// Index of nodes, pods and ledgers.
    pub index: Arc<Index>,
    /// Policies in force.
    pub policies: Arc<PolicyStore>,
    /// Metrics, which count every answer.
    pub metrics: Arc<Metrics>,
}

/// The routes of the HTTPS port for a snapshot of a cluster, in which no pod is bound.
pub fn routes(webhook: Webhook) -> Router {
    limited(reviews(webhook.clone()).merge(workloads(webhook, Targets::new(None))))
}

/// The routes for the API server's reviews of pods.
pub fn reviews(webhook: Webhook) -> Router {
    Router::new()
        .route("/mutate/pods", post(pods::mutate))
        .route("/validate/pods", post(pods::validate))
        .with_state(webhook)
}

/// The route for the API server's reviews of workloads and autoscalers.
pub fn workloads(webhook: Webhook, targets: Targets) -> Router {
    Router::new().route("/validate/workloads", post(workloads::review)).with_state((webhook, Arc::new(targets)))
}

/// The route for the API server's reviews of bindings.
pub fn bindings(webhook: Webhook, guard: Arc<BindingGuard>) -> Router {
    Router::new().route("/mutate/bindings", post(bindings::bind)).with_state((webhook, guard))
}

/// The route of the scheduler extender.
///
/// It is served only on request (`--scheduler-extender`): one call may cover thousands of nodes, and any client that
/// reaches the port could make it.
pub fn filter(webhook: Webhook) -> Router {
    Router::new().route("/scheduler/filter", post(extender::filter)).with_state(webhook)
}

/// Adds the limits to routes: a memory budget for bodies, a deadline, and a handler that confines a panic to its
/// request.
pub fn limited(routes: Router) -> Router {
    routes
        .layer(Extension(Arc::new(Intake::default())))
        .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, REQUEST_DEADLINE))
        .layer(CatchPanicLayer::new())
}

/// The response before all lists are complete. Sums over a part of a list are too small to decide on.
fn not_synced() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "not ready: policies, nodes, pods and ledgers have not been listed yet")
        .into_response()
}

/// A parsed review with its share of the memory budget, which is returned on drop.
struct Read<T> {
    request: Request<T>,
    _arrived: Room,
    /// Share for the parsed body. A handler that waits for the API server returns it earlier.
    parsed: OwnedSemaphorePermit,
}

/// An answer, and the labels that it is counted under.
struct Decided {
    answer: Answer,
    verdict: &'static str,
    reason: String,
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

    /// Parses the review in a body.
    ///
    /// # Errors
    ///
    /// Returns the response to send instead, if the body is not a review or the index is not synced yet.
    async fn request<T: DeserializeOwned>(&self, body: Received) -> Result<Read<T>, Response> {
        let parsed = body.room_to_parse().await;
        let request = review::read(&body).map_err(|error| {
            self.metrics.refused_body();
            (StatusCode::BAD_REQUEST, error.to_string()).into_response()
        })?;
        if !self.index.is_synced() {
            // The API server calls another replica or applies failurePolicy.
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

    /// The cluster, locked for reading until the guard is dropped.
    fn cluster(&self) -> MappedRwLockReadGuard<'_, Cluster> {
        RwLockReadGuard::map(self.index.read(), |state| &state.cluster)
    }
}
