//! Pod object → what a node agent needs to know of a pod on its node. Owns which fields that takes beyond those of
//! [`PodObject`]: the ids of all containers.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

use super::agent_pod::without_runtime;
use super::object::PodObject;
use super::pod;
use crate::capacity::name::{Name, PodUid};
use crate::capacity::observation::owners::{LiveContainer, LivePod};
use crate::capacity::vram::Vram;
use crate::keys;

/// A Pod with the ids of its containers.
#[derive(Clone, Debug, Default)]
pub struct NodePod {
    /// The fields that vramguard reads everywhere.
    pub object: PodObject,
    /// The id of each container's present instance, by name, without the name of the runtime.
    pub ids: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for NodePod {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<NodePod, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let object = PodObject::deserialize(&value).map_err(de::Error::custom)?;
        let lists = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];
        let statuses = lists.iter().filter_map(|list| value["status"][list].as_array()).flatten();
        let ids = statuses.filter_map(|status| {
            let id = without_runtime(status["containerID"].as_str()?)?;
            Some((status["name"].as_str()?.to_owned(), id.as_str().to_owned()))
        });
        Ok(NodePod { object, ids: ids.collect() })
    }
}

impl k8s_openapi::Resource for NodePod {
    const API_VERSION: &'static str = "v1";
    const GROUP: &'static str = "";
    const KIND: &'static str = "Pod";
    const VERSION: &'static str = "v1";
    const URL_PATH_SEGMENT: &'static str = "pods";
    type Scope = k8s_openapi::NamespaceResourceScope;
}

impl k8s_openapi::Metadata for NodePod {
    type Ty = ObjectMeta;
    fn metadata(&self) -> &ObjectMeta {
        &self.object.metadata
    }
    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.object.metadata
    }
}

impl NodePod {
    /// Uid of the pod in the API.
    pub fn uid(&self) -> PodUid {
        pod::uid(&self.object.metadata)
    }

    /// The pod with its containers. `overhead` is what each process takes beside what it declares.
    pub fn live(&self, overhead: Vram) -> LivePod {
        let pod = pod::translate(&self.object, None, None);
        let mirrored = self.object.metadata.annotations.as_ref().and_then(|all| all.get(keys::MIRROR_POD));
        let containers = pod.containers.iter();
        let containers = containers.map(|container| {
            let id = self.ids.get(&container.name).map(Name::from);
            LiveContainer::of(&pod, container, id, overhead)
        });
        let uid = self.uid();
        LivePod {
            cgroup_uid: mirrored.map_or_else(|| uid.clone(), |uid| PodUid::from(uid.as_str())),
            uid,
            containers: containers.collect(),
            name: pod.name.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn live(pod: Value) -> LivePod {
        serde_json::from_value::<NodePod>(pod).expect("a pod").live(Vram::from_mib(720))
    }

    fn pod(annotations: &Value, requests: &Value) -> Value {
        json!({
            "metadata": {"name": "llm", "namespace": "ml", "uid": "u", "annotations": annotations},
            "spec": {"nodeName": "gpu-0", "containers": [
                {"name": "main", "resources": {"limits": requests, "requests": requests}},
                {"name": "side"},
            ]},
            "status": {"phase": "Running", "containerStatuses": [
                {"name": "main", "containerID": "containerd://4c01"},
                {"name": "side"},
            ]},
        })
    }

    #[test]
    fn a_container_counts_with_its_request_or_else_with_its_declaration_and_overhead() {
        let gpu = json!({"nvidia.com/gpu": "1"});
        let requested = json!({"nvidia.com/gpu": "1", "vramguard.dev/vram": "8912Mi"});
        for (annotations, requests, demand) in [
            (json!({"vramguard.dev/vram": "8Gi"}), &requested, Some(8_912)),
            (json!({"vramguard.dev/vram": "8Gi"}), &gpu, Some(8_192 + 720)),
            (json!({"vramguard.dev/vram.main": "8Gi", "vramguard.dev/processes": "2"}), &gpu, Some(8_192 + 2 * 720)),
            (json!({"nvidia.com/container.main.gpu-memory.request": "4Gi"}), &gpu, Some(4_096 + 720)),
            (json!({"vramguard.dev/vram": "much"}), &gpu, None),
            (json!({}), &gpu, None),
        ] {
            let live = live(pod(&annotations, requests));
            let main = &live.containers[0];
            assert_eq!(main.demand.map(Vram::mib), demand, "{annotations} {requests}");
            assert_eq!((main.id.as_deref(), main.annotation.as_str()), (Some("4c01"), "vramguard.dev/vram"));
            assert_eq!((live.containers[1].demand, live.containers[1].id.clone()), (None, None));
        }
    }

    #[test]
    fn a_pod_with_two_gpu_containers_declares_for_each() {
        let mut pod = pod(&json!({}), &json!({"nvidia.com/gpu": "1"}));
        pod["spec"]["containers"][1] = pod["spec"]["containers"][0].clone();
        pod["spec"]["containers"][1]["name"] = json!("side");
        let annotations: Vec<String> = live(pod).containers.iter().map(|one| one.annotation.to_string()).collect();
        assert_eq!(annotations, ["vramguard.dev/vram.main", "vramguard.dev/vram.side"]);
    }

    #[test]
    fn a_mirror_pod_has_the_uid_of_its_static_pod_in_its_cgroups() {
        let mirror = json!({"kubernetes.io/config.mirror": "8b2a4ef4e9c1d0d8d9f0a1b2c3d4e5f6"});
        let live = live(pod(&mirror, &json!({})));
        assert_eq!((live.uid, live.cgroup_uid), ("u".into(), "8b2a4ef4e9c1d0d8d9f0a1b2c3d4e5f6".into()));
    }
}
