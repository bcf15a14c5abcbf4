//! The cost of `POST /scheduler/filter` with 8 GPUs and 8 pods on each node.
//!
//! The first part measures the whole work of the handler in this process: read the body, decide, write the answer. The
//! second part measures the same over TLS 1.3 and HTTP/1.1, as kube-scheduler calls it, with one request in flight. It
//! also prints the CPU time of the handler, because other processes of a shared machine change the elapsed time.
//!
//! Every node has a `GpuLedger` with a reservation for each pod and is in mode `steered`. On every second node each GPU
//! is nearly full. The requests are for a pod that fits on all nodes, a pod that fits on half of the nodes, so that the
//! answer holds a reason for the other half, a pod with two replicas in one container, and a pod with two containers that use GPUs.

#![allow(clippy::disallowed_methods)] // a benchmark needs what the pure tiers deny

use std::hint::black_box;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use vramguard::capacity::filter::Filter;
use vramguard::k8s::snapshot::Snapshot;
use vramguard::k8s::{extender, pod};
use vramguard::metrics::Metrics;
use vramguard::state::index::Index;
use vramguard::state::policies::PolicyStore;
use vramguard::tls::{self, CertificateStore, Pair};
use vramguard::webhook::client::ReviewClient;
use vramguard::webhook::server::Server;
use vramguard::webhook::{self, Webhook};

mod snapshot;

const PATH: &str = "/scheduler/filter";
const NODES: [usize; 2] = [1_000, 5_000];
const GPUS: usize = 8;
/// Requests over TLS for each figure, after the warm-up.
const QUESTIONS: usize = 500;
const WARM_UP: usize = 50;

/// The name of a node, as long as in a cloud.
fn name(number: usize) -> String {
    format!("gpu-node-{number:05}.europe-west4-a.example.internal")
}

fn shared(nodes: usize, certificates: Arc<CertificateStore>) -> Webhook {
    let policy = json!({ "apiVersion": "vramguard.dev/v1alpha1", "kind": "ClusterVramPolicy", "metadata": { "name": "c" }, "spec": {} });
    let policies =
        Arc::new(PolicyStore::new(&vec![("c".into(), policy.to_string())], "vramguard-system").expect("a policy"));
    let mut snapshot = Snapshot::default();
    for node in 0..nodes {
        snapshot.nodes.push(serde_json::from_value(snapshot::node_of(&name(node), GPUS)).expect("a node"));
        for gpu in 0..GPUS {
            let pod = snapshot::placed(node * GPUS + gpu, &name(node), gpu, held(node));
            snapshot.pods.push(serde_json::from_value(pod).expect("a pod"));
        }
    }
    let index = Arc::new(Index::of_snapshot(&snapshot, *policies.current().policies.rules(), Vec::new()));
    for node in 0..nodes {
        let pods = (0..GPUS).map(|gpu| (node * GPUS + gpu, gpu, held(node)));
        index.apply_ledger(&serde_json::from_value(snapshot::ledger(&name(node), GPUS, pods)).expect("a ledger"));
    }
    let metrics = Arc::new(Metrics::new(index.clone(), policies.clone(), certificates));
    Webhook { index, policies, metrics }
}

/// MiB held on each GPU of a node; 81,100 MiB are allocatable.
fn held(node: usize) -> u64 {
    if node.is_multiple_of(2) { 4_000 } else { 78_000 }
}

