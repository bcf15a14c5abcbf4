//! Tests of the ledger, on hand-made nodes and against an oracle that tries every placement.

use proptest::prelude::*;

use super::*;
use crate::capacity::gpu::{Sharing, Unknown};
use crate::capacity::node::holder::Amount;
use crate::capacity::testing::{self, GPU, mib};

mod seen;

fn pool(sizes: &[u64], replicas: u32, sharing: Sharing) -> Pool {
    Pool { sharing, ..testing::pool(sizes, replicas) }
}

/// Rules without headroom: the amounts in a test are those of its GPUs and pods. One process has 10 MiB of overhead.
fn plain() -> Rules {
    Rules { per_process_overhead: mib(10), ..testing::rules() }
}

fn holder(parts: &[Amount]) -> Holder {
    let requests = parts.iter().filter_map(|part| match part {
        Amount::Requested(request) => Some(*request),
        Amount::Injected(_) | Amount::Declared { .. } | Amount::Slots(_) | Amount::Counted(_) => None,
    });
    Holder {
        request: Some(requests.sum()).filter(|request: &Vram| !request.is_zero()),
        parts: parts.iter().map(|amount| part("main", *amount)).collect(),
        gpus: vec![(testing::gpu(), parts.len() as u64)].into(),
        ..testing::holder(0)
    }
}

fn part(container: &str, amount: Amount) -> Part {
    Part { container: container.into(), ..testing::part(amount) }
}

fn one(request: u64) -> Holder {
    holder(&[Amount::Requested(mib(request))])
}

fn declares(declared: u64, processes: u32) -> Amount {
    Amount::Declared { declared: mib(declared), processes }
}

fn ledger(holders: impl IntoIterator<Item = Holder>) -> NodeLedger {
    let mut ledger = NodeLedger::default();
    for (number, holder) in holders.into_iter().enumerate() {
        ledger.confirm(PodUid::from(number.to_string()), holder);
    }
    ledger
}

fn requesting(requests: &[u64]) -> NodeLedger {
    ledger(requests.iter().map(|&request| one(request)))
}

fn usage(ledger: &NodeLedger, pool: Pool) -> NodeUsage {
    ledger.usage(&[pool], &plain(), |_| true)
}

#[test]
fn an_exact_node_publishes_a_constant() {
    let node = || pool(&[24_000], 4, Sharing::TimeSlicing);
    for (requests, free) in [(vec![], 24_000), (vec![8000], 16_000), (vec![8000, 8000], 8000), (vec![24_000], 0)] {
        let usage = usage(&requesting(&requests), node());
        assert_eq!((usage.published, usage.free), (Some(mib(24_000)), mib(free)));
        assert_eq!(usage.deficit, None);
    }
}

#[test]
fn a_node_never_publishes_less_than_what_is_bound() {
    let usage = usage(&requesting(&[8000, 8000, 8000]), pool(&[14_000], 4, Sharing::TimeSlicing));
    assert_eq!((usage.published, usage.free), (Some(mib(24_000)), Vram::ZERO));
    assert_eq!(usage.deficit, Some(mib(10_000)));
}

#[test]
fn a_holder_without_a_request_is_taken_off_placeable_and_not_published() {
    let declared = holder(&[declares(5000, 2)]);
    let undeclared = holder(&[Amount::Slots(1)]);
    let usage = usage(&ledger([declared, undeclared]), pool(&[24_000], 4, Sharing::TimeSlicing));
    assert_eq!(usage.free, mib(24_000 - 5020 - 6000));
    assert_eq!((usage.bound, usage.published), (Vram::ZERO, Some(usage.free)));
}

/// In policy mode Warn, one container may have an injected request while the declaration of another is unreadable. The
/// latter still counts, as one slot.
#[test]
fn a_container_without_a_request_counts_beside_one_with() {
    let half = holder(&[Amount::Requested(mib(5000)), Amount::Slots(1)]);
    let usage = usage(&ledger([half]), pool(&[24_000], 4, Sharing::TimeSlicing));
    assert_eq!((usage.bound, usage.free), (mib(5000), mib(24_000 - 5000 - 6000)));
}

