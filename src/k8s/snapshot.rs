//! A snapshot: what `kubectl get nodes,pods,gpuledgers -A -o yaml` (or json) prints, or a file of manifests. Owns how such a text
//! becomes objects; kinds it does not know are ignored, the same object twice is an error.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;

use super::document::{self, DocumentError};
use super::gpu_ledger::GpuLedger;
use super::object::{NodeObject, PodObject};

/// The objects of a static cluster.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Nodes.
    pub nodes: Vec<NodeObject>,
    /// Pods.
    pub pods: Vec<PodObject>,
    /// What was promised on nodes, and what their agents reported.
    pub ledgers: Vec<GpuLedger>,
    /// Policy documents found among them, as file and JSON text, for [`document::read`].
    pub policies: Vec<(String, String)>,
}

/// Reads several files, given as name and text.
pub fn read<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Snapshot, Vec<DocumentError>> {
    let (mut snapshot, mut seen, mut errors) = (Snapshot::default(), BTreeSet::new(), Vec::new());
    for (file, text) in files {
        for (line, text) in document::split(text) {
            let at = |what: String| DocumentError { file: file.to_owned(), line: line + 1, field: String::new(), what };
            match value(text) {
                Ok(value) => {
                    let objects = items(value).unwrap_or_else(|what| {
                        errors.push(at(what));
                        Vec::new()
                    });
                    for object in objects {
                        if let Err(what) = snapshot.add(file, object, &mut seen) {
                            errors.push(at(what));
                        }
                    }
                }
                Err(error) => {
                    let line = line + error.location().map_or(1, |location| location.line());
                    errors.push(DocumentError { line, ..at(document::what(&error)) });
                }
            }
        }
    }
    if errors.is_empty() { Ok(snapshot) } else { Err(errors) }
}

/// JSON as JSON, which is many times faster; anything else as YAML, with a budget for whole clusters.
fn value(text: &str) -> Result<Value, serde_saphyr::Error> {
    if text.trim_start().starts_with('{')
        && let Ok(value) = serde_json::from_str(text)
    {
        return Ok(value);
    }
    let budget =
        serde_saphyr::budget! { max_events: 400_000_000, max_nodes: 200_000_000, max_total_scalar_bytes: 4 << 30 };
    serde_saphyr::from_str_with_options(text, serde_saphyr::options! { budget: budget })
}

/// The objects of a List, or the object itself. A list that cannot be read is not an empty one.
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
    fn add(&mut self, file: &str, object: Value, seen: &mut BTreeSet<String>) -> Result<(), String> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (group, kind, name) = (text("/apiVersion"), text("/kind"), text("/metadata/name"));
        if kind.is_empty() {
            return Err("holds no Kubernetes object: kind is missing".into());
        }
        let known = match (group.as_str(), kind.as_str()) {
            ("v1", "Node" | "Pod") => true,
            (crate::keys::API_VERSION, _) => true,
            _ => return Ok(()),
        };
        let id = format!("{kind} {}/{name}", text("/metadata/namespace"));
        if known && !seen.insert(id.clone()) {
            return Err(format!("{id} is there twice"));
        }
        let unreadable = |error: serde_json::Error| format!("{id} cannot be read: {error}");
        match kind.as_str() {
            "Node" => self.nodes.push(NodeObject::deserialize(object).map_err(unreadable)?),
            "Pod" => self.pods.push(PodObject::deserialize(object).map_err(unreadable)?),
            "GpuLedger" => self.ledgers.push(GpuLedger::deserialize(object).map_err(unreadable)?),
            _ => self.policies.push((format!("{file} ({id})"), object.to_string())),
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
