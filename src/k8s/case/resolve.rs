//! The written form of a case file → a suite that can be played. Files are loaded, nodes in shorthand become objects,
//! and everything is parsed once. Owns the position that an error names: case file, line and field, then the referenced
//! file.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::format::{self, CaseText, Lines, ObjectOrReference, Reference};
use super::{Case, Load, Suite};
use crate::k8s::document::{self, Configuration, DocumentError, texts};
use crate::k8s::manifest::check_pod;
use crate::k8s::snapshot::{self, Collector, Snapshot};
use crate::k8s::{strict, tree};

/// Reads a case file and the files that it refers to.
///
/// # Errors
/// All errors of all these files.
pub(super) fn read(file: &str, text: &str, load: Load<'_>) -> Result<Suite, Vec<DocumentError>> {
    let written: format::File = document::parse_with(file, 0, text, yaml()).map_err(|error| vec![error])?;
    let mut reader = Reader {
        file,
        load,
        lines: serde_saphyr::from_str_with_options(text, yaml()).ok(),
        root: tree::documents(text).ok().and_then(|mut documents| documents.drain(..).next()),
        errors: Vec::new(),
        fields: BTreeMap::new(),
    };
    let (cluster, objects) = reader.cluster(&written.nodes, written.cluster, &written.snapshot.0);
    let (policies, configuration) = reader.policies(written.policies.0, &objects);
    reader.names(&written.cases);
    // A node of an object that cannot be read would be missed too.
    if reader.errors.is_empty() {
        reader.nodes(&written.cases, &objects);
    }
    let cases: Vec<Option<Case>> = (0..).zip(written.cases).map(|(index, case)| reader.case(index, case)).collect();
    let cases = cases.into_iter().flatten().collect();
    if reader.errors.is_empty() {
        Ok(Suite { cluster, policies, cases, objects, configuration })
    } else {
        Err(reader.errors)
    }
}

/// Of plain scalars only `true` and `false` are booleans, because `Off` is a mode and `n` may be a name.
fn yaml() -> serde_saphyr::Options {
    serde_saphyr::options! { strict_booleans: true }
}

struct Reader<'a> {
    file: &'a str,
    load: Load<'a>,
    lines: Option<Lines>,
    /// The case file as a tree; `None` if it has no form that has one.
    root: Option<tree::Node>,
    errors: Vec<DocumentError>,
    /// Line numbers of the parts that the case file itself contains, by the name under which they are parsed.
    fields: BTreeMap<String, u64>,
}

