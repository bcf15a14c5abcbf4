//! Pods and nodes as the API server sends them, reduced to the fields that matter. Owns what is read and what is skipped:
//! everything else in the JSON is passed over without a copy, so these types cannot be written back.
//!
//! A pod is a tenant's text, in reviews and in the watch alike: [`bounds`] says how much of it is kept.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, de};

use self::bounds::{
    MAX_ANNOTATIONS, MAX_CONDITIONS, MAX_CONTAINERS, MAX_REQUIREMENTS, MAX_RESOURCES, MAX_SELECTOR, MAX_TERMS,
    MAX_TOLERATIONS,
};
use super::bounded::{Bounded, BoundedMap, Entry, Texts};
use crate::capacity::pod::Excess;
use crate::keys;

pub mod bounds;
mod env;

pub use self::env::{Env, EnvVar, EnvVarSource, FieldRef};

/// A Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "ReadPod")]
pub struct PodObject {
    /// Name, generateName, namespace, uid, resourceVersion, and the annotations that vramguard reads.
    pub metadata: ObjectMeta,
    /// Spec.
    pub spec: PodSpec,
    /// Status.
    pub status: PodStatus,
    /// The first part of it that is larger than what is kept.
    pub excess: Option<Excess>,
}

/// A Pod as it is read.
#[derive(Default, Deserialize)]
#[serde(default)]
struct ReadPod {
    metadata: Option<Metadata>,
    #[serde(deserialize_with = "null_as_default")]
    spec: PodSpec,
    #[serde(deserialize_with = "null_as_default")]
    status: PodStatus,
}

impl From<ReadPod> for PodObject {
    fn from(read: ReadPod) -> PodObject {
        let ReadPod { metadata, mut spec, status } = read;
        let metadata = metadata.unwrap_or_default();
        let annotations = metadata.annotations.as_ref().and_then(|OurAnnotations(ours)| ours.excess());
        let excess = bounds::enforce(annotations, &mut spec, &status);
        PodObject { metadata: metadata.into(), spec, status, excess }
    }
}

/// A Binding: all that is known of what a scheduler decided.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct BindingObject {
    /// Of the pod: name, namespace, uid, and the annotations that it would get.
    #[serde(deserialize_with = "pod_metadata")]
    pub metadata: ObjectMeta,
    /// The node.
    #[serde(deserialize_with = "null_as_default")]
    pub target: Target,
}

/// Where a Binding points.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Target {
    /// Name of the node.
    pub name: String,
}

/// `spec` of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    /// Where it is bound, or wants to be.
    pub node_name: Option<String>,
    /// Labels its node must have.
    #[serde(deserialize_with = "null_as_default")]
    pub node_selector: BoundedMap<String, MAX_SELECTOR>,
    /// Affinity.
    pub affinity: Option<Affinity>,
    /// Tolerations.
    #[serde(deserialize_with = "null_as_default")]
    pub tolerations: Bounded<Toleration, MAX_TOLERATIONS>,
    /// Resolved priority.
    pub priority: Option<i32>,
    /// `Never` or `PreemptLowerPriority`.
    pub preemption_policy: Option<String>,
    /// Volumes, as far as they are directories of the node.
    #[serde(deserialize_with = "null_as_default")]
    pub volumes: Vec<Volume>,
    /// Init containers and sidecars.
    #[serde(deserialize_with = "null_as_default")]
    pub init_containers: Containers,
    /// App containers.
    #[serde(deserialize_with = "null_as_default")]
    pub containers: Containers,
}

/// Containers of a pod.
pub type Containers = Bounded<Container, MAX_CONTAINERS>;

/// A container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Container {
    /// Name.
    pub name: String,
    /// `Always` makes an init container a sidecar.
    pub restart_policy: Option<String>,
    /// Resources; presence matters to a patch.
    pub resources: Option<Resources>,
    /// Environment; presence matters to a patch.
    pub env: Option<Env>,
    /// Security context.
    pub security_context: Option<SecurityContext>,
}

impl Entry for Container {
    const READ_BEYOND: bool = true;

