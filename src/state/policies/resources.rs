//! Policy documents that are resources: what the watches have reported, and when it is put in force. Owns the last
//! readable version of each document.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;

use super::PolicyStore;
use crate::capacity::policy::{ClusterPolicy, DocumentState, Policies};
use crate::k8s::document::resource::{self, Kind, OfKind, PolicyObject, ResourceName};
use crate::k8s::document::{Content, Placed, PolicyResource};

/// Time in which several changes become one generation.
const SETTLE: Duration = Duration::from_millis(200);
/// Time between two generations, so that a document that changes all the time does not use up the processor.
const PACE: Duration = Duration::from_secs(1);

/// The documents that are resources.
#[derive(Debug, Default)]
pub(super) struct Resources {
    known: BTreeMap<ResourceName, Known>,
    /// Kinds whose list has been complete once.
    listed: BTreeSet<Kind>,
    /// What became of the readable documents when all were last put together.
    placed: Vec<Placed>,
    /// Whether a document has changed since then.
    have_changed: bool,
    /// Whether changes wait until the ClusterVramPolicy can be read. Nothing is said of them meanwhile.
    held_up: bool,
    /// Whether a ClusterVramPolicy counts only if its status says that it is in force.
    follow_status: bool,
}

/// One document.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    /// Its `metadata.generation`.
    generation: i64,
    /// Its last readable version.
    readable: Option<PolicyResource>,
    /// Why its present version cannot be read.
    error: Option<String>,
    /// Its present conditions.
    conditions: Vec<Value>,
}

/// Whether one document is in force, and what its status says about that now.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// The document.
    pub name: ResourceName,
    /// Its `metadata.generation`.
    pub generation: i64,
    /// Whether it is in force.
    pub state: DocumentState,
    /// Its present conditions.
    pub conditions: Vec<Value>,
}

impl Resources {
    pub(super) fn follow_status(&mut self) {
        self.follow_status = true;
    }

    /// The last readable version of each document, without a ClusterVramPolicy that counts by its status.
    pub(super) fn readable(&self) -> impl Iterator<Item = &PolicyResource> {
        let counts = |name: &ResourceName| !(self.follow_status && name.kind == Kind::Cluster);
        self.known.iter().filter(move |(name, _)| counts(name)).filter_map(|(_, known)| known.readable.as_ref())
    }

    /// The ClusterVramPolicy whose status says that it is in force, if its status decides.
    pub(super) fn cluster_by_status(&self) -> Option<&ClusterPolicy> {
        let counts = self.known.iter().filter(|(name, known)| self.counts_by_status(name, known));
        let mut readable = counts.filter_map(|(_, known)| known.readable.as_ref());
        readable.find_map(|readable| match &readable.content {
            Ok(Content::Cluster(policy)) => Some(policy.as_ref()),
            _ => None,
        })
    }

    fn counts_by_status(&self, name: &ResourceName, known: &Known) -> bool {
        self.follow_status && name.kind == Kind::Cluster && resource::is_in_force(&known.conditions)
    }

    /// Whether each document is in force, given what became of the readable ones and the policies in force. `held_up` says
    /// that nothing was put in force.
    pub(super) fn states(&mut self, placed: Vec<Placed>, policies: &Policies, held_up: bool) -> Vec<State> {
        (self.placed, self.have_changed, self.held_up) = (placed, false, held_up);
        self.states_now(policies)
    }

    /// As [`Resources::states`], if no document has changed since.
    fn states_now(&self, policies: &Policies) -> Vec<State> {
        let placed: BTreeMap<&str, &Placed> = self.placed.iter().map(|placed| (placed.name.as_str(), placed)).collect();
        let state = |(name, known): (&ResourceName, &Known)| {
            let placed = known.readable.as_ref().and_then(|readable| placed.get(readable.name.as_str()));
            let of_readable = placed.and_then(|placed| Some((&placed.scope, placed.file.as_ref().ok()?)));
            let of_readable = of_readable.map(|(scope, file)| policies.state_of(scope, file.as_deref()));
            let state = match &known.error {
                None if self.held_up => return None,
                None => of_readable?,
                Some(why) => {
                    let earlier_in_force = matches!(of_readable, Some(DocumentState::InForce { .. }));
                    DocumentState::Unreadable { why: why.clone(), earlier_in_force }
                }
            };
            let (name, conditions) = (name.clone(), known.conditions.clone());
            Some(State { name, generation: known.generation, state, conditions })
        };
        self.known.iter().filter_map(state).collect()
    }

