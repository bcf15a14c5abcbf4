//! `/mutate/bindings`: the binding guard. Owns the order of reading, deciding, writing and answering, its deadline, and the
//! turns that bindings to one node take in this replica; every decision is the core's.
//!
//! Any replica may answer any binding. What makes the sum hold is the compare-and-swap on the node's ledger alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::{Decided, Webhook};
use crate::capacity::binding::{self, Binding, Task};
use crate::capacity::gpu::{GpuId, Pool, Rules};
use crate::capacity::ledger::{Holder, NodeLedger, PodUid};
use crate::capacity::moment::Moment;
use crate::capacity::pod::Pod;
use crate::capacity::verdict::{Refusal, Unplaced};
use crate::index::Index;
use crate::k8s::object::{BindingObject, PodObject};
use crate::k8s::pod;
use crate::k8s::publication;
use crate::k8s::review::{Answer, Request};
use crate::ledgers::{self, Known, WriteError};

/// For an answer. The webhook configuration gives up after 2 s, and a refusal says why, which silence does not.
const DEADLINE: Duration = Duration::from_millis(1500);
/// How long a refusal for want of room waits for this replica's watch to catch up with a scheduler's.
const WATCH_LAG: Duration = Duration::from_millis(150);

/// What the guard needs beside the picture of the cluster.
pub struct BindingGuard {
    client: Client,
    binders: BTreeSet<String>,
    /// By node: a turn to write its ledger, and the ledger as it was written here last. Only so that bindings that this
    /// replica answers do not lose against each other; those of other replicas are not kept off.
    turns: Mutex<BTreeMap<String, Arc<Turn>>>,
}

struct Turn {
    next: Semaphore,
    written: Mutex<Option<Known>>,
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
        let fresh = || Arc::new(Turn { next: Semaphore::new(1), written: Mutex::new(None) });
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
    async fn decide(
        &self,
        binding: &Binding,
        index: &Index,
        dry_run: bool,
    ) -> Result<BTreeMap<String, String>, Refusal> {
        let Some(wanted) = self.read(binding, index).await? else { return Ok(BTreeMap::new()) };
        binding::judge(binding, &wanted.uid, &wanted.pod, &self.binders)?;
        let mut changed = index.subscribe();
        let lag = tokio::time::Instant::now() + WATCH_LAG;
        loop {
            match self.attempt(binding, &wanted, index, dry_run).await {
                // A scheduler that saw a pod go before this replica did is right, and a refusal costs it seconds.
                Err(Refusal::Unplaced { why: Unplaced::Shortfall { .. }, .. })
                    if tokio::time::timeout_at(lag, changed.changed()).await.is_ok() => {}
                decided => return decided,
            }
        }
    }

    /// One decision on what is known now, and its write.
    async fn attempt(
        &self,
        binding: &Binding,
        wanted: &Wanted,
        index: &Index,
        dry_run: bool,
    ) -> Result<BTreeMap<String, String>, Refusal> {
        let turn = self.turn(&binding.node);
        let _mine = turn.next.acquire().await.expect("the semaphore is never closed");
        let mut known = newest(turn.written.lock().clone(), seen(index, &binding.node));
        loop {
            let current = match known.take() {
                Some(known) => known,
                None => ledgers::read(&self.client, &binding.node).await.map_err(|error| undecided(binding, &error))?,
            };
            let View { ledger, pools, rules } = View::of(index, binding, &current)?;
            let gpu = match binding::task(&wanted.holder, &pools, &rules) {
                Task::None => return Ok(BTreeMap::new()),
                Task::Annotate => binding::only_gpu(&wanted.holder, &pools),
                Task::Reserve => {
                    match self.reserve(binding, wanted, &current, &ledger, &pools, &rules, index, dry_run).await {
                        Ok((gpu, after)) => {
                            *turn.written.lock() = after;
                            gpu
                        }
                        Err(Failed::Refused(refusal)) => return Err(refusal),
                        Err(Failed::Conflict) => continue,
                    }
                }
            };
            return Ok(binding::annotations(&wanted.pod, &wanted.holder, gpu.as_ref(), &pools));
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one round of the loop above, with all that it found")]
    async fn reserve(
        &self,
        binding: &Binding,
        wanted: &Wanted,
        current: &Known,
        ledger: &NodeLedger,
        pools: &[Pool],
        rules: &Rules,
        index: &Index,
        dry_run: bool,
    ) -> Result<(Option<GpuId>, Option<Known>), Failed> {
        let refused = |why| Failed::Refused(Refusal::Unplaced { node: binding.node.clone(), why });
        let assumed = ledger.assume(&wanted.uid, &wanted.holder, pools, rules, now()).map_err(refused)?;
        let after = match assumed.write.filter(|_| !dry_run) {
            None => Some(current.clone()),
            Some(reservations) => {
                match ledgers::write(&self.client, &binding.node, current, &reservations, rules).await {
                    Ok(written) => Some(written),
                    Err(WriteError::Conflict) => return Err(Failed::Conflict),
                    Err(error @ (WriteError::NodeGone | WriteError::Api(_))) => {
                        return Err(Failed::Refused(undecided(binding, &error)));
                    }
                }
            }
        };
        if !dry_run {
            self.raise(binding, wanted, current, index).await?;
        }
        Ok((assumed.gpu, after.filter(|_| !dry_run)))
    }

    /// Sees to it that the node advertises what is bound there once this pod is: between two writes of the controller, or
    /// while nobody leads, it may advertise less.
    async fn raise(&self, binding: &Binding, wanted: &Wanted, current: &Known, index: &Index) -> Result<(), Failed> {
        let patch = {
            let state = index.read();
            let seen = state.cluster.with_shared(&binding.node, current.shared.clone());
            let bound = seen.map(|(ledger, _)| ledger.bound_with(&wanted.uid, &wanted.holder));
            bound.and_then(|bound| publication::raise(&state.advertised(&binding.node), bound))
        };
        let Some(patch) = patch else { return Ok(()) };
        let nodes: Api<Node> = Api::all(self.client.clone());
        let written = nodes.patch_status(&binding.node, &PatchParams::default(), &Patch::Strategic(patch)).await;
        written.map(|_| ()).map_err(|error| Failed::Refused(undecided(binding, &error)))
    }
}

/// Nodes whose turns are kept at least.
const MAX_TURNS: usize = 4096;

enum Failed {
    Refused(Refusal),
    Conflict,
}

/// A node as the guard sees it for one attempt.
struct View {
    ledger: NodeLedger,
    pools: Vec<Pool>,
    rules: Rules,
}

impl View {
    fn of(index: &Index, binding: &Binding, known: &Known) -> Result<View, Refusal> {
        let state = index.read();
        let (ledger, pools) = state
            .cluster
            .with_shared(&binding.node, known.shared.clone())
            .ok_or_else(|| Refusal::Unplaced { node: binding.node.clone(), why: Unplaced::NoGpu { resource: None } })?;
        Ok(View { ledger, pools, rules: *state.cluster.rules() })
    }
}

/// The ledger as the watch saw it last.
fn seen(index: &Index, node: &str) -> Option<Known> {
    let state = index.read();
    let version = state.ledger(node)?.version.clone();
    let (_, ledger, _) = state.cluster.node(node)?;
    Some(Known { version: Some(version), shared: ledger.shared()?.clone() })
}

fn newest(written: Option<Known>, seen: Option<Known>) -> Option<Known> {
    match (written, seen) {
        (Some(written), Some(seen)) if seen.is_newer_than(&written) => Some(seen),
        (Some(written), _) => Some(written),
        (None, seen) => seen,
    }
}

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