    /// What requests a GPU or VRAM is counted, however many containers stand before it.
    fn matters(&self) -> bool {
        let resources = self.resources.iter().flat_map(|resources| [&resources.limits, &resources.requests]);
        let mut names = resources.flatten().flat_map(|list| list.keys());
        names.any(|name| name.starts_with(keys::NVIDIA) || name.starts_with(keys::PREFIX))
    }
}

/// `securityContext` of a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SecurityContext {
    /// Whether it reaches all devices of the node.
    pub privileged: Option<bool>,
}

/// A volume.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Volume {
    /// A file or directory of the node.
    pub host_path: Option<HostPath>,
}

/// `hostPath` of a volume.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct HostPath {
    /// Whether it is at or below a folder that only infrastructure mounts.
    #[serde(rename = "path", deserialize_with = "of_infrastructure")]
    pub of_infrastructure: bool,
}

/// What device plugins, exporters and drivers mount of their node. `deploy/base/validatingadmissionpolicy-devices.yaml` has the
/// same list.
pub(super) const INFRASTRUCTURE: [&str; 7] =
    ["/dev", "/proc", "/run/nvidia", "/sys", "/var/lib/kubelet", "/var/run/cdi", "/var/run/nvidia"];

fn of_infrastructure<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let path = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
    let below = |folder: &str| path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    Ok(INFRASTRUCTURE.iter().any(|folder| below(folder)))
}

/// `resources` of a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Limits.
    pub limits: Option<Quantities>,
    /// Requests.
    pub requests: Option<Quantities>,
}

/// Quantities by resource, of a container.
pub type Quantities = BoundedMap<Quantity, MAX_RESOURCES>;

/// `affinity`, as far as nodes are concerned.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Affinity {
    /// Node affinity.
    pub node_affinity: Option<NodeAffinity>,
}

/// `nodeAffinity`, as far as it must hold.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeAffinity {
    /// Required terms.
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    pub required: Option<NodeSelector>,
}

/// A node selector.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeSelector {
    /// Any one of them.
    #[serde(deserialize_with = "null_as_default")]
    pub node_selector_terms: Bounded<NodeSelectorTerm, MAX_TERMS>,
}

/// A node selector term.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeSelectorTerm {
    /// On labels.
    pub match_expressions: Option<Requirements>,
    /// On fields.
    pub match_fields: Option<Requirements>,
}

impl Entry for NodeSelectorTerm {}

/// Requirements of a term.
pub type Requirements = Bounded<NodeSelectorRequirement, MAX_REQUIREMENTS>;

/// A node selector requirement.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeSelectorRequirement {
    /// Label or field.
    pub key: String,
    /// Operator.
    pub operator: String,
    /// Values.
    pub values: Texts,
}

impl Entry for NodeSelectorRequirement {}

/// A toleration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Toleration {
    /// Key; empty or absent means every key.
    pub key: Option<String>,
    /// `Exists` or `Equal`.
    pub operator: Option<String>,
    /// Value.
    pub value: Option<String>,
    /// Effect; empty or absent means every effect.
    pub effect: Option<String>,
}

impl Entry for Toleration {}

/// `status` of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    pub phase: Option<String>,
    /// Conditions.
    #[serde(deserialize_with = "null_as_default")]
    pub conditions: Bounded<Condition, MAX_CONDITIONS>,
}

/// A condition of a Pod or a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Condition {
    /// Type.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Since when.
    #[serde(rename = "lastTransitionTime")]
    pub last_transition_time: Option<String>,
    /// Machine reason.
    pub reason: Option<String>,
    /// For people.
    pub message: Option<String>,
}

impl Entry for Condition {
    const READ_BEYOND: bool = true;

    /// The two that say since when a pod is bound, and whether it is ready.
    fn matters(&self) -> bool {
        matches!(self.kind.as_str(), "PodScheduled" | "Ready")
    }
}

/// A Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeObject {
    /// Name, uid, resourceVersion and labels.
    #[serde(deserialize_with = "node_metadata")]
    pub metadata: ObjectMeta,
    /// Spec.
    #[serde(deserialize_with = "null_as_default")]
    pub spec: NodeSpec,
    /// Status.
    #[serde(deserialize_with = "null_as_default")]
    pub status: NodeStatus,
}

impl NodeObject {
    /// Its name, which every node of a cluster has.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }
}

