//! Tests of a reservation's life, one transition at a time.
//!
//! [`events`] and [`world`] test many reservations under random events. [`model`] tests a few under every order of
//! events.

use std::collections::BTreeSet;

use std::time::Duration;

use super::*;
use crate::capacity::binding::upkeep::Upkeep;
use crate::capacity::cluster::{Cluster, NodeFacts, NodeView};
use crate::capacity::gpu::{Accounting, AllocationPolicy, Resource, Unknown};
use crate::capacity::node::inventory::Inventory;
use crate::capacity::node::ledger::LedgerContent;
use crate::capacity::node::reservation::Found;
use crate::capacity::node::usage::NodeUsage;
use crate::capacity::verdict::{Reason, Refusal};

mod events;
mod fixture;
mod model;
mod world;

use fixture::{PATIENCE, annotated, content, node, pod, reservation, reservations, resource, rules, uid};

/// A node with two GPUs of 10,000 MiB and four replicas of each.
fn facts() -> NodeFacts {
    node(&[10_000, 10_000], 4)
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::new(rules(), BTreeSet::new());
    for name in ["a", "b"] {
        cluster.apply_node(name, facts());
        cluster.apply_ledger(name, Some(under(Reservations::default())));
    }
    cluster
}

/// The ledger of a node whose agent steers the device plugin.
fn under(reservations: Reservations) -> LedgerContent {
    content(AllocationPolicy::Steered, reservations)
}

/// Assumes a pod as the guard does it, on the ledger as it was read.
fn assume(
    cluster: &Cluster,
    content: LedgerContent,
    name: &str,
    holder: &Holder,
    now: i64,
) -> Result<Assumed, Unplaced> {
    let (ledger, pools) = cluster.with_content("a", content).unwrap();
    ledger.assume(&uid(name), holder, &pools, cluster.rules(), Moment(now))
}

/// Computes the upkeep as the controller does it, on the node as it is seen.
fn upkeep(cluster: &Cluster, now: i64) -> Upkeep {
    let NodeView { facts, ledger, .. } = cluster.node("a").unwrap();
    ledger.upkeep(&facts.pools, cluster.rules(), |resource| cluster.guards(resource), &PATIENCE, Moment(now))
}

fn usage(cluster: &Cluster) -> &NodeUsage {
    cluster.node("a").unwrap().usage
}

fn on(index: u32) -> Option<GpuId> {
    Some(GpuId::Index(index))
}

fn mib(mib: u64) -> Vram {
    Vram::from_mib(mib)
}

#[test]
fn a_pod_is_promised_a_gpu_and_the_next_one_what_that_leaves() {
    let cluster = cluster();
    let first = assume(&cluster, under(Reservations::default()), "p", &pod(6000), 5).unwrap();
    let written = first.write.unwrap();
    assert_eq!(first.gpu, on(0));
    assert_eq!(written, reservations([("p", reservation(pod(6000), Some(0), State::Assumed, 5))]));
    let second = assume(&cluster, under(written), "q", &pod(6000), 6).unwrap();
    assert_eq!(second.gpu, on(1));
    let refused = assume(&cluster, under(second.write.unwrap()), "r", &pod(6000), 7).unwrap_err();
    let Unplaced::Shortfall { demand, free, .. } = refused else { panic!("{refused:?}") };
    assert_eq!((demand, free), (mib(6000), mib(4000)));
}

#[test]
fn a_pod_assumed_again_keeps_its_gpu_and_gets_younger_but_never_older() {
    let cluster = cluster();
    let held = reservations([
        ("p", reservation(pod(6000), Some(1), State::Assumed, 5)),
        ("q", reservation(pod(9000), Some(0), State::Assumed, 5)),
    ]);
    for (now, since) in [(9, 9), (5, 5), (3, 5)] {
        let again = assume(&cluster, under(held.clone()), "p", &pod(6000), now).unwrap();
        assert_eq!(again.gpu, on(1));
        let written = again.write.expect("the write makes it younger");
        assert_eq!(written.of(&uid("p")).unwrap().since, Moment(since));
        assert_eq!(written.of(&uid("q")), held.of(&uid("q")));
    }
}

