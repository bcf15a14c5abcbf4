//! The configuration of the NVIDIA device plugin, in and out. Owns how a plan becomes a ConfigMap, node labels and a
//! patch of the GPU Operator's ClusterPolicy; [`lint`] owns the plugin's rules for an existing one.
//!
//! The schema is that of NVIDIA/k8s-device-plugin `api/config/v1`.

use std::fmt::Write;

use serde_json::{Value, json};

mod config_map;
pub mod fleet;
pub mod lint;
mod policy;

pub use config_map::policy_of_node;
pub use policy::allocation_policy;

/// Name of the config that nodes without a label get.
pub const DEFAULT: &str = "default";

/// Which of the plugin's two ways of sharing a config uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// `sharing.timeSlicing`.
    TimeSlicing,
    /// `sharing.mps`.
    Mps,
}

impl Method {
    /// Its field in `sharing`.
    pub fn field(self) -> &'static str {
        match self {
            Method::TimeSlicing => "timeSlicing",
            Method::Mps => "mps",
        }
    }
}

/// One named config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedConfig {
    /// Name in the ConfigMap and in the label of its nodes.
    pub name: String,
    /// How GPUs are shared.
    pub method: Method,
    /// Whether shared GPUs get the resource name `nvidia.com/gpu.shared`.
    pub rename_by_default: bool,
    /// Resource and replicas, at least 2, of each shared resource; empty if no GPU is shared.
    pub resources: Vec<(String, u32)>,
}

impl NamedConfig {
    /// The config as the plugin reads it.
    ///
    /// `failRequestsGreaterThanOne` is on, because two replicas may be one GPU twice.
    pub fn text(&self) -> String {
        let mut text = "version: v1\n".to_owned();
        if self.resources.is_empty() {
            return text;
        }
        let rename = self.rename_by_default;
        let _ = write!(
            text,
            "sharing:\n  {}:\n    renameByDefault: {rename}\n    failRequestsGreaterThanOne: true\n    resources:\n",
            self.method.field()
        );
        for (resource, replicas) in &self.resources {
            let _ = writeln!(text, "    - name: {}\n      replicas: {replicas}", scalar(resource));
        }
        text
    }
}

/// Writes the ConfigMap with all configs, as YAML.
pub fn config_map(name: &str, namespace: &str, configs: &[NamedConfig]) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {}\n  namespace: {}\ndata:\n",
        scalar(name),
        scalar(namespace)
    );
    for config in configs {
        let _ = writeln!(text, "  {}: |", scalar(&config.name));
        for line in config.text().lines() {
            let _ = writeln!(text, "    {line}");
        }
    }
    text
}

/// The merge patch of the GPU Operator's ClusterPolicy that makes the device plugin use the ConfigMap.
pub fn cluster_policy_patch(config_map: &str) -> Value {
    json!({"spec": {"devicePlugin": {"config": {"name": config_map, "default": DEFAULT}}}})
}

/// A YAML scalar for a text: plain if no reader could take it for something else, else in quotes.
fn scalar(text: &str) -> String {
    let tame = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.contains(['-', '.', '/'])
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-./".contains(c));
    if tame || text == DEFAULT { text.to_owned() } else { json!(text).to_string() }
}

#[cfg(test)]
mod tests;
