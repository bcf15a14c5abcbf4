//! Patches applied to the very object, as the API server does it.

use serde_json::{Value, json};

use super::*;
use crate::capacity::environment::Variable;
use crate::capacity::vram::Vram;

fn patched(pod: &Value, changes: &Changes) -> Value {
    let object: PodObject = serde_json::from_value(pod.clone()).unwrap();
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &operations(&object, changes)).expect("the patch applies");
    pod
}

fn full_change() -> Changes {
    let env = vec![
        Variable { name: "VRAMGUARD_VRAM_MIB", value: environment::Value::Literal("8192".into()) },
        Variable { name: "CUDA_DEVICE_ORDER", value: environment::Value::Literal("PCI_BUS_ID".into()) },
    ];
    let change = ContainerChange { request: Some(Vram::from_mib(8912)), env };
    Changes { containers: vec![change], ..Changes::default() }
}

#[test]
fn what_is_missing_on_the_way_is_created() {
    let wanted = json!({ "vramguard.dev/vram": "8912Mi" });
    for resources in [Value::Null, json!({}), json!({ "limits": {} }), json!({ "limits": {}, "requests": {} })] {
        let mut container = json!({ "name": "main" });
        // `resources` itself always exists where a container requests a GPU; only its maps may be missing.
        container["resources"] = if resources.is_null() { json!({}) } else { resources };
        let pod = patched(&json!({ "spec": { "containers": [container] } }), &full_change());
        let resources = &pod["spec"]["containers"][0]["resources"];
        assert_eq!((&resources["limits"], &resources["requests"]), (&wanted, &wanted));
    }
}

#[test]
fn ours_stand_before_the_users_in_order() {
    let ours = [
        json!({ "name": "VRAMGUARD_VRAM_MIB", "value": "8192" }),
        json!({ "name": "CUDA_DEVICE_ORDER", "value": "PCI_BUS_ID" }),
    ];
    let theirs = json!({ "name": "ARGS", "value": "--mib $(VRAMGUARD_VRAM_MIB)" });
    for (env, expected) in [
        (json!([theirs]), json!([ours[0], ours[1], theirs])),
        (json!([]), json!([ours[0], ours[1]])),
        (Value::Null, json!([ours[0], ours[1]])),
    ] {
        let pod = json!({ "spec": { "containers": [{ "name": "main", "resources": {}, "env": env }] } });
        assert_eq!(patched(&pod, &full_change())["spec"]["containers"][0]["env"], expected);
    }
}

#[test]
fn nothing_to_change_is_no_operation() {
    let object: PodObject = serde_json::from_value(json!({ "spec": { "containers": [{ "name": "main" }] } })).unwrap();
    let nothing = Changes { containers: vec![ContainerChange::default()], ..Changes::default() };
    assert_eq!(operations(&object, &nothing).0, []);
    assert_eq!(operations(&object, &Changes::default()).0, []);
}

#[test]
fn annotations_are_taken_off_by_their_escaped_name() {
    let pod = json!({ "metadata": { "annotations": { "vramguard.dev/gpu.main": "x", "keep": "y" } }, "spec": {} });
    let changes = Changes { strip: vec!["vramguard.dev/gpu.main".into()], ..Changes::default() };
    assert_eq!(patched(&pod, &changes)["metadata"]["annotations"], json!({ "keep": "y" }));
}

#[test]
fn unshared_nodes_are_required_beside_everything_else_that_is() {
    let requirement =
        json!({ "key": "nvidia.com/gpu.sharing-strategy", "operator": "NotIn", "values": ["time-slicing", "mps"] });
    let alone = json!({ "nodeSelectorTerms": [{ "matchExpressions": [requirement] }] });
    let zone = json!({ "key": "zone", "operator": "In", "values": ["a"] });
    let name = json!({ "key": "metadata.name", "operator": "In", "values": ["n"] });
    let required = |terms: Value| json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms } } });
    for (affinity, expected) in [
        (Value::Null, alone.clone()),
        (json!({}), alone.clone()),
        (json!({ "podAntiAffinity": {} }), alone.clone()),
        (json!({ "nodeAffinity": {} }), alone.clone()),
        (
            required(json!([{ "matchExpressions": [zone] }, { "matchFields": [name] }, {}])),
            json!({ "nodeSelectorTerms": [
                { "matchExpressions": [zone, requirement] },
                { "matchFields": [name], "matchExpressions": [requirement] },
                {},
            ] }),
        ),
    ] {
        let pod = json!({ "spec": { "affinity": affinity, "containers": [] } });
        let changes = Changes { avoid_shared: true, ..Changes::default() };
        let patched = patched(&pod, &changes);
        let node_affinity = &patched["spec"]["affinity"]["nodeAffinity"];
        assert_eq!(node_affinity["requiredDuringSchedulingIgnoredDuringExecution"], expected);
        if affinity.get("podAntiAffinity").is_some() {
            assert!(patched["spec"]["affinity"].get("podAntiAffinity").is_some());
        }
    }
}

