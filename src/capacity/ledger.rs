//! Who holds how much on one node, and what follows from it: held, placeable, published. Owns whose word counts: pods as they
//! are seen, the reservations that the replicas share, what the node agent reports. The arithmetic on GPUs is
//! [`super::occupancy`]'s, the life of a reservation [`super::reservation`]'s; other nodes are [`super::cluster`]'s.
//!
//! A pod that is seen on the node holds from then until it is seen ended or gone:
//!
//! ```text
//!            bind seen                 Succeeded, Failed or deleted seen
//!   absent ─────────────▶ holder ─────────────────────────────────────▶ absent
//!                          │  ▲
//!                          └──┘ seen again: replaced by its uid, never added twice
//! ```
//!
//! A pod that is not seen here yet but has a reservation holds too, unless it is certain that it never will be here.
//!
//! What a node publishes is Σ requests + what may be requested beside them: never less than what is bound, so that a kubelet
//! that admits its pods again finds room for each. What may be requested is what one pod can be given now; under slot
//! accounting, where each replica left stands for a slot of its own, it is all those slots, and the number stays the same.
//! That no pod takes more than one of them is for the node's `pod_max` to say, which each pod requires.

use std::collections::{BTreeMap, BTreeSet};

use super::binding;
use super::demand::{self, Role};
use super::gpu::{Accounting, GpuId, Handout, Pool, Resource, Rules, Unknown};
use super::moment::Moment;
use super::name::Name;
pub use super::name::PodUid;
use super::occupancy::{self, Deficit, GpuStanding, Newcomer, Occupancy};
use super::pod::PodName;
use super::report::Report;
use super::reservation::Reservations;
use super::sharing::List;
use super::vram::Vram;

/// A pod that counts on a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder {
    /// For messages.
    pub name: PodName,
    /// What Kubernetes counts of `vramguard.dev/vram` for it; `None` where it requests none.
    pub request: Option<Vram>,
    /// How each of its GPU containers counts, in start order.
    pub parts: List<Part>,
    /// GPU resources it takes, with the number of replicas (or whole GPUs).
    pub gpus: List<(Resource, u64)>,
    /// The least that the label [`POD_MAX_MIB`](crate::keys::POD_MAX_MIB) of its node may say for its required node affinity to
    /// hold; `None` where that asks for nothing.
    pub label_at_least: Option<Vram>,
    /// Its priority: lower ones make room for pods that may preempt.
    pub priority: i32,
    /// Since when it is bound without being ready; `None` once it is, and where that is not known.
    pub starting: Option<Moment>,
    /// When it was bound, as far as that is known.
    pub bound: Option<Moment>,
    /// Whether it carries our annotation with the size of its GPU.
    pub annotated: bool,
}

/// One GPU container of a holder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Part {
    /// Its name.
    pub container: Name,
    /// When it runs.
    pub role: Role,
    /// What it holds.
    pub amount: Amount,
    /// Whether its GPU is the one that our annotation names, where the node is verified to honour that.
    pub pinned: bool,
    /// The GPU that our annotation names.
    pub gpu: Option<GpuId>,
}

/// How one GPU container of a holder counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Amount {
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
    /// As whoever wrote it into a ledger counted a declaration.
    Counted(Vram),
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
    /// The largest demand it can take now; where pods are pinned, of a pinned one.
    pub room: Vram,
    /// What may be requested of it beside what is, by any number of pods that each demand no more than `room`.
    pub requestable: Vram,
    /// The most that one pod can ever get. Only where there are several shared GPUs: the node's number does not say it there.
    pub pod_max: Option<Vram>,
    /// The largest demand of a pod that the device plugin gives one, two, three or four replicas, of whichever GPUs.
    pub loose_rooms: [Vram; 4],
    /// By how much it is overcommitted, or may be.
    pub deficit: Option<Deficit>,
    /// Each of its GPUs; none where they are not known.
    pub gpus: Vec<GpuStanding>,
    /// Whether a pod that starts there keeps every other one off.
    pub starting: bool,
}

