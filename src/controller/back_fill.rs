//! Puts onto pods the annotations that they should have and have not, because their binding passed by the guard or their GPU was
//! not known then. Owns how many are in hand at a time and for how long; what is written is the core's.
//!
//! A write to a pod goes through the webhooks of others, and one of those may hang. So the upkeep of ledgers waits for no pod,
//! and a pod that hangs gives its turn back after the time of one call.

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
use crate::capacity::ledger::{Holder, PodUid};
use crate::k8s::object::PodObject;
use crate::k8s::pod;

/// Pods that are written at a time.
const PARALLEL: usize = 8;
/// Pods in hand, those that wait for their turn included.
const MAX_IN_HAND: usize = 256;

/// A pod that lacks annotations, and what they are made of.
pub struct Lacking {
    /// The pod.
    pub uid: PodUid,
    /// What it holds.
    pub holder: Holder,
    /// Its GPU, where that is known.
    pub gpu: Option<GpuId>,
    /// The pools of its node.
    pub pools: Arc<[Pool]>,
}

/// The pods in hand. Dropped, it gives them all up.
pub struct BackFills {
    client: Client,
    /// For one pod, once it is its turn.
    deadline: Duration,
    turns: Arc<Semaphore>,
    in_hand: BTreeSet<PodUid>,
    tasks: JoinSet<Done>,
}

/// What became of one pod.
struct Done {
    uid: PodUid,
    node: String,
    written: anyhow::Result<()>,
}

impl BackFills {
    /// None in hand.
    pub fn new(client: Client) -> BackFills {
        BackFills {
            client,
            deadline: CALL_DEADLINE,
            turns: Arc::new(Semaphore::new(PARALLEL)),
            in_hand: BTreeSet::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Takes the pods of a node in hand that are not yet. Returns whether there was a place for each; if not, the node has to
    /// be looked at again.
    pub fn begin(&mut self, node: &str, lacking: Vec<Lacking>) -> bool {
        for pod in lacking {
            if self.in_hand.contains(&pod.uid) {
                continue;
            }
            if self.in_hand.len() >= MAX_IN_HAND {
                return false;
            }
            self.in_hand.insert(pod.uid.clone());
            let (client, turns, node) = (self.client.clone(), self.turns.clone(), node.to_owned());
            let deadline = self.deadline;
            self.tasks.spawn(async move {
                let _turn = turns.acquire().await.expect("the semaphore is never closed");
                let written = tokio::time::timeout(deadline, annotate(&client, &pod)).await;
                let written = written.context("no answer from the API server").flatten();
                let written = written.with_context(|| format!("annotations of pod {}", pod.holder.name));
                Done { uid: pod.uid, node, written }
            });
        }
        true
    }

    /// The nodes of pods that could not be written, of those that are done with since this was last asked.
    pub fn failed(&mut self) -> BTreeSet<String> {
        let mut failed = BTreeSet::new();
        while let Some(done) = self.tasks.try_join_next() {
            let Done { uid, node, written } = done.expect("a back-fill does not panic and is not aborted by itself");
            self.in_hand.remove(&uid);
            if let Err(error) = written {
                tracing::warn!("node {node:?}: {error:#}; trying again");
                failed.insert(node);
            }
        }
        failed
    }
}

async fn annotate(client: &Client, lacking: &Lacking) -> anyhow::Result<()> {
    let Lacking { uid, holder, gpu, pools } = lacking;
    let name = &holder.name;
    let lite: Api<PodObject> = Api::namespaced(client.clone(), &name.namespace);
    let Some(object) = lite.get_opt(&name.name).await? else { return Ok(()) };
    if pod::uid(&object.metadata) != *uid {
        return Ok(());
    }
    let mut annotations = binding::annotations(&pod::translate(&object, None, None), holder, gpu.as_ref(), pools);
    // What is there was there when the containers started.
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
