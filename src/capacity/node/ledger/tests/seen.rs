//! Pods that declare nothing count with what they were seen to use, against an oracle that plays each moment of a pod.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use super::*;
use crate::capacity::gpu::Gpu;
use crate::capacity::list::List;
use crate::capacity::name::Name;
use crate::capacity::node::inventory::InventoryGpu;

const SIZES: [u64; 2] = [24_000, 24_000];
const SLOT: u64 = 6_000;

/// A container: its role, amount, and the most that it was seen to use.
type Drawn = (Role, Amount, Option<u64>);

fn pod(containers: &[Drawn]) -> Holder {
    let amounts: Vec<Amount> = containers.iter().map(|(_, amount, _)| *amount).collect();
    let numbered = containers.iter().enumerate().map(|(number, (role, amount, _))| Part {
        container: format!("c{number}").as_str().into(),
        role: *role,
        ..testing::part(*amount)
    });
    let requests = amounts.iter().filter_map(|amount| match amount {
        Amount::Requested(request) | Amount::Injected(request) => Some(*request),
        Amount::Declared { .. } | Amount::Slots(_) | Amount::Counted(_) => None,
    });
    Holder {
        request: Some(requests.sum()).filter(|request: &Vram| !request.is_zero()),
        parts: numbered.collect(),
        ..holder(&amounts)
    }
}

/// What was reported of these pods, whose uids are their numbers. `known` says whether the GPU of each is known.
fn report(pods: &[Vec<Drawn>], allocation_policy: AllocationPolicy, known: bool, peaks: bool) -> Inventory {
    let names = |containers: &[Drawn]| -> Vec<Name> {
        (0..containers.len()).map(|number| format!("c{number}").as_str().into()).collect()
    };
    let seen = |containers: &Vec<Drawn>| -> List<(Name, Vram)> {
        let peaks = names(containers).into_iter().zip(containers);
        peaks.filter_map(|(name, (_, _, peak))| Some((name, mib((*peak)?)))).collect()
    };
    let on = |(number, containers): (usize, &Vec<Drawn>)| -> List<(Name, GpuId)> {
        names(containers).into_iter().map(|name| (name, GpuId::Index(u32::from(number % 2 == 1)))).collect()
    };
    let uids = || (0..pods.len()).map(|number| PodUid::from(number.to_string()));
    Inventory {
        reported: Some(Moment(1_000)),
        allocation_policy,
        peaks: uids().zip(pods).filter(|_| peaks).map(|(uid, pod)| (uid, seen(pod))).collect(),
        assigned: uids().zip(pods.iter().enumerate()).filter(|_| known).map(|(uid, pod)| (uid, on(pod))).collect(),
        ..Inventory::default()
    }
}

fn node(pods: &[Vec<Drawn>], inventory: Inventory) -> NodeLedger {
    let mut ledger = ledger(pods.iter().map(|containers| pod(containers)));
    ledger.set_content(Some(LedgerContent { inventory: Some(inventory), ..LedgerContent::default() }));
    ledger
}

/// What a pod holds: the most over all moments of its life of what its containers take together at that moment.
fn by_moments(containers: &[Drawn], seen: bool) -> u64 {
    let takes = |(_, amount, peak): &Drawn| match amount {
        Amount::Requested(amount) | Amount::Counted(amount) => amount.mib(),
        Amount::Declared { declared, processes } => declared.mib() + 10 * u64::from(*processes),
        Amount::Slots(replicas) => (SLOT * replicas).max(if seen { peak.unwrap_or(0) } else { 0 }),
        Amount::Injected(request) => request.mib().max(if seen { peak.unwrap_or(0) } else { 0 }),
    };
    let mut moments = vec![0];
    let mut sidecars = 0;
    for container in containers {
        match container.0 {
            Role::Init => moments.push(sidecars + takes(container)),
            Role::Sidecar => sidecars += takes(container),
            Role::App => {}
        }
    }
    let apps: u64 = containers.iter().filter(|(role, _, _)| *role == Role::App).map(takes).sum();
    moments.push(sidecars + apps);
    moments.into_iter().max().unwrap()
}

fn container() -> impl Strategy<Value = Drawn> {
    let role = prop_oneof![1 => Just(Role::Init), 1 => Just(Role::Sidecar), 3 => Just(Role::App)];
    let amount = prop_oneof![
        2 => Just(Amount::Slots(1)),
        2 => Just(Amount::Injected(mib(SLOT))),
        1 => (1u64..9_000).prop_map(|amount| Amount::Requested(mib(amount))),
        1 => (1u64..9_000, 1u32..3).prop_map(|(declared, processes)| declares(declared, processes)),
        1 => (1u64..9_000).prop_map(|amount| Amount::Counted(mib(amount))),
    ];
    (role, amount, proptest::option::of(0u64..20_000))
}

/// Every amount of a usage that says how much more a pod may take.
fn rooms(usage: &NodeUsage) -> Vec<Vram> {
    let of_pool = |pool: &PoolUsage| {
        let gpus = pool.gpus.iter().filter_map(|gpu| gpu.free);
        gpus.chain([pool.free, pool.free_total]).chain(pool.free_unassigned).collect::<Vec<_>>()
    };
    usage.pools.iter().flat_map(of_pool).chain([usage.free, usage.published.unwrap_or_default()]).collect()
}

