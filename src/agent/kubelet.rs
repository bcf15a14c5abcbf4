//! The kubelet's interfaces on its node. Owns transport, messages and deadlines; knows nothing of VRAM.
//!
//! | module | owns |
//! |---|---|
//! | [`messages`] | the messages of both APIs, reduced to the fields that are read |
//! | [`rpc`] | gRPC calls over a unix socket, each with a deadline |
//! | [`registry`] | where a device plugin registers, in place of the kubelet's own |
//! | [`device_plugin`] | client of a device plugin, and of the kubelet's registration |
//! | [`pod_resources`] | the PodResources API, which lists the devices of each container |
//! | [`checkpoint`] | the file in which the kubelet records the devices that it has allocated |

use std::path::{Path, PathBuf};

pub mod checkpoint;
pub mod device_plugin;
pub mod messages;
pub mod pod_resources;
pub mod registry;
pub mod rpc;

/// The kubelet's directory, with the sockets and files that the agent uses. Usually `/var/lib/kubelet`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeletDirectory(PathBuf);

impl KubeletDirectory {
    /// The kubelet's directory at `path`.
    pub fn new(path: impl Into<PathBuf>) -> KubeletDirectory {
        KubeletDirectory(path.into())
    }

    /// Socket of the PodResources API.
    pub fn pod_resources_socket(&self) -> PathBuf {
        self.0.join("pod-resources/kubelet.sock")
    }

    /// Directory of the sockets of the kubelet and the device plugins.
    pub fn device_plugins(&self) -> PathBuf {
        self.0.join("device-plugins")
    }

    /// Socket at which device plugins register with the kubelet.
    pub fn registration_socket(&self) -> PathBuf {
        self.device_plugins().join("kubelet.sock")
    }

    /// File in which the kubelet records the devices that it has allocated.
    pub fn checkpoint(&self) -> PathBuf {
        self.device_plugins().join("kubelet_internal_checkpoint")
    }

    /// The kubelet's configuration, where kubeadm and most distributions keep it.
    pub fn configuration(&self) -> PathBuf {
        self.0.join("config.yaml")
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }
}
