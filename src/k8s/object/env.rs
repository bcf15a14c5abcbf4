//! The environment of a container, reduced to the variables that vramguard reads. Owns which entries are kept, and
//! their positions; [`super::bounds`] owns how many.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};

use super::bounds::MAX_ENV;
use super::null_as_default;
use crate::keys;

/// The entries of an environment whose names are in [`keys::ENV_READ`], in order. An environment that has only other
/// entries is empty here, which differs from no environment.
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
    /// Number of entries in the JSON with a name in [`keys::ENV_READ`], and the bound, if the bound is exceeded.
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

/// One entry of an environment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EnvVar {
    /// Index among all entries of the container, from 0; the path of a JSON Patch needs it.
    #[serde(skip)]
    pub index: usize,
    /// Name of the variable.
    pub name: String,
    /// Literal value; absent if the value has a source.
    pub value: Option<String>,
    /// Source of the value, instead of a literal.
    pub value_from: Option<EnvVarSource>,
}

/// Source of the value of an environment entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EnvVarSource {
    /// A field of the pod; `None` for every other kind of source.
    pub field_ref: Option<FieldRef>,
}

/// A reference to a field of the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FieldRef {
    /// Path of the field, such as `metadata.name`.
    #[serde(deserialize_with = "null_as_default")]
    pub field_path: String,
}
