//! The registration of one device plugin with the kubelet, by the agent. Owns the sockets that the kubelet is told, and
//! when to register again.
//!
//! The kubelet follows a list of devices for each registration. While that stream is open the registration is in force;
//! when it ends, the kubelet has restarted or dropped the plugin, and the agent registers again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;
use tonic::transport::Server;

use super::plugin::{Plugin, Source};
use super::service::KubeletService;
use crate::agent::kubelet::device_plugin;
use crate::agent::kubelet::messages::{DevicePluginOptions, RegisterRequest};
use crate::agent::kubelet::registry::API_VERSION;

/// Pause between attempts to reach the kubelet while it does not listen.
const RETRY: Duration = Duration::from_millis(25);
/// The longest pause, once the kubelet keeps refusing.
const MAX_RETRY: Duration = Duration::from_secs(1);
/// Pause after the kubelet ended the stream. By then it has also forgotten the registration.
const AFTER_END: Duration = Duration::from_millis(50);
/// Time limit for the kubelet to register a plugin, and again to follow its devices.
const PATIENCE: Duration = Duration::from_secs(5);
/// When to register again after a plugin that registers itself with the kubelet. The second time is for a slow plugin.
const AFTER_PLUGIN: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(4)];

/// One registration in force. Its socket and its streams end when it is dropped.
struct Registered {
    /// The number of streams of devices that the kubelet has open.
    streams: watch::Receiver<usize>,
    _server: DropGuard,
}

/// Keeps the plugin registered. `start` makes the names of the sockets unique among the agent's processes.
///
/// When `stop` is cancelled, it ends the registration and returns.
pub(super) async fn keep(plugin: Arc<Plugin>, start: i64, stop: CancellationToken) {
    let mut devices = plugin.devices.subscribe();
    let mut pause = RETRY;
    let mut current: Option<Registered> = None;
    for number in 1_u64.. {
        let ready = async {
            _ = devices.wait_for(Option::is_some).await;
            kubelet_listens(&plugin).await;
        };
        tokio::select! {
            () = ready => {}
            () = stop.cancelled() => return,
        }
        match register(&plugin, start, number).await {
            Ok(registered) => {
                tracing::info!(resource = %plugin.resource, number, "registered with the kubelet");
                plugin.shared.outputs.counters.registrations.inc();
                // The older registration ends only now.
                let mut streams = current.insert(registered).streams.clone();
                plugin.shared.update_health(&plugin.resource.0, |health| health.registered = true);
                pause = RETRY;
                tokio::select! {
                    () = closed(&mut streams) => {
                        current = None;
                        tracing::info!(resource = %plugin.resource, "the kubelet has ended the registration");
                        plugin.shared.update_health(&plugin.resource.0, |health| health.registered = false);
                        tokio::time::sleep(AFTER_END).await;
                    }
                    () = plugin.register_again.notified() => {}
                    () = stop.cancelled() => return,
                }
            }
            Err(error) => {
                // The kubelet answers, so it is spared. Its socket is found without this pause.
                pause = (pause * 2).min(MAX_RETRY);
                tracing::warn!(resource = %plugin.resource, "not registered with the kubelet: {}", error.message());
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = stop.cancelled() => return,
                }
            }
        }
    }
}

/// Waits until the kubelet has closed all streams, or the server behind them has ended.
async fn closed(streams: &mut watch::Receiver<usize>) {
    _ = streams.wait_for(|open| *open == 0).await;
}

/// Waits until the kubelet listens for registrations. Its socket appears before it listens there, and outlives it.
async fn kubelet_listens(plugin: &Plugin) {
    let socket = plugin.shared.config.kubelet.registration_socket();
    while tokio::net::UnixStream::connect(&socket).await.is_err() {
        tokio::time::sleep(RETRY).await;
    }
}

/// Asks for registrations after those of a plugin that registers itself with the kubelet.
pub(super) async fn stay_newest(plugin: Arc<Plugin>) {
    let mut announced = plugin.announced.subscribe();
    loop {
        if announced.borrow_and_update().source == Source::Found {
            for pause in AFTER_PLUGIN {
                tokio::time::sleep(pause).await;
                plugin.register_again.notify_one();
            }
        }
        if announced.changed().await.is_err() {
            return;
        }
    }
}

/// Registers once: a new socket, a server behind it, and the call. Returns when the kubelet follows the devices.
async fn register(plugin: &Arc<Plugin>, start: i64, number: u64) -> Result<Registered, Status> {
    let kubelet = &plugin.shared.config.kubelet;
    let bound = plugin.directory.bind_endpoint(start, number);
    let (listener, endpoint) = bound.map_err(|error| Status::internal(format!("no socket: {error}")))?;
    let stop = CancellationToken::new();
    let registered = stop.clone().drop_guard();
    let (open, mut streams) = watch::channel(0);
    let service = KubeletService::new(plugin.clone(), open, stop.clone());
    let (directory, socket) = (plugin.directory.clone(), endpoint.clone());
    tokio::spawn(async move {
        let server = Server::builder().serve_with_incoming_shutdown(
            service,
            UnixListenerStream::new(listener),
            stop.cancelled_owned(),
        );
        if let Err(error) = server.await {
            tracing::warn!("the server for the kubelet ended: {error}");
        }
        directory.remove_endpoint(&socket);
    });
    device_plugin::register(kubelet, request(plugin, endpoint), PATIENCE).await?;
    let followed = tokio::time::timeout(PATIENCE, streams.wait_for(|open| *open > 0)).await;
    if !followed.is_ok_and(|open| open.is_ok()) {
        return Err(Status::deadline_exceeded("the kubelet does not follow the devices"));
    }
    Ok(Registered { streams, _server: registered })
}

fn request(plugin: &Plugin, endpoint: String) -> RegisterRequest {
    let options = DevicePluginOptions { get_preferred_allocation_available: true, ..plugin.options() };
    RegisterRequest {
        version: API_VERSION.to_owned(),
        endpoint,
        resource_name: plugin.resource.0.as_str().to_owned(),
        options: Some(options),
    }
}

/// Registers the device plugin itself with the kubelet, in place of the agent, whose registration must have ended.
pub(super) async fn hand_back(plugin: &Plugin) {
    if plugin.client().is_none() {
        return;
    }
    tokio::time::sleep(AFTER_END).await;
    let announcement = plugin.announced.borrow().clone();
    match device_plugin::register(&plugin.shared.config.kubelet, announcement.request, PATIENCE).await {
        Ok(()) => tracing::info!(resource = %plugin.resource, "handed the device plugin back to the kubelet"),
        Err(error) => tracing::warn!(
            resource = %plugin.resource,
            "not handed back: {}; the node has no devices until the plugin restarts",
            error.message()
        ),
    }
}
