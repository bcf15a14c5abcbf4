//! Manifests with GPU memory declared for other projects or by claims → manifests with vramguard's declarations, and
//! back to claims. Owns which objects are changed, and that everything else of a text stays as it is.
//!
//! A change is made on the text where its form allows it, so that comments and order stay. The result is read again and
//! compared with the object that was changed as a value; where they differ, that object is written anew.

use std::collections::BTreeSet;

use serde_json::Value;

use self::edit::{Edit, Path, Step};
use super::document;
use super::foreign::{self, Assumptions};
use super::snapshot::{self, Booleans};
use super::template::{self, Template};
use super::{tree, wording};
use crate::capacity::policy::Policies;
use crate::keys;

mod dra;
mod edit;
mod ours;

/// The start of a comment that a conversion writes.
const MARK: &str = "# vramguard convert: ";

/// What to convert to.
#[derive(Clone, Copy, Debug)]
pub enum Direction<'a> {
    /// Declarations of other projects to vramguard's own.
    FromForeign(&'a Assumptions),
    /// vramguard's declarations to claims of Dynamic Resource Allocation.
    ToClaims(&'a Policies),
    /// Claims to vramguard's declarations.
    FromClaims(&'a Policies),
}

/// A file that was converted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Converted {
    /// The new text.
    pub text: String,
    /// What was done, lost and left, in the order of the file.
    pub notes: Vec<Note>,
}

/// One remark on an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Line of the object, from 1.
    pub line: u64,
    /// `Kind namespace/name` of the object.
    pub object: String,
    /// What the remark is.
    pub kind: Kind,
    /// The remark.
    pub text: String,
}

/// What a remark is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A declaration was converted.
    Converted,
    /// Something of it has no counterpart.
    Lost,
    /// The object is left out, because nothing needs it any more.
    LeftOut,
    /// The object cannot be converted and is unchanged.
    Refused,
    /// The form of the text could not be kept.
    Form,
}

/// The change of one object.
#[derive(Debug, Default)]
struct Change {
    edits: Vec<Edit>,
    /// Objects to write before it.
    documents: Vec<Value>,
    /// Templates of claims that it no longer needs.
    used: Vec<(String, String)>,
    done: Vec<String>,
    lost: Vec<String>,
}

impl Change {
    /// Adds what is changed in another template of the object. What is lost in both is said once.
    fn append(&mut self, other: Change) {
        self.edits.extend(other.edits);
        self.documents.extend(other.documents);
        self.used.extend(other.used);
        self.done.extend(other.done);
        let lost: Vec<String> = other.lost.into_iter().filter(|text| !self.lost.contains(text)).collect();
        self.lost.extend(lost);
    }
}

/// Why an object cannot be converted.
#[derive(Debug)]
struct Refused(Vec<String>);

/// Converts a file. For [`Direction::FromClaims`], the templates of its claims must be in the same file.
///
/// # Errors
/// A document is not YAML or JSON. The error is line and problem.
pub fn convert(text: &str, direction: Direction<'_>) -> Result<Converted, (u64, String)> {
    let (mark, text) = match text.strip_prefix('\u{feff}') {
        Some(rest) => ("\u{feff}", rest),
        None => ("", text),
    };
    let mut documents = Vec::new();
    for (before, slice) in document::split(text) {
        let value = snapshot::value(slice, Booleans::Yaml11).map_err(|error| {
            let line = error.location().map_or(1, |location| location.line());
            (before + line, wording::yaml(&error))
        })?;
        if value.get("kind").and_then(Value::as_str).is_none_or(str::is_empty) {
            let what = "holds no Kubernetes object: kind is missing; is the file complete?".to_owned();
            return Err((before + 1, what));
        }
        // `split` gives parts of the text itself.
        let start = slice.as_ptr() as usize - text.as_ptr() as usize;
        // A document that no tree can be made of has the lines of its objects at its beginning.
        let root = tree::documents(slice).ok().and_then(|mut documents| documents.drain(..).next());
        documents.push(Document { start, slice, before, root, value });
    }
    let mut claims = dra::ClaimTemplates::default();
    documents.iter().for_each(|document| document.objects().iter().for_each(|(_, object)| claims.add(object)));
    let mut notes = Vec::new();
    let changes: Vec<Vec<(Path, Change)>> =
        documents.iter().map(|document| document.changes(direction, &claims, &mut notes)).collect();
    let unused = unused(&documents, &changes);
    let mut out = mark.to_owned();
    let mut at = 0;
    for (document, changes) in documents.iter().zip(changes) {
        let separator = &text[at..document.start];
        at = document.start + document.slice.len();
        if dra::ClaimTemplates::id(&document.value).is_some_and(|id| unused.contains(&id)) {
            notes.push(document.note(Kind::LeftOut, "no pod here uses it any more"));
            continue;
        }
        out.push_str(separator);
        out.push_str(&document.written(&changes, &mut notes));
    }
    out.push_str(&text[at..]);
    notes.sort_by_key(|note| note.line);
    Ok(Converted { text: out, notes })
}

