//! Owns the lookup of the control plane's programs: in `KUBEBUILDER_ASSETS`, else in the pinned build in the user's cache.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Variable with the path of another kubelet.
const OTHER_KUBELET: &str = "VRAMGUARD_KUBELET";

const CONTROL_PLANE: [&str; 5] = ["etcd", "kube-apiserver", "kube-scheduler", "kube-controller-manager", "kubectl"];

/// The path of a program.
///
/// `KUBEBUILDER_ASSETS` is used if it holds a whole control plane. Further programs (kwok, kubelet, the device plugin) may
/// then still come from the pinned build, which is built on demand.
///
/// # Errors
/// If the program is neither found nor built.
pub(crate) fn program(name: &str) -> Result<PathBuf, String> {
    if let (Some(path), true) = (other_kubelet(), name == "kubelet") {
        return if path.is_file() { Ok(path) } else { Err(format!("{OTHER_KUBELET}: {} is missing", path.display())) };
    }
    if let Some(folder) = given_folder() {
        let path = folder.join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    let path = built_folder()?.join(name);
    if path.is_file() { Ok(path) } else { Err(format!("{} is missing", path.display())) }
}

/// Path of the kubelet that a test runs in place of the pinned one; `None` if it should run that one.
pub(crate) fn other_kubelet() -> Option<PathBuf> {
    std::env::var_os(OTHER_KUBELET).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// The folder of locks and builds: one per user, shared by all checkouts.
pub(super) fn cache_folder() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME or XDG_CACHE_HOME is set")).join(".cache");
    let folder = cache.unwrap_or_else(home).join("vramguard");
    std::fs::create_dir_all(&folder).unwrap_or_else(|e| panic!("cannot create {}: {e}", folder.display()));
    folder
}

fn given_folder() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let folder = PathBuf::from(std::env::var_os("KUBEBUILDER_ASSETS").filter(|folder| !folder.is_empty())?);
        let missing: Vec<_> = CONTROL_PLANE.into_iter().filter(|name| !folder.join(name).is_file()).collect();
        if missing.is_empty() {
            return Some(folder);
        }
        eprintln!("KUBEBUILDER_ASSETS={} is not used: it lacks {}", folder.display(), missing.join(", "));
        None
    };
    FOLDER.get_or_init(find).as_deref()
}

/// The folder of the pinned build. The build script returns at once if the build exists.
///
/// The script bounds its own wait for a concurrent build, and its progress goes to the terminal.
fn built_folder() -> Result<&'static Path, String> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let build = || {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/controlplane/build");
        let output = Command::new(&script).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
        let output = output.map_err(|e| format!("cannot run {}: {e}", script.display()))?;
        if !output.status.success() {
            return Err(format!("{} ended with {}", script.display(), output.status));
        }
        Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
    };
    FOLDER.get_or_init(build).as_deref().map_err(Clone::clone)
}
