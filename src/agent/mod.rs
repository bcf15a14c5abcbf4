//! The node agent: what only a process on the node can see and do. Owns its parts and their start; the decisions are in
//! [`crate::capacity::observation`].
//!
//! | module | owns |
//! |---|---|
//! | [`kubelet`] | the kubelet's sockets and files: PodResources, device plugin API, device checkpoint |
//! | [`steer`] | the agent between device plugin and kubelet, which answers by the ledger |
//! | [`nvml`] | the driver: GPUs, their memory and their processes |
//! | [`dcgm`] | a DCGM exporter: GPUs and their memory |
//! | [`reading`] | what either of them found |
//! | [`processes`] | `/proc`: the pod and container of a process |
//! | `look` | one look after the other |
//! | `devices` | what the kubelet tells about devices |
//! | `follow` | the objects of this node in the API |
//! | [`plugin_config`] | the device plugin's configuration from its ConfigMap |
//! | `node` | what the parts share |
//! | `report` | writing `status.agent` of the node's `GpuLedger` |
//! | [`steering`] | [`steer`] as a part of the agent: its start, its report, its stop |
//! | `watchdog` | the end of a process that hangs while the kubelet waits for it |
//! | `health`, `metrics` | the plain HTTP port |

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use kube::Client;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::capacity::gpu::AllocationPolicy;
use crate::capacity::node::inventory::Source;
use crate::capacity::node::presence::NamedPod;
use crate::capacity::observation::Look;
use crate::capacity::observation::owners::Owners;
use crate::capacity::verdict::Unreadable;
use crate::capacity::vram::Vram;
use crate::k8s::cgroup::InPod;
use crate::report::glance::Program;
use crate::server::stop_signal;
use crate::webhook::{self, plain};

pub mod dcgm;
mod devices;
mod follow;
mod health;
pub mod kubelet;
mod look;
mod metrics;
mod node;
pub mod nvml;
pub mod plugin_config;
pub mod processes;
pub mod reading;
mod report;
pub mod steer;
pub mod steering;
mod watchdog;

use dcgm::Exporter;
use kubelet::KubeletDirectory;
use look::{Found, Places};
use metrics::Metrics;
use node::Node;
use processes::Processes;
use reading::{GpuReading, ProcessReading, Reading};
use steer::metrics::Counters;
use steering::{Part, Reports};

/// Configuration of an agent; `cli::agent` fills it from the arguments.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the node.
    pub node: String,
    /// The pod that the agent runs in, without its container; `None` if it runs outside of one.
    pub pod: Option<NamedPod>,
    /// What the GPUs are read from.
    pub gpus: Gpus,
    /// Where `/proc` of the machine is.
    pub proc: PathBuf,
    /// The kubelet's directory.
    pub kubelet: PathBuf,
    /// Time between two looks.
    pub interval: Duration,
    /// Where the device plugin's configuration names its allocation policy.
    pub allocation_policy: PolicyName,
    /// What each process of a pod without a request takes in addition to what it declares.
    pub overhead: Vram,
    /// Address of the plain HTTP port.
    pub listen: SocketAddr,
    /// How to steer the device plugin; `None` to observe only.
    pub steering: Option<steering::Config>,
}

/// Where the device plugin's configuration names its allocation policy.
#[derive(Clone, Debug)]
pub enum PolicyName {
    /// The agent was told of no configuration.
    Nowhere,
    /// In a file that was read: this one.
    Known(AllocationPolicy),
    /// In a ConfigMap, which is followed.
    ConfigMap(plugin_config::Config),
}

/// What an agent reads the GPUs from.
#[derive(Clone, Debug)]
pub enum Gpus {
    /// The driver, with the path of its library; `None` for the usual one.
    Driver(Option<PathBuf>),
    /// A DCGM exporter on the node.
    Exporter(Exporter),
}

impl Gpus {
    /// What it is to the core.
    pub fn source(&self) -> Source {
        match self {
            Gpus::Driver(_) => Source::Driver,
            Gpus::Exporter(_) => Source::DcgmExporter,
        }
    }
}

