//! `vramguard serve`: puts the parts together and takes them apart again. Owns the order of starting and stopping; not ready
//! before everything that an answer needs is there, not ready any more before anything is taken away.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use jiff::Timestamp;
use kube::Client;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::Failure;
use crate::capacity::moment::Moment;
use crate::controller::Controller;
use crate::controller::certificate::Kept;
use crate::index::Index;
use crate::k8s::snapshot::{self, Snapshot};
use crate::metrics::{Detail, Metrics};
use crate::policies::{self, Files, PolicyStore};
use crate::tls::clients::Clients;
use crate::tls::{self, CertificateStore};
use crate::watch;
use crate::webhook::bindings::BindingGuard;
use crate::webhook::server::Server;
use crate::webhook::{self, Webhook, plain};

/// Scrapes whose answers are in memory at once; others wait.
const SCRAPES: usize = 4;
/// For a scrape to be fetched. Prometheus gives up after 10 s by default.
const SCRAPE_DEADLINE: Duration = Duration::from_secs(10);

/// Arguments of `serve`
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Directory of policy files (*.yaml, *.yml, *.json); followed while serving. Without it: mode Audit everywhere
    #[arg(long, value_name = "DIR", env = "VRAMGUARD_POLICIES")]
    pub policies: Option<PathBuf>,

    /// Serve on a static picture of a cluster instead of a live one: what `kubectl get nodes,pods -A -o yaml` prints.
    /// Repeatable
    #[arg(long, value_name = "FILE", env = "VRAMGUARD_SNAPSHOT", value_delimiter = ',')]
    pub snapshot: Vec<PathBuf>,

    /// Address that reviews are answered on (HTTPS). `[::]` serves IPv4 too; where the machine has no IPv6, 0.0.0.0 takes its
    /// place
    #[arg(long, value_name = "ADDR", env = "VRAMGUARD_LISTEN", default_value = "[::]:8443")]
    pub listen: SocketAddr,

    /// Address that serves /metrics, /healthz and /readyz (plain HTTP)
    #[arg(long, value_name = "ADDR", env = "VRAMGUARD_METRICS_LISTEN", default_value = "[::]:8080")]
    pub metrics_listen: SocketAddr,

    /// Serve POST /scheduler/filter, for a kube-scheduler that is configured to ask this extender
    #[arg(long, env = "VRAMGUARD_SCHEDULER_EXTENDER")]
    pub scheduler_extender: bool,

    /// PEM bundle of the CAs whose client certificates are let in on the HTTPS port, followed while serving. Without it
    /// everybody who reaches the port may ask
    #[arg(long, value_name = "FILE", env = "VRAMGUARD_CLIENT_CA")]
    pub client_ca: Option<PathBuf>,

    /// Common name or DNS name of a client certificate that is let in. Repeatable; without it any certificate of --client-ca
    #[arg(long, value_name = "NAME", env = "VRAMGUARD_CLIENT_NAME", value_delimiter = ',', requires = "client_ca")]
    pub client_name: Vec<String>,

    /// Directory with tls.crt and tls.key, followed while serving. Needed, unless --cert-secret is given
    #[arg(long, value_name = "DIR", env = "VRAMGUARD_CERT_DIR", required_unless_present = "cert_secret")]
    pub cert_dir: Option<PathBuf>,

    /// Create tls.crt, tls.key and ca.crt in --cert-dir where they are missing (for development)
    #[arg(long, env = "VRAMGUARD_SELF_SIGNED", requires = "cert_dir")]
    pub self_signed: bool,

    /// Secret of the own namespace that the leader keeps a certificate in; it also keeps caBundle of the webhook
    /// configurations
    #[arg(long, value_name = "NAME", env = "VRAMGUARD_CERT_SECRET", conflicts_with_all = ["cert_dir", "snapshot"])]
    pub cert_secret: Option<String>,

    /// Further DNS name or IP address for certificates that vramguard creates. Repeatable
    #[arg(long, value_name = "NAME", env = "VRAMGUARD_CERT_NAME", value_delimiter = ',')]
    pub cert_name: Vec<String>,

    /// Own Service, which certificates are made out to
    #[arg(long, value_name = "NAME", env = "VRAMGUARD_SERVICE", default_value = "vramguard")]
    pub service: String,

    /// Mutating and validating webhook configuration of this name follow the policies
    #[arg(long, value_name = "NAME", env = "VRAMGUARD_WEBHOOK_CONFIGURATION", default_value = "vramguard")]
    pub webhook_configuration: String,

    /// Own namespace: of the Lease and the Secret, and never guarded
    #[arg(long, value_name = "NAMESPACE", env = "VRAMGUARD_NAMESPACE", default_value = "vramguard-system")]
    pub namespace: String,

    /// Own name among the replicas [default: hostname and process id]
    #[arg(long, value_name = "NAME", env = "VRAMGUARD_IDENTITY")]
    pub identity: Option<String>,

    /// Kubeconfig [default: the Pod's service account, or the usual places]
    #[arg(long, value_name = "FILE", env = "VRAMGUARD_KUBECONFIG", conflicts_with = "snapshot")]
    pub kubeconfig: Option<PathBuf>,

    /// User whose bindings of guarded pods are allowed, besides kube-scheduler's. Repeatable: other schedulers. With any,
    /// places on nodes with one GPU are promised one by one too, because each scheduler sums up a node by itself
    #[arg(long, value_name = "USER", env = "VRAMGUARD_BINDER", value_delimiter = ',')]
    pub binder: Vec<String>,

    /// The API server's --request-timeout, in seconds: a binding that was allowed commits within it, or never
    #[arg(long, value_name = "SECONDS", env = "VRAMGUARD_API_REQUEST_TIMEOUT", default_value_t = 60)]
    pub api_request_timeout: u64,

    /// Seconds between SIGTERM, when /readyz fails, and the end of listening: time for endpoints to forget this replica
    #[arg(long, value_name = "SECONDS", env = "VRAMGUARD_DRAIN", default_value_t = 10)]
    pub drain: u64,

    /// Name each GPU in /metrics, not only nodes and pools: six times as many lines where nodes have eight GPUs
    #[arg(long, env = "VRAMGUARD_METRICS_PER_GPU")]
    pub metrics_per_gpu: bool,

    /// Form of the log on standard error; what is logged is set by RUST_LOG
    #[arg(long, value_enum, value_name = "FORMAT", env = "VRAMGUARD_LOG_FORMAT", default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For collectors.
    Json,
}

