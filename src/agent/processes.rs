//! The processes of this machine, in `/proc`. Owns the reading of their files; [`crate::k8s::cgroup`] reads what is in
//! them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::k8s::cgroup::{self, InPod};

/// The most that is read of one file. A line of the longest path is below 5 KiB, and version 1 has some 13 lines.
const MOST: u64 = 64 << 10;

/// The `/proc` of the machine.
#[derive(Clone, Debug)]
pub struct Processes {
    root: PathBuf,
}

impl Processes {
    /// The `/proc` that is mounted at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Processes {
        Processes { root: root.into() }
    }

    /// The pod and container of a process; `None` if it is in none, or has ended.
    pub fn pod_of(&self, pid: u32) -> Option<InPod> {
        cgroup::read(&self.text(pid, "cgroup")?)
    }

    /// Whether the process has not ended.
    pub fn runs(&self, pid: u32) -> bool {
        self.root.join(pid.to_string()).exists()
    }

    /// The name of a process's program; `None` if it has ended.
    pub fn name_of(&self, pid: u32) -> Option<String> {
        self.text(pid, "comm").map(|name| name.trim_end().to_owned())
    }

    fn text(&self, pid: u32, file: &str) -> Option<String> {
        let path = self.root.join(pid.to_string()).join(file);
        read(&path)
    }
}

fn read(path: &Path) -> Option<String> {
    let mut text = Vec::new();
    File::open(path).ok()?.take(MOST).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}
