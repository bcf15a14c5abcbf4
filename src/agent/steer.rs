//! Steering: the agent between NVIDIA's device plugin and the kubelet. Owns the connections to both and their order.
//!
//! The device plugin registers with the agent (its `KUBELET_SOCKET` names the agent's socket), and the agent registers
//! with the kubelet in its place. With a takeover the plugin registers with the kubelet, and the agent after it: the
//! kubelet then uses the agent, and the plugin when the agent ends. All calls and all device lists are passed on as the
//! bytes that arrived. One call is answered here: `GetPreferredAllocation`, by [`crate::capacity::steering`]. So the
//! kubelet, its PodResources API and its checkpoint record the GPU that the binding guard reserved.
//!
//! The kubelet admits no pod while it waits for an answer, and an error fails the pod. So an answer always comes in
//! time, and is never an error: from the ledger, else from the device plugin, else a guess.
//!
//! | module | owns |
//! |---|---|
//! | [`inputs`] | what the API server tells about the node, for the decisions |
//! | [`metrics`] | counters |
//! | `directory` | the agent's files next to the kubelet's sockets |
//! | `front` | where device plugins register with the agent, or are found |
//! | `plugin` | the connection to one device plugin, and the list of its devices |
//! | `registration` | the registration of that plugin with the kubelet |
//! | `takeover` | when a registration is the newest, of a plugin that registers with the kubelet itself |
//! | `service` | the calls of the kubelet |
//! | `answer` | the answer to `GetPreferredAllocation`, in time |
//! | `placement` | whether the kubelet did what it was answered |

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::agent::kubelet::KubeletDirectory;
use crate::agent::kubelet::pod_resources::PodResourcesClient;
use crate::agent::node;
use crate::capacity::gpu::{GpuId, Resource};
use crate::capacity::observation::observer::Steering as Steered;
use crate::capacity::pod::PodName;
use crate::capacity::steering::takeover::Takeover;
use crate::capacity::steering::trust::Trust;
use crate::capacity::steering::{CallerName, Fallback, KnownNode, KnownPod, Steering};
use crate::k8s::kubelet_config::{TopologyPolicy, topology_policy};
use crate::state;
use crate::state::index::Index;
use crate::state::policies::PolicyStore;

mod answer;
mod directory;
mod front;
pub mod inputs;
pub mod metrics;
mod placement;
mod plugin;
mod registration;
mod service;
mod takeover;

pub use front::Ended;
use inputs::NodePods;
use metrics::Counters;

/// Configuration of the steering of one node.
#[derive(Clone, Debug)]
pub struct Config {
    /// The kubelet's directory.
    pub kubelet: KubeletDirectory,
    /// The kubelet's configuration file.
    pub kubelet_configuration: PathBuf,
    /// How long a device plugin may be away before its devices count as unhealthy. A restart of the plugin takes a
    /// second. The kubelet's allocations wait meanwhile.
    pub hold: Duration,
    /// Whether a plugin of NVIDIA that registers with the kubelet itself is taken over, if the kubelet allows it.
    pub takeover: bool,
    /// What becomes of the device plugins when the agent is told to stop.
    pub at_stop: AtStop,
}

/// What the agent does with its device plugins when it is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtStop {
    /// It registers them with the kubelet. The node keeps its devices, and the plugins choose the GPUs.
    HandBack,
    /// It only ends. The node has no devices until the plugins register again.
    End,
}

impl Config {
    /// The default configuration for the kubelet at a directory.
    pub fn new(kubelet: KubeletDirectory) -> Config {
        Config {
            kubelet_configuration: kubelet.configuration(),
            kubelet,
            hold: Duration::from_secs(3),
            takeover: false,
            at_stop: AtStop::HandBack,
        }
    }
}

/// Time between two looks at the kubelet's configuration file.
const TOPOLOGY: Duration = Duration::from_secs(10);
/// Pause between two looks for trust that may return.
const TRUST: Duration = Duration::from_secs(1);

/// Reads one pod from the API server. `None` if there is no such pod on this node, or no answer.
pub type ReadPod = Arc<dyn Fn(PodName) -> BoxFuture<'static, Option<KnownPod>> + Send + Sync>;

