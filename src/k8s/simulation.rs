//! A simulated cluster with policies and without an API server: pods are created, filtered and bound as the handlers
//! would. Owns the order of the handlers' decisions and the changes that a binding makes to the cluster. It reads no
//! files, knows no clock and makes no decision itself.
//!
//! Methods on `&self` answer and keep nothing, like a dry run. [`Simulation::create`] and [`Simulation::bind`] also
//! apply the result to the cluster.
//!
//! No kubelet runs here, so a bound pod counts as ready at once, and no reservation expires. No controller runs either,
//! so the labels of the nodes stay as they are in the snapshot.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

pub use self::creation::{Admission, Creation};
use self::creation::{namespace, object};
use super::agent_pod::agent_pod;
use super::node::{self, Override};
use super::object::PodObject;
use super::pod::{self, Guarded};
use super::pod_review::{self, Subject};
use super::review::{self, Answer, Answered};
use super::snapshot::Snapshot;
use crate::capacity::binding::{self, Binding, Grant};
use crate::capacity::cluster::{Cluster, NodeView};
use crate::capacity::filter::Filter;
use crate::capacity::gpu::Resource;
use crate::capacity::name::PodUid;
use crate::capacity::node::ledger::LedgerContent;
use crate::capacity::policy::Policies;
use crate::capacity::time::Moment;
use crate::capacity::verdict::{Refusal, Shortfall, Unplaced};
use crate::keys;

mod creation;

/// Why a pod cannot be simulated. None of these errors is a verdict on the pod.
#[derive(Debug, thiserror::Error)]
pub enum SimulationError {
    /// The object cannot be read as a pod.
    #[error("pod: {0}")]
    Pod(serde_json::Error),
    /// The answer of a webhook cannot be written as an AdmissionReview, or read back as one.
    #[error("the answer is no AdmissionReview: {0}")]
    Answer(serde_json::Error),
    /// The patch in the mutating webhook's answer is not base64 or not a JSON Patch.
    #[error("the answer holds no JSON Patch: {0}")]
    NoPatch(String),
    /// The patch refers to a part that the pod does not have.
    #[error("the patch does not apply: {0}")]
    Patch(json_patch::PatchError),
}

/// A simulated cluster and its policies.
#[derive(Debug)]
pub struct Simulation {
    cluster: Cluster,
    policies: Policies,
    /// Users who may bind guarded pods.
    binders: BTreeSet<String>,
    /// Number of pods created so far; generated names and uids end in it.
    created: u64,
}

impl Simulation {
    /// Builds a cluster from the objects of a snapshot. `overrides` describe nodes whose labels are missing or wrong.
    pub fn new(objects: &Snapshot, policies: Policies, overrides: &[Override]) -> Simulation {
        Simulation::guarding(objects, policies, overrides, BTreeSet::new())
    }

    /// [`Simulation::new`], as if one pod of the snapshot and what is reserved for it were not there.
    pub fn without(objects: &Snapshot, policies: Policies, overrides: &[Override], pod: &PodObject) -> Simulation {
        Simulation::of(objects, policies, overrides, BTreeSet::new(), Some(&pod::uid(&pod.metadata)))
    }

    /// [`Simulation::new`], with resources that are guarded even if no node shares them.
    pub fn guarding(
        objects: &Snapshot,
        policies: Policies,
        overrides: &[Override],
        resources: BTreeSet<Resource>,
    ) -> Simulation {
        Simulation::of(objects, policies, overrides, resources, None)
    }

