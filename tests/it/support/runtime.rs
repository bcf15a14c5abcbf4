//! Owns the container runtime of a real node: containerd in its own namespaces, with the test image.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::host::{BRIDGE, Programs, SUBNET, child_of};
use super::image::{self, IMAGE};
use super::process::{Process, run, write};
use super::wait::{Patience, eventually};

/// Socket of containerd, as a path inside the namespaces.
pub(super) const SOCKET: &str = "/run/containerd/containerd.sock";

const PATIENCE: Duration = Duration::from_secs(30);

/// A running containerd. All its containers end with it.
pub(super) struct Runtime {
    /// `unshare`, which forked the first process of the namespaces and kills it when it ends.
    process: Process,
    /// Process id of the first process of the namespaces.
    init: u32,
}

impl Runtime {
    /// Starts containerd with all its data in `folder`, and imports the image.
    pub(super) async fn start(programs: &Programs, folder: &Path) -> Self {
        for name in ["kubelet", "containerd", "network"] {
            std::fs::create_dir_all(folder.join(name)).expect("the node's folder can be made");
        }
        write(&folder.join("containerd.toml"), configuration(folder, &programs.network_plugins));
        write(&folder.join("network/10-test.conflist"), network(folder));
        write(&folder.join("runtime.sh"), include_str!("runtime.sh"));
        let mut process = Process::new("containerd", Path::new("unshare"), folder)
            .args(["--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--", "sh"])
            .arg(folder.join("runtime.sh"))
            .arg(folder);
        process.start();
        let unshare = process.pid().expect("it was started");
        let init = eventually("the namespaces' first process", PATIENCE, async || {
            child_of(unshare).with_context(|| process.log_tail())
        })
        .await;
        let mut runtime = Self { process, init };
        eventually("containerd to answer", PATIENCE, async || {
            runtime.process.expect_running();
            let version = runtime.run(runtime.ctr().arg("version"));
            ensure!(version.status.success(), "{}{}", version.stderr, runtime.process.log_tail());
            Ok(())
        })
        .await;
        let archive = image::make(&programs.busybox, &folder.join("image"));
        let mut import = runtime.ctr();
        import.args(["images", "import", "--snapshotter", "native"]).arg(archive);
        runtime.run(&mut import).expect_success();
        runtime
    }

    fn run(&self, command: &mut Command) -> super::Finished {
        run(command, PATIENCE)
    }

    fn ctr(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(self.mounts()).args(["--", "ctr", "--address", SOCKET, "--namespace", "k8s.io"]);
        command
    }

    /// Kills containerd, which is started again at once. Its containers run on.
    pub(super) fn kill(&self, folder: &Path) {
        let pid = std::fs::read_to_string(folder.join("containerd.pid")).expect("it was started");
        let mut kill = Command::new("nsenter");
        kill.args([self.mounts(), self.processes()]).args(["--", "sh", "-c", &format!("kill -KILL {}", pid.trim())]);
        self.run(&mut kill).expect_success();
    }

    /// Option of `nsenter` that enters the mount namespace. `nsenter` keeps its process id.
    pub(super) fn mounts(&self) -> String {
        format!("--mount=/proc/{}/ns/mnt", self.init)
    }

    /// Option of `nsenter` that enters the process namespace. `nsenter` forks for it; see [`child_of`].
    pub(super) fn processes(&self) -> String {
        format!("--pid=/proc/{}/ns/pid", self.init)
    }

    pub(super) fn log_tail(&self) -> String {
        self.process.log_tail()
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.process.stop();
        // The folder is deleted next, so wait until no process of the namespaces writes there.
        let mut patience = Patience::of(PATIENCE);
        while PathBuf::from(format!("/proc/{}", self.init)).exists() && !patience.is_over() {
            std::thread::sleep(Duration::from_millis(20)); // between two looks
        }
    }
}

/// The configuration of containerd.
///
/// The native snapshotter copies files. It is slower than overlayfs and works on every file system, also on an overlay.
/// `restrict_oom_score_adj` is for hosts where a container may not raise its priority against the OOM killer.
fn configuration(folder: &Path, network_plugins: &Path) -> String {
    let (folder, plugins) = (folder.display(), network_plugins.display());
    format!(
        r#"version = 2
root = "{folder}/containerd"
state = "/run/containerd"
# Not used, and some of them write to fixed paths of the host.
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
restrict_oom_score_adj = true
tolerate_missing_hugetlb_controller = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{folder}/network"
"#
    )
}

/// The CNI configuration: a bridge without a gateway, so that pods reach the node and nothing else.
fn network(folder: &Path) -> String {
    let addresses = json!({
        "type": "host-local",
        "dataDir": folder.join("network/addresses"),
        "ranges": [[{"subnet": SUBNET, "rangeStart": SUBNET.replace("0/24", "10")}]],
    });
    let bridge = json!({"type": "bridge", "bridge": BRIDGE, "isGateway": false, "ipMasq": false, "ipam": addresses});
    json!({"cniVersion": "0.4.0", "name": "test", "plugins": [bridge]}).to_string()
}
