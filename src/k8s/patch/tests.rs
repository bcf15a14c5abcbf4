//! Patches applied to the object that was sent, as the API server does.

use serde_json::{Value, json};

use super::*;
use crate::capacity::admission::environment::Variable;
use crate::capacity::pod::placement::NodeNeeds;
use crate::capacity::vram::Vram;

fn patched(pod: &Value, changes: &Changes) -> Value {
    let object: PodObject = serde_json::from_value(pod.clone()).unwrap();
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &operations(&object, changes)).expect("the patch applies");
    pod
}

/// Changes that consist of the pod's affinity only.
fn needing(pod: &Value, needs: NodeNeeds) -> Changes {
    let object: PodObject = serde_json::from_value(pod.clone()).unwrap();
    let affinity = crate::k8s::pod::translate(&object, None, None).placement.affinity_for(&needs, None);
    Changes { affinity, ..Changes::default() }
}

fn full_change() -> Changes {
    let env = vec![
        Variable { name: "VRAMGUARD_VRAM_MIB", value: environment::Value::Literal("8192".into()) },
        Variable { name: "CUDA_DEVICE_ORDER", value: environment::Value::Literal("PCI_BUS_ID".into()) },
    ];
    let change = ContainerChange { request: Some(Vram::from_mib(8912)), env, ..ContainerChange::default() };
    Changes { containers: vec![change], ..Changes::default() }
}

#[test]
fn what_is_missing_on_the_way_is_created() {
    let wanted = json!({ "vramguard.dev/vram": "8912Mi" });
    for resources in [Value::Null, json!({}), json!({ "limits": {} }), json!({ "limits": {}, "requests": {} })] {
        let mut container = json!({ "name": "main" });
        // `resources` always exists if a container requests a GPU; only its maps may be missing.
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
        let patched = patched(&pod, &needing(&pod, NodeNeeds { avoid_shared: true, pod_max_at_least: None }));
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
        // A selector without terms matches no node, and no requirement can change that.
        (required(json!([])), json!([])),
    ] {
        let pod = json!({ "spec": { "affinity": affinity, "containers": [] } });
        let pod_max_at_least = Some(Vram::from_mib(8912));
        let patched = patched(&pod, &needing(&pod, NodeNeeds { avoid_shared: false, pod_max_at_least }));
        let required = &patched["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        assert_eq!(required["nodeSelectorTerms"], expected);
    }
}

#[test]
fn unshared_nodes_are_required_in_each_alternative() {
    let needs = NodeNeeds { avoid_shared: true, pod_max_at_least: Some(Vram::from_mib(8912)) };
    let zone = json!({ "key": "zone", "operator": "Exists" });
    let unshared =
        json!({ "key": "nvidia.com/gpu.sharing-strategy", "operator": "NotIn", "values": ["time-slicing", "mps"] });
    let unlabelled = json!({ "key": "vramguard.dev/pod-max-mib", "operator": "DoesNotExist" });
    let large = json!({ "key": "vramguard.dev/pod-max-mib", "operator": "Gt", "values": ["8911"] });
    let required = json!({ "nodeSelectorTerms": [{ "matchExpressions": [zone] }] });
    for (required, theirs) in [(Value::Null, vec![]), (required, vec![zone])] {
        let affinity = json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": required } });
        let pod = json!({ "spec": { "affinity": affinity, "containers": [] } });
        let patched = patched(&pod, &needing(&pod, needs));
        let required = &patched["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        let term = |ours: [&Value; 2]| {
            let all: Vec<&Value> = theirs.iter().chain(ours).collect();
            json!({ "matchExpressions": all })
        };
        assert_eq!(required["nodeSelectorTerms"], json!([term([&unshared, &unlabelled]), term([&unshared, &large])]));
    }
}

const REQUIRED_PATH: &str = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution";

fn terms_of(pod: &Value) -> Value {
    pod.pointer(REQUIRED_PATH).map_or(Value::Null, |required| required["nodeSelectorTerms"].clone())
}

/// Regression: each copy of a mutated pod with another demand had twice the terms. An agent that restarted with more
/// memory after each out-of-memory failure got 2, 4, 8, then 16.
#[test]
fn terms_do_not_multiply_when_a_pod_is_copied_with_another_demand() {
    let zone = json!({ "key": "zone", "operator": "In", "values": ["a"] });
    let unlabelled = json!({ "key": "vramguard.dev/pod-max-mib", "operator": "DoesNotExist" });
    let above = |mib: u64| json!({ "key": "vramguard.dev/pod-max-mib", "operator": "Gt", "values": [mib.to_string()] });
    for affinity in [
        Value::Null,
        json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{ "matchExpressions": [zone] }],
        } } }),
    ] {
        let with = |ours: Value| if affinity.is_null() { vec![ours] } else { vec![zone.clone(), ours] };
        let mut pod = json!({ "spec": { "affinity": affinity, "containers": [] } });
        for mib in [1744, 2768, 8912, 3792, 1744] {
            let needs = NodeNeeds { avoid_shared: false, pod_max_at_least: Some(Vram::from_mib(mib)) };
            pod = patched(&pod, &needing(&pod, needs));
            assert_eq!(
                terms_of(&pod),
                json!([
                    { "matchExpressions": with(unlabelled.clone()) }, { "matchExpressions": with(above(mib - 1)) },
                ])
            );
            assert_eq!(needing(&pod, needs).affinity, None, "said twice it is the same");
        }
    }
}

