use serde_json::{Value, json};

use super::*;
use crate::capacity::admission::workload::Template;
use crate::capacity::pod::VramRequest;
use crate::capacity::verdict::finding::{Growth, Matter, Members};
use crate::capacity::vram::Vram;
use crate::k8s::review;

fn template() -> Value {
    json!({ "metadata": { "annotations": { "vramguard.dev/vram": "8Gi", "example.com/note": "x" } },
            "spec": { "nodeSelector": { "zone": "a" }, "containers": [
                { "name": "main", "resources": { "limits": { "nvidia.com/gpu": "1" } } }] } })
}

/// An object of a kind with the template of this test in its place.
fn object(version: &str, kind: &str, mut spec: Value) -> Value {
    let place = if kind == "CronJob" { &mut spec["jobTemplate"]["spec"] } else { &mut spec };
    place["template"] = template();
    json!({ "apiVersion": version, "kind": kind, "metadata": { "name": "agent", "namespace": "ml" }, "spec": spec })
}

fn deployment(replicas: u64) -> Value {
    object("apps/v1", "Deployment", json!({ "replicas": replicas }))
}

fn autoscaler(target: &str, most: u64) -> Value {
    json!({ "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": { "name": "hpa" },
            "spec": { "maxReplicas": most,
                      "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": target } } })
}

/// What a review asks; an update if there is an old object.
fn ask(object: &Value, old: Option<&Value>) -> Asked {
    let operation = if old.is_some() { "UPDATE" } else { "CREATE" };
    ask_by(&json!({ "uid": "u", "operation": operation, "namespace": "ml", "object": object, "oldObject": old }))
}

fn ask_by(request: &Value) -> Asked {
    let body = json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request });
    asked(&review::read_update(body.to_string().as_bytes()).expect("a review"))
}

fn scale(asked: &Asked) -> Option<(u64, u64)> {
    match asked {
        Asked::Workload(workload) => Some((workload.scale.replicas, workload.scale.surge)),
        Asked::Nothing | Asked::Autoscaler(_) | Asked::Unread(_) => None,
    }
}

#[test]
fn each_kind_is_read_with_its_numbers_and_its_template() {
    for (version, kind, spec, expected) in [
        ("apps/v1", "Deployment", json!({ "replicas": 4 }), (4, 0)),
        ("apps/v1", "Deployment", json!({}), (1, 1)),
        (
            "apps/v1",
            "Deployment",
            json!({ "replicas": 3, "strategy": { "rollingUpdate": { "maxSurge": "100%", "maxUnavailable": 0 } } }),
            (3, 3),
        ),
        ("apps/v1", "Deployment", json!({ "replicas": 2, "strategy": { "type": "Recreate" } }), (2, 0)),
        ("apps/v1", "StatefulSet", json!({ "replicas": 3 }), (3, 0)),
        ("apps/v1", "ReplicaSet", json!({ "replicas": 3 }), (3, 0)),
        ("batch/v1", "Job", json!({ "parallelism": 5, "completions": 3 }), (3, 0)),
        ("batch/v1", "Job", json!({ "parallelism": 5, "suspend": true }), (0, 0)),
        ("batch/v1", "CronJob", json!({ "jobTemplate": { "spec": { "parallelism": 2 } } }), (2, 0)),
        ("batch/v1", "CronJob", json!({ "suspend": true, "jobTemplate": { "spec": { "parallelism": 2 } } }), (0, 0)),
    ] {
        let asked = ask(&object(version, kind, spec.clone()), None);
        assert_eq!(scale(&asked), Some(expected), "{kind} {spec}: {asked:?}");
        let Asked::Workload(workload) = asked else { unreachable!("it has a scale") };
        assert_eq!(workload.object, Object { kind: kind.into(), namespace: "ml".into(), name: "agent".into() });
        assert_eq!(workload.templates[0].pod.name.to_string(), "\"ml/agent-*\"");
        assert_eq!(workload.templates[0].pod.placement.node_selector.get("zone").map(String::as_str), Some("a"));
        assert_eq!(workload.templates[0].pod.containers[0].vram_request, VramRequest::Absent);
        let declared = workload.templates[0].pod.declarations.pod.as_ref().map(|written| written.amount.clone());
        assert_eq!(declared, Some(Ok(Vram::from_mib(8_192))));
    }
}

