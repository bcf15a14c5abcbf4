//! Pods as the API server sends them, translated.

use serde_json::{Value, json};

use super::*;

fn object(value: Value) -> PodObject {
    serde_json::from_value(value).unwrap()
}

fn gpu_container(name: &str) -> Value {
    json!({ "name": name, "resources": { "limits": { "nvidia.com/gpu": "1" }, "requests": { "nvidia.com/gpu": "1" } } })
}

fn bound(annotations: Value, containers: Value) -> PodObject {
    object(json!({
        "metadata": { "name": "llm", "namespace": "ml", "uid": "u", "annotations": annotations },
        "spec": { "nodeName": "gpu-0", "containers": containers },
        "status": { "phase": "Running" },
    }))
}

#[test]
fn nulls_are_absent() {
    let pod = object(json!({
        "metadata": { "name": null, "creationTimestamp": null, "annotations": null },
        "spec": { "containers": null, "initContainers": null, "nodeSelector": null, "tolerations": null, "affinity": null },
        "status": null,
    }));
    let pod = translate(&pod, Some("ml"), None);
    assert_eq!((pod.containers, pod.name.to_string()), (vec![], "\"ml/\"".to_owned()));
}

#[test]
fn the_name_may_have_to_be_generated() {
    let pod = object(json!({ "metadata": { "generateName": "llm-" }, "spec": {} }));
    assert_eq!(translate(&pod, Some("ml"), None).name.to_string(), "\"ml/llm-*\"");
}

#[test]
fn annotations_are_sorted_by_what_they_are() {
    let pod = bound(
        json!({
            "vramguard.dev/vram": "8Gi", "vramguard.dev/vram.main": "0Gi", "vramguard.dev/model": "m",
            "vramguard.dev/processes": "0", "vramguard.dev/gpu.main": "GPU-1", "vramguard.dev/gpu-total-mib": "1",
            "vramguard.dev/vram-fraction.main": "0.1", "vramguard.dev/vrma": "8Gi",
            "nvidia.com/container.main.gpu-memory.request": "8Gi", "nvidia.com/container.main.gpu-memory.limit": "0x8",
            "example.com/other": "ignored",
        }),
        json!([]),
    );
    let pod = translate(&pod, None, None);
    let declarations = pod.declarations;
    assert_eq!(declarations.pod.unwrap().amount, Ok(Vram::from_mib(8192)));
    assert_eq!(declarations.containers["main"].amount, Ok(Vram::ZERO));
    assert_eq!(declarations.processes, Some(Err("0".into())));
    assert_eq!(declarations.foreign["main"].len(), 2);
    assert_eq!(pod.reserved_annotations.len(), 3);
    assert_eq!(pod.unknown_annotations, ["vramguard.dev/vrma"]);
}

#[test]
fn a_mirror_pod_is_one_only_from_its_kubelet() {
    let pod = bound(json!({ "kubernetes.io/config.mirror": "x" }), json!([]));
    let origin = |user| translate(&pod, None, user).origin;
    assert_eq!(origin(Some("system:node:gpu-0")), Origin::Mirror);
    assert_eq!(origin(Some("alice")), Origin::Api);
    assert_eq!(origin(None), Origin::Api);
}

#[test]
fn requests_are_read_from_limits_and_requests() {
    let request = |resources: Value| {
        let pod = bound(json!({}), json!([{ "name": "main", "resources": resources }]));
        translate(&pod, None, None).containers.remove(0).vram_request
    };
    let exactly = VramRequest::Exactly(Vram::from_mib(8192));
    assert_eq!(request(json!({})), VramRequest::Absent);
    assert_eq!(request(json!({ "limits": { "vramguard.dev/vram": "8Gi" } })), exactly);
    assert_eq!(request(json!({ "requests": { "vramguard.dev/vram": "8192Mi" } })), exactly);
    assert_eq!(request(json!({ "limits": { "vramguard.dev/vram": 8_589_934_592_u64 } })), exactly);
    for (limit, counted) in [("8G", Some(7630)), ("garbage", None)] {
        let odd = VramRequest::Irregular { text: limit.into(), counted: counted.map(Vram::from_mib) };
        assert_eq!(request(json!({ "limits": { "vramguard.dev/vram": limit } })), odd);
    }
    let differ = json!({ "limits": { "vramguard.dev/vram": "8Gi" }, "requests": { "vramguard.dev/vram": "1Gi" } });
    assert!(matches!(request(differ), VramRequest::Irregular { .. }));
}

