//! [`Observer`]: all that one node agent knows of its node. Owns how looks, lists of pods and answers of the kubelet
//! become the next report; it is told each of them, and does no I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::containers::{ContainerKey, Containers};
use super::finding::Finding;
use super::outside::Outside;
use super::owners::Owners;
use super::policy::{Devices, PolicyCheck};
use super::replicas::Replicas;
use super::report::{ContainerReport, Driver, GpuReport, MAX_CONTAINERS, Report};
use super::{GpuLook, GpuMemory, Look};
use crate::capacity::gpu::{AllocationPolicy, GpuIndex, Resource};
use crate::capacity::name::{Name, PodUid};
use crate::capacity::node::inventory::Source;
use crate::capacity::node::presence::{AgentPod, Instance, NamedPod};
use crate::capacity::time::Moment;
use crate::capacity::verdict::Unreadable;

/// How long each attempt to write the last report must be refused, so that the agent's account or rights count as removed. An
/// API server that has just started refuses everything until it has read the rights. In the same time the server sees that
/// the pod is being deleted, as the agent has seen it.
const REFUSED: Duration = Duration::from_secs(2);

/// The state of a node agent.
#[derive(Clone, Debug, Default)]
pub struct Observer {
    source: Source,
    /// The pod that the agent itself runs in; `None` if it runs outside of one.
    pub pod: Option<NamedPod>,
    /// Whether the API server has shown that the deletion of this pod has begun.
    is_deleted: bool,
    /// Whether the report that the API server has stored names this pod.
    is_named: bool,
    /// The pods of the node.
    pub owners: Owners,
    containers: Containers,
    gpus: BTreeMap<Name, Known>,
    driver: Option<Driver>,
    unreadable: Option<Unreadable>,
    replicas: Replicas,
    devices: Option<Devices>,
    assigned_before: BTreeMap<ContainerKey, Name>,
    policy: PolicyCheck,
    steering: Option<Steering>,
}

/// What an agent steers that was told to stand between the device plugin and the kubelet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steering {
    /// Whether a device plugin has registered with the agent. From then on, placements tell nothing of the device plugin's
    /// own policy.
    pub begun: bool,
    /// The resources of which the next container gets the GPU that the ledger reserved.
    pub resources: BTreeSet<Resource>,
    /// Why not all of them are steered; `None` if the agent knows of no reason.
    pub missing: Option<String>,
}

/// What is known of one GPU.
#[derive(Clone, Debug)]
struct Known {
    index: GpuIndex,
    memory: GpuMemory,
    outside: Outside,
    unreadable: Option<Unreadable>,
    /// Whether the last look listed the GPU.
    listed: bool,
}

impl Observer {
    /// Starts with the source of all looks, and the allocation policy that the device plugin's configuration names.
    pub fn new(source: Source, named: Option<AllocationPolicy>) -> Observer {
        Observer { source, policy: PolicyCheck::new(named), ..Observer::default() }
    }

    /// Restores what an earlier run of the agent reported, unless something newer is known. What the source of this run does
    /// not tell is not restored: it would never be brought up to date.
    pub fn restore(&mut self, report: Report, now: Moment) {
        let mut devices = Vec::new();
        for gpu in report.gpus {
            devices.push((gpu.resource, gpu.uuid.clone(), gpu.replicas));
            let memory = GpuMemory { total: gpu.total, reserved: gpu.reserved, used: gpu.used };
            let outside = gpu.outside.filter(|_| self.source.tells_processes());
            let outside = outside.map_or_else(Outside::default, Outside::restored);
            let known = Known { index: gpu.index, memory, outside, unreadable: gpu.unreadable, listed: true };
            match self.gpus.get_mut(&gpu.uuid) {
                // It was read before the earlier report was. What is outside of pods may have risen, and falls by itself.
                Some(now) if now.outside.amount() < known.outside.amount() => now.outside = known.outside,
                Some(_) => {}
                None => drop(self.gpus.insert(gpu.uuid, known)),
            }
        }
        if self.replicas.is_empty() {
            self.replicas = devices.into_iter().collect();
        }
        for (key, container) in report.containers {
            let seen = match (self.source.tells_processes(), report.source.tells_processes()) {
                (true, true) => container.seen,
                (true, false) => container.seen.interrupted(now),
                (false, _) => container.seen.past(),
            };
            self.containers.restore(key, seen);
        }
        self.driver = self.driver.take().or(report.driver.filter(|_| report.source == self.source));
        self.assigned_before = report.assigned;
    }

