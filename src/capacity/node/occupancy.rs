//! `Occupancy`: the amounts on each GPU of one pool, and what is free in the worst case. Owns this arithmetic for
//! every accounting mode; knows nothing of pods, only the amounts that they hold.
//!
//! An amount whose GPU is not known is *unassigned*. The device plugin may not have served its pod yet, or no node
//! agent has reported the GPU. All results hold in the worst case: for each GPU that an unassigned amount may be on,
//! each order in which the device plugin may serve pods, and each departure. Departures matter, because a pod that
//! leaves frees a replica that a larger pod may take.
//!
//! The examples use the worked node of [`super`]: G0 and G1 with 24 GiB allocatable, 4 replicas and a slot of 6 GiB
//! each. The accounting modes are in the glossary of [`crate::capacity`].
//!
//! In mode exact there is one GPU, so the plain sum decides. In mode exclusive, the number of free GPUs decides.
//!
//! # Mode slot
//!
//! An unassigned amount may be on any GPU with a free replica. The worst case of a GPU is that all its free replicas
//! hold the largest unassigned amounts. The replica of a small pod counts as free too, because the pod may leave and a
//! larger one may get the replica.
//!
//! *Example:* four unassigned pods of 6 GiB may all be on G0 and fill it exactly: with at most one slot for each pod,
//! no GPU is overcommitted. If one unassigned pod has 20 GiB, the next pod may get a replica of the same GPU, so only 4
//! GiB are free.
//!
//! # Mode confirmed
//!
//! The device plugin is known to follow its policy `distributed`. It picks the GPU with the fewest replicas taken, and
//! ignores memory. So the number of unassigned replicas that a GPU can have depends on replica counts alone. A GPU gets
//! its n-th unassigned replica only while no other GPU has fewer replicas taken. The other GPUs can reach that count
//! only with the unassigned replicas that this GPU did not get. The order in which pods are served is not known, so the
//! worst case is that the GPU gets the n largest amounts.
//!
//! *Example:* G0 has a pod of 8 GiB, and a pod of 10 GiB is unassigned. The latter goes to G1, which has fewer replicas
//! taken. Then both GPUs have one replica taken, and the next pod may get either: 16 GiB are left on G0, 14 GiB on G1,
//! so 14 GiB are free.
//!
//! A departure lowers the replica count of a GPU, so that the next pod may get that GPU. The worst case is that the
//! smallest pods leave, because the largest amounts stay.
//!
//! *Example:* G0 has pods of 20, 1 and 1 GiB, and G1 has one of 1 GiB. Now the next pod would go to G1. If the two
//! small pods leave G0 first, both GPUs have one replica taken, and the next pod may join the 20 GiB. So 4 GiB are
//! free.
//!
//! Departures in the past need no such case. They may have led more unassigned replicas to a GPU than predicted. But
//! that GPU then has more replicas taken than predicted, so it is not the GPU with the fewest, and the next pod does
//! not get it.
//!
//! # Mode steered
//!
//! vramguard chooses the GPU of a new pod, and the node agent tells the device plugin. The new pod goes to the fullest
//! GPU that has room for it and a free replica, so that emptier GPUs stay available for large demands. The agent
//! reports the GPU that each container really got. A pod that was bound without a reservation is unassigned until that
//! report. It may be on any GPU with a free replica, so its amount and its replica count on each of them.
//!
//! *Example:* G1 has a pod of 8 GiB, and a pod of 10 GiB is unassigned. It may be on either GPU, so a new pod finds 14
//! GiB on G0 or 6 GiB on G1. 14 GiB are free.

use super::holder::Newcomer;
use super::usage::{Deficit, GpuUsage};
use crate::capacity::gpu::{Accounting, Contents, GpuId, Pool, Rules};
use crate::capacity::vram::{Balance, Vram};

/// What one pod takes of a pool, in one portion for each of its GPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodShare {
    /// GPU, amount in MiB and number of replicas of each portion. A portion without a known GPU is unassigned.
    pub portions: Vec<(Option<GpuId>, Vram, u64)>,
    /// Whether the pod is bound and not ready yet. It matters only under `serializePerGpu`, where such a pod blocks its
    /// GPU for other pods.
    pub starting: bool,
}

