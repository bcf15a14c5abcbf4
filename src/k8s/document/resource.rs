//! Policy documents that are resources: as the API server sends them, and their status. Owns the conditions' JSON;
//! [`super::read_with`] reads the documents, and [`crate::capacity::policy`] decides which are in force.

use std::fmt;
use std::marker::PhantomData;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::{DocumentError, PolicyResource};
use crate::capacity::policy::DocumentState;
use crate::capacity::verdict::{Condition, EARLIER_IN_FORCE};
use crate::k8s::publication;
use crate::keys;

/// A kind of policy document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `ClusterVramPolicy`.
    Cluster,
    /// `VramPolicy`.
    Namespace,
    /// `GpuInventory`.
    Inventory,
}

impl Kind {
    /// All kinds, in the order of [`Kind`].
    pub const ALL: [Kind; 3] = [Kind::Cluster, Kind::Namespace, Kind::Inventory];

    /// The kind that `kind` names; `None` for another text.
    pub fn named(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The kind, as `kind` has it.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Cluster => "ClusterVramPolicy",
            Kind::Namespace => "VramPolicy",
            Kind::Inventory => "GpuInventory",
        }
    }

    /// The name in paths of the API.
    pub const fn plural(self) -> &'static str {
        match self {
            Kind::Cluster => "clustervrampolicies",
            Kind::Namespace => "vrampolicies",
            Kind::Inventory => "gpuinventories",
        }
    }

    /// The most bytes of a document that are read. A VramPolicy may be written by anyone with rights in a namespace, and
    /// all of them together are kept in memory. There is no bound on all together: with it, the documents of some
    /// namespaces would decide which others are read.
    const fn max_bytes(self) -> usize {
        match self {
            Kind::Namespace => 32 << 10,
            Kind::Cluster | Kind::Inventory => 1 << 20,
        }
    }
}

/// What the kinds differ in as types.
pub trait OfKind: Clone + fmt::Debug + Send + Sync + 'static {
    /// The kind.
    const KIND: Kind;
    /// Whether its objects are in namespaces.
    type Scope: k8s_openapi::ResourceScope;
}

/// Marks objects of [`Kind::Cluster`].
#[derive(Clone, Copy, Debug)]
pub struct ClusterKind;
/// Marks objects of [`Kind::Namespace`].
#[derive(Clone, Copy, Debug)]
pub struct NamespaceKind;
/// Marks objects of [`Kind::Inventory`].
#[derive(Clone, Copy, Debug)]
pub struct InventoryKind;

impl OfKind for ClusterKind {
    const KIND: Kind = Kind::Cluster;
    type Scope = ClusterResourceScope;
}

impl OfKind for NamespaceKind {
    const KIND: Kind = Kind::Namespace;
    type Scope = NamespaceResourceScope;
}

impl OfKind for InventoryKind {
    const KIND: Kind = Kind::Inventory;
    type Scope = ClusterResourceScope;
}

impl PolicyResource {
    /// Makes the document one that cannot be read.
    pub fn refuse(&mut self, what: String) {
        self.content = Err(DocumentError { file: self.name.clone(), line: 0, field: String::new(), what });
    }
}

/// Kind, namespace and name of a document. Displays as `VramPolicy ml/default`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ResourceName {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; `None` for kinds that are not in namespaces.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ResourceName { kind, namespace, name } = self;
        match namespace {
            Some(namespace) => write!(f, "{} {namespace}/{name}", kind.name()),
            None => write!(f, "{} {name}", kind.name()),
        }
    }
}

/// A policy document as the API server sends it.
#[derive(Clone, Debug)]
pub struct PolicyObject<K> {
    /// Name, namespace, uid, generation and resourceVersion; nothing else is kept.
    pub metadata: ObjectMeta,
    /// The document as it was read.
    pub document: PolicyResource,
    /// `status.conditions`.
    pub conditions: Vec<Value>,
    kind: PhantomData<K>,
}

impl<K: OfKind> PolicyObject<K> {
    /// Kind, namespace and name.
    pub fn resource_name(&self) -> ResourceName {
        let name = self.metadata.name.clone().unwrap_or_default();
        ResourceName { kind: K::KIND, namespace: self.metadata.namespace.clone(), name }
    }
}

impl<'de, K: OfKind> Deserialize<'de> for PolicyObject<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PolicyObject<K>, D::Error> {
        #[derive(Deserialize)]
        struct Sent {
            metadata: ObjectMeta,
            #[serde(default)]
            spec: Value,
            #[serde(default)]
            status: Value,
        }
        let Sent { metadata, spec, mut status } = Sent::deserialize(deserializer)?;
        let ObjectMeta { name, namespace, uid, generation, resource_version, .. } = metadata;
        let document = json!({
            "apiVersion": keys::API_VERSION,
            "kind": K::KIND.name(),
            "metadata": { "name": name, "namespace": namespace, "uid": uid },
            "spec": spec,
        });
        let (bytes, most) = (document.to_string().len(), K::KIND.max_bytes());
        let named =
            ResourceName { kind: K::KIND, namespace: namespace.clone(), name: name.clone().unwrap_or_default() };
        let mut document = super::read_resource(&named.to_string(), &document);
        if bytes > most {
            document.refuse(format!("has {bytes} bytes; at most {most} are read"));
        }
        let conditions = match status.get_mut("conditions").map(Value::take) {
            Some(Value::Array(conditions)) => conditions,
            _ => Vec::new(),
        };
        let metadata = ObjectMeta { name, namespace, uid, generation, resource_version, ..ObjectMeta::default() };
        Ok(PolicyObject { metadata, document, conditions, kind: PhantomData })
    }
}