/// A LeaderWorkerSet of three groups.
fn groups(pods: &Value) -> Value {
    let spec = json!({ "replicas": 3, "leaderWorkerTemplate": pods,
                       "rolloutStrategy": { "rollingUpdateConfiguration": { "maxSurge": "50%" } } });
    json!({ "apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet", "metadata": { "name": "agent" },
            "spec": spec })
}

#[test]
fn a_leader_worker_set_is_read_with_the_templates_of_its_groups() {
    let read = |pods: Value| {
        let asked = ask(&groups(&pods), None);
        assert_eq!(scale(&asked), Some((3, 2)), "{asked:?}");
        let Asked::Workload(workload) = asked else { unreachable!("it has a scale") };
        let declared = |template: &Template| {
            let declared = template.pod.declarations.pod.as_ref().map(|written| written.amount.clone());
            (template.members, template.each, declared)
        };
        workload.templates.iter().map(declared).collect::<Vec<_>>()
    };
    let declared = |mib| Some(Ok(Vram::from_mib(mib)));
    let mut small = template();
    small["metadata"]["annotations"]["vramguard.dev/vram"] = json!("2Gi");
    assert_eq!(
        read(json!({ "size": 4, "workerTemplate": template(), "leaderTemplate": small })),
        [(Some(Members::Workers), 3, declared(8_192)), (Some(Members::Leaders), 1, declared(2_048))]
    );
    assert_eq!(
        read(json!({ "size": 1, "workerTemplate": template(), "leaderTemplate": small })),
        [(Some(Members::Leaders), 1, declared(2_048))],
        "a group of one has no workers, whatever their template asks for"
    );
    let alone = [(Some(Members::All), 4, declared(8_192))];
    assert_eq!(read(json!({ "size": 4, "workerTemplate": template() })), alone);
    assert_eq!(read(json!({ "size": 4, "workerTemplate": template(), "leaderTemplate": null })), alone);
    let missing = "object: spec.leaderWorkerTemplate.workerTemplate: is missing".to_owned();
    assert_eq!(ask(&groups(&json!({ "size": 4, "leaderTemplate": template() })), None), Asked::Unread(missing));

    let before = groups(&json!({ "size": 4, "workerTemplate": template() }));
    let larger = groups(&json!({ "size": 5, "workerTemplate": template() }));
    assert_eq!(scale(&ask(&larger, Some(&before))), Some((3, 2)), "larger groups are more pods");
    assert_eq!(ask(&before, Some(&before)), Asked::Nothing);
}

#[test]
fn what_makes_no_counted_pods_is_not_judged() {
    let owned = |kind: &str, version: &str| {
        let mut object = object(version, kind, json!({ "replicas": 9, "parallelism": 9 }));
        object["metadata"]["ownerReferences"] =
            json!([{ "kind": "X", "name": "x" }, { "kind": "Y", "name": "y", "controller": true }]);
        object
    };
    let mut rollout = autoscaler("agent", 9);
    rollout["spec"]["scaleTargetRef"] = json!({ "apiVersion": "argoproj.io/v1", "kind": "Rollout", "name": "agent" });
    let mut foreign = autoscaler("agent", 9);
    foreign["spec"]["scaleTargetRef"]["apiVersion"] = json!("example.com/v1");
    for object in [
        owned("ReplicaSet", "apps/v1"),
        owned("Job", "batch/v1"),
        object("apps/v1", "DaemonSet", json!({})),
        object("example.com/v1", "Deployment", json!({ "replicas": 9 })),
        json!({ "apiVersion": "v1", "kind": "Pod", "spec": template()["spec"] }),
        json!({ "apiVersion": "autoscaling/v1", "kind": "Scale", "spec": { "replicas": 9 } }),
        json!({}),
        rollout,
        foreign,
    ] {
        assert_eq!(ask(&object, None), Asked::Nothing, "{object}");
    }
    for kind in ["Deployment", "StatefulSet"] {
        assert!(
            scale(&ask(&owned(kind, "apps/v1"), None)).is_some(),
            "an operator owns the {kind}, which makes the pods"
        );
    }
    for owner in ["LeaderWorkerSet", "Pod"] {
        let mut set = owned("StatefulSet", "apps/v1");
        set["metadata"]["ownerReferences"][1]["kind"] = json!(owner);
        assert_eq!(ask(&set, None), Asked::Nothing, "the pods of a group");
    }
    for changed in [json!({ "operation": "DELETE" }), json!({ "subResource": "scale" }), json!({ "object": null })] {
        let mut request = json!({ "uid": "u", "operation": "CREATE", "namespace": "ml", "object": deployment(9) });
        assert_ne!(ask_by(&request), Asked::Nothing);
        json_patch::merge(&mut request, &changed);
        assert_eq!(ask_by(&request), Asked::Nothing, "{changed}");
    }
}

