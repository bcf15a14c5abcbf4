//! The cgroup of a process → the pod and the container that it runs in. Owns the names that kubelets and container
//! runtimes give to cgroups, in both versions of cgroups and with both drivers.
//!
//! The part of the path before the pod differs most: a container with a cgroup namespace of its own reads
//! `0::/../../pod<uid>/<id>`. So only the pod and what follows it count. The first pod in the path counts, because a
//! container may make cgroups of any name inside its own.

use crate::capacity::name::PodUid;

/// The pod and the container of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InPod {
    /// Uid of the pod, as in its cgroups: see [`LivePod`](crate::capacity::observation::owners::LivePod).
    pub pod: PodUid,
    /// Id of the container, without the name of the runtime; empty if the process is in no container of the pod.
    pub container: String,
}

/// Names that container runtimes put before the id of a container.
const RUNTIMES: [&str; 4] = ["cri-containerd-", "crio-", "docker-", "libpod-"];
/// Characters of a UUID.
const UUID: usize = 36;
/// Characters of the uid of a static pod: a hash, without hyphens.
const STATIC: usize = 32;

/// Reads the content of `/proc/PID/cgroup`. `None` if the process is in no pod.
pub fn read(content: &str) -> Option<InPod> {
    // Each line is HIERARCHY:CONTROLLERS:PATH. The lines of one process in version 1 all name its container, but only
    // where the runtime uses the hierarchy.
    let paths = content.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let mut found = paths.filter_map(in_path);
    let first = found.next()?;
    if first.container.is_empty() {
        Some(found.find(|other| !other.container.is_empty()).unwrap_or(first))
    } else {
        Some(first)
    }
}

fn in_path(path: &str) -> Option<InPod> {
    let mut parts = path.split('/');
    while let Some(part) = parts.next() {
        // A runtime whose driver is not that of the kubelet makes one name of both: `<slice>:<runtime>:<id>`.
        let mut joined = part.splitn(3, ':');
        let (name, _runtime, id) = (joined.next().unwrap_or_default(), joined.next(), joined.next());
        if let Some(uid) = pod(name) {
            let container = id.or_else(|| parts.next()).map(container).unwrap_or_default();
            return Some(InPod { pod: PodUid::from(uid), container });
        }
    }
    None
}

/// The uid in `pod<uid>` or `…-pod<uid>.slice`. systemd has a meaning for hyphens, so the uid has underscores there.
fn pod(name: &str) -> Option<String> {
    let (uid, systemd) = match name.strip_suffix(".slice") {
        Some(slice) => (slice.rsplit_once("-pod").map(|(_, uid)| uid).or_else(|| slice.strip_prefix("pod"))?, true),
        None => (name.strip_prefix("pod")?, false),
    };
    let uid = if systemd { uid.replace('_', "-") } else { uid.to_owned() };
    let hex = uid.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    (hex && matches!(uid.len(), UUID | STATIC)).then_some(uid)
}

