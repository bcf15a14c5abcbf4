//! The ConfigMap of the device plugin → the allocation policy of one node. Owns which of its configurations a node has, by
//! the rules of the plugin's own config-manager.

use std::collections::BTreeMap;

use super::{DEFAULT, allocation_policy};
use crate::capacity::gpu::AllocationPolicy;
use crate::capacity::verdict::{NoPluginConfig, SelectedBy};

/// The policy of the configuration that a node has. `data` is that of the ConfigMap, `label` the value of the node's label
/// `nvidia.com/device-plugin.config`, and `default` the key for nodes without it.
///
/// Without a default, the plugin takes the key `default`, and else the only key.
///
/// # Errors
/// No configuration is selected, or it cannot be read.
pub fn policy_of_node(
    data: &BTreeMap<String, String>,
    label: Option<&str>,
    default: Option<&str>,
) -> Result<AllocationPolicy, NoPluginConfig> {
    let (key, text) = selected(data, label, default)?;
    allocation_policy(text).map_err(|why| NoPluginConfig::Unreadable { key: key.to_owned(), why })
}

fn selected<'d>(
    data: &'d BTreeMap<String, String>,
    label: Option<&str>,
    default: Option<&str>,
) -> Result<(&'d str, &'d str), NoPluginConfig> {
    let of = |key: &str| data.get_key_value(key).map(|(key, text)| (key.as_str(), text.as_str()));
    // The plugin treats an empty label as none.
    let label = label.filter(|label| !label.is_empty()).map(|key| (key, SelectedBy::Label));
    let default = default.filter(|default| !default.is_empty()).map(|key| (key, SelectedBy::Default));
    if let Some((key, by)) = label.or(default) {
        return of(key).ok_or_else(|| NoPluginConfig::NoSuchKey { key: key.to_owned(), by });
    }
    let only = || data.iter().next().filter(|_| data.len() == 1).map(|(key, text)| (key.as_str(), text.as_str()));
    of(DEFAULT).or_else(only).ok_or(NoPluginConfig::NotSelected(data.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKED: &str = "version: v1\nflags:\n  plugin:\n    sharedDevicesAllocationPolicy: packed\n";
    const PLAIN: &str =
        "version: v1\nsharing:\n  timeSlicing:\n    resources:\n    - {name: nvidia.com/gpu, replicas: 4}\n";

    fn of(keys: &[(&str, &str)], label: Option<&str>, default: Option<&str>) -> Result<AllocationPolicy, String> {
        let data = keys.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect();
        policy_of_node(&data, label, default).map_err(|why| why.to_string())
    }

    #[test]
    fn the_label_of_the_node_selects_first_then_the_default_then_the_names_of_the_keys() {
        use AllocationPolicy::{Distributed, Packed};
        let both = [("a", PACKED), ("default", PLAIN)];
        for (keys, label, default, policy) in [
            (&both[..], Some("a"), Some("default"), Packed),
            (&both, None, Some("a"), Packed),
            (&both, Some(""), Some("a"), Packed),
            (&both, None, None, Distributed),
            (&both, None, Some(""), Distributed),
            (&both[..1], None, None, Packed),
            (&both[..1], Some("a"), None, Packed),
        ] {
            assert_eq!(of(keys, label, default), Ok(policy), "{keys:?} {label:?} {default:?}");
        }
    }

    #[test]
    fn what_selects_nothing_is_said_with_what_to_change() {
        let both = [("a", PACKED), ("b", PLAIN)];
        let bad = [("a", "{"), ("b", "flags: {plugin: {sharedDevicesAllocationPolicy: random}}")];
        for (keys, label, default, why) in [
            (&both[..], None, None, "it has 2 keys, and nothing selects one of them; set the label"),
            (&both, Some("gone"), Some("a"), "it has no key \"gone\", which the label nvidia.com/device-plugin.config"),
            (&both, None, Some("gone"), "it has no key \"gone\"; add the key, or name another one with"),
            (&[], None, None, "it has no keys"),
            (&bad, Some("a"), None, "key \"a\": "),
            (&bad, Some("b"), None, "key \"b\": flags.plugin.sharedDevicesAllocationPolicy: \"random\" is not one of"),
        ] {
            let refused = of(keys, label, default).expect_err(why);
            assert!(refused.starts_with(why), "{keys:?} {label:?} {default:?}: {refused}");
        }
    }
}
