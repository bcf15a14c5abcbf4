//! The schema of the policy documents: their fields, and which of them go together. Owns which fields exist; an unknown
//! field is an error. The comment on a field is its description in the custom resource, which `kubectl explain` prints.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use serde::{Deserialize, de::IgnoredAny};

use super::super::node::{MAX_GPU, Override};
use super::pool::Pools;
pub(crate) use super::values::GpuResource;
use super::values::{
    Amount, ClusterOnly, DriverReserveText, FieldText, FrameworkText, HARD_MIG, HARD_MPS, ModeText, NO_NODE,
    NamespaceName, OnConflictText, OnShortfallText, OnUnaccountedText, OvercommitText, Percent, Removed, SharingText,
    ZERO_GPU, too_large_gpu,
};
use crate::capacity::gpu::Sharing;
use crate::capacity::policy::{ClusterPolicy, Layer};

/// A policy document of any kind.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Document<Spec> {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    pub metadata: Metadata,
    #[serde(default = "Option::default", rename = "status")]
    _status: Option<IgnoredAny>,
    pub spec: Spec,
}

/// The metadata of a document. A live object has many more fields there, so unknown ones are allowed.
#[derive(Deserialize)]
pub(super) struct Metadata {
    #[serde(rename = "name")]
    _name: String,
    pub namespace: Option<NamespaceName>,
}

/// The policy of the cluster: the defaults for all namespaces, and what only the cluster decides.
#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct ClusterSpec {
    /// What follows a violation of the policy. Enforce: VRAM becomes a request, and the pod is refused. Warn: as Enforce,
    /// but the pod is created with a warning. Audit: pods are not changed, and violations are recorded. Off: nothing.
    /// Default: Enforce; Audit if there is no ClusterVramPolicy.
    mode: Option<ModeText>,
    /// What happens to a pod that no node has room for now. Wait: it stays pending until there is room. Deny: it is
    /// refused. Reroute: as Wait, but it may also use the pools of reroute. Default: Wait.
    on_shortfall: Option<OnShortfallText>,
    /// What pods must declare, and how much they may.
    declaration: Declaration,
    /// Bound on what the pods of each namespace hold together, kept as a ResourceQuota. A VramPolicy can only lower it.
    /// Default: none.
    quota: Option<Amount>,
    /// Amounts by name: what the annotation vramguard.dev/model of a pod declares. A VramPolicy can add names and replace
    /// amounts.
    models: BTreeMap<String, Amount>,
    /// What the frameworks in containers are told about their budget.
    environment: Environment,
    /// Further pools of nodes for onShortfall Reroute.
    reroute: Reroute,
    /// Added to a declaration for each CUDA process of the pod, for its CUDA context. Default: 720Mi.
    per_process_overhead: Option<Amount>,
    /// Memory that is kept free on each GPU.
    headroom: Headroom,
    /// Factor on the memory of a GPU that can be promised, in quotes, from "0.001" to "10.0". Above "1.0", pods may hold
    /// more than the GPU has. Default: "1.0".
    overcommit: Option<OvercommitText>,
    /// How pods start on a shared GPU.
    startup: Startup,
    /// Namespaces whose pods vramguard never changes or refuses. The list replaces the default, which has kube-system, the
    /// usual namespaces of the GPU stack and vramguard's own.
    exempt_namespaces: Option<BTreeSet<NamespaceName>>,
    /// Paths of fields, such as environment.onConflict. A VramPolicy that sets one of them is ignored in that field.
    locked: BTreeSet<FieldText>,
}

/// The policy of one namespace. A field that is not set has the value of the ClusterVramPolicy.
#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct NamespaceSpec {
    /// What follows a violation of the policy. Enforce: VRAM becomes a request, and the pod is refused. Warn: as Enforce,
    /// but the pod is created with a warning. Audit: pods are not changed, and violations are recorded. Off: nothing.
    mode: Option<ModeText>,
    /// What happens to a pod that no node has room for now. Wait: it stays pending until there is room. Deny: it is
    /// refused. Reroute: as Wait, but it may also use the pools of the ClusterVramPolicy.
    on_shortfall: Option<OnShortfallText>,
    /// What pods must declare, and how much they may.
    declaration: Declaration,
    /// Bound on what the pods of the namespace hold together, kept as a ResourceQuota. The lower one of cluster and
    /// namespace is in force.
    quota: Option<Amount>,
    /// Amounts by name: what the annotation vramguard.dev/model of a pod declares. They are added to those of the
    /// ClusterVramPolicy, and replace amounts of the same name.
    models: BTreeMap<String, Amount>,
    /// What the frameworks in containers are told about their budget.
    environment: Environment,
    #[serde(rename = "reroute")]
    _reroute: ClusterOnly,
    #[serde(rename = "perProcessOverhead")]
    _per_process_overhead: ClusterOnly,
    #[serde(rename = "headroom")]
    _headroom: ClusterOnly,
    #[serde(rename = "overcommit")]
    _overcommit: ClusterOnly,
    #[serde(rename = "startup")]
    _startup: ClusterOnly,
    #[serde(rename = "exemptNamespaces")]
    _exempt_namespaces: ClusterOnly,
    #[serde(rename = "locked")]
    _locked: ClusterOnly,
}

