//! A real node whose devices an agent steers, and what became of its pods.
//!
//! The test reserves the GPUs in place of the binding guard, so that it decides which they are.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde_json::{Value, json};

use super::A;
use super::process::{Agent, Answered};

use crate::support::{Component, ControlPlane, GpuNode, RealNode, eventually, pause};

/// Limit for pods to run: the test runtime copies files for each container.
const PATIENCE: Duration = Duration::from_secs(180);
const REPLICAS: u32 = 24;

/// A pod of the test, and the GPU that is reserved for it.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub name: String,
    gpu: &'static str,
    apps: Vec<String>,
    /// Init containers, each with whether it keeps running.
    inits: Vec<(String, bool)>,
    another_node: bool,
}

/// What became of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Each of its GPU containers is on the reserved GPU.
    Placed,
    /// A container is on this other GPU.
    Elsewhere(String),
    /// The kubelet rejected it, for this reason.
    Rejected(String),
}

impl Outcome {
    /// Whether no container is on another GPU. A pod may be rejected while the node has no healthy devices.
    pub(super) fn is_right(&self) -> bool {
        match self {
            Outcome::Placed => true,
            Outcome::Rejected(why) => ["NodeAffinity", "UnexpectedAdmissionError"].contains(&why.as_str()),
            Outcome::Elsewhere(_) => false,
        }
    }
}

impl Wanted {
    pub(super) fn pod(name: &str, gpu: &'static str) -> Wanted {
        Wanted { name: name.to_owned(), gpu, apps: vec!["main".to_owned()], inits: Vec::new(), another_node: false }
    }

    pub(super) fn with_app(mut self, name: &str) -> Wanted {
        self.apps.push(name.to_owned());
        self
    }

    pub(super) fn with_init(mut self, name: &str, sidecar: bool) -> Wanted {
        self.inits.push((name.to_owned(), sidecar));
        self
    }

    /// Gives the pod a node selector that its node does not match.
    pub(super) fn for_another_node(mut self) -> Wanted {
        self.another_node = true;
        self
    }

    pub(super) fn is_for_another_node(&self) -> bool {
        self.another_node
    }

    /// The rows of the ledger for this pod.
    fn reservations(&self, uid: &str) -> Vec<Value> {
        let row = |name: &str, role: &str| {
            json!({ "uid": uid, "namespace": "ml", "pod": self.name, "container": name, "role": role,
                "resource": "nvidia.com/gpu", "replicas": 1, "gpu": self.gpu, "basis": "Slot", "state": "Confirmed",
                "since": jiff::Timestamp::now() })
        };
        let inits = self.inits.iter().map(|(name, sidecar)| row(name, if *sidecar { "Sidecar" } else { "Init" }));
        self.apps.iter().map(|name| row(name, "App")).chain(inits).collect()
    }

    fn object(&self) -> Value {
        let container = |name: &str| {
            json!({ "name": name, "image": RealNode::IMAGE, "imagePullPolicy": "Never",
                "resources": { "limits": { "nvidia.com/gpu": "1" } } })
        };
        let init = |(name, sidecar): &(String, bool)| {
            let mut container = container(name);
            if *sidecar {
                container["restartPolicy"] = json!("Always");
            } else {
                container["command"] = json!(["sh", "-c", "true"]);
            }
            container
        };
        let selector = if self.another_node { json!({ "kubernetes.io/hostname": "another" }) } else { json!({}) };
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": self.name, "namespace": "ml" },
            "spec": {
                "schedulerName": "the-test", "nodeSelector": selector,
                "hostNetwork": true, "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 1,
                "initContainers": self.inits.iter().map(init).collect::<Vec<_>>(),
                "containers": self.apps.iter().map(|name| container(name)).collect::<Vec<_>>(),
            },
        })
    }
}

/// A node with two GPUs, whose device plugin registers with an agent.
pub(super) struct SteeredNode {
    agent: Agent,
    node: RealNode,
    plane: ControlPlane,
}

/// Kills the agent and starts it at once, as a DaemonSet does a moment later.
pub(super) fn kill_agent(node: &mut SteeredNode) {
    node.agent.process.stop();
    node.agent.process.start();
}

/// Kills the device plugin and starts it at once.
pub(super) fn kill_device_plugin(node: &mut SteeredNode) {
    node.node.stop_device_plugin();
    node.node.start_device_plugin();
}

/// Stops the agent for a while, as a node without CPU time does.
pub(super) async fn hang_agent(node: &SteeredNode) {
    node.agent.process.pause();
    pause(Duration::from_millis(1_500)).await;
    node.agent.process.resume();
}

