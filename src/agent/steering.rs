//! Steering as a part of the agent. Owns its start, what the report says of it, and the order in which it stops.
//!
//! The server counts a node as steered while the report says so and the pod that it names runs, and the kubelet gets its
//! devices from the agent. So an agent that stops first reports that it no longer steers, and only then hands the device
//! plugin back to the kubelet, which lets it choose the GPUs. The kubelet goes back to a device plugin that was taken over by
//! itself.
//!
//! `kubectl delete -k` removes the agent's account and rights together with its pod, so that its last report is refused. The
//! server then sees the end of the pod that the reports name, and the device plugin is handed back too.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use kube::Client;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::kubelet::KubeletDirectory;
use super::node::Node;
use super::report::{self, Unwritten};
use super::steer::metrics::Counters;
use super::steer::{self, Answer, Ended, Health, Outputs};
use crate::k8s::document::resource::Kind;
use crate::state::policies::{self, PolicyStore};

/// Time limit for the last report. Without it the device plugin is not handed back.
const LAST_REPORT: Duration = Duration::from_secs(5);
/// Pause between the last report and the hand-back. It is usually enough for the kubelet to admit the pods that were bound
/// before the server had that report.
const SETTLE: Duration = Duration::from_secs(1);
/// Pause between attempts to write the last report.
const RETRY: Duration = Duration::from_millis(300);
/// Time limit for the hand-back: 2 s for calls of the kubelet that are open, 2 s for looks at whether it has the plugin
/// already, 5 s for the registration, and the pauses between them. With the last report it fits into the pod's time to end.
const HAND_BACK: Duration = Duration::from_secs(10);
/// Answers that wait to be noticed. Only that there was one is of interest here.
const ANSWERS: usize = 64;

/// Configuration of the steering.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of policy files; `None` for the rules that are built in.
    pub policies: Option<PathBuf>,
    /// The kubelet's configuration file; `None` for the one in its directory.
    pub kubelet_configuration: Option<PathBuf>,
    /// Whether a device plugin that registers with the kubelet is taken over.
    pub takeover: bool,
}

/// The task that writes reports.
pub(super) struct Reports {
    /// Ends it after the write that it has begun.
    pub stop: CancellationToken,
    /// The task.
    pub task: JoinHandle<()>,
}

/// The running part. When it is dropped, steering ends as by a crash: nothing is handed back.
pub(super) struct Part {
    stop: CancellationToken,
    steering: JoinSet<std::io::Result<Ended>>,
    others: JoinSet<()>,
}

impl Part {
    /// Starts to steer.
    ///
    /// # Errors
    /// The policies cannot be read or are not valid.
    pub(super) fn start(
        config: Config,
        kubelet: KubeletDirectory,
        client: Client,
        node: &Arc<Node>,
        counters: Arc<Counters>,
    ) -> anyhow::Result<Part> {
        let files = config.policies.as_deref().map(policies::files_of).transpose()?.unwrap_or_default();
        // The namespace matters for whole policies only. Here their rules for nodes are used.
        let store = PolicyStore::new(&files, "")?.following_status().awaiting(&[Kind::Cluster, Kind::Inventory]);
        let store = Arc::new(store);
        let (answers, answered) = mpsc::channel(ANSWERS);
        let (health, changed) = watch::channel(Health::default());
        let outputs = Outputs { answers, counters, health };
        let mut others = JoinSet::new();
        others.spawn(notice(answered, node.clone()));
        others.spawn(tell(changed, node.clone()));
        if let Some(directory) = config.policies {
            let store = store.clone();
            others.spawn(async move { store.follow(&directory, files).await });
        }
        let mut settings = steer::Config::new(kubelet);
        if let Some(file) = config.kubelet_configuration {
            settings.kubelet_configuration = file;
        }
        settings.takeover = config.takeover;
        let version = node.kubelet_version.subscribe();
        let (stop, name, mut steering) = (CancellationToken::new(), node.name.clone(), JoinSet::new());
        steering.spawn(steer::run_in_cluster(settings, client, name, store, version, outputs, stop.clone()));
        Ok(Part { stop, steering, others })
    }

