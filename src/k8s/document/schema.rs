//! The schema of the policy documents: their fields and the form of each value. Owns which fields exist; an unknown
//! field is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU32;

use serde::de::{Deserializer, Error, Unexpected, Visitor};
use serde::{Deserialize, de::IgnoredAny};

use super::super::node::{MAX_GPU, Override};
use super::pool::Pools;
use crate::capacity::gpu::{DriverReserve, Overcommit, Resource, Sharing};
use crate::capacity::pod::software::Framework;
use crate::capacity::policy::{
    ClusterPolicy, Field, FrameworkPolicy, Layer, Mode, OnConflict, OnShortfall, OnUnaccounted,
};
use crate::capacity::vram::Vram;
use crate::keys;

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

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct ClusterSpec {
    mode: Option<ModeText>,
    on_shortfall: Option<OnShortfallText>,
    declaration: Declaration,
    quota: Option<Amount>,
    models: BTreeMap<String, Amount>,
    environment: Environment,
    reroute: Reroute,
    per_process_overhead: Option<Amount>,
    headroom: Headroom,
    overcommit: Option<OvercommitText>,
    startup: Startup,
    exempt_namespaces: Option<BTreeSet<NamespaceName>>,
    locked: BTreeSet<FieldText>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct NamespaceSpec {
    mode: Option<ModeText>,
    on_shortfall: Option<OnShortfallText>,
    declaration: Declaration,
    quota: Option<Amount>,
    models: BTreeMap<String, Amount>,
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
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Declaration {
    required: Option<bool>,
    on_unaccounted: Option<OnUnaccountedText>,
    default: Option<Amount>,
    min: Option<Amount>,
    max: Option<Amount>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Environment {
    framework: Option<FrameworkText>,
    visible_devices: Option<Removed>,
    on_conflict: Option<OnConflictText>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Reroute {
    pools: Pools,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Headroom {
    percent: Option<Percent>,
    minimum: Option<Amount>,
    driver_reserve: Option<DriverReserveText>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Startup {
    serialize_per_gpu: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InventorySpec {
    nodes: Vec<InventoryEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct InventoryEntry {
    #[serde(default)]
    names: BTreeSet<String>,
    #[serde(default)]
    match_labels: BTreeMap<String, String>,
    resource: GpuResource,
    #[serde(default)]
    sharing: Option<SharingText>,
    replicas: NonZeroU32,
    gpus: Vec<Amount>,
    #[serde(default)]
    hard_limits: bool,
}

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
                return Err((field(""), "describes no node; write names or matchLabels".to_owned()));
            }
            if entry.gpus.is_empty() {
                return Err((field(".gpus"), "is empty; write the total memory of each GPU".to_owned()));
            }
            if let Some(large) = entry.gpus.iter().position(|amount| amount.0 > MAX_GPU) {
                return Err((
                    field(&format!(".gpus[{large}]")),
                    format!("is more than {MAX_GPU}; no GPU is that large"),
                ));
            }
            if let Some(zero) = entry.gpus.iter().position(|amount| amount.0.is_zero()) {
                return Err((
                    field(&format!(".gpus[{zero}]")),
                    "is zero; write the total memory of the GPU".to_owned(),
                ));
            }
            if entry.hard_limits && entry.resource.0.is_mig() {
                return Err((
                    field(".hardLimits"),
                    "does not hold for MIG devices, whose size is their limit; remove it".to_owned(),
                ));
            }
            if entry.hard_limits && matches!(entry.sharing, Some(SharingText::Mps)) {
                return Err((
                    field(".hardLimits"),
                    "does not hold under MPS, which has limits of its own; remove it".to_owned(),
                ));
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

/// Declares an enum with the names used in documents, and its conversion to an enum of the core.
macro_rules! text_of {
    ($text:ident => $core:ident { $($variant:ident = $name:literal),+ $(,)? }) => {
        #[derive(Clone, Copy, Deserialize)]
        enum $text {
            $(#[serde(rename = $name)] $variant,)+
        }
        impl From<$text> for $core {
            fn from(text: $text) -> $core {
                match text {
                    $($text::$variant => $core::$variant,)+
                }
            }
        }
    };
}
text_of!(ModeText => Mode { Enforce = "Enforce", Warn = "Warn", Audit = "Audit", Off = "Off" });
text_of!(OnShortfallText => OnShortfall { Wait = "Wait", Deny = "Deny", Reroute = "Reroute" });
text_of!(OnConflictText => OnConflict { Warn = "Warn", Deny = "Deny" });
text_of!(SharingText => Sharing { TimeSlicing = "TimeSlicing", Mps = "MPS" });
text_of!(OnUnaccountedText => OnUnaccounted { Warn = "Warn", Deny = "Deny" });

/// `Auto`, `None` or the name of a framework.
#[derive(Clone, Copy)]
struct FrameworkText(FrameworkPolicy);

impl<'de> Deserialize<'de> for FrameworkText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<FrameworkText, D::Error> {
        let text = String::deserialize(deserializer)?;
        let named = Framework::ALL.map(FrameworkPolicy::Named);
        let mut all = [FrameworkPolicy::Auto, FrameworkPolicy::None].into_iter().chain(named);
        let is_it = |framework: &FrameworkPolicy| framework.to_string() == text;
        all.find(is_it).map(FrameworkText).ok_or_else(|| {
            let names = Framework::ALL.map(Framework::name).join(", ");
            D::Error::custom(format_args!("{text:?} is not a framework; write Auto, None or one of {names}"))
        })
    }
}

/// A field that only the ClusterVramPolicy may set: if it is present, reading it fails.
#[derive(Default)]
struct ClusterOnly;

impl<'de> Deserialize<'de> for ClusterOnly {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ClusterOnly, D::Error> {
        IgnoredAny::deserialize(deserializer)?;
        Err(D::Error::custom("is for the whole cluster: only the ClusterVramPolicy may set it"))
    }
}

/// `environment.visibleDevices`, which no longer exists: if it is present, reading it fails.
///
/// It let an annotation decide the GPU. A container runtime that uses CDI ignores that, and where the annotation did
/// take effect, it made the kubelet's record of the GPU wrong.
struct Removed;

impl<'de> Deserialize<'de> for Removed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Removed, D::Error> {
        IgnoredAny::deserialize(deserializer)?;
        Err(D::Error::custom(
            "no longer exists; remove the line. The node agent chooses the GPU instead, by steering the device plugin: \
             see docs/several-gpus.md",
        ))
    }
}

/// `Auto`, an amount of VRAM with a unit, or 0.
struct DriverReserveText(DriverReserve);

impl<'de> Deserialize<'de> for DriverReserveText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<DriverReserveText, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = DriverReserveText;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("Auto, an amount of VRAM with a unit, as in 512Mi, or 0")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<DriverReserveText, E> {
                match text {
                    "Auto" => Ok(DriverReserveText(DriverReserve::Auto)),
                    "0" => self.visit_u64(0),
                    _ => text
                        .parse()
                        .map(|amount| DriverReserveText(DriverReserve::Amount(amount)))
                        .map_err(|error| E::custom(format_args!("{text:?} is not Auto and {error}"))),
                }
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<DriverReserveText, E> {
                match number {
                    0 => Ok(DriverReserveText(DriverReserve::Amount(Vram::ZERO))),
                    other => self.visit_str(&other.to_string()),
                }
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<DriverReserveText, E> {
                self.visit_str(&number.to_string())
            }
            fn visit_f64<E: Error>(self, number: f64) -> Result<DriverReserveText, E> {
                self.visit_str(&number.to_string())
            }
        }
        deserializer.deserialize_any(Text)
    }
}

/// An amount of VRAM. Unlike a declaration, it may be 0 without a unit.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
struct Amount(Vram);

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Amount, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Amount;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount of VRAM with a unit, as in 8Gi, or 0")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Amount, E> {
                if text == "0" {
                    return Ok(Amount(Vram::ZERO));
                }
                text.parse().map(Amount).map_err(|error| E::custom(format_args!("{text:?} {error}")))
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<Amount, E> {
                if number == 0 { Ok(Amount(Vram::ZERO)) } else { self.visit_str(&number.to_string()) }
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<Amount, E> {
                self.visit_str(&number.to_string())
            }
            fn visit_f64<E: Error>(self, number: f64) -> Result<Amount, E> {
                self.visit_str(&number.to_string())
            }
        }
        deserializer.deserialize_any(Text)
    }
}

/// A whole number from 0 to 100.
struct Percent(u8);

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Percent, D::Error> {
        let number = i64::deserialize(deserializer)?;
        let percent = u8::try_from(number).ok().filter(|percent| *percent <= 100);
        percent
            .map(Percent)
            .ok_or_else(|| D::Error::invalid_value(Unexpected::Signed(number), &"a whole number from 0 to 100"))
    }
}

/// A decimal number in quotes, from 0.001 to 10.0, with at most three decimals.
struct OvercommitText(Overcommit);

impl<'de> Deserialize<'de> for OvercommitText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<OvercommitText, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parsed = thousandths(&text).and_then(Overcommit::from_thousandths);
        parsed.map(OvercommitText).ok_or_else(|| {
            D::Error::custom(format_args!(
                "{text:?} is not a number from \"0.001\" to \"10.0\" with at most 3 decimals"
            ))
        })
    }
}

fn thousandths(text: &str) -> Option<u32> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 3 {
        return None;
    }
    format!("{whole}{fraction:0<3}").parse().ok()
}

