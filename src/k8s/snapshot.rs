//! A snapshot: what `kubectl get nodes,pods -A -o yaml` (or json) prints, or a file of manifests. Owns how such a text
//! becomes objects; kinds it does not know are ignored, the same object twice is an error.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;

use super::document::{self, DocumentError};
use super::object::{NodeObject, PodObject};

/// The objects of a static cluster.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Nodes.
    pub nodes: Vec<NodeObject>,
    /// Pods.
    pub pods: Vec<PodObject>,
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
                    for object in items(value) {
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

/// The objects of a List, or the object itself.
fn items(value: Value) -> Vec<Value> {
    match value {
        Value::Object(mut map)
            if map.get("kind").and_then(Value::as_str).is_some_and(|kind| kind.ends_with("List")) =>
        {
            match map.remove("items") {
                Some(Value::Array(items)) => items,
                _ => Vec::new(),
            }
        }
        other => vec![other],
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
            _ => self.policies.push((format!("{file} ({id})"), object.to_string())),
        }
        Ok(())
    }
}
