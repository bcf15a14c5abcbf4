use std::collections::BTreeMap;

use super::*;
use crate::capacity::testing::{mib, pool, rules};
use crate::k8s::template;

fn node(name: &str, sizes: &[u64], labels: &[(&str, &str)]) -> (String, NodeFacts) {
    let labels: BTreeMap<String, String> = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let mut facts = NodeFacts { pools: vec![pool(sizes, 1)], ..NodeFacts::default() };
    facts.profile.labels = labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
    (name.to_owned(), facts)
}

fn declared(demand: u64, copies: Copies, selector: &[(&str, &str)]) -> Declared {
    let node_selector = selector.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Declared {
        object: "Deployment ml/w".to_owned(),
        resource: Resource(keys::GPU_RESOURCE.into()),
        demand: mib(demand),
        copies,
        placement: Placement { node_selector, ..template::anywhere() },
    }
}

#[test]
fn nodes_with_the_same_gpus_are_one_group_unless_their_demands_differ() {
    let nodes = [node("a", &[24_576], &[]), node("b", &[24_576], &[("team", "x")]), node("c", &[24_576], &[])];
    let bases = |declared: &[Declared]| -> Vec<(String, Vec<String>)> {
        let groups = Fleet::of(&nodes, declared).groups;
        groups.into_iter().map(|group| (group.base, group.nodes)).collect()
    };
    let named = |names: &[&str]| ("1x24gi".to_owned(), names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
    assert_eq!(bases(&[declared(1000, Copies::Exactly(1), &[])]), [named(&["a", "b", "c"])]);
    let picky = declared(1000, Copies::Exactly(1), &[("team", "x")]);
    assert_eq!(bases(&[picky]), [named(&["a", "c"]), named(&["b"])]);
}

#[test]
fn equal_demands_are_counted_together_and_a_daemon_set_once_a_node() {
    let nodes = [node("a", &[24_576], &[]), node("b", &[24_576], &[]), node("c", &[81_559], &[("big", "1")])];
    let all = [
        declared(1000, Copies::Exactly(3), &[]),
        declared(1000, Copies::Exactly(4), &[]),
        declared(2000, Copies::PerNode, &[]),
        declared(3000, Copies::PerNode, &[("big", "1")]),
    ];
    let fleet = Fleet::of(&nodes, &all);
    let wanted: Vec<(u64, Option<u64>, Vec<usize>)> = fleet
        .wanted(&all)
        .into_iter()
        .map(|(wanted, _)| (wanted.demand.mib(), wanted.count, wanted.pools.into_iter().collect()))
        .collect();
    assert_eq!(wanted, [(1000, Some(7), vec![0, 1]), (2000, Some(3), vec![0, 1]), (3000, Some(1), vec![1])]);
}

/// The names of all configs, and the config of each group.
fn named_configs(nodes: &[(String, NodeFacts)], demand: u64) -> (Vec<String>, Vec<String>) {
    let all = [declared(demand, Copies::Exactly(50), &[])];
    let fleet = Fleet::of(nodes, &all);
    let wanted: Vec<Wanted> = fleet.wanted(&all).into_iter().map(|(wanted, _)| wanted).collect();
    let plan = plan::plan(&fleet.pools(None), &wanted, &rules(), None);
    let (configs, names) = fleet.configs(&plan);
    (configs.into_iter().map(|config| config.name).collect(), names)
}

#[test]
fn one_config_for_all_is_the_default_and_several_leave_the_default_unshared() {
    let (small, large) = (node("a", &[24_000], &[]), node("b", &[80_000; 2], &[]));
    assert_eq!(named_configs(std::slice::from_ref(&small), 6000), (vec!["default".into()], vec!["default".into()]));
    let both = [small, large];
    let expected: [&[&str]; 2] = [&["default", "1x24gi-r4", "2x79gi-r13"], &["1x24gi-r4", "2x79gi-r13"]];
    let (configs, names) = named_configs(&both, 6000);
    assert_eq!([&configs[..], &names[..]], expected);
    let (configs, names) = named_configs(&both, 20_000);
    assert_eq!([&configs[..], &names[..]], [&["default", "2x79gi-r4"][..], &["default", "2x79gi-r4"]]);
}

#[test]
fn a_label_without_its_config_is_found_and_the_plan_is_compared_with_what_the_node_has() {
    let nodes = [node("a", &[24_000], &[]), node("b", &[24_000], &[])];
    let all = [declared(6000, Copies::Exactly(50), &[])];
    let fleet = Fleet::of(&nodes, &all);
    let wanted: Vec<Wanted> = fleet.wanted(&all).into_iter().map(|(wanted, _)| wanted).collect();
    let plan = plan::plan(&fleet.pools(None), &wanted, &rules(), None);
    let config = NamedConfig {
        name: "mine".into(),
        method: Method::TimeSlicing,
        rename_by_default: false,
        resources: vec![(keys::GPU_RESOURCE.to_owned(), 4)],
    };
    let text = super::super::config_map(
        "c",
        "n",
        &[NamedConfig { name: DEFAULT.into(), resources: vec![], ..config.clone() }, config],
    );
    let configs = lint::lint(&text).unwrap().configs;
    let label = |node: &str| Some(if node == "a" { "mine" } else { "gone" }.to_owned());
    let (findings, changes) = fleet.compare(&configs, &plan, &wanted, &rules(), label);
    assert_eq!(findings.len(), 1);
    assert!(
        findings[0].what.starts_with("the label nvidia.com/device-plugin.config=gone is on 1 node, "),
        "{findings:?}"
    );
    let changed: Vec<_> = changes.iter().map(|c| (c.nodes, c.config.as_deref(), c.from, c.to)).collect();
    assert_eq!(changed, [(1, None, 1, 4)]);
}
