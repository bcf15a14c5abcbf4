//! The cluster that figures are taken of: nodes, the guard, and the same cluster without the guard.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::ensure;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};

use crate::support::guard::{Guard, OnOutage, apply_manifests, configurations_reread};
use crate::support::objects::{ENFORCE, VRAM, agent_report};
use crate::support::{ControlPlane, GpuNode, PATIENCE, eventually};

/// Label of a node with the workload that it is for.
const POOL: &str = "figures.test/pool";
/// Kinds that make the API server call the guard, and that apply the shipped admission policies.
const ENTRIES: [&str; 3] =
    ["mutatingwebhookconfigurations", "validatingwebhookconfigurations", "validatingadmissionpolicybindings"];

/// A kind of pods, with its own namespace and nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Workload {
    /// GPU pods on nodes with several GPUs under steered accounting: each binding writes a reservation to the ledger.
    Steered,
    /// GPU pods on nodes with several GPUs under slot accounting: each binding writes a reservation too.
    Slot,
    /// GPU pods on nodes with one GPU: each binding is annotated.
    Single,
    /// Pods without GPUs in a guarded namespace: each binding is allowed by the uid of the pod.
    Plain,
}

impl Workload {
    pub(super) const ALL: [Workload; 4] = [Workload::Steered, Workload::Slot, Workload::Single, Workload::Plain];

    /// The comma-separated workloads in `VRAMGUARD_WORKLOADS`, or all of them.
    pub(super) fn chosen() -> Vec<Workload> {
        let Ok(names) = std::env::var("VRAMGUARD_WORKLOADS") else { return Workload::ALL.to_vec() };
        let named = |name: &str| {
            let found = Workload::ALL.into_iter().find(|workload| workload.name() == name);
            found.unwrap_or_else(|| panic!("VRAMGUARD_WORKLOADS: no workload {name:?}"))
        };
        names.split(',').map(named).collect()
    }

    /// Namespace of the pods, and value of the label of their nodes.
    pub(super) fn name(self) -> &'static str {
        match self {
            Workload::Steered => "steered",
            Workload::Slot => "slot",
            Workload::Single => "single",
            Workload::Plain => "plain",
        }
    }

    /// A node for this workload.
    pub(super) fn node(self, number: usize, gpus: u32, replicas: u32, memory_mib: u64) -> GpuNode {
        let labels = BTreeMap::from([(POOL.to_owned(), self.name().to_owned())]);
        GpuNode { gpus, replicas, memory_mib, labels, ..GpuNode::new(&format!("{}-{number}", self.name())) }
    }

    /// A pod of this workload, as a user writes it.
    pub(super) fn pod(self, name: &str, vram: &str) -> Value {
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
pub(super) struct FiguresCluster {
    pub guard: Guard,
    pub plane: ControlPlane,
    /// The nodes with GPUs.
    nodes: Vec<GpuNode>,
    /// Published VRAM of each node while nothing is bound.
    idle: BTreeMap<String, String>,
}

impl FiguresCluster {
    /// Starts a cluster with the guard. Each node publishes under its accounting mode when this returns.
    pub(super) async fn start(nodes: Vec<GpuNode>) -> FiguresCluster {
        let plane = ControlPlane::start().await;
        for node in &nodes {
            plane.add_gpu_node(node).await;
        }
        let guard = Guard::start(&plane, &[("cluster.yaml", ENFORCE)]).await;
        for workload in Workload::ALL {
            plane.kubectl(&["create", "namespace", workload.name()]).await.expect_success();
        }
        let mut cluster = FiguresCluster { guard, plane, nodes, idle: BTreeMap::new() };
        for node in cluster.nodes.iter().filter(|node| node.labels[POOL] == Workload::Steered.name()) {
            cluster.agent_reports(node).await;
        }
        cluster.nodes.retain(|node| node.gpus > 0);
        for node in &cluster.nodes {
            let published = cluster.publishes(&node.name, |_| true).await;
            cluster.idle.insert(node.name.clone(), published);
        }
        cluster
    }

    /// Reports steered accounting as the agent of a node, and waits for it.
    async fn agent_reports(&self, node: &GpuNode) {
        let patch = agent_report(node, "Steered");
        let mode = ["get", "gpuledger", &node.name, "-o", "jsonpath={.status.mode}"];
        eventually("the node to be under steered accounting", PATIENCE, async || {
            let report = ["patch", "gpuledger", &node.name, "--subresource=status", "--type=merge", "-p", &patch];
            let reported = self.plane.kubectl(&report).await;
            ensure!(reported.status.success(), "{}", reported.stderr);
            let mode = self.plane.kubectl(&mode).await.stdout;
            ensure!(mode == "steered", "{mode:?}{}", self.guard.server.log_tail());
            Ok(())
        })
        .await;
    }

    /// Waits until a node publishes a quantity for which `wanted` holds, and returns it.
    async fn publishes(&self, node: &str, wanted: impl Fn(&str) -> bool) -> String {
        eventually(&format!("{node} to publish VRAM"), PATIENCE, async || {
            let published = self.plane.published(node, VRAM).await?;
            ensure!(wanted(&published), "{published}{}", self.guard.server.log_tail());
            Ok(published)
        })
        .await
    }

    /// Removes the guard and publishes the sum of all GPUs on each node.
    pub(super) async fn without_guard(&mut self) {
        self.guard.server.terminate(Duration::from_secs(30));
        for kind in ENTRIES {
            let delete = ["delete", kind, "--all", "--wait=true"];
            self.plane.kubectl(&delete).await.expect_success();
        }
        for node in &self.nodes {
            let one = self.idle[&node.name].strip_suffix("Mi").and_then(|text| text.parse::<u64>().ok());
            // All GPUs of a node are alike. A node publishes their sum under slot accounting, else the size of one.
            let gpus = if node.labels[POOL] == Workload::Slot.name() { 1 } else { node.gpus };
            let all = one.expect("whole MiB are published so") * u64::from(gpus);
            self.plane.publish(&node.name, VRAM, Some(&format!("{all}Mi"))).await;
        }
        configurations_reread().await;
    }

    /// Restores the guard and all entries of the webhook configurations.
    pub(super) async fn with_guard(&mut self) {
        apply_manifests(&self.plane, "deploy", self.guard.https, OnOutage::AsShipped).await;
        self.guard.server.start();
        self.guard.ready(&self.plane).await;
        for (node, idle) in &self.idle {
            self.publishes(node, |published| published == idle).await;
        }
    }

    /// Deletes all pods of a workload, and waits until no ledger has a reservation.
    pub(super) async fn clear(&self, workload: Workload) {
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

    /// Number of bindings that the guard has answered, and how many of them it refused.
    pub(super) fn bindings(&self) -> (u64, u64) {
        let bindings = r#"vramguard_reviews_total{webhook="bind""#;
        (self.guard.sum(bindings), self.guard.sum(&format!(r#"{bindings},verdict="denied""#)))
    }
}
