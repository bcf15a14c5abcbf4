//! Compares the filter with the binding guard's own answer, on random small clusters.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::capacity::cluster::{NodeFacts, NodeView};
use crate::capacity::gpu::{Accounting, AllocationPolicy, GpuId, Rules, Sharing, Unknown};
use crate::capacity::node::holder::{Amount, Part};
use crate::capacity::node::inventory::Inventory;
use crate::capacity::node::ledger::LedgerContent;
use crate::capacity::node::reservation::{Reservation, Reservations, State};
use crate::capacity::pod::PodName;
use crate::capacity::testing::{self, GPU, facts, mib, uid};
use crate::capacity::time::Moment;

const OTHER: &str = "nvidia.com/gpu.shared";

fn rules(serialize_per_gpu: bool) -> Rules {
    Rules { per_process_overhead: mib(1), serialize_per_gpu, ..testing::rules() }
}

fn pool(resource: &str, sizes: &[u64], replicas: u32, sharing: Sharing, allocation_policy: AllocationPolicy) -> Pool {
    Pool { resource: Resource(resource.into()), sharing, allocation_policy, ..testing::pool(sizes, replicas) }
}

/// A pod with one container that requests `request` MiB.
fn one(request: u64, priority: i32) -> Holder {
    Holder { priority, ..testing::holder(request) }
}

fn time_sliced(sizes: &[u64]) -> NodeFacts {
    facts(vec![pool(GPU, sizes, 4, Sharing::TimeSlicing, AllocationPolicy::Unverified)])
}

