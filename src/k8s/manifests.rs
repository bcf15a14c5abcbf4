//! Files with objects → the objects, one at a time, each with its line. Owns how a file is told to be JSON or YAML, and
//! how much of it is in memory: of JSON one object, of YAML all of it. Knows nothing of what an object means.
//!
//! A file is what `kubectl get -A -o json` or `-o yaml` prints, a file of manifests, or both concatenated. `kubectl`
//! sorts the members of a List, so its items come before its kind.

use std::io::{Cursor, Read};

use serde_json::Value;

use super::document::DocumentError;

mod json;
mod yaml;

/// Bytes of the longest YAML file that is read. YAML is parsed as a whole, and takes some ten times its size in memory.
pub const MAX_YAML: u64 = 64 << 20;
/// Errors of one file after which the rest of the file is not read.
pub const MAX_ERRORS: usize = 100;

/// Called with the line of an object, from 1, and the object. The error is what is wrong with the object.
pub type Sink<'s> = dyn FnMut(u64, Value) -> Result<(), String> + 's;

/// Reads the objects of a file and passes each to `sink`. Returns their number, which is 0 for a file that has only
/// comments. Lists are passed item by item.
///
/// # Errors
/// All errors of the file: it cannot be read, it is not JSON or YAML, or `sink` refuses an object. Objects that came
/// before an error, or after one of `sink`, were passed.
pub fn read<R: Read>(file: &str, input: R, sink: &mut Sink<'_>) -> Result<u64, Vec<DocumentError>> {
    read_with(file, input, MAX_YAML, json::Level::Whole, sink)
}

/// [`read`] without the parts of pods and nodes that no reader of them looks at, such as probes and the status of
/// containers. They are half of a pod. Only JSON is reduced, because only JSON is large.
///
/// # Errors
/// As [`read`].
pub fn read_reduced<R: Read>(file: &str, input: R, sink: &mut Sink<'_>) -> Result<u64, Vec<DocumentError>> {
    read_with(file, input, MAX_YAML, json::Level::Object, sink)
}

/// [`read`] with a bound on the bytes of YAML.
///
/// # Errors
/// As [`read`].
pub(super) fn read_bounded<R: Read>(
    file: &str,
    input: R,
    max_yaml: u64,
    sink: &mut Sink<'_>,
) -> Result<u64, Vec<DocumentError>> {
    read_with(file, input, max_yaml, json::Level::Whole, sink)
}

fn read_with<R: Read>(
    file: &str,
    mut input: R,
    max_yaml: u64,
    level: json::Level,
    sink: &mut Sink<'_>,
) -> Result<u64, Vec<DocumentError>> {
    let mut found = Found { file, level, sink, count: 0, errors: Vec::new() };
    let start = match beginning(&mut input) {
        Ok(start) => start,
        Err(error) => {
            _ = found.wrong(1, format!("cannot be read: {error}"));
            return found.finish();
        }
    };
    // A failure is among the errors already; it only ends the reading.
    _ = match Kind::of(&start) {
        Kind::Empty => found.wrong(1, "is empty; expected objects as `kubectl get -o json` prints them".to_owned()),
        Kind::Utf16 => found.wrong(
            1,
            "is UTF-16, expected UTF-8; in PowerShell, write it with: kubectl … | Out-File -Encoding utf8 FILE"
                .to_owned(),
        ),
        Kind::Json => json::read(Cursor::new(without_mark(&start)).chain(input), &mut found),
        Kind::Yaml => yaml::read(Cursor::new(without_mark(&start)).chain(input), max_yaml, &mut found),
    };
    found.finish()
}

/// What a file holds, judged by its beginning.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Empty,
    Utf16,
    Json,
    Yaml,
}

impl Kind {
    /// JSON begins with a brace and a quote. YAML may begin with a brace too, as in `{kind: Pod}`.
    fn of(start: &[u8]) -> Kind {
        if start.starts_with(&[0xff, 0xfe]) || start.starts_with(&[0xfe, 0xff]) {
            return Kind::Utf16;
        }
        let mut bytes = without_mark(start).iter().filter(|byte| !byte.is_ascii_whitespace());
        match (bytes.next(), bytes.next()) {
            (None, _) => Kind::Empty,
            (Some(b'{'), Some(b'"' | b'}') | None) | (Some(b'['), Some(b'{' | b']' | b'[') | None) => Kind::Json,
            _ => Kind::Yaml,
        }
    }
}

/// The text without the byte order mark of UTF-8, which editors on Windows write.
fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(&[0xef, 0xbb, 0xbf]).unwrap_or(text)
}

