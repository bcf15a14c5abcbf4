use serde_json::json;

use super::*;
use crate::k8s::document;

fn policies(text: &str) -> Policies {
    Policies::new(&document::read([("p.yaml", text)]).unwrap().documents, "vramguard-system")
}

/// A template with a container `main` that requests one GPU and these annotations.
fn template(annotations: &Value) -> Value {
    json!({
        "metadata": {"annotations": annotations},
        "spec": {"containers": [{"name": "main", "resources": {"limits": {"nvidia.com/gpu": 1}}}]}
    })
}

fn workload(group: &str, kind: &str, spec: &Value) -> Value {
    json!({"apiVersion": group, "kind": kind, "metadata": {"namespace": "ml", "name": "w"}, "spec": spec})
}

#[test]
fn every_kind_of_workload_has_its_template_and_its_number_of_pods() {
    let pod = template(&json!({}));
    for (object, pointer, copies) in [
        (workload("apps/v1", "Deployment", &json!({"replicas": 3, "template": pod})), "/spec/template", 3),
        (workload("apps/v1", "StatefulSet", &json!({"template": pod})), "/spec/template", 1),
        (workload("apps/v1", "ReplicaSet", &json!({"replicas": 0, "template": pod})), "/spec/template", 0),
        (
            workload("batch/v1", "Job", &json!({"parallelism": 4, "completions": 2, "template": pod})),
            "/spec/template",
            2,
        ),
        (
            workload("batch/v1", "CronJob", &json!({"jobTemplate": {"spec": {"parallelism": 5, "template": pod}}})),
            "/spec/jobTemplate/spec/template",
            5,
        ),
        (workload("v1", "Pod", &json!({})), "", 1),
    ] {
        let kind = all(&object).next().unwrap().kind;
        assert_eq!((kind.template, kind.copies(&object)), (pointer, Ok(Copies::Exactly(copies))), "{object}");
    }
    let daemon_set = workload("apps/v1", "DaemonSet", &json!({"template": pod}));
    assert_eq!(all(&daemon_set).next().unwrap().kind.copies(&daemon_set), Ok(Copies::PerNode));
    assert_eq!(all(&workload("v1", "Service", &json!({"template": pod}))).count(), 0);
    assert_eq!(all(&workload("serving.knative.dev/v1", "Deployment", &json!({"template": pod}))).count(), 0);
    assert_eq!(all(&json!(null)).count(), 0);
}

#[test]
fn an_object_without_an_api_version_is_known_by_its_kind() {
    let mut object = workload("batch/v1", "CronJob", &json!({}));
    object.as_object_mut().unwrap().remove("apiVersion");
    assert_eq!(kinds::of(&object).unwrap().template, "/spec/jobTemplate/spec/template");
    assert_eq!(
        kinds::templates().collect::<Vec<_>>(),
        [
            "/spec/template",
            "/spec/jobTemplate/spec/template",
            "/spec/leaderWorkerTemplate/workerTemplate",
            "/spec/leaderWorkerTemplate/leaderTemplate",
        ]
    );
}

#[test]
fn a_suspended_job_is_planned_for_and_makes_no_pods_now() {
    let spec = json!({"suspend": true, "parallelism": 3, "template": template(&json!({"vramguard.dev/vram": "8Gi"}))});
    let job = workload("batch/v1", "Job", &spec);
    assert!(kinds::of(&job).unwrap().is_suspended(&job));
    assert_eq!(demands(&[job], &policies("")).declared[0].copies, Copies::Exactly(3));
    let idle = workload("apps/v1", "Deployment", &json!({"suspend": true, "template": {}}));
    assert!(!kinds::of(&idle).unwrap().is_suspended(&idle), "a Deployment has no such field");
}

