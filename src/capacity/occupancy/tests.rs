//! The arithmetic of GPUs against oracles that play every way in which replicas may be handed out, and hand-made numbers for
//! the cases that people ask about.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::capacity::gpu::{Gpu, Headroom, Overcommit, Resource, Sharing};

mod oracle;
mod table;

use oracle::{Outcome, Rule};

/// No headroom: the figures of the tests are the figures of the GPUs.
fn plain() -> Rules {
    let headroom = Headroom { percent: 0, minimum: Vram::ZERO };
    Rules {
        per_process_overhead: Vram::ZERO,
        headroom,
        overcommit: Overcommit::NONE,
        serialize_per_gpu: false,
        several_schedulers: false,
    }
}

fn pool(sizes: &[u64], replicas: u32, handout: Handout) -> Pool {
    let gpus = (0..).zip(sizes).map(|(index, &size)| Gpu::of_size(index, Vram::from_mib(size))).collect();
    Pool {
        resource: Resource("nvidia.com/gpu".into()),
        sharing: Sharing::TimeSlicing,
        contents: Ok(Contents { gpus, replicas: NonZeroU32::new(replicas).unwrap() }),
        handout,
    }
}

fn seated(gpu: u32, amount: u64) -> Share {
    Share { seats: vec![(Some(GpuId::Index(gpu)), Vram::from_mib(amount), 1)], starting: false }
}

fn loose(amount: u64) -> Share {
    Share { seats: vec![(None, Vram::from_mib(amount), 1)], starting: false }
}

/// A pool and who is on it, small enough to play.
#[derive(Clone, Debug)]
struct Case {
    /// Size and out-of-band use.
    gpus: Vec<(u64, u64)>,
    replicas: u32,
    /// GPU, amount, and whether it starts. Each takes one replica.
    seats: Vec<(usize, u64, bool)>,
    loose: Vec<(u64, bool)>,
    serialize: bool,
}

fn cases(gpus: impl Strategy<Value = usize>) -> impl Strategy<Value = Case> {
    (gpus, 1u32..=3).prop_flat_map(|(gpus, replicas)| {
        let out_of_band = prop_oneof![6 => Just(0u64), 1 => 0u64..50];
        let seat = (0..gpus, 1u64..16, proptest::bool::weighted(0.1));
        (
            proptest::collection::vec((10u64..40, out_of_band), gpus),
            proptest::collection::vec(seat, 0..=gpus * replicas as usize),
            proptest::collection::vec((1u64..16, proptest::bool::weighted(0.05)), 0..=6 - gpus.max(2)),
            any::<bool>(),
        )
            .prop_map(move |(gpus, drawn, loose, serialize)| {
                let mut seats: Vec<(usize, u64, bool)> = Vec::new();
                for seat in drawn {
                    if seats.iter().filter(|other| other.0 == seat.0).count() < replicas as usize {
                        seats.push(seat);
                    }
                }
                Case { gpus, replicas, seats, loose, serialize }
            })
    })
}

impl Case {
    fn pool(&self, handout: Handout) -> Pool {
        let gpu = |(index, (size, out_of_band)): (u32, &(u64, u64))| Gpu {
            out_of_band: Vram::from_mib(*out_of_band),
            ..Gpu::of_size(index, Vram::from_mib(*size))
        };
        let gpus = (0..).zip(&self.gpus).map(gpu).collect();
        let contents = Contents { gpus, replicas: NonZeroU32::new(self.replicas).unwrap() };
        Pool { contents: Ok(contents), ..pool(&[], 1, handout) }
    }

