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
