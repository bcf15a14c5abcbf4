//! Pods and pod templates → [`Subject`]s, and bound pods → holders. Owns which pods an audit has something to say about.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Names, Reader, bypasses, environment, hami, kai, kept, label, owners, typed};
use crate::capacity::audit::scene::{Stage, Subject};
use crate::capacity::name::{Name, PodUid};
use crate::capacity::node::holder::Holder;
use crate::capacity::pod::{Declarations, Pod, PodName};
use crate::capacity::verdict::finding::{ForeignDeclaration, Given, Object, Place};
use crate::k8s::agent_pod::agent_pod;
use crate::k8s::object::PodObject;
use crate::k8s::pod;
use crate::k8s::{counts, foreign};
use crate::keys;

/// A pod with GPUs that HAMi allocated.
pub(super) type OfHami = (PodUid, Holder, hami::Allocated);

/// The pods that were read.
#[derive(Debug, Default)]
pub(super) struct Pods {
    /// Until the end, [`Subject::object`] is the direct owner of the pod.
    subjects: Vec<Subject>,
    /// Pods that say that HAMi allocated their GPUs, by node. It counts if HAMi registered the GPUs of the node.
    of_hami: BTreeMap<Name, Vec<OfHami>>,
}

impl Pods {
    /// Takes the pods whose GPUs HAMi allocated, by node.
    pub(super) fn take_of_hami(&mut self) -> BTreeMap<Name, Vec<OfHami>> {
        std::mem::take(&mut self.of_hami)
    }

    /// The number of subjects so far.
    pub(super) fn len(&self) -> usize {
        self.subjects.len()
    }

    /// The subjects.
    pub(super) fn finish(self) -> Vec<Subject> {
        self.subjects
    }
}

/// What an audit says about a pod or template, whatever its stage.
pub(super) struct About {
    pub(super) pod: Pod,
    pub(super) foreign: Vec<ForeignDeclaration>,
    pub(super) environment: Vec<crate::capacity::verdict::finding::EnvironmentFault>,
    pub(super) bypasses: Vec<String>,
}

impl About {
    /// Returns `None` for a pod that has nothing to do with GPUs.
    ///
    /// Variables of frameworks are read only for other pods: they have no effect without a GPU.
    pub(super) fn of(value: &Value, object: &PodObject, names: &mut Names) -> Option<About> {
        let user = is_mirror(value, object).then_some("system:node:");
        let (foreign, bypasses) = (foreign_of(value), bypasses::of_pod(value));
        let pod = compact(pod::translate(object, None, user), names);
        let matters = !foreign.is_empty() || !bypasses.is_empty() || is_about_gpus(&pod);
        matters.then(|| About { pod, foreign, environment: environment::faults(value), bypasses })
    }

    pub(super) fn subject(self, place: Option<Place>, uid: PodUid, stage: Stage, object: Object) -> Subject {
        let About { pod, foreign, environment, bypasses } = self;
        Subject { pod, uid, stage, object, owner_kind: None, place, foreign, environment, bypasses }
    }
}

/// Whether an existing pod is the mirror of a static pod. No policy is asked about such a pod, because its kubelet runs it in
/// any case; what it holds counts all the same.
///
/// Anyone who may create pods may write the annotation: the API server only wants `spec.nodeName` with it. A kubelet also
/// makes its Node the controller of the pod, and the API server holds kubelets to that (admission plugin
/// NodeRestriction), so a pod without that owner is no kubelet's. A pod with a forged owner is none either, but it does not
/// run: the kubelet of its node deletes a mirror without a static pod.
fn is_mirror(value: &Value, object: &PodObject) -> bool {
    let Some(node) = object.spec.node_name.as_deref().filter(|node| !node.is_empty()) else { return false };
    let owners = value.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    let is_node = |owner: &Value| {
        let is = |field: &str, text: &str| owner.get(field).and_then(Value::as_str) == Some(text);
        let is_controller = owner.get("controller").and_then(Value::as_bool) == Some(true);
        is_controller && is("apiVersion", "v1") && is("kind", "Node") && is("name", node)
    };
    pod::is_mirror(object) && owners.is_some_and(|owners| owners.iter().any(is_node))
}

/// The declarations for other tools that vramguard does not read itself.
fn foreign_of(value: &Value) -> Vec<ForeignDeclaration> {
    let found = foreign::of_pod(value).into_iter().filter(|declaration| !declaration.understood);
    found
        .take(kept::MOST)
        .map(|found| ForeignDeclaration {
            ours: kept::cut(&found.ours()),
            container: found.container.map(|container| kept::cut(&container)),
            key: kept::cut(&found.key),
            text: kept::cut(&found.text),
            amount: found.amount.map_err(|error| kept::cut(&error.to_string())),
            tool: found.scheme.name(),
            given: Given::Nothing,
        })
        .collect()
}