    /// Whether these kinds have been listed, and the policy of the cluster is known. If it is there and cannot be read,
    /// its absence would put the built-in policy in force, which refuses nothing.
    pub(super) fn are_complete(&self, awaited: &[Kind], has_cluster_policy: bool) -> bool {
        let is_unknown = |(name, known): (&ResourceName, &Known)| {
            let counts = if self.follow_status { self.counts_by_status(name, known) } else { !has_cluster_policy };
            name.kind == Kind::Cluster && known.readable.is_none() && counts
        };
        awaited.iter().all(|kind| self.listed.contains(kind)) && !self.known.iter().any(is_unknown)
    }

    /// The documents of a kind.
    #[cfg(test)]
    pub(super) fn names(&self, kind: Kind) -> BTreeSet<ResourceName> {
        self.known.keys().filter(|name| name.kind == kind).cloned().collect()
    }
}

impl PolicyStore {
    /// Whether each document is in force, after every reading.
    pub fn states(&self) -> watch::Receiver<Arc<Vec<State>>> {
        self.states.subscribe()
    }

    /// Folds in a document that a list or watch delivered. It is put in force by [`PolicyStore::settle`].
    ///
    /// A version that cannot be read leaves the last readable one in force, and is logged.
    pub fn apply<K: OfKind>(&self, object: &PolicyObject<K>) {
        let (name, document) = (object.resource_name(), object.document.clone());
        let mut inputs = self.inputs.lock();
        let resources = &mut inputs.resources;
        let before = resources.known.get(&name);
        let (readable, error) = match &document.content {
            Ok(_) => (Some(document), None),
            Err(error) => (before.and_then(|before| before.readable.clone()), Some(error.reason())),
        };
        let generation = object.metadata.generation.unwrap_or_default();
        let known = Known { generation, readable, error, conditions: object.conditions.clone() };
        if before == Some(&known) {
            return;
        }
        let was_the_error = before.and_then(|before| before.error.as_ref());
        if let Some(error) = known.error.as_ref().filter(|error| was_the_error != Some(error)) {
            self.reload_errors.fetch_add(1, Ordering::Relaxed);
            let then = if known.readable.is_some() { "its last readable version is used" } else { "it is not used" };
            tracing::error!("policy error, {then}: {name}: {error}");
        }
        // The leader writes conditions after each change, and they put nothing in force but what counts by its status.
        let is_same = |before: &Known| (&before.readable, &before.error) == (&known.readable, &known.error);
        resources.have_changed |= resources.follow_status || before.is_none_or(|before| !is_same(before));
        resources.known.insert(name, known);
        self.resources_changed.notify_one();
    }

    /// Forgets a document that was deleted.
    pub fn delete(&self, name: &ResourceName) {
        let mut inputs = self.inputs.lock();
        inputs.resources.have_changed |= inputs.resources.known.remove(name).is_some();
        self.resources_changed.notify_one();
    }

    /// Forgets the documents of a kind that a complete list did not name.
    pub fn listed(&self, kind: Kind, names: &BTreeSet<ResourceName>) {
        let mut inputs = self.inputs.lock();
        let resources = &mut inputs.resources;
        let (before, is_first) = (resources.known.len(), resources.listed.insert(kind));
        resources.known.retain(|name, _| name.kind != kind || names.contains(name));
        resources.have_changed |= is_first || resources.known.len() != before;
        self.resources_changed.notify_one();
    }

    /// Puts changed documents in force until cancelled.
    pub async fn settle(&self) {
        loop {
            self.resources_changed.notified().await;
            tokio::time::sleep(SETTLE).await;
            self.put_resources_in_force();
            tokio::time::sleep(PACE).await;
        }
    }

    /// Puts all documents in force, if one has changed. Otherwise only what their status says has changed.
    pub(super) fn put_resources_in_force(&self) {
        let mut inputs = self.inputs.lock();
        if inputs.resources.have_changed {
            self.put_in_force(&mut inputs);
        } else {
            let states = inputs.resources.states_now(&self.current().policies);
            self.states.send_replace(Arc::new(states));
        }
    }
}
