//! Policy documents (`ClusterVramPolicy`, `VramPolicy` and `GpuInventory`), parsed strictly. Owns their schema, which files
//! and custom resources share, and errors that name file, line and field. It reads no files; the `policies` shell does.
//!
//! A document that the API server has stored is a resource. It is an object already, and is never parsed as text: one
//! resource that cannot be read must not keep the others, or the files, from being read.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

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

use resource::Kind;
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
    /// The ClusterVramPolicy and the VramPolicies that are in force.
    pub documents: Documents,
    /// The entries of all `GpuInventory` documents, in the order of files and entries, and those of resources last; the
    /// first that describes a node counts.
    pub overrides: Vec<Override>,
    /// What became of the resources, in their order.
    pub resources: Vec<Placed>,
}

/// What became of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Name of the resource.
    pub name: String,
    /// What it applies to.
    pub scope: Scope,
    /// The file that is in force in its place, if there is one; or why it cannot be read.
    pub file: Result<Option<String>, DocumentError>,
}

/// The documents of files.
#[derive(Clone, Debug, Default)]
pub struct FileDocuments {
    documents: Documents,
    overrides: Vec<Override>,
    /// The file of each document that may exist only once.
    files: BTreeMap<Scope, String>,
}

/// A document that is a resource, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyResource {
    /// Kind, namespace and name, and the file of a snapshot that has it.
    pub name: String,
    /// What it applies to, or would apply to if it could be read.
    pub scope: Scope,
    /// Its content.
    pub content: Result<Content, DocumentError>,
}

/// The content of one document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A ClusterVramPolicy.
    Cluster(Box<ClusterPolicy>),
    /// A VramPolicy.
    Namespace(Box<Layer>),
    /// The entries of a GpuInventory.
    Inventory(Vec<Override>),
}

/// Reads the documents of several files, given as name and text.
///
/// # Errors
/// At least one document is wrong. The list has one error for each wrong document.
pub fn read<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Configuration, Vec<DocumentError>> {
    Ok(Configuration::of(&read_files(files)?, []))
}

/// As [`read`], together with documents that are resources. One that cannot be read is no error; it is listed as such.
///
/// # Errors
/// As [`read`].
pub fn read_with<'a>(
    files: impl IntoIterator<Item = (&'a str, &'a str)>,
    resources: &[PolicyResource],
) -> Result<Configuration, Vec<DocumentError>> {
    Ok(Configuration::of(&read_files(files)?, resources))
}

/// Reads the documents of several files, given as name and text.
///
/// # Errors
/// As [`read`].
pub fn read_files<'a>(
    files: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<FileDocuments, Vec<DocumentError>> {
    let (mut read, mut errors) = (FileDocuments::default(), Vec::new());
    for (file, text) in files {
        for (line, document) in split(text) {
            errors.extend(read.add(file, line, document).err());
        }
    }
    if errors.is_empty() { Ok(read) } else { Err(errors) }
}

/// Reads a document that the API server has stored.
pub fn read_resource(name: &str, object: &Value) -> PolicyResource {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let scope = match Kind::named(&text("/kind")) {
        Some(Kind::Cluster) => Scope::Cluster,
        Some(Kind::Namespace) => Scope::Namespace(text("/metadata/namespace")),
        Some(Kind::Inventory) | None => Scope::Nodes,
    };
    let content = content(&Written::Object { name, object });
    PolicyResource { name: name.to_owned(), scope, content: content.map(|(_, content)| content) }
}

/// Whether the API server has stored this object. Only such an object has a uid.
pub fn is_resource(object: &Value) -> bool {
    object.pointer("/metadata/uid").is_some_and(Value::is_string)
}

/// Name and text of files, for [`read`].
pub fn texts(files: &[(String, String)]) -> impl Iterator<Item = (&str, &str)> {
    files.iter().map(|(name, text)| (name.as_str(), text.as_str()))
}

