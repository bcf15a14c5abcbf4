//! The values in policy documents: amounts, percentages, names. Owns the form of each value; an error says what was
//! expected.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, Unexpected, Visitor};

use super::super::node::MAX_GPU;
use crate::capacity::gpu::{DriverReserve, Overcommit, Resource, Sharing};
use crate::capacity::pod::software::Framework;
use crate::capacity::policy::{Field, FrameworkPolicy, Mode, OnConflict, OnShortfall, OnUnaccounted};
use crate::capacity::vram::Vram;
use crate::keys;

/// The error about a field in a VramPolicy that only the ClusterVramPolicy may set.
pub(super) const CLUSTER_ONLY: &str = "is for the whole cluster: only the ClusterVramPolicy may set it";
/// The error about `environment.visibleDevices`.
pub(super) const REMOVED: &str = "no longer exists; remove the line. The node agent chooses the GPU instead, by steering \
                                  the device plugin: see docs/several-gpus.md";
/// The error about an entry of a GpuInventory that selects nothing.
pub(super) const NO_NODE: &str = "describes no node; write names or matchLabels";
/// The error about a GPU without memory.
pub(super) const ZERO_GPU: &str = "is zero; write the total memory of the GPU";
/// The error about hard limits of MIG devices.
pub(super) const HARD_MIG: &str = "does not hold for MIG devices, whose size is their limit; remove it";
/// The error about hard limits under MPS.
pub(super) const HARD_MPS: &str = "does not hold under MPS, which has limits of its own; remove it";

/// The error about a GPU that is larger than any.
pub(super) fn too_large_gpu() -> String {
    format!("is more than {MAX_GPU}; no GPU is that large")
}

/// Declares an enum with the names used in documents, and its conversion to an enum of the core.
macro_rules! text_of {
    ($text:ident => $core:ident { $($variant:ident = $name:literal),+ $(,)? }) => {
        #[derive(Clone, Copy, Deserialize)]
        #[cfg_attr(test, derive(schemars::JsonSchema))]
        pub(super) enum $text {
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
pub(super) struct FrameworkText(pub FrameworkPolicy);

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
pub(super) struct ClusterOnly;

impl<'de> Deserialize<'de> for ClusterOnly {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ClusterOnly, D::Error> {
        IgnoredAny::deserialize(deserializer)?;
        Err(D::Error::custom(CLUSTER_ONLY))
    }
}

/// `environment.visibleDevices`, which no longer exists: if it is present, reading it fails.
///
/// It let an annotation decide the GPU. A container runtime that uses CDI ignores that, and where the annotation did
/// take effect, it made the kubelet's record of the GPU wrong.
pub(super) struct Removed;

impl<'de> Deserialize<'de> for Removed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Removed, D::Error> {
        IgnoredAny::deserialize(deserializer)?;
        Err(D::Error::custom(REMOVED))
    }
}

/// `Auto`, an amount of VRAM with a unit, or 0.
pub(super) struct DriverReserveText(pub DriverReserve);

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
pub(super) struct Amount(pub Vram);

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
pub(super) struct Percent(pub u8);

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
pub(super) struct OvercommitText(pub Overcommit);

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
pub(super) struct FieldText(pub Field);

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
