//! Hand-made numbers: two GPUs of 24,000 MiB with four replicas each, unless a test says otherwise.

use super::*;

fn on(handout: Handout) -> Pool {
    pool(&[24_000, 24_000], 4, handout)
}

fn shares(seats: &[(u32, u64)], unknown: &[u64]) -> Vec<Share> {
    let seats = seats.iter().map(|&(gpu, amount)| seated(gpu, amount));
    seats.chain(unknown.iter().map(|&amount| loose(amount))).collect()
}

/// Who is known to be where, who is loose, and the room that leaves.
type Row<'a> = (&'a [(u32, u64)], &'a [u64], u64);

fn assert_room(pool: &Pool, rows: &[Row<'_>]) {
    for (seats, loose, room) in rows {
        let occupancy = Occupancy::of(pool, &plain(), shares(seats, loose)).unwrap();
        assert_eq!(occupancy.room().mib(), *room, "{seats:?} {loose:?}");
    }
}

#[test]
fn distributed_promises_the_emptiest_gpu_by_replicas_and_the_fullest_of_a_tie() {
    assert_room(
        &on(Handout::Distributed),
        &[
            (&[], &[], 24_000),
            (&[(0, 8000)], &[], 24_000),
            (&[(0, 1), (0, 1)], &[], 24_000),
            (&[(0, 8000), (1, 8000)], &[], 16_000),
            (&[(0, 8000), (1, 2000)], &[], 16_000),
            // Replicas decide, not memory: it goes to GPU 1, full as that is.
            (&[(0, 1), (0, 1), (1, 20_000)], &[], 4000),
            // Whichever comes first, the other one gets the other GPU.
            (&[], &[8000], 24_000),
            // The loose one goes to GPU 1, and then it is a tie.
            (&[(0, 8000)], &[8000], 16_000),
            (&[(0, 8000)], &[10_000], 14_000),
            (&[], &[8000, 6000], 16_000),
            // A newcomer, however small, may come first and so drive the two onto one GPU.
            (&[], &[20_000, 8000], 0),
            // Replicas are kube-scheduler's to count: what one finds who comes when another has left.
            (&[(0, 1), (0, 1), (0, 1), (0, 1), (1, 1), (1, 1), (1, 1), (1, 1)], &[], 23_997),
        ],
    );
}

#[test]
fn packed_promises_what_is_left_of_the_fullest_gpu_by_memory() {
    assert_room(
        &on(Handout::Packed),
        &[
            (&[], &[], 24_000),
            (&[(0, 8000)], &[], 16_000),
            (&[(0, 8000), (1, 2000)], &[], 16_000),
            (&[(0, 5000), (0, 5000), (1, 2000)], &[], 14_000),
            // GPU 0 has no replica left, but one of them may leave before the next one comes.
            (&[(0, 6000), (0, 6000), (0, 6000), (0, 6000)], &[], 6000),
            (&[(0, 9000), (0, 6000), (0, 6000), (0, 3000)], &[], 3000),
            (&[], &[8000], 16_000),
            (&[], &[20_000, 8000], 0),
        ],
    );
}

/// By the replicas that are known, GPU 1 is the fuller one, and the loose pod and the next one go there. But when the loose pod
/// came GPU 0 may have been, by some that are gone since; and it will be when those on GPU 1 have left.
#[test]
fn packed_promises_nothing_that_a_loose_pod_may_have_taken_of_another_gpu() {
    assert_room(
        &on(Handout::Packed),
        &[
            (&[(0, 8000), (1, 1000), (1, 1000)], &[10_000], 6000),
            (&[(0, 8000), (1, 1000), (1, 1000)], &[], 16_000),
            // Beside 20,000 on GPU 0, once one of the others has left it.
            (&[(0, 1000), (0, 1000), (0, 1000)], &[20_000], 2000),
        ],
    );
}

#[test]
fn slot_promises_one_slot_while_none_is_larger() {
    assert_room(
        &on(Handout::Unverified),
        &[
            (&[], &[], 6000),
            (&[], &[6000, 6000, 6000, 6000, 6000, 6000, 6000], 6000),
            (&[], &[20_000], 4000),
            (&[], &[20_000, 1000], 3000),
            (&[], &[24_000, 24_000], 0),
            // An agent that says where a pod is, and not how the others come to their GPU.
            (&[(0, 20_000)], &[], 4000),
            (&[(0, 18_000), (0, 2000), (0, 2000), (0, 2000)], &[], 2000),
            (&[(0, 6000), (0, 6000), (0, 6000), (0, 6000)], &[], 6000),
        ],
    );
}

#[test]
fn a_pinned_pod_goes_to_the_fullest_gpu_that_has_room() {
    let pool = on(Handout::Pinned);
    let place = |seats: &[(u32, u64)], unknown: &[u64], demand| {
        let occupancy = Occupancy::of(&pool, &plain(), shares(seats, unknown)).unwrap();
        occupancy.place(Vram::from_mib(demand), Newcomer::Pinned).map(Option::<&GpuId>::cloned)
    };
    let gpu = |index| Ok(Some(GpuId::Index(index)));
    let none = |room| Err(Vram::from_mib(room));
    assert_eq!(place(&[(1, 8000)], &[], 16_000), gpu(1));
    assert_eq!(place(&[(1, 8000)], &[], 16_001), gpu(0));
    assert_eq!(place(&[(1, 8000)], &[], 24_001), none(24_000));
    // A loose one may be on either.
    assert_eq!(place(&[(1, 8000)], &[10_000], 6000), gpu(1));
    assert_eq!(place(&[(1, 8000)], &[10_000], 14_001), none(14_000));
    // Four replicas each: no fifth pod, however small.
    assert_eq!(place(&[(1, 1), (1, 1), (1, 1), (1, 1)], &[], 1), gpu(0));
}

#[test]
fn the_smaller_gpu_bounds_what_may_land_on_it() {
    let pool = |handout| pool(&[24_000, 80_000], 4, handout);
    assert_room(&pool(Handout::Distributed), &[(&[], &[], 24_000), (&[(0, 1)], &[], 24_000), (&[], &[1], 24_000)]);
    // Two would have to leave GPU 0 before it is as empty as GPU 1, and then it has room for most.
    assert_room(
        &pool(Handout::Distributed),
        &[(&[(0, 12_000), (0, 12_000)], &[], 24_000), (&[(0, 1), (0, 1)], &[], 24_000)],
    );
    assert_room(&pool(Handout::Packed), &[(&[(1, 1000)], &[], 24_000), (&[(0, 1000)], &[], 23_000)]);
    assert_room(&pool(Handout::Pinned), &[(&[], &[], 80_000), (&[], &[10_000], 70_000)]);
    assert_room(
        &pool(Handout::Unverified),
        &[(&[], &[], 6000), (&[(0, 6000), (0, 6000), (0, 6000), (0, 6000)], &[], 6000)],
    );
}

#[test]
fn memory_that_no_pod_accounts_for_is_not_promised() {
    let mut pool = on(Handout::Distributed);
    let out_of_band = |pool: &mut Pool, mib| {
        pool.contents.as_mut().unwrap().gpus[0].out_of_band = Vram::from_mib(mib);
    };
    out_of_band(&mut pool, 10_000);
    assert_room(&pool, &[(&[], &[], 14_000), (&[(0, 12_000)], &[], 14_000), (&[(1, 12_000)], &[], 14_000)]);
    out_of_band(&mut pool, 30_000);
    // GPU 0 is overcommitted by itself: nothing, since the next one may land there.
    assert_room(&pool, &[(&[], &[], 0), (&[(0, 1)], &[], 0)]);
    let deficit = Occupancy::of(&pool, &plain(), []).unwrap().deficit();
    assert_eq!(deficit, Some(Deficit { by: Vram::from_mib(6000), on: Some(GpuId::Index(0)) }));
}

#[test]
fn a_deficit_that_is_certain_names_its_gpu_and_one_that_may_be_does_not() {
    let deficit = |handout, seats: &[(u32, u64)], unknown: &[u64]| {
        let pool = on(handout);
        let deficit = Occupancy::of(&pool, &plain(), shares(seats, unknown)).unwrap().deficit();
        deficit.map(|deficit| (deficit.by.mib(), deficit.on))
    };
    let modes = [Handout::Distributed, Handout::Packed, Handout::Unverified, Handout::Pinned];
    for handout in modes {
        let certain = deficit(handout, &[(1, 20_000), (1, 8000)], &[9000]);
        assert_eq!(certain, Some((4000, Some(GpuId::Index(1)))), "{handout:?}");
    }
    let may_be = modes.map(|handout| deficit(handout, &[], &[20_000, 8000]).map(|(by, on)| (by, on.is_some())));
    // Two that nobody has seen: distributed puts one on each.
    assert_eq!(may_be, [None, Some((4000, false)), Some((4000, false)), Some((4000, false))]);
}

#[test]
fn a_gpu_on_which_a_pod_starts_takes_no_other_one() {
    let serial = Rules { serialize_per_gpu: true, ..plain() };
    let starting = |share: Share| Share { starting: true, ..share };
    let room = |handout, shares: Vec<Share>| Occupancy::of(&on(handout), &serial, shares).unwrap().room().mib();
    for handout in [Handout::Distributed, Handout::Packed, Handout::Unverified, Handout::Pinned] {
        assert_eq!(room(handout, vec![starting(loose(1000))]), 0, "it may be on any: {handout:?}");
    }
    assert_eq!(room(Handout::Distributed, vec![starting(seated(0, 1000))]), 24_000);
    assert_eq!(room(Handout::Distributed, vec![starting(seated(0, 1000)), seated(1, 1000)]), 0);
    assert_eq!(room(Handout::Packed, vec![starting(seated(0, 1000))]), 0);
    assert_eq!(room(Handout::Unverified, vec![starting(seated(0, 1000))]), 0);
    assert_eq!(room(Handout::Pinned, vec![starting(seated(0, 1000)), seated(1, 2000)]), 22_000);
    let freely = Occupancy::of(&on(Handout::Pinned), &plain(), [starting(seated(0, 1000))]).unwrap().room().mib();
    assert_eq!(freely, 24_000, "unless policy says so, nobody waits");
}

#[test]
fn on_a_full_gpu_who_takes_the_place_of_one_that_starts_comes_beside_another_that_does() {
    let serial = Rules { serialize_per_gpu: true, ..plain() };
    let starting = || Share { starting: true, ..seated(1, 1000) };
    for handout in [Handout::Distributed, Handout::Packed, Handout::Unverified] {
        let pool = pool(&[24_000, 24_000], 2, handout);
        // Both are full, so whoever comes takes the place of one that left.
        let full = [seated(0, 1000), seated(0, 1000), starting(), starting()];
        assert_eq!(Occupancy::of(&pool, &serial, full).unwrap().room(), Vram::ZERO, "{handout:?}");
    }
}

#[test]
fn a_pod_of_two_containers_holds_on_each_gpu_that_it_has() {
    let pair = |starting| {
        let seat = |gpu, amount| (Some(GpuId::Index(gpu)), Vram::from_mib(amount), 1);
        Share { seats: vec![seat(0, 8000), seat(1, 2000)], starting }
    };
    let pool = on(Handout::Pinned);
    let occupancy = Occupancy::of(&pool, &plain(), [pair(false)]).unwrap();
    let stands: Vec<_> = occupancy.gpus().into_iter().map(|gpu| (gpu.held.mib(), gpu.free.unwrap().mib())).collect();
    assert_eq!(stands, [(8000, 16_000), (2000, 22_000)]);
    let serial = Rules { serialize_per_gpu: true, ..plain() };
    assert_eq!(Occupancy::of(&pool, &serial, [pair(true)]).unwrap().room(), Vram::ZERO);
}

#[test]
fn a_container_takes_as_many_replicas_of_its_gpu_as_it_asked_for() {
    let pool = on(Handout::Distributed);
    let twice = Share { seats: vec![(Some(GpuId::Index(0)), Vram::from_mib(2000), 2)], starting: false };
    let occupancy = Occupancy::of(&pool, &plain(), [twice, seated(1, 8000)]).unwrap();
    assert_eq!(occupancy.room().mib(), 16_000);
}

#[test]
fn a_seat_on_a_gpu_that_the_pool_does_not_have_is_loose() {
    let elsewhere =
        Share { seats: vec![(Some(GpuId::Uuid("GPU-gone".into())), Vram::from_mib(8000), 1)], starting: false };
    let pool = on(Handout::Pinned);
    assert_eq!(Occupancy::of(&pool, &plain(), [elsewhere]).unwrap().room().mib(), 16_000);
}

#[test]
fn whole_gpus_are_promised_while_one_is_free_and_the_smallest_of_them() {
    let whole = Pool { sharing: Sharing::Exclusive, ..pool(&[24_000, 80_000], 1, Handout::Unverified) };
    assert_room(&whole, &[(&[], &[], 24_000), (&[], &[70_000], 24_000), (&[], &[1, 1], 0)]);
    assert_eq!(Occupancy::of(&whole, &plain(), [loose(90_000)]).unwrap().deficit(), None);
}

/// X was promised GPU 1, the only one it could get. Two small ones left GPU 0 before the plugin came to X: it was a tie, and X
/// joined the large one. So X is promised no more than there is beside the large one.
#[test]
fn nobody_is_promised_more_than_is_left_when_the_smallest_of_the_others_leave_first() {
    let (small, large) = ((0, 100), (0, 20_000));
    assert_room(
        &on(Handout::Distributed),
        &[
            (&[large, small, small, (1, 100)], &[], 4000),
            // Where all are alike it costs nothing: whoever comes takes what whoever left had.
            (&[(0, 6000), (0, 6000), (1, 6000)], &[], 18_000),
            (&[(0, 6000), (0, 6000), (0, 6000), (1, 6000), (1, 6000)], &[], 12_000),
        ],
    );
}
