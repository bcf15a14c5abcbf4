//! The environment of a container, reduced to the variables that vramguard reads.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};

use super::bounds::MAX_ENV;
use super::null_as_default;
use crate::keys;

/// The entries of an environment that vramguard has a say in ([`keys::ENV_READ`]), in order; an environment of other entries
/// is empty here, but there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Env {
    kept: Vec<EnvVar>,
    count: usize,
}

impl std::ops::Deref for Env {
    type Target = [EnvVar];
    fn deref(&self) -> &[EnvVar] {
        &self.kept
    }
}

impl<'e> IntoIterator for &'e Env {
    type Item = &'e EnvVar;
    type IntoIter = std::slice::Iter<'e, EnvVar>;
    fn into_iter(self) -> Self::IntoIter {
        self.kept.iter()
    }
}

impl Env {
    /// How many of those entries the JSON held, if that is more than the bound.
    pub fn excess(&self) -> Option<(usize, usize)> {
        (self.count > MAX_ENV).then_some((self.count, MAX_ENV))
    }
}

impl<'de> Deserialize<'de> for Env {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Env, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Env;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Env, A::Error> {
                let (mut env, mut index) = (Env::default(), 0);
                while let Some(entry) = list.next_element::<EnvVar>()? {
                    if keys::ENV_READ.contains(&entry.name.as_str()) {
                        env.count += 1;
                        if env.count <= MAX_ENV {
                            env.kept.push(EnvVar { index, ..entry });
                        }
                    }
                    index += 1;
                }
                Ok(env)
            }
        }
        deserializer.deserialize_seq(Entries)
    }
}

/// One environment entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EnvVar {
    /// Its place among all entries of the container, from 0, which a patch needs.
    #[serde(skip)]
    pub index: usize,
    /// Name.
    pub name: String,
    /// Literal value.
    pub value: Option<String>,
    /// Taken from elsewhere.
    pub value_from: Option<EnvVarSource>,
}

/// Where the value of an environment entry is taken from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EnvVarSource {
    /// A field of the pod.
    pub field_ref: Option<FieldRef>,
}

/// A field of the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FieldRef {
    /// Its path.
    #[serde(deserialize_with = "null_as_default")]
    pub field_path: String,
}
