use serde_json::json;

use super::*;
use crate::capacity::audit::scene::{Stage, Subject};
use crate::capacity::policy::Documents;

fn place(line: u64) -> Option<Place> {
    Some(Place { file: "c.json".into(), line })
}

/// Adds objects, each at its own line.
fn read(objects: &[Value]) -> Result<Reader, String> {
    let mut reader = Reader::new();
    for (line, object) in (1..).zip(objects) {
        reader.add(place(line), object)?;
    }
    Ok(reader)
}

fn scene(objects: &[Value]) -> Scene {
    read(objects).unwrap().finish(Policies::new(&Documents::default(), "vramguard-system"), &[])
}

fn error(object: Value) -> String {
    read(&[object]).unwrap_err()
}

fn gpu_pod(name: &str, owner: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "ml", "uid": name, "ownerReferences": [owner],
            "labels": {"pod-template-hash": "5d4f"}},
        "spec": {"nodeName": "gpu-0", "containers": [gpu_container()]},
    })
}

fn gpu_container() -> Value {
    json!({"name": "main", "resources": {"limits": {"nvidia.com/gpu": "1"}}})
}

fn owner(kind: &str, name: &str) -> Value {
    json!({"kind": kind, "name": name, "controller": true})
}

fn workload(version: &str, kind: &str, name: &str, spec: Value) -> Value {
    let mut object =
        json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": "ml"}, "spec": spec});
    object["spec"]["template"] = json!({"spec": {"containers": [gpu_container()]}});
    object
}

fn owners(scene: &Scene) -> Vec<String> {
    scene.subjects.iter().map(|subject| format!("{} {}", subject.object.kind, subject.object.name)).collect()
}

#[test]
fn the_owner_of_a_replica_set_is_known_with_and_without_the_replica_set() {
    let pod = gpu_pod("llm-5d4f-x", owner("ReplicaSet", "llm-5d4f"));
    assert_eq!(owners(&scene(std::slice::from_ref(&pod))), ["Deployment llm"]);
    let mut set = workload("apps/v1", "ReplicaSet", "llm-5d4f", json!({}));
    assert_eq!(owners(&scene(&[pod.clone(), set.clone()])), ["ReplicaSet llm-5d4f"; 2], "it has no owner");
    set["metadata"]["ownerReferences"] = json!([owner("Rollout", "canary")]);
    assert_eq!(owners(&scene(&[pod, set])), ["Rollout canary"]);
    let other = gpu_pod("odd-x", owner("ReplicaSet", "odd"));
    assert_eq!(owners(&scene(&[other])), ["ReplicaSet odd"], "its name does not end with the hash");
}

#[test]
fn owners_that_own_each_other_end() {
    let mut one = workload("apps/v1", "StatefulSet", "one", json!({}));
    one["metadata"]["ownerReferences"] = json!([owner("StatefulSet", "two")]);
    let mut two = workload("apps/v1", "StatefulSet", "two", json!({}));
    two["metadata"]["ownerReferences"] = json!([owner("StatefulSet", "one")]);
    let scene = scene(&[one, two, gpu_pod("p", owner("StatefulSet", "one"))]);
    assert_eq!(owners(&scene), ["StatefulSet two", "StatefulSet two", "StatefulSet one"]);
}

#[test]
fn pods_count_for_the_workload_that_makes_them() {
    let mut deployment = workload("apps/v1", "Deployment", "llm", json!({"replicas": 2}));
    deployment["metadata"]["ownerReferences"] = json!([owner("InferenceService", "llm")]);
    let pods = ["a", "b"].map(|name| gpu_pod(name, owner("ReplicaSet", "llm-5d4f")));
    let scene = scene(&[pods[0].clone(), deployment, pods[1].clone()]);
    assert_eq!(owners(&scene), ["InferenceService llm"; 3]);
    let workload = &scene.workloads[0];
    assert_eq!((workload.templates[0].bound, workload.replicas, workload.surge), (2, 2, 1));
}

