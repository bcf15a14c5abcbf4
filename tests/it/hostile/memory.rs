//! How much memory a process has, and a limit on it that the kernel keeps: a cgroup, where this process may make one.

use std::path::{Path, PathBuf};

/// What the manifests give a replica.
pub const LIMIT: u64 = 256 << 20;

/// A cgroup with the shipped limit; it is removed when this is dropped, by when its process has to be gone.
pub struct Limited {
    folder: Option<PathBuf>,
}

impl Limited {
    /// One of this name. Says so where there can be none: then the limit is only compared with.
    pub fn new(name: &str) -> Limited {
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

    /// Puts a process under the limit.
    pub fn take(&self, pid: u32) {
        if let Some(folder) = &self.folder {
            std::fs::write(folder.join("cgroup.procs"), pid.to_string()).expect("a process of ours can be moved");
        }
    }

    /// Whether the kernel keeps the limit.
    pub fn is_kept(&self) -> bool {
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

/// The cgroup of this process that controls memory, and the name of its limit: version 1, or 2 where memory is delegated.
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

/// MiB that a process has resident now, and had at most since [`forget_peak`].
pub fn resident(pid: u32) -> Option<(u64, u64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse::<u64>().ok()
    };
    Some((of("VmRSS")? >> 10, of("VmHWM")? >> 10))
}

/// Begins to measure the peak anew.
pub fn forget_peak(pid: u32) {
    // Where that is not allowed the peak is that of the whole life, which is only stricter.
    _ = std::fs::write(format!("/proc/{pid}/clear_refs"), "5");
}
