//! Answers about namespaces, pods and nodes.

use serde_json::json;

use super::*;
use crate::k8s::manifest::Manifest;
use crate::k8s::snapshot::Snapshot;
use crate::k8s::{document, manifest, snapshot};

const CLUSTER: &str = "
apiVersion: vramguard.dev/v1alpha1
kind: ClusterVramPolicy
metadata: {name: c}
spec:
  locked: [environment.onConflict]
  quota: 80Gi
";

const TEAM: &str = "
apiVersion: vramguard.dev/v1alpha1
kind: VramPolicy
metadata: {name: p, namespace: team}
spec:
  declaration:
    max: 16Gi
  models: {small: 6Gi}
  environment: {onConflict: Deny}
";

fn node(name: &str, mib: u32, more: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Node, metadata: {{name: {name}, labels: {{nvidia.com/gpu.memory: '{mib}', \
         nvidia.com/gpu.count: '1', nvidia.com/gpu.replicas: '4', nvidia.com/gpu.sharing-strategy: time-slicing}}}}, \
         status: {{capacity: {{nvidia.com/gpu: '4'}}}}{more}}}\n---\n"
    )
}

fn pod(annotations: &str, more: &str) -> String {
    format!(
        "{{kind: Pod, metadata: {{name: llm, annotations: {{{annotations}}}}}, spec: {{containers: [{{name: main, \
         resources: {{limits: {{nvidia.com/gpu: '1'}}}}}}]{more}}}}}"
    )
}

fn explain_with(policies: &[(&str, &str)], namespace: &str, pod: Option<&str>, nodes: Option<&str>) -> Explanation {
    let configuration = document::read(policies.iter().copied()).unwrap();
    let sources = document::sources(policies.iter().copied(), &[]);
    let manifest: Option<Manifest> = pod.map(|text| manifest::read("pod.yaml", text, Some(namespace)).unwrap());
    let cluster: Option<Snapshot> = nodes.map(|text| snapshot::read([("nodes.yaml", text)]).unwrap());
    let (manifest, cluster) = (manifest.as_ref(), cluster.as_ref());
    let (configuration, sources) = (&configuration, &sources);
    answer(Question { namespace, configuration, sources, manifest, cluster, version: "0.0.0" }).unwrap()
}

fn explain(pod: &str, nodes: Option<&str>) -> Explanation {
    explain_with(&[("cluster.yaml", CLUSTER), ("team.yaml", TEAM)], "team", Some(pod), nodes)
}

#[test]
fn each_setting_has_its_place_and_what_is_not_in_force_a_reason() {
    let explanation = explain_with(&[("cluster.yaml", CLUSTER), ("team.yaml", TEAM)], "team", None, None);
    let setting = |field: &str| serde_json::to_value(explanation.policy.iter().find(|s| s.field == field)).unwrap();
    assert_eq!(setting("declaration.max")["source"], json!({"file": "team.yaml", "line": 7}));
    assert_eq!(setting("models.small")["source"]["line"], 8);
    let conflict = setting("environment.onConflict");
    assert_eq!(
        (&conflict["value"], &conflict["origin"], &conflict["locked"]),
        (&json!("Warn"), &json!("default"), &json!(true))
    );
    let source = json!({"file": "team.yaml", "line": 9});
    assert_eq!(conflict["ignored"], json!({"value": "Deny", "origin": "namespace", "source": source, "why": "locked"}));
    assert_eq!((setting("declaration.min")["value"].clone(), explanation.pod), (json!(null), None));
}

#[test]
fn a_declaration_is_followed_to_the_request() {
    let explanation =
        explain(&pod("vramguard.dev/vram: 8Gi, vramguard.dev/model: small, vramguard.dev/processes: '2'", ""), None);
    let pod = explanation.pod.unwrap();
    let container = &pod.containers[0];
    assert!(container.counts && !container.slot);
    assert_eq!(
        (container.declared_mib, container.overhead_mib, container.demand_mib),
        (Some(8192), Some(1440), Some(9632))
    );
    assert_eq!(container.source, "annotation vramguard.dev/vram");
    assert_eq!(container.also, ["annotation vramguard.dev/model: \"small\", from the policy's models"]);
    assert_eq!((container.injected_request_mib, container.processes), (Some(9632), Some(2)));
    assert_eq!(container.injected_env, ["VRAMGUARD_VRAM_MIB=8192", "CUDA_DEVICE_ORDER=PCI_BUS_ID"]);
    assert_eq!(pod.mutate.affinity.len(), 2);
    assert_eq!((pod.demand_mib, pod.validate.verdict), (Some(9632), "Allow"));
    assert!(explanation.notes[0].contains("--snapshot"), "{:?}", explanation.notes);
    assert_eq!(explanation.nodes, None);
}

