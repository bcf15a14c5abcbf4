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
use serde_json::json;
use tokio::sync::Semaphore;

use super::{Decided, Webhook};
use crate::capacity::binding::{self, Binding, Task};
use crate::capacity::gpu::{GpuId, Pool, Rules};
use crate::capacity::ledger::{Holder, NodeLedger, PodUid, Shared};
use crate::capacity::moment::Moment;
use crate::capacity::pod::Pod;
use crate::capacity::verdict::{Refusal, Unplaced};
use crate::capacity::vram::Vram;
use crate::index::Index;
use crate::k8s::node;
use crate::k8s::object::{BindingObject, NodeObject, PodObject};
use crate::k8s::pod;
use crate::k8s::publication;
use crate::k8s::review::{Answer, Request};
use crate::ledgers::{self, Known, WriteError};

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
    async fn read(&self, binding: &Binding) -> Result<Option<Wanted>, Refusal> {
        let pods: Api<PodObject> = Api::namespaced(self.client.clone(), &binding.pod.namespace);
        let found = pods.get_opt(&binding.pod.name).await.map_err(|error| undecided(binding, &error))?;
        // Without a pod there is nothing to bind, and the API server says so better.
        let Some(object) = found else { return Ok(None) };
        let Some(mut holder) = pod::would_hold(&object) else { return Ok(None) };
        // Counted when it is seen bound: under Audit, or from before its namespace was guarded.
        if holder.request.is_none() {
            return Ok(None);
        }
        holder.starting = Some(now());
        let pod = pod::translate(&object, Some(&binding.pod.namespace), None);
        Ok(Some(Wanted { uid: pod::uid(&object.metadata), pod, holder }))
    }

    /// Promises the pod its place, or says why there is none. Returns what is to be written on it with its node.
    async fn decide(&self, binding: &Binding, index: &Index, dry_run: bool) -> Result<Granted, Refusal> {
        let Some(wanted) = self.read(binding).await? else { return Ok(Granted::default()) };
        let places = {
            let state = index.read();
            state.cluster.counts_on(&wanted.uid).filter(|node| *node != binding.node).count()
        };
        binding::judge(binding, &wanted.uid, &wanted.pod, &self.binders, places)?;
        let asked = Asked { binding, wanted: &wanted, index, dry_run };
        let mut changed = index.subscribe();
        let annotations = match self.attempt(&asked, self.remembered(&asked)).await {
            // A scheduler that saw a pod go before this replica did is right, and a refusal costs it seconds. So nothing is
            // refused on what is remembered alone.
            Err(Refusal::Unplaced { why: Unplaced::Shortfall { .. }, .. }) => {
                _ = tokio::time::timeout(WATCH_LAG, changed.changed()).await;
                self.attempt(&asked, None).await
            }
            decided => decided,
        }?;
        Ok(Granted { uid: Some(wanted.uid), annotations })
    }

    /// The node's ledger as this replica wrote or saw it last. A node that needs none is not asked for one.
    fn remembered(&self, asked: &Asked<'_>) -> Option<Known> {
        let node = &asked.binding.node;
        let remembered = newest(self.turn(node).written.lock().clone(), seen(asked.index, node));
        let needless = || !asked.index.read().cluster.needs_ledger(node);
        remembered.or_else(|| needless().then(|| Known { version: None, shared: Shared::default() }))
    }

    /// Decides on `known`, or on what the API server says where that is `None`, as often as others are faster.
    async fn attempt(&self, asked: &Asked<'_>, mut known: Option<Known>) -> Result<BTreeMap<String, String>, Refusal> {
        let node = &asked.binding.node;
        let turn = self.turn(node);
        let _mine = turn.next.acquire().await.expect("the semaphore is never closed");
        // Whoever had the turn before may have written it.
        known = known.and_then(|known| newest(turn.written.lock().clone(), Some(known)));
        for _ in 0..MAX_ATTEMPTS {
            let current = match known.take() {
                Some(known) => known,
                None => ledgers::read(&self.client, node).await.map_err(|error| undecided(asked.binding, &error))?,
            };
            let view = View::of(asked, &current)?;
            let gpu = match binding::task(&asked.wanted.holder, &view.pools, &view.rules) {
                Task::None => return Ok(BTreeMap::new()),
                Task::Annotate => binding::only_gpu(&asked.wanted.holder, &view.pools),
                Task::Reserve => match self.reserve(asked, &current, &view).await {
                    Ok((gpu, after)) => {
                        if !asked.dry_run {
                            *turn.written.lock() = Some(after);
                        }
                        gpu
                    }
                    Err(Failed::Refused(refusal)) => return Err(refusal),
                    Err(Failed::Conflict) => continue,
                },
            };
            return Ok(binding::annotations(&asked.wanted.pod, &asked.wanted.holder, gpu.as_ref(), &view.pools));
        }
        Err(undecided(asked.binding, &format!("others wrote its ledger first, {MAX_ATTEMPTS} times")))
    }

    /// One decision and its write.
    async fn reserve(&self, asked: &Asked<'_>, current: &Known, view: &View) -> Result<(Option<GpuId>, Known), Failed> {
        let Asked { binding, wanted, dry_run, .. } = *asked;
        let refused = |why| Failed::Refused(Refusal::Unplaced { node: binding.node.clone(), why });
        let assumed =
            view.ledger.assume(&wanted.uid, &wanted.holder, &view.pools, &view.rules, now()).map_err(refused)?;
        let after = match assumed.write.filter(|_| !dry_run) {
            None => current.clone(),
            Some(reservations) => {
                match ledgers::write(&self.client, &binding.node, current, &reservations, &view.rules).await {
                    Ok(written) => written,
                    Err(WriteError::Conflict) => return Err(Failed::Conflict),
                    Err(error @ (WriteError::NodeGone | WriteError::Api(_))) => {
                        return Err(Failed::Refused(undecided(binding, &error)));
                    }
                }
            }
        };
        if !dry_run {
            let bound = view.ledger.bound_with(&wanted.uid, &wanted.holder);
            self.raise(asked, bound).await.map_err(Failed::Refused)?;
        }
        Ok((assumed.gpu, after))
    }

    /// Sees to it that the node advertises what is bound there once this pod is: between two writes of the controller, or
    /// while nobody leads, it may advertise less. Decided on the node as it is, and written only if it still is.
    async fn raise(&self, asked: &Asked<'_>, bound: Vram) -> Result<(), Refusal> {
        let node = &asked.binding.node;
        if publication::raise(&asked.index.read().advertised(node), bound).is_none() {
            return Ok(());
        }
        let lite: Api<NodeObject> = Api::all(self.client.clone());
        let nodes: Api<Node> = Api::all(self.client.clone());
        let failed = |error: &kube::Error| undecided(asked.binding, error);
        for _ in 0..MAX_ATTEMPTS {
            let object = lite.get(node).await.map_err(|error| failed(&error))?;
            let Some(mut patch) = publication::raise(&node::advertised(&object), bound) else { return Ok(()) };
            patch["metadata"] = json!({ "resourceVersion": object.metadata.resource_version });
            match nodes.patch_status(node, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                written => return written.map(|_| ()).map_err(|error| failed(&error)),
            }
        }
        Err(undecided(asked.binding, &format!("others wrote the node's status first, {MAX_ATTEMPTS} times")))
    }
}

/// Lost races before a binding is refused. In between each, whoever won has bound a pod.
const MAX_ATTEMPTS: u32 = 10;

/// What a binding asks for.
#[derive(Clone, Copy)]
struct Asked<'a> {
    binding: &'a Binding,
    wanted: &'a Wanted,
    index: &'a Index,
    dry_run: bool,
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
    fn of(asked: &Asked<'_>, known: &Known) -> Result<View, Refusal> {
        let state = asked.index.read();
        let node = &asked.binding.node;
        let seen = state.cluster.with_shared(node, known.shared.clone());
        let (ledger, pools) =
            seen.ok_or_else(|| Refusal::Unplaced { node: node.clone(), why: Unplaced::NoGpu { resource: None } })?;
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
