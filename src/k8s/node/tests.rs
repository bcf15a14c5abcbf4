//! Labels and capacity as real nodes have them, matching and contradicting.

use serde_json::json;

use super::*;
use crate::capacity::gpu::{Accounting, Rules};

fn node(labels: &[(&str, &str)], capacity: &[(&str, &str)]) -> NodeFacts {
    facts(&object(labels, capacity), &[])
}

fn object(labels: &[(&str, &str)], capacity: &[(&str, &str)]) -> NodeObject {
    let map = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|&(k, v)| (k.to_owned(), json!(v))).collect::<serde_json::Map<_, _>>()
    };
    serde_json::from_value(json!({
        "metadata": { "name": "gpu-0", "labels": map(labels) },
        "status": { "capacity": map(capacity), "allocatable": map(capacity) },
    }))
    .unwrap()
}

fn labels<'a>(memory: &'a str, count: &'a str, replicas: &'a str, sharing: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        ("nvidia.com/gpu.memory", memory),
        ("nvidia.com/gpu.count", count),
        ("nvidia.com/gpu.replicas", replicas),
        ("nvidia.com/gpu.sharing-strategy", sharing),
    ]
}

fn modes(facts: &NodeFacts) -> Vec<(&str, Accounting)> {
    facts.pools.iter().map(|pool| (pool.resource.0.as_str(), pool.accounting())).collect()
}

fn why(facts: &NodeFacts) -> String {
    facts.pools[0].contents.as_ref().unwrap_err().to_string()
}

#[test]
fn one_time_sliced_gpu_is_exact() {
    let facts = node(&labels("24576", "1", "4", "time-slicing"), &[("nvidia.com/gpu", "4")]);
    assert_eq!(modes(&facts), [("nvidia.com/gpu", Accounting::Exact)]);
    assert_eq!(facts.pools[0].slot(&Rules::default()), Some(Vram::from_mib(23_870 / 4)));
}

#[test]
fn several_time_sliced_gpus_are_counted_by_slots() {
    let facts = node(&labels("81559", "8", "4", "time-slicing"), &[("nvidia.com/gpu", "32")]);
    assert_eq!(modes(&facts), [("nvidia.com/gpu", Accounting::Slot)]);
    assert_eq!(facts.pools[0].contents.as_ref().unwrap().gpus.len(), 8);
}

#[test]
fn a_node_that_does_not_share_is_exclusive() {
    for replicas in ["0", "1"] {
        let facts = node(&labels("81559", "2", replicas, "none"), &[("nvidia.com/gpu", "2")]);
        assert_eq!(modes(&facts), [("nvidia.com/gpu", Accounting::Exclusive)]);
    }
}

#[test]
fn renamed_and_whole_gpus_stand_side_by_side() {
    let labels = labels("40960", "4", "5", "time-slicing");
    let facts = node(&labels, &[("nvidia.com/gpu", "2"), ("nvidia.com/gpu.shared", "10")]);
    assert_eq!(modes(&facts), [("nvidia.com/gpu", Accounting::Exclusive), ("nvidia.com/gpu.shared", Accounting::Slot)]);
    let counts: Vec<usize> = facts.pools.iter().map(|pool| pool.contents.as_ref().unwrap().gpus.len()).collect();
    assert_eq!(counts, [2, 2]);
    let all_shared = node(&labels, &[("nvidia.com/gpu", "0"), ("nvidia.com/gpu.shared", "20")]);
    assert_eq!(modes(&all_shared), [("nvidia.com/gpu.shared", Accounting::Slot)]);
}

#[test]
fn labels_that_contradict_the_capacity_are_not_believed() {
    let mixed = node(&labels("24576", "1", "4", "time-slicing"), &[("nvidia.com/gpu", "8")]);
    assert_eq!(modes(&mixed), [("nvidia.com/gpu", Accounting::Unknown)]);
    assert!(mixed.pools[0].sharing.is_shared());
    assert_eq!(why(&mixed), "the labels say 1 GPUs with 4 replicas each, but the capacity of nvidia.com/gpu is 8");
    let odd =
        node(&labels("40960", "4", "5", "time-slicing"), &[("nvidia.com/gpu", "2"), ("nvidia.com/gpu.shared", "9")]);
    assert!(odd.pools.iter().all(|pool| pool.accounting() == Accounting::Unknown));
}

#[test]
fn a_missing_an_unreadable_and_a_zero_label_are_unknown_and_never_zero() {
    let capacity = [("nvidia.com/gpu", "4")];
    assert_eq!(why(&node(&[], &capacity)), "the node carries no nvidia.com/gpu.memory label");
    assert!(!node(&[], &capacity).pools[0].sharing.is_shared());
    for value in ["0", "", "24Gi", "-1", "99999999999999999999", "8796093022208"] {
        let facts = node(&labels(value, "1", "4", "time-slicing"), &capacity);
        assert!(why(&facts).contains("is not a whole number above zero"), "{value:?}: {}", why(&facts));
    }
    let facts = node(&labels("24576", "1", "4", "time-slicing"), &[("nvidia.com/gpu", "4.5")]);
    assert!(why(&facts).contains("\"4.5\", is not a whole number"), "{}", why(&facts));
}

