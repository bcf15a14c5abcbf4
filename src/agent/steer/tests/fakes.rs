//! A kubelet and a device plugin for what real ones do not do on demand: hang, refuse, and use unknown fields.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::super::*;
use crate::agent::kubelet::device_plugin::{self, DevicePluginClient, method};
use crate::agent::kubelet::messages::*;
use crate::agent::kubelet::registry;
use crate::agent::kubelet::rpc::Raw;

/// Waits until `look` holds.
pub(super) async fn until(what: &str, mut look: impl FnMut() -> bool) {
    let start = Instant::now();
    while !look() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// How a method of a fake behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behaviour {
    Answers,
    Hangs,
    /// Refuses this many calls, as a kubelet does that is asked too often.
    Refuses(u32),
}

type Answer = BoxFuture<'static, Result<Bytes, Status>>;

#[derive(Clone)]
struct Method(Arc<dyn Fn(String, Bytes) -> Answer + Send + Sync>);

/// Unary methods by path, and `ListAndWatch`.
#[derive(Clone)]
struct Methods {
    unary: Method,
    devices: watch::Sender<Bytes>,
}

impl tower::Service<http::Request<Body>> for Methods {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;
    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }
    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (methods, path) = (self.clone(), request.uri().path().to_owned());
        Box::pin(async move {
            if path == method::LIST_AND_WATCH {
                let answer = move |_: Request<Bytes>| {
                    let devices = WatchStream::new(methods.devices.subscribe()).map(Ok::<Bytes, Status>);
                    async move { Ok::<_, Status>(Response::new(devices)) }
                };
                return Ok(Grpc::new(Raw).server_streaming(tower::service_fn(answer), request).await);
            }
            let answer = move |question: Request<Bytes>| {
                let answer = (methods.unary.0)(path.clone(), question.into_inner());
                async move { answer.await.map(Response::new) }
            };
            Ok(Grpc::new(Raw).unary(tower::service_fn(answer), request).await)
        })
    }
}

fn serve(socket: &Path, methods: Methods, tasks: &mut JoinSet<()>) {
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    _ = std::fs::remove_file(socket);
    let incoming = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
    tasks.spawn(async move {
        Server::builder().serve_with_incoming(methods, incoming).await.unwrap();
    });
}

/// The registrations of a resource that are in force.
#[derive(Debug, Default)]
pub(super) struct Endpoints {
    /// Whether earlier ones stay in force, as in a kubelet from 1.37 on.
    pub(super) stack: bool,
    /// Their sockets, oldest first.
    pub(super) connected: Vec<String>,
    /// The one that is asked.
    pub(super) asked: Option<String>,
}

impl Endpoints {
    fn connects(&mut self, endpoint: &str) {
        if !self.stack {
            self.connected.clear();
        }
        self.connected.push(endpoint.to_owned());
        self.asked = Some(endpoint.to_owned());
    }

    /// Whether the list of an endpoint counts.
    fn counts(&self, endpoint: &str) -> bool {
        self.connected.iter().any(|connected| connected == endpoint)
    }

    /// Forgets an endpoint that has ended. Returns whether none is left.
    fn disconnects(&mut self, endpoint: &str) -> bool {
        let counted = self.counts(endpoint);
        self.connected.retain(|connected| connected != endpoint);
        // A kubelet takes any of those that are left, whichever ended. The oldest is never what the agent would like.
        self.asked = self.connected.first().cloned();
        counted && self.connected.is_empty()
    }
}

/// A kubelet in a folder.
pub(super) struct FakeKubelet {
    pub(super) directory: KubeletDirectory,
    /// Registrations in their order.
    pub(super) registered: Arc<Mutex<Vec<RegisterRequest>>>,
    /// The latest list of devices of the newest registration; if plugins stack, of any of them.
    pub(super) devices: Arc<Mutex<Option<Bytes>>>,
    /// What happens to the earlier registrations of a resource.
    pub(super) endpoints: Arc<Mutex<Endpoints>>,
    /// What the next registrations are answered with, if not Ok.
    pub(super) refusals: Arc<Mutex<Vec<String>>>,
    /// What PodResources lists.
    pub(super) pods: Arc<Mutex<(Behaviour, ListPodResourcesResponse)>>,
    tasks: JoinSet<()>,
    listens: Option<AbortHandle>,
    /// Streams of devices that this kubelet follows.
    streams: Arc<Mutex<JoinSet<()>>>,
}

