//! [`Holder`]: a pod that counts on a node, and the memory and replicas that it holds. Owns what follows from one
//! holder alone; what follows for the whole node is [`super::ledger`]'s and [`super::occupancy`]'s.

use crate::capacity::gpu::{AllocationPolicy, GpuId, Pool, Resource, Rules};
use crate::capacity::list::List;
use crate::capacity::name::Name;
use crate::capacity::pod::PodName;
use crate::capacity::pod::demand::{self, Role};
use crate::capacity::time::Moment;
use crate::capacity::vram::Vram;

/// A pod that counts on a node: one that is bound there, or has a reservation there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder {
    /// Namespace and name, for messages.
    pub name: PodName,
    /// Request for `vramguard.dev/vram` as Kubernetes counts it, in MiB; `None` if the pod requests none.
    pub request: Option<Vram>,
    /// How each of its GPU containers counts, in start order.
    pub parts: List<Part>,
    /// The GPU resources that it takes, each with a number of replicas of the device plugin (or whole GPUs).
    pub gpus: List<(Resource, u64)>,
    /// The least value, in MiB, of its node's label [`POD_MAX_MIB`](crate::keys::POD_MAX_MIB) that satisfies its
    /// required node affinity; `None` if the affinity sets no lower bound on the label.
    pub label_at_least: Option<Vram>,
    /// Whether its required node affinity fails on a node without that label.
    pub needs_label: bool,
    /// Its pod priority. A pod of higher priority may preempt it.
    pub priority: i32,
    /// When it was bound, while it is not ready; `None` once it is ready, and if that time is not known.
    pub starting: Option<Moment>,
    /// When it was bound; `None` if not known.
    pub bound: Option<Moment>,
    /// Whether it carries vramguard's annotation with the total memory of its GPU.
    pub annotated: bool,
}

/// One GPU container of a holder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Part {
    /// Name of the container.
    pub container: Name,
    /// When the container runs: init container, sidecar or app container.
    pub role: Role,
    /// How much it holds.
    pub amount: Amount,
    /// The GPU that vramguard's annotation names; `None` if the annotation is missing.
    pub gpu: Option<GpuId>,
}

/// How one GPU container of a holder counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Amount {
    /// By its request.
    Requested(Vram),
    /// By the request that vramguard gave it, because the pod itself declares nothing.
    Injected(Vram),
    /// By its declaration, plus the overhead of its processes.
    Declared {
        /// The declared amount, without overhead.
        declared: Vram,
        /// Number of CUDA processes. Each one adds `perProcessOverhead`.
        processes: u32,
    },
    /// By one slot for each of this number of replicas, because it declares nothing.
    Slots(u64),
    /// By a fixed amount: the replica of vramguard that wrote the reservation had computed it from the declaration.
    Counted(Vram),
}

/// How a pod that is not on the node yet would get its GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Newcomer {
    /// vramguard chooses one GPU for this number of replicas.
    Steered(u64),
    /// The device plugin chooses a GPU for each of this number of replicas.
    Unassigned(u64),
}

impl Newcomer {
    /// The number of replicas that it takes.
    pub fn replicas(self) -> u64 {
        match self {
            Newcomer::Unassigned(replicas) | Newcomer::Steered(replicas) => replicas,
        }
    }
}

impl Holder {
    /// The amount that the pod holds before it was seen on a GPU. `None` if the amount of one of its containers is not
    /// known: see [`Part::holds`].
    pub fn amount(&self, slot: Option<Vram>, rules: &Rules) -> Option<Vram> {
        self.amount_of(|part| part.holds(slot, rules))
    }

    /// The amount that the pod holds if each of its containers holds what `holds` returns. `None` if that is `None` for
    /// one of them.
    pub(super) fn amount_of(&self, holds: impl Fn(&Part) -> Option<Vram>) -> Option<Vram> {
        let parts: Option<Vec<(Role, Vram)>> = self.parts.iter().map(|part| Some((part.role, holds(part)?))).collect();
        Some(demand::of_pod(parts?))
    }

