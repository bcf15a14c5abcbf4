//! Workloads on hand-made clusters, whose rules deduct nothing: amounts are those of the GPUs.

use std::collections::BTreeMap;

use super::*;
use crate::capacity::cluster::NodeFacts;
use crate::capacity::list::Labels;
use crate::capacity::node::holder::Amount;
use crate::capacity::pod::demand::Role;
use crate::capacity::pod::placement::NodeProfile;
use crate::capacity::pod::software::Software;
use crate::capacity::pod::{Container, Declarations, HostAccess, Origin, VramRequest, Written};
use crate::capacity::policy::{ClusterPolicy, Documents, Layer, Policies};
use crate::capacity::testing::{facts, gpu, holder, mib, part, pool, rules, uid};
use crate::capacity::verdict::Reason;

/// Two GPUs of 24,000 on two nodes, labelled `zone: a` and `zone: b`.
fn cluster() -> Cluster {
    let mut cluster = Cluster::new(rules(), Default::default());
    for zone in ["a", "b"] {
        let labels: Labels = [("zone".into(), zone.into())].into_iter().collect();
        let profile = NodeProfile { labels, ..NodeProfile::default() };
        cluster.apply_node(zone, NodeFacts { profile, ..facts(vec![pool(&[24_000], 8)]) });
    }
    cluster
}

fn runs(cluster: &mut Cluster, namespace: &str, name: &str, node: &str) {
    let mut holds = holder(9_000);
    holds.name = PodName { namespace: namespace.into(), name: name.into() };
    holds.parts = vec![part(Amount::Requested(mib(9_000)))].into();
    cluster.apply_pod(&uid(&format!("{namespace}/{name}")), node, holds);
}

fn policy(mode: Mode) -> Policy {
    let cluster = ClusterPolicy {
        layer: Layer { mode: Some(mode), ..Layer::default() },
        per_process_overhead: Some(Vram::ZERO),
        ..ClusterPolicy::default()
    };
    let policies = Policies::new(&Documents { cluster: Some(cluster), ..Documents::default() }, "vramguard-system");
    (**policies.of("ml").expect("ml is not exempt")).clone()
}

fn workload(kind: &str, declared: u64, scale: Scale) -> Workload {
    let written =
        Written { key: "vramguard.dev/vram".into(), text: format!("{declared}Mi"), amount: Ok(mib(declared)) };
    let container = Container {
        name: "main".into(),
        software: Software::default(),
        role: Role::App,
        gpus: vec![(gpu(), 1)],
        vram_request: VramRequest::Absent,
        env: Vec::new(),
    };
    let pod = Pod {
        name: PodName { namespace: "ml".into(), name: "agent-*".into() },
        containers: vec![container],
        declarations: Declarations { pod: Some(written), ..Declarations::default() },
        bounded_by: BTreeMap::new(),
        reserved_annotations: Vec::new(),
        unknown_annotations: Vec::new(),
        placement: Placement::default(),
        access: HostAccess::None,
        origin: Origin::Api,
        excess: None,
    };
    Workload { object: Object { kind: kind.into(), namespace: "ml".into(), name: "agent".into() }, pod, scale }
}

fn replicas(replicas: u64) -> Scale {
    Scale { replicas, ..Scale::default() }
}

/// The warning about a workload in mode Enforce; empty without one.
fn warning(workload: &Workload, cluster: &Cluster) -> String {
    let judgement = judge(workload, &policy(Mode::Enforce), cluster).expect("it requests a guarded GPU");
    judgement.matter.map(|matter| matter.warning(&judgement.object)).unwrap_or_default()
}

#[test]
fn a_warning_names_the_largest_number_that_fits() {
    let surge = Scale { replicas: 4, surge: 1, autoscaler: None };
    let scaled = Scale { replicas: 1, surge: 0, autoscaler: Some(("agent".into(), 10)) };
    for (kind, declared, scale, expected) in [
        ("Deployment", 9_000, replicas(4), ""),
        (
            "Deployment",
            9_000,
            replicas(5),
            "Deployment \"ml/agent\": it should have 5 pods of 9000Mi; 0 run, and 4 more fit now; remedy: replicas: 4",
        ),
        (
            "Job",
            9_000,
            replicas(5),
            "Job \"ml/agent\": a run needs 5 pods at a time of 9000Mi; 0 run, and 4 more fit now; remedy: parallelism: 4",
        ),
        (
            "Deployment",
            9_000,
            surge,
            "Deployment \"ml/agent\": a rollout needs 5 pods at a time of 9000Mi; 0 run, and 4 more fit now; remedy: \
             strategy: {rollingUpdate: {maxSurge: 0, maxUnavailable: 1}}",
        ),
        (
            "StatefulSet",
            9_000,
            scaled,
            "StatefulSet \"ml/agent\": HorizontalPodAutoscaler \"agent\" may scale it to 10 pods of 9000Mi; 0 run, and 4 \
             more fit now; remedy: maxReplicas: 4",
        ),
    ] {
        let found = warning(&workload(kind, declared, scale.clone()), &cluster());
        assert_eq!(found, expected, "{kind} {scale:?}");
    }
}