/// For the Lease to be given back when the server stops.
const GIVE_BACK_DEADLINE: Duration = Duration::from_secs(5);

/// Serves until SIGTERM or SIGINT.
pub async fn run(args: Args) -> Result<(), Failure> {
    log(args.log_format);
    let inputs = Inputs::read(&args).map_err(Failure::Input)?;
    let parts = Parts::new(&args, &inputs).map_err(Failure::Input)?;
    let (listener, plain) = (webhook::listen(args.listen).await?, webhook::listen(args.metrics_listen).await?);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), https = %listener.local_addr().map_err(anyhow::Error::from)?,
        http = %plain.local_addr().map_err(anyhow::Error::from)?, "listening");

    let stopping = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    tasks.spawn(plain::serve(plain, health_routes(parts.health(stopping.clone()))));
    inputs.follow(&args, &parts, &mut tasks);
    if let Some(clients) = parts.clients.clone() {
        tasks.spawn(async move { clients.follow().await });
    }
    if let Some(directory) = args.cert_dir.clone() {
        if args.self_signed {
            tls::self_sign(&directory, &names(&args), Timestamp::now()).map_err(Failure::Input)?;
        }
        let store = parts.certificates.clone();
        tasks.spawn(async move { store.follow(directory).await });
    }
    let (stop_controller, stop_server) = (CancellationToken::new(), CancellationToken::new());
    // On a snapshot nothing is bound or controlled, and nothing ever ends.
    let (mut controller, guard) = match &inputs.snapshot {
        Some(_) => (tokio::spawn(stop_controller.clone().cancelled_owned()), None),
        None => {
            let client = client(args.kubeconfig.as_deref()).await?;
            let guard = Arc::new(BindingGuard::new(client.clone(), binders(&args)));
            (parts.join_cluster(client, &args, &mut tasks, stop_controller.clone()), Some(guard))
        }
    };
    let routes = parts.routes(&args, guard);
    let mut server = tokio::spawn(parts.server(listener).serve(routes, stop_server.clone()));
    let ended = tokio::select! {
        () = told_to_stop() => None,
        ended = &mut server => Some(anyhow!("the server ended: {ended:?}")),
        ended = &mut controller => Some(anyhow!("the controller ended: {ended:?}")),
        // A watch that ended would leave a picture that never changes, and a server that looks well.
        Some(ended) = tasks.join_next() => Some(anyhow!("a task ended: {ended:?}")),
    };
    if let Some(error) = ended {
        return Err(Failure::Run(error));
    }
    tracing::info!(drain_seconds = args.drain, "stopping");
    stopping.store(true, Ordering::Relaxed);
    // Leadership goes first, so that the next leader is at work while this one drains.
    stop_controller.cancel();
    tokio::select! {
        () = drain(controller, Duration::from_secs(args.drain)) => {}
        // Somebody at a terminal who does not want to wait.
        () = told_to_stop() => {}
    }
    stop_server.cancel();
    server.await.context("the server panicked")??;
    tasks.shutdown().await;
    Ok(())
}