    fn occupancy<'p>(&self, pool: &'p Pool) -> Occupancy<'p> {
        let seated = self
            .seats
            .iter()
            .map(|&(gpu, amount, starting)| Share { starting, ..seated(u32::try_from(gpu).unwrap(), amount) });
        let loose = self.loose.iter().map(|&(amount, starting)| Share { starting, ..loose(amount) });
        let rules = Rules { serialize_per_gpu: self.serialize, ..plain() };
        Occupancy::of(pool, &rules, seated.chain(loose)).unwrap()
    }

    /// What is left of each GPU beside those that are known to be on it.
    fn left(&self) -> Vec<i64> {
        let mut left: Vec<i64> =
            self.gpus.iter().map(|&(size, out_of_band)| size.cast_signed() - out_of_band.cast_signed()).collect();
        for (gpu, amount, _) in &self.seats {
            left[*gpu] -= amount.cast_signed();
        }
        left
    }

    fn taken(&self) -> Vec<usize> {
        (0..self.gpus.len()).map(|gpu| self.seats.iter().filter(|seat| seat.0 == gpu).count()).collect()
    }

    fn outcomes(&self, rule: Rule, taken: &[usize], newcomers: usize) -> BTreeSet<Outcome> {
        let loose: Vec<i64> = self.loose.iter().map(|(amount, _)| amount.cast_signed()).collect();
        oracle::outcomes(rule, self.replicas as usize, taken, &loose, newcomers)
    }

    /// Whether a pod that starts keeps one with these outcomes off.
    fn is_kept_off(&self, outcomes: &BTreeSet<Outcome>) -> bool {
        let may_get = |gpu: usize| outcomes.iter().any(|outcome| outcome.newcomer == Some(gpu));
        let beside = self.seats.iter().any(|&(gpu, _, starting)| starting && may_get(gpu));
        self.serialize && (beside || self.loose.iter().any(|(_, starting)| *starting))
    }

    fn room(&self, rule: Rule, taken: &[usize]) -> u64 {
        let outcomes = self.outcomes(rule, taken, 1);
        let room = oracle::room(&self.left(), &outcomes).filter(|_| !self.is_kept_off(&outcomes));
        u64::try_from(room.unwrap_or(0)).unwrap()
    }

    fn assert_confirmed(&self, pool: &Pool, rule: Rule) -> Result<(), TestCaseError> {
        prop_assert_eq!(pool.accounting(), Accounting::Confirmed);
        let (occupancy, taken) = (self.occupancy(pool), self.taken());
        prop_assert_eq!(occupancy.room().mib(), self.room(rule, &taken));
        self.assert_deficit(occupancy.deficit().as_ref(), rule, &taken);
        let worst = oracle::worst(taken.len(), &self.outcomes(rule, &taken, 0));
        for ((left, worst), standing) in self.left().into_iter().zip(worst).zip(occupancy.gpus()) {
            prop_assert_eq!(standing.free, Some(Vram::from_mib((left - worst).max(0).unsigned_abs())));
        }
        Ok(())
    }

    /// The largest deficit that is certain, with its GPU; else the largest that may be, without one.
    fn assert_deficit(&self, found: Option<&Deficit>, rule: Rule, taken: &[usize]) {
        let left = self.left();
        let worst = oracle::worst(left.len(), &self.outcomes(rule, taken, 0));
        let may_be = left.iter().zip(worst).map(|(left, worst)| left - worst).min().unwrap();
        let certain = *left.iter().min().unwrap();
        let by = found.map_or(0, |deficit| -deficit.by.mib().cast_signed());
        let on = found.and_then(|deficit| deficit.on.as_ref()).map(|on| left[position(on)]);
        let expected = if certain < 0 { (certain, Some(certain)) } else { (may_be.min(0), None) };
        assert_eq!((by, on), expected, "{found:?}");
    }
}

fn position(id: &GpuId) -> usize {
    match id {
        GpuId::Index(index) => *index as usize,
        GpuId::Uuid(uuid) => panic!("no GPU here is named {uuid}"),
    }
}

