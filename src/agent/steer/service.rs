//! The calls of the kubelet to the agent, which looks like a device plugin to it. Owns which call goes where.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{Stream, StreamExt as _};
use prost::Message as _;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::answer;
use super::plugin::Plugin;
use crate::agent::kubelet::device_plugin::method;
use crate::agent::kubelet::messages::{DeviceIdLists, DevicePluginOptions, Empty};
use crate::agent::kubelet::rpc::{MAX_MESSAGE, Raw};

type Devices = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// The service behind one registration.
#[derive(Clone)]
pub(super) struct KubeletService {
    plugin: Arc<Plugin>,
    /// The number of streams of devices that are open.
    open: Arc<watch::Sender<usize>>,
    /// Ends the streams.
    stop: CancellationToken,
}

/// An open stream of devices. The kubelet closes it when it drops the registration.
struct Open(Arc<watch::Sender<usize>>);

impl Open {
    fn new(open: &Arc<watch::Sender<usize>>) -> Open {
        open.send_modify(|open| *open += 1);
        Open(open.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

impl KubeletService {
    pub(super) fn new(plugin: Arc<Plugin>, open: watch::Sender<usize>, stop: CancellationToken) -> KubeletService {
        KubeletService { plugin, open: Arc::new(open), stop }
    }

    async fn serve(self, request: http::Request<Body>) -> http::Response<Body> {
        match request.uri().path() {
            method::OPTIONS => {
                let options = DevicePluginOptions { get_preferred_allocation_available: true, ..self.plugin.options() };
                let answer = move |_: Request<Empty>| async move { Ok::<_, Status>(Response::new(options)) };
                let codec = ProstCodec::<DevicePluginOptions, Empty>::default();
                Grpc::new(codec).unary(tower::service_fn(answer), request).await
            }
            method::LIST_AND_WATCH => {
                let answer = move |_: Request<Bytes>| {
                    let devices = self.devices();
                    async move { Ok::<_, Status>(Response::new(devices)) }
                };
                Grpc::new(Raw).server_streaming(tower::service_fn(answer), request).await
            }
            method::PREFERRED => {
                let plugin = self.plugin;
                let answer = move |question: Request<Bytes>| {
                    let plugin = plugin.clone();
                    async move {
                        let _call = plugin.called();
                        Ok::<_, Status>(Response::new(answer::preferred(&plugin, question.into_inner()).await))
                    }
                };
                unary(answer, request).await
            }
            method::ALLOCATE => {
                let plugin = self.plugin;
                let answer = move |question: Request<Bytes>| {
                    let plugin = plugin.clone();
                    async move { allocate(&plugin, question.into_inner()).await.map(Response::new) }
                };
                unary(answer, request).await
            }
            method::PRE_START => {
                let plugin = self.plugin;
                let answer = move |question: Request<Bytes>| {
                    let (plugin, question) = (plugin.clone(), question.into_inner());
                    async move {
                        let call = plugin.call(|client| {
                            let question = question.clone();
                            async move { client.pre_start(question).await }
                        });
                        call.await.map(Response::new)
                    }
                };
                unary(answer, request).await
            }
            path => Status::unimplemented(format!("{path} is no method of a device plugin")).into_http(),
        }
    }

    /// The lists of devices, now and after each change.
    fn devices(&self) -> Devices {
        let open = Open::new(&self.open);
        let lists = WatchStream::new(self.plugin.devices.subscribe()).filter_map(std::future::ready);
        let lists = lists.take_until(self.stop.clone().cancelled_owned());
        Box::pin(lists.map(move |list| {
            let _is_open = &open;
            Ok(list)
        }))
    }
}

async fn unary<F, A>(answer: F, request: http::Request<Body>) -> http::Response<Body>
where
    F: FnMut(Request<Bytes>) -> A,
    A: Future<Output = Result<Response<Bytes>, Status>>,
{
    let mut grpc = Grpc::new(Raw).max_decoding_message_size(MAX_MESSAGE);
    grpc.unary(tower::service_fn(answer), request).await
}

/// Passes an allocation on, and notes whether it is what was answered before.
async fn allocate(plugin: &Plugin, question: Bytes) -> Result<Bytes, Status> {
    let _call = plugin.called();
    let call = plugin.call(|client| {
        let question = question.clone();
        async move { client.allocate(question).await }
    });
    let answer = call.await?;
    if let Ok(lists) = DeviceIdLists::decode(question) {
        let ids = lists.containers.into_iter().flat_map(|container| container.ids).collect();
        super::placement::allocated(plugin, ids).await;
    }
    Ok(answer)
}

impl tower::Service<http::Request<Body>> for KubeletService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move { Ok(service.serve(request).await) })
    }
}
