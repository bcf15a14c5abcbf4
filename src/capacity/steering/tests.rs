use super::*;
use crate::capacity::steering::identify::ListedPod;
use crate::capacity::testing::{gpu, mib, uid};

fn name(text: &str) -> PodName {
    PodName { namespace: "ml".into(), name: text.into() }
}

fn pod(text: &str, demand: u64, reserved: &str, containers: &[&str]) -> KnownPod {
    let container = |name: &&str| GpuContainer { name: (*name).into(), role: Role::App, resource: gpu(), devices: 1 };
    KnownPod {
        uid: uid(text),
        name: name(text),
        containers: containers.iter().map(container).collect(),
        phase: Phase::Pending,
        deleted: false,
        demand: Some(mib(demand)),
        reserved: Some(GpuId::from(reserved)),
    }
}

/// A node with two GPUs.
fn node(pods: Vec<KnownPod>, free: [u64; 2]) -> KnownNode {
    let rooms = (0..).zip(["GPU-a", "GPU-b"]).zip(free);
    let rooms =
        rooms.map(|((index, uuid), free)| GpuRoom { uuid: uuid.into(), index: index.into(), room: mib(free).into() });
    KnownNode { pods, pools: Some(BTreeMap::from([(gpu(), rooms.collect())])) }
}

fn listing(pods: &[(&str, &[&str])]) -> Allocations {
    let listed = |(text, containers): &(&str, &[&str])| ListedPod {
        name: name(text),
        containers: containers.iter().map(|name| (*name).into()).collect(),
    };
    Allocations { listed: pods.iter().map(listed).collect(), recorded: BTreeSet::new() }
}

fn decide(steering: &Steering, node: &KnownNode, allocations: &Allocations, available: &[&str]) -> Decision {
    let available: Vec<String> = available.iter().map(|id| (*id).to_owned()).collect();
    let question = Question { available: &available, must_include: &[], size: 1 };
    match steering.decide(&gpu(), &question, node, allocations, Reading::Done) {
        Step::Decided(decision) => decision,
        Step::Read(names) => panic!("{names:?} have been read"),
    }
}

fn gpu_and_why(decision: &Decision) -> (&str, Option<Fallback>) {
    match &decision.choice {
        Choice::Devices { gpu, fallback, .. } => (gpu, *fallback),
        Choice::Stock(why) => ("", Some(*why)),
    }
}

#[test]
fn a_pod_that_was_moved_stays_together_and_takes_room_until_the_ledger_shows_it() {
    let mut steering = Steering::default();
    let moved = pod("moved", 6_000, "GPU-a", &["first", "second"]);
    let mut node = node(vec![moved, pod("next", 6_000, "GPU-a", &["main"])], [0, 10_000]);
    let first = decide(&steering, &node, &listing(&[("moved", &[])]), &["GPU-b::0", "GPU-b::1"]);
    assert_eq!(gpu_and_why(&first), ("GPU-b", Some(Fallback::ReservedFull)));
    steering.remember(&first);

    // A replica of the reserved GPU is free again.
    let second = decide(&steering, &node, &listing(&[("moved", &["first"])]), &["GPU-a::0", "GPU-b::1"]);
    assert_eq!(gpu_and_why(&second), ("GPU-b", None));
    steering.remember(&second);

    // 6,000 of the 10,000 MiB are taken by the pod that was moved.
    let both: &[&str] = &["first", "second"];
    let next = decide(&steering, &node, &listing(&[("moved", both), ("next", &[])]), &["GPU-b::2"]);
    assert_eq!(gpu_and_why(&next), ("GPU-b", Some(Fallback::NoRoom)));
    node.pods[0].reserved = Some(GpuId::from("GPU-b"));
    let next = decide(&steering, &node, &listing(&[("moved", both), ("next", &[])]), &["GPU-b::2"]);
    assert_eq!(gpu_and_why(&next), ("GPU-b", Some(Fallback::ReservedFull)), "the rooms are those of the ledger");

    node.pods.remove(0);
    steering.retain(&node);
    assert!(steering.answers.is_empty());
}

#[test]
fn an_included_device_decides_the_gpu() {
    // An init container was given GPU b, and its device is used again by the app container.
    let steering = Steering::default();
    let node = node(vec![pod("p", 1, "GPU-a", &["main"])], [9, 9]);
    let available: Vec<String> = ["GPU-a::0", "GPU-b::0", "GPU-b::1"].map(str::to_owned).into();
    let must_include = ["GPU-b::1".to_owned()];
    let question = Question { available: &available, must_include: &must_include, size: 2 };
    let step = steering.decide(&gpu(), &question, &node, &listing(&[("p", &[])]), Reading::Due);
    let Step::Decided(decision) = step else { panic!("{step:?}") };
    assert_eq!(gpu_and_why(&decision), ("GPU-b", None));
    assert_eq!(decision.wanted, Some(GpuId::from("GPU-b")));
}

