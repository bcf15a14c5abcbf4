//! Who holds how much on one node, and what follows from it: held, placeable, published. Owns that arithmetic for every
//! accounting mode; does not know other nodes (see [`super::cluster`]) and does not choose GPUs.
//!
//! A pod is in the ledger from the moment it is seen with a node until it is seen ended or gone:
//!
//! ```text
//!            bind seen                 Succeeded, Failed or deleted seen
//!   absent ─────────────▶ holder ─────────────────────────────────────▶ absent
//!                          │  ▲
//!                          └──┘ seen again: replaced by its uid, never added twice
//! ```
//!
//! What a node publishes is Σ requests + placeable: never less than what is bound, so that a kubelet that admits its pods
//! again finds room for each; and what kube-scheduler sees as free is exactly what can be placed.

use std::collections::BTreeMap;

use super::demand::{self, Role};
use super::gpu::{Accounting, GpuId, Pool, Resource, Rules};
use super::pod::PodName;
use super::vram::{Balance, Vram};

/// Identity of a pod for all its life, as the API server gives it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodUid(pub String);

/// A pod that counts on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// For messages.
    pub name: PodName,
    /// What Kubernetes counts of `vramguard.dev/vram` for it; `None` where it requests none.
    pub request: Option<Vram>,
    /// How each of its GPU containers counts, in start order.
    pub parts: Vec<(Role, Part)>,
    /// GPU resources it takes, with the number of replicas (or whole GPUs).
    pub gpus: Vec<(Resource, u64)>,
    /// Which GPU it is on, once that is known.
    pub gpu: Option<GpuId>,
    /// Its priority: lower ones make room for pods that may preempt.
    pub priority: i32,
}

/// How one GPU container of a holder counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// By its request.
    Requested(Vram),
    /// By its declaration (D) and the contexts of so many processes.
    Declared {
        /// As declared.
        declared: Vram,
        /// CUDA processes.
        processes: u32,
    },
    /// By one slot for each of its replicas.
    Slots(u64),
}

/// Where a pool stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolStanding {
    /// Its resource.
    pub resource: Resource,
    /// How it is counted.
    pub accounting: Accounting,
    /// What all its GPUs can be promised; `None` where that is not known.
    pub allocatable: Option<Vram>,
    /// What is promised of it.
    pub held: Vram,
    /// By how many pods.
    pub holders: usize,
    /// Holders whose share is not known, because neither they nor the node say. Not in `held`.
    pub uncounted: usize,
    /// The largest demand it can take now; negative when overcommitted.
    pub balance: Balance,
}

/// Where a node stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Σ requests of the pods on it.
    pub bound: Vram,
    /// The largest demand that it can take now, whichever of its guarded resources is asked for.
    pub placeable: Vram,
    /// What `vramguard.dev/vram` has to say in its capacity and allocatable; `None` where it should not be there.
    pub published: Option<Vram>,
    /// The largest deficit of its pools.
    pub deficit: Option<Vram>,
    /// Each of its pools.
    pub pools: Vec<PoolStanding>,
}

/// Whose promises count when room is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Viewpoint {
    /// All of them.
    Everyone,
    /// Those that a pod of this priority cannot preempt. Pods without a request count all the same: preempting one frees
    /// nothing that kube-scheduler sees.
    Preempting(i32),
}

/// The ledger of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeLedger {
    holders: BTreeMap<PodUid, Holder>,
}

impl NodeLedger {
    /// Seen on the node. Idempotent: the same pod again replaces what was known of it.
    pub fn confirm(&mut self, uid: PodUid, holder: Holder) -> Option<Holder> {
        self.holders.insert(uid, holder)
    }

    /// Seen ended, gone or elsewhere. Idempotent.
    pub fn release(&mut self, uid: &PodUid) -> Option<Holder> {
        self.holders.remove(uid)
    }

    /// Who holds, by uid.
    pub fn holders(&self) -> &BTreeMap<PodUid, Holder> {
        &self.holders
    }

    /// Where the node stands. `guarded` are the resources that count; pools of others are shown, not promised.
    pub fn standing(&self, pools: &[Pool], rules: &Rules, guarded: impl Fn(&Resource) -> bool) -> Standing {
        let bound: Vram = self.holders.values().filter_map(|holder| holder.request).sum();
        let pools: Vec<PoolStanding> =
            pools.iter().map(|pool| self.pool_standing(pool, rules, Viewpoint::Everyone)).collect();
        // One number serves all resources of the node, so it promises what the fullest of them can keep.
        let guarded_pools = || pools.iter().filter(|pool| guarded(&pool.resource));
        // Where whole GPUs are all taken, their count says so, and the shared ones beside them may go on.
        let full = |pool: &&PoolStanding| pool.accounting == Accounting::Exclusive && pool.balance.room().is_zero();
        let rooms = || guarded_pools().filter(|pool| !full(pool)).map(|pool| pool.balance.room());
        let placeable = rooms().min().or_else(|| guarded_pools().next().map(|_| Vram::ZERO));
        let deficit = guarded_pools().filter_map(|pool| pool.balance.deficit()).max();
        let published = match placeable {
            Some(placeable) => Some(bound.plus(placeable)),
            None if bound.is_zero() => None,
            // No guarded GPU left, but pods that count: the kubelet would refuse them at its next start.
            None => Some(bound),
        };
        Standing { bound, placeable: placeable.unwrap_or(Vram::ZERO), published, deficit, pools }
    }