/// A valid name of a namespace. The name becomes a value of a webhook's namespace selector. The API server would refuse
/// a selector with an invalid value, and so every other change of that selector too.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NamespaceName(pub String);

impl<'de> Deserialize<'de> for NamespaceName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<NamespaceName, D::Error> {
        let name = String::deserialize(deserializer)?;
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let ends = !name.starts_with('-') && !name.ends_with('-');
        if !name.is_empty() && name.len() <= 63 && ends && name.bytes().all(inner) {
            return Ok(NamespaceName(name));
        }
        Err(D::Error::custom(format_args!("{name:?} is not the name of a namespace (a-z, 0-9 and -, at most 63)")))
    }
}

/// A field that can be locked, by its path.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct FieldText(Field);

impl<'de> Deserialize<'de> for FieldText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<FieldText, D::Error> {
        let text = String::deserialize(deserializer)?;
        let field = Field::ALL.into_iter().find(|field| field.path() == text);
        field.map(FieldText).ok_or_else(|| {
            let known = Field::ALL.map(Field::path).join(", ");
            D::Error::custom(format_args!("{text:?} is not a field that can be locked; those are {known}"))
        })
    }
}

/// The name of a GPU resource, such as `nvidia.com/gpu`.
pub(crate) struct GpuResource(pub Resource);

impl<'de> Deserialize<'de> for GpuResource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<GpuResource, D::Error> {
        let name = String::deserialize(deserializer)?;
        if keys::is_gpu_resource(&name) {
            return Ok(GpuResource(Resource(name.into())));
        }
        Err(D::Error::custom(format_args!(
            "{name:?} is not a GPU resource; those are {0}, {0}.<name>, {0}-<name> and {1}<profile>",
            keys::GPU_RESOURCE,
            keys::MIG_RESOURCE_OF
        )))
    }
}
