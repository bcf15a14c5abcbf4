//! The allocation policy in the device plugin's configuration: how it chooses the GPU of a replica.

use serde::Deserialize;

use crate::capacity::gpu::AllocationPolicy;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    flags: Flags,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Flags {
    plugin: PluginFlags,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PluginFlags {
    shared_devices_allocation_policy: Option<String>,
}

/// The policy that a configuration of the device plugin names, or the plugin's default.
///
/// # Errors
/// The text is not YAML, or names a policy that the plugin does not have.
pub fn allocation_policy(text: &str) -> Result<AllocationPolicy, String> {
    let config: Option<Config> = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    match config.unwrap_or_default().flags.plugin.shared_devices_allocation_policy.as_deref() {
        None | Some("distributed") => Ok(AllocationPolicy::Distributed),
        Some("packed") => Ok(AllocationPolicy::Packed),
        Some(other) => {
            Err(format!("flags.plugin.sharedDevicesAllocationPolicy: {other:?} is not one of distributed, packed"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_names_the_policy_or_leaves_it_at_the_default() {
        let of =
            |policy: &str| format!("version: v1\nflags:\n  plugin:\n    sharedDevicesAllocationPolicy: {policy}\n");
        assert_eq!(allocation_policy(&of("packed")), Ok(AllocationPolicy::Packed));
        assert_eq!(allocation_policy(&of("distributed")), Ok(AllocationPolicy::Distributed));
        for text in ["", "version: v1\n", "version: v1\nsharing: {timeSlicing: {resources: []}}\n"] {
            assert_eq!(allocation_policy(text), Ok(AllocationPolicy::Distributed), "{text:?}");
        }
        assert!(allocation_policy(&of("random")).is_err_and(|why| why.contains("\"random\" is not one of")));
        assert!(allocation_policy("{").is_err());
    }
}