#[test]
fn init_containers_and_sidecars_count_as_kubernetes_counts_them() {
    let request = |mib: u64| json!({ "limits": { "nvidia.com/gpu": "1", "vramguard.dev/vram": format!("{mib}Mi") } });
    let pod = object(json!({
        "metadata": { "name": "llm", "namespace": "ml", "uid": "u" },
        "spec": {
            "nodeName": "gpu-0",
            "initContainers": [
                { "name": "download", "resources": request(500) },
                { "name": "proxy", "restartPolicy": "Always", "resources": request(100) },
                { "name": "warm", "resources": request(900) },
            ],
            "containers": [{ "name": "main", "resources": request(700) }],
        },
    }));
    let (_, _, holder) = super::holder(&pod).unwrap();
    assert_eq!(holder.request, Some(Vram::from_mib(1000)));
    assert_eq!(holder.gpus[0].1, 2);
}

#[test]
fn a_pod_holds_from_its_node_name_until_it_ends() {
    let mut pod = bound(json!({}), json!([gpu_container("main")]));
    assert!(holder(&pod).is_some());
    for (phase, holds) in [("Pending", true), ("Unknown", true), ("Succeeded", false), ("Failed", false)] {
        pod.status.phase = Some(phase.into());
        assert_eq!(holder(&pod).is_some(), holds, "{phase}");
    }
    pod.status.phase = None;
    pod.spec.node_name = None;
    assert!(holder(&pod).is_none());
    assert!(holder(&bound(json!({}), json!([{ "name": "web" }]))).is_none());
}

#[test]
fn each_container_of_a_holder_counts_by_its_request_its_declaration_or_its_slots() {
    let parts = |annotations: Value, containers: Value| {
        let parts = holder(&bound(annotations, containers)).unwrap().2.parts;
        parts.into_iter().map(|part| part.amount).collect::<Vec<_>>()
    };
    let one = json!([gpu_container("a")]);
    let two = json!([gpu_container("a"), gpu_container("b")]);
    let declared = |mib, processes| Amount::Declared { declared: Vram::from_mib(mib), processes };
    let twice = json!({ "vramguard.dev/vram": "8Gi", "vramguard.dev/processes": "2" });
    assert_eq!(parts(twice, one.clone()), [declared(8192, 2)]);
    let both = json!({ "vramguard.dev/vram.a": "1Gi", "vramguard.dev/vram.b": "2Gi" });
    assert_eq!(parts(both, two.clone()), [declared(1024, 1), declared(2048, 1)]);
    for annotations in [json!({}), json!({ "vramguard.dev/vram": "8GB" }), json!({ "vramguard.dev/model": "m" })] {
        assert_eq!(parts(annotations, one.clone()), [Amount::Slots(1)]);
    }
    // The declaration of one container does not apply to the other.
    let half = json!({ "vramguard.dev/vram.a": "20Gi", "vramguard.dev/vram.b": "8GB" });
    assert_eq!(parts(half.clone(), two.clone()), [declared(20 * 1024, 1), Amount::Slots(1)]);
    let mut requested = two;
    requested[0]["resources"]["limits"]["vramguard.dev/vram"] = json!("4696Mi");
    assert_eq!(parts(half.clone(), requested.clone()), [Amount::Requested(Vram::from_mib(4696)), Amount::Slots(1)]);
    // Only what such a container uses tells how much it takes.
    assert_eq!(parts(json!({}), requested.clone()), [Amount::Injected(Vram::from_mib(4696)), Amount::Slots(1)]);
    let of_model = parts(json!({ "vramguard.dev/model": "m" }), requested.clone());
    assert_eq!(of_model[0], Amount::Requested(Vram::from_mib(4696)));
    requested[0]["resources"]["limits"]["vramguard.dev/vram"] = json!("0");
    assert_eq!(parts(half, requested)[0], declared(20 * 1024, 1));
}

