use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::capacity::policy::Documents;
use crate::capacity::vram::Vram;

fn foreign(text: &str) -> Converted {
    convert(text, Direction::FromForeign(&Assumptions::default())).unwrap()
}

fn policies() -> Policies {
    Policies::new(&Documents::default(), keys::NAMESPACE)
}

fn to_claims(text: &str) -> Converted {
    convert(text, Direction::ToClaims(&policies())).unwrap()
}

fn from_claims(text: &str) -> Converted {
    convert(text, Direction::FromClaims(&policies())).unwrap()
}

/// The remarks of one kind.
fn notes(converted: &Converted, kind: Kind) -> Vec<String> {
    converted
        .notes
        .iter()
        .filter(|note| note.kind == kind)
        .map(|note| format!("{}: {}", note.object, note.text))
        .collect()
}

fn values(text: &str) -> Vec<Value> {
    let text = text.trim_start_matches('\u{feff}');
    document::split(text).iter().map(|(_, slice)| snapshot::value(slice, Booleans::Yaml11).unwrap()).collect()
}

const HAMI: &str = "# our agent\napiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: agent # short\n  namespace: \
                    ml\nspec:\n  replicas: 2\n  template:\n    metadata:\n      labels: {app: agent}\n    spec:\n      \
                    schedulerName: hami-scheduler\n      containers:\n        - name: main\n          image: agent:1\n          \
                    resources:\n            limits:\n              # one GPU\n              nvidia.com/gpu: 1\n              \
                    nvidia.com/gpumem: 3000 # MiB\n              nvidia.com/gpucores: 30\n              cpu: 2\n";

#[test]
fn a_deployment_for_hami_keeps_its_comments_and_its_order() {
    let converted = foreign(HAMI);
    assert_eq!(
        converted.text,
        "# our agent\n# vramguard convert: lost: schedulerName: hami-scheduler: kube-scheduler places the pod, without that scheduler's queues, \
         gangs and bin packing\n# vramguard convert: lost: HAMi stops a container that allocates more than it declared; vramguard does not\n# vramguard convert: \
         lost: nvidia.com/gpucores: 30: vramguard does not divide the compute of a GPU\napiVersion: apps/v1\nkind: \
         Deployment\nmetadata:\n  name: agent # short\n  namespace: ml\nspec:\n  replicas: 2\n  template:\n    metadata:\n      \
         annotations:\n        vramguard.dev/vram: 3000Mi\n      labels: {app: agent}\n    spec:\n      containers:\n        \
         - name: main\n          image: agent:1\n          resources:\n            limits:\n              # one GPU\n              \
         nvidia.com/gpu: 1\n              cpu: 2\n"
    );
    assert_eq!(
        notes(&converted, Kind::Converted),
        ["Deployment ml/agent: nvidia.com/gpumem: 3000 -> vramguard.dev/vram: 3000Mi"]
    );
    assert_eq!(notes(&converted, Kind::Lost).len(), 3);
    assert_eq!(notes(&converted, Kind::Form), [""; 0]);
}

#[test]
fn what_is_converted_is_converted_no_further() {
    let once = foreign(HAMI);
    let twice = foreign(&once.text);
    assert_eq!((twice.text, twice.notes), (once.text, vec![]));
}

#[test]
fn lists_json_crlf_and_a_byte_order_mark_are_kept() {
    let crlf = format!("\u{feff}{}", HAMI.replace('\n', "\r\n"));
    let converted = foreign(&crlf).text;
    assert_eq!(converted.replace("\r\n", "\n"), format!("\u{feff}{}", foreign(HAMI).text));
    assert!(!converted.replace("\r\n", "").contains('\n'));

    let json = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "annotations": {"gpu-memory": "2000", "x": "y"}},
         "spec": {"containers": [{"name": "m", "image": "i"}]}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}}]});
    let pretty = format!("{json:#}\n");
    let converted = foreign(&pretty);
    let value: Value = serde_json::from_str(&converted.text).unwrap_or_else(|e| panic!("{e}: {}", converted.text));
    assert_eq!(value["items"][0]["metadata"]["annotations"], json!({"vramguard.dev/vram": "2000Mi", "x": "y"}));
    assert_eq!(value["items"][0]["spec"]["containers"][0]["resources"], json!({"limits": {"nvidia.com/gpu": 1}}));
    assert_eq!(value["items"][1], json["items"][1]);
    assert_eq!(notes(&converted, Kind::Form), [""; 0]);
}