fn modes() -> impl Strategy<Value = (AllocationPolicy, bool, usize, u32)> {
    let policy = prop_oneof![
        Just(AllocationPolicy::Unverified),
        Just(AllocationPolicy::Distributed),
        Just(AllocationPolicy::Packed),
        Just(AllocationPolicy::Steered),
    ];
    (policy, any::<bool>(), 1usize..=2, prop_oneof![1 => Just(1u32), 4 => Just(4u32)])
}

proptest! {
    #[test]
    fn a_pod_that_declares_nothing_holds_what_it_was_seen_to_use_and_never_less_than_before(
        pods in proptest::collection::vec(proptest::collection::vec(container(), 1..4), 1..4),
        (policy, known, gpus, replicas) in modes(), more in 0u64..5_000,
    ) {
        let pool = pool(&SIZES[..gpus], replicas, Sharing::TimeSlicing);
        let usage_of = |ledger: &NodeLedger| {
            let pools = ledger.reported(std::slice::from_ref(&pool));
            ledger.usage(&pools, &plain(), |_| true)
        };
        let grown: Vec<Vec<Drawn>> = pods.iter().map(|pod| {
            pod.iter().map(|(role, amount, peak)| (*role, *amount, peak.map(|peak| peak + more))).collect()
        }).collect();
        let unseen = node(&pods, report(&pods, policy, known, false));
        let seen = node(&pods, report(&pods, policy, known, true));
        let later = node(&grown, report(&grown, policy, known, true));
        for (number, containers) in pods.iter().enumerate() {
            let (uid, holder) = (PodUid::from(number.to_string()), pod(containers));
            let amount = |ledger: &NodeLedger| ledger.amount(&uid, &holder, Some(mib(SLOT)), &plain()).unwrap().mib();
            prop_assert_eq!(amount(&unseen), by_moments(containers, false));
            prop_assert_eq!(amount(&seen), by_moments(containers, true));
            prop_assert_eq!(amount(&later), by_moments(&grown[number], true));
            prop_assert!(amount(&unseen) <= amount(&seen) && amount(&seen) <= amount(&later));
        }
        let [unseen, seen, later] = [&unseen, &seen, &later].map(usage_of);
        for ((before, now), then) in rooms(&unseen).into_iter().zip(rooms(&seen)).zip(rooms(&later)) {
            prop_assert!(now <= before && then <= now, "{before} {now} {then}");
        }
        prop_assert!(unseen.pools[0].held <= seen.pools[0].held && seen.pools[0].held <= later.pools[0].held);
        prop_assert_eq!(unseen.bound, seen.bound, "kube-scheduler counts requests");
    }
}

fn undeclared(peak: u64) -> Vec<Drawn> {
    vec![(Role::App, Amount::Slots(1), Some(peak))]
}

#[test]
fn what_a_stale_report_saw_still_counts() {
    let pods = [undeclared(9_000)];
    let mut ledger = node(&pods, report(&pods, AllocationPolicy::Steered, true, true));
    let free = |ledger: &NodeLedger| {
        let pools = ledger.reported(&[pool(&SIZES[..1], 4, Sharing::TimeSlicing)]);
        ledger.usage(&pools, &plain(), |_| true).free
    };
    assert_eq!(free(&ledger), mib(24_000 - 9_000));
    assert!(ledger.expire_reports(Moment(2_000)));
    assert_eq!(free(&ledger), mib(24_000 - 9_000), "the pod did not shrink because its agent is gone");
}

#[test]
fn the_use_counts_on_the_gpu_that_the_container_is_on() {
    let pods = [undeclared(9_000), undeclared(1_000)];
    let gpus = [0, 1]
        .map(|index| InventoryGpu { gpu: Gpu::of_size(index, mib(24_000)), replicas: NonZeroU32::new(4).unwrap() });
    let inventory = Inventory {
        gpus: BTreeMap::from([(testing::gpu(), gpus.into())]),
        ..report(&pods, AllocationPolicy::Steered, true, true)
    };
    let ledger = node(&pods, inventory);
    let pools = ledger.reported(&[pool(&SIZES, 4, Sharing::TimeSlicing)]);
    let usage = ledger.usage(&pools, &plain(), |_| true);
    assert_eq!(usage.pools[0].gpus.iter().map(|gpu| gpu.held.mib()).collect::<Vec<_>>(), [9_000, 6_000]);
    let part = &pod(&pods[0]).parts[0];
    let seen = |number: &str| ledger.counts_as_seen(&number.into(), part, Some(mib(SLOT)), &plain());
    assert_eq!((seen("0"), seen("1")), (Some(mib(9_000)), None), "a pod that stays within its slot counts as a slot");
}

/// A full node in mode slot published nothing more. A pod that outgrows its slot must not make room for another.
#[test]
fn a_pod_that_outgrows_its_slot_frees_nothing_on_a_full_node() {
    let mut pods = vec![vec![(Role::App, Amount::Injected(mib(SLOT)), Some(SLOT))]; 8];
    let published = |pods: &[Vec<Drawn>]| {
        let ledger = node(pods, report(pods, AllocationPolicy::Unverified, false, true));
        ledger.usage(&[pool(&SIZES, 4, Sharing::TimeSlicing)], &plain(), |_| true).published
    };
    assert_eq!(published(&pods), Some(mib(48_000)));
    pods[0][0].2 = Some(9_000);
    assert_eq!(published(&pods), Some(mib(48_000)));
}
