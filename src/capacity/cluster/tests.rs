//! Tests of the cluster's snapshot, also against one that is computed from scratch.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::capacity::gpu::Sharing;
use crate::capacity::pod::placement::{Operator, Preemption, Requirement, Term};
pub(super) use crate::capacity::testing::gpu;
use crate::capacity::testing::{self, facts, pool};
use crate::capacity::verdict::Unaccounted;

pub(super) fn node(size: u64, gpus: u32, replicas: u32, sharing: Sharing) -> NodeFacts {
    facts(vec![Pool { sharing, ..pool(&vec![size; gpus as usize], replicas) }])
}

pub(super) fn holder(request: u64, priority: i32) -> Holder {
    Holder { priority, ..testing::holder(request) }
}

pub(super) fn uid(number: usize) -> PodUid {
    PodUid::from(number.to_string())
}

pub(super) fn cluster() -> Cluster {
    Cluster::new(Rules::default(), BTreeSet::new())
}

fn on(node: &str) -> Placement {
    let field = Requirement { key: "metadata.name".into(), operator: Operator::In, values: vec![node.into()] };
    Placement { required: Some(vec![Term { fields: vec![field], labels: vec![] }]), ..Placement::default() }
}

#[test]
fn a_resource_is_guarded_while_a_node_shares_it() {
    let mut cluster = cluster();
    cluster.apply_node("whole", node(80_000, 2, 1, Sharing::Exclusive));
    assert!(!cluster.guards(&gpu()));
    assert_eq!(cluster.node("whole").unwrap().usage.published, None);
    cluster.apply_node("shared", node(24_576, 1, 4, Sharing::TimeSlicing));
    assert!(cluster.guards(&gpu()));
    assert_eq!(cluster.node("whole").unwrap().usage.published, Some(Vram::from_mib(2 * 78_720)));
    cluster.apply_node("shared", node(24_576, 1, 1, Sharing::Exclusive));
    assert!(!cluster.guards(&gpu()), "its node says that it shares no longer");
    assert_eq!(cluster.node("whole").unwrap().usage.published, None);
}

#[test]
fn a_resource_may_be_guarded_before_any_node_shares_it() {
    let cluster = Cluster::new(Rules::default(), BTreeSet::from([gpu()]));
    assert!(cluster.guards(&gpu()));
}

fn minutes(minutes: u64) -> Moment {
    Moment::default().after(Duration::from_secs(60 * minutes))
}

/// Labels vanish while GPU Feature Discovery is reinstalled; pods created in between would land unaccounted.
#[test]
fn a_resource_stays_guarded_while_a_node_that_shared_it_says_nothing_and_for_a_while_when_it_is_gone() {
    for silent_before in [false, true] {
        let mut cluster = cluster();
        cluster.apply_node("n", node(24_576, 1, 4, Sharing::TimeSlicing));
        cluster.apply_node("whole", node(80_000, 2, 1, Sharing::Exclusive));
        if silent_before {
            cluster.apply_node("n", node(24_576, 1, 4, Sharing::Unstated));
            cluster.tick(minutes(1));
            cluster.tick(minutes(4));
            assert!(cluster.guards(&gpu()), "its GPUs are most likely shared still");
        }
        cluster.delete_node("n");
        cluster.tick(minutes(5));
        cluster.tick(minutes(14));
        assert!(cluster.guards(&gpu()));
        cluster.take_changed();
        cluster.tick(minutes(15));
        assert!(!cluster.guards(&gpu()));
        assert!(cluster.take_changed().contains("whole"), "what its condition says has changed");
        assert_eq!(cluster.node("whole").unwrap().usage.published, None);
    }
}

#[test]
fn a_resource_that_is_shared_again_does_not_cease_to_be_guarded_when_its_time_is_over() {
    let mut cluster = cluster();
    cluster.apply_node("n", node(24_576, 1, 4, Sharing::TimeSlicing));
    cluster.delete_node("n");
    cluster.tick(minutes(0));
    cluster.apply_node("n", node(24_576, 1, 4, Sharing::TimeSlicing));
    cluster.tick(minutes(60));
    assert!(cluster.guards(&gpu()));
}

