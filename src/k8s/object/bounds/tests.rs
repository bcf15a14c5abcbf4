use serde_json::{Value, json};

use crate::k8s::object::PodObject;
use crate::k8s::pod;

fn read(pod: &Value) -> PodObject {
    serde_json::from_str(&pod.to_string()).expect("a pod of any size is read")
}

/// A pod with one GPU and the fields of `spec`.
fn with(spec: &Value) -> PodObject {
    let mut pod = json!({ "spec": {
        "containers": [{ "name": "main", "resources": { "limits": { "nvidia.com/gpu": "1" } } }],
    } });
    for (key, value) in spec.as_object().expect("fields") {
        pod["spec"][key] = value.clone();
    }
    read(&pod)
}

fn said(object: &PodObject) -> Option<(&str, usize, usize, bool)> {
    let excess = object.excess.as_ref()?;
    Some((&excess.field, excess.count, excess.most, excess.hides_gpus))
}

fn required(terms: &Value) -> Value {
    json!({ "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms } } } })
}

fn values(count: usize) -> Value {
    json!({ "matchExpressions": [{ "key": "a", "operator": "NotIn", "values": vec!["a"; count] }] })
}

#[test]
fn each_list_of_a_pod_is_named_with_its_count_and_its_bound_where_it_is_too_long() {
    let numbered = |count: usize| -> Value { (0..count).map(|n| (format!("k{n}"), json!("1"))).collect() };
    let at = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution";
    let container = |field: &str, value: Value| json!({ "containers": [{ "name": "main", field: value }] });
    let our_bound =
        |values: usize| json!({ "key": "vramguard.dev/pod-max-mib", "operator": "Gt", "values": vec!["1"; values] });
    let bound = || json!({ "matchExpressions": [our_bound(1)] });
    let ours = vec![json!({ "name": "NVIDIA_VISIBLE_DEVICES", "value": "all" }); 65];
    for (spec, field, count, most, hides) in [
        (json!({ "containers": vec![json!({}); 129] }), "spec.containers".to_owned(), 129, 128, true),
        (json!({ "initContainers": vec![json!({}); 130] }), "spec.initContainers".to_owned(), 130, 128, true),
        (
            container("resources", json!({ "limits": numbered(65) })),
            "spec.containers[0].resources.limits".into(),
            65,
            64,
            true,
        ),
        (
            container("resources", json!({ "requests": numbered(65) })),
            "spec.containers[0].resources.requests".into(),
            65,
            64,
            true,
        ),
        (container("env", json!(ours)), "spec.containers[0].env".into(), 65, 64, true),
        (json!({ "containers": [{ "name": "x".repeat(254) }] }), "spec.containers[0].name".into(), 254, 253, false),
        (json!({ "nodeSelector": numbered(129) }), "spec.nodeSelector".to_owned(), 129, 128, false),
        (json!({ "tolerations": vec![json!({}); 257] }), "spec.tolerations".to_owned(), 257, 256, false),
        (required(&json!(vec![json!({}); 65])), format!("{at}.nodeSelectorTerms"), 65, 64, false),
        (required(&json!(vec![bound(); 129])), format!("{at}.nodeSelectorTerms"), 129, 64, false),
        (
            required(&json!([{}, { "matchFields": vec![json!({}); 65] }])),
            format!("{at}.nodeSelectorTerms[1].matchFields"),
            65,
            62,
            false,
        ),
        // Our requirements and their values count too if the list has further requirements that are not read.
        (
            required(&json!([{ "matchExpressions": vec![our_bound(1); 65] }])),
            format!("{at}.nodeSelectorTerms[0].matchExpressions"),
            65,
            62,
            false,
        ),
        (
            required(&json!([{ "matchExpressions": [our_bound(16_769)] }])),
            format!("{at} (values of all its terms)"),
            16_769,
            8192,
            false,
        ),
        (required(&json!([values(5000), values(3193)])), format!("{at} (values of all its terms)"), 8193, 8192, false),
    ] {
        let object = with(&spec);
        assert_eq!(said(&object), Some((field.as_str(), count, most, hides)));
    }
    let annotations: Value = (0..641).map(|n| (format!("vramguard.dev/vram.c{n}"), json!("1Gi"))).collect();
    let object = read(&json!({ "metadata": { "annotations": annotations } }));
    assert_eq!(said(&object), Some(("metadata.annotations", 641, 640, false)));
}

#[test]
fn a_pod_at_its_bounds_is_read_whole() {
    let env: Vec<Value> = (0..5000).map(|n| json!({ "name": format!("V{n}"), "value": "x" })).collect();
    let annotations: Value = (0..5000).map(|n| (format!("example.com/a{n}"), json!("x"))).collect();
    let mut pod = required(&json!([values(8000), values(192)]));
    pod["containers"] = json!(vec![json!({ "name": "c", "env": env }); 2]);
    pod["tolerations"] = json!(vec![json!({ "operator": "Exists" }); 256]);
    let object = read(&json!({ "metadata": { "annotations": annotations }, "spec": pod }));
    assert_eq!(object.excess, None);
    let placement = pod::translate(&object, None, None).placement;
    let terms = placement.required.expect("it was required");
    assert_eq!(terms.iter().map(|term| term.labels[0].values.len()).sum::<usize>(), 8192);
    assert_eq!(placement.tolerations.len(), 256);
}

#[test]
fn a_gpu_is_counted_however_many_containers_and_resources_stand_before_it() {
    let mut containers = vec![json!({ "name": "idle" }); 1000];
    containers.push(
        json!({ "name": "late", "resources": { "limits": { "nvidia.com/gpu": "1", "vramguard.dev/vram": "8Gi" } } }),
    );
    let of_others: Value = (0..1000).map(|n| (format!("a.example/{n}"), json!("1"))).collect();
    let zeros: Value = (0..1000).map(|n| (format!("nvidia.com/a{n}"), json!("0"))).collect();
    let behind = |mut limits: Value| {
        limits["nvidia.com/gpu"] = json!("1");
        limits["vramguard.dev/vram"] = json!("8Gi");
        json!([{ "name": "main", "resources": { "limits": limits } }])
    };
    let mut unasking = vec![json!({ "name": "idle", "resources": { "limits": { "nvidia.com/gpu": "0" } } }); 1000];
    unasking.extend(containers.last().cloned());
    for containers in [json!(containers), json!(unasking), behind(of_others), behind(zeros)] {
        let request = Some("8Gi");
        let object = read(&json!({ "spec": { "nodeName": "gpu-0", "containers": containers } }));
        assert!(object.excess.as_ref().is_some_and(|excess| excess.hides_gpus));
        let (_, node, holder) = pod::holder(&object).expect("it holds a GPU");
        assert_eq!((node.as_str(), holder.gpus.len()), ("gpu-0", 1));
        assert_eq!(holder.request.map(|request| request.to_string()).as_deref(), request);
    }
}

#[test]
fn conditions_that_matter_are_read_behind_any_number_of_others() {
    let mut conditions = vec![json!({ "type": "Odd", "status": "True" }); 500];
    conditions.push(json!({ "type": "PodScheduled", "status": "False", "reason": "Unschedulable" }));
    let object = read(&json!({ "status": { "conditions": conditions } }));
    assert!(pod::is_unschedulable(&object));
    assert_eq!(said(&object), Some(("status.conditions", 501, 64, false)));
}

#[test]
fn a_field_that_may_hide_a_gpu_is_named_before_one_that_hides_none() {
    let object = read(&json!({
        "metadata": { "annotations": (0..300).map(|n| (format!("vramguard.dev/x{n}"), json!(""))).collect::<Value>() },
        "spec": { "containers": vec![json!({}); 200], "tolerations": vec![json!({}); 300] },
    }));
    assert_eq!(said(&object), Some(("spec.containers", 200, 128, true)));
}

#[test]
fn of_an_environment_only_what_vramguard_reads_is_kept_with_its_place() {
    let env = json!([
        { "name": "A", "value": "1" }, { "name": "CUDA_DEVICE_ORDER", "value": "x" }, { "name": "B" },
        { "name": "NVIDIA_VISIBLE_DEVICES", "value": "all" },
    ]);
    let object = with(&json!({ "containers": [{ "env": env }, { "env": [{ "name": "A" }] }, { "env": [] }, {}] }));
    let kept = |index: usize| object.spec.containers[index].env.as_ref();
    let places: Vec<(usize, &str)> =
        kept(0).expect("it is there").iter().map(|entry| (entry.index, entry.name.as_str())).collect();
    assert_eq!(places, [(1, "CUDA_DEVICE_ORDER"), (3, "NVIDIA_VISIBLE_DEVICES")]);
    assert!(kept(1).is_some_and(|env| env.is_empty()) && kept(2).is_some());
    assert!(kept(3).is_none());
}

/// What `/mutate` makes of a pod must pass `/validate`.
#[test]
fn a_rerouted_pod_stays_within_what_is_read() {
    use crate::capacity::pod::placement;
    use crate::k8s::object::bounds;
    const { assert!(placement::MAX_ALTERNATIVES <= bounds::MAX_TERMS) };
    const { assert!(placement::MAX_VALUES <= bounds::MAX_VALUES) };
    const { assert!(placement::MAX_REQUIREMENTS <= bounds::MAX_REQUIREMENTS) };
}
