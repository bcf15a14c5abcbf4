//! Who sits on which GPU of one pool, as far as that is known, and what follows: the largest demand that can be placed, the
//! GPU it goes to, the worst that may be true of each GPU. Owns this arithmetic for every accounting mode; does not know pods,
//! only the amounts they hold.
//!
//! An amount whose GPU is not known is *loose*. What is promised holds for each way in which the loose ones may lie, for each
//! order in which the device plugin may come to them, and whoever of those that are there now is gone by then:
//!
//! - **slot**: a loose amount may be on any GPU that has a replica left for it, so the worst for a GPU are the largest loose
//!   ones, as many as it has replicas left. Somebody small may leave its replica to one of them.
//! - **confirmed**, `distributed`: the plugin gives the GPU with the fewest replicas taken and never looks at memory. So how many
//!   of the loose ones a GPU can have when the last of them comes to it depends on numbers alone: it gets that one only while
//!   no other GPU has fewer, and the others have been raised by no more than the rest of the loose ones. As they may come in any
//!   order, the worst are the largest ones, that many. Whoever leaves a GPU lowers it, and makes it one that the next may get:
//!   the worst is that the smallest leave. Who was there before and is gone does no harm: a GPU on which more of the loose ones
//!   are than were predicted is one that has not the fewest.
//! - **confirmed**, `packed`: the plugin gives the GPU with the most replicas taken that has one left. Any GPU with a replica left
//!   is that one once enough others have left theirs, and a loose one may have come then. So it is as under slot, without the
//!   bound of one slot.
//! - **pinned**: a pinned pod is where it was put. The others are loose, and the plugin, which does not know of pins, may
//!   have put as many on one GPU as that has replicas.

use super::gpu::{Accounting, Contents, GpuId, Handout, Pool, Rules};
use super::vram::{Balance, Vram};

/// What one pod takes of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// How much, on which GPU and with how many replicas; all of it loose where a GPU is not known.
    pub seats: Vec<(Option<GpuId>, Vram, u64)>,
    /// Whether it is bound and not yet ready.
    pub starting: bool,
}

/// How a pod that is not there yet would come to its GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Newcomer {
    /// It goes where its annotation says.
    Pinned,
    /// The device plugin decides, for each of so many replicas.
    Loose(u64),
}

impl Newcomer {
    /// How many replicas it takes, a pinned pod one.
    pub fn replicas(self) -> u64 {
        match self {
            Newcomer::Loose(replicas) => replicas,
            Newcomer::Pinned => 1,
        }
    }
}

/// By how much a GPU is overcommitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deficit {
    /// The largest of the pool.
    pub by: Vram,
    /// On which GPU; `None` where it may be so and depends on where pods are.
    pub on: Option<GpuId>,
}

/// Where one GPU stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuStanding {
    /// Which one.
    pub id: GpuId,
    /// All its memory.
    pub total: Vram,
    /// What it can be promised.
    pub allocatable: Vram,
    /// What is known to be promised of it.
    pub held: Vram,
    /// What it can still take in the worst case; `None` where that is known for the node only.
    pub free: Option<Vram>,
    /// Whether a pod is starting on it that keeps others off.
    pub starting: bool,
}

/// Who is known to be on one GPU.
#[derive(Clone, Debug, Default)]
struct Seat {
    held: Vram,
    /// What each of them holds, largest first.
    amounts: Vec<Vram>,
    replicas: u64,
    /// How many of them start and keep others off.
    starting: usize,
}

impl Seat {
    /// What is held when all but so many have left, the smallest first; and how many replicas are taken then at least. Of one
    /// that has several, all but one may have been given back.
    fn after_all_but(&self, staying: usize) -> (Vram, u64) {
        (self.amounts[..staying].iter().copied().sum(), self.replicas.min(staying as u64))
    }
}

