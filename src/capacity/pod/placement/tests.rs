//! Tests that placement agrees with kube-scheduler and the kubelet on the same objects.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use proptest::prelude::*;

use super::*;
use crate::capacity::cluster::{Cluster, NodeFacts};
use crate::capacity::gpu::{AllocationPolicy, Contents, Gpu, Pool, Resource, Rules, Sharing};
use crate::capacity::name::PodUid;
use crate::capacity::node::holder::{Amount, Holder, Part};
use crate::capacity::pod::PodName;
use crate::capacity::pod::demand::Role;

fn profile(labels: &[(&str, &str)], taints: &[(&str, &str)]) -> NodeProfile {
    NodeProfile {
        labels: labels.iter().map(|&(k, v)| (k.into(), v.into())).collect(),
        taints: taints
            .iter()
            .map(|&(key, value)| Taint { key: key.into(), value: value.into(), effect: "NoSchedule".into() })
            .collect(),
    }
}

fn requirement(key: &str, operator: Operator, values: &[&str]) -> Requirement {
    Requirement { key: key.into(), operator, values: values.iter().map(|v| (*v).into()).collect() }
}

fn requires(terms: Vec<Term>) -> Placement {
    Placement { required: Some(terms), ..Placement::default() }
}

#[test]
fn terms_are_alternatives_and_requirements_are_not() {
    let a = requirement("zone", Operator::In, &["a"]);
    let big = requirement("memory", Operator::Gt, &["40000"]);
    let both = Term { labels: vec![a.clone(), big], ..Term::default() };
    let only_a = Term { labels: vec![a], ..Term::default() };
    let node = profile(&[("zone", "a"), ("memory", "24576")], &[]);
    assert!(!requires(vec![both.clone()]).allows("n", &node));
    assert!(requires(vec![both, only_a]).allows("n", &node));
}

#[test]
fn an_empty_list_of_terms_and_an_empty_term_match_nothing() {
    assert!(!requires(vec![]).allows("n", &NodeProfile::default()));
    assert!(!requires(vec![Term::default()]).allows("n", &NodeProfile::default()));
    assert!(Placement::default().allows("n", &NodeProfile::default()));
}

#[test]
fn operators_compare_as_the_scheduler_does() {
    use Operator::*;
    for (operator, values, value, holds) in [
        (In, vec!["a"], Some("a"), true),
        (In, vec!["a"], None, false),
        (NotIn, vec!["a"], None, true),
        (NotIn, vec!["a"], Some("a"), false),
        (Exists, vec![], Some(""), true),
        (DoesNotExist, vec![], Some(""), false),
        (DoesNotExist, vec![], None, true),
        (Gt, vec!["10"], Some("11"), true),
        (Gt, vec!["10"], Some("10"), false),
        (Gt, vec!["10"], Some("many"), false),
        (Lt, vec!["10"], Some("9"), true),
        (Lt, vec!["10"], None, false),
        (Unrecognised, vec![], Some("x"), false),
    ] {
        assert_eq!(requirement("k", operator, &values).holds(value), holds, "{operator:?} {values:?} {value:?}");
    }
}

#[test]
fn a_node_that_is_too_small_by_its_label_is_asked_for_its_room_all_the_same() {
    let large = requirement("vramguard.dev/pod-max-mib", Operator::Gt, &["8911"]);
    let zone = requirement("zone", Operator::In, &["a"]);
    let placement = requires(vec![Term { labels: vec![large, zone], ..Term::default() }]);
    assert!(placement.allows("n", &profile(&[("vramguard.dev/pod-max-mib", "5967"), ("zone", "a")], &[])));
    assert!(placement.allows("n", &profile(&[("zone", "a")], &[])));
    assert!(!placement.allows("n", &profile(&[("vramguard.dev/pod-max-mib", "9000"), ("zone", "b")], &[])));
}

#[test]
fn every_way_to_a_node_too_small_has_to_be_closed() {
    let term = |operator, values: &[&str]| Term {
        labels: vec![requirement("vramguard.dev/pod-max-mib", operator, values)],
        ..Term::default()
    };
    let unlabelled = || term(Operator::DoesNotExist, &[]);
    let fits = |terms| requires(terms).fits_pod_max(Vram::from_mib(8912));
    assert!(fits(vec![unlabelled(), term(Operator::Gt, &["8911"])]));
    assert!(fits(vec![term(Operator::Gt, &["20000"]), Term::default()]));
    assert!(!fits(vec![unlabelled(), term(Operator::Gt, &["8910"])]));
    assert!(!fits(vec![unlabelled(), term(Operator::Lt, &["8911"])]));
    assert!(!fits(vec![unlabelled(), term(Operator::Gt, &["-1"])]));
    assert!(!fits(vec![unlabelled(), term(Operator::Gt, &["8Gi"])]));
    assert!(!Placement::default().fits_pod_max(Vram::from_mib(1)));
}