#[test]
fn a_pod_asked_for_again_is_refused_once_the_device_plugin_may_give_it_another_gpu() {
    // GPU 1 was reserved while the agent steered. Since then it has reported that it does not.
    let slots = |request| {
        let held = [
            ("p", reservation(pod(request), Some(1), State::Assumed, 5)),
            ("q", reservation(pod(9000), Some(0), State::Confirmed, 5)),
        ];
        let content = content(AllocationPolicy::Unverified, reservations(held));
        assume(&cluster(), content, "p", &pod(request), 9)
    };
    let refused = slots(6000).unwrap_err();
    assert!(matches!(refused, Unplaced::Shortfall { .. }), "{refused:?}");
    // A pod that fits on any GPU is no longer promised one.
    let again = slots(1000).unwrap();
    assert_eq!(again.gpu, None);
    assert_eq!(again.write.unwrap().of(&uid("p")), Some(&reservation(pod(1000), None, State::Assumed, 9)));
}

#[test]
fn a_pod_asked_for_again_is_refused_if_others_have_filled_its_gpu() {
    // The device plugin put q onto GPU 0 while the agent did not steer.
    let held = reservations([
        ("p", reservation(pod(6000), Some(0), State::Assumed, 5)),
        ("q", reservation(pod(9000), Some(0), State::Confirmed, 5)),
    ]);
    let Unplaced::Shortfall { free, .. } = assume(&cluster(), under(held), "p", &pod(6000), 9).unwrap_err() else {
        panic!("the reason is not the memory")
    };
    assert_eq!(free, mib(1000));
}

#[test]
fn a_pod_whose_place_is_settled_is_answered_without_a_write() {
    for state in [State::Confirmed, State::Adopted] {
        let held = reservations([("p", reservation(pod(6000), Some(1), state, 5))]);
        let again = assume(&cluster(), under(held), "p", &pod(6000), 9).unwrap();
        assert_eq!(again, Assumed { gpu: on(1), write: None });
    }
}

/// The ledger may be newer than the replica's cache of the pods, or older.
#[test]
fn a_promise_counts_whether_or_not_the_pod_is_seen_yet() {
    let held = reservations([("p", reservation(pod(6000), Some(0), State::Assumed, 5))]);
    let mut cluster = cluster();
    cluster.apply_ledger("a", Some(under(held.clone())));
    assert_eq!((usage(&cluster).bound, usage(&cluster).published), (mib(6000), Some(mib(16_000))));
    cluster.apply_pod(&uid("p"), "a", annotated(6000, Some(0)));
    assert_eq!(usage(&cluster).bound, mib(6000), "once, not twice");
    cluster.apply_ledger("a", Some(under(Reservations::default())));
    let gpus = &usage(&cluster).pools[0].gpus;
    assert_eq!((gpus[0].held, usage(&cluster).bound), (mib(6000), mib(6000)));
}

#[test]
fn a_moved_pod_holds_on_both_nodes_until_it_is_seen_on_one() {
    let held = reservations([("p", reservation(pod(6000), Some(0), State::Assumed, 5))]);
    let mut cluster = cluster();
    cluster.apply_ledger("a", Some(under(held.clone())));
    cluster.apply_ledger("b", Some(under(held.clone())));
    let bound = |cluster: &Cluster| ["a", "b"].map(|name| cluster.node(name).unwrap().usage.bound);
    assert_eq!(bound(&cluster), [mib(6000), mib(6000)]);
    cluster.apply_pod(&uid("p"), "b", annotated(6000, Some(0)));
    assert_eq!(bound(&cluster), [Vram::ZERO, mib(6000)]);
    assert!(upkeep(&cluster, 6).reservations.is_empty());
    // Others get its memory at once, and the write that reserves it removes the old reservation.
    let written = assume(&cluster, under(held), "q", &pod(9000), 6).unwrap().write.unwrap();
    assert_eq!(written, reservations([("q", reservation(pod(9000), Some(0), State::Assumed, 6))]));
}

#[test]
fn a_pod_that_is_gone_leaves_its_place_at_once_wherever_it_was_promised_one() {
    let held = reservations([("p", reservation(pod(6000), Some(0), State::Assumed, 5))]);
    let mut cluster = cluster();
    // Two watches have no common order: the pod is deleted before the ledger with its reservation is seen.
    cluster.delete_pod(&uid("p"));
    cluster.apply_ledger("a", Some(under(held.clone())));
    assert_eq!(usage(&cluster).bound, Vram::ZERO);
    assert!(upkeep(&cluster, 6).reservations.is_empty());
    let place = assume(&cluster, under(held), "q", &pod(9000), 6).unwrap();
    assert_eq!((place.gpu, place.write.unwrap().len()), (on(0), 1));
}

