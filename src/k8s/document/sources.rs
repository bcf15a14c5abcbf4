//! Where each field of the policy documents is written, for explanations. Owns the search for its line; the documents
//! themselves are read by [`super::read_with`].

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::resource::Kind;
use super::{Head, PolicyResource, parse, split};
use crate::capacity::policy::Scope;

/// The documents that set policies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// The ClusterVramPolicy; `None` if there is none.
    pub cluster: Option<Source>,
    /// VramPolicies by namespace.
    pub namespaces: BTreeMap<String, Source>,
}

/// One document, and the lines of its fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// File, as the caller named it.
    pub file: String,
    /// Line of each field by its path below `spec`, from 1. Empty for a document that is written in one line.
    pub lines: BTreeMap<String, u64>,
}

/// Finds the fields in documents that [`super::read_with`] has read. What cannot be read has no source.
pub fn sources<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>, resources: &[PolicyResource]) -> Sources {
    #[derive(Deserialize)]
    struct Named {
        metadata: Metadata,
        spec: Located,
    }
    #[derive(Deserialize)]
    struct Metadata {
        namespace: Option<String>,
    }
    let mut sources = Sources::default();
    for resource in resources.iter().filter(|resource| resource.content.is_ok()) {
        let source = Source { file: resource.name.clone(), lines: BTreeMap::new() };
        match &resource.scope {
            Scope::Cluster => sources.cluster = Some(source),
            Scope::Namespace(namespace) => _ = sources.namespaces.insert(namespace.clone(), source),
            Scope::Nodes => {}
        }
    }
    // Files are last, because a file is in force before a resource.
    for (file, text) in files {
        for (line, text) in split(text) {
            let (Ok(head), Ok(named)) = (parse::<Head>(file, line, text), parse::<Named>(file, line, text)) else {
                continue;
            };
            let mut lines = BTreeMap::new();
            if text.trim().contains('\n') {
                named.spec.collect("", line, &mut lines);
            }
            let source = Source { file: file.to_owned(), lines };
            match (Kind::named(&head.kind), named.metadata.namespace) {
                (Some(Kind::Cluster), _) => sources.cluster = Some(source),
                (Some(Kind::Namespace), Some(namespace)) => _ = sources.namespaces.insert(namespace, source),
                (Some(Kind::Namespace), None) | (Some(Kind::Inventory) | None, _) => {}
            }
        }
    }
    sources
}

/// The fields of an object with their positions; empty for another value.
struct Located(BTreeMap<String, Spanned<Located>>);

impl Located {
    fn collect(&self, path: &str, before: u64, lines: &mut BTreeMap<String, u64>) {
        for (key, field) in &self.0 {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            field.value.collect(&path, before, lines);
            lines.insert(path, before + field.referenced.line());
        }
    }
}

impl<'de> Deserialize<'de> for Located {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Located, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Located;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Located, A::Error> {
                let mut fields = BTreeMap::new();
                while let Some((key, field)) = map.next_entry()? {
                    fields.insert(key, field);
                }
                Ok(Located(fields))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, sequence: A) -> Result<Located, A::Error> {
                IgnoredAny.visit_seq(sequence).map(|_| Located(BTreeMap::new()))
            }
            fn visit_str<E>(self, _: &str) -> Result<Located, E> {
                Ok(Located(BTreeMap::new()))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Located, E> {
                Ok(Located(BTreeMap::new()))
            }
            fn visit_u64<E>(self, _: u64) -> Result<Located, E> {
                Ok(Located(BTreeMap::new()))
            }
            fn visit_i64<E>(self, _: i64) -> Result<Located, E> {
                Ok(Located(BTreeMap::new()))
            }
            fn visit_f64<E>(self, _: f64) -> Result<Located, E> {
                Ok(Located(BTreeMap::new()))
            }
            fn visit_unit<E>(self) -> Result<Located, E> {
                Ok(Located(BTreeMap::new()))
            }
        }
        deserializer.deserialize_any(Fields)
    }
}
