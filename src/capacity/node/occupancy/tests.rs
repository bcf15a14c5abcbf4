//! Tests of the arithmetic on GPUs. Oracles play every way to hand out replicas; hand-made numbers show the cases that
//! users ask about.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::capacity::gpu::{AllocationPolicy, Gpu, Sharing};

mod oracle;
mod table;

use crate::capacity::testing::rules;
use oracle::{Outcome, Placed, Rule};

fn pool(sizes: &[u64], replicas: u32, allocation_policy: AllocationPolicy) -> Pool {
    Pool { allocation_policy, ..crate::capacity::testing::pool(sizes, replicas) }
}

fn placed(gpu: u32, amount: u64) -> PodShare {
    PodShare { portions: vec![(Some(GpuId::Index(gpu)), Vram::from_mib(amount), 1)], starting: false }
}

fn unassigned(amount: u64) -> PodShare {
    PodShare { portions: vec![(None, Vram::from_mib(amount), 1)], starting: false }
}

/// A pool and its holders, small enough to play every outcome.
#[derive(Clone, Debug)]
struct Case {
    /// Size and out-of-band use of each GPU, in MiB.
    gpus: Vec<(u64, u64)>,
    replicas: u32,
    /// GPU, amount in MiB, and whether the pod is starting. Each pod takes one replica.
    placed: Vec<Placed>,
    unassigned: Vec<(u64, bool)>,
    serialize: bool,
}

fn cases(gpus: impl Strategy<Value = usize>) -> impl Strategy<Value = Case> {
    (gpus, 1u32..=3).prop_flat_map(|(gpus, replicas)| {
        let out_of_band = prop_oneof![6 => Just(0u64), 1 => 0u64..50];
        let one = (0..gpus, 1u64..16, proptest::bool::weighted(0.1));
        (
            proptest::collection::vec((10u64..40, out_of_band), gpus),
            proptest::collection::vec(one, 0..=5.min(gpus * replicas as usize)),
            proptest::collection::vec((1u64..16, proptest::bool::weighted(0.05)), 0..=6 - gpus.max(2)),
            any::<bool>(),
        )
            .prop_map(move |(gpus, drawn, unassigned, serialize)| {
                let mut placed: Vec<Placed> = Vec::new();
                for one in drawn {
                    if placed.iter().filter(|other| other.0 == one.0).count() < replicas as usize {
                        placed.push(one);
                    }
                }
                Case { gpus, replicas, placed, unassigned, serialize }
            })
    })
}

impl Case {
    fn pool(&self, allocation_policy: AllocationPolicy) -> Pool {
        let gpu = |(index, (size, out_of_band)): (u32, &(u64, u64))| Gpu {
            out_of_band: Vram::from_mib(*out_of_band),
            ..Gpu::of_size(index, Vram::from_mib(*size))
        };
        let gpus = (0..).zip(&self.gpus).map(gpu).collect();
        let contents = Contents { gpus, replicas: NonZeroU32::new(self.replicas).unwrap() };
        Pool { contents: Ok(contents), ..pool(&[], 1, allocation_policy) }
    }

