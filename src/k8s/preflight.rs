//! Pods and ledgers → what [`crate::capacity::preflight`] decides by. Owns how a pod of NVIDIA's device plugin and one of
//! the agent are recognised.

use serde_json::Value;

use super::gpu_ledger::GpuLedger;
use crate::capacity::cluster::REPORT_DEADLINE;
use crate::capacity::pod::PodName;
use crate::capacity::preflight::{Agent, Plugin, Reported};
use crate::capacity::time::Moment;

/// A pod that steering needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// NVIDIA's device plugin.
    Plugin(Plugin),
    /// An agent.
    Agent(Agent),
}

/// The part that a pod is, and the node that it runs on; `None` if it is another pod, or does not run.
///
/// The GPU Operator, the stand-alone chart and the static manifests name their pods differently. A container is the device
/// plugin's if it runs the program `nvidia-device-plugin`, or has one of the names that these give it.
pub fn part_of(pod: &Value) -> Option<(String, Part)> {
    let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let node = Some(text("/spec/nodeName")).filter(|node| !node.is_empty())?.to_owned();
    if text("/status/phase") != "Running" {
        return None;
    }
    let containers = pod.pointer("/spec/containers")?.as_array()?;
    if let Some(agent) = containers.iter().find(|container| is_agent(container)) {
        let has = |flag: &str| arguments(agent).any(|argument| argument == flag);
        return Some((node, Part::Agent(Agent { steers: has("--steer"), takes_over: has("--takeover") })));
    }
    let plugin = containers.iter().find(|container| is_device_plugin(container))?;
    let flag = arguments(plugin).find_map(|argument| argument.strip_prefix("--kubelet-socket="));
    let variables = plugin["env"].as_array().into_iter().flatten();
    let mut variable = variables.filter(|variable| variable["name"] == "KUBELET_SOCKET");
    let socket = flag.or_else(|| variable.next()?["value"].as_str());
    let image = plugin["image"].as_str().unwrap_or_default();
    let name = PodName { namespace: text("/metadata/namespace").into(), name: text("/metadata/name").into() };
    Some((node, Part::Plugin(Plugin { pod: name, version: version(image), socket: socket.map(str::to_owned) })))
}

fn arguments(container: &Value) -> impl Iterator<Item = &str> {
    ["command", "args"]
        .into_iter()
        .flat_map(|field| container[field].as_array().into_iter().flatten())
        .filter_map(Value::as_str)
}

fn is_agent(container: &Value) -> bool {
    let image = container["image"].as_str().unwrap_or_default();
    repository(image).ends_with("vramguard") && arguments(container).any(|argument| argument == "agent")
}

fn is_device_plugin(container: &Value) -> bool {
    // The operator starts the plugin by a script, and the plugin shares a pod with containers of other programs.
    let name = container["name"].as_str().unwrap_or_default();
    let program = arguments(container).any(|argument| argument.rsplit('/').next() == Some("nvidia-device-plugin"));
    let named = ["nvidia-device-plugin", "nvidia-device-plugin-ctr"].contains(&name);
    program || named
}

/// An image without its tag and digest.
fn repository(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or_default();
    match image.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => image,
    }
}

/// The version in the tag of an image, such as `v0.17.1-ubi9`.
fn version(image: &str) -> Option<(u32, u32)> {
    let without_digest = image.split('@').next()?;
    let tag = without_digest.strip_prefix(repository(image))?.strip_prefix(':')?;
    let mut numbers = tag.trim_start_matches('v').split(|other: char| !other.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

impl GpuLedger {
    /// What the agent's report says about steering; `None` if there is no report. Whether it is in doubt, a ledger alone
    /// does not tell.
    pub fn steering(&self, now: Moment) -> Option<Reported> {
        let section = self.agent_section()?;
        let stale = self.reported().is_none_or(|at| at.until(now) > REPORT_DEADLINE);
        Some(Reported { stale, not_steered: section["notSteered"].as_str().map(str::to_owned), doubt: None })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(container: &Value) -> Value {
        json!({
            "metadata": {"namespace": "gpu", "name": "p"},
            "spec": {"nodeName": "n", "containers": [{"name": "config-manager"}, container]},
            "status": {"phase": "Running"},
        })
    }

    /// Version and socket of a device plugin.
    type Seen = (Option<(u32, u32)>, Option<String>);

    fn plugin(container: &Value) -> Option<Seen> {
        match part_of(&pod(container)) {
            Some((node, Part::Plugin(plugin))) if node == "n" => Some((plugin.version, plugin.socket)),
            _ => None,
        }
    }

    #[test]
    fn a_device_plugin_of_chart_and_operator_is_recognised_with_its_socket() {
        let chart = json!({"name": "nvidia-device-plugin-ctr", "image": "nvcr.io/nvidia/k8s-device-plugin:v0.17.4",
            "command": ["nvidia-device-plugin"], "env": [{"name": "KUBELET_SOCKET", "value": "/s"}]});
        assert_eq!(plugin(&chart), Some((Some((0, 17)), Some("/s".to_owned()))));
        let operator = json!({"name": "nvidia-device-plugin", "image": "nvcr.io/nvidia/k8s-device-plugin@sha256:00",
            "command": ["/bin/bash", "-c"], "args": ["/bin/entrypoint.sh"]});
        assert_eq!(plugin(&operator), Some((None, None)));
        let flag = json!({"name": "x", "image": "registry:5000/k8s-device-plugin:v0.18.0-ubi9",
            "args": ["/usr/bin/nvidia-device-plugin", "--kubelet-socket=/f"]});
        assert_eq!(plugin(&flag), Some((Some((0, 18)), Some("/f".to_owned()))));
        assert_eq!(plugin(&json!({"name": "main", "image": "registry:5000/other"})), None);
    }

    #[test]
    fn an_agent_is_recognised_with_what_it_was_told() {
        let agent = |arguments: &Value| part_of(&pod(&json!({"image": "x/vramguard:1", "args": arguments})));
        let told = |steers, takes_over| Some(("n".to_owned(), Part::Agent(Agent { steers, takes_over })));
        assert_eq!(agent(&json!(["agent", "--steer", "--takeover"])), told(true, true));
        assert_eq!(agent(&json!(["agent", "--steer"])), told(true, false));
        assert_eq!(agent(&json!(["agent"])), told(false, false));
        assert_eq!(agent(&json!(["serve"])), None);
    }

    #[test]
    fn a_pod_that_does_not_run_is_no_part() {
        let mut pending = pod(&json!({"image": "vramguard", "args": ["agent"]}));
        assert!(part_of(&pending).is_some());
        pending["status"]["phase"] = json!("Pending");
        assert_eq!(part_of(&pending), None);
    }
}