impl FakeKubelet {
    pub(super) fn start(folder: &Path) -> FakeKubelet {
        std::fs::write(folder.join("config.yaml"), "kind: KubeletConfiguration").unwrap();
        let mut kubelet = FakeKubelet {
            directory: KubeletDirectory::new(folder),
            registered: Arc::default(),
            devices: Arc::default(),
            endpoints: Arc::default(),
            refusals: Arc::default(),
            pods: Arc::new(Mutex::new((Behaviour::Answers, ListPodResourcesResponse::default()))),
            tasks: JoinSet::new(),
            listens: None,
            streams: Arc::default(),
        };
        let (pods, devices) = (kubelet.pods.clone(), kubelet.devices.clone());
        let list = Method(Arc::new(move |path: String, _: Bytes| {
            if path.ends_with("GetAllocatableResources") {
                let answer = allocatable(devices.lock().clone());
                return async move { Ok(answer.encode_to_vec().into()) }.boxed();
            }
            let (behaviour, list) = pods.lock().clone();
            if let Behaviour::Refuses(times) = behaviour {
                pods.lock().0 = times.checked_sub(1).map_or(Behaviour::Answers, Behaviour::Refuses);
                return async { Err(Status::resource_exhausted("rejected by rate limit")) }.boxed();
            }
            async move {
                if behaviour == Behaviour::Hangs {
                    std::future::pending::<()>().await;
                }
                Ok(list.encode_to_vec().into())
            }
            .boxed()
        }));
        let methods = Methods { unary: list, devices: watch::Sender::new(Bytes::new()) };
        serve(&kubelet.directory.pod_resources_socket(), methods, &mut kubelet.tasks);
        kubelet.listen();
        kubelet
    }

