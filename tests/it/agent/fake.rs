//! Owns the stand-in for the driver's library, and a `/proc` with processes that do not exist.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::support::{free_port, run, write};

/// A machine without GPUs that seems to have some.
pub(crate) struct Machine {
    folder: TempDir,
}

/// The library, built once for all tests.
fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let (source, built) = ("tests/nvml/fake.rs", folder.join("libnvidia-ml.so.1"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
        let fresh = folder.join(format!("libnvidia-ml.{}.so", std::process::id()));
        let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        rustc.args(["--edition", "2021", "-O", "--crate-type", "cdylib", "--crate-name", "nvidia_ml", "-o"]);
        run(rustc.arg(&fresh).arg(source), std::time::Duration::from_secs(300)).expect_success();
        // Another test process may load the library at this moment, so it is replaced and not written.
        std::fs::rename(fresh, &built).expect("both are in one folder");
        built
    })
}

impl Machine {
    /// A machine whose driver shows this: see `tests/nvml/fake.rs` for the lines.
    pub(crate) fn new(shows: &str) -> Machine {
        let machine = Machine { folder: tempfile::tempdir().expect("a folder") };
        std::fs::create_dir(machine.proc()).expect("a folder for processes");
        machine.shows(shows);
        machine
    }

    /// Changes what the driver shows.
    pub(crate) fn shows(&self, shows: &str) {
        let fresh = self.folder.path().join("shows.new");
        write(&fresh, format!("driver 580.159.04\n{shows}"));
        std::fs::rename(fresh, self.state()).expect("both are in one folder");
    }

    /// Adds a process with this content of its cgroup file.
    pub(crate) fn process(&self, pid: u32, name: &str, cgroup: &str) {
        let folder = self.proc().join(pid.to_string());
        std::fs::create_dir_all(&folder).expect("a folder of a process");
        write(&folder.join("cgroup"), format!("{cgroup}\n"));
        write(&folder.join("comm"), format!("{name}\n"));
    }

    /// Arguments of `vramguard agent` for this machine, whose kubelet has the folder of the machine.
    pub(crate) fn arguments(&self) -> Vec<String> {
        self.arguments_beside(self.folder.path())
    }

    /// Arguments of `vramguard agent` for this machine, beside a kubelet with another folder.
    pub(crate) fn arguments_beside(&self, kubelet: &Path) -> Vec<String> {
        let text = |path: &Path| path.display().to_string();
        ["--nvml-library", &text(library()), "--proc", &text(&self.proc()), "--kubelet", &text(kubelet)]
            .map(str::to_owned)
            .into()
    }

    /// Name and value of the variable that the stand-in reads.
    pub(crate) fn variable(&self) -> (&'static str, PathBuf) {
        ("VRAMGUARD_FAKE_NVML", self.state())
    }

    /// A kubeconfig whose API server is a port that refuses connections.
    pub(crate) fn kubeconfig_of_no_server(&self) -> PathBuf {
        let kubeconfig = self.folder.path().join("kubeconfig");
        let server = format!("http://127.0.0.1:{}", free_port());
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: \"{server}\"}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\nusers: [{{name: u, user: {{}}}}]\n"
        );
        write(&kubeconfig, text);
        kubeconfig
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("shows")
    }

    fn proc(&self) -> PathBuf {
        self.folder.path().join("proc")
    }
}
