//! One object of JSON → a value. Owns which parts may be left out, and that no object has a key twice.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Where a value is in an object, which decides what is kept of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::k8s::manifests) enum Level {
    /// All of it is kept.
    Whole,
    /// An object, or a template of one.
    Object,
    Metadata,
    Spec,
    Status,
    Containers,
    Container,
}

/// Members of a container that no reader of pods looks at.
const OF_CONTAINER: [&str; 14] = [
    "args",
    "command",
    "image",
    "imagePullPolicy",
    "lifecycle",
    "livenessProbe",
    "ports",
    "readinessProbe",
    "startupProbe",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "volumeDevices",
    "volumeMounts",
    "workingDir",
];
/// Members of the status of a pod or node that no reader looks at.
const OF_STATUS: [&str; 6] = [
    "containerStatuses",
    "ephemeralContainerStatuses",
    "images",
    "initContainerStatuses",
    "volumesAttached",
    "volumesInUse",
];

impl Level {
    /// The level of a member; `None` if the member is left out.
    fn of_member(self, name: &str) -> Option<Level> {
        Some(match (self, name) {
            (Level::Object, "metadata") => Level::Metadata,
            (Level::Object, "spec") => Level::Spec,
            (Level::Object, "status") => Level::Status,
            (Level::Spec, "template" | "jobTemplate") => Level::Object,
            (Level::Spec, "containers" | "initContainers" | "ephemeralContainers") => Level::Containers,
            (Level::Metadata, "managedFields") => return None,
            (Level::Container, name) if OF_CONTAINER.contains(&name) => return None,
            (Level::Status, name) if OF_STATUS.contains(&name) => return None,
            _ => Level::Whole,
        })
    }

    fn of_entry(self) -> Level {
        if self == Level::Containers { Level::Container } else { Level::Whole }
    }
}

/// Reads a value in which no object has a key twice. What is left out is not checked for that.
pub(super) struct Unique(pub(super) Level);

impl<'de> DeserializeSeed<'de> for Unique {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unique {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(Unique(self.0.of_entry()))? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        // API servers and kubectl write sorted members, of which a map is made at once.
        let mut sorted: Vec<(String, Value)> = Vec::new();
        let mut members = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let Some(level) = self.0.of_member(&key) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if members.is_empty() && sorted.last().is_none_or(|(last, _)| *last < key) {
                sorted.push((key, map.next_value_seed(Unique(level))?));
                continue;
            }
            members.extend(sorted.drain(..));
            if members.contains_key(&key) {
                return Err(A::Error::custom(format_args!("key {key:?} is there twice")));
            }
            let value = map.next_value_seed(Unique(level))?;
            members.insert(key, value);
        }
        Ok(Value::Object(if members.is_empty() { sorted.into_iter().collect() } else { members }))
    }
}
