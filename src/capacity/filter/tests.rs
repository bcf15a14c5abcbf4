//! The filter against the binding guard's own answer, on random small clusters.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::capacity::cluster::NodeFacts;
use crate::capacity::demand::Role;
use crate::capacity::gpu::{
    Accounting, Contents, DriverReserve, Gpu, GpuId, Handout, Headroom, Overcommit, Rules, Sharing, Unknown,
};
use crate::capacity::ledger::{Amount, Part, Shared};
use crate::capacity::moment::Moment;
use crate::capacity::pod::PodName;
use crate::capacity::report::Report;
use crate::capacity::reservation::{Reservation, Reservations, State};

const GPU: &str = "nvidia.com/gpu";
const OTHER: &str = "nvidia.com/gpu.shared";

fn mib(mib: u64) -> Vram {
    Vram::from_mib(mib)
}

fn rules(serialize_per_gpu: bool) -> Rules {
    Rules {
        driver_reserve: DriverReserve::Amount(Vram::ZERO),
        per_process_overhead: mib(1),
        headroom: Headroom { percent: 0, minimum: Vram::ZERO },
        overcommit: Overcommit::NONE,
        serialize_per_gpu,
        several_schedulers: false,
    }
}

fn uid(text: &str) -> PodUid {
    PodUid::from(text.to_owned())
}

fn pool(resource: &str, sizes: &[u64], replicas: u32, sharing: Sharing, handout: Handout) -> Pool {
    let gpus = (0..).zip(sizes).map(|(index, &size)| Gpu::of_size(index, mib(size))).collect();
    let replicas = NonZeroU32::new(replicas).unwrap();
    Pool { resource: Resource(resource.into()), sharing, contents: Ok(Contents { gpus, replicas }), handout }
}

fn facts(pools: Vec<Pool>) -> NodeFacts {
    NodeFacts { pools, ..NodeFacts::default() }
}

fn part(amount: Amount, pinned: bool) -> Part {
    Part { container: "main".into(), role: Role::App, amount, pinned, gpu: None }
}

/// A pod with one container that requests so much.
fn one(request: u64, priority: i32) -> Holder {
    Holder {
        name: PodName { namespace: "ml".into(), name: "llm".into() },
        request: Some(mib(request)),
        parts: vec![part(Amount::Requested(mib(request)), false)].into(),
        gpus: vec![(Resource(GPU.into()), 1)].into(),
        label_at_least: None,
        priority,
        starting: None,
        bound: None,
        annotated: true,
    }
}

fn time_sliced(sizes: &[u64]) -> NodeFacts {
    facts(vec![pool(GPU, sizes, 4, Sharing::TimeSlicing, Handout::Unverified)])
}

fn cluster(nodes: impl IntoIterator<Item = (&'static str, NodeFacts)>) -> Cluster {
    let mut cluster = Cluster::new(rules(false), BTreeSet::new());
    for (name, facts) in nodes {
        cluster.apply_node(name, facts);
    }
    cluster
}

fn ask<'p>(cluster: &Cluster, holder: &'p Holder, node: &str) -> Result<(), Rejected<'p>> {
    let uid = uid("me");
    Filter::of(cluster, &uid, holder).node(node)
}

fn shortfall(demand: u64, accounting: Accounting) -> Unfit<'static> {
    Unfit::Shortfall { demand: mib(demand), accounting }
}

#[test]
fn each_node_answers_for_itself() {
    let several = time_sliced(&[24_000, 24_000]);
    let mut cluster = cluster([("free", time_sliced(&[24_000])), ("full", time_sliced(&[24_000])), ("slots", several)]);
    cluster.apply_pod(&uid("a"), "full", one(20_000, 0));
    let pod = one(8000, 0);
    let refused = |why| Err(Rejected { why, published: true });
    assert_eq!(ask(&cluster, &pod, "free"), Ok(()));
    assert_eq!(ask(&cluster, &pod, "full"), refused(shortfall(8000, Accounting::Exact)));
    assert_eq!(ask(&cluster, &pod, "slots"), refused(shortfall(8000, Accounting::Slot)));
    let resource = Resource(GPU.into());
    assert_eq!(ask(&cluster, &pod, "nobody"), refused(Unfit::NoGpu { resource: Some(&resource) }));
}