#[test]
fn documents_that_declare_nothing_are_the_same_to_the_byte() {
    let other =
        "--- # a Service\napiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {x: 'a---'}\n---\n# nothing\n---\n";
    assert_eq!(foreign(other).text, other);
    let both = format!("{other}{HAMI}---\n{}", &other[4..]);
    let converted = foreign(&both).text;
    assert!(converted.starts_with(other) && converted.ends_with(&other[4..]), "{converted}");
    assert_eq!(values(&converted).len(), 3);
}

#[test]
fn what_is_behind_an_anchor_is_written_anew_with_every_field() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: a}\n  spec: &spec\n    \
                containers:\n    - {name: m, resources: {limits: {aliyun.com/gpu-mem: 3}}}\n- apiVersion: v1\n  kind: Pod\n  \
                metadata: {name: b}\n  spec: *spec\n";
    let converted = foreign(text);
    let value = &values(&converted.text)[0];
    for pod in value["items"].as_array().unwrap() {
        assert_eq!(pod["metadata"]["annotations"], json!({"vramguard.dev/vram": "3Gi"}));
        assert_eq!(pod["spec"]["containers"], json!([{"name": "m", "resources": {"limits": {"nvidia.com/gpu": 1}}}]));
    }
    assert_eq!(notes(&converted, Kind::Form).len(), 1);
}

#[test]
fn what_cannot_be_converted_is_unchanged_and_says_why() {
    for (text, why) in [
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, annotations: {gpu-fraction: '0.5'}}\nspec: {containers: [{name: \
             m}]}\n",
            "Pod a: gpu-fraction: 0.5 is a share of a GPU, whose size is not known",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, annotations: {gpu-memory: '2000', vramguard.dev/vram: \
             4Gi}}\nspec: {containers: [{name: m}]}\n",
            "Pod a: vramguard.dev/vram: \"4Gi\" is there already, and the other declaration is 2000Mi",
        ),
        (
            "apiVersion: batch.volcano.sh/v1alpha1\nkind: Job\nmetadata: {name: a}\nspec: {tasks: [{template: {spec: \
             {containers: [{name: m, resources: {limits: {volcano.sh/vgpu-memory: 3000}}}]}}}]}\n",
            "Job a: Job is a kind whose pods are not known here; change its pod template by hand",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, annotations: {gpu-memory: '2000'}}\nspec: {containers: [{name: \
             m, resources: {limits: {nvidia.com/gpumem: 3000}}}]}\n",
            "Pod a: nvidia.com/gpumem: 3000 is 3000Mi, and another declaration of container \"m\" is 2000Mi",
        ),
    ] {
        let converted = foreign(text);
        assert_eq!((converted.text.as_str(), notes(&converted, Kind::Refused)), (text, vec![why.to_owned()]));
    }
}

#[test]
fn every_container_gets_its_line_and_its_gpu() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\nspec:\n  containers:\n  - name: one\n    resources:\n      \
                limits:\n        volcano.sh/vgpu-number: 1\n        volcano.sh/vgpu-memory: 1024\n      requests:\n        \
                volcano.sh/vgpu-memory: 1024\n  - resources:\n      limits: {volcano.sh/vgpu-memory: 2048}\n    name: two\n";
    let converted = foreign(text);
    let pod = &values(&converted.text)[0];
    assert_eq!(
        pod["metadata"]["annotations"],
        json!({"vramguard.dev/vram.one": "1Gi", "vramguard.dev/vram.two": "2Gi"})
    );
    let one = json!({"limits": {"nvidia.com/gpu": 1}, "requests": {"nvidia.com/gpu": 1}});
    assert_eq!(pod["spec"]["containers"][0]["resources"], one);
    assert_eq!(pod["spec"]["containers"][1]["resources"], json!({"limits": {"nvidia.com/gpu": 1}}));
    assert_eq!(notes(&converted, Kind::Form), [""; 0], "{}", converted.text);
}

const OURS: &str = "apiVersion: apps/v1\nkind: StatefulSet\nmetadata:\n  name: llm\n  namespace: ml\nspec:\n  template:\n    \
                    metadata:\n      labels: {app: llm}\n      annotations:\n        vramguard.dev/vram: 8Gi\n        \
                    vramguard.dev/processes: \"2\"\n        team: a\n    spec:\n      # the server\n      containers:\n      - \
                    name: main\n        resources:\n          limits:\n            nvidia.com/gpu: 1\n            memory: \
                    1Gi\n";

