//! The CPU time of the server per `/mutate/pods` review over TLS 1.3 and HTTP/1.1, on one connection and on 16.
//!
//! The same run with the same client also measures three servers that answer `allowed: true` to the same body:
//!
//! - *minimal*: hyper and rustls without a router or limits. It reads the uid and skips the rest, which is the least
//!   that a webhook can cost.
//! - *no-op*: vramguard's listener. It parses the same fields of the same body.
//! - *no-op behind the same limits*.
//!
//! Server and client have a thread each. Only the CPU time of the server's thread is measured.
//!
//! This does not use criterion, which measures elapsed time: other processes of a shared machine change that.

#![allow(clippy::disallowed_methods)] // a benchmark needs what the pure tiers deny

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use vramguard::k8s::object::PodObject;
use vramguard::k8s::review::{self, Answer};
use vramguard::k8s::snapshot::Snapshot;
use vramguard::metrics::Metrics;
use vramguard::state::index::Index;
use vramguard::state::policies::PolicyStore;
use vramguard::tls::{self, CertificateStore, Pair};
use vramguard::webhook::client::ReviewClient;
use vramguard::webhook::server::Server;
use vramguard::webhook::{self, Webhook};

mod snapshot;

const ROUNDS: usize = 15;
const REQUESTS: u32 = 4_000;
/// Number of connections that an API server may have open.
const CONNECTIONS: usize = 16;

/// A server on a runtime with one thread, which reports the CPU time of that thread on request.
struct Measured {
    address: std::net::SocketAddr,
    ca: String,
    ask: tokio::sync::mpsc::UnboundedSender<mpsc::Sender<Duration>>,
}

/// Starts vramguard's listener with these routes.
fn start(name: &str, routes: impl FnOnce(Webhook) -> Router + Send + 'static) -> Measured {
    measured(name, |listener, certificates| async move {
        let webhook = shared(certificates.clone());
        let metrics = webhook.metrics.clone();
        let server = Server { listener, certificates, clients: None, metrics };
        server.serve(routes(webhook), CancellationToken::new()).await.expect("it serves");
    })
}

/// Starts a server that does the least that a webhook can do.
fn minimal() -> Measured {
    #[derive(Deserialize)]
    struct Review<'b> {
        #[serde(borrow)]
        request: Request<'b>,
    }
    #[derive(Deserialize)]
    struct Request<'b> {
        uid: &'b str,
    }
    async fn allow(request: hyper::Request<Incoming>) -> Result<hyper::Response<Full<Bytes>>, Infallible> {
        let body = request.into_body().collect().await.expect("it arrives").to_bytes();
        let review: Review<'_> = serde_json::from_slice(&body).expect("a review");
        let uid = review.request.uid;
        let answer = format!(
            r#"{{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{{"uid":"{uid}","allowed":true}}}}"#
        );
        let answer = hyper::Response::builder().header(header::CONTENT_TYPE, "application/json").body(answer.into());
        Ok(answer.expect("it is complete"))
    }
    measured("minimal", |listener, certificates| async move {
        let acceptor = TlsAcceptor::from(webhook::server::tls(certificates, None).expect("a configuration"));
        loop {
            let (socket, _) = listener.accept().await.expect("a connection");
            socket.set_nodelay(true).expect("a socket");
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let stream = acceptor.accept(socket).await.expect("a handshake");
                let http = hyper::server::conn::http1::Builder::new();
                let _ = http.serve_connection(TokioIo::new(stream), service_fn(allow)).await;
            });
        }
    })
}

/// Starts a server in a separate thread.
fn measured<F: Future<Output = ()> + Send + 'static>(
    name: &str,
    serve: impl FnOnce(TcpListener, Arc<CertificateStore>) -> F + Send + 'static,
) -> Measured {
    let (ready, started) = mpsc::channel();
    let (ask, mut asked) = tokio::sync::mpsc::unbounded_channel::<mpsc::Sender<Duration>>();
    // The name distinguishes the thread in `perf report --comm`.
    let thread = std::thread::Builder::new().name(name.to_owned());
    let server = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let issued = tls::issue(&["127.0.0.1".to_owned()], jiff::Timestamp::now()).expect("a certificate");
            let certificates = Arc::new(CertificateStore::default());
            certificates.set(Pair::from_pem(issued.certificate.as_bytes(), issued.key.as_bytes()).expect("a pair"));
            let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
            ready.send((listener.local_addr().expect("bound"), issued.ca)).expect("somebody waits");
            tokio::spawn(serve(listener, certificates));
            while let Some(answer) = asked.recv().await {
                answer.send(cpu_of_this_thread()).expect("somebody waits");
            }
        });
    };
    thread.spawn(server).expect("a thread");
    let (address, ca) = started.recv().expect("the server starts");
    Measured { address, ca, ask }
}