/// Where a node stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Σ requests of the pods on it, or promised to be.
    pub bound: Vram,
    /// The largest demand that it can take now, whichever of its guarded resources is asked for.
    pub placeable: Vram,
    /// What `vramguard.dev/vram` has to say in its capacity and allocatable; `None` where it should not be there.
    pub published: Option<Vram>,
    /// The most that one pod can ever get here, where kube-scheduler has to be told; at least what some pod has already.
    pub pod_max: Option<Vram>,
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
    /// What all replicas have promised, and the agent reported; `None` where the node has no `GpuLedger`.
    shared: Option<Shared>,
    /// Pods with a reservation of which it is certain that they hold nothing here: ended, gone, or bound elsewhere.
    departed: BTreeSet<PodUid>,
    /// Startups that have lasted this long or longer keep nobody off.
    startups_from: Moment,
}

/// What stands in the `GpuLedger` of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shared {
    /// Promised.
    pub reservations: Reservations,
    /// Seen by the agent, if one runs.
    pub report: Option<Report>,
    /// Why it cannot be read, where it cannot: nothing is promised then.
    pub fault: Option<String>,
}

impl NodeLedger {
    /// Seen on the node. Idempotent: the same pod again replaces what was known of it.
    pub fn confirm(&mut self, uid: PodUid, holder: Holder) -> Option<Holder> {
        self.departed.remove(&uid);
        self.holders.insert(uid, holder)
    }

    /// Not seen on the node any more, whatever became of it. Idempotent.
    pub fn release(&mut self, uid: &PodUid) -> Option<Holder> {
        self.holders.remove(uid)
    }

    /// It is certain that the pod holds nothing here and never will: it ended, is gone, or is bound elsewhere. Returns
    /// whether that changes anything.
    pub fn depart(&mut self, uid: &PodUid) -> bool {
        let held = self.holders.remove(uid).is_some();
        let reserved = self.reservations().is_some_and(|reservations| reservations.contains(uid));
        held | (reserved && self.departed.insert(uid.clone()))
    }

    /// Another state of the node's `GpuLedger`; `None` where it is gone.
    pub fn share(&mut self, shared: Option<Shared>) {
        self.shared = shared;
        let reserved = |uid: &PodUid| self.shared.as_ref().is_some_and(|shared| shared.reservations.contains(uid));
        self.departed.retain(|uid| reserved(uid));
    }

    /// Startups from before that moment keep nobody off any more. Returns whether that ends one.
    pub fn startups_from(&mut self, moment: Moment) -> bool {
        let ends = |since: Moment| self.startups_from <= since && since < moment;
        let ended = self.counted().any(|(_, holder)| holder.starting.is_some_and(ends));
        self.startups_from = moment;
        ended
    }

    /// Who is seen here, by uid.
    pub fn holders(&self) -> &BTreeMap<PodUid, Holder> {
        &self.holders
    }

    /// What stands in the node's `GpuLedger`, if it has one.
    pub fn shared(&self) -> Option<&Shared> {
        self.shared.as_ref()
    }

    /// Pods with a reservation that is void.
    pub fn departed(&self) -> &BTreeSet<PodUid> {
        &self.departed
    }

    fn reservations(&self) -> Option<&Reservations> {
        self.shared.as_ref().map(|shared| &shared.reservations)
    }

    /// Everybody who counts: whoever is seen here, and whoever may still come.
    pub fn counted(&self) -> impl Iterator<Item = (&PodUid, &Holder)> {
        let reserved = self.reservations().into_iter().flat_map(Reservations::iter);
        let coming = reserved.filter(|(uid, _)| !self.holders.contains_key(uid) && !self.departed.contains(uid));
        self.holders.iter().chain(coming.map(|(uid, reservation)| (uid, &reservation.holder)))
    }

    /// Whether a node that publishes so much publishes less than what is bound there.
    pub fn falls_short(published: Vram, bound: Vram) -> bool {
        published < bound
    }

    /// Σ requests once a pod is here too: what the node has to publish at least, so that a kubelet that starts finds room
    /// for each of its pods.
    pub fn bound_with(&self, uid: &PodUid, newcomer: &Holder) -> Vram {
        let others = self.counted().filter(|(other, _)| *other != uid).filter_map(|(_, holder)| holder.request);
        others.chain(newcomer.request).sum()
    }

