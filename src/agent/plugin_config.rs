//! The device plugin's configuration from its ConfigMap: which allocation policy it names for this node. Owns the watch, and
//! when a conclusion is drawn and logged; which key is the node's is decided in [`crate::k8s::device_plugin`].

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;

use super::follow::WATCH;
use super::node::Node;
use crate::capacity::gpu::AllocationPolicy;
use crate::capacity::verdict::NoPluginConfig;
use crate::k8s::device_plugin;
use crate::state::watch::stream::{Event, Source};

/// Namespace and name of the ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigMapName {
    namespace: String,
    name: String,
}

impl FromStr for ConfigMapName {
    type Err = String;

    fn from_str(text: &str) -> Result<ConfigMapName, String> {
        // The name becomes a field selector, in which a comma has a meaning.
        let is_name = |part: &str| {
            !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c))
        };
        match text.split_once('/') {
            Some((namespace, name)) if is_name(namespace) && is_name(name) => {
                Ok(ConfigMapName { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            Some(_) | None => Err("it must be NAMESPACE/NAME, as in gpu-operator/time-slicing-config".to_owned()),
        }
    }
}

impl fmt::Display for ConfigMapName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Where the configuration is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The ConfigMap.
    pub map: ConfigMapName,
    /// The key for nodes without the label; `None` for the plugin's own choice.
    pub default: Option<String>,
}

/// What is known of the configuration of this node.
#[derive(Debug)]
pub(super) struct PluginConfig {
    config: Config,
    /// The label of the node; `None` before the node was seen.
    label: Option<Option<String>>,
    /// The data of the ConfigMap, if it exists; `None` before it was looked for.
    data: Option<Option<BTreeMap<String, String>>>,
    /// What followed last.
    concluded: Option<Result<AllocationPolicy, NoPluginConfig>>,
}

impl PluginConfig {
    pub(super) fn new(config: Config) -> PluginConfig {
        PluginConfig { config, label: None, data: None, concluded: None }
    }

    /// Takes the label of the node into account. Returns the policy if the conclusion is new; none is known if it is `None`.
    pub(super) fn labelled(&mut self, label: Option<&str>) -> Option<Option<AllocationPolicy>> {
        self.label = Some(label.map(str::to_owned));
        self.conclude()
    }

    fn read(&mut self, data: Option<BTreeMap<String, String>>) -> Option<Option<AllocationPolicy>> {
        self.data = Some(data);
        self.conclude()
    }

    fn conclude(&mut self) -> Option<Option<AllocationPolicy>> {
        let (label, data) = (self.label.as_ref()?.as_deref(), self.data.as_ref()?.as_ref());
        let of = |data| device_plugin::policy_of_node(data, label, self.config.default.as_deref());
        let concluded = data.ok_or(NoPluginConfig::Missing).and_then(of);
        if self.concluded.as_ref() == Some(&concluded) {
            return None;
        }
        match &concluded {
            Ok(policy) => tracing::info!("ConfigMap {} names the allocation policy {policy:?}", self.config.map),
            Err(why) => tracing::warn!(
                "ConfigMap {}: {why}; until then the allocation policy is inferred from placements",
                self.config.map
            ),
        }
        let policy = concluded.as_ref().ok().copied();
        self.concluded = Some(concluded);
        Some(policy)
    }
}

/// Follows the ConfigMap until cancelled.
pub(super) async fn follow(client: Client, map: ConfigMapName, node: Arc<Node>) {
    let read = |data: Option<BTreeMap<String, String>>| {
        node.update(|state| {
            let concluded = state.plugin_config.as_mut().and_then(|config| config.read(data));
            if let Some(policy) = concluded {
                state.observer.names(policy);
            }
        });
    };
    let mut listed = false;
    let tell = |event: Event<ConfigMap>| match event {
        Event::ListBegins => listed = false,
        Event::Listed(object) => {
            listed = true;
            read(Some(object.data.unwrap_or_default()));
        }
        Event::Applied(object) => read(Some(object.data.unwrap_or_default())),
        Event::ListEnds if !listed => read(None),
        Event::Deleted(_) => read(None),
        Event::ListEnds | Event::Heard => {}
    };
    let fields = format!("metadata.name={}", map.name);
    let source = Source { watch: WATCH, namespace: Some(map.namespace), ..Source::new(client, fields) };
    source.follow(tell).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> PluginConfig {
        PluginConfig::new(Config { map: "gpu-operator/plugin".parse().expect("a name"), default: None })
    }

    fn data(keys: &[(&str, &str)]) -> Option<BTreeMap<String, String>> {
        Some(
            keys.iter()
                .map(|(key, policy)| {
                    let text = format!("flags: {{plugin: {{sharedDevicesAllocationPolicy: {policy}}}}}");
                    ((*key).to_owned(), text)
                })
                .collect(),
        )
    }

    #[test]
    fn nothing_is_concluded_before_both_the_node_and_the_config_map_were_seen() {
        let packed = Some(Some(AllocationPolicy::Packed));
        let mut first = config();
        assert_eq!(first.labelled(None), None);
        assert_eq!(first.read(data(&[("a", "packed")])), packed);
        let mut other = config();
        assert_eq!(other.read(data(&[("a", "packed"), ("b", "distributed")])), None);
        assert_eq!(other.labelled(Some("a")), packed);
    }

    #[test]
    fn a_change_of_label_or_content_is_told_once_and_an_absence_is_no_policy() {
        let mut config = config();
        config.labelled(Some("a"));
        let both = || data(&[("a", "packed"), ("b", "distributed")]);
        assert_eq!(config.read(both()), Some(Some(AllocationPolicy::Packed)));
        assert_eq!(config.read(both()), None, "the watch shows it again");
        assert_eq!(config.labelled(Some("a")), None);
        assert_eq!(config.labelled(Some("b")), Some(Some(AllocationPolicy::Distributed)));
        assert_eq!(config.labelled(Some("gone")), Some(None));
        assert_eq!(config.labelled(Some("gone")), None);
        assert_eq!(config.read(None), Some(None), "another reason is logged");
        assert_eq!(config.read(data(&[("gone", "random")])), Some(None));
        assert_eq!(config.read(data(&[("gone", "packed")])), Some(Some(AllocationPolicy::Packed)));
    }

    #[test]
    fn a_config_map_is_named_by_namespace_and_name() {
        let map: ConfigMapName = "gpu-operator/time-slicing.config".parse().expect("a name");
        assert_eq!(map.to_string(), "gpu-operator/time-slicing.config");
        for text in ["plugin", "/plugin", "gpu-operator/", "a/b/c", "a/b,metadata.namespace=c", "a/B", ""] {
            assert!(text.parse::<ConfigMapName>().is_err_and(|why| why.contains("NAMESPACE/NAME")), "{text}");
        }
    }
}
