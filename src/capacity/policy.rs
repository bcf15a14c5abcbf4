//! Policy in force: the value of each field, its default, and the namespaces in which it holds.
//!
//! `layer` has the documents as they are written, `scope` decides between a file and a resource, `merge` which value
//! wins, and [`Setting`] says where each value comes from. `k8s::document` parses the documents, and `state::policies`
//! reads them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::capacity::gpu::{Headroom, Rules};
use crate::capacity::pod::placement::FallbackPool;
use crate::capacity::pod::software::Framework;
use crate::capacity::vram::Vram;

mod layer;
mod merge;
mod origin;
mod scope;

pub use layer::{ClusterPolicy, Field, Layer};
pub use origin::{Origin, PassedOver, Setting, Why};
pub use scope::{DocumentState, Scope};

/// What happens to a pod that violates the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Pods get their request injected; a violation is refused.
    Enforce,
    /// Pods get their request injected; a violation is admitted with a warning.
    Warn,
    /// Pods are not changed; a violation is recorded.
    Audit,
    /// Pods are not changed; a violation is ignored.
    Off,
}

/// What happens to a pod that no node has room for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnShortfall {
    /// The pod is created and stays pending until there is room.
    Wait,
    /// The pod is refused at creation.
    Deny,
    /// Like `Wait`, but the pod may also be placed in the pools of `reroute`.
    Reroute,
}

/// `environment.framework`: which framework a container is told its budget for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameworkPolicy {
    /// The framework that is recognised, if any.
    Auto,
    /// Only variables that concern every framework.
    None,
    /// This one, where none is recognised.
    Named(Framework),
}

/// What happens to a pod whose declaration nothing accounts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnUnaccounted {
    /// The pod is admitted with a warning.
    Warn,
    /// The pod is refused.
    Deny,
}

/// What happens to a user's own value of an injected variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnConflict {
    /// The value is kept, with a warning.
    Warn,
    /// The pod is refused.
    Deny,
}

/// Displays values as a policy file writes them: by the name of the variant.
macro_rules! displayed_by_name {
    ($($values:ident),+) => {
        $(impl fmt::Display for $values {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        })+
    };
}
displayed_by_name!(Mode, OnShortfall, OnUnaccounted, OnConflict);

/// Displays the framework as a policy file writes it.
impl fmt::Display for FrameworkPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameworkPolicy::Auto => f.write_str("Auto"),
            FrameworkPolicy::None => f.write_str("None"),
            FrameworkPolicy::Named(framework) => write!(f, "{framework}"),
        }
    }
}

/// The policy in force in one namespace, with the defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What happens to a pod that violates the policy.
    pub mode: Mode,
    /// What happens to a pod that no node has room for now.
    pub on_shortfall: OnShortfall,
    /// Whether a GPU container must have a declaration.
    pub required: bool,
    /// What happens to a declaration that nothing accounts for.
    pub on_unaccounted: OnUnaccounted,
    /// Declared amount of containers that declare nothing.
    pub default: Option<Vram>,
    /// Lower bound on a declared amount.
    pub min: Option<Vram>,
    /// Upper bound on a declared amount.
    pub max: Option<Vram>,
    /// Budget of the namespace: a limit on the sum of the VRAM requests of its pods. See [`quota`](crate::capacity::quota).
    pub quota: Option<Vram>,
    /// Model catalogue: declared amounts by model name.
    pub models: BTreeMap<String, Vram>,
    /// The framework that a container is told its budget for.
    pub framework: FrameworkPolicy,
    /// What happens to a user's own value of an injected variable.
    pub on_conflict: OnConflict,
    /// Memory of a CUDA context that is added for each process. It is set for the whole cluster.
    pub per_process_overhead: Vram,
    /// Pools that pods of other pools may use under [`OnShortfall::Reroute`]. They are set for the whole cluster.
    pub reroute_pools: Arc<[FallbackPool]>,
}

impl Policy {
    /// The pools that pods of other pools may use; none if the policy does not reroute, or changes no pods.
    pub fn fallbacks(&self) -> &[FallbackPool] {
        let changes_pods = matches!(self.mode, Mode::Enforce | Mode::Warn);
        if changes_pods && self.on_shortfall == OnShortfall::Reroute { &self.reroute_pools } else { &[] }
    }
}

/// All policy documents, as written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Documents {
    /// The ClusterVramPolicy, if there is one.
    pub cluster: Option<ClusterPolicy>,
    /// VramPolicies by namespace.
    pub namespaces: BTreeMap<String, Layer>,
}

/// The policies in force, computed once from [`Documents`].
///
/// So a lookup on the admission path merges nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policies {
    rules: Rules,
    exempt: BTreeSet<String>,
    everywhere: Arc<Policy>,
    namespaces: BTreeMap<String, Arc<Policy>>,
    ignored: Vec<(String, Field)>,
}