#[test]
fn the_number_of_pods_is_what_the_workload_says() {
    let numbers = |version, kind, spec| {
        let scene = scene(&[workload(version, kind, "w", spec)]);
        scene.workloads.first().map(|workload| (workload.replicas, workload.surge))
    };
    assert_eq!(numbers("apps/v1", "Deployment", json!({})), Some((1, 1)));
    assert_eq!(numbers("apps/v1", "Deployment", json!({"replicas": 3})), Some((3, 1)));
    assert_eq!(numbers("apps/v1", "StatefulSet", json!({"replicas": 3})), Some((3, 0)));
    assert_eq!(numbers("apps/v1", "DaemonSet", json!({})), None);
    assert_eq!(numbers("v1", "ReplicationController", json!({"replicas": 0})), Some((0, 0)));
    assert_eq!(numbers("batch/v1", "Job", json!({"parallelism": 5, "completions": 3})), Some((3, 0)));
    assert_eq!(numbers("batch/v1", "Job", json!({"parallelism": 5, "suspend": true})), Some((0, 0)));
}

/// The surge of a Deployment of 10 replicas with these fields in place of others.
fn surge_of(spec: Value) -> u64 {
    let mut whole = json!({"replicas": 10});
    json_patch::merge(&mut whole, &spec);
    scene(&[workload("apps/v1", "Deployment", "w", whole)]).workloads[0].surge
}

#[test]
fn a_rollout_needs_room_only_if_no_pod_may_be_unavailable() {
    let rolling = |surge: Value, unavailable: Value| {
        surge_of(json!({"strategy": {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}))
    };
    assert_eq!(rolling(json!(2), json!(0)), 2);
    assert_eq!(rolling(json!("11%"), json!("9%")), 2, "one is rounded up and the other down");
    assert_eq!(rolling(json!(2), json!("10%")), 0);
    assert_eq!(rolling(json!(2), json!(1)), 0);
    assert_eq!(rolling(json!(0), json!(0)), 0, "Kubernetes then lets one pod be unavailable");
    assert_eq!(surge_of(json!({})), 0, "25 % of 10 may be unavailable");
    assert_eq!(surge_of(json!({"replicas": 3})), 1, "25 % of 3 is less than one pod");
    assert_eq!(surge_of(json!({"replicas": 3, "strategy": {"type": "Recreate"}})), 0);
    assert_eq!(surge_of(json!({"replicas": 3, "paused": true})), 0);
}

#[test]
fn a_surge_is_at_most_the_replicas_however_it_is_written() {
    let surge = |replicas: u64, surge: Value| {
        let strategy = json!({"rollingUpdate": {"maxSurge": surge, "maxUnavailable": 0}});
        surge_of(json!({"replicas": replicas, "strategy": strategy}))
    };
    assert_eq!(surge(3, json!(50)), 3);
    assert_eq!(surge(3, json!("99999999999999999999%")), 3);
    assert_eq!(surge(0, json!(1)), 0);
}

#[test]
fn a_template_that_makes_no_pods_any_more_is_left_out() {
    let mut job = workload("batch/v1", "Job", "done", json!({}));
    job["status"] = json!({"conditions": [{"type": "Complete", "status": "True"}]});
    assert!(scene(&[job]).subjects.is_empty());
}

#[test]
fn a_template_is_a_subject_in_the_namespace_of_its_workload() {
    let scene = scene(&[workload("apps/v1", "DaemonSet", "exporter", json!({}))]);
    let Subject { pod, stage, owner_kind, place, .. } = &scene.subjects[0];
    assert_eq!((pod.name.to_string(), stage), ("\"ml/exporter-*\"".to_owned(), &Stage::Template));
    assert_eq!((owner_kind.as_deref(), place.as_ref().map(|place| place.line)), (Some("DaemonSet"), Some(1)));
}

#[test]
fn pods_without_anything_about_gpus_are_left_out() {
    let pod = |extra: Value| {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "c", "env": [{"name": "OLLAMA_MAX_VRAM", "value": "1"}]}]}});
        json_patch::merge(&mut pod, &extra);
        pod
    };
    let count = |extra| scene(&[pod(extra)]).subjects.len();
    assert_eq!(count(json!({})), 0);
    assert_eq!(count(json!({"metadata": {"annotations": {"vramguard.dev/vram": "8Gi"}}})), 1);
    assert_eq!(count(json!({"metadata": {"annotations": {"gpu-memory": "8000"}}})), 1);
    assert_eq!(count(json!({"metadata": {"annotations": {"nvidia.cdi.k8s.io/x": "nvidia.com/gpu=0"}}})), 1);
    assert_eq!(count(json!({"spec": {"volumes": [{"hostPath": {"path": "/dev/nvidiactl"}}]}})), 1);
    assert_eq!(count(json!({"spec": {"volumes": [{"hostPath": {"path": "/dev/nvme0"}}]}})), 0);
    assert_eq!(count(json!({"spec": {"containers": [gpu_container()]}, "status": {"phase": "Failed"}})), 0);
}

