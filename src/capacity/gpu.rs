//! Physical GPUs, pools of GPUs behind one resource name, and how much of their memory can be given to pods.
//!
//! Owns `allocatable` and the choice of the accounting mode. It does not know which pods hold what: that is the
//! [`ledger`](crate::capacity::node::ledger).

use std::fmt;
use std::num::NonZeroU32;

use crate::capacity::name::Name;
use crate::capacity::vram::{Balance, Vram};
use crate::keys;

mod index;
mod rules;

pub use index::GpuIndex;
pub use rules::{DriverReserve, Headroom, Overcommit, Rules};

/// Name of an extended resource that GPUs or their replicas are requested by, such as `nvidia.com/gpu`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resource(pub Name);

impl Resource {
    /// Whether the resource is a MIG profile. MIG devices are isolated from each other in hardware.
    pub fn is_mig(&self) -> bool {
        self.0.starts_with(keys::MIG_RESOURCE_OF)
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Identity of a physical GPU, or of a MIG device, on its node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GpuId {
    /// The UUID that NVML reports. It is known once the node agent reports it.
    Uuid(Name),
    /// The index of the GPU, used as long as its UUID is not known.
    Index(u32),
}

impl From<&str> for GpuId {
    /// Reads an annotation or a report: a number is an index, and any other text a UUID.
    fn from(text: &str) -> GpuId {
        text.parse().map_or_else(|_| GpuId::Uuid(text.into()), GpuId::Index)
    }
}

impl fmt::Display for GpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GpuId::Uuid(uuid) => f.write_str(uuid),
            GpuId::Index(index) => write!(f, "{index}"),
        }
    }
}

/// One physical GPU, or one MIG device. Never a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Identity on the node.
    pub id: GpuId,
    /// Index on the node.
    pub index: GpuIndex,
    /// Total memory, including what the driver keeps.
    pub total: Vram,
    /// Memory that the driver keeps, as the node agent reports it; `None` until then.
    pub driver_reserved: Option<Vram>,
    /// Memory that processes outside of any pod use; zero until the node agent reports it.
    pub out_of_band: Vram,
}

impl Gpu {
    /// Makes a GPU of which only the index and the size are known.
    pub fn of_size(index: u32, total: Vram) -> Gpu {
        Gpu { id: GpuId::Index(index), index: index.into(), total, driver_reserved: None, out_of_band: Vram::ZERO }
    }

    /// Whether `id` names this GPU. The index of a whole GPU stays valid as a name once the UUID is known. It names no MIG
    /// device, also where the source of the device does not tell its own index.
    pub fn has_id(&self, id: &GpuId) -> bool {
        let uuid = match &self.id {
            GpuId::Uuid(uuid) => Some(uuid.as_str()),
            GpuId::Index(_) => None,
        };
        self.id == *id || self.index.names(uuid, id)
    }

    /// What CUDA reports as the total of this GPU: all its memory, without what the driver keeps once that is known.
    pub fn reported_total(&self) -> Vram {
        self.total.minus(self.driver_reserved.unwrap_or(Vram::ZERO)).free()
    }

    /// Memory of this GPU that pods can be given.
    ///
    /// It is floor((total − driver reserve − headroom) × overcommit) − out-of-band use. A driver reserve and headroom
    /// that exceed the total leave zero; out-of-band use that exceeds the rest makes it negative.
    pub fn allocatable(&self, rules: &Rules) -> Balance {
        let usable = self.total.minus(rules.driver_reserve.of(self)).minus(rules.headroom.of(self.total)).free();
        rules.overcommit.of(usable).minus(self.out_of_band)
    }
}

/// How the GPUs of a pool are shared, as far as the node's labels, a `GpuInventory` or the node agent tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Each GPU is given to one container.
    Exclusive,
    /// NVIDIA time-slicing: replicas that carry no memory.
    TimeSlicing,
    /// NVIDIA Multi-Process Service (MPS).
    Mps,
    /// The GPUs are shared for certain, for instance because of the resource's name. The method is not known.
    UnknownMethod,
    /// It is not known whether the GPUs are shared.
    Unstated,
}

