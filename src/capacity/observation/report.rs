//! [`Report`]: what a node agent reports. Owns what is in it and how much has changed since the last one;
//! [`crate::k8s::gpu_ledger`] writes it as `status.agent`, and [`super::pace`] decides when.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use super::containers::{ContainerKey, Use};
use super::finding::{Finding, Problem};
use crate::capacity::gpu::{AllocationPolicy, GpuIndex, Resource};
use crate::capacity::name::Name;
use crate::capacity::node::inventory::Source;
use crate::capacity::node::presence::NamedPod;
use crate::capacity::pod::PodName;
use crate::capacity::time::Moment;
use crate::capacity::verdict::Unreadable;
use crate::capacity::vram::Vram;

/// A rise of memory outside of pods that is reported at once: less than the smallest headroom of a GPU.
pub const URGENT_RISE: Vram = Vram::from_mib(64);
/// Change of a used amount that is reported.
pub const USE_STEP: Vram = Vram::from_mib(256);

/// The largest number of containers in a report. A kubelet runs 110 pods by default.
pub const MAX_CONTAINERS: usize = 1024;

/// What a node agent reports of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The pod that the agent runs in; `None` if it runs outside of one.
    pub pod: Option<NamedPod>,
    /// Where the GPUs are read. It decides whether the use of containers and the memory outside of pods are told.
    pub source: Source,
    /// Versions of the driver; `None` before it was read.
    pub driver: Option<Driver>,
    /// Why the GPUs as a whole cannot be read at present; the rest of the report is then what was read last.
    pub unreadable: Option<Unreadable>,
    /// How the device plugin chooses GPUs, as far as verified.
    pub allocation_policy: AllocationPolicy,
    /// Why an agent that should steer does not; `None` if it does, or should not.
    pub not_steered: Option<String>,
    /// Each GPU behind each resource.
    pub gpus: Vec<GpuReport>,
    /// The GPU that the kubelet gave to each container.
    pub assigned: BTreeMap<ContainerKey, Name>,
    /// What each container uses.
    pub containers: BTreeMap<ContainerKey, ContainerReport>,
}

/// Versions of the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver {
    /// Version of the driver, such as `580.159.04`.
    pub version: Name,
    /// The newest CUDA that it supports, such as `13.0`; `None` if it does not tell.
    pub cuda: Option<Name>,
}

/// One GPU behind one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuReport {
    /// The resource that its replicas are advertised under.
    pub resource: Resource,
    /// The number of replicas that the device plugin makes of it.
    pub replicas: NonZeroU32,
    /// Its UUID.
    pub uuid: Name,
    /// Its index.
    pub index: GpuIndex,
    /// All its memory, including what the driver keeps.
    pub total: Vram,
    /// Memory that the driver keeps; `None` if the source does not tell.
    pub reserved: Option<Vram>,
    /// Memory in use, without what the driver keeps, as it was read last.
    pub used: Vram,
    /// Memory that no pod counts with; `None` before it was measured, and if the source does not tell processes.
    pub outside: Option<Vram>,
    /// Why it cannot be read at present; the amounts are then those read last.
    pub unreadable: Option<Unreadable>,
}

/// What one container uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerReport {
    /// Namespace and name of its pod.
    pub pod: PodName,
    /// What it uses, has used, and since when it is idle.
    pub seen: Use,
    /// What it counts with; `None` if it declares nothing.
    pub demand: Option<Vram>,
    /// What is wrong with that.
    pub finding: Option<Finding>,
}

/// How much two reports differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Not enough to report it before the next heartbeat.
    Slight,
    /// An amount for people: it may wait for its turn.
    Amounts,
    /// Something that bindings depend on: the GPUs, the GPU of a container, the first use of a GPU by a container, memory that
    /// is no longer there, or that a container takes from others.
    Placement,
}

impl Report {
    /// How much `self` differs from the report that was written before.
    pub fn change_from(&self, written: &Report) -> Change {
        if self.differs_for_bindings(written) {
            Change::Placement
        } else if self.differs_for_people(written) {
            Change::Amounts
        } else {
            Change::Slight
        }
    }

