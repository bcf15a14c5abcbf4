//! Who asks: the container for which the kubelet is about to allocate devices.
//!
//! The kubelet admits one pod at a time, and allocates container by container in start order. So the container that
//! asks is the first one without devices in a pod that the kubelet lists. Almost always there is exactly one. There are
//! several after the kubelet lost its checkpoint, and with kubelets before 1.34, which also list pods that ended.

use std::collections::BTreeSet;

use super::{GpuContainer, KnownPod, Phase};
use crate::capacity::gpu::Resource;
use crate::capacity::name::{Name, PodUid};
use crate::capacity::pod::PodName;

/// The largest number of unknown pods that are read from the API server for one question.
pub const MAX_READ: usize = 4;

/// The devices of one resource that the kubelet has allocated, from its PodResources API and its checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocations {
    /// The pods that the kubelet lists.
    pub listed: Vec<ListedPod>,
    /// The containers in the checkpoint. Only there are one-shot init containers.
    pub recorded: BTreeSet<(PodUid, Name)>,
}

/// A pod that the kubelet lists. The list has no uids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedPod {
    /// Namespace and name.
    pub name: PodName,
    /// Its containers that have a device of the resource.
    pub containers: BTreeSet<Name>,
}

/// The container that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller<'p> {
    /// Its pod.
    pub pod: &'p KnownPod,
    /// The container.
    pub container: &'p GpuContainer,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity<'p> {
    /// This container.
    Caller(Caller<'p>),
    /// None of the known pods. The kubelet lists these unknown pods without devices, at most [`MAX_READ`] of them.
    Unlisted(Vec<PodName>),
    /// None of the known pods, and the kubelet lists no unknown ones, or too many.
    None,
    /// One of several containers.
    Several,
}

/// Finds the container that asks for `size` devices.
///
/// With one candidate it is that one, whatever else is known of it. A pod that was terminating at a restart of the
/// kubelet is asked for a second time, and then its container has been answered and its pod has started.
pub fn identify<'p>(
    resource: &Resource,
    size: usize,
    allocations: &Allocations,
    pods: &'p [KnownPod],
    answered: &BTreeSet<(PodUid, Name)>,
) -> Identity<'p> {
    let mut candidates: Vec<Caller<'p>> = Vec::new();
    let mut unknown: BTreeSet<&PodName> = BTreeSet::new();
    for listed in &allocations.listed {
        let mut of_name = pods.iter().filter(|pod| pod.name == listed.name).peekable();
        if of_name.peek().is_none() && listed.containers.is_empty() {
            unknown.insert(&listed.name);
        }
        // A pod that was deleted by force and created again has two uids, and the kubelet lists its name twice.
        for candidate in of_name.filter_map(|pod| next_container(resource, pod, listed, allocations)) {
            if !candidates.contains(&candidate) {
                candidates.push(candidate);
            }
        }
    }
    if candidates.is_empty() {
        let names = || unknown.iter().map(|name| (*name).clone()).collect();
        return if (1..=MAX_READ).contains(&unknown.len()) { Identity::Unlisted(names()) } else { Identity::None };
    }
    let is_new = |caller: &Caller<'_>| {
        let key = (caller.pod.uid.clone(), caller.container.name.clone());
        !answered.contains(&key)
    };
    let filters: [&dyn Fn(&Caller<'_>) -> bool; 5] = [
        &|caller| caller.pod.phase != Phase::Ended,
        &|caller| usize::try_from(caller.container.devices) == Ok(size),
        &|caller| caller.pod.phase != Phase::Started,
        &is_new,
        &|caller| !caller.pod.deleted,
    ];
    for filter in filters {
        if candidates.len() > 1 && candidates.iter().any(filter) {
            candidates.retain(filter);
        }
    }
    match candidates.as_slice() {
        [only] => Identity::Caller(*only),
        _ => Identity::Several,
    }
}

/// The first container of a pod, in the order of allocation, that has no device yet.
fn next_container<'p>(
    resource: &Resource,
    pod: &'p KnownPod,
    listed: &ListedPod,
    allocations: &Allocations,
) -> Option<Caller<'p>> {
    let has_device = |container: &GpuContainer| {
        listed.containers.contains(&container.name)
            || allocations.recorded.contains(&(pod.uid.clone(), container.name.clone()))
    };
    let mut containers = pod.containers.iter().filter(|container| container.resource == *resource);
    let container = containers.find(|container| !has_device(container))?;
    Some(Caller { pod, container })
}

#[cfg(test)]
mod tests;