impl Sharing {
    /// Whether it is known that several containers may get the same GPU.
    pub fn is_shared(self) -> bool {
        match self {
            Sharing::TimeSlicing | Sharing::Mps | Sharing::UnknownMethod => true,
            Sharing::Exclusive | Sharing::Unstated => false,
        }
    }
}

/// How the device plugin chooses a GPU for a replica, as far as the node agent has verified it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AllocationPolicy {
    /// No node agent has verified it.
    #[default]
    Unverified,
    /// The node agent verified it, but has not reported for too long.
    Stale,
    /// The node agent claims to answer for the device plugin, and no longer runs: see
    /// [`crate::capacity::node::presence`].
    Doubted,
    /// The GPU with the fewest allocated replicas; ties are broken at random.
    Distributed,
    /// The GPU with the most allocated replicas that has a free one; ties are broken at random.
    Packed,
    /// The node agent answers for the device plugin: a container gets the GPU that the ledger names, and else one that
    /// has room. See [`crate::capacity::node::occupancy`].
    Steered,
}

/// The GPUs of a node behind one resource name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The resource that containers request.
    pub resource: Resource,
    /// How the GPUs are shared.
    pub sharing: Sharing,
    /// The GPUs and their replicas, or the reason why they are not known.
    pub contents: Result<Contents, Unknown>,
    /// How the device plugin chooses the GPU of a container.
    pub allocation_policy: AllocationPolicy,
    /// Whether the node enforces hard limits of GPU memory, as a `GpuInventory` says.
    pub hard_limits: bool,
    /// Whether a current report of the node agent tells which processes use the GPUs, so that memory which outlives its pod
    /// is seen.
    pub tells_processes: bool,
}

/// The GPUs of a [`Pool`] and their replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// The GPUs, at least one.
    pub gpus: Vec<Gpu>,
    /// Replicas that the device plugin makes of each GPU.
    pub replicas: NonZeroU32,
}

/// Why the GPUs of a pool are not known. An amount that cannot be read is unknown, never zero.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// A label that describes the GPUs is missing on the node.
    #[error("the node carries no {label} label")]
    Unlabelled {
        /// Key of the missing label.
        label: &'static str,
        /// Capacity of the resource.
        capacity: u64,
    },
    /// A label is not a whole number above zero, or its size is too large for a GPU.
    #[error("label {label}={value:?} is not a whole number above zero")]
    BadLabel {
        /// Key of the label.
        label: &'static str,
        /// Text that was found.
        value: String,
        /// Capacity of the resource.
        capacity: u64,
    },
    /// Labels or a `GpuInventory` contradict the capacity, as labels do on a node with two GPU models.
    #[error("the labels say {gpus} GPUs with {replicas} replicas each, but the capacity of {resource} is {capacity}")]
    Contradiction {
        /// Physical GPUs that they describe.
        gpus: u32,
        /// Replicas of each GPU that they describe.
        replicas: u32,
        /// Resource whose capacity contradicts this.
        resource: Resource,
        /// Capacity of the resource.
        capacity: u64,
    },
    /// The capacity of the resource in the node's status cannot be read.
    #[error("the capacity of {resource}, {value:?}, is not a whole number from 0 to 18446744073709551615")]
    BadCapacity {
        /// The resource.
        resource: Resource,
        /// Text that was found.
        value: String,
    },
    /// The node agent reports other GPUs than the node has replicas of.
    #[error(
        "the node agent reports {gpus} GPUs with {replicas} replicas each, but the capacity of {resource} is {capacity}"
    )]
    ReportContradicts {
        /// Physical GPUs that the agent reports.
        gpus: usize,
        /// Replicas of each GPU that the agent reports.
        replicas: u32,
        /// Resource whose capacity contradicts this.
        resource: Resource,
        /// Capacity of the resource.
        capacity: u64,
    },
    /// The node agent reports the resource, and no GPU behind it.
    #[error("the node agent reports no GPU behind {resource}")]
    ReportedNone {
        /// The resource.
        resource: Resource,
    },
    /// The node agent reports GPUs of one resource with different numbers of replicas.
    #[error("the node agent reports GPUs with different numbers of replicas behind {resource}")]
    UnevenReplicas {
        /// The resource.
        resource: Resource,
    },
    /// The `GpuLedger` of the node, which all replicas of the server share, cannot be read.
    #[error("its promises cannot be read: {why}")]
    Ledger {
        /// Object, field, and what is wrong there.
        why: String,
    },
    /// The device plugin is configured to rename the resource, so labels do not describe its GPUs.
    #[error("labels do not tell which GPUs are behind the renamed resource {resource}; name them in a GpuInventory")]
    Renamed {
        /// The resource.
        resource: Resource,
        /// Capacity of the resource.
        capacity: u64,
    },
    /// The size of this kind of GPU is not read from labels yet.
    #[error("sizes of {resource} are not read from labels; name them in a GpuInventory")]
    Unsupported {
        /// The resource.
        resource: Resource,
        /// Capacity of the resource.
        capacity: u64,
    },
}

