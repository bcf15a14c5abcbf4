//! Who sits on which GPU of one pool, as far as that is known, and what follows: the largest demand that can be placed, the
//! GPU it goes to, the worst that may be true of each GPU. Owns this arithmetic for every accounting mode; does not know pods,
//! only the amounts they hold.
//!
//! An amount whose GPU is not known is *loose*. Every answer holds for each way in which the loose ones may lie, and for each
//! order in which the device plugin may have come to them:
//!
//! - **slot**: a loose amount may be on any GPU that has a replica left for it, so the worst for a GPU are the largest loose
//!   ones, as many as it has replicas left.
//! - **confirmed**: the plugin's rule looks at the number of replicas taken and never at memory. So how many of the loose
//!   ones a GPU can get depends on their number alone, and as they may come in any order, the worst for it are the largest
//!   ones, that many. Loose ones may also have got their GPU while others were there that are gone. Under `distributed` that
//!   does no harm: the next one goes where there are fewest, and so not where more of them are than were predicted. Under
//!   `packed` it goes just there, so loose ones may be anywhere. Who will be gone before a pod that is bound gets its GPU is
//!   not predicted; the deficit that this may bring is.
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
    /// Whether the room for it is the room that the standing of such a pool says.
    pub fn is_usual(self, accounting: Accounting) -> bool {
        match (accounting, self) {
            (Accounting::Exclusive | Accounting::Unknown, _) => true,
            // With one GPU it does not matter how many replicas come.
            (Accounting::Exact, newcomer) => newcomer.replicas() > 0,
            (Accounting::Pinned, newcomer) => newcomer == Newcomer::Pinned,
            (Accounting::Slot | Accounting::Confirmed, newcomer) => newcomer.replicas() == 1,
        }
    }

    fn replicas(self) -> u64 {
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

#[derive(Clone, Debug, Default)]
struct Seat {
    held: Vram,
    replicas: u64,
    starting: bool,
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
        occupancy.loose.sort_unstable_by(|a, b| b.cmp(a));
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
                seat.replicas = seat.replicas.saturating_add(replicas);
                seat.starting |= starting;
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

    /// The smallest of what the GPUs can take that such a pod may get: it has to fit on each of them.
    fn room_anywhere(&self, arrivals: u64) -> Vram {
        let gpus = || 0..self.seats.len();
        let may_get = |gpu: &usize| self.most_loose(*gpu, arrivals) > 0;
        let blocked = |gpu: usize| self.seats[gpu].starting || self.worst(gpu, arrivals).deficit().is_some();
        if self.loose_starting || gpus().filter(may_get).any(blocked) {
            return Vram::ZERO;
        }
        // Beside the worst of the others, one place left for itself.
        let beside = |gpu: usize| {
            let others = self.most_loose(gpu, arrivals).saturating_sub(1);
            self.largest_loose(others).fold(self.left(gpu), Balance::less)
        };
        let Some(room) = gpus().filter(may_get).map(beside).min().map(Balance::room) else {
            return Vram::ZERO; // every replica is taken
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
        let blocked = self.seats[gpu].starting || self.loose_starting;
        let free = self.worst(gpu, 0);
        (!full && !blocked && free.deficit().is_none()).then_some(free)
    }

    /// What is left of a GPU in the worst case, when so many more replicas than now are handed out.
    fn worst(&self, gpu: usize, arrivals: u64) -> Balance {
        self.largest_loose(self.most_loose(gpu, arrivals)).fold(self.left(gpu), Balance::less)
    }

    fn left(&self, gpu: usize) -> Balance {
        self.allocatable[gpu].less(self.seats[gpu].held)
    }

    fn largest_loose(&self, count: u64) -> impl Iterator<Item = Vram> {
        self.loose.iter().copied().take(usize::try_from(count).unwrap_or(usize::MAX))
    }

    /// How many loose replicas a GPU may have at most, `arrivals` that come now included.
    fn most_loose(&self, gpu: usize, arrivals: u64) -> u64 {
        let coming = self.loose_replicas.saturating_add(arrivals);
        let free = self.replicas().saturating_sub(self.seats[gpu].replicas);
        match self.accounting {
            // The sum alone decides: the count of replicas is kube-scheduler's to keep, and what the node publishes stays the
            // same number.
            Accounting::Exact => coming,
            Accounting::Slot => free.min(coming),
            Accounting::Confirmed if self.handout == Handout::Packed && self.loose_replicas > 0 => free.min(coming),
            Accounting::Confirmed => self.most_handed_out(gpu, coming),
            Accounting::Pinned => self.replicas().min(coming),
            Accounting::Exclusive | Accounting::Unknown => 0,
        }
    }

    /// Plays the plugin's rule with every tie in favour of one GPU.
    fn most_handed_out(&self, favoured: usize, arrivals: u64) -> u64 {
        let mut taken: Vec<u64> = self.seats.iter().map(|seat| seat.replicas).collect();
        let free: u64 = taken.iter().map(|taken| self.replicas().saturating_sub(*taken)).sum();
        for _ in 0..arrivals.min(free) {
            let open = (0..taken.len()).filter(|gpu| taken[*gpu] < self.replicas());
            let next = match self.handout {
                Handout::Packed => open.max_by_key(|gpu| (taken[*gpu], *gpu == favoured)),
                Handout::Distributed | Handout::Pinned | Handout::Unverified => {
                    open.min_by_key(|gpu| (taken[*gpu], *gpu != favoured))
                }
            };
            taken[next.expect("no more arrive than replicas are free")] += 1;
        }
        taken[favoured] - self.seats[favoured].replicas
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
        self.loose_starting || self.seats.iter().any(|seat| seat.starting)
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
        let by = gpus().filter_map(|gpu| self.worst(gpu, 0).deficit()).max()?;
        Some(Deficit { by, on: None })
    }

    /// Each GPU.
    pub fn gpus(&self) -> Vec<GpuStanding> {
        let free = |gpu: usize| match self.accounting {
            Accounting::Exact => Some(self.room()),
            Accounting::Confirmed => Some(self.worst(gpu, 0).room()),
            Accounting::Pinned => Some(self.free_pinned(gpu).map_or(Vram::ZERO, Balance::room)),
            Accounting::Slot | Accounting::Exclusive | Accounting::Unknown => None,
        };
        let standing = |(index, gpu): (usize, &super::gpu::Gpu)| GpuStanding {
            id: gpu.id.clone(),
            total: gpu.total,
            allocatable: self.allocatable[index].room(),
            held: self.seats[index].held,
            free: free(index),
            starting: self.seats[index].starting,
        };
        self.contents.gpus.iter().enumerate().map(standing).collect()
    }
}

#[cfg(test)]
mod tests;