    /// The node's pools as labels say, with what the agent reports put in place.
    pub fn reported(&self, pools: &[Pool]) -> Vec<Pool> {
        let Some(shared) = &self.shared else { return pools.to_vec() };
        if let Some(why) = &shared.fault {
            let unknown = |pool: &Pool| Pool { contents: Err(Unknown::Ledger { why: why.clone() }), ..pool.clone() };
            return pools.iter().map(unknown).collect();
        }
        match &shared.report {
            Some(report) => report.applied_to(pools),
            None => pools.to_vec(),
        }
    }

    /// Where the node stands. `guarded` are the resources that count; pools of others are shown, not promised. `pools` as
    /// [`NodeLedger::reported`] gives them.
    pub fn standing(&self, pools: &[Pool], rules: &Rules, guarded: impl Fn(&Resource) -> bool) -> Standing {
        let bound: Vram = self.counted().filter_map(|(_, holder)| holder.request).sum();
        let pools: Vec<PoolStanding> =
            pools.iter().map(|pool| self.pool_standing(pool, rules, Viewpoint::Everyone)).collect();
        // One number serves all resources of the node, so it promises what the fullest of them can keep.
        let guarded_pools = || pools.iter().filter(|pool| guarded(&pool.resource));
        // Where whole GPUs are all taken, their count says so, and the shared ones beside them may go on.
        let full = |pool: &&PoolStanding| pool.accounting == Accounting::Exclusive && pool.room.is_zero();
        let open = || guarded_pools().filter(|pool| !full(pool));
        let placeable = open().map(|pool| pool.room).min();
        // A kubelet that starts ends pods whose required affinity does not hold any more, as it ends those for which it finds no
        // room. Beside a pod that is larger than it could be now, what is published keeps others of its size off.
        let required = self.counted().filter_map(|(_, holder)| holder.request.max(holder.label_at_least));
        let largest = required.max().unwrap_or_default();
        let pod_max = guarded_pools().filter_map(|pool| pool.pod_max).min().map(|most| most.max(largest));
        // A label that had to be raised for a pod of another pool keeps nobody of that size off this one.
        let kept_off = |pool: &&PoolStanding| pool.pod_max.is_none() || pod_max <= pool.pod_max;
        let requestable_of = |pool: &PoolStanding| if kept_off(&pool) { pool.requestable } else { pool.room };
        let requestable = open().map(requestable_of).min().or_else(|| guarded_pools().map(requestable_of).min());
        let deficit = guarded_pools().filter_map(|pool| pool.deficit.as_ref()).map(|deficit| deficit.by).max();
        let published = match requestable {
            Some(requestable) => Some(bound.plus(requestable)),
            None if bound.is_zero() => None,
            // No guarded GPU left, but pods that count: the kubelet would refuse them at its next start.
            None => Some(bound),
        };
        Standing { bound, placeable: placeable.unwrap_or(Vram::ZERO), published, pod_max, deficit, pools }
    }

    /// Where one pool stands in the eyes of `viewpoint`.
    pub fn pool_standing(&self, pool: &Pool, rules: &Rules, viewpoint: Viewpoint) -> PoolStanding {
        let slot = pool.slot(rules);
        let holders = || {
            let all = self.counted().filter(|(_, holder)| holder.counts_for(viewpoint));
            all.filter(|(_, holder)| holder.takes(&pool.resource).is_some())
        };
        let amounts: Vec<Option<Vram>> = holders().map(|(_, holder)| holder.amount(slot, rules)).collect();
        let occupancy = self.occupancy(pool, rules, viewpoint);
        let room = occupancy.as_ref().map_or(Vram::ZERO, Occupancy::room);
        let requested = || holders().filter_map(|(_, holder)| holder.request).sum();
        let within_slots = amounts.iter().all(|amount| amount.is_some_and(|amount| Some(amount) <= slot));
        let requestable = match (pool.accounting(), pool.slots(rules)) {
            // Each pod has a replica of its own, and each replica a slot. Where a pod is larger than that, or each keeps others off
            // while it starts, only one more can be foreseen.
            (Accounting::Slot, Some(slots)) if within_slots && Some(room) == slot && !rules.serialize_per_gpu => {
                slots.less(requested()).room()
            }
            // A GPU has one pod, so its count is what keeps pods apart, also while all are taken: a pod that preempts has to
            // see that one GPU given back is enough.
            (Accounting::Exclusive, Some(slots)) => slots.less(requested()).room().max(room),
            _ => room,
        };
        let loose_room = |replicas| occupancy.as_ref().map_or(Vram::ZERO, |o| o.room_for(Newcomer::Loose(replicas)));
        PoolStanding {
            resource: pool.resource.clone(),
            accounting: pool.accounting(),
            allocatable: occupancy.as_ref().map(|_| pool.allocatable(rules)),
            held: amounts.iter().flatten().copied().sum(),
            holders: amounts.len(),
            uncounted: amounts.iter().filter(|amount| amount.is_none()).count(),
            room,
            requestable,
            pod_max: pool.pod_max(rules),
            loose_rooms: [1, 2, 3, 4].map(loose_room),
            deficit: occupancy.as_ref().and_then(Occupancy::deficit),
            starting: occupancy.as_ref().is_some_and(Occupancy::is_starting),
            gpus: occupancy.as_ref().map(Occupancy::gpus).unwrap_or_default(),
        }
    }

