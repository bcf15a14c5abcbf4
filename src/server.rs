//! The server process: builds its parts from a [`Config`], runs them, and stops them.
//!
//! Owns the order of starting and stopping. `/readyz` succeeds only once everything that an answer needs is loaded, and
//! fails before any part is stopped. The parts themselves belong to `state`, `webhook`, `controller`, `tls` and
//! `metrics`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow};
use axum::Router;
use jiff::Timestamp;
use kube::Client;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::capacity::time::Moment;
use crate::controller::Controller;
use crate::controller::audit::Audits;
use crate::controller::certificate::CertificateSecret;
use crate::k8s::document::resource::Kind;
use crate::k8s::snapshot::{self, Snapshot};
use crate::metrics::{Detail, Metrics};
use crate::state::index::Index;
use crate::state::policies::{self, Files, PolicyStore};
use crate::state::watch;
use crate::tls::clients::Clients;
use crate::tls::{self, CertificateStore};
use crate::webhook::bindings::BindingGuard;
use crate::webhook::plain::{self, Health};
use crate::webhook::server::Server;
use crate::webhook::workloads::Targets;
use crate::webhook::{self, Webhook};

/// Configuration of a server; `cli::serve` fills it from the arguments.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of policy files. `None` means no policies other than those of the cluster or the snapshot.
    pub policies: Option<PathBuf>,
    /// Files of a static snapshot of a cluster. Empty to serve for a live cluster.
    pub snapshot: Vec<PathBuf>,
    /// Address of the HTTPS port.
    pub listen: SocketAddr,
    /// Address of the plain HTTP port, which serves probes and metrics.
    pub plain_listen: SocketAddr,
    /// Whether the HTTPS port also serves the scheduler extender.
    pub scheduler_extender: bool,
    /// Clients that may use the HTTPS port. `None` means any client that reaches the port.
    pub clients: Option<ClientCertificates>,
    /// Source of the serving certificate.
    pub certificate: CertificateSource,
    /// Name of the mutating and of the validating webhook configuration that the controller keeps in step with the
    /// policies.
    pub webhook_configuration: String,
    /// Namespace of this server. It holds the Lease and the Secret, and is always exempt.
    pub namespace: String,
    /// Identity of this replica in the Lease, unique among the replicas of the server.
    pub identity: String,
    /// Kubeconfig file. `None` means `$KUBECONFIG`, `~/.kube/config` or the service account of the pod.
    pub kubeconfig: Option<PathBuf>,
    /// Names of the users that may bind guarded pods. If there are several, nodes with one GPU need reservations too.
    pub binders: BTreeSet<String>,
    /// The API server's `--request-timeout`. An allowed binding is committed within this time or never.
    pub api_request_timeout: Duration,
    /// Time between the failure of `/readyz` and the end of listening, in which endpoints drop this replica.
    pub drain: Duration,
    /// Level of detail of the metrics.
    pub detail: Detail,
    /// Audits that the leader makes. `None` makes none.
    pub audits: Option<Audits>,
}

/// Client certificates that the HTTPS port accepts.
#[derive(Clone, Debug)]
pub struct ClientCertificates {
    /// Path of a PEM bundle of CA certificates.
    pub ca: PathBuf,
    /// Accepted common names and DNS names. Empty accepts any certificate of these CAs.
    pub names: Vec<String>,
}

/// Source of the serving certificate.
#[derive(Clone, Debug)]
pub enum CertificateSource {
    /// Files that the server reads again whenever they change.
    Directory {
        /// Directory with `tls.crt` and `tls.key`.
        directory: PathBuf,
        /// DNS names and IP addresses of a certificate to create if the files are missing. `None` creates none.
        self_sign: Option<Vec<String>>,
    },
    /// A Secret that the leader creates and renews.
    Secret {
        /// Name of the Secret in the namespace of the server.
        name: String,
        /// DNS names and IP addresses that the certificate is issued for.
        certificate_names: Vec<String>,
    },
}

/// Why a server ended without SIGTERM or SIGINT.
#[derive(Debug)]
pub enum Error {
    /// The input (policies, snapshot, certificates) cannot be read or is not valid.
    Input(anyhow::Error),
    /// Any other failure.
    Run(anyhow::Error),
}

impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Error {
        Error::Run(error)
    }
}

/// Time limit for the controller to end and release the Lease when the server stops.
const GIVE_BACK_DEADLINE: Duration = Duration::from_secs(5);

