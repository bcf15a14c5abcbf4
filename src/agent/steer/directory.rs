//! The agent's files next to the kubelet's sockets. Owns their names and life.
//!
//! ```text
//! device-plugins/
//!   kubelet.sock                the kubelet's
//!   nvidia-gpu.sock             the device plugin's
//!   vramguard.sock              link to vramguard/registry.sock; the device plugin's KUBELET_SOCKET
//!   vramguard-<start>-<n>.sock  socket that registration <n> tells the kubelet
//!   vramguard/                  the kubelet leaves directories alone
//!     registry.sock             where the device plugin registers
//!     plugins.json              the device plugins that registered
//! ```
//!
//! A device plugin restarts as a whole when `vramguard.sock` is created. So an agent that starts again keeps the link,
//! and the plugin notices nothing. A kubelet that starts removes the link, and then the plugin must restart anyway.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::agent::kubelet::KubeletDirectory;
use crate::agent::kubelet::messages::{DevicePluginOptions, RegisterRequest};
use crate::agent::kubelet::registry::API_VERSION;
use crate::keys;

/// Prefix of the sockets that are told the kubelet.
const ENDPOINT_OF: &str = "vramguard-";
/// Target of the link, relative to it. The device plugin may see the directory under another path.
const LINK_TARGET: &str = "vramguard/registry.sock";
/// Time limit for a connection that shows whether a process listens at a socket.
const CONNECT: Duration = Duration::from_millis(200);

/// The agent's files.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    plugins: PathBuf,
    /// Sockets of this process that the kubelet was told, by file name.
    own: Arc<Mutex<BTreeSet<String>>>,
}

/// Identity of a file. The number of an inode alone is soon used again; a socket's time of modification never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
    modified: (i64, i64),
}

/// Where `vramguard.sock` leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// To the socket that this process bound.
    Ours,
    /// Nowhere: the link or the socket was removed, as a kubelet does at its start.
    Missing,
    /// To the socket of another process: another agent has taken over.
    Others,
}

/// The registration of a device plugin, as it is stored.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredPlugin {
    resource: String,
    endpoint: String,
    pre_start_required: bool,
    preferred_allocation: bool,
    /// The plugin's socket when it registered. A plugin that has started again since has another one.
    #[serde(default)]
    socket: Option<FileId>,
}

impl Directory {
    pub(super) fn new(kubelet: &KubeletDirectory) -> Directory {
        Directory { plugins: kubelet.device_plugins(), own: Arc::default() }
    }

    fn folder(&self) -> PathBuf {
        self.plugins.join("vramguard")
    }

    fn registry_socket(&self) -> PathBuf {
        self.plugins.join(LINK_TARGET)
    }

    fn link(&self) -> PathBuf {
        self.plugins.join(keys::REGISTRY_SOCKET)
    }

    fn store(&self) -> PathBuf {
        self.folder().join("plugins.json")
    }

    /// Path of a socket in the directory, by its file name.
    pub(super) fn socket(&self, endpoint: &str) -> PathBuf {
        self.plugins.join(endpoint)
    }

    /// Binds the registry's socket. It gets its name only when it listens, because a client may connect at once.
    pub(super) fn bind_registry(&self) -> io::Result<(UnixListener, FileId)> {
        std::fs::create_dir_all(self.folder())?;
        let unnamed = self.folder().join("registry.new");
        remove_if_exists(&unnamed)?;
        let listener = UnixListener::bind(&unnamed)?;
        std::fs::rename(&unnamed, self.registry_socket())?;
        Ok((listener, file_id(&self.registry_socket())?))
    }

    /// Where the link leads, seen by a process that bound the socket `ours`.
    pub(super) fn look_at_link(&self, ours: FileId) -> Link {
        match (std::fs::read_link(self.link()), file_id(&self.link())) {
            (Ok(target), Ok(found)) if target == Path::new(LINK_TARGET) && found == ours => Link::Ours,
            (_, Ok(_)) => Link::Others,
            (_, Err(_)) => Link::Missing,
        }
    }

    /// Whether the link exists and leads to the registry's socket, whoever bound that.
    pub(super) fn has_link(&self) -> bool {
        std::fs::read_link(self.link()).is_ok_and(|target| target == Path::new(LINK_TARGET))
    }

    /// Makes the link. A device plugin that waits for it then registers, and one that runs restarts and registers.
    pub(super) fn make_link(&self) -> io::Result<()> {
        std::fs::create_dir_all(self.folder())?;
        let unnamed = self.folder().join("link.new");
        remove_if_exists(&unnamed)?;
        std::os::unix::fs::symlink(LINK_TARGET, &unnamed)?;
        std::fs::rename(unnamed, self.link())
    }

    /// Binds a socket for the kubelet, under a name that no registration had before.
    ///
    /// Kubelet 1.37 refuses a name for which it still has a connection, and then forever.
    pub(super) fn bind_endpoint(&self, start: i64, number: u64) -> io::Result<(UnixListener, String)> {
        let endpoint = format!("{ENDPOINT_OF}{start:x}-{number}.sock");
        self.own.lock().insert(endpoint.clone());
        Ok((UnixListener::bind(self.socket(&endpoint))?, endpoint))
    }

