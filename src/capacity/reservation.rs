//! What was promised on one node to pods that are bound there, or about to be, as all replicas share it. Owns the life of a
//! reservation; how the shared state is written is `k8s::gpu_ledger`'s and the shells' work.
//!
//! ```text
//!                 assume                      seen bound here
//!   absent ─────────────────────▶ assumed ─────────────────────▶ confirmed
//!    ▲ ▲ ▲                         │ │  ▲ assume again: same GPU, │   later `since`
//!    │ │ │  forget: seen elsewhere │ │  └─┘                       │
//!    │ │ └──────────or gone────────┘ │                            │
//!    │ └──expire: too old, and a ────┘                            │
//!    │    quorum read found it unbound                            │
//!    │ release: seen ended or gone                                │
//!    └────────────────────────────────────────────────────────────┤
//!      │ seen bound here without a reservation                    │
//!      └─────────────────────────────────────▶ adopted ───────────┘
//! ```
//!
//! Each arrow is one write of the node's `GpuLedger`, on the condition that nobody wrote it since it was read
//! (compare-and-swap); whoever loses reads again and decides again. So any number of replicas may assume, and the sum is
//! that of one.
//!
//! *Moved*: a scheduler that got no answer may try another node. The pod is then assumed on both, because the first bind may
//! still commit, and is forgotten on one when it is seen bound on the other.
//!
//! *Expire*: a bind that was allowed commits before the API server's request timeout, or never. So an assumed reservation
//! that is older than this (and the clocks of two replicas apart) is void if a read from a quorum, made after that, finds the
//! pod unbound. To be assumed again makes it younger: another bind is under way.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::binding::{self, needs_reservations};
use super::gpu::{Accounting, GpuId, Pool, Resource, Rules};
use super::ledger::{Holder, NodeLedger, PodUid, Shared, Viewpoint};
use super::moment::Moment;
use super::pod::PodName;
use super::verdict::Unplaced;
use super::vram::Vram;

/// All reservations of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reservations(BTreeMap<PodUid, Reservation>);

/// One promise.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reservation {
    /// To whom, and of what.
    pub holder: Holder,
    /// The GPU that was chosen for it, where a choice is ours.
    pub gpu: Option<GpuId>,
    /// How far it is.
    pub state: State,
    /// When it was promised, last.
    pub since: Moment,
}

/// How far a reservation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// The binding was allowed.
    Assumed,
    /// Seen bound.
    Confirmed,
    /// Seen bound without ever having been assumed: from before the guard, or past it.
    Adopted,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The variant's name is the wire form.
        fmt::Debug::fmt(self, f)
    }
}

/// How long a binding that was allowed may take to commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// The API server's `--request-timeout`.
    pub request_timeout: Duration,
    /// How far apart clocks may be, and a write may lag behind its request.
    pub skew: Duration,
}

/// What a quorum read says of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Not there, another one of that name, or ended.
    Gone,
    /// There, without a node.
    Unbound,
    /// Bound to the node of the ledger.
    Here,
    /// Bound to another one.
    Elsewhere,
}

impl Reservations {
    /// Of one pod.
    pub fn of(&self, uid: &PodUid) -> Option<&Reservation> {
        self.0.get(uid)
    }

    /// Whether the pod has one.
    pub fn contains(&self, uid: &PodUid) -> bool {
        self.0.contains_key(uid)
    }

    /// By uid.
    pub fn iter(&self) -> impl Iterator<Item = (&PodUid, &Reservation)> {
        self.0.iter()
    }

    /// By uid, to put equal values in the place of others.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&PodUid, &mut Reservation)> {
        self.0.iter_mut()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes one back.
    pub fn remove(&mut self, uid: &PodUid) {
        self.0.remove(uid);
    }
}

impl FromIterator<(PodUid, Reservation)> for Reservations {
    fn from_iter<I: IntoIterator<Item = (PodUid, Reservation)>>(reservations: I) -> Reservations {
        Reservations(reservations.into_iter().collect())
    }
}

impl Reservation {
    /// The GPU of one of its containers, where a choice was ours.
    pub fn gpu_of(&self, container: &str) -> Option<&GpuId> {
        self.gpu.as_ref().filter(|_| self.holder.parts.iter().any(|part| part.container == container))
    }