#[test]
fn sharing_is_recognised_without_its_label() {
    let capacity = [("nvidia.com/gpu", "4")];
    for (key, value, shared) in [
        ("nvidia.com/gpu.replicas", "4", true),
        ("nvidia.com/gpu.product", "NVIDIA-L4-SHARED", true),
        ("nvidia.com/gpu.product", "NVIDIA-L4", false),
    ] {
        assert_eq!(node(&[(key, value)], &capacity).pools[0].sharing.is_shared(), shared, "{key}={value}");
    }
    assert!(node(&[], &[("nvidia.com/gpu.shared", "4")]).pools[0].sharing.is_shared());
}

#[test]
fn mig_devices_are_unknown_until_their_labels_are_read() {
    let facts = node(&labels("81559", "1", "1", "none"), &[("nvidia.com/mig-1g.10gb", "7")]);
    assert_eq!(modes(&facts), [("nvidia.com/mig-1g.10gb", Accounting::Unknown)]);
}

#[test]
fn a_node_without_gpus_has_no_pool() {
    assert_eq!(node(&[], &[("cpu", "8"), ("nvidia.com/gpu", "0")]).pools, []);
}

/// A real kubelet of 1.35 advertises 0 for some ten seconds after each restart.
#[test]
fn a_kubelet_that_starts_has_lost_no_gpu() {
    let one = labels("24576", "1", "4", "time-slicing");
    assert_eq!(node(&one, &[("nvidia.com/gpu", "0")]).pools, node(&one, &[("nvidia.com/gpu", "4")]).pools);
    assert_eq!(
        node(&one, &[("nvidia.com/gpu.shared", "0")]).pools,
        node(&one, &[("nvidia.com/gpu.shared", "4")]).pools
    );
    let whole = labels("81559", "2", "1", "none");
    assert_eq!(node(&whole, &[("nvidia.com/gpu", "0")]).pools, node(&whole, &[("nvidia.com/gpu", "2")]).pools);
    let renamed = [one.clone(), vec![("nvidia.com/gpu.product", "NVIDIA-L4-SHARED")]].concat();
    let left_over = [("nvidia.com/gpu", "0"), ("nvidia.com/gpu.shared", "0")];
    assert_eq!(modes(&node(&renamed, &left_over)), [("nvidia.com/gpu", Accounting::Exact)]);
    assert_eq!(node(&[], &[("nvidia.com/gpu", "0")]).pools, []);
    // With renameByDefault the labels do not say how many GPUs are shared: sharing is certain, the amount is unknown.
    let renamed = [one, vec![("nvidia.com/gpu.product", "NVIDIA-L4")]].concat();
    for whole in ["0", "2"] {
        let facts = node(&renamed, &[("nvidia.com/gpu", whole), ("nvidia.com/gpu.shared", "0")]);
        let shared = facts.pools.iter().find(|pool| pool.resource.0 == "nvidia.com/gpu.shared").unwrap();
        assert!(shared.sharing.is_shared() && shared.accounting() == Accounting::Unknown);
        assert!(facts.pools.iter().all(|pool| pool.resource.0 != "nvidia.com/gpu" || !pool.sharing.is_shared()));
    }
}

#[test]
fn an_operators_word_replaces_labels_but_not_the_capacity() {
    let described = Override {
        names: ["gpu-0".to_owned()].into(),
        labels: BTreeMap::new(),
        resource: Resource("nvidia.com/gpu".into()),
        sharing: Sharing::UnknownMethod,
        replicas: NonZeroU32::new(4).unwrap(),
        gpus: vec![Vram::from_mib(24_576), Vram::from_mib(81_559)],
        hard_limits: false,
    };
    let with = |count: &str| {
        facts(
            &object(&labels("24576", "1", "4", "time-slicing"), &[("nvidia.com/gpu", count)]),
            std::slice::from_ref(&described),
        )
    };
    assert_eq!(modes(&with("8")), [("nvidia.com/gpu", Accounting::Slot)]);
    assert_eq!(modes(&with("12")), [("nvidia.com/gpu", Accounting::Unknown)]);
    assert!(!with("8").pools[0].hard_limits);
    let limited = Override { hard_limits: true, ..described };
    let node = object(&labels("24576", "1", "4", "time-slicing"), &[("nvidia.com/gpu", "8")]);
    assert!(facts(&node, &[limited]).pools[0].hard_limits);
}

#[test]
fn a_cordoned_node_is_tainted() {
    let mut node = object(&[], &[]);
    node.spec.unschedulable = Some(true);
    assert_eq!(facts(&node, &[]).profile.taints.len(), 1);
}

