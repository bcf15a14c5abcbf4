use serde_json::json;

use super::*;
use crate::k8s::audit::Reader;

/// A pod as large as those of a real API server, with `extra` members of its spec.
fn pod(number: usize, extra: &Value) -> Value {
    let env: Vec<Value> = (0..20).map(|n| json!({"name": format!("SETTING_{n}"), "value": "value"})).collect();
    let resources = json!({"nvidia.com/gpu": "1", "cpu": "4", "memory": "16Gi"});
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("agent-7d9c5b6f4-{number:05}"), "namespace": "ml", "uid": format!("uid-{number}"),
            "annotations": {"vramguard.dev/vram": "8Gi", "example.com/checksum": "0123456789abcdef0123456789abcdef",
                LAST_APPLIED: "x".repeat(4_000)},
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:metadata": "x".repeat(6_000)}}],
        },
        "spec": {
            "nodeName": format!("node-{}", number % 1_000),
            "containers": [
                {"name": "vllm", "env": env, "resources": {"limits": resources, "requests": resources}},
                {"name": "langchain", "env": env, "resources": {}},
            ],
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        },
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "message": "x".repeat(500)}]},
    });
    for (member, value) in extra.as_object().into_iter().flatten() {
        pod["spec"][member] = value.clone();
    }
    pod
}

/// Adds objects until the audit is given up. Returns their number, and why.
fn fill(most: usize, make: impl Fn(usize) -> Value) -> (usize, Option<String>) {
    let (mut reader, mut held) = (Reader::default(), Held::default());
    for number in 0..most {
        let object = make(number);
        reader.add(None, &object).expect("a good object");
        if let Err(why) = held.count(&object, reader.subjects()) {
            return (number, Some(why));
        }
    }
    (most, None)
}

#[test]
fn pods_of_usual_size_are_bounded_by_their_number() {
    let (number, why) = fill(MAX_SUBJECTS + 1, |number| pod(number, &json!({})));
    assert_eq!(number, MAX_SUBJECTS);
    assert!(why.as_ref().is_some_and(|why| why.contains("20000 pods and templates request GPUs")), "{why:?}");
}

#[test]
fn fat_pods_are_given_up_long_before_their_number() {
    let values: Vec<String> = (0..8_000).map(|n| format!("a-value-of-an-affinity-that-is-kept-whole-{n:06}")).collect();
    let terms = json!([{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": values}]}]);
    let affinity = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": terms}}}});
    let (number, why) = fill(1_000, |number| pod(number, &affinity));
    assert!((50..150).contains(&number), "{number}");
    let why = why.expect("it is given up");
    assert!(why.contains("more than 48 MiB") && why.contains(&format!("Pod ml/agent-7d9c5b6f4-{number:05}")), "{why}");
}

#[test]
fn each_part_that_is_kept_counts() {
    let usual = cost(&pod(0, &json!({})), true);
    let long = "x".repeat(100_000);
    let variable = json!([{"name": "a", "env": [{"name": keys::OLLAMA_MAX_VRAM, "value": long}]}]);
    let parts = [
        json!({"affinity": {"nodeAffinity": {"anything": long}}}),
        json!({"nodeSelector": {"zone": long}}),
        json!({"tolerations": [{"key": long}]}),
        json!({"volumes": [{"name": "v", "hostPath": {"path": long}}]}),
        json!({"ephemeralContainers": [{"name": long}]}),
        json!({"initContainers": variable}),
        json!({"initContainers": [{"name": long}]}),
        json!({"initContainers": [{"name": "a", "resources": {"limits": {&long: "1"}}}]}),
    ];
    for part in &parts {
        let fat = cost(&pod(0, part), true);
        assert!(fat > usual + 99_000, "{fat} for {:.60}", part.to_string());
        let template = json!({"kind": "CronJob", "spec": {"jobTemplate": {"spec": {"template": pod(0, part)}}}});
        assert!(cost(&template, true) > usual + 99_000, "{:.60}", part.to_string());
    }
    let mut annotated = pod(0, &json!({}));
    annotated["metadata"]["annotations"]["vramguard.dev/vram"] = json!(long);
    assert!(cost(&annotated, true) > usual + 99_000);
}

#[test]
fn objects_without_gpus_are_bounded_too() {
    let mut held = Held { objects: MAX_OBJECTS - 1, ..Held::default() };
    let object = json!({"kind": "Pod", "metadata": {"name": "plain", "namespace": "web"}});
    held.count(&object, 0).expect("the last one that fits");
    let why = held.count(&object, 0).expect_err("one more");
    assert!(why.contains("more than 500000 objects"), "{why}");
}

#[test]
#[ignore = "measures the memory of this process, so it runs alone: `just audit-memory`"]
fn memory_of_full_audits() {
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") >> 10
    };
    let start = resident();
    let mut reader = Reader::default();
    for number in 0..MAX_SUBJECTS {
        reader.add(None, &pod(number, &json!({}))).expect("a good object");
    }
    let pods = resident();
    for number in 0..MAX_OBJECTS {
        let object = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("web-7d9c5b6f4-{number:09}"), "namespace": "web"}, "spec": {"containers": []}});
        reader.add(None, &object).expect("a good object");
    }
    let objects = resident();
    let before = resident();
    let mut fat = Reader::default();
    let values: Vec<String> = (0..8_000).map(|n| format!("v{n}")).collect();
    let terms = json!([{"matchExpressions": [{"key": "k", "operator": "In", "values": values}]}]);
    let affinity = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": terms}}}});
    let mut held = Held::default();
    let mut number = 0;
    while held.count(&pod(number, &affinity), number).is_ok() {
        fat.add(None, &pod(number, &affinity)).expect("a good object");
        number += 1;
    }
    let end = resident();
    println!(
        "{} MiB for {MAX_SUBJECTS} pods; {} for {MAX_OBJECTS} other objects; {} for {number} fat pods",
        pods - start,
        objects - pods,
        end - before
    );
}
