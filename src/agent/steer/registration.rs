//! The registration of one device plugin with the kubelet, by the agent. Owns the sockets that the kubelet is told, and
//! when to register again.
//!
//! The kubelet follows a list of devices for each registration. While that stream is open the registration is in force;
//! when it ends, the kubelet has restarted or dropped the plugin, and the agent registers again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;
use tonic::transport::Server;

use super::plugin::Plugin;
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
/// The longest time for the kubelet to make no call before a registration ends.
const IDLE: Duration = Duration::from_secs(2);

/// The longest wait for the kubelet to list the devices of a plugin that it asked in place of the agent.
const ITSELF: Duration = Duration::from_secs(1);

/// One registration in force. Its socket and its streams end when it is dropped.
struct Registered {
    /// The number of streams of devices that the kubelet has open.
    streams: watch::Receiver<usize>,
    /// Ends the streams, and not the server.
    end: CancellationToken,
    server: JoinHandle<()>,
    stop: DropGuard,
}

impl Registered {
    /// Ends it, and returns when the kubelet has forgotten it. A call that the kubelet has begun is awaited, because the
    /// kubelet breaks it off when it forgets the registration, and fails the pod.
    async fn end(self, plugin: &Plugin) {
        _ = timeout(IDLE, idle(plugin)).await;
        self.end.cancel();
        tokio::time::sleep(AFTER_END).await;
        drop(self.stop);
        _ = timeout(AFTER_END, self.server).await;
    }
}

/// Keeps the plugin registered. `start` makes the names of the sockets unique among the agent's processes.
///
/// When `stop` is cancelled, it ends the registration and returns.
pub(super) async fn keep(plugin: Arc<Plugin>, start: i64, stop: CancellationToken) {
    let mut pause = RETRY;
    let mut current: Option<Registered> = None;
    for number in 1_u64.. {
        let mut announced = plugin.announced.subscribe();
        // On a kubelet that keeps both, the end of the older one after this could make it ask the plugin.
        if (plugin.is_found() || plugin.shared.kubelet().is_allowed())
            && let Some(last) = current.take()
        {
            plugin.shared.update_health(&plugin.resource.0, |health| health.registered = false);
            last.end(&plugin).await;
        }
        let times = *plugin.overtaken.borrow();
        tokio::select! {
            () = ready(&plugin) => {}
            // It may have registered with the agent now, or with the kubelet.
            _ = announced.changed() => continue,
            () = stop.cancelled() => break,
        }
        match register(&plugin, start, number).await {
            Ok(registered) => {
                tracing::info!(resource = %plugin.resource, number, "registered with the kubelet");
                plugin.shared.outputs.counters.registrations.inc();
                // If the older registration has not ended yet, it ends only now.
                let mut streams = current.insert(registered).streams.clone();
                if plugin.is_found() || plugin.shared.kubelet().may_keep_both() {
                    plugin.is_in_force(times).await;
                }
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
                    () = plugin.must_register_again(times), if plugin.is_found() => {}
                    () = stop.cancelled() => break,
                }
            }
            Err(error) => {
                // The kubelet answers, so it is spared. Its socket is found without this pause.
                pause = (pause * 2).min(MAX_RETRY);
                tracing::warn!(resource = %plugin.resource, "not registered with the kubelet: {}", error.message());
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = stop.cancelled() => break,
                }
            }
        }
    }
    if let Some(last) = current {
        last.end(&plugin).await;
    }
}

/// Waits until the kubelet makes no call. A question and the allocation that follows are a millisecond apart.
async fn idle(plugin: &Plugin) {
    let mut calls = plugin.calls.subscribe();
    loop {
        _ = calls.wait_for(|calls| *calls == 0).await;
        if timeout(AFTER_END, calls.changed()).await.is_err() {
            return;
        }
    }
}

/// Waits until the plugin can be registered.
async fn ready(plugin: &Plugin) {
    _ = plugin.devices.subscribe().wait_for(Option::is_some).await;
    kubelet_listens(plugin).await;
    if plugin.is_found() {
        plugin.will_be_newest().await;
    } else if plugin.bypassed.load(Ordering::Relaxed) {
        // The kubelet has a registration of the plugin itself, unless it ended just now.
        _ = timeout(ITSELF, plugin.will_be_newest()).await;
    }
    plugin.shared.update_health(&plugin.resource.0, |health| health.waits_for = None);
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

/// Registers once: a new socket, a server behind it, and the call. Returns when the kubelet follows the devices.
async fn register(plugin: &Arc<Plugin>, start: i64, number: u64) -> Result<Registered, Status> {
    let kubelet = &plugin.shared.config.kubelet;
    let bound = plugin.directory.bind_endpoint(start, number);
    let (listener, endpoint) = bound.map_err(|error| Status::internal(format!("no socket: {error}")))?;
    let stop = CancellationToken::new();
    let (end, guard) = (stop.child_token(), stop.clone().drop_guard());
    let (open, mut streams) = watch::channel(0);
    let service = KubeletService::new(plugin.clone(), open, end.clone());
    let (directory, socket) = (plugin.directory.clone(), endpoint.clone());
    let server = tokio::spawn(async move {
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
    let followed = timeout(PATIENCE, streams.wait_for(|open| *open > 0)).await;
    if !followed.is_ok_and(|open| open.is_ok()) {
        return Err(Status::deadline_exceeded("the kubelet does not follow the devices"));
    }
    Ok(Registered { streams, end, server, stop: guard })
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
    if plugin.is_registered_itself().await {
        return tracing::info!(resource = %plugin.resource, "the kubelet still has the device plugin's own registration");
    }
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