#[test]
fn labels_that_vanished_before_the_start_are_remembered_by_the_number_on_the_node() {
    let mut cluster = cluster();
    let advertising = NodeFacts { advertises_vram: true, ..node(24_576, 1, 4, Sharing::Unstated) };
    cluster.apply_node("n", advertising.clone());
    assert!(cluster.guards(&gpu()));
    cluster.tick(minutes(0));
    cluster.apply_node("n", advertising);
    cluster.tick(minutes(60));
    assert!(cluster.guards(&gpu()));
    cluster.apply_node("n", node(24_576, 1, 1, Sharing::Exclusive));
    assert!(!cluster.guards(&gpu()));
}

/// Otherwise a tenant could cause every pod with a whole GPU or a MIG device to be refused.
#[test]
fn a_pod_that_requests_vram_guards_nothing() {
    let mut cluster = cluster();
    cluster.apply_node("whole", node(80_000, 2, 1, Sharing::Exclusive));
    cluster.apply_pod(&uid(1), "whole", holder(100, 0));
    assert!(!cluster.guards(&gpu()));
    assert_eq!(cluster.node("whole").unwrap().usage.published, Some(Vram::from_mib(100)), "what is bound, and no more");
}

#[test]
fn turning_sharing_off_unguards_a_resource_that_pods_hold() {
    let mut cluster = cluster();
    cluster.apply_node("n", node(24_576, 1, 4, Sharing::TimeSlicing));
    cluster.apply_pod(&uid(1), "n", holder(8000, 0));
    cluster.apply_node("n", node(24_576, 1, 1, Sharing::Exclusive));
    assert!(!cluster.guards(&gpu()));
    assert_eq!(cluster.node("n").unwrap().usage.published, Some(Vram::from_mib(8000)));
}

/// Regression: one test node caused all pods with several GPUs to be refused in the whole cluster.
#[test]
fn a_node_that_shares_without_its_label_is_named_to_pods_that_may_land_on_it_only() {
    let mut cluster = cluster();
    let mut facts = node(24_576, 1, 4, Sharing::TimeSlicing);
    cluster.apply_node("n", facts.clone());
    assert_eq!(cluster.shares_unlabelled(&gpu(), &Placement::default()), Some("n"));
    assert_eq!(cluster.shares_unlabelled(&gpu(), &on("n")), Some("n"));
    assert_eq!(cluster.shares_unlabelled(&gpu(), &on("training")), None);
    facts.profile.labels.insert("nvidia.com/gpu.sharing-strategy".into(), "time-slicing".into());
    cluster.apply_node("n", facts);
    assert_eq!(cluster.shares_unlabelled(&gpu(), &Placement::default()), None);
}

#[test]
fn a_node_is_forgotten_with_its_last_pod() {
    let mut cluster = cluster();
    cluster.apply_node("n", node(24_576, 1, 4, Sharing::TimeSlicing));
    cluster.apply_pod(&uid(1), "n", holder(8000, 0));
    cluster.delete_node("n");
    cluster.delete_pod(&uid(1));
    assert_eq!(cluster.node_names().count(), 0);
}

#[test]
fn a_pod_seen_before_its_node_counts_once_the_node_is_seen() {
    let mut cluster = cluster();
    cluster.apply_pod(&uid(1), "n", holder(8000, 0));
    cluster.apply_node("n", node(24_576, 1, 4, Sharing::TimeSlicing));
    assert_eq!(cluster.node("n").unwrap().usage.free, Vram::from_mib(23_870 - 8000));
}

