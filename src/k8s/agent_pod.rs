//! Pod object → [`AgentPod`]. Owns how a pod is recognised in which an agent runs that names its pod: the container of the
//! agent has the variable [`keys::AGENT_POD_UID`], without which the agent would not know its pod.

use super::object::{ContainerStatus, PodObject};
use crate::capacity::name::Name;
use crate::capacity::node::presence::{AgentPod, Instance};
use crate::keys;

/// The most bytes of an id or a reason that are kept. Ids of container runtimes have 64 digits.
const MAX_TEXT: usize = 128;

/// The name of the container in which an agent runs; `None` if the pod has none that names its pod.
pub fn container_of(pod: &PodObject) -> Option<&str> {
    let names_pod = |entry: &super::object::EnvVar| entry.name == keys::AGENT_POD_UID;
    let container = pod.spec.containers.iter().find(|container| container.env.iter().flatten().any(names_pod))?;
    Some(&container.name)
}

/// The pod of an agent as the API server shows it; `None` if it is another pod or has no node. In one that has ended, no
/// container runs.
pub fn agent_pod(pod: &PodObject) -> Option<AgentPod> {
    let node = pod.spec.node_name.as_deref().filter(|node| !node.is_empty())?;
    let container = container_of(pod)?;
    let status = pod.status.containers.iter().find(|status| status.name == container);
    let container = match pod.status.phase.as_deref() {
        // The kubelet that evicts a pod may leave the status of its containers as it was.
        Some(phase @ ("Succeeded" | "Failed")) => {
            Instance::NotRunning(cut(pod.status.reason.as_deref().unwrap_or(phase)))
        }
        _ => status.map_or_else(|| Instance::NotRunning(Name::default()), instance),
    };
    Some(AgentPod { node: node.into(), deleting: pod.metadata.deletion_timestamp.is_some(), container })
}

fn instance(status: &ContainerStatus) -> Instance {
    let id = status.id.as_deref().and_then(without_runtime);
    match (&status.state.running, id) {
        (Some(_), Some(id)) => Instance::Running(id),
        _ => {
            let reason = status.state.waiting.as_ref().or(status.state.terminated.as_ref());
            Instance::NotRunning(reason.map(|why| cut(&why.reason)).unwrap_or_default())
        }
    }
}

/// An id of a container without the name of the runtime, as in `containerd://4c01…`.
pub fn without_runtime(id: &str) -> Option<Name> {
    id.split_once("://").map(|(_runtime, id)| cut(id)).filter(|id| !id.is_empty())
}

fn cut(text: &str) -> Name {
    let end = (0..=MAX_TEXT.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    Name::from(&text[..end])
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(state: &Value) -> Value {
        json!({
            "metadata": {"namespace": "vramguard-agent", "name": "agent-x", "uid": "u"},
            "spec": {"nodeName": "n", "containers": [
                {"name": "sidecar", "env": [{"name": "POD_UID", "value": "u"}]},
                {"name": "agent", "env": [
                    {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                    {"name": "VRAMGUARD_AGENT_POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
                ]},
            ]},
            "status": {"phase": "Running", "containerStatuses": [
                {"name": "sidecar", "containerID": "containerd://51de", "state": {"running": {}}},
                {"name": "agent", "containerID": "containerd://4c01", "restartCount": 3, "state": state},
            ]},
        })
    }

    fn read(pod: Value) -> Option<AgentPod> {
        agent_pod(&serde_json::from_value(pod).expect("a pod"))
    }

    #[test]
    fn the_container_that_has_the_uid_of_its_pod_is_the_agent() {
        let running = pod(&json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}}));
        let object: PodObject = serde_json::from_value(running.clone()).expect("a pod");
        assert_eq!(container_of(&object), Some("agent"));
        let expected = AgentPod { node: "n".into(), deleting: false, container: Instance::Running("4c01".into()) };
        assert_eq!(read(running.clone()), Some(expected.clone()));

        let mut deleted = running.clone();
        deleted["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(read(deleted), Some(AgentPod { deleting: true, ..expected }));

        let mut other = running.clone();
        other["spec"]["containers"][1]["env"].as_array_mut().expect("a list").pop();
        assert_eq!(read(other), None, "any pod may have a POD_UID");
        for (field, value) in [("nodeName", json!("")), ("nodeName", Value::Null)] {
            let mut unbound = running.clone();
            unbound["spec"][field] = value;
            assert_eq!(read(unbound), None);
        }
        let mut evicted = running;
        evicted["status"]["phase"] = json!("Failed");
        let ended = |pod: &Value| read(pod.clone()).expect("an agent's pod").container;
        assert_eq!(ended(&evicted), Instance::NotRunning("Failed".into()));
        evicted["status"]["reason"] = json!("Evicted");
        assert_eq!(ended(&evicted), Instance::NotRunning("Evicted".into()));
    }

    #[test]
    fn a_container_runs_only_if_its_state_says_so_and_names_the_instance() {
        let instance = |pod: Value| read(pod).expect("an agent's pod").container;
        let not_running = |why: &str| Instance::NotRunning(why.into());
        for (state, why) in [
            (json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}), "CrashLoopBackOff"),
            (json!({"waiting": {}}), ""),
            (json!({"terminated": {"exitCode": 137, "reason": "Error"}}), "Error"),
            (json!({}), ""),
            (Value::Null, ""),
        ] {
            assert_eq!(instance(pod(&state)), not_running(why), "the id is that of the instance that ended");
        }
        let mut unnamed = pod(&json!({"running": {}}));
        for id in [Value::Null, json!(""), json!("4c01"), json!("containerd://")] {
            unnamed["status"]["containerStatuses"][1]["containerID"] = id;
            assert_eq!(instance(unnamed.clone()), not_running(""));
        }
        let mut new = pod(&Value::Null);
        new["status"] = json!({"phase": "Pending"});
        assert_eq!(instance(new), not_running(""));
    }
}
