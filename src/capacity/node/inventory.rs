//! [`Inventory`]: the report of a node agent. It lists the GPUs, the allocation policy of the device plugin, and the
//! GPU of each container. Owns how a report replaces what the labels say; the holders and their amounts are
//! [`super::ledger`]'s.
//!
//! A report without GPUs leaves the labels in force: missing is not zero.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use litemap::LiteMap;

use crate::capacity::gpu::{AllocationPolicy, Contents, Gpu, GpuId, Pool, Resource, Sharing, Unknown};
use crate::capacity::list::List;
use crate::capacity::name::{Name, PodUid};
use crate::capacity::node::presence::NamedPod;
use crate::capacity::time::Moment;
use crate::capacity::vram::Vram;

/// Where a node agent reads the GPUs, which decides what it can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The driver, by NVML. It tells the memory of each GPU and of each process.
    #[default]
    Driver,
    /// A DCGM exporter on the node. It tells the memory of each GPU and of no process.
    DcgmExporter,
}

impl Source {
    /// Whether it tells which processes use a GPU. If not, nothing is known of the use of pods and of memory outside of
    /// pods, and that a pod is not shown does not mean that its memory is free.
    pub fn tells_processes(self) -> bool {
        match self {
            Source::Driver => true,
            Source::DcgmExporter => false,
        }
    }
}

/// The report of one node's agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// When the agent wrote the report; `None` if it names no time.
    pub reported: Option<Moment>,
    /// The pod that the agent runs in; `None` if it runs outside of one, or is of a version that did not name it.
    pub pod: Option<Box<NamedPod>>,
    /// Where the agent reads the GPUs.
    pub source: Source,
    /// How the device plugin of the node hands out replicas.
    pub allocation_policy: AllocationPolicy,
    /// The GPUs behind each resource.
    pub gpus: BTreeMap<Resource, Vec<InventoryGpu>>,
    /// The GPU that the kubelet assigned to each container, by pod.
    pub assigned: LiteMap<PodUid, List<(Name, GpuId)>>,
    /// The most memory in MiB that each container was seen to use, by pod. It never falls while the pod lives.
    pub peaks: LiteMap<PodUid, List<(Name, Vram)>>,
}

/// A GPU as the agent reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InventoryGpu {
    /// Its identity, total memory, driver reserve and out-of-band use.
    pub gpu: Gpu,
    /// The number of replicas that the device plugin makes of it.
    pub replicas: NonZeroU32,
}

impl Inventory {
    /// The GPU that the kubelet gave to a container; `None` if it is not reported.
    pub fn gpu_of(&self, uid: &PodUid, container: &str) -> Option<&GpuId> {
        let assigned = self.assigned.get(uid)?;
        assigned.iter().find(|(name, _)| *name == *container).map(|(_, gpu)| gpu)
    }

    /// The most that a container was seen to use; `None` if it was not seen on a GPU.
    pub fn peak_of(&self, uid: &PodUid, container: &str) -> Option<Vram> {
        let peaks = self.peaks.get(uid)?;
        peaks.iter().find(|(name, _)| *name == *container).map(|(_, peak)| *peak)
    }

    /// Returns the pools of a node, with reported GPUs in place of those from the labels.
    ///
    /// A report that contradicts the node's capacity makes the pool unknown: one of the two is out of date, and
    /// vramguard must not guess which.
    pub fn applied_to(&self, pools: &[Pool]) -> Vec<Pool> {
        let replaced = |pool: &Pool| match self.gpus.get(&pool.resource) {
            Some(gpus) => self.replace(pool, gpus),
            None => pool.clone(),
        };
        let (allocation_policy, tells_processes) = (self.allocation_policy, self.source.tells_processes());
        pools.iter().map(replaced).map(|pool| Pool { allocation_policy, tells_processes, ..pool }).collect()
    }

