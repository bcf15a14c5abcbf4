//! `/mutate/bindings`: the binding guard. Owns the order of reading, deciding and answering, and its deadline; how bindings to
//! one node are decided and written together is [`turn`]'s, and every decision the core's.
//!
//! Any replica may answer any binding. What makes the sum hold is the compare-and-swap on the node's ledger alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use kube::{Api, Client};
use parking_lot::Mutex;

use self::turn::{Turn, Verdict};
use super::{Decided, Webhook};
use crate::capacity::binding::{self, Binding};
use crate::capacity::ledger::{Holder, PodUid};
use crate::capacity::moment::Moment;
use crate::capacity::pod::Pod;
use crate::capacity::verdict::{Refusal, Unplaced};
use crate::index::Index;
use crate::k8s::object::{BindingObject, PodObject};
use crate::k8s::pod;
use crate::k8s::review::{Answer, Request};

mod turn;

/// For an answer. The webhook configuration gives up after 2 s, and a refusal says why, which silence does not.
const DEADLINE: Duration = Duration::from_millis(1500);
/// How long a refusal for want of room waits for this replica's watch to catch up with a scheduler's.
const WATCH_LAG: Duration = Duration::from_millis(150);

/// What the guard needs beside the picture of the cluster.
pub struct BindingGuard {
    client: Client,
    binders: BTreeSet<String>,
    /// By node: so that bindings that this replica answers do not lose against each other. Those of other replicas are not
    /// kept off.
    turns: Mutex<BTreeMap<String, Arc<Turn>>>,
}

/// What a guarded pod wants, read from the API.
struct Wanted {
    uid: PodUid,
    pod: Pod,
    holder: Holder,
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
        let fresh = || Arc::new(Turn::new(node));
        turns.entry(node.to_owned()).or_insert_with(fresh).clone()
    }

    /// The pod, if it is one that a binding has to be guarded for.
    async fn read(&self, binding: &Binding, index: &Index) -> Result<Option<Wanted>, Refusal> {
        let pods: Api<PodObject> = Api::namespaced(self.client.clone(), &binding.pod.namespace);
        let found = pods.get_opt(&binding.pod.name).await.map_err(|error| undecided(binding, &error))?;
        // Without a pod there is nothing to bind, and the API server says so better.
        let Some(object) = found else { return Ok(None) };
        let Some(mut holder) = pod::would_hold(&object) else { return Ok(None) };
        let guarded = {
            let state = index.read();
            holder.gpus.iter().any(|(resource, _)| state.cluster.guards(resource))
        };
        if holder.request.is_none() || !guarded {
            return Ok(None);
        }
        holder.starting = Some(now());
        let pod = pod::translate(&object, Some(&binding.pod.namespace), None);
        Ok(Some(Wanted { uid: pod::uid(&object.metadata), pod, holder }))
    }

    /// Promises the pod its place, or says why there is none. Returns the annotations it gets with its node.
    async fn decide(&self, binding: &Binding, index: &Arc<Index>, dry_run: bool) -> Verdict {
        let Some(wanted) = self.read(binding, index).await? else { return Ok(BTreeMap::new()) };
        binding::judge(binding, &wanted.uid, &wanted.pod, &self.binders)?;
        let wanted = Arc::new(wanted);
        let mut changed = index.subscribe();
        let lag = tokio::time::Instant::now() + WATCH_LAG;
        loop {
            match self.turn(&binding.node).ask(&self.client, index, wanted.clone(), dry_run).await {
                // A scheduler that saw a pod go before this replica did is right, and a refusal costs it seconds.
                Err(Refusal::Unplaced { why: Unplaced::Shortfall { .. }, .. })
                    if tokio::time::timeout_at(lag, changed.changed()).await.is_ok() => {}
                decided => return decided,
            }
        }
    }
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

pub(super) async fn bind(State((webhook, guard)): State<(Webhook, Arc<BindingGuard>)>, body: Bytes) -> Response {
    let start = Instant::now();
    let request = match webhook.request::<BindingObject>(&body) {
        Ok(request) => request,
        Err(response) => return response,
    };
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
        Ok(annotations) => {
            let verdict = if annotations.is_empty() { "allowed" } else { "patched" };
            Decided { answer: Answer::bound(uid, object, &annotations), verdict, reason: String::new() }
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
