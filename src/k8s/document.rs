//! Policy documents (`ClusterVramPolicy`, `VramPolicy` and `GpuInventory`), parsed strictly. Owns their schema, which files
//! and custom resources share, and errors that name file, line and field. It reads no files; the `policies` shell does.
//!
//! A document that the API server has stored has a uid and is a resource; any other is a file. The difference matters
//! for precedence, and because one resource that cannot be read must not keep the others from being read.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::node::Override;
use super::wording;
use crate::capacity::policy::{ClusterPolicy, Documents, Layer, Scope};
use crate::keys;

#[cfg(test)]
mod crd;
mod pool;
pub mod resource;
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
    /// Line, from 1; the first line of the document if the document as a whole is wrong. 0 for a resource, which has no
    /// lines.
    pub line: u64,
    /// Field, such as `spec.declaration.min`; empty if the error is not about a field.
    pub field: String,
    /// The problem, and what was expected.
    pub what: String,
}

impl DocumentError {
    /// The field and the problem, without the file.
    pub fn reason(&self) -> String {
        if self.field.is_empty() { self.what.clone() } else { format!("{}: {}", self.field, self.what) }
    }
}

impl fmt::Display for DocumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: ", self.file)?,
            line => write!(f, "{}:{line}: ", self.file)?,
        }
        f.write_str(&self.reason())
    }
}

impl std::error::Error for DocumentError {}

/// The content of all policy documents together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// The ClusterVramPolicy and the VramPolicies.
    pub documents: Documents,
    /// The entries of all `GpuInventory` documents, in the order of files and entries, and those of resources last; the
    /// first that describes a node counts.
    pub overrides: Vec<Override>,
    /// The resources among the documents, in the order in which they were read.
    pub resources: Vec<Resource>,
}

/// A document that is a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Name, as the caller named its text.
    pub name: String,
    /// What it applies to, and the file that is in force in its place, if there is one; or why it cannot be read.
    pub read: Result<(Scope, Option<String>), DocumentError>,
}

impl Configuration {
    /// Why resources cannot be read. They are not in force.
    pub fn unreadable(&self) -> impl Iterator<Item = &DocumentError> {
        self.resources.iter().filter_map(|resource| resource.read.as_ref().err())
    }
}

/// Reads the documents of several files, given as name and text.
///
/// # Errors
/// At least one document is wrong. The list has one error for each wrong document.
pub fn read<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Configuration, Vec<DocumentError>> {
    read_with(files, [])
}

/// Reads the documents of several files, and those that were found in a cluster or a snapshot of one: resources, and
/// files of a ConfigMap. A resource that cannot be read is no error; it is listed as such.
///
/// # Errors
/// At least one file is wrong. The list has one error for each wrong document.
pub fn read_with<'a>(
    files: impl IntoIterator<Item = (&'a str, &'a str)>,
    found: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Configuration, Vec<DocumentError>> {
    let mut reader = Reader::default();
    for (file, text) in files {
        for (line, document) in split(text) {
            reader.file(file, line, document);
        }
    }
    for (name, text) in found {
        for (line, document) in split(text) {
            if is_resource(document) {
                reader.resource(name, document);
            } else {
                reader.file(name, line, document);
            }
        }
    }
    reader.finish()
}

/// Whether the API server has stored this document.
fn is_resource(document: &str) -> bool {
    parse::<Head>("", 0, document).is_ok_and(|head| head.metadata.is_some_and(|metadata| metadata.uid.is_some()))
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

/// The documents of files, or those that are resources.
#[derive(Default)]
struct Read {
    documents: Documents,
    overrides: Vec<Override>,
    /// The file or resource in which each document that may exist only once was first found.
    seen: BTreeMap<Scope, String>,
}

#[derive(Default)]
struct Reader {
    files: Read,
    resources: Read,
    /// The resources in their order, with their scope, or why they cannot be read.
    listed: Vec<(String, Result<Scope, DocumentError>)>,
    errors: Vec<DocumentError>,
}

/// The fields that every document has.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    api_version: String,
    kind: String,
    #[serde(default)]
    metadata: Option<HeadMetadata>,
}

/// What is read of the metadata of any document.
#[derive(Deserialize)]
struct HeadMetadata {
    #[serde(default)]
    uid: Option<IgnoredAny>,
}

impl Reader {
    fn file(&mut self, file: &str, line: u64, text: &str) {
        self.errors.extend(self.files.read(file, line, text).err());
    }

    fn resource(&mut self, name: &str, text: &str) {
        let read = self.resources.read(name, 0, text).map_err(|error| DocumentError { line: 0, ..error });
        self.listed.push((name.to_owned(), read));
    }

    fn finish(self) -> Result<Configuration, Vec<DocumentError>> {
        let Reader { files, resources, listed, errors } = self;
        if !errors.is_empty() {
            return Err(errors);
        }
        let in_its_place = |scope: Scope| {
            let file = files.seen.get(&scope).cloned();
            (scope, file)
        };
        let listed = listed.into_iter().map(|(name, read)| Resource { name, read: read.map(in_its_place) });
        Ok(Configuration {
            resources: listed.collect(),
            documents: files.documents.or(resources.documents),
            overrides: [files.overrides, resources.overrides].concat(),
        })
    }
}

impl Read {
    /// Reads one document that has `line` lines before it. Returns what it applies to.
    fn read(&mut self, file: &str, line: u64, text: &str) -> Result<Scope, DocumentError> {
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
                self.only_one(&at, &Scope::Cluster, file)?;
                let policy = ClusterPolicy::try_from(document.spec).map_err(|(field, what)| at(field, what))?;
                self.documents.cluster = Some(policy);
                Ok(Scope::Cluster)
            }
            "VramPolicy" => {
                let document: schema::Document<schema::NamespaceSpec> = parse(file, line, text)?;
                let namespace = document.metadata.namespace.map(|namespace| namespace.0);
                let namespace = namespace
                    .ok_or_else(|| at("metadata.namespace", "is missing; a VramPolicy is for one namespace".into()))?;
                let scope = Scope::Namespace(namespace.clone());
                self.only_one(&at, &scope, file)?;
                let layer = Layer::try_from(document.spec).map_err(|(field, what)| at(field, what))?;
                self.documents.namespaces.insert(namespace, layer);
                Ok(scope)
            }
            "GpuInventory" => {
                let document: schema::Document<schema::InventorySpec> = parse(file, line, text)?;
                self.overrides.extend(document.spec.overrides().map_err(|(field, what)| at(&field, what))?);
                Ok(Scope::Nodes)
            }
            other => Err(at("kind", format!("{other:?} is not ClusterVramPolicy, VramPolicy or GpuInventory"))),
        }
    }

    fn only_one(
        &mut self,
        at: &impl Fn(&str, String) -> DocumentError,
        scope: &Scope,
        file: &str,
    ) -> Result<(), DocumentError> {
        match self.seen.insert(scope.clone(), file.to_owned()) {
            None => Ok(()),
            Some(first) => Err(at("", format!("{scope} is there twice, the first time in {first}; keep one"))),
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