#[test]
fn a_daemonset_pod_lands_on_the_node_of_its_match_field_only() {
    let field = requirement("metadata.name", Operator::In, &["gpu-1"]);
    let placement = requires(vec![Term { fields: vec![field], ..Term::default() }]);
    assert!(placement.allows("gpu-1", &NodeProfile::default()));
    assert!(!placement.allows("gpu-2", &NodeProfile::default()));
}

#[test]
fn a_taint_keeps_away_what_does_not_tolerate_it() {
    let tainted = profile(&[], &[("gpu", "yes")]);
    let tolerate = |key: Option<&str>, value: Option<&str>, effect: Option<&str>| Placement {
        tolerations: vec![Toleration {
            key: key.map(Into::into),
            value: value.map(Into::into),
            effect: effect.map(Into::into),
        }],
        ..Placement::default()
    };
    assert!(!Placement::default().allows("n", &tainted));
    assert!(tolerate(None, None, None).allows("n", &tainted));
    assert!(tolerate(Some("gpu"), None, None).allows("n", &tainted));
    assert!(tolerate(Some("gpu"), Some("yes"), Some("NoSchedule")).allows("n", &tainted));
    assert!(!tolerate(Some("gpu"), Some("no"), None).allows("n", &tainted));
    assert!(!tolerate(Some("gpu"), None, Some("NoExecute")).allows("n", &tainted));
}

#[test]
fn a_node_name_passes_selectors_and_taints() {
    let placement = Placement { node_name: Some("n".into()), ..Placement::default() };
    assert!(placement.allows("n", &profile(&[], &[("gpu", "yes")])));
    assert!(!placement.allows("m", &NodeProfile::default()));
}

#[test]
fn an_exclusion_counts_only_if_every_alternative_carries_it() {
    let not_shared = requirement("sharing", Operator::NotIn, &["time-slicing", "mps"]);
    let with = Term { labels: vec![not_shared], ..Term::default() };
    let without = Term { labels: vec![requirement("zone", Operator::Exists, &[])], ..Term::default() };
    let values = ["time-slicing", "mps"];
    assert!(requires(vec![with.clone()]).excludes_everywhere("sharing", &values));
    assert!(!requires(vec![with, without]).excludes_everywhere("sharing", &values));
    assert!(!Placement::default().excludes_everywhere("sharing", &values));
}

/// What happens to pods and to their node, which has two GPUs of 80,000 MiB.
#[derive(Clone, Debug)]
enum Step {
    /// A pod is created, with or without a node affinity of its author.
    Create { demand: u64, zone: bool },
    /// A pod is created as a copy of a live one, with another demand.
    Copy { of: usize, demand: u64 },
    /// kube-scheduler tries to bind a pod.
    Bind(usize),
    /// A pod ends.
    End(usize),
    /// The device plugin is reconfigured with another number of replicas.
    Replicas(u32),
    /// vramguard writes the amount and the label that the node should publish.
    Publish,
    /// The kubelet restarts and admits its pods again.
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let demand = || 1000_u64..45_000;
    proptest::collection::vec(
        prop_oneof![
            3 => (demand(), any::<bool>()).prop_map(|(demand, zone)| Step::Create { demand, zone }),
            3 => (0..20_usize, demand()).prop_map(|(of, demand)| Step::Copy { of, demand }),
            4 => (0..20_usize).prop_map(Step::Bind),
            1 => (0..20_usize).prop_map(Step::End),
            2 => prop_oneof![Just(2_u32), Just(4), Just(8), Just(16)].prop_map(Step::Replicas),
            4 => Just(Step::Publish),
            3 => Just(Step::Restart),
        ],
        0..60,
    )
}

/// What the node publishes, as Kubernetes sees it.
#[derive(Default)]
struct Published {
    label: Option<u64>,
    number: Vram,
}

fn two_gpus(replicas: u32) -> NodeFacts {
    let gpus = (0..2).map(|index| Gpu::of_size(index, Vram::from_mib(80_000))).collect();
    let contents = Ok(Contents { gpus, replicas: NonZeroU32::new(replicas).unwrap() });
    let resource = Resource("nvidia.com/gpu".into());
    let pool = Pool {
        resource,
        sharing: Sharing::TimeSlicing,
        contents,
        allocation_policy: AllocationPolicy::Unverified,
        hard_limits: false,
        tells_processes: false,
    };
    NodeFacts { pools: vec![pool], ..NodeFacts::default() }
}

fn in_zone() -> Requirement {
    requirement("zone", Operator::In, &["a"])
}

