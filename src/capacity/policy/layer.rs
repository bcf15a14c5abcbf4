//! Policy documents as they are written: their fields, and which of them can be locked. Which value wins is decided in
//! [`super::merge`].

use std::collections::{BTreeMap, BTreeSet};

use super::{FrameworkPolicy, Mode, OnConflict, OnShortfall, OnUnaccounted};
use crate::capacity::gpu::{DriverReserve, Overcommit};
use crate::capacity::pod::placement::FallbackPool;
use crate::capacity::vram::Vram;

/// The fields that ClusterVramPolicy and VramPolicy have in common, as written.
///
/// A field is `None`, or empty for `models`, if the document does not set it. [`Policy`](super::Policy) explains the fields.
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
    pub framework: Option<FrameworkPolicy>,
    /// `environment.onConflict`.
    pub on_conflict: Option<OnConflict>,
}

/// A ClusterVramPolicy as written; a field is `None` or empty if the document does not set it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterPolicy {
    /// The fields that a VramPolicy may set too.
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
    pub reroute_pools: Vec<FallbackPool>,
    /// `locked`.
    pub locked: BTreeSet<Field>,
}

/// A field that a VramPolicy may set and that `locked` may name.
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
    /// `environment.onConflict`.
    OnConflict,
}

impl Field {
    /// All fields, in the order of the documentation.
    pub const ALL: [Field; 11] = [
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
        Field::OnConflict,
    ];

    /// The path of the field in a policy document.
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
            Field::OnConflict => "environment.onConflict",
        }
    }
}

impl Layer {
    /// The fields that this document sets.
    pub fn set_fields(&self) -> BTreeSet<Field> {
        Field::ALL.into_iter().filter(|field| self.sets(*field)).collect()
    }

    /// Whether this document sets the field.
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
            Field::OnConflict => self.on_conflict.is_some(),
        }
    }
}