/// The watch of pods may be ahead of the ledger that was just read.
///
/// A reservation in that ledger holds nothing if its pod is gone or on another node.
#[test]
fn a_ledger_read_anew_is_read_with_all_that_is_known_of_its_pods() {
    let held = reservations([("p", reservation(pod(6000), Some(0), State::Assumed, 5))]);
    let (mut gone, mut elsewhere) = (cluster(), cluster());
    gone.delete_pod(&uid("p"));
    elsewhere.apply_pod(&uid("p"), "b", annotated(6000, Some(0)));
    for (cluster, gpu) in [(cluster(), on(1)), (gone, on(0)), (elsewhere, on(0))] {
        assert_eq!(assume(&cluster, under(held.clone()), "q", &pod(9000), 6).unwrap().gpu, gpu);
    }
}

#[test]
fn a_promise_that_was_taken_back_leaves_nothing_behind() {
    let held = reservations([("p", reservation(pod(6000), Some(0), State::Assumed, 5))]);
    let mut cluster = cluster();
    cluster.apply_ledger("a", Some(under(held)));
    assert_eq!(cluster.counts_on(&uid("p")).collect::<Vec<_>>(), ["a"]);
    cluster.delete_pod(&uid("p"));
    assert!(cluster.node("a").unwrap().ledger.departed().contains(&uid("p")));
    cluster.apply_ledger("a", Some(under(Reservations::default())));
    assert_eq!(cluster.counts_on(&uid("p")).count(), 0);
    assert!(cluster.node("a").unwrap().ledger.departed().is_empty());
    cluster.delete_node("a");
    cluster.apply_ledger("a", None);
    assert_eq!(cluster.node_names().collect::<Vec<_>>(), ["b"]);
}

#[test]
fn that_a_pod_departs_is_news_once_and_only_where_it_was_promised_something() {
    let mut ledger = NodeLedger::default();
    ledger.set_content(Some(under(reservations([("p", reservation(pod(6000), Some(0), State::Assumed, 5))]))));
    assert_eq!(["p", "p", "q"].map(|name| ledger.void(&uid(name))), [true, false, false]);
    assert_eq!(ledger.departed(), &BTreeSet::from([uid("p")]));
    ledger.confirm(uid("p"), pod(6000));
    assert!(ledger.departed().is_empty(), "what is seen here is not departed");
}

#[test]
fn a_uid_that_ended_does_not_come_back() {
    let mut cluster = cluster();
    cluster.apply_pod(&uid("p"), "a", annotated(6000, Some(0)));
    cluster.delete_pod(&uid("p"));
    cluster.apply_pod(&uid("p"), "a", annotated(6000, Some(0)));
    assert!(!cluster.holds(&uid("p")));
    assert_eq!(usage(&cluster).bound, Vram::ZERO);
}

/// One watch lags seconds behind another, not minutes. So the memory of ended pods has an end too.
#[test]
fn that_a_pod_ended_is_remembered_for_five_minutes_and_not_for_ever() {
    let start = Moment(1_700_000_000_000);
    let after = |seconds| start.after(Duration::from_secs(seconds));
    let returns = |cluster: &mut Cluster| {
        cluster.apply_pod(&uid("p"), "a", annotated(6000, Some(0)));
        cluster.holds(&uid("p"))
    };
    for ended in [0, 150, 290] {
        let mut cluster = cluster();
        cluster.tick(after(0));
        cluster.delete_pod(&uid("p"));
        for seconds in (0..ended + 300).step_by(10) {
            if seconds == ended {
                cluster.delete_pod(&uid("p"));
            }
            cluster.tick(after(seconds));
            assert!(!returns(&mut cluster), "ended after {ended} s, seen again after {seconds} s");
        }
        cluster.tick(after(ended + 600));
        cluster.tick(after(ended + 900));
        assert!(returns(&mut cluster));
    }
}

#[test]
fn a_pod_seen_bound_is_confirmed_on_the_gpu_that_its_binding_wrote() {
    for (annotation, gpu) in [(None, 0), (Some(0), 0), (Some(1), 1)] {
        let held = reservations([("p", reservation(pod(6000), Some(0), State::Assumed, 5))]);
        let mut cluster = cluster();
        cluster.apply_ledger("a", Some(under(held)));
        cluster.apply_pod(&uid("p"), "a", annotated(6000, annotation));
        let kept = upkeep(&cluster, 6);
        let settled = annotated(6000, annotation);
        let expected = reservations([("p", reservation(settled, Some(gpu), State::Confirmed, 5))]);
        assert_eq!((kept.reservations, kept.doubtful, kept.adopted), (expected, vec![], vec![]));
    }
}