/// Runs a server until SIGTERM or SIGINT.
///
/// # Errors
///
/// [`Error::Input`] if a file cannot be read or is not valid. [`Error::Run`] if a port cannot be opened, no client for
/// the cluster can be made, or a part of the server ends by itself.
pub async fn run(config: Config) -> Result<(), Error> {
    let inputs = Inputs::read(&config).map_err(Error::Input)?;
    let parts = Parts::new(&config, &inputs).map_err(Error::Input)?;
    let (listener, plain) = (webhook::listen(config.listen).await?, webhook::listen(config.plain_listen).await?);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), https = %listener.local_addr().map_err(anyhow::Error::from)?,
        http = %plain.local_addr().map_err(anyhow::Error::from)?, "listening");

    let stopping = Arc::new(AtomicBool::new(false));
    let report = config.audits.as_ref().and_then(|audits| audits.page.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(plain::serve(plain, parts.health(stopping.clone()).with_report(report).routes()));
    inputs.follow(&config, &parts, &mut tasks);
    if let Some(clients) = parts.clients.clone() {
        tasks.spawn(async move { clients.follow().await });
    }
    if let CertificateSource::Directory { directory, self_sign } = config.certificate.clone() {
        if let Some(names) = self_sign {
            tls::self_sign(&directory, &names, Timestamp::now()).map_err(Error::Input)?;
        }
        let store = parts.certificates.clone();
        tasks.spawn(async move { store.follow(directory).await });
    }
    let (stop_controller, stop_server) = (CancellationToken::new(), CancellationToken::new());
    // For a snapshot there is no binding guard and no controller. The task in place of the controller only waits for
    // the stop.
    let (mut controller, client) = match &inputs.snapshot {
        Some(_) => (tokio::spawn(stop_controller.clone().cancelled_owned()), None),
        None => {
            let client = client(config.kubeconfig.as_deref()).await?;
            (parts.join_cluster(client.clone(), &config, &mut tasks, stop_controller.clone()), Some(client))
        }
    };
    let routes = parts.routes(&config, client);
    let mut server = tokio::spawn(parts.server(listener).serve(routes, stop_server.clone()));
    let ended = tokio::select! {
        () = stop_signal() => None,
        ended = &mut server => Some(anyhow!("the server ended: {ended:?}")),
        ended = &mut controller => Some(anyhow!("the controller ended: {ended:?}")),
        // If a watch ended, the index would never change again while the server still reported ready.
        Some(ended) = tasks.join_next() => Some(anyhow!("a task ended: {ended:?}")),
    };
    if let Some(error) = ended {
        return Err(Error::Run(error));
    }
    tracing::info!(drain_seconds = config.drain.as_secs(), "stopping");
    stopping.store(true, Ordering::Relaxed);
    // The Lease is released first, so that the next leader works while this replica drains.
    stop_controller.cancel();
    tokio::select! {
        () = drain(controller, config.drain) => {}
        // A second signal ends the drain, for a user at a terminal.
        () = stop_signal() => {}
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

/// State that the parts of a server share.
struct Parts {
    index: Arc<Index>,
    policies: Arc<PolicyStore>,
    certificates: Arc<CertificateStore>,
    clients: Option<Arc<Clients>>,
    metrics: Arc<Metrics>,
}

impl Parts {
    fn new(config: &Config, inputs: &Inputs) -> anyhow::Result<Parts> {
        let policies = Arc::new(match &inputs.snapshot {
            Some(snapshot) => PolicyStore::of_snapshot(&inputs.policies, snapshot, &config.namespace)?,
            None => PolicyStore::new(&inputs.policies, &config.namespace)?.awaiting(&Kind::ALL),
        });
        let generation = policies.current();
        let (rules, overrides) = (*generation.policies.rules(), generation.overrides.clone());
        let index = Arc::new(match &inputs.snapshot {
            Some(snapshot) => Index::of_snapshot(snapshot, rules, overrides),
            None if config.binders.len() > 1 => Index::new(rules, overrides).with_several_schedulers(),
            None => Index::new(rules, overrides),
        });
        let certificates = Arc::new(CertificateStore::default());
        let metrics = Metrics::new(index.clone(), policies.clone(), certificates.clone()).with_detail(config.detail);
        let metrics = Arc::new(metrics);
        let clients = config.clients.as_ref();
        let clients = clients.map(|clients| Clients::read(&clients.ca, clients.names.clone())).transpose()?;
        Ok(Parts { index, policies, certificates, clients: clients.map(Arc::new), metrics })
    }

    fn health(&self, stopping: Arc<AtomicBool>) -> Health {
        Health::new(self.index.clone(), self.certificates.clone(), self.metrics.clone(), stopping)
    }

    fn routes(&self, config: &Config, client: Option<Client>) -> Router {
        let (index, policies, metrics) = (self.index.clone(), self.policies.clone(), self.metrics.clone());
        let webhook = Webhook { index, policies, metrics };
        let mut routes = webhook::reviews(webhook.clone());
        routes = routes.merge(webhook::workloads(webhook.clone(), Targets::new(client.clone())));
        if let Some(client) = client {
            let guard = Arc::new(BindingGuard::new(client, config.binders.clone()));
            routes = routes.merge(webhook::bindings(webhook.clone(), guard));
        }
        if config.scheduler_extender {
            routes = routes.merge(webhook::filter(webhook));
        }
        webhook::limited(routes)
    }

    fn server(&self, listener: TcpListener) -> Server {
        let (certificates, clients, metrics) = (self.certificates.clone(), self.clients.clone(), self.metrics.clone());
        Server { listener, certificates, clients, metrics }
    }

    /// Starts the watches, and the controller, which acts while this replica is the leader.
    fn join_cluster(
        &self,
        client: Client,
        config: &Config,
        tasks: &mut JoinSet<()>,
        stop: CancellationToken,
    ) -> JoinHandle<()> {
        let certificate = match config.certificate.clone() {
            CertificateSource::Directory { .. } => None,
            CertificateSource::Secret { name, certificate_names } => Some(CertificateSecret {
                client: client.clone(),
                namespace: config.namespace.clone(),
                secret: name,
                names: certificate_names,
            }),
        };
        if let Some(kept) = certificate.clone() {
            tasks.spawn(kept.follow(self.certificates.clone()));
        }
        tasks.spawn(watch::pods(client.clone(), self.index.clone()));
        let (documents, index, policies) = (client.clone(), self.index.clone(), self.policies.clone());
        tasks.spawn(async move { watch::policies(documents, &policies, &index).await });
        let (nodes, index, policies) = (client.clone(), self.index.clone(), self.policies.clone());
        tasks.spawn(async move { watch::nodes(nodes, "", &index, &policies).await });
        tasks.spawn(watch::ledgers(client.clone(), self.index.clone()));
        tasks.spawn(tick(self.index.clone()));
        let controller = Controller {
            client,
            index: self.index.clone(),
            policies: self.policies.clone(),
            metrics: self.metrics.clone(),
            namespace: config.namespace.clone(),
            identity: config.identity.clone(),
            api_request_timeout: config.api_request_timeout,
            webhook_configuration: config.webhook_configuration.clone(),
            certificate,
            audits: config.audits.clone(),
        };
        tokio::spawn(controller.run(stop))
    }
}

/// Input that is read before any part starts.
struct Inputs {
    policies: Files,
    snapshot: Option<Snapshot>,
}

impl Inputs {
    fn read(config: &Config) -> anyhow::Result<Inputs> {
        let policies = match &config.policies {
            Some(directory) => policies::files_of(directory)?,
            None => Files::new(),
        };
        let snapshot = match config.snapshot.as_slice() {
            [] => None,
            files => Some(read_snapshot(files)?),
        };
        Ok(Inputs { policies, snapshot })
    }

    /// Starts the task that follows the policy directory, and one that applies changed rules to a snapshot.
    ///
    /// The objects of a snapshot never change while it is served, but the rules that they are counted by may.
    fn follow(&self, config: &Config, parts: &Parts, tasks: &mut JoinSet<()>) {
        let Parts { policies, index, .. } = parts;
        if let Some(directory) = config.policies.clone() {
            let (store, seen) = (policies.clone(), self.policies.clone());
            tasks.spawn(async move { store.follow(&directory, seen).await });
        }
        if let Some(snapshot) = &self.snapshot {
            let (store, index, nodes) = (policies.clone(), index.clone(), snapshot.nodes.clone());
            let mut changed = policies.subscribe();
            changed.mark_changed(); // the policies may have changed since the index was created
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

pub(crate) async fn client(kubeconfig: Option<&Path>) -> anyhow::Result<Client> {
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
    // A watch lasts five minutes. This timeout is longer, and ends a LIST or WATCH on a connection that no longer
    // answers.
    config.read_timeout = Some(Duration::from_secs(330));
    Client::try_from(config).context("cannot make a client of the cluster's configuration")
}

/// Interval at which the index ends overdue startups, and forgets ended pods and resources that are no longer guarded.
const TICK: Duration = Duration::from_secs(5);

async fn tick(index: Arc<Index>) {
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
        index.tick(Moment(Timestamp::now().as_millisecond()));
    }
}

pub(crate) async fn stop_signal() {
    let signal = |kind| signal(kind).expect("the runtime can listen for signals");
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