fn cluster(nodes: impl IntoIterator<Item = (&'static str, NodeFacts)>) -> Cluster {
    let mut cluster = Cluster::new(rules(false), BTreeSet::new());
    for (name, facts) in nodes {
        cluster.apply_node(name, facts);
    }
    cluster
}

fn ask(cluster: &Cluster, holder: &Holder, node: &str) -> Result<(), Rejected> {
    let uid = uid("me");
    Filter::of(cluster, &uid, holder).node(node)
}

/// The reason that kube-scheduler gets, and whether the published amount of the node leads to the same answer.
fn told(answer: Result<(), Rejected>) -> Result<(), (String, bool)> {
    answer.map_err(|rejected| (rejected.why.countable().to_string(), rejected.published))
}

fn short(demand: u64, accounting: Accounting) -> String {
    format!("node(s) had no room for {demand}Mi on one GPU ({accounting} accounting)")
}

#[test]
fn each_node_answers_for_itself() {
    let several = time_sliced(&[24_000, 24_000]);
    let mut cluster = cluster([("free", time_sliced(&[24_000])), ("full", time_sliced(&[24_000])), ("slots", several)]);
    cluster.apply_pod(&uid("a"), "full", one(20_000, 0));
    let pod = one(8000, 0);
    assert_eq!(ask(&cluster, &pod, "free"), Ok(()));
    assert_eq!(told(ask(&cluster, &pod, "full")), Err((short(8000, Accounting::Exact), true)));
    assert_eq!(told(ask(&cluster, &pod, "slots")), Err((short(8000, Accounting::Slot), true)));
    let why = Unplaced::NoGpu { resource: Some(Resource(GPU.into())) };
    assert_eq!(ask(&cluster, &pod, "nobody"), Err(Rejected { why, published: true }));
}

#[test]
fn a_pod_without_a_share_in_a_guarded_gpu_passes_everywhere() {
    let whole = facts(vec![pool(OTHER, &[24_000], 1, Sharing::Exclusive, AllocationPolicy::Unverified)]);
    let cluster = cluster([("full", time_sliced(&[1])), ("whole", whole)]);
    let unasked = Holder { request: None, ..one(8000, 0) };
    let no_gpu = Holder { gpus: Vec::new().into(), ..one(8000, 0) };
    let unguarded = Holder { gpus: vec![(Resource(OTHER.into()), 1)].into(), ..one(30_000, 0) };
    for pod in [unasked, no_gpu, unguarded] {
        for node in ["full", "whole", "nobody"] {
            assert_eq!(ask(&cluster, &pod, node), Ok(()), "{pod:?} on {node}");
        }
    }
}

#[test]
fn a_pod_does_not_stand_in_its_own_way() {
    let mut cluster = cluster([("n", time_sliced(&[24_000]))]);
    let pod = one(20_000, 0);
    let promise = Reservation { holder: pod.clone(), gpu: None, state: State::Assumed, since: Moment(0) };
    let reservations = [(uid("me"), promise)].into_iter().collect();
    cluster.apply_ledger("n", Some(LedgerContent { reservations, inventory: None, fault: None }));
    assert_eq!(ask(&cluster, &pod, "n"), Ok(()));
    let another = uid("another");
    assert!(Filter::of(&cluster, &another, &pod).node("n").is_err());
}

/// Otherwise kube-scheduler chooses one more node at each attempt, and is refused at each bind.
#[test]
fn a_pod_that_is_promised_enough_places_passes_on_those_alone() {
    let names = ["a", "b", "c", "d", "e"];
    let mut cluster = cluster(names.map(|name| (name, time_sliced(&[24_000]))));
    let pod = one(8000, 0);
    let promise = Reservation { holder: pod.clone(), gpu: None, state: State::Assumed, since: Moment(0) };
    for (number, name) in names[..binding::MAX_RESERVED_NODES].iter().enumerate() {
        assert_eq!(ask(&cluster, &pod, "e"), Ok(()), "with {number} places");
        let reservations = [(uid("me"), promise.clone())].into_iter().collect();
        cluster.apply_ledger(name, Some(LedgerContent { reservations, inventory: None, fault: None }));
    }
    assert_eq!(ask(&cluster, &pod, "a"), Ok(()));
    let why = Unplaced::TooManyPlaces { places: binding::MAX_RESERVED_NODES };
    for name in ["e", "nobody"] {
        assert_eq!(ask(&cluster, &pod, name), Err(Rejected { why: why.clone(), published: false }));
    }
}

#[test]
fn what_a_node_does_not_publish_is_no_surprise() {
    let steered = facts(vec![pool(GPU, &[24_000, 24_000], 4, Sharing::TimeSlicing, AllocationPolicy::Unverified)]);
    let mut cluster = cluster([("steered", steered)]);
    let inventory = Inventory { allocation_policy: AllocationPolicy::Steered, ..Inventory::default() };
    cluster.apply_ledger(
        "steered",
        Some(LedgerContent { reservations: Reservations::default(), inventory: Some(inventory), fault: None }),
    );
    let on_first = Part { gpu: Some(GpuId::Index(0)), ..testing::part(Amount::Requested(mib(20_000))) };
    cluster.apply_pod(&uid("a"), "steered", Holder { parts: vec![on_first].into(), ..one(20_000, 0) });

    assert_eq!(ask(&cluster, &one(13_000, 0), "steered"), Ok(()), "on the second GPU");
    assert_eq!(told(ask(&cluster, &one(25_000, 0), "steered")), Err((short(25_000, Accounting::Steered), true)));
    // One container with two replicas is not steered. It may get the first GPU, which the published amount of the node
    // does not show.
    let two = Holder { gpus: vec![(Resource(GPU.into()), 2)].into(), ..one(13_000, 0) };
    assert_eq!(told(ask(&cluster, &two, "steered")), Err((short(13_000, Accounting::Steered), false)));
}

fn sharing() -> impl Strategy<Value = Sharing> {
    select(vec![Sharing::TimeSlicing, Sharing::TimeSlicing, Sharing::Mps, Sharing::Exclusive, Sharing::Unstated])
}

fn allocation_policy() -> impl Strategy<Value = AllocationPolicy> {
    select(vec![
        AllocationPolicy::Unverified,
        AllocationPolicy::Distributed,
        AllocationPolicy::Packed,
        AllocationPolicy::Steered,
        AllocationPolicy::Steered,
    ])
}

fn pools() -> impl Strategy<Value = Vec<Pool>> {
    let pool = |resource: &'static str| {
        let known = (proptest::collection::vec(0u64..20, 1..4), 1u32..4, sharing(), allocation_policy(), 0..10);
        known.prop_map(move |(sizes, replicas, sharing, allocation_policy, known)| {
            let pool = pool(resource, &sizes, replicas, sharing, allocation_policy);
            let unknown = || Err(Unknown::ReportedNone { resource: pool.resource.clone() });
            Pool { contents: if known == 0 { unknown() } else { pool.contents.clone() }, ..pool }
        })
    };
    prop_oneof![
        4 => pool(GPU).prop_map(|pool| vec![pool]),
        1 => pool(OTHER).prop_map(|pool| vec![pool]),
        1 => (pool(GPU), pool(OTHER)).prop_map(|(a, b)| vec![a, b]),
        1 => Just(Vec::new()),
    ]
}

fn holders() -> impl Strategy<Value = Holder> {
    let amount = prop_oneof![
        6 => (0u64..12).prop_map(|request| Amount::Requested(mib(request))),
        1 => (0u64..8, 1u32..3).prop_map(|(declared, processes)| Amount::Declared { declared: mib(declared), processes }),
        1 => (1u64..3).prop_map(Amount::Slots),
    ];
    let named = select(vec![None, None, Some(0), Some(1)]);
    let parts = proptest::collection::vec((amount, named), 1..3);
    let gpus = select(vec![
        vec![(GPU, 1)],
        vec![(GPU, 1)],
        vec![(GPU, 2)],
        vec![(OTHER, 1)],
        vec![(GPU, 1), (OTHER, 1)],
        vec![],
    ]);
    (parts, gpus, 0i32..3, select(vec![None, None, Some(Moment(0)), Some(Moment(700_000))])).prop_map(
        |(parts, gpus, priority, starting)| {
            let requests = parts.iter().filter_map(|(amount, ..)| match amount {
                Amount::Requested(request) => Some(*request),
                Amount::Injected(_) | Amount::Declared { .. } | Amount::Slots(_) | Amount::Counted(_) => None,
            });
            Holder {
                name: PodName { namespace: "ml".into(), name: "llm".into() },
                request: Some(requests.sum()).filter(|request: &Vram| !request.is_zero()),
                parts: (0..)
                    .zip(parts)
                    .map(|(number, (amount, gpu))| Part {
                        container: format!("c{number}").into(),
                        gpu: gpu.map(GpuId::Index),
                        ..testing::part(amount)
                    })
                    .collect(),
                bound: None,
                annotated: true,
                gpus: gpus.into_iter().map(|(name, count)| (Resource(name.into()), count)).collect(),
                label_at_least: None,
                needs_label: false,
                priority,
                starting,
            }
        },
    )
}

