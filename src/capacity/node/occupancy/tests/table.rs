//! Hand-made numbers. Unless a test differs, the node has two GPUs of 24,000 MiB with four replicas each.

use super::*;

fn on(allocation_policy: AllocationPolicy) -> Pool {
    pool(&[24_000, 24_000], 4, allocation_policy)
}

fn shares(known: &[(u32, u64)], unknown: &[u64]) -> Vec<PodShare> {
    let known = known.iter().map(|&(gpu, amount)| placed(gpu, amount));
    known.chain(unknown.iter().map(|&amount| unassigned(amount))).collect()
}

/// Pods with a known GPU (GPU and amount), unassigned amounts, and the free amount that results.
type Row<'a> = (&'a [(u32, u64)], &'a [u64], u64);

fn assert_room(pool: &Pool, rows: &[Row<'_>]) {
    for (placed, unassigned, free) in rows {
        let occupancy = Occupancy::of(pool, &rules(), shares(placed, unassigned)).unwrap();
        assert_eq!(occupancy.free().mib(), *free, "{placed:?} {unassigned:?}");
    }
}

#[test]
fn distributed_promises_the_emptiest_gpu_by_replicas_and_the_fullest_of_a_tie() {
    assert_room(
        &on(AllocationPolicy::Distributed),
        &[
            (&[], &[], 24_000),
            (&[(0, 8000)], &[], 24_000),
            (&[(0, 1), (0, 1)], &[], 24_000),
            (&[(0, 8000), (1, 8000)], &[], 16_000),
            (&[(0, 8000), (1, 2000)], &[], 16_000),
            // Replicas decide, not memory: the pod goes to GPU 1, although that has less memory free.
            (&[(0, 1), (0, 1), (1, 20_000)], &[], 4000),
            // Each of the two pods gets a GPU of its own, whichever comes first.
            (&[], &[8000], 24_000),
            // The unassigned pod goes to GPU 1, and then it is a tie.
            (&[(0, 8000)], &[8000], 16_000),
            (&[(0, 8000)], &[10_000], 14_000),
            (&[], &[8000, 6000], 16_000),
            // A third pod, however small, may come first and so drive the two onto one GPU.
            (&[], &[20_000, 8000], 0),
            // kube-scheduler counts the replicas: this is free for a pod that comes once another has left.
            (&[(0, 1), (0, 1), (0, 1), (0, 1), (1, 1), (1, 1), (1, 1), (1, 1)], &[], 23_997),
        ],
    );
}

#[test]
fn slot_promises_one_slot_while_none_is_larger() {
    for policy in [AllocationPolicy::Unverified, AllocationPolicy::Packed, AllocationPolicy::Stale] {
        assert_slots(policy);
    }
}

fn assert_slots(policy: AllocationPolicy) {
    assert_room(
        &on(policy),
        &[
            (&[], &[], 6000),
            (&[], &[6000, 6000, 6000, 6000, 6000, 6000, 6000], 6000),
            (&[], &[20_000], 4000),
            (&[], &[20_000, 1000], 3000),
            (&[], &[24_000, 24_000], 0),
            // The agent reports where one pod is, but has not verified how other pods get their GPU.
            (&[(0, 20_000)], &[], 4000),
            (&[(0, 18_000), (0, 2000), (0, 2000), (0, 2000)], &[], 2000),
            (&[(0, 6000), (0, 6000), (0, 6000), (0, 6000)], &[], 6000),
        ],
    );
}

#[test]
fn a_steered_pod_goes_to_the_fullest_gpu_that_has_room() {
    let pool = on(AllocationPolicy::Steered);
    let place = |placed: &[(u32, u64)], unknown: &[u64], demand| {
        let occupancy = Occupancy::of(&pool, &rules(), shares(placed, unknown)).unwrap();
        occupancy.place(Vram::from_mib(demand), Newcomer::Steered(1)).map(Option::<&GpuId>::cloned)
    };
    let gpu = |index| Ok(Some(GpuId::Index(index)));
    let none = |free| Err(Vram::from_mib(free));
    assert_eq!(place(&[(1, 8000)], &[], 16_000), gpu(1));
    assert_eq!(place(&[(1, 8000)], &[], 16_001), gpu(0));
    assert_eq!(place(&[(1, 8000)], &[], 24_001), none(24_000));
    // An unassigned pod may be on either GPU.
    assert_eq!(place(&[(1, 8000)], &[10_000], 6000), gpu(1));
    assert_eq!(place(&[(1, 8000)], &[10_000], 14_001), none(14_000));
    // With four replicas for each GPU, GPU 1 takes no fifth pod, however small.
    assert_eq!(place(&[(1, 1), (1, 1), (1, 1), (1, 1)], &[], 1), gpu(0));
}

#[test]
fn the_smaller_gpu_bounds_what_may_land_on_it() {
    let pool = |allocation_policy| pool(&[24_000, 80_000], 4, allocation_policy);
    assert_room(
        &pool(AllocationPolicy::Distributed),
        &[(&[], &[], 24_000), (&[(0, 1)], &[], 24_000), (&[], &[1], 24_000)],
    );
    // GPU 0 is as empty as GPU 1 only once both pods have left it, and then it has the most room.
    assert_room(
        &pool(AllocationPolicy::Distributed),
        &[(&[(0, 12_000), (0, 12_000)], &[], 24_000), (&[(0, 1), (0, 1)], &[], 24_000)],
    );
    assert_room(&pool(AllocationPolicy::Steered), &[(&[], &[], 80_000), (&[], &[10_000], 70_000)]);
    assert_room(
        &pool(AllocationPolicy::Unverified),
        &[(&[], &[], 6000), (&[(0, 6000), (0, 6000), (0, 6000), (0, 6000)], &[], 6000)],
    );
}

#[test]
fn memory_that_no_pod_accounts_for_is_not_promised() {
    let mut pool = on(AllocationPolicy::Distributed);
    let out_of_band = |pool: &mut Pool, mib| {
        pool.contents.as_mut().unwrap().gpus[0].out_of_band = Vram::from_mib(mib);
    };
    out_of_band(&mut pool, 10_000);
    assert_room(&pool, &[(&[], &[], 14_000), (&[(0, 12_000)], &[], 14_000), (&[(1, 12_000)], &[], 14_000)]);
    out_of_band(&mut pool, 30_000);
    // GPU 0 is overcommitted by out-of-band use alone. Nothing is free, because the next pod may land there.
    assert_room(&pool, &[(&[], &[], 0), (&[(0, 1)], &[], 0)]);
    let deficit = Occupancy::of(&pool, &rules(), []).unwrap().deficit();
    assert_eq!(deficit, Some(Deficit { by: Vram::from_mib(6000), on: Some(GpuId::Index(0)) }));
}

#[test]
fn a_deficit_that_is_certain_names_its_gpu_and_one_that_may_be_does_not() {
    let deficit = |allocation_policy, placed: &[(u32, u64)], unknown: &[u64]| {
        let pool = on(allocation_policy);
        let deficit = Occupancy::of(&pool, &rules(), shares(placed, unknown)).unwrap().deficit();
        deficit.map(|deficit| (deficit.by.mib(), deficit.on))
    };
    let modes = [
        AllocationPolicy::Distributed,
        AllocationPolicy::Packed,
        AllocationPolicy::Unverified,
        AllocationPolicy::Steered,
    ];
    for allocation_policy in modes {
        let certain = deficit(allocation_policy, &[(1, 20_000), (1, 8000)], &[9000]);
        assert_eq!(certain, Some((4000, Some(GpuId::Index(1)))), "{allocation_policy:?}");
    }
    let may_be = modes
        .map(|allocation_policy| deficit(allocation_policy, &[], &[20_000, 8000]).map(|(by, on)| (by, on.is_some())));
    // `distributed` puts one of two unassigned pods on each GPU.
    assert_eq!(may_be, [None, Some((4000, false)), Some((4000, false)), Some((4000, false))]);
}

#[test]
fn a_gpu_on_which_a_pod_starts_takes_no_other_one() {
    let serial = Rules { serialize_per_gpu: true, ..rules() };
    let starting = |share: PodShare| PodShare { starting: true, ..share };
    let free = |allocation_policy, shares: Vec<PodShare>| {
        Occupancy::of(&on(allocation_policy), &serial, shares).unwrap().free().mib()
    };
    for allocation_policy in [
        AllocationPolicy::Distributed,
        AllocationPolicy::Packed,
        AllocationPolicy::Unverified,
        AllocationPolicy::Steered,
    ] {
        assert_eq!(
            free(allocation_policy, vec![starting(unassigned(1000))]),
            0,
            "it may be on any: {allocation_policy:?}"
        );
    }
    assert_eq!(free(AllocationPolicy::Distributed, vec![starting(placed(0, 1000))]), 24_000);
    assert_eq!(free(AllocationPolicy::Distributed, vec![starting(placed(0, 1000)), placed(1, 1000)]), 0);
    assert_eq!(free(AllocationPolicy::Packed, vec![starting(placed(0, 1000))]), 0);
    assert_eq!(free(AllocationPolicy::Unverified, vec![starting(placed(0, 1000))]), 0);
    assert_eq!(free(AllocationPolicy::Steered, vec![starting(placed(0, 1000)), placed(1, 2000)]), 22_000);
    let freely =
        Occupancy::of(&on(AllocationPolicy::Steered), &rules(), [starting(placed(0, 1000))]).unwrap().free().mib();
    assert_eq!(freely, 24_000, "unless policy says so, nobody waits");
}

#[test]
fn on_a_full_gpu_who_takes_the_place_of_one_that_starts_comes_beside_another_that_does() {
    let serial = Rules { serialize_per_gpu: true, ..rules() };
    let starting = || PodShare { starting: true, ..placed(1, 1000) };
    for allocation_policy in [AllocationPolicy::Distributed, AllocationPolicy::Packed, AllocationPolicy::Unverified] {
        let pool = pool(&[24_000, 24_000], 2, allocation_policy);
        // Both GPUs are full, so the next pod takes the replica of one that left.
        let full = [placed(0, 1000), placed(0, 1000), starting(), starting()];
        assert_eq!(Occupancy::of(&pool, &serial, full).unwrap().free(), Vram::ZERO, "{allocation_policy:?}");
    }
}

#[test]
fn a_pod_of_two_containers_holds_on_each_gpu_that_it_has() {
    let pair = |starting| {
        let one = |gpu, amount| (Some(GpuId::Index(gpu)), Vram::from_mib(amount), 1);
        PodShare { portions: vec![one(0, 8000), one(1, 2000)], starting }
    };
    let pool = on(AllocationPolicy::Steered);
    let occupancy = Occupancy::of(&pool, &rules(), [pair(false)]).unwrap();
    let pool_usage: Vec<_> =
        occupancy.gpus().into_iter().map(|gpu| (gpu.held.mib(), gpu.free.unwrap().mib())).collect();
    assert_eq!(pool_usage, [(8000, 16_000), (2000, 22_000)]);
    let serial = Rules { serialize_per_gpu: true, ..rules() };
    assert_eq!(Occupancy::of(&pool, &serial, [pair(true)]).unwrap().free(), Vram::ZERO);
}

#[test]
fn a_container_takes_as_many_replicas_of_its_gpu_as_it_asked_for() {
    let pool = on(AllocationPolicy::Distributed);
    let twice = PodShare { portions: vec![(Some(GpuId::Index(0)), Vram::from_mib(2000), 2)], starting: false };
    let occupancy = Occupancy::of(&pool, &rules(), [twice, placed(1, 8000)]).unwrap();
    assert_eq!(occupancy.free().mib(), 16_000);
}

#[test]
fn a_seat_on_a_gpu_that_the_pool_does_not_have_is_unassigned() {
    let elsewhere =
        PodShare { portions: vec![(Some(GpuId::Uuid("GPU-gone".into())), Vram::from_mib(8000), 1)], starting: false };
    let pool = on(AllocationPolicy::Steered);
    assert_eq!(Occupancy::of(&pool, &rules(), [elsewhere]).unwrap().free().mib(), 16_000);
}

#[test]
fn whole_gpus_are_promised_while_one_is_free_and_the_smallest_of_them() {
    let whole = Pool { sharing: Sharing::Exclusive, ..pool(&[24_000, 80_000], 1, AllocationPolicy::Unverified) };
    assert_room(&whole, &[(&[], &[], 24_000), (&[], &[70_000], 24_000), (&[], &[1, 1], 0)]);
    assert_eq!(Occupancy::of(&whole, &rules(), [unassigned(90_000)]).unwrap().deficit(), None);
}

/// Regression: pod X was bound because GPU 1 was the only one that it could get. Two small pods left GPU 0 before the
/// device plugin served X. That was a tie, and X joined the large pod. So X may demand no more than what is left next
/// to the large pod.
#[test]
fn nobody_is_promised_more_than_is_left_when_the_smallest_of_the_others_leave_first() {
    let (small, large) = ((0, 100), (0, 20_000));
    assert_room(
        &on(AllocationPolicy::Distributed),
        &[
            (&[large, small, small, (1, 100)], &[], 4000),
            // If all pods have the same size, the worst case costs nothing: a new pod takes the place of one that left.
            (&[(0, 6000), (0, 6000), (1, 6000)], &[], 18_000),
            (&[(0, 6000), (0, 6000), (0, 6000), (1, 6000), (1, 6000)], &[], 12_000),
        ],
    );
}