/// Namespaces that are exempt unless `exemptNamespaces` replaces the list.
///
/// The namespace of vramguard itself is always exempt.
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
    /// Computes the policies in force.
    ///
    /// `own_namespace` is exempt whatever the documents say: a guard that guards itself cannot start.
    pub fn new(documents: &Documents, own_namespace: &str) -> Policies {
        Policies::after(None, documents, own_namespace)
    }

    /// As [`Policies::new`], sharing each policy that is equal to the one before. `before` are the previous documents and
    /// policies; without a change of the ClusterVramPolicy, only namespaces whose own document changed are computed.
    pub fn after(before: Option<(&Documents, &Policies)>, documents: &Documents, own_namespace: &str) -> Policies {
        let built_in = ClusterPolicy::default();
        let cluster = documents.cluster.as_ref().unwrap_or(&built_in);
        let rules = rules(cluster);
        let mut exempt = cluster.exempt_namespaces.clone().unwrap_or_else(exempt_by_default);
        exempt.insert(own_namespace.to_owned());
        let shared = |policy: Policy, before: Option<&Arc<Policy>>| match before {
            Some(before) if **before == policy => before.clone(),
            _ => Arc::new(policy),
        };
        let merge = |layer: &Layer| merge::merge(documents, layer, &rules).0;
        let unchanged = before.filter(|(written, _)| written.cluster == documents.cluster);
        let namespaces = documents.namespaces.iter().map(|(name, layer)| {
            let known = before.and_then(|(_, policies)| policies.namespaces.get(name));
            let same = unchanged.and_then(|(written, _)| written.namespaces.get(name)).is_some_and(|was| was == layer);
            let policy = match known.filter(|_| same) {
                Some(known) => known.clone(),
                None => shared(merge(layer), known),
            };
            (name.clone(), policy)
        });
        let namespaces = namespaces.collect();
        let everywhere = shared(merge(&Layer::default()), before.map(|(_, policies)| &policies.everywhere));
        let ignored = documents.namespaces.iter().flat_map(|(name, layer)| {
            let locked = layer.set_fields().into_iter().filter(|field| cluster.locked.contains(field));
            locked.map(|field| (name.clone(), field))
        });
        Policies { rules, exempt, everywhere, namespaces, ignored: ignored.collect() }
    }

    /// The policy in force in a namespace, or `None` if it is exempt.
    pub fn of(&self, namespace: &str) -> Option<&Arc<Policy>> {
        (!self.exempt.contains(namespace)).then(|| self.namespaces.get(namespace).unwrap_or(&self.everywhere))
    }

    /// The policy in force in every namespace without a VramPolicy.
    pub fn everywhere(&self) -> &Arc<Policy> {
        &self.everywhere
    }

    /// Whether a namespace has a VramPolicy.
    pub fn has_own(&self, namespace: &str) -> bool {
        self.namespaces.contains_key(namespace)
    }

    /// The namespaces that have a VramPolicy.
    pub fn with_own(&self) -> impl Iterator<Item = &str> {
        self.namespaces.keys().map(String::as_str)
    }

    /// The rules from which allocatable memory and demands are computed.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Locked fields that a namespace sets anyway, by namespace. The cluster's value is in force.
    pub fn ignored(&self) -> &[(String, Field)] {
        &self.ignored
    }

    /// Namespaces in which a violation is refused, for the webhook configuration of the API server.
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

    /// Exempt namespaces, which vramguard never touches.
    pub fn exempt(&self) -> &BTreeSet<String> {
        &self.exempt
    }
}

/// The cluster-wide settings in force, with the defaults filled in.
fn rules(cluster: &ClusterPolicy) -> Rules {
    let defaults = Rules::default();
    Rules {
        per_process_overhead: cluster.per_process_overhead.unwrap_or(defaults.per_process_overhead),
        driver_reserve: cluster.driver_reserve.unwrap_or(defaults.driver_reserve),
        headroom: Headroom {
            percent: cluster.headroom_percent.unwrap_or(defaults.headroom.percent),
            minimum: cluster.headroom_minimum.unwrap_or(defaults.headroom.minimum),
        },
        overcommit: cluster.overcommit.unwrap_or(defaults.overcommit),
        serialize_per_gpu: cluster.serialize_per_gpu.unwrap_or(defaults.serialize_per_gpu),
        several_schedulers: defaults.several_schedulers,
    }
}

fn exempt_by_default() -> BTreeSet<String> {
    EXEMPT_BY_DEFAULT.iter().map(|name| (*name).to_owned()).collect()
}

/// A set of namespaces that stays correct when a namespace is created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespaces {
    /// Every namespace, present or future, that is not listed.
    AllBut(BTreeSet<String>),
    /// The listed namespaces.
    Only(BTreeSet<String>),
}

#[cfg(test)]
mod tests;
