//! Policy documents (`ClusterVramPolicy`, `VramPolicy` and `GpuInventory`), parsed strictly. Owns their schema, which
//! the future custom resources share, and errors that name file, line and field. It reads no files; the `policies`
//! shell does.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::node::Override;
use super::wording;
use crate::capacity::policy::{ClusterPolicy, Documents, Layer};
use crate::keys;

#[cfg(test)]
mod crd;
mod pool;
mod schema;
mod sources;
mod values;

pub(super) use schema::GpuResource;
pub use sources::{Source, Sources, sources};

/// One problem in a policy file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentError {
    /// File, as the caller named it.
    pub file: String,
    /// Line, from 1; the first line of the document if the document as a whole is wrong.
    pub line: u64,
    /// Field, such as `spec.declaration.min`; empty if the error is not about a field.
    pub field: String,
    /// The problem, and what was expected.
    pub what: String,
}

impl fmt::Display for DocumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file, self.line)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.what)
    }
}

impl std::error::Error for DocumentError {}

/// The content of all policy documents together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// The ClusterVramPolicy and the VramPolicies.
    pub documents: Documents,
    /// The entries of all `GpuInventory` documents, in the order of files and entries; the first that describes a node
    /// counts.
    pub overrides: Vec<Override>,
}

/// Reads the documents of several files, given as name and text.
///
/// # Errors
/// At least one document is wrong. The list has one error for each wrong document.
pub fn read<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Configuration, Vec<DocumentError>> {
    let mut reader = Reader::default();
    for (file, text) in files {
        for (line, document) in split(text) {
            if let Err(error) = reader.read(file, line, document) {
                reader.errors.push(error);
            }
        }
    }
    if reader.errors.is_empty() { Ok(reader.configuration) } else { Err(reader.errors) }
}

/// Splits a YAML stream into its documents, each with the number of lines before it. Empty documents are left out.
pub fn split(text: &str) -> Vec<(u64, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut at, mut line) = (0, 0, 0, 0);
    for content in text.split_inclusive('\n') {
        let marker = content.trim_end();
        if marker == "---" || marker.starts_with("--- ") {
            documents.push((start_line, &text[start..at]));
            start = at + 3;
            start_line = line;
        }
        at += content.len();
        line += 1;
    }
    documents.push((start_line, &text[start..]));
    documents.retain(|(_, document)| {
        document.lines().any(|line| !matches!(line.trim_start().chars().next(), None | Some('#')))
    });
    documents
}

#[derive(Default)]
struct Reader {
    configuration: Configuration,
    errors: Vec<DocumentError>,
    /// The file in which each document that may exist only once was first found.
    seen: BTreeMap<String, String>,
}

/// The fields that every document has.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    api_version: String,
    kind: String,
}

impl Reader {
    fn read(&mut self, file: &str, line: u64, text: &str) -> Result<(), DocumentError> {
        let at = |field: &str, what: String| DocumentError {
            file: file.to_owned(),
            line: line + 1,
            field: field.to_owned(),
            what,
        };
        let head: Head = parse(file, line, text)?;
        if head.api_version != keys::API_VERSION {
            return Err(at("apiVersion", format!("{:?} is not {}", head.api_version, keys::API_VERSION)));
        }
        match head.kind.as_str() {
            "ClusterVramPolicy" => {
                let document: schema::Document<schema::ClusterSpec> = parse(file, line, text)?;
                self.only_one(&at, "the ClusterVramPolicy", file)?;
                let policy = ClusterPolicy::try_from(document.spec).map_err(|(field, what)| at(field, what))?;
                self.configuration.documents.cluster = Some(policy);
            }
            "VramPolicy" => {
                let document: schema::Document<schema::NamespaceSpec> = parse(file, line, text)?;
                let namespace = document.metadata.namespace.map(|namespace| namespace.0);
                let namespace = namespace
                    .ok_or_else(|| at("metadata.namespace", "is missing; a VramPolicy is for one namespace".into()))?;
                self.only_one(&at, &format!("the VramPolicy of namespace {namespace:?}"), file)?;
                let layer = Layer::try_from(document.spec).map_err(|(field, what)| at(field, what))?;
                self.configuration.documents.namespaces.insert(namespace, layer);
            }
            "GpuInventory" => {
                let document: schema::Document<schema::InventorySpec> = parse(file, line, text)?;
                self.configuration
                    .overrides
                    .extend(document.spec.overrides().map_err(|(field, what)| at(&field, what))?);
            }
            other => {
                return Err(at("kind", format!("{other:?} is not ClusterVramPolicy, VramPolicy or GpuInventory")));
            }
        }
        Ok(())
    }

    fn only_one(
        &mut self,
        at: &impl Fn(&str, String) -> DocumentError,
        what: &str,
        file: &str,
    ) -> Result<(), DocumentError> {
        match self.seen.insert(what.to_owned(), file.to_owned()) {
            None => Ok(()),
            Some(first) => Err(at("", format!("{what} is there twice, the first time in {first}; keep one"))),
        }
    }
}

/// Parses one document that has `line` lines before it.
///
/// # Errors
/// The document does not match `T`; the error names the line and the field.
pub(super) fn parse<T: DeserializeOwned>(file: &str, line: u64, text: &str) -> Result<T, DocumentError> {
    parse_with(file, line, text, serde_saphyr::Options::default())
}

/// [`parse`] with options of the YAML parser.
pub(super) fn parse_with<T: DeserializeOwned>(
    file: &str,
    line: u64,
    text: &str,
    options: serde_saphyr::Options,
) -> Result<T, DocumentError> {
    let mut field = String::new();
    let parsed = serde_saphyr::with_deserializer_from_str_with_options(text, options, |deserializer| {
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            field = error.path().to_string();
            error.into_inner()
        })
    });
    parsed.map_err(|error| DocumentError {
        file: file.to_owned(),
        line: line + error.location().map_or(1, |location| location.line()),
        field: if field == "." { String::new() } else { field },
        what: wording::yaml(&error),
    })
}

#[cfg(test)]
mod tests;
