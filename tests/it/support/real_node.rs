//! Owns a node with a real kubelet, which runs containers, allocates devices and writes the node's status.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use super::components::{KUBELET_CLIENT, free_port};
use super::host::{CGROUP, NODE_ADDRESS, Programs, Reserved, child_of};
use super::process::{Process, run, write};
use super::runtime::{self, Runtime};
use super::{ControlPlane, GpuNode, eventually, image};

/// Limit for a report of the kubelet, which syncs its status every 10 s.
const PATIENCE: Duration = Duration::from_secs(90);

/// Reason why this host cannot run a real node. A test prints it and returns.
#[derive(Debug)]
pub(crate) struct Skip(String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "skipped, no real kubelet on this host: {}", self.0)
    }
}

/// A running node. A test that fails prints the ends of its logs.
pub(crate) struct RealNode {
    // Dropped in this order: the kubelet first, the resources of the host last.
    kubelet: Process,
    device_plugin: Process,
    runtime: Runtime,
    folder: PathBuf,
    gpus: GpuNode,
    /// Latest heartbeat in the API server at the time when the kubelet was stopped.
    last_heartbeat: Option<Time>,
    _reserved: Reserved,
}

impl RealNode {
    pub(crate) const NAME: &str = "real-0";
    /// The only image of the node. Its command sleeps until SIGTERM; it has a shell, `env`, `cat` and `sleep`.
    ///
    /// Pods must not pull it: they need `imagePullPolicy: Never`, or a tag other than `latest`.
    pub(crate) const IMAGE: &str = image::IMAGE;

    /// Joins a real node with the GPUs of `gpus` to the control plane.
    ///
    /// A test device plugin advertises the GPUs, and the node gets the labels of GPU Feature Discovery. When this returns,
    /// the node is schedulable and its allocatable holds the replicas.
    ///
    /// # Errors
    /// If this host cannot run a real node.
    ///
    /// # Panics
    /// If the name in `gpus` is not [`RealNode::NAME`].
    pub(crate) async fn try_start(plane: &ControlPlane, gpus: &GpuNode) -> Result<Self, Skip> {
        let mut node = Self::try_launch(plane, gpus, &[]).await?;
        node.ready(plane).await;
        node.label(plane, node.gpus.labels()).await;
        Ok(node)
    }

    /// As [`RealNode::try_start`], with further arguments of the device plugin, and without waiting for anything.
    pub(crate) async fn try_launch(plane: &ControlPlane, gpus: &GpuNode, plugin: &[&str]) -> Result<Self, Skip> {
        assert_eq!(gpus.name, Self::NAME, "the control plane knows the credentials of one real node");
        let programs = Programs::find().map_err(Skip)?;
        let reserved = Reserved::new().map_err(Skip)?;
        let folder = plane.folder().join("node");
        let runtime = Runtime::start(&programs, &folder).await;
        let kubelet = kubelet(plane, &programs, &runtime, &folder);
        let device_plugin = Process::new("deviceplugin", Path::new("nsenter"), &folder)
            .arg(runtime.mounts())
            .arg("--")
            .arg(&programs.device_plugin)
            .arg(format!("--resource={}", gpus.resource))
            .arg(format!("--gpus={}", gpus.gpus))
            .arg(format!("--replicas={}", gpus.replicas))
            .args(plugin);
        let gpus = gpus.clone();
        let mut node =
            Self { kubelet, device_plugin, runtime, folder, gpus, last_heartbeat: None, _reserved: reserved };
        node.kubelet.start();
        node.device_plugin.start();
        Ok(node)
    }

    /// Waits until the running kubelet has reported, its devices are registered and the node is schedulable.
    pub(crate) async fn ready(&mut self, plane: &ControlPlane) {
        self.reported(plane).await;
        let replicas = (self.gpus.gpus * self.gpus.replicas).to_string();
        eventually("the kubelet to register its devices", PATIENCE, async || {
            self.expect_running();
            let status = node(plane).await?.status.unwrap_or_default();
            let allocatable = status.allocatable.unwrap_or_default();
            let devices = allocatable.get(&self.gpus.resource).map(|quantity| quantity.0.as_str());
            ensure!(devices == Some(&replicas), "{devices:?} {}{}", self.gpus.resource, self.kubelet.log_tail());
            Ok(())
        })
        .await;
        plane.schedulable(Self::NAME).await;
    }

    /// Waits until the running kubelet, and not the one before it, has written the node's status.
    ///
    /// Heartbeats are whole seconds; see [`RealNode::start_kubelet`].
    pub(crate) async fn reported(&mut self, plane: &ControlPlane) {
        eventually("the kubelet to report", PATIENCE, async || {
            self.expect_running();
            let heartbeat = heartbeat(&node(plane).await.with_context(|| self.kubelet.log_tail())?);
            ensure!(heartbeat > self.last_heartbeat, "heartbeat {heartbeat:?}{}", self.kubelet.log_tail());
            Ok(())
        })
        .await;
    }

    fn expect_running(&mut self) {
        self.kubelet.expect_running();
        self.device_plugin.expect_running();
    }

    /// Adds or replaces labels of the node, as GPU Feature Discovery does.
    pub(crate) async fn label(&self, plane: &ControlPlane, labels: BTreeMap<String, String>) {
        let nodes: Api<Node> = Api::all(plane.client());
        let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
        nodes.patch(Self::NAME, &PatchParams::default(), &patch).await.expect("the node can be labelled");
    }

    /// Kills the kubelet; its containers keep running.
    pub(crate) async fn stop_kubelet(&mut self, plane: &ControlPlane) {
        self.kill_kubelet();
        self.last_heartbeat = heartbeat(&node(plane).await.expect("the node is there"));
    }

