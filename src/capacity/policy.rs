//! Policy as authored and policy in force: the fields, their defaults, the layers and `locked`. Owns what wins; does not
//! parse documents (`k8s::document` does) and does not read files (`policies` does).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::gpu::{DriverReserve, Headroom, Overcommit, Rules};
use super::vram::Vram;

/// What a violation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Injects and refuses.
    Enforce,
    /// Injects and warns.
    Warn,
    /// Changes nothing, records.
    Audit,
    /// Does nothing.
    Off,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The variant's name is how it is written in a policy.
        fmt::Debug::fmt(self, f)
    }
}

/// What happens to a pod that fits nowhere now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnShortfall {
    /// Created, pending until there is room.
    Wait,
    /// Refused at creation.
    Deny,
    /// As `Wait`, with the pools of `reroute` beside its own.
    Reroute,
}

/// Which framework's environment is injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framework {
    /// As far as it can be recognised.
    Auto,
    /// Only what concerns every framework.
    None,
    /// PyTorch on its own.
    PyTorch,
    /// vLLM.
    Vllm,
    /// SGLang.
    SgLang,
    /// Text Generation Inference.
    Tgi,
    /// JAX.
    Jax,
    /// TensorFlow.
    TensorFlow,
    /// llama.cpp.
    LlamaCpp,
    /// Ollama.
    Ollama,
    /// Triton.
    Triton,
}

/// What happens to `NVIDIA_VISIBLE_DEVICES` of GPU containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VisibleDevices {
    /// The device plugin decides.
    Leave,
    /// The annotation that names the GPU decides.
    Pin,
}

/// What a declaration leads to where nothing accounts for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnUnaccounted {
    /// The pod is let in, with a warning.
    Warn,
    /// The pod is refused.
    Deny,
}

/// What a user's own value of an injected variable leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnConflict {
    /// Kept, with a warning.
    Warn,
    /// Refused.
    Deny,
}

/// The fields that a ClusterVramPolicy and a VramPolicy share, as authored: `None` where a document is silent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layer {
    /// `mode`.
    pub mode: Option<Mode>,
    /// `onShortfall`.
    pub on_shortfall: Option<OnShortfall>,
    /// `declaration.required`.
    pub required: Option<bool>,
    /// `declaration.onUnaccounted`.
    pub on_unaccounted: Option<OnUnaccounted>,
    /// `declaration.default`.
    pub default: Option<Vram>,
    /// `declaration.min`.
    pub min: Option<Vram>,
    /// `declaration.max`.
    pub max: Option<Vram>,
    /// `quota`.
    pub quota: Option<Vram>,
    /// `models`.
    pub models: BTreeMap<String, Vram>,
    /// `environment.framework`.
    pub framework: Option<Framework>,
    /// `environment.visibleDevices`.
    pub visible_devices: Option<VisibleDevices>,
    /// `environment.onConflict`.
    pub on_conflict: Option<OnConflict>,
}

/// A ClusterVramPolicy as authored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterPolicy {
    /// What namespaces may set too.
    pub layer: Layer,
    /// `perProcessOverhead`.
    pub per_process_overhead: Option<Vram>,
    /// `headroom.percent`.
    pub headroom_percent: Option<u8>,
    /// `headroom.minimum`.
    pub headroom_minimum: Option<Vram>,
    /// `headroom.driverReserve`.
    pub driver_reserve: Option<DriverReserve>,
    /// `overcommit`.
    pub overcommit: Option<Overcommit>,
    /// `startup.serializePerGpu`.
    pub serialize_per_gpu: Option<bool>,
    /// `exemptNamespaces`.
    pub exempt_namespaces: Option<BTreeSet<String>>,
    /// `reroute.pools`.
    pub reroute_pools: Vec<String>,
    /// `locked`.
    pub locked: BTreeSet<Field>,
}

/// A field that namespaces may set, and that `locked` may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// `mode`.
    Mode,
    /// `onShortfall`.
    OnShortfall,
    /// `declaration.required`.
    Required,
    /// `declaration.onUnaccounted`.
    OnUnaccounted,
    /// `declaration.default`.
    Default,
    /// `declaration.min`.
    Min,
    /// `declaration.max`.
    Max,
    /// `quota`.
    Quota,
    /// `models`.
    Models,
    /// `environment.framework`.
    Framework,
    /// `environment.visibleDevices`.
    VisibleDevices,
    /// `environment.onConflict`.
    OnConflict,
}

impl Field {
    /// All of them, in the order of the documentation.
    pub const ALL: [Field; 12] = [
        Field::Mode,
        Field::OnShortfall,
        Field::Required,
        Field::OnUnaccounted,
        Field::Default,
        Field::Min,
        Field::Max,
        Field::Quota,
        Field::Models,
        Field::Framework,
        Field::VisibleDevices,
        Field::OnConflict,
    ];

