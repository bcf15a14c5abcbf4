use proptest::prelude::*;

use super::*;
use crate::capacity::gpu::AllocationPolicy;
use crate::capacity::testing::{mib, pool, rules};

fn equal(sizes: &[u64], replicas: u32, nodes: u64) -> EqualPools {
    EqualPools { pool: pool(sizes, replicas), nodes, utilisation: None }
}

fn wanted(demand: u64, count: Option<u64>, pools: &[usize]) -> Wanted {
    Wanted { demand: mib(demand), count, pools: pools.iter().copied().collect() }
}

fn replicas(plan: &Plan) -> Vec<u32> {
    plan.pools.iter().map(|pool| pool.replicas.get()).collect()
}

#[test]
fn with_several_gpus_the_largest_demand_decides_how_many_slots_there_are() {
    let pools = [equal(&[80_000; 8], 1, 2)];
    let plan = plan(&pools, &[wanted(8_900, Some(100), &[0]), wanted(20_000, Some(3), &[0])], &rules(), None);
    assert_eq!((replicas(&plan), plan.pools[0].bound), (vec![4], Bound::Slot { demand: 1 }));
    assert_eq!((plan.pools[0].accounting, plan.pools[0].slot), (Accounting::Slot, mib(20_000)));
    assert_eq!((plan.demands[0].fits, plan.demands[1].fits), (61, 3), "64 slots");
    let alternative = plan.alternative.as_ref().unwrap();
    assert_eq!((alternative.replicas[0].get(), alternative.placed, alternative.homeless), (8, 100, 1));
}

#[test]
fn with_one_gpu_memory_decides_and_the_smallest_demand_sets_the_replicas() {
    let pools = [equal(&[80_000], 4, 1)];
    let plan = plan(&pools, &[wanted(8_900, Some(5), &[0]), wanted(20_000, Some(1), &[0])], &rules(), None);
    assert_eq!((replicas(&plan), plan.pools[0].bound), (vec![8], Bound::Memory { demand: 0 }));
    assert_eq!((plan.demands[0].fits, plan.demands[1].fits), (5, 1));
    assert_eq!((plan.pools[0].held, plan.pools[0].stranded), (mib(64_500), mib(0)));
}

#[test]
fn a_large_demand_does_not_shrink_the_slots_where_another_pool_has_room_for_it() {
    let pools = [equal(&[80_000; 4], 1, 1), equal(&[80_000], 1, 1)];
    let plan = plan(&pools, &[wanted(8_000, Some(40), &[0, 1]), wanted(60_000, Some(1), &[0, 1])], &rules(), None);
    assert_eq!(replicas(&plan), [10, 10]);
    assert_eq!(plan.demands[1].on, [(1, 1)]);
    assert_eq!((plan.demands[0].fits, plan.alternative), (40, None));
}

#[test]
fn mps_counts_by_slots_even_with_one_gpu_and_the_verified_plugin_by_memory() {
    let mut mps = equal(&[24_000], 4, 1);
    mps.pool.sharing = Sharing::Mps;
    let mut steered = equal(&[24_000; 2], 4, 1);
    steered.pool.allocation_policy = AllocationPolicy::Steered;
    let wanted = [wanted(5_000, Some(9), &[0, 1]), wanted(12_000, Some(2), &[0, 1])];
    let plan = plan(&[mps, steered], &wanted, &rules(), None);
    assert_eq!(plan.pools[0].accounting, Accounting::Slot);
    assert_eq!((plan.pools[1].accounting, plan.pools[1].replicas.get()), (Accounting::Steered, 4));
}

#[test]
fn a_busy_gpu_and_the_operator_bound_the_replicas() {
    let mut busy = equal(&[80_000], 1, 1);
    for (utilisation, current, cap, expected) in [
        (Some(89), 6, None, (10, Bound::Memory { demand: 0 })),
        (Some(90), 6, None, (4, Bound::Saturated { by_memory: 10 })),
        (Some(99), 3, None, (3, Bound::Saturated { by_memory: 10 })),
        (Some(99), 1, None, (2, Bound::Saturated { by_memory: 10 })),
        (None, 6, NonZeroU32::new(8), (8, Bound::Cap { by_memory: 10 })),
        (Some(99), 6, NonZeroU32::new(2), (2, Bound::Cap { by_memory: 10 })),
    ] {
        busy = EqualPools { utilisation, ..equal(&[80_000], current, 1) };
        let plan = plan(std::slice::from_ref(&busy), &[wanted(8_000, Some(1), &[0])], &rules(), cap);
        assert_eq!((plan.pools[0].replicas.get(), plan.pools[0].bound), expected, "{utilisation:?} {current} {cap:?}");
    }
    drop(busy);
}