#[test]
fn a_refusal_has_its_reason_and_remedy() {
    let pod = explain(&pod("vramguard.dev/vram: 20Gi", ""), None).pod.unwrap();
    assert_eq!((pod.validate.verdict, pod.validate.violations[0].reason.as_str()), ("Deny", "VramAboveMaximum"));
    assert!(pod.validate.violations[0].message.contains("16Gi"), "{:?}", pod.validate);
}

#[test]
fn without_a_cluster_no_verdict_is_guessed_from_nodes() {
    let undeclared = explain(&pod("", ""), None).pod.unwrap();
    assert_eq!((undeclared.validate.verdict, undeclared.demand_mib), ("Allow", None));
    assert_eq!(undeclared.validate.depends_on_nodes[0].reason, "SlotUnknown");
    let slot = explain(&pod("", ""), Some(&node("a", 24_576, ""))).pod.unwrap();
    assert!(slot.containers[0].slot && slot.validate.depends_on_nodes.is_empty());
    assert_eq!((slot.demand_mib, slot.containers[0].source.as_str()), (Some(5967), ""));
}

#[test]
fn nodes_are_counted_by_what_becomes_of_the_pod_there() {
    let tainted = ", spec: {taints: [{key: team, value: other, effect: NoSchedule}]}";
    let mut nodes = node("large", 81_559, "") + &node("kept", 81_559, tainted);
    nodes +=
        &node("cordoned", 81_559, ", spec: {taints: [{key: node.kubernetes.io/unschedulable, effect: NoSchedule}]}");
    nodes += "{apiVersion: v1, kind: Node, metadata: {name: cpu}}\n---\n";
    for number in 0..500 {
        nodes += &node(&format!("full-{number:03}"), 24_576, "");
        nodes += &format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{namespace: ml, name: p{number}, uid: u{number}}}, spec: {{nodeName: \
             full-{number:03}, containers: [{{name: main, resources: {{limits: {{nvidia.com/gpu: '1', vramguard.dev/vram: \
             20Gi}}}}}}]}}, status: {{phase: Running}}}}\n---\n"
        );
    }
    for number in 0..200 {
        nodes += &node(&format!("small-{number:03}"), 8192, "");
    }
    let explanation = explain(&pod("vramguard.dev/vram: 8Gi", ""), Some(&nodes));
    let nodes = explanation.nodes.clone().unwrap();
    assert_eq!((nodes.total, nodes.now.as_slice()), (704, ["large".to_owned()].as_slice()));
    let [later] = nodes.later.as_slice() else { panic!("{:?}", nodes.later) };
    assert_eq!((later.count, later.why.as_str()), (500, "had no room for 8912Mi on one GPU (exact accounting)"));
    assert!(later.nodes.len() == 100 && later.example.contains("3390Mi left"), "{later:?}");
    let never: Vec<(usize, &str)> = nodes.never.iter().map(|group| (group.count, group.why.as_str())).collect();
    let expected = [
        (200, "give less than 8912Mi to one pod, even when empty"),
        (1, "had the taint \"team:NoSchedule\", which the pod does not tolerate"),
        (1, "were cordoned (unschedulable)"),
        (1, "had no GPU"),
    ];
    assert_eq!(never, expected);
    let table = table::render(&explanation, false);
    assert!(table.contains("nodes: 1 of 704 can take the pod now"), "{table}");
    assert!(table.contains("full-000, full-001, full-002, full-003, full-004, and 495 more"), "{table}");
    assert!(table.lines().count() < 80, "{table}");
}

#[test]
fn why_a_node_is_ruled_out_names_the_constraint() {
    let never = |more: &str| {
        let explanation = explain(&pod("vramguard.dev/vram: 8Gi", more), Some(&node("a", 24_576, "")));
        explanation.nodes.unwrap().never[0].why.clone()
    };
    assert_eq!(never(", nodeSelector: {zone: b}"), "lacked the label \"zone: b\", which the nodeSelector requires");
    let terms = "[{matchExpressions: [{key: zone, operator: Exists}]}]";
    let affinity = format!(
        ", affinity: {{nodeAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: {terms}}}}}}}"
    );
    assert_eq!(never(&affinity), "matched no term of the required node affinity");
}

#[test]
fn under_audit_nodes_are_asked_as_if_the_mode_were_enforce() {
    let audit = TEAM.replace("spec:", "spec:\n  mode: Audit");
    let explanation = explain_with(
        &[("t", &audit)],
        "team",
        Some(&pod("vramguard.dev/vram: 40Gi", "")),
        Some(&node("a", 24_576, "")),
    );
    let pod = explanation.pod.unwrap();
    assert_eq!((pod.validate.verdict, pod.validate.violations.len(), pod.mutate.changes), ("Allow", 1, false));
    assert_eq!(explanation.nodes.unwrap().never[0].count, 1);
    assert!(explanation.notes[0].contains("under mode Audit nothing is injected"), "{:?}", explanation.notes);
}