#[test]
fn an_advertised_figure_is_compared_by_value() {
    assert!(advertises(Some("23870Mi"), Some(Vram::from_mib(23_870))));
    assert!(advertises(Some("25029509120"), Some(Vram::from_mib(23_870))));
    assert!(!advertises(Some("25029509121"), Some(Vram::from_mib(23_870))));
    assert!(!advertises(None, Some(Vram::ZERO)));
    assert!(!advertises(Some("0"), None));
    assert!(!advertises(Some("many"), Some(Vram::ZERO)));
}

#[test]
fn a_renamed_resource_is_known_once_a_gpu_inventory_describes_it() {
    let object =
        object(&labels("24576", "2", "4", "time-slicing"), &[("nvidia.com/gpu.small", "8"), ("nvidia.com/gpu", "0")]);
    let undescribed = facts(&object, &[]);
    assert_eq!(modes(&undescribed), [("nvidia.com/gpu.small", Accounting::Unknown)]);
    assert!(why(&undescribed).contains("name them in a GpuInventory"), "{}", why(&undescribed));
    let described = |sharing| Override {
        names: ["gpu-0".to_owned()].into(),
        labels: BTreeMap::new(),
        resource: Resource("nvidia.com/gpu.small".into()),
        sharing,
        replicas: NonZeroU32::new(8).unwrap(),
        gpus: vec![Vram::from_mib(24_576)],
        hard_limits: false,
    };
    let facts = |sharing| facts(&object, &[described(sharing)]);
    assert_eq!(modes(&facts(Sharing::UnknownMethod)), [("nvidia.com/gpu.small", Accounting::Exact)]);
    assert_eq!(modes(&facts(Sharing::Mps)), [("nvidia.com/gpu.small", Accounting::Slot)]);
    // A starting kubelet advertises zero until the device plugin has registered again.
    let mut starting = object.clone();
    starting.status.capacity.insert("nvidia.com/gpu.small".into(), serde_json::from_value(json!("0")).unwrap());
    let facts = super::facts(&starting, &[described(Sharing::UnknownMethod)]);
    assert_eq!(modes(&facts), [("nvidia.com/gpu.small", Accounting::Exact)]);
}

#[test]
fn a_label_says_mps_where_the_operators_word_leaves_it_open() {
    let object = object(&labels("24576", "1", "4", "mps"), &[("nvidia.com/gpu", "4")]);
    assert_eq!(modes(&facts(&object, &[])), [("nvidia.com/gpu", Accounting::Slot)]);
    let described = Override {
        names: ["gpu-0".to_owned()].into(),
        labels: BTreeMap::new(),
        resource: Resource("nvidia.com/gpu".into()),
        sharing: Sharing::UnknownMethod,
        replicas: NonZeroU32::new(4).unwrap(),
        gpus: vec![Vram::from_mib(24_576)],
        hard_limits: false,
    };
    assert_eq!(modes(&facts(&object, &[described])), [("nvidia.com/gpu", Accounting::Slot)]);
}

#[test]
fn a_node_has_unusable_gpus_if_allocatable_is_below_its_capacity_or_labels() {
    let shared = labels("24576", "2", "4", "time-slicing");
    let unusable = |labels: &[(&str, &str)], capacity: &[(&str, &str)], allocatable: &[(&str, &str)]| {
        let mut node = object(labels, capacity);
        node.status.allocatable =
            allocatable.iter().map(|&(name, amount)| (name.to_owned(), Quantity(amount.to_owned()))).collect();
        let found = super::unusable(&node, &[]);
        found.iter().map(|found| (found.resource.to_string(), found.has, found.usable)).collect::<Vec<_>>()
    };
    let gpu = |has, usable| vec![("nvidia.com/gpu".to_owned(), has, usable)];
    assert_eq!(unusable(&shared, &[("nvidia.com/gpu", "8")], &[("nvidia.com/gpu", "0")]), gpu(8, 0));
    assert_eq!(unusable(&shared, &[("nvidia.com/gpu", "0")], &[("nvidia.com/gpu", "0")]), gpu(8, 0), "by its labels");
    assert_eq!(
        unusable(&shared, &[("nvidia.com/gpu", "8")], &[("nvidia.com/gpu", "4")]),
        gpu(8, 4),
        "one is unhealthy"
    );
    assert!(unusable(&shared, &[("nvidia.com/gpu", "8")], &[("nvidia.com/gpu", "8")]).is_empty());
    assert!(unusable(&shared, &[("nvidia.com/gpu", "8")], &[]).is_empty(), "missing is not zero");
    assert!(unusable(&[], &[("nvidia.com/gpu", "0")], &[("nvidia.com/gpu", "0")]).is_empty(), "it has no GPUs");
    let mig = [("nvidia.com/gpu", "0"), ("nvidia.com/mig-1g.10gb", "7")];
    assert!(unusable(&labels("24576", "1", "1", "none"), &mig, &mig).is_empty(), "all GPUs are behind another name");
}
