//! The section of a `GpuLedger`'s `status` that the node agent writes ↔ [`Inventory`]. Owns its fields; what a report
//! means for the accounting is [`crate::capacity::node::inventory`]'s.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use super::LedgerError;
use crate::capacity::gpu::{AllocationPolicy, Gpu, GpuId, GpuIndex, Resource};
use crate::capacity::name::{Name, PodUid};
use crate::capacity::node::inventory::{Inventory, InventoryGpu, Source};
use crate::capacity::node::presence::NamedPod;
use crate::capacity::pod::PodName;
use crate::capacity::time::Moment;
use crate::capacity::vram::Vram;
use crate::k8s::{node, pod};

/// `status.agent`: what the node agent saw.
///
/// An optional field without a value is written as `null`: the section is written by merge patch, which would otherwise
/// keep the old value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct AgentSection {
    /// When the agent wrote the section, RFC 3339. A section that is not renewed is stale.
    pub time: Option<String>,
    /// The pod that the agent runs in; absent if it runs outside of one.
    pub pod: Option<AgentPodRef>,
    /// Where the agent reads the GPUs; absent in reports of agents that knew one source only, the driver.
    pub source: Option<SourceText>,
    /// How the GPU of a replica is chosen, as verified on the node; absent if it is not verified.
    pub allocation_policy: Option<AllocationPolicyText>,
    /// Why an agent that should steer the device plugin does not.
    pub not_steered: Option<String>,
    /// Version of the driver.
    pub driver_version: Option<String>,
    /// The newest CUDA that the driver supports.
    pub cuda_version: Option<String>,
    /// Why the driver cannot be read at present; everything else is then what was read last.
    pub unreadable: Option<String>,
    /// `used_mib` as a quantity, for people.
    pub used: Option<String>,
    /// Memory in MiB in use on all GPUs together.
    #[serde(rename = "usedMiB")]
    pub used_mib: Option<u64>,
    /// The GPUs behind each resource.
    pub gpus: Vec<AgentGpu>,
    /// The GPU that the kubelet gave to each container.
    pub pods: Vec<AgentPod>,
    /// What each container uses. Of a source that does not tell processes, these are peaks that an earlier one has seen.
    pub containers: Vec<AgentContainer>,
}

/// Wire format of [`NamedPod`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentPodRef {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// UID of the pod.
    pub uid: String,
    /// Id of the agent's container, as the container runtime gave it to this instance, without the name of the runtime;
    /// absent as long as the agent has not seen it. It is written as `null` then, as [`AgentSection`] says.
    #[serde(rename = "containerID", default)]
    pub container: Option<String>,
}

/// Wire format of [`AllocationPolicy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AllocationPolicyText {
    /// The device plugin takes the GPU with the fewest replicas taken.
    Distributed,
    /// The device plugin takes the GPU with the most replicas taken.
    Packed,
    /// The agent answers for the device plugin, by the ledger.
    Steered,
}

/// Wire format of [`Source`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceText {
    /// The driver, by NVML.
    #[serde(rename = "NVML")]
    Nvml,
    /// A DCGM exporter, which does not tell processes.
    #[serde(rename = "DCGMExporter")]
    DcgmExporter,
}

/// One GPU behind one resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentGpu {
    /// The resource that its replicas are advertised under.
    pub resource: String,
    /// The number of replicas that the device plugin makes of it.
    pub replicas: NonZeroU32,
    /// UUID, as NVML reports it.
    pub uuid: String,
    /// Index of the GPU, or of the GPU that the MIG device is a part of, as NVML counts.
    pub index: u32,
    /// Index of the MIG device on its GPU, as NVML counts; absent for a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mig_index: Option<u32>,
    /// Total memory in MiB, including what the driver keeps.
    #[serde(rename = "totalMiB")]
    pub total: u64,
    /// Memory in MiB that the driver keeps; absent if not known.
    #[serde(rename = "reservedMiB", default, skip_serializing_if = "Option::is_none")]
    pub reserved: Option<u64>,
    /// Memory in MiB that no pod counts with; absent if not known.
    #[serde(rename = "outOfBandMiB", default, skip_serializing_if = "Option::is_none")]
    pub out_of_band: Option<u64>,
    /// Memory in MiB in use, without what the driver keeps; absent if not known.
    #[serde(rename = "usedMiB", default, skip_serializing_if = "Option::is_none")]
    pub used: Option<u64>,
    /// Why the GPU cannot be read at present; its amounts are then those read last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
}

/// The GPU of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentPod {
    /// UID of the pod.
    pub uid: String,
    /// Name of the container.
    pub container: String,
    /// UUID of its GPU.
    pub gpu: String,
}

