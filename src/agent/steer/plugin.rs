//! The connection to one device plugin. Owns the list of its devices as the kubelet sees it, and who answers its calls.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_stream::StreamExt as _;
use tonic::{Code, Status, Streaming};

use super::Shared;
use super::directory::{Directory, FileId};
use super::placement::Asked;
use crate::agent::kubelet::device_plugin::DevicePluginClient;
use crate::agent::kubelet::messages::{DevicePluginOptions, ListAndWatchResponse, RegisterRequest};
use crate::capacity::gpu::Resource;
use crate::capacity::steering::takeover::Allocated;

/// Pause between attempts to reach a device plugin that is away.
const RETRY: Duration = Duration::from_millis(200);
/// Pause before a call is repeated whose connection broke.
const REPEAT: Duration = Duration::from_millis(20);

/// A device plugin that was announced to the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Announcement {
    /// Its registration.
    pub request: RegisterRequest,
    /// How the agent knows of it.
    pub source: Source,
    /// Counts the announcements of this plugin, so that one with the same content is noticed.
    pub number: u64,
}

/// How the agent knows of a device plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// It registered with the agent, now or before the agent started again.
    Registered,
    /// Its socket was found. It has registered, or is about to register, with the kubelet.
    Found,
}

/// One device plugin and what the kubelet is told about it.
pub(super) struct Plugin {
    pub(super) shared: Arc<Shared>,
    pub(super) directory: Directory,
    pub(super) resource: Resource,
    pub(super) announced: watch::Sender<Announcement>,
    /// The client while the plugin is connected.
    client: watch::Sender<Option<DevicePluginClient>>,
    /// The list of devices for the kubelet, encoded; `None` before the first one.
    pub(super) devices: watch::Sender<Option<Bytes>>,
    /// Asks for a new registration with the kubelet, although the last one is in force.
    pub(super) register_again: Notify,
    /// The last question of the kubelet.
    pub(super) asked: parking_lot::Mutex<Option<Asked>>,
    /// How often the plugin may have registered with the kubelet after the agent.
    pub(super) overtaken: watch::Sender<u64>,
    /// Whether the kubelet has asked the plugin itself since the agent registered last.
    pub(super) bypassed: AtomicBool,
    /// Allocations that the agent passed on, and those that the kubelet recorded.
    pub(super) allocated: parking_lot::Mutex<Allocated>,
    /// When the agent registered last.
    pub(super) registered_at: parking_lot::Mutex<Option<Instant>>,
    /// Calls of the kubelet that are not answered yet.
    pub(super) calls: watch::Sender<usize>,
    /// The socket at which the plugin was reached last.
    socket: parking_lot::Mutex<Option<FileId>>,
}

/// A call of the kubelet, until it is answered.
pub(super) struct Call<'p>(&'p Plugin);

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.calls.send_modify(|calls| *calls -= 1);
    }
}

impl Plugin {
    pub(super) fn new(shared: Arc<Shared>, directory: Directory, announcement: Announcement) -> Plugin {
        Plugin {
            shared,
            directory,
            resource: Resource(announcement.request.resource_name.as_str().into()),
            announced: watch::Sender::new(announcement),
            client: watch::Sender::new(None),
            devices: watch::Sender::new(None),
            register_again: Notify::new(),
            asked: parking_lot::Mutex::new(None),
            overtaken: watch::Sender::new(0),
            bypassed: AtomicBool::new(false),
            allocated: parking_lot::Mutex::default(),
            registered_at: parking_lot::Mutex::default(),
            calls: watch::Sender::new(0),
            socket: parking_lot::Mutex::default(),
        }
    }

