//! Pods that may use further pools.

use super::*;
use crate::capacity::pod::placement::FallbackPool;
use crate::capacity::policy::OnShortfall;

/// The share of its own pool would be more than its budget on the larger GPUs of the further pool.
#[test]
fn a_rerouted_pod_is_told_no_share_if_the_further_pool_has_gpus_of_another_size() {
    let labels = |product: &str| BTreeMap::from([("product".to_owned(), product.to_owned())]);
    let given = Given { image: "nvcr.io/nvidia/jax:25.10-py3", ..Given::default() };
    let told = |on_shortfall: OnShortfall, further: u64| {
        let mut cluster = Cluster::new(rules(), [gpu()].into_iter().collect());
        for (product, total) in [("own", 81_920), ("further", further)] {
            let mut node = facts(vec![pool(&[total], 4)]);
            node.profile.labels = [("product".into(), product.into())].into_iter().collect();
            cluster.apply_node(product, node);
        }
        let mut pod = given.pod();
        pod.placement.node_selector = labels("own");
        let mut policy = given.policy();
        policy.on_shortfall = on_shortfall;
        policy.reroute_pools = vec![FallbackPool(labels("further"))].into();
        let changes = assess(&pod, &policy, &cluster).changes();
        assert_eq!(changes.reroute.is_some(), on_shortfall == OnShortfall::Reroute);
        changes.containers[0].env.iter().any(|variable| variable.name == keys::XLA_PYTHON_CLIENT_MEM_FRACTION)
    };
    assert!(told(OnShortfall::Wait, 143_771), "it stays in its own pool");
    assert!(told(OnShortfall::Reroute, 81_920), "all GPUs have one size");
    assert!(!told(OnShortfall::Reroute, 143_771));
}

/// A cluster of pools of nodes, each with one node, by the label `product`.
fn cluster(pools: Vec<(&str, Pool)>) -> Cluster {
    let mut cluster = Cluster::new(rules(), [gpu()].into_iter().collect());
    for (product, pool) in pools {
        let mut node = facts(vec![pool]);
        node.profile.labels = [("product".into(), product.into())].into_iter().collect();
        cluster.apply_node(product, node);
    }
    cluster
}

/// A pod of pool `own` under a policy that opens the pool `further`, and that policy.
fn rerouted(given: &Given<'_>) -> (Pod, Policy) {
    let labels = |product: &str| BTreeMap::from([("product".to_owned(), product.to_owned())]);
    let mut pod = given.pod();
    pod.placement.node_selector = labels("own");
    let mut policy = given.policy();
    policy.on_shortfall = OnShortfall::Reroute;
    policy.reroute_pools = vec![FallbackPool(labels("further"))].into();
    (pod, policy)
}

/// The request was the slot of the own pool, and the validating webhook, which sees all pools, refused it.
#[test]
fn a_rerouted_pod_that_declares_nothing_counts_as_the_smallest_slot_of_all_its_pools() {
    let (pod, policy) = rerouted(&Given { declared: None, ..Given::default() });
    let slots = |pools: Vec<(&str, Pool)>| {
        let cluster = cluster(pools);
        let changes = assess(&pod, &policy, &cluster).changes();
        assert!(changes.reroute.is_some());
        changes.containers[0].request.unwrap()
    };
    let small = || pool(&[24_576], 4);
    let large = || pool(&[81_920], 4);
    let other = || ("other", pool(&[16_384], 8));
    let both = slots(vec![("own", large()), ("further", small()), other()]);
    assert_eq!(both, mib(24_576 / 4));
    assert_eq!(slots(vec![("further", small()), other()]), both, "its own pool has no node at present");
}

#[test]
fn a_pod_with_several_gpus_is_not_rerouted_to_nodes_that_share_without_saying_so() {
    let (mut pod, policy) = rerouted(&Given::default());
    pod.containers[0].gpus = vec![(gpu(), 2)];
    let exclusive = || Pool { sharing: Sharing::Exclusive, ..pool(&[81_920, 81_920], 1) };
    let shares = cluster(vec![("own", exclusive()), ("further", pool(&[24_576], 4))]);
    assert_eq!(assess(&pod, &policy, &shares).changes().reroute, None);
    let unshared = cluster(vec![("own", exclusive()), ("further", exclusive())]);
    assert!(assess(&pod, &policy, &unshared).changes().reroute.is_some());
}

/// The first pass looked at the shared node that it then excluded, and the second one at the other node alone.
#[test]
fn what_a_pod_is_told_depends_on_the_nodes_that_are_left_after_all_changes() {
    let given = Given { image: "nvcr.io/nvidia/jax:25.10-py3", ..Given::default() };
    let mut pod = given.pod();
    let second = Container { name: "second".into(), gpus: vec![(gpu(), 2)], ..pod.containers[0].clone() };
    pod.containers.push(second);
    let declared = pod.declarations.pod.take().unwrap();
    pod.declarations.containers.insert("main".into(), declared);
    let mut cluster = Cluster::new(rules(), [gpu()].into_iter().collect());
    let mut shared = facts(vec![pool(&[24_576], 4)]);
    shared.profile.labels = [(keys::GFD_SHARING.into(), keys::SHARING_TIME_SLICING.into())].into_iter().collect();
    cluster.apply_node("shared", shared);
    cluster.apply_node("whole", facts(vec![Pool { sharing: Sharing::Exclusive, ..pool(&[81_920, 81_920], 1) }]));
    let policy = given.policy();
    let first = assess(&pod, &policy, &cluster).changes();
    pod.placement = pod.placement.kept_off_shared();
    let second = assess(&pod, &policy, &cluster).changes();
    let told = |changes: &Changes| changes.containers.iter().map(|change| change.env.clone()).collect::<Vec<_>>();
    assert_eq!(told(&first), told(&second));
    assert!(first.containers[0].env.iter().any(|variable| variable.name == keys::XLA_PYTHON_CLIENT_MEM_FRACTION));
}
