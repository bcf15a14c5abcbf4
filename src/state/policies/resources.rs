//! Policy documents that are resources: what the watches have reported, and when it is put in force. Owns the last
//! readable version of each document.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;

use super::PolicyStore;
use crate::capacity::policy::{DocumentState, Policies};
use crate::k8s::document::resource::{Kind, OfKind, PolicyObject, ResourceName};
use crate::k8s::document::{self, DocumentError, Resource};

/// Time in which several changes become one generation.
const SETTLE: Duration = Duration::from_millis(200);
/// Time between two generations. A document that changes all the time must not use up what is remembered of earlier
/// policies, nor the processor.
const PACE: Duration = Duration::from_secs(1);

/// The documents that are resources.
#[derive(Debug, Default)]
pub(super) struct Resources {
    known: BTreeMap<ResourceName, Known>,
    /// Kinds whose list has been complete once.
    listed: BTreeSet<Kind>,
}

/// One document.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    /// Kind, namespace and name, as messages write them.
    label: String,
    /// Its `metadata.generation`.
    generation: i64,
    /// Its last readable version, as JSON text.
    readable: Option<String>,
    /// Why the present version cannot be read.
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
    /// The last readable version of each document, as name and JSON text.
    pub(super) fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.known.values().filter_map(|known| Some((known.label.as_str(), known.readable.as_deref()?)))
    }

    /// Whether each document is in force, given what was read of [`Resources::texts`] and the policies in force.
    pub(super) fn states(&self, read: &[Resource], policies: &Policies) -> Vec<State> {
        let read: BTreeMap<&str, &Resource> = read.iter().map(|resource| (resource.name.as_str(), resource)).collect();
        let state = |(name, known): (&ResourceName, &Known)| {
            let of_readable = read.get(known.label.as_str()).map(|resource| &resource.read);
            let state = match (&known.error, of_readable) {
                (Some(why), of_readable) => {
                    // An earlier version that a file replaces is not in force either.
                    let earlier_in_force = matches!(of_readable, Some(Ok((_, None))));
                    DocumentState::Unreadable { why: why.clone(), earlier_in_force }
                }
                (None, Some(Ok((scope, file)))) => policies.state_of(scope, file.as_deref()),
                (None, Some(Err(error))) => DocumentState::Unreadable { why: error.reason(), earlier_in_force: false },
                // Changed since the documents were read; the next reading is due.
                (None, None) => return None,
            };
            let (name, conditions) = (name.clone(), known.conditions.clone());
            Some(State { name, generation: known.generation, state, conditions })
        };
        self.known.iter().filter_map(state).collect()
    }

    /// The documents of a kind.
    #[cfg(test)]
    pub(super) fn names(&self, kind: Kind) -> BTreeSet<ResourceName> {
        self.known.keys().filter(|name| name.kind == kind).cloned().collect()
    }

    /// Whether these kinds have been listed, and the policy of the cluster is known: its absence would put the built-in
    /// policy in force, which refuses nothing.
    pub(super) fn are_complete(&self, expected: &[Kind], has_cluster_policy: bool) -> bool {
        let is_unknown = |(name, known): (&ResourceName, &Known)| {
            name.kind == Kind::Cluster && known.readable.is_none() && !has_cluster_policy
        };
        expected.iter().all(|kind| self.listed.contains(kind)) && !self.known.iter().any(is_unknown)
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
        let name = object.resource_name();
        let label = name.to_string();
        let read = object.text.clone().and_then(|text| {
            let read = document::read_with([], [(label.as_str(), text.as_str())]);
            let first = read.as_ref().ok().and_then(|read| read.unreadable().next().map(DocumentError::reason));
            match first {
                Some(error) => Err(error),
                None => Ok(text),
            }
        });
        let mut inputs = self.inputs.lock();
        let before = inputs.resources.known.get(&name);
        let (readable, error) = match read {
            Ok(text) => (Some(text), None),
            Err(error) => (before.and_then(|before| before.readable.clone()), Some(error)),
        };
        let generation = object.metadata.generation.unwrap_or_default();
        let known = Known { label, generation, readable, error, conditions: object.conditions.clone() };
        if before == Some(&known) {
            return;
        }
        if let Some(error) =
            known.error.as_ref().filter(|error| before.is_none_or(|before| before.error.as_ref() != Some(error)))
        {
            self.reload_errors.fetch_add(1, Ordering::Relaxed);
            let then = if known.readable.is_some() {
                "its last readable version stays in force"
            } else {
                "it is not in force"
            };
            tracing::error!("policy error, {then}: {}: {error}", known.label);
        }
        inputs.resources.known.insert(name, known);
        self.resources_changed.notify_one();
    }

    /// Forgets a document that was deleted.
    pub fn delete(&self, name: &ResourceName) {
        self.inputs.lock().resources.known.remove(name);
        self.resources_changed.notify_one();
    }

    /// Forgets the documents of a kind that a complete list did not name.
    pub fn listed(&self, kind: Kind, names: &BTreeSet<ResourceName>) {
        let mut inputs = self.inputs.lock();
        inputs.resources.known.retain(|name, _| name.kind != kind || names.contains(name));
        inputs.resources.listed.insert(kind);
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

    /// Reads all documents, and puts them in force.
    pub(super) fn put_resources_in_force(&self) {
        let mut inputs = self.inputs.lock();
        match inputs.read(&inputs.files) {
            Ok(configuration) => self.put_in_force(configuration, &mut inputs),
            Err(errors) => {
                // Cannot happen: these files were read before, and a resource is no error here.
                errors.iter().for_each(|error| tracing::error!("policy error: {error}"));
            }
        }
    }
}