#[test]
fn a_node_that_comes_back_finds_its_pods_again() {
    let mut cluster = cluster();
    cluster.apply_node("n", node(24_576, 1, 4, Sharing::TimeSlicing));
    cluster.apply_pod(&uid(1), "n", holder(8000, 0));
    cluster.delete_node("n");
    assert!(cluster.shortfall(&gpu(), Vram::from_mib(1), &Placement::default()).is_some());
    cluster.apply_node("n", node(24_576, 1, 4, Sharing::TimeSlicing));
    assert_eq!(cluster.node("n").unwrap().usage.free, Vram::from_mib(23_870 - 8000));
}

#[test]
fn a_shortfall_names_the_best_node_that_takes_the_pod() {
    let mut cluster = cluster();
    cluster.apply_node("small", node(10_706, 1, 4, Sharing::TimeSlicing));
    cluster.apply_node("large", node(24_576, 1, 4, Sharing::TimeSlicing));
    cluster.apply_pod(&uid(1), "large", holder(20_000, 0));
    let best = |demand, placement: &Placement| {
        cluster.shortfall(&gpu(), Vram::from_mib(demand), placement).map(|s| s.best.map(|best| best.node))
    };
    assert_eq!(best(10_000, &Placement::default()), None);
    assert_eq!(best(10_001, &Placement::default()), Some(Some("small".into())));
    assert_eq!(best(5000, &on("large")), Some(Some("large".into())));
    assert_eq!(best(5000, &on("elsewhere")), Some(None));
}

#[test]
fn a_pod_that_may_preempt_is_not_short_of_what_lower_priorities_hold() {
    let mut cluster = cluster();
    cluster.apply_node("n", node(24_576, 1, 4, Sharing::TimeSlicing));
    cluster.apply_pod(&uid(1), "n", holder(20_000, 5));
    let pod = |priority, preemption| Placement { priority, preemption, ..Placement::default() };
    let short = |placement: &Placement| cluster.shortfall(&gpu(), Vram::from_mib(8000), placement).is_some();
    assert!(short(&pod(5, Preemption::LowerPriority)));
    assert!(short(&pod(10, Preemption::Never)));
    assert!(!short(&pod(10, Preemption::LowerPriority)));
}

/// Regression: an H100 that joined made every pod without a declaration too large for all other nodes.
#[test]
fn a_node_that_joins_makes_no_other_node_too_small_for_pods_that_declare_nothing() {
    let mut cluster = cluster();
    cluster.apply_node("l4", node(24_576, 1, 4, Sharing::TimeSlicing));
    let slot = |cluster: &Cluster| cluster.slot_for(&gpu(), &Placement::default()).map(Vram::mib);
    assert_eq!(slot(&cluster), Some(5967));
    cluster.apply_node("h100", node(81_559, 1, 2, Sharing::TimeSlicing));
    assert_eq!(slot(&cluster), Some(5967));
    assert_eq!(
        cluster.slot_for(&gpu(), &on("h100")).map(Vram::mib),
        Some(40_126),
        "where it goes nowhere else, its share"
    );
    let undeclared = Undeclared { demand: Vram::from_mib(5967), fitting: 2, nodes: 2 };
    assert_eq!(cluster.undeclared(), BTreeMap::from([(gpu(), undeclared)]));
    // A node that is too small for any pod does not decide.
    cluster.apply_node("tiny", node(600, 1, 4, Sharing::TimeSlicing));
    assert_eq!(slot(&cluster), Some(5967));
    assert_eq!(cluster.undeclared()[&gpu()], Undeclared { nodes: 3, ..undeclared });
}

#[test]
fn nothing_accounts_for_a_resource_while_a_node_does_not_say_how_it_shares_it() {
    let mut cluster = cluster();
    let unaccounted = |cluster: &Cluster, placement: &Placement| cluster.unaccounted(&gpu(), placement);
    assert_eq!(unaccounted(&cluster, &Placement::default()), Some(Unaccounted::NoNode));
    cluster.apply_node("whole", node(80_000, 8, 1, Sharing::Exclusive));
    assert_eq!(unaccounted(&cluster, &Placement::default()), None);
    cluster.apply_node("plain", node(80_000, 8, 1, Sharing::Unstated));
    let plain = Some(Unaccounted::Unstated { node: "plain".into() });
    assert_eq!(unaccounted(&cluster, &Placement::default()), plain);
    assert_eq!(unaccounted(&cluster, &on("whole")), None);
    cluster.apply_node("plain", node(80_000, 8, 1, Sharing::Exclusive));
    assert_eq!(unaccounted(&cluster, &Placement::default()), None);
}