    fn occupancy<'p>(&self, pool: &'p Pool) -> Occupancy<'p> {
        let placed = self
            .placed
            .iter()
            .map(|&(gpu, amount, starting)| PodShare { starting, ..placed(u32::try_from(gpu).unwrap(), amount) });
        let unassigned = self.unassigned.iter().map(|&(amount, starting)| PodShare { starting, ..unassigned(amount) });
        let rules = Rules { serialize_per_gpu: self.serialize, ..rules() };
        Occupancy::of(pool, &rules, placed.chain(unassigned)).unwrap()
    }

    /// What is left of each GPU after the pods that are known to be on it.
    fn left(&self) -> Vec<i64> {
        let mut left: Vec<i64> =
            self.gpus.iter().map(|&(size, out_of_band)| size.cast_signed() - out_of_band.cast_signed()).collect();
        for (gpu, amount, _) in &self.placed {
            left[*gpu] -= amount.cast_signed();
        }
        left
    }

    fn taken(&self) -> Vec<usize> {
        (0..self.gpus.len()).map(|gpu| self.placed.iter().filter(|one| one.0 == gpu).count()).collect()
    }

    /// All outcomes if every pod with a known GPU stays.
    fn while_all_stay(&self, rule: Rule, newcomers: usize) -> BTreeSet<Outcome> {
        self.outcomes(rule, (&self.placed, false), newcomers)
    }

    fn outcomes(&self, rule: Rule, placed: (&[Placed], bool), newcomers: usize) -> BTreeSet<Outcome> {
        let unassigned: Vec<i64> = self.unassigned.iter().map(|(amount, _)| amount.cast_signed()).collect();
        oracle::outcomes(rule, (self.gpus.len(), self.replicas as usize), placed, &unassigned, newcomers)
    }

    /// Whether a starting pod blocks a new pod with these outcomes.
    fn is_kept_off(&self, outcomes: &BTreeSet<Outcome>) -> bool {
        let beside = outcomes.iter().any(|outcome| outcome.joins_starting);
        self.serialize && (beside || self.unassigned.iter().any(|(_, starting)| *starting))
    }

    /// What is free for one more pod, over all departures before it gets its GPU.
    fn free(&self, rule: Rule) -> u64 {
        self.free_of(&self.outcomes(rule, (&self.placed, true), 1))
    }

    fn free_of(&self, outcomes: &BTreeSet<Outcome>) -> u64 {
        let free = oracle::free(&self.left(), outcomes).filter(|_| !self.is_kept_off(outcomes));
        u64::try_from(free.unwrap_or(0)).unwrap()
    }

    fn assert_confirmed(&self, pool: &Pool, rule: Rule) -> Result<(), TestCaseError> {
        prop_assert_eq!(pool.accounting(), Accounting::Confirmed);
        let occupancy = self.occupancy(pool);
        prop_assert_eq!(occupancy.free().mib(), self.free(rule));
        let now = self.while_all_stay(rule, 0);
        self.assert_deficit(occupancy.deficit().as_ref(), &now);
        let worst = oracle::worst(self.gpus.len(), &now);
        for ((left, worst), usage) in self.left().into_iter().zip(worst).zip(occupancy.gpus()) {
            prop_assert_eq!(usage.free, Some(Vram::from_mib((left - worst).max(0).unsigned_abs())));
        }
        Ok(())
    }

    /// Asserts the largest certain deficit, with its GPU, or else the largest possible one, without a GPU.
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
    /// `free` is the largest demand that is safe in all outcomes, neither more nor less. The outcomes cover every order
    /// of arrival, every tie, every subset of unassigned pods that never arrive, and departures of the others at any
    /// time.
    #[test]
    fn distributed_room_is_the_most_that_no_order_no_tie_and_no_departure_overcommits(case in cases(2usize..=3)) {
        case.assert_confirmed(&case.pool(AllocationPolicy::Distributed), Rule::Fewest)?;
    }

    /// Under `packed`, each GPU may be next, depending on the pods that are there at that moment. So the pool counts in
    /// slots, which no order of arrivals and departures overcommits.
    #[test]
    fn packed_room_is_in_slots_and_no_departure_overcommits_it(case in cases(2usize..=3)) {
        let pool = case.pool(AllocationPolicy::Packed);
        prop_assert_eq!(pool.accounting(), Accounting::Slot);
        prop_assert!(case.occupancy(&pool).free().mib() <= case.free(Rule::Most));
    }

    #[test]
    fn the_most_that_a_gpu_may_get_of_unassigned_ones_is_the_most_that_any_tie_gives_it(
        case in cases(2usize..=3), arrivals in 0usize..6,
    ) {
        let (pool, gpus) = (case.pool(AllocationPolicy::Distributed), case.gpus.len());
        let ones = vec![1; arrivals];
        let size = (gpus, case.replicas as usize);
        let most = oracle::worst(gpus, &oracle::outcomes(Rule::Fewest, size, (&case.placed, false), &ones, 0));
        let none = Case { unassigned: Vec::new(), ..case.clone() };
        let occupancy = none.occupancy(&pool);
        for (gpu, most) in most.into_iter().enumerate() {
            let taken = case.taken()[gpu] as u64;
            prop_assert_eq!(occupancy.most_unassigned(gpu, taken, arrivals as u64), most.unsigned_abs());
        }
    }

    /// With the free amount of a slot pool, no placement of unassigned pods and no departure overcommits a GPU. Only
    /// that and the slot lower the free amount.
    #[test]
    fn slot_room_is_a_slot_or_what_every_placement_leaves(case in cases(2usize..=3)) {
        let pool = case.pool(AllocationPolicy::Unverified);
        prop_assert_eq!(pool.accounting(), Accounting::Slot);
        let smallest = case.gpus.iter().map(|(size, out_of_band)| size.saturating_sub(*out_of_band)).min().unwrap();
        let slot = smallest / u64::from(case.replicas);
        let occupancy = case.occupancy(&pool);
        prop_assert_eq!(occupancy.free().mib(), slot.min(case.free(Rule::Any)));
        case.assert_deficit(occupancy.deficit().as_ref(), &case.while_all_stay(Rule::Any, 0));
    }

    /// Unassigned pods may get any GPU, also after departures. A steered pod is safe from all of them, and its GPU has a
    /// replica for it in each case.
    #[test]
    fn a_steered_pod_finds_room_and_a_replica_wherever_the_unassigned_ones_lie(
        case in cases(2usize..=3), replicas in 1u64..=2,
    ) {
        let pool = case.pool(AllocationPolicy::Steered);
        prop_assert_eq!(pool.accounting(), Accounting::Steered);
        let (occupancy, taken, left) = (case.occupancy(&pool), case.taken(), case.left());
        let now = case.while_all_stay(Rule::Any, 0);
        let worst = oracle::worst(taken.len(), &now);
        let most_taken = |gpu: usize| taken[gpu] + case.unassigned.len();
        let starts = |gpu: usize| {
            let here = case.placed.iter().any(|&(on, _, starting)| on == gpu && starting);
            case.serialize && (here || case.unassigned.iter().any(|(_, starting)| *starting))
        };
        let free = |gpu: usize| {
            let free = left[gpu] - worst[gpu];
            let fits = most_taken(gpu) as u64 + replicas <= u64::from(case.replicas);
            (free >= 0 && fits && !starts(gpu)).then_some(free.unsigned_abs())
        };
        let most = (0..taken.len()).filter_map(free).max().unwrap_or(0);
        prop_assert_eq!(occupancy.free_for(Newcomer::Steered(replicas)), Vram::from_mib(most));
        for demand in 1..=most + 1 {
            let fullest = (0..taken.len()).filter_map(free).filter(|free| demand <= *free).min();
            match occupancy.place(Vram::from_mib(demand), Newcomer::Steered(replicas)) {
                Err(free) => prop_assert!(fullest.is_none() && free.mib() == most),
                Ok(chosen) => {
                    let chosen = position(chosen.unwrap());
                    prop_assert_eq!(free(chosen), fullest);
                    // Departures before it arrives change nothing about that.
                    let later = case.outcomes(Rule::Any, (&case.placed, true), 0);
                    let worst = oracle::worst(taken.len(), &later)[chosen];
                    prop_assert!(demand.cast_signed() <= left[chosen] - worst);
                }
            }
        }
        case.assert_deficit(occupancy.deficit().as_ref(), &now);
    }

    /// A pod whose GPU the device plugin chooses may get any GPU of a steered pool.
    #[test]
    fn an_unassigned_newcomer_fits_every_gpu_of_a_steered_pool(case in cases(2usize..=3)) {
        let pool = case.pool(AllocationPolicy::Steered);
        prop_assert_eq!(case.occupancy(&pool).free_for(Newcomer::Unassigned(1)).mib(), case.free(Rule::Any));
    }

    /// With one GPU, every pod is on it, whatever reports or annotations contain.
    #[test]
    fn exact_room_is_the_plain_sum(case in cases(Just(1usize))) {
        let pool = case.pool(AllocationPolicy::Unverified);
        prop_assert_eq!(pool.accounting(), Accounting::Exact);
        let left = case.left()[0] - case.unassigned.iter().map(|(amount, _)| amount.cast_signed()).sum::<i64>();
        let starting = case.placed.iter().map(|one| one.2).chain(case.unassigned.iter().map(|unassigned| unassigned.1));
        let blocked = case.serialize && starting.into_iter().any(|starting| starting);
        let occupancy = case.occupancy(&pool);
        prop_assert_eq!(occupancy.free().mib(), if blocked { 0 } else { left.max(0).unsigned_abs() });
        let deficit = (left < 0).then(|| Deficit { by: Vram::from_mib(left.unsigned_abs()), on: Some(GpuId::Index(0)) });
        prop_assert_eq!(occupancy.deficit(), deficit);
    }

    /// A pod with several containers on unknown GPUs counts as if one GPU had all of it. Only the sum is known.
    #[test]
    fn unassigned_pods_of_two_containers_are_never_counted_for_less_than_they_may_take(
        case in cases(2usize..=3), pairs in proptest::collection::vec((1u64..12, 1u64..12), 1..=2),
        (allocation_policy, rule) in select(vec![(AllocationPolicy::Distributed, Rule::Fewest), (AllocationPolicy::Packed, Rule::Most)]),
    ) {
        let single = Case { unassigned: case.unassigned.iter().take(1).copied().collect(), serialize: false, ..case };
        let mut apart = single.clone();
        apart.unassigned.extend(pairs.iter().flat_map(|(one, other)| [(*one, false), (*other, false)]));
        let pool = single.pool(allocation_policy);
        let pairs = pairs.iter().map(|(one, other)| (None, Vram::from_mib(one + other), 2));
        let index = |gpu: usize| GpuId::Index(u32::try_from(gpu).unwrap());
        let placed = single.placed.iter().map(|one| (Some(index(one.0)), Vram::from_mib(one.1), 1));
        let alone = single.unassigned.iter().map(|(amount, _)| (None, Vram::from_mib(*amount), 1));
        let shares = pairs.chain(placed).chain(alone).map(|one| PodShare { portions: vec![one], starting: false });
        let occupancy = Occupancy::of(&pool, &rules(), shares).unwrap();
        prop_assert!(occupancy.free().mib() <= apart.free(rule));
    }
}

