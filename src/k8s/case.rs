//! Case files: a cluster, policies, pods, and the expected outcome of each pod. Owns the format, and how a case is played.
//! [`simulation`](super::simulation) creates, filters and binds the pods. `tests/it/cases.rs` runs the same files
//! through the handlers and the binding guard.
//!
//! `docs/policy-tests.md` describes the format for users, and `tests/cases/case.schema.json` for their editors.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value;

use super::document::{Configuration, DocumentError};
use super::pod;
use super::simulation::{Admission, Simulation};
use super::snapshot::Snapshot;
use crate::capacity::pod::PodName;
use crate::capacity::policy::Policies;
use crate::capacity::verdict::Refusal;
use crate::keys;

mod difference;
mod format;
mod node;
mod resolve;

pub use difference::{Difference, Wanted};

/// A case file, with the content of all files that it refers to.
#[derive(Debug)]
pub struct Suite {
    /// Nodes, pods and ledgers: those written in full, in shorthand, and in snapshots.
    pub cluster: Vec<Value>,
    /// Policy documents.
    pub policies: Vec<Value>,
    /// The cases, in the order of the file.
    pub cases: Vec<Case>,
    objects: Snapshot,
    configuration: Configuration,
}

/// One pod and its expected outcome.
#[derive(Clone, Debug)]
pub struct Case {
    /// A fact, so that a failure reads as a sentence; unique in its file.
    pub name: String,
    /// Line of the name in the case file, from 1.
    pub line: u64,
    /// The pod object as its author writes it.
    pub pod: Value,
    /// User name of the pod's creator; empty if the case leaves it out.
    pub user: String,
    /// The expected outcome. A field that is left out is not compared.
    pub expect: Expectation,
}

/// The expected outcome of a case.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "format::ExpectationText")]
pub struct Expectation {
    /// Verdict of the validating webhook. If it is left out, `filter` or `bind` is present, and it is Allow.
    pub verdict: Expected,
    /// Reason of the denial, or of the violation that modes Warn and Audit admit.
    pub reason: Option<String>,
    /// Message of the denial.
    pub message: Option<TextMatch>,
    /// Demand of the pod, as the validating webhook records it: `4816Mi`.
    pub demand: Option<String>,
    /// All warnings of both webhooks, in order, each by a part of its text or as a whole.
    pub warnings: Option<Vec<TextMatch>>,
    /// The whole JSON Patch of the mutating webhook.
    pub patch: Option<Value>,
    /// Answers of the scheduler extender, by node.
    pub filter: BTreeMap<String, FilterExpectation>,
    /// Answers of the binding guard, by node.
    pub bind: BTreeMap<String, BindExpectation>,
}

/// The text in place of a reason for a node that the extender accepts.
pub const FITS: &str = "fits";

/// An expected text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextMatch {
    /// Any text that contains each of these parts, in any order.
    Contains(Vec<String>),
    /// This text and no other.
    Exactly(String),
}

/// The expected answer of the extender about one node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "TextMatch")]
pub enum FilterExpectation {
    /// The node can take the pod.
    Fits,
    /// The node cannot take the pod, for this reason.
    Rejected(TextMatch),
}

/// The expected answer of the binding guard about one node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "format::BindText")]
pub enum BindExpectation {
    /// The binding is allowed.
    Allow {
        /// All annotations that the binding puts on the pod; `None` is not compared.
        annotations: Option<BTreeMap<String, String>>,
    },
    /// The binding is refused.
    Deny {
        /// Reason of the denial; `None` is not compared.
        reason: Option<String>,
        /// Message of the denial; `None` is not compared.
        message: Option<TextMatch>,
    },
}

/// The answer of the binding guard about one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    /// The binding is allowed.
    Allow {
        /// All annotations that the binding puts on the pod.
        annotations: BTreeMap<String, String>,
    },
    /// The binding is refused.
    Deny {
        /// Reason of the denial.
        reason: String,
        /// Message of the denial.
        message: String,
    },
}

/// Whether a pod is admitted or a binding allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Expected {
    /// The pod is created, or bound.
    Allow,
    /// The pod or the binding is refused.
    Deny,
}

/// The outcome of a case, from the core or from the handlers.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Verdict of the validating webhook.
    pub verdict: Expected,
    /// Reason of the denial, or of the violation in the audit annotations.
    pub reason: Option<String>,
    /// Message of the denial.
    pub message: Option<String>,
    /// Demand from the audit annotations; `None` if they have none.
    pub demand: Option<String>,
    /// Warnings of both webhooks, in order.
    pub warnings: Vec<String>,
    /// JSON Patch of the mutating webhook; an empty list if it changed nothing.
    pub patch: Value,
    /// [`FITS`] or the reason of the scheduler extender, for each of [`Case::nodes`].
    pub filter: BTreeMap<String, String>,
    /// Answer of the binding guard to a binding of the pod to each of [`Case::nodes`].
    pub bind: BTreeMap<String, Bound>,
}

