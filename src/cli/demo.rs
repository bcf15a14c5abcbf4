//! `vramguard demo`: creates pods on an embedded example cluster, and prints what happens to them.
//!
//! Owns the simulated cluster and the sequence of steps; `story` owns the output. The server, TLS, both webhooks and
//! every verdict are those of `serve`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Failure;
use crate::k8s::object::PodObject;
use crate::k8s::pod::Guarded;
use crate::k8s::review::{self, Answered};
use crate::k8s::simulation::{self, Admission, Creation, Scheduled};
use crate::k8s::snapshot;
use crate::keys;
use crate::metrics::Metrics;
use crate::state::index::Index;
use crate::state::policies::{Files, PolicyStore};
use crate::tls::{self, CertificateStore, Pair};
use crate::webhook::client::ReviewClient;
use crate::webhook::server::Server;
use crate::webhook::{self, Webhook};

mod story;

/// Arguments of `demo`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Pause before each step, in milliseconds [default: 400 on a terminal, otherwise 0]
    #[arg(long, value_name = "MS")]
    pace: Option<u64>,
}

const CLUSTER: &str = include_str!("demo/cluster.yaml");
const WORKLOAD: &str = include_str!("demo/workload.yaml");

/// One step of the workload.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Step {
    Create(Value),
    Finish(Named),
}

#[derive(Debug, Deserialize)]
struct Named {
    namespace: String,
    name: String,
}

/// Runs all steps of the workload.
pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let steps: Vec<Step> = serde_saphyr::from_str(WORKLOAD).expect("the embedded workload is read by a test");
    let mut demo = Demo::start().await?;
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stdout());
    let pace = Duration::from_millis(args.pace.unwrap_or(if terminal { 400 } else { 0 }));
    story::opening(demo.address, &demo.index);
    for (number, step) in (1..).zip(steps) {
        tokio::time::sleep(pace).await;
        match step {
            Step::Create(pod) => demo.create(number, pod).await?,
            Step::Finish(named) => demo.finish(number, &named)?,
        }
    }
    story::closing(&demo.index, demo.waiting.len());
    story::written().map_err(Failure::Input)?;
    demo.stop.cancel();
    demo.server.await.context("the server panicked")??;
    Ok(())
}

/// A running server, and the simulated rest of a cluster.
struct Demo {
    index: Arc<Index>,
    client: ReviewClient,
    address: std::net::SocketAddr,
    server: tokio::task::JoinHandle<anyhow::Result<()>>,
    stop: CancellationToken,
    running: Vec<Value>,
    waiting: Vec<Value>,
}

impl Demo {
    async fn start() -> anyhow::Result<Demo> {
        let snapshot = snapshot::read([("demo", CLUSTER)]).expect("the embedded cluster is read by a test");
        let policies = Arc::new(PolicyStore::of_snapshot(&Files::new(), &snapshot, keys::NAMESPACE)?);
        let generation = policies.current();
        let index = Index::of_snapshot(&snapshot, *generation.policies.rules(), generation.overrides.clone());
        let index = Arc::new(index);
        let certificates = Arc::new(CertificateStore::default());
        let issued = tls::issue(&["127.0.0.1".to_owned()], jiff::Timestamp::now())?;
        certificates.set(Pair::from_pem(issued.certificate.as_bytes(), issued.key.as_bytes())?);
        let metrics = Arc::new(Metrics::new(index.clone(), policies.clone(), certificates.clone()));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let routes = webhook::routes(Webhook { index: index.clone(), policies, metrics: metrics.clone() });
        let server =
            tokio::spawn(Server { listener, certificates, clients: None, metrics }.serve(routes, stop.clone()));
        let client = ReviewClient::connect(address, &issued.ca).await?;
        Ok(Demo { index, client, address, server, stop, running: Vec::new(), waiting: Vec::new() })
    }

    async fn create(&mut self, number: u32, pod: Value) -> anyhow::Result<()> {
        let changes_of = pod.clone();
        let Admission { mut pod, patch, warnings, denial, .. } = self.review(pod).await?;
        story::reviewed(number, &pod, &story::changes(&patch, &changes_of), &warnings, denial.as_ref());
        if denial.is_none() {
            pod["metadata"]["uid"] = json!(format!("demo-{number}"));
            if !self.schedule(pod.clone()) {
                self.waiting.push(pod);
            }
        }
        Ok(())
    }

    fn finish(&mut self, number: u32, named: &Named) -> anyhow::Result<()> {
        let is = |pod: &Value| pod["metadata"]["namespace"] == named.namespace && pod["metadata"]["name"] == named.name;
        let at = self.running.iter().position(is).with_context(|| format!("{named:?} does not run"))?;
        let mut pod = self.running.remove(at);
        pod["status"] = json!({ "phase": "Succeeded" });
        let object = PodObject::deserialize(&pod)?;
        self.index.apply_pod(&object);
        story::finished(number, &named.namespace, &named.name);
        story::bar_of(&self.index, object.spec.node_name.as_deref().unwrap_or_default());
        for pod in std::mem::take(&mut self.waiting) {
            story::again(&pod);
            if !self.schedule(pod.clone()) {
                self.waiting.push(pod);
            }
        }
        Ok(())
    }

    /// Stands in for the API server: sends a new pod through both webhooks.
    async fn review(&mut self, pod: Value) -> anyhow::Result<Admission> {
        let mut creation = Creation::new(pod, "demo");
        let mutated = self.ask("/mutate/pods", &creation.review()).await?;
        creation.mutated(mutated)?;
        let validated = self.ask("/validate/pods", &creation.review()).await?;
        Ok(creation.validated(validated))
    }

    async fn ask(&mut self, path: &str, review: &Value) -> anyhow::Result<Answered> {
        let (status, body) = self.client.post(path, serde_json::to_vec(review)?).await?;
        ensure!(status.is_success(), "{path} answered {status}: {}", String::from_utf8_lossy(&body));
        Ok(review::answered(&body)?)
    }

    /// Stands in for kube-scheduler and for the API server that binds the pod. Returns whether the pod was bound.
    fn schedule(&mut self, mut pod: Value) -> bool {
        let object: PodObject = serde_json::from_value(pod.clone()).expect("a pod that was reviewed is one");
        let wanted = Guarded::of(&object).expect("every pod of the demo has a GPU");
        let placed = simulation::schedule(&self.index.read().cluster, &wanted);
        let node = match placed {
            Scheduled::On(node) => node,
            Scheduled::Pending(shortfall) => {
                story::waits(shortfall.as_ref());
                return false;
            }
        };
        pod["spec"]["nodeName"] = json!(node);
        self.index.apply_pod(&serde_json::from_value(pod.clone()).expect("still a pod"));
        self.running.push(pod);
        story::bound(&node);
        story::bar_of(&self.index, &node);
        true
    }
}
