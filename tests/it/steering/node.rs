//! A real node whose devices an agent steers, and what became of its pods.
//!
//! The test reserves the GPUs in place of the binding guard, so that it decides which they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde_json::{Value, json};
use vramguard::agent::kubelet::KubeletDirectory;
use vramguard::agent::kubelet::pod_resources::PodResourcesClient;

use super::A;
use super::excuse;
use super::process::{Agent, Answered};
use super::seen::{self, Devices, Outcome};
use super::wanted::Wanted;
use crate::support::{Component, ControlPlane, GpuNode, RealNode, eventually, pause};

/// Limit for pods to run: the test runtime copies files for each container.
const PATIENCE: Duration = Duration::from_secs(180);
/// Limit for one answer of the PodResources API.
const LIST: Duration = Duration::from_secs(5);

/// A node with several GPUs, whose device plugin registers with an agent.
pub(super) struct SteeredNode {
    agent: Agent,
    resources: PodResourcesClient,
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

impl SteeredNode {
    /// A node whose device plugin registers with the agent.
    pub(super) async fn start() -> Option<SteeredNode> {
        SteeredNode::start_of(2, 24).await
    }

    /// As [`SteeredNode::start`], with this many GPUs and replicas of each.
    pub(super) async fn start_of(gpus: u32, replicas: u32) -> Option<SteeredNode> {
        let socket = "--kubelet-socket=/var/lib/kubelet/device-plugins/vramguard.sock";
        let gpus = GpuNode { gpus, replicas, ..GpuNode::new(RealNode::NAME) };
        let node = SteeredNode::launch_of(gpus, &[socket, "--preferred-allocation"], &[]).await?;
        node.steers().await;
        Some(node)
    }

    /// A node with these further arguments of device plugin and agent, once the agent steers.
    pub(super) async fn start_with(plugin: &[&str], agent: &[&str]) -> Option<SteeredNode> {
        let node = SteeredNode::launch(plugin, agent).await?;
        node.steers().await;
        Some(node)
    }

    /// As [`SteeredNode::start_with`], once the kubelet has its devices, and whether the agent steers or not.
    pub(super) async fn launch(plugin: &[&str], agent: &[&str]) -> Option<SteeredNode> {
        let gpus = GpuNode { gpus: 2, replicas: 24, ..GpuNode::new(RealNode::NAME) };
        SteeredNode::launch_of(gpus, plugin, agent).await
    }

