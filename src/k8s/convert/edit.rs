//! Edits of an object, on its value and on its text. Owns how a text is changed without touching the rest of it.
//!
//! An edit of a text is a proposal: the caller reads the result again and compares it with the edited value. So a form
//! of YAML that is not foreseen here costs comments, and never correctness.

use std::ops::Range;

use serde_json::{Map, Value};

use crate::k8s::tree::{self, Content, Node};

/// One step into an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The value of a key.
    Key(String),
    /// An entry of a list.
    Index(usize),
}

/// A path into an object.
pub(super) type Path = Vec<Step>;

/// The path of a JSON pointer without escapes, after another path.
pub(super) fn under(path: &[Step], pointer: &str) -> Path {
    let steps = pointer
        .split('/')
        .filter(|step| !step.is_empty())
        .map(|step| step.parse().map_or_else(|_| Step::Key(step.to_owned()), Step::Index));
    path.iter().cloned().chain(steps).collect()
}

/// The path of a key, after another path.
pub(super) fn key(path: &[Step], key: &str) -> Path {
    path.iter().cloned().chain([Step::Key(key.to_owned())]).collect()
}

/// One change of an object.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Edit {
    /// Sets keys of a map, which is created if it is missing.
    Merge {
        /// Path of the map.
        at: Path,
        /// The entries to set.
        entries: Map<String, Value>,
    },
    /// Adds an entry to the end of a list, which is created if it is missing.
    Push {
        /// Path of the list.
        at: Path,
        /// The entry.
        value: Value,
    },
    /// Removes a key of a map or an entry of a list, if it is there.
    Remove {
        /// Its path.
        at: Path,
    },
}

/// Applies edits to a value, in order; removals last, from the end of lists.
pub(super) fn apply(value: &mut Value, edits: &[Edit]) {
    for edit in edits {
        match edit {
            Edit::Merge { at, entries } => {
                if let Some(Value::Object(map)) = create(value, at, || Value::Object(Map::new())) {
                    map.extend(entries.clone());
                }
            }
            Edit::Push { at, value: entry } => {
                if let Some(Value::Array(list)) = create(value, at, || Value::Array(Vec::new())) {
                    list.push(entry.clone());
                }
            }
            Edit::Remove { .. } => {}
        }
    }
    for edit in edits.iter().rev() {
        let Edit::Remove { at } = edit else { continue };
        let Some((last, parent)) = at.split_last() else { continue };
        match (find(value, parent), last) {
            (Some(Value::Object(map)), Step::Key(key)) => drop(map.remove(key)),
            (Some(Value::Array(list)), Step::Index(index)) if *index < list.len() => drop(list.remove(*index)),
            _ => {}
        }
    }
}

fn find<'v>(value: &'v mut Value, path: &[Step]) -> Option<&'v mut Value> {
    path.iter().try_fold(value, |value, step| match step {
        Step::Key(key) => value.get_mut(key),
        Step::Index(index) => value.get_mut(index),
    })
}

/// The value at a path; maps on the way, and what `made` makes at its end, are created. An empty value counts as missing.
fn create<'v>(value: &'v mut Value, path: &[Step], made: impl Fn() -> Value) -> Option<&'v mut Value> {
    let mut at = value;
    for (index, step) in path.iter().enumerate() {
        at = match step {
            Step::Index(index) => at.get_mut(index)?,
            Step::Key(key) => at.as_object_mut()?.entry(key.clone()).or_insert(Value::Null),
        };
        if at.is_null() {
            *at = if index + 1 == path.len() { made() } else { Value::Object(Map::new()) };
        }
    }
    Some(at)
}

/// Applies edits to the text of one document. `None` if its form is not foreseen.
pub(super) fn apply_to_text(text: &str, edits: &[Edit]) -> Option<String> {
    let root = only(text)?;
    let mut insertions: Vec<(usize, String)> = Vec::new();
    for edit in edits {
        let (at, entries) = match edit {
            Edit::Merge { at, entries } => (at.clone(), entries.clone()),
            Edit::Push { at, value } => {
                // Into a list that is there, the value form is left to the caller.
                let (Step::Key(key), parent) = at.split_last()? else { return None };
                if follow(&root, at).is_some() {
                    return None;
                }
                (parent.to_vec(), Map::from_iter([(key.clone(), Value::Array(vec![value.clone()]))]))
            }
            Edit::Remove { .. } => continue,
        };
        insertions.extend(insertion(text, &root, &at, entries)?);
    }
    let inserted = changed(text, insertions.into_iter().map(|(at, new)| (at..at, new)).collect())?;
    let root = only(&inserted)?;
    let removed: Vec<&Path> = edits
        .iter()
        .filter_map(|edit| match edit {
            Edit::Remove { at } => Some(at),
            _ => None,
        })
        .collect();
    let mut removals: Vec<(Range<usize>, String)> = Vec::new();
    for at in &removed {
        let (Step::Key(key), parent) = at.split_last()? else { return None };
        let Some(map) = follow(&root, parent) else { continue };
        let gone =
            |key: &str| removed.iter().any(|path| path.split_last() == Some((&Step::Key(key.to_owned()), parent)));
        removals.extend(removal(&inserted, map, key, gone)?.map(|range| (range, String::new())));
    }
    changed(&inserted, removals)
}

fn only(text: &str) -> Option<Node> {
    let mut documents = tree::documents(text).ok()?;
    (documents.len() == 1).then(|| documents.remove(0))
}

/// The node at a path; `None` if it is missing or behind an alias.
fn follow<'n>(root: &'n Node, path: &[Step]) -> Option<&'n Node> {
    path.iter().try_fold(root, |node, step| match step {
        Step::Key(key) => node.get(key),
        Step::Index(index) => node.items().get(*index),
    })
}