impl Unknown {
    /// Capacity of the resource on the node, or `None` where it is unreadable or not recorded here.
    pub fn capacity(&self) -> Option<u64> {
        match self {
            Unknown::Unlabelled { capacity, .. }
            | Unknown::BadLabel { capacity, .. }
            | Unknown::Contradiction { capacity, .. }
            | Unknown::ReportContradicts { capacity, .. }
            | Unknown::Renamed { capacity, .. }
            | Unknown::Unsupported { capacity, .. } => Some(*capacity),
            Unknown::BadCapacity { .. }
            | Unknown::ReportedNone { .. }
            | Unknown::UnevenReplicas { .. }
            | Unknown::Ledger { .. } => None,
        }
    }
}

/// How certain the sum on a GPU is, which decides what may be placed. The least certain mode comes last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Accounting {
    /// One shared GPU behind the resource: the sum is certain.
    Exact,
    /// The GPUs are not shared: whole GPUs are given out.
    Exclusive,
    /// vramguard chooses the GPU: the node agent steers the device plugin, and verified that it takes effect.
    Steered,
    /// The GPU is predicted from the device plugin's verified policy `distributed`, and corrected from PodResources.
    Confirmed,
    /// Several shared GPUs with nothing verified, or MPS. One slot per replica is safe by the pigeonhole principle.
    Slot,
    /// The GPUs are not known: no more pods are placed.
    Unknown,
}

impl fmt::Display for Accounting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accounting::Exact => "exact",
            Accounting::Confirmed => "confirmed",
            Accounting::Steered => "steered",
            Accounting::Slot => "slot",
            Accounting::Exclusive => "exclusive",
            Accounting::Unknown => "unknown",
        })
    }
}

impl Pool {
    /// The accounting mode that the known facts about the pool allow.
    ///
    /// The modes `confirmed` and `steered` need facts that only the node agent reports.
    pub fn accounting(&self) -> Accounting {
        match &self.contents {
            Err(_) => Accounting::Unknown,
            Ok(_) if !self.sharing.is_shared() => Accounting::Exclusive,
            // The MPS daemon limits each client to total / replicas, even if all clients share one GPU.
            Ok(_) if self.sharing == Sharing::Mps => Accounting::Slot,
            Ok(contents) if contents.gpus.len() == 1 => Accounting::Exact,
            Ok(_) => match self.allocation_policy {
                // Under `packed`, any GPU with a free replica may be next, so a prediction would hold less than slots.
                AllocationPolicy::Unverified
                | AllocationPolicy::Stale
                | AllocationPolicy::Doubted
                | AllocationPolicy::Packed => Accounting::Slot,
                AllocationPolicy::Distributed => Accounting::Confirmed,
                AllocationPolicy::Steered => Accounting::Steered,
            },
        }
    }

    /// Allocatable memory of the smallest GPU; `None` if the GPUs are not known.
    ///
    /// Any container finds at least this much, whichever GPU it gets.
    pub fn smallest_gpu(&self, rules: &Rules) -> Option<Vram> {
        self.allocatables(rules)?.min()
    }

