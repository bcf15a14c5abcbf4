//! Case files: a cluster, policies, pods and what is expected of each. Owns the format and the comparison, and plays the API
//! server's part (mutate, patch, validate) around the pure core. The same file runs through the handlers and
//! the binding guard in `tests/it/cases.rs`, and `vramguard test` will offer it to users.
//!
//! ```yaml
//! cluster: [ … ]         # nodes, pods and GpuLedgers, as kubectl prints them
//! policies: [ … ]        # policy documents
//! cases:
//!   - name: eight on a full node
//!     pod: { … }         # as its author writes it
//!     user: alice        # who creates it; left out: nobody in particular
//!     expect:
//!       verdict: Deny    # or Allow
//!       reason: VramShortfall
//!       message: "…"     # of the denial, whole
//!       demand: 8912Mi   # of the pod, as Kubernetes counts
//!       warnings: [ … ]  # of both webhooks, in order
//!       patch: [ … ]     # JSON Patch of the mutating one
//!       filter:          # of the scheduler extender, by node
//!         gpu-0: fits
//!         gpu-1: "…"     # why not, whole
//!       bind:            # of the binding guard, by node, to kube-scheduler
//!         gpu-0:         # bound, and all that the pod is annotated with
//!           annotations: {vramguard.dev/gpu-total-mib: "24576"}
//!         gpu-1:         # refused
//!           reason: VramShortfall
//!           message: "…" # whole
//! ```
//!
//! What is not written under `expect` is not compared; `verdict` must be.

use std::collections::{BTreeMap, BTreeSet};

use json_patch::Patch;
use serde::Deserialize;
use serde_json::Value;

use super::document::{self, DocumentError};
use super::object::PodObject;
use super::review::{Answer, Response};
use super::{node, patch, pod, snapshot};
use crate::capacity::admission;
use crate::capacity::binding::{self, Binding};
use crate::capacity::cluster::Cluster;
use crate::capacity::filter::Filter;
use crate::capacity::ledger::PodUid;
use crate::capacity::moment::Moment;
use crate::capacity::pod::Pod;
use crate::capacity::policy::{Mode, Policies};
use crate::capacity::verdict::{Refusal, Unplaced};

/// A case file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// Nodes and pods.
    #[serde(default)]
    pub cluster: Vec<Value>,
    /// Policy documents.
    #[serde(default)]
    pub policies: Vec<Value>,
    /// What is tried.
    pub cases: Vec<Case>,
}

/// One pod and what is expected of it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// A fact.
    pub name: String,
    /// The pod as its author writes it.
    pub pod: Value,
    /// Who creates it.
    #[serde(default)]
    pub user: String,
    /// What should come of it.
    pub expect: Expectation,
}

/// What should come of a case.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    /// Of the validating webhook.
    pub verdict: Expected,
    /// Machine reason of the denial, or of what Warn and Audit would have denied.
    pub reason: Option<String>,
    /// Message of the denial.
    pub message: Option<String>,
    /// What the pod demands.
    pub demand: Option<String>,
    /// Warnings of both webhooks.
    pub warnings: Option<Vec<String>>,
    /// JSON Patch of the mutating webhook.
    pub patch: Option<Value>,
    /// Of the scheduler extender, by node: [`FITS`], or why not.
    #[serde(default)]
    pub filter: BTreeMap<String, String>,
    /// Of the binding guard, by node.
    #[serde(default)]
    pub bind: BTreeMap<String, Bound>,
}

/// Stands where the extender lets a node pass.
pub const FITS: &str = "fits";

/// Who binds in a case: the one scheduler that may without being named.
pub const SCHEDULER: &str = "system:kube-scheduler";

/// What comes of a binding.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Bound {
    /// Allowed.
    Allow {
        /// What vramguard puts on the pod with its node.
        annotations: BTreeMap<String, String>,
    },
    /// Refused.
    Deny {
        /// Machine reason.
        reason: String,
        /// Message of the denial.
        message: String,
    },
}

/// Admitted or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Expected {
    /// Created.
    Allow,
    /// Refused.
    Deny,
}

/// What came of a case, whichever mouth answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Of the validating webhook.
    pub verdict: Expected,
    /// Machine reason, of a denial or of its audit annotation.
    pub reason: Option<String>,
    /// Message of a denial.
    pub message: Option<String>,
    /// Demand, as recorded.
    pub demand: Option<String>,
    /// Of both webhooks.
    pub warnings: Vec<String>,
    /// Of the mutating webhook; an empty list where there is none.
    pub patch: Value,
    /// Of the scheduler extender, for each of [`Stage::nodes`].
    pub filter: BTreeMap<String, String>,
    /// Of the binding guard, for each of [`Stage::nodes`], were the pod bound there.
    pub bind: BTreeMap<String, Bound>,
}

