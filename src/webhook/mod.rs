//! The HTTPS side: reviews in, answers out. Owns routes, limits and what is counted; parsing and writing reviews is
//! `k8s::review`, deciding is `capacity::admission`. What kube-scheduler asks is answered in `extender`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::{RequestBodyDeadlineLayer, TimeoutLayer};

use self::bindings::BindingGuard;
use crate::capacity::admission;
use crate::capacity::policy::Mode;
use crate::index::Index;
use crate::k8s::review::{self, Answer, Request};
use crate::k8s::{patch, pod};
use crate::metrics::{Answered, Metrics};
use crate::policies::PolicyStore;

pub mod bindings;
pub mod client;
mod extender;
pub mod server;

/// Reviews carry objects of up to about 3 MiB, old and new.
const MAX_BODY: usize = 8 << 20;
/// Bodies in memory at once. A review is tens of KiB, so this is thousands of them, and a quarter of the memory that the
/// manifests give a replica.
const MAX_BODIES: usize = 64 << 20;
/// For the whole body of a request to arrive.
const BODY_DEADLINE: Duration = Duration::from_secs(10);
/// For a request as a whole; the API server gives up before that.
const REQUEST_DEADLINE: Duration = Duration::from_secs(15);

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

/// The routes of the HTTPS port in a cluster.
pub fn guarded_routes(webhook: Webhook, guard: Arc<BindingGuard>) -> Router {
    let bindings = Router::new().route("/mutate/bindings", post(bindings::bind)).with_state((webhook.clone(), guard));
    limited(reviews(webhook).merge(bindings))
}

fn reviews(webhook: Webhook) -> Router {
    Router::new()
        .route("/mutate/pods", post(mutate))
        .route("/validate/pods", post(validate))
        .route("/scheduler/filter", post(extender::filter))
        .with_state(webhook)
}

/// Puts the limits around routes: size and number of bodies, deadlines, and a panic that stays with its request.
pub fn limited(routes: Router) -> Router {
    routes
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(Arc::new(Semaphore::new(MAX_BODIES)), reserve_body))
        .layer(RequestBodyDeadlineLayer::new(BODY_DEADLINE))
        .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, REQUEST_DEADLINE))
        .layer(CatchPanicLayer::new())
}

/// Lets a request in when there is room for its body; for one that does not say how long it is, for the longest.
async fn reserve_body(State(room): State<Arc<Semaphore>>, request: axum::extract::Request, next: Next) -> Response {
    let length =
        request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let bytes = length.map_or(MAX_BODY, |length| length.min(MAX_BODY));
    let bytes = u32::try_from(bytes).expect("a body is at most 8 MiB");
    let _room = room.acquire_many(bytes).await.expect("the semaphore is never closed");
    next.run(request).await
}

async fn mutate(State(webhook): State<Webhook>, body: Bytes) -> Response {
    webhook.answer("mutate", &body, Webhook::mutate)
}

async fn validate(State(webhook): State<Webhook>, body: Bytes) -> Response {
    webhook.answer("validate", &body, Webhook::validate)
}

/// Sums over half a list are too small, so nothing is answered from them.
fn not_synced() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "not ready: nodes, pods and ledgers have not been listed yet").into_response()
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
    fn answer(&self, name: &'static str, body: &[u8], decide: fn(&Webhook, &Request) -> Decided) -> Response {
        let start = Instant::now();
        match self.request(body) {
            Ok(request) => {
                let decided = decide(self, &request);
                self.respond(name, start, request.namespace, decided)
            }
            Err(response) => response,
        }
    }

    /// The review in a body, if it can be answered; else what is answered instead.
    #[expect(clippy::result_large_err, reason = "an answer either way, and made once")]
    fn request<T: DeserializeOwned>(&self, body: &[u8]) -> Result<Request<T>, Response> {
        let request = review::read(body).map_err(|error| {
            self.metrics.refused_body();
            (StatusCode::BAD_REQUEST, error.to_string()).into_response()
        })?;
        if !self.index.is_synced() {
            // The API server asks another replica, or applies failurePolicy.
            return Err(not_synced());
        }
        Ok(request)
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