#[test]
fn full_whole_gpus_do_not_keep_shared_ones_from_being_used() {
    let shared =
        Pool { resource: Resource("nvidia.com/gpu.shared".into()), ..pool(&[24_000], 4, Sharing::TimeSlicing) };
    let whole = pool(&[80_000], 1, Sharing::Exclusive);
    let usage = requesting(&[100]).usage(&[whole, shared], &plain(), |_| true);
    assert_eq!((usage.free, usage.published), (mib(24_000), Some(mib(24_100))));
}

#[test]
fn absurd_counts_neither_wrap_nor_panic() {
    let mut absurd = one(1);
    absurd.gpus[0].1 = u64::MAX;
    let both = ledger([absurd.clone(), absurd]);
    assert_eq!(usage(&both, pool(&[80_000], 1, Sharing::Exclusive)).free, Vram::ZERO);
}

#[test]
fn several_gpus_without_an_agent_promise_one_slot_of_the_smallest() {
    let node = || pool(&[24_000, 80_000], 4, Sharing::TimeSlicing);
    assert_eq!(usage(&requesting(&[]), node()).free, mib(6000));
    let full = usage(&requesting(&[6000; 7]), node());
    assert_eq!((full.free, full.published), (mib(6000), Some(mib(48_000))));
}

/// On such a node, replicas and the label limit what kube-scheduler binds. The published amount needs no write while
/// pods come and go.
#[test]
fn several_gpus_under_slot_accounting_publish_all_their_slots_whoever_comes() {
    let node = || pool(&[24_000, 80_000], 4, Sharing::TimeSlicing);
    let undeclared = holder(&[Amount::Slots(1)]);
    for holders in [vec![], vec![one(6000); 8], vec![one(100), undeclared, holder(&[declares(5000, 1)])]] {
        let usage = usage(&ledger(holders), node());
        assert_eq!((usage.published, usage.pod_max), (Some(mib(48_000)), Some(mib(6000))));
    }
}

#[test]
fn beside_a_pod_larger_than_a_slot_one_more_is_published() {
    let node = || pool(&[24_000, 24_000], 4, Sharing::TimeSlicing);
    let usage = usage(&ledger([one(3000), holder(&[declares(6001, 0)])]), node());
    assert_eq!((usage.free, usage.published), (mib(6000), Some(mib(3000 + 6000))));
}

/// The pod with a whole GPU raises the label. So the label keeps no pod of that size off the shared GPUs.
#[test]
fn a_pod_on_another_resource_that_raises_the_label_leaves_room_for_one_more() {
    let shared = Resource("nvidia.com/gpu.shared".into());
    let slots = Pool { resource: shared.clone(), ..pool(&[24_000, 24_000], 4, Sharing::TimeSlicing) };
    let whole = || pool(&[80_000], 1, Sharing::Exclusive);
    let on_shared = Holder { gpus: vec![(shared, 1)].into(), ..one(3000) };
    let usage =
        |whole_gpu| ledger([on_shared.clone(), one(whole_gpu)]).usage(&[slots.clone(), whole()], &plain(), |_| true);
    assert_eq!((usage(60_000).pod_max, usage(60_000).published), (Some(mib(60_000)), Some(mib(63_000 + 6000))));
    assert_eq!((usage(5000).pod_max, usage(5000).published), (Some(mib(6000)), Some(mib(8000 + 45_000))));
}

/// Such a pod came while the node had one GPU, or an agent, for example. If the label were below its demand, the next
/// start of the kubelet would end it.
#[test]
fn a_pod_larger_than_a_slot_stays_within_what_one_pod_can_get() {
    let node = || pool(&[24_000, 24_000], 4, Sharing::TimeSlicing);
    let usage = |requests: &[u64]| usage(&requesting(requests), node());
    assert_eq!(usage(&[3000, 20_000]).pod_max, Some(mib(20_000)));
    assert_eq!(usage(&[3000, 20_000]).published, Some(mib(23_000 + 1000)));
    assert_eq!(usage(&[3000]).pod_max, Some(mib(6000)));
}