/// What the decisions are based on.
#[derive(Clone)]
pub struct Inputs {
    /// The node as the API server tells, kept up to date by the sender.
    pub node: watch::Receiver<Arc<KnownNode>>,
    /// Reads a pod that is missing in `node`. Its caller waits at most 100 ms.
    pub read_pod: ReadPod,
    /// Major and minor version of the kubelet, which tells whether it keeps the registration of a plugin next to that of the
    /// agent; `None` as long as it is not known.
    pub kubelet_version: watch::Receiver<Option<(u32, u32)>>,
}

/// Where the results go.
#[derive(Clone)]
pub struct Outputs {
    /// Receives each answer to the kubelet. If it is full, the answer is not sent.
    pub answers: mpsc::Sender<Answer>,
    /// Counters of the metrics page.
    pub counters: Arc<Counters>,
    /// Receives the health after each change.
    pub health: watch::Sender<Health>,
}

/// One answer to the kubelet.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The resource.
    pub resource: Resource,
    /// The container that asked, if it is known.
    pub caller: Option<CallerName>,
    /// The GPU that it should get; `None` if there is none.
    pub wanted: Option<GpuId>,
    /// The devices that were answered; empty if the device plugin's own answer was passed on.
    pub given: Vec<String>,
    /// Why it is not simply the wanted GPU; `None` if it is.
    pub fallback: Option<Fallback>,
    /// How long the kubelet waited.
    pub took: Duration,
}

/// Whether the agent steers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// The resources whose device plugins are known.
    pub resources: BTreeMap<String, ResourceHealth>,
    /// How the kubelet's topology manager chooses devices.
    pub topology: TopologyPolicy,
    /// Whether the kubelet allows takeovers; `None` if the agent was not told to take over.
    pub takeover: Option<Takeover>,
}

impl Default for Health {
    fn default() -> Health {
        let topology = TopologyPolicy::Unknown("it has not been read yet".to_owned());
        Health { resources: BTreeMap::new(), topology, takeover: None }
    }
}

/// Whether the agent steers one resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceHealth {
    /// Whether the device plugin is connected.
    pub plugin_connected: bool,
    /// Whether the kubelet has registered the agent and follows its list of devices.
    pub registered: bool,
    /// Whether the plugin may have registered with the kubelet after the agent. Then the kubelet asks the plugin.
    pub overtaken: bool,
    /// Why the kubelet's record of devices could not be read at the last look; `None` if it could, or if it does not matter.
    /// The kubelet may have asked the plugin in place of the agent meanwhile.
    pub records_unread: Option<String>,
    /// What the next registration waits for; `None` if for nothing.
    pub waits_for: Option<WaitsFor>,
    /// Whether each of the latest answers is what the kubelet then allocated; `None` before the first one.
    pub placements_match: Option<bool>,
    /// Allocations that the kubelet made without asking, and that no init container explains.
    pub unasked: u64,
    /// Whether the ledger is read, and has GPUs of the resource.
    pub known: bool,
    /// Whether the next answer can be trusted to be by the ledger, by the latest ones.
    pub trust: Trust,
}

/// What a registration after the device plugin's own waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitsFor {
    /// The end of another agent. When that ends later, the kubelet may choose the plugin.
    OtherAgent,
    /// The kubelet, which does not list the devices that the plugin has: the plugin has not registered yet.
    Devices,
}

impl fmt::Display for WaitsFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WaitsFor::OtherAgent => "another agent is still registered with the kubelet",
            WaitsFor::Devices => {
                "the kubelet does not list the devices of the device plugin, which has to register first"
            }
        })
    }
}