proptest! {
    /// Every order of arrival, every tie, any of the loose ones never: the room is the largest demand that is safe in all of
    /// them, neither more nor less.
    #[test]
    fn distributed_room_is_the_most_that_no_order_and_no_tie_overcommits(case in cases(2usize..=3)) {
        case.assert_confirmed(&case.pool(Handout::Distributed), Rule::Fewest)?;
    }

    /// The same under `packed`, where all is known. Where something is loose, it may have come when the GPUs stood otherwise:
    /// no placement of the loose ones overcommits, and so no order does.
    #[test]
    fn packed_room_is_the_most_that_no_order_and_no_placement_overcommits(case in cases(2usize..=3)) {
        let pool = case.pool(Handout::Packed);
        case.assert_confirmed(&pool, if case.loose.is_empty() { Rule::Most } else { Rule::Any })?;
        prop_assert!(case.occupancy(&pool).room().mib() <= case.room(Rule::Most, &case.taken()));
    }

    #[test]
    fn the_most_handed_out_of_a_gpu_is_the_most_that_any_tie_gives_it(
        case in cases(2usize..=3),
        (handout, rule) in select(vec![(Handout::Distributed, Rule::Fewest), (Handout::Packed, Rule::Most)]),
        arrivals in 0usize..6,
    ) {
        let (pool, taken) = (case.pool(handout), case.taken());
        let outcomes = oracle::outcomes(rule, case.replicas as usize, &taken, &vec![1; arrivals], 0);
        let most = oracle::worst(taken.len(), &outcomes);
        let occupancy = case.occupancy(&pool);
        for (gpu, most) in most.into_iter().enumerate() {
            prop_assert_eq!(occupancy.most_handed_out(gpu, arrivals as u64), most.unsigned_abs());
        }
    }

    /// No placement of the loose ones overcommits a GPU with the room of a slot pool, and nothing but that and the slot
    /// lowers it.
    #[test]
    fn slot_room_is_a_slot_or_what_every_placement_leaves(case in cases(2usize..=3)) {
        let (pool, taken) = (case.pool(Handout::Unverified), case.taken());
        prop_assert_eq!(pool.accounting(), Accounting::Slot);
        let smallest = case.gpus.iter().map(|(size, out_of_band)| size.saturating_sub(*out_of_band)).min().unwrap();
        let slot = smallest / u64::from(case.replicas);
        let occupancy = case.occupancy(&pool);
        prop_assert_eq!(occupancy.room().mib(), slot.min(case.room(Rule::Any, &taken)));
        case.assert_deficit(occupancy.deficit().as_ref(), Rule::Any, &taken);
    }

    /// The plugin does not know of pins: it may put loose ones onto any GPU, as many as that has replicas.
    #[test]
    fn a_pinned_pod_finds_room_on_its_gpu_wherever_the_loose_ones_lie(case in cases(2usize..=3)) {
        let pool = case.pool(Handout::Pinned);
        prop_assert_eq!(pool.accounting(), Accounting::Pinned);
        let (occupancy, taken, left) = (case.occupancy(&pool), case.taken(), case.left());
        let unaware = vec![0; taken.len()];
        let worst = oracle::worst(taken.len(), &case.outcomes(Rule::Any, &unaware, 0));
        let starts = |gpu: usize| {
            let here = case.seats.iter().any(|&(on, _, starting)| on == gpu && starting);
            case.serialize && (here || case.loose.iter().any(|(_, starting)| *starting))
        };
        let free = |gpu: usize| {
            let free = left[gpu] - worst[gpu];
            (free >= 0 && taken[gpu] < case.replicas as usize && !starts(gpu)).then_some(free.unsigned_abs())
        };
        let most = (0..taken.len()).filter_map(free).max().unwrap_or(0);
        prop_assert_eq!(occupancy.room(), Vram::from_mib(most));
        for demand in 1..=most + 1 {
            let fullest = (0..taken.len()).filter_map(free).filter(|free| demand <= *free).min();
            match occupancy.place(Vram::from_mib(demand), Newcomer::Pinned) {
                Err(room) => prop_assert!(fullest.is_none() && room.mib() == most),
                Ok(chosen) => prop_assert_eq!(free(position(chosen.unwrap())), fullest),
            }
        }
        case.assert_deficit(occupancy.deficit().as_ref(), Rule::Any, &unaware);
    }

    /// A pod that is not pinned may get any GPU of a pinned pool.
    #[test]
    fn a_loose_newcomer_fits_every_gpu_of_a_pinned_pool(case in cases(2usize..=3)) {
        let (pool, unaware) = (case.pool(Handout::Pinned), vec![0; case.gpus.len()]);
        prop_assert_eq!(case.occupancy(&pool).room_for(Newcomer::Loose(1)).mib(), case.room(Rule::Any, &unaware));
    }

    /// One GPU: whatever anybody says of where its pods are, they are there.
    #[test]
    fn exact_room_is_the_plain_sum(case in cases(Just(1usize))) {
        let pool = case.pool(Handout::Unverified);
        prop_assert_eq!(pool.accounting(), Accounting::Exact);
        let left = case.left()[0] - case.loose.iter().map(|(amount, _)| amount.cast_signed()).sum::<i64>();
        let starting = case.seats.iter().map(|seat| seat.2).chain(case.loose.iter().map(|loose| loose.1));
        let blocked = case.serialize && starting.into_iter().any(|starting| starting);
        let occupancy = case.occupancy(&pool);
        prop_assert_eq!(occupancy.room().mib(), if blocked { 0 } else { left.max(0).unsigned_abs() });
        let deficit = (left < 0).then(|| Deficit { by: Vram::from_mib(left.unsigned_abs()), on: Some(GpuId::Index(0)) });
        prop_assert_eq!(occupancy.deficit(), deficit);
    }

    /// Of a pod with several containers on unknown GPUs only the sum is known: it is counted as if one GPU had it all.
    #[test]
    fn loose_pods_of_two_containers_are_never_counted_for_less_than_they_may_take(
        case in cases(2usize..=3), pairs in proptest::collection::vec((1u64..12, 1u64..12), 1..=2),
        (handout, rule) in select(vec![(Handout::Distributed, Rule::Fewest), (Handout::Packed, Rule::Most)]),
    ) {
        let single = Case { loose: case.loose.iter().take(1).copied().collect(), serialize: false, ..case };
        let mut apart = single.clone();
        apart.loose.extend(pairs.iter().flat_map(|(one, other)| [(*one, false), (*other, false)]));
        let pool = single.pool(handout);
        let pairs = pairs.iter().map(|(one, other)| (None, Vram::from_mib(one + other), 2));
        let index = |gpu: usize| GpuId::Index(u32::try_from(gpu).unwrap());
        let seats = single.seats.iter().map(|seat| (Some(index(seat.0)), Vram::from_mib(seat.1), 1));
        let alone = single.loose.iter().map(|(amount, _)| (None, Vram::from_mib(*amount), 1));
        let shares = pairs.chain(seats).chain(alone).map(|seat| Share { seats: vec![seat], starting: false });
        let occupancy = Occupancy::of(&pool, &plain(), shares).unwrap();
        prop_assert!(occupancy.room().mib() <= apart.room(rule, &apart.taken()));
    }
}