#[test]
fn the_same_object_twice_is_an_error_with_both_places() {
    let pod = gpu_pod("a", owner("Job", "j"));
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}});
    let error = read(&[pod.clone(), secret.clone(), secret, pod.clone()]).unwrap_err();
    assert_eq!(error, "Pod ml/a is there twice, the first time in c.json:1; keep one");
    let mut ended = pod;
    ended["status"] = json!({"phase": "Succeeded"});
    assert!(read(&[ended.clone(), ended]).is_err(), "of a pod that ended too");
}

/// An object with these members in addition to its head.
fn named(version: &str, kind: &str, rest: Value) -> Value {
    let mut object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "x", "namespace": "ml"}});
    json_patch::merge(&mut object, &rest);
    object
}

#[test]
fn what_cannot_be_read_is_named_with_object_and_field() {
    for (object, expected) in [
        (json!({"metadata": {"name": "x"}}), "holds no Kubernetes object: kind is missing"),
        (json!({"apiVersion": "v1", "kind": "Pod"}), "Pod default/: metadata.name: is missing"),
        (
            named("v1", "Pod", json!({"spec": {"containers": 3}})),
            "Pod ml/x: spec.containers: is the number 3, expected a list",
        ),
        (
            named("v1", "Pod", json!({"spec": {"containers": [{"name": "c", "env": [{"name": 1}]}]}})),
            "Pod ml/x: spec.containers[0].env[0].name: is the number 1, expected a text",
        ),
        (
            named("v1", "Node", json!({"status": {"capacity": ["a"]}, "metadata": {"namespace": null}})),
            "Node x: status.capacity: is a list, expected an object",
        ),
        (
            named("apps/v1", "Deployment", json!({"spec": {"replicas": -1, "template": {}}})),
            "Deployment ml/x: spec.replicas: -1 is below zero, expected a whole number",
        ),
        (named("apps/v1", "Deployment", json!({"spec": {}})), "Deployment ml/x: spec.template: is missing"),
        (
            named("apps/v1", "StatefulSet", json!({"spec": {"template": {"spec": {"nodeSelector": 1}}}})),
            "StatefulSet ml/x: spec.template.spec.nodeSelector: is the number 1, expected an object",
        ),
        (
            named(
                "apps/v1",
                "Deployment",
                json!({"spec": {"template": {}, "strategy": {"rollingUpdate": {"maxUnavailable": "%"}}}}),
            ),
            "Deployment ml/x: spec.strategy.rollingUpdate.maxUnavailable: \"%\" is neither a whole number nor a percentage, as in 25%",
        ),
        (
            named(
                "apps/v1",
                "Deployment",
                json!({"spec": {"template": {}, "strategy": {"rollingUpdate": {"maxSurge": "many"}}}}),
            ),
            "Deployment ml/x: spec.strategy.rollingUpdate.maxSurge: \"many\" is neither a whole number nor a percentage, as in 25%",
        ),
    ] {
        assert_eq!(error(object), expected);
    }
}