#[test]
fn while_a_pod_keeps_others_off_only_what_is_bound_is_published() {
    let rules = Rules { serialize_per_gpu: true, ..plain() };
    let node = pool(&[24_000, 24_000], 4, Sharing::TimeSlicing);
    let published = |starting| {
        let usage = ledger([Holder { starting, ..one(3000) }]).usage(std::slice::from_ref(&node), &rules, |_| true);
        usage.published
    };
    assert_eq!(published(Some(Moment(1))), Some(mib(3000)));
    // One more pod fits after the startup: when a pod starts, the published amount falls by no more than that.
    assert_eq!(published(None), Some(mib(3000 + 6000)));
}

#[test]
fn what_one_pod_can_get_is_said_where_the_sum_does_not_say_it() {
    let several = pool(&[24_000, 80_000], 4, Sharing::TimeSlicing);
    let of = |pool: Pool| usage(&requesting(&[]), pool).pod_max;
    assert_eq!(of(several.clone()), Some(mib(6000)));
    assert_eq!(of(Pool { allocation_policy: AllocationPolicy::Packed, ..several.clone() }), Some(mib(6000)));
    assert_eq!(of(Pool { allocation_policy: AllocationPolicy::Distributed, ..several.clone() }), Some(mib(80_000)));
    assert_eq!(of(Pool { allocation_policy: AllocationPolicy::Steered, ..several.clone() }), Some(mib(80_000)));
    assert_eq!(of(pool(&[24_000], 4, Sharing::TimeSlicing)), None);
    assert_eq!(of(pool(&[24_000, 80_000], 1, Sharing::Exclusive)), Some(mib(24_000)));
    assert_eq!(several.pod_max(&plain()), Some(mib(6000)));
    // A node without guarded resources has no label.
    assert_eq!(requesting(&[]).usage(&[several], &plain(), |_| false).pod_max, None);
}

#[test]
fn a_holder_larger_than_a_slot_leaves_its_neighbours_less() {
    let legacy = holder(&[declares(20_000, 0)]);
    let node = pool(&[24_000, 24_000], 4, Sharing::TimeSlicing);
    assert_eq!(usage(&ledger([legacy]), node).free, mib(4000));
}

#[test]
fn a_whole_gpu_is_promised_while_one_is_free() {
    let node = || pool(&[80_000, 80_000], 1, Sharing::Exclusive);
    assert_eq!(usage(&requesting(&[100]), node()).free, mib(80_000));
    assert_eq!(usage(&requesting(&[100, 200]), node()).free, Vram::ZERO);
}

#[test]
fn a_node_whose_gpus_are_not_known_publishes_only_what_is_bound() {
    let contents = Err(Unknown::Unlabelled { label: "nvidia.com/gpu.memory", capacity: 4 });
    let unknown = Pool { contents, ..pool(&[1], 1, Sharing::TimeSlicing) };
    let mut holders = requesting(&[100]);
    holders.confirm(PodUid::from("x"), holder(&[Amount::Slots(1)]));
    let usage = usage(&holders, unknown);
    assert_eq!((usage.published, usage.free), (Some(mib(100)), Vram::ZERO));
    assert_eq!((usage.pools[0].holders, usage.pools[0].uncounted), (2, 1));
    assert_eq!(usage.pools[0].allocatable, None);
}

/// It once counted as zero, and its node went on taking pods.
#[test]
fn a_holder_whose_amount_is_too_large_to_count_leaves_nothing_free() {
    let several = || pool(&[24_000, 24_000], 4, Sharing::TimeSlicing);
    for pool in [several(), pool(&[24_000], 4, Sharing::TimeSlicing)] {
        let usage = usage(&ledger([holder(&[Amount::Slots(u64::MAX)])]), pool);
        assert_eq!(usage.free, Vram::ZERO);
        assert!(usage.deficit.is_some());
    }
}