#[test]
fn a_pod_that_fits_no_empty_node_is_told_so_whatever_the_number_is() {
    let never = warning(&workload("Deployment", 30_000, replicas(1)), &cluster());
    assert!(never.starts_with("Deployment \"ml/agent\": waits until the cluster changes: 30000Mi demanded"), "{never}");
    assert!(never.contains("none takes more than 24000Mi for one pod") && !never.contains("remedy:"), "{never}");
}

#[test]
fn what_runs_of_a_workload_counts_as_fitting_and_what_runs_of_others_does_not() {
    let mut cluster = cluster();
    runs(&mut cluster, "ml", "agent-6d4cf56db6-x7v2k", "a");
    runs(&mut cluster, "ml", "agent-b-6d4cf56db6-x7v2k", "a");
    runs(&mut cluster, "lab", "agent-6d4cf56db6-x7v2k", "b");
    assert_eq!(warning(&workload("Deployment", 9_000, replicas(2)), &cluster), "");
    let more = warning(&workload("Deployment", 9_000, replicas(3)), &cluster);
    assert!(more.ends_with("1 run, and 1 more fit now; remedy: replicas: 2"), "{more}");
}

#[test]
fn only_the_nodes_that_the_pods_may_land_on_have_room_for_them() {
    let mut agent = workload("Deployment", 9_000, replicas(3));
    agent.pod.placement.node_selector = [("zone".to_owned(), "a".to_owned())].into();
    assert!(warning(&agent, &cluster()).ends_with("remedy: replicas: 2"));
    agent.pod.placement.node_selector = [("zone".to_owned(), "nowhere".to_owned())].into();
    let kept_off = warning(&agent, &cluster());
    assert!(kept_off.contains("no node that has nvidia.com/gpu is one that its pods may land on"), "{kept_off}");
}

#[test]
fn nothing_is_said_without_pods_without_a_guarded_gpu_and_in_mode_off() {
    let judged = |workload: &Workload, mode| judge(workload, &policy(mode), &cluster());
    let mut agent = workload("Deployment", 9_000, replicas(0));
    assert_eq!(judged(&agent, Mode::Enforce), None);
    agent.scale.replicas = 9;
    assert_eq!(judged(&agent, Mode::Off), None);
    for mode in [Mode::Enforce, Mode::Warn, Mode::Audit] {
        let judgement = judged(&agent, mode).expect("a judgement");
        assert_eq!(judgement.mode, mode);
        assert_eq!(judgement.matter.map(|matter| matter.reason()), Some(Reason::ReplicasExceedRoom), "{mode}");
    }
    agent.pod.containers[0].gpus.clear();
    agent.pod.declarations = Declarations::default();
    assert_eq!(judged(&agent, Mode::Enforce), None);
}

#[test]
fn a_declaration_that_is_refused_has_no_demand_to_compare() {
    let mut agent = workload("Deployment", 9_000, replicas(9));
    agent.pod.declarations.pod.as_mut().unwrap().amount = Err("is not an amount".into());
    let judgement = judge(&agent, &policy(Mode::Enforce), &cluster()).expect("a judgement");
    assert_eq!((judgement.demand, judgement.matter), (None, None));
}

#[test]
fn an_update_asks_for_more_by_its_template_or_its_numbers_and_never_by_fewer_pods() {
    let scale = |replicas, surge| Scale { replicas, surge, autoscaler: None };
    let before = workload("Deployment", 9_000, scale(4, 1));
    for (declared, replicas, surge, expected) in [
        (9_000, 4, 1, false),
        (9_000, 2, 1, false),
        (9_000, 4, 0, false),
        (9_000, 5, 0, true),
        (9_000, 4, 2, true),
        (9_000, 2, 4, true),
        (8_000, 2, 1, true),
    ] {
        let now = workload("Deployment", declared, scale(replicas, surge));
        assert_eq!(now.asks_more_than(&before), expected, "{declared} {replicas} {surge}");
    }
}

#[test]
fn a_count_beyond_any_number_is_not_an_overflow() {
    let all = Scale { replicas: u64::MAX, surge: u64::MAX, autoscaler: Some(("hpa".into(), u64::MAX)) };
    assert_eq!(all.most(), u64::MAX);
    assert!(warning(&workload("Deployment", 9_000, all), &cluster()).ends_with("remedy: replicas: 4"));
}