#[test]
fn the_slot_is_that_of_the_nodes_the_pod_may_land_on() {
    let mut cluster = cluster();
    cluster.apply_node("small", node(8898, 1, 4, Sharing::TimeSlicing));
    cluster.apply_node("large", node(24_576, 1, 4, Sharing::TimeSlicing));
    cluster.apply_node("whole", node(80_000, 1, 1, Sharing::Exclusive));
    let slot = |placement: &Placement| cluster.slot_for(&gpu(), placement).unwrap().mib();
    assert_eq!((slot(&Placement::default()), slot(&on("large")), slot(&on("whole"))), (2048, 5967, 2048));
    assert!(cluster.is_slot(&gpu(), Vram::from_mib(2048), &Placement::default()));
    assert!(!cluster.is_slot(&gpu(), Vram::from_mib(2049), &Placement::default()));
    assert!(!cluster.is_slot(&gpu(), Vram::from_mib(2048), &on("large")), "not of a node that it may land on");
}

/// A resource may be guarded although no node shares it now. Pods must not be refused because there is no slot.
#[test]
fn where_nobody_shares_a_whole_gpu_is_the_slot() {
    let mut cluster = Cluster::new(Rules::default(), BTreeSet::from([gpu()]));
    cluster.apply_node("whole", node(80_000, 2, 1, Sharing::Exclusive));
    assert!(cluster.guards(&gpu()));
    assert_eq!(cluster.slot_for(&gpu(), &Placement::default()), Some(Vram::from_mib(78_720)));
    assert!(cluster.is_slot(&gpu(), Vram::from_mib(78_720), &Placement::default()));
}

#[test]
fn what_stands_elsewhere_is_told_once() {
    let mut cluster = cluster();
    cluster.apply_node("n", node(24_576, 1, 4, Sharing::TimeSlicing));
    assert_eq!(cluster.take_changed(), BTreeSet::from(["n".to_owned()]));
    cluster.apply_node("n", node(24_576, 1, 4, Sharing::TimeSlicing));
    assert_eq!(cluster.take_changed(), BTreeSet::new());
    cluster.apply_pod(&uid(1), "n", holder(1, 0));
    assert_eq!(cluster.take_changed(), BTreeSet::from(["n".to_owned()]));
}

/// To compare such a pod with a node takes time in proportion to its affinity, under the lock.
#[test]
fn what_was_not_looked_at_refuses_no_demand_and_lets_no_whole_gpu_pod_in() {
    let mut cluster = cluster();
    for number in 0..200 {
        // The only node that the pod may land on has the least room and the last name.
        let size = if number == 199 { 24_576 } else { 81_559 };
        cluster.apply_node(&format!("n{number:03}"), node(size, 1, 4, Sharing::TimeSlicing));
    }
    let mut far = on("n199");
    assert_eq!(far.max_nodes_compared(), 1_000_000 / 3);
    let demand = Vram::from_mib(70_000);
    assert!(cluster.shortfall(&gpu(), demand, &far).is_some());
    assert_eq!(cluster.shares_unlabelled(&gpu(), &far), Some("n199"));
    assert_eq!(cluster.shares_unlabelled(&gpu(), &on("elsewhere")), None);
    let values = (0..8192).map(|n| n.to_string()).collect();
    let large = Requirement { key: "zone".into(), operator: Operator::NotIn, values };
    far.required.as_mut().unwrap()[0].labels.push(large);
    assert_eq!(far.max_nodes_compared(), 128);
    assert_eq!(cluster.shortfall(&gpu(), demand, &far), None, "nobody looked that far");
    assert_eq!(cluster.shares_unlabelled(&gpu(), &far), Some("n128"), "it may be one");
    let mut nowhere = on("elsewhere");
    let slot = |placement: &Placement| cluster.slot_for(&gpu(), placement).map(Vram::mib);
    assert_eq!(slot(&nowhere), Some(5967), "the smallest of all, where none was found among all");
    nowhere.required.as_mut().unwrap()[0].labels.clone_from(&far.required.as_ref().unwrap()[0].labels);
    assert_eq!(slot(&nowhere), Some(20_063), "no smaller than those that were looked at");
}

