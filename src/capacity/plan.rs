//! How many time-slicing replicas each pool of equal nodes should have for the demands that exist, and what fits then.
//!
//! Owns the choice and the packing behind it. Allocatable, slots and accounting modes are those of [`Pool`]; nothing is
//! computed a second time here.
//!
//! In mode slot a pod takes one slot at most, so every further replica makes the largest pod smaller. In the modes
//! exact, confirmed and steered the sum on a GPU decides, so replicas only have to be plenty.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU32;
use std::ops::RangeInclusive;

use crate::capacity::gpu::{Accounting, Pool, Rules, Sharing};
use crate::capacity::vram::Vram;

mod outcome;
mod packing;

pub use self::outcome::{Alternative, Bound, Outcome, Plan, Planned};
use self::packing::{Bins, Space};

/// The most replicas that a plan proposes. With more, a pod has less than a hundredth of a busy GPU.
pub const MAX_REPLICAS: u32 = 128;

/// The rule of thumb for agents, which wait for requests most of the time.
pub const THUMB: RangeInclusive<u32> = 4..=8;

/// From this utilisation on, in percent, further replicas only slow down what runs.
pub const SATURATED: u8 = 90;

/// Choices of replicas that are compared at most; with more, pools are chosen one after the other.
const MAX_CHOICES: usize = 20_000;

/// Equal pools of several nodes.
#[derive(Clone, Debug)]
pub struct EqualPools {
    /// The pool of one node, as it is now.
    pub pool: Pool,
    /// Number of nodes, at least one.
    pub nodes: u64,
    /// Measured utilisation of its GPUs in percent; `None` if it is not known.
    pub utilisation: Option<u8>,
}

/// Pods, or containers, with the same demand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What one takes: declared + overhead. Above zero.
    pub demand: Vram,
    /// How many there are; `None` for as many as fit.
    pub count: Option<u64>,
    /// Indices of the pools on which they may be placed.
    pub pools: BTreeSet<usize>,
}

/// Plans the replicas of all pools.
///
/// Demands that fit nowhere change nothing. Of all choices, the one in which the fewest kinds of demand have no place
/// is taken; of these, the one in which most VRAM is used; then the one with the most replicas.
pub fn plan(pools: &[EqualPools], wanted: &[Wanted], rules: &Rules, cap: Option<NonZeroU32>) -> Plan {
    let planner = Planner { pools, wanted, rules };
    let candidates: Vec<Vec<Candidate>> = (0..pools.len()).map(|pool| planner.candidates(pool, cap)).collect();
    let chosen = planner.best(&candidates, Evaluation::merit);
    let alternative = planner.without_the_largest(&chosen, cap);
    planner.report(&chosen, alternative)
}

/// The pool with other replicas. Without replicas, its GPUs are not shared.
pub fn with_replicas(pool: &Pool, replicas: NonZeroU32) -> Pool {
    let mut pool = pool.clone();
    if let Ok(contents) = &mut pool.contents {
        contents.replicas = replicas;
    }
    pool.sharing = match (replicas.get(), pool.sharing) {
        (1, _) => Sharing::Exclusive,
        (_, Sharing::Mps) => Sharing::Mps,
        _ => Sharing::TimeSlicing,
    };
    pool
}

/// The slot of a pool with these replicas, if it is smaller than every demand that may be placed there.
///
/// Such a pool takes nobody in mode slot. In the other modes most of its replicas can never be used.
pub fn useless_slot(pool: &Pool, replicas: NonZeroU32, smallest: Vram, rules: &Rules) -> Option<Vram> {
    with_replicas(pool, replicas).slot(rules).filter(|slot| *slot < smallest)
}

/// A number of replicas for one pool, and why not more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Candidate {
    replicas: NonZeroU32,
    bound: Bound,
}

/// One choice for all pools, with its result.
struct Choice {
    choice: Vec<Candidate>,
    result: Evaluation,
}

/// What a choice gives.
struct Evaluation {
    /// Demands that have no place, though there is a choice in which they have.
    homeless: BTreeSet<usize>,
    outcomes: Vec<Outcome>,
    /// The pools after all demands were placed.
    spaces: Vec<Space>,
    filled_with: Option<usize>,
    placed: u64,
    held: Vram,
    replicas: u64,
}

impl Evaluation {
    /// The order of choices, the best last.
    fn merit(&self) -> (Reverse<usize>, Vram, u64, u64) {
        (Reverse(self.homeless.len()), self.held, self.placed, self.replicas)
    }
}

