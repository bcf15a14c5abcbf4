//! The cluster that figures are taken of: nodes, the guard, and the same cluster without the guard.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};

use crate::cluster::{PATIENCE, VRAM};
use crate::guard::{Guard, OnOutage, apply_manifests};
use crate::support::{ControlPlane, GpuNode, eventually, pause};

/// Label of nodes: the workload that they are for.
const POOL: &str = "figures.test/pool";
/// What stands before the API server's calls of the guard, and the policies shipped beside it.
const ENTRIES: [&str; 3] =
    ["mutatingwebhookconfigurations", "validatingwebhookconfigurations", "validatingadmissionpolicybindings"];

/// Pods of a kind, in a namespace of their own and on nodes of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Workload {
    /// Onto nodes with several GPUs under pinned accounting: a binding is a promise in the ledger.
    Pinned,
    /// Onto nodes with several GPUs of which nobody says how they are handed out: a promise too, and the node publishes room for
    /// one pod at a time.
    Slot,
    /// Onto nodes with one GPU: a binding is annotated.
    Single,
    /// Without GPUs, in a namespace that is guarded: a binding is let through by its uid.
    Plain,
}

impl Workload {
    pub const ALL: [Workload; 4] = [Workload::Pinned, Workload::Slot, Workload::Single, Workload::Plain];

    /// Those that `VRAMGUARD_WORKLOADS` names, with commas between; all without it.
    pub fn chosen() -> Vec<Workload> {
        let Ok(names) = std::env::var("VRAMGUARD_WORKLOADS") else { return Workload::ALL.to_vec() };
        let named = |name: &str| {
            let found = Workload::ALL.into_iter().find(|workload| workload.name() == name);
            found.unwrap_or_else(|| panic!("VRAMGUARD_WORKLOADS: no workload {name:?}"))
        };
        names.split(',').map(named).collect()
    }

    /// Its namespace, and the value of the label of its nodes.
    pub fn name(self) -> &'static str {
        match self {
            Workload::Pinned => "pinned",
            Workload::Slot => "slot",
            Workload::Single => "single",
            Workload::Plain => "plain",
        }
    }

    /// A node for it.
    pub fn node(self, number: usize, gpus: u32, replicas: u32, memory_mib: u64) -> GpuNode {
        let labels = BTreeMap::from([(POOL.to_owned(), self.name().to_owned())]);
        GpuNode { gpus, replicas, memory_mib, labels, ..GpuNode::new(&format!("{}-{number}", self.name())) }
    }

    /// A pod as a user writes it.
    pub fn pod(self, name: &str, vram: &str) -> Value {
        let mut container = json!({"name": "main", "image": "none"});
        let mut metadata = json!({"name": name, "namespace": self.name()});
        if self != Workload::Plain {
            container["resources"] = json!({"limits": {"nvidia.com/gpu": "1"}});
            metadata["annotations"] = json!({"vramguard.dev/vram": vram});
        }
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
            "spec": {"terminationGracePeriodSeconds": 0, "nodeSelector": {POOL: self.name()}, "containers": [container]},
        })
    }
}

/// A cluster. The server ends before the control plane does.
pub struct Site {
    pub guard: Guard,
    pub plane: ControlPlane,
    /// Those with GPUs.
    nodes: Vec<GpuNode>,
    /// What each node publishes while nothing is bound.
    idle: BTreeMap<String, String>,
}

impl Site {
    /// With the guard; when this returns, each node publishes in its accounting mode.
    pub async fn start(nodes: Vec<GpuNode>) -> Site {
        let plane = ControlPlane::start().await;
        for node in &nodes {
            plane.add_gpu_node(node).await;
        }
        let guard = Guard::start(&plane, &policies()).await;
        for workload in Workload::ALL {
            plane.kubectl(&["create", "namespace", workload.name()]).await.expect_success();
        }
        let mut site = Site { guard, plane, nodes, idle: BTreeMap::new() };
        for node in site.nodes.iter().filter(|node| node.labels[POOL] == Workload::Pinned.name()) {
            site.agent_reports(node).await;
        }
        site.nodes.retain(|node| node.gpus > 0);
        for node in &site.nodes {
            let published = site.publishes(&node.name, |_| true).await;
            site.idle.insert(node.name.clone(), published);
        }
        site
    }

