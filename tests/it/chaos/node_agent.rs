//! A stand-in for the device plugin and for vramguard's node agent, on nodes that kwok simulates.
//!
//! The device plugin gives each container a replica, and the agent reports that. The agent itself is a later part of the
//! product; like it, this stand-in only writes `status.agent` of existing `GpuLedger`s.
//!
//! Like a kubelet, it learns of bound pods late and in any order. The plugin then chooses a GPU by its rule, with ties at
//! random. The checker gets the choice at once, and the report follows later.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::checker::Placement;
use super::hardware::{AllocationPolicy, Hardware, uuid};
use super::seed::Chance;
use super::view::PodView;
use crate::support::stream::{Seen, follow};

/// Milliseconds from a binding to the plugin's choice: minimum and maximum.
const ADMISSION_MILLIS: (u64, u64) = (10, 500);
/// Time between two reports of the agent.
const PERIOD: Duration = Duration::from_millis(400);
/// Time after which an unchanged report is renewed.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Agents and plugins of all nodes. Drop stops them.
pub(super) struct NodeAgents {
    _tasks: JoinSet<()>,
    reported: Arc<Mutex<BTreeSet<String>>>,
}

impl NodeAgents {
    /// Starts agents and plugins on nodes with a known allocation policy. `tell` is called with each choice.
    pub(super) fn start(
        client: &kube::Client,
        nodes: &BTreeMap<String, Hardware>,
        chance: Chance,
        tell: impl Fn(Placement) + Send + 'static,
    ) -> NodeAgents {
        let verified = |hardware: &&Hardware| {
            !matches!(hardware.allocation_policy, AllocationPolicy::Single | AllocationPolicy::Unverified)
        };
        let host = |(name, hardware): (&String, &Hardware)| (name.clone(), Host::new(name, hardware));
        let hosts = nodes.iter().filter(|(_, hardware)| verified(hardware)).map(host).collect();
        let hosts = Arc::new(Mutex::new(Hosts { hosts, version: 0, chance }));
        let reported = Arc::new(Mutex::new(BTreeSet::new()));
        let mut tasks = JoinSet::new();
        let pods = Api::<Pod>::all(client.clone());
        tasks.spawn({
            let hosts = hosts.clone();
            async move { follow(pods, |seen| lock(&hosts).see(seen)).await }
        });
        tasks.spawn({
            let hosts = hosts.clone();
            async move {
                loop {
                    lock(&hosts).admit().into_iter().for_each(&tell);
                    tokio::time::sleep(Duration::from_millis(10)).await; // the pace of the kubelets
                }
            }
        });
        let ledgers = Api::all_with(client.clone(), &resource());
        tasks.spawn(report(hosts, ledgers, reported.clone()));
        NodeAgents { _tasks: tasks, reported }
    }

    /// Nodes with an accepted report.
    pub(super) fn reported(&self) -> BTreeSet<String> {
        lock(&self.reported).clone()
    }
}

/// The GPUs of each node of the test.
pub(super) async fn hardware(client: &kube::Client) -> BTreeMap<String, Hardware> {
    let nodes = Api::<Node>::all(client.clone()).list(&Default::default()).await.expect("nodes can be listed");
    let of = |node: &Node| Some((node.metadata.name.clone()?, Hardware::of(node.metadata.labels.as_ref()?)?));
    nodes.items.iter().filter_map(of).collect()
}

fn resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("vramguard.dev", "v1alpha1", "GpuLedger"), "gpuledgers")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Writes changed reports, node by node, until the API server accepts them.
async fn report(hosts: Arc<Mutex<Hosts>>, ledgers: Api<DynamicObject>, reported: Arc<Mutex<BTreeSet<String>>>) {
    loop {
        let due = lock(&hosts).due();
        for (node, revision, agent) in due {
            let patch = Patch::Merge(json!({ "status": { "agent": agent } }));
            // The report stays due if the ledger does not exist or the API server is down.
            if ledgers.patch_status(&node, &PatchParams::default(), &patch).await.is_ok() {
                lock(&hosts).written(&node, revision);
                lock(&reported).insert(node);
            }
        }
        tokio::time::sleep(PERIOD).await; // the pace of the agents
    }
}

struct Hosts {
    hosts: BTreeMap<String, Host>,
    /// Resource version of the latest pod.
    version: u64,
    chance: Chance,
}

/// Name of a container, and the GPU in its annotation.
type Wanted = (String, Option<String>);

/// One node.
struct Host {
    name: String,
    hardware: Hardware,
    /// Containers of bound pods that have no GPU yet, by uid, with the time of their admission.
    coming: BTreeMap<String, (Vec<Wanted>, Instant)>,
    /// GPU index of each container, by uid and name.
    given: BTreeMap<(String, String), usize>,
    revision: u64,
    written: Option<(u64, Instant)>,
}

impl Hosts {
    fn see(&mut self, seen: Seen<Pod>) {
        match seen {
            Seen::All(pods, version) => {
                self.version = version;
                let views: Vec<PodView> = pods.iter().map(PodView::of).collect();
                let here: BTreeSet<String> = views.iter().map(|pod| pod.uid.clone()).collect();
                self.hosts.values_mut().for_each(|host| host.retain(|uid| here.contains(uid)));
                views.into_iter().for_each(|pod| self.apply(pod));
            }
            Seen::Now(pod, version) => {
                self.version = version;
                self.apply(PodView::of(&pod));
            }
            Seen::Gone(pod, version) => {
                self.version = version;
                let gone = pod.metadata.uid.expect("a pod has a uid");
                self.hosts.values_mut().for_each(|host| host.retain(|uid| *uid != gone));
            }
        }
    }