/// Reads a case file.
pub fn read(file: &str, text: &str) -> Result<Suite, DocumentError> {
    document::parse(file, 0, text)
}

impl Outcome {
    /// From the answers of both webhooks and the patch that was applied in between. No node is asked about yet.
    pub fn of(mutated: &Response, patch: &Patch, validated: &Response) -> Outcome {
        let recorded = |key: &str| validated.audit_annotations.get(key).cloned();
        let status = validated.status.as_ref();
        Outcome {
            verdict: if validated.allowed { Expected::Allow } else { Expected::Deny },
            reason: status.map(|status| status.reason.clone()).or_else(|| recorded("reason")),
            message: status.map(|status| status.message.clone()),
            demand: recorded("demand"),
            warnings: [mutated.warnings.clone(), validated.warnings.clone()].concat(),
            patch: serde_json::to_value(patch).expect("a patch is JSON"),
            filter: BTreeMap::new(),
            bind: BTreeMap::new(),
        }
    }
}

impl Expectation {
    /// What differs, each difference a line.
    pub fn compare(&self, outcome: &Outcome) -> Vec<String> {
        let mut differences = Vec::new();
        let mut differ = |what: &str, expected: String, got: String| {
            if expected != got {
                differences.push(format!("{what}: expected {expected}, got {got}"));
            }
        };
        differ("verdict", format!("{:?}", self.verdict), format!("{:?}", outcome.verdict));
        let texts = [
            ("reason", &self.reason, &outcome.reason),
            ("message", &self.message, &outcome.message),
            ("demand", &self.demand, &outcome.demand),
        ];
        for (what, expected, got) in texts {
            if let Some(expected) = expected {
                differ(what, expected.clone(), got.clone().unwrap_or_else(|| "none".into()));
            }
        }
        if let Some(expected) = &self.warnings {
            differ("warnings", format!("{expected:#?}"), format!("{:#?}", outcome.warnings));
        }
        if let Some(expected) = &self.patch {
            differ("patch", expected.to_string(), outcome.patch.to_string());
        }
        for (node, expected) in &self.filter {
            let got = outcome.filter.get(node).expect("each node that is named is asked about");
            differ(&format!("filter of {node}"), expected.clone(), got.clone());
        }
        for (node, expected) in &self.bind {
            let got = outcome.bind.get(node).expect("each node that is named is asked about");
            differ(&format!("bind to {node}"), format!("{expected:#?}"), format!("{got:#?}"));
        }
        differences
    }
}

/// A suite made ready: its cluster and its policies.
#[derive(Debug)]
pub struct Stage {
    cluster: Cluster,
    policies: Policies,
}

impl Stage {
    /// Builds cluster and policies.
    pub fn of(suite: &Suite) -> Result<Stage, Vec<DocumentError>> {
        let texts = |name: &str, values: &[Value]| -> Vec<(String, String)> {
            (0..).zip(values).map(|(index, value)| (format!("{name}[{index}]"), value.to_string())).collect()
        };
        fn borrowed(texts: &[(String, String)]) -> impl Iterator<Item = (&str, &str)> {
            texts.iter().map(|(name, text)| (name.as_str(), text.as_str()))
        }
        let configuration = document::read(borrowed(&texts("policies", &suite.policies)))?;
        let objects = snapshot::read(borrowed(&texts("cluster", &suite.cluster)))?;
        let policies = Policies::new(&configuration.documents, "vramguard-system");
        let mut cluster = Cluster::new(*policies.rules(), node::guarded_by(&configuration.overrides));
        for object in &objects.nodes {
            let name = object.name();
            cluster.apply_node(name, node::facts(object, &configuration.overrides));
        }
        for (uid, node, holder) in objects.pods.iter().filter_map(pod::holder) {
            cluster.apply_pod(&uid, &node, holder);
        }
        for ledger in &objects.ledgers {
            cluster.apply_ledger(ledger.node(), Some(ledger.shared_or_fault()));
        }
        Ok(Stage { cluster, policies })
    }