    /// The largest demand of one container that the pool could take if it were empty.
    ///
    /// A larger demand never fits. It is `None` if the GPUs are not known.
    pub fn max_demand(&self, rules: &Rules) -> Option<Vram> {
        match self.accounting() {
            Accounting::Slot => self.slot(rules),
            Accounting::Exact | Accounting::Exclusive => self.smallest_gpu(rules),
            Accounting::Confirmed | Accounting::Steered => self.allocatables(rules)?.max(),
            Accounting::Unknown => None,
        }
    }

    /// One slot: the allocatable memory of the smallest GPU divided by its replicas, rounded down.
    ///
    /// If no container holds more than a slot, no GPU can be overcommitted, whichever GPU each container gets.
    pub fn slot(&self, rules: &Rules) -> Option<Vram> {
        let replicas = self.contents.as_ref().ok()?.replicas;
        Some(self.smallest_gpu(rules)?.share(replicas.get()))
    }

    /// The largest number of replicas for which one slot holds a demand that never fits the pool as configured.
    ///
    /// It is `None` if fewer replicas do not help: one GPU is too small, or one pod may take all of it already.
    pub fn replicas_for(&self, demand: Vram, rules: &Rules) -> Option<u32> {
        let (slot, gpu) = (self.slot(rules)?, self.smallest_gpu(rules)?);
        let bound_by_slot = self.sharing.is_shared() && self.max_demand(rules) == Some(slot);
        let holds = |replicas: &u32| demand <= gpu.share(*replicas);
        let most = self.contents.as_ref().ok()?.replicas.get();
        (1..most).rev().find(holds).filter(|_| bound_by_slot && !demand.is_zero())
    }

    /// The slots of all replicas together; `None` if the GPUs are not known or the sum exceeds [`Vram::MAX`].
    pub fn total_slots(&self, rules: &Rules) -> Option<Vram> {
        let contents = self.contents.as_ref().ok()?;
        let gpus = u64::try_from(contents.gpus.len()).ok()?;
        self.slot(rules)?.checked_times(u64::from(contents.replicas.get()).checked_mul(gpus)?)
    }

    /// The most that one pod can ever get, for the label of the node; `None` where no label is needed.
    ///
    /// The label is needed where kube-scheduler's sum over the node does not bound a single pod.
    pub fn pod_max(&self, rules: &Rules) -> Option<Vram> {
        match self.accounting() {
            Accounting::Slot | Accounting::Confirmed | Accounting::Steered => self.max_demand(rules),
            Accounting::Exclusive if self.contents.as_ref().is_ok_and(|contents| contents.gpus.len() > 1) => {
                self.max_demand(rules)
            }
            // With one GPU, the published amount is that of the GPU. For unknown GPUs nothing is published.
            Accounting::Exact | Accounting::Exclusive | Accounting::Unknown => None,
        }
    }

    /// Whether kube-scheduler's sum over the node does not keep each GPU of the pool from being overcommitted.
    ///
    /// With one GPU that is so if startups are serialized, if several schedulers place pods, or if an agent shows memory that
    /// pods have left behind: kube-scheduler gives the room of a pod away as soon as the pod is gone from the API.
    pub fn needs_reservations(&self, rules: &Rules) -> bool {
        match self.accounting() {
            Accounting::Slot | Accounting::Confirmed | Accounting::Steered | Accounting::Unknown => true,
            Accounting::Exact => rules.serialize_per_gpu || rules.several_schedulers || self.tells_processes,
            Accounting::Exclusive => false,
        }
    }

    /// The allocatable memory of all GPUs together; zero if they are not known.
    pub fn allocatable(&self, rules: &Rules) -> Vram {
        self.allocatables(rules).into_iter().flatten().sum()
    }

