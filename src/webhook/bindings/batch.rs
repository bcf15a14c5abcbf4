//! Batches of bindings to one node: decided one after the other, and written to the node's ledger together.
//!
//! Owns the queue of bindings in this replica of vramguard, and the order of reading, deciding and writing. Every
//! decision is made by `capacity`.
//!
//! kube-scheduler binds a hundred pods at once, and the cost of a write grows with the ledger. With one write for each
//! binding, those at the end of the queue would miss their deadline. Therefore one task at a time takes all bindings
//! that wait, decides each with the reservations of the ones before it, and writes once. Replicas of vramguard do not
//! wait for each other: the compare-and-swap on the ledger's version decides between them.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{Semaphore, oneshot};

use super::{DEADLINE, now};
use crate::capacity::binding::Grant;
use crate::capacity::cluster::NodeView;
use crate::capacity::gpu::{Pool, Rules};
use crate::capacity::node::ledger::{LedgerContent, NodeLedger};
use crate::capacity::verdict::{Refusal, Unplaced};
use crate::k8s::object::NodeObject;
use crate::k8s::pod::Guarded;
use crate::k8s::{node, ownership, publication};
use crate::state::index::Index;
use crate::state::ledgers::{self, VersionedLedger, WriteError};

/// Maximum number of bindings in one batch. Further ones wait for the next batch.
const MAX_BATCH: usize = 256;

/// The answer to one binding: the annotations that the pod gets together with its node, or the refusal.
pub(super) type Verdict = Result<BTreeMap<String, String>, Refusal>;

/// The queue from which batches of bindings to one node are taken.
pub(super) struct LedgerBatch {
    node: String,
    /// Has one permit, which the task that serves a batch holds.
    next: Semaphore,
    waiting: Mutex<Vec<Queued>>,
    /// The ledger that the last batch left, so that the next one needs no read. `None` if that is not known.
    written: Mutex<Option<VersionedLedger>>,
}

/// One binding that waits for a decision.
pub(super) struct PendingBinding {
    /// The pod to bind.
    pub wanted: Arc<Guarded>,
    /// Whether the request is a dry run, which writes nothing.
    pub dry_run: bool,
    /// Where the ledger of the first attempt comes from.
    pub from: Source,
}

/// Where the ledger of the first attempt comes from. After a conflict, the ledger is always read from the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The newer of two ledgers: the one that this replica wrote last, and the one that its watch showed last.
    Memory,
    /// A quorum read of the API server.
    Quorum,
}

struct Queued {
    pending: PendingBinding,
    answer: oneshot::Sender<Verdict>,
}

/// Attempts at a write before its bindings are refused. After each failed attempt, another writer has made progress.
const MAX_ATTEMPTS: u32 = 10;

/// The decision on one binding, before the ledger is written.
struct Draft {
    verdict: Verdict,
    /// Whether the verdict is valid only if the ledger is written.
    reserves: bool,
}

impl LedgerBatch {
    /// Creates an empty queue.
    pub(super) fn new(node: &str) -> LedgerBatch {
        LedgerBatch {
            node: node.to_owned(),
            next: Semaphore::new(1),
            waiting: Mutex::default(),
            written: Mutex::default(),
        }
    }

    /// Queues a binding, and waits for its decision and the write of the ledger.
    ///
    /// If the caller stops waiting, the binding is dropped from the queue. If its batch is already being decided, its
    /// place may still be reserved.
    ///
    /// # Errors
    ///
    /// Returns the refusal, if the pod gets no place or the ledger could not be read and written in time.
    pub(super) async fn submit(
        self: Arc<Self>,
        client: &Client,
        index: &Arc<Index>,
        pending: PendingBinding,
    ) -> Verdict {
        let (answer, answered) = oneshot::channel();
        self.waiting.lock().push(Queued { pending, answer });
        // A separate task, because the deadline of one binding must not cancel a write that other bindings wait for.
        tokio::spawn(self.clone().run_batch(client.clone(), index.clone()));
        answered.await.unwrap_or_else(|_| Err(self.undecided(&format!("no answer within {DEADLINE:?}"))))
    }

