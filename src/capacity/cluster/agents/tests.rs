use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::capacity::gpu::Accounting;
use crate::capacity::node::inventory::Inventory;
use crate::capacity::node::presence::{Instance, NamedPod};
use crate::capacity::pod::PodName;
use crate::capacity::testing::{facts, holder, pool, rules, uid};
use crate::capacity::time::Moment;

/// A report that the node is steered, by the instance `container` of the agent in pod `pod`.
fn report(pod: &str, container: Option<&str>) -> LedgerContent {
    claim(AllocationPolicy::Steered, Some((pod, container)))
}

fn claim(allocation_policy: AllocationPolicy, pod: Option<(&str, Option<&str>)>) -> LedgerContent {
    let name = PodName { namespace: "vramguard-agent".into(), name: "agent".into() };
    let named = |(pod, container): (&str, Option<&str>)| {
        Box::new(NamedPod { uid: uid(pod), name, container: container.map(Into::into) })
    };
    let pod = pod.map(named);
    let reported = Some(Moment(i64::MAX));
    let inventory = Inventory { reported, pod, allocation_policy, ..Inventory::default() };
    LedgerContent { inventory: Some(inventory), ..LedgerContent::default() }
}

fn runs(container: &str) -> AgentPod {
    AgentPod { node: "n".into(), deleting: false, container: Instance::Running(container.into()) }
}

/// A node with two GPUs of four replicas.
fn cluster() -> Cluster {
    let mut cluster = Cluster::new(rules(), BTreeSet::new());
    cluster.follow_agent_pods();
    cluster.apply_node("n", facts(vec![pool(&[10_000, 10_000], 4)]));
    cluster
}

fn mode(cluster: &Cluster) -> Accounting {
    cluster.node("n").expect("the node").usage.pools[0].accounting
}

#[test]
fn a_node_is_steered_from_the_report_of_a_running_agent_to_the_end_of_its_container() {
    let mut cluster = cluster();
    cluster.apply_ledger("n", Some(report("a", Some("c1"))));
    assert_eq!(mode(&cluster), Accounting::Slot, "the pod has not been seen yet");
    cluster.apply_agent_pod(&uid("a"), runs("c1"));
    assert_eq!(mode(&cluster), Accounting::Steered);

    // Killed and started again by the kubelet.
    cluster.apply_agent_pod(&uid("a"), runs("c2"));
    assert_eq!(mode(&cluster), Accounting::Slot);
    cluster.apply_ledger("n", Some(report("a", Some("c2"))));
    assert_eq!(mode(&cluster), Accounting::Steered);

    cluster.apply_agent_pod(&uid("a"), AgentPod { deleting: true, ..runs("c2") });
    assert_eq!(mode(&cluster), Accounting::Slot);
    cluster.delete_agent_pod(&uid("a"));
    assert_eq!(mode(&cluster), Accounting::Slot);

    // Its successor. The old report still names the old pod.
    cluster.apply_agent_pod(&uid("b"), runs("c3"));
    assert_eq!(mode(&cluster), Accounting::Slot);
    cluster.apply_ledger("n", Some(report("b", Some("c3"))));
    assert_eq!(mode(&cluster), Accounting::Steered);
}

#[test]
fn a_report_that_names_no_pod_is_believed_by_its_age_alone() {
    let mut cluster = cluster();
    cluster.apply_ledger("n", Some(claim(AllocationPolicy::Steered, None)));
    assert_eq!(mode(&cluster), Accounting::Steered);
}

#[test]
fn a_verified_policy_of_the_device_plugin_outlives_the_agent() {
    let mut cluster = cluster();
    cluster.apply_ledger("n", Some(claim(AllocationPolicy::Distributed, Some(("a", None)))));
    assert_eq!(mode(&cluster), Accounting::Confirmed, "the plugin chooses in the same way without it");
}

#[test]
fn where_pods_of_agents_may_be_missing_only_one_that_is_seen_can_be_in_doubt() {
    let mut cluster = Cluster::new(rules(), BTreeSet::new());
    cluster.apply_node("n", facts(vec![pool(&[10_000, 10_000], 4)]));
    cluster.apply_ledger("n", Some(report("a", Some("c1"))));
    assert_eq!(mode(&cluster), Accounting::Steered, "a file may lack the pod");
    cluster.apply_agent_pod(&uid("a"), runs("c2"));
    assert_eq!(mode(&cluster), Accounting::Slot);
}

#[test]
fn a_pod_that_turns_up_on_another_node_no_longer_counts_here() {
    let mut cluster = cluster();
    cluster.apply_ledger("n", Some(report("a", Some("c1"))));
    cluster.apply_agent_pod(&uid("a"), runs("c1"));
    cluster.apply_agent_pod(&uid("a"), AgentPod { node: "m".into(), ..runs("c1") });
    assert_eq!(mode(&cluster), Accounting::Slot);
}