    /// Whether no bind that it was promised for can commit any more.
    pub fn is_expired(&self, patience: &Patience, now: Moment) -> bool {
        now >= self.since.after(patience.request_timeout).after(patience.skew)
    }

    /// Whether it outlives what a quorum read found, which was made at `now` or later.
    pub fn survives(&self, found: Found, patience: &Patience, now: Moment) -> bool {
        match found {
            Found::Gone | Found::Elsewhere => false,
            Found::Here => true,
            Found::Unbound => !self.is_expired(patience, now),
        }
    }
}

/// What the binding guard decided for a pod on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assumed {
    /// The GPU it gets, where that is known.
    pub gpu: Option<GpuId>,
    /// What has to be written before the binding may be allowed; `None` where nothing has to be.
    pub write: Option<Reservations>,
}

/// What the controller makes of a node's reservations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upkeep {
    /// As they should be, the doubtful ones left as they are.
    pub reservations: Reservations,
    /// Those of which only a quorum read can tell what became of them.
    pub doubtful: Vec<(PodUid, PodName)>,
    /// Those seen bound that nobody had assumed.
    pub adopted: Vec<PodUid>,
}

impl NodeLedger {
    /// Promises a pod its place on this node. `holder` as it will be when bound, from the pod itself. Fails where it finds
    /// no place; never promises the same pod twice.
    pub fn assume(
        &self,
        uid: &PodUid,
        holder: &Holder,
        pools: &[Pool],
        rules: &Rules,
        now: Moment,
    ) -> Result<Assumed, Unplaced> {
        let mut reservations = self.shared().map(|shared| shared.reservations.clone()).unwrap_or_default();
        if let Some(reservation) = reservations.0.get_mut(uid) {
            let gpu = reservation.gpu.clone();
            if reservation.state != State::Assumed {
                return Ok(Assumed { gpu, write: None });
            }
            // Another bind is under way, and may take as long as the first.
            reservation.since = reservation.since.max(now);
            return Ok(Assumed { gpu, write: Some(reservations) });
        }
        let gpu = self.choose(uid, holder, pools, rules)?;
        reservations.0.retain(|uid, _| !self.departed().contains(uid));
        let reservation = Reservation { holder: holder.clone(), gpu: gpu.clone(), state: State::Assumed, since: now };
        reservations.0.insert(uid.clone(), reservation);
        Ok(Assumed { gpu, write: Some(reservations) })
    }

    /// Where a pod would go, without a promise.
    pub fn choose(
        &self,
        uid: &PodUid,
        holder: &Holder,
        pools: &[Pool],
        rules: &Rules,
    ) -> Result<Option<GpuId>, Unplaced> {
        let pool = pool_for(holder, pools)?;
        self.place(uid, holder, pool, rules).map_err(|room| self.unplaced(holder, pool, room, rules))
    }

    fn unplaced(&self, holder: &Holder, pool: &Pool, room: Vram, rules: &Rules) -> Unplaced {
        let Some(demand) = holder.amount(pool.slot(rules), rules) else {
            return Unplaced::NoGpu { resource: Some(pool.resource.clone()) };
        };
        let stands = Box::new(self.pool_standing(pool, rules, Viewpoint::Everyone));
        if stands.is_kept_by_startup(room) {
            return Unplaced::Starting;
        }
        Unplaced::Shortfall { demand, room, stands }
    }

