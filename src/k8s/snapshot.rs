//! A snapshot: the output of `kubectl get nodes,pods,gpuledgers -A -o yaml` (or json), or a file of manifests. Owns how
//! such a text becomes objects. Unknown kinds are ignored, and the same object twice is an error. It reads no files
//! itself; the caller gives name and text.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::ResourceQuota;
use serde::Deserialize;
use serde_json::Value;

use super::document::{self, DocumentError, PolicyResource};
use super::gpu_ledger::GpuLedger;
use super::object::{NodeObject, PodObject};
use super::resource_quota::{self, Limit};
use super::{counts, manifests, tree, wording};
use crate::keys;

/// The objects of a static cluster.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// All nodes.
    pub nodes: Vec<NodeObject>,
    /// All pods, bound or not.
    pub pods: Vec<PodObject>,
    /// The ledgers of nodes, with reservations and agents' reports.
    pub ledgers: Vec<GpuLedger>,
    /// ResourceQuotas that limit VRAM.
    pub quotas: Vec<Limit>,
    /// Number of pods on nodes whose GPU memory HAMi allocated. Its records are not read here.
    pub of_hami: usize,
    /// Policy documents among the objects that are files, as name and JSON text, for [`document::read_with`].
    pub policies: Vec<(String, String)>,
    /// Policy documents among the objects that the API server has stored.
    pub policy_resources: Vec<PolicyResource>,
}

/// Reads several files, given as name and text.
///
/// # Errors
/// A document is not YAML or JSON, an object cannot be read, or an object is there twice. The list has all errors.
pub fn read<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Snapshot, Vec<DocumentError>> {
    let mut collector = Collector::default();
    for (file, text) in files {
        let read = manifests::read_bounded(file, text.as_bytes(), u64::MAX, &mut |line, object| {
            collector.add(file, line, object);
            Ok(())
        });
        collector.errors.extend(read.err().into_iter().flatten());
    }
    collector.finish()
}

/// Which plain scalars are booleans.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Booleans {
    /// Also `yes`, `on`, `n` and similar words, as kubectl reads them.
    Yaml11,
    /// Only `true` and `false`.
    Yaml12,
}

/// Reads the objects of one file as untyped values, each with its line. `Off` is a string there, as it
/// is in a policy file.
///
/// # Errors
/// A document is not YAML or JSON, or is a list without items.
pub fn objects(file: &str, text: &str) -> Result<Vec<(u64, Value)>, DocumentError> {
    let mut all = Vec::new();
    for (line, text) in document::split(text) {
        let objects = objects_of(file, line, text)?;
        let lines = lines(text, objects.len());
        let of = |(index, object): (usize, Value)| (line + lines.get(index).copied().unwrap_or(1), object);
        all.extend(objects.into_iter().enumerate().map(of));
    }
    Ok(all)
}

/// Reads the objects of one document that has `line` lines before it.
fn objects_of(file: &str, line: u64, text: &str) -> Result<Vec<Value>, DocumentError> {
    let at = |line, what| DocumentError { file: file.to_owned(), line, field: String::new(), what };
    let value = value(text, Booleans::Yaml12)
        .map_err(|error| at(line + error.location().map_or(1, |location| location.line()), wording::yaml(&error)))?;
    items(value).map_err(|what| at(line + 1, what))
}

/// The lines of the objects of a document, from 1: of the one object, or of the items of a List. Empty if they cannot be told.
fn lines(text: &str, count: usize) -> Vec<u64> {
    let mut lines = Vec::new();
    if text.trim_start().starts_with('{') && count > 1 {
        // The parser of JSON is many times faster than that of YAML. What is wrong was reported before.
        let mut note = |line, _| {
            lines.push(line);
            Ok(())
        };
        _ = manifests::read_bounded("", text.as_bytes(), 0, &mut note);
    } else {
        let documents = tree::documents(text).unwrap_or_default();
        let root = documents.first();
        match root.and_then(|root| root.get("items")).map(tree::Node::items) {
            Some(items) if items.len() == count => lines.extend(items.iter().map(|item| item.line)),
            _ => lines.extend(root.map(|root| root.line)),
        }
    }
    if lines.len() == count { lines } else { Vec::new() }
}

/// Collects objects into a snapshot, one by one.
#[derive(Default)]
pub(super) struct Collector {
    snapshot: Snapshot,
    seen: BTreeSet<String>,
    errors: Vec<DocumentError>,
}

impl Collector {
    /// Adds an object. An error about it names this file and line.
    pub(super) fn add(&mut self, file: &str, line: u64, object: Value) {
        if let Err(what) = self.snapshot.add(file, object, &mut self.seen) {
            self.errors.push(DocumentError { file: file.to_owned(), line, field: String::new(), what });
        }
    }

    /// Returns the snapshot.
    ///
    /// # Errors
    /// All errors of the objects that were added.
    pub(super) fn finish(self) -> Result<Snapshot, Vec<DocumentError>> {
        if self.errors.is_empty() { Ok(self.snapshot) } else { Err(self.errors) }
    }
}