/// `spec` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    /// Cordoned.
    pub unschedulable: Option<bool>,
    /// Taints.
    #[serde(deserialize_with = "null_as_default")]
    pub taints: Vec<Taint>,
}

/// A taint.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Taint {
    /// Key.
    pub key: String,
    /// Value.
    pub value: Option<String>,
    /// Effect.
    pub effect: String,
}

/// `status` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// All there is.
    #[serde(deserialize_with = "null_as_default")]
    pub capacity: BTreeMap<String, Quantity>,
    /// What pods may request.
    #[serde(deserialize_with = "null_as_default")]
    pub allocatable: BTreeMap<String, Quantity>,
    /// Conditions.
    #[serde(deserialize_with = "null_as_default")]
    pub conditions: Vec<Condition>,
}

/// A quantity as written: `8Gi`, `"4"` or, in a hand-written manifest, `4`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantity(pub String);

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Quantity, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Quantity;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quantity, as in 8Gi or 4")
            }
            fn visit_str<E>(self, text: &str) -> Result<Quantity, E> {
                Ok(Quantity(text.to_owned()))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Quantity, E> {
                Ok(Quantity(number.to_string()))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Quantity, E> {
                Ok(Quantity(number.to_string()))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Quantity, E> {
                Ok(Quantity(number.to_string()))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

/// Go writes an empty list or map as `null` where the field is not `omitempty`.
fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The part of the metadata that is read; the rest (managedFields above all) is skipped unparsed.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    generate_name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    annotations: Option<OurAnnotations>,
}

impl From<Metadata> for ObjectMeta {
    fn from(metadata: Metadata) -> ObjectMeta {
        ObjectMeta {
            name: metadata.name,
            generate_name: metadata.generate_name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            resource_version: metadata.resource_version,
            annotations: metadata.annotations.map(|OurAnnotations(ours)| ours.into_kept()),
            ..ObjectMeta::default()
        }
    }
}

fn pod_metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    Ok(Option::<Metadata>::deserialize(deserializer)?.unwrap_or_default().into())
}

fn node_metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Metadata {
        name: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        labels: Option<BTreeMap<String, String>>,
    }
    let metadata = Option::<Metadata>::deserialize(deserializer)?.unwrap_or_default();
    Ok(ObjectMeta {
        name: metadata.name,
        uid: metadata.uid,
        resource_version: metadata.resource_version,
        labels: metadata.labels,
        ..ObjectMeta::default()
    })
}

/// The annotations that vramguard reads. Others can be 256 KiB long and are not copied.
#[derive(Default)]
struct OurAnnotations(BoundedMap<String, MAX_ANNOTATIONS>);

impl<'de> Deserialize<'de> for OurAnnotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<OurAnnotations, D::Error> {
        struct Ours;
        impl<'de> Visitor<'de> for Ours {
            type Value = OurAnnotations;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("annotations")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<OurAnnotations, A::Error> {
                BoundedMap::of_wanted(map, is_read).map(OurAnnotations)
            }
            fn visit_unit<E: de::Error>(self) -> Result<OurAnnotations, E> {
                Ok(OurAnnotations::default())
            }
        }
        deserializer.deserialize_map(Ours)
    }
}

fn is_read(annotation: &str) -> bool {
    annotation.starts_with(keys::PREFIX) || annotation.starts_with(keys::FOREIGN_OF) || annotation == keys::MIRROR_POD
}

/// Lets a client list and watch the reduced types as what they are on the server.
macro_rules! served_as {
    ($object:ty, $kind:literal, $plural:literal, $scope:ty) => {
        impl k8s_openapi::Resource for $object {
            const API_VERSION: &'static str = "v1";
            const GROUP: &'static str = "";
            const KIND: &'static str = $kind;
            const VERSION: &'static str = "v1";
            const URL_PATH_SEGMENT: &'static str = $plural;
            type Scope = $scope;
        }
        impl k8s_openapi::Metadata for $object {
            type Ty = ObjectMeta;
            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn metadata_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}
served_as!(PodObject, "Pod", "pods", k8s_openapi::NamespaceResourceScope);
served_as!(NodeObject, "Node", "nodes", k8s_openapi::ClusterResourceScope);
