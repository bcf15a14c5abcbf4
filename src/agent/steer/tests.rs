use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt as _;
use prost::Message as _;
use tokio::task::JoinHandle;

use super::*;
use crate::agent::kubelet::device_plugin::DevicePluginClient;
use crate::agent::kubelet::messages::{ContainerPreferredAllocationRequest, DeviceIdLists, PreferredAllocationRequest};
use crate::capacity::name::PodUid;
use crate::capacity::pod::demand::Role;
use crate::capacity::steering::{GpuContainer, GpuRoom, Phase};
use crate::capacity::vram::Vram;

mod fakes;
mod takeover;

use fakes::{Behaviour, FakeKubelet, FakePlugin, UNKNOWN_FIELD, device_list, id_list, registration, until};

/// A node with pods that each have a GPU reserved.
fn node(reserved: &[(&str, &str)]) -> KnownNode {
    let gpu = Resource("nvidia.com/gpu".into());
    let pod = |(name, gpu_id): &(&str, &str)| KnownPod {
        uid: PodUid::from((*name).to_owned()),
        name: PodName { namespace: "ml".into(), name: (*name).into() },
        containers: vec![GpuContainer { name: "main".into(), role: Role::App, resource: gpu.clone(), devices: 1 }],
        phase: Phase::Pending,
        deleted: false,
        demand: Some(Vram::ZERO),
        reserved: Some(GpuId::from(*gpu_id)),
    };
    let room = |(index, uuid): (u32, &str)| GpuRoom { uuid: uuid.into(), index: index.into(), room: Vram::ZERO.into() };
    let rooms = [(0, "GPU-a"), (1, "GPU-b")].map(room).into();
    KnownNode { pods: reserved.iter().map(pod).collect(), pools: Some(BTreeMap::from([(gpu.clone(), rooms)])) }
}

/// An agent between a fake kubelet and a fake plugin, which has not registered yet.
struct Stage {
    kubelet: FakeKubelet,
    plugin: FakePlugin,
    agent: Agent,
    _folder: tempfile::TempDir,
}

struct Agent {
    stop: CancellationToken,
    task: JoinHandle<std::io::Result<Ended>>,
    answers: mpsc::Receiver<Answer>,
    health: watch::Receiver<Health>,
    _node: watch::Sender<Arc<KnownNode>>,
    kubelet_version: watch::Sender<Option<(u32, u32)>>,
}

fn start(config: Config, node: KnownNode, read_pod: ReadPod) -> Agent {
    let (sender, node) = watch::channel(Arc::new(node));
    let (answers, received) = mpsc::channel(100);
    let (health, health_seen) = watch::channel(Health::default());
    let stop = CancellationToken::new();
    let outputs = Outputs { answers, counters: Arc::default(), health };
    let (kubelet_version, seen) = watch::channel(None);
    let inputs = Inputs { node, read_pod, kubelet_version: seen };
    let task = tokio::spawn(run(config, inputs, outputs, stop.clone()));
    Agent { stop, task, answers: received, health: health_seen, _node: sender, kubelet_version }
}

fn unread() -> ReadPod {
    Arc::new(|_: PodName| async { None::<KnownPod> }.boxed())
}

impl Stage {
    fn new(change: impl FnOnce(&mut Config)) -> Stage {
        let folder = tempfile::tempdir().unwrap();
        let kubelet = FakeKubelet::start(folder.path());
        let plugin = FakePlugin::new(&kubelet);
        let mut config = Config::new(kubelet.directory.clone());
        change(&mut config);
        let agent = start(config, node(&[("on-a", "GPU-a"), ("on-b", "GPU-b")]), unread());
        Stage { kubelet, plugin, agent, _folder: folder }
    }

    /// As [`Stage::new`], with the plugin registered at the agent and the agent at the kubelet.
    async fn connected(change: impl FnOnce(&mut Config)) -> Stage {
        let mut stage = Stage::new(change);
        stage.plugin.serve();
        stage.plugin.register().await;
        until("the health", || stage.agent.health.borrow().steers()).await;
        stage
    }

    /// What the agent answers about all devices for one container, and after how long.
    async fn ask(&self) -> (Vec<String>, Duration) {
        let available = ["GPU-a::0", "GPU-a::1", "GPU-b::0", "GPU-b::1"].map(str::to_owned).into();
        let container = ContainerPreferredAllocationRequest { available, must_include: Vec::new(), size: 1 };
        let question = PreferredAllocationRequest { container_requests: vec![container] };
        let started = Instant::now();
        let answer = self.endpoint().preferred(question.encode_to_vec().into(), Duration::from_secs(5)).await.unwrap();
        let took = started.elapsed();
        (DeviceIdLists::decode(answer).unwrap().containers.remove(0).ids, took)
    }