/// Where and what to insert to set entries of a map: nothing if all are there.
fn insertion(text: &str, root: &Node, at: &[Step], entries: Map<String, Value>) -> Option<Vec<(usize, String)>> {
    // The deepest map on the way that is there, and what has to be made below it.
    let depth = (0..=at.len()).rev().find(|depth| follow(root, &at[..*depth]).is_some())?;
    if (0..=depth).any(|depth| follow(root, &at[..depth]).is_some_and(|node| node.anchored)) {
        return None;
    }
    let map = follow(root, &at[..depth])?;
    let mut wanted = entries;
    if depth == at.len() {
        wanted.retain(|key, _| map.get(key).is_none());
    }
    for step in at[depth..].iter().rev() {
        let Step::Key(key) = step else { return None };
        wanted = Map::from_iter([(key.clone(), Value::Object(wanted))]);
    }
    if wanted.is_empty() {
        return Some(Vec::new());
    }
    match &map.content {
        Content::Map { flow: true, entries } => Some(vec![in_braces(text, map, entries, &wanted, is_json(root))?]),
        Content::Map { flow: false, entries } => {
            let first = entries.first()?.key_bytes.start;
            let column = column(text, first);
            let block = serde_saphyr::to_string(&Value::Object(wanted)).ok()?;
            let line_end = if text.contains("\r\n") { "\r\n" } else { "\n" };
            let lines = block.trim_end().lines().map(|line| format!("{line}{line_end}{}", " ".repeat(column)));
            Some(vec![(first, lines.collect())])
        }
        _ => None,
    }
}

/// Whether a document is JSON, or YAML that looks like it.
fn is_json(root: &Node) -> bool {
    matches!(&root.content, Content::Map { flow: true, entries } if entries.first().is_none_or(|first| first.quoted))
}

fn in_braces(
    text: &str,
    map: &Node,
    entries: &[tree::Entry],
    wanted: &Map<String, Value>,
    json: bool,
) -> Option<(usize, String)> {
    let new: Vec<String> =
        wanted.iter().map(|(key, value)| format!("{}: {}", word(key, json), flow(value, json))).collect();
    let open = map.bytes.start + 1;
    let Some(first) = entries.first() else {
        return Some((open, new.join(", ")));
    };
    let gap = text.get(open..first.key_bytes.start)?;
    let gap = if gap.is_empty() || !gap.trim().is_empty() { " " } else { gap };
    Some((first.key_bytes.start, new.iter().map(|entry| format!("{entry},{gap}")).collect()))
}

/// A text in JSON, or without quotes where YAML cannot take it for anything else.
fn word(text: &str, json: bool) -> String {
    let tame = text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.contains(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-./".contains(c));
    let plain = || matches!(serde_saphyr::to_string(&text), Ok(written) if written.trim_end() == text);
    if !json && tame && plain() { text.to_owned() } else { Value::String(text.to_owned()).to_string() }
}

/// A value in braces and brackets, with a space after each colon and comma.
fn flow(value: &Value, json: bool) -> String {
    match value {
        Value::Object(map) => {
            let entries = map.iter().map(|(key, value)| format!("{}: {}", word(key, json), flow(value, json)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
        Value::Array(list) => {
            format!("[{}]", list.iter().map(|value| flow(value, json)).collect::<Vec<_>>().join(", "))
        }
        Value::String(text) => word(text, json),
        other => other.to_string(),
    }
}

fn line_start(text: &str, at: usize) -> usize {
    text[..at].rfind('\n').map_or(0, |newline| newline + 1)
}

fn column(text: &str, at: usize) -> usize {
    text[line_start(text, at)..at].chars().count()
}

/// What to delete to remove a key: nothing if it is not there. `gone` tells which keys of the map go too.
fn removal(text: &str, map: &Node, key: &str, gone: impl Fn(&str) -> bool) -> Option<Option<Range<usize>>> {
    let Some(at) = map.entries().iter().position(|entry| entry.key == key) else { return Some(None) };
    let (entry, entries) = (&map.entries()[at], map.entries());
    if map.anchored || entry.value.anchored || entries.iter().all(|entry| gone(&entry.key)) {
        return None;
    }
    let next = entries.get(at + 1);
    if let Content::Map { flow: true, .. } = map.content {
        // The comma behind it goes too; for the last ones, the comma before them.
        let later = entries[at + 1..].iter().any(|entry| !gone(&entry.key));
        return Some(Some(match (next, later) {
            (Some(next), true) => entry.key_bytes.start..next.key_bytes.start,
            _ => entries[..at].last()?.value.bytes.end..entry.value.bytes.end,
        }));
    }
    let start = line_start(text, entry.key_bytes.start);
    if text[start..entry.key_bytes.start].trim().is_empty() {
        // Whole lines, so that comments on lines of their own stay.
        let end = entry.value.bytes.end.max(entry.key_bytes.end);
        let end = if text[..end].ends_with('\n') {
            end
        } else {
            text[end..].find('\n').map_or(text.len(), |line| end + line + 1)
        };
        return Some(Some(start..end));
    }
    // It is behind the hyphen of a list.
    let next = next.filter(|next| !gone(&next.key))?;
    Some(Some(entry.key_bytes.start..next.key_bytes.start))
}

/// Replaces ranges of a text; `None` if two overlap.
fn changed(text: &str, mut changes: Vec<(Range<usize>, String)>) -> Option<String> {
    changes.sort_by_key(|(range, _)| (range.start, range.end));
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    for (range, new) in changes {
        out.push_str(text.get(at..range.start)?);
        out.push_str(&new);
        at = range.end;
    }
    out.push_str(text.get(at..)?);
    Some(out)
}