#[test]
fn what_cannot_be_read_of_jobs_autoscalers_and_devices_is_named_too() {
    for (object, expected) in [
        (
            named(
                "batch/v1",
                "CronJob",
                json!({"spec": {"jobTemplate": {"spec": {"template": {}, "parallelism": "2"}}}}),
            ),
            "CronJob ml/x: spec.jobTemplate.spec.parallelism: \"2\" is a text, expected a whole number",
        ),
        (
            named("autoscaling/v2", "HorizontalPodAutoscaler", json!({"spec": {"maxReplicas": "3"}})),
            "HorizontalPodAutoscaler ml/x: spec.maxReplicas: \"3\" is a text, expected a whole number",
        ),
        (
            named("autoscaling/v1", "HorizontalPodAutoscaler", json!({"spec": {"maxReplicas": 3}})),
            "HorizontalPodAutoscaler ml/x: spec.scaleTargetRef.kind: is missing, or no text",
        ),
        (
            named("v1", "ResourceQuota", json!({"spec": {"hard": {"requests.vramguard.dev/vram": "much"}}})),
            "ResourceQuota ml/x: spec.hard[requests.vramguard.dev/vram]: \"much\" is not a quantity",
        ),
        (
            named(
                "resource.k8s.io/v1",
                "ResourceSlice",
                json!({"metadata": {"namespace": null}, "spec": {"driver": 1}}),
            ),
            "ResourceSlice x: spec.driver: is the number 1, expected a text",
        ),
        (
            named("resource.k8s.io/v1", "ResourceClaim", json!({"status": {"reservedFor": {}}})),
            "ResourceClaim ml/x: status.reservedFor: is an object, expected a list",
        ),
    ] {
        assert_eq!(error(object), expected);
    }
}

#[test]
fn kinds_of_other_groups_are_ignored() {
    let odd = |version: &str, kind: &str| json!({"apiVersion": version, "kind": kind, "metadata": {}, "spec": 3});
    let objects =
        [odd("serving.knative.dev/v1", "Pod"), odd("v1", "Service"), odd("metrics.k8s.io/v1beta1", "NodeMetrics")];
    assert!(scene(&objects).subjects.is_empty());
}

#[test]
fn policies_among_the_objects_are_returned_as_texts() {
    let policy = json!({"apiVersion": "vramguard.dev/v1alpha1", "kind": "ClusterVramPolicy",
        "metadata": {"name": "default"}, "spec": {"mode": "Enforce"}});
    let reader = read(std::slice::from_ref(&policy)).unwrap();
    let texts: Vec<&str> = reader.policies().iter().map(|(file, _)| file.as_str()).collect();
    assert_eq!(texts, ["c.json (ClusterVramPolicy default)"]);
    let files = reader.policies().iter().map(|(file, text)| (file.as_str(), text.as_str()));
    assert!(crate::k8s::document::read(files).unwrap().documents.cluster.is_some());
}

#[test]
fn a_ledger_is_applied_and_a_report_of_the_agent_beats_what_hami_says() {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "gpu-0", "annotations": {
        "hami.io/node-nvidia-register": "GPU-h,4,24576,100,T,0,true:"}}, "status": {"capacity": {"nvidia.com/gpu": "4"}}});
    let gpu_of = |objects: &[Value]| {
        let scene = scene(objects);
        let view = scene.cluster.node("gpu-0").unwrap();
        view.usage.pools[0].gpus.first().map(|gpu| gpu.id.to_string())
    };
    assert_eq!(gpu_of(std::slice::from_ref(&node)).as_deref(), Some("GPU-h"));
    let ledger = |status: Value| {
        json!({"apiVersion": "vramguard.dev/v1alpha1", "kind": "GpuLedger", "metadata": {"name": "gpu-0"}, "spec": {},
            "status": status})
    };
    assert_eq!(gpu_of(&[node.clone(), ledger(json!({}))]).as_deref(), Some("GPU-h"));
    let reported = json!({"agent": {"gpus": [
        {"resource": "nvidia.com/gpu", "replicas": 4, "uuid": "GPU-agent", "index": 0, "totalMiB": 24576}]}});
    let seen = gpu_of(&[ledger(reported), node]);
    assert_eq!(seen.as_deref(), Some("GPU-agent"));
}

#[test]
fn the_smallest_quota_counts_and_one_with_scopes_does_not() {
    let quota = |name: &str, limit: &str, scopes: Value| {
        json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name, "namespace": "ml"},
            "spec": {"hard": {"requests.vramguard.dev/vram": limit}, "scopes": scopes}})
    };
    let scene = scene(&[
        quota("a", "10Gi", json!([])),
        quota("b", "8589934591", json!([])),
        quota("c", "1Gi", json!(["BestEffort"])),
    ]);
    assert_eq!(scene.quotas.get("ml"), Some(&Vram::from_mib(8191)), "a part of a MiB is no MiB");
}

