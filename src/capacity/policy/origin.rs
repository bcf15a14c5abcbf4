//! The origin of each value in force, for `vramguard explain`. Owns the list of settings and their order; [`super::merge`]
//! decides which value wins.

use std::collections::BTreeSet;

use super::{ClusterPolicy, Documents, Layer, merge};
use crate::capacity::gpu::DriverReserve;

/// The document that a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// No document sets it.
    Default,
    /// The ClusterVramPolicy.
    Cluster,
    /// The VramPolicy of the namespace.
    Namespace,
}

/// The value of one field in force in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Path of the field in a policy document; of an entry of the model catalogue, `models.<name>`.
    pub path: String,
    /// The value as a policy document writes it; `None` if the field has none.
    pub value: Option<String>,
    /// The document that sets the value.
    pub origin: Origin,
    /// Whether the ClusterVramPolicy locks the field.
    pub locked: bool,
    /// A value that the other document sets, and that is not in force.
    pub passed_over: Option<PassedOver>,
}

/// A value that a document sets and that is not in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedOver {
    /// The document that sets it.
    pub origin: Origin,
    /// The value as the document writes it.
    pub value: String,
    /// Why it is not in force.
    pub why: Why,
}

/// Why a value is not in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The ClusterVramPolicy locks the field.
    Locked,
    /// The VramPolicy of the namespace sets another value.
    Replaced,
    /// Of two bounds the stricter one is in force.
    LessStrict,
}

impl Documents {
    /// The values in force in a namespace, in the order of the documentation. The namespace must not be exempt.
    pub fn settings(&self, namespace: &str) -> Vec<Setting> {
        let built_in = (ClusterPolicy::default(), Layer::default());
        let cluster = self.cluster.as_ref().unwrap_or(&built_in.0);
        let layer = self.namespaces.get(namespace).unwrap_or(&built_in.1);
        let rules = super::rules(cluster);
        let (_, mut settings) = merge::merge(self, layer, &rules);
        settings.extend(cluster_wide(cluster));
        settings
    }
}

/// The values that only the ClusterVramPolicy can set.
fn cluster_wide(cluster: &ClusterPolicy) -> Vec<Setting> {
    let rules = super::rules(cluster);
    let setting = |path: &str, is_set: bool, value: Option<String>| Setting {
        path: path.to_owned(),
        value,
        origin: if is_set { Origin::Cluster } else { Origin::Default },
        locked: false,
        passed_over: None,
    };
    let reserve = match rules.driver_reserve {
        DriverReserve::Auto => "Auto".to_owned(),
        DriverReserve::Amount(amount) => amount.to_string(),
    };
    let list = |names: Vec<&str>| (!names.is_empty()).then(|| names.join(", "));
    let exempt = cluster.exempt_namespaces.clone().unwrap_or_else(super::exempt_by_default);
    let locked: BTreeSet<&str> = cluster.locked.iter().map(|field| field.path()).collect();
    let pools: Vec<String> = cluster.reroute_pools.iter().map(ToString::to_string).collect();
    vec![
        setting(
            "perProcessOverhead",
            cluster.per_process_overhead.is_some(),
            Some(rules.per_process_overhead.to_string()),
        ),
        setting("headroom.percent", cluster.headroom_percent.is_some(), Some(rules.headroom.percent.to_string())),
        setting("headroom.minimum", cluster.headroom_minimum.is_some(), Some(rules.headroom.minimum.to_string())),
        setting("headroom.driverReserve", cluster.driver_reserve.is_some(), Some(reserve)),
        setting("overcommit", cluster.overcommit.is_some(), Some(rules.overcommit.to_string())),
        setting(
            "startup.serializePerGpu",
            cluster.serialize_per_gpu.is_some(),
            Some(rules.serialize_per_gpu.to_string()),
        ),
        setting(
            "exemptNamespaces",
            cluster.exempt_namespaces.is_some(),
            list(exempt.iter().map(String::as_str).collect()),
        ),
        setting("reroute.pools", !cluster.reroute_pools.is_empty(), list(pools.iter().map(String::as_str).collect())),
        setting("locked", !locked.is_empty(), list(locked.into_iter().collect())),
    ]
}