impl Reader<'_> {
    /// All objects of the cluster, as written and as parsed.
    fn cluster(
        &mut self,
        nodes: &[super::node::Node],
        cluster: Vec<Map<String, Value>>,
        snapshot: &[Reference],
    ) -> (Vec<Value>, Snapshot) {
        let mut objects: Vec<(String, u64, Value)> = Vec::new();
        for (index, node) in nodes.iter().enumerate() {
            let field = self.field("nodes", index);
            match node.object() {
                Ok(object) => objects.push((field, 1, object)),
                Err((name, what)) => self.wrong("nodes", index, &format!(".{name}"), what),
            }
        }
        for (index, object) in cluster.into_iter().enumerate() {
            objects.push((self.field("cluster", index), 1, Value::Object(object)));
        }
        for (index, reference) in snapshot.iter().enumerate() {
            let Some(text) = self.loaded("snapshot", index, "", reference) else { continue };
            let file = self.label("snapshot", index, reference);
            match snapshot::objects(&file, &text) {
                Ok(found) => objects.extend(found.into_iter().map(|(line, object)| (file.clone(), line, object))),
                Err(error) => self.errors.push(error),
            }
        }
        let mut collector = Collector::default();
        for (file, line, object) in &objects {
            collector.add(file, *line, object.clone());
        }
        let objects = objects.into_iter().map(|(_, _, object)| object).collect();
        (objects, collector.finish().unwrap_or_else(|errors| self.relabelled(errors)))
    }

    /// All policy documents, including those among the cluster's objects, as written and as parsed.
    fn policies(&mut self, policies: Vec<ObjectOrReference>, objects: &Snapshot) -> (Vec<Value>, Configuration) {
        let mut files: Vec<(String, String)> = Vec::new();
        for (index, policy) in policies.into_iter().enumerate() {
            match policy {
                ObjectOrReference::Object(object) => {
                    files.push((self.field("policies", index), Value::Object(object).to_string()));
                }
                ObjectOrReference::Reference(reference) => {
                    let Some(text) = self.loaded("policies", index, "", &reference) else { continue };
                    files.push((self.label("policies", index, &reference), text));
                }
            }
        }
        files.extend(objects.policies.iter().cloned());
        let read = document::read_with(texts(&files), &objects.policy_resources).and_then(|read| {
            // A suite that tests a policy must not pass without it.
            let unreadable: Vec<DocumentError> = read.unreadable().cloned().collect();
            if unreadable.is_empty() { Ok(read) } else { Err(unreadable) }
        });
        let configuration = read.unwrap_or_else(|errors| self.relabelled(errors));
        // A document that cannot be read is an error already.
        let read = |(file, text): &(String, String)| snapshot::objects(file, text).unwrap_or_default();
        (files.iter().flat_map(read).map(|(_, document)| document).collect(), configuration)
    }

    fn case(&mut self, index: usize, case: CaseText) -> Option<Case> {
        let CaseText { name, pod, user, expect } = case;
        let (pod, file) = match pod {
            ObjectOrReference::Object(object) => (Value::Object(object), None),
            ObjectOrReference::Reference(reference) => {
                let text = self.loaded("cases", index, ".pod", &reference)?;
                let pod = only_object(&reference.0, &text);
                (pod.map_err(|what| self.wrong("cases", index, ".pod", what)).ok()?, Some(reference.0))
            }
        };
        if let Err((field, what)) = check_pod(&pod) {
            match file {
                None => self.wrong("cases", index, &format!(".pod{field}"), what),
                Some(file) => {
                    let field = field.trim_start_matches('.');
                    let what = if field.is_empty() { what } else { format!("{field}: {what}") };
                    self.wrong("cases", index, ".pod", format!("{file}: {what}"));
                }
            }
            return None;
        }
        if let Err((pointer, what)) = strict::check(&pod) {
            match file {
                None => {
                    let line = self.line_at(&format!("/cases/{index}/pod{pointer}"), "cases", index);
                    self.wrong_at(line, format!("cases[{index}].pod{}", dotted(&pointer)), what);
                }
                Some(file) => {
                    let field = dotted(&pointer);
                    self.wrong("cases", index, ".pod", format!("{file}: {}: {what}", field.trim_start_matches('.')));
                }
            }
            return None;
        }
        Some(Case { name, line: self.line_of_name(index), pod, user, expect })
    }

    /// Checks that the cluster has the nodes that cases expect something of. Of a node that is not there, every answer would
    /// be a refusal, for another reason than the case is about.
    fn nodes(&mut self, cases: &[CaseText], objects: &Snapshot) {
        let known: BTreeSet<&str> = objects.nodes.iter().map(|node| node.name()).collect();
        for (index, case) in cases.iter().enumerate() {
            let filtered = case.expect.filter.keys().map(|node| ("filter", node));
            let all = filtered.chain(case.expect.bind.keys().map(|node| ("bind", node)));
            for (section, node) in all.filter(|(_, node)| !known.contains(node.as_str())) {
                let what = match known.len() {
                    0 => format!("there is no node {node:?}, and no other; write it under nodes"),
                    _ => {
                        let some: Vec<&str> = known.iter().copied().take(MAX_NAMES).collect();
                        let more = if known.len() > some.len() { ", …" } else { "" };
                        format!("there is no node {node:?}; the case has {}{more}", some.join(", "))
                    }
                };
                let pointer = format!("/cases/{index}/expect/{section}/{}", node.replace('~', "~0").replace('/', "~1"));
                let line = self.line_at(&pointer, "cases", index);
                self.wrong_at(line, format!("cases[{index}].expect.{section}.{node}"), what);
            }
        }
    }

    /// Checks that each case has a name of its own, by which reports and filters know it.
    fn names(&mut self, cases: &[CaseText]) {
        let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
        for (index, case) in cases.iter().enumerate() {
            let what = if case.name.trim().is_empty() {
                "is empty; write what is true if the case passes".to_owned()
            } else if let Some(first) = seen.insert(&case.name, index) {
                format!("is the name of cases[{first}] too; write another")
            } else {
                continue;
            };
            let (file, line) = (self.file.to_owned(), self.line_of_name(index));
            self.errors.push(DocumentError { file, line, field: format!("cases[{index}].name"), what });
        }
    }

    fn line_of_name(&self, case: usize) -> u64 {
        self.lines.as_ref().and_then(|lines| lines.of_name(case)).unwrap_or(1)
    }

    fn loaded(&mut self, section: &str, index: usize, field: &str, reference: &Reference) -> Option<String> {
        let loaded = (self.load)(&reference.0);
        loaded.map_err(|error| self.wrong(section, index, field, format!("{}: {error}", reference.0))).ok()
    }

    /// The name under which a part of the case file is parsed, in place of a file name.
    fn field(&mut self, section: &str, index: usize) -> String {
        let field = format!("{section}[{index}]");
        self.fields.insert(field.clone(), self.line(section, index));
        field
    }

    /// The name under which a referenced file is parsed.
    fn label(&self, section: &str, index: usize, reference: &Reference) -> String {
        format!("{}:{}: {section}[{index}]: {}", self.file, self.line(section, index), reference.0)
    }

    fn line(&self, section: &str, index: usize) -> u64 {
        self.lines.as_ref().and_then(|lines| lines.of(section, index)).unwrap_or(1)
    }

    /// The line of a value of the case file, or of its entry of a section if the file has no tree.
    fn line_at(&self, pointer: &str, section: &str, index: usize) -> u64 {
        self.root.as_ref().map_or_else(|| self.line(section, index), |root| root.line_at(pointer))
    }

    fn wrong_at(&mut self, line: u64, field: String, what: String) {
        self.errors.push(DocumentError { file: self.file.to_owned(), line, field, what });
    }

    fn wrong(&mut self, section: &str, index: usize, field: &str, what: String) {
        let line = self.line(section, index);
        let field = format!("{section}[{index}]{field}");
        self.errors.push(DocumentError { file: self.file.to_owned(), line, field, what });
    }

    /// Records errors, those of a part of the case file under the file's own name and line. Returns an empty value.
    fn relabelled<T: Default>(&mut self, errors: Vec<DocumentError>) -> T {
        for error in errors {
            // The name of a policy among the objects also has the object in parentheses.
            let field = error.file.split(" (").next().unwrap_or_default();
            self.errors.push(match self.fields.get(field) {
                Some(line) => {
                    let inner = if error.field.is_empty() { String::new() } else { format!(".{}", error.field) };
                    DocumentError { file: self.file.to_owned(), line: *line, field: format!("{field}{inner}"), ..error }
                }
                None => error,
            });
        }
        T::default()
    }
}

/// Nodes that an error names.
const MAX_NAMES: usize = 8;

/// A JSON pointer as a field: `/spec/containers/0` is `.spec.containers[0]`.
fn dotted(pointer: &str) -> String {
    let step = |step: &str| match step.parse::<usize>() {
        Ok(index) => format!("[{index}]"),
        Err(_) => format!(".{}", step.replace("~1", "/").replace("~0", "~")),
    };
    pointer.split('/').skip(1).map(step).collect()
}

/// Reads a file that must hold exactly one object.
fn only_object(file: &str, text: &str) -> Result<Value, String> {
    let objects = snapshot::objects(file, text).map_err(|error| error.to_string())?;
    match <[_; 1]>::try_from(objects) {
        Ok([(_, object)]) => Ok(object),
        Err(objects) => Err(format!("{file}: holds {} objects; a case is about one pod", objects.len())),
    }
}