#[derive(Clone, Debug)]
enum Event {
    Node(usize, Option<(u64, u32, u32)>),
    Pod(usize, Option<(usize, u64)>),
    Rules(u8),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let shape = proptest::option::weighted(0.8, (1000u64..50_000, 1u32..4, 1u32..4));
    let bound = proptest::option::weighted(0.8, (0usize..4, 1u64..20_000));
    proptest::collection::vec(
        prop_oneof![
            2 => (0usize..4, shape).prop_map(|(node, shape)| Event::Node(node, shape)),
            4 => (0usize..24, bound).prop_map(|(pod, bound)| Event::Pod(pod, bound)),
            1 => (0u8..50).prop_map(Event::Rules),
        ],
        0..40,
    )
}

proptest! {
    /// Every answer equals that of a cluster built from the final state alone, and the rankings have no stale entries.
    /// The events come in any order, each once or twice.
    #[test]
    fn the_picture_depends_on_the_state_and_not_on_how_it_came_about(events in events(), again in any::<bool>()) {
        let mut live = cluster();
        let (mut nodes, mut pods, mut rules) = (BTreeMap::new(), BTreeMap::new(), Rules::default());
        let mut ended = BTreeSet::new();
        for event in events.iter().flat_map(|event| std::iter::repeat_n(event, if again { 2 } else { 1 })) {
            match event.clone() {
                Event::Node(number, Some((size, gpus, replicas))) => {
                    let sharing = if replicas == 1 { Sharing::Exclusive } else { Sharing::TimeSlicing };
                    let facts = node(size, gpus, replicas, sharing);
                    live.apply_node(&format!("n{number}"), facts.clone());
                    nodes.insert(format!("n{number}"), facts);
                }
                Event::Node(number, None) => {
                    live.delete_node(&format!("n{number}"));
                    nodes.remove(&format!("n{number}"));
                }
                Event::Pod(number, Some((node, request))) => {
                    live.apply_pod(&uid(number), &format!("n{node}"), holder(request, 0));
                    if !ended.contains(&number) {
                        pods.insert(number, (format!("n{node}"), request));
                    }
                }
                Event::Pod(number, None) => {
                    live.delete_pod(&uid(number));
                    pods.remove(&number);
                    ended.insert(number);
                }
                Event::Rules(percent) => {
                    rules.headroom.percent = percent;
                    live.set_rules(rules, BTreeSet::new());
                }
            }
        }
        live.tick(minutes(0));
        live.tick(Moment::default().after(LINGER));
        let mut fresh = Cluster::new(rules, BTreeSet::new());
        for (number, (node, request)) in &pods {
            fresh.apply_pod(&uid(*number), node, holder(*request, 0));
        }
        for (name, facts) in &nodes {
            fresh.apply_node(name, facts.clone());
        }
        prop_assert_eq!(live.guarded(), fresh.guarded());
        prop_assert_eq!((&live.by_free, &live.slots, &live.max_demands), (&fresh.by_free, &fresh.slots, &fresh.max_demands));
        for name in nodes.keys() {
            prop_assert_eq!(live.node(name).unwrap().usage, fresh.node(name).unwrap().usage);
            let held: u64 = pods.values().filter(|(node, _)| node == name).map(|(_, request)| request).sum();
            prop_assert_eq!(live.node(name).unwrap().usage.bound.mib(), held);
        }
    }
}
