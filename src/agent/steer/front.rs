//! Where device plugins register with the agent, or are found. Owns the agent's own socket and the set of plugins.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::directory::{Directory, FileId, Link};
use super::plugin::{Announcement, Plugin, Source};
use super::{AtStop, SecondPlugin, Shared, is_known, registration};
use crate::agent::kubelet::messages::RegisterRequest;
use crate::agent::kubelet::registry;

/// Time between two looks at the link, and at the sockets of plugins.
const LOOK: Duration = Duration::from_millis(500);
/// How long the link may be missing before it is made without a registration at the kubelet.
///
/// A kubelet that starts removes the link. Making it restarts the device plugin, which takes a while, so the agent first
/// registers over its connection to the plugin.
const LINK_LAST: Duration = Duration::from_secs(3);
/// The largest number of connections at the agent's socket, and of device plugins.
const MAX_CONNECTIONS: usize = 16;

/// Why steering ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop.
    Stopped,
    /// Another agent has taken over on this node. This one must not tell the kubelet anything more.
    Replaced,
}

/// A plugin with its tasks, which end when it is dropped.
struct Running {
    plugin: Arc<Plugin>,
    follow: JoinSet<()>,
    registration: JoinSet<()>,
    stop: CancellationToken,
}

struct Front {
    shared: Arc<Shared>,
    directory: Directory,
    socket: FileId,
    /// The plugins by resource.
    plugins: BTreeMap<String, Running>,
    /// Sockets of plugins that were announced because they were found, by file name.
    found: BTreeMap<String, FileId>,
    missing_since: Option<Instant>,
    start: i64,
}

/// Serves device plugins until told to stop, or until another agent takes over.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken) -> io::Result<Ended> {
    let directory = Directory::new(&shared.config.kubelet);
    directory.sweep();
    let (mut listener, socket) = directory.bind_registry()?;
    let stored = directory.stored_plugins();
    if stored.is_empty() || !directory.has_link() {
        directory.make_link()?;
    }
    let mut front = Front {
        shared,
        directory,
        socket,
        plugins: BTreeMap::new(),
        found: BTreeMap::new(),
        missing_since: None,
        start: Timestamp::now().as_millisecond(),
    };
    stored.into_iter().for_each(|request| front.announce(request, Source::Registered));

    let (announce, mut announcements) = mpsc::channel(MAX_CONNECTIONS);
    let mut connections = JoinSet::new();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((connection, _)) if connections.len() < MAX_CONNECTIONS => {
                    connections.spawn(serve(connection, announce.clone()));
                }
                Ok(_) => tracing::warn!("too many connections at {}", crate::keys::REGISTRY_SOCKET),
                Err(error) => {
                    tracing::warn!("cannot accept a device plugin: {error}");
                    tokio::time::sleep(LOOK).await; // without file descriptors the next attempt fails at once
                }
            },
            Some(request) = announcements.recv() => {
                front.announce(request, Source::Registered);
                front.store();
            }
            Some(_) = connections.join_next() => {}
            _ = look.tick() => match front.look().await? {
                Look::Fine => {}
                Look::Rebound(bound) => listener = bound,
                Look::Replaced => return Ok(Ended::Replaced),
            },
            () = stop.cancelled() => break,
        }
    }
    front.end().await;
    Ok(Ended::Stopped)
}

/// Serves one connection at the agent's socket.
async fn serve(connection: UnixStream, announce: mpsc::Sender<RegisterRequest>) {
    let register = |request: RegisterRequest| {
        tracing::info!(resource = request.resource_name, endpoint = request.endpoint, "a device plugin registers");
        announce.try_send(request).map_err(|_| "too many registrations at once".to_owned())
    };
    if let Err(error) = registry::serve(connection, register).await {
        // A client that has its answer closes the connection at once, and may not read what follows.
        tracing::debug!("a connection of a device plugin ended: {error}");
    }
}

/// What a look at the agent's files found.
enum Look {
    Fine,
    Rebound(UnixListener),
    Replaced,
}

