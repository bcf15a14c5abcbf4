//! The checker on handmade states: it finds each kind of violation, and nothing in a correct state.

use serde_json::{Value, json};

use super::*;
use crate::chaos::hardware::{HANDOUT, SIZES};

const ALLOCATABLE: u64 = 24_576 - 256;

/// A node with four GPUs of 24 GiB and four replicas each, or with one such GPU under single allocation policy.
fn node(allocation_policy: AllocationPolicy, published: &str) -> Node {
    let count = if allocation_policy == AllocationPolicy::Single { "1" } else { "4" };
    let labels = json!({
        (HANDOUT): allocation_policy.name(), "nvidia.com/gpu.count": count, "nvidia.com/gpu.memory": "24576",
        "nvidia.com/gpu.replicas": "4", "zone": "a",
    });
    let status = json!({"allocatable": {"vramguard.dev/vram": published}});
    serde_json::from_value(json!({"metadata": {"name": "n", "labels": labels}, "status": status})).expect("a node")
}

/// A pod with one GPU container; `node` and `gpu` may be empty.
fn pod(name: &str, mib: u64, node: &str, gpu: &str) -> Pod {
    let quantity = format!("{mib}Mi");
    let resources = json!({"requests": {"nvidia.com/gpu": "1", "vramguard.dev/vram": quantity}});
    let mut annotations = json!({"vramguard.dev/vram": format!("{}Mi", mib.saturating_sub(720))});
    let container = json!({"name": "main", "resources": resources});
    if !gpu.is_empty() {
        annotations["vramguard.dev/gpu.main"] = json!(gpu);
    }
    let mut spec = json!({"containers": [container]});
    if !node.is_empty() {
        spec["nodeName"] = json!(node);
    }
    let metadata = json!({"name": name, "namespace": "ml", "uid": name, "annotations": annotations});
    serde_json::from_value(json!({"metadata": metadata, "spec": spec})).expect("a pod")
}

fn with(mut pod: Pod, change: impl FnOnce(&mut Value)) -> Pod {
    let mut value = serde_json::to_value(&pod).expect("a pod is JSON");
    change(&mut value);
    pod = serde_json::from_value(value).expect("still a pod");
    pod
}

/// A checker that has seen a node and then these pods, each at its own version.
fn seen(allocation_policy: AllocationPolicy, pods: &[Pod]) -> Checker {
    let mut checker = Checker::default();
    checker.see_nodes(Seen::Now(node(allocation_policy, "1000Gi"), 1), 0);
    for (version, pod) in (2..).zip(pods) {
        checker.see_pods(Seen::Now(pod.clone(), version), version);
    }
    checker
}

fn kinds(checker: &Checker) -> Vec<Kind> {
    checker.findings().iter().map(|finding| finding.kind).collect()
}

fn placed(checker: &mut Checker, pod: &str, gpu: usize, version: u64) {
    let placement = Placement { version, uid: pod.into(), container: "main".into(), gpu: uuid("n", gpu) };
    checker.place(placement, version);
}

#[test]
fn a_full_gpu_is_right_and_one_mib_more_is_overcommitted() {
    let mut checker = seen(AllocationPolicy::Single, &[pod("a", ALLOCATABLE - 1000, "n", ""), pod("b", 1000, "n", "")]);
    assert_eq!(checker.findings(), []);
    checker.see_pods(Seen::Now(pod("c", 721, "n", ""), 9), 500);
    let [finding] = checker.findings() else { panic!("{:?}", checker.findings()) };
    assert_eq!((finding.kind, finding.gpu.as_str()), (Kind::Overcommitted, uuid("n", 0).as_str()));
    assert_eq!((finding.held_mib, finding.limit_mib, finding.from), (ALLOCATABLE + 721, ALLOCATABLE, (9, 500)));
    assert_eq!(finding.pods.len(), 3);
    assert_eq!(checker.open().count(), 1);

    checker.see_pods(Seen::Gone(pod("a", ALLOCATABLE - 1000, "n", ""), 10), 700);
    assert_eq!(checker.open().count(), 0);
    assert_eq!((checker.findings()[0].to, checker.findings()[0].lasted(9999)), (Some((10, 700)), 200));
}

#[test]
fn a_pod_that_has_ended_holds_nothing() {
    let ended = with(pod("a", 24_000, "n", ""), |pod| pod["status"] = json!({"phase": "Succeeded"}));
    let checker = seen(AllocationPolicy::Single, &[pod("a", 24_000, "n", ""), ended, pod("b", 24_000, "n", "")]);
    assert_eq!(checker.findings(), []);
    let leaving = with(pod("a", 24_000, "n", ""), |pod| {
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    });
    let checker = seen(AllocationPolicy::Single, &[leaving, pod("b", 24_000, "n", "")]);
    assert_eq!(kinds(&checker), [Kind::Overcommitted], "one that is being deleted still runs");
}

