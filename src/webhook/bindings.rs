//! `/mutate/bindings`: the binding guard, which reserves a pod's place on a node before the pod is bound.
//!
//! Owns the order of reading, deciding, writing and answering, the deadline, and the batches of bindings to one node.
//! Every decision is made by `capacity`.
//!
//! Any replica may answer any binding. Only the compare-and-swap on the node's ledger keeps the node from being
//! overcommitted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::Response;
use kube::{Api, Client};
use parking_lot::Mutex;

use self::batch::{LedgerBatch, PendingBinding, Source};
use super::intake::Received;
use super::{Decided, Read, Webhook};
use crate::capacity::binding::{self, Binding};
use crate::capacity::name::PodUid;
use crate::capacity::time::Moment;
use crate::capacity::verdict::Refusal;
use crate::k8s::object::{BindingObject, PodObject};
use crate::k8s::pod::Guarded;
use crate::k8s::review::{Answer, Request};
use crate::state::index::Index;

mod batch;

/// Time limit for an answer.
///
/// It is shorter than the 4 s of the webhook configuration, because a refusal names its reason and a timeout does not.
/// It is long enough for a busy API server, which may take more than a second for a write. A binding that is refused
/// for that has to be repeated, which adds load.
const DEADLINE: Duration = Duration::from_secs(3);
/// Time that this replica's watch gets, once, to catch up with the scheduler's before a refusal for lack of memory.
const WATCH_LAG: Duration = Duration::from_millis(150);

/// State of the guard, apart from the index of the cluster.
pub struct BindingGuard {
    client: Client,
    binders: BTreeSet<String>,
    /// By node: the bindings that wait for a write of its ledger, and the ledger as this replica wrote it last.
    ///
    /// Batches keep bindings of this replica from conflicting with each other. They do not exclude other replicas.
    batches: Mutex<BTreeMap<String, Arc<LedgerBatch>>>,
}

impl BindingGuard {
    /// Creates a guard. `binders` are the names of the users that may bind guarded pods.
    pub fn new(client: Client, binders: BTreeSet<String>) -> BindingGuard {
        BindingGuard { client, binders, batches: Mutex::default() }
    }

    fn batch(&self, node: &str) -> Arc<LedgerBatch> {
        let mut batches = self.batches.lock();
        // Nodes come and go. A batch that no binding waits for holds only a ledger, which can be read again.
        if batches.len() > MAX_BATCHES {
            batches.retain(|_, batch| Arc::strong_count(batch) > 1);
        }
        batches.entry(node.to_owned()).or_insert_with(|| Arc::new(LedgerBatch::new(node))).clone()
    }

    /// The pod of a binding, or `None` if its binding needs no guard.
    ///
    /// If the Binding names the pod's uid, the pod from the watch is used: the API server itself checks that the
    /// Binding is for that uid and that the pod has no node. Otherwise the pod is read from the API server.
    ///
    /// # Errors
    ///
    /// If the pod cannot be read.
    async fn pod(&self, binding: &Binding, index: &Index) -> Result<Option<Guarded>, Refusal> {
        let kept = binding.uid.as_ref().and_then(|uid| index.read().unbound(uid).cloned());
        let found = match kept.filter(|kept| kept.pod.name == binding.pod) {
            Some(kept) => Some(kept),
            None => {
                let pods: Api<PodObject> = Api::namespaced(self.client.clone(), &binding.pod.namespace);
                let read = pods.get_opt(&binding.pod.name).await.map_err(|error| undecided(binding, &error))?;
                // If the pod does not exist, the binding is allowed, and the API server answers with a better error.
                read.as_ref().and_then(Guarded::of)
            }
        };
        Ok(found.map(|mut guarded| {
            guarded.holder.starting = Some(now());
            guarded
        }))
    }

