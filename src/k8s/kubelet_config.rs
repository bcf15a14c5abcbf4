//! The kubelet's configuration file → its topology manager policy. Owns the one field that is read.

use serde::Deserialize;

/// How the kubelet's topology manager chooses devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopologyPolicy {
    /// The configuration cannot be read, for this reason.
    Unknown(String),
    /// `none`: the kubelet asks the device plugin about each container.
    None,
    /// Another policy: the kubelet may choose devices by NUMA node and not ask.
    Aligned(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Configuration {
    kind: String,
    topology_manager_policy: Option<String>,
}

/// Reads the policy from a `KubeletConfiguration`.
///
/// # Errors
/// The text is no `KubeletConfiguration`. The error says what was found.
pub fn topology_policy(text: &str) -> Result<TopologyPolicy, String> {
    let configuration: Configuration = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    if configuration.kind != "KubeletConfiguration" {
        return Err(format!("kind is {:?}, and KubeletConfiguration was expected", configuration.kind));
    }
    Ok(match configuration.topology_manager_policy.as_deref() {
        None | Some("" | "none") => TopologyPolicy::None,
        Some(other) => TopologyPolicy::Aligned(other.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(field: &str) -> Result<TopologyPolicy, String> {
        topology_policy(&format!("kind: KubeletConfiguration\nstaticPodPath: /etc/kubernetes/manifests\n{field}"))
    }

    #[test]
    fn a_policy_that_is_not_set_is_none() {
        assert_eq!(policy(""), Ok(TopologyPolicy::None));
        assert_eq!(policy("topologyManagerPolicy: none"), Ok(TopologyPolicy::None));
    }

    #[test]
    fn every_other_policy_may_choose_devices_itself() {
        let aligned = TopologyPolicy::Aligned("single-numa-node".to_owned());
        assert_eq!(policy("topologyManagerPolicy: single-numa-node"), Ok(aligned));
    }

    #[test]
    fn a_file_of_another_kind_is_no_answer() {
        let error = topology_policy("kind: Pod").unwrap_err();
        assert_eq!(error, "kind is \"Pod\", and KubeletConfiguration was expected");
        assert!(topology_policy("- a").is_err() && topology_policy("").is_err());
    }
}
