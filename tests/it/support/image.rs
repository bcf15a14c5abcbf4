//! Owns the only container image of the real node. There is no registry, so it is built from the host's static busybox.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use super::process::{run, write};

/// Name of the image in the container runtime, which also uses it as the sandbox image.
pub(super) const IMAGE: &str = "vramguard.test/busybox:1";

/// Applets of busybox that the image has links for.
const APPLETS: [&str; 10] = ["cat", "echo", "env", "false", "kill", "ls", "sh", "sleep", "true", "wget"];

/// Sleeps until SIGTERM. As process 1, plain `sleep` would ignore that signal.
const COMMAND: [&str; 3] = ["/bin/sh", "-c", "trap 'exit 143' TERM; sleep 1000000000 & wait"];

const PATIENCE: Duration = Duration::from_secs(30);

/// Writes the image into `folder` as an archive in the format of `docker save`, and returns its path.
pub(super) fn make(busybox: &Path, folder: &Path) -> PathBuf {
    let bin = folder.join("root/bin");
    std::fs::create_dir_all(&bin).expect("the image's folder can be made");
    std::fs::copy(busybox, bin.join("busybox")).expect("busybox can be copied");
    for applet in APPLETS {
        symlink("busybox", bin.join(applet)).expect("a link can be made");
    }
    for mount_point in ["dev", "etc", "proc", "sys", "tmp"] {
        std::fs::create_dir_all(folder.join("root").join(mount_point)).expect("the image's folder can be made");
    }
    let layer = folder.join("layer.tar");
    run(Command::new("tar").arg("-cf").arg(&layer).arg("-C").arg(folder.join("root")).arg("."), PATIENCE)
        .expect_success();
    let digest = run(Command::new("sha256sum").arg(&layer), PATIENCE).expect_success();
    let digest = digest.split_whitespace().next().expect("sha256sum prints a digest");
    let config = json!({
        "architecture": architecture(), "os": "linux",
        "config": {"Cmd": COMMAND, "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    write(&folder.join("config.json"), config.to_string());
    let manifest = json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
    write(&folder.join("manifest.json"), manifest.to_string());
    let archive = folder.join("image.tar");
    let files = ["manifest.json", "config.json", "layer.tar"];
    run(Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(folder).args(files), PATIENCE).expect_success();
    archive
}

/// Architecture of this machine, as images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
