//! Bindings to one node that are under review at the same time: decided one after the other, written together. Owns who waits
//! for whom in this replica and the order of reading, deciding and writing; every decision is the core's.
//!
//! kube-scheduler binds a hundred pods at once, and what a write costs the API server grows with the ledger: one write for each
//! of them would be a queue that outlasts the deadline of those at its end. So whoever has the turn decides for all who wait
//! by then, each on what the ones before it were promised, and writes once. Replicas do not wait for each other: between them
//! the compare-and-swap decides.

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
use crate::capacity::gpu::{Pool, Rules};
use crate::capacity::ledger::NodeLedger;
use crate::capacity::ledger::Shared;
use crate::capacity::verdict::{Refusal, Unplaced};
use crate::index::Index;
use crate::k8s::object::NodeObject;
use crate::k8s::{node, ownership, publication};
use crate::ledgers::{self, Known, WriteError};
use crate::unbound::Guarded;

/// Bindings that are written together at most; the others wait for the next turn.
const MAX_TOGETHER: usize = 256;

/// What a pod gets with its node, or why it gets none.
pub type Verdict = Result<BTreeMap<String, String>, Refusal>;

/// A node's turn to be written, and its ledger as it was written here last.
pub struct Turn {
    node: String,
    next: Semaphore,
    waiting: Mutex<Vec<Waiting>>,
    written: Mutex<Option<Known>>,
}

/// One pod that wants a place on the node.
pub struct Wish {
    /// The pod.
    pub wanted: Arc<Guarded>,
    /// Whether nothing is to come of it.
    pub dry_run: bool,
    /// What it is decided on.
    pub from: Source,
}

/// What a decision is made on first. After a lost race it is always what the API server says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The ledger as this replica wrote or saw it last.
    Memory,
    /// The ledger as a quorum says it is.
    Quorum,
}

struct Waiting {
    wish: Wish,
    answer: oneshot::Sender<Verdict>,
}

/// Lost races before bindings are refused. In between each, whoever won has bound a pod.
const MAX_ATTEMPTS: u32 = 10;

/// What came of one wish before anything is written.
struct Drafted {
    verdict: Verdict,
    reserves: bool,
}

impl Turn {
    /// Nobody waits yet.
    pub fn new(node: &str) -> Turn {
        Turn { node: node.to_owned(), next: Semaphore::new(1), waiting: Mutex::default(), written: Mutex::default() }
    }

    /// One decision on what is known now, and its write. Whoever stops waiting for it is not reserved for, unless its write
    /// is under way.
    pub async fn ask(self: Arc<Self>, client: &Client, index: &Arc<Index>, wish: Wish) -> Verdict {
        let (answer, answered) = oneshot::channel();
        self.waiting.lock().push(Waiting { wish, answer });
        // A task of its own: the deadline of one binding must not break off a write that others wait for.
        tokio::spawn(self.clone().serve(client.clone(), index.clone()));
        answered.await.unwrap_or_else(|_| Err(self.undecided(&format!("no answer within {DEADLINE:?}"))))
    }

    /// Waits for the turn and answers all who wait by then.
    async fn serve(self: Arc<Self>, client: Client, index: Arc<Index>) {
        let _mine = self.next.acquire().await.expect("the semaphore is never closed");
        let (wishes, answers): (Vec<Wish>, Vec<_>) = {
            let mut waiting = self.waiting.lock();
            waiting.retain(|waiting| !waiting.answer.is_closed());
            let together = waiting.len().min(MAX_TOGETHER);
            waiting.drain(..together).map(|waiting| (waiting.wish, waiting.answer)).unzip()
        };
        if wishes.is_empty() {
            return; // answered in somebody else's turn
        }
        let decided = tokio::time::timeout(DEADLINE, self.decide(&client, &index, &wishes)).await;
        // Out of time, the answers are dropped, and those who wait say so.
        for (answer, verdict) in answers.into_iter().zip(decided.unwrap_or_default()) {
            // It may have stopped waiting.
            _ = answer.send(verdict);
        }
    }

    /// Decides on all of them, and writes until no other replica was faster.
    async fn decide(&self, client: &Client, index: &Index, wishes: &[Wish]) -> Vec<Verdict> {
        // Taken out: a write that is broken off leaves behind what the watch says, not what stood before it.
        let written = self.written.lock().take();
        let from_memory = wishes.iter().all(|wish| wish.from == Source::Memory);
        let mut known = if from_memory { self.remembered(index, written) } else { None };
        for _ in 0..MAX_ATTEMPTS {
            let current = match known.take() {
                Some(known) => known,
                None => match ledgers::read(client, &self.node).await {
                    Ok(read) => read,
                    Err(error) => return wishes.iter().map(|_| Err(self.undecided(&error))).collect(),
                },
            };
            let mut draft = current.clone();
            let drafted: Vec<Drafted> = wishes.iter().map(|wish| self.draft(index, wish, &mut draft)).collect();
            let write = drafted.iter().any(|drafted| drafted.reserves);
            let written = if write { self.write(client, index, &current, &draft, wishes).await } else { Ok(current) };
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
            let verdict = |drafted: Drafted| match &failed {
                Some(failed) if drafted.reserves => Err(failed.clone()),
                Some(_) | None => drafted.verdict,
            };
            return drafted.into_iter().map(verdict).collect();
        }
        let lost = self.undecided(&format!("others wrote its ledger first, {MAX_ATTEMPTS} times"));
        wishes.iter().map(|_| Err(lost.clone())).collect()
    }