#[test]
fn a_pod_without_a_share_in_a_guarded_gpu_passes_everywhere() {
    let whole = facts(vec![pool(OTHER, &[24_000], 1, Sharing::Exclusive, Handout::Unverified)]);
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
    cluster.apply_ledger("n", Some(Shared { reservations, report: None, fault: None }));
    assert_eq!(ask(&cluster, &pod, "n"), Ok(()));
    let another = uid("another");
    assert!(Filter::of(&cluster, &another, &pod).node("n").is_err());
}

/// kube-scheduler would choose one more node at each attempt, and be refused at each bind.
#[test]
fn a_pod_that_is_promised_enough_places_passes_on_those_alone() {
    let names = ["a", "b", "c", "d", "e"];
    let mut cluster = cluster(names.map(|name| (name, time_sliced(&[24_000]))));
    let pod = one(8000, 0);
    let promise = Reservation { holder: pod.clone(), gpu: None, state: State::Assumed, since: Moment(0) };
    for (number, name) in names[..binding::MAX_PLACES].iter().enumerate() {
        assert_eq!(ask(&cluster, &pod, "e"), Ok(()), "with {number} places");
        let reservations = [(uid("me"), promise.clone())].into_iter().collect();
        cluster.apply_ledger(name, Some(Shared { reservations, report: None, fault: None }));
    }
    assert_eq!(ask(&cluster, &pod, "a"), Ok(()));
    let why = Unfit::TooManyPlaces { places: binding::MAX_PLACES };
    for name in ["e", "nobody"] {
        assert_eq!(ask(&cluster, &pod, name), Err(Rejected { why, published: false }));
    }
}

#[test]
fn what_a_node_does_not_publish_is_no_surprise() {
    let pinned = facts(vec![pool(GPU, &[24_000, 24_000], 4, Sharing::TimeSlicing, Handout::Unverified)]);
    let mut cluster = cluster([("pinned", pinned), ("slots", time_sliced(&[24_000, 24_000]))]);
    let report = Report { handout: Handout::Pinned, ..Report::default() };
    cluster.apply_ledger(
        "pinned",
        Some(Shared { reservations: Reservations::default(), report: Some(report), fault: None }),
    );
    let on_first = Part { gpu: Some(GpuId::Index(0)), ..part(Amount::Requested(mib(20_000)), true) };
    cluster.apply_pod(&uid("a"), "pinned", Holder { parts: vec![on_first].into(), ..one(20_000, 0) });

    let refused = |why, published| Err(Rejected { why, published });
    let pinned =
        |request| Holder { parts: vec![part(Amount::Requested(mib(request)), true)].into(), ..one(request, 0) };
    let (small, large) = (pinned(13_000), pinned(25_000));
    assert_eq!(ask(&cluster, &small, "pinned"), Ok(()), "on the second GPU");
    assert_eq!(ask(&cluster, &large, "pinned"), refused(shortfall(25_000, Accounting::Pinned), true));
    // It may get the first one, which the number of the node does not say.
    assert_eq!(ask(&cluster, &one(13_000, 0), "pinned"), refused(shortfall(13_000, Accounting::Pinned), false));
    assert_eq!(ask(&cluster, &pinned(6000), "slots"), refused(Unfit::PinUnverified, false));
}

fn sharing() -> impl Strategy<Value = Sharing> {
    select(vec![Sharing::TimeSlicing, Sharing::TimeSlicing, Sharing::Mps, Sharing::Exclusive, Sharing::Unstated])
}

fn handout() -> impl Strategy<Value = Handout> {
    select(vec![Handout::Unverified, Handout::Distributed, Handout::Packed, Handout::Pinned, Handout::Pinned])
}