/// Reads a file that a case file refers to, and returns its text, or why it cannot be read. The path is given as
/// written, relative to the folder of the case file. It may contain `..`, and is never absolute.
pub type Load<'a> = &'a dyn Fn(&str) -> Result<String, String>;

/// Reads a case file and, through `load`, the files that it refers to.
///
/// # Errors
/// At least one of the files is wrong. The list has all errors; each names the case file, the line and the field, then
/// the referenced file.
pub fn read(file: &str, text: &str, load: Load<'_>) -> Result<Suite, Vec<DocumentError>> {
    resolve::read(file, text, load)
}

impl Suite {
    /// A simulation of the suite's cluster with its policies.
    pub fn simulation(&self) -> Simulation {
        let policies = Policies::new(&self.configuration.documents, keys::NAMESPACE);
        Simulation::new(&self.objects, policies, &self.configuration.overrides)
    }
}

/// Why a case fails.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// These fields of the outcome are not as expected; at least one.
    Differs(Vec<Difference>),
    /// The case cannot be played.
    Unplayable(String),
}

impl Case {
    /// Plays the case through the core, and compares the outcome with what is expected.
    ///
    /// # Errors
    /// The outcome differs, or the case cannot be played.
    pub fn check(&self, simulation: &Simulation) -> Result<(), Failure> {
        let outcome = self.play(simulation).map_err(Failure::Unplayable)?;
        let differences = self.expect.compare(&outcome);
        if differences.is_empty() { Ok(()) } else { Err(Failure::Differs(differences)) }
    }

    /// The nodes that extender and binding guard are asked about: those of the cluster, and those that the case names.
    pub fn nodes<'a>(&'a self, simulation: &'a Simulation) -> BTreeSet<&'a str> {
        let named = self.expect.filter.keys().chain(self.expect.bind.keys());
        simulation.cluster().node_names().chain(named.map(String::as_str)).collect()
    }

    /// Plays the case through the core. The simulation stays as it was.
    ///
    /// # Errors
    /// The pod cannot be simulated, or a second mutation changes it again.
    pub fn play(&self, simulation: &Simulation) -> Result<Outcome, String> {
        let admission = simulation.review(&self.pod, &self.user).map_err(|error| error.to_string())?;
        let again = simulation.review(&admission.pod, &self.user).map_err(|error| error.to_string())?.patch;
        if !again.0.is_empty() {
            return Err(format!(
                "mutated again, it changes again: {}",
                serde_json::to_string(&again).unwrap_or_default()
            ));
        }
        let object = admission.object().map_err(|error| error.to_string())?;
        let pod = pod::translate(&object, None, None).name;
        let mut outcome = Outcome::of(admission);
        for node in self.nodes(simulation) {
            let filtered = simulation.filter(&object, node).err().unwrap_or_else(|| FITS.to_owned());
            outcome.filter.insert(node.to_owned(), filtered);
            let bound = match simulation.would_bind(&object, node, keys::KUBE_SCHEDULER) {
                Ok(annotations) => Bound::Allow { annotations },
                Err(refusal) => Bound::refused(&refusal, &pod),
            };
            outcome.bind.insert(node.to_owned(), bound);
        }
        Ok(outcome)
    }
}

impl Bound {
    fn refused(refusal: &Refusal, pod: &PodName) -> Bound {
        Bound::Deny { reason: refusal.reason().to_string(), message: refusal.message(pod) }
    }
}

impl Outcome {
    /// The outcome of both webhooks. `filter` and `bind` are empty; the caller fills them.
    pub fn of(admission: Admission) -> Outcome {
        let Admission { patch, warnings, denial, mut record, .. } = admission;
        let (verdict, reason, message) = match denial {
            Some(denial) => (Expected::Deny, Some(denial.reason), Some(denial.message)),
            None => (Expected::Allow, record.remove("reason"), None),
        };
        Outcome {
            verdict,
            reason,
            message,
            demand: record.remove("demand"),
            warnings,
            patch: serde_json::to_value(&patch).expect("a patch is JSON"),
            filter: BTreeMap::new(),
            bind: BTreeMap::new(),
        }
    }
}

impl From<TextMatch> for FilterExpectation {
    fn from(text: TextMatch) -> FilterExpectation {
        match text {
            TextMatch::Contains(parts) if parts == [FITS] => FilterExpectation::Fits,
            text => FilterExpectation::Rejected(text),
        }
    }
}

#[cfg(test)]
mod tests;