#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Declaration {
    /// true: a GPU pod that declares nothing is refused. false: it counts as one slot, with a warning. A slot is the
    /// memory of a GPU divided by its replicas. Default: false.
    required: Option<bool>,
    /// What happens to a pod that declares VRAM while no node says how it shares the pod's GPUs. Deny: it is refused.
    /// Warn: it is created with a warning, and may use memory that is promised to other pods. Default: Deny.
    on_unaccounted: Option<OnUnaccountedText>,
    /// Amount for containers that declare nothing. If it is set, required has no effect. Default: none.
    default: Option<Amount>,
    /// Smallest amount that a container may declare. The stricter one of cluster and namespace is in force.
    /// Default: none.
    min: Option<Amount>,
    /// Largest amount that a container may declare. The stricter one of cluster and namespace is in force.
    /// Default: none.
    max: Option<Amount>,
}

#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Environment {
    /// Which framework a container is told its budget for. Auto: the one that is recognised. None: no framework. A name:
    /// the framework of containers in which none is recognised. Default: Auto.
    framework: Option<FrameworkText>,
    visible_devices: Option<Removed>,
    /// What happens if the user has set an injected variable to a value that allows more. Warn: it is kept, with a
    /// warning. Deny: the pod is refused. Default: Warn.
    on_conflict: Option<OnConflictText>,
}

#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
struct Reroute {
    /// The pools, in the order in which pods prefer them; at most 6.
    pools: Pools,
}

#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Headroom {
    /// Share of the total memory of a GPU that is kept free, in percent. The larger one of percent and minimum is in
    /// force. Default: 1.
    percent: Option<Percent>,
    /// Amount that is kept free on each GPU, at least. Default: 256Mi.
    minimum: Option<Amount>,
    /// What the driver keeps for itself, subtracted in addition. Auto: what the node agent reports, otherwise 0.6 % of the
    /// total, at least 450Mi. An amount replaces both. Default: Auto.
    driver_reserve: Option<DriverReserveText>,
}

#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Startup {
    /// true: while a pod starts on a GPU, no second pod starts there until the first is Ready or 10 minutes have passed.
    /// Default: false.
    serialize_per_gpu: Option<bool>,
}

/// GPUs that the labels of nodes do not describe.
#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct InventorySpec {
    /// Nodes with equal GPUs behind one resource. If several entries select a node, the first one counts.
    nodes: Vec<InventoryEntry>,
}

#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct InventoryEntry {
    /// Names of nodes. names, matchLabels or both are required.
    #[serde(default)]
    names: BTreeSet<String>,
    /// Labels. They select the nodes that have all of them.
    #[serde(default)]
    match_labels: BTreeMap<String, String>,
    /// Resource of the GPUs: nvidia.com/gpu, nvidia.com/gpu.NAME, nvidia.com/gpu-NAME or nvidia.com/mig-PROFILE.
    resource: GpuResource,
    /// How pods share a GPU. If absent, the label nvidia.com/gpu.sharing-strategy of the node decides.
    #[serde(default)]
    sharing: Option<SharingText>,
    /// Number of replicas of each GPU.
    replicas: NonZeroU32,
    /// Total memory of each GPU, in the order of their index.
    gpus: Vec<Amount>,
    /// true: these nodes enforce a limit of GPU memory for each container. Not for MIG and MPS.
    #[serde(default)]
    hard_limits: bool,
}

/// Most characters of the name of a model.
pub(super) const MAX_MODEL_NAME: usize = 253;

/// A field and the problem with it.
type Wrong<F> = (F, String);

impl TryFrom<ClusterSpec> for ClusterPolicy {
    type Error = Wrong<&'static str>;