    /// The allocatable memory of each GPU, at least zero; `None` if the GPUs are not known.
    fn allocatables(&self, rules: &Rules) -> Option<impl Iterator<Item = Vram>> {
        Some(self.contents.as_ref().ok()?.gpus.iter().map(|gpu| gpu.allocatable(rules).free()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn h100() -> Gpu {
        Gpu { driver_reserved: Some(Vram::from_mib(480)), ..Gpu::of_size(0, Vram::from_mib(81_559)) }
    }

    /// Each agent takes 8 GiB and up to 682 MiB on top. The GPU has 81,559 MiB, of which the driver keeps 480.
    #[test]
    fn nine_agents_of_8gi_fit_an_h100_of_which_only_the_label_is_known_and_ten_do_not() {
        let rules = Rules::default();
        let allocatable = Gpu::of_size(0, Vram::from_mib(81_559)).allocatable(&rules).free();
        assert_eq!(allocatable, Vram::from_mib(81_559 - 490 - 816));
        let demand = Vram::from_mib(8192).plus(rules.per_process_overhead);
        assert!(demand.checked_times(9).unwrap() <= allocatable);
        assert!(demand.checked_times(10).unwrap() > allocatable);
    }

    /// With an overhead of 600 MiB, all 16 agents were admitted, and 4 of them died.
    #[test]
    fn sixteen_agents_that_fill_an_h100_with_their_contexts_are_not_all_admitted() {
        let rules = Rules::default();
        let demand = Vram::from_mib(4446).plus(rules.per_process_overhead);
        let allocatable = h100().allocatable(&rules).free();
        assert!(demand.checked_times(15).unwrap() <= allocatable);
        assert!(demand.checked_times(16).unwrap() > allocatable);
    }

    #[test]
    fn the_driver_reserve_is_what_is_reported_or_estimated_or_what_policy_says() {
        let with = |driver_reserve| Rules { driver_reserve, ..Rules::default() };
        let small = Gpu::of_size(0, Vram::from_mib(24_576));
        let reports_nothing = Gpu { driver_reserved: Some(Vram::ZERO), ..small.clone() };
        for (gpu, rules, reserve) in [
            (&small, with(DriverReserve::Auto), 450),
            (&reports_nothing, with(DriverReserve::Auto), 0),
            (&small, with(DriverReserve::Amount(Vram::from_mib(100))), 100),
            (&reports_nothing, with(DriverReserve::Amount(Vram::from_mib(100))), 100),
        ] {
            assert_eq!(gpu.allocatable(&rules).free(), Vram::from_mib(24_576 - reserve - 256));
        }
        assert_eq!(h100().allocatable(&with(DriverReserve::Auto)).free(), Vram::from_mib(80_263));
    }

    #[test]
    fn overcommit_scales_before_out_of_band_use_is_taken_off() {
        let rules = Rules { overcommit: Overcommit::from_thousandths(1500).unwrap(), ..Rules::default() };
        let gpu = Gpu { out_of_band: Vram::from_mib(1000), ..h100() };
        assert_eq!(gpu.allocatable(&rules).free(), Vram::from_mib(80_263 * 3 / 2 - 1000));
    }

    #[test]
    fn out_of_band_use_beyond_the_gpu_is_a_deficit_not_a_wrapped_number() {
        let gpu = Gpu { out_of_band: Vram::from_mib(90_000), ..h100() };
        assert_eq!(gpu.allocatable(&Rules::default()).deficit(), Some(Vram::from_mib(90_000 - 80_263)));
    }

    #[test]
    fn a_headroom_larger_than_the_gpu_leaves_nothing() {
        let headroom = Headroom { percent: 100, minimum: Vram::from_mib(200_000) };
        let rules = Rules { headroom, ..Rules::default() };
        assert_eq!(h100().allocatable(&rules).free(), Vram::ZERO);
    }

    #[test]
    fn overcommit_is_written_as_it_is_declared() {
        for (thousandths, text) in [(1000, "1.0"), (1500, "1.5"), (1, "0.001"), (10_000, "10.0"), (1250, "1.25")] {
            assert_eq!(Overcommit::from_thousandths(thousandths).unwrap().to_string(), text);
        }
        assert_eq!(Overcommit::from_thousandths(0), None);
        assert_eq!(Overcommit::from_thousandths(10_001), None);
    }
}