fn pools() -> impl Strategy<Value = Vec<Pool>> {
    let pool = |resource: &'static str| {
        let known = (proptest::collection::vec(0u64..20, 1..4), 1u32..4, sharing(), handout(), 0..10);
        known.prop_map(move |(sizes, replicas, sharing, handout, known)| {
            let pool = pool(resource, &sizes, replicas, sharing, handout);
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
    let parts = proptest::collection::vec((amount, any::<bool>(), named), 1..3);
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
                Amount::Declared { .. } | Amount::Slots(_) | Amount::Counted(_) => None,
            });
            Holder {
                name: PodName { namespace: "ml".into(), name: "llm".into() },
                request: Some(requests.sum()).filter(|request: &Vram| !request.is_zero()),
                parts: (0..)
                    .zip(parts)
                    .map(|(number, (amount, pinned, gpu))| Part {
                        container: format!("c{number}").into(),
                        gpu: gpu.map(GpuId::Index),
                        ..part(amount, pinned)
                    })
                    .collect(),
                bound: None,
                annotated: true,
                gpus: gpus.into_iter().map(|(name, count)| (Resource(name.into()), count)).collect(),
                label_at_least: None,
                priority,
                starting,
            }
        },
    )
}

/// A node, who is seen on it, and what its `GpuLedger` says, if it has one: who was promised a place on which GPU.
type Described = (Vec<Pool>, Vec<Holder>, Option<(Vec<(Holder, Option<u32>)>, Handout)>);

fn nodes() -> impl Strategy<Value = Vec<Described>> {
    let reserved = proptest::collection::vec((holders(), select(vec![None, Some(0), Some(1)])), 0..3);
    let node = (pools(), proptest::collection::vec(holders(), 0..4), proptest::option::of((reserved, handout())));
    proptest::collection::vec(node, 1..4)
}

/// `me` is the second promise of each ledger.
fn build(nodes: &[Described], rules: Rules) -> Cluster {
    let mut cluster = Cluster::new(rules, BTreeSet::new());
    for (number, (pools, seen, shared)) in nodes.iter().enumerate() {
        let name = format!("n{number}");
        cluster.apply_node(&name, facts(pools.clone()));
        for (index, holder) in seen.iter().enumerate() {
            cluster.apply_pod(&uid(&format!("{name}-{index}")), &name, holder.clone());
        }
        let Some((reserved, handout)) = shared else { continue };
        let reservations = reserved.iter().enumerate().map(|(index, (holder, gpu))| {
            let uid = if index == 1 { uid("me") } else { uid(&format!("{name}-r{index}")) };
            let gpu = gpu.map(GpuId::Index);
            (uid, Reservation { holder: holder.clone(), gpu, state: State::Assumed, since: Moment(0) })
        });
        let report = Report { handout: *handout, gpus: BTreeMap::new(), given: BTreeMap::new() };
        let shared = Shared { reservations: reservations.collect(), report: Some(report), fault: None };
        cluster.apply_ledger(&name, Some(shared));
    }
    cluster.tick(Moment(1_000_000));
    cluster
}

/// What the binding guard would say.
fn chosen(cluster: &Cluster, uid: &PodUid, holder: &Holder, node: &str) -> Result<(), Unplaced> {
    match cluster.node(node) {
        None => Err(Unplaced::NoGpu { resource: holder.gpus.first().map(|(resource, _)| resource.clone()) }),
        Some((facts, ledger, _)) => ledger.choose(uid, holder, &facts.pools, cluster.rules()).map(|_| ()),
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
                    prop_assert_eq!(rejected.why, filter.unfit(&unplaced));
                    // Whole GPUs that are all taken do not lower the number of their node: their own count says so.
                    let whole = matches!(rejected.why, Unfit::Shortfall { accounting: Accounting::Exclusive, .. });
                    let short = matches!(rejected.why, Unfit::Shortfall { .. } | Unfit::Starting);
                    if rejected.published && short && !whole {
                        let placeable = cluster.node(&name).map(|(_, _, standing)| standing.placeable);
                        prop_assert!(filter.demand > placeable, "{:?} beside {:?}", rejected, placeable);
                    }
                }
                (filtered, expected) => prop_assert!(false, "{}: {:?}, but the guard {:?}", name, filtered, expected),
            }
        }
    }
}