    /// Waits until steering ends by itself, and returns why. The agent must end then.
    async fn ended(&mut self) -> anyhow::Error {
        let ended = tokio::select! {
            Some(ended) = self.steering.join_next() => ended,
            Some(ended) = self.others.join_next() => return anyhow!("a task of the steering ended: {ended:?}"),
        };
        match ended.context("the steering failed") {
            Ok(Ok(Ended::Replaced)) => anyhow!("another agent has taken over the device plugins of this node"),
            Ok(Ok(Ended::Stopped)) => anyhow!("the steering ended"),
            Ok(Err(error)) => anyhow!(error).context("the directory of the device plugins"),
            Err(error) => error,
        }
    }

    /// Stops in order: the last report, then the hand-back. `reports` is the task that writes them; it ends after the write
    /// that it has begun, which could otherwise arrive after the last one and say that the node is still steered.
    pub(super) async fn stop(mut self, client: &Client, node: &Node, reports: Reports) {
        self.others.shutdown().await;
        node.update(|state| state.observer.stops_steering("the agent has stopped"));
        reports.stop.cancel();
        let last = async {
            _ = reports.task.await;
            write_last(client, node).await
        };
        match timeout(LAST_REPORT, last).await {
            Ok(Last::Written) => {}
            Ok(Last::Refused) => tracing::warn!(
                "the account or the rights of this agent are gone, and its last report is refused; the server sees that its \
                 pod is being deleted instead, and the device plugins are handed back"
            ),
            Err(_) => {
                // The server would go on to reserve GPUs that nobody gives.
                tracing::warn!(
                    "it cannot be reported within {} s that this node is no longer steered; a device plugin that registers with \
                     the agent is not handed back, and the node has no GPUs until an agent runs here or the plugin restarts \
                     without its KUBELET_SOCKET; one that was taken over chooses the GPUs itself",
                    LAST_REPORT.as_secs()
                );
                return;
            }
        }
        sleep(SETTLE).await;
        self.stop.cancel();
        if timeout(HAND_BACK, self.steering.join_next()).await.is_err() {
            tracing::warn!("the device plugins are not handed back within {} s", HAND_BACK.as_secs());
        }
    }
}

/// What became of the last report.
enum Last {
    /// It is written.
    Written,
    /// The API server refuses it, and the server follows the pod that the reports name.
    Refused,
}

/// Writes the last report, until it is written or certain to be refused.
async fn write_last(client: &Client, node: &Node) -> Last {
    let mut refused: Option<Instant> = None;
    loop {
        match report::write_now(client, node).await {
            Ok(()) => return Last::Written,
            Err(why) => {
                tracing::warn!("the last report: {why}");
                refused = matches!(why, Unwritten::Refused(_)).then(|| refused.unwrap_or_else(Instant::now));
            }
        }
        if refused.is_some_and(|since| node.read(|state| state.observer.ends_known(since.elapsed()))) {
            return Last::Refused;
        }
        sleep(RETRY).await;
    }
}

/// As [`Part::ended`]; never, if the agent does not steer.
pub(super) async fn ended(part: &mut Option<Part>) -> anyhow::Error {
    match part {
        Some(part) => part.ended().await,
        None => std::future::pending().await,
    }
}

/// Asks the kubelet after each answer what it allocated, so that the report follows soon.
async fn notice(mut answered: mpsc::Receiver<Answer>, node: Arc<Node>) {
    while answered.recv().await.is_some() {
        node.pods_changed.notify_one();
    }
}

/// Tells the report what is steered, and logs why not.
async fn tell(mut changed: watch::Receiver<Health>, node: Arc<Node>) {
    let mut logged: Option<Option<String>> = None;
    loop {
        let steering = changed.borrow_and_update().steering();
        if logged.as_ref() != Some(&steering.missing) {
            match &steering.missing {
                None => tracing::info!("steering: pods get the GPU that is reserved for them"),
                Some(why) => tracing::warn!("not steering: {why}"),
            }
            logged = Some(steering.missing.clone());
        }
        node.update(|state| state.observer.steers(steering));
        if changed.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}