impl Front {
    /// Starts a plugin, or tells the running one that it was announced again.
    fn announce(&mut self, request: RegisterRequest, source: Source) {
        let resource = request.resource_name.clone();
        if let Some(running) = self.plugins.get(&resource) {
            let other_options = running.plugin.options().pre_start_required
                != request.options.is_some_and(|options| options.pre_start_required);
            running.plugin.announced.send_modify(|last| {
                *last = Announcement { request, source, number: last.number + 1 };
            });
            if other_options {
                running.plugin.register_again.notify_one();
            }
            return;
        }
        if self.plugins.len() >= MAX_CONNECTIONS {
            tracing::error!(resource, "too many device plugins; this one is passed over");
            return;
        }
        let node = self.shared.inputs.node.borrow().clone();
        self.shared.update_health(&resource, |health| health.known = is_known(&node, &resource));
        let announcement = Announcement { request, source, number: 0 };
        let plugin = Arc::new(Plugin::new(self.shared.clone(), self.directory.clone(), announcement));
        let (stop, mut follow, mut registration) = (CancellationToken::new(), JoinSet::new(), JoinSet::new());
        let following = plugin.clone();
        follow.spawn(async move { following.follow().await });
        follow.spawn(registration::stay_newest(plugin.clone()));
        // Two plugins may start within the same millisecond.
        let start = self.start + i64::try_from(self.plugins.len()).unwrap_or_default();
        registration.spawn(registration::keep(plugin.clone(), start, stop.clone()));
        self.plugins.insert(resource, Running { plugin, follow, registration, stop });
    }

    /// Stores the plugins that registered, for the next start of the agent.
    fn store(&self) {
        let announced = self.plugins.values().map(|running| running.plugin.announced.borrow().clone());
        let registered: Vec<Announcement> =
            announced.filter(|announcement| announcement.source == Source::Registered).collect();
        if let Err(error) = self.directory.store_plugins(registered.iter().map(|announcement| &announcement.request)) {
            tracing::warn!("device plugins cannot be stored: {error}; they restart when the agent restarts");
        }
    }

    async fn look(&mut self) -> io::Result<Look> {
        if self.shared.config.second_plugin == SecondPlugin::Stacks {
            self.find().await;
        }
        match self.directory.look_at_link(self.socket) {
            Link::Ours => self.missing_since = None,
            Link::Others => return Ok(Look::Replaced),
            Link::Missing => {
                let since = *self.missing_since.get_or_insert_with(Instant::now);
                if !self.is_registered() && since.elapsed() < LINK_LAST {
                    return Ok(Look::Fine);
                }
                let (listener, socket) = self.directory.bind_registry()?;
                self.socket = socket;
                self.directory.make_link()?;
                return Ok(Look::Rebound(listener));
            }
        }
        Ok(Look::Fine)
    }

    fn is_registered(&self) -> bool {
        self.shared.outputs.health.borrow().resources.values().all(|health| health.registered)
    }

    /// Announces plugins of NVIDIA that are not configured to register with the agent.
    async fn find(&mut self) {
        for (resource, endpoint, socket) in self.directory.nvidia_sockets() {
            let registers = |running: &Running| running.plugin.announced.borrow().source == Source::Registered;
            if self.plugins.get(&resource).is_some_and(registers) || self.found.get(&endpoint) == Some(&socket) {
                continue;
            }
            let client =
                crate::agent::kubelet::device_plugin::DevicePluginClient::new(self.directory.socket(&endpoint));
            let Ok(options) = client.options().await else { continue };
            tracing::info!(resource, endpoint, "found a device plugin");
            self.found.insert(endpoint.clone(), socket);
            let request = RegisterRequest {
                version: registry::API_VERSION.to_owned(),
                endpoint,
                resource_name: resource,
                options: Some(options),
            };
            self.announce(request, Source::Found);
        }
    }

    /// Ends all registrations, and hands the plugins back to the kubelet if so configured.
    async fn end(self) {
        let mut ending = JoinSet::new();
        for mut running in self.plugins.into_values() {
            running.stop.cancel();
            let hand_back = self.shared.config.at_stop == AtStop::HandBack;
            ending.spawn(async move {
                while running.registration.join_next().await.is_some() {}
                if hand_back && running.plugin.announced.borrow().source == Source::Registered {
                    registration::hand_back(&running.plugin).await;
                }
                running.follow.shutdown().await;
            });
        }
        while ending.join_next().await.is_some() {}
    }
}
