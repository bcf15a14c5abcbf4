//! Owns what a real node uses of the host outside its folder and namespaces: a cgroup, a bridge, and the programs.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::assets;
use super::process::run;
use super::wait::Patience;

/// Cgroup of the pods, so that they are not in the host's own `kubepods`.
pub(super) const CGROUP: &str = "vramguard-test";

/// Bridge of the pod network. Its subnet is reserved for tests and is not routed.
pub(super) const BRIDGE: &str = "vramguard0";
pub(super) const NODE_ADDRESS: &str = "198.18.213.1";
pub(super) const SUBNET: &str = "198.18.213.0/24";

const PATIENCE: Duration = Duration::from_secs(10);

/// Paths of the programs of a node.
pub(super) struct Programs {
    pub kubelet: PathBuf,
    pub device_plugin: PathBuf,
    pub busybox: PathBuf,
    pub network_plugins: PathBuf,
}

impl Programs {
    /// Finds the programs.
    ///
    /// # Errors
    /// If this host cannot run a real node.
    pub(super) fn find() -> Result<Self, String> {
        if !cfg!(target_os = "linux") {
            return Err("a kubelet needs Linux".to_owned());
        }
        if fs::metadata("/proc/self").map_err(|e| format!("/proc: {e}"))?.uid() != 0 {
            return Err("a kubelet needs root".to_owned());
        }
        for name in ["containerd", "ctr", "runc", "unshare", "nsenter", "mount", "ip", "tar", "sha256sum"] {
            if !on_path(name) {
                return Err(format!("{name} is not installed (tests/controlplane/packages installs it on Debian)"));
            }
        }
        let first = |what: &str, candidates: &[&str]| {
            let found = candidates.iter().map(PathBuf::from).find(|path| path.exists());
            found.ok_or_else(|| format!("{what} is not installed: none of {}", candidates.join(", ")))
        };
        let mut namespaces = Command::new("unshare");
        namespaces.args(["--mount", "--pid", "--fork", "--mount-proc", "true"]).stderr(Stdio::null());
        if !namespaces.status().is_ok_and(|status| status.success()) {
            return Err("this host allows no mount and process namespaces".to_owned());
        }
        let bridge = first("the CNI plugin bridge", &["/usr/lib/cni/bridge", "/opt/cni/bin/bridge"])?;
        let busybox = first("busybox", &["/bin/busybox", "/usr/bin/busybox"])?;
        if on_path("ldd") && Command::new("ldd").arg(&busybox).output().is_ok_and(|ldd| ldd.status.success()) {
            return Err(format!("{} is not static (Debian's package is busybox-static)", busybox.display()));
        }
        Ok(Self {
            kubelet: assets::program("kubelet")?,
            device_plugin: assets::program("deviceplugin")?,
            busybox,
            network_plugins: bridge.parent().expect("a file in a folder").to_owned(),
        })
    }
}

fn on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

/// Mount point of the kubelet's folder, in the mount namespace of the node only.
const MOUNT_POINT: &str = "/var/lib/kubelet";

/// The cgroup, the bridge and the mount point, which drop removes.
pub(super) struct Reserved {
    cgroups: Vec<PathBuf>,
    made_mount_point: bool,
}

impl Reserved {
    /// Creates them. The caller holds the machine-wide lock, so leftovers belong to a killed test process and are reused.
    ///
    /// # Errors
    /// If this host does not allow one of them.
    pub(super) fn new() -> Result<Self, String> {
        let mut reserved = Self { cgroups: make_cgroups()?, made_mount_point: false };
        if !Path::new(MOUNT_POINT).is_dir() {
            fs::create_dir_all(MOUNT_POINT).map_err(|e| format!("cannot make {MOUNT_POINT}: {e}"))?;
            reserved.made_mount_point = true;
        }
        remove_bridge();
        let ip = |arguments: &[&str]| {
            let ended = run(Command::new("ip").args(arguments), PATIENCE);
            if ended.status.success() { Ok(()) } else { Err(format!("{}: {}", ended.command, ended.stderr.trim())) }
        };
        ip(&["link", "add", BRIDGE, "type", "bridge"])?;
        ip(&["address", "add", &format!("{NODE_ADDRESS}/24"), "dev", BRIDGE])?;
        ip(&["link", "set", BRIDGE, "up"])?;
        Ok(reserved)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        remove_bridge();
        let mut patience = Patience::of(PATIENCE);
        // The kernel removes the last processes of a cgroup a moment after they ended.
        while !self.cgroups.iter().all(|cgroup| removed(cgroup)) && !patience.is_over() {
            std::thread::sleep(Duration::from_millis(50));
        }
        if self.made_mount_point {
            let _ = fs::remove_dir(MOUNT_POINT); // fails if the folder is no longer empty
        }
    }
}

fn remove_bridge() {
    let _ = Command::new("ip").args(["link", "delete", BRIDGE]).stderr(Stdio::null()).status();
}

/// Creates the cgroup in every mounted hierarchy: cgroup v2 has one, v1 has one per controller.
fn make_cgroups() -> Result<Vec<PathBuf>, String> {
    let mounts = fs::read_to_string("/proc/mounts").map_err(|e| format!("/proc/mounts: {e}"))?;
    let mut cgroups = Vec::new();
    let mut unified_only = true;
    for mount in mounts.lines() {
        let mut fields = mount.split(' ').skip(1);
        let (Some(folder), Some(kind)) = (fields.next(), fields.next()) else {
            continue;
        };
        let root = Path::new(folder);
        match kind {
            "cgroup" => unified_only = false,
            "cgroup2" => delegate_controllers(root),
            _ => continue,
        }
        let cgroup = root.join(CGROUP);
        if !cgroup.is_dir() {
            fs::create_dir(&cgroup).map_err(|e| format!("cannot make the cgroup {}: {e}", cgroup.display()))?;
        }
        cgroups.push(cgroup);
    }
    if let ([cgroup], true) = (&cgroups[..], unified_only) {
        let controllers = fs::read_to_string(cgroup.join("cgroup.controllers")).unwrap_or_default();
        if let Some(missing) = ["cpu", "cpuset", "memory", "pids"].iter().find(|c| !controllers.contains(**c)) {
            return Err(format!("the cgroup controller {missing} cannot be used in {}", cgroup.display()));
        }
    }
    if cgroups.is_empty() { Err("no cgroups are mounted".to_owned()) } else { Ok(cgroups) }
}

/// Delegates every controller to the children of the root. The caller checks which ones are missing.
fn delegate_controllers(root: &Path) {
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_whitespace() {
        let _ = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// Whether a cgroup was removed. The kernel removes it on rmdir, once it has no children.
fn removed(cgroup: &Path) -> bool {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            removed(&entry.path());
        }
    }
    fs::remove_dir(cgroup).is_ok() || !cgroup.exists()
}

/// Process id of a child of `parent`, if it has one.
pub(super) fn child_of(parent: u32) -> Option<u32> {
    let processes = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(|pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // "pid (name) state ppid ...", and a name may hold spaces and brackets.
        let after_name = stat.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
        after_name.split(' ').nth(1).and_then(|ppid| ppid.parse().ok()) == Some(parent)
    })
}