#[test]
fn a_demand_is_the_declaration_with_the_overhead_under_the_policy_of_its_namespace() {
    let policies = policies(
        "apiVersion: vramguard.dev/v1alpha1\nkind: VramPolicy\nmetadata: {name: p, namespace: ml}\nspec:\n  declaration: \
         {default: 2Gi}\n  models: {qwen: 4Gi}\n",
    );
    let of = |annotations: Value| {
        let object = workload("apps/v1", "Deployment", &json!({"template": template(&annotations)}));
        demands(&[object], &policies).declared[0].demand
    };
    assert_eq!(of(json!({"vramguard.dev/vram": "8Gi"})).mib(), 8192 + 720);
    assert_eq!(of(json!({"vramguard.dev/vram": "8Gi", "vramguard.dev/processes": "2"})).mib(), 8192 + 2 * 720);
    assert_eq!(of(json!({"vramguard.dev/model": "qwen"})).mib(), 4096 + 720);
    assert_eq!(of(json!({})).mib(), 2048 + 720);
}

#[test]
fn what_declares_nothing_or_cannot_be_read_is_named_and_never_zero() {
    let policies = policies("");
    let deployment = |name: &str, annotations: Value| {
        let spec = json!({"replicas": 2, "template": template(&annotations)});
        let mut object = workload("apps/v1", "Deployment", &spec);
        object["metadata"]["name"] = json!(name);
        object
    };
    let objects = [
        deployment("silent", json!({})),
        deployment("wrong", json!({"vramguard.dev/vram": "8"})),
        deployment("exempt", json!({})),
    ];
    let mut exempt = objects[2].clone();
    exempt["metadata"]["namespace"] = json!("kube-system");
    let found = demands(&[objects[0].clone(), objects[1].clone(), exempt], &policies);
    assert_eq!(found.declared.len(), 0);
    assert_eq!(found.undeclared, [("Deployment ml/silent".to_owned(), Copies::Exactly(2))]);
    assert_eq!(found.left_out.len(), 1);
    assert!(found.left_out[0].starts_with("Deployment ml/wrong: ") && found.left_out[0].contains("\"8\""));
}

#[test]
fn a_pod_whose_controller_is_there_is_not_counted_twice_and_one_that_ended_not_at_all() {
    let policies = policies("");
    let declared = template(&json!({"vramguard.dev/vram": "8Gi"}));
    let deployment = workload("apps/v1", "ReplicaSet", &json!({"replicas": 3, "template": declared}));
    let mut pod = declared.clone();
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["namespace"] = json!("ml");
    pod["metadata"]["ownerReferences"] = json!([{"kind": "ReplicaSet", "name": "w", "controller": true}]);
    pod["spec"]["nodeName"] = json!("gpu-0");
    let count = |objects: &[Value]| demands(objects, &policies).declared.len();
    assert_eq!((count(&[deployment.clone(), pod.clone()]), count(std::slice::from_ref(&pod))), (1, 1));
    assert_eq!(demands(std::slice::from_ref(&pod), &policies).declared[0].placement.node_name, None);
    pod["status"] = json!({"phase": "Succeeded"});
    assert_eq!(count(&[pod]), 0);
}

#[test]
fn what_is_declared_for_another_project_is_not_planned_as_undeclared() {
    let mut pod = template(&json!({"gpu-memory": "2000"}));
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    let found = demands(std::slice::from_ref(&pod), &policies(""));
    assert_eq!((found.declared.len(), found.undeclared.len()), (0, 0));
    assert_eq!(
        found.left_out,
        ["Pod without a name: declares gpu-memory for KAI; run `vramguard convert` on it first"]
    );
    pod["metadata"]["annotations"]["vramguard.dev/vram"] = json!("2000Mi");
    assert_eq!(demands(&[pod], &policies("")).declared.len(), 1);
}

#[test]
fn a_number_of_pods_that_cannot_be_read_is_named_and_is_not_one() {
    let annotations = json!({"vramguard.dev/vram": "8Gi"});
    let spec = json!({"replicas": "three", "template": template(&annotations)});
    let found = demands(&[workload("apps/v1", "Deployment", &spec)], &policies(""));
    assert!(found.declared.is_empty(), "{:?}", found.declared);
    assert!(
        found.left_out[0].contains("spec.replicas: \"three\" is a text, expected a whole number"),
        "{:?}",
        found.left_out
    );
}