    /// How the pod would get its GPU if it were bound now.
    pub fn comes_to(&self, pool: &Pool) -> Newcomer {
        let replicas = self.takes(&pool.resource).unwrap_or(1);
        // A container with several replicas may get several GPUs, and its demand says nothing about each of them.
        let one_each = replicas <= self.parts.len() as u64;
        match pool.allocation_policy {
            AllocationPolicy::Steered if one_each => Newcomer::Steered(replicas),
            AllocationPolicy::Steered
            | AllocationPolicy::Unverified
            | AllocationPolicy::Stale
            | AllocationPolicy::Doubted
            | AllocationPolicy::Distributed
            | AllocationPolicy::Packed => Newcomer::Unassigned(replicas),
        }
    }

    /// The GPU behind the resource that it takes, if that resource has exactly one GPU. On a node with several pools
    /// the GPU needs a UUID: each pool counts its GPUs from zero, so an index is ambiguous.
    pub fn only_gpu(&self, pools: &[Pool]) -> Option<GpuId> {
        let pool = pools.iter().find(|pool| self.takes(&pool.resource).is_some())?;
        match pool.contents.as_ref().ok()?.gpus.as_slice() {
            [only] if pools.len() == 1 || matches!(only.id, GpuId::Uuid(_)) => Some(only.id.clone()),
            _ => None,
        }
    }

    /// The GPU resources of a holder that requests VRAM; empty for a holder without a request.
    pub fn requested_resources(&self) -> impl Iterator<Item = &Resource> {
        self.gpus.iter().filter(|_| self.request.is_some()).map(|(resource, _)| resource)
    }

    /// The number of replicas of a resource that it takes; `None` if it takes none.
    pub fn takes(&self, resource: &Resource) -> Option<u64> {
        let counts = self.gpus.iter().filter(|(name, _)| name == resource).map(|(_, count)| *count);
        counts.reduce(u64::saturating_add)
    }

    /// The GPU that its annotations name, if the node has that GPU.
    pub fn named_gpu(&self, pools: &[Pool]) -> Option<GpuId> {
        let named = self.parts.iter().find_map(|part| part.gpu.as_ref())?;
        let gpus = pools.iter().flat_map(|pool| &pool.contents).flat_map(|contents| &contents.gpus);
        gpus.into_iter().find(|gpu| gpu.has_id(named)).map(|gpu| gpu.id.clone())
    }

    /// Whether vramguard chooses its GPU on a node with these pools.
    pub fn is_steered(&self, pools: &[Pool]) -> bool {
        let takes = |pool: &&Pool| self.takes(&pool.resource).is_some();
        pools.iter().filter(takes).any(|pool| matches!(self.comes_to(pool), Newcomer::Steered(_)))
    }

    /// A copy without the fields that change while the pod runs. So a change of these fields alone does not rewrite the
    /// ledger.
    pub fn settled(&self) -> Holder {
        Holder { starting: None, bound: None, ..self.clone() }
    }
}

impl Part {
    /// Whether the pod declares nothing for the container, so that nothing but its use tells how much it takes.
    pub fn is_undeclared(&self) -> bool {
        match self.amount {
            Amount::Slots(_) | Amount::Injected(_) => true,
            Amount::Requested(_) | Amount::Declared { .. } | Amount::Counted(_) => false,
        }
    }

    /// The amount that the container holds, given the most that it was seen to use. A container that declares nothing
    /// counts with its use where that is more than it counted with before. `None` as for [`Part::holds`].
    pub(super) fn holds_seen(&self, seen: Option<Vram>, slot: Option<Vram>, rules: &Rules) -> Option<Vram> {
        let before = self.holds(slot, rules)?;
        Some(seen.filter(|_| self.is_undeclared()).map_or(before, |seen| before.max(seen)))
    }

    /// The amount that the container holds before it was seen on a GPU. `None` if it counts by slots and the slot is not
    /// known, or if the amount exceeds [`Vram::MAX`].
    pub fn holds(&self, slot: Option<Vram>, rules: &Rules) -> Option<Vram> {
        match self.amount {
            Amount::Requested(request) | Amount::Injected(request) => Some(request),
            Amount::Declared { declared, processes } => {
                let overhead = rules.per_process_overhead.checked_times(u64::from(processes))?;
                // A sum above `Vram::MAX` exceeds every GPU, and so does `Vram::MAX`: the clamp loses nothing.
                Some(declared.plus(overhead).min(Vram::MAX))
            }
            Amount::Counted(amount) => Some(amount),
            Amount::Slots(replicas) => slot?.checked_times(replicas),
        }
    }
}
