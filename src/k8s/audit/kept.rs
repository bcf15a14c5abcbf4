//! How long the texts are that an audit keeps. Owns both bounds: names are identities and are never cut, and all other
//! texts only appear in messages.
//!
//! Tenants write these texts, and the API server accepts 256 KiB of annotations and 1.5 MiB of variables.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::capacity::gpu::GpuId;
use crate::capacity::node::holder::Holder;
use crate::capacity::pod::{Declarations, Pod, VramRequest, Written};
use crate::k8s::object::bounds::MAX_NAME;
use crate::k8s::template::kinds;

/// Characters of a text that are kept.
pub(super) const LONGEST: usize = 128;
/// Entries of one pod that are kept of each kind: more than messages are written about it.
pub(super) const MOST: usize = 128;
/// Characters of an error that are kept.
const LONGEST_ERROR: usize = 512;

/// The first [`LONGEST`] characters of a text.
pub(super) fn cut(text: &str) -> String {
    cut_at(text, LONGEST)
}

/// An error, which may repeat what a tenant wrote.
pub(super) fn error(text: &str) -> String {
    cut_at(text, LONGEST_ERROR)
}

fn cut_at(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Cuts a text in place. Most are short, so they stay where they are.
fn shorten(text: &mut String, most: usize) {
    // A text has at least as many bytes as characters.
    if text.len() > most {
        *text = cut_at(text, most);
    }
}

/// Whether a text is short enough for the name of anything in Kubernetes.
pub(super) fn may_be_name(text: &str) -> bool {
    text.len() <= MAX_NAME
}

/// Checks the length of a name. The error begins with the field.
pub(super) fn name(field: &str, text: &str) -> Result<(), String> {
    if may_be_name(text) {
        return Ok(());
    }
    Err(format!("{field}: is {} bytes long, and no name in Kubernetes has more than {MAX_NAME}", text.len()))
}

/// Checks the names by which an object is kept.
pub(super) fn names(object: &Value) -> Result<(), String> {
    let fields = [
        ("kind", "/kind"),
        ("metadata.name", "/metadata/name"),
        ("metadata.namespace", "/metadata/namespace"),
        ("metadata.generateName", "/metadata/generateName"),
        ("metadata.uid", "/metadata/uid"),
        ("spec.nodeName", "/spec/nodeName"),
    ];
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    fields.iter().try_for_each(|(field, pointer)| name(field, text(pointer)))?;
    kinds::templates().try_for_each(|pointer| {
        let node = object.pointer(pointer).and_then(|template| template.pointer("/spec/nodeName")?.as_str());
        node.map_or(Ok(()), |node| name(&format!("{}.spec.nodeName", kinds::field(pointer)), node))
    })
}

/// Cuts the texts of a pod. What is decided on them does not change: no amount, variable of vramguard or value of a label
/// is that long.
pub(super) fn pod(pod: &mut Pod) {
    declarations(&mut pod.declarations);
    by_container(&mut pod.bounded_by);
    for key in pod.reserved_annotations.iter_mut().chain(&mut pod.unknown_annotations) {
        shorten(key, LONGEST);
    }
    for container in &mut pod.containers {
        if let VramRequest::Irregular { text, .. } = &mut container.vram_request {
            shorten(text, LONGEST);
        }
        for flag in &mut container.software.flags {
            flag.value.iter_mut().for_each(|value| shorten(value, LONGEST));
        }
        for variable in &mut container.env {
            variable.value.iter_mut().for_each(|value| shorten(value, LONGEST));
            // The path has the name of an annotation, which has the name of a container.
            variable.field.iter_mut().for_each(|field| shorten(field, 2 * MAX_NAME));
        }
    }
    let placement = &mut pod.placement;
    let terms = placement.required.iter_mut().flatten();
    for requirement in terms.flat_map(|term| term.labels.iter_mut().chain(&mut term.fields)) {
        requirement.values.iter_mut().chain([&mut requirement.key]).for_each(label);
    }
    for toleration in &mut placement.tolerations {
        toleration.key.iter_mut().chain(&mut toleration.value).chain(&mut toleration.effect).for_each(label);
    }
    if placement.node_selector.iter().any(|(key, value)| key.len().max(value.len()) > LONGEST_LABEL) {
        let all = std::mem::take(&mut placement.node_selector);
        placement.node_selector =
            all.into_iter().map(|(key, value)| (cut_at(&key, LONGEST_LABEL), cut_at(&value, LONGEST_LABEL))).collect();
    }
}

/// Bytes of the longest key of a label: a domain, a slash and a name of 63 bytes. No value is longer.
const LONGEST_LABEL: usize = MAX_NAME + 64;

fn label(text: &mut String) {
    shorten(text, LONGEST_LABEL);
}

fn declarations(declarations: &mut Declarations) {
    let Declarations { pod, containers, model, foreign, processes, framework, frameworks } = declarations;
    pod.iter_mut().for_each(written);
    containers.values_mut().chain(foreign.values_mut().flatten()).for_each(written);
    // Longer than the name of any container, so it stays one that the pod does not have.
    if containers.keys().any(|name| !may_be_name(name)) {
        let all = std::mem::take(containers);
        *containers = all.into_iter().map(|(name, written)| (cut_at(&name, MAX_NAME), written)).collect();
    }
    if foreign.keys().any(|name| !may_be_name(name)) {
        let all = std::mem::take(foreign);
        *foreign = all.into_iter().map(|(name, written)| (cut_at(&name, MAX_NAME), written)).collect();
    }
    // Policies name models, and nobody gives a model a name longer than an object's.
    model.iter_mut().for_each(|model| shorten(model, MAX_NAME));
    if let Some(Err(text)) = processes {
        shorten(text, LONGEST);
    }
    framework.iter_mut().for_each(|text| shorten(text, LONGEST));
    by_container(frameworks);
}

/// Cuts texts by container. A name that is longer than any container's stays one that the pod does not have.
fn by_container(texts: &mut BTreeMap<String, String>) {
    texts.values_mut().for_each(|text| shorten(text, LONGEST));
    if texts.keys().any(|name| !may_be_name(name)) {
        let all = std::mem::take(texts);
        *texts = all.into_iter().map(|(name, text)| (cut_at(&name, MAX_NAME), text)).collect();
    }
}

fn written(written: &mut Written) {
    shorten(&mut written.key, LONGEST_LABEL);
    shorten(&mut written.text, LONGEST);
}

/// Cuts the texts of a holder. A GPU with a longer id is not on any node, and stays so.
pub(super) fn holder(holder: &mut Holder) {
    if holder.parts.iter().all(|part| part.gpu.as_ref().is_none_or(is_short)) {
        return;
    }
    for part in holder.parts.iter_mut() {
        if let Some(GpuId::Uuid(uuid)) = &part.gpu {
            part.gpu = Some(GpuId::Uuid(cut(uuid).into()));
        }
    }
}

fn is_short(gpu: &GpuId) -> bool {
    match gpu {
        GpuId::Uuid(uuid) => uuid.len() <= LONGEST,
        GpuId::Index(_) => true,
    }
}