/// The container started with what the binding wrote. A later annotation changes nothing about that.
#[test]
fn an_annotation_that_comes_later_moves_nothing() {
    for state in [State::Confirmed, State::Adopted] {
        let mut cluster = cluster();
        cluster.apply_pod(&uid("p"), "a", annotated(6000, Some(1)));
        cluster.apply_ledger("a", Some(under(reservations([("p", reservation(pod(6000), Some(0), state, 5))]))));
        assert_eq!(upkeep(&cluster, 6).reservations.of(&uid("p")).unwrap().gpu, on(0));
        assert_eq!(usage(&cluster).pools[0].gpus[0].held, mib(6000));
    }
}

/// A pod that becomes ready is no reason to write its ledger.
#[test]
fn what_changes_while_a_pod_runs_is_not_in_its_reservation() {
    let assumed = reservations([("p", reservation(pod(6000), Some(0), State::Assumed, 5))]);
    for held in [Reservations::default(), assumed] {
        let mut cluster = cluster();
        cluster.apply_ledger("a", Some(under(held)));
        cluster.apply_pod(&uid("p"), "a", Holder { starting: Some(Moment(5)), ..annotated(6000, Some(0)) });
        let before = upkeep(&cluster, 6).reservations;
        cluster.apply_ledger("a", Some(under(before.clone())));
        cluster.apply_pod(&uid("p"), "a", annotated(6000, Some(0)));
        assert_eq!(upkeep(&cluster, 7).reservations, before);
    }
}

#[test]
fn a_pod_that_nobody_assumed_is_adopted_where_its_annotation_says() {
    let mut cluster = cluster();
    cluster.apply_pod(&uid("p"), "a", annotated(6000, Some(1)));
    cluster.apply_pod(&uid("q"), "a", pod(100));
    cluster.apply_pod(
        &uid("r"),
        "a",
        Holder { gpus: vec![(Resource("amd.com/gpu".into()), 1)].into(), request: None, ..pod(100) },
    );
    let kept = upkeep(&cluster, 6);
    assert_eq!(kept.adopted, [uid("p"), uid("q")]);
    let adopted = |holder, gpu| reservation(holder, gpu, State::Adopted, 6);
    let expected = [("p", adopted(annotated(6000, Some(1)), Some(1))), ("q", adopted(pod(100), None))];
    assert_eq!(kept.reservations, reservations(expected));
}