/// The portions that are known to be on one GPU.
#[derive(Clone, Debug, Default)]
struct GpuHolders {
    held: Vram,
    /// The amount of each portion, in MiB, largest first. Their sum is `held`.
    amounts: Vec<Vram>,
    replicas: u64,
    /// The number of starting pods on it, under `serializePerGpu`. They block other pods.
    starting: usize,
}

impl GpuHolders {
    /// Returns the amount held and the replicas taken if only the `staying` largest portions stay.
    ///
    /// That the smallest leave first is the worst case. A portion that stays counts as only one replica, even if it has
    /// several: it may have given back the others, and a GPU with fewer replicas taken can get more pods.
    fn after_all_but(&self, staying: usize) -> (Vram, u64) {
        (self.amounts[..staying].iter().copied().sum(), self.replicas.min(staying as u64))
    }
}

/// A pool and the amounts that its holders take of it.
#[derive(Debug)]
pub(super) struct Occupancy<'a> {
    contents: &'a Contents,
    accounting: Accounting,
    allocatable: Vec<Balance>,
    holders: Vec<GpuHolders>,
    /// Amounts whose GPU is not known, in MiB, largest first.
    unassigned: Vec<Vram>,
    unassigned_replicas: u64,
    unassigned_starting: bool,
    /// Replicas, or whole GPUs, that all holders take together.
    taken: u64,
}