/// An event on a node.
#[derive(Clone, Debug)]
enum Step {
    /// A pod is bound that demands this percentage of the free amount.
    Bind(u64),
    /// The device plugin gives a GPU to the n-th pod without one; the second number breaks a tie.
    HandOut(usize, usize),
    /// The n-th pod leaves.
    Leave(usize),
    /// The agent reports the GPU of the n-th pod.
    Inventory(usize),
    /// The agent reports all pods that have a GPU.
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

    /// No history of arrivals, departures and reports overcommits a GPU. Pods may leave before a bound pod gets its
    /// GPU. Pods that are gone may have been there when a pod got a GPU that is not reported yet.
    #[test]
    fn no_history_overcommits_a_gpu_that_the_plugin_chooses(
        (allocation_policy, rule) in select(vec![
            (AllocationPolicy::Distributed, Rule::Fewest), (AllocationPolicy::Packed, Rule::Most), (AllocationPolicy::Unverified, Rule::Any),
        ]),
        sizes in proptest::collection::vec(20u64..100, 2..=3), replicas in 2u32..5,
        steps in proptest::collection::vec(prop_oneof![
            4 => prop_oneof![1u64..=10, 90u64..=100].prop_map(Step::Bind),
            4 => (0usize..2, 0usize..4).prop_map(|(number, tie)| Step::HandOut(number, tie)),
            2 => (0usize..8).prop_map(Step::Leave),
            1 => (0usize..8).prop_map(Step::Inventory),
            1 => Just(Step::ReportAll),
        ], 0..60),
    ) {
        let pool = pool(&sizes, replicas, allocation_policy);
        let mut pods: Vec<Bound> = Vec::new();
        for step in steps {
            match step {
                Step::Bind(share) => {
                    let shares = pods.iter().map(|pod| match pod.gpu {
                        Some(gpu) if pod.reported => placed(u32::try_from(gpu).unwrap(), pod.amount),
                        Some(_) | None => unassigned(pod.amount),
                    });
                    let free = Occupancy::of(&pool, &rules(), shares).unwrap().free().mib();
                    let amount = free * share / 100;
                    // kube-scheduler ensures that a replica is free.
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
                Step::Inventory(number) if number < pods.len() => pods[number].reported = true,
                Step::ReportAll => pods.iter_mut().for_each(|pod| pod.reported = true),
                Step::HandOut(..) | Step::Leave(_) | Step::Inventory(_) => {}
            }
            for (gpu, size) in sizes.iter().enumerate() {
                let held: u64 = pods.iter().filter(|pod| pod.gpu == Some(gpu)).map(|pod| pod.amount).sum();
                prop_assert!(held <= *size, "GPU {} holds {} of {}", gpu, held, size);
            }
        }
    }
}