    /// Waits until no other batch of this node is in progress, then serves one batch: all bindings that wait, up to
    /// [`MAX_BATCH`].
    async fn run_batch(self: Arc<Self>, client: Client, index: Arc<Index>) {
        let _permit = self.next.acquire().await.expect("the semaphore is never closed");
        let (pending, answers): (Vec<PendingBinding>, Vec<_>) = {
            let mut waiting = self.waiting.lock();
            waiting.retain(|waiting| !waiting.answer.is_closed());
            let together = waiting.len().min(MAX_BATCH);
            waiting.drain(..together).map(|waiting| (waiting.pending, waiting.answer)).unzip()
        };
        if pending.is_empty() {
            return; // an earlier batch has answered them
        }
        let decided = tokio::time::timeout(DEADLINE, self.decide(&client, &index, &pending)).await;
        // After a timeout the channels are dropped without an answer, and `submit` reports that.
        for (answer, verdict) in answers.into_iter().zip(decided.unwrap_or_default()) {
            // The caller may have stopped waiting.
            _ = answer.send(verdict);
        }
    }

    /// Decides all bindings of a batch and writes the ledger. Starts over if another writer changed it in between.
    ///
    /// If the write fails for another reason, the bindings that needed it are refused, and the others keep their
    /// verdicts.
    async fn decide(&self, client: &Client, index: &Index, pending: &[PendingBinding]) -> Vec<Verdict> {
        // Taken, and put back only after a success. A timeout may cancel this task during a write, and then the ledger
        // from before that write may be outdated. In that case the next batch starts from the watch's ledger.
        let written = self.written.lock().take();
        let from_memory = pending.iter().all(|pending| pending.from == Source::Memory);
        let mut known = if from_memory { self.remembered(index, written) } else { None };
        for _ in 0..MAX_ATTEMPTS {
            let current = match known.take() {
                Some(known) => known,
                None => match ledgers::read(client, &self.node).await {
                    Ok(read) => read,
                    Err(error) => return pending.iter().map(|_| Err(self.undecided(&error))).collect(),
                },
            };
            let mut draft = current.clone();
            let drafted: Vec<Draft> = pending.iter().map(|pending| self.draft(index, pending, &mut draft)).collect();
            let write = drafted.iter().any(|drafted| drafted.reserves);
            let written = if write { self.write(client, index, &current, &draft, pending).await } else { Ok(current) };
            let failed = match written {
                Ok(written) => {
                    *self.written.lock() = Some(written);
                    None
                }
                Err(WriteError::Conflict) => continue,
                Err(error @ (WriteError::NodeGone | WriteError::Busy | WriteError::Api(_))) => {
                    Some(self.undecided(&error))
                }
            };
            let verdict = |drafted: Draft| match &failed {
                Some(failed) if drafted.reserves => Err(failed.clone()),
                Some(_) | None => drafted.verdict,
            };
            return drafted.into_iter().map(verdict).collect();
        }
        let lost = self.undecided(&format!("others wrote its ledger first, {MAX_ATTEMPTS} times"));
        pending.iter().map(|_| Err(lost.clone())).collect()
    }

    /// The newer of `written` and the ledger that the watch showed last. If there is neither, it is an empty ledger for
    /// a node that needs none, and otherwise `None`: the ledger must be read.
    fn remembered(&self, index: &Index, written: Option<VersionedLedger>) -> Option<VersionedLedger> {
        let needless = || !index.read().cluster.needs_ledger(&self.node);
        let none = || needless().then(|| VersionedLedger { version: None, content: LedgerContent::default() });
        newest(written, self.seen(index)).or_else(none)
    }

    /// Decides one binding on `draft`, the ledger with the reservations of the bindings before it, and adds its
    /// reservation there.
    fn draft(&self, index: &Index, pending: &PendingBinding, draft: &mut VersionedLedger) -> Draft {
        let Guarded { uid, pod, holder } = &*pending.wanted;
        let refused = |why| Draft { verdict: Err(Refusal::Unplaced { node: self.node.clone(), why }), reserves: false };
        let Some(NodeState { ledger, pools, rules }) = self.view(index, draft) else {
            return refused(Unplaced::NoGpu { resource: None });
        };
        let Grant { annotations, write } = match ledger.grant(uid, pod, holder, &pools, &rules, now()) {
            Ok(grant) => grant,
            Err(why) => return refused(why),
        };
        let write = write.filter(|_| !pending.dry_run);
        let reserves = write.is_some();
        if let Some(reservations) = write {
            draft.content.reservations = reservations;
        }
        Draft { verdict: Ok(annotations), reserves }
    }