/// What happens on a node under `confirmed`.
#[derive(Clone, Debug)]
enum Step {
    /// A pod that takes this share of the room comes, and the plugin hands out at once; the number breaks its tie.
    Come(u64, usize),
    /// The n-th pod leaves.
    Leave(usize),
    /// The agent reports the n-th pod.
    Report(usize),
}

proptest! {
    /// What nobody has reported yet may have been handed out when others were there that have left since.
    #[test]
    fn no_history_overcommits_a_gpu_whose_next_pod_is_predicted(
        (handout, rule) in select(vec![(Handout::Distributed, Rule::Fewest), (Handout::Packed, Rule::Most)]),
        sizes in proptest::collection::vec(20u64..100, 2..=4), replicas in 1u32..5,
        steps in proptest::collection::vec(prop_oneof![
            3 => (1u64..=100, 0usize..4).prop_map(|(share, tie)| Step::Come(share, tie)),
            2 => (0usize..12).prop_map(Step::Leave),
            2 => (0usize..12).prop_map(Step::Report),
        ], 0..40),
    ) {
        let pool = pool(&sizes, replicas, handout);
        // GPU, amount, whether it is reported.
        let mut pods: Vec<(usize, u64, bool)> = Vec::new();
        for step in steps {
            match step {
                Step::Come(share, tie) => {
                    let shares = pods.iter().map(|&(gpu, amount, known)| {
                        if known { seated(u32::try_from(gpu).unwrap(), amount) } else { loose(amount) }
                    });
                    let room = Occupancy::of(&pool, &plain(), shares).unwrap().room().mib();
                    let taken: Vec<usize> =
                        (0..sizes.len()).map(|gpu| pods.iter().filter(|pod| pod.0 == gpu).count()).collect();
                    let choices = rule.choices(&taken, replicas as usize);
                    let demand = room * share / 100;
                    // That there is a replica is kube-scheduler's to see to.
                    if demand > 0 && !choices.is_empty() {
                        pods.push((choices[tie % choices.len()], demand, false));
                    }
                }
                Step::Leave(number) if number < pods.len() => _ = pods.remove(number),
                Step::Report(number) if number < pods.len() => pods[number].2 = true,
                Step::Leave(_) | Step::Report(_) => {}
            }
            for (gpu, size) in sizes.iter().enumerate() {
                let held: u64 = pods.iter().filter(|pod| pod.0 == gpu).map(|pod| pod.1).sum();
                prop_assert!(held <= *size, "GPU {} holds {} of {}", gpu, held, size);
            }
        }
    }
}