#[test]
fn the_largest_autoscaler_of_a_workload_counts_and_may_come_first() {
    let scaler = |name: &str, most: u64| {
        json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": name, "namespace": "ml"},
            "spec": {"maxReplicas": most, "scaleTargetRef": {"kind": "Deployment", "name": "llm"}}})
    };
    let deployment = workload("apps/v1", "Deployment", "llm", json!({}));
    let scene = scene(&[scaler("a", 4), scaler("b", 9), deployment, scaler("c", 5)]);
    assert_eq!(scene.workloads[0].autoscaler, Some(("b".into(), 9)));
}

#[test]
fn what_a_pod_says_of_hami_counts_on_nodes_of_hami_alone() {
    let mut pod = gpu_pod("p", owner("Job", "j"));
    pod["metadata"]["annotations"] = json!({"hami.io/vgpu-devices-allocated": "GPU-h,NVIDIA,1,0:;"});
    let node = |annotations: Value| {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "gpu-0", "annotations": annotations, "labels": {
            "nvidia.com/gpu.count": "1", "nvidia.com/gpu.memory": "24576", "nvidia.com/gpu.replicas": "4",
            "nvidia.com/gpu.sharing-strategy": "time-slicing"}}, "status": {"capacity": {"nvidia.com/gpu": "4"}}})
    };
    let held = |node: Value| scene(&[pod.clone(), node]).cluster.node("gpu-0").unwrap().usage.pools[0].held.mib();
    let registered = json!({"hami.io/node-nvidia-register": "GPU-h,4,24576,100,T,0,true:"});
    assert_eq!((held(node(registered)), held(node(json!({})))), (1, 5967));
}

/// A node of KAI with one GPU of 24 GiB that is not shared by the device plugin.
fn kai_node() -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "gpu-0", "labels": {
        "nvidia.com/gpu.count": "1", "nvidia.com/gpu.memory": "24576", "nvidia.com/gpu.replicas": "1",
        "nvidia.com/gpu.sharing-strategy": "none"}}, "status": {"capacity": {"nvidia.com/gpu": "1"}}})
}

/// A pod with a share of the GPU of group `g`.
fn share(name: &str, mib: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "ml", "uid": name,
        "labels": {"runai-gpu-group": "g"}, "annotations": {"gpu-memory": mib}},
        "spec": {"nodeName": "gpu-0", "containers": [{"name": "main"}]}})
}

fn reservation(namespace: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "r", "namespace": namespace, "uid": "r",
        "labels": {"runai-gpu-group": "g"}}, "spec": {"nodeName": "gpu-0", "containers": [gpu_container()]}})
}

fn held(objects: &[Value]) -> u64 {
    scene(objects).cluster.node("gpu-0").unwrap().usage.pools[0].held.mib()
}

#[test]
fn a_share_counts_if_kai_reserved_its_gpu() {
    for namespace in ["kai-resource-reservation", "runai-reservation"] {
        assert_eq!(held(&[share("a", "8000"), kai_node(), reservation(namespace)]), 8000, "{namespace}");
    }
}

#[test]
fn a_share_of_a_gpu_that_kai_did_not_reserve_counts_as_nothing() {
    assert_eq!(held(&[share("a", "999999"), kai_node()]), 0);
    let whole = held(&[kai_node(), reservation("ml")]);
    assert!(whole > 0);
    assert_eq!(held(&[share("a", "999999"), kai_node(), reservation("ml")]), whole, "a tenant's pod reserves nothing");
}

mod agents;
mod lengths;
mod policies;

