//! Pod object → what steering needs to know of a pod on its node. Owns the order of its containers, and the phases.

use super::object::PodObject;
use super::pod;
use crate::capacity::name::PodUid;
use crate::capacity::node::holder::Holder;
use crate::capacity::pod::PodName;
use crate::capacity::steering::{GpuContainer, Phase};

/// A pod, apart from what the ledger of its node adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRecord {
    /// The uid of the pod.
    pub uid: PodUid,
    /// Namespace and name.
    pub name: PodName,
    /// Its GPU containers in the order in which the kubelet allocates.
    pub containers: Vec<GpuContainer>,
    /// How far the pod is.
    pub phase: Phase,
    /// What it holds on its node; `None` if it requests neither a GPU nor VRAM.
    pub holder: Option<Holder>,
}

impl PodRecord {
    /// Translates a pod.
    pub fn of(object: &PodObject) -> PodRecord {
        let translated = pod::translate(object, None, None);
        let containers = translated.containers.into_iter().flat_map(|container| {
            let (name, role) = (container.name, container.role);
            container.gpus.into_iter().map(move |(resource, devices)| GpuContainer {
                name: name.as_str().into(),
                role,
                resource,
                devices,
            })
        });
        let phase = match object.status.phase.as_deref() {
            Some("Succeeded" | "Failed") => Phase::Ended,
            // A pod whose containers crash stays in this phase.
            Some("Running") => Phase::Started,
            Some(_) | None => Phase::Pending,
        };
        PodRecord {
            uid: pod::uid(&object.metadata),
            name: translated.name,
            containers: containers.collect(),
            phase,
            holder: pod::would_hold(object),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::capacity::pod::demand::Role;

    fn record(status: &serde_json::Value) -> PodRecord {
        let container =
            |name: &str, gpus: u64| json!({"name": name, "resources": {"limits": {"nvidia.com/gpu": gpus}}});
        let mut sidecar = container("proxy", 1);
        sidecar["restartPolicy"] = json!("Always");
        let object = json!({
            "metadata": {"namespace": "ml", "name": "p", "uid": "u"},
            "spec": {
                "nodeName": "n",
                "initContainers": [container("fetch", 2), sidecar],
                "containers": [{"name": "beside"}, container("main", 1)],
            },
            "status": status,
        });
        PodRecord::of(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn gpu_containers_are_in_the_order_in_which_the_kubelet_allocates() {
        let record = record(&json!({"phase": "Pending"}));
        let containers: Vec<(&str, Role, u64)> =
            record.containers.iter().map(|container| (&*container.name, container.role, container.devices)).collect();
        assert_eq!(containers, [("fetch", Role::Init, 2), ("proxy", Role::Sidecar, 1), ("main", Role::App, 1)]);
        assert!(record.holder.is_some());
    }

    #[test]
    fn a_pod_that_runs_has_started_and_one_that_failed_has_ended() {
        let phase = |text: &str| record(&json!({"phase": text})).phase;
        assert_eq!(phase("Running"), Phase::Started);
        assert_eq!((phase("Failed"), phase("Succeeded")), (Phase::Ended, Phase::Ended));
        assert_eq!((phase("Pending"), record(&json!({})).phase), (Phase::Pending, Phase::Pending));
    }
}