#[test]
fn an_update_is_judged_if_it_asks_for_more() {
    let before = deployment(4);
    let changed = |pointer: &str, value: Value| {
        let mut object = before.clone();
        *object.pointer_mut(pointer).expect("it is there") = value;
        object
    };
    let mut annotated = before.clone();
    annotated["metadata"]["annotations"] = json!({ "deployment.kubernetes.io/revision": "2" });
    annotated["status"] = json!({ "replicas": 4 });
    let note = "/spec/template/metadata/annotations/example.com~1note";
    for (now, expected) in [
        (&before, false),
        (&annotated, false),
        (&deployment(2), false),
        (&deployment(5), true),
        (&changed(note, json!("another")), false),
        (&changed("/spec/template/metadata/annotations/vramguard.dev~1vram", json!("9Gi")), true),
        (&changed("/spec/template/spec/nodeSelector/zone", json!("b")), true),
        (&changed("/spec/template/spec/containers/0/name", json!("other")), true),
    ] {
        assert_eq!(scale(&ask(now, Some(&before))).is_some(), expected, "{now}");
    }
    let suspended = |suspend: bool| object("batch/v1", "Job", json!({ "parallelism": 5, "suspend": suspend }));
    assert_eq!(scale(&ask(&suspended(false), Some(&suspended(true)))), Some((5, 0)), "a Job that is resumed");
    let hpa = autoscaler("agent", 10);
    for (now, expected) in [
        (autoscaler("agent", 10), false),
        (autoscaler("agent", 4), false),
        (autoscaler("agent", 11), true),
        (autoscaler("other", 4), true),
    ] {
        assert_eq!(matches!(ask(&now, Some(&hpa)), Asked::Autoscaler(_)), expected, "{now}");
    }
}

#[test]
fn an_object_that_cannot_be_read_is_named_by_its_field_and_not_by_its_content() {
    let with = |pointer: &str, value: Value| {
        let mut object = deployment(4);
        *object.pointer_mut(pointer).expect("it is there") = value;
        object
    };
    for (object, expected) in [
        (with("/spec/replicas", json!("9")), "object: spec.replicas: \"9\" is a text, expected a whole number"),
        (with("/spec/replicas", json!(vec![1; 1000])), "object: spec.replicas: [] is a list, expected a whole number"),
        (with("/spec/replicas", json!(-1)), "object: spec.replicas: -1 is below zero, expected a whole number"),
        (with("/spec/template", Value::Null), "object: spec.template: is missing"),
        (
            with("/metadata/name", json!("x".repeat(300))),
            "object: metadata.name: is longer than any name in Kubernetes",
        ),
        (
            json!({ "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler" }),
            "object: spec.maxReplicas: is missing",
        ),
    ] {
        assert_eq!(ask(&object, None), Asked::Unread(expected.to_owned()));
    }
    for (pointer, field) in [("/spec", "spec"), ("/spec/template/spec/containers", "spec.template.spec.containers")] {
        let expected = format!("object: {field}: is not of the type that it must have");
        assert_eq!(ask(&with(pointer, json!("secret")), None), Asked::Unread(expected));
    }
    let Asked::Unread(error) = ask(&deployment(5), Some(&with("/spec/replicas", json!(0.5)))) else {
        panic!("nothing to compare with")
    };
    assert!(error.starts_with("oldObject: spec.replicas: "), "{error}");
}