    fn endpoint(&self) -> DevicePluginClient {
        self.kubelet.endpoint()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_pod_gets_the_gpu_that_the_ledger_reserved() {
    let mut stage = Stage::connected(|_| {}).await;
    for (name, gpu) in [("on-a", "GPU-a"), ("on-b", "GPU-b"), ("on-a", "GPU-a")] {
        stage.kubelet.admit(name);
        assert_eq!(stage.ask().await.0, [format!("{gpu}::0")]);
        let answer = stage.agent.answers.recv().await.unwrap();
        assert_eq!(&*answer.caller.unwrap().pod.name, name);
        assert_eq!((answer.wanted, answer.fallback), (Some(GpuId::from(gpu)), None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_that_is_asked_too_often_is_asked_again() {
    let mut stage = Stage::connected(|_| {}).await;
    stage.kubelet.admit("on-b");
    stage.kubelet.pods.lock().0 = Behaviour::Refuses(3);
    assert_eq!(stage.ask().await.0, ["GPU-b::0"]);
    let answer = stage.agent.answers.recv().await.unwrap();
    assert_eq!((answer.wanted, answer.fallback), (Some(GpuId::from("GPU-b")), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_comes_in_time_whoever_hangs() {
    let mut stage = Stage::connected(|_| {}).await;
    stage.kubelet.admit("on-a");
    stage.kubelet.pods.lock().0 = Behaviour::Hangs;
    let (ids, took) = stage.ask().await;
    assert_eq!(ids, ["GPU-b::1"], "the device plugin's own answer");
    assert!(took < Duration::from_millis(1_000), "{took:?}");
    *stage.plugin.preferred.lock() = Behaviour::Hangs;
    let (ids, took) = stage.ask().await;
    assert_eq!(ids.len(), 1);
    assert!(took < Duration::from_millis(1_000), "{took:?}");
    // Measured by the agent itself, without this client.
    for _ in 0..2 {
        let answer = stage.agent.answers.recv().await.unwrap();
        assert!([Fallback::ListFailed, Fallback::Late].contains(&answer.fallback.unwrap()), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_defect_in_the_decision_fails_no_pod() {
    let folder = tempfile::tempdir().unwrap();
    let kubelet = FakeKubelet::start(folder.path());
    let plugin = FakePlugin::new(&kubelet);
    fn defect() -> Option<KnownPod> {
        panic!("on purpose, for a test")
    }
    let panics: ReadPod = Arc::new(|_: PodName| async { defect() }.boxed());
    let agent = start(Config::new(kubelet.directory.clone()), node(&[]), panics);
    let mut stage = Stage { kubelet, plugin, agent, _folder: folder };
    stage.plugin.serve();
    stage.plugin.register().await;
    until("the health", || stage.agent.health.borrow().steers()).await;
    stage.kubelet.admit("nobody-knows-it");
    for _ in 0..2 {
        // The device plugin's answer, or any device if writing the backtrace took too long.
        assert_eq!(stage.ask().await.0.len(), 1);
        assert_eq!(stage.agent.answers.recv().await.unwrap().fallback, Some(Fallback::Internal));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_are_not_known_pass_in_both_directions() {
    let mut stage = Stage::connected(|_| {}).await;
    until("the list of devices", || stage.kubelet.devices.lock().clone() == Some(device_list())).await;
    let question: Bytes = [&id_list(&["GPU-a::0"])[..], UNKNOWN_FIELD].concat().into();
    assert_eq!(stage.endpoint().allocate(question.clone()).await.unwrap(), UNKNOWN_FIELD);
    assert_eq!(stage.plugin.allocated.recv().await.unwrap(), question);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_restarts_is_not_missed_and_an_allocation_waits_for_it() {
    let mut stage = Stage::connected(|_| {}).await;
    stage.plugin.stop();
    until("the end of the plugin", || !stage.agent.health.borrow().steers()).await;
    let endpoint = stage.endpoint();
    let waiting = tokio::spawn(async move { endpoint.allocate(id_list(&["GPU-a::0"])).await });
    tokio::time::sleep(Duration::from_millis(300)).await; // less than the hold
    assert!(!waiting.is_finished());
    assert_eq!(stage.kubelet.healthy().map(|ids| ids.len()), Some(4), "held");
    stage.plugin.serve();
    stage.plugin.register().await;
    assert_eq!(waiting.await.unwrap().unwrap(), UNKNOWN_FIELD);
    assert_eq!(stage.kubelet.registered.lock().len(), 1, "the kubelet noticed nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_stays_away_has_no_healthy_devices_until_it_is_back() {
    let mut stage = Stage::connected(|config| config.hold = Duration::from_millis(200)).await;
    stage.plugin.stop();
    until("unhealthy devices", || stage.kubelet.healthy().is_some_and(|ids| ids.is_empty())).await;
    let refused = stage.endpoint().allocate(id_list(&["GPU-a::0"])).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    stage.plugin.serve();
    until("healthy devices", || stage.kubelet.healthy().is_some_and(|ids| ids.len() == 4)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_registration_has_a_new_name_whether_the_kubelet_drops_or_refuses_the_last() {
    let stage = Stage::connected(|_| {}).await;
    *stage.kubelet.refusals.lock() = vec!["device plugin already connected".to_owned(); 2];
    stage.kubelet.end_streams().await;
    until("another registration", || stage.kubelet.registered.lock().len() == 4).await;
    until("the health", || stage.agent.health.borrow().steers()).await;
    let names: std::collections::BTreeSet<String> =
        stage.kubelet.registered.lock().iter().map(|request| request.endpoint.clone()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    let sockets = || names.iter().filter(|name| stage.kubelet.directory.device_plugins().join(name).exists()).count();
    until("the removal of the older sockets", || sockets() == 1).await;
    assert!(stage.kubelet.registered.lock().iter().all(|request| request.options == registration().options));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_starts_again_finds_the_plugin_without_its_help() {
    let stage = Stage::connected(|config| config.at_stop = AtStop::End).await;
    let link = stage.kubelet.directory.device_plugins().join("vramguard.sock");
    let inode = || std::os::unix::fs::MetadataExt::ino(&std::fs::symlink_metadata(&link).unwrap());
    let before = inode();
    stage.agent.stop.cancel();
    assert_eq!(stage.agent.task.await.unwrap().unwrap(), Ended::Stopped);
    until("the end of the registration", || stage.kubelet.healthy().is_none()).await;

    let again = start(Config::new(stage.kubelet.directory.clone()), node(&[]), unread());
    until("the health", || again.health.borrow().steers()).await;
    assert_eq!(stage.kubelet.registered.lock().len(), 2);
    assert_eq!(inode(), before, "a new link would restart the plugin");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_ends_without_a_word_when_another_has_taken_over() {
    let stage = Stage::connected(|_| {}).await;
    let second = start(Config::new(stage.kubelet.directory.clone()), node(&[]), unread());
    assert_eq!(stage.agent.task.await.unwrap().unwrap(), Ended::Replaced);
    until("the health", || second.health.borrow().steers()).await;
    assert_eq!(stage.kubelet.registered.lock().len(), 2, "the first handed nothing back");
    assert_eq!(stage.kubelet.healthy().map(|ids| ids.len()), Some(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_stops_hands_its_plugin_back_to_the_kubelet() {
    let stage = Stage::connected(|_| {}).await;
    stage.agent.stop.cancel();
    assert_eq!(stage.agent.task.await.unwrap().unwrap(), Ended::Stopped);
    let last = stage.kubelet.registered.lock().last().cloned();
    assert_eq!(last, Some(registration()));
    until("the plugin's own list", || stage.kubelet.healthy().is_some_and(|ids| ids.len() == 4)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_hangs_delays_an_answer_and_prevents_none() {
    let folder = tempfile::tempdir().unwrap();
    let kubelet = FakeKubelet::start(folder.path());
    let plugin = FakePlugin::new(&kubelet);
    let hangs: ReadPod = Arc::new(|_: PodName| std::future::pending::<Option<KnownPod>>().boxed());
    let agent = start(Config::new(kubelet.directory.clone()), node(&[]), hangs);
    let mut stage = Stage { kubelet, plugin, agent, _folder: folder };
    stage.plugin.serve();
    stage.plugin.register().await;
    until("the health", || stage.agent.health.borrow().steers()).await;
    stage.kubelet.admit("nobody-knows-it");
    let (ids, took) = stage.ask().await;
    assert_eq!(ids.len(), 1);
    assert!(took < Duration::from_millis(1_000), "{took:?}");
    assert_eq!(stage.agent.answers.recv().await.unwrap().fallback, Some(Fallback::PodNotFound));
}

#[test]
fn a_kubelet_that_aligns_devices_is_not_steered() {
    let steered = ResourceHealth { plugin_connected: true, registered: true, known: true, ..ResourceHealth::default() };
    let with = |topology, resource: ResourceHealth| {
        let resources = BTreeMap::from([("nvidia.com/gpu".to_owned(), resource)]);
        Health { topology, resources, takeover: None }.steers()
    };
    assert!(with(TopologyPolicy::None, steered.clone()));
    assert!(!with(TopologyPolicy::Unknown("no such file".into()), steered.clone()));
    assert!(!with(TopologyPolicy::Aligned("restricted".to_owned()), steered.clone()));
    assert!(!with(TopologyPolicy::None, ResourceHealth { overtaken: true, ..steered.clone() }));
    assert!(!with(TopologyPolicy::None, ResourceHealth { unasked: 1, ..steered.clone() }));
    assert!(!with(TopologyPolicy::None, ResourceHealth { placements_match: Some(false), ..steered.clone() }));
    let mut trust = Trust::default();
    trust.answered(Some(Fallback::Late), node::now());
    assert!(with(TopologyPolicy::None, ResourceHealth { trust: trust.clone(), ..steered.clone() }), "a busy moment");
    trust.answered(Some(Fallback::Late), node::now());
    assert!(!with(TopologyPolicy::None, ResourceHealth { trust, ..steered.clone() }));
    assert!(!with(TopologyPolicy::None, ResourceHealth { known: false, ..steered.clone() }));
    assert!(!Health::default().steers(), "without a device plugin");
}