async fn drain(controller: JoinHandle<()>, time: Duration) {
    _ = tokio::time::timeout(GIVE_BACK_DEADLINE, controller).await;
    tokio::time::sleep(time).await;
}

/// What all parts of a server share.
struct Parts {
    index: Arc<Index>,
    policies: Arc<PolicyStore>,
    certificates: Arc<CertificateStore>,
    clients: Option<Arc<Clients>>,
    metrics: Arc<Metrics>,
}

impl Parts {
    fn new(args: &Args, inputs: &Inputs) -> anyhow::Result<Parts> {
        let policies = Arc::new(PolicyStore::new(&inputs.policy_files(), &args.namespace)?);
        let generation = policies.current();
        let (rules, overrides) = (*generation.policies.rules(), generation.overrides.clone());
        let index = Arc::new(match &inputs.snapshot {
            Some(snapshot) => Index::of_snapshot(snapshot, rules, overrides),
            None if binders(args).len() > 1 => Index::new(rules, overrides).with_several_schedulers(),
            None => Index::new(rules, overrides),
        });
        let certificates = Arc::new(CertificateStore::default());
        let detail = if args.metrics_per_gpu { Detail::Gpus } else { Detail::Nodes };
        let metrics = Metrics::new(index.clone(), policies.clone(), certificates.clone()).with_detail(detail);
        let metrics = Arc::new(metrics);
        let clients = args.client_ca.as_ref().map(|file| Clients::read(file, args.client_name.clone())).transpose()?;
        Ok(Parts { index, policies, certificates, clients: clients.map(Arc::new), metrics })
    }

    fn health(&self, stopping: Arc<AtomicBool>) -> Health {
        let (index, certificates, metrics) = (self.index.clone(), self.certificates.clone(), self.metrics.clone());
        let scrapes = Arc::new(Semaphore::new(SCRAPES));
        Health { index, certificates, metrics, scrapes, stopping }
    }

    fn routes(&self, args: &Args, guard: Option<Arc<BindingGuard>>) -> Router {
        let (index, policies, metrics) = (self.index.clone(), self.policies.clone(), self.metrics.clone());
        let webhook = Webhook { index, policies, metrics };
        let mut routes = webhook::reviews(webhook.clone());
        if let Some(guard) = guard {
            routes = routes.merge(webhook::bindings(webhook.clone(), guard));
        }
        if args.scheduler_extender {
            routes = routes.merge(webhook::filter(webhook));
        }
        webhook::limited(routes)
    }

    fn server(&self, listener: TcpListener) -> Server {
        let (certificates, clients, metrics) = (self.certificates.clone(), self.clients.clone(), self.metrics.clone());
        Server { listener, certificates, clients, metrics }
    }

    /// Follows the cluster, and controls it whenever this replica leads.
    fn join_cluster(
        &self,
        client: Client,
        args: &Args,
        tasks: &mut JoinSet<()>,
        stop: CancellationToken,
    ) -> JoinHandle<()> {
        let certificate = args.cert_secret.clone().map(|secret| Kept {
            client: client.clone(),
            namespace: args.namespace.clone(),
            secret,
            names: names(args),
        });
        if let Some(kept) = certificate.clone() {
            tasks.spawn(kept.follow(self.certificates.clone()));
        }
        tasks.spawn(watch::pods(client.clone(), self.index.clone()));
        tasks.spawn(watch::nodes(client.clone(), self.index.clone(), self.policies.clone()));
        tasks.spawn(watch::ledgers(client.clone(), self.index.clone()));
        tasks.spawn(tick(self.index.clone()));
        let controller = Controller {
            client,
            index: self.index.clone(),
            policies: self.policies.clone(),
            metrics: self.metrics.clone(),
            namespace: args.namespace.clone(),
            identity: args.identity.clone().unwrap_or_else(identity),
            api_request_timeout: Duration::from_secs(args.api_request_timeout),
            webhook_configuration: args.webhook_configuration.clone(),
            certificate,
        };
        tokio::spawn(controller.run(stop))
    }
}

/// What is read before anything starts.
struct Inputs {
    policies: Files,
    snapshot: Option<Snapshot>,
}

impl Inputs {
    fn read(args: &Args) -> anyhow::Result<Inputs> {
        let policies = match &args.policies {
            Some(directory) => policies::files_of(directory)?,
            None => Files::new(),
        };
        let snapshot = match args.snapshot.as_slice() {
            [] => None,
            files => Some(read_snapshot(files)?),
        };
        Ok(Inputs { policies, snapshot })
    }

    /// Policies from the directory and from snapshots.
    fn policy_files(&self) -> Files {
        let found = self.snapshot.iter().flat_map(|snapshot| snapshot.policies.clone());
        found.chain(self.policies.clone()).collect()
    }