#[test]
fn a_node_without_guarded_gpus_publishes_nothing_unless_something_is_bound() {
    let exclusive = || [pool(&[80_000], 1, Sharing::Exclusive)];
    let publish = |ledger: &NodeLedger, pools: &[Pool]| ledger.usage(pools, &plain(), |_| false).published;
    assert_eq!(publish(&requesting(&[]), &exclusive()), None);
    assert_eq!(publish(&requesting(&[100]), &exclusive()), Some(mib(100)));
    assert_eq!(publish(&requesting(&[100]), &[]), Some(mib(100)));
}

#[test]
fn two_resources_on_one_node_promise_what_the_fuller_one_can_keep() {
    let shared =
        Pool { resource: Resource("nvidia.com/gpu.shared".into()), ..pool(&[24_000], 4, Sharing::TimeSlicing) };
    let whole = pool(&[80_000], 1, Sharing::Exclusive);
    let usage = requesting(&[]).usage(&[shared, whole], &plain(), |_| true);
    assert_eq!(usage.free, mib(24_000));
}

#[test]
fn pods_of_lower_priority_make_room_for_one_that_may_preempt() {
    let mut low = one(20_000);
    low.priority = 1;
    let ledger = ledger([low]);
    let pool = pool(&[24_000], 4, Sharing::TimeSlicing);
    let free = |counting| ledger.pool_usage(&pool, &plain(), counting).free;
    assert_eq!(free(Counted::All), mib(4000));
    assert_eq!(free(Counted::NotPreemptibleBy(1)), mib(4000));
    assert_eq!(free(Counted::NotPreemptibleBy(2)), mib(24_000));
}

#[test]
fn the_same_pod_seen_twice_counts_once() {
    let mut ledger = requesting(&[8000]);
    ledger.confirm(PodUid::from("0"), one(9000));
    assert_eq!(usage(&ledger, pool(&[24_000], 4, Sharing::TimeSlicing)).bound, mib(9000));
    ledger.release(&PodUid::from("0"));
    assert_eq!(ledger.release(&PodUid::from("0")), None);
    assert_eq!(ledger, NodeLedger::default());
}

/// The largest sum on any GPU, over every placement of `pods` on GPUs with this number of replicas each.
fn worst_sum(pods: &[u64], gpus: usize, replicas: usize) -> u64 {
    fn place(pods: &[u64], load: &mut [(u64, usize)], replicas: usize, worst: &mut u64) {
        let Some((&pod, rest)) = pods.split_first() else {
            *worst = load.iter().map(|gpu| gpu.0).chain([*worst]).max().unwrap();
            return;
        };
        for gpu in 0..load.len() {
            if load[gpu].1 < replicas {
                load[gpu] = (load[gpu].0 + pod, load[gpu].1 + 1);
                place(rest, load, replicas, worst);
                load[gpu] = (load[gpu].0 - pod, load[gpu].1 - 1);
            }
        }
    }
    let mut worst = 0;
    place(pods, &mut vec![(0, 0); gpus], replicas, &mut worst);
    worst
}

#[derive(Clone, Debug)]
enum Step {
    /// A pod with this demand comes, if the node has room for it.
    Arrive(u64),
    /// The n-th pod leaves.
    Leave(usize),
    /// The watch delivers the n-th pod again.
    Replay(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1u64..100).prop_map(Step::Arrive),
        1 => (0usize..8).prop_map(Step::Leave),
        1 => (0usize..8).prop_map(Step::Replay),
    ];
    proptest::collection::vec(step, 0..24)
}

