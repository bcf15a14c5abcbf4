//! Why the allocation policy in the device plugin's configuration is not known to a node agent. Owns the wording;
//! [`crate::k8s::device_plugin`] decides what applies.

use std::fmt;

use super::quoted;
use crate::keys::DEVICE_PLUGIN_CONFIG;

/// Why a ConfigMap names no allocation policy for a node. The policy is then inferred from what is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoPluginConfig {
    /// The ConfigMap does not exist.
    Missing,
    /// The key that the node selects is not in it.
    NoSuchKey {
        /// The key.
        key: String,
        /// What selects it.
        by: SelectedBy,
    },
    /// It has this many keys, and nothing selects one of them.
    NotSelected(usize),
    /// The configuration cannot be read.
    Unreadable {
        /// Its key.
        key: String,
        /// Why.
        why: String,
    },
}

/// What selects a key of the ConfigMap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelectedBy {
    /// The label of the node.
    Label,
    /// The default of the agent's options.
    Default,
}

impl fmt::Display for NoPluginConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoPluginConfig::Missing => {
                f.write_str("it does not exist; create it, or name another one with --plugin-config-map")
            }
            NoPluginConfig::NoSuchKey { key, by } => match by {
                SelectedBy::Label => write!(
                    f,
                    "it has no key {}, which the label {DEVICE_PLUGIN_CONFIG} of the node selects; add the key, or change the label",
                    quoted(key)
                ),
                SelectedBy::Default => {
                    write!(
                        f,
                        "it has no key {}; add the key, or name another one with --plugin-config-default",
                        quoted(key)
                    )
                }
            },
            NoPluginConfig::NotSelected(0) => f.write_str("it has no keys; add a configuration"),
            NoPluginConfig::NotSelected(keys) => write!(
                f,
                "it has {keys} keys, and nothing selects one of them; set the label {DEVICE_PLUGIN_CONFIG} of the node, or \
                 --plugin-config-default"
            ),
            NoPluginConfig::Unreadable { key, why } => write!(f, "key {}: {why}", quoted(key)),
        }
    }
}