#[test]
fn each_alternative_of_theirs_has_to_hold_with_one_of_ours() {
    let unlabelled = json!({ "key": "vramguard.dev/pod-max-mib", "operator": "DoesNotExist" });
    let large = json!({ "key": "vramguard.dev/pod-max-mib", "operator": "Gt", "values": ["8911"] });
    let zone = |zone: &str| json!({ "key": "zone", "operator": "In", "values": [zone] });
    let name = json!({ "key": "metadata.name", "operator": "In", "values": ["n"] });
    let required = |terms: Value| json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms } } });
    for (affinity, expected) in [
        (Value::Null, json!([{ "matchExpressions": [unlabelled] }, { "matchExpressions": [large] }])),
        (json!({ "podAffinity": {} }), json!([{ "matchExpressions": [unlabelled] }, { "matchExpressions": [large] }])),
        (
            required(json!([
                { "matchExpressions": [zone("a")] },
                {},
                { "matchFields": [name], "matchExpressions": null },
                { "matchFields": [name], "matchExpressions": [zone("b")] },
                { "matchFields": [], "matchExpressions": [] },
            ])),
            json!([
                { "matchExpressions": [zone("a"), unlabelled] },
                {},
                { "matchFields": [name], "matchExpressions": [unlabelled] },
                { "matchFields": [name], "matchExpressions": [zone("b"), unlabelled] },
                { "matchFields": [], "matchExpressions": [] },
                { "matchExpressions": [zone("a"), large] },
                { "matchFields": [name], "matchExpressions": [large] },
                { "matchFields": [name], "matchExpressions": [zone("b"), large] },
            ]),
        ),
        // Nothing matches nothing, with whatever else.
        (required(json!([])), json!([])),
    ] {
        let pod = json!({ "spec": { "affinity": affinity, "containers": [] } });
        let pod_max = Some(Vram::from_mib(8912));
        let patched = patched(&pod, &Changes { pod_max, ..Changes::default() });
        let required = &patched["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        assert_eq!(required["nodeSelectorTerms"], expected);
    }
}

#[test]
fn unshared_nodes_are_required_in_each_alternative() {
    let changes = Changes { avoid_shared: true, pod_max: Some(Vram::from_mib(8912)), ..Changes::default() };
    let zone = json!({ "key": "zone", "operator": "Exists" });
    let unshared =
        json!({ "key": "nvidia.com/gpu.sharing-strategy", "operator": "NotIn", "values": ["time-slicing", "mps"] });
    let unlabelled = json!({ "key": "vramguard.dev/pod-max-mib", "operator": "DoesNotExist" });
    let large = json!({ "key": "vramguard.dev/pod-max-mib", "operator": "Gt", "values": ["8911"] });
    let required = json!({ "nodeSelectorTerms": [{ "matchExpressions": [zone] }] });
    for (required, theirs) in [(Value::Null, vec![]), (required, vec![zone])] {
        let affinity = json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": required } });
        let patched = patched(&json!({ "spec": { "affinity": affinity, "containers": [] } }), &changes);
        let required = &patched["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        let term = |ours: [&Value; 2]| {
            let all: Vec<&Value> = theirs.iter().chain(ours).collect();
            json!({ "matchExpressions": all })
        };
        assert_eq!(required["nodeSelectorTerms"], json!([term([&unshared, &unlabelled]), term([&unshared, &large])]));
    }
}
