//! Which value is in force: that of the namespace, of the cluster, or the default. Owns precedence, locks and the
//! stricter of two bounds.
//!
//! The policy and the origin of each of its values come from the same code, so an explanation cannot differ from what
//! is enforced.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use super::origin::{Origin, PassedOver, Setting, Why};
use super::{
    ClusterPolicy, Documents, Field, FrameworkPolicy, Layer, Mode, OnConflict, OnShortfall, OnUnaccounted, Policy,
};
use crate::capacity::gpu::Rules;
use crate::capacity::vram::Vram;

/// Merges the layers of the cluster and of a namespace. Returns the policy, and the origin of each of its values.
///
/// The stricter value wins for bounds and quota, models are merged by name, and the namespace wins for everything else.
/// A field that is locked has the cluster's value.
pub(super) fn merge(documents: &Documents, namespace: &Layer, rules: &Rules) -> (Policy, Vec<Setting>) {
    let built_in = ClusterPolicy::default();
    let ClusterPolicy { layer: cluster, locked, reroute_pools, .. } = documents.cluster.as_ref().unwrap_or(&built_in);
    let mode_if_silent = if documents.cluster.is_some() { Mode::Enforce } else { Mode::Audit };
    let mut merge = Merge { locked, settings: Vec::new() };
    let policy = Policy {
        mode: merge.value(Field::Mode, cluster.mode, namespace.mode, mode_if_silent),
        on_shortfall: merge.value(Field::OnShortfall, cluster.on_shortfall, namespace.on_shortfall, OnShortfall::Wait),
        required: merge.value(Field::Required, cluster.required, namespace.required, false),
        on_unaccounted: merge.value(
            Field::OnUnaccounted,
            cluster.on_unaccounted,
            namespace.on_unaccounted,
            OnUnaccounted::Deny,
        ),
        default: merge.optional(Field::Default, cluster.default, namespace.default),
        min: merge.stricter(Field::Min, Vram::max, cluster.min, namespace.min),
        max: merge.stricter(Field::Max, Vram::min, cluster.max, namespace.max),
        quota: merge.stricter(Field::Quota, Vram::min, cluster.quota, namespace.quota),
        models: merge.models(&cluster.models, &namespace.models),
        framework: merge.value(Field::Framework, cluster.framework, namespace.framework, FrameworkPolicy::Auto),
        on_conflict: merge.value(Field::OnConflict, cluster.on_conflict, namespace.on_conflict, OnConflict::Warn),
        per_process_overhead: rules.per_process_overhead,
        reroute_pools: reroute_pools.as_slice().into(),
    };
    (policy, merge.settings)
}

/// A merge in progress.
struct Merge<'a> {
    locked: &'a BTreeSet<Field>,
    settings: Vec<Setting>,
}

impl Merge<'_> {
    /// The namespace's value, else the cluster's, else the default.
    fn value<T: Copy + Display>(&mut self, field: Field, cluster: Option<T>, namespace: Option<T>, default: T) -> T {
        match self.optional(field, cluster, namespace) {
            Some(value) => value,
            None => {
                // The setting without a value was recorded last.
                if let Some(setting) = self.settings.last_mut() {
                    setting.value = Some(default.to_string());
                }
                default
            }
        }
    }

    /// The namespace's value, else the cluster's.
    fn optional<T: Copy + Display>(&mut self, field: Field, cluster: Option<T>, namespace: Option<T>) -> Option<T> {
        let passed_over = match (cluster, namespace) {
            (_, Some(namespace)) if self.locked.contains(&field) => Some((Origin::Namespace, namespace, Why::Locked)),
            (Some(cluster), Some(_)) => Some((Origin::Cluster, cluster, Why::Replaced)),
            (_, None) | (None, Some(_)) => None,
        };
        let (value, origin) = match (cluster, namespace.filter(|_| !self.locked.contains(&field))) {
            (_, Some(namespace)) => (Some(namespace), Origin::Namespace),
            (Some(cluster), None) => (Some(cluster), Origin::Cluster),
            (None, None) => (None, Origin::Default),
        };
        self.record(field.path().to_owned(), field, value, origin, passed_over);
        value
    }

    /// The stricter of both values, or the only one.
    fn stricter(
        &mut self,
        field: Field,
        stricter: fn(Vram, Vram) -> Vram,
        cluster: Option<Vram>,
        namespace: Option<Vram>,
    ) -> Option<Vram> {
        let (Some(of_cluster), Some(of_namespace), false) = (cluster, namespace, self.locked.contains(&field)) else {
            return self.optional(field, cluster, namespace);
        };
        let value = stricter(of_cluster, of_namespace);
        let (origin, other) = if value == of_cluster {
            (Origin::Cluster, (Origin::Namespace, of_namespace, Why::LessStrict))
        } else {
            (Origin::Namespace, (Origin::Cluster, of_cluster, Why::LessStrict))
        };
        let other = Some(other).filter(|_| of_cluster != of_namespace);
        self.record(field.path().to_owned(), field, Some(value), origin, other);
        Some(value)
    }

    /// The entries of both catalogues; of one that both have, the namespace's.
    fn models(
        &mut self,
        cluster: &BTreeMap<String, Vram>,
        namespace: &BTreeMap<String, Vram>,
    ) -> BTreeMap<String, Vram> {
        let names: BTreeSet<&String> = cluster.keys().chain(namespace.keys()).collect();
        if names.is_empty() {
            self.optional::<Vram>(Field::Models, None, None);
        }
        let mut models = BTreeMap::new();
        for name in names {
            let amount = self.optional(Field::Models, cluster.get(name).copied(), namespace.get(name).copied());
            if let Some(setting) = self.settings.last_mut() {
                setting.path = format!("{}.{name}", Field::Models.path());
            }
            models.extend(amount.map(|amount| (name.clone(), amount)));
        }
        models
    }

    fn record<T: Display>(
        &mut self,
        path: String,
        field: Field,
        value: Option<T>,
        origin: Origin,
        passed_over: Option<(Origin, T, Why)>,
    ) {
        self.settings.push(Setting {
            path,
            value: value.map(|value| value.to_string()),
            origin,
            locked: self.locked.contains(&field),
            passed_over: passed_over.map(|(origin, value, why)| PassedOver { origin, value: value.to_string(), why }),
        });
    }
}