    /// Notes that a call of the kubelet has arrived.
    pub(super) fn called(&self) -> Call<'_> {
        self.calls.send_modify(|calls| *calls += 1);
        Call(self)
    }

    /// Whether the plugin is connected by another socket than this one, which was made since.
    pub(super) fn is_connected_by_another(&self, socket: FileId) -> bool {
        self.client.borrow().is_some() && *self.socket.lock() != Some(socket)
    }

    /// Whether the plugin is connected by this socket.
    pub(super) fn is_connected_by(&self, socket: FileId) -> bool {
        self.client.borrow().is_some() && *self.socket.lock() == Some(socket)
    }

    /// Waits until the plugin is connected.
    pub(super) async fn connected(&self) {
        _ = self.client.subscribe().wait_for(Option::is_some).await;
    }

    /// The plugin's own options.
    pub(super) fn options(&self) -> DevicePluginOptions {
        self.announced.borrow().request.options.unwrap_or_default()
    }

    /// Follows the plugin's devices, and connects again after it has gone.
    pub(super) async fn follow(&self) {
        let mut announced = self.announced.subscribe();
        let mut away_since = Instant::now();
        loop {
            let announcement = announced.borrow_and_update().clone();
            match self.connect(&announcement).await {
                Ok((client, list)) => {
                    tracing::info!(resource = %self.resource, "the device plugin is connected");
                    let why = tokio::select! {
                        why = self.pump(client, list) => why,
                        _ = announced.changed() => "it registered again".to_owned(),
                    };
                    self.disconnected(&why);
                    away_since = Instant::now();
                }
                Err(error) => {
                    tracing::debug!(resource = %self.resource, "the device plugin does not answer: {}", error.message());
                    if away_since.elapsed() >= self.shared.config.hold {
                        self.stays_away();
                    }
                    let left = self.shared.config.hold.saturating_sub(away_since.elapsed());
                    let pause = if left.is_zero() { RETRY * 5 } else { RETRY.min(left) };
                    _ = tokio::time::timeout(pause, announced.changed()).await;
                }
            }
        }
    }

    async fn connect(&self, announcement: &Announcement) -> Result<(DevicePluginClient, Streaming<Bytes>), Status> {
        *self.socket.lock() = self.directory.id_of(&announcement.request.endpoint);
        let client = DevicePluginClient::new(self.directory.socket(&announcement.request.endpoint));
        let list = client.list_and_watch().await?;
        Ok((client, list))
    }

    /// Passes the plugin's lists on until the stream ends. Returns why it ended.
    async fn pump(&self, client: DevicePluginClient, mut list: Streaming<Bytes>) -> String {
        loop {
            match list.next().await {
                Some(Ok(devices)) => {
                    // The kubelet must not see a plugin before its list.
                    self.devices.send_replace(Some(devices));
                    if self.client.borrow().is_none() {
                        self.client.send_replace(Some(client.clone()));
                        self.shared.update_health(&self.resource.0, |health| health.plugin_connected = true);
                    }
                }
                Some(Err(error)) => return error.message().to_owned(),
                None => return "it ended the list of its devices".to_owned(),
            }
        }
    }

    fn disconnected(&self, why: &str) {
        tracing::info!(resource = %self.resource, "the device plugin is gone: {why}");
        self.client.send_replace(None);
        self.shared.update_health(&self.resource.0, |health| health.plugin_connected = false);
        // Where the plugin registers when it is back is seen only then.
        self.may_be_newest();
    }

    /// Takes the devices from the kubelet after the hold.
    fn stays_away(&self) {
        if !self.is_found() {
            return self.tell_unhealthy();
        }
        // The agent may be the one that is cut off. Without a list, its registration ends.
        if self.devices.send_replace(None).is_some() {
            tracing::warn!(resource = %self.resource, "the device plugin stays away; the kubelet now decides without the agent");
        }
    }

    /// Tells the kubelet that no device is healthy, as it would conclude itself from the end of the plugin.
    fn tell_unhealthy(&self) {
        self.devices.send_if_modified(|devices| {
            let Some(list) = devices.as_ref().and_then(|list| ListAndWatchResponse::decode(list.clone()).ok()) else {
                return false;
            };
            let unhealthy = unhealthy(list.clone());
            if unhealthy == list {
                return false;
            }
            tracing::warn!(resource = %self.resource, "the device plugin stays away; its devices are unhealthy");
            *devices = Some(unhealthy.encode_to_vec().into());
            true
        });
    }

    /// Calls the plugin. If it is away or its connection breaks, the call waits for its return within the hold.
    pub(super) async fn call<F>(&self, call: impl Fn(DevicePluginClient) -> F) -> Result<Bytes, Status>
    where
        F: Future<Output = Result<Bytes, Status>>,
    {
        let until = Instant::now() + self.shared.config.hold;
        loop {
            let mut client = self.client.subscribe();
            let connected = tokio::time::timeout_at(until, client.wait_for(Option::is_some)).await;
            let Ok(Ok(Some(client))) = connected.map(|client| client.map(|client| client.clone())) else {
                return Err(Status::unavailable("the device plugin is not running"));
            };
            match call(client).await {
                // The plugin may have ended during the call, which the stream of its devices shows a moment later.
                Err(error) if is_broken(&error) && Instant::now() < until => tokio::time::sleep(REPEAT).await,
                answer => return answer,
            }
        }
    }

    /// The client, if the plugin is connected.
    pub(super) fn client(&self) -> Option<DevicePluginClient> {
        self.client.borrow().clone()
    }
}

/// Whether an error may mean that the connection broke. grpc-go answers calls of a server that stops with `Unavailable`.
fn is_broken(error: &Status) -> bool {
    let has_cause = std::error::Error::source(error).is_some();
    match error.code() {
        Code::Unavailable => true,
        Code::Unknown | Code::Cancelled | Code::Internal => has_cause,
        _ => false,
    }
}

fn unhealthy(mut list: ListAndWatchResponse) -> ListAndWatchResponse {
    for device in &mut list.devices {
        "Unhealthy".clone_into(&mut device.health);
    }
    list
}