    /// As it is written in a policy.
    pub fn path(self) -> &'static str {
        match self {
            Field::Mode => "mode",
            Field::OnShortfall => "onShortfall",
            Field::Required => "declaration.required",
            Field::OnUnaccounted => "declaration.onUnaccounted",
            Field::Default => "declaration.default",
            Field::Min => "declaration.min",
            Field::Max => "declaration.max",
            Field::Quota => "quota",
            Field::Models => "models",
            Field::Framework => "environment.framework",
            Field::VisibleDevices => "environment.visibleDevices",
            Field::OnConflict => "environment.onConflict",
        }
    }
}

impl Layer {
    /// The fields that this document sets.
    pub fn set_fields(&self) -> BTreeSet<Field> {
        Field::ALL.into_iter().filter(|field| self.sets(*field)).collect()
    }

    fn sets(&self, field: Field) -> bool {
        match field {
            Field::Mode => self.mode.is_some(),
            Field::OnShortfall => self.on_shortfall.is_some(),
            Field::Required => self.required.is_some(),
            Field::OnUnaccounted => self.on_unaccounted.is_some(),
            Field::Default => self.default.is_some(),
            Field::Min => self.min.is_some(),
            Field::Max => self.max.is_some(),
            Field::Quota => self.quota.is_some(),
            Field::Models => !self.models.is_empty(),
            Field::Framework => self.framework.is_some(),
            Field::VisibleDevices => self.visible_devices.is_some(),
            Field::OnConflict => self.on_conflict.is_some(),
        }
    }
}

/// The policy in force in one namespace: every field has a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What a violation does.
    pub mode: Mode,
    /// What a shortfall does.
    pub on_shortfall: OnShortfall,
    /// Whether a GPU container must declare.
    pub required: bool,
    /// What a declaration leads to that nothing accounts for.
    pub on_unaccounted: OnUnaccounted,
    /// For containers that declare nothing.
    pub default: Option<Vram>,
    /// Lower bound on what is declared.
    pub min: Option<Vram>,
    /// Upper bound on what is declared.
    pub max: Option<Vram>,
    /// The namespace's budget.
    pub quota: Option<Vram>,
    /// Model catalogue.
    pub models: BTreeMap<String, Vram>,
    /// Environment: framework.
    pub framework: Framework,
    /// Environment: visible devices.
    pub visible_devices: VisibleDevices,
    /// Environment: a user's own value.
    pub on_conflict: OnConflict,
    /// Cluster-wide: CUDA context for each process.
    pub per_process_overhead: Vram,
}

/// All documents together, as authored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Documents {
    /// The ClusterVramPolicy, if there is one.
    pub cluster: Option<ClusterPolicy>,
    /// VramPolicies by namespace.
    pub namespaces: BTreeMap<String, Layer>,
}

/// The policies in force: computed once from [`Documents`], so that a lookup on the admission path is one map access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policies {
    rules: Rules,
    exempt: BTreeSet<String>,
    everywhere: Arc<Policy>,
    namespaces: BTreeMap<String, Arc<Policy>>,
    ignored: Vec<(String, Field)>,
}

/// Never touched unless `exemptNamespaces` says otherwise, beside vramguard's own namespace.
pub const EXEMPT_BY_DEFAULT: [&str; 7] = [
    "kube-system",
    "kube-node-lease",
    "gpu-operator",
    "gpu-operator-resources",
    "node-feature-discovery",
    "nvidia-device-plugin",
    "nvidia-gpu-operator",
];

impl Policies {
    /// `own_namespace` is exempt whatever the documents say: a guard that guards itself cannot start.
    pub fn new(documents: &Documents, own_namespace: &str) -> Policies {
        let built_in = ClusterPolicy::default();
        let cluster = documents.cluster.as_ref().unwrap_or(&built_in);
        let defaults = Rules::default();
        let rules = Rules {
            per_process_overhead: cluster.per_process_overhead.unwrap_or(defaults.per_process_overhead),
            driver_reserve: cluster.driver_reserve.unwrap_or(defaults.driver_reserve),
            headroom: Headroom {
                percent: cluster.headroom_percent.unwrap_or(defaults.headroom.percent),
                minimum: cluster.headroom_minimum.unwrap_or(defaults.headroom.minimum),
            },
            overcommit: cluster.overcommit.unwrap_or(defaults.overcommit),
            serialize_per_gpu: cluster.serialize_per_gpu.unwrap_or(defaults.serialize_per_gpu),
            several_schedulers: defaults.several_schedulers,
        };
        let mut exempt = cluster
            .exempt_namespaces
            .clone()
            .unwrap_or_else(|| EXEMPT_BY_DEFAULT.iter().map(|name| (*name).to_owned()).collect());
        exempt.insert(own_namespace.to_owned());
        let mode_if_silent = if documents.cluster.is_some() { Mode::Enforce } else { Mode::Audit };
        let merge = |namespace: &Layer| Arc::new(merge(&cluster.layer, namespace, mode_if_silent, &rules));
        let mut ignored = Vec::new();
        let mut namespaces = BTreeMap::new();
        for (name, layer) in &documents.namespaces {
            let locked: Vec<Field> = layer.set_fields().intersection(&cluster.locked).copied().collect();
            namespaces.insert(name.clone(), merge(&without(layer, &locked)));
            ignored.extend(locked.into_iter().map(|field| (name.clone(), field)));
        }
        Policies { rules, exempt, everywhere: merge(&Layer::default()), namespaces, ignored }
    }