/// A cluster of 1,000 nodes and 20,000 pods under mode Enforce.
fn shared(certificates: Arc<CertificateStore>) -> Webhook {
    let policy = json!({ "apiVersion": "vramguard.dev/v1alpha1", "kind": "ClusterVramPolicy", "metadata": { "name": "c" }, "spec": {} });
    let policies =
        Arc::new(PolicyStore::new(&vec![("c".into(), policy.to_string())], "vramguard-system").expect("a policy"));
    let mut snapshot = Snapshot::default();
    snapshot
        .nodes
        .extend((0..1_000).map(|n| serde_json::from_value(snapshot::node(&format!("n{n}"))).expect("a node")));
    snapshot.pods.extend((0..20_000).map(|n| serde_json::from_value(snapshot::bound(n, n / 20)).expect("a pod")));
    let index = Arc::new(Index::of_snapshot(&snapshot, *policies.current().policies.rules(), Vec::new()));
    let metrics = Arc::new(Metrics::new(index.clone(), policies.clone(), certificates));
    Webhook { index, policies, metrics }
}

/// A handler that parses the same fields of the same body, and allows the request.
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

/// CPU time of this thread as Linux accounts it: the first field of schedstat, in nanoseconds.
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

    async fn connect(&self, connections: usize) -> Vec<ReviewClient> {
        let mut clients = Vec::new();
        for _ in 0..connections {
            clients.push(ReviewClient::connect(self.address, &self.ca).await.expect("it listens"));
        }
        clients
    }

    /// CPU time per review in microseconds, with one review in flight on each connection.
    async fn round(&self, clients: &mut [ReviewClient], body: &Bytes) -> f64 {
        let each = REQUESTS as usize / clients.len();
        let before = self.cpu();
        let ask = async |client: &mut ReviewClient| {
            for _ in 0..each {
                let (status, _) = client.post("/mutate/pods", body.clone()).await.expect("an answer");
                assert!(status.is_success());
            }
        };
        futures::future::join_all(clients.iter_mut().map(ask)).await;
        (self.cpu() - before).as_secs_f64() * 1e6 / f64::from(REQUESTS)
    }
}

fn main() {
    let body = Bytes::from(snapshot::review());
    let servers = [
        ("minimal", minimal()),
        ("no-op", start("no-op", |_| no_op())),
        ("no-op behind the same limits", start("limited", |_| webhook::limited(no_op()))),
        ("guard", start("guard", webhook::routes)),
    ];
    println!("body {} bytes, {ROUNDS} rounds of {REQUESTS} reviews each; median (lowest, highest)", body.len());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for connections in [1, CONNECTIONS] {
        let mut figures: [Vec<f64>; 4] = Default::default();
        runtime.block_on(async {
            let mut clients = Vec::new();
            for (_, server) in &servers {
                clients.push(server.connect(connections).await);
            }
            let (_, answer) = clients[3][0].post("/mutate/pods", body.clone()).await.expect("an answer");
            assert!(String::from_utf8_lossy(&answer).contains("\"patch\""), "the guard patches this pod");
            for round in 0..=ROUNDS {
                for (((_, server), clients), figures) in servers.iter().zip(&mut clients).zip(&mut figures) {
                    let figure = server.round(clients, &body).await;
                    if round > 0 {
                        figures.push(figure);
                    }
                }
            }
        });
        println!("{connections} in flight");
        let [.., guards] = &figures;
        for ((name, _), others) in servers.iter().zip(&figures).take(3) {
            let ratios = guards.iter().zip(others).map(|(guard, other)| guard / other).collect();
            let (low, median, high) = spread(ratios);
            println!("  guard / {name}: {median:.2} ({low:.2}, {high:.2})");
        }
        for ((name, _), values) in servers.iter().zip(&figures) {
            let (low, median, high) = spread(values.clone());
            println!("  {name}: {median:.1} µs ({low:.1}, {high:.1})");
        }
    }
}

fn spread(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[0], values[values.len() / 2], values[values.len() - 1])
}
