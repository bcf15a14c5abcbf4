use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::{Affinity, NewTerm, NodeNeeds, NodeProfile};
use super::*;
use crate::capacity::name::Name;
use crate::capacity::vram::Vram;

const PRODUCT: &str = "nvidia.com/gpu.product";

fn pool(labels: &[(&str, &str)]) -> FallbackPool {
    FallbackPool(labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
}

fn l40s() -> FallbackPool {
    pool(&[(PRODUCT, "L40S")])
}

fn requirement(key: &str, operator: Operator, values: &[&str]) -> Requirement {
    Requirement { key: key.to_owned(), operator, values: values.iter().map(|v| (*v).to_owned()).collect() }
}

fn term(labels: &[Requirement]) -> Term {
    Term { labels: labels.to_vec(), fields: Vec::new() }
}

fn selects(labels: &[(&str, &str)]) -> Placement {
    Placement { node_selector: pool(labels).0, ..Placement::default() }
}

fn node(labels: &[(&str, &str)]) -> NodeProfile {
    let labels = labels.iter().map(|(key, value)| (Name::from(*key), Name::from(*value)));
    NodeProfile { labels: labels.collect(), taints: Vec::new() }
}

fn rerouted(placement: &Placement, pools: &[FallbackPool]) -> Placement {
    placement.rerouted(&placement.reroute(pools).unwrap().expect("it is rerouted"))
}

/// The placement with the changes that `/mutate/pods` makes, applied as the patch applies them.
fn patched(placement: &Placement, pools: &[FallbackPool], needs: NodeNeeds) -> Placement {
    let reroute = placement.reroute(pools).unwrap();
    let mut patched = placement.clone();
    if let Some(affinity) = placement.affinity_for(&needs, reroute.as_ref()) {
        let old = placement.required.clone().unwrap_or_default();
        let term = |new: &NewTerm| {
            let mut term = new.from.map(|from| old[from].clone()).unwrap_or_default();
            new.without.iter().rev().for_each(|index| _ = term.labels.remove(*index));
            term.labels.extend(new.with.iter().cloned());
            term
        };
        patched.required = match affinity {
            Affinity::Nothing => None,
            Affinity::Terms(new) => Some(new.iter().map(term).collect()),
        };
    }
    if let Some(reroute) = reroute {
        patched.node_selector.retain(|key, _| !reroute.moved.contains(key));
        patched.own_pool = Some(reroute.own);
    }
    patched
}

#[test]
fn a_pod_of_a_full_pool_may_use_the_further_pool_and_everything_else_still_holds() {
    let own = selects(&[(PRODUCT, "A10"), ("zone", "a")]);
    let pod = rerouted(&own, &[l40s()]);
    for (labels, may) in [
        ([(PRODUCT, "A10"), ("zone", "a")], true),
        ([(PRODUCT, "L40S"), ("zone", "a")], true),
        ([(PRODUCT, "L40S"), ("zone", "b")], false),
        ([(PRODUCT, "H100"), ("zone", "a")], false),
    ] {
        assert_eq!(pod.allows("n", &node(&labels)), may, "{labels:?}");
    }
    assert_eq!(pod.own_pool.unwrap().to_string(), "nvidia.com/gpu.product=A10");
    let tainted = NodeProfile {
        taints: vec![super::super::Taint { key: "team".into(), value: "b".into(), effect: "NoSchedule".into() }],
        ..node(&[(PRODUCT, "L40S"), ("zone", "a")])
    };
    assert!(!rerouted(&own, &[l40s()]).allows("n", &tainted), "a pool with a taint stays closed");
}

#[test]
fn what_a_pod_excludes_is_not_its_own_pool() {
    let excludes =
        term(&[requirement(PRODUCT, Operator::In, &["A10", "T4"]), requirement(PRODUCT, Operator::NotIn, &["L40S"])]);
    let own = Placement { required: Some(vec![excludes]), ..Placement::default() };
    let pod = rerouted(&own, &[l40s(), pool(&[(PRODUCT, "H100")])]);
    assert!(!pod.allows("n", &node(&[(PRODUCT, "L40S")])));
    assert!(pod.allows("n", &node(&[(PRODUCT, "H100")])) && pod.allows("n", &node(&[(PRODUCT, "T4")])));
    let only_excludes = term(&[requirement(PRODUCT, Operator::NotIn, &["A10"])]);
    let only_excludes = Placement { required: Some(vec![only_excludes]), ..Placement::default() };
    assert_eq!(only_excludes.reroute(&[l40s()]), Ok(None), "it may use the further pool already");
}

#[test]
fn pods_that_are_not_rerouted() {
    let fields = Term { labels: Vec::new(), fields: vec![requirement("metadata.name", Operator::In, &["n"])] };
    let of_daemon_set = Placement { required: Some(vec![fields]), ..selects(&[(PRODUCT, "A10")]) };
    let none = Placement { required: Some(Vec::new()), ..selects(&[(PRODUCT, "A10")]) };
    let on_node = Placement { node_name: Some("n".into()), ..selects(&[(PRODUCT, "A10")]) };
    for (pod, why) in [
        (selects(&[("zone", "a")]), "it requires no pool"),
        (selects(&[(PRODUCT, "L40S")]), "its own pool is the only further one"),
        (of_daemon_set, "a DaemonSet's pod"),
        (none, "it matches no node"),
        (on_node, "it has a node"),
        (rerouted(&selects(&[(PRODUCT, "A10")]), &[l40s()]), "it has been rerouted"),
    ] {
        assert_eq!(pod.reroute(&[l40s()]), Ok(None), "{why}");
    }
    assert_eq!(selects(&[(PRODUCT, "A10")]).reroute(&[]), Ok(None), "the policy has no pools");
}

#[test]
fn its_own_pool_is_preferred_to_each_further_one_in_their_order() {
    let pools: Vec<FallbackPool> = (0..6).map(|number| pool(&[(PRODUCT, &format!("P{number}"))])).collect();
    let reroute = selects(&[(PRODUCT, "A10")]).reroute(&pools).unwrap().unwrap();
    let weights: Vec<u32> = reroute.preferences().iter().map(|preference| preference.weight).collect();
    assert_eq!(weights, [100, 50, 25, 12, 6, 3, 1]);
    assert_eq!(reroute.preferences()[0].requirements, [requirement(PRODUCT, Operator::In, &["A10"])]);
    assert_eq!(reroute.preferences()[1].requirements, [requirement(PRODUCT, Operator::In, &["P0"])]);
}

#[test]
fn a_pod_with_too_many_terms_or_values_is_left_as_it_is() {
    let zone = |zone: usize| term(&[requirement("zone", Operator::In, &[&zone.to_string()])]);
    let with =
        |terms: usize| Placement { required: Some((0..terms).map(zone).collect()), ..selects(&[(PRODUCT, "A10")]) };
    assert!(with(32).reroute(&[l40s()]).is_ok());
    assert_eq!(with(33).reroute(&[l40s()]), Err(TooManyAlternatives));
    let values: Vec<String> = (0..400).map(|number| number.to_string()).collect();
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    let long = Placement {
        required: Some(vec![term(&[requirement(PRODUCT, Operator::In, &values)])]),
        ..Placement::default()
    };
    assert_eq!(long.reroute(&[l40s()]), Err(TooManyAlternatives));
}

#[test]
fn an_own_pool_is_read_as_it_was_written() {
    let own = OwnPool(vec![
        vec![requirement(PRODUCT, Operator::In, &["A10", "T4"]), requirement("zone", Operator::In, &["a"])],
        vec![requirement("pool", Operator::In, &[""])],
    ]);
    assert_eq!(own.to_string(), "nvidia.com/gpu.product in (A10,T4) and zone=a or pool=");
    assert_eq!(OwnPool::parse(&own.to_string()), Some(own));
    for text in ["", "x", "=a", "a=b and ", "a in (b", " or a=b"] {
        assert_eq!(OwnPool::parse(text), None, "{text:?}");
    }
}

/// A small world: two labels name pools, one does not.
fn label() -> impl Strategy<Value = (&'static str, &'static str)> {
    (prop_oneof![Just("product"), Just("class"), Just("zone")], prop_oneof![Just("a"), Just("b"), Just("c")])
}

fn terms() -> impl Strategy<Value = Option<Vec<Term>>> {
    let operator = prop_oneof![3 => Just(Operator::In), 1 => Just(Operator::NotIn), 1 => Just(Operator::Exists)];
    let requirement = (operator, label()).prop_map(|(operator, (key, value))| match operator {
        Operator::Exists => requirement(key, operator, &[]),
        other => requirement(key, other, &[value]),
    });
    let term = prop::collection::vec(requirement, 0..4).prop_map(|labels| term(&labels));
    prop::option::of(prop::collection::vec(term, 0..4))
}

proptest! {
    /// Against the definition, by brute force over all nodes: a node is allowed if the pod allows it, or if it is in a
    /// further pool and the pod would allow it once its requirements on the pool's labels are left out. The patch leads to
    /// the same nodes, and a second pass changes nothing.
    #[test]
    fn a_rerouted_pod_may_use_its_own_nodes_and_those_of_the_further_pools_only(
        selector in prop::collection::btree_map(
            prop_oneof![Just("product"), Just("class"), Just("zone")], prop_oneof![Just("a"), Just("b"), Just("c")], 0..3),
        required in terms(),
        pools in prop::collection::vec(
            prop::collection::btree_map(prop_oneof![Just("product"), Just("class")], prop_oneof![Just("a"), Just("b"), Just("c")], 1..3), 1..4),
        demand in prop::option::of(1_u64..100),
    ) {
        let texts = |map: &BTreeMap<&str, &str>| map.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>();
        let own = Placement { node_selector: texts(&selector), required, ..Placement::default() };
        let pools: Vec<FallbackPool> = pools.iter().map(|pool| FallbackPool(texts(pool))).collect();
        let keys: BTreeSet<&str> = pools.iter().flat_map(|pool| pool.0.keys().map(String::as_str)).collect();
        let Ok(reroute) = own.reroute(&pools) else { return Ok(()) };
        let result = reroute.as_ref().map_or_else(|| own.clone(), |reroute| own.rerouted(reroute));
        let needs = NodeNeeds { avoid_shared: false, pod_max_at_least: demand.map(Vram::from_mib) };
        let patched_pod = patched(&own, &pools, needs);
        prop_assert_eq!(&patched(&patched_pod, &pools, needs), &patched_pod, "a second pass");
        let values = ["a", "b", "c", ""];
        for number in 0..values.len().pow(3) {
            let [product, class, zone] = [1, 4, 16].map(|digit| values[number / digit % values.len()]);
            let labels = [("product", product), ("class", class), ("zone", zone)];
            let labels: Vec<(&str, &str)> = labels.into_iter().filter(|(_, value)| !value.is_empty()).collect();
            let node = node(&labels);
            let in_pool = |pool: &FallbackPool| pool.0.iter().all(|(k, v)| labels.contains(&(k, v)));
            // What is left of the pod without its own pool, for each of its terms by itself.
            let selector_pins = own.node_selector.keys().any(|key| keys.contains(key.as_str()));
            let without = |term: &Term| {
                let labels = term.labels.iter().filter(|r| !(r.operator == Operator::In && keys.contains(r.key.as_str())));
                let rest: Vec<Requirement> = labels.cloned().collect();
                let pins = selector_pins || rest.len() < term.labels.len();
                pins.then_some(rest)
            };
            let selector_rest = own.node_selector.iter().filter(|(key, _)| !keys.contains(key.as_str()));
            let selector_holds = { let mut rest = selector_rest; rest.all(|(k, v)| labels.contains(&(k, v))) };
            let terms = own.required.clone().map_or_else(|| vec![Term::default()], |terms| terms.into_iter().filter(|term| !term.is_empty()).collect());
            let by_pool = terms.iter().filter_map(without).any(|rest| {
                let label = |key: &str| labels.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
                selector_holds && rest.iter().all(|r| r.holds(label(&r.key)))
            }) && pools.iter().any(in_pool);
            let expected = own.allows("n", &node) || by_pool;
            prop_assert_eq!(result.allows("n", &node), expected, "{:?}", labels);
            prop_assert_eq!(patched_pod.allows("n", &node), expected, "patched, {:?}", labels);
        }
    }
}

#[test]
fn an_own_pool_that_vramguard_did_not_write_is_not_read_however_long_it_is() {
    let long = vec!["a=b"; 60_000].join(" or ");
    assert_eq!(OwnPool::parse(&long), None);
    assert_eq!(OwnPool::parse("a=b or c in (d,e)").map(|own| own.size()), Some(5));
}

#[test]
fn a_pod_that_one_of_its_terms_leaves_free_is_not_rerouted() {
    let ours = term(&[requirement("vramguard.dev/pod-max-mib", Operator::Gt, &["100"])]);
    let pinned = term(&[requirement(PRODUCT, Operator::In, &["A10"])]);
    let pod = Placement { required: Some(vec![pinned, ours]), ..Placement::default() };
    assert_eq!(pod.reroute(&[l40s()]), Ok(None));
}

/// What is read of a pod is bounded, and each alternative copies what its author wrote.
#[test]
fn the_copies_of_what_an_author_wrote_are_bounded() {
    let names: Vec<String> = (0..1_000).map(|number| number.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let excludes = term(&[requirement("kubernetes.io/hostname", Operator::NotIn, &names)]);
    let pod = Placement { required: Some(vec![excludes]), ..selects(&[(PRODUCT, "A10")]) };
    let pools = |count: usize| (0..count).map(|number| pool(&[(PRODUCT, &format!("P{number}"))])).collect::<Vec<_>>();
    assert!(pod.reroute(&pools(2)).is_ok_and(|reroute| reroute.is_some()));
    assert_eq!(pod.reroute(&pools(6)), Err(TooManyAlternatives));
    let many: Vec<Requirement> =
        (0..48).map(|number| requirement(&format!("label-{number}"), Operator::Exists, &[])).collect();
    let pod = |count: usize| Placement { required: Some(vec![term(&many[..count])]), ..selects(&[(PRODUCT, "A10")]) };
    assert!(pod(47).reroute(&[l40s()]).is_ok());
    assert_eq!(pod(48).reroute(&[l40s()]), Err(TooManyAlternatives));
}
