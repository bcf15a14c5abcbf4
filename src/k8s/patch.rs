//! Changes → JSON Patch (RFC 6902): the fewest operations that the object as it was sent needs, none where it has
//! everything. Owns paths and what must be created on the way; what to change is [`crate::capacity::admission`]'s.

use std::collections::BTreeMap;

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, CopyOperation, Patch, PatchOperation, RemoveOperation};
use serde_json::{Value, json};

use super::object::{BindingObject, Container, NodeSelectorTerm, PodObject};
use crate::capacity::admission::{Changes, ContainerChange};
use crate::capacity::environment;
use crate::capacity::ledger::PodUid;
use crate::capacity::placement;
use crate::keys;

/// The operations for `changes`, which were decided on this very object.
pub fn operations(object: &PodObject, changes: &Changes) -> Patch {
    let mut patch = Vec::new();
    for annotation in &changes.strip {
        let path = PointerBuf::from_tokens(["metadata", "annotations", annotation]);
        patch.push(PatchOperation::Remove(RemoveOperation { path }));
    }
    let spec = &object.spec;
    let init = spec.init_containers.iter().enumerate().map(|(index, container)| ("initContainers", index, container));
    let apps = spec.containers.iter().enumerate().map(|(index, container)| ("containers", index, container));
    for ((list, index, container), change) in init.chain(apps).zip(&changes.containers) {
        let index = index.to_string();
        in_container(&mut patch, &["spec", list, &index], container, change);
    }
    if changes.avoid_shared || changes.pod_max.is_some() {
        affinity(&mut patch, object, changes);
    }
    Patch(patch)
}

fn in_container(patch: &mut Vec<PatchOperation>, at: &[&str], container: &Container, change: &ContainerChange) {
    if let Some(request) = change.request {
        let request = json!(request.to_string());
        let resources = container.resources.as_ref();
        let limits = resources.is_some_and(|resources| resources.limits.is_some());
        let requests = resources.is_some_and(|resources| resources.requests.is_some());
        for (list, exists) in [("limits", limits), ("requests", requests)] {
            let at = [at, &["resources", list]].concat();
            if exists {
                add(patch, &[at, vec![keys::VRAM_RESOURCE]].concat(), request.clone());
            } else {
                add(patch, &at, json!({ keys::VRAM_RESOURCE: request }));
            }
        }
    }
    let entries = change.env.iter().map(|variable| match &variable.value {
        environment::Value::Literal(value) => json!({ "name": variable.name, "value": value }),
        environment::Value::Field(path) => {
            json!({ "name": variable.name, "valueFrom": { "fieldRef": { "fieldPath": path } } })
        }
    });
    if change.env.is_empty() {
    } else if container.env.is_none() {
        add(patch, &[at, &["env"]].concat(), entries.collect());
    } else {
        // Each goes to the front, so the last one is inserted first.
        for entry in entries.rev() {
            add(patch, &[at, &["env", "0"]].concat(), entry);
        }
    }
}

/// Puts annotations on a Binding, which the API server puts on the pod in the write that binds it. A Binding that does not say
/// which pod of that name it means is made to mean the one that was decided on.
pub fn of_binding(binding: &BindingObject, pod: Option<&PodUid>, annotations: &BTreeMap<String, String>) -> Patch {
    let mut patch = Vec::new();
    if let Some(pod) = pod.filter(|_| binding.metadata.uid.as_ref().is_none_or(String::is_empty)) {
        add(&mut patch, &["metadata", "uid"], json!(pod.0));
    }
    if annotations.is_empty() {
    } else if binding.metadata.annotations.is_none() {
        add(&mut patch, &["metadata", "annotations"], json!(annotations));
    } else {
        for (key, value) in annotations {
            add(&mut patch, &["metadata", "annotations", key], json!(value));
        }
    }
    Patch(patch)
}