    /// Reserves the pod's place on the node. Returns the annotations that the binding writes onto the pod.
    ///
    /// # Errors
    ///
    /// Returns the refusal, if the pod gets no place or the decision could not be made.
    async fn decide(&self, binding: &Binding, index: &Arc<Index>, dry_run: bool) -> Result<Allowed, Refusal> {
        let Some(wanted) = self.pod(binding, index).await? else { return Ok(Allowed::default()) };
        let places = index.read().cluster.places_except(&binding.node, &wanted.uid);
        binding::judge(binding, &wanted.uid, &wanted.pod, &self.binders, places)?;
        let (uid, wanted) = (wanted.uid.clone(), Arc::new(wanted));
        let batch = self.batch(&binding.node);
        let ask =
            |from| batch.clone().submit(&self.client, index, PendingBinding { wanted: wanted.clone(), dry_run, from });
        let mut changed = index.subscribe();
        let annotations = match ask(Source::Memory).await {
            // The scheduler may have seen a pod go that this replica's watch has not shown yet, and a refusal costs it
            // seconds. A refusal is therefore never based on the cache alone.
            Err(refusal) if refusal.may_be_outdated() => {
                _ = tokio::time::timeout(WATCH_LAG, changed.changed()).await;
                ask(Source::Quorum).await
            }
            decided => decided,
        }?;
        Ok(Allowed { uid: Some(uid), annotations })
    }
}

/// The data that an allowed binding passes on to its pod.
#[derive(Default)]
struct Allowed {
    /// Uid of the pod that the decision was made for; `None` if the binding needs no guard.
    uid: Option<PodUid>,
    annotations: BTreeMap<String, String>,
}

/// Number of nodes above which batches that no binding waits for are dropped.
const MAX_BATCHES: usize = 4096;

fn undecided(binding: &Binding, error: &dyn std::fmt::Display) -> Refusal {
    Refusal::Undecided { node: binding.node.clone(), why: error.to_string() }
}

/// Current time. The guard reads the clock only here.
fn now() -> Moment {
    Moment(k8s_openapi::jiff::Timestamp::now().as_millisecond())
}

pub(super) async fn bind(State((webhook, guard)): State<(Webhook, Arc<BindingGuard>)>, body: Received) -> Response {
    let start = Instant::now();
    let Read { request, _arrived, parsed } = match webhook.request::<BindingObject>(body).await {
        Ok(read) => read,
        Err(response) => return response,
    };
    drop(parsed); // a parsed Binding is small, however large its body was, and waits for the API server now
    let decided = answer(&webhook, &guard, &request).await;
    webhook.respond("bind", start, request.namespace, decided)
}

async fn answer(webhook: &Webhook, guard: &BindingGuard, request: &Request<BindingObject>) -> Decided {
    let uid = request.uid.clone();
    let Some((object, binding)) = request.created_binding() else {
        return Decided { answer: Answer::untouched(uid), verdict: "allowed", reason: String::new() };
    };
    if let Err(refusal) = binding::screen(&binding) {
        return refused(uid, &binding, &refusal);
    }
    let index = &webhook.index;
    if binding.uid.as_ref().is_some_and(|uid| index.is_without_gpu(uid)) {
        return Decided { answer: Answer::untouched(uid), verdict: "allowed", reason: String::new() };
    }
    let dry_run = request.dry_run == Some(true);
    let decided = tokio::time::timeout(DEADLINE, guard.decide(&binding, index, dry_run)).await;
    let decided = decided.unwrap_or_else(|_| Err(undecided(&binding, &format!("no answer within {DEADLINE:?}"))));
    match decided {
        Err(refusal) => refused(uid, &binding, &refusal),
        Ok(Allowed { uid: pod, annotations }) => {
            let verdict = if annotations.is_empty() { "allowed" } else { "patched" };
            let answer = Answer::bound(uid, object, pod.as_ref(), &annotations);
            Decided { answer, verdict, reason: String::new() }
        }
    }
}

fn refused(uid: String, binding: &Binding, refusal: &Refusal) -> Decided {
    let reason = refusal.reason().to_string();
    tracing::info!(
        namespace = ?binding.pod.namespace, pod = ?binding.pod.name, node = ?binding.node, %reason, "binding refused: {refusal}"
    );
    Decided { answer: Answer::refused(uid, &binding.pod, refusal), verdict: "denied", reason }
}

#[cfg(test)]
mod tests;