    /// What the reservations should be, given who is seen here. `guarded` are the resources that count.
    pub fn upkeep(
        &self,
        pools: &[Pool],
        rules: &Rules,
        guarded: impl Fn(&Resource) -> bool,
        patience: &Patience,
        now: Moment,
    ) -> Upkeep {
        let mut reservations = self.shared().map(|shared| shared.reservations.clone()).unwrap_or_default();
        reservations.0.retain(|uid, _| !self.departed().contains(uid));
        let mut doubtful = Vec::new();
        for (uid, reservation) in &mut reservations.0 {
            if let Some(holder) = self.holders().get(uid) {
                reservation.see(holder, pools);
            } else if reservation.state != State::Assumed || reservation.is_expired(patience, now) {
                doubtful.push((uid.clone(), reservation.holder.name.clone()));
            }
        }
        let mut adopted = Vec::new();
        for (uid, holder) in self.holders() {
            let counts = |pool: &Pool| {
                guarded(&pool.resource) && holder.takes(&pool.resource).is_some() && needs_reservations(pool, rules)
            };
            if pools.iter().any(counts) && !reservations.contains(uid) {
                reservations.0.insert(uid.clone(), Reservation::adopt(holder, pools, now));
                adopted.push(uid.clone());
            }
        }
        self.pin_unpinned(&mut reservations, pools, rules);
        Upkeep { reservations, doubtful, adopted }
    }

    /// Who is here, should be pinned and was not gets a GPU where one has room: one after the other, so that no two are given
    /// the same room.
    fn pin_unpinned(&self, reservations: &mut Reservations, pools: &[Pool], rules: &Rules) {
        let unpinned = |(uid, holder): &(&PodUid, &Holder)| {
            holder.is_pinned() && reservations.of(uid).is_some_and(|reservation| reservation.gpu.is_none())
        };
        let unpinned: Vec<(&PodUid, &Holder)> = self.holders().iter().filter(unpinned).collect();
        for (uid, holder) in unpinned {
            let mut ledger = self.clone();
            let shared = self.shared().cloned().unwrap_or_default();
            ledger.share(Some(Shared { reservations: reservations.clone(), ..shared }));
            let chosen = || ledger.choose(uid, holder, pools, rules).ok().flatten();
            reservations.0.get_mut(uid).expect("looked up above").gpu = holder.named_gpu(pools).or_else(chosen);
        }
    }
}

/// The pool that a pod would be counted in, if there is any for it.
pub(super) fn pool_for<'p>(holder: &Holder, pools: &'p [Pool]) -> Result<&'p Pool, Unplaced> {
    let mut taken = pools.iter().filter(|pool| holder.takes(&pool.resource).is_some());
    let (Some(pool), None) = (taken.next(), taken.next()) else {
        if holder.gpus.len() > 1 {
            return Err(Unplaced::SeveralResources);
        }
        return Err(Unplaced::NoGpu { resource: holder.gpus.first().map(|(resource, _)| resource.clone()) });
    };
    if let Err(why) = &pool.contents {
        return Err(Unplaced::Unknown(why.clone()));
    }
    if holder.is_pinned() && pool.accounting() != Accounting::Pinned && binding::only_gpu(holder, pools).is_none() {
        // Its container would start with an empty list of visible GPUs.
        return Err(Unplaced::PinUnverified { accounting: pool.accounting() });
    }
    Ok(pool)
}

impl Reservation {
    /// Of a pod that is here whether there is room or not.
    fn adopt(holder: &Holder, pools: &[Pool], now: Moment) -> Reservation {
        let gpu = holder.named_gpu(pools).filter(|_| holder.is_pinned());
        Reservation { holder: holder.settled(), gpu, state: State::Adopted, since: now }
    }

    /// Its pod was seen bound here.
    fn see(&mut self, holder: &Holder, pools: &[Pool]) {
        if self.state == State::Assumed {
            // What the binding wrote is what the container starts with.
            let named = holder.named_gpu(pools).filter(|_| holder.is_pinned());
            self.gpu = named.or(self.gpu.take());
            self.state = State::Confirmed;
        }
        self.holder = holder.settled();
    }
}

impl Holder {
    /// The GPU that its annotations name, if its node has that one: anybody may have written them.
    fn named_gpu(&self, pools: &[Pool]) -> Option<GpuId> {
        let named = self.parts.iter().find_map(|part| part.gpu.as_ref())?;
        let gpus = pools.iter().flat_map(|pool| &pool.contents).flat_map(|contents| &contents.gpus);
        gpus.into_iter().find(|gpu| gpu.is(named)).map(|gpu| gpu.id.clone())
    }

    /// Without what changes while it runs: a ledger is not written again for that.
    fn settled(&self) -> Holder {
        Holder { starting: None, bound: None, ..self.clone() }
    }
}

#[cfg(test)]
mod tests;
