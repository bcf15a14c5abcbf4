//! A stand-in for the kubelet's sockets. PodResources answers two gRPC calls with what the test sets. Registrations of
//! device plugins are accepted where a test wants it, and nothing is ever allocated.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::UnixListener;
use tokio::task::{JoinHandle, JoinSet};
use vramguard::agent::kubelet::device_plugin::DevicePluginClient;
use vramguard::agent::kubelet::messages::{
    AllocatableResourcesResponse, ContainerDevices, ContainerResources, ListPodResourcesResponse, PodResources,
    RegisterRequest,
};
use vramguard::agent::kubelet::registry;

use crate::support::write;

/// What the kubelet knows.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// Ids of the devices of `nvidia.com/gpu`.
    pub devices: Vec<String>,
    /// Name of a pod in namespace `ml`, and the device of its container `main`.
    pub pods: Vec<(String, String)>,
}

/// A listening socket. Drop closes it.
pub(super) struct Kubelet {
    known: Arc<Mutex<Known>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Kubelet {
    /// Listens in the kubelet's directory.
    pub(super) fn start(directory: &Path, known: Known) -> Kubelet {
        let socket = directory.join("pod-resources/kubelet.sock");
        std::fs::create_dir_all(socket.parent().expect("it is in a folder")).expect("a folder");
        _ = std::fs::remove_file(&socket); // of an earlier kubelet
        let listener = UnixListener::bind(&socket).expect("a socket");
        let known = Arc::new(Mutex::new(known));
        let tasks = vec![tokio::spawn(serve(listener, known.clone()))];
        Kubelet { known, tasks }
    }

    /// Accepts the registrations of device plugins, and follows the devices of each.
    pub(super) fn takes_registrations(&mut self, directory: &Path) {
        write(&directory.join("config.yaml"), "kind: KubeletConfiguration");
        let folder = directory.join("device-plugins");
        std::fs::create_dir_all(&folder).expect("a folder");
        let listener = UnixListener::bind(folder.join("kubelet.sock")).expect("a socket");
        self.tasks.push(tokio::spawn(register(listener, folder)));
    }

    /// Changes what the kubelet knows.
    pub(super) fn knows(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.known.lock().expect("no test panics with the lock"));
    }
}

async fn register(listener: UnixListener, folder: PathBuf) {
    // Dropped with this future, which ends the registrations.
    let mut connections = JoinSet::new();
    loop {
        let Ok((socket, _)) = listener.accept().await else { return };
        let folder = folder.clone();
        connections.spawn(async move {
            let mut plugins = JoinSet::new();
            let register = |request: RegisterRequest| {
                let plugin = DevicePluginClient::new(folder.join(request.endpoint));
                plugins.spawn(async move {
                    let Ok(mut lists) = plugin.list_and_watch().await else { return };
                    while let Ok(Some(_)) = lists.message().await {}
                });
                Ok(())
            };
            // The agent also connects without a registration, to see whether somebody listens.
            _ = registry::serve(socket, register).await;
            plugins.join_all().await;
        });
    }
}

async fn serve(listener: UnixListener, known: Arc<Mutex<Known>>) {
    // Dropped with this future, so that a kubelet that stops closes its connections.
    let mut connections = JoinSet::new();
    loop {
        let Ok((socket, _)) = listener.accept().await else { return };
        let known = known.clone();
        connections.spawn(async move {
            let answer = service_fn(move |request: Request<Incoming>| {
                let answer = answer(request.uri().path(), &known.lock().expect("no test panics with the lock"));
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            // The agent closes the connection when it stops.
            _ = connection.serve_connection(TokioIo::new(socket), answer).await;
        });
    }
}

fn answer(path: &str, known: &Known) -> Response<impl hyper::body::Body<Data = Bytes, Error = Infallible> + use<>> {
    let devices = |ids: Vec<String>| ContainerDevices {
        resource_name: "nvidia.com/gpu".to_owned(),
        device_ids: ids,
        topology: None,
    };
    let message = match path {
        "/v1.PodResourcesLister/GetAllocatableResources" => {
            AllocatableResourcesResponse { devices: vec![devices(known.devices.clone())] }.encode_to_vec()
        }
        "/v1.PodResourcesLister/List" => {
            let pods = known.pods.iter().map(|(name, device)| PodResources {
                name: name.clone(),
                namespace: "ml".to_owned(),
                containers: vec![ContainerResources {
                    name: "main".to_owned(),
                    devices: vec![devices(vec![device.clone()])],
                }],
            });
            ListPodResourcesResponse { pod_resources: pods.collect() }.encode_to_vec()
        }
        other => panic!("the agent calls {other}"),
    };
    let mut framed = BytesMut::new();
    framed.put_u8(0); // not compressed
    framed.put_u32(u32::try_from(message.len()).expect("a small message"));
    framed.put_slice(&message);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().expect("a value"));
    let body = Full::new(framed.freeze()).with_trailers(async move { Some(Ok(trailers)) });
    Response::builder().header("content-type", "application/grpc").body(body).expect("a response")
}