/// The requests: a title, the pod, and the number of nodes out of 1,000 on which it fits.
fn questions() -> [(&'static str, Value, usize); 4] {
    let fits = snapshot::looking("1624Mi");
    let half = snapshot::looking("8912Mi");
    let mut unassigned = fits.clone();
    for list in ["limits", "requests"] {
        unassigned["spec"]["containers"][0]["resources"][list]["nvidia.com/gpu"] = json!("2");
    }
    let mut two = fits.clone();
    two["spec"]["containers"][1]["resources"] = two["spec"]["containers"][0]["resources"].clone();
    [
        ("fits everywhere", fits, 1_000),
        ("fits on half", half, 500),
        ("not steered", unassigned, 1_000),
        ("two containers on GPUs", two, 500),
    ]
}

/// The body of a request. Its nodes are in an order that no sorted structure profits from.
///
/// kube-scheduler sends nodes by zone, in the order in which they joined.
fn body(pod: &Value, nodes: usize) -> Bytes {
    const STRIDE: usize = 617; // prime, so that each node occurs once
    let names: Vec<String> = (0..nodes).map(|number| name(number * STRIDE % nodes)).collect();
    Bytes::from(json!({ "Pod": pod, "Nodes": null, "NodeNames": names }).to_string())
}

/// Sends one request and returns the body of the answer.
async fn ask(routes: Router, body: Bytes) -> Bytes {
    let request = Request::post(PATH).body(Body::from(body)).expect("a request");
    let response = routes.oneshot(request).await.expect("infallible");
    assert_eq!(response.status(), StatusCode::OK);
    response.into_body().collect().await.expect("a body").to_bytes()
}

fn expect(answer: &[u8], nodes: usize) {
    let answer: Value = serde_json::from_slice(answer).expect("JSON");
    let passed = answer["NodeNames"].as_array().expect("a list").len();
    assert_eq!(passed, nodes, "{:.2000}", answer.to_string());
}

fn served(webhook: Webhook) -> Router {
    webhook::limited(webhook::filter(webhook))
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn in_this_process(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut group = criterion.benchmark_group("filter");
    for nodes in NODES {
        let routes = served(shared(nodes, Arc::default()));
        for (what, pod, fits) in questions() {
            let body = body(&pod, nodes);
            expect(&runtime.block_on(ask(routes.clone(), body.clone())), fits * nodes / 1_000);
            group.bench_function(BenchmarkId::new(what, nodes), |bencher| {
                bencher.iter(|| runtime.block_on(ask(routes.clone(), body.clone())));
            });
        }
    }
    group.finish();
}

/// Measures each part of a request with 1,000 nodes.
fn parts(criterion: &mut Criterion) {
    let (nodes, [(_, pod, _), ..]) = (NODES[0], questions());
    let webhook = shared(nodes, Arc::default());
    let body = body(&pod, nodes);
    let args = extender::read(&body).expect("a question");
    let (uid, holder) = (pod::uid(&args.pod.metadata), pod::would_hold(&args.pod).expect("it asks for a GPU"));
    let state = webhook.index.read();
    let decide = || -> Vec<_> {
        let filter = Filter::of(&state.cluster, &uid, &holder);
        args.nodes.iter().map(|node| filter.node(&node.name)).collect()
    };
    let answers = decide();
    let mut group = criterion.benchmark_group("filter, 1000 nodes, fits everywhere");
    group.bench_function("read", |bencher| bencher.iter(|| extender::read(black_box(&body)).expect("a question")));
    group.bench_function("decide", |bencher| bencher.iter(decide));
    group.bench_function("write", |bencher| {
        bencher.iter(|| serde_json::to_vec(&args.result(black_box(&answers))).expect("JSON"))
    });
    group.finish();
}

/// Starts a server in a separate thread. Returns its address and CA.
fn serve(nodes: usize) -> (std::net::SocketAddr, String) {
    let (ready, started) = mpsc::channel();
    std::thread::spawn(move || {
        runtime().block_on(async move {
            let issued = tls::issue(&["127.0.0.1".to_owned()], jiff::Timestamp::now()).expect("a certificate");
            let certificates = Arc::new(CertificateStore::default());
            certificates.set(Pair::from_pem(issued.certificate.as_bytes(), issued.key.as_bytes()).expect("a pair"));
            let webhook = shared(nodes, certificates.clone());
            let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
            ready.send((listener.local_addr().expect("bound"), issued.ca)).expect("somebody waits");
            let metrics = webhook.metrics.clone();
            let server = Server { listener, certificates, clients: None, metrics };
            server.serve(served(webhook), CancellationToken::new()).await.expect("it serves");
        });
    });
    started.recv().expect("the server starts")
}

/// CPU time of this thread as Linux accounts it: the first field of schedstat, in nanoseconds.
fn cpu_of_this_thread() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    Duration::from_nanos(text.split(' ').next().and_then(|field| field.parse().ok()).expect("a number"))
}

/// Mean CPU time of one request in this process.
async fn cpu(routes: &Router, body: &Bytes) -> Duration {
    const ROUNDS: u32 = 100;
    let before = cpu_of_this_thread();
    for _ in 0..ROUNDS {
        ask(routes.clone(), body.clone()).await;
    }
    (cpu_of_this_thread() - before) / ROUNDS
}

fn over_tls(_: &mut Criterion) {
    println!("\nover TLS, {QUESTIONS} questions each, one in flight: from the question to the whole answer");
    for nodes in NODES {
        let routes = served(shared(nodes, Arc::default()));
        let (address, ca) = serve(nodes);
        runtime().block_on(async {
            let mut client = ReviewClient::connect(address, &ca).await.expect("it listens");
            for (what, pod, fits) in questions() {
                let body = body(&pod, nodes);
                let mut took = Vec::with_capacity(QUESTIONS);
                for question in 0..WARM_UP + QUESTIONS {
                    let start = Instant::now();
                    let (status, answer) = client.post(PATH, body.clone()).await.expect("an answer");
                    let elapsed = start.elapsed();
                    assert_eq!(status, StatusCode::OK);
                    if question == 0 {
                        expect(&answer, fits * nodes / 1_000);
                    } else if question >= WARM_UP {
                        took.push(elapsed);
                    }
                }
                took.sort_unstable();
                let at = |percent: usize| milliseconds(took[took.len() * percent / 100]);
                let (length, cpu) = (body.len() / 1000, milliseconds(cpu(&routes, &body).await));
                println!(
                    "{nodes} nodes, {what}: p50 {:.2} ms, p99 {:.2} ms; CPU of the handler {cpu:.2} ms ({length} kB asked)",
                    at(50),
                    at(99)
                );
            }
        });
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

criterion_group!(benches, in_this_process, parts, over_tls);
criterion_main!(benches);
