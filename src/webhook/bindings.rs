//! `/mutate/bindings`: the binding guard. Owns the order of reading, deciding, writing and answering, its deadline, and the
//! turns that bindings to one node take in this replica; every decision is the core's.
//!
//! Any replica may answer any binding. What makes the sum hold is the compare-and-swap on the node's ledger alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::Response;
use kube::{Api, Client};
use parking_lot::Mutex;

use self::turn::{Source, Turn, Wish};
use super::intake::Received;
use super::{Decided, Read, Webhook};
use crate::capacity::binding::{self, Binding};
use crate::capacity::ledger::PodUid;
use crate::capacity::moment::Moment;
use crate::capacity::verdict::{Refusal, Unplaced};
use crate::index::Index;
use crate::k8s::object::{BindingObject, PodObject};
use crate::k8s::review::{Answer, Request};
use crate::unbound::Guarded;

mod turn;

/// For an answer. The webhook configuration gives up after 2 s, and a refusal says why, which silence does not.
const DEADLINE: Duration = Duration::from_millis(1500);
/// How long a refusal for want of room waits for this replica's watch to catch up with a scheduler's, once.
const WATCH_LAG: Duration = Duration::from_millis(150);

/// What the guard needs beside the picture of the cluster.
pub struct BindingGuard {
    client: Client,
    binders: BTreeSet<String>,
    /// By node: a turn to write its ledger, and the ledger as it was written here last. Only so that bindings that this
    /// replica answers do not lose against each other; those of other replicas are not kept off.
    turns: Mutex<BTreeMap<String, Arc<Turn>>>,
}

impl BindingGuard {
    /// `binders` are the users who may bind guarded pods.
    pub fn new(client: Client, binders: BTreeSet<String>) -> BindingGuard {
        BindingGuard { client, binders, turns: Mutex::default() }
    }

    fn turn(&self, node: &str) -> Arc<Turn> {
        let mut turns = self.turns.lock();
        // Nodes come and go; a turn that nobody waits for holds nothing that cannot be read again.
        if turns.len() > MAX_TURNS {
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        }
        turns.entry(node.to_owned()).or_insert_with(|| Arc::new(Turn::new(node))).clone()
    }

    /// The pod, if it is one that a binding has to be guarded for: as the watch saw it, where the Binding names its uid, for then
    /// the API server checks that the Binding is for that very pod and that it has no node; else as a read says.
    async fn pod(&self, binding: &Binding, index: &Index) -> Result<Option<Guarded>, Refusal> {
        let kept = binding.uid.as_ref().and_then(|uid| index.read().unbound(uid).cloned());
        let found = match kept.filter(|kept| kept.pod.name == binding.pod) {
            Some(kept) => Some(kept),
            None => {
                let pods: Api<PodObject> = Api::namespaced(self.client.clone(), &binding.pod.namespace);
                let read = pods.get_opt(&binding.pod.name).await.map_err(|error| undecided(binding, &error))?;
                // Without a pod there is nothing to bind, and the API server says so better.
                read.as_ref().and_then(Guarded::of)
            }
        };
        Ok(found.map(|mut guarded| {
            guarded.holder.starting = Some(now());
            guarded
        }))
    }

    /// Promises the pod its place, or says why there is none. Returns what is to be written on it with its node.
    async fn decide(&self, binding: &Binding, index: &Arc<Index>, dry_run: bool) -> Result<Granted, Refusal> {
        let Some(wanted) = self.pod(binding, index).await? else { return Ok(Granted::default()) };
        let places = index.read().cluster.places_but(&binding.node, &wanted.uid);
        binding::judge(binding, &wanted.uid, &wanted.pod, &self.binders, places)?;
        let (uid, wanted) = (wanted.uid.clone(), Arc::new(wanted));
        let turn = self.turn(&binding.node);
        let ask = |from| turn.clone().ask(&self.client, index, Wish { wanted: wanted.clone(), dry_run, from });
        let mut changed = index.subscribe();
        let annotations = match ask(Source::Memory).await {
            // A scheduler that saw a pod go before this replica did is right, and a refusal costs it seconds. So nothing is
            // refused on what is remembered alone.
            Err(Refusal::Unplaced { why: Unplaced::Shortfall { .. } | Unplaced::Starting, .. }) => {
                _ = tokio::time::timeout(WATCH_LAG, changed.changed()).await;
                ask(Source::Quorum).await
            }
            decided => decided,
        }?;
        Ok(Granted { uid: Some(uid), annotations })
    }
}

/// What an allowed binding carries to its pod.
#[derive(Default)]
struct Granted {
    /// The pod that this was decided for, where one was read.
    uid: Option<PodUid>,
    annotations: BTreeMap<String, String>,
}

/// Nodes whose turns are kept at least.
const MAX_TURNS: usize = 4096;

fn undecided(binding: &Binding, error: &dyn std::fmt::Display) -> Refusal {
    Refusal::Undecided { node: binding.node.clone(), why: error.to_string() }
}

/// The clock, in one place.
fn now() -> Moment {
    Moment(k8s_openapi::jiff::Timestamp::now().as_millisecond())
}

pub(super) async fn bind(State((webhook, guard)): State<(Webhook, Arc<BindingGuard>)>, body: Received) -> Response {
    let start = Instant::now();
    let Read { request, _arrived, parsed } = match webhook.request::<BindingObject>(body).await {
        Ok(read) => read,
        Err(response) => return response,
    };
    drop(parsed); // a Binding is small, whatever its body was, and this one waits for the API server
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
    if binding.uid.as_ref().is_some_and(|uid| index.is_unconcerned(uid)) {
        return Decided { answer: Answer::untouched(uid), verdict: "allowed", reason: String::new() };
    }
    let dry_run = request.dry_run == Some(true);
    let decided = tokio::time::timeout(DEADLINE, guard.decide(&binding, index, dry_run)).await;
    let decided = decided.unwrap_or_else(|_| Err(undecided(&binding, &format!("no answer within {DEADLINE:?}"))));
    match decided {
        Err(refusal) => refused(uid, &binding, &refusal),
        Ok(Granted { uid: pod, annotations }) => {
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