/// It counted as one GPU without a word.
#[test]
fn a_number_of_gpus_that_cannot_be_read_is_an_error_and_never_one_gpu() {
    let with = |amount: Value| {
        let mut pod = gpu_pod("x", json!({}));
        pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] = amount;
        pod
    };
    let field = "spec.containers[0].resources.limits[nvidia.com/gpu]: container \"main\"";
    for (amount, why) in [
        (json!("abc"), "\"abc\" is not a number"),
        (json!(-1), "-1 is below zero"),
        (json!("0.5"), "\"0.5\" is not whole"),
        (json!("99999999999999999999"), "\"99999999999999999999\" is too large"),
    ] {
        let what = format!("{field}: {why}, expected a whole number of GPUs, as in 1");
        assert_eq!(error(with(amount.clone())), format!("Pod ml/x: {what}"));
        let mut deployment = workload("apps/v1", "Deployment", "x", json!({}));
        deployment["spec"]["template"]["spec"] = with(amount)["spec"].clone();
        assert_eq!(error(deployment), format!("Deployment ml/x: spec.template.{what}"));
    }
}

/// It pointed at the first pod of the CronJob, or of the Deployment.
#[test]
fn a_finding_about_an_owner_points_at_the_owner() {
    let cron = json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "nightly", "namespace": "ml"},
        "spec": {"jobTemplate": {"spec": {"template": {"spec": {"containers": [gpu_container()]}}}}}});
    let mut job = workload("batch/v1", "Job", "nightly-1", json!({}));
    job["metadata"]["ownerReferences"] = json!([owner("CronJob", "nightly")]);
    let scene = scene(&[gpu_pod("nightly-1-x", owner("Job", "nightly-1")), job, cron]);
    let lines: Vec<u64> = scene.subjects.iter().filter_map(|subject| Some(subject.place.as_ref()?.line)).collect();
    assert_eq!((owners(&scene), lines), (vec!["CronJob nightly".to_owned(); 2], vec![3, 3]));
    let alone = self::scene(&[gpu_pod("llm-5d4f-x", owner("ReplicaSet", "llm-5d4f"))]);
    assert_eq!(alone.subjects[0].place, place(1), "the Deployment was not read");
}

/// Anyone who may create pods may write the annotation, and such a pod was judged by no policy.
#[test]
fn a_mirror_pod_is_believed_if_its_node_is_its_controller() {
    use crate::capacity::pod::Origin;
    let node = |name: &str| json!({"apiVersion": "v1", "kind": "Node", "name": name, "controller": true});
    let origin = |owner: Value, annotated: bool| {
        let mut pod = gpu_pod("x", owner);
        if annotated {
            pod["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "5d41402abc4b2a76b9719d911017c592"});
        }
        let scene = scene(&[pod]);
        let holds = scene.cluster.node("gpu-0").is_some_and(|node| node.ledger.counted().count() == 1);
        assert!(holds, "what it holds counts in any case");
        scene.subjects[0].pod.origin
    };
    assert_eq!(origin(node("gpu-0"), true), Origin::Mirror);
    let mut not_controller = node("gpu-0");
    not_controller["controller"] = json!(false);
    let reference_of_another_group = json!({"apiVersion": "x/v1", "kind": "Node", "name": "gpu-0", "controller": true});
    for owner in [json!({}), owner("ReplicaSet", "gpu-0"), node("gpu-1"), not_controller, reference_of_another_group] {
        assert_eq!(origin(owner.clone(), true), Origin::Api, "{owner}");
    }
    assert_eq!(origin(node("gpu-0"), false), Origin::Api);
}

/// The device plugin was down, and no report said so.
#[test]
fn gpus_that_no_pod_can_request_are_reported_with_their_numbers() {
    let scene = scene(&[json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "gpu-0"},
        "status": {"capacity": {"nvidia.com/gpu": "4"}, "allocatable": {"cpu": "8", "nvidia.com/gpu": "0"}}})]);
    let audit = crate::capacity::audit::run(&scene);
    let finding = audit.findings.iter().find(|finding| finding.matter.reason().to_string() == "GpusUnusable");
    let finding = finding.expect("a finding");
    let severity = crate::capacity::verdict::finding::Severity::Warn;
    assert_eq!((finding.object.name.as_str(), finding.severity), ("gpu-0", severity));
    assert_eq!(finding.matter.numbers(), [("capacity", 4), ("allocatable", 0)]);
    let text = finding.matter.to_string();
    assert!(text.starts_with("none of 4 nvidia.com/gpu can be requested (allocatable 0)"), "{text}");
    assert!(finding.matter.remedy().contains("device plugin's pod on the node"), "{}", finding.matter.remedy());
}
