//! YAML documents, each parsed as a whole. Owns the bounds on their size and aliases, and the line of each item of a
//! List.

use std::fmt;
use std::io::Read;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

use super::{Found, Head, Stop};
use crate::k8s::{document, wording};

/// Reads all documents of a text of at most `max` bytes.
pub(super) fn read(input: impl Read, max: u64, found: &mut Found<'_, '_>) -> Result<(), Stop> {
    let mut bytes = Vec::new();
    if let Err(error) = input.take(max.saturating_add(1)).read_to_end(&mut bytes) {
        return Err(found.fatal(1, format!("cannot be read: {error}")));
    }
    if bytes.len() as u64 > max {
        let most = max >> 20;
        return Err(found.fatal(1, format!("is more than {most} MiB of YAML, which is read as a whole; use -o json")));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count() as u64;
        found.fatal(line, "is not UTF-8".to_owned())
    })?;
    for (lines, document) in document::split(&text) {
        self::document(lines, document, found)?;
    }
    Ok(())
}

/// Reads one document that has `lines` lines before it.
fn document(lines: u64, text: &str, found: &mut Found<'_, '_>) -> Result<(), Stop> {
    // One node of YAML takes at least two bytes, so what exceeds these bounds grew by aliases.
    let nodes = text.len().max(100_000);
    let budget = serde_saphyr::budget! { max_events: 2 * nodes, max_nodes: nodes, max_total_scalar_bytes: 4 * nodes };
    let parsed = serde_saphyr::from_str_with_options(text, serde_saphyr::options! { budget: budget });
    let Document { members, items } = match parsed {
        Ok(document) => document,
        Err(error) => {
            let line = lines + error.location().map_or(1, |location| location.line());
            return found.wrong(line, wording::yaml(&error));
        }
    };
    // The marker of a document is on the line before it, and comments may follow.
    let start = lines + 1 + text.lines().take_while(|line| is_blank(line)).count() as u64;
    let Some(items) = items else { return found.expanded(start, members, 0) };
    let text = |name: &str| members.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let head = Head { kind: text("kind"), api_version: text("apiVersion") };
    if !head.is_list() {
        let Value::Object(mut members) = members else { unreachable!("items are a member") };
        members.insert("items".to_owned(), items.into_iter().map(|(_, item)| item).collect());
        return found.expanded(start, Value::Object(members), 0);
    }
    for (index, (line, item)) in items.into_iter().enumerate() {
        match head.complete(index, item) {
            Ok(item) => found.expanded(lines + line, item, 1)?,
            Err(what) => found.wrong(lines + line, what)?,
        }
    }
    Ok(())
}

fn is_blank(line: &str) -> bool {
    let line = line.trim_start();
    line.is_empty() || line.starts_with('#') || line.starts_with("---") && line[3..].trim().is_empty()
}

/// A document, with the items of a List apart.
struct Document {
    /// The document, or all members of it except the items.
    members: Value,
    /// The items, each with its line in the document; `None` if it has no list of items.
    items: Option<Vec<(u64, Value)>>,
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Document, D::Error> {
        deserializer.deserialize_any(Members)
    }
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a Kubernetes object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
        let (mut members, mut items) = (Map::new(), None);
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" {
                match map.next_value()? {
                    Items::List(list) => items = Some(list),
                    Items::Other(other) => _ = members.insert(key, other),
                }
            } else {
                members.insert(key, map.next_value()?);
            }
        }
        Ok(Document { members: Value::Object(members), items })
    }
}

/// The member `items` of a document.
enum Items {
    List(Vec<(u64, Value)>),
    Other(Value),
}

impl<'de> Deserialize<'de> for Items {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Items, D::Error> {
        deserializer.deserialize_any(AnyItems)
    }
}

struct AnyItems;

impl<'de> Visitor<'de> for AnyItems {
    type Value = Items;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Items, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element::<Spanned<Value>>()? {
            items.push((item.referenced.line(), item.value));
        }
        Ok(Items::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Items, A::Error> {
        let members = Map::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
        Ok(Items::Other(Value::Object(members)))
    }

    fn visit_unit<E>(self) -> Result<Items, E> {
        Ok(Items::Other(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Items, E> {
        Ok(Items::Other(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Items, E> {
        Ok(Items::Other(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Items, E> {
        Ok(Items::Other(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Items, E> {
        Ok(Items::Other(Number::from_f64(value).map_or(Value::Null, Value::Number)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Items, E> {
        Ok(Items::Other(value.into()))
    }
}