    /// What a node agent reports that knows that the annotation decides.
    async fn agent_reports(&self, node: &GpuNode) {
        let gpu = |index: u32| {
            json!({"resource": node.resource, "replicas": node.replicas, "uuid": format!("GPU-{}-{index}", node.name),
                   "index": index, "totalMiB": node.memory_mib, "reservedMiB": 0, "outOfBandMiB": 0})
        };
        let gpus: Vec<Value> = (0..node.gpus).map(gpu).collect();
        let agent = json!({"time": "2026-01-01T00:00:00Z", "handout": "Pinned", "gpus": gpus, "pods": []});
        let patch = json!({"status": {"agent": agent}}).to_string();
        let mode = ["get", "gpuledger", &node.name, "-o", "jsonpath={.status.mode}"];
        eventually("the node to be under pinned accounting", PATIENCE, async || {
            let report = ["patch", "gpuledger", &node.name, "--subresource=status", "--type=merge", "-p", &patch];
            let reported = self.plane.kubectl(&report).await;
            ensure!(reported.status.success(), "{}", reported.stderr);
            let mode = self.plane.kubectl(&mode).await.stdout;
            ensure!(mode == "pinned", "{mode:?}{}", self.guard.server.log_tail());
            Ok(())
        })
        .await;
    }

    /// Waits until a node publishes what is wanted, and returns it.
    async fn publishes(&self, node: &str, wanted: impl Fn(&str) -> bool) -> String {
        let nodes: Api<Node> = Api::all(self.plane.client());
        eventually(&format!("{node} to publish VRAM"), PATIENCE, async || {
            let allocatable = nodes.get(node).await?.status.and_then(|status| status.allocatable);
            let published = allocatable.and_then(|mut list| list.remove(VRAM)).context("it publishes none")?.0;
            ensure!(wanted(&published), "{published}{}", self.guard.server.log_tail());
            Ok(published)
        })
        .await
    }

    /// As a cluster without the guard, whose nodes have a number that somebody wrote once: what all GPUs hold together.
    pub async fn without_guard(&mut self) {
        self.guard.server.terminate(Duration::from_secs(30));
        for kind in ENTRIES {
            let delete = ["delete", kind, "--all", "--wait=true"];
            self.plane.kubectl(&delete).await.expect_success();
        }
        for node in &self.nodes {
            let one = self.idle[&node.name].strip_suffix("Mi").and_then(|text| text.parse::<u64>().ok());
            // All GPUs of a node are alike; under slot accounting it publishes all of them, else one.
            let gpus = if node.labels[POOL] == Workload::Slot.name() { 1 } else { node.gpus };
            let all = one.expect("whole MiB are published so") * u64::from(gpus);
            self.plane.publish(&node.name, VRAM, Some(&format!("{all}Mi"))).await;
        }
        // The API server reads webhook configurations through a watch of its own.
        pause(Duration::from_secs(2)).await;
    }

    /// The guard again, all entries of the webhook configurations included.
    pub async fn with_guard(&mut self) {
        apply_manifests(&self.plane, "deploy", self.guard.https, OnOutage::AsShipped).await;
        self.guard.server.start();
        self.guard.ready(&self.plane).await;
        for (node, idle) in &self.idle {
            self.publishes(node, |published| published == idle).await;
        }
    }

    /// Deletes all pods of a workload and waits until no ledger holds any.
    pub async fn clear(&self, workload: Workload) {
        let pods: Api<Pod> = Api::namespaced(self.plane.client(), workload.name());
        let at_once = DeleteParams::default().grace_period(0);
        pods.delete_collection(&at_once, &ListParams::default()).await.expect("pods can be deleted");
        let rows = ["get", "gpuledgers", "-o", "jsonpath={.items[*].spec.reservations[*].uid}"];
        eventually("the pods to be gone and forgotten", PATIENCE, async || {
            let left = pods.list_metadata(&ListParams::default()).await?.items.len();
            ensure!(left == 0, "{left} pods are left");
            let rows = self.plane.kubectl(&rows).await.expect_success();
            ensure!(rows.is_empty(), "{} reservations are left", rows.split(' ').count());
            Ok(())
        })
        .await;
    }

    /// How many bindings the guard has answered, and how many of them it refused.
    pub fn bindings(&self) -> (u64, u64) {
        let metrics = self.guard.metrics();
        let sum = |labels: &str| -> u64 {
            let lines = metrics.lines().filter(|line| line.starts_with(labels));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
        };
        let of = r#"vramguard_reviews_total{webhook="bind""#;
        (sum(of), sum(&format!(r#"{of},verdict="denied""#)))
    }
}

fn policies() -> [(&'static str, &'static str); 2] {
    const CLUSTER: &str = "apiVersion: vramguard.dev/v1alpha1\nkind: ClusterVramPolicy\nmetadata: {name: cluster}\nspec: {mode: Enforce}\n";
    const PINNED: &str = "apiVersion: vramguard.dev/v1alpha1\nkind: VramPolicy\nmetadata: {name: p, namespace: pinned}\nspec: \
                          {environment: {visibleDevices: Pin}}\n";
    [("cluster.yaml", CLUSTER), ("pinned.yaml", PINNED)]
}