    fn kill_kubelet(&mut self) {
        // `nsenter` forks to enter the process namespace, and ends when its child does.
        if let Some(kubelet) = self.kubelet.pid().and_then(child_of) {
            let mut kill = Command::new("kill");
            run(kill.args(["-KILL", &kubelet.to_string()]), Duration::from_secs(5)).expect_success();
        }
        self.kubelet.stop();
    }

    /// Starts the kubelet. The device plugin then registers by itself; see [`RealNode::ready`].
    pub(crate) fn start_kubelet(&mut self) {
        // A kubelet writes an unchanged status only every five minutes. If its first heartbeat fell into the same second
        // as the last one of its predecessor, a test could not see that it has reported. So this waits for the next second.
        std::thread::sleep(Duration::from_secs(1));
        self.kubelet.start();
    }

    pub(crate) async fn restart_kubelet(&mut self, plane: &ControlPlane) {
        self.stop_kubelet(plane).await;
        self.start_kubelet();
        self.ready(plane).await;
    }

    /// Deletes the device checkpoint of a stopped kubelet: its record of devices and of the pods that hold them.
    pub(crate) fn delete_device_checkpoint(&self) {
        let checkpoint = self.kubelet_folder().join("device-plugins/kubelet_internal_checkpoint");
        std::fs::remove_file(checkpoint).expect("a kubelet that had devices wrote its checkpoint");
    }

    /// Empties the device-plugin folder of a stopped kubelet, as on a machine that was reinstalled under its old name.
    ///
    /// Only this makes the kubelet set extended resources to zero, because it takes any file there for a checkpoint, even a
    /// stale socket.
    pub(crate) fn empty_device_plugin_folder(&self) {
        let folder = self.kubelet_folder().join("device-plugins");
        for file in std::fs::read_dir(&folder).expect("the kubelet made the folder").flatten() {
            std::fs::remove_file(file.path()).expect("there are files and sockets");
        }
    }

    pub(crate) fn stop_device_plugin(&mut self) {
        self.device_plugin.stop();
    }

    pub(crate) fn start_device_plugin(&mut self) {
        self.device_plugin.start();
    }

    /// The GPUs that the device plugin advertises.
    pub(crate) fn gpus(&self) -> &GpuNode {
        &self.gpus
    }

    /// Kills containerd, which is started again at once.
    pub(crate) fn kill_runtime(&self) {
        self.runtime.kill(&self.folder);
    }

    /// The folder that the kubelet sees as `/var/lib/kubelet`, with `pod-resources/kubelet.sock`.
    pub(crate) fn kubelet_folder(&self) -> PathBuf {
        self.folder.join("kubelet")
    }

    /// The kubelet's configuration file.
    pub(crate) fn kubelet_configuration(&self) -> PathBuf {
        self.folder.join("kubelet.json")
    }

    /// Environment variables of the first process of a container.
    pub(crate) async fn exec_env(
        plane: &ControlPlane,
        namespace: &str,
        pod: &str,
        container: &str,
    ) -> BTreeMap<String, String> {
        let read = ["exec", "--namespace", namespace, pod, "--container", container, "--", "cat", "/proc/1/environ"];
        let environment = plane.kubectl(&read).await.expect_success();
        let entries = environment.split('\0').filter_map(|entry| entry.split_once('='));
        entries.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    pub(crate) fn kubelet_log_tail(&self) -> String {
        self.kubelet.log_tail()
    }
}

async fn node(plane: &ControlPlane) -> anyhow::Result<Node> {
    Ok(Api::all(plane.client()).get(RealNode::NAME).await?)
}

fn heartbeat(node: &Node) -> Option<Time> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == "Ready")?.last_heartbeat_time.clone()
}

impl Drop for RealNode {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprint!("{}{}{}", self.kubelet.log_tail(), self.device_plugin.log_tail(), self.runtime.log_tail());
        }
        self.kill_kubelet();
        self.device_plugin.stop();
    }
}

fn kubelet(plane: &ControlPlane, programs: &Programs, runtime: &Runtime, folder: &Path) -> Process {
    let kubeconfig = plane.kubeconfig_for_token("kubelet", &format!("token-{}", RealNode::NAME));
    write(&folder.join("resolv.conf"), "");
    let configuration = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{}", runtime::SOCKET),
        "address": NODE_ADDRESS, "port": free_port(), "healthzPort": 0,
        "authentication": {
            "anonymous": {"enabled": false}, "webhook": {"enabled": false},
            "x509": {"clientCAFile": plane.folder().join(format!("{KUBELET_CLIENT}.crt"))},
        },
        "authorization": {"mode": "AlwaysAllow"}, // only the API server can authenticate
        "cgroupDriver": "cgroupfs", "cgroupRoot": format!("/{CGROUP}"), "enforceNodeAllocatable": [],
        "failCgroupV1": false, "failSwapOn": false,
        // A full disk of the host must not fail a test, and a test must not change the host's firewall and name servers.
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%",
            "nodefs.inodesFree": "0%", "imagefs.inodesFree": "0%"},
        "imageGCHighThresholdPercent": 100, "makeIPTablesUtilChains": false,
        "resolvConf": folder.join("resolv.conf"), "oomScoreAdj": 0,
    });
    write(&folder.join("kubelet.json"), configuration.to_string());
    Process::new("kubelet", Path::new("nsenter"), folder)
        .args([runtime.mounts(), runtime.processes()])
        .arg("--")
        .arg(&programs.kubelet)
        .arg(format!("--config={}", folder.join("kubelet.json").display()))
        .arg(format!("--kubeconfig={}", kubeconfig.display()))
        .arg(format!("--hostname-override={}", RealNode::NAME))
        .arg(format!("--node-ip={NODE_ADDRESS}"))
        .arg("--v=2")
}
