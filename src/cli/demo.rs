//! `vramguard demo`: the main job, end to end, on an embedded picture of a cluster. Owns the story and how it is told; the
//! server, TLS, both webhooks and every verdict are the real ones.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Failure;
use crate::index::Index;
use crate::k8s::object::PodObject;
use crate::k8s::{pod, snapshot};
use crate::metrics::Metrics;
use crate::policies::PolicyStore;
use crate::tls::{self, CertificateStore, Pair};
use crate::webhook::client::ReviewClient;
use crate::webhook::server::Server;
use crate::webhook::{self, Webhook};

mod story;

/// Arguments of `demo`
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Milliseconds between steps, to watch it happen [default: 400 on a terminal, 0 elsewhere]
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

/// What both webhooks answered.
#[derive(Debug, Default)]
struct Reviewed {
    /// As patched.
    pod: Value,
    /// What the patch added, for people.
    changes: Vec<String>,
    warnings: Vec<String>,
    /// Code, reason and message, where it was refused.
    denial: Option<(u64, String, String)>,
}

/// Tells the story to its end.
pub async fn run(args: Args) -> Result<(), Failure> {
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
    demo.stop.cancel();
    demo.server.await.context("the server panicked")??;
    Ok(())
}

/// A running server and the simulated rest of a cluster.
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
        let policies = Arc::new(PolicyStore::new(&snapshot.policies, "vramguard-system")?);
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
        let reviewed = self.review(pod).await?;
        story::reviewed(number, &reviewed);
        if reviewed.denial.is_none() {
            let mut pod = reviewed.pod;
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

    /// What the API server does with a new pod: mutate, patch, validate.
    async fn review(&mut self, mut pod: Value) -> anyhow::Result<Reviewed> {
        let mut reviewed = Reviewed::default();
        let mutated = self.ask("/mutate/pods", &pod).await?;
        reviewed.add_warnings(&mutated);
        if let Some(patch) = mutated["patch"].as_str() {
            let patch: json_patch::Patch = serde_json::from_slice(&BASE64_STANDARD.decode(patch)?)?;
            reviewed.changes = story::changes(&patch, &pod);
            json_patch::patch(&mut pod, &patch)?;
        }
        let validated = self.ask("/validate/pods", &pod).await?;
        reviewed.add_warnings(&validated);
        if validated["allowed"] != true {
            let status = &validated["status"];
            let text = |key: &str| status[key].as_str().unwrap_or_default().to_owned();
            reviewed.denial = Some((status["code"].as_u64().unwrap_or_default(), text("reason"), text("message")));
        }
        reviewed.pod = pod;
        Ok(reviewed)
    }

    async fn ask(&mut self, path: &str, pod: &Value) -> anyhow::Result<Value> {
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "demo", "operation": "CREATE", "resource": { "group": "", "version": "v1", "resource": "pods" },
                "namespace": pod["metadata"]["namespace"], "userInfo": { "username": "demo" }, "object": pod,
            },
        });
        let (status, body) = self.client.post(path, serde_json::to_vec(&review)?).await?;
        ensure!(status.is_success(), "{path} answered {status}: {}", String::from_utf8_lossy(&body));
        let answer: Value = serde_json::from_slice(&body)?;
        Ok(answer["response"].clone())
    }

    /// Stands in for kube-scheduler: the node with the least room that still fits, by what the node publishes.
    fn schedule(&mut self, mut pod: Value) -> bool {
        let object: PodObject = serde_json::from_value(pod.clone()).expect("a pod that was reviewed is one");
        let asks = pod::translate(&object, None, None);
        let state = self.index.read();
        let (resource, _) =
            asks.containers.iter().find_map(|c| c.gpus.first()).expect("every pod of the demo has a GPU");
        let requests = asks.containers.iter().filter_map(|c| Some((c.role, c.vram_request.counted()?)));
        let demand = crate::capacity::demand::of_pod(requests);
        let node = state.cluster.fitting(resource, demand, &asks.placement).next().map(str::to_owned);
        let shortfall = state.cluster.shortfall(resource, demand, &asks.placement);
        drop(state);
        let Some(node) = node else {
            story::waits(shortfall.as_ref());
            return false;
        };
        pod["spec"]["nodeName"] = json!(node);
        self.index.apply_pod(&serde_json::from_value(pod.clone()).expect("still a pod"));
        self.running.push(pod);
        story::bound(&node);
        story::bar_of(&self.index, &node);
        true
    }
}

impl Reviewed {
    fn add_warnings(&mut self, response: &Value) {
        let warnings = response["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str);
        self.warnings.extend(warnings.map(str::to_owned));
    }
}
