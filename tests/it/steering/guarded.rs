//! Server, agent, kubelet and scheduler together: pods that are larger than a slot share the GPUs of one node.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::process::Agent;
use super::{A, B};
use crate::support::guard::Guard;
use crate::support::http::metric;
use crate::support::objects::{ENFORCE, VRAM};
use crate::support::{ControlPlane, GpuNode, RealNode, eventually, stays};

/// Limit for pods to run: the test runtime copies files for each container.
const PATIENCE: Duration = Duration::from_secs(180);

/// A guarded cluster with one real node of two GPUs, whose agent steers.
pub(super) struct Cluster {
    // Dropped in this order: the control plane holds the machine-wide lock.
    pub agent: Agent,
    guard: Guard,
    pub node: RealNode,
    pub plane: ControlPlane,
}

impl Cluster {
    /// A cluster with these further arguments of device plugin and agent, once the node is steered.
    pub(super) async fn start(plugin: &[&str], agent: &[&str]) -> Option<Cluster> {
        let plane = ControlPlane::start().await;
        let gpus = GpuNode { gpus: 2, ..GpuNode::new(RealNode::NAME) };
        let mut node = match RealNode::try_launch(&plane, &gpus, plugin).await {
            Ok(node) => node,
            Err(skip) => {
                println!("{skip}");
                return None;
            }
        };
        let guard = Guard::start(&plane, &[("cluster.yaml", ENFORCE)]).await;
        let mut agent = Agent::new(&plane, &node, agent).await;
        agent.process.start();
        node.ready(&plane).await;
        node.label(&plane, gpus.labels()).await;
        let cluster = Cluster { agent, guard, node, plane };
        cluster.counts_as("steered").await;
        Some(cluster)
    }

    pub(super) fn logs(&self) -> String {
        let (agent, server) = (self.agent.process.log_tail(), self.guard.server.log_tail());
        format!("\n{agent}{server}{}", self.node.kubelet_log_tail())
    }

    pub(super) async fn ledger(&self) -> anyhow::Result<Value> {
        let found = self.plane.kubectl(&["get", "gpuledger", RealNode::NAME, "-o", "json"]).await;
        ensure!(found.status.success(), "{}", found.stderr);
        Ok(serde_json::from_str(&found.stdout)?)
    }

    /// Waits until the server counts the node in an accounting mode.
    async fn counts_as(&self, mode: &str) {
        eventually(&format!("the node to count as {mode}"), PATIENCE, async || {
            let ledger = self.ledger().await?;
            ensure!(ledger["status"]["mode"] == mode, "{}{}", ledger["status"], self.logs());
            Ok(())
        })
        .await;
    }

    async fn create(&self, names: &[&str]) {
        self.create_each(names, "10Gi").await;
    }