    /// Keeps to what changes in the directory. A snapshot never changes while it is served, but the rules it is seen under
    /// may.
    fn follow(&self, args: &Args, parts: &Parts, tasks: &mut JoinSet<()>) {
        let Parts { policies, index, .. } = parts;
        if let Some(directory) = args.policies.clone() {
            let fixed: Files = self.snapshot.iter().flat_map(|snapshot| snapshot.policies.clone()).collect();
            let (store, seen) = (policies.clone(), self.policy_files());
            tasks.spawn(async move { store.follow(&directory, &fixed, seen).await });
        }
        if let Some(snapshot) = &self.snapshot {
            let (store, index, nodes) = (policies.clone(), index.clone(), snapshot.nodes.clone());
            let mut changed = policies.subscribe();
            changed.mark_changed(); // policies may have changed since the index was made of them
            tasks.spawn(async move {
                while changed.changed().await.is_ok() {
                    let generation = store.current();
                    if index.set_rules(*generation.policies.rules(), &generation.overrides) {
                        nodes.iter().for_each(|node| index.apply_node(node));
                    }
                }
            });
        }
    }
}

fn read_snapshot(files: &[PathBuf]) -> anyhow::Result<Snapshot> {
    let read = |path: &PathBuf| {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(|| name.clone())?;
        anyhow::Ok((name, text))
    };
    let files: Vec<(String, String)> = files.iter().map(read).collect::<anyhow::Result<_>>()?;
    let texts = files.iter().map(|(name, text)| (name.as_str(), text.as_str()));
    snapshot::read(texts)
        .map_err(|errors| anyhow!(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))
}

async fn client(kubeconfig: Option<&Path>) -> anyhow::Result<Client> {
    let config = match kubeconfig {
        Some(path) => {
            let file = kube::config::Kubeconfig::read_from(path).with_context(|| path.display().to_string())?;
            kube::Config::from_custom_kubeconfig(file, &Default::default())
                .await
                .with_context(|| path.display().to_string())?
        }
        None => {
            kube::Config::infer().await.context("no cluster: give --kubeconfig, or --snapshot to serve without one")?
        }
    };
    let mut config = config;
    // Above the five minutes of a watch: a LIST or WATCH on a connection that nobody answers ends at last.
    config.read_timeout = Some(Duration::from_secs(330));
    Client::try_from(config).context("cannot make a client of the cluster's configuration")
}

/// Startups come to their deadline, and what ended is forgotten, in steps of this.
const TICK: Duration = Duration::from_secs(5);

async fn tick(index: Arc<Index>) {
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
        index.tick(Moment(Timestamp::now().as_millisecond()));
    }
}

/// Who may bind guarded pods.
fn binders(args: &Args) -> BTreeSet<String> {
    args.binder.iter().cloned().chain([KUBE_SCHEDULER.to_owned()]).collect()
}

/// The user of the stock scheduler.
const KUBE_SCHEDULER: &str = "system:kube-scheduler";

/// Names that certificates are made out to.
fn names(args: &Args) -> Vec<String> {
    let (service, namespace) = (&args.service, &args.namespace);
    let mut names = vec![format!("{service}.{namespace}.svc"), format!("{service}.{namespace}.svc.cluster.local")];
    if args.self_signed {
        names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    }
    names.extend(args.cert_name.clone());
    names
}

fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "vramguard".into());
    format!("{}-{}", host.trim(), std::process::id())
}

fn log(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info,kube=warn".into());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr);
    // A second server in one process (tests) keeps the first one's log.
    _ = match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

async fn told_to_stop() {
    let signal = |kind| signal(kind).expect("the runtime can listen for signals");
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

#[derive(Clone)]
struct Health {
    index: Arc<Index>,
    certificates: Arc<CertificateStore>,
    metrics: Arc<Metrics>,
    scrapes: Arc<Semaphore>,
    stopping: Arc<AtomicBool>,
}

fn health_routes(health: Health) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(health)
}

async fn ready(State(health): State<Health>) -> (StatusCode, &'static str) {
    if health.stopping.load(Ordering::Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "stopping\n")
    } else if !health.index.is_synced() {
        (StatusCode::SERVICE_UNAVAILABLE, "nodes, pods and GpuLedgers have not been listed yet\n")
    } else if health.index.is_cut_off() {
        (StatusCode::SERVICE_UNAVAILABLE, "the API server has been silent for minutes\n")
    } else if health.certificates.not_after().is_none() {
        (StatusCode::SERVICE_UNAVAILABLE, "there is no serving certificate yet\n")
    } else {
        (StatusCode::OK, "ok\n")
    }
}

async fn metrics(State(health): State<Health>) -> impl IntoResponse {
    let turn = health.scrapes.clone().acquire_owned().await.expect("the semaphore is never closed");
    match health.metrics.scrape().await {
        Ok(text) => {
            let text = webhook::in_pieces(text, turn, SCRAPE_DEADLINE);
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