/// Reads until two bytes that are not white space are there, or the input ends.
fn beginning(input: &mut impl Read) -> std::io::Result<Vec<u8>> {
    /// A file that begins with more white space than this counts as empty.
    const MOST: u64 = 64 << 10;
    let mut start = Vec::new();
    loop {
        let before = start.len() as u64;
        input.by_ref().take(4096).read_to_end(&mut start)?;
        let telling = without_mark(&start).iter().filter(|byte| !byte.is_ascii_whitespace()).count();
        if telling >= 2 || start.len() as u64 == before || start.len() as u64 >= MOST {
            return Ok(start);
        }
    }
}

/// The rest of the file is not read.
#[derive(Debug)]
struct Stop;

/// The objects and errors of one file.
struct Found<'f, 's> {
    file: &'f str,
    /// How much is kept of each object in JSON.
    level: json::Level,
    sink: &'f mut Sink<'s>,
    count: u64,
    errors: Vec<DocumentError>,
}

impl Found<'_, '_> {
    /// Passes an object on.
    fn object(&mut self, line: u64, object: Value) -> Result<(), Stop> {
        self.count += 1;
        match (self.sink)(line, object) {
            Ok(()) => Ok(()),
            Err(what) => self.wrong(line, what),
        }
    }

    /// Passes the items of a List on, or the object itself if it is none.
    fn expanded(&mut self, line: u64, object: Value, depth: usize) -> Result<(), Stop> {
        match list_of(object) {
            Ok(Listed::Object(object)) => self.object(line, object),
            Ok(Listed::List(head, items)) => {
                if depth == MAX_LISTS {
                    return self.wrong(line, too_many_lists());
                }
                for (index, item) in items.into_iter().enumerate() {
                    match head.complete(index, item) {
                        Ok(item) => self.expanded(line, item, depth + 1)?,
                        Err(what) => self.wrong(line, what)?,
                    }
                }
                Ok(())
            }
            Err(what) => self.wrong(line, what),
        }
    }

    /// Records an error. Returns [`Stop`] if there are too many.
    fn wrong(&mut self, line: u64, what: String) -> Result<(), Stop> {
        self.errors.push(DocumentError { file: self.file.to_owned(), line, field: String::new(), what });
        if self.errors.len() < MAX_ERRORS {
            return Ok(());
        }
        let what = format!("has {MAX_ERRORS} errors up to here; the rest is not read");
        self.errors.push(DocumentError { file: self.file.to_owned(), line, field: String::new(), what });
        Err(Stop)
    }

    /// Records an error after which the rest of the file has no meaning.
    fn fatal(&mut self, line: u64, what: String) -> Stop {
        _ = self.wrong(line, what);
        Stop
    }

    fn finish(self) -> Result<u64, Vec<DocumentError>> {
        if self.errors.is_empty() { Ok(self.count) } else { Err(self.errors) }
    }
}

/// Lists in lists that are read. `kubectl` prints one.
const MAX_LISTS: usize = 8;

fn too_many_lists() -> String {
    format!("is a List within more than {MAX_LISTS} others")
}

/// Kind and version of a List.
#[derive(Clone, Debug, Default)]
struct Head {
    kind: String,
    api_version: String,
}

impl Head {
    fn is_list(&self) -> bool {
        self.kind.ends_with("List")
    }

    /// Checks that an item is an object, and adds kind and version to one that has none. The API server leaves them out
    /// in lists of one kind: `kubectl get --raw`.
    fn complete(&self, index: usize, item: Value) -> Result<Value, String> {
        let Value::Object(mut members) = item else {
            return Err(format!("items[{index}] is {}, expected an object", kind_of(&item)));
        };
        let kind = self.kind.strip_suffix("List").unwrap_or_default();
        if !kind.is_empty() && !members.contains_key("kind") {
            members.insert("kind".to_owned(), kind.into());
            members.entry("apiVersion").or_insert_with(|| self.api_version.as_str().into());
        }
        Ok(Value::Object(members))
    }
}

/// The objects of a value: one, or the items of a List.
enum Listed {
    Object(Value),
    List(Head, Vec<Value>),
}

/// A List without readable items is an error, not an empty List.
fn list_of(mut value: Value) -> Result<Listed, String> {
    if !value.is_object() {
        return Err(format!("holds {}, expected a Kubernetes object", kind_of(&value)));
    }
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let head = Head { kind: text("kind"), api_version: text("apiVersion") };
    match value.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) if head.is_list() => Ok(Listed::List(head, items)),
        Some(other) if !head.is_list() => {
            value["items"] = other;
            Ok(Listed::Object(value))
        }
        None if !head.is_list() => Ok(Listed::Object(value)),
        _ => Err(format!("{} holds no list of items", head.kind)),
    }
}

/// The kind of a JSON value, for messages.
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests;