/// Parses JSON with the JSON parser, which is many times faster, and other text as YAML. The limits of the YAML parser
/// fit whole clusters.
pub(super) fn value(text: &str, booleans: Booleans) -> Result<Value, serde_saphyr::Error> {
    if text.trim_start().starts_with('{')
        && let Ok(value) = serde_json::from_str(text)
    {
        return Ok(value);
    }
    let budget =
        serde_saphyr::budget! { max_events: 400_000_000, max_nodes: 200_000_000, max_total_scalar_bytes: 4 << 30 };
    serde_saphyr::from_str_with_options(
        text,
        serde_saphyr::options! { budget: budget, strict_booleans: booleans == Booleans::Yaml12 },
    )
}

/// Returns the objects of a List, or the object itself. A list without readable items is an error, not an empty list.
fn items(mut value: Value) -> Result<Vec<Value>, String> {
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    match value.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) if kind.ends_with("List") => Ok(items),
        _ if matches!(kind.as_str(), "List" | "NodeList" | "PodList" | "GpuLedgerList") => {
            Err(format!("{kind} holds no list of items"))
        }
        _ => Ok(vec![value]),
    }
}

impl Snapshot {
    /// Adds an object of a cluster that is read.
    ///
    /// # Errors
    /// The object cannot be read; the text names it.
    pub fn push(&mut self, object: Value) -> Result<(), String> {
        self.add("", object, &mut BTreeSet::new())
    }

    fn add(&mut self, file: &str, object: Value, seen: &mut BTreeSet<String>) -> Result<(), String> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (group, kind, name) = (text("/apiVersion"), text("/kind"), text("/metadata/name"));
        if kind.is_empty() {
            return Err("holds no Kubernetes object: kind is missing".into());
        }
        let known = match (group.as_str(), kind.as_str()) {
            ("v1", "Node" | "Pod" | "ResourceQuota") => true,
            (keys::API_VERSION, _) => true,
            _ => return Ok(()),
        };
        let id = match text("/metadata/namespace") {
            namespace if namespace.is_empty() => format!("{kind} {name}"),
            namespace => format!("{kind} {namespace}/{name}"),
        };
        if known && !seen.insert(id.clone()) {
            return Err(format!("{id} is there twice"));
        }
        let unreadable = |error: serde_json::Error| format!("{id} cannot be read: {}", wording::json(&error));
        if kind == "Pod" {
            let is_of_hami =
                object.pointer("/metadata/annotations").is_some_and(|all| all.get(keys::HAMI_ALLOCATED).is_some());
            let has_ended = matches!(text("/status/phase").as_str(), "Succeeded" | "Failed");
            self.of_hami += usize::from(is_of_hami && !has_ended && !text("/spec/nodeName").is_empty());
            counts::check(&object)
                .map_err(|(field, what)| format!("{id}: {}: {what}", field.trim_start_matches('.')))?;
        }
        match kind.as_str() {
            "Node" => self.nodes.push(NodeObject::deserialize(object).map_err(unreadable)?),
            "Pod" => self.pods.push(PodObject::deserialize(object).map_err(unreadable)?),
            "GpuLedger" => self.ledgers.push(GpuLedger::deserialize(object).map_err(unreadable)?),
            "ResourceQuota" => {
                self.quotas.extend(resource_quota::limit(&ResourceQuota::deserialize(object).map_err(unreadable)?))
            }
            _ => {
                // An object of a cluster that is read has no file.
                let name = if file.is_empty() { id } else { format!("{file} ({id})") };
                if document::is_resource(&object) {
                    self.policy_resources.push(document::read_resource(&name, &object));
                } else {
                    self.policies.push((name, object.to_string()));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_cannot_be_read_is_not_an_empty_cluster() {
        let error = |text| read([("c.yaml", text)]).unwrap_err()[0].to_string();
        assert_eq!(error("kind: List\n"), "c.yaml:1: List holds no list of items");
        assert_eq!(error("kind: PodList\nitems: 3\n"), "c.yaml:1: PodList holds no list of items");
        assert!(read([("c.yaml", "kind: List\nitems: []\n")]).unwrap().nodes.is_empty());
    }

    /// All of them had the line of the List.
    #[test]
    fn each_item_of_a_list_has_its_own_line() {
        let lines = |text: &str| objects("f", text).unwrap().into_iter().map(|(line, _)| line).collect::<Vec<_>>();
        assert_eq!(lines("# list\nkind: List\nitems:\n- kind: A\n\n- kind: B\n---\n# one\nkind: C\n"), [4, 6, 9]);
        assert_eq!(lines("{\"kind\": \"List\", \"items\": [\n {\"kind\": \"A\"},\n {\"kind\": \"B\"}\n]}\n"), [2, 3]);
        assert_eq!(lines("{kind: List, items: [{kind: A}, {kind: B}]}\n"), [1, 1]);
    }

    #[test]
    fn kinds_that_mean_nothing_here_are_ignored_and_the_same_object_twice_is_an_error() {
        let node = "{apiVersion: v1, kind: Node, metadata: {name: gpu-0}}";
        let list = format!("kind: List\nitems: [{node}, {{apiVersion: v1, kind: Secret, metadata: {{name: s}}}}]\n");
        assert_eq!(read([("c.yaml", list.as_str())]).unwrap().nodes.len(), 1);
        assert!(
            read([("a.yaml", list.as_str()), ("b.yaml", node)]).unwrap_err()[0].to_string().contains("there twice")
        );
    }
}