/// A document of a file.
struct Document<'t> {
    start: usize,
    slice: &'t str,
    /// Lines before it.
    before: u64,
    root: Option<tree::Node>,
    value: Value,
}

impl Document<'_> {
    /// The objects of a list with their paths, or the one object.
    fn objects(&self) -> Vec<(Path, &Value)> {
        objects(&self.value, Vec::new())
    }

    fn note(&self, kind: Kind, text: &str) -> Note {
        Note { line: self.line(&Vec::new()), object: template::title(&self.value), kind, text: text.to_owned() }
    }

    /// The line of an object of the document.
    fn line(&self, path: &Path) -> u64 {
        let mut node = self.root.as_ref();
        for step in path {
            node = node.and_then(|node| match step {
                Step::Key(key) => node.get(key),
                Step::Index(index) => node.items().get(*index),
            });
        }
        self.before + node.or(self.root.as_ref()).map_or(1, |node| node.line)
    }

    fn changes(
        &self,
        direction: Direction<'_>,
        claims: &dra::ClaimTemplates,
        notes: &mut Vec<Note>,
    ) -> Vec<(Path, Change)> {
        let mut changes = Vec::new();
        for (path, object) in self.objects() {
            let (object_title, line) = (template::title(object), self.line(&path));
            let mut note = |kind, text: String| {
                notes.push(Note { line, object: object_title.clone(), kind, text });
            };
            match change(object, &path, direction, claims) {
                Ok(Some(change)) => {
                    change.done.iter().for_each(|text| note(Kind::Converted, text.clone()));
                    change.lost.iter().for_each(|text| note(Kind::Lost, text.clone()));
                    changes.push((path, change));
                }
                Ok(None) => {}
                Err(Refused(reasons)) => reasons.into_iter().for_each(|reason| note(Kind::Refused, reason)),
            }
        }
        changes
    }

    /// The new text of the document.
    fn written(&self, changes: &[(Path, Change)], notes: &mut Vec<Note>) -> String {
        if changes.is_empty() {
            return self.slice.to_owned();
        }
        let edits: Vec<Edit> = changes.iter().flat_map(|(_, change)| change.edits.clone()).collect();
        let mut wanted = self.value.clone();
        edit::apply(&mut wanted, &edits);
        let reads = |text: &str| snapshot::value(text, Booleans::Yaml11).is_ok_and(|value| value == wanted);
        let kept = edit::apply_to_text(self.slice, &edits).filter(|text| reads(text));
        let body =
            kept.unwrap_or_else(|| {
                notes.push(self.note(
                    Kind::Form,
                    "is written anew, without its comments: an anchor or an unusual form is in the way",
                ));
                anew(&wanted, reads)
            });
        let body = self.commented(&body, changes);
        let new_objects = changes.iter().flat_map(|(_, change)| &change.documents);
        let mut before: String =
            new_objects.map(|object| format!("\n{MARK}{}{}---", dra::NEEDS, anew(object, |_| true))).collect();
        if before.is_empty() {
            return if self.start == 0 { body.trim_start_matches('\n').to_owned() } else { body };
        }
        if self.start == 0 {
            before.remove(0);
            before.push('\n');
        }
        if self.slice.contains("\r\n") {
            before = before.replace('\n', "\r\n");
        }
        format!("{before}{body}")
    }

    /// The text with what is lost as comments above it. JSON has no comments.
    fn commented(&self, body: &str, changes: &[(Path, Change)]) -> String {
        let root = tree::documents(body).ok().and_then(|mut documents| documents.drain(..).next());
        let Some(root) = root.filter(|root| matches!(root.content, tree::Content::Map { flow: false, .. })) else {
            return body.to_owned();
        };
        let line_end = if body.contains("\r\n") { "\r\n" } else { "\n" };
        let mut comments = String::new();
        let several = changes.len() > 1 || changes.iter().any(|(path, _)| !path.is_empty());
        for (path, change) in changes {
            let of = if several {
                let object = objects(&self.value, Vec::new()).into_iter().find(|(other, _)| other == path);
                object.map(|(_, object)| format!("{}: ", template::title(object))).unwrap_or_default()
            } else {
                String::new()
            };
            for lost in &change.lost {
                // Names are text from strangers: no character may end the comment, or show it in another order.
                let safe = |c: char| match c {
                    '"' | '\'' | '\\' => c.to_string(),
                    _ => c.escape_debug().to_string(),
                };
                let safe: String = format!("{of}{lost}").chars().map(safe).collect();
                comments.push_str(&format!("{MARK}lost: {safe}{line_end}"));
            }
        }
        let at = body[..root.bytes.start].rfind('\n').map_or(0, |newline| newline + 1);
        // What an earlier conversion wrote is not about this one.
        let above = body[..at].split_inclusive('\n').filter(|line| !line.starts_with(MARK));
        format!("{}{comments}{}", above.collect::<String>(), &body[at..])
    }
}

