//! A node with a real kubelet: containers run, devices are allocated, and the node's status is the kubelet's own.

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

/// A kubelet reports within seconds; a status sync is 10 s.
const PATIENCE: Duration = Duration::from_secs(90);

/// Why there can be no real node on this host. A test prints it and returns.
#[derive(Debug)]
pub struct Skip(String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "skipped, no real kubelet on this host: {}", self.0)
    }
}

/// Fields are dropped in this order: the kubelet first, the host's things last. A test that fails leaves the ends of the
/// logs on stderr.
pub struct RealNode {
    kubelet: Process,
    device_plugin: Process,
    runtime: Runtime,
    folder: PathBuf,
    gpus: GpuNode,
    /// The last sign of life that the API server had from the kubelet when it was stopped.
    last_heartbeat: Option<Time>,
    _reserved: Reserved,
}

impl RealNode {
    pub const NAME: &str = "real-0";
    /// An image that is there already. Its own command sleeps, and ends when it is told to; there are a shell, `env`,
    /// `cat` and `sleep`. Pods must not pull: `imagePullPolicy: Never`, or a tag other than `latest`.
    pub const IMAGE: &str = image::IMAGE;

    /// Joins a real node to the control plane. Its GPUs are those of `gpus`, whose name must be [`RealNode::NAME`]: the
    /// test device plugin advertises them, and the labels of GPU Feature Discovery are put on the node. When this
    /// returns, the node is schedulable and its allocatable holds the replicas.
    pub async fn try_start(plane: &ControlPlane, gpus: &GpuNode) -> Result<Self, Skip> {
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
            .arg(format!("--replicas={}", gpus.replicas));
        let gpus = gpus.clone();
        let mut node =
            Self { kubelet, device_plugin, runtime, folder, gpus, last_heartbeat: None, _reserved: reserved };
        node.kubelet.start();
        node.device_plugin.start();
        node.ready(plane).await;
        node.label(plane, node.gpus.labels()).await;
        Ok(node)
    }

    /// Waits until the kubelet that runs now has reported, the node is schedulable and its devices are there.
    pub async fn ready(&mut self, plane: &ControlPlane) {
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

    /// Waits until the kubelet that runs now has written the node's status: what stands there before is its
    /// predecessor's. Heartbeats are whole seconds; see [`RealNode::start_kubelet`].
    pub async fn reported(&mut self, plane: &ControlPlane) {
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

    /// Adds labels to the node or replaces them, as GPU Feature Discovery does.
    pub async fn label(&self, plane: &ControlPlane, labels: BTreeMap<String, String>) {
        let nodes: Api<Node> = Api::all(plane.client());
        let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
        nodes.patch(Self::NAME, &PatchParams::default(), &patch).await.expect("the node can be labelled");
    }

    /// Kills the kubelet; the containers go on.
    pub async fn stop_kubelet(&mut self, plane: &ControlPlane) {
        self.kill_kubelet();
        self.last_heartbeat = heartbeat(&node(plane).await.expect("the node is there"));
    }

    fn kill_kubelet(&mut self) {
        // `nsenter` had to fork to enter the process namespace; it ends when its child does.
        if let Some(kubelet) = self.kubelet.pid().and_then(child_of) {
            let mut kill = Command::new("kill");
            run(kill.args(["-KILL", &kubelet.to_string()]), Duration::from_secs(5)).expect_success();
        }
        self.kubelet.stop();
    }

    /// The device plugin registers again by itself. See [`RealNode::ready`].
    pub fn start_kubelet(&mut self) {
        // A kubelet writes an unchanged status every five minutes only. If its first one came in the second of its
        // predecessor's last, the two heartbeats would be equal and nobody could tell that it has reported.
        std::thread::sleep(Duration::from_secs(1));
        self.kubelet.start();
    }

    pub async fn restart_kubelet(&mut self, plane: &ControlPlane) {
        self.stop_kubelet(plane).await;
        self.start_kubelet();
        self.ready(plane).await;
    }

    /// Deletes, for a stopped kubelet, its record of the devices it knew and of the pods it gave them to.
    pub fn delete_device_checkpoint(&self) {
        let checkpoint = self.kubelet_folder().join("device-plugins/kubelet_internal_checkpoint");
        std::fs::remove_file(checkpoint).expect("a kubelet that had devices wrote its checkpoint");
    }

    /// Empties, for a stopped kubelet, the whole device-plugin folder, as on a machine that was installed anew under
    /// its old name. Only this makes the kubelet zero extended resources: it takes any file there, a left-over socket
    /// too, for a checkpoint.
    pub fn empty_device_plugin_folder(&self) {
        let folder = self.kubelet_folder().join("device-plugins");
        for file in std::fs::read_dir(&folder).expect("the kubelet made the folder").flatten() {
            std::fs::remove_file(file.path()).expect("there are files and sockets");
        }
    }

    pub fn stop_device_plugin(&mut self) {
        self.device_plugin.stop();
    }

    pub fn start_device_plugin(&mut self) {
        self.device_plugin.start();
    }

    /// What is `/var/lib/kubelet` for the kubelet: `pod-resources/kubelet.sock` is in there.
    pub fn kubelet_folder(&self) -> PathBuf {
        self.folder.join("kubelet")
    }

    /// The environment of a container's first process, as that process sees it.
    pub async fn exec_env(
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

    pub fn kubelet_log_tail(&self) -> String {
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
        "authorization": {"mode": "AlwaysAllow"}, // everyone who authenticates, that is the API server
        "cgroupDriver": "cgroupfs", "cgroupRoot": format!("/{CGROUP}"), "enforceNodeAllocatable": [],
        "failCgroupV1": false, "failSwapOn": false,
        // How full the host's disk is shall not decide a test, nor shall its firewall and its name servers be touched.
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