#[test]
fn steered_pods_are_added_up_by_their_annotation() {
    let (first, second) = (uuid("n", 0), uuid("n", 1));
    let pods = [pod("a", 20_000, "n", &first), pod("b", 20_000, "n", &second)];
    assert_eq!(seen(AllocationPolicy::Steered, &pods).findings(), []);
    let pods = [pod("a", 20_000, "n", &first), pod("b", 20_000, "n", &first)];
    let checker = seen(AllocationPolicy::Steered, &pods);
    assert_eq!(kinds(&checker), [Kind::Overcommitted]);
    assert_eq!(checker.findings()[0].gpu, first);
}

#[test]
fn a_steered_pod_without_a_gpu_of_its_node_is_found() {
    let unnamed = with(pod("a", 1000, "n", "GPU-x"), |pod| {
        pod["metadata"]["annotations"].as_object_mut().expect("a map").remove("vramguard.dev/gpu.main");
    });
    assert_eq!(kinds(&seen(AllocationPolicy::Steered, &[unnamed])), [Kind::NoGpu]);
    assert_eq!(kinds(&seen(AllocationPolicy::Steered, &[pod("a", 1000, "n", "GPU-of-another-node")])), [Kind::NoGpu]);
    let mut checker = seen(AllocationPolicy::Steered, &[pod("a", 1000, "n", "GPU-of-another-node")]);
    checker.see_pods(Seen::Now(pod("a", 1000, "n", &uuid("n", 3)), 9), 9);
    assert_eq!(checker.open().count(), 0, "filled in later");
}

#[test]
fn of_unverified_gpus_the_worst_is_the_largest_pods_on_the_smallest_one() {
    let quarters: Vec<Pod> = (0..16).map(|n| pod(&format!("p{n}"), ALLOCATABLE / 4, "n", "")).collect();
    assert_eq!(seen(AllocationPolicy::Unverified, &quarters).findings(), []);
    let mut one_more = quarters;
    one_more[7] = pod("p7", ALLOCATABLE / 4 + 1, "n", "");
    let checker = seen(AllocationPolicy::Unverified, &one_more);
    assert_eq!(kinds(&checker), [Kind::Overcommitted]);
    assert_eq!(checker.findings()[0].gpu, "worst");
    // Two large pods would fit on a GPU each, but they may get the same one.
    let large = [pod("a", 20_000, "n", ""), pod("b", 20_000, "n", "")];
    assert_eq!(kinds(&seen(AllocationPolicy::Unverified, &large)), [Kind::Overcommitted]);
}

#[test]
fn what_the_plugin_chose_counts_from_when_it_chose() {
    let mut checker = seen(AllocationPolicy::Distributed, &[pod("a", 20_000, "n", ""), pod("b", 20_000, "n", "")]);
    placed(&mut checker, "a", 2, 3);
    placed(&mut checker, "b", 1, 3);
    assert_eq!(checker.findings(), []);
    checker.see_pods(Seen::Now(pod("c", 20_000, "n", ""), 4), 4);
    placed(&mut checker, "c", 2, 4);
    assert_eq!(kinds(&checker), [Kind::Overcommitted]);
    assert_eq!(checker.findings()[0].gpu, uuid("n", 2));
}

/// The node has its own watch of pods, so a placement may be for a version that the checker has not seen.
///
/// Without a wait for that version, a deleted pod would count together with the pod that got its replica.
#[test]
fn a_choice_of_a_later_version_waits_for_it() {
    let (a, b) = (pod("a", 20_000, "n", ""), pod("b", 20_000, "n", ""));
    let mut checker = seen(AllocationPolicy::Packed, &[a.clone(), b]);
    placed(&mut checker, "a", 0, 2);
    placed(&mut checker, "b", 0, 4);
    assert_eq!(checker.findings(), [], "version 4, in which the first one went, is not here yet");
    checker.see_pods(Seen::Gone(a, 4), 4);
    assert_eq!(checker.findings(), []);
    checker.see_pods(Seen::Now(pod("c", 20_000, "n", ""), 5), 5);
    placed(&mut checker, "c", 0, 5);
    assert_eq!(kinds(&checker), [Kind::Overcommitted], "and then it counts");
}

#[test]
fn gpus_of_two_sizes_are_each_held_to_their_own() {
    let mut mixed = node(AllocationPolicy::Steered, "1000Gi");
    mixed.metadata.labels.as_mut().expect("labels").insert(SIZES.into(), "24576.49152".into());
    for (gpu, expected) in [(1, vec![]), (0, vec![Kind::Overcommitted])] {
        let mut checker = Checker::default();
        checker.see_nodes(Seen::Now(mixed.clone(), 1), 0);
        checker.see_pods(Seen::Now(pod("a", 40_000, "n", &uuid("n", gpu)), 2), 0);
        assert_eq!(kinds(&checker), expected);
    }
    assert_eq!((allocatable(49_152), allocatable(24_576)), (49_152 - 492, 24_576 - 256));
}

