//! The written form of a case file: its fields, and the forms of each value. Owns the errors that are found while
//! parsing. `tests/cases/case.schema.json` describes the same format to editors, and a test compares the two.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer, StrDeserializer};
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value};
use serde_saphyr::Spanned;

use super::node::Node;
use super::{BindExpectation, Expectation, Expected, FilterExpectation, TextMatch};

/// A case file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    /// Nodes in shorthand.
    #[serde(default)]
    pub nodes: Vec<Node>,
    /// Nodes, pods and GpuLedgers as kubectl prints them.
    #[serde(default)]
    pub cluster: Vec<Map<String, Value>>,
    /// Files with such objects.
    #[serde(default)]
    pub snapshot: OneOrMany<Reference>,
    /// Policy documents, or files with them.
    #[serde(default)]
    pub policies: OneOrMany<ObjectOrReference>,
    #[serde(deserialize_with = "not_empty")]
    pub cases: Vec<CaseText>,
}

/// Without a case nothing is tested, which must not look like a success.
fn not_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<CaseText>, D::Error> {
    struct Cases;
    impl<'de> Visitor<'de> for Cases {
        type Value = Vec<CaseText>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of cases")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, cases: A) -> Result<Vec<CaseText>, A::Error> {
            let cases = Vec::deserialize(SeqAccessDeserializer::new(cases))?;
            if cases.is_empty() {
                return Err(A::Error::custom("is empty, so nothing would be tested; write at least one case"));
            }
            Ok(cases)
        }
    }
    deserializer.deserialize_any(Cases)
}

/// One pod and its expected outcome.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CaseText {
    pub name: String,
    /// The pod as its author writes it.
    pub pod: ObjectOrReference,
    /// User name of the pod's creator.
    #[serde(default)]
    pub user: String,
    pub expect: Expectation,
}

/// The written form of [`Expectation`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpectationText {
    verdict: Option<Expected>,
    reason: Option<String>,
    message: Option<TextMatch>,
    demand: Option<String>,
    warnings: Option<Vec<TextMatch>>,
    patch: Option<Value>,
    #[serde(default)]
    filter: BTreeMap<String, FilterExpectation>,
    #[serde(default)]
    bind: BTreeMap<String, BindExpectation>,
}

impl TryFrom<ExpectationText> for Expectation {
    type Error = &'static str;

    fn try_from(text: ExpectationText) -> Result<Expectation, Self::Error> {
        let ExpectationText { verdict, reason, message, demand, warnings, patch, filter, bind } = text;
        // Only a pod that was created is filtered and bound.
        let of_nodes = !filter.is_empty() || !bind.is_empty();
        let verdict = verdict.or(of_nodes.then_some(Expected::Allow));
        let verdict =
            verdict.ok_or("verdict is missing; write Allow or Deny, or expect something of filter or bind")?;
        Ok(Expectation { verdict, reason, message, demand, warnings, patch, filter, bind })
    }
}

/// The written form of [`BindExpectation`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BindText {
    verdict: Option<Expected>,
    annotations: Option<BTreeMap<String, String>>,
    reason: Option<String>,
    message: Option<TextMatch>,
}

impl TryFrom<BindText> for BindExpectation {
    type Error = &'static str;

    fn try_from(text: BindText) -> Result<BindExpectation, Self::Error> {
        let BindText { verdict, annotations, reason, message } = text;
        let refused = reason.is_some() || message.is_some();
        match (verdict, annotations.is_some(), refused) {
            (None, false, false) => Err("nothing is expected; write a verdict, annotations, or a reason and a message"),
            (_, true, true) => {
                Err("annotations are for a pod that is bound, reason and message for one that is refused; keep one")
            }
            (Some(Expected::Deny), true, _) => {
                Err("a pod that is refused gets no annotations; remove them or write verdict: Allow")
            }
            (Some(Expected::Allow), _, true) => {
                Err("a pod that is bound has no reason and no message; remove them or write verdict: Deny")
            }
            (Some(Expected::Allow), _, false) | (None, true, false) => Ok(BindExpectation::Allow { annotations }),
            (Some(Expected::Deny), false, _) | (None, false, true) => Ok(BindExpectation::Deny { reason, message }),
        }
    }
}

/// The whole of an expected text, where a part of it is not enough.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Exactly {
    exactly: String,
}