/// A pool with all that is held of it.
#[derive(Debug)]
pub(super) struct Occupancy<'a> {
    contents: &'a Contents,
    accounting: Accounting,
    handout: Handout,
    allocatable: Vec<Balance>,
    seats: Vec<Seat>,
    /// Largest first.
    loose: Vec<Vram>,
    loose_replicas: u64,
    loose_starting: bool,
    /// Replicas, or whole GPUs, of everybody.
    taken: u64,
}

impl<'a> Occupancy<'a> {
    /// `None` where the pool's GPUs are not known.
    pub fn of(pool: &'a Pool, rules: &Rules, shares: impl IntoIterator<Item = Share>) -> Option<Occupancy<'a>> {
        let contents = pool.contents.as_ref().ok()?;
        let mut occupancy = Occupancy {
            contents,
            accounting: pool.accounting(),
            handout: pool.handout,
            allocatable: contents.gpus.iter().map(|gpu| gpu.allocatable(rules)).collect(),
            seats: vec![Seat::default(); contents.gpus.len()],
            loose: Vec::new(),
            loose_replicas: 0,
            loose_starting: false,
            taken: 0,
        };
        for share in shares {
            occupancy.add(share, rules.serialize_per_gpu);
        }
        let largest_first = |amounts: &mut Vec<Vram>| amounts.sort_unstable_by(|a, b| b.cmp(a));
        largest_first(&mut occupancy.loose);
        occupancy.seats.iter_mut().for_each(|seat| largest_first(&mut seat.amounts));
        Some(occupancy)
    }

    fn add(&mut self, share: Share, serialize: bool) {
        let starting = share.starting && serialize;
        for (gpu, amount, replicas) in share.seats {
            self.taken = self.taken.saturating_add(replicas);
            // With one GPU behind the resource there is nothing to guess.
            let known = if self.seats.len() == 1 { Some(0) } else { gpu.and_then(|gpu| self.position(&gpu)) };
            if let Some(known) = known {
                let seat = &mut self.seats[known];
                seat.held = seat.held.plus(amount);
                seat.amounts.push(amount);
                seat.replicas = seat.replicas.saturating_add(replicas);
                seat.starting += usize::from(starting);
            } else {
                self.loose.push(amount);
                self.loose_replicas = self.loose_replicas.saturating_add(replicas);
                self.loose_starting |= starting;
            }
        }
    }

    fn position(&self, id: &GpuId) -> Option<usize> {
        self.contents.gpus.iter().position(|gpu| gpu.is(id))
    }

    /// The largest demand of one pod with one replica that can be placed now. Where pods are pinned, of a pinned one.
    pub fn room(&self) -> Vram {
        self.room_for(self.usual_newcomer())
    }

    fn usual_newcomer(&self) -> Newcomer {
        if self.accounting == Accounting::Pinned { Newcomer::Pinned } else { Newcomer::Loose(1) }
    }

    /// The largest demand of such a pod that can be placed now.
    pub fn room_for(&self, newcomer: Newcomer) -> Vram {
        let gpus = 0..self.seats.len();
        match (self.accounting, newcomer) {
            (Accounting::Unknown, _) => Vram::ZERO,
            // Which GPU is free is not known, so the smallest is promised.
            (Accounting::Exclusive, _) if self.taken < self.seats.len() as u64 => {
                self.allocatable.iter().min().map_or(Vram::ZERO, |smallest| smallest.room())
            }
            (Accounting::Exclusive, _) => Vram::ZERO,
            (Accounting::Pinned, Newcomer::Pinned) => {
                gpus.filter_map(|gpu| self.free_pinned(gpu)).max().map_or(Vram::ZERO, Balance::room)
            }
            (_, newcomer) => self.room_anywhere(newcomer.replicas()),
        }
    }

    /// The smallest of what the GPUs can take that such a pod may get, now or when others have left: it has to fit on each of
    /// them, and to drive nobody else onto one where he does not fit.
    fn room_anywhere(&self, arrivals: u64) -> Vram {
        if self.loose_starting {
            return Vram::ZERO;
        }
        let mut least: Option<Balance> = None;
        for (gpu, seat) in self.seats.iter().enumerate() {
            let here = seat.amounts.len();
            let least_staying = if self.others_may_leave() { 0 } else { here };
            for staying in least_staying..=here {
                let now = (seat.held, seat.replicas);
                let (held, replicas) = if self.others_may_leave() { seat.after_all_but(staying) } else { now };
                let most = self.most_loose(gpu, replicas, arrivals);
                if most == 0 {
                    continue; // it goes elsewhere
                }
                let left = self.allocatable[gpu].less(held);
                // Whoever stays may be the one that starts.
                let starting = seat.starting > 0 && staying > 0;
                if starting || self.beside_loose(left, most).deficit().is_some() {
                    return Vram::ZERO;
                }
                // Beside the worst of the others, one place left for itself.
                let beside = self.beside_loose(left, most - 1);
                least = Some(least.map_or(beside, |least| least.min(beside)));
            }
        }
        let Some(room) = least.map(Balance::room) else {
            return Vram::ZERO; // nobody can come
        };
        match self.accounting {
            // Else one large pod could take the room that the other replicas stand for.
            Accounting::Slot => room.min(self.slot()),
            Accounting::Exact
            | Accounting::Confirmed
            | Accounting::Pinned
            | Accounting::Exclusive
            | Accounting::Unknown => room,
        }
    }

    /// Whether it can be worse for a GPU that some leave it: their replicas go to others.
    fn others_may_leave(&self) -> bool {
        match self.accounting {
            Accounting::Slot | Accounting::Confirmed => true,
            // Their rules do not look at who is there.
            Accounting::Exact | Accounting::Pinned | Accounting::Exclusive | Accounting::Unknown => false,
        }
    }

    /// Where a demand goes: on a GPU of our choice, wherever the plugin puts it (`None`), or nowhere (`Err`, with the most
    /// that would fit).
    pub fn place(&self, demand: Vram, newcomer: Newcomer) -> Result<Option<&GpuId>, Vram> {
        let room = self.room_for(newcomer);
        if demand > room {
            return Err(room);
        }
        let gpus = 0..self.seats.len();
        let chosen = match (self.accounting, newcomer) {
            (Accounting::Exact, _) => Some(0),
            // The fullest that has room, so that a large demand finds a GPU later.
            (Accounting::Pinned, Newcomer::Pinned) => {
                let fitting = gpus.filter_map(|gpu| Some((self.free_pinned(gpu)?, gpu)));
                fitting.filter(|(free, _)| demand <= free.room()).min().map(|(_, gpu)| gpu)
            }
            (
                Accounting::Pinned
                | Accounting::Slot
                | Accounting::Confirmed
                | Accounting::Exclusive
                | Accounting::Unknown,
                _,
            ) => None,
        };
        Ok(chosen.map(|gpu| &self.contents.gpus[gpu].id))
    }

    /// What a GPU can take of a pinned pod in the worst case; `None` where it takes no other one.
    fn free_pinned(&self, gpu: usize) -> Option<Balance> {
        let full = self.seats[gpu].replicas >= self.replicas();
        let blocked = self.seats[gpu].starting > 0 || self.loose_starting;
        let free = self.worst(gpu);
        (!full && !blocked && free.deficit().is_none()).then_some(free)
    }

    /// What is left of a GPU in the worst case, as the loose ones may lie now.
    fn worst(&self, gpu: usize) -> Balance {
        self.beside_loose(self.left(gpu), self.most_loose(gpu, self.seats[gpu].replicas, 0))
    }

    fn left(&self, gpu: usize) -> Balance {
        self.allocatable[gpu].less(self.seats[gpu].held)
    }

    /// What is left beside so many of the largest loose ones.
    fn beside_loose(&self, left: Balance, count: u64) -> Balance {
        self.loose.iter().take(usize::try_from(count).unwrap_or(usize::MAX)).copied().fold(left, Balance::less)
    }

    /// How many loose replicas a GPU may have at most when the last of them comes to it: `arrivals` that come now included,
    /// beside so many of those that are known to be there.
    fn most_loose(&self, gpu: usize, staying: u64, arrivals: u64) -> u64 {
        let coming = self.loose_replicas.saturating_add(arrivals);
        let most = self.replicas().saturating_sub(staying).min(coming);
        match self.accounting {
            // The sum alone decides: the count of replicas is kube-scheduler's to keep, and what the node publishes stays the
            // same number.
            Accounting::Exact => coming,
            Accounting::Slot => most,
            Accounting::Confirmed if self.handout == Handout::Distributed => {
                last(most, |count| self.may_have_fewest(gpu, staying + count - 1, coming - count))
            }
            Accounting::Confirmed => most,
            // The plugin does not know of pins: to it a replica that one holds may be on another GPU.
            Accounting::Pinned => self.replicas().min(coming),
            Accounting::Exclusive | Accounting::Unknown => 0,
        }
    }

    /// Whether so many loose replicas are enough to raise all other GPUs to where a GPU with `taken` replicas is.
    fn may_have_fewest(&self, gpu: usize, taken: u64, loose: u64) -> bool {
        let others = self.seats.iter().enumerate().filter(|(other, _)| *other != gpu);
        let missing = others.map(|(_, seat)| taken.saturating_sub(seat.replicas));
        missing.fold(0, u64::saturating_add) <= loose
    }

    fn replicas(&self) -> u64 {
        u64::from(self.contents.replicas.get())
    }

    fn slot(&self) -> Vram {
        let smallest = self.allocatable.iter().min().map_or(Vram::ZERO, |smallest| smallest.room());
        smallest.share(self.contents.replicas.get())
    }

    /// Whether a pod that starts keeps off whoever comes, wherever there would be room.
    pub fn is_starting(&self) -> bool {
        self.loose_starting || self.seats.iter().any(|seat| seat.starting > 0)
    }

    /// The largest deficit, one that is certain before one that may be.
    pub fn deficit(&self) -> Option<Deficit> {
        let gpus = || 0..self.seats.len();
        if matches!(self.accounting, Accounting::Exclusive | Accounting::Unknown) {
            return None;
        }
        let certain = gpus().filter_map(|gpu| Some((self.left(gpu).deficit()?, gpu))).max();
        if let Some((by, gpu)) = certain {
            return Some(Deficit { by, on: Some(self.contents.gpus[gpu].id.clone()) });
        }
        let by = gpus().filter_map(|gpu| self.worst(gpu).deficit()).max()?;
        Some(Deficit { by, on: None })
    }

    /// Each GPU.
    pub fn gpus(&self) -> Vec<GpuStanding> {
        let free = |gpu: usize| match self.accounting {
            Accounting::Exact => Some(self.room()),
            Accounting::Confirmed => Some(self.worst(gpu).room()),
            Accounting::Pinned => Some(self.free_pinned(gpu).map_or(Vram::ZERO, Balance::room)),
            Accounting::Slot | Accounting::Exclusive | Accounting::Unknown => None,
        };
        let standing = |(index, gpu): (usize, &super::gpu::Gpu)| GpuStanding {
            id: gpu.id.clone(),
            total: gpu.total,
            allocatable: self.allocatable[index].room(),
            held: self.seats[index].held,
            free: free(index),
            starting: self.seats[index].starting > 0,
        };
        self.contents.gpus.iter().enumerate().map(standing).collect()
    }
}

/// The last of the numbers from 1 that holds, where each after the first that does not does not either; 0 where none does.
fn last(most: u64, holds: impl Fn(u64) -> bool) -> u64 {
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