    /// Its cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Its policies.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// The nodes that extender and binding guard are asked about: those of the cluster, and others that the case names.
    pub fn nodes<'a>(&'a self, case: &'a Case) -> BTreeSet<&'a str> {
        let named = case.expect.filter.keys().chain(case.expect.bind.keys());
        self.cluster.node_names().chain(named.map(String::as_str)).collect()
    }

    fn filter(&self, case: &Case, object: &PodObject) -> BTreeMap<String, String> {
        let (uid, holder) = (pod::uid(&object.metadata), pod::would_hold(object));
        let filter = holder.as_ref().map(|holder| Filter::of(&self.cluster, &uid, holder));
        let answer = |node: &str| match filter.as_ref().map(|filter| filter.node(node)) {
            None | Some(Ok(())) => FITS.to_owned(),
            Some(Err(rejected)) => rejected.why.to_string(),
        };
        self.nodes(case).into_iter().map(|node| (node.to_owned(), answer(node))).collect()
    }

    fn bind(&self, case: &Case, object: &PodObject) -> BTreeMap<String, Bound> {
        let (uid, pod) = (pod::uid(&object.metadata), pod::translate(object, None, None));
        let answer = |node: &str| match self.granted(object, &uid, &pod, node) {
            Ok(annotations) => Bound::Allow { annotations },
            Err(refusal) => Bound::Deny { reason: refusal.reason().to_string(), message: refusal.message(&pod.name) },
        };
        self.nodes(case).into_iter().map(|node| (node.to_owned(), answer(node))).collect()
    }

    fn granted(
        &self,
        object: &PodObject,
        uid: &PodUid,
        pod: &Pod,
        node: &str,
    ) -> Result<BTreeMap<String, String>, Refusal> {
        let binding = Binding {
            pod: pod.name.clone(),
            uid: Some(uid.clone()),
            node: node.to_owned(),
            reserved_annotations: Vec::new(),
            binder: SCHEDULER.to_owned(),
        };
        binding::screen(&binding)?;
        let Some(holder) = pod::would_hold(object).filter(|holder| holder.request.is_some()) else {
            return Ok(BTreeMap::new());
        };
        let binders = BTreeSet::from([SCHEDULER.to_owned()]);
        binding::judge(&binding, uid, pod, &binders, self.cluster.places_but(node, uid))?;
        let unplaced = |why| Refusal::Unplaced { node: node.to_owned(), why };
        let (facts, ledger, _) = self.cluster.node(node).ok_or_else(|| unplaced(Unplaced::NoGpu { resource: None }))?;
        let granted = ledger.grant(uid, pod, &holder, &facts.pools, self.cluster.rules(), Moment::default());
        Ok(granted.map_err(unplaced)?.annotations)
    }

    /// Plays a case through the core.
    pub fn play(&self, case: &Case) -> Result<Outcome, String> {
        let namespace = case.pod.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or("default");
        let read = |pod: &Value| PodObject::deserialize(pod).map_err(|error| format!("pod: {error}"));
        let Some(policy) = self.policies.of(namespace) else {
            let untouched = Answer::untouched(String::new());
            let object = read(&case.pod)?;
            let (filter, bind) = (self.filter(case, &object), self.bind(case, &object));
            let outcome = Outcome::of(untouched.response(), &Patch(Vec::new()), untouched.response());
            return Ok(Outcome { filter, bind, ..outcome });
        };
        let mutate = |object: &PodObject| {
            let pod = pod::translate(object, Some(namespace), Some(&case.user));
            let changes = admission::assess(&pod, policy, &self.cluster).changes();
            (patch::operations(object, &changes), changes)
        };
        let (operations, changes) = mutate(&read(&case.pod)?);
        let mutated = Answer::mutated(String::new(), &operations, &changes);
        let mut patched = case.pod.clone();
        json_patch::patch(&mut patched, &operations).map_err(|error| format!("the patch does not apply: {error}"))?;
        let object = read(&patched)?;
        let (again, _) = mutate(&object);
        if !again.0.is_empty() {
            return Err(format!(
                "mutated again, it changes again: {}",
                serde_json::to_string(&again).unwrap_or_default()
            ));
        }
        let pod = pod::translate(&object, Some(namespace), Some(&case.user));
        let judged = if policy.mode == Mode::Off {
            Answer::untouched(String::new())
        } else {
            Answer::judged(String::new(), &pod.name, admission::judge(&pod, policy, None, &self.cluster))
        };
        let (filter, bind) = (self.filter(case, &object), self.bind(case, &object));
        Ok(Outcome { filter, bind, ..Outcome::of(mutated.response(), &operations, judged.response()) })
    }
}