    fn apply(&mut self, pod: PodView) {
        let Some(host) = pod.node.as_ref().and_then(|node| self.hosts.get_mut(node)) else { return };
        if pod.ended {
            host.retain(|uid| *uid != pod.uid);
        } else if !host.knows(&pod.uid) && !pod.containers.is_empty() {
            let delay = Duration::from_millis(self.chance.between(ADMISSION_MILLIS.0, ADMISSION_MILLIS.1));
            let containers = pod.containers.into_iter().map(|container| (container.name, container.gpu)).collect();
            host.coming.insert(pod.uid, (containers, Instant::now() + delay));
        }
    }

    /// Gives GPUs to the pods whose time has come.
    fn admit(&mut self) -> Vec<Placement> {
        let (mut placements, now) = (Vec::new(), Instant::now());
        for host in self.hosts.values_mut() {
            let mut turn: Vec<(Instant, String)> =
                host.coming.iter().filter(|(_, (_, at))| *at <= now).map(|(uid, (_, at))| (*at, uid.clone())).collect();
            turn.sort();
            for (_, uid) in turn {
                let (containers, _) = host.coming.remove(&uid).expect("its uid was just listed");
                for (container, wanted) in containers {
                    let Some(gpu) = host.give(&uid, &container, wanted.as_deref(), &mut self.chance) else { continue };
                    let gpu = uuid(&host.name, gpu);
                    placements.push(Placement { version: self.version, uid: uid.clone(), container, gpu });
                }
            }
        }
        placements
    }

    fn due(&self) -> Vec<(String, u64, Value)> {
        let due = self.hosts.values().filter(|host| host.is_due());
        due.map(|host| (host.name.clone(), host.revision, host.report())).collect()
    }

    fn written(&mut self, node: &str, revision: u64) {
        let host = self.hosts.get_mut(node).expect("nodes stay");
        host.written = Some((revision, Instant::now()));
    }
}

impl Host {
    fn new(name: &str, hardware: &Hardware) -> Host {
        let (coming, given) = (BTreeMap::new(), BTreeMap::new());
        Host { name: name.to_owned(), hardware: hardware.clone(), coming, given, revision: 0, written: None }
    }

    fn knows(&self, uid: &str) -> bool {
        self.coming.contains_key(uid) || self.given.keys().any(|(given, _)| given == uid)
    }

    fn retain(&mut self, keep: impl Fn(&String) -> bool) {
        let before = self.given.len();
        self.coming.retain(|uid, _| keep(uid));
        self.given.retain(|(uid, _), _| keep(uid));
        self.revision += u64::from(self.given.len() != before);
    }

    /// Chooses a GPU by the plugin's rule, or on a steered node the wanted one, if it has a free replica. `None` if every
    /// replica is taken; a kubelet would refuse the pod.
    fn give(&mut self, uid: &str, container: &str, wanted: Option<&str>, chance: &mut Chance) -> Option<usize> {
        let mut taken = vec![0; self.hardware.sizes.len()];
        self.given.values().for_each(|gpu| taken[*gpu] += 1);
        let open: Vec<usize> = (0..taken.len()).filter(|gpu| taken[*gpu] < self.hardware.replicas).collect();
        let counts = open.iter().map(|gpu| taken[*gpu]);
        let best = match self.hardware.allocation_policy {
            AllocationPolicy::Packed => counts.max()?,
            AllocationPolicy::Single
            | AllocationPolicy::Unverified
            | AllocationPolicy::Distributed
            | AllocationPolicy::Steered => counts.min()?,
        };
        let ties: Vec<usize> = open.iter().copied().filter(|gpu| taken[*gpu] == best).collect();
        let steers = self.hardware.allocation_policy == AllocationPolicy::Steered;
        let wanted = open.iter().find(|gpu| steers && wanted == Some(uuid(&self.name, **gpu).as_str()));
        let gpu = wanted.copied().unwrap_or_else(|| *chance.pick(&ties));
        self.given.insert((uid.to_owned(), container.to_owned()), gpu);
        self.revision += 1;
        Some(gpu)
    }

    fn is_due(&self) -> bool {
        self.written.is_none_or(|(revision, at)| revision != self.revision || at.elapsed() > HEARTBEAT)
    }

    /// The complete `status.agent`.
    fn report(&self) -> Value {
        let gpu = |(index, total): (usize, &u64)| {
            json!({
                "resource": "nvidia.com/gpu", "replicas": self.hardware.replicas, "uuid": uuid(&self.name, index), "index": index,
                "totalMiB": total, "reservedMiB": 0, "outOfBandMiB": 0,
            })
        };
        let gpus: Vec<Value> = self.hardware.sizes.iter().enumerate().map(gpu).collect();
        let given = |((uid, container), gpu): (&(String, String), &usize)| json!({ "uid": uid, "container": container, "gpu": uuid(&self.name, *gpu) });
        let pods: Vec<Value> = self.given.iter().map(given).collect();
        let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string();
        json!({ "time": time, "allocationPolicy": self.hardware.allocation_policy.name(), "gpus": gpus, "pods": pods })
    }
}
