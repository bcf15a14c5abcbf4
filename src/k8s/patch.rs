//! Changes → JSON Patch (RFC 6902), with the fewest operations for the object as it was sent. An object that needs no
//! change gets none. Owns paths and the parents that must be created. [`crate::capacity::admission`] decides the
//! changes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, CopyOperation, Patch, PatchOperation, RemoveOperation};
use serde_json::{Map, Value, json};

use super::object::{BindingObject, Container, NodeSelectorTerm, PodObject, Requirements};
use crate::capacity::admission::{Changes, ContainerChange, environment};
use crate::capacity::name::PodUid;
use crate::capacity::pod::placement::{Affinity, NewTerm, Operator, Preference, Requirement, Reroute};
use crate::capacity::pod::software::ArgumentList;
use crate::keys;

/// Returns the operations for `changes`, which must have been decided on this same object.
pub fn operations(object: &PodObject, changes: &Changes) -> Patch {
    let mut patch = Vec::new();
    for annotation in &changes.strip {
        remove(&mut patch, &["metadata", "annotations", annotation]);
    }
    annotate(&mut patch, object.metadata.annotations.is_some(), &changes.annotate);
    let spec = &object.spec;
    let init = spec.init_containers.iter().enumerate().map(|(index, container)| ("initContainers", index, container));
    let apps = spec.containers.iter().enumerate().map(|(index, container)| ("containers", index, container));
    for ((list, index, container), change) in init.chain(apps).zip(&changes.containers) {
        let index = index.to_string();
        in_container(&mut patch, &["spec", list, &index], container, change);
    }
    if let Some(change) = &changes.affinity {
        affinity(&mut patch, object, change);
    }
    prefer(&mut patch, object, &changes.reroute.as_ref().map(Reroute::preferences).unwrap_or_default());
    for label in &changes.unselect {
        remove(&mut patch, &["spec", "nodeSelector", label]);
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
    // Before any entry is removed or inserted, while the indices are those of the object.
    for variable in &change.edit_env {
        let environment::Value::Literal(value) = &variable.value else { continue };
        let last = container.env.iter().flat_map(|env| env.iter()).rev().find(|entry| entry.name == variable.name);
        if let Some(entry) = last {
            add(patch, &[at, &["env", &entry.index.to_string(), "value"]].concat(), json!(value));
        }
    }
    if let Some(name) = change.remove_env {
        let named = container.env.iter().flatten().filter(|entry| entry.name == name);
        // From the end, so that the remaining indices stay valid.
        for entry in named.collect::<Vec<_>>().into_iter().rev() {
            remove(patch, &[at, &["env", &entry.index.to_string()]].concat());
        }
    }
    if let Some(argument) = &change.argument {
        let list = match argument.list {
            ArgumentList::Command => "command",
            ArgumentList::Args => "args",
        };
        add(patch, &[at, &[list, "-"]].concat(), json!(argument.text));
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
        // Each entry is inserted at the front, so the last one goes first.
        for entry in entries.rev() {
            add(patch, &[at, &["env", "0"]].concat(), entry);
        }
    }
}

/// Returns the patch that puts annotations on a Binding. The API server copies them to the pod in the write that binds
/// it. A Binding without a uid gets that of `pod`, so that it means no other pod of the same name than the one that was
/// decided on.
pub fn of_binding(binding: &BindingObject, pod: Option<&PodUid>, annotations: &BTreeMap<String, String>) -> Patch {
    let mut patch = Vec::new();
    if let Some(pod) = pod.filter(|_| binding.metadata.uid.as_ref().is_none_or(String::is_empty)) {
        add(&mut patch, &["metadata", "uid"], json!(pod.to_string()));
    }
    annotate(&mut patch, binding.metadata.annotations.is_some(), annotations);
    Patch(patch)
}

/// Sets annotations. `has_any` tells whether the object has the field.
fn annotate(patch: &mut Vec<PatchOperation>, has_any: bool, annotations: &BTreeMap<String, String>) {
    if annotations.is_empty() {
    } else if has_any {
        for (key, value) in annotations {
            add(patch, &["metadata", "annotations", key], json!(value));
        }
    } else {
        add(patch, &["metadata", "annotations"], json!(annotations));
    }
}

/// Path of the required node affinity.
const REQUIRED: [&str; 4] = ["spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"];
/// Path of the preferred node affinity.
const PREFERRED: [&str; 4] = ["spec", "affinity", "nodeAffinity", "preferredDuringSchedulingIgnoredDuringExecution"];
const TERMS: &str = "nodeSelectorTerms";

/// Changes the required node affinity of a pod.
fn affinity(patch: &mut Vec<PatchOperation>, object: &PodObject, change: &Affinity) {
    let affinity = object.spec.affinity.as_ref();
    let node_affinity = affinity.and_then(|affinity| affinity.node_affinity.as_ref());
    let existing = node_affinity.and_then(|affinity| affinity.required.as_ref());
    let new = match change {
        Affinity::Nothing => return remove(patch, &REQUIRED),
        Affinity::Terms(new) => new,
    };
    if let Some(existing) = existing.filter(|_| new.iter().any(|term| term.from.is_some())) {
        return terms(patch, &existing.node_selector_terms, new);
    }
    let terms = new.iter().map(|term| within("matchExpressions", term.with.iter().map(requirement).collect()));
    let required = within(TERMS, terms.collect());
    match (affinity, node_affinity) {
        (None, _) => add(patch, &REQUIRED[..2], within("nodeAffinity", within(REQUIRED[3], required))),
        (Some(_), None) => add(patch, &REQUIRED[..3], within(REQUIRED[3], required)),
        (Some(_), Some(_)) => add(patch, &REQUIRED, required),
    }
}

/// Appends preferences to the node affinity of a pod. The required node affinity has been changed already.
fn prefer(patch: &mut Vec<PatchOperation>, object: &PodObject, preferences: &[Preference]) {
    let affinity = object.spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let mut exists = affinity.is_some_and(|affinity| affinity.preferred.is_some());
    for Preference { weight, requirements } in preferences {
        let requirements = requirements.iter().map(requirement).collect();
        let term = json!({ "weight": weight, "preference": within("matchExpressions", requirements) });
        if exists {
            add(patch, &[&PREFERRED[..], &["-"]].concat(), term);
        } else {
            add(patch, &PREFERRED, json!([term]));
        }
        exists = true;
    }
}

/// Edits the existing terms. The first new term made of an existing one edits it in place, and each further one edits a
/// copy.
fn terms(patch: &mut Vec<PatchOperation>, existing: &[NodeSelectorTerm], new: &[NewTerm]) {
    let mut in_place: BTreeMap<usize, &NewTerm> = BTreeMap::new();
    let mut copies = Vec::new();
    for term in new {
        let Some(from) = term.from else { continue };
        match in_place.entry(from) {
            Entry::Vacant(entry) => _ = entry.insert(term),
            Entry::Occupied(_) => copies.push((from, term)),
        }
    }
    // Copies come first, while the terms are still unchanged.
    for (copy, (from, term)) in (existing.len()..).zip(copies) {
        let [from_path, path] = [from.to_string().as_str(), "-"]
            .map(|index| PointerBuf::from_tokens([&REQUIRED[..], &[TERMS, index]].concat()));
        patch.push(PatchOperation::Copy(CopyOperation { from: from_path, path }));
        edit(patch, copy, &existing[from], term);
    }
    for (&index, term) in &in_place {
        edit(patch, index, &existing[index], term);
    }
    // Terms that no new term is made of differed from another one only by our requirements. A term without requirements
    // matches no node and may stay.
    let empty = |list: &Option<Requirements>| list.as_ref().is_none_or(|list| list.is_empty());
    let needless = |index: &usize| {
        let term = &existing[*index];
        !(in_place.contains_key(index) || empty(&term.match_expressions) && empty(&term.match_fields))
    };
    for index in (0..existing.len()).rev().filter(needless) {
        remove(patch, &[&REQUIRED[..], &[TERMS, &index.to_string()]].concat());
    }
}

/// Edits one term, whose content is still that of `existing`.
fn edit(patch: &mut Vec<PatchOperation>, index: usize, existing: &NodeSelectorTerm, new: &NewTerm) {
    let index = index.to_string();
    let at = [&REQUIRED[..], &[TERMS, &index, "matchExpressions"]].concat();
    for index in new.without.iter().rev() {
        remove(patch, &[&at[..], &[&index.to_string()]].concat());
    }
    if existing.match_expressions.is_none() && !new.with.is_empty() {
        return add(patch, &at, new.with.iter().map(requirement).collect());
    }
    for added in &new.with {
        add(patch, &[&at[..], &["-"]].concat(), requirement(added));
    }
}

fn requirement(requirement: &Requirement) -> Value {
    let operator = match requirement.operator {
        Operator::In => "In",
        Operator::NotIn => "NotIn",
        Operator::Exists => "Exists",
        Operator::DoesNotExist => "DoesNotExist",
        Operator::Unrecognised => unreachable!("vramguard writes no requirement that it does not know"),
        Operator::Gt => "Gt",
        Operator::Lt => "Lt",
    };
    let mut fields = Map::from_iter([("key".into(), json!(requirement.key)), ("operator".into(), json!(operator))]);
    if !requirement.values.is_empty() {
        fields.insert("values".into(), json!(requirement.values));
    }
    Value::Object(fields)
}

/// An object with one field. `json!` would copy the value again at each level.
fn within(field: &str, value: Value) -> Value {
    Value::Object([(field.to_owned(), value)].into_iter().collect())
}

fn remove(patch: &mut Vec<PatchOperation>, path: &[&str]) {
    patch.push(PatchOperation::Remove(RemoveOperation { path: PointerBuf::from_tokens(path.iter().copied()) }));
}

fn add(patch: &mut Vec<PatchOperation>, path: &[&str], value: Value) {
    patch.push(PatchOperation::Add(AddOperation { path: PointerBuf::from_tokens(path.iter().copied()), value }));
}

#[cfg(test)]
mod tests;