#[test]
fn a_declaration_becomes_a_claim_of_its_demand_that_the_api_knows() {
    let converted = to_claims(OURS);
    let documents = values(&converted.text);
    let template: k8s_openapi::api::resource::v1::ResourceClaimTemplate =
        serde_json::from_value(documents[0].clone()).unwrap();
    let request = template.spec.spec.devices.unwrap().requests.unwrap().remove(0).exactly.unwrap();
    let memory = &request.capacity.unwrap().requests.unwrap()["memory"];
    assert_eq!((request.device_class_name.as_str(), memory.0.as_str()), ("gpu.nvidia.com", "9632Mi"));
    assert_eq!(template.metadata.namespace.as_deref(), Some("ml"));
    let spec: k8s_openapi::api::core::v1::PodSpec =
        serde_json::from_value(documents[1]["spec"]["template"]["spec"].clone()).unwrap();
    let claims = spec.resource_claims.unwrap();
    assert_eq!(claims[0].resource_claim_template_name, template.metadata.name);
    let resources = spec.containers[0].resources.clone().unwrap();
    assert_eq!(resources.claims.unwrap()[0].name, claims[0].name);
    assert_eq!(resources.limits.unwrap().keys().collect::<Vec<_>>(), ["memory"]);
    assert_eq!(documents[1]["spec"]["template"]["metadata"]["annotations"], json!({"team": "a"}));
    assert!(
        converted.text.starts_with("# vramguard convert: needs Kubernetes 1.36")
            && converted.text.contains("# the server\n")
    );
    assert_eq!((notes(&converted, Kind::Lost).len(), notes(&converted, Kind::Form).len()), (4, 0));
}

#[test]
fn the_way_back_from_claims_ends_where_it_began() {
    let back = from_claims(&to_claims(OURS).text);
    assert_eq!(values(&back.text), values(OURS), "{}", back.text);
    assert_eq!((notes(&back, Kind::Refused).len(), notes(&back, Kind::LeftOut).len()), (0, 1));
    assert!(!back.text.contains("vramguard convert"), "what was lost on the way there is not any more: {}", back.text);
}

#[test]
fn a_map_in_braces_is_written_as_its_text_is() {
    let text = "{apiVersion: v1, kind: Pod, metadata: {name: a, annotations: {}}, spec: {containers: [{name: m, resources: \
                {limits: {aliyun.com/gpu-mem: 3}}}]}}\n";
    assert_eq!(
        foreign(text).text,
        "{apiVersion: v1, kind: Pod, metadata: {name: a, annotations: {vramguard.dev/vram: 3Gi}}, spec: {containers: \
         [{name: m, resources: {limits: {nvidia.com/gpu: 1}}}]}}\n"
    );
    let object = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"annotations": {"gpu-memory": "1"}}, "spec": {"containers": [{"name": "m"}]}}"#;
    assert_eq!(
        foreign(object).text,
        r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"annotations": {"vramguard.dev/vram": "1Mi"}}, "spec": {"containers": [{"resources": {"limits": {"nvidia.com/gpu": 1}}, "name": "m"}]}}"#
    );
}

#[test]
fn a_mig_device_is_no_claim_of_a_gpu() {
    let text = OURS.replace("nvidia.com/gpu:", "nvidia.com/mig-1g.10gb:");
    let converted = to_claims(&text);
    assert_eq!(converted.text, text);
    assert!(notes(&converted, Kind::Refused)[0].contains("mig-1g.10gb"), "{:?}", converted.notes);
}