    /// Where one pool stands in the eyes of `viewpoint`.
    pub fn pool_standing(&self, pool: &Pool, rules: &Rules, viewpoint: Viewpoint) -> PoolStanding {
        let slot = pool.slot(rules);
        let (mut amounts, mut uncounted, mut taken) = (Vec::new(), 0, 0);
        for holder in self.holders.values().filter(|holder| holder.counts_for(viewpoint)) {
            let Some(replicas) = holder.takes(&pool.resource) else {
                continue;
            };
            taken = replicas.saturating_add(taken);
            match holder.amount(slot, rules) {
                Some(amount) => amounts.push(amount),
                None => uncounted += 1,
            }
        }
        let sum = |pick: &dyn Fn(&super::gpu::Gpu) -> Vram| -> Option<Vram> {
            Some(pool.contents.as_ref().ok()?.gpus.iter().map(pick).sum())
        };
        let accounting = pool.accounting();
        PoolStanding {
            resource: pool.resource.clone(),
            accounting,
            allocatable: sum(&|gpu| gpu.allocatable(rules).room()),
            held: amounts.iter().copied().sum(),
            holders: amounts.len() + uncounted,
            uncounted,
            balance: placeable(pool, rules, accounting, amounts, taken),
        }
    }
}

/// The largest demand that a pool can take, given what its holders hold and how many replicas (or whole GPUs) they take.
fn placeable(pool: &Pool, rules: &Rules, accounting: Accounting, mut amounts: Vec<Vram>, taken: u64) -> Balance {
    let nothing = Balance::from(Vram::ZERO);
    let Ok(contents) = &pool.contents else { return nothing };
    let Some(smallest) = contents.gpus.iter().map(|gpu| gpu.allocatable(rules)).min() else {
        return nothing;
    };
    match accounting {
        Accounting::Exact => amounts.into_iter().fold(smallest, Balance::less),
        // Whichever GPU a pod gets, at most replicas − 1 others are on it, in the worst case the largest of the node. So
        // a demand fits if it fits beside those. Never more than a slot: else one large pod could take the room that the
        // other replicas stand for.
        Accounting::Slot | Accounting::Confirmed | Accounting::Pinned => {
            amounts.sort_unstable_by(|a, b| b.cmp(a));
            let neighbours = contents.replicas.get() as usize - 1;
            let beside = amounts.into_iter().take(neighbours).fold(smallest, Balance::less);
            beside.min(Balance::from(smallest.room().share(contents.replicas.get())))
        }
        // Which GPU is free is not known, so the smallest is promised.
        Accounting::Exclusive if taken < contents.gpus.len() as u64 => smallest,
        Accounting::Exclusive | Accounting::Unknown => nothing,
    }
}

impl Holder {
    /// What it holds; `None` where nobody says what one of its containers does.
    fn amount(&self, slot: Option<Vram>, rules: &Rules) -> Option<Vram> {
        let amount = |part: &Part| match part {
            Part::Requested(request) => Some(*request),
            Part::Declared { declared, processes } => {
                let overhead = rules.per_process_overhead.checked_times(u64::from(*processes))?;
                Some(declared.plus(overhead))
            }
            Part::Slots(replicas) => slot?.checked_times(*replicas),
        };
        let parts: Option<Vec<(Role, Vram)>> =
            self.parts.iter().map(|(role, part)| Some((*role, amount(part)?))).collect();
        Some(demand::of_pod(parts?))
    }

    /// The resources that are guarded because of it: those it holds with a request for VRAM.
    pub fn guarded_resources(&self) -> impl Iterator<Item = &Resource> {
        self.gpus.iter().filter(|_| self.request.is_some()).map(|(resource, _)| resource)
    }

    /// Replicas it takes of a resource; `None` where it takes none.
    pub fn takes(&self, resource: &Resource) -> Option<u64> {
        let counts = self.gpus.iter().filter(|(name, _)| name == resource).map(|(_, count)| *count);
        counts.reduce(u64::saturating_add)
    }

    fn counts_for(&self, viewpoint: Viewpoint) -> bool {
        match viewpoint {
            Viewpoint::Everyone => true,
            Viewpoint::Preempting(priority) => self.priority >= priority || self.request.is_none(),
        }
    }
}

#[cfg(test)]
mod tests;