impl<'a> Occupancy<'a> {
    /// Returns the occupancy of a pool; `None` if its GPUs are not known.
    pub(super) fn of(
        pool: &'a Pool,
        rules: &Rules,
        shares: impl IntoIterator<Item = PodShare>,
    ) -> Option<Occupancy<'a>> {
        let contents = pool.contents.as_ref().ok()?;
        let mut occupancy = Occupancy {
            contents,
            accounting: pool.accounting(),
            allocatable: contents.gpus.iter().map(|gpu| gpu.allocatable(rules)).collect(),
            holders: vec![GpuHolders::default(); contents.gpus.len()],
            unassigned: Vec::new(),
            unassigned_replicas: 0,
            unassigned_starting: false,
            taken: 0,
        };
        for share in shares {
            occupancy.add(share, rules.serialize_per_gpu);
        }
        let largest_first = |amounts: &mut Vec<Vram>| amounts.sort_unstable_by(|a, b| b.cmp(a));
        largest_first(&mut occupancy.unassigned);
        occupancy.holders.iter_mut().for_each(|gpu| largest_first(&mut gpu.amounts));
        Some(occupancy)
    }

    fn add(&mut self, share: PodShare, serialize: bool) {
        let starting = share.starting && serialize;
        for (gpu, amount, replicas) in share.portions {
            self.taken = self.taken.saturating_add(replicas);
            // With one GPU behind the resource, every amount is on it.
            let known = if self.holders.len() == 1 { Some(0) } else { gpu.and_then(|gpu| self.position(&gpu)) };
            if let Some(known) = known {
                let gpu = &mut self.holders[known];
                gpu.held = gpu.held.plus(amount);
                gpu.amounts.push(amount);
                gpu.replicas = gpu.replicas.saturating_add(replicas);
                gpu.starting += usize::from(starting);
            } else {
                self.unassigned.push(amount);
                self.unassigned_replicas = self.unassigned_replicas.saturating_add(replicas);
                self.unassigned_starting |= starting;
            }
        }
    }

    fn position(&self, id: &GpuId) -> Option<usize> {
        self.contents.gpus.iter().position(|gpu| gpu.has_id(id))
    }

    /// The largest demand of one more pod that fits now. The pod has one replica; in mode steered, vramguard chooses its
    /// GPU.
    pub(super) fn free(&self) -> Vram {
        self.free_for(self.default_newcomer())
    }

    fn default_newcomer(&self) -> Newcomer {
        if self.accounting == Accounting::Steered { Newcomer::Steered(1) } else { Newcomer::Unassigned(1) }
    }

    /// The largest demand of one more pod that fits now, if the pod gets its GPU as `newcomer` says.
    pub(super) fn free_for(&self, newcomer: Newcomer) -> Vram {
        let gpus = 0..self.holders.len();
        match (self.accounting, newcomer) {
            (Accounting::Unknown, _) => Vram::ZERO,
            // It is not known which GPU is free, so the smallest one counts.
            (Accounting::Exclusive, _) if self.taken < self.holders.len() as u64 => {
                self.allocatable.iter().min().map_or(Vram::ZERO, |smallest| smallest.free())
            }
            (Accounting::Exclusive, _) => Vram::ZERO,
            (Accounting::Steered, Newcomer::Steered(replicas)) => {
                gpus.filter_map(|gpu| self.free_steered(gpu, replicas)).max().map_or(Vram::ZERO, Balance::free)
            }
            (_, newcomer) => self.free_on_any_gpu(newcomer.replicas()),
        }
    }

    /// The largest demand that fits every GPU that the device plugin may pick for a new pod, now or after departures.
    ///
    /// `arrivals` is the number of replicas that the new pod takes. The device plugin may serve it before an unassigned
    /// pod, and so push that pod onto another GPU. If the unassigned pod might not fit there, the result is zero.
    ///
    /// *Example*, on the worked node under `distributed`: pods of 20 and 8 GiB are unassigned. Without a third pod,
    /// each gets a GPU of its own. A third pod may get the first replica of G0. Then the 20 GiB go to G1, and both GPUs
    /// have one replica taken. The 8 GiB may go to G1 too and do not fit there, so no third pod fits.
    fn free_on_any_gpu(&self, arrivals: u64) -> Vram {
        if self.unassigned_starting {
            return Vram::ZERO;
        }
        let mut least: Option<Balance> = None;
        for (gpu, holders) in self.holders.iter().enumerate() {
            let here = holders.amounts.len();
            let least_staying = if self.considers_departures() { 0 } else { here };
            for staying in least_staying..=here {
                let now = (holders.held, holders.replicas);
                let (held, replicas) = if self.considers_departures() { holders.after_all_but(staying) } else { now };
                let most = self.most_unassigned(gpu, replicas, arrivals);
                if most == 0 {
                    continue; // the pod cannot get this GPU
                }
                let left = self.allocatable[gpu].minus(held);
                // The starting pod may be among those that stay.
                let starting = holders.starting > 0 && staying > 0;
                if starting || self.minus_largest_unassigned(left, most).deficit().is_some() {
                    return Vram::ZERO;
                }
                // The worst case of the new pod itself: it takes one of the `most` replicas, and the largest unassigned
                // amounts take the others.
                let beside = self.minus_largest_unassigned(left, most - 1);
                least = Some(least.map_or(beside, |least| least.min(beside)));
            }
        }
        let Some(free) = least.map(Balance::free) else {
            return Vram::ZERO; // no GPU has a replica for the pod
        };
        match self.accounting {
            // Without this limit, one large pod could take the slots of other replicas.
            Accounting::Slot => free.min(self.slot()),
            Accounting::Exact
            | Accounting::Confirmed
            | Accounting::Steered
            | Accounting::Exclusive
            | Accounting::Unknown => free,
        }
    }

    /// Whether the worst case must consider departures: a pod that leaves frees a replica that a larger pod may take.
    fn considers_departures(&self) -> bool {
        match self.accounting {
            Accounting::Slot | Accounting::Confirmed | Accounting::Steered => true,
            // In these modes, `most_unassigned` does not depend on the replicas taken: a departure only frees memory.
            Accounting::Exact | Accounting::Exclusive | Accounting::Unknown => false,
        }
    }

    /// Returns the GPU that a new pod gets. It is `None` if the device plugin chooses the GPU.
    ///
    /// # Errors
    /// Fails if the demand does not fit. The error is the largest demand that would fit.
    pub(super) fn place(&self, demand: Vram, newcomer: Newcomer) -> Result<Option<&GpuId>, Vram> {
        let free = self.free_for(newcomer);
        if demand > free {
            return Err(free);
        }
        let gpus = 0..self.holders.len();
        let chosen = match (self.accounting, newcomer) {
            (Accounting::Exact, _) => Some(0),
            // The fullest GPU with enough room, so that emptier GPUs stay available for large demands.
            (Accounting::Steered, Newcomer::Steered(replicas)) => {
                let fitting = gpus.filter_map(|gpu| Some((self.free_steered(gpu, replicas)?, gpu)));
                fitting.filter(|(free, _)| demand <= free.free()).min().map(|(_, gpu)| gpu)
            }
            (
                Accounting::Steered
                | Accounting::Slot
                | Accounting::Confirmed
                | Accounting::Exclusive
                | Accounting::Unknown,
                _,
            ) => None,
        };
        Ok(chosen.map(|gpu| &self.contents.gpus[gpu].id))
    }

    /// As [`Occupancy::place`], for a pod with a reservation. In mode steered it keeps its reserved GPU. If the
    /// reservation names none, the pod may be on any GPU, as when the device plugin chooses.
    pub(super) fn place_again(
        &self,
        demand: Vram,
        newcomer: Newcomer,
        reserved: Option<&GpuId>,
    ) -> Result<Option<&GpuId>, Vram> {
        let (Accounting::Steered, Newcomer::Steered(replicas)) = (self.accounting, newcomer) else {
            return self.place(demand, newcomer);
        };
        let Some(gpu) = reserved.and_then(|gpu| self.position(gpu)) else {
            return self.place(demand, Newcomer::Unassigned(replicas));
        };
        let free = self.free_steered(gpu, replicas).map_or(Vram::ZERO, Balance::free);
        if demand <= free { Ok(Some(&self.contents.gpus[gpu].id)) } else { Err(free) }
    }

    /// What one more steered pod can get of a GPU in the worst case. `None` if the GPU takes no further pod: it may have
    /// too few free replicas, a starting pod may block it, or it may be overcommitted.
    ///
    /// The GPU must have replicas left even if it gets all unassigned ones. All of them then count here, so that a
    /// departure before the new pod arrives only frees memory.
    fn free_steered(&self, gpu: usize, replicas: u64) -> Option<Balance> {
        let taken = self.holders[gpu].replicas.saturating_add(self.unassigned_replicas);
        let full = taken.saturating_add(replicas) > self.replicas();
        let blocked = self.holders[gpu].starting > 0 || self.unassigned_starting;
        let free = self.left_at_worst(gpu);
        (!full && !blocked && free.deficit().is_none()).then_some(free)
    }

    /// What is left of a GPU in the worst case, without departures and new pods: as many unassigned amounts are on it
    /// as can be, and they are the largest.
    fn left_at_worst(&self, gpu: usize) -> Balance {
        self.minus_largest_unassigned(self.left(gpu), self.most_unassigned(gpu, self.holders[gpu].replicas, 0))
    }

    /// What is left of a GPU if no unassigned amount is on it.
    fn left(&self, gpu: usize) -> Balance {
        self.allocatable[gpu].minus(self.holders[gpu].held)
    }

    /// What remains of `left` after the `count` largest unassigned amounts.
    fn minus_largest_unassigned(&self, left: Balance, count: u64) -> Balance {
        self.unassigned.iter().take(usize::try_from(count).unwrap_or(usize::MAX)).copied().fold(left, Balance::minus)
    }

    /// The most unassigned replicas that a GPU can have at the moment when the last of them arrives.
    ///
    /// `staying` is the number of replicas that known pods take on it; here it counts replicas and not portions.
    /// `arrivals` is the number of replicas of a new pod, which count as unassigned.
    fn most_unassigned(&self, gpu: usize, staying: u64, arrivals: u64) -> u64 {
        let coming = self.unassigned_replicas.saturating_add(arrivals);
        let most = self.replicas().saturating_sub(staying).min(coming);
        match self.accounting {
            // Only the sum of amounts limits the GPU. kube-scheduler itself counts the replicas. If they counted here
            // too, the published amount would not stay constant: it would drop when all replicas are taken.
            Accounting::Exact => coming,
            Accounting::Slot => most,
            Accounting::Confirmed => {
                largest_where(most, |count| self.may_have_fewest(gpu, staying + count - 1, coming - count))
            }
            // The device plugin counts a replica where the agent reports it, so the others are left for unassigned ones.
            Accounting::Steered => most,
            Accounting::Exclusive | Accounting::Unknown => 0,
        }
    }

    /// Whether this GPU may have the fewest replicas taken when it has `taken`: `unassigned` replicas suffice to raise
    /// every other GPU to at least `taken`.
    ///
    /// *Example:* on the worked node, G0 has one replica taken and G1 none. The device plugin can pick G0 next only
    /// after one unassigned replica went to G1.
    fn may_have_fewest(&self, gpu: usize, taken: u64, unassigned: u64) -> bool {
        let others = self.holders.iter().enumerate().filter(|(other, _)| *other != gpu);
        let missing = others.map(|(_, gpu)| taken.saturating_sub(gpu.replicas));
        missing.fold(0, u64::saturating_add) <= unassigned
    }

    fn replicas(&self) -> u64 {
        u64::from(self.contents.replicas.get())
    }

    fn slot(&self) -> Vram {
        let smallest = self.allocatable.iter().min().map_or(Vram::ZERO, |smallest| smallest.free());
        smallest.share(self.contents.replicas.get())
    }

    /// Whether a starting pod blocks at least one GPU for other pods, under `serializePerGpu`.
    pub(super) fn is_starting(&self) -> bool {
        self.unassigned_starting || self.holders.iter().any(|gpu| gpu.starting > 0)
    }

    /// The largest deficit of a GPU. `None` if no GPU can be overcommitted, and in modes exclusive and unknown.
    ///
    /// A deficit is certain if the known amounts alone cause it. A certain one is returned even if a larger one is
    /// possible, depending on which GPUs the unassigned amounts are on.
    pub(super) fn deficit(&self) -> Option<Deficit> {
        let gpus = || 0..self.holders.len();
        if matches!(self.accounting, Accounting::Exclusive | Accounting::Unknown) {
            return None;
        }
        let certain = gpus().filter_map(|gpu| Some((self.left(gpu).deficit()?, gpu))).max();
        if let Some((by, gpu)) = certain {
            return Some(Deficit { by, on: Some(self.contents.gpus[gpu].id.clone()) });
        }
        let by = gpus().filter_map(|gpu| self.left_at_worst(gpu).deficit()).max()?;
        Some(Deficit { by, on: None })
    }

    /// Usage of each GPU, in the order of the pool.
    pub(super) fn gpus(&self) -> Vec<GpuUsage> {
        let free = |gpu: usize| match self.accounting {
            Accounting::Exact => Some(self.free()),
            Accounting::Confirmed => Some(self.left_at_worst(gpu).free()),
            Accounting::Steered => Some(self.free_steered(gpu, 1).map_or(Vram::ZERO, Balance::free)),
            Accounting::Slot | Accounting::Exclusive | Accounting::Unknown => None,
        };
        let usage = |(index, gpu): (usize, &crate::capacity::gpu::Gpu)| GpuUsage {
            id: gpu.id.clone(),
            total: gpu.total,
            allocatable: self.allocatable[index].free(),
            held: self.holders[index].held,
            free: free(index),
            starting: self.holders[index].starting > 0,
        };
        self.contents.gpus.iter().enumerate().map(usage).collect()
    }
}

/// The largest `n` in `1..=most` for which `holds(n)`, or 0. `holds` must be monotone: once false, false for all larger
/// `n`.
fn largest_where(most: u64, holds: impl Fn(u64) -> bool) -> u64 {
    let (mut yes, mut no) = (0, most + 1);
    while no - yes > 1 {
        let middle = yes.midpoint(no);
        if holds(middle) {
            yes = middle;
        } else {
            no = middle;
        }
    }
    yes
}

#[cfg(test)]
mod tests;