#[test]
fn a_requirement_on_our_label_that_somebody_wrote_is_replaced() {
    let theirs = json!({ "key": "vramguard.dev/pod-max-mib", "operator": "Lt", "values": ["5"] });
    let zone = json!({ "key": "zone", "operator": "Exists" });
    let required = |terms: Value| {
        json!({ "spec": { "containers": [], "affinity": { "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms } } } } })
    };
    let needs = NodeNeeds { avoid_shared: false, pod_max_at_least: Some(Vram::from_mib(100)) };
    let ours = [
        json!({ "key": "vramguard.dev/pod-max-mib", "operator": "DoesNotExist" }),
        json!({ "key": "vramguard.dev/pod-max-mib", "operator": "Gt", "values": ["99"] }),
    ];
    for (terms, expected) in [
        (
            json!([{ "matchExpressions": [theirs, zone, theirs] }]),
            json!([{ "matchExpressions": [zone, ours[0]] }, { "matchExpressions": [zone, ours[1]] }]),
        ),
        (
            json!([{ "matchExpressions": [theirs] }, { "matchExpressions": [zone] }]),
            json!([{ "matchExpressions": [ours[0]] }, { "matchExpressions": [ours[1]] }]),
        ),
        (
            json!([{ "matchExpressions": [theirs, zone] }, {}, { "matchExpressions": [zone] }]),
            json!([{ "matchExpressions": [zone, ours[0]] }, {}, { "matchExpressions": [zone, ours[1]] }]),
        ),
    ] {
        let pod = required(terms);
        assert_eq!(terms_of(&patched(&pod, &needing(&pod, needs))), expected);
    }
    let alone = required(json!([{ "matchExpressions": [theirs] }]));
    let patched = patched(&alone, &needing(&alone, NodeNeeds::default()));
    assert_eq!(patched["spec"]["affinity"], json!({ "nodeAffinity": {} }), "nothing is required any more");
}

#[test]
fn each_entry_of_a_variable_is_taken_out_before_ours_are_put_in() {
    let theirs = |value: &str| json!({ "name": "NVIDIA_VISIBLE_DEVICES", "value": value });
    let other = json!({ "name": "HOME", "value": "/root" });
    let pod = json!({ "spec": { "containers": [{ "name": "main", "resources": {}, "env": [theirs("0"), other, theirs("all")] }] } });
    let mut changes = full_change();
    changes.containers[0].remove_env = Some("NVIDIA_VISIBLE_DEVICES");
    let names: Vec<Value> = patched(&pod, &changes)["spec"]["containers"][0]["env"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["name"].clone())
        .collect();
    assert_eq!(names, ["VRAMGUARD_VRAM_MIB", "CUDA_DEVICE_ORDER", "HOME"]);
}

#[test]
fn a_node_selector_on_our_label_is_taken_out() {
    let pod =
        json!({ "spec": { "containers": [], "nodeSelector": { "vramguard.dev/pod-max-mib": "5", "zone": "a" } } });
    let changes = Changes { unselect: vec!["vramguard.dev/pod-max-mib".into()], ..Changes::default() };
    assert_eq!(patched(&pod, &changes)["spec"]["nodeSelector"], json!({ "zone": "a" }));
}

#[test]
fn a_rerouted_pod_keeps_its_own_preferences_before_those_for_pools() {
    use crate::capacity::pod::placement::FallbackPool;
    let own = json!({ "weight": 7, "preference": { "matchExpressions": [{ "key": "a", "operator": "Exists" }] } });
    let preferring = |own: Value| json!({ "nodeAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": own } });
    let pools = [FallbackPool([("pool".to_owned(), "big".to_owned())].into())];
    for (affinity, before) in [
        (Value::Null, 0),
        (json!({}), 0),
        (json!({ "podAffinity": {} }), 0),
        (json!({ "nodeAffinity": null }), 0),
        (preferring(Value::Null), 0),
        (preferring(json!([])), 0),
        (preferring(json!([own])), 1),
    ] {
        let mut pod =
            json!({ "metadata": { "name": "p" }, "spec": { "nodeSelector": { "pool": "small", "zone": "a" } } });
        if !affinity.is_null() {
            pod["spec"]["affinity"] = affinity;
        }
        let object: PodObject = serde_json::from_value(pod.clone()).unwrap();
        let placement = crate::k8s::pod::translate(&object, None, None).placement;
        let reroute = placement.reroute(&pools).unwrap().unwrap();
        let changes = Changes {
            affinity: placement.affinity_for(&NodeNeeds::default(), Some(&reroute)),
            unselect: reroute.moved.clone(),
            annotate: [("vramguard.dev/own-pool".to_owned(), reroute.own.to_string())].into(),
            reroute: Some(reroute),
            ..Changes::default()
        };
        let pod = patched(&pod, &changes);
        let affinity = &pod["spec"]["affinity"]["nodeAffinity"];
        let preferred = affinity["preferredDuringSchedulingIgnoredDuringExecution"].as_array().unwrap();
        let weights: Vec<_> = preferred.iter().map(|term| term["weight"].as_u64().unwrap()).collect();
        assert_eq!(weights, if before == 1 { vec![7, 100, 50] } else { vec![100, 50] }, "{pod}");
        assert_eq!(pod["spec"]["nodeSelector"], json!({ "zone": "a" }));
        assert_eq!(pod["metadata"]["annotations"], json!({ "vramguard.dev/own-pool": "pool=small" }));
        let terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"].as_array();
        assert_eq!(terms.map(Vec::len), Some(2), "{pod}");
    }
}

#[test]
fn a_value_is_changed_where_it_stands_and_no_other_entry_moves() {
    let entry = |name: &str, value: &str| json!({ "name": name, "value": value });
    let env = [entry("NVIDIA_VISIBLE_DEVICES", "0"), entry("PYTORCH_CUDA_ALLOC_CONF", "old"), entry("HOME", "/root")];
    let last = entry("PYTORCH_CUDA_ALLOC_CONF", "theirs");
    let pod = json!({ "spec": { "containers": [{ "resources": {}, "env": [env[0], env[1], env[2], last] }] } });
    let mut changes = full_change();
    changes.containers[0].remove_env = Some("NVIDIA_VISIBLE_DEVICES");
    let value = environment::Value::Literal("theirs,ours".into());
    changes.containers[0].edit_env = vec![Variable { name: "PYTORCH_CUDA_ALLOC_CONF", value }];
    changes.containers[0].env.clear();
    let expected = json!([env[1], env[2], entry("PYTORCH_CUDA_ALLOC_CONF", "theirs,ours")]);
    assert_eq!(patched(&pod, &changes)["spec"]["containers"][0]["env"], expected);
}

#[test]
fn a_flag_is_appended_to_the_list_that_is_there() {
    for (list, command, args) in [
        (ArgumentList::Args, json!(["a"]), json!(["b", "--flag=1"])),
        (ArgumentList::Command, json!(["a", "--flag=1"]), json!(["b"])),
    ] {
        let pod = json!({ "spec": { "containers": [{ "command": ["a"], "args": ["b"] }] } });
        let argument = Some(environment::Argument { list, text: "--flag=1".into() });
        let container = ContainerChange { argument, ..ContainerChange::default() };
        let patched = patched(&pod, &Changes { containers: vec![container], ..Changes::default() });
        let container = &patched["spec"]["containers"][0];
        assert_eq!((&container["command"], &container["args"]), (&command, &args));
    }
}

#[test]
fn annotations_are_set_whether_or_not_the_pod_has_any() {
    let annotate = BTreeMap::from([("vramguard.dev/bounded-by.main".to_owned(), "plan".to_owned())]);
    let changes = Changes { annotate, ..Changes::default() };
    for (before, after) in [
        (json!({}), json!({ "vramguard.dev/bounded-by.main": "plan" })),
        (json!({ "annotations": { "a": "b" } }), json!({ "a": "b", "vramguard.dev/bounded-by.main": "plan" })),
        (
            json!({ "annotations": { "vramguard.dev/bounded-by.main": "driver" } }),
            json!({ "vramguard.dev/bounded-by.main": "plan" }),
        ),
    ] {
        let pod = patched(&json!({ "metadata": before, "spec": {} }), &changes);
        assert_eq!(pod["metadata"]["annotations"], after);
    }
}