/// Keeps the pod off nodes that are not for it, whatever else it requires.
fn affinity(patch: &mut Vec<PatchOperation>, object: &PodObject, changes: &Changes) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    let alternatives = alternatives(changes);
    let affinity = object.spec.affinity.as_ref();
    let node_affinity = affinity.and_then(|affinity| affinity.node_affinity.as_ref());
    let at = ["spec", "affinity", "nodeAffinity", REQUIRED];
    let Some(existing) = node_affinity.and_then(|affinity| affinity.required.as_ref()) else {
        let terms = alternatives.into_iter().map(|all| within("matchExpressions", all.into()));
        let required = within("nodeSelectorTerms", terms.collect());
        return match (affinity, node_affinity) {
            (None, _) => add(patch, &at[..2], within("nodeAffinity", within(REQUIRED, required))),
            (Some(_), None) => add(patch, &at[..3], within(REQUIRED, required)),
            (Some(_), Some(_)) => add(patch, &at, required),
        };
    };
    let Some((first, further)) = alternatives.split_first() else { return };
    let terms = &existing.node_selector_terms;
    let is_empty = |list: &Option<Vec<_>>| list.as_ref().is_none_or(Vec::is_empty);
    // A term without a requirement matches no node; with one more it would match some.
    let matching = || {
        let all = terms.iter().enumerate();
        all.filter(|(_, term)| !is_empty(&term.match_expressions) || !is_empty(&term.match_fields))
    };
    // Terms are alternatives: each of theirs has to hold with one of ours, so it is copied while it is as it was.
    let copies = further.iter().flat_map(|all| matching().map(move |(index, term)| (index, term, all)));
    for (copy, (index, term, all)) in (terms.len()..).zip(copies) {
        let [from, path] = [index.to_string().as_str(), "-"]
            .map(|index| PointerBuf::from_tokens([&at[..], &["nodeSelectorTerms", index]].concat()));
        patch.push(PatchOperation::Copy(CopyOperation { from, path }));
        require(patch, &at, copy, term, all);
    }
    for (index, term) in matching() {
        require(patch, &at, index, term, first);
    }
}

/// An object of one field. Not `json!`, which copies what it is given, at each level anew.
fn within(field: &str, value: Value) -> Value {
    Value::Object([(field.to_owned(), value)].into_iter().collect())
}

/// Adds requirements to a term that has so far what `term` has.
fn require(patch: &mut Vec<PatchOperation>, at: &[&str], index: usize, term: &NodeSelectorTerm, all: &[Value]) {
    let index = index.to_string();
    let at = [at, &["nodeSelectorTerms", &index, "matchExpressions"]].concat();
    if term.match_expressions.is_none() {
        return add(patch, &at, json!(all));
    }
    for requirement in all {
        add(patch, &[&at[..], &["-"]].concat(), requirement.clone());
    }
}

/// What a node has to be: all of one of these lists.
fn alternatives(changes: &Changes) -> Vec<Vec<Value>> {
    let values = [keys::SHARING_TIME_SLICING, keys::SHARING_MPS];
    let unshared = json!({ "key": keys::GFD_SHARING, "operator": "NotIn", "values": values });
    let unshared = changes.avoid_shared.then_some(unshared);
    let Some(request) = changes.pod_max else { return unshared.into_iter().map(|only| vec![only]).collect() };
    // Where there is no label, kube-scheduler's sum says it. This one first, because Karpenter tries the first term first, and
    // knows of no label on nodes that it has yet to make.
    let unlabelled = json!({ "key": keys::POD_MAX_MIB, "operator": "DoesNotExist" });
    let below = placement::below(request).to_string();
    let large = json!({ "key": keys::POD_MAX_MIB, "operator": "Gt", "values": [below] });
    [unlabelled, large].map(|either| unshared.iter().cloned().chain([either]).collect()).into()
}

fn add(patch: &mut Vec<PatchOperation>, path: &[&str], value: Value) {
    patch.push(PatchOperation::Add(AddOperation { path: PointerBuf::from_tokens(path.iter().copied()), value }));
}

#[cfg(test)]
mod tests;
