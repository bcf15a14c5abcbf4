//! [`Report`] of a node agent ↔ `status.agent` of its `GpuLedger`. Owns what the agent writes there, and what a restarted
//! agent reads back. [`super::agent`] owns the fields, and what the server reads of them.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::{Value, json};

use super::agent::{AgentContainer, AgentGpu, AgentPod, AgentPodRef, AgentSection, AllocationPolicyText};
use super::{GpuLedger, time};
use crate::capacity::gpu::{AllocationPolicy, GpuIndex, Resource};
use crate::capacity::name::{Name, PodUid};
use crate::capacity::node::inventory::Source;
use crate::capacity::observation::containers::Use;
use crate::capacity::observation::report::{ContainerReport, Driver, GpuReport, Report};
use crate::capacity::pod::PodName;
use crate::capacity::recommend::Observations;
use crate::capacity::time::Moment;
use crate::capacity::verdict::Unreadable;
use crate::capacity::vram::Vram;
use crate::k8s::pod::moment;

/// The most characters of a message that are written.
const MAX_MESSAGE: usize = 1024;

/// The merge patch of the status of a `GpuLedger` that writes a report.
pub fn patch(report: &Report, at: Moment) -> Value {
    json!({ "status": { "agent": AgentSection::of(report, at) } })
}

impl GpuLedger {
    /// The report that an agent of this node has written; `None` if there is none that can be read. The reasons for
    /// unreadable GPUs are the texts that were written.
    pub fn agent_report(&self) -> Option<Report> {
        AgentSection::deserialize(self.agent_section()?).ok()?.report()
    }

    /// Adds what the agent of this node has reported. Of a report that cannot be read, or names no time, it adds that.
    pub fn add_uses(&self, observed: &mut Observations) {
        let Some((time, report)) = self.reported().zip(self.agent_report()) else {
            observed.unreadable.extend(self.agent_section().map(|_| Name::from(self.node())));
            return;
        };
        if !report.source.tells_processes() {
            observed.totals_only.insert(self.node().into(), time);
            return;
        }
        observed.nodes.insert(self.node().into(), time);
        observed.containers.extend(report.containers.into_iter().map(|(key, container)| (key, container.seen)));
    }
}

impl AgentSection {
    fn of(report: &Report, at: Moment) -> AgentSection {
        let once: BTreeSet<&Name> = report.gpus.iter().map(|gpu| &gpu.uuid).collect();
        let used = once.iter().filter_map(|uuid| report.gpus.iter().find(|gpu| gpu.uuid == ***uuid));
        let used: Vram = used.map(|gpu| gpu.used).sum();
        let pods = report.assigned.iter().map(|((uid, container), gpu)| AgentPod {
            uid: uid.to_string(),
            container: container.to_string(),
            gpu: gpu.to_string(),
        });
        AgentSection {
            time: Some(time(at)),
            pod: report.pod.as_ref().map(AgentPodRef::from),
            source: Some(report.source.into()),
            allocation_policy: match report.allocation_policy {
                AllocationPolicy::Unverified | AllocationPolicy::Stale | AllocationPolicy::Doubted => None,
                AllocationPolicy::Distributed => Some(AllocationPolicyText::Distributed),
                AllocationPolicy::Packed => Some(AllocationPolicyText::Packed),
                AllocationPolicy::Steered => Some(AllocationPolicyText::Steered),
            },
            not_steered: report.not_steered.as_deref().map(cut),
            driver_version: report.driver.as_ref().map(|driver| driver.version.to_string()),
            cuda_version: report.driver.as_ref().and_then(|driver| driver.cuda.as_ref()).map(Name::to_string),
            unreadable: report.unreadable.as_ref().map(text),
            used: (!report.gpus.is_empty()).then(|| used.to_string()),
            used_mib: (!report.gpus.is_empty()).then(|| used.mib()),
            gpus: report.gpus.iter().map(gpu).collect(),
            pods: pods.collect(),
            // The container of a process is not known before the status of its pod names it.
            containers: report.containers.iter().filter(|((_, name), _)| !name.is_empty()).map(container).collect(),
        }
    }