#[test]
fn an_exempt_namespace_has_no_answer_about_pods() {
    let explanation = explain_with(&[("c", CLUSTER)], "kube-system", Some(&pod("", "")), None);
    assert!(explanation.exempt && explanation.pod.is_none() && explanation.nodes.is_none());
    let table = table::render(&explanation, false);
    assert!(table.contains("it is listed in exemptNamespaces (default)"), "{table}");
    let own = table::render(&explain_with(&[("c", CLUSTER)], "vramguard-system", None, None), false);
    assert!(own.contains("always exempt"), "{own}");
}

#[test]
fn the_table_shows_all_that_is_known_in_order() {
    insta::assert_snapshot!(table::render(
        &explain(&pod("vramguard.dev/model: small", ""), Some(&node("a", 24_576, ""))),
        false
    ));
}

#[test]
fn the_names_of_the_json_fields_are_a_contract() {
    let explanation = explain(&pod("vramguard.dev/vram: 8Gi", ""), Some(&node("small", 4096, "")));
    let json: serde_json::Value = serde_json::from_str(&explanation.json()).unwrap();
    let names = |at: &str| json.pointer(at).unwrap().as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(names(""), "exempt generatedBy namespace nodes notes pod policy quotas schemaVersion");
    assert_eq!(names("/policy/0"), "field ignored locked origin source value");
    assert_eq!(names("/pod"), "containers demandMib kind mutate name validate");
    assert_eq!(
        names("/pod/containers/0"),
        "also appendedArgument bound boundedBy counts declaredMib demandMib editedEnv framework injectedEnv \
         injectedRequestMib name overheadMib processes removedEnv role slot source why"
    );
    assert_eq!(names("/pod/mutate"), "affinity changes furtherPools ownPool removedAnnotations warnings");
    assert_eq!(names("/pod/validate"), "dependsOnNodes verdict violations warnings");
    assert_eq!(
        (names("/nodes"), names("/nodes/never/0")),
        ("later never now total".into(), "count example nodes why".into())
    );
}

#[test]
fn texts_of_strangers_cannot_steer_a_terminal() {
    let hostile = pod("vramguard.dev/vram: 8Gi", "").replace("name: main", "name: \"ma\\e[31min\"");
    let explanation = explain(&hostile, Some(&node("a", 24_576, "")));
    let table = table::render(&explanation, false);
    assert!(!table.contains('\u{1b}') && table.contains("ma\\u{1b}[31min"), "{table}");
    assert!(table::render(&explanation, true).contains("\u{1b}[1mcontainer\u{1b}[0m"));
}

/// The pod counted twice: as the one that is asked about, and as the one that is there.
#[test]
fn a_pod_that_is_in_the_snapshot_does_not_count_twice() {
    let bound = "{apiVersion: v1, kind: Pod, metadata: {name: llm, namespace: team, uid: u, annotations: {vramguard.dev/vram: \
                 14Gi}}, spec: {nodeName: a, containers: [{name: main, resources: {limits: {nvidia.com/gpu: '1'}}}]}}";
    let cluster = format!("{}{bound}\n", node("a", 24_576, ""));
    let asked = |text: &str| explain(text, Some(&cluster));
    let note = "pod \"team/llm\" is in the cluster already: it is left out there, so that it does not count twice, and explained \
                as if it were created now";
    for same in [bound.to_owned(), pod("vramguard.dev/vram: 14Gi", ""), bound.replace("name: llm, ", "name: other, ")] {
        let explanation = asked(&same);
        assert_eq!(explanation.nodes.as_ref().map(|nodes| nodes.now.clone()), Some(vec!["a".to_owned()]), "{same}");
        assert!(explanation.notes.iter().any(|text| text == note), "{:?}", explanation.notes);
    }
    let other = asked(&pod("vramguard.dev/vram: 14Gi", "").replace("name: llm", "name: other"));
    assert_eq!(other.nodes.map(|nodes| (nodes.now.len(), nodes.later.len())), Some((0, 1)));
}