    /// Creates pods that each declare this amount.
    pub(super) async fn create_each(&self, names: &[&str], amount: &str) {
        let pod = |name: &&str| {
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": { "name": name, "namespace": "ml", "annotations": { "vramguard.dev/vram": amount } },
                "spec": {
                    "hostNetwork": true, "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 1,
                    "containers": [{ "name": "main", "image": RealNode::IMAGE, "imagePullPolicy": "Never",
                        "resources": { "limits": { "nvidia.com/gpu": "1" } } }],
                },
            })
        };
        let items: Vec<Value> = names.iter().map(pod).collect();
        self.plane.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string()).await;
    }

    /// The phases of the pods, by name, and their uids.
    async fn phases(&self) -> anyhow::Result<BTreeMap<String, (String, String)>> {
        let listed = self.plane.kubectl(&["--namespace", "ml", "get", "pods", "-o", "json"]).await;
        ensure!(listed.status.success(), "{}", listed.stderr);
        let listed: Value = serde_json::from_str(&listed.stdout)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let pods = listed["items"].as_array().context("a list")?.iter();
        Ok(pods
            .map(|pod| (text(&pod["metadata"]["name"]), (text(&pod["status"]["phase"]), text(&pod["metadata"]["uid"]))))
            .collect())
    }

    /// The names of the pods that run, if as many run and wait as expected.
    async fn counted(&self, running: usize, waiting: usize) -> anyhow::Result<Vec<String>> {
        let phases = self.phases().await?;
        let of = |phase: &str| {
            let names = phases.iter().filter(|(_, (its, _))| its == phase).map(|(name, _)| name.clone());
            names.collect::<Vec<_>>()
        };
        let (run, wait) = (of("Running"), of("Pending"));
        ensure!((run.len(), wait.len()) == (running, waiting), "{phases:?}{}", self.logs());
        Ok(run)
    }

    pub(super) async fn settles(&self, running: usize, waiting: usize) -> Vec<String> {
        eventually("the pods to settle", PATIENCE, async || self.counted(running, waiting).await).await
    }

    /// Asserts that the running pods are on the GPUs that the ledger reserved, two on each. The kubelet's checkpoint
    /// tells where they are.
    async fn is_right(&self, running: &[String]) {
        let phases = self.phases().await.expect("the pods can be listed");
        eventually("the ledger to agree with the kubelet", PATIENCE, async || {
            let file = self.node.kubelet_folder().join("device-plugins/kubelet_internal_checkpoint");
            let checkpoint: Value = serde_json::from_str(&std::fs::read_to_string(file)?)?;
            let ledger = self.ledger().await?;
            let mut on: BTreeMap<&str, usize> = BTreeMap::new();
            for name in running {
                let uid = &phases[name].1;
                let rows = ledger["spec"]["reservations"].as_array().context("reservations")?;
                let row = rows.iter().find(|row| row["uid"] == **uid).with_context(|| format!("{name}: {ledger}"))?;
                let reserved = row["gpu"].as_str().context("a reservation names a GPU")?;
                let entries = checkpoint["Data"]["PodDeviceEntries"].as_array().context("entries")?;
                let entry = entries.iter().find(|entry| entry["PodUID"] == **uid).context("devices")?;
                let gpu =
                    [A, B].into_iter().find(|gpu| entry["DeviceIDs"].to_string().contains(gpu)).context("a GPU")?;
                ensure!(gpu == reserved, "{name} is on {gpu}, reserved is {reserved}{}", self.logs());
                *on.entry(gpu).or_default() += 1;
            }
            ensure!(on.values().all(|count| *count == 2), "{on:?}");
            Ok(())
        })
        .await;
    }
}

#[tokio::test]
async fn pods_larger_than_a_slot_run_while_the_agent_steers_and_wait_while_it_does_not() {
    let socket = "--kubelet-socket=/var/lib/kubelet/device-plugins/vramguard.sock";
    runs_pods_larger_than_a_slot(&[socket, "--preferred-allocation"], &[]).await;
}

/// Runs pods that are larger than a slot, with and without an agent, which has these further arguments as the plugin has.
pub(super) async fn runs_pods_larger_than_a_slot(plugin: &[&str], agent: &[&str]) {
    let Some(mut cluster) = Cluster::start(plugin, agent).await else { return };
    // A GPU of 24 GiB has room for two pods of 10960Mi. A slot is 5967Mi.
    cluster.create(&["p0", "p1", "p2", "p3", "p4"]).await;
    let running = cluster.settles(4, 1).await;
    cluster.is_right(&running).await;
    // 4 × 10960, and 1950 for the largest pod that still fits on one of them.
    assert_eq!(cluster.plane.published(RealNode::NAME, VRAM).await.expect("an amount"), "45790Mi");
    assert_eq!(metric(cluster.agent.http, "vramguard_agent_steered"), Some(1.0));
    assert_eq!(metric(cluster.agent.http, "vramguard_agent_steer_answers_total"), Some(4.0));

    // An agent that is told to stop says so first. The node keeps its devices and its pods, and has slots for new ones.
    let stopped = cluster.agent.process.terminate(Duration::from_secs(20));
    assert!(stopped.success(), "{stopped}{}", cluster.logs());
    let section = cluster.ledger().await.expect("a ledger")["status"]["agent"].clone();
    assert_eq!((&section["allocationPolicy"], &section["notSteered"]), (&Value::Null, &json!("the agent has stopped")));
    cluster.counts_as("slot").await;
    cluster.plane.kubectl(&["--namespace", "ml", "delete", "pod", &running[0], "--wait=true"]).await.expect_success();
    stays("a pod that fits no slot", Duration::from_secs(10), async || cluster.counted(3, 1).await.map(drop)).await;
    cluster.node.ready(&cluster.plane).await;

    cluster.agent.process.start();
    cluster.counts_as("steered").await;
    let running = cluster.settles(4, 0).await;
    cluster.is_right(&running).await;
}