impl SteeredNode {
    /// A node whose device plugin registers with the agent.
    pub(super) async fn start() -> Option<SteeredNode> {
        let socket = "--kubelet-socket=/var/lib/kubelet/device-plugins/vramguard.sock";
        SteeredNode::start_with(&[socket, "--preferred-allocation"], &[]).await
    }

    /// A node with these further arguments of device plugin and agent, once the agent steers.
    pub(super) async fn start_with(plugin: &[&str], agent: &[&str]) -> Option<SteeredNode> {
        let node = SteeredNode::launch(plugin, agent).await?;
        node.steers().await;
        Some(node)
    }

    /// As [`SteeredNode::start_with`], once the kubelet has its devices, and whether the agent steers or not.
    pub(super) async fn launch(plugin: &[&str], agent: &[&str]) -> Option<SteeredNode> {
        let plane = ControlPlane::start().await;
        let gpus = GpuNode { gpus: 2, replicas: REPLICAS, ..GpuNode::new(RealNode::NAME) };
        let node = match RealNode::try_launch(&plane, &gpus, plugin).await {
            Ok(node) => node,
            Err(skip) => {
                println!("{skip}");
                return None;
            }
        };
        let mut node = SteeredNode { agent: Agent::new(&plane, &node, agent).await, node, plane };
        node.start_agent();
        node.ready().await;
        node.node.label(&node.plane, gpus.labels()).await;
        Some(node)
    }

    pub(super) fn start_agent(&mut self) {
        self.agent.process.start();
    }

    pub(super) fn stop_agent(&mut self) {
        assert!(self.agent.process.terminate(Duration::from_secs(20)).success(), "{}", self.logs());
    }

    /// Waits until the kubelet has its devices.
    pub(super) async fn ready(&mut self) {
        self.node.ready(&self.plane).await;
    }

    /// What the agent reports.
    pub(super) async fn report(&self) -> anyhow::Result<Value> {
        Ok(self.ledger().await?["status"]["agent"].clone())
    }

    /// Waits until the agent reports that it steers.
    pub(super) async fn steers(&self) {
        eventually("the agent to steer", PATIENCE, async || {
            let section = self.report().await?;
            ensure!(section["allocationPolicy"] == "Steered", "{}{}", section["notSteered"], self.logs());
            Ok(())
        })
        .await;
    }

    async fn ledger(&self) -> anyhow::Result<Value> {
        let found = self.plane.kubectl(&["get", "gpuledger", RealNode::NAME, "-o", "json"]).await;
        ensure!(found.status.success(), "{}{}", found.stderr, self.logs());
        Ok(serde_json::from_str(&found.stdout)?)
    }

    /// The agent is killed and not started again.
    pub(super) fn lose_agent(&mut self) {
        self.agent.process.stop();
    }

    /// The device plugin, which is killed and started again after a pause.
    pub(super) async fn restart_device_plugin(&mut self, pause_of: Duration) {
        self.node.stop_device_plugin();
        pause(pause_of).await;
        self.node.start_device_plugin();
    }

    /// Version of the kubelet, as it tells the API server.
    pub(super) async fn kubelet_version(&self) -> String {
        let path = "jsonpath={.status.nodeInfo.kubeletVersion}";
        self.plane.kubectl(&["get", "node", RealNode::NAME, "-o", path]).await.expect_success()
    }

    pub(super) fn kill_runtime(&self) {
        self.node.kill_runtime();
    }

    /// Stops the API server for a while.
    pub(super) async fn hang_api_server(&self) {
        self.plane.pause_component(Component::ApiServer);
        pause(Duration::from_secs(3)).await;
        self.plane.resume_component(Component::ApiServer);
    }

    pub(super) async fn restart_kubelet(&mut self) {
        self.node.restart_kubelet(&self.plane).await;
    }