    /// Where a pod that is not here yet would go: on a GPU of our choice, wherever the plugin puts it (`None`), or nowhere
    /// (`Err`, with the most that would fit). The pod itself, should it count already, does not stand in its own way.
    pub fn place(&self, uid: &PodUid, newcomer: &Holder, pool: &Pool, rules: &Rules) -> Result<Option<GpuId>, Vram> {
        let others = self.shares(pool, rules, Viewpoint::Everyone, Some(uid));
        let occupancy = Occupancy::of(pool, rules, others).ok_or(Vram::ZERO)?;
        let demand = newcomer.amount(pool.slot(rules), rules).ok_or(Vram::ZERO)?;
        occupancy.place(demand, newcomer.comes_to(pool)).map(|gpu| gpu.cloned())
    }

    fn occupancy<'p>(&self, pool: &'p Pool, rules: &Rules, viewpoint: Viewpoint) -> Option<Occupancy<'p>> {
        Occupancy::of(pool, rules, self.shares(pool, rules, viewpoint, None))
    }

    /// What each holder of a pool takes of it.
    fn shares<'l>(
        &'l self,
        pool: &'l Pool,
        rules: &'l Rules,
        viewpoint: Viewpoint,
        but: Option<&'l PodUid>,
    ) -> impl Iterator<Item = occupancy::Share> + 'l {
        let slot = pool.slot(rules);
        let counted = self.counted().filter(move |(uid, holder)| holder.counts_for(viewpoint) && Some(*uid) != but);
        counted.filter_map(move |(uid, holder)| {
            let replicas = holder.takes(&pool.resource)?;
            let starting = holder.starting.is_some_and(|since| since >= self.startups_from);
            let seats = self
                .seats(uid, holder, pool, slot, rules)
                .unwrap_or_else(|| vec![(None, holder.amount(slot, rules).unwrap_or(Vram::ZERO), replicas)]);
            Some(occupancy::Share { seats, starting })
        })
    }

    /// What a holder takes of each GPU; `None` where the GPU of one of its containers is not known.
    fn seats(
        &self,
        uid: &PodUid,
        holder: &Holder,
        pool: &Pool,
        slot: Option<Vram>,
        rules: &Rules,
    ) -> Option<Vec<(Option<GpuId>, Vram, u64)>> {
        // A container with several replicas may be on several GPUs, of which one is named.
        if holder.takes(&pool.resource).is_some_and(|replicas| replicas > holder.parts.len() as u64) {
            return None;
        }
        let mut by_gpu: BTreeMap<GpuId, Vec<(Role, Vram)>> = BTreeMap::new();
        for part in &holder.parts {
            let gpu = self.gpu_of(uid, part, pool.handout)?;
            by_gpu.entry(gpu).or_default().push((part.role, part.holds(slot, rules)?));
        }
        let seat = |(gpu, parts): (GpuId, Vec<(Role, Vram)>)| {
            let replicas = demand::replicas_of_pod(parts.iter().map(|(role, _)| (*role, 1)));
            (Some(gpu), demand::of_pod(parts), replicas)
        };
        (!by_gpu.is_empty()).then(|| by_gpu.into_iter().map(seat).collect())
    }

    /// The GPU that all of a holder's containers are on, where that is known.
    pub fn known_gpu(&self, uid: &PodUid, holder: &Holder, pools: &[Pool]) -> Option<GpuId> {
        let pool = pools.iter().find(|pool| holder.takes(&pool.resource).is_some())?;
        if let Some(only) = binding::only_gpu(holder, pools) {
            return Some(only);
        }
        let mut gpus = holder.parts.iter().map(|part| self.gpu_of(uid, part, pool.handout));
        let first = gpus.next()??;
        gpus.all(|gpu| gpu.as_ref() == Some(&first)).then_some(first)
    }

    /// Where a container is, as far as somebody knows. Of a pinned one the kubelet's record, which the agent reports, says
    /// where the plugin would have put it.
    fn gpu_of(&self, uid: &PodUid, part: &Part, handout: Handout) -> Option<GpuId> {
        let shared = self.shared.as_ref()?;
        if handout == Handout::Pinned && part.pinned {
            let reserved = shared.reservations.of(uid).and_then(|reservation| reservation.gpu_of(&part.container));
            return reserved.or(part.gpu.as_ref()).cloned();
        }
        shared.report.as_ref()?.given.get(uid)?.get(part.container.as_str()).cloned()
    }
}