    fn replace(&self, pool: &Pool, reported: &[InventoryGpu]) -> Pool {
        let resource = pool.resource.clone();
        let contents = match reported.first() {
            None => Err(Unknown::ReportedNone { resource }),
            Some(first) if reported.iter().any(|other| other.replicas != first.replicas) => {
                Err(Unknown::UnevenReplicas { resource })
            }
            Some(first) => {
                let gpus = reported.iter().map(|reported| reported.gpu.clone()).collect();
                agreed(pool, Contents { gpus, replicas: first.replicas })
            }
        };
        let shared = contents.as_ref().is_ok_and(|contents| contents.replicas.get() > 1);
        let sharing = match pool.sharing {
            said @ (Sharing::TimeSlicing | Sharing::Mps | Sharing::UnknownMethod) => said,
            Sharing::Exclusive | Sharing::Unstated if shared => Sharing::UnknownMethod,
            said @ (Sharing::Exclusive | Sharing::Unstated) => said,
        };
        Pool { sharing, contents, ..pool.clone() }
    }
}

/// Returns the reported contents, if they make as many replicas as the capacity of the node.
///
/// The labels may be missing or unusable, which is why the agent exists. The capacity of the node is known even then.
fn agreed(pool: &Pool, reported: Contents) -> Result<Contents, Unknown> {
    let counted = match &pool.contents {
        Ok(contents) => Some(replicas_in(contents)),
        Err(unknown) => unknown.capacity(),
    };
    match counted.filter(|counted| *counted != replicas_in(&reported)) {
        None => Ok(reported),
        Some(capacity) => Err(Unknown::ReportContradicts {
            gpus: reported.gpus.len(),
            replicas: reported.replicas.get(),
            resource: pool.resource.clone(),
            capacity,
        }),
    }
}

fn replicas_in(contents: &Contents) -> u64 {
    u64::from(contents.replicas.get()).saturating_mul(contents.gpus.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::gpu::Accounting;

    fn report(gpus: u32, replicas: u32) -> Inventory {
        let replicas = NonZeroU32::new(replicas).unwrap();
        let reported = |index| InventoryGpu { gpu: Gpu::of_size(index, Vram::from_mib(24_576)), replicas };
        let gpus = BTreeMap::from([(Resource("nvidia.com/gpu".into()), (0..gpus).map(reported).collect())]);
        Inventory { gpus, ..Inventory::default() }
    }

    fn pool(why: Unknown) -> Pool {
        Pool {
            resource: Resource("nvidia.com/gpu".into()),
            sharing: Sharing::Unstated,
            contents: Err(why),
            allocation_policy: AllocationPolicy::Unverified,
            hard_limits: false,
            tells_processes: false,
        }
    }

    #[test]
    fn a_report_that_contradicts_the_capacity_is_not_believed_where_labels_say_nothing() {
        let (resource, capacity) = (Resource("nvidia.com/gpu".into()), 8);
        for why in [
            Unknown::Unlabelled { label: "nvidia.com/gpu.memory", capacity },
            Unknown::BadLabel { label: "nvidia.com/gpu.memory", value: "much".into(), capacity },
            Unknown::Contradiction { gpus: 3, replicas: 4, resource: resource.clone(), capacity },
            Unknown::Unsupported { resource: resource.clone(), capacity },
        ] {
            let applied = |inventory: Inventory| inventory.applied_to(&[pool(why.clone())]).remove(0);
            assert_eq!(applied(report(2, 4)).accounting(), Accounting::Slot, "{why}");
            let contradicts = Unknown::ReportContradicts { gpus: 1, replicas: 4, resource: resource.clone(), capacity };
            assert_eq!(applied(report(1, 4)).contents, Err(contradicts), "{why}");
        }
        // If the capacity is unreadable too, nothing contradicts the report, and the report counts.
        let unreadable = Unknown::BadCapacity { resource, value: "many".into() };
        assert_eq!(report(1, 4).applied_to(&[pool(unreadable)])[0].accounting(), Accounting::Exact);
    }
}