#[test]
fn a_claim_that_a_declaration_cannot_say_is_left() {
    let pod = |claim: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  resourceClaims:\n  - {{name: g, {claim}}}\n  \
             containers:\n  - name: m\n    resources: {{claims: [{{name: g}}]}}\n"
        )
    };
    let template = |request: &str| {
        format!(
            "apiVersion: resource.k8s.io/v1\nkind: ResourceClaimTemplate\nmetadata: {{name: t}}\nspec: {{spec: {{devices: \
             {{requests: [{{name: r, exactly: {{{request}}}}}]}}}}}}\n"
        )
    };
    let by_template = pod("resourceClaimTemplateName: t");
    for (text, why) in [
        (pod("resourceClaimName: shared"), "is a claim that other pods may share"),
        (by_template.clone(), "ResourceClaimTemplate default/t is not in this file"),
        (format!("{by_template}---\n{}", template("deviceClassName: gpu.nvidia.com")), "asks for no memory"),
        (
            format!("{by_template}---\n{}", template("deviceClassName: gpu.nvidia.com, count: 2")),
            "asks for several devices",
        ),
        (
            format!(
                "{by_template}---\n{}",
                template("deviceClassName: gpu.nvidia.com, capacity: {requests: {memory: 700Mi}}")
            ),
            "is not more than the overhead of its processes, 720Mi",
        ),
    ] {
        let converted = from_claims(&text);
        assert_eq!(converted.text, text);
        let refused = notes(&converted, Kind::Refused);
        assert!(refused.len() == 1 && refused[0].contains(why), "{refused:?}");
    }
    let other = format!("{by_template}---\n{}", template("deviceClassName: nic.example.com"));
    assert_eq!((from_claims(&other).text, from_claims(&other).notes), (other.clone(), vec![]));
}

#[test]
fn what_is_not_yaml_is_an_error_with_its_line() {
    assert_eq!(convert("kind: Secret\n---\nb: [\n", Direction::ToClaims(&policies())).unwrap_err().0, 3);
}

/// `kubectl` writes the kind of a List last.
#[test]
fn what_is_no_object_is_an_error_as_the_rest_of_a_list_is() {
    for text in ["apiVersion: v1\nitems:\n- kind: Pod\n", "5\n", "kind: ''\n"] {
        let (line, what) = convert(text, Direction::ToClaims(&policies())).unwrap_err();
        assert!(line == 1 && what.contains("kind is missing"), "{text:?}: {line}: {what}");
    }
}

/// A pod with the given amounts for its containers; `None` for one without a GPU.
fn pod(amounts: &[Option<u64>], scheme: usize, extra: &str) -> Value {
    let containers = amounts.iter().enumerate().map(|(index, amount)| {
        let mut container =
            json!({"name": format!("c{index}"), "image": "i", "args": [extra, "no", "1e3", "~", "# x"]});
        if let Some(amount) = amount {
            let (key, value) = [
                ("nvidia.com/gpumem", json!(amount)),
                ("volcano.sh/vgpu-memory", json!(amount.to_string())),
                ("aliyun.com/gpu-mem", json!(amount)),
            ][scheme]
                .clone();
            container["resources"] = json!({"limits": {key: value, "cpu": "1"}});
        }
        container
    });
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"x": extra}},
           "spec": {"containers": containers.collect::<Vec<_>>()}})
}

/// The value without everything that a conversion changes.
fn rest(mut value: Value) -> Value {
    if let Some(metadata) = value["metadata"].as_object_mut() {
        metadata.remove("annotations");
    }
    for container in value["spec"]["containers"].as_array_mut().unwrap() {
        let resources = container.get_mut("resources").and_then(|r| r.get_mut("limits")).and_then(Value::as_object_mut);
        if let Some(limits) = resources {
            limits.retain(|key, _| key == "cpu");
        }
    }
    value
}

