//! Physical GPUs, the pools that stand behind one resource name, and what of them can be promised. Owns `allocatable`
//! and the choice of accounting mode; does not know who holds what (see [`super::ledger`]).

use std::fmt;
use std::num::NonZeroU32;

use super::name::Name;
use super::vram::{Balance, Vram};
use crate::keys;

mod rules;

pub use rules::{DriverReserve, Headroom, Overcommit, Rules};

/// Name of an extended resource that stands for GPUs, such as `nvidia.com/gpu`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resource(pub Name);

impl Resource {
    /// Whether it stands for MIG devices, which are apart in hardware.
    pub fn is_mig(&self) -> bool {
        self.0.starts_with(keys::MIG_RESOURCE_OF)
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which physical GPU (or MIG device) of a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GpuId {
    /// As NVML names it. Known once the node agent reports it.
    Uuid(Name),
    /// Its position, where no UUID is known.
    Index(u32),
}

impl From<&str> for GpuId {
    /// From an annotation or a report: a number is a position, anything else a UUID.
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

/// One physical GPU (or one MIG device). Never a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Which one of its node.
    pub id: GpuId,
    /// Its position, as NVML and `CUDA_DEVICE_ORDER=PCI_BUS_ID` count.
    pub index: u32,
    /// All its memory, driver-reserved included.
    pub total: Vram,
    /// What the driver keeps for itself, as the agent reports it; `None` until then.
    pub driver_reserved: Option<Vram>,
    /// Used by processes that no pod accounts for; zero until the agent reports it.
    pub out_of_band: Vram,
}

impl Gpu {
    /// A GPU of which only the size is known.
    pub fn of_size(index: u32, total: Vram) -> Gpu {
        Gpu { id: GpuId::Index(index), index, total, driver_reserved: None, out_of_band: Vram::ZERO }
    }

    /// Whether that names it: its position stays a name for it once the UUID is known.
    pub fn is(&self, id: &GpuId) -> bool {
        self.id == *id || GpuId::Index(self.index) == *id
    }

    /// floor((total − driver-reserved − headroom) × overcommit) − out-of-band use. Negative when out-of-band use alone
    /// exceeds it.
    pub fn allocatable(&self, rules: &Rules) -> Balance {
        let usable = self.total.less(rules.driver_reserve.of(self)).less(rules.headroom.of(self.total)).room();
        rules.overcommit.of(usable).less(self.out_of_band)
    }
}

/// How the GPUs of a pool are shared, as far as the node says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Each GPU goes to one container.
    Exclusive,
    /// Time-slicing: replicas without memory.
    TimeSlicing,
    /// The Multi-Process Service.
    Mps,
    /// Shared for certain (by its name, say), the way is not known.
    SomeWay,
    /// The node does not say.
    Unstated,
}

impl Sharing {
    /// Whether the node says that several containers may get one GPU.
    pub fn is_shared(self) -> bool {
        match self {
            Sharing::TimeSlicing | Sharing::Mps | Sharing::SomeWay => true,
            Sharing::Exclusive | Sharing::Unstated => false,
        }
    }
}

/// How the device plugin hands out the replicas of several GPUs, as far as the node agent has verified it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Handout {
    /// Nobody knows.
    #[default]
    Unverified,
    /// From the GPU with the fewest replicas taken; ties at random.
    Distributed,
    /// From the GPU with the most replicas taken that has one left; ties at random.
    Packed,
    /// By `NVIDIA_VISIBLE_DEVICES`, where a pod sets it: the pod's value beats the plugin's.
    Pinned,
}

/// The GPUs of a node behind one resource name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// What containers request.
    pub resource: Resource,
    /// How it is shared.
    pub sharing: Sharing,
    /// What is behind it, or why that cannot be known.
    pub contents: Result<Contents, Unknown>,
    /// How containers come to their GPU.
    pub handout: Handout,
}

/// The physical side of a [`Pool`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// At least one.
    pub gpus: Vec<Gpu>,
    /// How many replicas the device plugin makes of each.
    pub replicas: NonZeroU32,
}