/// The report of an agent that steers the device plugin, made at this time.
fn report(reported: i64, pods: &[(&'static str, u32)]) -> Inventory {
    let assigned = |(name, gpu): &(&'static str, u32)| {
        (uid(name), vec![(pod(1).parts[0].container.clone(), GpuId::Index(*gpu))].into())
    };
    Inventory {
        reported: Some(Moment(reported)),
        allocation_policy: AllocationPolicy::Steered,
        assigned: pods.iter().map(assigned).collect(),
        ..Inventory::default()
    }
}

fn reporting(reservations: Reservations, inventory: Inventory) -> LedgerContent {
    LedgerContent { inventory: Some(inventory), ..under(reservations) }
}

/// The kubelet's record is what the container runs on. The reservation and the annotation were only the plan.
#[test]
fn a_pod_is_on_the_gpu_that_the_agent_reports_whatever_was_planned() {
    let held = reservations([("p", reservation(pod(6000), Some(0), State::Assumed, 5))]);
    let mut cluster = cluster();
    cluster.apply_pod(&uid("p"), "a", annotated(6000, Some(0)));
    cluster.apply_ledger("a", Some(reporting(held, report(6, &[("p", 1)]))));
    assert_eq!(usage(&cluster).pools[0].gpus.iter().map(|gpu| gpu.held.mib()).collect::<Vec<_>>(), [0, 6000]);
    let kept = upkeep(&cluster, 6).reservations;
    assert_eq!(kept.of(&uid("p")).unwrap().gpu, on(1), "so that it is not forgotten with the report");
}

/// While its GPU is not known, a pod may be on either GPU, and no other pod may count on what it may take.
#[test]
fn pods_bound_past_the_guard_count_on_every_gpu_until_the_agent_reports_them() {
    let mut cluster = cluster();
    cluster.apply_pod(&uid("p"), "a", pod(3000));
    cluster.apply_pod(&uid("q"), "a", pod(4000));
    let kept = upkeep(&cluster, 6);
    assert_eq!(kept.adopted, [uid("p"), uid("q")]);
    assert!(kept.reservations.iter().all(|(_, reservation)| reservation.gpu.is_none()));
    cluster.apply_ledger("a", Some(under(kept.reservations.clone())));
    assert_eq!(usage(&cluster).free, mib(3000));
    cluster.apply_ledger("a", Some(reporting(kept.reservations, report(6, &[("p", 0), ("q", 0)]))));
    assert_eq!(usage(&cluster).free, mib(10_000));
}

/// A pod that nobody steers any more may get any GPU, so a new one may take no more than a slot. What is held stays.
#[test]
fn an_agent_that_falls_silent_turns_its_node_to_slots_and_frees_nothing() {
    let now = Moment(1_700_000_000_000);
    let after = |seconds| now.after(Duration::from_secs(seconds));
    let mut cluster = cluster();
    cluster.tick(after(0));
    let held = reservations([("p", reservation(pod(6000), Some(0), State::Confirmed, 5))]);
    cluster.apply_pod(&uid("p"), "a", annotated(6000, Some(0)));
    cluster.apply_ledger("a", Some(reporting(held.clone(), report(now.0, &[("p", 0)]))));
    let mode = |cluster: &Cluster| usage(cluster).pools[0].accounting;
    cluster.tick(after(600));
    assert_eq!((mode(&cluster), usage(&cluster).free), (Accounting::Steered, mib(10_000)));
    cluster.tick(after(601));
    // A slot is 10,000 / 4. The pod is known to be on GPU 0, of which a slot is still free.
    assert_eq!((mode(&cluster), usage(&cluster).free), (Accounting::Slot, mib(2500)));
    assert_eq!(usage(&cluster).pools[0].gpus[0].held, mib(6000));
    assert!(usage(&cluster).published >= Some(mib(6000 + 2500)));
    assert_eq!(cluster.node("a").unwrap().facts.pools[0].allocation_policy, AllocationPolicy::Stale);
    // A report that arrives is believed at once, and an old one that arrives late is not.
    cluster.apply_ledger("a", Some(reporting(held.clone(), report(after(601).0, &[("p", 0)]))));
    assert_eq!(mode(&cluster), Accounting::Steered);
    cluster.apply_ledger("a", Some(reporting(held, report(now.0, &[("p", 0)]))));
    assert_eq!(mode(&cluster), Accounting::Slot);
}

#[test]
fn a_pod_adopted_without_a_gpu_is_on_the_one_that_an_annotation_names_later() {
    let mut cluster = cluster();
    cluster.apply_ledger("a", Some(under(reservations([("p", reservation(pod(5000), None, State::Adopted, 5))]))));
    cluster.apply_pod(&uid("p"), "a", annotated(5000, Some(1)));
    assert_eq!(usage(&cluster).pools[0].gpus[1].held, mib(5000));
    assert_eq!(upkeep(&cluster, 6).reservations.of(&uid("p")).unwrap().gpu, on(1));
}

#[test]
fn only_a_quorum_read_tells_of_a_reservation_that_is_old_or_whose_pod_is_not_seen() {
    let cases = [
        (State::Assumed, 1000, false),
        (State::Assumed, 90_999, false),
        (State::Assumed, 91_000, true),
        (State::Confirmed, 1000, true),
        (State::Adopted, 1000, true),
    ];
    for (state, now, doubtful) in cases {
        let mut cluster = cluster();
        let held = reservations([("p", reservation(pod(6000), Some(0), state, 1000))]);
        cluster.apply_ledger("a", Some(under(held.clone())));
        let kept = upkeep(&cluster, now);
        assert_eq!(kept.reservations, held, "nothing is taken back unread");
        let expected = doubtful.then(|| (uid("p"), pod(6000).name));
        assert_eq!(kept.doubtful, expected.into_iter().collect::<Vec<_>>(), "{state} at {now}");
    }
}

#[test]
fn a_reservation_survives_all_but_certainty_that_its_pod_never_comes() {
    let old = |state| reservation(pod(6000), Some(0), state, 1000);
    for state in [State::Assumed, State::Confirmed, State::Adopted] {
        let survives = |found, now| old(state).survives(found, &PATIENCE, Moment(now));
        assert_eq!([Found::Gone, Found::Elsewhere].map(|found| survives(found, 1000)), [false, false]);
        assert_eq!([1000, 1_000_000].map(|now| survives(Found::Here, now)), [true, true]);
        assert_eq!([1000, 90_999, 91_000].map(|now| survives(Found::Unbound, now)), [true, true, false]);
    }
}

#[test]
fn a_pod_is_not_placed_where_nothing_is_known_and_gets_a_gpu_only_where_it_is_steered() {
    let cluster = cluster();
    let choose = |allocation_policy, holder: &Holder| {
        let (ledger, pools) = cluster.with_content("a", content(allocation_policy, Reservations::default())).unwrap();
        ledger.choose(&uid("p"), holder, &pools, cluster.rules())
    };
    for allocation_policy in [AllocationPolicy::Unverified, AllocationPolicy::Stale, AllocationPolicy::Distributed] {
        assert_eq!(choose(allocation_policy, &pod(100)), Ok(None));
    }
    assert_eq!(choose(AllocationPolicy::Steered, &pod(100)), Ok(on(0)));
    // One container with two replicas may get two GPUs.
    let two = Holder { gpus: vec![(resource(), 2)].into(), ..pod(100) };
    assert_eq!(choose(AllocationPolicy::Steered, &two), Ok(None));
    let other = Resource("nvidia.com/mig-1g.10gb".into());
    let elsewhere = Holder { gpus: vec![(other.clone(), 1)].into(), ..pod(100) };
    assert_eq!(choose(AllocationPolicy::Steered, &elsewhere), Err(Unplaced::NoGpu { resource: Some(other) }));
    let (ledger, mut pools) = cluster.with_content("a", under(Reservations::default())).unwrap();
    let why = Unknown::ReportedNone { resource: resource() };
    pools[0].contents = Err(why.clone());
    assert_eq!(ledger.choose(&uid("p"), &pod(100), &pools, &rules()), Err(Unplaced::Unknown(Box::new(why))));
}

#[test]
fn a_pod_that_was_promised_a_gpu_keeps_others_off_it_before_it_is_seen_to_start() {
    let mut cluster = cluster();
    cluster.set_rules(Rules { serialize_per_gpu: true, ..rules() }, BTreeSet::new());
    let starting = |now| Holder { starting: Some(Moment(now)), ..pod(1000) };
    let first = assume(&cluster, under(Reservations::default()), "p", &starting(5), 5).unwrap();
    let second = assume(&cluster, under(first.write.unwrap()), "q", &starting(6), 6).unwrap();
    assert_eq!((first.gpu, second.gpu), (on(0), on(1)));
    let third = assume(&cluster, under(second.write.unwrap()), "r", &starting(7), 7);
    assert!(matches!(third, Err(Unplaced::Starting)), "{third:?}");
}

/// Regression: the reason was that a pod is starting, but the message reported how much VRAM is left.
#[test]
fn what_falls_short_beside_a_startup_is_a_shortfall_in_reason_and_sentence() {
    let mut cluster = cluster();
    cluster.set_rules(Rules { serialize_per_gpu: true, ..rules() }, BTreeSet::new());
    let starting = |amount, now| Holder { starting: Some(Moment(now)), ..pod(amount) };
    let refusal = |why| Refusal::Unplaced { node: "a".into(), why };
    let first = assume(&cluster, under(Reservations::default()), "p", &starting(1000, 5), 5).unwrap().write.unwrap();
    let why = assume(&cluster, under(first.clone()), "large", &starting(12_000, 6), 6).unwrap_err();
    assert_eq!(refusal(why.clone()).reason(), Reason::VramShortfall);
    let text = "12000Mi demanded, the freest GPU there has 10000Mi left";
    assert!(refusal(why.clone()).to_string().contains(text), "{}", refusal(why));

    let second = assume(&cluster, under(first), "q", &starting(1000, 6), 6).unwrap().write.unwrap();
    let why = assume(&cluster, under(second), "large", &starting(12_000, 7), 7).unwrap_err();
    assert_eq!(refusal(why.clone()).reason(), Reason::GpuStarting);
    assert!(refusal(why.clone()).to_string().contains("has a pod that is starting"), "{}", refusal(why));
}