    fn differs_for_bindings(&self, written: &Report) -> bool {
        self.source != written.source
            // Without the instance that runs, the server does not count the agent's claim to steer.
            || self.pod != written.pod
            || self.allocation_policy != written.allocation_policy
            || self.assigned != written.assigned
            || self.unreadable != written.unreadable
            || self.gpus.len() != written.gpus.len()
            || self.gpus.iter().zip(&written.gpus).any(|(now, before)| now.differs_for_bindings(before))
            || self.containers.iter().any(|(key, now)| now.is_newly_over(written.containers.get(key)))
            // A pod that is gone counts until a report no longer shows it, if one has shown it before.
            || !self.containers.keys().eq(written.containers.keys())
            || self.containers.iter().any(|(key, now)| now.has_outgrown(written.containers.get(key)))
    }

    fn differs_for_people(&self, written: &Report) -> bool {
        let fallen = |now: &GpuReport, before: &GpuReport| now.outside < before.outside;
        let differs = |(now, before): (&GpuReport, &GpuReport)| differ(now.used, before.used) || fallen(now, before);
        self.driver != written.driver
            || self.not_steered != written.not_steered
            || self.gpus.iter().zip(&written.gpus).any(differs)
            || self.containers.values().zip(written.containers.values()).any(|(now, before)| now.differs(before))
    }
}

impl GpuReport {
    fn differs_for_bindings(&self, before: &GpuReport) -> bool {
        let fixed = |gpu: &GpuReport| {
            let GpuReport { resource, replicas, uuid, index, total, reserved, .. } = gpu.clone();
            (resource, replicas, uuid, index, total, reserved)
        };
        let moved = match (self.outside, before.outside) {
            // Pods wait for memory that was freed, and a few MiB that are left may keep the last one off.
            (Some(now), Some(before)) => {
                let fallen = before.minus(now).free() >= USE_STEP || now.is_zero() && !before.is_zero();
                now.minus(before).free() >= URGENT_RISE || fallen
            }
            (now, before) => now.is_some() != before.is_some(),
        };
        fixed(self) != fixed(before) || self.unreadable != before.unreadable || moved
    }
}

impl ContainerReport {
    /// Whether the container uses more than it counts with, and did not before: other pods may run out of memory.
    fn is_newly_over(&self, before: Option<&ContainerReport>) -> bool {
        let over = |report: &ContainerReport| {
            report.finding.as_ref().is_some_and(|finding| finding.problem == Problem::OverDeclaration)
        };
        over(self) && !before.is_some_and(over)
    }

    /// Whether the container has used more than before, and more than its demand. If it declares nothing, it counts with the
    /// most that it has used. The finding is about what it uses now, and a peak may be over by then.
    fn has_outgrown(&self, before: Option<&ContainerReport>) -> bool {
        let counted = before.map_or(Vram::ZERO, |before| before.seen.peak).max(self.demand.unwrap_or_default());
        self.seen.peak.minus(counted).free() >= USE_STEP
    }

    fn differs(&self, before: &ContainerReport) -> bool {
        let used = match (self.seen.used, before.seen.used) {
            (Some(now), Some(before)) => differ(now, before),
            (now, before) => now != before,
        };
        used || differ(self.seen.peak, before.seen.peak)
            || self.seen.gpu != before.seen.gpu
            || self.demand != before.demand
            // The amount in the sentence moves with the use. Only another problem is news.
            || self.finding.as_ref().map(|finding| finding.problem) != before.finding.as_ref().map(|finding| finding.problem)
    }
}

fn differ(one: Vram, other: Vram) -> bool {
    one.max(other).minus(one.min(other)).free() >= USE_STEP
}

