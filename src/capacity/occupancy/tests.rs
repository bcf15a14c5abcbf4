//! The arithmetic of GPUs against oracles that play every way in which replicas may be handed out, and hand-made numbers for
//! the cases that people ask about.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::capacity::gpu::{DriverReserve, Gpu, Headroom, Overcommit, Resource, Sharing};

mod oracle;
mod table;

use oracle::{Outcome, Rule, Seated};

/// No headroom: the figures of the tests are the figures of the GPUs.
fn plain() -> Rules {
    let headroom = Headroom { percent: 0, minimum: Vram::ZERO };
    Rules {
        driver_reserve: DriverReserve::Amount(Vram::ZERO),
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
    seats: Vec<Seated>,
    loose: Vec<(u64, bool)>,
    serialize: bool,
}

fn cases(gpus: impl Strategy<Value = usize>) -> impl Strategy<Value = Case> {
    (gpus, 1u32..=3).prop_flat_map(|(gpus, replicas)| {
        let out_of_band = prop_oneof![6 => Just(0u64), 1 => 0u64..50];
        let seat = (0..gpus, 1u64..16, proptest::bool::weighted(0.1));
        (
            proptest::collection::vec((10u64..40, out_of_band), gpus),
            proptest::collection::vec(seat, 0..=5.min(gpus * replicas as usize)),
            proptest::collection::vec((1u64..16, proptest::bool::weighted(0.05)), 0..=6 - gpus.max(2)),
            any::<bool>(),
        )
            .prop_map(move |(gpus, drawn, loose, serialize)| {
                let mut seats: Vec<Seated> = Vec::new();
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

    /// What may come of it while all that are known to be there stay.
    fn while_all_stay(&self, rule: Rule, newcomers: usize) -> BTreeSet<Outcome> {
        self.outcomes(rule, (&self.seats, false), newcomers)
    }

    fn outcomes(&self, rule: Rule, seats: (&[Seated], bool), newcomers: usize) -> BTreeSet<Outcome> {
        let loose: Vec<i64> = self.loose.iter().map(|(amount, _)| amount.cast_signed()).collect();
        oracle::outcomes(rule, (self.gpus.len(), self.replicas as usize), seats, &loose, newcomers)
    }

    /// Whether a pod that starts keeps one with these outcomes off.
    fn is_kept_off(&self, outcomes: &BTreeSet<Outcome>) -> bool {
        let beside = outcomes.iter().any(|outcome| outcome.beside_starting);
        self.serialize && (beside || self.loose.iter().any(|(_, starting)| *starting))
    }

    /// The room for one more, whoever leaves before it comes to its GPU.
    fn room(&self, rule: Rule) -> u64 {
        self.room_of(&self.outcomes(rule, (&self.seats, true), 1))
    }

    fn room_of(&self, outcomes: &BTreeSet<Outcome>) -> u64 {
        let room = oracle::room(&self.left(), outcomes).filter(|_| !self.is_kept_off(outcomes));
        u64::try_from(room.unwrap_or(0)).unwrap()
    }

    fn assert_confirmed(&self, pool: &Pool, rule: Rule) -> Result<(), TestCaseError> {
        prop_assert_eq!(pool.accounting(), Accounting::Confirmed);
        let occupancy = self.occupancy(pool);
        prop_assert_eq!(occupancy.room().mib(), self.room(rule));
        let now = self.while_all_stay(rule, 0);
        self.assert_deficit(occupancy.deficit().as_ref(), &now);
        let worst = oracle::worst(self.gpus.len(), &now);
        for ((left, worst), standing) in self.left().into_iter().zip(worst).zip(occupancy.gpus()) {
            prop_assert_eq!(standing.free, Some(Vram::from_mib((left - worst).max(0).unsigned_abs())));
        }
        Ok(())
    }

    /// The largest deficit that is certain, with its GPU; else the largest that may be, without one.
    fn assert_deficit(&self, found: Option<&Deficit>, now: &BTreeSet<Outcome>) {
        let left = self.left();
        let worst = oracle::worst(left.len(), now);
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
    /// Every order of arrival, every tie, any of the loose ones never, any of the others gone at any time: the room is the
    /// largest demand that is safe in all of them, neither more nor less.
    #[test]
    fn distributed_room_is_the_most_that_no_order_no_tie_and_no_departure_overcommits(case in cases(2usize..=3)) {
        case.assert_confirmed(&case.pool(Handout::Distributed), Rule::Fewest)?;
    }

    /// Under `packed` the GPU that is next depends on who is there then, and each may be: no placement overcommits, and so no
    /// order and no departure does.
    #[test]
    fn packed_room_is_the_most_that_no_placement_and_no_departure_overcommits(case in cases(2usize..=3)) {
        let pool = case.pool(Handout::Packed);
        case.assert_confirmed(&pool, Rule::Any)?;
        prop_assert!(case.occupancy(&pool).room().mib() <= case.room(Rule::Most));
    }

    #[test]
    fn the_most_that_a_gpu_may_get_of_loose_ones_is_the_most_that_any_tie_gives_it(
        case in cases(2usize..=3), arrivals in 0usize..6,
    ) {
        let (pool, gpus) = (case.pool(Handout::Distributed), case.gpus.len());
        let ones = vec![1; arrivals];
        let size = (gpus, case.replicas as usize);
        let most = oracle::worst(gpus, &oracle::outcomes(Rule::Fewest, size, (&case.seats, false), &ones, 0));
        let none = Case { loose: Vec::new(), ..case.clone() };
        let occupancy = none.occupancy(&pool);
        for (gpu, most) in most.into_iter().enumerate() {
            let taken = case.taken()[gpu] as u64;
            prop_assert_eq!(occupancy.most_loose(gpu, taken, arrivals as u64), most.unsigned_abs());
        }
    }

    /// No placement of the loose ones overcommits a GPU with the room of a slot pool, whoever leaves, and nothing but that and
    /// the slot lowers it.
    #[test]
    fn slot_room_is_a_slot_or_what_every_placement_leaves(case in cases(2usize..=3)) {
        let pool = case.pool(Handout::Unverified);
        prop_assert_eq!(pool.accounting(), Accounting::Slot);
        let smallest = case.gpus.iter().map(|(size, out_of_band)| size.saturating_sub(*out_of_band)).min().unwrap();
        let slot = smallest / u64::from(case.replicas);
        let occupancy = case.occupancy(&pool);
        prop_assert_eq!(occupancy.room().mib(), slot.min(case.room(Rule::Any)));
        case.assert_deficit(occupancy.deficit().as_ref(), &case.while_all_stay(Rule::Any, 0));
    }

    /// The plugin does not know of pins: it may put loose ones onto any GPU, as many as that has replicas.
    #[test]
    fn a_pinned_pod_finds_room_on_its_gpu_wherever_the_loose_ones_lie(case in cases(2usize..=3)) {
        let pool = case.pool(Handout::Pinned);
        prop_assert_eq!(pool.accounting(), Accounting::Pinned);
        let (occupancy, taken, left) = (case.occupancy(&pool), case.taken(), case.left());
        let unaware = case.outcomes(Rule::Any, (&[], false), 0);
        let worst = oracle::worst(taken.len(), &unaware);
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
        case.assert_deficit(occupancy.deficit().as_ref(), &unaware);
    }

    /// A pod that is not pinned may get any GPU of a pinned pool.
    #[test]
    fn a_loose_newcomer_fits_every_gpu_of_a_pinned_pool(case in cases(2usize..=3)) {
        let (pool, unaware) = (case.pool(Handout::Pinned), case.outcomes(Rule::Any, (&[], false), 1));
        let starts = case.serialize && case.seats.iter().any(|&(_, _, starting)| starting);
        let room = if starts { 0 } else { case.room_of(&unaware) };
        prop_assert_eq!(case.occupancy(&pool).room_for(Newcomer::Loose(1)).mib(), room);
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
        prop_assert!(occupancy.room().mib() <= apart.room(rule));
    }
}

/// What happens on a node.
#[derive(Clone, Debug)]
enum Step {
    /// A pod that takes this share of the room is bound.
    Bind(u64),
    /// The plugin hands out a GPU to the n-th pod that has none; the other number breaks its tie.
    HandOut(usize, usize),
    /// The n-th pod leaves.
    Leave(usize),
    /// The agent reports the n-th pod.
    Report(usize),
    /// The agent reports all that have a GPU.
    ReportAll,
}

#[derive(Clone, Debug)]
struct Bound {
    amount: u64,
    gpu: Option<usize>,
    reported: bool,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whoever leaves before a pod that is bound gets its GPU, and whoever was there when one got it that nobody has reported
    /// yet: none of it overcommits a GPU.
    #[test]
    fn no_history_overcommits_a_gpu_that_the_plugin_chooses(
        (handout, rule) in select(vec![
            (Handout::Distributed, Rule::Fewest), (Handout::Packed, Rule::Most), (Handout::Unverified, Rule::Any),
        ]),
        sizes in proptest::collection::vec(20u64..100, 2..=3), replicas in 2u32..5,
        steps in proptest::collection::vec(prop_oneof![
            4 => prop_oneof![1u64..=10, 90u64..=100].prop_map(Step::Bind),
            4 => (0usize..2, 0usize..4).prop_map(|(number, tie)| Step::HandOut(number, tie)),
            2 => (0usize..8).prop_map(Step::Leave),
            1 => (0usize..8).prop_map(Step::Report),
            1 => Just(Step::ReportAll),
        ], 0..60),
    ) {
        let pool = pool(&sizes, replicas, handout);
        let mut pods: Vec<Bound> = Vec::new();
        for step in steps {
            match step {
                Step::Bind(share) => {
                    let shares = pods.iter().map(|pod| match pod.gpu {
                        Some(gpu) if pod.reported => seated(u32::try_from(gpu).unwrap(), pod.amount),
                        Some(_) | None => loose(pod.amount),
                    });
                    let room = Occupancy::of(&pool, &plain(), shares).unwrap().room().mib();
                    let amount = room * share / 100;
                    // That there is a replica is kube-scheduler's to see to.
                    if amount > 0 && pods.len() < sizes.len() * replicas as usize {
                        pods.push(Bound { amount, gpu: None, reported: false });
                    }
                }
                Step::HandOut(number, tie) if number < pods.iter().filter(|pod| pod.gpu.is_none()).count() => {
                    let on = |gpu: usize| pods.iter().filter(|pod| pod.gpu == Some(gpu)).count();
                    let taken: Vec<usize> = (0..sizes.len()).map(on).collect();
                    let choices = rule.choices(&taken, replicas as usize);
                    let mut waiting = pods.iter_mut().filter(|pod| pod.gpu.is_none());
                    waiting.nth(number).unwrap().gpu = Some(choices[tie % choices.len()]);
                }
                Step::Leave(number) if number < pods.len() => _ = pods.remove(number),
                Step::Report(number) if number < pods.len() => pods[number].reported = true,
                Step::ReportAll => pods.iter_mut().for_each(|pod| pod.reported = true),
                Step::HandOut(..) | Step::Leave(_) | Step::Report(_) => {}
            }
            for (gpu, size) in sizes.iter().enumerate() {
                let held: u64 = pods.iter().filter(|pod| pod.gpu == Some(gpu)).map(|pod| pod.amount).sum();
                prop_assert!(held <= *size, "GPU {} holds {} of {}", gpu, held, size);
            }
        }
    }
}