/// Why the GPUs of a pool are not known. Never "none": an unreadable size is not zero.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// No size on the node.
    #[error("the node carries no {label} label")]
    Unlabelled {
        /// The label that is missing.
        label: &'static str,
        /// Capacity of the resource.
        capacity: u64,
    },
    /// A label that is not a number of the expected kind.
    #[error("label {label}={value:?} is not a whole number above zero")]
    BadLabel {
        /// The label.
        label: &'static str,
        /// What stands there.
        value: String,
        /// Capacity of the resource.
        capacity: u64,
    },
    /// Labels that describe other GPUs than the node has, as on a node with two models.
    #[error("the labels say {gpus} GPUs with {replicas} replicas each, but the capacity of {resource} is {capacity}")]
    Contradiction {
        /// Physical GPUs by label.
        gpus: u32,
        /// Replicas each by label.
        replicas: u32,
        /// The resource that contradicts.
        resource: Resource,
        /// Its capacity.
        capacity: u64,
    },
    /// A quantity in the node's status that cannot be read.
    #[error("the capacity of {resource}, {value:?}, is not a whole number")]
    BadCapacity {
        /// The resource.
        resource: Resource,
        /// What stands there.
        value: String,
    },
    /// A node agent that reports other GPUs than the node has replicas of.
    #[error(
        "the node agent reports {gpus} GPUs with {replicas} replicas each, but the capacity of {resource} is {capacity}"
    )]
    ReportContradicts {
        /// Physical GPUs reported.
        gpus: usize,
        /// Replicas each, as reported.
        replicas: u32,
        /// The resource that contradicts.
        resource: Resource,
        /// Its capacity.
        capacity: u64,
    },
    /// A node agent that knows the resource and no GPU behind it.
    #[error("the node agent reports no GPU behind {resource}")]
    ReportedNone {
        /// The resource.
        resource: Resource,
    },
    /// GPUs of one resource with different numbers of replicas.
    #[error("the node agent reports GPUs with different numbers of replicas behind {resource}")]
    UnevenReplicas {
        /// The resource.
        resource: Resource,
    },
    /// The object that all replicas share cannot be read.
    #[error("its promises cannot be read: {why}")]
    Ledger {
        /// Object, field and what is wrong there.
        why: String,
    },
    /// A resource that the device plugin was told to rename.
    #[error("labels do not tell which GPUs are behind the renamed resource {resource}; name them in a GpuInventory")]
    Renamed {
        /// The resource.
        resource: Resource,
        /// Its capacity.
        capacity: u64,
    },
    /// A kind of GPU whose size is not read yet.
    #[error("sizes of {resource} are not read from labels; name them in a GpuInventory")]
    Unsupported {
        /// The resource.
        resource: Resource,
        /// Its capacity.
        capacity: u64,
    },
}

impl Unknown {
    /// How many of the resource the node has all the same, where that is readable.
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

/// How sure the sum on a GPU is, and so what may be placed. The least sure comes last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Accounting {
    /// One GPU behind the resource: certain.
    Exact,
    /// Not shared: whole GPUs.
    Exclusive,
    /// The annotation decides the GPU, verified.
    Pinned,
    /// Predicted from the device plugin's verified policy, corrected from PodResources.
    Confirmed,
    /// Several GPUs, nothing verified: safe by pigeonhole.
    Slot,
    /// Nothing can be promised.
    Unknown,
}

impl fmt::Display for Accounting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accounting::Exact => "exact",
            Accounting::Confirmed => "confirmed",
            Accounting::Pinned => "pinned",
            Accounting::Slot => "slot",
            Accounting::Exclusive => "exclusive",
            Accounting::Unknown => "unknown",
        })
    }
}

impl Pool {
    /// The accounting mode that what is known of the pool allows. `confirmed` and `pinned` need what only the agent
    /// brings.
    pub fn accounting(&self) -> Accounting {
        match &self.contents {
            Err(_) => Accounting::Unknown,
            Ok(_) if !self.sharing.is_shared() => Accounting::Exclusive,
            // The MPS daemon limits each client to total / replicas, also where one GPU has all of them.
            Ok(_) if self.sharing == Sharing::Mps => Accounting::Slot,
            Ok(contents) if contents.gpus.len() == 1 => Accounting::Exact,
            Ok(_) => match self.handout {
                Handout::Unverified => Accounting::Slot,
                Handout::Distributed | Handout::Packed => Accounting::Confirmed,
                Handout::Pinned => Accounting::Pinned,
            },
        }
    }

    /// Allocatable of the smallest GPU: what any container is sure to find, whichever GPU it gets.
    pub fn smallest_gpu(&self, rules: &Rules) -> Option<Vram> {
        self.allocatables(rules)?.min()
    }

    /// The largest demand that it could take if it were empty: a container that demands more never fits.
    pub fn ceiling(&self, rules: &Rules) -> Option<Vram> {
        match self.accounting() {
            Accounting::Slot => self.slot(rules),
            Accounting::Exact | Accounting::Exclusive => self.smallest_gpu(rules),
            Accounting::Confirmed | Accounting::Pinned => self.allocatables(rules)?.max(),
            Accounting::Unknown => None,
        }
    }