/// The objects of a list, also of a list in a list, with their paths.
fn objects(value: &Value, path: Path) -> Vec<(Path, &Value)> {
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default();
    match value.get("items").and_then(Value::as_array) {
        Some(items) if kind.ends_with("List") => {
            let of = |(index, item)| {
                let path = path.iter().cloned().chain([Step::Key("items".to_owned()), Step::Index(index)]);
                objects(item, path.collect())
            };
            items.iter().enumerate().flat_map(of).collect()
        }
        _ => vec![(path, value)],
    }
}

fn change(
    object: &Value,
    path: &Path,
    direction: Direction<'_>,
    claims: &dra::ClaimTemplates,
) -> Result<Option<Change>, Refused> {
    let templates: Vec<Template<'_>> = template::all(object).collect();
    if templates.is_empty() {
        return unknown_kind(object, direction);
    }
    let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or("default");
    let mut all: Option<Change> = None;
    for found in templates {
        let at = edit::under(path, found.kind.template);
        let change = match direction {
            Direction::FromForeign(assumptions) => ours::change(found.value, &at, assumptions),
            Direction::ToClaims(policies) => match policies.of(namespace) {
                Some(policy) => dra::to_claims(object, &found, &at, policy),
                None => Ok(None),
            },
            Direction::FromClaims(policies) => {
                dra::from_claims(object, found.value, &at, policies.rules().per_process_overhead, claims)
            }
        };
        if let Some(change) = change? {
            all.get_or_insert_default().append(change);
        }
    }
    Ok(all)
}

/// A kind whose pods are not known here is left as it is, but not without a word if it declares something.
fn unknown_kind(object: &Value, direction: Direction<'_>) -> Result<Option<Change>, Refused> {
    fn mentions(value: &Value, is_key: &impl Fn(&str) -> bool) -> bool {
        match value {
            Value::Object(map) => map.iter().any(|(key, value)| is_key(key) || mentions(value, is_key)),
            Value::Array(list) => list.iter().any(|value| mentions(value, is_key)),
            _ => false,
        }
    }
    let is_key = |key: &str| match direction {
        Direction::FromForeign(_) => foreign::is_foreign_resource(key) || foreign::is_foreign_annotation(key),
        Direction::ToClaims(_) => key == keys::VRAM || key.starts_with(keys::VRAM_OF),
        Direction::FromClaims(_) => key == "resourceClaims",
    };
    let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default();
    // Nodes and quotas name the resources, and declare nothing.
    if matches!(kind, "Node" | "ResourceQuota" | "LimitRange" | "ConfigMap") || !mentions(object, &is_key) {
        return Ok(None);
    }
    let kind = object.get("kind").and_then(Value::as_str).unwrap_or("an object without a kind");
    Err(Refused(vec![format!("{kind} is a kind whose pods are not known here; change its pod template by hand")]))
}

/// Templates of claims that were used, and are used by no pod that stays as it is.
fn unused(documents: &[Document<'_>], changes: &[Vec<(Path, Change)>]) -> BTreeSet<(String, String)> {
    let mut unused: BTreeSet<(String, String)> =
        changes.iter().flatten().flat_map(|(_, change)| change.used.clone()).collect();
    for (document, changes) in documents.iter().zip(changes) {
        for (path, object) in document.objects() {
            if changes.iter().any(|(changed, _)| *changed == path) {
                continue;
            }
            let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or("default");
            let claims = template::all(object)
                .filter_map(|found| found.value.pointer("/spec/resourceClaims")?.as_array())
                .flatten();
            for claim in claims {
                let name = claim.get("resourceClaimTemplateName").and_then(Value::as_str).unwrap_or_default();
                unused.remove(&(namespace.to_owned(), name.to_owned()));
            }
        }
    }
    unused
}

/// Writes a value as YAML, or as JSON where YAML does not read back as the same.
fn anew(value: &Value, reads: impl Fn(&str) -> bool) -> String {
    let yaml = serde_saphyr::to_string(value).ok().filter(|text| reads(text));
    let text = yaml.unwrap_or_else(|| format!("{value:#}\n"));
    format!("\n{text}")
}

#[cfg(test)]
mod tests;