/// Runs an agent until SIGTERM or SIGINT.
///
/// # Errors
/// The port cannot be opened, or a part of the agent ends by itself.
pub async fn run(config: Config, client: Client) -> anyhow::Result<()> {
    let listener = webhook::listen(config.listen).await?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = config.node, http = %listener.local_addr()?, "watching");
    // The kubelet waits for no other agent.
    if config.steering.is_some() {
        watchdog::start(watchdog::LIMITS, watchdog::end).context("the watchdog cannot be started")?;
    }
    let map = match &config.allocation_policy {
        PolicyName::ConfigMap(config) => Some(config.map.clone()),
        PolicyName::Nowhere | PolicyName::Known(_) => None,
    };
    let node = Arc::new(Node::new(config.node, config.gpus.source(), config.allocation_policy));
    node.update(|state| state.observer.pod = config.pod);
    let counters = config.steering.as_ref().map(|_| Arc::<Counters>::default());
    let metrics = Arc::new(Metrics::new(node.clone(), counters.as_deref()));
    let kubelet = KubeletDirectory::new(config.kubelet);
    let mut tasks = JoinSet::new();
    tasks.spawn(plain::serve(listener, health::routes(node.clone(), metrics.clone())));
    tasks.spawn(follow::pods(client.clone(), node.clone(), config.overhead));
    tasks.spawn(follow::node(client.clone(), node.clone()));
    tasks.spawn(follow::ledger(client.clone(), node.clone()));
    tasks.spawn(devices::follow(kubelet.clone(), node.clone()));
    if let Some(map) = map {
        tasks.spawn(plugin_config::follow(client.clone(), map, node.clone()));
    }
    let stop = CancellationToken::new();
    let written = report::follow(client.clone(), node.clone(), metrics, stop.clone());
    let mut reports = Reports { stop, task: tokio::spawn(written) };
    let mut part = match config.steering.zip(counters) {
        Some((steering, counters)) => Some(Part::start(steering, kubelet, client.clone(), &node, counters)?),
        None => None,
    };
    let looks = looks(config.gpus, config.proc, config.interval, node.clone());
    let ended = tokio::select! {
        () = stop_signal() => Ok(()),
        ended = looks => Err(ended.err().unwrap_or_else(|| anyhow!("the looks ended"))),
        // If a part ended, the agent would report old values as new ones.
        Some(ended) = tasks.join_next() => Err(anyhow!("a task ended: {ended:?}")),
        ended = &mut reports.task => return Err(anyhow!("the reports ended: {ended:?}")),
        // Another agent may have taken over, and then this one must not say anything more.
        why = steering::ended(&mut part) => return Err(why),
    };
    tracing::info!("stopping");
    if let Some(part) = part {
        part.stop(&client, &node, reports).await;
    }
    ended
}

/// Looks at the GPUs until cancelled.
async fn looks(gpus: Gpus, proc: PathBuf, every: Duration, node: Arc<Node>) -> anyhow::Result<()> {
    match gpus {
        Gpus::Driver(library) => {
            look::follow_driver(nvml::Source::new(library), Processes::new(proc), every, node).await
        }
        Gpus::Exporter(exporter) => {
            look::follow_exporter(exporter, every, node).await;
            Ok(())
        }
    }
}

/// One look at the GPUs of this machine, without a cluster.
#[derive(Clone, Debug)]
pub struct Glance {
    /// What the source told.
    pub reading: Reading,
    /// The same with the pod of each process.
    pub look: Look,
    /// The program of each process, GPU by GPU.
    pub programs: Vec<Vec<Program>>,
}

/// Looks once.
///
/// # Errors
/// The driver, or the exporter, as a whole cannot be read.
pub async fn glance(gpus: Gpus, proc: PathBuf) -> Result<Glance, Unreadable> {
    let processes = Processes::new(proc);
    let found = match gpus {
        Gpus::Driver(library) => Found::read(&mut nvml::Source::new(library), &processes, &mut Places::new())?,
        Gpus::Exporter(exporter) => Found::without_processes(exporter.read().await?),
    };
    let look = found.look(&mut Owners::default(), node::now());
    let programs = |(gpu, places): (&GpuReading, &Vec<Option<InPod>>)| {
        let listed = gpu.processes.listed().unwrap_or_default().iter().zip(places);
        let program = |(process, place): (&ProcessReading, &Option<InPod>)| Program {
            pid: process.pid,
            name: processes.name_of(process.pid).unwrap_or_default(),
            container: place.as_ref().map(|place| place.container.clone()).unwrap_or_default(),
            utilization: process.utilization,
        };
        listed.map(program).collect()
    };
    let programs = found.reading.gpus.iter().zip(&found.places).map(programs).collect();
    Ok(Glance { programs, reading: found.reading, look })
}