#[test]
fn a_demand_that_fits_nowhere_changes_nothing_and_says_how_much_would() {
    let pools = [equal(&[24_000; 2], 4, 1)];
    let plan = plan(&pools, &[wanted(6_000, None, &[0]), wanted(30_000, Some(1), &[0])], &rules(), None);
    assert_eq!(replicas(&plan), [4]);
    assert_eq!((plan.demands[1].fits, plan.demands[1].too_large_for), (0, Some(mib(24_000))));
    assert_eq!((plan.demands[0].fits, plan.filled_with), (8, Some(0)));
    let none = super::plan(&pools, &[], &rules(), None);
    assert_eq!((replicas(&none), none.pools[0].bound), (vec![4], Bound::NoDemand));
    assert_eq!(none.pools[0].stranded, mib(48_000), "nobody uses it");
}

#[test]
fn a_slot_below_every_demand_is_noticed() {
    let of = |replicas, smallest| {
        useless_slot(&pool(&[24_000; 2], 1), NonZeroU32::new(replicas).unwrap(), mib(smallest), &rules())
    };
    assert_eq!((of(4, 6_000), of(4, 6_001)), (None, Some(mib(6_000))));
}

/// The agents of 11 fit both pools, and those of 15 only the second one. They were placed into the smaller slots of the
/// second pool, so that more slots there placed less.
#[test]
fn a_demand_with_another_place_makes_room_for_one_without() {
    let pools = [equal(&[21, 23, 25], 1, 3), equal(&[59, 58], 4, 3)];
    let plan = plan(&pools, &[wanted(11, Some(7), &[0, 1]), wanted(15, None, &[1])], &rules(), None);
    assert_eq!(replicas(&plan), [1, 3]);
    assert_eq!((plan.demands[0].on.as_slice(), plan.demands[1].fits), ([(0, 7)].as_slice(), 18));
    assert_eq!((plan.pools[0].held, plan.pools[1].held), (mib(77), mib(270)));
}

#[derive(Clone, Debug)]
struct Case {
    pools: Vec<EqualPools>,
    wanted: Vec<Wanted>,
}

fn cases(pools: std::ops::Range<usize>) -> impl Strategy<Value = Case> {
    let equal_pools = (proptest::collection::vec(20u64..60, 1..4), 1u64..4, 1u32..5)
        .prop_map(|(sizes, nodes, replicas)| equal(&sizes, replicas, nodes));
    proptest::collection::vec(equal_pools, pools).prop_flat_map(|pools| {
        let of = 0..(1u32 << pools.len());
        let demand = (1u64..70, proptest::option::weighted(0.8, 0u64..20), of).prop_map(|(demand, count, mask)| {
            let pools: Vec<usize> = (0..32).filter(|pool| mask >> pool & 1 == 1).collect();
            wanted(demand, count, &pools)
        });
        let pools = Just(pools);
        (pools, proptest::collection::vec(demand, 0..5)).prop_map(|(pools, wanted)| Case { pools, wanted })
    })
}