proptest! {
    /// If only pods within `free` arrive, no GPU is overcommitted, wherever the device plugin puts them. The sum of
    /// requests equals that of a plain list.
    #[test]
    fn no_order_of_events_overcommits_a_gpu(
        sizes in proptest::collection::vec(20u64..100, 1..4), replicas in 1usize..4, steps in steps(),
    ) {
        let pool = pool(&sizes, u32::try_from(replicas).unwrap(), Sharing::TimeSlicing);
        let smallest = *sizes.iter().min().unwrap();
        let mut ledger = NodeLedger::default();
        let mut oracle: Vec<(String, u64)> = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Arrive(want) => {
                    let before = ledger.usage(std::slice::from_ref(&pool), &plain(), |_| true);
                    let fits = want <= before.free.mib() && oracle.len() < sizes.len() * replicas;
                    if fits {
                        let uid = number.to_string();
                        ledger.confirm(PodUid::from(uid.clone()), one(want));
                        oracle.push((uid, want));
                    }
                }
                Step::Leave(n) if n < oracle.len() => {
                    let (uid, _) = oracle.remove(n);
                    ledger.release(&PodUid::from(uid));
                }
                Step::Replay(n) if n < oracle.len() => {
                    let (uid, want) = &oracle[n];
                    ledger.confirm(PodUid::from(uid.clone()), one(*want));
                }
                Step::Leave(_) | Step::Replay(_) => {}
            }
            let held: Vec<u64> = oracle.iter().map(|(_, want)| *want).collect();
            let usage = ledger.usage(std::slice::from_ref(&pool), &plain(), |_| true);
            prop_assert_eq!(usage.bound.mib(), held.iter().sum::<u64>());
            prop_assert_eq!(usage.deficit, None);
            prop_assert!(worst_sum(&held, sizes.len(), replicas) <= smallest);
            prop_assert!(usage.published.unwrap() >= usage.bound);
        }
    }

    /// kube-scheduler alone, without the binding guard. It binds every pod that fits the last published amount, any
    /// number of them before the next write. Pods from before vramguard are there too, some without a request.
    #[test]
    fn no_gpu_is_overcommitted_by_what_kube_scheduler_sees(
        sizes in proptest::collection::vec(20u64..100, 1..3), replicas in 1usize..5,
        mut legacy in proptest::collection::vec((0u64..60, any::<bool>()), 0..3),
        rounds in proptest::collection::vec((proptest::collection::vec(1u64..30, 0..9), 0usize..8), 0..5),
    ) {
        let pool = pool(&sizes, u32::try_from(replicas).unwrap(), Sharing::TimeSlicing);
        let (gpus, smallest) = (sizes.len(), *sizes.iter().min().unwrap());
        let sizes_of = |legacy: &[(u64, bool)]| legacy.iter().map(|(size, _)| *size).collect::<Vec<u64>>();
        while legacy.len() > gpus * replicas || worst_sum(&sizes_of(&legacy), gpus, replicas) > smallest {
            legacy.pop();
        }
        let from_before = |&(size, requests)| if requests { one(size) } else { holder(&[declares(size, 0)]) };
        let requested_before: u64 = legacy.iter().filter(|(_, requests)| *requests).map(|(size, _)| *size).sum();
        let mut ledger = ledger(legacy.iter().map(from_before));
        let mut bound: Vec<(String, u64)> = Vec::new();
        let mut numbers = 100..;
        for (wanted, leaves) in rounds {
            let usage = ledger.usage(std::slice::from_ref(&pool), &plain(), |_| true);
            let published = usage.published.unwrap().mib();
            for want in wanted {
                let requested: u64 = requested_before + bound.iter().map(|(_, want)| *want).sum::<u64>();
                let fits = usage.pod_max.is_none_or(|most| want <= most.mib()) && requested + want <= published;
                if fits && legacy.len() + bound.len() < gpus * replicas {
                    let uid = numbers.next().unwrap().to_string();
                    ledger.confirm(PodUid::from(uid.clone()), one(want));
                    bound.push((uid, want));
                }
            }
            let held: Vec<u64> = sizes_of(&legacy).into_iter().chain(bound.iter().map(|(_, want)| *want)).collect();
            prop_assert!(worst_sum(&held, gpus, replicas) <= smallest, "{:?} of {:?}", held, sizes);
            if leaves < bound.len() {
                ledger.release(&PodUid::from(bound.remove(leaves).0));
            }
        }
    }

    /// When a pod is bound, `free` falls by no more than the demand of that pod. So what kube-scheduler sees between a
    /// bind and the next write is on the safe side.
    #[test]
    fn placeable_never_falls_by_more_than_what_was_bound(
        sizes in proptest::collection::vec(20u64..100, 1..4), replicas in 1u32..5,
        held in proptest::collection::vec(1u64..60, 0..8), share in 1u64..=100,
    ) {
        let pool = pool(&sizes, replicas, Sharing::TimeSlicing);
        let free = |requests: &[u64]| usage(&requesting(requests), pool.clone()).free.mib();
        let before = free(&held);
        let demand = before * share / 100;
        let after = free(&[held, vec![demand]].concat());
        prop_assert!(after <= before);
        prop_assert!(before - demand <= after, "{before} - {demand} > {after}");
    }
}

