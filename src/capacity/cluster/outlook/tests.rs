//! Tests of which pods wait and which never fit.

use std::collections::BTreeSet;

use super::*;
use crate::capacity::cluster::NodeFacts;
use crate::capacity::gpu::Rules;
use crate::capacity::pod::placement::NodeProfile;
use crate::capacity::testing::{gpu, pool};

fn add(cluster: &mut Cluster, name: &str, size: u64, gpus: u32, replicas: u32) {
    let pool = pool(&vec![size; gpus as usize], replicas);
    let labels = [("pool".into(), name.split('-').next().unwrap().into())].into_iter().collect();
    cluster.apply_node(
        name,
        NodeFacts { profile: NodeProfile { labels, taints: Vec::new() }, pools: vec![pool], ..NodeFacts::default() },
    );
}

fn on(pool: &str) -> Placement {
    Placement { node_selector: [("pool".to_owned(), pool.to_owned())].into(), ..Placement::default() }
}

fn outlook(cluster: &Cluster, demand: u64, placement: &Placement) -> Outlook {
    cluster.outlook(&gpu(), Vram::from_mib(demand), placement)
}

/// A node with eight GPUs of 80 GiB, and one with a single GPU of 24 GiB. Each GPU has four replicas.
fn cluster() -> Cluster {
    let mut cluster = Cluster::new(Rules::default(), BTreeSet::new());
    add(&mut cluster, "h-0", 81_559, 8, 4);
    add(&mut cluster, "l-0", 24_576, 1, 4);
    cluster
}

fn never(cluster: &Cluster, demand: u64, placement: &Placement) -> NeverFits {
    match outlook(cluster, demand, placement) {
        Outlook::NeverFits(never) => never,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_model_larger_than_a_slot_never_fits_and_the_replicas_that_would_hold_it_are_named() {
    let cluster = cluster();
    let slot = cluster.node("h-0").unwrap().facts.pools[0].slot(cluster.rules()).unwrap();
    assert_eq!(outlook(&cluster, slot.mib(), &on("h")), Outlook::Fits);
    let never = never(&cluster, 31_440, &on("h"));
    assert_eq!(never.largest, LargestNode { node: "h-0".into(), most: slot });
    let Remedy::FewerReplicas { fits: 2, replicas: 4, slot, .. } = never.remedy else { panic!("{never:?}") };
    // The named number of replicas holds the demand, and one more would not.
    let gpu = cluster.node("h-0").unwrap().facts.pools[0].smallest_gpu(cluster.rules()).unwrap();
    assert!(slot == gpu.share(2) && gpu.share(3) < Vram::from_mib(31_440));
}

#[test]
fn what_only_a_whole_gpu_holds_is_to_be_shared_with_nobody_and_what_none_holds_needs_a_larger_one() {
    let cluster = cluster();
    let remedy = |demand, placement| never(&cluster, demand, &placement).remedy;
    assert!(matches!(remedy(60_000, on("h")), Remedy::FewerReplicas { fits: 1, .. }));
    assert!(matches!(remedy(100_000, on("h")), Remedy::LargerGpu { node, .. } if node == "h-0"));
    // With one GPU, a pod may take all of it, so fewer replicas give it no more.
    assert!(matches!(remedy(30_000, on("l")), Remedy::LargerGpu { node, .. } if node == "l-0"));
    // The node that can take the most today is not the node that could take more with fewer replicas.
    let anywhere = never(&cluster, 30_000, &Placement::default());
    assert_eq!(anywhere.largest.node, "l-0");
    assert!(matches!(anywhere.remedy, Remedy::FewerReplicas { node, fits: 2, .. } if node == "h-0"));
}

#[test]
fn never_is_judged_over_the_nodes_that_the_pod_may_land_on() {
    let cluster = cluster();
    assert_eq!(outlook(&cluster, 22_000, &Placement::default()), Outlook::Fits);
    assert!(matches!(outlook(&cluster, 22_000, &on("h")), Outlook::NeverFits(_)));
    assert!(matches!(outlook(&cluster, 22_000, &on("nowhere")), Outlook::Waits(Shortfall { best: None, .. })));
}

#[test]
fn a_look_ends_after_so_many_nodes_and_the_pod_is_then_said_to_wait() {
    let mut cluster = Cluster::new(Rules::default(), BTreeSet::new());
    add(&mut cluster, "small-0", 24_576, 1, 4);
    for number in 0..MAX_NODES_COMPARED {
        add(&mut cluster, &format!("big-{number}"), 81_559, 1, 4);
    }
    assert!(matches!(outlook(&cluster, 30_000, &on("small")), Outlook::Waits(_)));
    cluster.delete_node("big-0");
    assert!(matches!(outlook(&cluster, 30_000, &on("small")), Outlook::NeverFits(_)));
}