    fn listen(&mut self) {
        let socket = self.directory.registration_socket();
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(socket).unwrap();
        let (registered, refusals) = (self.registered.clone(), self.refusals.clone());
        let (devices, streams, folder) = (self.devices.clone(), self.streams.clone(), self.directory.device_plugins());
        let endpoints = self.endpoints.clone();
        let listens = self.tasks.spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                let (registered, refusals) = (registered.clone(), refusals.clone());
                let (devices, streams, folder) = (devices.clone(), streams.clone(), folder.clone());
                let endpoints = endpoints.clone();
                let register = move |request: RegisterRequest| {
                    registered.lock().push(request.clone());
                    if let Some(refusal) = refusals.lock().pop() {
                        return Err(refusal);
                    }
                    if endpoints.lock().stack && endpoints.lock().counts(&request.endpoint) {
                        return Err(format!("device plugin already connected: {}", request.endpoint));
                    }
                    let (client, devices) = (DevicePluginClient::new(folder.join(&request.endpoint)), devices.clone());
                    let (endpoints, own) = (endpoints.clone(), request.endpoint.clone());
                    endpoints.lock().connects(&own);
                    streams.lock().spawn(async move {
                        let mut lists = client.list_and_watch().await.unwrap();
                        while let Some(Ok(list)) = lists.next().await {
                            if endpoints.lock().counts(&own) {
                                *devices.lock() = Some(list);
                            }
                        }
                        if endpoints.lock().disconnects(&own) {
                            *devices.lock() = None;
                        }
                    });
                    Ok(())
                };
                tokio::spawn(registry::serve(connection, register));
            }
        });
        self.listens = Some(listens);
    }

    /// Ends the streams of devices, as the kubelet does with a plugin that it drops.
    pub(super) async fn end_streams(&self) {
        let mut streams = std::mem::take(&mut *self.streams.lock());
        streams.shutdown().await;
        {
            let mut endpoints = self.endpoints.lock();
            endpoints.connected.clear();
            endpoints.asked = None;
        }
        *self.devices.lock() = None;
    }

    /// Starts again, as after a crash: all sockets are removed.
    pub(super) async fn restart(&mut self) {
        self.listens.take().unwrap().abort();
        self.end_streams().await;
        for entry in std::fs::read_dir(self.directory.device_plugins()).unwrap().flatten() {
            if !entry.path().is_dir() {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
        self.listen();
    }

    /// Records devices of one container for each pod, and writes the checkpoint as the kubelet does.
    pub(super) fn record(&self, pods: &[(&str, &str)]) {
        let entry = |(uid, id): &(&str, &str)| {
            serde_json::json!({ "PodUID": uid, "ContainerName": "main", "ResourceName": "nvidia.com/gpu",
                "DeviceIDs": { "-1": [id] } })
        };
        let entries: Vec<_> = pods.iter().map(entry).collect();
        let text = serde_json::json!({ "Data": { "PodDeviceEntries": entries, "RegisteredDevices": {} } }).to_string();
        let unnamed = self.directory.device_plugins().join("checkpoint.new");
        std::fs::write(&unnamed, text).unwrap();
        std::fs::rename(unnamed, self.directory.checkpoint()).unwrap();
    }

    /// The endpoint that is asked.
    pub(super) fn endpoint(&self) -> DevicePluginClient {
        let endpoint = self.endpoints.lock().asked.clone().unwrap();
        DevicePluginClient::new(self.directory.device_plugins().join(endpoint))
    }

    /// The healthy devices of the newest registration, or what there is instead.
    pub(super) fn healthy(&self) -> Option<Vec<String>> {
        let list = ListAndWatchResponse::decode(self.devices.lock().clone()?).unwrap();
        let healthy = list.devices.into_iter().filter(|device| device.health == "Healthy");
        Some(healthy.map(|device| device.id).collect())
    }

    /// Lists one pod without devices, which is the one that asks.
    pub(super) fn admit(&self, name: &str) {
        let main = ContainerResources { name: "main".into(), devices: Vec::new() };
        let pod = PodResources { name: name.into(), namespace: "ml".into(), containers: vec![main] };
        self.pods.lock().1.pod_resources = vec![pod];
    }
}

/// A device plugin of two GPUs with two replicas each.
pub(super) struct FakePlugin {
    socket: PathBuf,
    registry: PathBuf,
    pub(super) preferred: Arc<Mutex<Behaviour>>,
    /// The encoded allocations that arrived.
    pub(super) allocated: mpsc::UnboundedReceiver<Bytes>,
    sender: mpsc::UnboundedSender<Bytes>,
    /// Its process: with the runtime all its connections end.
    runtime: Option<Runtime>,
}

impl Drop for FakePlugin {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A field with a number that no message of the API has.
pub(super) const UNKNOWN_FIELD: &[u8] = b"\xaa\x06\x06future";

pub(super) fn device_list() -> Bytes {
    let ids = ["GPU-a::0", "GPU-a::1", "GPU-b::0", "GPU-b::1"];
    let device = |id: &&str| Device { id: (*id).into(), health: "Healthy".into(), topology: None };
    let list = ListAndWatchResponse { devices: ids.iter().map(device).collect() };
    [&list.encode_to_vec(), UNKNOWN_FIELD].concat().into()
}

impl FakePlugin {
    pub(super) fn new(kubelet: &FakeKubelet) -> FakePlugin {
        let (sender, allocated) = mpsc::unbounded_channel();
        let folder = kubelet.directory.device_plugins();
        FakePlugin {
            socket: folder.join("nvidia-gpu.sock"),
            registry: folder.join("vramguard.sock"),
            preferred: Arc::new(Mutex::new(Behaviour::Answers)),
            allocated,
            sender,
            runtime: None,
        }
    }

    /// Serves, and does not register.
    pub(super) fn serve(&mut self) {
        let (sender, preferred) = (self.sender.clone(), self.preferred.clone());
        let unary = Method(Arc::new(move |path: String, question: Bytes| {
            let (sender, preferred) = (sender.clone(), *preferred.lock());
            async move {
                match path.as_str() {
                    method::OPTIONS => Ok(options().encode_to_vec().into()),
                    method::PREFERRED if preferred == Behaviour::Hangs => std::future::pending().await,
                    // Its own preference is the last device.
                    method::PREFERRED => Ok(id_list(&["GPU-b::1"])),
                    method::ALLOCATE => {
                        sender.send(question).unwrap();
                        Ok(UNKNOWN_FIELD.into())
                    }
                    path => Err(Status::unimplemented(path)),
                }
            }
            .boxed()
        }));
        let methods = Methods { unary, devices: watch::Sender::new(device_list()) };
        let runtime = Runtime::new().unwrap();
        let (mut tasks, _entered) = (JoinSet::new(), runtime.enter());
        serve(&self.socket, methods, &mut tasks);
        tasks.detach_all();
        self.runtime = Some(runtime);
    }

    /// Registers with the agent as soon as its socket exists.
    pub(super) async fn register(&self) {
        until("the socket of the agent", || self.registry.exists()).await;
        // The client of the tests connects to `kubelet.sock` of a directory, so here is one.
        let folder = tempfile::tempdir().unwrap();
        let directory = KubeletDirectory::new(folder.path());
        std::fs::create_dir_all(directory.device_plugins()).unwrap();
        std::os::unix::fs::symlink(&self.registry, directory.registration_socket()).unwrap();
        device_plugin::register(&directory, registration(), Duration::from_secs(5)).await.unwrap();
    }

    /// Registers with the kubelet, as a plugin without `KUBELET_SOCKET` does.
    pub(super) async fn register_with_kubelet(&self, kubelet: &FakeKubelet) {
        device_plugin::register(&kubelet.directory, registration(), Duration::from_secs(5)).await.unwrap();
    }

    pub(super) fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        _ = std::fs::remove_file(&self.socket);
    }
}

fn allocatable(devices: Option<Bytes>) -> AllocatableResourcesResponse {
    let list = devices.map(|list| ListAndWatchResponse::decode(list).unwrap()).unwrap_or_default();
    let healthy = list.devices.into_iter().filter(|device| device.health == "Healthy");
    let one = |device: Device| ContainerDevices {
        resource_name: "nvidia.com/gpu".into(),
        device_ids: vec![device.id],
        topology: None,
    };
    AllocatableResourcesResponse { devices: healthy.map(one).collect() }
}

pub(super) fn options() -> DevicePluginOptions {
    DevicePluginOptions { pre_start_required: false, get_preferred_allocation_available: true }
}

pub(super) fn registration() -> RegisterRequest {
    RegisterRequest {
        version: "v1beta1".into(),
        endpoint: "nvidia-gpu.sock".into(),
        resource_name: "nvidia.com/gpu".into(),
        options: Some(options()),
    }
}

pub(super) fn id_list(ids: &[&str]) -> Bytes {
    let ids = ids.iter().map(|id| (*id).to_owned()).collect();
    DeviceIdLists { containers: vec![DeviceIds { ids }] }.encode_to_vec().into()
}
