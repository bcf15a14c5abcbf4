//! Pods are created, filtered and bound in a simulated cluster, and the cluster keeps the results.

use serde_json::json;

use super::*;
use crate::capacity::name::PodUid;
use crate::capacity::verdict::Reason;
use crate::k8s::{document, snapshot};

const SCHEDULER: &str = "system:kube-scheduler";

/// `one` has one GPU of 24 GiB, `two` has two of them; each GPU has four replicas.
fn simulation() -> Simulation {
    let node = |name: &str, gpus: u32| {
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": name, "labels": {
                "nvidia.com/gpu.memory": "24576", "nvidia.com/gpu.count": gpus.to_string(),
                "nvidia.com/gpu.replicas": "4", "nvidia.com/gpu.sharing-strategy": "time-slicing",
            } },
            "status": { "capacity": { "nvidia.com/gpu": (4 * gpus).to_string() } },
        })
    };
    let objects = json!({ "kind": "List", "items": [node("one", 1), node("two", 2)] }).to_string();
    let policy = "{apiVersion: vramguard.dev/v1alpha1, kind: ClusterVramPolicy, metadata: {name: cluster}, spec: {mode: Enforce}}";
    let configuration = document::read([("policy", policy)]).unwrap();
    let policies = Policies::new(&configuration.documents, "vramguard-system");
    Simulation::new(&snapshot::read([("cluster", objects.as_str())]).unwrap(), policies, &[])
}

fn pod(vram: &str) -> Value {
    json!({
        "metadata": { "generateName": "llm-", "namespace": "ml", "annotations": { "vramguard.dev/vram": vram } },
        "spec": { "containers": [{ "name": "main", "resources": { "limits": { "nvidia.com/gpu": "1" } } }] },
    })
}

fn created(simulation: &mut Simulation, vram: &str) -> PodObject {
    let admission = simulation.create(&pod(vram), "alice").unwrap();
    assert_eq!(admission.denial, None);
    admission.object().unwrap()
}

fn held(simulation: &Simulation, node: &str) -> (u64, usize) {
    let pool = &simulation.cluster().node(node).unwrap().usage.pools[0];
    (pool.held.mib(), pool.holders)
}

#[test]
fn a_created_pod_carries_its_request_and_an_identity_of_its_own() {
    let mut simulation = simulation();
    let [first, second] = [(); 2].map(|()| created(&mut simulation, "8Gi"));
    assert_eq!(first.metadata.name.as_deref(), Some("llm-1"));
    assert_eq!(second.metadata.uid.as_deref(), Some("simulated-2"));
    assert_eq!(Guarded::of(&first).unwrap().holder.request.unwrap().mib(), 8912);
}

#[test]
fn a_bound_pod_holds_on_its_node_and_the_next_one_finds_less_room() {
    let mut simulation = simulation();
    let [first, second, third] = [(); 3].map(|()| created(&mut simulation, "8Gi"));
    for pod in [&first, &second] {
        assert_eq!(simulation.filter(pod, "one"), Ok(()));
        let bound = simulation.bind(pod, "one", SCHEDULER).unwrap();
        assert_eq!(bound.metadata.annotations.unwrap()["vramguard.dev/gpu.main"], "0");
        assert_eq!(bound.spec.node_name.as_deref(), Some("one"));
    }
    assert_eq!(held(&simulation, "one"), (2 * 8912, 2));
    assert_eq!(
        simulation.filter(&third, "one").unwrap_err(),
        "node(s) had no room for 8912Mi on one GPU (exact accounting)"
    );
}

#[test]
fn a_reservation_is_written_to_the_ledger_of_the_node_and_counted_once() {
    let mut simulation = simulation();
    let pod = created(&mut simulation, "4Gi");
    simulation.bind(&pod, "two", SCHEDULER).unwrap();
    let ledger = simulation.cluster().node("two").unwrap().ledger;
    assert!(ledger.content().unwrap().reservations.contains(&PodUid::from("simulated-1")));
    assert_eq!(held(&simulation, "two"), (4816, 1));
}