    /// The policy in force in a namespace, or `None` where it is exempt.
    pub fn of(&self, namespace: &str) -> Option<&Arc<Policy>> {
        (!self.exempt.contains(namespace)).then(|| self.namespaces.get(namespace).unwrap_or(&self.everywhere))
    }

    /// What turns sizes into promises.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Fields that a namespace sets although they are locked: the cluster's value is in force.
    pub fn ignored(&self) -> &[(String, Field)] {
        &self.ignored
    }

    /// Namespaces in which a violation is refused, so that the API server can be told.
    pub fn enforced(&self) -> Namespaces {
        self.in_modes(&[Mode::Enforce])
    }

    /// Namespaces in which pods get their request injected.
    pub fn injected(&self) -> Namespaces {
        self.in_modes(&[Mode::Enforce, Mode::Warn])
    }

    fn in_modes(&self, modes: &[Mode]) -> Namespaces {
        let is_one = |policy: &Policy| modes.contains(&policy.mode);
        if is_one(&self.everywhere) {
            let others = self.namespaces.iter().filter(|(_, policy)| !is_one(policy)).map(|(name, _)| name.clone());
            Namespaces::AllBut(self.exempt.iter().cloned().chain(others).collect())
        } else {
            let named = self.namespaces.iter().filter(|(name, policy)| is_one(policy) && !self.exempt.contains(*name));
            Namespaces::Only(named.map(|(name, _)| name.clone()).collect())
        }
    }

    /// Never touched.
    pub fn exempt(&self) -> &BTreeSet<String> {
        &self.exempt
    }
}

/// A set of namespaces that stays right when one is created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespaces {
    /// Every namespace, now or later, that is not listed.
    AllBut(BTreeSet<String>),
    /// The listed ones.
    Only(BTreeSet<String>),
}

fn without(layer: &Layer, locked: &[Field]) -> Layer {
    let mut layer = layer.clone();
    for field in locked {
        match field {
            Field::Mode => layer.mode = None,
            Field::OnShortfall => layer.on_shortfall = None,
            Field::Required => layer.required = None,
            Field::OnUnaccounted => layer.on_unaccounted = None,
            Field::Default => layer.default = None,
            Field::Min => layer.min = None,
            Field::Max => layer.max = None,
            Field::Quota => layer.quota = None,
            Field::Models => layer.models.clear(),
            Field::Framework => layer.framework = None,
            Field::VisibleDevices => layer.visible_devices = None,
            Field::OnConflict => layer.on_conflict = None,
        }
    }
    layer
}

/// Bounds and quota: the stricter. Everything else: the namespace's. Models by name.
fn merge(cluster: &Layer, namespace: &Layer, mode_if_silent: Mode, rules: &Rules) -> Policy {
    let stricter = |pick: fn(Vram, Vram) -> Vram, a: Option<Vram>, b: Option<Vram>| match (a, b) {
        (Some(a), Some(b)) => Some(pick(a, b)),
        (one, other) => one.or(other),
    };
    let mut models = cluster.models.clone();
    models.extend(namespace.models.clone());
    Policy {
        mode: namespace.mode.or(cluster.mode).unwrap_or(mode_if_silent),
        on_shortfall: namespace.on_shortfall.or(cluster.on_shortfall).unwrap_or(OnShortfall::Wait),
        required: namespace.required.or(cluster.required).unwrap_or(false),
        on_unaccounted: namespace.on_unaccounted.or(cluster.on_unaccounted).unwrap_or(OnUnaccounted::Deny),
        default: namespace.default.or(cluster.default),
        min: stricter(Vram::max, cluster.min, namespace.min),
        max: stricter(Vram::min, cluster.max, namespace.max),
        quota: stricter(Vram::min, cluster.quota, namespace.quota),
        models,
        framework: namespace.framework.or(cluster.framework).unwrap_or(Framework::Auto),
        visible_devices: namespace.visible_devices.or(cluster.visible_devices).unwrap_or(VisibleDevices::Leave),
        on_conflict: namespace.on_conflict.or(cluster.on_conflict).unwrap_or(OnConflict::Warn),
        per_process_overhead: rules.per_process_overhead,
    }
}

#[cfg(test)]
mod tests;