/// What one container uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentContainer {
    /// UID of the pod.
    pub uid: String,
    /// Name of the container.
    pub container: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// UUID of the GPU on which it uses most.
    pub gpu: String,
    /// Memory in MiB that it uses now; absent if the driver does not tell.
    #[serde(rename = "usedMiB", default, skip_serializing_if = "Option::is_none")]
    pub used: Option<u64>,
    /// The most memory in MiB that it has used.
    #[serde(rename = "peakMiB")]
    pub peak: u64,
    /// Memory in MiB that it counts with; absent if it declares nothing.
    #[serde(rename = "demandMiB", default, skip_serializing_if = "Option::is_none")]
    pub demand: Option<u64>,
    /// When it was first seen on a GPU, RFC 3339.
    pub since: String,
    /// Since when none of its processes computes, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_since: Option<String>,
    /// How many times it has computed and then been idle; absent if it was never seen to compute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cycles: Option<u64>,
    /// What is wrong: the name of a [`Problem`](crate::capacity::observation::finding::Problem).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// The same for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl AgentSection {
    /// Reads the section; `ledger` is the name of the object, for errors.
    ///
    /// # Errors
    /// Fails if an amount is more than any GPU has, or if `time` is no RFC 3339 time. The error names the field.
    pub(super) fn inventory(self, ledger: &str) -> Result<Inventory, LedgerError> {
        let wrong = |field: String, why: &str| LedgerError { ledger: ledger.to_owned(), field, why: why.to_owned() };
        let reported = |text: String| -> Result<Moment, LedgerError> {
            pod::moment(&text).ok_or_else(|| wrong("status.agent.time".to_owned(), "is no RFC 3339 time"))
        };
        let mut inventory = Inventory {
            reported: self.time.map(reported).transpose()?,
            pod: self.pod.map(|named| Box::new(NamedPod::from(named))),
            source: self.source.map_or(Source::Driver, Source::from),
            allocation_policy: self.allocation_policy.map_or(AllocationPolicy::Unverified, AllocationPolicy::from),
            ..Inventory::default()
        };
        for (index, gpu) in self.gpus.into_iter().enumerate() {
            let sized = |mib: u64, field: &str| {
                let size = Vram::checked_from_mib(mib).filter(|size| *size <= node::MAX_GPU);
                size.ok_or_else(|| wrong(format!("status.agent.gpus[{index}].{field}"), "is more than any GPU has"))
            };
            let reported = InventoryGpu {
                gpu: Gpu {
                    id: GpuId::Uuid(gpu.uuid.into()),
                    index: GpuIndex { gpu: gpu.index, mig: gpu.mig_index },
                    total: sized(gpu.total, "totalMiB")?,
                    driver_reserved: gpu.reserved.map(|mib| sized(mib, "reservedMiB")).transpose()?,
                    out_of_band: sized(gpu.out_of_band.unwrap_or_default(), "outOfBandMiB")?,
                },
                replicas: gpu.replicas,
            };
            inventory.gpus.entry(Resource(gpu.resource.into())).or_default().push(reported);
        }
        let mut peaks: BTreeMap<PodUid, BTreeMap<Name, Vram>> = BTreeMap::new();
        for (index, container) in self.containers.into_iter().enumerate() {
            let field = format!("status.agent.containers[{index}].peakMiB");
            let peak = Vram::checked_from_mib(container.peak)
                .ok_or_else(|| wrong(field, "is more than a quantity can say"))?;
            peaks.entry(PodUid::from(container.uid)).or_default().insert(container.container.into(), peak);
        }
        inventory.peaks = peaks.into_iter().map(|(uid, of_pod)| (uid, of_pod.into_iter().collect())).collect();
        let mut assigned: BTreeMap<PodUid, BTreeMap<Name, GpuId>> = BTreeMap::new();
        for pod in self.pods {
            let of_pod = assigned.entry(PodUid::from(pod.uid)).or_default();
            of_pod.insert(pod.container.into(), GpuId::from(pod.gpu.as_str()));
        }
        inventory.assigned = assigned.into_iter().map(|(uid, of_pod)| (uid, of_pod.into_iter().collect())).collect();
        Ok(inventory)
    }
}

impl From<AllocationPolicyText> for AllocationPolicy {
    fn from(text: AllocationPolicyText) -> AllocationPolicy {
        match text {
            AllocationPolicyText::Distributed => AllocationPolicy::Distributed,
            AllocationPolicyText::Packed => AllocationPolicy::Packed,
            AllocationPolicyText::Steered => AllocationPolicy::Steered,
        }
    }
}

impl From<AgentPodRef> for NamedPod {
    fn from(named: AgentPodRef) -> NamedPod {
        NamedPod {
            uid: PodUid::from(named.uid),
            name: PodName { namespace: named.namespace.into(), name: named.name.into() },
            container: named.container.map(Name::from),
        }
    }
}

impl From<&NamedPod> for AgentPodRef {
    fn from(named: &NamedPod) -> AgentPodRef {
        AgentPodRef {
            namespace: named.name.namespace.to_string(),
            name: named.name.name.to_string(),
            uid: named.uid.to_string(),
            container: named.container.as_ref().map(Name::to_string),
        }
    }
}

impl From<SourceText> for Source {
    fn from(text: SourceText) -> Source {
        match text {
            SourceText::Nvml => Source::Driver,
            SourceText::DcgmExporter => Source::DcgmExporter,
        }
    }
}

impl From<Source> for SourceText {
    fn from(source: Source) -> SourceText {
        match source {
            Source::Driver => SourceText::Nvml,
            Source::DcgmExporter => SourceText::DcgmExporter,
        }
    }
}
