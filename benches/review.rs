//! Server CPU per `/mutate/pods` review over TLS 1.3 and HTTP/1.1, against a server that parses the same fields of the same
//! body and answers `allowed: true`, bare and behind the same limits: the same listener, TLS and client in one run, so what is
//! compared is what vramguard adds. Server and client have a thread each; what is measured is the CPU time of the server's thread alone.
//!
//! Not a criterion benchmark: criterion measures the wall clock, which on a shared machine measures the neighbours.

#![allow(clippy::disallowed_methods)] // what the pure tiers may not touch is what is measured here

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use vramguard::index::Index;
use vramguard::k8s::object::PodObject;
use vramguard::k8s::review::{self, Answer};
use vramguard::k8s::snapshot;
use vramguard::metrics::Metrics;
use vramguard::policies::PolicyStore;
use vramguard::tls::{self, CertificateStore, Pair};
use vramguard::webhook::client::ReviewClient;
use vramguard::webhook::server::Server;
use vramguard::webhook::{self, Webhook};

mod picture;

const ROUNDS: usize = 15;
const REQUESTS: u32 = 4_000;

/// A server on a runtime of one thread, which says on request how much CPU time that thread has used.
struct Measured {
    address: std::net::SocketAddr,
    ca: String,
    ask: tokio::sync::mpsc::UnboundedSender<mpsc::Sender<Duration>>,
}

fn start(routes: impl FnOnce(Webhook) -> Router + Send + 'static) -> Measured {
    let (ready, started) = mpsc::channel();
    let (ask, mut asked) = tokio::sync::mpsc::unbounded_channel::<mpsc::Sender<Duration>>();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let issued = tls::issue(&["127.0.0.1".to_owned()], jiff::Timestamp::now()).expect("a certificate");
            let certificates = Arc::new(CertificateStore::default());
            certificates.set(Pair::from_pem(issued.certificate.as_bytes(), issued.key.as_bytes()).expect("a pair"));
            let webhook = shared(certificates.clone());
            let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
            ready.send((listener.local_addr().expect("bound"), issued.ca)).expect("somebody waits");
            let metrics = webhook.metrics.clone();
            tokio::spawn(
                Server { listener, certificates, clients: None, metrics }
                    .serve(routes(webhook), CancellationToken::new()),
            );
            while let Some(answer) = asked.recv().await {
                answer.send(cpu_of_this_thread()).expect("somebody waits");
            }
        });
    });
    let (address, ca) = started.recv().expect("the server starts");
    Measured { address, ca, ask }
}

/// A cluster of 1,000 nodes and 20,000 pods under mode Enforce.
fn shared(certificates: Arc<CertificateStore>) -> Webhook {
    let policy = json!({ "apiVersion": "vramguard.dev/v1alpha1", "kind": "ClusterVramPolicy", "metadata": { "name": "c" }, "spec": {} });
    let policies =
        Arc::new(PolicyStore::new(&vec![("c".into(), policy.to_string())], "vramguard-system").expect("a policy"));
    let mut snapshot = snapshot::Snapshot::default();
    snapshot.nodes.extend((0..1_000).map(|n| serde_json::from_value(picture::node(&format!("n{n}"))).expect("a node")));
    snapshot.pods.extend((0..20_000).map(|n| serde_json::from_value(picture::bound(n, n / 20)).expect("a pod")));
    let index = Arc::new(Index::of_snapshot(&snapshot, *policies.current().policies.rules(), Vec::new()));
    let metrics = Arc::new(Metrics::new(index.clone(), policies.clone(), certificates));
    Webhook { index, policies, metrics }
}

/// Parses the same fields of the same body, and allows.
fn no_op() -> Router {
    async fn allow(body: Bytes) -> Response {
        let Ok(request) = review::read::<PodObject>(&body) else {
            return StatusCode::BAD_REQUEST.into_response();
        };
        let body = serde_json::to_vec(&Answer::untouched(request.uid)).expect("JSON");
        ([(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
    Router::new().route("/mutate/pods", post(allow))
}

/// As the scheduler accounts it, in nanoseconds: the first field of schedstat.
fn cpu_of_this_thread() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    Duration::from_nanos(text.split(' ').next().and_then(|field| field.parse().ok()).expect("a number"))
}

impl Measured {
    fn cpu(&self) -> Duration {
        let (send, receive) = mpsc::channel();
        self.ask.send(send).expect("the server runs");
        receive.recv().expect("it answers")
    }

    /// CPU microseconds per review.
    async fn round(&self, client: &mut ReviewClient, body: &Bytes) -> f64 {
        let before = self.cpu();
        for _ in 0..REQUESTS {
            let (status, _) = client.post("/mutate/pods", body.clone()).await.expect("an answer");
            assert!(status.is_success());
        }
        (self.cpu() - before).as_secs_f64() * 1e6 / f64::from(REQUESTS)
    }
}

fn main() {
    let body = Bytes::from(picture::review());
    let (bare, limited) = (start(|_| no_op()), start(|_| webhook::limited(no_op())));
    let guard = start(webhook::routes);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (mut bares, mut limiteds, mut guards) = (Vec::new(), Vec::new(), Vec::new());
    runtime.block_on(async {
        let mut to_bare = ReviewClient::connect(bare.address, &bare.ca).await.expect("it listens");
        let mut to_limited = ReviewClient::connect(limited.address, &limited.ca).await.expect("it listens");
        let mut to_guard = ReviewClient::connect(guard.address, &guard.ca).await.expect("it listens");
        let (_, answer) = to_guard.post("/mutate/pods", body.clone()).await.expect("an answer");
        assert!(String::from_utf8_lossy(&answer).contains("\"patch\""), "the guard patches this pod");
        for round in 0..=ROUNDS {
            let figures = [
                bare.round(&mut to_bare, &body).await,
                limited.round(&mut to_limited, &body).await,
                guard.round(&mut to_guard, &body).await,
            ];
            if round > 0 {
                bares.push(figures[0]);
                limiteds.push(figures[1]);
                guards.push(figures[2]);
            }
        }
    });
    println!(
        "body {} bytes, {ROUNDS} rounds of {REQUESTS} reviews each, one in flight; median (lowest, highest)",
        body.len()
    );
    let ratios = |to: &[f64]| guards.iter().zip(to).map(|(guard, to)| guard / to).collect::<Vec<f64>>();
    for (name, values, unit) in [
        ("guard / no-op", ratios(&bares), ""),
        ("guard / no-op behind the same limits", ratios(&limiteds), ""),
        ("no-op", bares, " µs"),
        ("no-op behind the same limits", limiteds, " µs"),
        ("guard", guards, " µs"),
    ] {
        let (low, median, high) = spread(values);
        println!("{name}: {median:.2}{unit} ({low:.2}, {high:.2})");
    }
}

fn spread(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[0], values[values.len() / 2], values[values.len() - 1])
}