/// A node: its pools, the pods that are seen on it, and its `GpuLedger`, if it has one.
///
/// The ledger consists of reserved pods, each with its GPU, and of the allocation policy that the agent reports.
type Described = (Vec<Pool>, Vec<Holder>, Option<(Vec<(Holder, Option<u32>)>, AllocationPolicy)>);

fn nodes() -> impl Strategy<Value = Vec<Described>> {
    let reserved = proptest::collection::vec((holders(), select(vec![None, Some(0), Some(1)])), 0..3);
    let node =
        (pools(), proptest::collection::vec(holders(), 0..4), proptest::option::of((reserved, allocation_policy())));
    proptest::collection::vec(node, 1..4)
}

/// Builds the cluster. The second reservation of each ledger belongs to the pod `me`.
fn build(nodes: &[Described], rules: Rules) -> Cluster {
    let mut cluster = Cluster::new(rules, BTreeSet::new());
    for (number, (pools, seen, shared)) in nodes.iter().enumerate() {
        let name = format!("n{number}");
        cluster.apply_node(&name, facts(pools.clone()));
        for (index, holder) in seen.iter().enumerate() {
            cluster.apply_pod(&uid(&format!("{name}-{index}")), &name, holder.clone());
        }
        let Some((reserved, allocation_policy)) = shared else { continue };
        let reservations = reserved.iter().enumerate().map(|(index, (holder, gpu))| {
            let uid = if index == 1 { uid("me") } else { uid(&format!("{name}-r{index}")) };
            let gpu = gpu.map(GpuId::Index);
            (uid, Reservation { holder: holder.clone(), gpu, state: State::Assumed, since: Moment(0) })
        });
        let inventory = Inventory { allocation_policy: *allocation_policy, ..Inventory::default() };
        let shared = LedgerContent { reservations: reservations.collect(), inventory: Some(inventory), fault: None };
        cluster.apply_ledger(&name, Some(shared));
    }
    cluster.tick(Moment(1_000_000));
    cluster
}

/// The binding guard's answer for one node.
fn chosen(cluster: &Cluster, uid: &PodUid, holder: &Holder, node: &str) -> Result<(), Unplaced> {
    match cluster.node(node) {
        None => Err(Unplaced::NoGpu { resource: holder.gpus.first().map(|(resource, _)| resource.clone()) }),
        Some(NodeView { facts, ledger, .. }) => ledger.choose(uid, holder, &facts.pools, cluster.rules()).map(|_| ()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn the_filter_answers_as_the_binding_guard_does(nodes in nodes(), pod in holders(), serialize in any::<bool>()) {
        let cluster = build(&nodes, rules(serialize));
        let me = uid("me");
        let filter = Filter::of(&cluster, &me, &pod);
        let guarded = pod.request.is_some() && pod.gpus.iter().any(|(resource, _)| cluster.guards(resource));
        for name in (0..nodes.len() + 1).map(|number| format!("n{number}")) {
            let expected = if guarded { chosen(&cluster, &me, &pod, &name) } else { Ok(()) };
            match (filter.node(&name), expected) {
                (Ok(()), Ok(())) => {}
                (Err(rejected), Err(unplaced)) => {
                    prop_assert_eq!(&rejected.why, &unplaced);
                    // Whole GPUs that are all taken do not lower the published amount: kube-scheduler counts them by
                    // their own resource.
                    let whole = matches!(&rejected.why, Unplaced::Shortfall { pool, .. } if pool.accounting == Accounting::Exclusive);
                    let short = matches!(rejected.why, Unplaced::Shortfall { .. } | Unplaced::Starting);
                    if rejected.published && short && !whole {
                        let free = cluster.node(&name).map(|NodeView { usage, .. }| usage.free);
                        prop_assert!(filter.demand > free, "{:?} beside {:?}", rejected, free);
                    }
                }
                (filtered, expected) => prop_assert!(false, "{}: {:?}, but the guard {:?}", name, filtered, expected),
            }
        }
    }
}