impl<'de> Deserialize<'de> for TextMatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TextMatch, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = TextMatch;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a part of the text, a list of its parts, or exactly: <the whole text>")
            }
            fn visit_str<E: Error>(self, part: &str) -> Result<TextMatch, E> {
                contains(vec![part.to_owned()])
            }
            fn visit_seq<A: SeqAccess<'de>>(self, parts: A) -> Result<TextMatch, A::Error> {
                contains(Vec::deserialize(SeqAccessDeserializer::new(parts))?)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<TextMatch, A::Error> {
                let Exactly { exactly } = Exactly::deserialize(MapAccessDeserializer::new(map))?;
                Ok(TextMatch::Exactly(exactly))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

/// Every text contains an empty part, so a case with one would never fail.
fn contains<E: Error>(parts: Vec<String>) -> Result<TextMatch, E> {
    if parts.is_empty() || parts.iter().any(String::is_empty) {
        return Err(E::custom("is empty, which every text contains; write a part of the text"));
    }
    Ok(TextMatch::Contains(parts))
}

/// A path, relative to the folder of the case file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference(pub String);

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Reference, D::Error> {
        let path = String::deserialize(deserializer)?;
        if path.is_empty() {
            return Err(D::Error::custom("is empty; write the path of a file, relative to the case file"));
        }
        if path.starts_with('/') || Path::new(&path).is_absolute() {
            return Err(D::Error::custom(format_args!(
                "{path:?} is absolute; write a path relative to the case file, so that both can be moved"
            )));
        }
        Ok(Reference(path))
    }
}

/// An object, or the path of the file with the object.
pub(super) enum ObjectOrReference {
    Object(Map<String, Value>),
    Reference(Reference),
}

impl<'de> Deserialize<'de> for ObjectOrReference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ObjectOrReference, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = ObjectOrReference;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object, or the path of a file that holds it")
            }
            fn visit_str<E: Error>(self, path: &str) -> Result<ObjectOrReference, E> {
                Reference::deserialize(StrDeserializer::new(path)).map(ObjectOrReference::Reference)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ObjectOrReference, A::Error> {
                Map::deserialize(MapAccessDeserializer::new(map)).map(ObjectOrReference::Object)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// A list. A single entry may be written without the list.
pub(super) struct OneOrMany<T>(pub Vec<T>);

impl<T> Default for OneOrMany<T> {
    fn default() -> OneOrMany<T> {
        OneOrMany(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<OneOrMany<T>, D::Error> {
        struct Entries<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = OneOrMany<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list, or its only entry")
            }
            fn visit_str<E: Error>(self, only: &str) -> Result<OneOrMany<T>, E> {
                Ok(OneOrMany(vec![T::deserialize(StrDeserializer::new(only))?]))
            }
            fn visit_map<A: MapAccess<'de>>(self, only: A) -> Result<OneOrMany<T>, A::Error> {
                Ok(OneOrMany(vec![T::deserialize(MapAccessDeserializer::new(only))?]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, entries: A) -> Result<OneOrMany<T>, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(entries)).map(OneOrMany)
            }
        }
        deserializer.deserialize_any(Entries(PhantomData))
    }
}

/// The line numbers of the parts of a case file, for errors that are found after parsing.
#[derive(Deserialize)]
pub(super) struct Lines {
    #[serde(default)]
    nodes: Vec<Spanned<IgnoredAny>>,
    #[serde(default)]
    cluster: Vec<Spanned<IgnoredAny>>,
    snapshot: Option<Spanned<Entries>>,
    policies: Option<Spanned<Entries>>,
    #[serde(default)]
    cases: Vec<CaseLines>,
}

#[derive(Deserialize)]
struct CaseLines {
    name: Spanned<IgnoredAny>,
    pod: Spanned<IgnoredAny>,
}

/// The line numbers of a list's entries; empty for a single entry that is written without the list.
struct Entries(Vec<u64>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Entries, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Entries;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list, or its only entry")
            }
            fn visit_str<E>(self, _: &str) -> Result<Entries, E> {
                Ok(Entries(Vec::new()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Entries, A::Error> {
                IgnoredAny.visit_map(map).map(|_| Entries(Vec::new()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Entries, A::Error> {
                let mut lines = Vec::new();
                while let Some(entry) = entries.next_element::<Spanned<IgnoredAny>>()? {
                    lines.push(entry.referenced.line());
                }
                Ok(Entries(lines))
            }
        }
        deserializer.deserialize_any(List)
    }
}

impl Lines {
    /// The line number of the name of a case; `None` if it is not known.
    pub(super) fn of_name(&self, case: usize) -> Option<u64> {
        self.cases.get(case).map(|case| case.name.referenced.line())
    }

    /// The line number of one entry of a section; `None` if it is not known.
    pub(super) fn of(&self, section: &str, index: usize) -> Option<u64> {
        let listed = |entries: &Option<Spanned<Entries>>| {
            let section = entries.as_ref()?;
            Some(section.value.0.get(index).copied().unwrap_or(section.referenced.line()))
        };
        match section {
            "nodes" => self.nodes.get(index).map(|entry| entry.referenced.line()),
            "cluster" => self.cluster.get(index).map(|entry| entry.referenced.line()),
            "snapshot" => listed(&self.snapshot),
            "policies" => listed(&self.policies),
            "cases" => self.cases.get(index).map(|case| case.pod.referenced.line()),
            _ => None,
        }
    }
}
