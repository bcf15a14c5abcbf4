//! Pods and nodes as the API server sends them, reduced to the fields that vramguard reads. Owns which fields are read.
//! All other JSON is skipped without a copy, so these types cannot be written back.
//!
//! A pod is text from a tenant, in reviews and in the watch alike, so [`bounds`] limits how much of it is kept.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::de::IgnoredAny;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, de};

use self::bounds::{
    MAX_ANNOTATIONS, MAX_CONTAINERS, MAX_RESOURCES, MAX_SELECTOR, MAX_TOLERATIONS, READ_REQUIREMENTS, READ_TERMS,
};
use super::bounded::{Bounded, BoundedMap, Entry, Texts};
pub use super::quantity::Quantity;
use crate::capacity::pod::Excess;
use crate::keys;

pub mod bounds;
mod env;
mod status;

pub use self::env::{Env, EnvVar, EnvVarSource, FieldRef};
pub use self::status::{Condition, ContainerState, ContainerStatus, NoInstance, PodStatus};

/// A Pod, reduced to the fields that vramguard reads.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "ReadPod")]
pub struct PodObject {
    /// Name, generateName, namespace, uid, resourceVersion, deletionTimestamp, and the annotations that vramguard reads.
    pub metadata: ObjectMeta,
    /// The desired state, written by the pod's author and by admission.
    pub spec: PodSpec,
    /// The observed state, written by kubelet and scheduler.
    pub status: PodStatus,
    /// The first part of the pod that exceeds a bound; a part that may hide a GPU comes first.
    pub excess: Option<Excess>,
}

/// A Pod before its bounds are checked.
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

/// A Binding, which carries the decision of a scheduler: a pod and its node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct BindingObject {
    /// Name, namespace and uid of the pod, and the annotations that the pod would get.
    #[serde(deserialize_with = "pod_metadata")]
    pub metadata: ObjectMeta,
    /// The node to bind to.
    #[serde(deserialize_with = "null_as_default")]
    pub target: Target,
}

/// `target` of a Binding.
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
    /// The node that the pod is bound to, or that its author requests.
    pub node_name: Option<String>,
    /// Labels that the node must have.
    #[serde(deserialize_with = "null_as_default")]
    pub node_selector: BoundedMap<String, MAX_SELECTOR>,
    /// Affinity to nodes.
    pub affinity: Option<Affinity>,
    /// Taints that the pod tolerates.
    #[serde(deserialize_with = "null_as_default")]
    pub tolerations: Bounded<Toleration, MAX_TOLERATIONS>,
    /// Priority, resolved from the priority class by the API server.
    pub priority: Option<i32>,
    /// `Never` or `PreemptLowerPriority`.
    pub preemption_policy: Option<String>,
    /// Volumes; only their `hostPath` is read.
    #[serde(deserialize_with = "null_as_default")]
    pub volumes: Vec<Volume>,
    /// Init containers and sidecars.
    #[serde(deserialize_with = "null_as_default")]
    pub init_containers: Containers,
    /// App containers.
    #[serde(deserialize_with = "null_as_default")]
    pub containers: Containers,
}

/// The containers in one list of a pod.
pub type Containers = Bounded<Container, MAX_CONTAINERS>;

/// A container of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Container {
    /// Name, unique in the pod.
    pub name: String,
    /// Image.
    #[serde(deserialize_with = "null_as_default")]
    pub image: String,
    /// Command, in place of the image's.
    pub command: Texts,
    /// Arguments of the command.
    pub args: Texts,
    /// `Always` makes an init container a sidecar.
    pub restart_policy: Option<String>,
    /// Limits and requests. A patch needs to know whether the field is present.
    pub resources: Option<Resources>,
    /// Environment. A patch needs to know whether the field is present.
    pub env: Option<Env>,
    /// Security context; only `privileged` is read.
    pub security_context: Option<SecurityContext>,
}

impl Entry for Container {
    const READ_BEYOND: bool = true;

    /// Whether the container requests a GPU or VRAM. Such a container is counted at any position in the list.
    fn matters(&self) -> bool {
        let resources = self.resources.iter().flat_map(|resources| [&resources.limits, &resources.requests]);
        let mut quantities = resources.flatten().flat_map(|list| list.iter());
        quantities.any(|(name, quantity)| {
            quantity.matters() && (name.starts_with(keys::NVIDIA) || name.starts_with(keys::PREFIX))
        })
    }
}

/// `securityContext` of a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SecurityContext {
    /// Whether the container has access to all devices of the node.
    pub privileged: Option<bool>,
}

/// A volume of a pod.
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
    /// Whether the path is, or is below, a folder that only infrastructure mounts.
    #[serde(rename = "path", deserialize_with = "of_infrastructure")]
    pub of_infrastructure: bool,
}