#[test]
fn a_binding_is_refused_as_the_guard_refuses_it() {
    let mut simulation = simulation();
    let [small, large] = ["4Gi", "8Gi"].map(|vram| created(&mut simulation, vram));
    let refused = |result: Result<PodObject, Refusal>| result.unwrap_err().reason();
    assert_eq!(refused(simulation.bind(&large, "two", SCHEDULER)), Reason::VramShortfall);
    assert_eq!(refused(simulation.bind(&small, "one", "mallory")), Reason::ForeignBinder);
    assert_eq!(refused(simulation.bind(&small, "cpu", SCHEDULER)), Reason::NodeUnaccounted);
    assert_eq!((held(&simulation, "one"), held(&simulation, "two")), ((0, 0), (0, 0)));
    let bound = simulation.bind(&small, "one", SCHEDULER).unwrap();
    assert_eq!(refused(simulation.bind(&bound, "one", SCHEDULER)), Reason::AlreadyBound);
}

#[test]
fn a_dry_run_keeps_nothing() {
    let mut simulation = simulation();
    let pod = created(&mut simulation, "4Gi");
    let before = format!("{:?}", simulation.cluster());
    assert!(simulation.would_bind(&pod, "two", SCHEDULER).unwrap().contains_key("vramguard.dev/gpu-total-mib"));
    simulation.review(&super::tests::pod("8Gi"), "alice").unwrap();
    assert_eq!(format!("{:?}", simulation.cluster()), before);
}

#[test]
fn a_refused_pod_is_not_created() {
    let mut simulation = simulation();
    let admission = simulation.create(&pod("8GB"), "alice").unwrap();
    let denial = admission.denial.unwrap();
    assert_eq!((denial.code, denial.reason.as_str()), (422, "VramUnreadable"));
    assert_eq!(admission.pod, pod("8GB"), "it has neither name nor uid");
}

#[test]
fn a_pod_that_a_kubelet_mirrors_holds_at_once() {
    let mut simulation = simulation();
    let mut mirror = pod("8Gi");
    mirror["metadata"]["annotations"]["kubernetes.io/config.mirror"] = json!("x");
    mirror["spec"]["nodeName"] = json!("one");
    assert_eq!(simulation.create(&mirror, "system:node:one").unwrap().denial, None);
    assert_eq!(held(&simulation, "one").1, 1);
}

#[test]
fn a_pod_is_scheduled_to_the_fullest_node_that_fits_or_told_what_is_missing() {
    let mut simulation = simulation();
    let [first, large, small] = ["8Gi", "20Gi", "4Gi"].map(|vram| created(&mut simulation, vram));
    let scheduled = |simulation: &Simulation, pod| schedule(simulation.cluster(), &Guarded::of(pod).unwrap());
    assert_eq!(scheduled(&simulation, &first), Scheduled::On("one".into()), "a slot of node two is smaller");
    simulation.bind(&first, "one", SCHEDULER).unwrap();
    let Scheduled::Pending(Some(shortfall)) = scheduled(&simulation, &large) else { panic!("it fits nowhere") };
    assert_eq!((shortfall.demand.mib(), shortfall.best.unwrap().free.mib()), (21_200, 23_870 - 8912));
    assert_eq!(scheduled(&simulation, &small), Scheduled::On("two".into()), "it has the least room that fits");
}

#[test]
fn what_is_no_pod_is_an_error_and_not_a_refusal() {
    let error = simulation().review(&json!({ "spec": 3 }), "alice").unwrap_err();
    assert!(error.to_string().starts_with("pod: "), "{error}");
    let mut creation = Creation::new(pod("8Gi"), "alice");
    let answer = Answered { patch: Some("%".into()), ..Answered::default() };
    assert!(creation.mutated(answer).unwrap_err().to_string().starts_with("the answer holds no JSON Patch: "));
    let patch = r#"[{"op": "remove", "path": "/nowhere"}]"#;
    let answer = Answered { patch: Some(base64(patch)), ..Answered::default() };
    assert!(creation.mutated(answer).unwrap_err().to_string().starts_with("the patch does not apply: "));
}

fn base64(text: &str) -> String {
    use ::base64::{Engine, prelude::BASE64_STANDARD};
    BASE64_STANDARD.encode(text)
}