    /// Removes a socket that the kubelet was told.
    pub(super) fn remove_endpoint(&self, endpoint: &str) {
        if let Err(error) = remove_if_exists(&self.socket(endpoint)) {
            tracing::warn!(endpoint, "the socket cannot be removed: {error}");
        }
        self.own.lock().remove(endpoint);
    }

    /// Whether another process listens at a socket that a kubelet was told by an agent.
    pub(super) async fn has_other_endpoints(&self) -> bool {
        let own = self.own.lock().clone();
        for name in self.endpoints().iter().filter(|name| !own.contains(*name)) {
            if self.is_listening(name).await {
                return true;
            }
        }
        false
    }

    /// The sockets that agents told the kubelet, by file name.
    fn endpoints(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.plugins).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with(ENDPOINT_OF) && name.ends_with(".sock")).collect()
    }

    async fn is_listening(&self, endpoint: &str) -> bool {
        match timeout(CONNECT, UnixStream::connect(self.socket(endpoint))).await {
            Ok(Ok(_)) => true,
            // Whoever listens there has not accepted the connections before this one.
            Ok(Err(error)) => error.kind() == io::ErrorKind::WouldBlock,
            Err(_) => true,
        }
    }

    /// Identity of a file in the directory; `None` if it does not exist.
    pub(super) fn id_of(&self, name: &str) -> Option<FileId> {
        file_id(&self.socket(name)).ok()
    }

    /// Removes the sockets that earlier processes told the kubelet, if nobody listens there any more.
    pub(super) async fn sweep(&self) {
        for name in self.endpoints() {
            if !self.is_listening(&name).await {
                self.remove_endpoint(&name);
            }
        }
    }

    /// The device plugins that registered with an earlier process, each with the identity of its socket then.
    pub(super) fn stored_plugins(&self) -> Vec<(RegisterRequest, Option<FileId>)> {
        let Ok(text) = std::fs::read(self.store()) else { return Vec::new() };
        let stored: Vec<StoredPlugin> = serde_json::from_slice(&text).unwrap_or_else(|error| {
            tracing::warn!("{}: {error}; device plugins have to register again", self.store().display());
            Vec::new()
        });
        let request = |plugin: StoredPlugin| {
            let request = RegisterRequest {
                version: API_VERSION.to_owned(),
                endpoint: plugin.endpoint,
                resource_name: plugin.resource,
                options: Some(DevicePluginOptions {
                    pre_start_required: plugin.pre_start_required,
                    get_preferred_allocation_available: plugin.preferred_allocation,
                }),
            };
            (request, plugin.socket)
        };
        stored.into_iter().map(request).collect()
    }

    /// Stores the device plugins that registered.
    pub(super) fn store_plugins(&self, plugins: &[(RegisterRequest, Option<FileId>)]) -> io::Result<()> {
        let stored = |(plugin, socket): &(RegisterRequest, Option<FileId>)| StoredPlugin {
            socket: *socket,
            resource: plugin.resource_name.clone(),
            endpoint: plugin.endpoint.clone(),
            pre_start_required: plugin.options.is_some_and(|options| options.pre_start_required),
            preferred_allocation: plugin.options.is_some_and(|options| options.get_preferred_allocation_available),
        };
        let stored: Vec<StoredPlugin> = plugins.iter().map(stored).collect();
        let unnamed = self.folder().join("plugins.new");
        std::fs::create_dir_all(self.folder())?;
        std::fs::write(&unnamed, serde_json::to_vec(&stored)?)?;
        std::fs::rename(unnamed, self.store())
    }

    /// The sockets of NVIDIA's device plugin that exist, each with its resource and the identity of the file.
    pub(super) fn nvidia_sockets(&self) -> Vec<(String, String, FileId)> {
        let Ok(entries) = std::fs::read_dir(&self.plugins) else { return Vec::new() };
        let socket = |path: PathBuf| {
            let endpoint = path.file_name()?.to_str()?.to_owned();
            let name = endpoint.strip_prefix(keys::NVIDIA_SOCKET_OF)?.strip_suffix(".sock")?;
            Some((format!("{}{name}", keys::NVIDIA), endpoint.clone(), file_id(&path).ok()?))
        };
        entries.flatten().filter_map(|entry| socket(entry.path())).collect()
    }
}