    fn try_from(spec: ClusterSpec) -> Result<ClusterPolicy, Self::Error> {
        Ok(ClusterPolicy {
            layer: layer(spec.mode, spec.on_shortfall, &spec.declaration, spec.quota, spec.models, &spec.environment)?,
            per_process_overhead: spec.per_process_overhead.map(|amount| amount.0),
            headroom_percent: spec.headroom.percent.map(|percent| percent.0),
            headroom_minimum: spec.headroom.minimum.map(|amount| amount.0),
            driver_reserve: spec.headroom.driver_reserve.map(|reserve| reserve.0),
            overcommit: spec.overcommit.map(|overcommit| overcommit.0),
            serialize_per_gpu: spec.startup.serialize_per_gpu,
            exempt_namespaces: spec.exempt_namespaces.map(|names| names.into_iter().map(|name| name.0).collect()),
            reroute_pools: spec.reroute.pools.0,
            locked: spec.locked.into_iter().map(|field| field.0).collect(),
        })
    }
}

impl TryFrom<NamespaceSpec> for Layer {
    type Error = Wrong<&'static str>;

    fn try_from(spec: NamespaceSpec) -> Result<Layer, Self::Error> {
        layer(spec.mode, spec.on_shortfall, &spec.declaration, spec.quota, spec.models, &spec.environment)
    }
}

fn layer(
    mode: Option<ModeText>,
    on_shortfall: Option<OnShortfallText>,
    declaration: &Declaration,
    quota: Option<Amount>,
    models: BTreeMap<String, Amount>,
    environment: &Environment,
) -> Result<Layer, Wrong<&'static str>> {
    let Declaration { required, on_unaccounted, default, min, max } = *declaration;
    if let (Some(min), Some(max)) = (min, max)
        && min > max
    {
        return Err(("spec.declaration", format!("min {} is above max {}", min.0, max.0)));
    }
    if let Some(default) = default
        && (min.is_some_and(|min| default < min) || max.is_some_and(|max| default > max))
    {
        return Err(("spec.declaration.default", format!("{} is outside of min and max", default.0)));
    }
    if let Some(name) = models.keys().find(|name| name.chars().count() > MAX_MODEL_NAME) {
        let name: String = name.chars().take(40).collect();
        return Err(("spec.models", format!("{name:?}… is a name of more than {MAX_MODEL_NAME} characters")));
    }
    Ok(Layer {
        mode: mode.map(Into::into),
        on_shortfall: on_shortfall.map(Into::into),
        required,
        on_unaccounted: on_unaccounted.map(Into::into),
        default: default.map(|amount| amount.0),
        min: min.map(|amount| amount.0),
        max: max.map(|amount| amount.0),
        quota: quota.map(|amount| amount.0),
        models: models.into_iter().map(|(name, amount)| (name, amount.0)).collect(),
        framework: environment.framework.map(|framework| framework.0),
        on_conflict: environment.on_conflict.map(Into::into),
    })
}

impl InventorySpec {
    pub(super) fn overrides(self) -> Result<Vec<Override>, Wrong<String>> {
        let entries = self.nodes.into_iter().enumerate().map(|(index, entry)| {
            let field = |name: &str| format!("spec.nodes[{index}]{name}");
            if entry.names.is_empty() && entry.match_labels.is_empty() {
                return Err((field(""), NO_NODE.to_owned()));
            }
            if entry.gpus.is_empty() {
                return Err((field(".gpus"), "is empty; write the total memory of each GPU".to_owned()));
            }
            if let Some(large) = entry.gpus.iter().position(|amount| amount.0 > MAX_GPU) {
                return Err((field(&format!(".gpus[{large}]")), too_large_gpu()));
            }
            if let Some(zero) = entry.gpus.iter().position(|amount| amount.0.is_zero()) {
                return Err((field(&format!(".gpus[{zero}]")), ZERO_GPU.to_owned()));
            }
            if entry.hard_limits && entry.resource.0.is_mig() {
                return Err((field(".hardLimits"), HARD_MIG.to_owned()));
            }
            if entry.hard_limits && matches!(entry.sharing, Some(SharingText::Mps)) {
                return Err((field(".hardLimits"), HARD_MPS.to_owned()));
            }
            Ok(Override {
                names: entry.names,
                labels: entry.match_labels,
                resource: entry.resource.0,
                sharing: entry.sharing.map_or(Sharing::UnknownMethod, Into::into),
                replicas: entry.replicas,
                gpus: entry.gpus.into_iter().map(|amount| amount.0).collect(),
                hard_limits: entry.hard_limits,
            })
        });
        entries.collect()
    }
}
