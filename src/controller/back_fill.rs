//! Adds missing annotations to pods whose binding bypassed the guard, or whose GPU was not known at the binding. Owns
//! how many pods are in progress and for how long; the annotations are decided in `capacity`.
//!
//! A write to a pod goes through the webhooks of others, and one of those may hang. So the upkeep of ledgers waits for
//! no pod, and a pod whose write hangs frees its permit after the time limit of one call.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::CALL_DEADLINE;
use crate::capacity::binding;
use crate::capacity::gpu::{GpuId, Pool};
use crate::capacity::name::PodUid;
use crate::capacity::node::holder::Holder;
use crate::k8s::object::PodObject;
use crate::k8s::pod;

/// Pods that are written at a time.
const PARALLEL: usize = 8;
/// Pods in progress, including those that wait for a permit.
const MAX_IN_HAND: usize = 256;

/// A pod that lacks annotations, and what they are derived from.
pub(super) struct MissingAnnotations {
    /// The pod's uid.
    pub uid: PodUid,
    /// What the pod holds.
    pub holder: Holder,
    /// The pod's GPU, if it is known.
    pub gpu: Option<GpuId>,
    /// The pools of the pod's node.
    pub pools: Arc<[Pool]>,
}

/// The pods in progress. Dropping this cancels all of them.
pub(super) struct BackFills {
    client: Client,
    /// Time limit for one pod, counted from when it gets a permit.
    deadline: Duration,
    permits: Arc<Semaphore>,
    in_hand: BTreeSet<PodUid>,
    tasks: JoinSet<BackFilled>,
}

/// The outcome for one pod.
struct BackFilled {
    uid: PodUid,
    node: String,
    written: anyhow::Result<()>,
}

impl BackFills {
    /// Creates an empty set.
    pub(super) fn new(client: Client) -> BackFills {
        BackFills {
            client,
            deadline: CALL_DEADLINE,
            permits: Arc::new(Semaphore::new(PARALLEL)),
            in_hand: BTreeSet::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Starts the writes to pods of a node that are not in progress yet. Returns `false` if there was no room for one
    /// of them; the caller then retries the node.
    pub(super) fn begin(&mut self, node: &str, lacking: Vec<MissingAnnotations>) -> bool {
        for pod in lacking {
            if self.in_hand.contains(&pod.uid) {
                continue;
            }
            if self.in_hand.len() >= MAX_IN_HAND {
                return false;
            }
            self.in_hand.insert(pod.uid.clone());
            let (client, permits, node) = (self.client.clone(), self.permits.clone(), node.to_owned());
            let deadline = self.deadline;
            self.tasks.spawn(async move {
                let _permit = permits.acquire().await.expect("the semaphore is never closed");
                let written = tokio::time::timeout(deadline, annotate(&client, &pod)).await;
                let written = written.context("no answer from the API server").flatten();
                let written = written.with_context(|| format!("annotations of pod {}", pod.holder.name));
                BackFilled { uid: pod.uid, node, written }
            });
        }
        true
    }

    /// Returns the nodes of pods whose write failed, among the pods finished since the last call.
    pub(super) fn failed(&mut self) -> BTreeSet<String> {
        let mut failed = BTreeSet::new();
        while let Some(done) = self.tasks.try_join_next() {
            let BackFilled { uid, node, written } =
                done.expect("a back-fill does not panic and is not aborted by itself");
            self.in_hand.remove(&uid);
            if let Err(error) = written {
                tracing::warn!("node {node:?}: {error:#}; trying again");
                failed.insert(node);
            }
        }
        failed
    }
}

async fn annotate(client: &Client, lacking: &MissingAnnotations) -> anyhow::Result<()> {
    let MissingAnnotations { uid, holder, gpu, pools } = lacking;
    let name = &holder.name;
    let lite: Api<PodObject> = Api::namespaced(client.clone(), &name.namespace);
    let Some(object) = lite.get_opt(&name.name).await? else { return Ok(()) };
    if pod::uid(&object.metadata) != *uid {
        return Ok(());
    }
    let mut annotations = binding::annotations(&pod::translate(&object, None, None), holder, gpu.as_ref(), pools);
    // An annotation that the pod has is kept: its containers started with that value.
    let there = object.metadata.annotations.unwrap_or_default();
    annotations.retain(|key, _| !there.contains_key(key));
    if annotations.is_empty() {
        return Ok(());
    }
    let patch = json!({ "metadata": { "uid": uid.to_string(), "annotations": annotations } });
    let pods: Api<Pod> = Api::namespaced(client.clone(), &name.namespace);
    match pods.patch(&name.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        written => Ok(written.map(|_| ())?),
    }
}

#[cfg(test)]
mod tests;