fn remove_if_exists(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn file_id(path: &Path) -> io::Result<FileId> {
    let file = std::fs::metadata(path)?;
    Ok(FileId { device: file.dev(), inode: file.ino(), modified: (file.mtime(), file.mtime_nsec()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(folder: &tempfile::TempDir) -> Directory {
        std::fs::create_dir_all(folder.path().join("device-plugins")).unwrap();
        Directory::new(&KubeletDirectory::new(folder.path()))
    }

    #[tokio::test]
    async fn the_link_tells_whose_socket_it_leads_to() {
        let folder = tempfile::tempdir().unwrap();
        let directory = directory(&folder);
        let (_first, first) = directory.bind_registry().unwrap();
        assert_eq!(directory.look_at_link(first), Link::Missing);
        directory.make_link().unwrap();
        assert_eq!(directory.look_at_link(first), Link::Ours);

        // Another agent starts, and keeps the link.
        let (_second, second) = directory.bind_registry().unwrap();
        assert_eq!((directory.look_at_link(first), directory.look_at_link(second)), (Link::Others, Link::Ours));

        // A kubelet that starts removes everything but directories.
        std::fs::remove_file(folder.path().join("device-plugins/vramguard.sock")).unwrap();
        assert_eq!(directory.look_at_link(second), Link::Missing);
        directory.make_link().unwrap();
        assert_eq!(directory.look_at_link(second), Link::Ours);
    }

    #[tokio::test]
    async fn plugins_are_stored_as_they_registered() {
        let folder = tempfile::tempdir().unwrap();
        let directory = directory(&folder);
        assert!(directory.stored_plugins().is_empty());
        let options = DevicePluginOptions { pre_start_required: true, get_preferred_allocation_available: false };
        let plugin = RegisterRequest {
            version: "v1beta1".into(),
            endpoint: "nvidia-gpu.sock".into(),
            resource_name: "nvidia.com/gpu".into(),
            options: Some(options),
        };
        let _socket = UnixListener::bind(directory.socket("nvidia-gpu.sock")).unwrap();
        let id = directory.id_of("nvidia-gpu.sock");
        assert!(id.is_some());
        directory.store_plugins(&[(plugin.clone(), id)]).unwrap();
        assert_eq!(directory.stored_plugins(), [(plugin, id)]);
        let older = r#"[{"resource":"nvidia.com/gpu","endpoint":"nvidia-gpu.sock","preStartRequired":false,
            "preferredAllocation":true}]"#;
        std::fs::write(folder.path().join("device-plugins/vramguard/plugins.json"), older).unwrap();
        assert_eq!(directory.stored_plugins()[0].1, None, "an older agent stored it");
        std::fs::write(folder.path().join("device-plugins/vramguard/plugins.json"), "{").unwrap();
        assert!(directory.stored_plugins().is_empty());
    }

    #[tokio::test]
    async fn only_sockets_without_a_listener_are_swept() {
        let folder = tempfile::tempdir().unwrap();
        let directory = directory(&folder);
        let (live, live_name) = directory.bind_endpoint(1, 1).unwrap();
        let (dead, dead_name) = directory.bind_endpoint(1, 2).unwrap();
        drop(dead);
        directory.sweep().await;
        assert!(directory.socket(&live_name).exists());
        assert!(!directory.socket(&dead_name).exists());
        assert!(!directory.has_other_endpoints().await, "this process listens there");
        let another = Directory { own: Arc::default(), ..directory };
        assert!(another.has_other_endpoints().await);
        drop(live);
        assert!(!another.has_other_endpoints().await);
    }

    #[tokio::test]
    async fn a_process_that_accepts_no_connection_listens_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let directory = directory(&folder);
        let socket = tokio::net::UnixSocket::new_stream().unwrap();
        socket.bind(directory.socket("vramguard-1-1.sock")).unwrap();
        let _busy = socket.listen(0).unwrap();
        let mut waiting = Vec::new();
        while let Ok(Ok(connection)) =
            timeout(CONNECT, UnixStream::connect(directory.socket("vramguard-1-1.sock"))).await
        {
            waiting.push(connection);
            assert!(waiting.len() < 100, "its queue is never full");
        }
        assert!(directory.has_other_endpoints().await);
        directory.sweep().await;
        assert!(directory.socket("vramguard-1-1.sock").exists());
    }

    #[tokio::test]
    async fn a_socket_that_was_made_anew_is_another_file_even_with_the_same_inode() {
        let folder = tempfile::tempdir().unwrap();
        let directory = directory(&folder);
        let socket = directory.socket("nvidia-gpu.sock");
        let mut ids = Vec::new();
        for _ in 0..5 {
            remove_if_exists(&socket).unwrap();
            drop(UnixListener::bind(&socket).unwrap());
            ids.push(file_id(&socket).unwrap());
            std::thread::sleep(std::time::Duration::from_millis(20)); // the clock of a file system is coarse
        }
        for (place, id) in ids.iter().enumerate() {
            assert!(!ids[..place].contains(id), "{ids:?}");
        }
    }

    #[tokio::test]
    async fn a_socket_of_nvidias_plugin_tells_its_resource() {
        let folder = tempfile::tempdir().unwrap();
        let directory = directory(&folder);
        let _plugin = UnixListener::bind(directory.socket("nvidia-mig-1g.5gb.sock")).unwrap();
        let _kubelet = UnixListener::bind(directory.socket("kubelet.sock")).unwrap();
        let found = directory.nvidia_sockets();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].0.as_str(), found[0].1.as_str()), ("nvidia.com/mig-1g.5gb", "nvidia-mig-1g.5gb.sock"));
    }
}
