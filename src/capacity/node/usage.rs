//! [`NodeUsage`], [`PoolUsage`] and [`GpuUsage`]: how much of a node, a pool and a GPU is held and free. Owns these
//! results; [`super::ledger`] and [`super::occupancy`] compute them.

use super::holder::{Holder, Newcomer};
use super::presence::Doubt;
use crate::capacity::gpu::{Accounting, GpuId, Resource};
use crate::capacity::vram::Vram;

/// Usage of one pool. All amounts are in MiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolUsage {
    /// The resource name of the pool.
    pub resource: Resource,
    /// The accounting mode of the pool.
    pub accounting: Accounting,
    /// Allocatable of all its GPUs together; `None` if the GPUs are not known.
    pub allocatable: Option<Vram>,
    /// The sum over its holders, as far as their amounts are known.
    pub held: Vram,
    /// The number of its holders.
    pub holders: usize,
    /// The number of holders whose amount is not known. They count by slots, and the slot of the node is not known.
    /// `held` does not include them.
    pub uncounted: usize,
    /// The largest demand of one pod that fits now. In mode steered, vramguard chooses the GPU.
    pub free: Vram,
    /// The sum of further requests that fit now, over any number of pods that each demand at most `free`.
    ///
    /// On the worked node, empty and in mode slot, it is 8 × 6 GiB = 48 GiB, and `free` is 6 GiB.
    pub free_total: Vram,
    /// The most that one pod can ever get. Present where the node's published amount does not show it: in modes slot,
    /// confirmed and steered, and with several exclusive GPUs.
    pub pod_max: Option<Vram>,
    /// The largest demand of a pod with 1, 2, 3 or 4 replicas whose GPUs the device plugin chooses.
    pub free_unassigned: [Vram; 4],
    /// By how much the pool is, or may be, overcommitted; `None` if it cannot be.
    pub deficit: Option<Deficit>,
    /// Usage of each GPU; empty if the GPUs are not known.
    pub gpus: Vec<GpuUsage>,
    /// Whether a starting pod blocks a GPU of the pool for other pods, under `serializePerGpu`.
    pub starting: bool,
}

/// Usage of one node. All amounts are in MiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeUsage {
    /// The sum of the requests of all pods that are bound to the node or have a reservation there.
    pub bound: Vram,
    /// The largest demand of one pod that fits now, whichever of the node's guarded resources the pod requests.
    pub free: Vram,
    /// The amount of `vramguard.dev/vram` for the node's capacity and allocatable; `None` if the node must not have the
    /// resource.
    pub published: Option<Vram>,
    /// The value of the node's label `vramguard.dev/pod-max-mib`: the most that one pod can ever get here. It is never
    /// below what a bound pod already requests or requires. `None` if the node must not have the label.
    pub pod_max: Option<Vram>,
    /// The largest deficit of its guarded pools; `None` if none of them is overcommitted.
    pub deficit: Option<Vram>,
    /// Usage of each pool.
    pub pools: Vec<PoolUsage>,
    /// Why the claim of the node's agent to steer does not count; `None` if it does, or if there is none.
    pub doubt: Option<Box<Doubt>>,
}

/// Which holders count in a computation of free memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// All holders.
    All,
    /// The holders that a pod of this priority cannot preempt. Pods without a request always count: to preempt one
    /// frees nothing that kube-scheduler sees.
    NotPreemptibleBy(i32),
}

impl Counted {
    /// Whether a holder counts.
    pub(super) fn includes(self, holder: &Holder) -> bool {
        match self {
            Counted::All => true,
            Counted::NotPreemptibleBy(priority) => holder.priority >= priority || holder.request.is_none(),
        }
    }
}

/// By how much a GPU is overcommitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deficit {
    /// The largest deficit of a GPU in the pool, in MiB.
    pub by: Vram,
    /// The GPU that is certainly overcommitted; `None` if a GPU only may be, depending on where the pods are.
    pub on: Option<GpuId>,
}

/// Usage of one GPU. All amounts are in MiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuUsage {
    /// Identity of the GPU.
    pub id: GpuId,
    /// All its memory, including what the driver keeps.
    pub total: Vram,
    /// Allocatable of the GPU, 0 if out-of-band use exceeds it.
    pub allocatable: Vram,
    /// The sum over the pods that are known to be on this GPU.
    pub held: Vram,
    /// The largest demand of one pod that fits on the GPU in the worst case; `None` in the modes that know it for the
    /// node only.
    pub free: Option<Vram>,
    /// Whether a pod that is known to be on the GPU is starting, and so blocks it for other pods.
    pub starting: bool,
}

/// The totals of a pool that a message names. All amounts are in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolTotals {
    /// The accounting mode of the pool.
    pub accounting: Accounting,
    /// Allocatable of all its GPUs together; `None` if the GPUs are not known.
    pub allocatable: Option<Vram>,
    /// The sum over its holders, as far as their amounts are known.
    pub held: Vram,
    /// The number of its holders.
    pub holders: usize,
}

impl PoolUsage {
    /// The totals of the pool, for messages.
    pub fn totals(&self) -> PoolTotals {
        let PoolUsage { accounting, allocatable, held, holders, .. } = *self;
        PoolTotals { accounting, allocatable, held, holders }
    }

    /// Whether a starting pod is the reason that `free` is zero.
    ///
    /// If some memory is free, the pod is short of memory and startups are not the reason. In mode exclusive, they are
    /// not the reason either: a GPU that is taken stays taken when its pod is ready.
    pub fn is_kept_by_startup(&self, free: Vram) -> bool {
        self.starting && free.is_zero() && self.accounting != Accounting::Exclusive
    }

    /// The largest demand that fits now for a pod which gets its GPU in this way. `None` if this usage does not contain
    /// the number: it covers one replica in mode steered, and up to four in the others.
    pub fn free_for(&self, newcomer: Newcomer) -> Option<Vram> {
        let free = match (self.accounting, newcomer) {
            (Accounting::Exclusive | Accounting::Unknown, _) => self.free,
            // With one GPU, the number of replicas makes no difference.
            (Accounting::Exact, newcomer) if newcomer.replicas() > 0 => self.free,
            (Accounting::Steered, Newcomer::Steered(1)) => self.free,
            (Accounting::Steered, Newcomer::Steered(_)) => return None,
            (Accounting::Exact | Accounting::Slot | Accounting::Confirmed | Accounting::Steered, newcomer) => {
                let further = usize::try_from(newcomer.replicas().checked_sub(1)?).ok()?;
                *self.free_unassigned.get(further)?
            }
        };
        Some(free)
    }
}