    fn report(self) -> Option<Report> {
        let amount = Vram::checked_from_mib;
        let mut gpus = Vec::new();
        for gpu in self.gpus {
            gpus.push(GpuReport {
                resource: Resource(gpu.resource.into()),
                replicas: gpu.replicas,
                uuid: gpu.uuid.into(),
                index: GpuIndex { gpu: gpu.index, mig: gpu.mig_index },
                total: amount(gpu.total)?,
                reserved: match gpu.reserved {
                    Some(reserved) => Some(amount(reserved)?),
                    None => None,
                },
                used: amount(gpu.used?)?,
                outside: gpu.out_of_band.and_then(amount),
                unreadable: gpu.unreadable.map(Unreadable::Other),
            });
        }
        let mut containers = BTreeMap::new();
        for container in self.containers {
            let seen = Use {
                used: container.used.and_then(amount),
                peak: amount(container.peak)?,
                idle_since: container.idle_since.as_deref().and_then(moment),
                first: moment(&container.since)?,
                cycles: container.cycles,
                gpu: container.gpu.into(),
            };
            let pod = PodName { namespace: container.namespace.into(), name: container.pod.into() };
            let demand = container.demand.and_then(amount);
            let key = (PodUid::from(container.uid), Name::from(container.container));
            containers.insert(key, ContainerReport { pod, seen, demand, finding: None });
        }
        let assigned = self.pods.into_iter();
        let assigned = assigned.map(|pod| ((PodUid::from(pod.uid), pod.container.into()), pod.gpu.into())).collect();
        let cuda = self.cuda_version.map(Name::from);
        Some(Report {
            source: self.source.map_or(Source::Driver, Source::from),
            driver: self.driver_version.map(|version| Driver { version: version.into(), cuda }),
            unreadable: self.unreadable.map(Unreadable::Other),
            // It was that of an earlier run.
            pod: None,
            // It is verified again by what the new run sees.
            allocation_policy: AllocationPolicy::Unverified,
            not_steered: None,
            gpus,
            assigned,
            containers,
        })
    }
}

fn gpu(gpu: &GpuReport) -> AgentGpu {
    AgentGpu {
        resource: gpu.resource.to_string(),
        replicas: gpu.replicas,
        uuid: gpu.uuid.to_string(),
        index: gpu.index.gpu,
        mig_index: gpu.index.mig,
        total: gpu.total.mib(),
        reserved: gpu.reserved.map(Vram::mib),
        used: Some(gpu.used.mib()),
        out_of_band: gpu.outside.map(Vram::mib),
        unreadable: gpu.unreadable.as_ref().map(text),
    }
}

fn container(((uid, name), report): (&(PodUid, Name), &ContainerReport)) -> AgentContainer {
    let Use { used, peak, idle_since, first, cycles, gpu } = &report.seen;
    AgentContainer {
        uid: uid.to_string(),
        container: name.to_string(),
        namespace: report.pod.namespace.to_string(),
        pod: report.pod.name.to_string(),
        gpu: gpu.to_string(),
        used: used.map(Vram::mib),
        peak: peak.mib(),
        demand: report.demand.map(Vram::mib),
        since: time(*first),
        idle_since: idle_since.map(time),
        cycles: *cycles,
        problem: report.finding.as_ref().map(|finding| finding.problem.to_string()),
        message: report.finding.as_ref().map(|finding| cut(&finding.message)),
    }
}

fn text(why: &Unreadable) -> String {
    cut(&why.to_string())
}