impl ResourceHealth {
    /// Why the next container of the resource may not get the GPU that the ledger reserved; `None` if it does.
    fn missing(&self) -> Option<String> {
        if !self.plugin_connected {
            Some("the device plugin is not connected".to_owned())
        } else if let Some(what) = self.waits_for {
            Some(what.to_string())
        } else if !self.registered {
            Some("the kubelet has not registered the agent".to_owned())
        } else if self.overtaken {
            Some("the device plugin may have registered with the kubelet after the agent".to_owned())
        } else if let Some(why) = &self.records_unread {
            Some(format!(
                "whether the kubelet asks the agent is not known, because its record of devices cannot be read: {why}"
            ))
        } else if self.placements_match == Some(false) {
            Some("the kubelet allocated other devices than it was answered".to_owned())
        } else if self.unasked > 0 {
            Some(format!("the kubelet allocated {} times without asking", self.unasked))
        } else if !self.known {
            Some("its GPUs are not in the ledger, or no policy guards it".to_owned())
        } else {
            self.trust.lost()
        }
    }
}

impl Health {
    /// Which resources are steered, and why others are not.
    pub fn steering(&self) -> Steered {
        let policy = match &self.topology {
            TopologyPolicy::None => None,
            TopologyPolicy::Unknown(why) => Some(format!("the kubelet's topology manager policy is not known: {why}")),
            TopologyPolicy::Aligned(policy) => Some(format!(
                "the kubelet's topology manager policy is {policy:?}, with which it may choose devices by NUMA node without \
                 asking"
            )),
        };
        let none = || {
            self.resources.is_empty().then(|| match self.takeover {
                None => "no device plugin has registered with the agent".to_owned(),
                Some(Takeover::Allowed) => {
                    "no device plugin of NVIDIA was found in the kubelet's directory, and none has registered with the agent"
                        .to_owned()
                }
                Some(why) => format!("no device plugin has registered with the agent; {why}"),
            })
        };
        let of = |(name, health): (&String, &ResourceHealth)| Some(format!("{name}: {}", health.missing()?));
        let missing = policy.clone().or_else(none).or_else(|| self.resources.iter().find_map(of));
        let steered = self.resources.iter().filter(|(_, health)| policy.is_none() && health.missing().is_none());
        Steered {
            begun: !self.resources.is_empty(),
            resources: steered.map(|(name, _)| Resource(name.as_str().into())).collect(),
            missing,
        }
    }

    /// Whether all resources are steered. False without any.
    pub fn steers(&self) -> bool {
        self.steering().missing.is_none()
    }
}

/// What all parts share.
struct Shared {
    config: Config,
    inputs: Inputs,
    outputs: Outputs,
    steering: Mutex<Steering>,
    pod_resources: PodResourcesClient,
    placements: placement::Placements,
}

impl Shared {
    /// Whether a plugin that registers with the kubelet may be taken over; `None` if the agent was not told to.
    fn takeover(&self) -> Option<Takeover> {
        self.config.takeover.then(|| self.kubelet())
    }

    /// What the version of the kubelet means, whether or not the agent was told to take over.
    fn kubelet(&self) -> Takeover {
        Takeover::of(*self.inputs.kubelet_version.borrow())
    }

    fn may_take_over(&self) -> bool {
        self.takeover().is_some_and(Takeover::is_allowed)
    }

    fn update_health(&self, resource: &str, change: impl FnOnce(&mut ResourceHealth)) {
        self.outputs.health.send_if_modified(|health| {
            let before = health.clone();
            change(health.resources.entry(resource.to_owned()).or_default());
            *health != before
        });
    }
}

/// Steers until `stop` is cancelled, or until another agent takes over on this node.
///
/// # Errors
/// The agent's socket cannot be made in the kubelet's directory.
pub async fn run(config: Config, inputs: Inputs, outputs: Outputs, stop: CancellationToken) -> std::io::Result<Ended> {
    let shared = Arc::new(Shared {
        pod_resources: PodResourcesClient::new(&config.kubelet),
        steering: Mutex::new(Steering::default()),
        placements: placement::Placements::default(),
        config,
        inputs,
        outputs,
    });
    tokio::select! {
        ended = front::run(shared.clone(), stop) => ended,
        () = placement::verify(&shared) => unreachable!("it never ends"),
        () = follow_node(&shared) => unreachable!("it never ends"),
        () = follow_topology(&shared) => unreachable!("it never ends"),
        () = return_trust(&shared) => unreachable!("it never ends"),
    }
}