fn holding(demand: Vram, placement: &Placement) -> Holder {
    let bounds = placement.required.iter().flatten().flat_map(|term| &term.labels);
    let above = bounds.filter(|r| r.key == "vramguard.dev/pod-max-mib" && r.operator == Operator::Gt);
    Holder {
        name: PodName { namespace: "ml".into(), name: "llm".into() },
        request: Some(demand),
        parts: vec![Part { container: "main".into(), role: Role::App, amount: Amount::Requested(demand), gpu: None }]
            .into(),
        gpus: vec![(Resource("nvidia.com/gpu".into()), 1)].into(),
        label_at_least: above.map(|r| Vram::from_mib(r.values[0].parse::<u64>().unwrap() + 1)).max(),
        needs_label: false,
        priority: 0,
        starting: None,
        bound: None,
        annotated: true,
    }
}

/// Whether the required affinity holds as Kubernetes evaluates it, our label included.
fn holds(placement: &Placement, label: Option<u64>) -> bool {
    let label = label.map(|label| label.to_string());
    let of = |key: &str| match key {
        "vramguard.dev/pod-max-mib" => label.as_deref(),
        "zone" => Some("a"),
        _ => None,
    };
    let term = |term: &Term| !term.is_empty() && term.labels.iter().all(|r| r.holds(of(&r.key)));
    placement.required.as_ref().is_none_or(|terms| terms.iter().any(term))
}

/// The placement of a pod after `/mutate/pods`.
fn mutated(mut placement: Placement, demand: Vram) -> Placement {
    let needs = NodeNeeds { avoid_shared: false, pod_max_at_least: Some(demand) };
    if let Some(Affinity::Terms(new)) = placement.affinity_for(&needs, None) {
        let old = placement.required.take().unwrap_or_default();
        let term = |new: &NewTerm| {
            let mut term = new.from.map(|from| old[from].clone()).unwrap_or_default();
            new.without.iter().rev().for_each(|index| _ = term.labels.remove(*index));
            term.labels.extend(new.with.iter().cloned());
            term
        };
        placement.required = Some(new.iter().map(term).collect());
    }
    placement
}

proptest! {
    /// A kubelet that restarts finds the affinity of each of its pods fulfilled and room for all of them, whatever is
    /// created, copied, bound and reconfigured before. No pod has more than two terms, and mutating a pod again changes
    /// nothing.
    #[test]
    fn no_kubelet_that_starts_ends_a_pod_for_what_its_node_publishes(steps in steps()) {
        let mut cluster = Cluster::new(Rules::default(), BTreeSet::new());
        let mut replicas = 4;
        cluster.apply_node("n", two_gpus(replicas));
        let mut published = Published::default();
        let mut pods: Vec<(Vram, Placement)> = Vec::new();
        let mut bound: BTreeSet<usize> = BTreeSet::new();
        let mut ended: BTreeSet<usize> = BTreeSet::new();
        let uid = |pod: usize| PodUid::from(pod.to_string());
        for step in steps {
            match step {
                Step::Create { demand, zone } => {
                    let required = zone.then(|| vec![Term { labels: vec![in_zone()], ..Term::default() }]);
                    let own = Placement { required, ..Placement::default() };
                    pods.push((Vram::from_mib(demand), mutated(own, Vram::from_mib(demand))));
                }
                Step::Copy { of, demand } => {
                    let Some((_, placement)) = pods.get(of).cloned() else { continue };
                    pods.push((Vram::from_mib(demand), mutated(placement, Vram::from_mib(demand))));
                }
                Step::Bind(pod) => {
                    let Some((demand, placement)) = pods.get(pod).filter(|_| !bound.contains(&pod) && !ended.contains(&pod)) else { continue };
                    let requested: Vram = bound.iter().map(|pod| pods[*pod].0).sum();
                    let fits = requested.plus(*demand) <= published.number && bound.len() < 2 * replicas as usize;
                    if fits && holds(placement, published.label) {
                        bound.insert(pod);
                        cluster.apply_pod(&uid(pod), "n", holding(*demand, placement));
                    }
                }
                Step::End(pod) => {
                    if bound.remove(&pod) {
                        ended.insert(pod);
                        cluster.delete_pod(&uid(pod));
                    }
                }
                Step::Replicas(number) => {
                    replicas = number;
                    cluster.apply_node("n", two_gpus(number));
                }
                Step::Publish => {
                    let usage = cluster.node("n").unwrap().usage;
                    published = Published { label: usage.pod_max.map(Vram::mib), number: usage.published.unwrap() };
                }
                Step::Restart => {
                    let requested: Vram = bound.iter().map(|pod| pods[*pod].0).sum();
                    prop_assert!(requested <= published.number);
                    for pod in &bound {
                        prop_assert!(holds(&pods[*pod].1, published.label), "{:?} at {:?}", pods[*pod], published.label);
                    }
                }
            }
            let Some((demand, placement)) = pods.last() else { continue };
            prop_assert!(placement.required.as_ref().is_none_or(|terms| terms.len() <= 2));
            prop_assert_eq!(&mutated(placement.clone(), *demand), placement);
        }
    }
}