/// Whether a pod requests a GPU or VRAM, declares anything about it, or makes GPUs visible to itself.
fn is_about_gpus(pod: &Pod) -> bool {
    pod.containers.iter().any(|container| {
        !container.gpus.is_empty()
            || container.vram_request.counted().is_some()
            || container.env(keys::ENV_VISIBLE_DEVICES).is_some()
    }) || pod.declarations != Declarations::default()
        || !pod.reserved_annotations.is_empty()
        || !pod.unknown_annotations.is_empty()
        || pod.excess.as_ref().is_some_and(|excess| excess.hides_gpus)
}

/// Cuts long texts, shares those that repeat, and frees what lists have in reserve.
fn compact(mut pod: Pod, names: &mut Names) -> Pod {
    kept::pod(&mut pod);
    pod.name.namespace = names.share(&pod.name.namespace);
    for container in &mut pod.containers {
        for (resource, _) in &mut container.gpus {
            resource.0 = names.share(&resource.0);
        }
        container.gpus.shrink_to_fit();
        container.env.shrink_to_fit();
    }
    pod.containers.shrink_to_fit();
    pod.placement.tolerations.shrink_to_fit();
    pod
}

/// Checks that the numbers of GPUs of a pod or template can be read. The error begins with the field.
pub(super) fn counted(value: &Value) -> Result<(), String> {
    counts::check(value).map_err(|(field, what)| format!("{}: {what}", field.trim_start_matches('.')))
}

impl Reader {
    pub(super) fn pod(&mut self, id: &Object, place: Option<Place>, value: &Value) -> Result<(), String> {
        let object: PodObject = typed(value)?;
        counted(value)?;
        let stage = pod::stage(&object);
        let uid = pod::uid(&object.metadata);
        if let Some(agent) = agent_pod(&object) {
            self.cluster.apply_agent_pod(&uid, agent);
        }
        if stage == pod::Stage::Ended || has_ended(&object) {
            return Ok(());
        }
        let owner = owners::controller(value, &id.namespace, &mut self.names);
        if label(value, keys::LWS_NAME).is_some() {
            // The workers of a group are owned by way of their leader.
            self.owners.note(id, owner.clone());
        }
        let holder = match stage {
            pod::Stage::Holds(_, holder) => Some(holder),
            pod::Stage::WithoutGpu | pod::Stage::Unbound | pod::Stage::Ended => None,
        };
        let node = object.spec.node_name.as_deref().filter(|node| !node.is_empty());
        let node = node.map(|node| self.names.share(node));
        if let (Some(mut holder), Some(node)) = (holder, &node) {
            if !id.name.is_empty() {
                holder.name = PodName { namespace: id.namespace.clone(), name: id.name.clone() };
            }
            kept::holder(&mut holder);
            self.hold(&uid, node, holder, value);
        }
        if let Some(node) = &node {
            self.kai.fraction(&uid, node, &object, value);
        }
        if kai::reservation(value).is_some() {
            return Ok(()); // KAI's own pod: who shares its GPU is the subject
        }
        let Some(about) = About::of(value, &object, &mut self.names) else { return Ok(()) };
        if let Some(owner) = owner.as_ref().filter(|owner| owner.kind == "ReplicaSet")
            && let Some(hash) = label(value, "pod-template-hash")
        {
            self.owners.note_hash(owner, hash, &mut self.names);
        }
        let stage = node.map_or(Stage::Waiting, Stage::Bound);
        let owner_kind = owner.as_ref().map(|owner| owner.kind.clone());
        // The owner of a mirror pod is its node, which findings are not about.
        let object = owner.filter(|owner| owner.kind != "Node").unwrap_or_else(|| id.clone());
        let mut subject = Subject { owner_kind, ..about.subject(place, uid, stage, object) };
        subject.pod.name.name = if id.name.is_empty() { subject.pod.name.name } else { id.name.clone() };
        self.pods.subjects.push(subject);
        Ok(())
    }

    /// Adds a holder. What other tools say of its GPU waits for its node.
    fn hold(&mut self, uid: &PodUid, node: &Name, holder: Holder, value: &Value) {
        let allocated = super::annotation(value, keys::HAMI_ALLOCATED).and_then(hami::allocated);
        match (kai::reservation(value), allocated) {
            (Some(reservation), _) => self.kai.reserve(reservation, uid, node, holder),
            (None, Some(allocated)) => {
                self.pods.of_hami.entry(node.clone()).or_default().push((uid.clone(), holder, allocated));
            }
            (None, None) => self.cluster.apply_pod(uid, node, holder),
        }
    }
}

/// Whether a pod without a GPU ended. [`pod::stage`] tells it of pods with one.
fn has_ended(object: &PodObject) -> bool {
    matches!(object.status.phase.as_deref(), Some("Succeeded" | "Failed"))
}
