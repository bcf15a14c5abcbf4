use proptest::prelude::*;

use super::*;
use crate::capacity::pod::demand::Role;
use crate::capacity::testing::{gpu, uid};

fn name(text: &str) -> PodName {
    PodName { namespace: "ml".into(), name: text.into() }
}

fn container(name: &str, role: Role, devices: u64) -> GpuContainer {
    GpuContainer { name: name.into(), role, resource: gpu(), devices }
}

/// A pending pod with one GPU container.
fn pod(text: &str) -> KnownPod {
    KnownPod {
        uid: uid(text),
        name: name(text),
        containers: vec![container("main", Role::App, 1)],
        phase: Phase::Pending,
        deleted: false,
        demand: None,
        reserved: None,
    }
}

fn listed(text: &str, with_device: &[&str]) -> ListedPod {
    ListedPod { name: name(text), containers: with_device.iter().map(|name| (*name).into()).collect() }
}

fn recorded(entries: &[(&str, &str)]) -> BTreeSet<(PodUid, Name)> {
    entries.iter().map(|(pod, container)| (uid(pod), (*container).into())).collect()
}

/// `pod/container` of the caller, or what else was found.
fn who(
    pods: &[KnownPod],
    listed: Vec<ListedPod>,
    record: &[(&str, &str)],
    size: usize,
    answered: &[(&str, &str)],
) -> String {
    let allocations = Allocations { listed, recorded: recorded(record) };
    match identify(&gpu(), size, &allocations, pods, &recorded(answered)) {
        Identity::Caller(Caller { pod, container }) => format!("{}/{}", pod.uid, container.name),
        other => format!("{other:?}").split('(').next().unwrap_or_default().to_owned(),
    }
}

#[test]
fn the_only_pod_without_a_device_asks_whatever_else_is_known_of_it() {
    // It was terminating when the kubelet restarted: it has started, its container was answered, and it is asked for
    // again.
    let again = KnownPod { phase: Phase::Started, deleted: true, ..pod("z") };
    let listing = vec![listed("a", &["main"]), listed("z", &[])];
    assert_eq!(who(&[pod("a"), again], listing, &[("a", "main")], 7, &[("z", "main")]), "z/main");
}

#[test]
fn of_several_candidates_the_one_asks_that_none_of_the_filters_drops() {
    let two = |first: KnownPod| [first, pod("b")];
    let listing = || vec![listed("a", &[]), listed("b", &[])];
    let ended = KnownPod { phase: Phase::Ended, ..pod("a") };
    let started = KnownPod { phase: Phase::Started, ..pod("a") };
    let larger = KnownPod { containers: vec![container("main", Role::App, 2)], ..pod("a") };
    let deleted = KnownPod { deleted: true, ..pod("a") };
    for first in [ended, started, larger, deleted] {
        assert_eq!(who(&two(first), listing(), &[], 1, &[]), "b/main");
    }
    assert_eq!(who(&two(pod("a")), listing(), &[], 1, &[("a", "main")]), "b/main");
    assert_eq!(who(&two(pod("a")), listing(), &[], 1, &[]), "Several");
}

#[test]
fn a_filter_that_would_drop_all_candidates_drops_none() {
    // After the loss of the checkpoint all running pods are candidates again.
    let started = |text| KnownPod { phase: Phase::Started, ..pod(text) };
    let listing = vec![listed("a", &[]), listed("b", &[])];
    assert_eq!(who(&[started("a"), started("b")], listing, &[], 1, &[("a", "main")]), "b/main");
}

#[test]
fn containers_are_asked_for_in_start_order() {
    let containers = vec![
        container("fetch", Role::Init, 1),
        container("proxy", Role::Sidecar, 1),
        container("main", Role::App, 1),
        container("second", Role::App, 1),
    ];
    let pods = [KnownPod { containers, ..pod("p") }];
    for (with_device, record, expected) in [
        (&[][..], &[][..], "p/fetch"),
        // The list does not contain one-shot init containers.
        (&[], &[("p", "fetch")], "p/proxy"),
        (&["proxy"], &[("p", "fetch"), ("p", "proxy")], "p/main"),
        (&["proxy", "main"], &[("p", "fetch"), ("p", "proxy"), ("p", "main")], "p/second"),
        (&["proxy", "main", "second"], &[("p", "fetch")], "None"),
    ] {
        assert_eq!(who(&pods, vec![listed("p", with_device)], record, 1, &[]), expected);
    }
}