/// A report and when it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// What was written.
    pub report: Report,
    /// When.
    pub at: Moment,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mib(mib: u64) -> Vram {
        Vram::from_mib(mib)
    }

    fn report() -> Report {
        let gpu = GpuReport {
            resource: Resource("nvidia.com/gpu".into()),
            replicas: NonZeroU32::new(4).unwrap(),
            uuid: "GPU-0".into(),
            index: 0.into(),
            total: mib(81_559),
            reserved: Some(mib(480)),
            used: mib(8_874),
            outside: Some(mib(100)),
            unreadable: None,
        };
        let seen = Use {
            peak: mib(8_868),
            used: Some(mib(8_868)),
            idle_since: None,
            first: Moment(0),
            cycles: None,
            gpu: "GPU-0".into(),
        };
        let pod = PodName { namespace: "ml".into(), name: "llm".into() };
        let container = ContainerReport { pod, seen, demand: Some(mib(8_912)), finding: None };
        let key: ContainerKey = ("u".into(), "main".into());
        Report {
            gpus: vec![gpu],
            assigned: BTreeMap::from([(key.clone(), "GPU-0".into())]),
            containers: BTreeMap::from([(key, container)]),
            ..Report::default()
        }
    }

    fn change(of: impl Fn(&mut Report)) -> Change {
        let mut now = report();
        of(&mut now);
        now.change_from(&report())
    }

    fn container(report: &mut Report) -> &mut ContainerReport {
        report.containers.values_mut().next().unwrap()
    }

    #[test]
    fn what_bindings_depend_on_is_reported_at_once() {
        let over = || Some(Finding { problem: Problem::OverDeclaration, message: "over".into() });
        let named = |container: &str| NamedPod {
            uid: "u".into(),
            name: PodName { namespace: "vramguard-agent".into(), name: "agent".into() },
            container: Some(container.into()),
        };
        let urgent: [&dyn Fn(&mut Report); 12] = [
            &|report| report.pod = Some(named("c1")),
            &|report| report.source = Source::DcgmExporter,
            &|report| report.gpus[0].reserved = None,
            &|report| container(report).finding = over(),
            &|report| report.gpus.clear(),
            &|report| report.gpus[0].uuid = "GPU-1".into(),
            &|report| report.gpus[0].reserved = Some(mib(500)),
            &|report| report.gpus[0].outside = Some(mib(164)),
            &|report| report.gpus[0].outside = None,
            &|report| report.gpus[0].unreadable = Some(Unreadable::Lost),
            &|report| report.assigned.clear(),
            &|report| report.allocation_policy = AllocationPolicy::Distributed,
        ];
        for (number, of) in urgent.iter().enumerate() {
            assert_eq!(change(of), Change::Placement, "{number}");
        }
    }

    #[test]
    fn growth_of_a_container_that_declares_nothing_is_reported_at_once_because_it_counts() {
        let undeclared = |report: &mut Report, peak: u64| {
            let container = container(report);
            container.finding = Some(Finding { problem: Problem::Undeclared, message: "undeclared".into() });
            container.demand = None;
            container.seen.peak = mib(peak);
        };
        assert_eq!(change(|report| undeclared(report, 8_868 + 256)), Change::Placement);
        assert_eq!(change(|report| undeclared(report, 8_868 + 255)), Change::Amounts, "the finding is news");
        assert_eq!(change(|report| container(report).seen.peak = mib(8_868 + 256)), Change::Amounts, "it declares");
    }

    #[test]
    fn amounts_for_people_wait_and_small_ones_are_not_reported() {
        assert_eq!(change(|_| {}), Change::Slight);
        assert_eq!(change(|report| report.gpus[0].used = mib(8_874 + 255)), Change::Slight);
        assert_eq!(change(|report| report.gpus[0].used = mib(8_874 + 256)), Change::Amounts);
        assert_eq!(change(|report| report.gpus[0].outside = Some(mib(163))), Change::Slight);
        assert_eq!(change(|report| report.gpus[0].outside = Some(mib(0))), Change::Placement, "pods wait for it");
        assert_eq!(change(|report| container(report).seen.used = Some(mib(8_868 - 256))), Change::Amounts);
        assert_eq!(change(|report| container(report).seen.used = None), Change::Amounts);
        assert_eq!(
            change(|report| report.containers.clear()),
            Change::Placement,
            "a pod that is gone counts until then"
        );
        let another = |report: &mut Report| {
            let first_use = container(report).clone();
            report.containers.insert(("v".into(), "main".into()), first_use);
        };
        assert_eq!(change(another), Change::Placement, "only a pod that was shown counts once it is gone");
        let finding = |message: &str| Some(Finding { problem: Problem::Idle, message: message.into() });
        assert_eq!(change(|report| container(report).finding = finding("idle")), Change::Amounts);
    }
}