    /// Creates the pods, reserves their GPUs and binds them.
    pub(super) async fn create(&self, pods: &[Wanted]) {
        let items: Vec<Value> = pods.iter().map(Wanted::object).collect();
        self.plane.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string()).await;
        let objects = self.objects().await.expect("the pods can be listed");
        let uid = |pod: &Wanted| objects[&pod.name].metadata.uid.clone().expect("an object has a uid");
        let ledger = self.ledger().await.expect("the agent made the ledger");
        let mut rows = ledger["spec"]["reservations"].as_array().cloned().unwrap_or_default();
        rows.extend(pods.iter().flat_map(|pod| pod.reservations(&uid(pod))));
        let patch = json!({ "spec": { "reservations": rows } }).to_string();
        let arguments = ["patch", "gpuledger", RealNode::NAME, "--type=merge", "-p", &patch];
        self.plane.kubectl(&arguments).await.expect_success();
        let client = self.plane.client();
        let bind = |pod: &Wanted| {
            let pods: Api<Pod> = Api::namespaced(client.clone(), "ml");
            let binding = json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": pod.name },
                "target": { "apiVersion": "v1", "kind": "Node", "name": RealNode::NAME } });
            let name = pod.name.clone();
            async move { pods.create_subresource::<Value, Value>("binding", &name, &PostParams::default(), &binding).await }
        };
        for bound in futures::future::join_all(pods.iter().map(bind)).await {
            bound.expect("a pod is bound once");
        }
    }

    pub(super) async fn delete(&self, pods: &[Wanted]) {
        let names = pods.iter().map(|pod| pod.name.as_str());
        let arguments: Vec<&str> =
            ["delete", "pod", "--namespace", "ml", "--wait=true"].into_iter().chain(names).collect();
        self.plane.kubectl(&arguments).await.expect_success();
    }

    async fn objects(&self) -> anyhow::Result<BTreeMap<String, Pod>> {
        let pods: Api<Pod> = Api::namespaced(self.plane.client(), "ml");
        let listed = pods.list(&ListParams::default()).await?;
        Ok(listed.into_iter().filter_map(|pod| Some((pod.metadata.name.clone()?, pod))).collect())
    }

    /// Waits until each pod has its devices or was rejected.
    pub(super) async fn outcomes(&self, pods: &[Wanted]) -> Vec<Outcome> {
        eventually("the kubelet to decide about all pods", PATIENCE, async || {
            let (objects, checkpoint) = (self.objects().await?, self.checkpoint()?);
            pods.iter().map(|pod| outcome(pod, &objects, &checkpoint)).collect()
        })
        .await
    }

    /// What the kubelet says of each of the pods that it rejected.
    pub(super) async fn rejections(&self, pods: &[Wanted]) -> Vec<String> {
        let objects = self.objects().await.expect("the pods can be listed");
        let statuses = pods.iter().filter_map(|pod| objects.get(&pod.name)?.status.clone());
        statuses
            .filter(|status| status.phase.as_deref() == Some("Failed"))
            .filter_map(|status| status.message)
            .collect()
    }

    /// Devices by uid of the pod and name of the container, from the kubelet's checkpoint.
    fn checkpoint(&self) -> anyhow::Result<BTreeMap<(String, String), String>> {
        let file = self.node.kubelet_folder().join("device-plugins/kubelet_internal_checkpoint");
        let checkpoint: Value = serde_json::from_str(&std::fs::read_to_string(file)?)?;
        let entries = checkpoint["Data"]["PodDeviceEntries"].as_array().cloned().unwrap_or_default();
        let entry = |entry: &Value| {
            let text = |field: &str| entry[field].as_str().map(str::to_owned);
            Some(((text("PodUID")?, text("ContainerName")?), entry["DeviceIDs"].to_string()))
        };
        Ok(entries.iter().filter_map(entry).collect())
    }

    /// Waits until the pods run, on whichever GPU.
    pub(super) async fn running(&self, pods: &[Wanted]) {
        eventually("the pods to run", PATIENCE, async || {
            let objects = self.objects().await?;
            for pod in pods {
                let status = objects.get(&pod.name).and_then(|pod| pod.status.clone()).unwrap_or_default();
                ensure!(
                    status.phase.as_deref() == Some("Running"),
                    "{}: {:?} {:?}",
                    pod.name,
                    status.reason,
                    status.message
                );
            }
            Ok(())
        })
        .await;
    }

    /// Environment of the container `main` of a pod, once it runs.
    pub(super) async fn environment(&self, pod: &str) -> BTreeMap<String, String> {
        self.running(&[Wanted::pod(pod, A)]).await;
        RealNode::exec_env(&self.plane, "ml", pod, "main").await
    }

    fn agent_log(&self) -> String {
        std::fs::read_to_string(self.plane.folder().join("agent.log")).unwrap_or_default()
    }

    /// Whether no pod is on another GPU but those of which an answer says so.
    pub(super) fn are_right(&self, pods: &[Wanted], outcomes: &[Outcome]) -> bool {
        pods.iter().zip(outcomes).all(|(pod, outcome)| outcome.is_right() || self.is_excused(pod, outcome))
    }

    /// Whether each pod is on its GPU, but for those of which an answer says that it is not by the ledger.
    pub(super) fn are_placed(&self, pods: &[Wanted], outcomes: &[Outcome]) -> bool {
        let is_placed =
            |(pod, outcome): (&Wanted, &Outcome)| *outcome == Outcome::Placed || self.is_excused(pod, outcome);
        pods.iter().zip(outcomes).all(is_placed)
    }

    /// Whether a pod is on another GPU, and an answer says that it is not by the ledger. Without the API server the agent may not know the
    /// reservation of a pod that the kubelet knows already, and on a machine that is too busy an answer is late.
    pub(super) fn is_excused(&self, pod: &Wanted, outcome: &Outcome) -> bool {
        if !matches!(outcome, Outcome::Elsewhere(_)) {
            return false;
        }
        let of_pod = format!("ml/{}/", pod.name);
        // The caller of an answer that was late is not known.
        let is_of_pod = |caller: &str| caller.is_empty() || caller.starts_with(&of_pod);
        self.answers().iter().any(|answer| !answer.fallback.is_empty() && is_of_pod(&answer.caller))
    }

    /// All answers of the agent so far.
    pub(super) fn answers(&self) -> Vec<Answered> {
        self.agent_log().lines().filter_map(Answered::of_log).collect()
    }

    /// How long the kubelet waited for its answers, and what they were.
    pub(super) fn figures(&self) -> String {
        let answers = self.answers();
        let mut ms: Vec<f64> = answers.iter().map(|answer| answer.ms).collect();
        ms.sort_by(f64::total_cmp);
        let at = |share: f64| ms.get(((ms.len() as f64 - 1.0) * share) as usize).copied().unwrap_or_default();
        let mut text =
            format!("{} answers: p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms", ms.len(), at(0.5), at(0.99), at(1.0));
        let mut fallbacks: BTreeMap<&str, usize> = BTreeMap::new();
        for answer in &answers {
            *fallbacks.entry(&answer.fallback).or_default() += 1;
        }
        write!(text, "; {fallbacks:?}").expect("a text takes all");
        // A pod that the kubelet admits before fails.
        let mut starts = self.between("watching", "registered with the kubelet");
        starts.sort_by(f64::total_cmp);
        write!(text, "; from a start of the agent to its registration with the kubelet: {starts:.0?} ms")
            .expect("a text takes all");
        text
    }

    /// How often agents of this node have registered with the kubelet.
    pub(super) fn registrations(&self) -> usize {
        self.agent_log().lines().filter(|line| line.contains(r#""message":"registered with the kubelet""#)).count()
    }

    /// From each message of the agent that begins with `from` to the next one that begins with `to`, in ms.
    pub(super) fn between(&self, from: &str, to: &str) -> Vec<f64> {
        let (mut times, mut since) = (Vec::new(), None);
        for line in self.agent_log().lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let at = line["timestamp"].as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
            let message = line["message"].as_str().unwrap_or_default();
            if message.starts_with(from) {
                since = at;
            } else if message.starts_with(to) {
                let both = since.take().zip(at);
                times.extend(both.map(|(from, to)| to.duration_since(from).as_millis_f64()));
            }
        }
        times
    }

    pub(super) fn logs(&self) -> String {
        format!("\n{}{}", self.agent.process.log_tail(), self.node.kubelet_log_tail())
    }
}

fn outcome(
    pod: &Wanted,
    objects: &BTreeMap<String, Pod>,
    checkpoint: &BTreeMap<(String, String), String>,
) -> anyhow::Result<Outcome> {
    let object = objects.get(&pod.name).with_context(|| format!("{} is gone", pod.name))?;
    let status = object.status.clone().unwrap_or_default();
    if status.phase.as_deref() == Some("Failed") {
        return Ok(Outcome::Rejected(status.reason.unwrap_or_default()));
    }
    let uid = object.metadata.uid.clone().context("an object has a uid")?;
    for container in &pod.apps {
        let devices = checkpoint.get(&(uid.clone(), container.clone()));
        let devices = devices.with_context(|| format!("{}/{container} has no device: {:?}", pod.name, status.phase))?;
        if !devices.contains(pod.gpu) {
            return Ok(Outcome::Elsewhere(format!("{container}: {devices}")));
        }
    }
    // A pod may be rejected after its devices were allocated.
    ensure!(status.phase.as_deref() == Some("Running"), "{} is {:?}", pod.name, status.phase);
    Ok(Outcome::Placed)
}