/// Folders of the node that device plugins, exporters and drivers mount.
/// `deploy/base/validatingadmissionpolicy-devices.yaml` has the same list.
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
    /// Limits by resource.
    pub limits: Option<Quantities>,
    /// Requests by resource.
    pub requests: Option<Quantities>,
}

/// The limits or the requests of a container, by resource.
pub type Quantities = BoundedMap<Quantity, MAX_RESOURCES>;

/// `affinity` of a pod, reduced to node affinity.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Affinity {
    /// Node affinity.
    pub node_affinity: Option<NodeAffinity>,
}

/// `nodeAffinity`. Of its preferences only their existence is read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeAffinity {
    /// The terms that a node must match.
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    pub required: Option<NodeSelector>,
    /// Whether the pod prefers nodes.
    #[serde(rename = "preferredDuringSchedulingIgnoredDuringExecution")]
    pub preferred: Option<IgnoredAny>,
}

/// A node selector.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeSelector {
    /// The alternatives: a node must match one of them.
    #[serde(deserialize_with = "null_as_default")]
    pub node_selector_terms: Bounded<NodeSelectorTerm, READ_TERMS>,
}

/// A node selector term: a node must meet all its requirements.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeSelectorTerm {
    /// Requirements on labels of the node.
    pub match_expressions: Option<Requirements>,
    /// Requirements on fields of the node, such as `metadata.name`.
    pub match_fields: Option<Requirements>,
}

impl Entry for NodeSelectorTerm {}

/// The requirements of a term on labels, or on fields.
pub type Requirements = Bounded<NodeSelectorRequirement, READ_REQUIREMENTS>;

/// A node selector requirement: one label or field, compared with values.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeSelectorRequirement {
    /// Name of the label or field.
    pub key: String,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`, `Gt` or `Lt`.
    pub operator: String,
    /// Values that the operator compares with.
    pub values: Texts,
}

impl Entry for NodeSelectorRequirement {}

/// A toleration of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Toleration {
    /// Key of the taint; empty or absent means every key.
    pub key: Option<String>,
    /// `Exists` or `Equal`.
    pub operator: Option<String>,
    /// Value of the taint, for `Equal`.
    pub value: Option<String>,
    /// Effect of the taint; empty or absent means every effect.
    pub effect: Option<String>,
}

impl Entry for Toleration {}

/// A Node, reduced to the fields that vramguard reads.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeObject {
    /// Name, uid, resourceVersion and labels.
    #[serde(deserialize_with = "node_metadata")]
    pub metadata: ObjectMeta,
    /// The desired state: taints, and whether the node is cordoned.
    #[serde(deserialize_with = "null_as_default")]
    pub spec: NodeSpec,
    /// The observed state, written by the kubelet; vramguard adds its resource and condition.
    #[serde(deserialize_with = "null_as_default")]
    pub status: NodeStatus,
}

impl NodeObject {
    /// The name of the node, which every node of a cluster has.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }
}

/// `spec` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    /// Whether the node is cordoned.
    pub unschedulable: Option<bool>,
    /// Taints of the node.
    #[serde(deserialize_with = "null_as_default")]
    pub taints: Vec<Taint>,
}

/// A taint of a node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Taint {
    /// Key of the taint.
    pub key: String,
    /// Value of the taint.
    pub value: Option<String>,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

/// `status` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// Total of each resource.
    #[serde(deserialize_with = "null_as_default")]
    pub capacity: BTreeMap<String, Quantity>,
    /// The part of the capacity that pods may request.
    #[serde(deserialize_with = "null_as_default")]
    pub allocatable: BTreeMap<String, Quantity>,
    /// Conditions of the node.
    #[serde(deserialize_with = "null_as_default")]
    pub conditions: Vec<Condition>,
    /// What the kubelet tells about itself.
    #[serde(rename = "nodeInfo", deserialize_with = "null_as_default")]
    pub node_info: NodeInfo,
}

/// `status.nodeInfo` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeInfo {
    /// Version of the kubelet, such as `v1.37.2` or `v1.37.1-gke.100`.
    #[serde(rename = "kubeletVersion")]
    pub kubelet_version: String,
}

impl NodeInfo {
    /// Major and minor version of the kubelet; `None` if the node does not tell it.
    pub fn kubelet(&self) -> Option<(u32, u32)> {
        let mut numbers = self.kubelet_version.strip_prefix('v')?.split(|other: char| !other.is_ascii_digit());
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }
}

/// Reads `null` as the default. Go writes an empty list or map as `null` if the field is not `omitempty`.
pub(super) fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The metadata that is read. The rest is skipped unparsed, managedFields above all.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    generate_name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    deletion_timestamp: Option<Time>,
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
            deletion_timestamp: metadata.deletion_timestamp,
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

/// The annotations that vramguard reads. The others can take 256 KiB and are not copied.
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

/// Gives a reduced type the group, version and kind of the served object. A client can then list and watch it.
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