#[test]
fn a_node_that_is_not_read_yet_and_a_resource_that_is_not_guarded_are_two_reasons() {
    let steering = Steering::default();
    let unread = KnownNode { pools: None, ..node(Vec::new(), [9, 9]) };
    let decision = decide(&steering, &unread, &listing(&[]), &["GPU-a::0"]);
    assert_eq!(decision.choice, Choice::Stock(Fallback::LedgerUnknown));
    let unguarded = KnownNode { pools: Some(BTreeMap::new()), ..unread };
    let decision = decide(&steering, &unguarded, &listing(&[]), &["GPU-a::0"]);
    assert_eq!(decision.choice, Choice::Stock(Fallback::Unguarded));
}

#[test]
fn a_pod_that_nobody_knows_is_read_once() {
    let steering = Steering::default();
    let node = node(Vec::new(), [1, 9]);
    let available = ["GPU-a::0".to_owned(), "GPU-b::0".to_owned()];
    let question = Question { available: &available, must_include: &[], size: 1 };
    let listing = listing(&[("static-node-1", &[])]);
    let step = steering.decide(&gpu(), &question, &node, &listing, Reading::Due);
    assert_eq!(step, Step::Read(vec![name("static-node-1")]));
    assert_eq!(
        gpu_and_why(&decide(&steering, &node, &listing, &["GPU-a::0", "GPU-b::0"])),
        ("GPU-b", Some(Fallback::PodNotFound))
    );
}

#[test]
fn every_reason_has_a_name_of_its_own() {
    let labels: BTreeSet<&str> = Fallback::ALL.iter().map(|why| why.label()).collect();
    assert_eq!(labels.len(), Fallback::ALL.len());
    assert!(Fallback::ALL.iter().all(|why| why.label() == format!("{why:?}")));
    assert!(Fallback::ALL.is_sorted());
}

#[test]
fn the_memory_of_answers_is_bounded() {
    let mut steering = Steering::default();
    let decision = |n: usize| Decision {
        caller: Some(CallerName { uid: uid(&n.to_string()), pod: name("p"), container: "main".into() }),
        wanted: None,
        choice: Choice::Devices { ids: Vec::new(), gpu: "GPU-a".into(), fallback: None },
    };
    (0..=MAX_ANSWERS).for_each(|n| steering.remember(&decision(n)));
    assert_eq!(steering.answers.len(), MAX_ANSWERS);
    assert_eq!(steering.answers.last().map(|answer| answer.pod.clone()), Some(uid(&MAX_ANSWERS.to_string())));
    assert_eq!(steering.answers[0].pod, uid("1"), "the oldest is forgotten first");
}

#[test]
fn a_pod_without_a_reservation_is_read_once_because_the_watch_may_be_behind() {
    let steering = Steering::default();
    let unknown = KnownPod { reserved: None, ..pod("p", 1, "GPU-a", &["main"]) };
    let node = node(vec![unknown], [5, 9]);
    let available = ["GPU-a::0".to_owned(), "GPU-b::0".to_owned()];
    let question = Question { available: &available, must_include: &[], size: 1 };
    let listing = listing(&[("p", &[])]);
    assert_eq!(steering.decide(&gpu(), &question, &node, &listing, Reading::Due), Step::Read(vec![name("p")]));
    let decision = decide(&steering, &node, &listing, &["GPU-a::0", "GPU-b::0"]);
    assert_eq!(gpu_and_why(&decision), ("GPU-a", Some(Fallback::NotReserved)), "the smallest room that is enough");
}

#[test]
fn callers_that_are_not_known_are_spread_because_nobody_tells_what_they_take() {
    let mut steering = Steering::default();
    let node = node(Vec::new(), [8, 9]);
    let mut given = Vec::new();
    for _ in 0..4 {
        let decision = decide(&steering, &node, &listing(&[("nobody", &[])]), &["GPU-a::0", "GPU-b::0"]);
        steering.remember(&decision);
        given.push(gpu_and_why(&decision).0.to_owned());
    }
    assert_eq!(given, ["GPU-b", "GPU-a", "GPU-b", "GPU-a"]);
    steering.retain(&node);
    assert!(steering.unknown.is_empty(), "the view is a new one");
}