#[test]
fn a_copy_of_a_cluster_judges_by_the_same_pods() {
    let mut cluster = Cluster::new(rules(), BTreeSet::new());
    cluster.apply_agent_pod(&uid("a"), runs("c2"));
    let mut copy = Cluster::new(rules(), BTreeSet::new());
    copy.copy_agent_pods(&cluster);
    copy.apply_ledger("n", Some(report("a", Some("c1"))));
    copy.apply_node("n", facts(vec![pool(&[10_000, 10_000], 4)]));
    assert_eq!(mode(&copy), Accounting::Slot);
}

#[test]
fn a_binding_is_decided_on_the_claim_of_the_ledger_that_it_has_read() {
    let mut cluster = cluster();
    cluster.apply_agent_pod(&uid("a"), runs("c1"));
    let mode = |content: LedgerContent| cluster.with_content("n", content).expect("the node").1[0].accounting();
    assert_eq!(mode(report("a", Some("c1"))), Accounting::Steered);
    assert_eq!(mode(report("a", Some("c0"))), Accounting::Slot);
    assert_eq!(mode(report("other", Some("c1"))), Accounting::Slot);
}

#[test]
fn the_conditions_are_written_again_when_only_the_reason_changes() {
    let mut cluster = cluster();
    cluster.apply_ledger("n", Some(report("a", Some("c1"))));
    for pod in [runs("c1"), runs("c2"), AgentPod { deleting: true, ..runs("c2") }] {
        _ = (cluster.take_changed(), cluster.take_touched());
        cluster.apply_agent_pod(&uid("a"), pod);
        assert!(cluster.take_changed().contains("n") && cluster.take_touched().contains("n"));
    }
    _ = (cluster.take_changed(), cluster.take_touched());
    cluster.delete_agent_pod(&uid("other"));
    assert!(cluster.take_changed().is_empty() && cluster.take_touched().is_empty());
}

/// Something that a watch delivers.
#[derive(Clone, Debug)]
enum Step {
    Pod(u8, AgentPod),
    Gone(u8),
    Report(Option<(u8, u8)>),
}

fn step() -> impl Strategy<Value = Step> {
    let name = || 0..3u8;
    let instance = prop_oneof![
        name().prop_map(|id| Instance::Running(id.to_string().as_str().into())),
        Just(Instance::NotRunning("".into()))
    ];
    let pod =
        (prop::bool::weighted(0.2), instance, prop::bool::weighted(0.9)).prop_map(|(deleting, container, here)| {
            AgentPod { node: if here { "n" } else { "m" }.into(), deleting, container }
        });
    prop_oneof![
        (name(), pod).prop_map(|(name, pod)| Step::Pod(name, pod)),
        name().prop_map(Step::Gone),
        prop::option::of((name(), name())).prop_map(Step::Report),
    ]
}

proptest! {
    /// The mode after any events is that of the last report and the last state of each pod, and in doubt the node accounts as
    /// one whose agent says that it does not steer.
    #[test]
    fn a_doubted_claim_counts_as_none(steps in prop::collection::vec(step(), 1..20)) {
        let mut cluster = cluster();
        cluster.apply_pod(&uid("p"), "n", holder(4_000));
        let (mut pods, mut last) = (BTreeMap::new(), None);
        for step in steps {
            match step {
                Step::Pod(name, pod) => {
                    cluster.apply_agent_pod(&uid(&name.to_string()), pod.clone());
                    pods.insert(name, pod);
                }
                Step::Gone(name) => {
                    cluster.delete_agent_pod(&uid(&name.to_string()));
                    pods.remove(&name);
                }
                Step::Report(named) => {
                    let content = named.map(|(pod, id)| report(&pod.to_string(), Some(&id.to_string())));
                    cluster.apply_ledger("n", content);
                    last = named;
                }
            }
        }
        let alive = last.is_some_and(|(name, id)| pods.get(&name) == Some(&runs(&id.to_string())));
        prop_assert_eq!(mode(&cluster) == Accounting::Steered, alive);
        let usage = cluster.node("n").expect("the node").usage;
        if last.is_some() {
            let judged = usage.clone();
            // What an agent without a pod reports is believed.
            let same = if alive { AllocationPolicy::Steered } else { AllocationPolicy::Unverified };
            cluster.apply_ledger("n", Some(claim(same, None)));
            let believed = cluster.node("n").expect("the node").usage;
            prop_assert_eq!((judged.published, judged.pools), (believed.published, believed.pools.clone()));
        }
    }
}