    /// The ledger as this replica wrote or saw it last. A node that needs none is not asked for one.
    fn remembered(&self, index: &Index, written: Option<Known>) -> Option<Known> {
        let needless = || !index.read().cluster.needs_ledger(&self.node);
        let none = || needless().then(|| Known { version: None, shared: Shared::default() });
        newest(written, self.seen(index)).or_else(none)
    }

    /// One decision on what a draft says, which then says what it promises.
    fn draft(&self, index: &Index, wish: &Wish, draft: &mut Known) -> Drafted {
        let Guarded { uid, pod, holder } = &*wish.wanted;
        let refused =
            |why| Drafted { verdict: Err(Refusal::Unplaced { node: self.node.clone(), why }), reserves: false };
        let Some(View { ledger, pools, rules }) = self.view(index, draft) else {
            return refused(Unplaced::NoGpu { resource: None });
        };
        let Grant { annotations, write } = match ledger.grant(uid, pod, holder, &pools, &rules, now()) {
            Ok(grant) => grant,
            Err(why) => return refused(why),
        };
        let write = write.filter(|_| !wish.dry_run);
        let reserves = write.is_some();
        if let Some(reservations) = write {
            draft.shared.reservations = reservations;
        }
        Drafted { verdict: Ok(annotations), reserves }
    }

    async fn write(
        &self,
        client: &Client,
        index: &Index,
        current: &Known,
        draft: &Known,
        wishes: &[Wish],
    ) -> Result<Known, WriteError> {
        let rules = *index.read().cluster.rules();
        let written = ledgers::write(client, &self.node, current, &draft.shared.reservations, &rules).await?;
        self.raise(client, index, &written, wishes).await?;
        Ok(written)
    }

    /// Sees to it that the node advertises what is bound there once these pods are: between two writes of the controller, or
    /// while nobody leads, it may advertise less.
    async fn raise(&self, client: &Client, index: &Index, written: &Known, wishes: &[Wish]) -> Result<(), WriteError> {
        let promised = |wish: &&Wish| written.shared.reservations.of(&wish.wanted.uid).is_some();
        let Some(newcomer) = wishes.iter().rfind(promised).map(|wish| &wish.wanted) else { return Ok(()) };
        // The others are counted because the ledger names them.
        let Some(view) = self.view(index, written) else { return Ok(()) };
        let bound = view.ledger.bound_with(&newcomer.uid, &newcomer.holder);
        if publication::raise(&index.read().advertised(&self.node), bound).is_none() {
            return Ok(());
        }
        let lite: Api<NodeObject> = Api::all(client.clone());
        let nodes: Api<Node> = Api::all(client.clone());
        let parameters = PatchParams { field_manager: Some(ownership::RAISES.into()), ..PatchParams::default() };
        // Decided on the node as it is, and written only if it still is: else a higher number of somebody else could be
        // lowered.
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

    fn view(&self, index: &Index, known: &Known) -> Option<View> {
        let state = index.read();
        let (ledger, pools) = state.cluster.with_shared(&self.node, known.shared.clone())?;
        Some(View { ledger, pools, rules: *state.cluster.rules() })
    }

    /// The ledger as the watch saw it last.
    fn seen(&self, index: &Index) -> Option<Known> {
        let state = index.read();
        let version = state.ledger(&self.node)?.version.clone();
        let (_, ledger, _) = state.cluster.node(&self.node)?;
        Some(Known { version: Some(version), shared: ledger.shared()?.clone() })
    }

    fn undecided(&self, error: &dyn std::fmt::Display) -> Refusal {
        Refusal::Undecided { node: self.node.clone(), why: error.to_string() }
    }
}

/// The node as it is for one decision.
struct View {
    ledger: NodeLedger,
    pools: Vec<Pool>,
    rules: Rules,
}

fn newest(written: Option<Known>, seen: Option<Known>) -> Option<Known> {
    match (written, seen) {
        (Some(written), Some(seen)) if seen.is_newer_than(&written) => Some(seen),
        (Some(written), _) => Some(written),
        (None, seen) => seen,
    }
}