/// A move of pods with a demand from one pool to another.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// Index of the demand.
    index: usize,
    from: usize,
    to: usize,
}

struct Planner<'a> {
    pools: &'a [EqualPools],
    wanted: &'a [Wanted],
    rules: &'a Rules,
}

impl Planner<'_> {
    /// The numbers of replicas that can be the best one for a pool.
    ///
    /// In mode slot these are the largest numbers with which each of the demands fits: between two of them, more
    /// replicas are more slots and nobody loses.
    fn candidates(&self, index: usize, cap: Option<NonZeroU32>) -> Vec<Candidate> {
        let EqualPools { pool, utilisation, .. } = &self.pools[index];
        let most = NonZeroU32::new(MAX_REPLICAS).expect("above zero");
        // One more than the most, because `replicas_for` looks below the replicas of the pool.
        let probe = with_replicas(pool, most.saturating_add(1));
        let mut found: Vec<Candidate> = Vec::new();
        let here = self.wanted.iter().enumerate().filter(|(_, wanted)| wanted.pools.contains(&index));
        if probe.accounting() == Accounting::Slot {
            let candidates = here.filter_map(|(demand, wanted)| {
                let replicas = NonZeroU32::new(probe.replicas_for(wanted.demand, self.rules)?)?;
                Some(Candidate { replicas, bound: Bound::Slot { demand } })
            });
            found.extend(candidates);
        } else if let Some(largest) = probe.max_demand(self.rules) {
            let smallest = here.filter(|(_, wanted)| wanted.demand <= largest).min_by_key(|(_, wanted)| wanted.demand);
            found.extend(smallest.and_then(|(demand, wanted)| {
                let fits = |replicas: &u32| wanted.demand <= largest.share(*replicas);
                let replicas = NonZeroU32::new((1..=MAX_REPLICAS).rev().find(fits)?)?;
                Some(Candidate { replicas, bound: Bound::Memory { demand } })
            }));
        }
        let current = pool.contents.as_ref().map_or(NonZeroU32::MIN, |contents| contents.replicas);
        if found.is_empty() {
            return vec![Candidate { replicas: current, bound: Bound::NoDemand }];
        }
        let saturated = utilisation.is_some_and(|percent| percent >= SATURATED);
        // A pool with a single replica is not shared yet, so its utilisation says nothing about sharing.
        let busy = saturated.then(|| THUMB.start().min(&current.get().max(2)).to_owned());
        for candidate in &mut found {
            let by_memory = candidate.replicas.get();
            if let Some(cap) = cap.filter(|cap| cap.get() < by_memory) {
                *candidate = Candidate { replicas: cap, bound: Bound::Cap { by_memory } };
            }
            if let Some(busy) = busy.and_then(NonZeroU32::new).filter(|busy| *busy < candidate.replicas) {
                *candidate = Candidate { replicas: busy, bound: Bound::Saturated { by_memory } };
            }
        }
        found.sort_by_key(|candidate| candidate.replicas);
        found.dedup_by_key(|candidate| candidate.replicas);
        found
    }

    /// The best choice by an order. All choices are compared if there are few; else the pools are improved in turn.
    fn best<K: Ord>(&self, candidates: &[Vec<Candidate>], key: impl Fn(&Evaluation) -> K) -> Choice {
        let homes = self.homes(candidates);
        let evaluated = |choice: Vec<Candidate>| {
            let result = self.evaluate(&choice, &homes);
            Choice { choice, result }
        };
        // With the fewest replicas, the most demands fit.
        let mut best = evaluated(candidates.iter().map(|candidates| candidates[0]).collect());
        let number = candidates.iter().try_fold(1_usize, |product, list| product.checked_mul(list.len()));
        if let Some(number) = number.filter(|number| *number <= MAX_CHOICES) {
            for mut at in 1..number {
                let choice = candidates.iter().map(|list| {
                    let candidate = list[at % list.len()];
                    at /= list.len();
                    candidate
                });
                let other = evaluated(choice.collect());
                if key(&other.result) > key(&best.result) {
                    best = other;
                }
            }
            return best;
        }
        loop {
            let before = best.choice.clone();
            for (pool, list) in candidates.iter().enumerate() {
                for candidate in list {
                    let mut choice = best.choice.clone();
                    choice[pool] = *candidate;
                    let other = evaluated(choice);
                    if key(&other.result) > key(&best.result) {
                        best = other;
                    }
                }
            }
            if best.choice == before {
                return best;
            }
        }
    }

    /// What the pools could be without the largest demand that bounds one of them, if more VRAM is used then.
    fn without_the_largest(&self, chosen: &Choice, cap: Option<NonZeroU32>) -> Option<Alternative> {
        let bounding = chosen.choice.iter().filter_map(|candidate| match candidate.bound {
            Bound::Slot { demand } => Some(demand),
            Bound::Memory { .. } | Bound::Cap { .. } | Bound::Saturated { .. } | Bound::NoDemand => None,
        });
        let largest = bounding.max_by_key(|&demand| self.wanted[demand].demand)?;
        let mut wanted = self.wanted.to_vec();
        wanted[largest].pools.clear();
        let others = Planner { wanted: &wanted, ..*self };
        let candidates: Vec<Vec<Candidate>> = (0..self.pools.len()).map(|pool| others.candidates(pool, cap)).collect();
        let other = others.best(&candidates, Evaluation::merit);
        // Pools that no other demand fits would stay as they are; that is no gain.
        (other.result.held > chosen.result.held && !self.has_place(largest, &other.choice)).then(|| Alternative {
            replicas: other.choice.iter().map(|candidate| candidate.replicas).collect(),
            placed: other.result.placed,
            held: other.result.held,
            homeless: largest,
        })
    }

    /// Demands that fit some pool with some choice.
    fn homes(&self, candidates: &[Vec<Candidate>]) -> BTreeSet<usize> {
        let fits = |(_, wanted): &(usize, &Wanted)| {
            wanted.pools.iter().any(|&pool| {
                let replicas = candidates.get(pool).and_then(|list| list.first()).map(|candidate| candidate.replicas);
                replicas.is_some_and(|replicas| self.max_demand(pool, replicas).is_some_and(|max| wanted.demand <= max))
            })
        };
        self.wanted.iter().enumerate().filter(fits).map(|(index, _)| index).collect()
    }

    fn max_demand(&self, pool: usize, replicas: NonZeroU32) -> Option<Vram> {
        with_replicas(&self.pools[pool].pool, replicas).max_demand(self.rules)
    }

    fn evaluate(&self, choice: &[Candidate], homes: &BTreeSet<usize>) -> Evaluation {
        let mut spaces: Vec<Space> = self
            .pools
            .iter()
            .zip(choice)
            .map(|(equal, candidate)| {
                Space::of(&with_replicas(&equal.pool, candidate.replicas), equal.nodes, self.rules)
            })
            .collect();
        let mut outcomes = vec![Outcome::default(); self.wanted.len()];
        let mut largest_first: Vec<usize> = (0..self.wanted.len()).collect();
        largest_first.sort_by_key(|&index| Reverse(self.wanted[index].demand));
        for &index in &largest_first {
            if let Some(count) = self.wanted[index].count {
                outcomes[index] = self.place(index, count, &mut spaces, &mut outcomes);
            }
        }
        let counted = outcomes.clone();
        let open = || largest_first.iter().copied().filter(|&index| self.wanted[index].count.is_none());
        for index in open() {
            outcomes[index] = self.place(index, u64::MAX, &mut spaces.clone(), &mut counted.clone());
        }
        let filled_with = open().rfind(|&index| outcomes[index].fits > 0);
        if let Some(index) = filled_with {
            let mut others = counted;
            outcomes[index] = self.place(index, u64::MAX, &mut spaces, &mut others);
            let with_count = self.wanted.iter().zip(&mut outcomes).zip(others);
            with_count.filter(|((wanted, _), _)| wanted.count.is_some()).for_each(|((_, known), moved)| *known = moved);
        }
        let homeless = homes.iter().copied().filter(|&index| !self.has_place(index, choice)).collect();
        Evaluation {
            homeless,
            outcomes,
            filled_with,
            placed: spaces.iter().map(|space| space.placed).sum(),
            held: spaces.iter().map(|space| space.held).sum(),
            replicas: choice.iter().map(|candidate| u64::from(candidate.replicas.get())).sum(),
            spaces,
        }
    }

    /// Whether a demand would fit an empty pool.
    fn has_place(&self, index: usize, choice: &[Candidate]) -> bool {
        let wanted = &self.wanted[index];
        let fits = |&pool: &usize| self.max_demand(pool, choice[pool].replicas).is_some_and(|max| wanted.demand <= max);
        wanted.pools.iter().filter(|&&pool| pool < choice.len()).any(fits)
    }

    /// Places up to `count` pods: first into slots, the smallest that fit first, then on GPUs that count by memory.
    /// If all slots that fit are taken, pods of other demands move from them to free slots elsewhere. So a slot that only
    /// some demands fit is not lost to one that has another place, and more slots never place less.
    fn place(&self, index: usize, count: u64, spaces: &mut [Space], others: &mut [Outcome]) -> Outcome {
        let Wanted { demand, pools, .. } = &self.wanted[index];
        let mut order: Vec<usize> = pools.iter().copied().filter(|&pool| pool < spaces.len()).collect();
        order.sort_by_key(|&pool| match spaces[pool].bins {
            Bins::Slots { slot, .. } => (false, slot),
            Bins::Gpus(_) => (true, Vram::ZERO),
        });
        let (slots, gpus): (Vec<usize>, Vec<usize>) =
            order.into_iter().partition(|&pool| matches!(spaces[pool].bins, Bins::Slots { .. }));
        let mut outcome = Outcome::default();
        for pool in slots {
            outcome.add(pool, spaces[pool].place(*demand, count - outcome.fits));
        }
        while outcome.fits < count {
            let Some((start, route)) = self.route(index, spaces, others) else { break };
            let most = route.iter().map(|step| others[step.index].of(step.from)).min().unwrap_or(0);
            let end = route.last().and_then(|step| spaces[step.to].free_slots(self.wanted[step.index].demand));
            let moved = most.min(end.unwrap_or(0)).min(count - outcome.fits);
            // From the free end, so that each pod moves into a slot that is free.
            for Step { index, from, to } in route.into_iter().rev() {
                let demand = self.wanted[index].demand;
                spaces[to].place(demand, moved);
                spaces[from].take_out(demand, moved);
                others[index].shift(from, to, moved);
            }
            outcome.add(start, spaces[start].place(*demand, moved));
        }
        for pool in gpus {
            outcome.add(pool, spaces[pool].place(*demand, count - outcome.fits));
        }
        outcome
    }

    /// The fewest moves of pods that are placed already that end in a free slot and free one for this demand; with the
    /// pool where that is.
    fn route(&self, index: usize, spaces: &[Space], others: &[Outcome]) -> Option<(usize, Vec<Step>)> {
        let fits = |index: usize, pool: usize| spaces.get(pool)?.free_slots(self.wanted[index].demand);
        let starts = self.wanted[index].pools.iter().copied().filter(|&pool| fits(index, pool).is_some());
        let mut queue: VecDeque<usize> = starts.collect();
        let mut reached: BTreeMap<usize, Option<Step>> = queue.iter().map(|&pool| (pool, None)).collect();
        while let Some(from) = queue.pop_front() {
            for (other, _) in others.iter().enumerate().filter(|(other, placed)| *other != index && placed.of(from) > 0)
            {
                for &to in &self.wanted[other].pools {
                    let Some(free) = fits(other, to).filter(|_| !reached.contains_key(&to)) else { continue };
                    reached.insert(to, Some(Step { index: other, from, to }));
                    queue.push_back(to);
                    if free > 0 {
                        let mut route: Vec<Step> =
                            std::iter::successors(reached[&to], |step| reached[&step.from]).collect();
                        route.reverse();
                        return Some((route.first()?.from, route));
                    }
                }
            }
        }
        None
    }

    fn report(&self, chosen: &Choice, alternative: Option<Alternative>) -> Plan {
        let result = &chosen.result;
        let pools = (0..self.pools.len()).map(|index| {
            let (Candidate { replicas, bound }, space) = (chosen.choice[index], &result.spaces[index]);
            let pool = with_replicas(&self.pools[index].pool, replicas);
            let here = self.wanted.iter().filter(|wanted| wanted.pools.contains(&index));
            let smallest = here.map(|wanted| wanted.demand).min();
            Planned {
                replicas,
                bound,
                accounting: pool.accounting(),
                slot: pool.slot(self.rules).unwrap_or(Vram::ZERO),
                placed: space.placed,
                allocatable: space.allocatable,
                held: space.held,
                stranded: space.stranded(smallest),
            }
        });
        let demands = self.wanted.iter().zip(&result.outcomes).enumerate().map(|(index, (wanted, outcome))| {
            let most =
                wanted.pools.iter().filter_map(|&pool| self.pools.get(pool)?.pool.smallest_gpu(self.rules)).max();
            let too_large = !self.has_place(index, &chosen.choice);
            Outcome { too_large_for: most.filter(|most| too_large && wanted.demand > *most), ..outcome.clone() }
        });
        Plan { pools: pools.collect(), demands: demands.collect(), filled_with: result.filled_with, alternative }
    }
}

#[cfg(test)]
mod tests;
