//! Owns a guarded cluster: a control plane with kwok nodes, the manifests of `deploy/` and one server under them.

use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::Api;
use kube::api::ListParams;

use super::guard::Guard;
use super::objects::{VRAM, node_of};
use super::{ControlPlane, GpuNode, eventually, stays};

/// Limit for effects that take the control plane a few seconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A control plane and the server that guards it.
pub(crate) struct GuardedCluster {
    // Dropped in this order: the folder of the control plane holds the server's log.
    pub guard: Guard,
    pub plane: ControlPlane,
}

impl GuardedCluster {
    /// Starts a cluster with namespace `ml`; each node publishes VRAM when this returns.
    pub(crate) async fn start(nodes: &[GpuNode], policies: &[(&str, &str)]) -> GuardedCluster {
        GuardedCluster::start_with(nodes, policies, &[]).await
    }

    /// As [`GuardedCluster::start`], with further flags for the server.
    pub(crate) async fn start_with(nodes: &[GpuNode], policies: &[(&str, &str)], flags: &[&str]) -> GuardedCluster {
        let plane = ControlPlane::start().await;
        for node in nodes {
            plane.add_gpu_node(node).await;
        }
        let guard = Guard::start_with(&plane, policies, flags).await;
        let cluster = GuardedCluster { guard, plane };
        cluster.namespace("ml").await;
        for node in nodes {
            cluster.published(&node.name).await;
        }
        cluster
    }

    /// Creates a namespace.
    pub(crate) async fn namespace(&self, name: &str) {
        self.plane.kubectl(&["create", "namespace", name]).await.expect_success();
    }

    /// Waits until a node publishes VRAM, and returns the quantity.
    pub(crate) async fn published(&self, node: &str) -> String {
        eventually("the node to publish VRAM", PATIENCE, async || self.plane.published(node, VRAM).await).await
    }

    /// All pods of a namespace.
    pub(crate) async fn pods(&self, namespace: &str) -> Vec<Pod> {
        let pods: Api<Pod> = Api::namespaced(self.plane.client(), namespace);
        pods.list(&ListParams::default()).await.expect("pods can be listed").items
    }

    /// The pods of a namespace, if as many as expected are bound and as many wait; else an error with the counts.
    async fn counted(&self, namespace: &str, bound: usize, waiting: usize) -> anyhow::Result<Vec<Pod>> {
        let pods = self.pods(namespace).await;
        let on_nodes = pods.iter().filter(|pod| node_of(pod).is_some()).count();
        ensure!(
            (on_nodes, pods.len() - on_nodes) == (bound, waiting),
            "{on_nodes} bound, {} waiting, expected {bound} and {waiting}{}",
            pods.len() - on_nodes,
            self.guard.server.log_tail()
        );
        Ok(pods)
    }

    /// Waits until exactly `bound` pods of a namespace are bound and `waiting` are not.
    pub(crate) async fn settles(&self, namespace: &str, bound: usize, waiting: usize) -> Vec<Pod> {
        eventually("the pods to settle", PATIENCE, async || self.counted(namespace, bound, waiting).await).await
    }

    /// Asserts for `how_long` that the counts of [`GuardedCluster::settles`] do not change.
    pub(crate) async fn stays_settled(&self, namespace: &str, bound: usize, waiting: usize, how_long: Duration) {
        stays("the counts of pods", how_long, async || self.counted(namespace, bound, waiting).await.map(drop)).await;
    }

    /// Waits until a pod is bound.
    pub(crate) async fn bound(&self, namespace: &str, name: &str) {
        let pods: Api<Pod> = Api::namespaced(self.plane.client(), namespace);
        eventually(&format!("pod {namespace}/{name} to be bound"), PATIENCE, async || {
            ensure!(node_of(&pods.get(name).await?).is_some(), "no node{}", self.guard.server.log_tail());
            Ok(())
        })
        .await;
    }

    /// Waits for an event with this reason whose message contains `text`, and returns the message.
    pub(crate) async fn event(&self, namespace: &str, reason: &str, text: &str) -> String {
        let events: Api<Event> = Api::namespaced(self.plane.client(), namespace);
        eventually(&format!("an event {reason} with {text:?}"), PATIENCE, async || {
            let events = events.list(&ListParams::default()).await?.items;
            let seen =
                || events.iter().map(|e| format!("{:?} {:?}", e.reason, e.message)).collect::<Vec<_>>().join("\n");
            let found = events.iter().find(|event| {
                event.reason.as_deref() == Some(reason) && event.message.as_deref().unwrap_or_default().contains(text)
            });
            Ok(found.with_context(seen)?.message.clone().unwrap_or_default())
        })
        .await
    }
}