/// A LeaderWorkerSet of three groups of four pods, whose leaders may have a template of their own.
fn groups(leader: &Value) -> Value {
    let worker = template(&json!({"vramguard.dev/vram": "8Gi"}));
    let pods = json!({"size": 4, "leaderTemplate": leader, "workerTemplate": worker});
    workload("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", &json!({"replicas": 3, "leaderWorkerTemplate": pods}))
}

#[test]
fn the_leader_of_a_group_is_of_its_own_template_or_of_that_of_the_workers() {
    let copies = |object: &Value| {
        let of = |found: Template<'_>| (found.kind.template, found.kind.copies(object));
        all(object).map(of).collect::<Vec<_>>()
    };
    let worker = "/spec/leaderWorkerTemplate/workerTemplate";
    let leader = "/spec/leaderWorkerTemplate/leaderTemplate";
    let own = groups(&template(&json!({})));
    assert_eq!(copies(&own), [(worker, Ok(Copies::Exactly(9))), (leader, Ok(Copies::Exactly(3)))]);
    assert_eq!(copies(&groups(&Value::Null)), [(worker, Ok(Copies::Exactly(12)))]);
    let one = json!({"leaderWorkerTemplate": {"workerTemplate": template(&json!({}))}});
    let one = workload("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", &one);
    assert_eq!(copies(&one), [(worker, Ok(Copies::Exactly(1)))], "both numbers are 1 if they are absent");
    assert_eq!(copies(&workload("example.com/v1", "LeaderWorkerSet", &own["spec"])), []);
}

#[test]
fn a_plan_has_the_pods_of_both_templates_of_a_group() {
    let found = |leader: &Value| demands(&[groups(leader)], &policies(""));
    let of = |demands: Demands| {
        let of = |declared: Declared| (declared.demand.mib(), declared.copies);
        demands.declared.into_iter().map(of).collect::<Vec<_>>()
    };
    let small = template(&json!({"vramguard.dev/vram": "2Gi"}));
    assert_eq!(of(found(&small)), [(8192 + 720, Copies::Exactly(9)), (2048 + 720, Copies::Exactly(3))]);
    assert_eq!(of(found(&Value::Null)), [(8192 + 720, Copies::Exactly(12))]);
    let mut odd = groups(&small);
    odd["spec"]["leaderWorkerTemplate"]["size"] = json!("four");
    let found = demands(&[odd], &policies(""));
    assert_eq!(
        found.left_out,
        ["LeaderWorkerSet ml/w: spec.leaderWorkerTemplate.size: \"four\" is a text, expected a whole number"]
    );
    assert_eq!(of(found), []);
}

#[test]
fn a_rollout_of_groups_adds_its_surge_whatever_may_be_unavailable() {
    for (replicas, bounds, expected) in [
        (4, json!({}), 0),
        (4, json!({"maxSurge": 1, "maxUnavailable": 2}), 1),
        (4, json!({"maxSurge": "30%"}), 2),
        (4, json!({"maxSurge": 9}), 4),
    ] {
        let mut object = groups(&Value::Null);
        object["spec"]["replicas"] = json!(replicas);
        object["spec"]["rolloutStrategy"] = json!({"rollingUpdateConfiguration": bounds});
        let numbers = scale::numbers(kinds::of(&object).unwrap(), &object);
        assert_eq!(numbers, Ok(Some((replicas, expected))), "{bounds}");
    }
    let mut odd = groups(&Value::Null);
    odd["spec"]["rolloutStrategy"] = json!({"rollingUpdateConfiguration": {"maxSurge": "many"}});
    let error = scale::numbers(kinds::of(&odd).unwrap(), &odd).unwrap_err();
    assert!(error.starts_with("spec.rolloutStrategy.rollingUpdateConfiguration.maxSurge: "), "{error}");
}