#[test]
fn a_node_that_publishes_less_than_is_bound_is_found_until_it_is_repaired() {
    let mut checker = Checker::default();
    checker.see_nodes(Seen::Now(node(AllocationPolicy::Unverified, "5000Mi"), 1), 0);
    checker.see_pods(Seen::Now(pod("a", 5000, "n", ""), 2), 0);
    assert_eq!(checker.findings(), []);
    checker.see_pods(Seen::Now(pod("b", 1000, "n", ""), 3), 100);
    assert_eq!(kinds(&checker), [Kind::BelowBound]);
    checker.see_nodes(Seen::Now(node(AllocationPolicy::Unverified, "6000Mi"), 4), 350);
    assert_eq!((checker.open().count(), checker.findings()[0].lasted(9999)), (0, 250));
}

#[test]
fn a_pod_that_came_in_without_its_request_is_found() {
    let bare = with(pod("a", 1000, "", ""), |pod| {
        let requests = &mut pod["spec"]["containers"][0]["resources"]["requests"];
        requests.as_object_mut().expect("a map").remove("vramguard.dev/vram");
    });
    assert_eq!(kinds(&seen(AllocationPolicy::Single, &[bare])), [Kind::WrongRequest]);
    let less = with(pod("a", 1000, "", ""), |pod| {
        pod["spec"]["containers"][0]["resources"]["requests"]["vramguard.dev/vram"] = json!("900Mi");
    });
    assert_eq!(kinds(&seen(AllocationPolicy::Single, &[less])), [Kind::WrongRequest]);
    let plain = json!({"metadata": {"name": "web", "namespace": "ml", "uid": "web"}, "spec": {"containers": [{"name": "main"}]}});
    let plain = serde_json::from_value(plain).expect("a pod");
    assert_eq!(seen(AllocationPolicy::Single, &[plain]).findings(), []);
}

#[test]
fn pods_that_a_relist_does_not_show_are_gone() {
    let (a, b) = (pod("a", 20_000, "n", ""), pod("b", 20_000, "n", ""));
    let mut checker = seen(AllocationPolicy::Single, &[a]);
    checker.see_pods(Seen::All(vec![b], 9), 9);
    assert_eq!((checker.findings(), checker.counts()), (&[][..], (1, 0)));
}

#[test]
fn a_pod_that_waits_although_it_fits_is_found_under_every_handout() {
    let waiting = |mib: u64| pod("waits", mib, "", "");
    let fitting = |checker: &Checker| checker.fitting().len();

    let full = pod("a", 20_000, "n", "");
    assert_eq!(fitting(&seen(AllocationPolicy::Single, &[full.clone(), waiting(4320)])), 1);
    assert_eq!(fitting(&seen(AllocationPolicy::Single, &[full, waiting(4321)])), 0);

    let on = |gpu: usize, mib: u64| pod(&format!("on-{gpu}"), mib, "n", &uuid("n", gpu));
    let known = [on(0, 20_000), on(1, 21_000), on(2, 22_000), on(3, 23_000)];
    let and = |pod: Pod| [&known[..], &[pod]].concat();
    assert_eq!(fitting(&seen(AllocationPolicy::Steered, &and(waiting(4320)))), 1);
    assert_eq!(fitting(&seen(AllocationPolicy::Steered, &and(waiting(4321)))), 0);

    assert_eq!(fitting(&seen(AllocationPolicy::Unverified, &[waiting(ALLOCATABLE / 4)])), 1);
    assert_eq!(fitting(&seen(AllocationPolicy::Unverified, &[waiting(ALLOCATABLE / 4 + 1)])), 0, "more than one slot");

    // If distributed, the next container gets an empty GPU. If packed, it may get any, and counts as a slot.
    for (allocation_policy, fits) in [(AllocationPolicy::Distributed, 1), (AllocationPolicy::Packed, 0)] {
        let mut checker = seen(allocation_policy, &[pod("a", 20_000, "n", ""), waiting(8000)]);
        assert_eq!(fitting(&checker), 0, "where the first one is nobody knows yet");
        placed(&mut checker, "a", 1, 3);
        assert_eq!(fitting(&checker), fits, "{allocation_policy:?}");
    }
    let mut checker = seen(AllocationPolicy::Packed, &[pod("a", 5000, "n", ""), waiting(ALLOCATABLE / 4)]);
    placed(&mut checker, "a", 1, 3);
    assert_eq!(fitting(&checker), 1, "a slot");
}

#[test]
fn a_pod_fits_only_where_it_may_land_and_a_replica_is_left() {
    let other_zone = with(pod("waits", 1000, "", ""), |pod| pod["spec"]["nodeSelector"] = json!({"zone": "b"}));
    let here = with(pod("waits", 1000, "", ""), |pod| pod["spec"]["nodeSelector"] = json!({"zone": "a"}));
    assert_eq!(seen(AllocationPolicy::Single, &[other_zone]).fitting(), []);
    assert_eq!(seen(AllocationPolicy::Single, std::slice::from_ref(&here)).fitting().len(), 1);
    let mut four: Vec<Pod> = (0..4).map(|n| pod(&format!("p{n}"), 1000, "n", "")).collect();
    four.push(here);
    assert_eq!(seen(AllocationPolicy::Single, &four).fitting(), [], "all four replicas are taken");
}
