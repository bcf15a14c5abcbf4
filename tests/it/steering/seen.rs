//! What the kubelet says of the pods: its PodResources API, its checkpoint and the status of each pod.
//!
//! Owns the verdict on one pod, for which all three must agree with its annotation.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, ensure};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::Value;
use vramguard::agent::kubelet::messages::ListPodResourcesResponse;

use super::wanted::{Role, Wanted};

/// Ids of the devices of `nvidia.com/gpu` by pod and container.
pub(super) type Devices = BTreeMap<(String, String), BTreeSet<String>>;

/// Why the kubelet rejects a pod while the node has no healthy devices, or while it cannot ask for them.
const NO_DEVICES: [&str; 2] = ["UnexpectedAdmissionError", "OutOfnvidia.com/gpu"];

/// What became of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Each of its GPU containers is on the reserved GPU.
    Placed,
    /// A container is on another GPU.
    Elsewhere(Misplaced),
    /// The kubelet rejected it, for this reason.
    Rejected(String),
}

/// A pod of which a container is on another GPU than the reserved one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Misplaced {
    pub pod: String,
    /// The devices of each container that is not on the reserved GPU.
    pub devices: BTreeMap<String, BTreeSet<String>>,
    /// The pod was bound at or after this time.
    pub from: Timestamp,
    /// The kubelet had admitted the pod, and so allocated its devices, at or before this time.
    pub until: Timestamp,
}

impl Outcome {
    /// Whether the pod is on its GPU, or was rejected because its node selector wants another node.
    pub(super) fn is_as_wanted(&self, pod: &Wanted) -> bool {
        match self {
            // The kubelet allocates devices before it looks at the node selector.
            Outcome::Placed => !pod.another_node,
            Outcome::Rejected(why) => pod.another_node && why == "NodeAffinity",
            Outcome::Elsewhere(_) => false,
        }
    }

    /// Whether no container is on another GPU. A pod may also be rejected for [`NO_DEVICES`].
    pub(super) fn is_right(&self, pod: &Wanted) -> bool {
        self.is_as_wanted(pod) || matches!(self, Outcome::Rejected(why) if NO_DEVICES.contains(&why.as_str()))
    }
}

/// The GPU of a device: its id without the number of the replica.
pub(super) fn gpu_of(id: &str) -> &str {
    id.split("::").next().unwrap_or(id)
}

/// The devices of the pods in namespace `ml`, by name of the pod, as PodResources lists them.
pub(super) fn listed(answer: &ListPodResourcesResponse) -> Devices {
    let mut devices = Devices::new();
    for pod in answer.pod_resources.iter().filter(|pod| pod.namespace == "ml") {
        for container in &pod.containers {
            let ids = container.devices.iter().filter(|devices| devices.resource_name == "nvidia.com/gpu");
            let ids: BTreeSet<String> = ids.flat_map(|devices| devices.device_ids.clone()).collect();
            if !ids.is_empty() {
                devices.insert((pod.name.clone(), container.name.clone()), ids);
            }
        }
    }
    devices
}

/// The devices by uid of the pod in the kubelet's checkpoint, which holds those of init containers too.
pub(super) fn recorded(checkpoint: &str) -> anyhow::Result<Devices> {
    let checkpoint: Value = serde_json::from_str(checkpoint)?;
    let mut devices = Devices::new();
    for entry in checkpoint["Data"]["PodDeviceEntries"].as_array().into_iter().flatten() {
        let text = |field: &str| entry[field].as_str().map(str::to_owned).context("a text");
        // The ids are listed by NUMA node.
        let ids = entry["DeviceIDs"].as_object().into_iter().flatten().filter_map(|(_, ids)| ids.as_array()).flatten();
        let ids = ids.filter_map(|id| id.as_str().map(str::to_owned)).collect();
        devices.insert((text("PodUID")?, text("ContainerName")?), ids);
    }
    Ok(devices)
}

/// What became of a pod.
///
/// # Errors
/// The kubelet has not decided about the pod, or its PodResources API and its checkpoint disagree.
pub(super) fn outcome(pod: &Wanted, object: &Pod, listed: &Devices, recorded: &Devices) -> anyhow::Result<Outcome> {
    let status = object.status.clone().unwrap_or_default();
    if status.phase.as_deref() == Some("Failed") {
        return Ok(Outcome::Rejected(status.reason.unwrap_or_default()));
    }
    // A pod may be rejected after its devices were allocated.
    ensure!(status.phase.as_deref() == Some("Running"), "{} is {:?}", pod.name, status.phase);
    let uid = object.metadata.uid.clone().context("an object has a uid")?;
    let mut misplaced = BTreeMap::new();
    for container in &pod.containers {
        let what = || format!("{}/{}", pod.name, container.name);
        let ids = recorded.get(&(uid.clone(), container.name.clone()));
        let ids = ids.with_context(|| format!("{} has no device in the checkpoint", what()))?;
        ensure!(ids.len() == 1, "{} requests one device and has {ids:?}", what());
        if container.role != Role::Init {
            let shown = listed.get(&(pod.name.clone(), container.name.clone()));
            ensure!(shown == Some(ids), "{}: PodResources lists {shown:?}, the checkpoint has {ids:?}", what());
        }
        let annotation =
            object.metadata.annotations.as_ref().and_then(|all| all.get(&Wanted::annotation(&container.name)));
        ensure!(annotation == Some(&pod.gpu), "{}: annotation {annotation:?}, reserved {}", what(), pod.gpu);
        if ids.iter().any(|id| gpu_of(id) != pod.gpu) {
            misplaced.insert(container.name.clone(), ids.clone());
        }
    }
    if misplaced.is_empty() {
        return Ok(Outcome::Placed);
    }
    let (from, until) = admission(&status).with_context(|| format!("{}: times in {status:?}", pod.name))?;
    Ok(Outcome::Elsewhere(Misplaced { pod: pod.name.clone(), devices: misplaced, from, until }))
}

/// The time between the binding of a pod and the kubelet's first status of it, which follows the admission. Both are
/// whole seconds, rounded down.
fn admission(status: &PodStatus) -> Option<(Timestamp, Timestamp)> {
    let bound = status.conditions.iter().flatten().find(|condition| condition.type_ == "PodScheduled")?;
    let from = bound.last_transition_time.as_ref()?.0;
    let until = status.start_time.as_ref()?.0 + SignedDuration::from_secs(1);
    Some((from, until))
}
