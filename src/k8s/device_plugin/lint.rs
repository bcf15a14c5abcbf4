//! Checks an existing configuration of the device plugin by the plugin's own rules. Owns these rules, as read in
//! NVIDIA/k8s-device-plugin `api/config/v1/{config,flags,replicas,sharing,resources,strategy}.go`.
//!
//! The plugin ends at a value that it cannot parse, and ignores a field that it does not know without a word. The second
//! is the worse one, so both are findings.

use std::fmt;

use super::Method;
use crate::k8s::tree::{self, Content, Node, Style};
use crate::keys;

mod rules;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The plugin does not start with it.
    Refused,
    /// The plugin ignores it without an error.
    Ignored,
    /// The plugin does it, and it is likely not wanted.
    Risky,
    /// Worth knowing, and no fault.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Refused => "refused",
            Severity::Ignored => "ignored",
            Severity::Risky => "risky",
            Severity::Note => "note",
        })
    }
}

/// One thing to know about a config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Line in the file, from 1.
    pub line: u64,
    /// Config of the ConfigMap and field, such as `default: sharing.timeSlicing.resources[0].replicas`.
    pub field: String,
    /// What is found, and what to write.
    pub what: String,
}

/// A config as far as it could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name in the ConfigMap; `None` for a file that is one config.
    pub name: Option<String>,
    /// How it shares GPUs; `None` if it does not.
    pub method: Option<Method>,
    /// Whether it renames shared resources.
    pub rename_by_default: bool,
    /// The shared resources.
    pub resources: Vec<Shared>,
}

/// A shared resource of a config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    /// Resource, such as `nvidia.com/gpu`.
    pub resource: String,
    /// Replicas of each GPU, at least 2.
    pub replicas: u32,
    /// Line of `replicas`, from 1.
    pub line: u64,
    /// Field of `replicas`.
    pub field: String,
}

/// What a file holds, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Linted {
    /// The configs, in the order of the file.
    pub configs: Vec<Config>,
    /// The findings, by line.
    pub findings: Vec<Finding>,
}

/// Checks a ConfigMap of the device plugin, or one bare config. Objects of other kinds in the file are left alone.
///
/// # Errors
/// The text is not YAML, or holds neither a ConfigMap nor a config. The error is line and problem.
pub fn lint(text: &str) -> Result<Linted, (u64, String)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let documents = tree::documents(text).map_err(|error| (error.line, error.what))?;
    let mut linted = Linted::default();
    let listed = documents.iter().flat_map(|document| match document.get("items") {
        Some(items) if kind(document).is_some_and(|kind| kind.ends_with("List")) => items.items().iter().collect(),
        _ => vec![document],
    });
    for document in listed {
        match kind(document) {
            Some("ConfigMap") => config_map(document, &mut linted)?,
            Some(_) => {}
            None => bare(document, &mut linted)?,
        }
    }
    if linted.configs.is_empty() {
        return Err((1, "holds neither a ConfigMap nor a config of the device plugin".to_owned()));
    }
    linted.findings.sort_by_key(|finding| finding.line);
    Ok(linted)
}

fn kind(document: &Node) -> Option<&str> {
    document.get("kind").and_then(Node::text)
}

fn bare(document: &Node, linted: &mut Linted) -> Result<(), (u64, String)> {
    let known = ["version", "flags", "resources", "sharing", "imex"];
    if !document.entries().iter().any(|entry| known.contains(&entry.key.as_str())) {
        return Err((document.line, "is no config of the device plugin: it has none of its fields".to_owned()));
    }
    let mut reader = Reader { prefix: String::new(), lines: Lines::Same, findings: &mut linted.findings };
    linted.configs.push(rules::config(document, None, &mut reader));
    Ok(())
}

fn config_map(document: &Node, linted: &mut Linted) -> Result<(), (u64, String)> {
    let Some(data) = document.get("data") else {
        return Err((document.line, "the ConfigMap has no data".to_owned()));
    };
    let before = linted.configs.len();
    for entry in data.entries() {
        let Content::Scalar { text, style } = &entry.value.content else {
            return Err((entry.line, format!("data.{}: is not a text; write `|` after its name", entry.key)));
        };
        let lines = match style {
            Style::Literal => Lines::After(entry.line),
            Style::Plain | Style::Quoted | Style::Folded => Lines::At(entry.line),
        };
        let error = |error: tree::TreeError| (lines.of(error.line), format!("data.{}: {}", entry.key, error.what));
        let documents = tree::documents(text).map_err(error)?;
        let [config] = documents.as_slice() else {
            return Err((entry.line, format!("data.{}: holds {} documents, not one", entry.key, documents.len())));
        };
        let prefix = format!("{}: ", entry.key);
        let mut reader = Reader { prefix, lines, findings: &mut linted.findings };
        linted.configs.push(rules::config(config, Some(entry.key.clone()), &mut reader));
    }
    if linted.configs.len() == before {
        return Err((document.line, "the ConfigMap has no data".to_owned()));
    }
    if linted.configs.len() > before + 1 && !data.entries().iter().any(|entry| entry.key == super::DEFAULT) {
        linted.findings.push(Finding {
            severity: Severity::Note,
            line: data.line,
            field: "data".to_owned(),
            what: format!(
                "no config is named {}: a node without the label {} gets the one that the plugin's Helm value \
                 config.default or the ClusterPolicy names, and none otherwise",
                super::DEFAULT,
                keys::DEVICE_PLUGIN_CONFIG
            ),
        });
    }
    Ok(())
}