    fn of(
        objects: &Snapshot,
        policies: Policies,
        overrides: &[Override],
        resources: BTreeSet<Resource>,
        except: Option<&PodUid>,
    ) -> Simulation {
        let always_guarded = node::guarded_by(overrides).into_iter().chain(resources).collect();
        let mut cluster = Cluster::new(*policies.rules(), always_guarded);
        for object in &objects.nodes {
            cluster.apply_node(object.name(), node::facts(object, overrides));
        }
        let holders = objects.pods.iter().filter_map(pod::holder);
        for (uid, node, holder) in holders.filter(|(uid, ..)| Some(uid) != except) {
            cluster.apply_pod(&uid, &node, holder);
        }
        for (pod, agent) in objects.pods.iter().filter_map(|pod| Some((pod, agent_pod(pod)?))) {
            cluster.apply_agent_pod(&pod::uid(&pod.metadata), agent);
        }
        for ledger in &objects.ledgers {
            let mut content = ledger.content_or_fault();
            if let Some(uid) = except {
                content.reservations.remove(uid);
            }
            cluster.apply_ledger(ledger.node(), Some(content));
        }
        Simulation { cluster, policies, binders: BTreeSet::from([keys::KUBE_SCHEDULER.to_owned()]), created: 0 }
    }

    /// The cluster as it is now.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The policies in force.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// Sends a pod through both webhooks like a dry run: nothing is kept.
    ///
    /// # Errors
    /// The object cannot be read as a pod, or a webhook's answer does not apply to it.
    pub fn review(&self, pod: &Value, user: &str) -> Result<Admission, SimulationError> {
        let mut creation = Creation::new(pod.clone(), user);
        let mutated = self.mutate(creation.pod(), user)?;
        creation.mutated(mutated)?;
        let validated = self.validate(creation.pod(), user)?;
        Ok(creation.validated(validated))
    }

    /// Creates a pod and, if it is admitted, applies it to the cluster. An admitted pod without a name, namespace or
    /// uid gets one, as an API server would generate it. A pod with `spec.nodeName` becomes a holder on that node at
    /// once.
    ///
    /// # Errors
    /// The object cannot be read as a pod, or a webhook's answer does not apply to it.
    pub fn create(&mut self, pod: &Value, user: &str) -> Result<Admission, SimulationError> {
        let mut admission = self.review(pod, user)?;
        if admission.denial.is_some() {
            return Ok(admission);
        }
        self.created += 1;
        identify(&mut admission.pod, self.created);
        if let Some((uid, node, holder)) = pod::holder(&admission.object()?) {
            self.cluster.apply_pod(&uid, &node, holder);
        }
        Ok(admission)
    }

    /// Whether a node can take a pod now, as the scheduler extender answers it.
    ///
    /// # Errors
    /// The node cannot take the pod; the text is the extender's reason.
    pub fn filter(&self, pod: &PodObject, node: &str) -> Result<(), String> {
        let (uid, holder) = (pod::uid(&pod.metadata), pod::would_hold(pod));
        // A pod that requests neither a GPU nor VRAM fits every node.
        let Some(holder) = &holder else { return Ok(()) };
        Filter::of(&self.cluster, &uid, holder).node(node).map_err(|rejected| rejected.why.countable().to_string())
    }

    /// Asks the binding guard like a dry run. Returns the annotations that the binding would put on the pod.
    ///
    /// # Errors
    /// The binding guard refuses the binding.
    pub fn would_bind(&self, pod: &PodObject, node: &str, binder: &str) -> Result<BTreeMap<String, String>, Refusal> {
        Ok(self.grant(pod, node, binder)?.annotations)
    }

    /// Binds a pod and returns the bound pod. Its reservation is written to the ledger of the node, and the pod becomes
    /// a holder there.
    ///
    /// # Errors
    /// The binding guard refuses the binding; nothing changes then.
    pub fn bind(&mut self, pod: &PodObject, node: &str, binder: &str) -> Result<PodObject, Refusal> {
        let Grant { annotations, write } = self.grant(pod, node, binder)?;
        if let Some(reservations) = write {
            let before = self.cluster.node(node).and_then(|node| node.ledger.content().cloned());
            self.cluster.apply_ledger(node, Some(LedgerContent { reservations, ..before.unwrap_or_default() }));
        }
        let mut bound = pod.clone();
        bound.metadata.annotations.get_or_insert_default().extend(annotations);
        bound.spec.node_name = Some(node.to_owned());
        if let Some((uid, node, holder)) = pod::holder(&bound) {
            self.cluster.apply_pod(&uid, &node, holder);
        }
        Ok(bound)
    }

