//! What `vramguard preflight` prints: for each node, whether it is steered and what is missing. Owns the JSON contract of
//! that command.

use std::fmt::Write;

use serde::Serialize;

use super::plan::columns;
use super::text::{clean, count};
use crate::capacity::preflight::Readiness;

/// Version of the JSON contract.
const SCHEMA_VERSION: u32 = 1;

/// The nodes with GPUs of a cluster.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Preflight {
    schema_version: u32,
    nodes: Vec<Row>,
}

/// One node.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    node: String,
    /// `steered`, `notNeeded` or `missing`.
    steering: &'static str,
    /// Why steering is not needed, or what is missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    messages: Vec<String>,
}

impl Preflight {
    /// Makes the report.
    pub fn new(nodes: impl IntoIterator<Item = (String, Readiness)>) -> Preflight {
        let row = |(node, readiness): (String, Readiness)| {
            let (steering, messages) = match readiness {
                Readiness::Steered => ("steered", Vec::new()),
                Readiness::NotNeeded(why) => ("notNeeded", vec![why.to_owned()]),
                Readiness::Missing(missing) => ("missing", missing.iter().map(ToString::to_string).collect()),
            };
            Row { node: clean(&node), steering, messages: messages.iter().map(|message| clean(message)).collect() }
        };
        Preflight { schema_version: SCHEMA_VERSION, nodes: nodes.into_iter().map(row).collect() }
    }

    /// Whether a node that needs steering lacks something.
    pub fn is_missing(&self) -> bool {
        self.nodes.iter().any(|row| row.steering == "missing")
    }

    /// The report for programs.
    pub fn json(&self) -> String {
        super::json::pretty(self)
    }

    /// The report for people.
    pub fn table(&self) -> String {
        if self.nodes.is_empty() {
            return "no node has GPUs\n".to_owned();
        }
        let of = |steering: &str| self.nodes.iter().filter(|row| row.steering == steering).count() as u64;
        let (steered, missing, not_needed) = (of("steered"), of("missing"), of("notNeeded"));
        let mut text = format!(
            "{} with GPUs: {steered} steered, {missing} not yet, {not_needed} without a GPU to choose\n\n",
            count(self.nodes.len() as u64, "node")
        );
        let mut rows = Vec::new();
        for row in &self.nodes {
            let steering = match row.steering {
                "missing" => "no",
                "notNeeded" => "not needed",
                other => other,
            };
            let mut messages = row.messages.iter();
            let first = messages.next().cloned().unwrap_or_default();
            rows.push(vec![row.node.clone(), steering.to_owned(), first]);
            rows.extend(messages.map(|message| vec![String::new(), String::new(), message.clone()]));
        }
        columns(&mut text, &["NODE", "STEERED", "WHY"], rows, &[]);
        if missing > 0 {
            let _ = writeln!(
                text,
                "\nThe agent comes first, and then the device plugin's variable if it needs one: docs/steering.md."
            );
        }
        text
    }
}