/// Where the lines of a config are in its file.
#[derive(Clone, Copy)]
enum Lines {
    /// The config is the file.
    Same,
    /// Its first line is the one after this line.
    After(u64),
    /// It is somewhere on this line.
    At(u64),
}

impl Lines {
    fn of(self, line: u64) -> u64 {
        match self {
            Lines::Same => line,
            Lines::After(before) => before + line,
            Lines::At(line) => line,
        }
    }
}

/// Collects the findings of one config.
struct Reader<'f> {
    prefix: String,
    lines: Lines,
    findings: &'f mut Vec<Finding>,
}

impl Reader<'_> {
    fn find(&mut self, severity: Severity, line: u64, field: &str, what: impl Into<String>) {
        let (line, field) = (self.lines.of(line), format!("{}{field}", self.prefix));
        self.findings.push(Finding { severity, line, field, what: what.into() });
    }

    /// The entries of a map; none, with a finding, if the node is no map.
    fn map<'n>(&mut self, node: &'n Node, field: &str) -> &'n [tree::Entry] {
        if !matches!(node.content, Content::Map { .. }) && !node.is_null() {
            self.find(Severity::Refused, node.line, field, format!("is {}, not a map", described(node)));
        }
        node.entries()
    }

    /// Reports entries whose key is not in the list.
    fn unknown(&mut self, entries: &[tree::Entry], field: &str, known: &[&str]) {
        for entry in entries.iter().filter(|entry| !known.contains(&entry.key.as_str())) {
            let similar = |name: &&&str| name.eq_ignore_ascii_case(&entry.key) || distance(name, &entry.key) <= 2;
            let hint = known.iter().find(similar).map(|name| format!("; did you mean {name}?")).unwrap_or_default();
            let what = format!("is not a field of the plugin's config{hint}");
            self.find(Severity::Ignored, entry.line, &joined(field, &entry.key), what);
        }
        for (at, entry) in entries.iter().enumerate() {
            if entries[..at].iter().any(|earlier| earlier.key == entry.key) {
                self.find(Severity::Refused, entry.line, &joined(field, &entry.key), "is written twice");
            }
        }
    }

    /// A boolean; `None`, with a finding, if it is none.
    fn boolean(&mut self, node: &Node, field: &str) -> Option<bool> {
        match (&node.content, node.text()) {
            (Content::Scalar { style: Style::Plain, .. }, Some("true" | "True" | "TRUE")) => Some(true),
            (Content::Scalar { style: Style::Plain, .. }, Some("false" | "False" | "FALSE")) => Some(false),
            _ if node.is_null() => None,
            _ => {
                self.find(Severity::Refused, node.line, field, format!("is {}; write true or false", described(node)));
                None
            }
        }
    }

    /// A text that is one of a list; any text if the list is empty.
    fn one_of(&mut self, node: &Node, field: &str, allowed: &[&str]) {
        let Some(text) = node.text().filter(|_| !is_other_type(node)) else {
            if !node.is_null() {
                self.find(Severity::Refused, node.line, field, format!("is {}, not a text", described(node)));
            }
            return;
        };
        if !allowed.is_empty() && !allowed.contains(&text) {
            let what = format!("is {text:?}; the plugin knows {}", allowed.join(", "));
            self.find(Severity::Refused, node.line, field, what);
        }
    }
}

fn joined(field: &str, key: &str) -> String {
    let key = if key.is_empty() { "(no name)" } else { key };
    if field.is_empty() { key.to_owned() } else { format!("{field}.{key}") }
}

/// Whether a plain scalar is a number or a boolean for Go's reader.
fn is_other_type(node: &Node) -> bool {
    match &node.content {
        Content::Scalar { text, style: Style::Plain } => {
            text.parse::<f64>().is_ok() || matches!(text.as_str(), "true" | "false" | "null" | "~" | "")
        }
        _ => false,
    }
}

fn described(node: &Node) -> String {
    match &node.content {
        Content::Scalar { style: Style::Plain, text } if !text.is_empty() => text.clone(),
        Content::Scalar { style: Style::Plain, .. } => "empty".to_owned(),
        Content::Scalar { text, .. } => format!("the text {text:?}"),
        Content::Alias => "an alias, which this check does not follow".to_owned(),
        Content::List { .. } => "a list".to_owned(),
        Content::Map { .. } => "a map".to_owned(),
    }
}

/// Number of characters to insert, remove or replace, at most 3.
fn distance(one: &str, other: &str) -> usize {
    if one.len().abs_diff(other.len()) > 2 {
        return 3;
    }
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.iter().enumerate() {
        let mut before = row[0];
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let substitute = before + usize::from(a != b);
            before = row[j + 1];
            row[j + 1] = substitute.min(before + 1).min(row[j] + 1);
        }
    }
    row[other.len()].min(3)
}