    /// Answers as `/mutate/pods` does.
    fn mutate(&self, pod: &Value, user: &str) -> Result<Answered, SimulationError> {
        let (object, namespace) = (object(pod)?, namespace(pod));
        let Some(policy) = self.policies.of(namespace) else { return untouched() };
        let subject = Subject { object: &object, namespace: Some(namespace), user };
        answered(&pod_review::mutate(subject, policy, || &self.cluster).answer(String::new()))
    }

    /// Answers as `/validate/pods` does.
    fn validate(&self, pod: &Value, user: &str) -> Result<Answered, SimulationError> {
        let (object, namespace) = (object(pod)?, namespace(pod));
        let Some(policy) = self.policies.of(namespace) else { return untouched() };
        let subject = Subject { object: &object, namespace: Some(namespace), user };
        match pod_review::validate(subject, policy, &[], || &self.cluster) {
            Some(validation) => answered(&validation.answer(String::new())),
            None => untouched(),
        }
    }

    fn grant(&self, object: &PodObject, node: &str, binder: &str) -> Result<Grant, Refusal> {
        let (uid, pod) = (pod::uid(&object.metadata), pod::translate(object, None, None));
        let binding = Binding {
            pod: pod.name,
            uid: Some(uid),
            node: node.to_owned(),
            reserved_annotations: Vec::new(),
            binder: binder.to_owned(),
        };
        binding::screen(&binding)?;
        let Some(Guarded { uid, pod, holder }) = Guarded::of(object) else { return Ok(Grant::default()) };
        binding::judge(&binding, &uid, &pod, &self.binders, self.cluster.places_except(node, &uid))?;
        let unplaced = |why| Refusal::Unplaced { node: node.to_owned(), why };
        let NodeView { facts, ledger, .. } =
            self.cluster.node(node).ok_or_else(|| unplaced(Unplaced::NoGpu { resource: None }))?;
        ledger.grant(&uid, &pod, &holder, &facts.pools, self.cluster.rules(), Moment::default()).map_err(unplaced)
    }
}

/// The node that kube-scheduler would choose for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scheduled {
    /// The pod goes to this node.
    On(String),
    /// No node fits now; with the shortfall, as far as it is known.
    Pending(Option<Shortfall>),
}

/// Stands in for kube-scheduler: of the nodes that fit the pod, it takes the one with the least free.
pub fn schedule(cluster: &Cluster, wanted: &Guarded) -> Scheduled {
    let Guarded { pod, holder, .. } = wanted;
    let (Some(demand), Some((resource, _))) = (holder.request, holder.gpus.first()) else {
        return Scheduled::Pending(None);
    };
    let fitting = cluster.fitting(resource, demand, &pod.placement).next();
    match fitting {
        Some(node) => Scheduled::On(node.to_owned()),
        None => Scheduled::Pending(cluster.shortfall(resource, demand, &pod.placement)),
    }
}

/// Fills in missing metadata as an API server would: the end of a generated name, the namespace and the uid.
fn identify(pod: &mut Value, number: u64) {
    let namespace = namespace(pod).to_owned();
    let metadata = &mut pod["metadata"];
    let prefix = metadata["generateName"].as_str().unwrap_or_default();
    if metadata["name"].as_str().unwrap_or_default().is_empty() {
        metadata["name"] = json!(format!("{prefix}{number}"));
    }
    if metadata["uid"].as_str().unwrap_or_default().is_empty() {
        metadata["uid"] = json!(format!("simulated-{number}"));
    }
    metadata["namespace"] = json!(namespace);
}

fn untouched() -> Result<Answered, SimulationError> {
    answered(&Answer::untouched(String::new()))
}

/// Writes an answer and reads it back, so that the simulation uses the same wire form as a server.
fn answered(answer: &Answer) -> Result<Answered, SimulationError> {
    let body = serde_json::to_vec(answer).map_err(SimulationError::Answer)?;
    review::answered(&body).map_err(SimulationError::Answer)
}

#[cfg(test)]
mod tests;