impl<K: OfKind> k8s_openapi::Resource for PolicyObject<K> {
    const API_VERSION: &'static str = keys::API_VERSION;
    const GROUP: &'static str = keys::API_GROUP;
    const KIND: &'static str = K::KIND.name();
    const VERSION: &'static str = "v1alpha1";
    const URL_PATH_SEGMENT: &'static str = K::KIND.plural();
    type Scope = K::Scope;
}

impl<K: OfKind> k8s_openapi::Metadata for PolicyObject<K> {
    type Ty = ObjectMeta;
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Type of the condition that says whether a document is in force.
const IN_FORCE: &str = "InForce";
/// Type of the condition that says whether fields are ignored because the ClusterVramPolicy locks them.
const LOCKED_FIELDS_IGNORED: &str = "LockedFieldsIgnored";

/// Whether the conditions of a document say that it, or an earlier version of it, is in force.
pub fn is_in_force(conditions: &[Value]) -> bool {
    let is_so = |condition: &Value| condition["status"] == "True" || condition["reason"] == EARLIER_IN_FORCE;
    conditions.iter().any(|condition| condition["type"] == IN_FORCE && is_so(condition))
}

/// The merge patch that brings the status of a document up to date; `None` if it is. `generation` is the one that was
/// read, and `current` are its present conditions. The time of a transition is kept while the status of a condition is.
pub fn status_patch(
    kind: Kind,
    state: &DocumentState,
    generation: i64,
    current: &[Value],
    now: Timestamp,
) -> Option<Value> {
    let mut wanted = vec![(IN_FORCE, Condition::in_force(state))];
    if kind == Kind::Namespace {
        wanted.push((LOCKED_FIELDS_IGNORED, Condition::locked_fields_ignored(state)));
    }
    let rendered = wanted.into_iter().map(|(name, condition)| {
        let mut rendered = publication::condition(name, condition, current, now);
        rendered["observedGeneration"] = json!(generation);
        rendered
    });
    let rendered: Vec<Value> = rendered.collect();
    (rendered != current).then(|| json!({ "status": { "conditions": rendered } }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(spec: Value) -> PolicyObject<NamespaceKind> {
        let metadata = json!({"name": "default", "namespace": "ml", "uid": "u", "generation": 3, "resourceVersion": "9",
            "managedFields": [], "labels": {"a": "b"}});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": {"conditions": [{"type": "X"}]}}))
            .unwrap()
    }

    #[test]
    fn an_item_of_a_list_becomes_a_document_that_is_known_to_be_a_resource() {
        let object = object(json!({"mode": "Warn"}));
        assert_eq!(object.resource_name().to_string(), "VramPolicy ml/default");
        let read = super::super::read_with([], &[object.document]).unwrap();
        assert_eq!((read.resources.len(), read.unreadable().count()), (1, 0));
        assert!(read.documents.namespaces["ml"].mode.is_some());
        assert_eq!(object.conditions, [json!({"type": "X"})]);
        assert!(object.metadata.labels.is_none() && object.metadata.managed_fields.is_none());
    }

    #[test]
    fn a_document_of_a_tenant_that_is_too_large_is_not_kept() {
        let models: serde_json::Map<String, Value> =
            (0..8000).map(|number| (format!("model-{number}"), json!("1Gi"))).collect();
        let error = object(json!({ "models": models })).document.content.unwrap_err().to_string();
        assert!(error.starts_with("VramPolicy ml/default: has "), "{error}");
        assert!(error.ends_with("bytes; at most 32768 are read"), "{error}");
    }

    #[test]
    fn names_that_no_yaml_file_could_have_are_read_or_refused_and_nothing_else_happens() {
        for name in ["a\u{7f}", "a\u{80}", "a\u{ffff}", "\u{0}", "---", "- a: b"] {
            let document = object(json!({ "models": { name: "1Gi" } })).document;
            assert!(document.content.is_ok(), "{name:?}: {:?}", document.content);
        }
        let long = "x".repeat(1100);
        let document = object(json!({ "models": { long: "1Gi" } })).document;
        let error = document.content.unwrap_err().to_string();
        assert!(error.starts_with("VramPolicy ml/default: spec.models"), "{error}");
    }

    #[test]
    fn a_status_that_is_up_to_date_is_not_written_and_keeps_its_time() {
        let at = |second: i32| Timestamp::from_second(1_800_000_000 + i64::from(second)).unwrap();
        let state = DocumentState::InForce { ignored: vec![] };
        let first = status_patch(Kind::Namespace, &state, 1, &[], at(0)).unwrap();
        let conditions = first["status"]["conditions"].as_array().unwrap();
        assert_eq!(status_patch(Kind::Namespace, &state, 1, conditions, at(60)), None);
        let later = status_patch(Kind::Namespace, &state, 2, conditions, at(60)).unwrap();
        let later = &later["status"]["conditions"];
        assert_eq!(later[0]["lastTransitionTime"], conditions[0]["lastTransitionTime"]);
        assert_eq!(later[0]["observedGeneration"], 2);
        let exempt = status_patch(Kind::Namespace, &DocumentState::Exempt, 2, conditions, at(60)).unwrap();
        assert_ne!(exempt["status"]["conditions"][0]["lastTransitionTime"], conditions[0]["lastTransitionTime"]);
        assert_eq!(exempt["status"]["conditions"][1]["lastTransitionTime"], conditions[1]["lastTransitionTime"]);
    }

    #[test]
    fn only_a_vram_policy_has_fields_that_may_be_locked() {
        let patch =
            status_patch(Kind::Inventory, &DocumentState::InForce { ignored: vec![] }, 1, &[], Timestamp::UNIX_EPOCH);
        assert_eq!(patch.unwrap()["status"]["conditions"].as_array().unwrap().len(), 1);
    }
}
