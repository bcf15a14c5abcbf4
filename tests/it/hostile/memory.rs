//! The memory of a process, and a limit on it that the kernel enforces if this process may create a cgroup.

use std::path::{Path, PathBuf};

/// Memory limit of a replica in the manifests, in bytes.
pub(super) const LIMIT: u64 = 256 << 20;

/// A cgroup with the shipped limit. Drop removes it, so its process must have ended before.
pub(super) struct Limited {
    folder: Option<PathBuf>,
}

impl Limited {
    /// Creates a cgroup with this name. If that is impossible, prints it and leaves the limit to the assertions.
    pub(super) fn new(name: &str) -> Limited {
        let folder = parent().map(|(parent, file)| (parent.join(format!("{name}-{}", std::process::id())), file));
        let made = folder.and_then(|(folder, file)| {
            std::fs::create_dir(&folder).ok()?;
            let limited = std::fs::write(folder.join(file), LIMIT.to_string());
            if limited.is_err() {
                _ = std::fs::remove_dir(&folder);
            }
            limited.is_ok().then_some(folder)
        });
        if made.is_none() {
            println!("no cgroup can be made here: the limit is compared with, and not kept by the kernel");
        }
        Limited { folder: made }
    }

    /// Moves a process into the cgroup.
    pub(super) fn take(&self, pid: u32) {
        if let Some(folder) = &self.folder {
            std::fs::write(folder.join("cgroup.procs"), pid.to_string()).expect("a process of ours can be moved");
        }
    }

    /// Whether the kernel enforces the limit.
    pub(super) fn is_kept(&self) -> bool {
        self.folder.is_some()
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            _ = std::fs::remove_dir(folder);
        }
    }
}

/// The memory cgroup of this process and the file of its limit: of version 1, or of version 2 if memory is delegated.
fn parent() -> Option<(PathBuf, &'static str)> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let of = |fields: &str| {
        own.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            rest.strip_prefix(fields)?.strip_prefix(':').map(|path| path.trim_start_matches('/').to_owned())
        })
    };
    if let Some(path) = of("memory") {
        return Some((Path::new("/sys/fs/cgroup/memory").join(path), "memory.limit_in_bytes"));
    }
    let folder = Path::new("/sys/fs/cgroup").join(of("")?);
    let delegated = std::fs::read_to_string(folder.join("cgroup.subtree_control")).ok()?;
    delegated.split_whitespace().any(|controller| controller == "memory").then_some((folder, "memory.max"))
}

/// Resident memory of a process in MiB: now, and at most since [`forget_peak`].
pub(super) fn resident(pid: u32) -> Option<(u64, u64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse::<u64>().ok()
    };
    Some((of("VmRSS")? >> 10, of("VmHWM")? >> 10))
}

/// Resets the peak of [`resident`].
pub(super) fn forget_peak(pid: u32) {
    // If this is not allowed, the peak is that of the whole life of the process, which is stricter.
    _ = std::fs::write(format!("/proc/{pid}/clear_refs"), "5");
}