/// The largest number of replicas with which every demand that fits a GPU fits a slot, counted up from one.
fn by_counting(sizes: &[u64], demands: &[u64]) -> Option<u32> {
    let smallest = *sizes.iter().min().unwrap();
    let fitting: Vec<u64> = demands.iter().copied().filter(|demand| *demand <= smallest).collect();
    let holds = |replicas: u32| fitting.iter().all(|demand| *demand * u64::from(replicas) <= smallest);
    (!fitting.is_empty()).then(|| (1..=MAX_REPLICAS).filter(|replicas| holds(*replicas)).max().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn one_pool_of_several_gpus_gets_the_most_replicas_with_which_all_demands_fit(
        sizes in proptest::collection::vec(20u64..4000, 2..9),
        demands in proptest::collection::vec(1u64..5000, 0..6),
        nodes in 1u64..9,
    ) {
        let wanted: Vec<Wanted> = demands.iter().map(|demand| wanted(*demand, Some(3), &[0])).collect();
        let plan = plan(&[equal(&sizes, 7, nodes)], &wanted, &rules(), None);
        prop_assert_eq!(replicas(&plan), [by_counting(&sizes, &demands).unwrap_or(7)]);
    }

    /// A brute force over all numbers of replicas up to the largest amount finds no choice that is better.
    #[test]
    fn no_other_number_of_replicas_is_better(case in cases(1..3)) {
        let rules = rules();
        let planner = Planner { pools: &case.pools, wanted: &case.wanted, rules: &rules };
        let candidates: Vec<Vec<Candidate>> = (0..case.pools.len()).map(|pool| planner.candidates(pool, None)).collect();
        let homes = planner.homes(&candidates);
        let best = planner.best(&candidates, Evaluation::merit);
        let slots = |pool: &EqualPools| with_replicas(&pool.pool, NonZeroU32::new(2).unwrap()).accounting() == Accounting::Slot;
        let numbers: Vec<Vec<Candidate>> = case.pools.iter().zip(&candidates).map(|(pool, list)| {
            let all = (1..=60).map(|replicas| Candidate { replicas: NonZeroU32::new(replicas).unwrap(), bound: Bound::NoDemand });
            // A pool without a demand stays as it is, and one that counts by memory needs no choice.
            if slots(pool) && list[0].bound != Bound::NoDemand { all.collect() } else { list.clone() }
        }).collect();
        let product = numbers.iter().map(Vec::len).product::<usize>();
        for mut at in 0..product {
            let choice: Vec<Candidate> = numbers.iter().map(|list| { let c = list[at % list.len()]; at /= list.len(); c }).collect();
            let other = planner.evaluate(&choice, &homes);
            let (best, other) = (best.result.merit(), other.merit());
            prop_assert!((best.0, best.1, best.2) >= (other.0, other.1, other.2), "{choice:?} {best:?} {other:?}");
        }
    }

    /// What is placed is counted again, pod by pod, from the numbers of the plan alone.
    #[test]
    fn a_plan_never_proposes_more_than_fits(case in cases(1..4)) {
        let plan = plan(&case.pools, &case.wanted, &rules(), None);
        for (index, (equal, planned)) in case.pools.iter().zip(&plan.pools).enumerate() {
            let contents = equal.pool.contents.as_ref().unwrap();
            let sizes: Vec<u64> = contents.gpus.iter().map(|gpu| gpu.total.mib()).collect();
            let mut pods = Vec::new();
            for (at, (wanted, outcome)) in case.wanted.iter().zip(&plan.demands).enumerate() {
                let here: u64 = outcome.on.iter().filter(|(pool, _)| *pool == index).map(|(_, pods)| pods).sum();
                prop_assert!(here == 0 || wanted.pools.contains(&index));
                prop_assert!(wanted.count.is_none_or(|count| outcome.fits <= count));
                // Of the demands without a count, only the one that fills the pools is there.
                if wanted.count.is_some() || plan.filled_with == Some(at) {
                    pods.extend(std::iter::repeat_n(wanted.demand.mib(), usize::try_from(here).unwrap()));
                }
            }
            let (replicas, nodes) = (u64::from(planned.replicas.get()), equal.nodes);
            prop_assert_eq!(planned.placed, u64::try_from(pods.len()).unwrap());
            prop_assert_eq!(planned.held.mib(), pods.iter().sum::<u64>());
            prop_assert!(planned.placed <= replicas * nodes * u64::try_from(sizes.len()).unwrap());
            let total: u64 = sizes.iter().sum::<u64>() * nodes;
            prop_assert!(planned.held.plus(planned.stranded).mib() <= total);
            if sizes.len() > 1 {
                let slot = sizes.iter().min().unwrap() / replicas;
                prop_assert!(pods.iter().all(|pod| *pod <= slot), "{pods:?} {slot}");
            } else if replicas > 1 {
                prop_assert!(fits_one_by_one(&pods, sizes[0], replicas, nodes), "{pods:?} on {nodes} of {sizes:?}");
            }
        }
    }
}

/// First fit, largest first, with every GPU on its own.
fn fits_one_by_one(pods: &[u64], size: u64, replicas: u64, nodes: u64) -> bool {
    let mut gpus = vec![(size, replicas); usize::try_from(nodes).unwrap()];
    let mut pods = pods.to_vec();
    pods.sort_unstable_by_key(|pod| Reverse(*pod));
    pods.into_iter().all(|pod| {
        let gpu = gpus.iter_mut().find(|(free, left)| *free >= pod && *left > 0);
        gpu.map(|(free, left)| (*free, *left) = (*free - pod, *left - 1)).is_some()
    })
}
