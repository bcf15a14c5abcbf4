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
use super::{AtStop, Shared, is_known, registration, takeover};
use crate::agent::kubelet::device_plugin::DevicePluginClient;
use crate::agent::kubelet::messages::{DevicePluginOptions, RegisterRequest};
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
/// How long a plugin that registered with the agent may take to do so again after it has started again. Then it counts as
/// one that registers with the kubelet.
const REGISTERS_AGAIN: Duration = Duration::from_secs(2);
/// File in which the kubelet records the devices that it has allocated.
const CHECKPOINT: &str = "kubelet_internal_checkpoint";
/// Time limit for a plugin that was found to tell its options.
const OPTIONS: Duration = Duration::from_secs(1);

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
    /// The plugin's socket when it registered with the agent, or was found.
    socket: Option<FileId>,
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
    /// Sockets of plugins that have not registered with the agent since they were made, by file name.
    unregistered: BTreeMap<String, (FileId, Instant)>,
    /// The kubelet's record of devices at the last look.
    records: Option<FileId>,
    missing_since: Option<Instant>,
    /// The time when the agent started, in milliseconds, plus the number of plugins that were started since.
    next_start: i64,
}

/// Serves device plugins until told to stop, or until another agent takes over.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken) -> io::Result<Ended> {
    let directory = Directory::new(&shared.config.kubelet);
    directory.sweep().await;
    let (mut listener, socket) = directory.bind_registry()?;
    let mut stored = directory.stored_plugins();
    let known = stored.len();
    // Another socket is of a plugin that has started since, and that may have registered with the kubelet.
    stored.retain(|(request, socket)| socket.is_some() && directory.id_of(&request.endpoint) == *socket);
    // One that waits for the agent's socket registers when the link is made.
    if stored.is_empty() || stored.len() < known || !directory.has_link() {
        directory.make_link()?;
    }
    let mut front = Front {
        shared,
        directory,
        socket,
        plugins: BTreeMap::new(),
        unregistered: BTreeMap::new(),
        records: None,
        missing_since: None,
        next_start: Timestamp::now().as_millisecond(),
    };
    stored.into_iter().for_each(|(request, _)| front.announce(request, Source::Registered));

    let mut kubelet_version = front.shared.inputs.kubelet_version.clone();
    kubelet_version.mark_changed();
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
            Ok(()) = kubelet_version.changed() => front.follow_version().await,
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
        let socket = self.directory.id_of(&request.endpoint);
        self.unregistered.remove(&request.endpoint);
        if let Some(running) = self.plugins.get_mut(&resource) {
            running.socket = socket;
            let other_source = running.plugin.announced.borrow().source != source;
            let other_options = running.plugin.options().pre_start_required
                != request.options.is_some_and(|options| options.pre_start_required);
            running.plugin.announced.send_modify(|last| {
                *last = Announcement { request, source, number: last.number + 1 };
            });
            if other_options || (other_source && source == Source::Found) {
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
        // Two plugins may start within the same millisecond, and one may start again after it was removed.
        let start = self.next_start;
        self.next_start += 1;
        registration.spawn(registration::keep(plugin.clone(), start, stop.clone()));
        self.plugins.insert(resource, Running { plugin, socket, follow, registration, stop });
    }

    /// Stores the plugins that registered, for the next start of the agent.
    fn store(&self) {
        let registered = self.plugins.values().filter(|running| !running.plugin.is_found());
        let registered: Vec<(RegisterRequest, Option<FileId>)> =
            registered.map(|running| (running.plugin.announced.borrow().request.clone(), running.socket)).collect();
        if let Err(error) = self.directory.store_plugins(&registered) {
            tracing::warn!("device plugins cannot be stored: {error}; they restart when the agent restarts");
        }
    }

    async fn look(&mut self) -> io::Result<Look> {
        if self.shared.kubelet().may_keep_both() {
            for running in self.plugins.values().filter(|running| !running.plugin.is_found()) {
                let endpoint = running.plugin.announced.borrow().request.endpoint.clone();
                running.plugin.look_at_socket(running.socket, self.directory.id_of(&endpoint));
            }
            if self.shared.may_take_over() {
                self.find().await;
            }
            let (records, now) = (&mut self.records, self.directory.id_of(CHECKPOINT));
            let plugins = self.plugins.values().map(|running| &*running.plugin);
            takeover::look_at_records(&self.shared, plugins, (records, now)).await;
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

    /// Announces plugins of NVIDIA that register with the kubelet.
    async fn find(&mut self) {
        for (resource, endpoint, socket) in self.directory.nvidia_sockets() {
            if let Some(running) = self.plugins.get(&resource)
                && !running.is_news(&mut self.unregistered, &endpoint, socket)
            {
                continue;
            }
            let client = DevicePluginClient::new(self.directory.socket(&endpoint));
            let Ok(Ok(options)) = tokio::time::timeout(OPTIONS, client.options()).await else { continue };
            tracing::info!(resource, endpoint, "found a device plugin");
            let request = found(resource, endpoint, options);
            self.announce(request, Source::Found);
        }
    }

    /// Takes the version of the kubelet into account. One that is too old after all gets its device plugins back: the end of
    /// the agent would drop them for good.
    async fn follow_version(&mut self) {
        let takeover = self.shared.takeover();
        self.shared
            .outputs
            .health
            .send_if_modified(|health| std::mem::replace(&mut health.takeover, takeover) != takeover);
        if self.shared.may_take_over() {
            // The next look is later than it has to be.
            return self.find().await;
        }
        if !self.shared.kubelet().may_keep_both() {
            let registered = self.plugins.values().filter(|running| !running.plugin.is_found());
            registered.for_each(|running| running.plugin.is_the_only_one());
        }
        let is_found = |running: &Running| running.plugin.is_found();
        let found: Vec<String> = self
            .plugins
            .iter()
            .filter(|(_, running)| is_found(running))
            .map(|(resource, _)| resource.clone())
            .collect();
        for resource in found {
            let Some(running) = self.plugins.remove(&resource) else { continue };
            tracing::warn!(
                resource,
                "the kubelet is too old for a takeover; the device plugin gets its registration back"
            );
            running.end(true).await;
            self.shared.outputs.health.send_modify(|health| _ = health.resources.remove(&resource));
        }
    }

    /// Ends all registrations, and hands the plugins back to the kubelet if so configured.
    async fn end(self) {
        let mut ending = JoinSet::new();
        for running in self.plugins.into_values() {
            // A kubelet that was taken over has the plugin's own registration still.
            let hand_back = self.shared.config.at_stop == AtStop::HandBack && !running.plugin.is_found();
            ending.spawn(running.end(hand_back));
        }
        while ending.join_next().await.is_some() {}
    }
}

impl Running {
    /// Whether a socket shows something new of the plugin. `unregistered` remembers sockets without a registration.
    fn is_news(&self, unregistered: &mut BTreeMap<String, (FileId, Instant)>, endpoint: &str, socket: FileId) -> bool {
        let plugin = &self.plugin;
        let announced = plugin.announced.borrow().clone();
        match announced.source {
            Source::Found => plugin.is_connected_by_another(socket),
            Source::Registered if announced.request.endpoint != endpoint => false,
            Source::Registered if self.socket == Some(socket) => false,
            Source::Registered => {
                let seen = unregistered.entry(endpoint.to_owned()).or_insert((socket, Instant::now()));
                if seen.0 != socket {
                    *seen = (socket, Instant::now());
                }
                seen.1.elapsed() >= REGISTERS_AGAIN
            }
        }
    }

    /// Ends the registration, and hands the plugin back to the kubelet.
    async fn end(mut self, hand_back: bool) {
        self.stop.cancel();
        while self.registration.join_next().await.is_some() {}
        if hand_back {
            registration::hand_back(&self.plugin).await;
        }
        self.follow.shutdown().await;
    }
}

/// The registration that a plugin made with the kubelet.
fn found(resource: String, endpoint: String, options: DevicePluginOptions) -> RegisterRequest {
    RegisterRequest {
        version: registry::API_VERSION.to_owned(),
        endpoint,
        resource_name: resource,
        options: Some(options),
    }
}