#[test]
fn a_name_that_was_created_again_means_the_pod_without_a_device() {
    let old = KnownPod { deleted: true, phase: Phase::Started, ..pod("old") };
    let pods = [KnownPod { name: name("p"), ..old }, KnownPod { name: name("p"), ..pod("new") }];
    let listing = || vec![listed("p", &["main"]), listed("p", &[])];
    assert_eq!(who(&pods, listing(), &[("old", "main")], 1, &[]), "new/main");
    // The kubelet still asks for the deleted pod, and does not list the new one yet. Nothing tells them apart, so the
    // one is assumed whose memory counts.
    assert_eq!(who(&pods, vec![listed("p", &[])], &[], 1, &[]), "new/main");
}

#[test]
fn unknown_pods_are_read_only_if_no_known_one_can_be_asking() {
    let listing = |unknown: usize| {
        let unknown = (0..unknown).map(|n| listed(&format!("unknown-{n}"), &[]));
        unknown.chain([listed("a", &["main"]), listed("gone", &["main"])]).collect()
    };
    let record = [("a", "main")];
    assert_eq!(who(&[pod("a")], listing(0), &record, 1, &[]), "None");
    assert_eq!(who(&[pod("a")], listing(1), &record, 1, &[]), "Unlisted");
    assert_eq!(who(&[pod("a")], listing(MAX_READ), &record, 1, &[]), "Unlisted");
    assert_eq!(who(&[pod("a")], listing(MAX_READ + 1), &record, 1, &[]), "None");
    let mut with_candidate: Vec<ListedPod> = listing(1);
    with_candidate.push(listed("b", &[]));
    assert_eq!(who(&[pod("a"), pod("b")], with_candidate, &record, 1, &[]), "b/main");
}

#[test]
fn containers_of_another_resource_do_not_ask() {
    let other = GpuContainer { resource: Resource("nvidia.com/mig-1g.5gb".into()), ..container("mig", Role::App, 1) };
    let pods = [KnownPod { containers: vec![other, container("main", Role::App, 1)], ..pod("p") }];
    assert_eq!(who(&pods, vec![listed("p", &[])], &[], 1, &[]), "p/main");
}

/// A pod of the kubelet below: its containers, each with its role, and what happens to the pod later.
#[derive(Debug, Clone)]
struct Plan {
    roles: Vec<Role>,
    ends: bool,
    is_known: bool,
}

fn plan() -> impl Strategy<Value = Plan> {
    let role = prop::sample::select(vec![Role::Init, Role::Sidecar, Role::App]);
    (prop::collection::vec(role, 0..4), any::<bool>(), prop::bool::weighted(0.95)).prop_map(
        |(mut roles, ends, is_known)| {
            roles.sort(); // the kubelet allocates app containers last
            Plan { roles, ends, is_known }
        },
    )
}

proptest! {
    /// A kubelet that admits pods one by one, as far as it matters here, and asks for each container in order.
    #[test]
    fn a_kubelet_that_keeps_its_records_is_understood_at_every_question(plans in prop::collection::vec(plan(), 1..8)) {
        let mut pods = Vec::new();
        let mut record: BTreeSet<(PodUid, Name)> = BTreeSet::new();
        let mut running: Vec<ListedPod> = Vec::new();
        for (number, plan) in plans.iter().enumerate() {
            let text = format!("p{number}");
            let containers: Vec<GpuContainer> = plan.roles.iter().enumerate()
                .map(|(place, role)| container(&format!("c{place}"), *role, 1)).collect();
            if plan.is_known {
                pods.push(KnownPod { containers: containers.clone(), ..pod(&text) });
            }
            running.push(listed(&text, &[]));
            for asking in &containers {
                let allocations = Allocations { listed: running.clone(), recorded: record.clone() };
                let identity = identify(&gpu(), 1, &allocations, &pods, &record);
                let new_pod = running.last_mut().expect("the new pod");
                if plan.is_known {
                    let Identity::Caller(caller) = &identity else { panic!("{identity:?}") };
                    prop_assert_eq!(&caller.pod.name, &new_pod.name);
                    prop_assert_eq!(&caller.container.name, &asking.name);
                } else if new_pod.containers.is_empty() {
                    // The other pods that are not known have devices, or request none.
                    let Identity::Unlisted(names) = &identity else { panic!("{identity:?}") };
                    prop_assert!(names.contains(&new_pod.name));
                } else {
                    prop_assert!(!matches!(identity, Identity::Caller(_)), "{:?}", identity);
                }
                if asking.role != Role::Init {
                    new_pod.containers.insert(asking.name.clone());
                }
                record.insert((uid(&text), asking.name.clone()));
            }
            if plan.ends {
                let ended = pods.iter_mut().filter(|pod| pod.uid == uid(&text));
                ended.for_each(|pod| pod.phase = Phase::Ended);
                running.retain(|listed| listed.name != name(&text));
                record.retain(|(pod, _)| *pod != uid(&text));
            }
        }
    }
}