    /// Writes the reservations of `draft` by compare-and-swap on the version of `current`, then makes sure that the
    /// node advertises enough. Returns the ledger as written.
    async fn write(
        &self,
        client: &Client,
        index: &Index,
        current: &VersionedLedger,
        draft: &VersionedLedger,
        pending: &[PendingBinding],
    ) -> Result<VersionedLedger, WriteError> {
        let rules = *index.read().cluster.rules();
        let written = ledgers::write(client, &self.node, current, &draft.content.reservations, &rules).await?;
        self.raise(client, index, &written, pending).await?;
        Ok(written)
    }

    /// Raises the amount that the node advertises to the sum of all requests once these pods are bound there.
    ///
    /// The leader normally does this, but there may be no leader, or its next write may come later than these bindings.
    ///
    /// # Errors
    ///
    /// If the node is gone, the API server fails, or every attempt conflicts with another write.
    async fn raise(
        &self,
        client: &Client,
        index: &Index,
        written: &VersionedLedger,
        pending: &[PendingBinding],
    ) -> Result<(), WriteError> {
        let promised = |pending: &&PendingBinding| written.content.reservations.of(&pending.wanted.uid).is_some();
        let Some(newcomer) = pending.iter().rfind(promised).map(|pending| &pending.wanted) else { return Ok(()) };
        // One pod of the batch is enough here: the others are counted by their reservations in `written`.
        let Some(view) = self.view(index, written) else { return Ok(()) };
        let bound = view.ledger.bound_with(&newcomer.uid, &newcomer.holder);
        if publication::raise(&index.read().advertised(&self.node), bound).is_none() {
            return Ok(());
        }
        let lite: Api<NodeObject> = Api::all(client.clone());
        let nodes: Api<Node> = Api::all(client.clone());
        let parameters = PatchParams { field_manager: Some(ownership::RAISE_MANAGER.into()), ..PatchParams::default() };
        // The patch carries the resourceVersion of the node that it was computed from. Otherwise it could lower a
        // higher amount that another replica has written since.
        for _ in 0..MAX_ATTEMPTS {
            let object = lite.get_opt(&self.node).await.map_err(WriteError::Api)?.ok_or(WriteError::NodeGone)?;
            let Some(mut patch) = publication::raise(&node::advertised(&object), bound) else { return Ok(()) };
            patch["metadata"] = json!({ "resourceVersion": object.metadata.resource_version });
            match nodes.patch_status(&self.node, &parameters, &Patch::Strategic(patch)).await {
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                written => return written.map(|_| ()).map_err(WriteError::Api),
            }
        }
        Err(WriteError::Busy)
    }

    /// The node's state with `known` as its ledger; `None` if the watch does not show the node.
    fn view(&self, index: &Index, known: &VersionedLedger) -> Option<NodeState> {
        let state = index.read();
        let (ledger, pools) = state.cluster.with_content(&self.node, known.content.clone())?;
        Some(NodeState { ledger, pools, rules: *state.cluster.rules() })
    }

    /// The ledger as the watch showed it last.
    fn seen(&self, index: &Index) -> Option<VersionedLedger> {
        let state = index.read();
        let version = state.ledger(&self.node)?.version.clone();
        let NodeView { ledger, .. } = state.cluster.node(&self.node)?;
        Some(VersionedLedger { version: Some(version), content: ledger.content()?.clone() })
    }

    fn undecided(&self, error: &dyn std::fmt::Display) -> Refusal {
        Refusal::Undecided { node: self.node.clone(), why: error.to_string() }
    }
}

/// The node's state that one decision is made on.
struct NodeState {
    ledger: NodeLedger,
    pools: Vec<Pool>,
    rules: Rules,
}

/// Returns `seen` if it is newer than `written` or the only one, and otherwise `written`.
fn newest(written: Option<VersionedLedger>, seen: Option<VersionedLedger>) -> Option<VersionedLedger> {
    match (written, seen) {
        (Some(written), Some(seen)) if seen.is_newer_than(&written) => Some(seen),
        (Some(written), _) => Some(written),
        (None, seen) => seen,
    }
}
