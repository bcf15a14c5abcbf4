//! The status of a pod, reduced to the fields that vramguard reads. [`super::bounds`] owns how much of it is kept.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::bounds::{MAX_CONDITIONS, MAX_CONTAINERS};
use super::null_as_default;
use crate::k8s::bounded::{Bounded, Entry};

/// `status` of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    pub phase: Option<String>,
    /// Why it is in this phase, in CamelCase, such as `Evicted`.
    pub reason: Option<String>,
    /// Conditions of the pod.
    #[serde(deserialize_with = "null_as_default")]
    pub conditions: Bounded<Condition, MAX_CONDITIONS>,
    /// The app containers, as the kubelet has last written them. It writes each one once.
    #[serde(rename = "containerStatuses", deserialize_with = "null_as_default")]
    pub containers: Bounded<ContainerStatus, MAX_CONTAINERS>,
}

/// The status of a container. Only what tells whether it runs is read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ContainerStatus {
    /// Name of the container.
    pub name: String,
    /// Id of its present or last instance, with the name of the container runtime: `containerd://4c01…`.
    #[serde(rename = "containerID")]
    pub id: Option<String>,
    /// What it does. One of the fields is set.
    #[serde(deserialize_with = "null_as_default")]
    pub state: ContainerState,
}

impl Entry for ContainerStatus {}

/// `state` of a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    /// Set while it runs.
    pub running: Option<IgnoredAny>,
    /// Set while it has not started.
    pub waiting: Option<NoInstance>,
    /// Set after it ended.
    pub terminated: Option<NoInstance>,
}

/// Why a container does not run.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NoInstance {
    /// One word in CamelCase, such as `CrashLoopBackOff`.
    #[serde(deserialize_with = "null_as_default")]
    pub reason: String,
}

/// A condition of a Pod or a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Condition {
    /// Type of the condition.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Time of the last change of `status`, in RFC 3339.
    #[serde(rename = "lastTransitionTime")]
    pub last_transition_time: Option<String>,
    /// Reason for machines, in CamelCase.
    pub reason: Option<String>,
    /// Message for people.
    pub message: Option<String>,
}

impl Entry for Condition {
    const READ_BEYOND: bool = true;

    /// Whether the condition tells since when the pod is bound, or whether it is ready.
    fn matters(&self) -> bool {
        matches!(self.kind.as_str(), "PodScheduled" | "Ready")
    }
}