/// Regression: one whole GPU was published. So a preempting pod of 70 GiB evicted 7 pods of 10 GiB where one would do.
#[test]
fn whole_gpus_are_published_all_at_once_whoever_holds_them() {
    let node = || pool(&[80_000; 8], 1, Sharing::Exclusive);
    let training = Holder { gpus: vec![(Resource(GPU.into()), 4)].into(), ..holder(&[Amount::Slots(4)]) };
    for holders in [vec![], vec![one(10_000); 7], vec![one(10_000); 8], vec![training, one(80_000)]] {
        let usage = usage(&ledger(holders.clone()), node());
        assert_eq!((usage.published, usage.pod_max), (Some(mib(640_000)), Some(mib(80_000))), "{holders:?}");
        assert_eq!(usage.deficit, None);
    }
    let one_gpu = usage(&ledger([one(10_000)]), pool(&[80_000], 1, Sharing::Exclusive));
    assert_eq!((one_gpu.published, one_gpu.pod_max), (Some(mib(80_000)), None), "the number of one GPU says it");
}

/// The MPS daemon limits each client to total / replicas. Regression: a pod of 40 GiB on an empty GPU of 80 GiB died
/// when it reached 20 GiB.
#[test]
fn under_mps_no_pod_gets_more_than_the_share_of_one_replica() {
    let usage = usage(&requesting(&[20_000]), pool(&[80_000], 4, Sharing::Mps));
    assert_eq!(usage.pools[0].accounting, Accounting::Slot);
    assert_eq!((usage.free, usage.pod_max, usage.published), (mib(20_000), Some(mib(20_000)), Some(mib(80_000))));
}

/// A kubelet that starts checks the affinity of the pod, which may require more than the pod requests.
#[test]
fn the_label_is_never_below_what_the_affinity_of_a_bound_pod_asks_for() {
    let pinned_down = Holder { label_at_least: Some(mib(8912)), ..one(1744) };
    let with =
        |replicas| usage(&ledger([pinned_down.clone()]), pool(&[80_000, 80_000], replicas, Sharing::TimeSlicing));
    assert_eq!(with(4).pod_max, Some(mib(20_000)));
    assert_eq!(with(16).pod_max, Some(mib(8912)));
    assert_eq!(with(16).published, Some(mib(1744 + 5000)), "others of that size are kept off by the number");
    let impossible = Holder { label_at_least: Some(mib(80_001)), ..one(1744) };
    let usage = usage(&ledger([impossible]), pool(&[80_000, 80_000], 16, Sharing::TimeSlicing));
    assert_eq!(usage.pod_max, Some(mib(5000)), "no kubelet has let that pod in");
}

/// The author of the affinity may have written no alternative for nodes without the label.
#[test]
fn the_label_stays_while_a_bound_pod_holds_nowhere_without_it() {
    let unguarded = |holder: Holder| {
        let pools = [pool(&[80_000], 1, Sharing::Exclusive)];
        ledger([holder]).usage(&pools, &Rules::default(), |_| false).pod_max
    };
    let bound = Holder { label_at_least: Some(mib(8912)), ..one(1744) };
    assert_eq!(unguarded(bound.clone()), None);
    assert_eq!(unguarded(Holder { needs_label: true, ..bound }), Some(mib(8912)));
    let any_value = Holder { needs_label: true, ..one(1744) };
    assert_eq!(unguarded(any_value), Some(Vram::ZERO), "it asks for the label, whatever that says");
}
