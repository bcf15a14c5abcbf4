//! Guarded pods that have no node yet, as the watch reported them: what the guard needs to review a binding without
//! reading its pod. Owns what is cached and how much of it; the watch adds pods and removes them.
//!
//! What a decision takes of a pod cannot change while the pod has no node. The API fixes its uid and the resources and
//! environment of its containers; admission policy fixes its declarations and vramguard's annotations. The API server
//! checks by itself that the pod exists, is unbound and is the one meant, when it commits a Binding that carries the
//! uid. So a cached pod is as good as a read, and a pod that is not cached is read.

use std::collections::BTreeMap;

use crate::capacity::name::PodUid;
use crate::capacity::pod::Pod;
use crate::capacity::pod::placement::Placement;
use crate::capacity::pod::software::Software;
use crate::k8s::object::PodObject;
use crate::k8s::pod::{self, Guarded, Stage};
use crate::keys;

/// Pods that are cached; a further pod displaces another one. kube-scheduler handles fewer pods at a time.
const MAX_PODS: usize = 2048;
/// Containers of a cached pod. A pod with more of them is read when it is bound.
const MAX_CONTAINERS: usize = 8;
/// Bytes of text of a cached pod, names and values alike. With [`MAX_PODS`] that makes 4 MiB.
const MAX_TEXT: usize = 2048;

impl Guarded {
    /// Drops what a binding does not need. `None` if the rest is too large to cache.
    fn kept(mut self) -> Option<Guarded> {
        self.pod.placement = Placement { node_name: self.pod.placement.node_name, ..Placement::default() };
        self.pod.unknown_annotations = Vec::new();
        self.pod.bounded_by = BTreeMap::new();
        (self.pod.declarations.framework, self.pod.declarations.frameworks) = (None, BTreeMap::new());
        for container in &mut self.pod.containers {
            container.software = Software::default();
            container.env.retain(|entry| entry.name == keys::ENV_VRAM_MIB);
        }
        let fits = self.pod.containers.len() <= MAX_CONTAINERS && text(&self.pod) <= MAX_TEXT;
        fits.then_some(self)
    }
}

/// Bytes of text in a pod, approximately.
fn text(pod: &Pod) -> usize {
    let containers = pod.containers.iter().map(|container| {
        let gpus: usize = container.gpus.iter().map(|(resource, _)| resource.0.len()).sum();
        let env = container.env.iter().map(|entry| {
            let optional = [&entry.value, &entry.field].into_iter().flatten().map(String::len).sum::<usize>();
            entry.name.len() + optional
        });
        container.name.len() + gpus + env.sum::<usize>()
    });
    let declarations = &pod.declarations;
    let foreign = declarations.foreign.values().flatten();
    let written = declarations.pod.iter().chain(declarations.containers.values()).chain(foreign);
    let written = written.map(|written| written.key.len() + written.text.len());
    let model = declarations.model.as_ref().map_or(0, String::len);
    let reserved: usize = pod.reserved_annotations.iter().map(String::len).sum();
    containers.sum::<usize>() + written.sum::<usize>() + model + reserved
}

/// The cached pods.
#[derive(Debug, Default)]
pub struct Unbound(BTreeMap<PodUid, Guarded>);

impl Unbound {
    /// Notes a pod that a list or watch delivered. An unschedulable pod is not cached, because it may wait for days.
    pub fn see(&mut self, object: &PodObject, stage: &Stage) {
        let uid = pod::uid(&object.metadata);
        let wanted = *stage == Stage::Unbound && !pod::is_unschedulable(object);
        match wanted.then(|| Guarded::of(object)?.kept()).flatten() {
            Some(guarded) => {
                if self.0.len() >= MAX_PODS && !self.0.contains_key(&uid) {
                    // The first in the order of uids, which is random.
                    self.0.pop_first();
                }
                self.0.insert(uid, guarded);
            }
            None => self.forget(&uid),
        }
    }

    /// Removes a pod that was deleted or has a node.
    pub fn forget(&mut self, uid: &PodUid) {
        self.0.remove(uid);
    }

    /// Keeps only the pods that `listed` accepts.
    pub fn retain(&mut self, listed: impl Fn(&PodUid) -> bool) {
        self.0.retain(|uid, _| listed(uid));
    }