#[test]
fn the_path_of_a_target_is_that_of_its_kind_and_never_another_one() {
    let path = |name: &str| match ask(&autoscaler(name, 10), None) {
        Asked::Autoscaler(autoscaler) => autoscaler.target_path(),
        other => panic!("{other:?}"),
    };
    assert_eq!(path("agent.v2-1").as_deref(), Some("/apis/apps/v1/namespaces/ml/deployments/agent.v2-1"));
    let mut of_groups = autoscaler("vllm", 10);
    of_groups["spec"]["scaleTargetRef"]["kind"] = json!("LeaderWorkerSet");
    assert_eq!(ask(&of_groups, None), Asked::Nothing, "no kind of the group apps");
    of_groups["spec"]["scaleTargetRef"]["apiVersion"] = json!("leaderworkerset.x-k8s.io/v1");
    let Asked::Autoscaler(of_groups) = ask(&of_groups, None) else { panic!("an autoscaler") };
    let expected = "/apis/leaderworkerset.x-k8s.io/v1/namespaces/ml/leaderworkersets/vllm";
    assert_eq!(of_groups.target_path().as_deref(), Some(expected));
    for name in ["", "..", "a/b", "a?x=y", "a%2f", "A", "a b", "ä", "-a"] {
        assert_eq!(path(name), None, "{name:?}");
    }
}

#[test]
fn a_target_is_scaled_as_far_as_its_autoscaler_may() {
    let Asked::Autoscaler(hpa) = ask(&autoscaler("agent", 10), None) else { panic!("an autoscaler") };
    let target: WorkloadObject = serde_json::from_value(deployment(3)).expect("a Deployment");
    let workload = hpa.scaled(target).expect("readable").expect("a workload");
    let expected = Scale { replicas: 0, surge: 0, autoscaler: Some(("hpa".into(), 10)) };
    assert_eq!((workload.scale, workload.object.name.as_str()), (expected, "agent"));
}

#[test]
fn users_are_told_under_enforce_and_warn_and_the_audit_log_always() {
    let object = Object { kind: "Deployment".into(), namespace: "ml".into(), name: "agent".into() };
    let demand = Vram::from_mib(8_912);
    let matter = Matter::ExceedsRoom {
        growth: Growth::Replicas,
        demand,
        bound: 0,
        wanted: 5,
        fits: 2,
        is_exact: true,
        groups: None,
    };
    let warning =
        "Deployment \"ml/agent\": it should have 5 pods of 8912Mi; 0 run, and 2 more fit now; remedy: replicas: 2";
    for (mode, warns) in [(Mode::Enforce, true), (Mode::Warn, true), (Mode::Audit, false)] {
        let matter = Some(matter.clone());
        let answer =
            told("u".into(), &WorkloadJudgement { object: object.clone(), mode, demand: Some(demand), matter });
        let mut expected = json!({ "uid": "u", "allowed": true, "auditAnnotations": {
            "mode": mode.to_string(), "demand": "8912Mi", "reason": "ReplicasExceedRoom", "warning": warning } });
        if warns {
            expected["warnings"] = json!([format!("vramguard: {warning}")]);
        }
        assert_eq!(serde_json::to_value(answer.response()).unwrap(), expected);
    }
    let fits = WorkloadJudgement { object, mode: Mode::Enforce, demand: Some(demand), matter: None };
    let expected =
        json!({ "uid": "u", "allowed": true, "auditAnnotations": { "mode": "Enforce", "demand": "8912Mi" } });
    assert_eq!(serde_json::to_value(told("u".into(), &fits).response()).unwrap(), expected);
    let note = unread("u".into(), &"ä".repeat(600));
    assert_eq!(note.response().audit_annotations["unread"].len(), 512);
}