    /// Records that the driver as a whole cannot be read. What was read before stays.
    pub fn failed(&mut self, why: Unreadable) {
        self.unreadable = Some(why);
    }

    /// Takes a look into account.
    pub fn observe(&mut self, look: &Look, driver: Option<Driver>) {
        self.unreadable = None;
        self.driver = driver.or(self.driver.take());
        self.gpus.values_mut().for_each(|known| known.listed = false);
        for gpu in look.gpus.iter().filter(|gpu| !gpu.uuid.is_empty()) {
            self.see(gpu, look.at);
        }
        self.containers.observe(look);
        if self.owners.are_listed() {
            let owners = &self.owners;
            self.containers.retain(|(pod, _)| owners.pod(pod).is_some());
        }
    }

    fn see(&mut self, gpu: &GpuLook, at: Moment) {
        let unreadable = gpu.memory.as_ref().err().or(gpu.processes.unreadable()).cloned();
        match (self.gpus.get_mut(&gpu.uuid), &gpu.memory) {
            (Some(known), memory) => {
                (known.unreadable, known.listed, known.index) = (unreadable, true, gpu.index);
                known.memory = memory.as_ref().map_or(known.memory, |memory| memory.after(known.memory));
                known.outside.observe(gpu, at);
            }
            (None, Ok(memory)) => {
                let mut outside = Outside::default();
                outside.observe(gpu, at);
                let known = Known { index: gpu.index, memory: *memory, outside, unreadable, listed: true };
                self.gpus.insert(gpu.uuid.clone(), known);
            }
            // Nothing of it was ever read, so there is nothing to report but that, which the metrics do.
            (None, Err(_)) => {}
        }
    }

    /// Takes the replicas into account that the kubelet knows of, or that were inferred.
    ///
    /// The kubelet lists healthy devices only, and none while the device plugin restarts. The capacity of the node still
    /// counts the others, so a GPU that the driver still lists keeps its replicas.
    pub fn offered(&mut self, replicas: Replicas) {
        if replicas.is_empty() {
            return;
        }
        let kept = self.replicas.iter().filter(|(_, uuid, _)| {
            let still = self.gpus.get(*uuid).is_some_and(|known| known.listed);
            still && !replicas.iter().any(|(_, offered, _)| offered == *uuid)
        });
        let kept: Vec<_> = kept.map(|(resource, uuid, count)| (resource.clone(), uuid.clone(), count)).collect();
        let offered = replicas.iter().map(|(resource, uuid, count)| (resource.clone(), uuid.clone(), count));
        self.replicas = offered.chain(kept).collect();
    }

    /// Takes the devices into account that the kubelet has given to containers.
    pub fn allocated(&mut self, devices: Devices) {
        if !self.steering.as_ref().is_some_and(|steering| steering.begun) {
            self.policy.observe(&devices, &self.replicas);
        }
        self.devices = Some(devices);
    }

    /// Takes into account which policy the device plugin's configuration names now; `None` if none is known.
    pub fn names(&mut self, policy: Option<AllocationPolicy>) {
        self.policy.rename(policy);
    }

    /// Takes into account what is steered.
    pub fn steers(&mut self, steering: Steering) {
        self.steering = Some(steering);
    }

    /// Takes into account that the agent stops, and the device plugin chooses from now on.
    pub fn stops_steering(&mut self, why: &str) {
        let begun = self.steering.as_ref().is_some_and(|steering| steering.begun);
        self.steering = Some(Steering { begun, resources: BTreeSet::new(), missing: Some(why.to_owned()) });
    }

    /// Takes into account what the API server shows of the pod that the agent itself runs in.
    pub fn sees_own(&mut self, seen: &AgentPod) {
        self.is_deleted |= seen.deleting;
        let Some(own) = &mut self.pod else { return };
        own.container = match &seen.container {
            Instance::Running(id) => Some(id.clone()),
            // It shows the end of an earlier instance, or nothing yet.
            Instance::NotRunning(_) => None,
        };
    }

    /// Notes which pod the stored report names. It is none if the definition of `GpuLedger` is of a version without that
    /// field, because the API server drops it then.
    pub fn stored(&mut self, names: Option<&PodUid>) {
        self.is_named = names.is_some() && names == self.pod.as_ref().map(|own| &own.uid);
    }