    /// The cached pod with this uid.
    pub fn get(&self, uid: &PodUid) -> Option<&Guarded> {
        self.0.get(uid)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(uid: &str, annotations: Value, spec: Value) -> PodObject {
        let resources = json!({ "nvidia.com/gpu": "1", "vramguard.dev/vram": "8Gi" });
        let mut pod = json!({
            "metadata": { "name": uid, "namespace": "ml", "uid": uid, "annotations": annotations },
            "spec": { "containers": [{ "name": "main", "resources": { "limits": resources, "requests": resources } }] },
        });
        pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(pod).unwrap()
    }

    fn see(unbound: &mut Unbound, object: &PodObject) {
        unbound.see(object, &pod::stage(object));
    }

    fn is_kept(object: &PodObject) -> bool {
        let mut unbound = Unbound::default();
        see(&mut unbound, object);
        unbound.get(&pod::uid(&object.metadata)).is_some()
    }

    #[test]
    fn a_guarded_pod_is_kept_until_it_has_a_node() {
        let (mut unbound, uid) = (Unbound::default(), PodUid::from("a"));
        see(&mut unbound, &pod("a", json!({}), json!({})));
        assert_eq!(unbound.get(&uid).unwrap().holder.request.unwrap().mib(), 8192);
        see(&mut unbound, &pod("a", json!({}), json!({ "nodeName": "gpu-0" })));
        assert_eq!(unbound.get(&uid), None);
    }

    #[test]
    fn what_is_kept_of_pods_is_bounded() {
        let tolerations = json!({ "tolerations": [{ "key": "x".repeat(100_000), "operator": "Exists" }] });
        assert!(is_kept(&pod("a", json!({ "vramguard.dev/vram": "8Gi" }), tolerations)), "placement is not kept");
        assert!(!is_kept(&pod("a", json!({ "vramguard.dev/model": "x".repeat(MAX_TEXT) }), json!({}))));
        let many = vec![json!({ "name": "beside" }); MAX_CONTAINERS];
        assert!(!is_kept(&pod("a", json!({}), json!({ "initContainers": many }))));
        let mut unbound = Unbound::default();
        for number in 0..MAX_PODS + 10 {
            see(&mut unbound, &pod(&format!("{number:05}"), json!({}), json!({})));
        }
        assert_eq!(unbound.0.len(), MAX_PODS);
        assert!(unbound.get(&PodUid::from(format!("{:05}", MAX_PODS + 9))).is_some(), "a new pod is kept");
    }

    #[test]
    fn what_a_container_runs_is_not_kept() {
        let (mut unbound, uid) = (Unbound::default(), PodUid::from("a"));
        let resources = json!({ "nvidia.com/gpu": "1", "vramguard.dev/vram": "8Gi" });
        let long = "x".repeat(MAX_TEXT);
        let env = json!([
            { "name": "VRAMGUARD_VRAM_MIB", "value": "8192" }, { "name": "PYTORCH_CUDA_ALLOC_CONF", "value": long },
        ]);
        let container = json!({
            "name": "main", "image": "vllm/vllm-openai", "args": ["--model", long], "env": env,
            "resources": { "limits": resources, "requests": resources },
        });
        let annotations =
            json!({ "vramguard.dev/framework": "x".repeat(MAX_TEXT), "vramguard.dev/bounded-by.main": "plan" });
        see(&mut unbound, &pod("a", annotations, json!({ "containers": [container] })));
        let kept = &unbound.get(&uid).expect("the rest is small").pod;
        assert_eq!(kept.containers[0].software, Software::default());
        let env: Vec<&str> = kept.containers[0].env.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(env, ["VRAMGUARD_VRAM_MIB"], "a binding writes the share of the GPU by it");
    }

    #[test]
    fn a_pod_that_waits_for_room_is_not_kept() {
        let mut waits = pod("a", json!({}), json!({}));
        let condition = json!([{ "type": "PodScheduled", "status": "False", "reason": "Unschedulable" }]);
        waits.status = serde_json::from_value(json!({ "conditions": condition })).unwrap();
        assert!(!is_kept(&waits));
    }
}
