//! What nodes may say: by hand, and that no pods which are placed by it overcommit a GPU.

use std::num::NonZeroU32;

use proptest::prelude::*;

use super::*;
use crate::capacity::demand::Role;
use crate::capacity::gpu::{Contents, Gpu, Handout, Headroom, Overcommit, Pool, Rules, Sharing};
use crate::capacity::ledger::{Amount, Holder, NodeLedger, Part, PodUid};
use crate::capacity::pod::PodName;

fn gpu() -> Resource {
    Resource("nvidia.com/gpu".into())
}

fn pool(sizes: &[u64], replicas: u32) -> Pool {
    let gpus = (0..).zip(sizes).map(|(index, &size)| Gpu::of_size(index, Vram::from_mib(size))).collect();
    let contents = Ok(Contents { gpus, replicas: NonZeroU32::new(replicas).unwrap() });
    Pool { resource: gpu(), sharing: Sharing::TimeSlicing, contents, handout: Handout::Unverified }
}

fn standing(pool: &Pool, held: &[u64]) -> Standing {
    standing_where(false, pool, held)
}

fn standing_where(serialize_per_gpu: bool, pool: &Pool, held: &[u64]) -> Standing {
    let headroom = Headroom { percent: 0, minimum: Vram::ZERO };
    let rules = Rules {
        per_process_overhead: Vram::ZERO,
        headroom,
        overcommit: Overcommit::NONE,
        serialize_per_gpu,
        several_schedulers: false,
    };
    let mut ledger = NodeLedger::default();
    for (number, request) in held.iter().map(|mib| Vram::from_mib(*mib)).enumerate() {
        let amount = Amount::Requested(request);
        let holder = Holder {
            name: PodName { namespace: "ml".into(), name: "llm".into() },
            request: Some(request),
            parts: vec![Part { container: "main".into(), role: Role::App, amount, pinned: false, gpu: None }],
            gpus: vec![(gpu(), 1)],
            priority: 0,
            starting: None,
            bound: None,
            annotated: true,
        };
        ledger.confirm(PodUid(number.to_string()), holder);
    }
    ledger.standing(std::slice::from_ref(pool), &rules, |_| true)
}

fn may(standing: &Standing, waiting: &[u64]) -> (u64, u64) {
    let gpu = gpu();
    let waiting = Waiting::of(waiting.iter().map(|mib| (&gpu, Vram::from_mib(*mib))));
    let may = standing.may_publish(|_| true, &waiting).unwrap();
    (may.least.mib(), may.most.mib())
}

#[test]
fn a_node_may_say_what_pods_of_a_slot_take_together_while_none_larger_waits() {
    let pool = pool(&[24_000, 24_000], 4);
    let idle = standing(&pool, &[]);
    assert_eq!(may(&idle, &[]), (6000, 6000), "nobody waits");
    assert_eq!(may(&idle, &[6000, 100]), (6000, 24_000));
    assert_eq!(may(&idle, &[100, 6001]), (6000, 6000), "it would come here, and be refused");
    assert_eq!(may(&standing(&pool, &[5000, 3000]), &[5000]), (14_000, 24_000));
    // Four of the five on one GPU leave as much as this, wherever the fifth is.
    assert_eq!(may(&standing(&pool, &[5000; 5]), &[5000]), (31_000, 34_000));
    let full = standing(&pool, &[6000; 8]);
    assert_eq!(may(&full, &[6000]), (54_000, 54_000), "replicas are kube-scheduler's to count");
}

/// The others would be refused when they are bound.
#[test]
fn where_one_pod_at_a_time_may_start_a_node_says_room_for_one() {
    let idle = standing_where(true, &pool(&[24_000, 24_000], 4), &[]);
    assert_eq!(may(&idle, &[6000]), (6000, 6000));
}

#[test]
fn where_the_gpu_of_a_pod_is_known_there_is_one_figure() {
    let one = pool(&[24_000], 4);
    assert_eq!(may(&standing(&one, &[5000]), &[4000]), (24_000, 24_000));
    let pinned = Pool { handout: Handout::Pinned, ..pool(&[24_000, 24_000], 4) };
    assert_eq!(may(&standing(&pinned, &[5000]), &[4000]), (24_000, 24_000));
}

proptest! {
    /// By what the node said before the first of them, whether it was written since or not.
    #[test]
    fn pods_that_are_placed_by_what_a_node_may_say_fit_wherever_they_lie(
        sizes in proptest::collection::vec(20u64..100, 2..4), replicas in 1u32..5,
        held in proptest::collection::vec(1u64..20, 0..6), shares in proptest::collection::vec(1u64..=100, 0..12),
    ) {
        let pool = pool(&sizes, replicas);
        let replicas = sizes.len() * replicas as usize;
        let mut held = held;
        let before = standing(&pool, &held);
        prop_assume!(before.deficit.is_none() && held.len() <= replicas);
        let said = may(&before, &[before.placeable.mib()]).1;
        for share in shares {
            let now = standing(&pool, &held);
            let free = said.saturating_sub(held.iter().sum());
            let demand = now.placeable.mib().min(free) * share / 100;
            if demand == 0 || held.len() == replicas {
                continue;
            }
            held.push(demand);
            let after = standing(&pool, &held);
            prop_assert_eq!(after.deficit, None);
            prop_assert!(said <= may(&after, &[1]).1, "it has to be lowered although pods only came");
        }
    }

    /// The guard absent, pods larger than a slot too.
    #[test]
    fn no_pods_that_fit_what_a_node_may_say_overcommit_a_gpu(
        sizes in proptest::collection::vec(20u64..100, 2..4), replicas in 1u32..5,
        held in proptest::collection::vec(1u64..20, 0..6), shares in proptest::collection::vec(1u64..=100, 0..12),
    ) {
        let pool = pool(&sizes, replicas);
        let mut held = held;
        let before = standing(&pool, &held);
        prop_assume!(before.deficit.is_none());
        let said = may(&before, &[before.placeable.mib()]).1;
        for share in shares {
            held.push(said.saturating_sub(held.iter().sum()) * share / 100);
            prop_assert_eq!(standing(&pool, &held).deficit, None);
        }
    }
}