    /// Allocatable / replicas of the smallest GPU: with no container above it, no GPU can be overcommitted.
    pub fn slot(&self, rules: &Rules) -> Option<Vram> {
        let replicas = self.contents.as_ref().ok()?.replicas;
        Some(self.smallest_gpu(rules)?.share(replicas.get()))
    }

    /// The largest number of replicas with which one of them holds a demand that the pool never takes as it is; `None` where
    /// fewer replicas do not help: a whole GPU is too small, or one pod may take all of it already.
    pub fn replicas_for(&self, demand: Vram, rules: &Rules) -> Option<u32> {
        let (slot, gpu) = (self.slot(rules)?, self.smallest_gpu(rules)?);
        let bound_by_slot = self.sharing.is_shared() && self.ceiling(rules) == Some(slot);
        let holds = |replicas: &u32| demand <= gpu.share(*replicas);
        let most = self.contents.as_ref().ok()?.replicas.get();
        (1..most).rev().find(holds).filter(|_| bound_by_slot && !demand.is_zero())
    }

    /// The slots of all its replicas; `None` where the GPUs are not known, or past what a quantity can say.
    pub fn slots(&self, rules: &Rules) -> Option<Vram> {
        let contents = self.contents.as_ref().ok()?;
        let gpus = u64::try_from(contents.gpus.len()).ok()?;
        self.slot(rules)?.checked_times(u64::from(contents.replicas.get()).checked_mul(gpus)?)
    }

    /// The most that one pod can ever get, where kube-scheduler's sum over the node does not say it.
    pub fn pod_max(&self, rules: &Rules) -> Option<Vram> {
        match self.accounting() {
            Accounting::Slot | Accounting::Confirmed | Accounting::Pinned => self.ceiling(rules),
            Accounting::Exclusive if self.contents.as_ref().is_ok_and(|contents| contents.gpus.len() > 1) => {
                self.ceiling(rules)
            }
            // The number is that of one GPU; of unknown ones nothing is published.
            Accounting::Exact | Accounting::Exclusive | Accounting::Unknown => None,
        }
    }

    /// What all its GPUs can be promised; zero where they are not known.
    pub fn allocatable(&self, rules: &Rules) -> Vram {
        self.allocatables(rules).into_iter().flatten().sum()
    }

    fn allocatables(&self, rules: &Rules) -> Option<impl Iterator<Item = Vram>> {
        Some(self.contents.as_ref().ok()?.gpus.iter().map(|gpu| gpu.allocatable(rules).room()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn h100() -> Gpu {
        Gpu { driver_reserved: Some(Vram::from_mib(480)), ..Gpu::of_size(0, Vram::from_mib(81_559)) }
    }

    /// Each takes 8 GiB and up to 682 MiB next to that; the card has 81,559 MiB, of which the driver keeps 480.
    #[test]
    fn nine_agents_of_8gi_fit_an_h100_of_which_only_the_label_is_known_and_ten_do_not() {
        let rules = Rules::default();
        let allocatable = Gpu::of_size(0, Vram::from_mib(81_559)).allocatable(&rules).room();
        assert_eq!(allocatable, Vram::from_mib(81_559 - 490 - 816));
        let demand = Vram::from_mib(8192).plus(rules.per_process_overhead);
        assert!(demand.checked_times(9).unwrap() <= allocatable);
        assert!(demand.checked_times(10).unwrap() > allocatable);
    }

    /// With an overhead of 600 MiB all 16 were admitted, and 4 of them died.
    #[test]
    fn sixteen_agents_that_fill_an_h100_with_their_contexts_are_not_all_admitted() {
        let rules = Rules::default();
        let demand = Vram::from_mib(4446).plus(rules.per_process_overhead);
        let allocatable = h100().allocatable(&rules).room();
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
            assert_eq!(gpu.allocatable(&rules).room(), Vram::from_mib(24_576 - reserve - 256));
        }
        assert_eq!(h100().allocatable(&with(DriverReserve::Auto)).room(), Vram::from_mib(80_263));
    }

    #[test]
    fn overcommit_scales_before_out_of_band_use_is_taken_off() {
        let rules = Rules { overcommit: Overcommit::from_thousandths(1500).unwrap(), ..Rules::default() };
        let gpu = Gpu { out_of_band: Vram::from_mib(1000), ..h100() };
        assert_eq!(gpu.allocatable(&rules).room(), Vram::from_mib(80_263 * 3 / 2 - 1000));
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
        assert_eq!(h100().allocatable(&rules).room(), Vram::ZERO);
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