fn cut(message: &str) -> String {
    message.chars().take(MAX_MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::capacity::node::presence::NamedPod;
    use crate::capacity::observation::finding::{Finding, Problem};

    fn report() -> Report {
        let gpu = GpuReport {
            resource: Resource("nvidia.com/gpu".into()),
            replicas: NonZeroU32::new(16).unwrap(),
            uuid: "GPU-1".into(),
            index: 0.into(),
            total: Vram::from_mib(81_559),
            reserved: Some(Vram::from_mib(480)),
            used: Vram::from_mib(8_874),
            outside: Some(Vram::from_mib(7)),
            unreadable: None,
        };
        let seen = Use {
            used: Some(Vram::from_mib(8_868)),
            peak: Vram::from_mib(8_900),
            idle_since: Some(Moment(60_000)),
            first: Moment(1_000),
            cycles: Some(3),
            gpu: "GPU-1".into(),
        };
        let pod = PodName { namespace: "ml".into(), name: "llm".into() };
        let container = ContainerReport { pod, seen, demand: Some(Vram::from_mib(8_912)), finding: None };
        let key: (PodUid, Name) = ("u".into(), "main".into());
        Report {
            driver: Some(Driver { version: "580.159.04".into(), cuda: Some("13.0".into()) }),
            gpus: vec![gpu],
            assigned: BTreeMap::from([(key.clone(), "GPU-1".into())]),
            containers: BTreeMap::from([(key, container)]),
            ..Report::default()
        }
    }

    /// [`report`] of a GPU with a second MIG device.
    fn mig_report() -> Report {
        let device = |mig, uuid: &str| GpuReport {
            uuid: uuid.into(),
            index: GpuIndex { gpu: 2, mig: Some(mig) },
            ..report().gpus[0].clone()
        };
        Report { gpus: vec![device(0, "MIG-a"), device(1, "MIG-b")], ..report() }
    }

    fn ledger(patch: &Value) -> GpuLedger {
        let object = json!({"apiVersion": "vramguard.dev/v1alpha1", "kind": "GpuLedger", "metadata": {"name": "gpu-0"},
                            "status": patch["status"]});
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_restarted_agent_reads_back_what_it_wrote() {
        for report in [report(), mig_report()] {
            assert_eq!(ledger(&patch(&report, Moment(0))).agent_report(), Some(report));
        }
    }

    #[test]
    fn the_index_of_a_mig_device_is_next_to_that_of_its_gpu() {
        let gpus = patch(&mig_report(), Moment(0))["status"]["agent"]["gpus"].take();
        let indices = |field: &str| gpus.as_array().unwrap().iter().map(|gpu| gpu[field].clone()).collect::<Vec<_>>();
        assert_eq!((indices("index"), indices("migIndex")), (vec![json!(2), json!(2)], vec![json!(0), json!(1)]));
        let whole = patch(&report(), Moment(0))["status"]["agent"]["gpus"][0].take();
        assert!(whole.get("migIndex").is_none());
    }

    #[test]
    fn a_report_without_processes_says_so_to_each_of_its_readers() {
        let totals = || {
            let mut report = Report { source: Source::DcgmExporter, ..report() };
            report.gpus.iter_mut().for_each(|gpu| (gpu.reserved, gpu.outside) = (None, None));
            report.containers.values_mut().for_each(|container| container.seen.used = None);
            report
        };
        let written = patch(&totals(), Moment(0));
        let section = &written["status"]["agent"];
        assert_eq!(section["source"], "DCGMExporter");
        for absent in ["reservedMiB", "outOfBandMiB"] {
            assert_eq!(section["gpus"][0].get(absent), None, "unknown is not zero");
        }
        assert_eq!(section["containers"][0].get("usedMiB"), None);
        let ledger = ledger(&written);
        assert_eq!(ledger.agent_report(), Some(totals()), "a restarted agent");
        let inventory = ledger.content().unwrap().inventory.unwrap();
        assert_eq!(inventory.source, Source::DcgmExporter);
        assert_eq!(inventory.peak_of(&"u".into(), "main"), Some(Vram::from_mib(8_900)), "a pod that declares nothing");
        let gpu = &inventory.gpus[&Resource("nvidia.com/gpu".into())][0].gpu;
        assert_eq!((gpu.driver_reserved, gpu.total), (None, Vram::from_mib(81_559)));
        let mut observed = Observations::default();
        ledger.add_uses(&mut observed);
        assert!(observed.nodes.is_empty() && observed.containers.is_empty(), "it is no data for a recommendation");
        assert_eq!(observed.totals_only.keys().map(Name::as_str).collect::<Vec<_>>(), ["gpu-0"]);
    }

    #[test]
    fn a_report_that_names_no_source_is_one_of_the_driver() {
        let mut old = patch(&report(), Moment(0));
        assert_eq!(old["status"]["agent"]["source"], "NVML");
        old["status"]["agent"].as_object_mut().unwrap().remove("source");
        assert_eq!(ledger(&old).agent_report(), Some(report()));
    }

    #[test]
    fn the_server_reads_the_sizes_and_the_gpu_of_each_container() {
        let inventory = ledger(&patch(&report(), Moment(0))).content().unwrap().inventory.unwrap();
        let gpu = &inventory.gpus[&Resource("nvidia.com/gpu".into())][0];
        assert_eq!((gpu.replicas.get(), gpu.gpu.driver_reserved), (16, Some(Vram::from_mib(480))));
        assert_eq!(gpu.gpu.out_of_band, Vram::from_mib(7));
        assert_eq!(inventory.assigned[&PodUid::from("u")].len(), 1);
        assert_eq!(inventory.peak_of(&"u".into(), "main"), Some(Vram::from_mib(8_900)));
        assert_eq!((inventory.peak_of(&"u".into(), "side"), inventory.peak_of(&"v".into(), "main")), (None, None));
    }

    #[test]
    fn the_server_reads_the_pod_that_the_agent_names_as_its_own() {
        let named = |container: Option<&str>| NamedPod {
            uid: "u".into(),
            name: PodName { namespace: "vramguard-agent".into(), name: "agent-x".into() },
            container: container.map(Name::from),
        };
        let read = |pod: Option<NamedPod>| {
            let written = patch(&Report { pod, ..report() }, Moment(0));
            let ledger = ledger(&written);
            let named = ledger.content().unwrap().inventory.unwrap().pod.map(|named| *named);
            assert_eq!(ledger.agent_pod(), named.as_ref().map(|named| named.uid.clone()));
            (written["status"]["agent"]["pod"].clone(), named)
        };
        let object = |id: Option<&str>| json!({"namespace": "vramguard-agent", "name": "agent-x", "uid": "u", "containerID": id});
        assert_eq!(read(None), (Value::Null, None));
        let outside = patch(&report(), Moment(0));
        assert_eq!(
            outside["status"]["agent"].as_object().unwrap().get("pod"),
            Some(&Value::Null),
            "it removes an earlier one"
        );
        assert_eq!(read(Some(named(Some("4c01")))), (object(Some("4c01")), Some(named(Some("4c01")))));
        assert_eq!(
            read(Some(named(None))),
            (object(None), Some(named(None))),
            "null removes what an earlier run wrote"
        );
    }

    #[test]
    fn a_value_that_is_gone_is_removed_by_the_merge_patch() {
        let unreadable = Report { unreadable: Some(Unreadable::NoDriver), ..report() };
        let (before, after) = (patch(&unreadable, Moment(0)), patch(&report(), Moment(1)));
        assert!(before["status"]["agent"]["unreadable"].is_string());
        assert_eq!(after["status"]["agent"].as_object().unwrap().get("unreadable"), Some(&Value::Null));
    }

    #[test]
    fn a_finding_is_written_with_its_problem_and_sentence() {
        let mut report = report();
        let finding = Finding { problem: Problem::OverDeclaration, message: "x".repeat(5_000) };
        report.containers.values_mut().for_each(|container| container.finding = Some(finding.clone()));
        let written = patch(&report, Moment(0));
        let row = &written["status"]["agent"]["containers"][0];
        assert_eq!((&row["problem"], row["message"].as_str().unwrap().len()), (&json!("OverDeclaration"), 1024));
    }

    #[test]
    fn a_section_that_cannot_be_read_restores_nothing() {
        for section in [Value::Null, json!({"gpus": [{"uuid": 5}]}), json!("text")] {
            assert_eq!(ledger(&json!({"status": {"agent": section}})).agent_report(), None);
        }
    }
}