#[test]
fn only_a_pod_that_was_tried_is_unschedulable() {
    let condition = json!({ "type": "PodScheduled", "status": "False", "reason": "Unschedulable" });
    let pod =
        |conditions: Value| object(json!({ "spec": {}, "status": { "phase": "Pending", "conditions": conditions } }));
    assert!(is_unschedulable(&pod(json!([condition]))));
    assert!(!is_unschedulable(&pod(json!([]))));
    let gated = json!({ "type": "PodScheduled", "status": "False", "reason": "SchedulingGated" });
    assert!(!is_unschedulable(&pod(json!([gated]))));
}

#[test]
fn environment_is_reduced_to_what_is_injected() {
    let env = json!([
        { "name": "HOME", "value": "/root" }, { "name": "NVIDIA_VISIBLE_DEVICES" },
        { "name": "CUDA_DEVICE_ORDER", "valueFrom": { "configMapKeyRef": { "name": "c", "key": "k" } } },
    ]);
    let pod = bound(json!({}), json!([{ "name": "main", "env": env }]));
    let env = translate(&pod, None, None).containers.remove(0).env;
    assert_eq!(env.len(), 2);
    assert_eq!((env[0].value.as_deref(), env[1].value.as_deref()), (Some(""), None));
}

#[test]
fn the_admission_policy_and_the_webhook_excuse_the_same_folders() {
    let policy = include_str!("../../../deploy/base/validatingadmissionpolicy-devices.yaml");
    let listed = object::INFRASTRUCTURE.map(|folder| format!("'{folder}'")).join(", ");
    assert!(policy.contains(&format!("[{listed}].exists(path,")), "{listed}");
}

#[test]
fn a_pod_needs_the_label_where_each_alternative_of_its_affinity_wants_it() {
    let needs = |terms: Value| {
        let mut pod = json!({
            "metadata": { "name": "llm", "namespace": "ml", "uid": "u" },
            "spec": { "nodeName": "gpu-0", "containers": [gpu_container("main")] },
        });
        pod["spec"]["affinity"] = json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms } } });
        would_hold(&object(pod)).expect("it has a GPU").needs_label
    };
    let expression =
        |operator: &str, values: Value| json!({ "key": keys::POD_MAX_MIB, "operator": operator, "values": values });
    let term = |expression: Value| json!({ "matchExpressions": [expression] });
    let above = || term(expression("Gt", json!(["8911"])));
    let absent = || term(expression("DoesNotExist", json!([])));
    let zone = || term(json!({ "key": "zone", "operator": "In", "values": ["a"] }));
    let named = json!({ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["gpu-0"] }] });
    for (terms, expected) in [
        (json!([above()]), true),
        (json!([above(), {}]), true),
        (json!([term(expression("Exists", json!([])))]), true),
        (json!([above(), absent()]), false),
        (json!([above(), zone()]), false),
        (json!([above(), named]), false),
        (json!([{}]), false),
        (json!([]), false),
    ] {
        assert_eq!(needs(terms.clone()), expected, "{terms}");
    }
}

#[test]
fn what_a_container_runs_is_recognised_where_it_requests_a_gpu() {
    let container = |gpu: bool| {
        let mut container =
            json!({ "name": "main", "image": "vllm/vllm-openai", "command": null, "args": ["--model", "m"] });
        if gpu {
            container["resources"] = json!({ "limits": { "nvidia.com/gpu": "1" } });
        }
        let pod = bound(json!({}), json!([container]));
        translate(&pod, None, None).containers.remove(0).software
    };
    assert_eq!(container(true).framework, Some(crate::capacity::pod::software::Framework::Vllm));
    assert_eq!(container(true).list, Some(crate::capacity::pod::software::ArgumentList::Args));
    assert_eq!(container(false), Software::default());
}

#[test]
fn annotations_about_frameworks_are_told_from_those_that_mean_nothing() {
    let annotations = json!({
        "vramguard.dev/framework": "JAX", "vramguard.dev/framework.side": "vLLM", "vramguard.dev/bounded-by.main": "driver",
        "vramguard.dev/frameworks": "x",
    });
    let pod = translate(&bound(annotations, json!([])), None, None);
    assert_eq!(pod.declarations.framework.as_deref(), Some("JAX"));
    assert_eq!(pod.declarations.frameworks["side"], "vLLM");
    assert_eq!(pod.bounded_by["main"], "driver");
    assert_eq!(
        (pod.reserved_annotations, pod.unknown_annotations),
        (vec![], vec!["vramguard.dev/frameworks".to_owned()])
    );
}