proptest! {
    #[test]
    fn no_other_field_is_lost_and_the_amounts_are_those_declared(
        amounts in proptest::collection::vec(proptest::option::weighted(0.7, 1u64..200), 1..4),
        scheme in 0usize..3,
        extra in "\\PC{0,12}",
        form in 0usize..3,
    ) {
        let value = pod(&amounts, scheme, &extra);
        let text = match form {
            0 => serde_saphyr::to_string(&value).unwrap(),
            1 => format!("{value:#}\n"),
            _ => value.to_string(),
        };
        prop_assume!(values(&text).first() == Some(&value));
        let converted = foreign(&text);
        let after = values(&converted.text);
        prop_assert_eq!(after.len(), 1);
        prop_assert_eq!(rest(after[0].clone()), rest(value), "{}", converted.text);
        let factor = if scheme == 2 { 1024 } else { 1 };
        let annotations = after[0]["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
        let mut read: Vec<u64> = annotations.values().map(|text| text.as_str().unwrap().parse::<Vram>().unwrap().mib()).collect();
        let mut expected: Vec<u64> = amounts.iter().flatten().map(|amount| amount * factor).collect();
        read.sort_unstable();
        expected.sort_unstable();
        prop_assert_eq!(read, expected);
        prop_assert_eq!(notes(&converted, Kind::Form), [""; 0], "{}", converted.text);
        // And to claims and back.
        let claims = to_claims(&converted.text);
        prop_assert_eq!(notes(&claims, Kind::Refused), [""; 0]);
        let back = from_claims(&claims.text);
        prop_assert_eq!(&values(&back.text)[..], &after[..], "{}", back.text);
    }

    #[test]
    fn no_text_panics(text in "[-a-z:{}\\[\\],&* #\n\"']{0,60}") {
        let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec: {{containers: [{{name: m, resources: {{limits: {{nvidia.com/gpumem: 3}}}}}}]}}\n{text}");
        let _ = convert(&text, Direction::FromForeign(&Assumptions::default()));
    }
}

/// All of them had the line of the List.
#[test]
fn each_object_of_a_list_has_its_own_line() {
    let pod = |name: &str| {
        format!(
            "- apiVersion: v1\n  kind: Pod\n  metadata: {{name: {name}, annotations: {{gpu-memory: '2000'}}}}\n  spec: {{containers: [{{name: m}}]}}\n"
        )
    };
    let text = format!(
        "# two\napiVersion: v1\nkind: List\nitems:\n{}{}---\n\n{}",
        pod("a"),
        pod("b"),
        pod("c").replace("- ", "  ")
    );
    let lines: Vec<(u64, String)> = foreign(&text).notes.into_iter().map(|note| (note.line, note.object)).collect();
    assert_eq!(lines, [(5, "Pod a".to_owned()), (9, "Pod b".to_owned()), (15, "Pod c".to_owned())]);
    let json = "{\"kind\": \"List\", \"items\": [\n{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {\"name\": \"a\", \
                \"annotations\": {\"gpu-memory\": \"2000\"}}, \"spec\": {\"containers\": [{\"name\": \"m\"}]}}\n]}\n";
    assert_eq!(foreign(json).notes[0].line, 2);
}

#[test]
fn a_comment_of_a_conversion_has_no_character_that_ends_or_turns_it() {
    let text = HAMI
        .replace("schedulerName: hami-scheduler", "schedulerName: \"hami-scheduler\"")
        .replace("30\n", "\"3\\u202E0\"\n");
    let converted = foreign(&text);
    let comments: Vec<&str> = converted.text.lines().filter(|line| line.starts_with(MARK)).collect();
    assert!(!comments.is_empty() && comments.iter().all(|line| !line.contains('\u{202e}')), "{comments:?}");
}

#[test]
fn leaders_and_workers_of_a_group_are_both_converted() {
    let set = |leader: &str, worker: &str| {
        format!(
            "apiVersion: leaderworkerset.x-k8s.io/v1\nkind: LeaderWorkerSet\nmetadata: {{name: vllm, namespace: ml}}\nspec:\n  \
             leaderWorkerTemplate:\n    size: 2\n    leaderTemplate:\n      {leader}\n    workerTemplate:\n      {worker}\n"
        )
    };
    let template = |annotations: &str, resources: &str| {
        format!(
            "metadata: {{annotations: {{{annotations}}}}}\n      spec:\n        containers:\n        - {{name: m, resources: \
             {{limits: {{{resources}}}}}}}"
        )
    };
    let of_hami = set(
        &template("a: b", "nvidia.com/gpu: 1, nvidia.com/gpumem: 1000"),
        &template("a: b", "nvidia.com/gpu: 1, nvidia.com/gpumem: 3000"),
    );
    let ours = foreign(&of_hami);
    let objects = values(&ours.text);
    let amount = |template: &str| {
        let pointer = format!("/spec/leaderWorkerTemplate/{template}/metadata/annotations/vramguard.dev~1vram");
        objects[0].pointer(&pointer).and_then(Value::as_str)
    };
    assert_eq!((amount("leaderTemplate"), amount("workerTemplate")), (Some("1000Mi"), Some("3000Mi")), "{}", ours.text);
    let claims = to_claims(&ours.text);
    let names: Vec<_> = values(&claims.text)
        .iter()
        .filter_map(|object| Some(object["metadata"]["name"].as_str()?.to_owned()))
        .collect();
    assert_eq!(names, ["vllm-m-vram", "vllm-leader-m-vram", "vllm"], "{}", claims.text);
    assert_eq!(claims.text.matches("lost: kube-scheduler preempts").count(), 1, "{}", claims.text);
    let back = values(&from_claims(&claims.text).text);
    assert_eq!(back, objects);
}
