//! What an audit may hold in memory. Owns the estimate of what the [`Reader`](crate::k8s::audit::Reader) keeps of an
//! object, and the limits.
//!
//! Any tenant may write pods of 1 MiB, so a number of objects alone bounds nothing. The estimate is of what is written
//! in the parts that are kept. The other parts of a pod are most of it, so counting them would end audits of ordinary
//! clusters.

use serde_json::Value;

use crate::capacity::admission::environment::recognise::LONGEST_VALUE;
use crate::keys;

/// Pods and templates of one audit, at most. Ordinary ones take 53 MiB (test `memory_of_full_audits`).
pub(super) const MAX_SUBJECTS: usize = 20_000;
/// Objects of one audit, at most. Kind, namespace, name and owner are kept of each, whether or not it requests a GPU.
/// They take 92 MiB.
pub(super) const MAX_OBJECTS: usize = 500_000;
/// Estimated bytes of what is kept of all objects. Affinities of short values, the worst for the estimate, then take
/// 74 MiB. The report quotes some of it again, and deploy/audit/ gives the server 512 MiB.
pub(super) const MAX_BYTES: usize = 48 << 20;

/// Length of a name that is part of the cost of any object.
const SHORT: usize = 64;
/// Cost of a pod or template that is kept, in addition to its texts.
const SUBJECT: usize = 1 << 10;
/// Cost of a node of a JSON tree: a text or list of Rust has 24 bytes, and each allocation some more.
const NODE: usize = 32;

/// Whether the value of a variable is kept.
fn is_kept(variable: &str) -> bool {
    variable == keys::OLLAMA_MAX_VRAM || keys::ENV_READ.contains(&variable)
}

/// The most that is kept of the flags of a container.
const FLAGS: usize = keys::FLAGS_READ.len() * (4 * LONGEST_VALUE + NODE);

/// What an audit holds so far.
#[derive(Debug, Default)]
pub(super) struct Held {
    objects: usize,
    subjects: usize,
    bytes: usize,
}

impl Held {
    /// Counts an object after it was added. `subjects` is the number of pods and templates that are kept with it.
    ///
    /// # Errors
    /// The audit holds too much. The text says of what, and what to do.
    pub(super) fn count(&mut self, object: &Value, subjects: usize) -> Result<(), String> {
        let is_kept = subjects > self.subjects;
        self.subjects = subjects;
        self.objects += 1;
        self.bytes = self.bytes.saturating_add(cost(object, is_kept));
        let too_much = if self.subjects > MAX_SUBJECTS {
            format!("more than {MAX_SUBJECTS} pods and templates request GPUs")
        } else if self.objects > MAX_OBJECTS {
            format!("there are more than {MAX_OBJECTS} objects")
        } else if self.bytes > MAX_BYTES {
            let (kind, name) = (text(object, "/kind"), text(object, "/metadata/name"));
            let namespace = text(object, "/metadata/namespace");
            format!(
                "what is kept of pods and other objects takes more than {} MiB, the last one being {kind} \
                 {namespace}/{name}",
                MAX_BYTES >> 20
            )
        } else {
            return Ok(());
        };
        Err(format!("{too_much}; run `vramguard audit` outside of the server"))
    }
}

fn text<'v>(object: &'v Value, pointer: &str) -> &'v str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Estimates the bytes that are kept of an object.
fn cost(object: &Value, is_kept: bool) -> usize {
    let long = text(object, "/metadata/name").len().saturating_sub(SHORT);
    let rest = match text(object, "/kind") {
        // The cluster's own components write these, and the nodes bound their number and size.
        "Node" | "ResourceSlice" | "GpuLedger" => 0,
        "ResourceClaim" => weight(object.pointer("/status")),
        _ if is_kept => {
            let template = ["/spec/jobTemplate/spec/template", "/spec/template"];
            SUBJECT + of_pod(template.iter().find_map(|pointer| object.pointer(pointer)).unwrap_or(object))
        }
        _ => 0,
    };
    long + rest
}

/// The texts that are kept of a pod or template.
fn of_pod(pod: &Value) -> usize {
    let annotations = pod.pointer("/metadata/annotations").and_then(Value::as_object).into_iter().flatten();
    let annotations =
        annotations.filter(|(key, _)| *key != LAST_APPLIED).map(|(key, value)| NODE + key.len() + weight(Some(value)));
    let spec = |part: &str| pod.pointer(&format!("/spec/{part}"));
    let whole = ["affinity/nodeAffinity", "nodeSelector", "tolerations", "ephemeralContainers"];
    let whole = whole.iter().map(|part| weight(spec(part)));
    let list = |part: &str| spec(part).and_then(Value::as_array).into_iter().flatten();
    let volumes = list("volumes").map(|volume| weight(volume.get("hostPath")));
    let containers = list("containers").chain(list("initContainers")).map(of_container);
    annotations.chain(whole).chain(volumes).chain(containers).fold(0, usize::saturating_add)
}

/// The annotation of kubectl with the manifest, which is as long as the manifest and of which nothing is kept.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

fn of_container(container: &Value) -> usize {
    let env = container.get("env").and_then(Value::as_array).into_iter().flatten();
    let env = env.filter(|entry| {
        let name = entry.get("name").and_then(Value::as_str).unwrap_or_default();
        is_kept(name)
    });
    // A fault of a variable names the container again.
    let name = weight(container.get("name"));
    let arguments = ["command", "args"].map(|list| weight(container.get(list))).iter().sum::<usize>().min(FLAGS);
    name + arguments + weight(container.get("resources")) + env.map(|entry| name + weight(Some(entry))).sum::<usize>()
}

/// The bytes of a JSON tree: its texts, and [`NODE`] for each of its nodes.
fn weight(value: Option<&Value>) -> usize {
    NODE + match value {
        None => return 0,
        Some(Value::String(text)) => text.len(),
        Some(Value::Array(items)) => items.iter().map(|item| weight(Some(item))).sum(),
        Some(Value::Object(members)) => members.iter().map(|(key, value)| NODE + key.len() + weight(Some(value))).sum(),
        Some(Value::Null | Value::Bool(_) | Value::Number(_)) => 0,
    }
}

#[cfg(test)]
mod tests;