impl PoolStanding {
    /// Whether a pod that starts is why there is only so much room. Where some is left, that is what falls short; and a whole
    /// GPU that is taken is no more free once its pod has started.
    pub fn is_kept_by_startup(&self, room: Vram) -> bool {
        self.starting && room.is_zero() && self.accounting != Accounting::Exclusive
    }

    /// The largest demand of such a pod that it can take now, where that follows from what is known here.
    pub fn room_for(&self, newcomer: Newcomer) -> Option<Vram> {
        let room = match (self.accounting, newcomer) {
            (Accounting::Exclusive | Accounting::Unknown, _) => self.room,
            // With one GPU it does not matter how many replicas come.
            (Accounting::Exact, newcomer) if newcomer.replicas() > 0 => self.room,
            (Accounting::Pinned, Newcomer::Pinned) => self.room,
            (Accounting::Exact | Accounting::Slot | Accounting::Confirmed | Accounting::Pinned, newcomer) => {
                let further = usize::try_from(newcomer.replicas().checked_sub(1)?).ok()?;
                *self.loose_rooms.get(further)?
            }
        };
        Some(room)
    }
}

impl Holder {
    /// What it holds; `None` where nobody says what one of its containers does.
    pub fn amount(&self, slot: Option<Vram>, rules: &Rules) -> Option<Vram> {
        let parts: Option<Vec<(Role, Vram)>> =
            self.parts.iter().map(|part| Some((part.role, part.holds(slot, rules)?))).collect();
        Some(demand::of_pod(parts?))
    }

    /// How it comes to its GPU, if it comes now.
    pub fn comes_to(&self, pool: &Pool) -> Newcomer {
        if pool.handout == Handout::Pinned && self.is_pinned() {
            Newcomer::Pinned
        } else {
            Newcomer::Loose(self.takes(&pool.resource).unwrap_or(1))
        }
    }

    /// Whether each of its GPU containers goes where our annotation says.
    pub fn is_pinned(&self) -> bool {
        !self.parts.is_empty() && self.parts.iter().all(|part| part.pinned)
    }

    /// The resources that it holds with a request for VRAM.
    pub fn requested_resources(&self) -> impl Iterator<Item = &Resource> {
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

impl Part {
    /// What it holds; `None` where nobody says.
    pub fn holds(&self, slot: Option<Vram>, rules: &Rules) -> Option<Vram> {
        match self.amount {
            Amount::Requested(request) => Some(request),
            Amount::Declared { declared, processes } => {
                let overhead = rules.per_process_overhead.checked_times(u64::from(processes))?;
                // More than a quantity can say is more than any GPU has, and no more than that is needed to say so.
                Some(declared.plus(overhead).min(Vram::MAX))
            }
            Amount::Counted(amount) => Some(amount),
            Amount::Slots(replicas) => slot?.checked_times(replicas),
        }
    }
}

mod kept;
#[cfg(test)]
mod tests;
