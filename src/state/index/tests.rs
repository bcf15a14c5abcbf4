//! Events are folded into the index as the watches deliver them.

use serde_json::json;

use super::*;
use crate::capacity::vram::Vram;

fn index() -> Index {
    Index::new(Rules::default(), Vec::new())
}

fn node(capacity: Value) -> NodeObject {
    serde_json::from_value(json!({
        "metadata": { "name": "gpu-0", "labels": {
            "nvidia.com/gpu.memory": "24576", "nvidia.com/gpu.count": "1", "nvidia.com/gpu.replicas": "4",
            "nvidia.com/gpu.sharing-strategy": "time-slicing",
        } },
        "status": { "capacity": capacity, "allocatable": capacity },
    }))
    .unwrap()
}

fn gpus() -> Value {
    json!({ "nvidia.com/gpu": "4" })
}

fn pod(uid: &str, node: Option<&str>, phase: &str) -> PodObject {
    let resources = json!({ "nvidia.com/gpu": "1", "vramguard.dev/vram": "8Gi" });
    let conditions = if node.is_none() {
        json!([{ "type": "PodScheduled", "status": "False", "reason": "Unschedulable" }])
    } else {
        json!([])
    };
    serde_json::from_value(json!({
        "metadata": { "name": uid, "namespace": "ml", "uid": uid },
        "spec": { "nodeName": node, "containers": [{ "name": "main", "resources": { "limits": resources } }] },
        "status": { "phase": phase, "conditions": conditions },
    }))
    .unwrap()
}

fn free(index: &Index) -> Vram {
    index.read().cluster.node("gpu-0").unwrap().usage.free
}

#[test]
fn a_pod_counts_until_it_ends() {
    let index = index();
    index.apply_node(&node(gpus()));
    index.apply_pod(&pod("a", Some("gpu-0"), "Running"));
    assert_eq!(free(&index), Vram::from_mib(23_870 - 8192));
    index.apply_pod(&pod("a", Some("gpu-0"), "Succeeded"));
    assert_eq!(free(&index), Vram::from_mib(23_870));
}

#[test]
fn it_is_not_synced_before_all_lists_are_read() {
    let index = index();
    assert!(!index.is_synced());
    index.reset_nodes(&BTreeSet::new());
    assert!(!index.is_synced());
    index.reset_pods(&BTreeSet::new());
    assert!(!index.is_synced());
    index.reset_ledgers(&BTreeSet::new());
    assert!(index.is_synced());
}

#[test]
fn a_relist_takes_away_what_it_does_not_name() {
    let index = index();
    index.apply_node(&node(gpus()));
    index.apply_pod(&pod("a", Some("gpu-0"), "Running"));
    index.apply_pod(&pod("b", None, "Pending"));
    index.reset_pods(&BTreeSet::from([PodUid::from("b")]));
    assert_eq!(free(&index), Vram::from_mib(23_870));
    assert_eq!(index.read().waiting.len(), 1);
    index.reset_pods(&BTreeSet::new());
    assert!(index.read().waiting.is_empty());
    index.reset_nodes(&BTreeSet::new());
    assert!(index.read().cluster.node("gpu-0").is_none());
}

#[test]
fn a_pod_waits_until_it_is_bound() {
    let index = index();
    index.apply_pod(&pod("a", None, "Pending"));
    assert_eq!(index.read().waiting.iter().next().unwrap().1.demand, Vram::from_mib(8192));
    index.apply_pod(&pod("a", Some("gpu-0"), "Pending"));
    assert!(index.read().waiting.is_empty());
}

#[test]
fn a_pod_that_is_not_read_whole_is_counted_by_what_was_read_and_named() {
    let index = index();
    index.apply_node(&node(gpus()));
    let large = |containers: usize, node: Option<&str>| {
        let idle = (0..containers).map(|n| json!({ "name": format!("idle-{n}") }));
        let resources = json!({ "limits": { "nvidia.com/gpu": "1", "vramguard.dev/vram": "8Gi" } });
        let containers: Vec<Value> = idle.chain([json!({ "name": "main", "resources": resources })]).collect();
        serde_json::from_value(json!({
            "metadata": { "name": "a", "namespace": "ml", "uid": "a" },
            "spec": { "nodeName": node, "containers": containers },
        }))
        .unwrap()
    };
    index.apply_pod(&large(127, Some("gpu-0")));
    assert_eq!(index.oversized_pods(), 0);
    index.apply_pod(&large(10_000, Some("gpu-0")));
    assert_eq!(index.oversized_pods(), 1);
    assert_eq!(free(&index), Vram::from_mib(23_870 - 8192));
    index.reset_pods(&BTreeSet::from([PodUid::from("a")]));
    assert_eq!(index.oversized_pods(), 1);
    index.delete_pod(&large(10_000, Some("gpu-0")));
    assert_eq!((index.oversized_pods(), free(&index)), (0, Vram::from_mib(23_870)));
}

#[test]
fn a_figure_that_somebody_takes_away_makes_its_node_stale() {
    let index = index();
    let published = json!({ "nvidia.com/gpu": "4", "vramguard.dev/vram": "23870Mi" });
    index.apply_node(&node(published.clone()));
    index.take_stale_nodes();
    index.apply_node(&node(published));
    assert_eq!(index.take_stale_nodes(), BTreeSet::new());
    index.apply_node(&node(gpus()));
    assert_eq!(index.take_stale_nodes(), BTreeSet::from(["gpu-0".to_owned()]));
}

#[test]
fn other_overrides_need_the_nodes_again() {
    let index = index();
    let described = Override {
        names: ["gpu-0".to_owned()].into(),
        labels: BTreeMap::new(),
        resource: Resource("nvidia.com/gpu".into()),
        sharing: crate::capacity::gpu::Sharing::UnknownMethod,
        replicas: 2.try_into().unwrap(),
        gpus: vec![Vram::from_mib(1000)],
        hard_limits: false,
    };
    assert!(index.set_rules(Rules::default(), std::slice::from_ref(&described)));
    assert!(!index.set_rules(Rules::default(), &[described]));
    assert!(index.read().cluster.guards(&Resource("nvidia.com/gpu".into())));
}

#[test]
fn the_pods_of_agents_are_kept_until_they_are_gone_and_no_other_pods_are() {
    let agent = |name: &str, phase: &str| -> PodObject {
        serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": "vramguard-agent", "uid": name },
            "spec": { "nodeName": "gpu-0", "containers": [
                { "name": "agent", "env": [{ "name": "VRAMGUARD_AGENT_POD_UID", "value": name }] },
            ] },
            "status": { "phase": phase },
        }))
        .unwrap()
    };
    let index = index();
    let known = |index: &Index| index.read().cluster.agent_pods().map(ToString::to_string).collect::<Vec<_>>();
    for name in ["a", "b", "c", "d"] {
        index.apply_pod(&agent(name, "Running"));
    }
    index.apply_pod(&pod("with-gpu", Some("gpu-0"), "Running"));
    assert_eq!(known(&index), ["a", "b", "c", "d"]);
    assert!(index.knows(&PodUid::from("a".to_owned())), "a relist must remember that it named the pod");
    index.delete_pod(&agent("a", "Running"));
    index.apply_pod(&agent("b", "Failed"));
    index.reset_pods(&BTreeSet::from([PodUid::from("c".to_owned()), PodUid::from("with-gpu".to_owned())]));
    assert_eq!(known(&index), ["c"]);
}