/// Whether the ledger has GPUs of a resource.
fn is_known(node: &KnownNode, resource: &str) -> bool {
    let rooms = node.pools.as_ref().and_then(|pools| pools.get(&Resource(resource.into())));
    rooms.is_some_and(|rooms| !rooms.is_empty())
}

/// Keeps the topology policy as the kubelet's configuration file tells it. A kubelet reads the file when it starts.
async fn follow_topology(shared: &Shared) {
    loop {
        let policy = read_topology(&shared.config.kubelet_configuration).await;
        shared.outputs.health.send_if_modified(|health| {
            let changed = health.topology != policy;
            health.topology = policy;
            changed
        });
        tokio::time::sleep(TOPOLOGY).await;
    }
}

/// Returns trust whose time has come, if the kubelet lists its pods: without that list no answer is by the ledger.
async fn return_trust(shared: &Shared) {
    loop {
        tokio::time::sleep(TRUST).await;
        let is_due = |health: &Health| health.resources.values().any(|resource| resource.trust.is_due(node::now()));
        if !is_due(&shared.outputs.health.borrow()) {
            continue;
        }
        let can_answer = match shared.pod_resources.list(answer::DECIDE).await {
            Ok(_) => true,
            // The kubelet is asked too often just now, which says nothing.
            Err(error) if error.code() == Code::ResourceExhausted => continue,
            Err(_) => false,
        };
        shared.outputs.health.send_if_modified(|health| {
            let before = health.clone();
            health.resources.values_mut().for_each(|resource| resource.trust.pass_time(node::now(), can_answer));
            *health != before
        });
    }
}

async fn read_topology(file: &Path) -> TopologyPolicy {
    let text = tokio::fs::read_to_string(file).await.map_err(|error| error.to_string());
    let unknown = |why| TopologyPolicy::Unknown(format!("{}: {why}", file.display()));
    text.and_then(|text| topology_policy(&text)).unwrap_or_else(unknown)
}

/// As [`run`], with inputs from the API server: it follows the Node `node`, its pods and its `GpuLedger`.
///
/// `policies` have the rules by which amounts are counted; the sizes of GPUs come from the node's labels and the agent's
/// own report. `kubelet_version` is that of the node, as [`Inputs`] has it.
///
/// # Errors
/// As [`run`].
pub async fn run_in_cluster(
    config: Config,
    client: kube::Client,
    node: String,
    policies: Arc<PolicyStore>,
    kubelet_version: watch::Receiver<Option<(u32, u32)>>,
    outputs: Outputs,
    stop: CancellationToken,
) -> std::io::Result<Ended> {
    let generation = policies.current();
    let index = Arc::new(Index::of_agent(*generation.policies.rules(), generation.overrides.clone()));
    let pods = Arc::new(NodePods::default());
    let (sender, receiver) = watch::channel(Arc::new(KnownNode::default()));
    let read_pod = inputs::read_pod(client.clone(), node.clone(), index.clone());
    let inputs = Inputs { node: receiver, read_pod, kubelet_version };
    let follow = async {
        tokio::join!(
            inputs::follow_pods(client.clone(), &node, &index, &pods),
            inputs::follow_node(client.clone(), &node, &index, &policies),
            state::watch::policies_of_nodes(client.clone(), &policies, &index),
            inputs::follow_ledger(client.clone(), &node, &index),
            inputs::send_node(&index, &pods, &node, sender),
        )
    };
    tokio::select! {
        ended = run(config, inputs, outputs, stop) => ended,
        _ = follow => unreachable!("watches never end"),
    }
}

/// Forgets answers to pods that are long gone, and keeps in the health which resources have GPUs in the ledger.
async fn follow_node(shared: &Shared) {
    let mut node = shared.inputs.node.clone();
    loop {
        let now = node.borrow_and_update().clone();
        if now.pools.is_some() {
            shared.steering.lock().retain(&now);
        }
        let resources: Vec<String> = shared.outputs.health.borrow().resources.keys().cloned().collect();
        for resource in resources {
            shared.update_health(&resource, |health| health.known = is_known(&now, &resource));
        }
        if node.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

#[cfg(test)]
mod tests;