    async fn launch_of(gpus: GpuNode, plugin: &[&str], agent: &[&str]) -> Option<SteeredNode> {
        let plane = ControlPlane::start().await;
        let node = match RealNode::try_launch(&plane, &gpus, plugin).await {
            Ok(node) => node,
            Err(skip) => {
                println!("{skip}");
                return None;
            }
        };
        let resources = PodResourcesClient::new(&KubeletDirectory::new(node.kubelet_folder()));
        let mut node = SteeredNode { agent: Agent::new(&plane, &node, agent).await, resources, node, plane };
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

    /// Stops the agent for this time, as a node without CPU time does.
    pub(super) async fn hang_agent(&self, time: Duration) {
        self.agent.process.pause();
        pause(time).await;
        self.agent.process.resume();
    }

    /// Stops the API server for this time.
    pub(super) async fn hang_api_server(&self, time: Duration) {
        self.plane.pause_component(Component::ApiServer);
        pause(time).await;
        self.plane.resume_component(Component::ApiServer);
    }

    pub(super) async fn restart_kubelet(&mut self) {
        self.node.restart_kubelet(&self.plane).await;
    }

    /// The kubelet, which is killed and started again after a pause. Nothing waits until it has its devices.
    pub(super) async fn kill_kubelet(&mut self, pause_of: Duration) {
        self.node.stop_kubelet(&self.plane).await;
        pause(pause_of).await;
        self.node.start_kubelet();
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
        self.reserve(&rows).await;
        let client = self.plane.client();
        let bind = |pod: &Wanted| {
            let pods: Api<Pod> = Api::namespaced(client.clone(), "ml");
            let (name, binding) = (pod.name.clone(), pod.binding());
            async move { pods.create_subresource::<Value, Value>("binding", &name, &PostParams::default(), &binding).await }
        };
        for bound in futures::future::join_all(pods.iter().map(bind)).await {
            bound.expect("a pod is bound once");
        }
    }

    /// Deletes the pods, and releases their reservations once they are gone.
    pub(super) async fn delete(&self, pods: &[Wanted]) {
        let names = pods.iter().map(|pod| pod.name.as_str());
        let arguments: Vec<&str> =
            ["delete", "pod", "--namespace", "ml", "--wait=true"].into_iter().chain(names).collect();
        self.plane.kubectl(&arguments).await.expect_success();
        let ledger = self.ledger().await.expect("the agent made the ledger");
        let mut rows = ledger["spec"]["reservations"].as_array().cloned().unwrap_or_default();
        rows.retain(|row| pods.iter().all(|pod| row["pod"] != pod.name));
        self.reserve(&rows).await;
    }

    async fn reserve(&self, rows: &[Value]) {
        let patch = json!({ "spec": { "reservations": rows } }).to_string();
        let arguments = ["patch", "gpuledger", RealNode::NAME, "--type=merge", "-p", &patch];
        self.plane.kubectl(&arguments).await.expect_success();
    }

    async fn objects(&self) -> anyhow::Result<BTreeMap<String, Pod>> {
        let pods: Api<Pod> = Api::namespaced(self.plane.client(), "ml");
        let listed = pods.list(&ListParams::default()).await?;
        Ok(listed.into_iter().filter_map(|pod| Some((pod.metadata.name.clone()?, pod))).collect())
    }

    /// Waits until each pod runs with its devices or was rejected.
    pub(super) async fn outcomes(&self, pods: &[Wanted]) -> Vec<Outcome> {
        self.observed_outcomes(pods, |_| {}).await
    }

    /// As [`SteeredNode::outcomes`]. Each answer of the PodResources API meanwhile is told.
    pub(super) async fn observed_outcomes(&self, pods: &[Wanted], mut tell: impl FnMut(&Devices)) -> Vec<Outcome> {
        eventually("the kubelet to decide about all pods", PATIENCE, async || {
            let listed = seen::listed(&self.resources.list(LIST).await?);
            tell(&listed);
            let file = self.node.kubelet_folder().join("device-plugins/kubelet_internal_checkpoint");
            let recorded = seen::recorded(&std::fs::read_to_string(file)?)?;
            let objects = self.objects().await?;
            let outcome = |pod: &Wanted| {
                let object = objects.get(&pod.name).with_context(|| format!("{} is gone", pod.name))?;
                seen::outcome(pod, object, &listed, &recorded)
            };
            pods.iter().map(outcome).collect()
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

    /// Whether no pod is on another GPU, except those that an answer excuses.
    pub(super) fn are_right(&self, pods: &[Wanted], outcomes: &[Outcome]) -> bool {
        let excused = self.excused(outcomes);
        pods.iter().zip(outcomes).all(|(pod, outcome)| outcome.is_right(pod) || excused.contains(&pod.name))
    }

    /// Whether each pod is on its GPU, or rejected because it is for another node, or excused by an answer.
    pub(super) fn are_placed(&self, pods: &[Wanted], outcomes: &[Outcome]) -> bool {
        let excused = self.excused(outcomes);
        pods.iter().zip(outcomes).all(|(pod, outcome)| outcome.is_as_wanted(pod) || excused.contains(&pod.name))
    }

    /// The names of the pods that are on another GPU, and that an answer excuses: see [`excuse`].
    pub(super) fn excused(&self, outcomes: &[Outcome]) -> BTreeSet<String> {
        let misplaced = outcomes.iter().filter_map(|outcome| match outcome {
            Outcome::Elsewhere(misplaced) => Some(misplaced),
            Outcome::Placed | Outcome::Rejected(_) => None,
        });
        excuse::excused(&misplaced.collect::<Vec<_>>(), &self.answers())
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
