use super::*;
use crate::capacity::cluster::Cluster;
use crate::capacity::node::ledger::LedgerContent;
use crate::capacity::node::reservation::{Reservation, State};
use crate::capacity::pod::PodName;
use crate::capacity::testing::{facts, gpu, holder, mib, pool, rules, uid};
use crate::capacity::time::Moment;

/// Counts by binding one pod after the other.
fn by_hand(cluster: &mut Cluster, demand: u64) -> u64 {
    let (mut count, anywhere) = (0, Placement::default());
    loop {
        let node = cluster.fitting(&gpu(), mib(demand), &anywhere).next().map(str::to_owned);
        let Some(node) = node else { break };
        let seen = cluster.node(&node).expect("a node that fits is known");
        let taken = seen.ledger.counted().count() as u64;
        let contents = seen.facts.pools[0].contents.as_ref().expect("the GPUs are known");
        let replicas = contents.gpus.len() as u64 * u64::from(contents.replicas.get());
        if taken >= replicas {
            break; // the only node has no replica left
        }
        cluster.apply_pod(&uid(&format!("p{count}")), &node, holder(demand));
        count += 1;
    }
    count
}

#[test]
fn the_room_is_what_one_pod_after_the_other_can_take() {
    for (sizes, replicas) in [(vec![24_000], 4), (vec![24_000], 2), (vec![24_000, 24_000], 4)] {
        for demand in [1_000, 5_000, 6_000, 7_000, 9_000, 24_000, 25_000] {
            let mut cluster = Cluster::new(rules(), Default::default());
            cluster.apply_node("a", facts(vec![pool(&sizes, replicas)]));
            let room = cluster.room(&gpu(), mib(demand), &Placement::default(), 1_000).pods;
            let can = by_hand(&mut cluster, demand);
            assert_eq!(room, can, "{sizes:?} in {replicas}, pods of {demand}");
        }
    }
}

#[test]
fn the_count_stops_where_it_is_told_to() {
    let mut cluster = Cluster::new(rules(), Default::default());
    for name in ["a", "b", "c"] {
        cluster.apply_node(name, facts(vec![pool(&[24_000], 4)]));
    }
    assert_eq!(cluster.room(&gpu(), mib(6_000), &Placement::default(), 5).pods, 5);
    assert_eq!(cluster.room(&gpu(), mib(6_000), &Placement::default(), 100).pods, 12);
    assert_eq!(cluster.room(&gpu(), mib(6_000), &Placement::default(), 0).pods, 0);
}

/// A pod may have reservations on several nodes for a moment, and is bound to one of them.
#[test]
fn a_pod_with_places_on_two_nodes_is_counted_once() {
    let mut cluster = Cluster::new(rules(), Default::default());
    for name in ["a", "b"] {
        cluster.apply_node(name, facts(vec![pool(&[24_000, 24_000], 4)]));
        let promise = Reservation {
            holder: Holder { name: PodName { namespace: "ml".into(), name: "coming".into() }, ..holder(1_000) },
            gpu: None,
            state: State::Assumed,
            since: Moment(0),
        };
        let reservations = [(uid("coming"), promise)].into_iter().collect();
        cluster.apply_ledger(name, Some(LedgerContent { reservations, inventory: None, fault: None }));
    }
    cluster.apply_pod(&uid("there"), "a", holder(1_000));
    assert_eq!(cluster.counts_on(&uid("coming")).count(), 2, "else nothing is shown here");
    assert_eq!(cluster.count_pods(|_| true), 2);
    assert_eq!(cluster.count_pods(|holder| holder.name.name == "coming"), 1);
}

/// Seven of eight GPUs are empty, and it depends on the device plugin whether they are used.
#[test]
fn where_a_pod_is_larger_than_a_slot_one_more_fits_for_certain_and_the_count_says_so() {
    let mut cluster = Cluster::new(rules(), Default::default());
    cluster.apply_node("a", facts(vec![pool(&[24_000; 8], 4)]));
    assert_eq!(cluster.room(&gpu(), mib(2_000), &Placement::default(), 100), Room { pods: 32, is_exact: true });
    cluster.apply_pod(&uid("p"), "a", holder(9_000));
    let room = cluster.room(&gpu(), mib(2_000), &Placement::default(), 100);
    assert_eq!(room, Room { pods: 1, is_exact: false });
}