    /// Whether the server learns that this agent no longer steers, although its last report was refused for this long: it
    /// sees the deletion of the pod that the stored report names.
    ///
    /// Otherwise it would believe the report before. The agent may have been stopped by a liveness probe, or run outside of
    /// a pod.
    pub fn ends_known(&self, refused: Duration) -> bool {
        self.is_deleted && self.is_named && refused >= REFUSED
    }

    /// The UUIDs of the GPUs that were seen.
    pub fn gpus(&self) -> Vec<Name> {
        self.gpus.keys().cloned().collect()
    }

    /// The report that would be written now.
    pub fn report(&self, now: Moment) -> Report {
        let gpu = |(resource, uuid, replicas): (&Resource, &Name, _)| {
            let known = self.gpus.get(uuid)?;
            let gone = (!known.listed).then_some(match self.source {
                Source::Driver => Unreadable::Lost,
                Source::DcgmExporter => Unreadable::NotListed,
            });
            Some(GpuReport {
                resource: resource.clone(),
                replicas,
                uuid: uuid.clone(),
                index: known.index,
                total: known.memory.total,
                reserved: known.memory.reserved,
                used: known.memory.used,
                outside: known.outside.amount(),
                unreadable: gone.or_else(|| known.unreadable.clone()),
            })
        };
        Report {
            pod: self.pod.clone(),
            source: self.source,
            driver: self.driver.clone(),
            unreadable: self.unreadable.clone(),
            allocation_policy: self.allocation_policy(),
            not_steered: self.not_steered(),
            gpus: self.replicas.iter().filter_map(gpu).collect(),
            assigned: self.assigned(),
            containers: self.containers(now),
        }
    }

    /// A node counts as steered only if all its GPU resources are: the policy is that of the node.
    fn allocation_policy(&self) -> AllocationPolicy {
        let Some(steering) = self.steering.as_ref().filter(|steering| steering.begun) else {
            return self.policy.verified();
        };
        if self.unsteered(steering).is_none() { AllocationPolicy::Steered } else { AllocationPolicy::Unverified }
    }

    /// Why the node is not steered; `None` if it is, or if the agent was not told to steer.
    fn not_steered(&self) -> Option<String> {
        let steering = self.steering.as_ref()?;
        let begun = || steering.missing.clone().unwrap_or_else(|| "the agent has not begun".to_owned());
        if steering.begun { self.unsteered(steering) } else { Some(begun()) }
    }

    fn unsteered(&self, steering: &Steering) -> Option<String> {
        // Where pods are that the device plugin placed while no agent ran, only the kubelet tells.
        if self.devices.is_none() {
            return Some("the kubelet has not told which devices it has allocated".to_owned());
        }
        if self.replicas.is_empty() {
            return Some("no devices of GPUs are known".to_owned());
        }
        let (resource, ..) = self.replicas.iter().find(|(resource, ..)| !steering.resources.contains(resource))?;
        let unknown = || format!("{resource}: its device plugin has not registered with the agent");
        Some(steering.missing.clone().unwrap_or_else(unknown))
    }

    /// The GPU of each container whose devices are all on one GPU.
    fn assigned(&self) -> BTreeMap<ContainerKey, Name> {
        let Some(devices) = &self.devices else { return self.assigned_before.clone() };
        let one = |(key, gpus): (&ContainerKey, &Vec<Name>)| {
            let first = gpus.first()?;
            gpus.iter().all(|gpu| gpu == first).then(|| (key.clone(), first.clone()))
        };
        devices.iter().filter_map(one).collect()
    }

    fn containers(&self, now: Moment) -> BTreeMap<ContainerKey, ContainerReport> {
        let of = |(key, seen): (&ContainerKey, &super::containers::Use)| {
            let (uid, container) = key;
            let pod = self.owners.pod(uid)?;
            let container = pod.containers.iter().find(|live| live.name == *container)?;
            let finding = Finding::of(pod, container, seen, now);
            let report =
                ContainerReport { pod: pod.name.clone(), seen: seen.clone(), demand: container.demand, finding };
            Some((key.clone(), report))
        };
        self.containers.iter().filter_map(of).take(MAX_CONTAINERS).collect()
    }
}

#[cfg(test)]
mod tests;