/// The id in the name of a container's cgroup.
fn container(name: &str) -> String {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let runtime = RUNTIMES.iter().find_map(|runtime| name.strip_prefix(runtime));
    let id = runtime.unwrap_or(name);
    if id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') { id.to_owned() } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0b6f1b1c-5e8e-4a3c-9a34-7d1f1f0a1c2e";
    const UNDERSCORED: &str = "0b6f1b1c_5e8e_4a3c_9a34_7d1f1f0a1c2e";
    const STATIC_UID: &str = "8b2a4ef4e9c1d0d8d9f0a1b2c3d4e5f6";
    const ID: &str = "4c01db0b339c4de2a3f07ee2d3fcfc1a6d5b7f3f3fd5c2a1b0e9d8c7b6a59483";

    #[test]
    fn a_process_is_found_in_its_pod_by_every_runtime_and_driver() {
        let pods = [
            ("cgroup v2, cgroupfs", format!("0::/kubepods/besteffort/pod{UID}/{ID}")),
            ("guaranteed", format!("0::/kubepods/pod{UID}/{ID}")),
            ("in a cgroup namespace", format!("0::/../../pod{UID}/{ID}")),
            ("in a cgroup namespace, other QoS", format!("0::/../../../burstable/pod{UID}/{ID}")),
            (
                "systemd, containerd",
                format!(
                    "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope"
                ),
            ),
            (
                "systemd, guaranteed",
                format!("0::/kubepods.slice/kubepods-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope"),
            ),
            (
                "systemd, in a cgroup namespace",
                format!("0::/../../kubepods-burstable-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope"),
            ),
            (
                "systemd, CRI-O",
                format!(
                    "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDERSCORED}.slice/crio-{ID}.scope"
                ),
            ),
            (
                "CRI-O, a cgroup inside",
                format!("0::/kubepods.slice/kubepods-pod{UNDERSCORED}.slice/crio-{ID}.scope/container"),
            ),
            ("CRI-O, cgroupfs", format!("0::/kubepods/burstable/pod{UID}/crio-{ID}")),
            ("systemd, docker", format!("0::/kubepods.slice/kubepods-pod{UNDERSCORED}.slice/docker-{ID}.scope")),
            (
                "kubelet with cgroupRoot",
                format!(
                    "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope"
                ),
            ),
            ("a node in a container", format!("0::/docker/7f3a/kubelet/kubepods/besteffort/pod{UID}/{ID}")),
            (
                "drivers that differ",
                format!(
                    "0::/system.slice/containerd.service/kubepods-besteffort-pod{UNDERSCORED}.slice:cri-containerd:{ID}"
                ),
            ),
            ("a systemd inside the container", format!("0::/kubepods/pod{UID}/{ID}/init.scope")),
            (
                "cgroup v1",
                format!(
                    "12:memory:/kubepods/besteffort/pod{UID}/{ID}\n11:devices:/kubepods/besteffort/pod{UID}/{ID}\n1:name=systemd:/kubepods/besteffort/pod{UID}/{ID}\n0::/"
                ),
            ),
            (
                "cgroup v1, systemd",
                format!(
                    "5:cpu,cpuacct:/kubepods.slice/kubepods-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope\n0::/"
                ),
            ),
            (
                "cgroup v1, a hierarchy that the runtime does not use",
                format!("13:misc:/\n12:rdma:/kubepods/pod{UID}\n4:memory:/kubepods/pod{UID}/{ID}"),
            ),
        ];
        for (what, content) in pods {
            let found = InPod { pod: UID.into(), container: ID.into() };
            assert_eq!(read(&content), Some(found), "{what}: {content}");
        }
    }

    #[test]
    fn a_static_pod_has_a_uid_without_hyphens() {
        for content in [
            format!("0::/kubepods/burstable/pod{STATIC_UID}/{ID}"),
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC_UID}.slice/cri-containerd-{ID}.scope"
            ),
        ] {
            assert_eq!(read(&content), Some(InPod { pod: STATIC_UID.into(), container: ID.into() }), "{content}");
        }
    }

    #[test]
    fn a_process_of_no_pod_is_in_none() {
        for content in [
            "",
            "0::/",
            "0::/user.slice/user-1000.slice/session-3.scope",
            "0::/system.slice/nvidia-persistenced.service",
            "0::/system.slice/podman.service",
            "0::/docker/4c01db0b339c4de2",
            "0::/kubepods.slice/kubepods-besteffort.slice",
            "0::/kubepods/pod-of-somebody/4c01db0b339c4de2",
            "no cgroup file",
        ] {
            assert_eq!(read(content), None, "{content:?}");
        }
    }

    #[test]
    fn a_container_cannot_pretend_to_be_in_another_pod() {
        let other = "11111111-2222-3333-4444-555555555555";
        let content = format!("0::/kubepods/pod{UID}/{ID}/kubepods/pod{other}/{ID}");
        assert_eq!(read(&content).map(|found| found.pod), Some(UID.into()));
    }

    #[test]
    fn a_process_of_the_pod_itself_has_no_container() {
        let content = format!("0::/kubepods/pod{UID}");
        assert_eq!(read(&content), Some(InPod { pod: UID.into(), container: String::new() }));
    }
}