impl Configuration {
    /// Puts files and resources together: a file is in force before a resource of the same scope.
    pub fn of<'a>(files: &FileDocuments, resources: impl IntoIterator<Item = &'a PolicyResource>) -> Configuration {
        let FileDocuments { documents, overrides, files } = files;
        let (mut overrides, mut others, mut placed) = (overrides.clone(), Documents::default(), Vec::new());
        for PolicyResource { name, scope, content } in resources {
            match (content, scope) {
                (Ok(Content::Cluster(policy)), _) => others.cluster = Some((**policy).clone()),
                (Ok(Content::Namespace(layer)), Scope::Namespace(namespace)) => {
                    others.namespaces.insert(namespace.clone(), (**layer).clone());
                }
                (Ok(Content::Inventory(entries)), _) => overrides.extend(entries.iter().cloned()),
                (Ok(Content::Namespace(_)) | Err(_), _) => {}
            }
            let file = content.as_ref().map(|_| files.get(scope).cloned()).map_err(Clone::clone);
            placed.push(Placed { name: name.clone(), scope: scope.clone(), file });
        }
        Configuration { documents: documents.clone().or(others), overrides, resources: placed }
    }

    /// Why the ClusterVramPolicy cannot be read, if there is one, and no file in its place.
    pub fn unreadable_cluster_policy(&self) -> Option<&DocumentError> {
        let mut unreadable = self.resources.iter().filter(|resource| resource.scope == Scope::Cluster);
        let error = unreadable.find_map(|resource| resource.file.as_ref().err());
        error.filter(|_| self.documents.cluster.is_none())
    }

    /// Why resources cannot be read.
    pub fn unreadable(&self) -> impl Iterator<Item = &DocumentError> {
        self.resources.iter().filter_map(|resource| resource.file.as_ref().err())
    }
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

/// The fields that every document has.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    api_version: String,
    kind: String,
}

/// A document as it is written.
enum Written<'a> {
    /// In a file, with this number of lines before it.
    File { file: &'a str, line: u64, text: &'a str },
    /// As an object that the API server has stored.
    Object { name: &'a str, object: &'a Value },
}

impl Written<'_> {
    fn parse<T: DeserializeOwned>(&self) -> Result<T, DocumentError> {
        match self {
            Written::File { file, line, text } => parse(file, *line, text),
            Written::Object { object, .. } => serde_path_to_error::deserialize(*object).map_err(|error| {
                let field = error.path().to_string();
                self.error(if field == "." { "" } else { &field }, wording::json(error.inner()))
            }),
        }
    }

    /// An error about a field; of a file, in the first line of the document.
    fn error(&self, field: &str, what: String) -> DocumentError {
        let (file, line) = match self {
            Written::File { file, line, .. } => (file, line + 1),
            Written::Object { name, .. } => (name, 0),
        };
        DocumentError { file: (*file).to_owned(), line, field: field.to_owned(), what }
    }
}

/// Reads one document. Returns what it applies to, and its content.
fn content(written: &Written<'_>) -> Result<(Scope, Content), DocumentError> {
    let at = |field: &str, what: String| written.error(field, what);
    let head: Head = written.parse()?;
    if head.api_version != keys::API_VERSION {
        return Err(at("apiVersion", format!("{:?} is not {}", head.api_version, keys::API_VERSION)));
    }
    match Kind::named(&head.kind) {
        Some(Kind::Cluster) => {
            let document: schema::Document<schema::ClusterSpec> = written.parse()?;
            let policy = ClusterPolicy::try_from(document.spec).map_err(|(field, what)| at(field, what))?;
            Ok((Scope::Cluster, Content::Cluster(Box::new(policy))))
        }
        Some(Kind::Namespace) => {
            let document: schema::Document<schema::NamespaceSpec> = written.parse()?;
            let namespace = document.metadata.namespace.map(|namespace| namespace.0);
            let namespace = namespace
                .ok_or_else(|| at("metadata.namespace", "is missing; a VramPolicy is for one namespace".into()))?;
            let layer = Layer::try_from(document.spec).map_err(|(field, what)| at(field, what))?;
            Ok((Scope::Namespace(namespace), Content::Namespace(Box::new(layer))))
        }
        Some(Kind::Inventory) => {
            let document: schema::Document<schema::InventorySpec> = written.parse()?;
            let entries = document.spec.overrides().map_err(|(field, what)| at(&field, what))?;
            Ok((Scope::Nodes, Content::Inventory(entries)))
        }
        None => {
            let [cluster, namespace, inventory] = Kind::ALL.map(Kind::name);
            Err(at("kind", format!("{:?} is not {cluster}, {namespace} or {inventory}", head.kind)))
        }
    }
}

impl FileDocuments {
    fn add(&mut self, file: &str, line: u64, text: &str) -> Result<(), DocumentError> {
        let written = Written::File { file, line, text };
        let (scope, content) = content(&written)?;
        if scope != Scope::Nodes
            && let Some(first) = self.files.insert(scope.clone(), file.to_owned())
        {
            return Err(written.error("", format!("{scope} is there twice, the first time in {first}; keep one")));
        }
        match (content, scope) {
            (Content::Cluster(policy), _) => self.documents.cluster = Some(*policy),
            (Content::Namespace(layer), Scope::Namespace(namespace)) => {
                self.documents.namespaces.insert(namespace, *layer);
            }
            (Content::Namespace(_), Scope::Cluster | Scope::Nodes) => unreachable!("a VramPolicy has a namespace"),
            (Content::Inventory(entries), _) => self.overrides.extend(entries),
        }
        Ok(())
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