/// HAMi keeps its own record of amounts, and nothing said that it is not read here.
#[test]
fn pods_of_hami_are_named_where_what_they_hold_is_not_read() {
    let hami = "{apiVersion: v1, kind: Pod, metadata: {name: h, annotations: {hami.io/vgpu-devices-allocated: \
                'GPU-a,NVIDIA,8000,0:;'}}, spec: {nodeName: a, containers: [{name: main, resources: {limits: {nvidia.com/gpu: '1'}}}]}}";
    let text = pod("", "").replace("nvidia.com/gpu: '1'", "nvidia.com/gpu: '1', nvidia.com/gpumem: '4000'");
    let notes = explain(&text, Some(&format!("{}{hami}\n", node("a", 24_576, "")))).notes.join("\n");
    assert!(notes.contains("HAMi allocated GPU memory to 1 pod of this cluster"), "{notes}");
    assert!(
        notes.contains("container \"main\": nvidia.com/gpumem: \"4000\" is for HAMi and does not count here"),
        "{notes}"
    );
    assert!(!explain(&pod("", ""), Some(&node("a", 24_576, ""))).notes.join("\n").contains("HAMi"));
}

#[test]
fn a_rerouted_pod_is_told_its_own_pool_and_the_further_ones_in_their_order() {
    let policy = "
apiVersion: vramguard.dev/v1alpha1
kind: ClusterVramPolicy
metadata: {name: c}
spec:
  onShortfall: Reroute
  reroute: {pools: [{matchLabels: {pool: l40s}}, {matchLabels: {pool: h100, zone: b}}]}
";
    let text = pod("vramguard.dev/vram: 8Gi", ", nodeSelector: {pool: a10}");
    let explain =
        |policy: &str| explain_with(&[("cluster.yaml", policy)], "team", Some(&text), None).pod.unwrap().mutate;
    let mutate = explain(policy);
    assert_eq!(mutate.own_pool.as_deref(), Some("pool=a10"));
    assert_eq!(mutate.further_pools, ["pool=l40s", "pool=h100 and zone=b"]);
    assert!(mutate.affinity.iter().all(|alternative| !alternative.contains("a10")), "{:?}", mutate.affinity);
    let waits = explain(&policy.replace("onShortfall: Reroute", "onShortfall: Wait"));
    assert_eq!((waits.own_pool, waits.further_pools), (None, Vec::new()));
}

#[test]
fn the_quotas_of_the_namespace_say_what_is_left() {
    let quota = |namespace: &str, used: &str| {
        format!(
            "{{apiVersion: v1, kind: ResourceQuota, metadata: {{name: vramguard, namespace: {namespace}, labels: \
             {{app.kubernetes.io/managed-by: vramguard}}}}, spec: {{hard: {{requests.vramguard.dev/vram: 64Gi}}}}{used}}}\n---\n"
        )
    };
    let counted = ", status: {used: {requests.vramguard.dev/vram: 8912Mi}}";
    let cluster = quota("team", counted) + &quota("other", counted);
    let explanation = explain_with(&[("cluster.yaml", CLUSTER)], "team", None, Some(&cluster));
    let expected = Quota {
        name: "vramguard".into(),
        kept_by_vramguard: true,
        hard_mib: Some(65_536),
        used_mib: Some(8_912),
        left_mib: Some(56_624),
    };
    assert_eq!(explanation.quotas, [expected]);
    let table = table::render(&explanation, false);
    assert!(
        table.contains("resourcequota vramguard (kept by vramguard): 64Gi of requests, 8912Mi used, 56624Mi left"),
        "{table}"
    );
    let uncounted = explain_with(&[("cluster.yaml", CLUSTER)], "team", None, Some(&quota("team", "")));
    assert_eq!((uncounted.quotas[0].used_mib, uncounted.quotas[0].left_mib), (None, None), "unknown is not zero");
}

#[test]
fn a_node_whose_agent_no_longer_runs_is_named() {
    let steered = "{apiVersion: vramguard.dev/v1alpha1, kind: GpuLedger, metadata: {name: a}, status: {agent: {time: \
                   '2026-01-01T00:00:00Z', allocationPolicy: Steered, pod: {namespace: vramguard-agent, name: agent-x, uid: x, \
                   containerID: '1'}}}}\n---\n";
    let agent = "{apiVersion: v1, kind: Pod, metadata: {namespace: vramguard-agent, name: agent-x, uid: x}, spec: {nodeName: a, \
                 containers: [{name: agent, env: [{name: VRAMGUARD_AGENT_POD_UID, value: x}]}]}, status: {containerStatuses: \
                 [{name: agent, containerID: 'containerd://1', state: {STATE: {}}}]}}\n";
    let notes = |state: &str| {
        let cluster = format!("{}{steered}{}", node("a", 24_576, ""), agent.replace("STATE", state));
        explain(&pod("vramguard.dev/vram: 8Gi", ""), Some(&cluster)).notes.join("\n")
    };
    let note = "node a is not steered: the container of its agent in pod \"vramguard-agent/agent-x\" does not run";
    assert!(notes("terminated").contains(note), "{}", notes("terminated"));
    assert!(!notes("running").contains("not steered"), "{}", notes("running"));
}
