//! Physical GPUs, the pools that stand behind one resource name, and what of them can be promised. Owns `allocatable`
//! and the choice of accounting mode; does not know who holds what (see [`super::ledger`]).

use std::fmt;
use std::num::NonZeroU32;

use super::vram::{Balance, Vram};

/// Name of an extended resource that stands for GPUs, such as `nvidia.com/gpu`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resource(pub String);

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which physical GPU (or MIG device) of a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GpuId {
    /// As NVML names it. Known once the node agent reports it.
    Uuid(String),
    /// Its position, where no UUID is known.
    Index(u32),
}

impl From<&str> for GpuId {
    /// From an annotation or a report: a number is a position, anything else a UUID.
    fn from(text: &str) -> GpuId {
        text.parse().map_or_else(|_| GpuId::Uuid(text.to_owned()), GpuId::Index)
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
    /// What the driver keeps for itself; zero until the agent reports it.
    pub driver_reserved: Vram,
    /// Used by processes that no pod accounts for; zero until the agent reports it.
    pub out_of_band: Vram,
}

impl Gpu {
    /// A GPU of which only the size is known.
    pub fn of_size(index: u32, total: Vram) -> Gpu {
        Gpu { id: GpuId::Index(index), index, total, driver_reserved: Vram::ZERO, out_of_band: Vram::ZERO }
    }

    /// Whether that names it: its position stays a name for it once the UUID is known.
    pub fn is(&self, id: &GpuId) -> bool {
        self.id == *id || GpuId::Index(self.index) == *id
    }

    /// floor((total − driver-reserved − headroom) × overcommit) − out-of-band use. Negative when out-of-band use alone
    /// exceeds it.
    pub fn allocatable(&self, rules: &Rules) -> Balance {
        let usable = self.total.less(self.driver_reserved).less(rules.headroom.of(self.total)).room();
        rules.overcommit.of(usable).less(self.out_of_band)
    }
}

/// The cluster-wide settings that turn sizes into promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// What a CUDA context costs that no framework counts, for each process.
    pub per_process_overhead: Vram,
    /// Kept free on each GPU.
    pub headroom: Headroom,
    /// Scales what may be promised.
    pub overcommit: Overcommit,
    /// Whether a GPU on which a pod starts takes no other one until that is ready.
    pub serialize_per_gpu: bool,
    /// Whether more than one scheduler places guarded pods. Each sums up a node by itself, so two can fill the same GPU.
    pub several_schedulers: bool,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            per_process_overhead: Vram::from_mib(600),
            headroom: Headroom { percent: 1, minimum: Vram::from_mib(256) },
            overcommit: Overcommit::NONE,
            serialize_per_gpu: false,
            several_schedulers: false,
        }
    }
}

/// Kept free on each GPU: the larger of a share of its total, rounded up, and a minimum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headroom {
    /// 0 to 100, of the total.
    pub percent: u8,
    /// At least this much.
    pub minimum: Vram,
}

impl Headroom {
    fn of(self, total: Vram) -> Vram {
        total.percent_rounded_up(self.percent).max(self.minimum)
    }
}

/// By how much more than the memory of a GPU may be promised, in thousandths. Above 1 the promise of no overcommit is
/// off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overcommit(u32);

impl Overcommit {
    /// Exactly what is there.
    pub const NONE: Overcommit = Overcommit(1000);
    const MAX: u32 = 10_000;

    /// From thousandths: 1 to 10,000.
    pub fn from_thousandths(thousandths: u32) -> Option<Overcommit> {
        (1..=Overcommit::MAX).contains(&thousandths).then_some(Overcommit(thousandths))
    }

    /// Whether more is promised than is there.
    pub fn is_on(self) -> bool {
        self > Overcommit::NONE
    }

    fn of(self, usable: Vram) -> Vram {
        usable.scaled_down(self.0).expect("ten times a GPU is still an amount of VRAM")
    }
}

impl fmt::Display for Overcommit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:03}", self.0 / 1000, self.0 % 1000);
        let short = text.trim_end_matches('0');
        if short.ends_with('.') { write!(f, "{short}0") } else { f.write_str(short) }
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
            // One GPU is what is published; of whole GPUs as much; of unknown ones nothing.
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
        Gpu { driver_reserved: Vram::from_mib(480), ..Gpu::of_size(0, Vram::from_mib(81_559)) }
    }

    #[test]
    fn nine_agents_of_8gi_fit_the_h100_that_was_measured_and_ten_do_not() {
        let allocatable = h100().allocatable(&Rules::default()).room();
        assert_eq!(allocatable, Vram::from_mib(80_263));
        let demand = Vram::from_mib(8192 + 600);
        assert!(demand.checked_times(9).unwrap() <= allocatable);
        assert!(demand.checked_times(10).unwrap() > allocatable);
    }

    #[test]
    fn the_headroom_of_a_small_gpu_is_the_minimum() {
        let gpu = Gpu::of_size(0, Vram::from_mib(24_576));
        assert_eq!(gpu.allocatable(&Rules::default()).room(), Vram::from_mib(24_576 - 256));
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
