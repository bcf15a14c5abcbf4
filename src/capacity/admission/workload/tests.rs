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
    Workload {
        object: Object { kind: kind.into(), namespace: "ml".into(), name: "agent".into() },
        templates: vec![Template { members: None, each: 1, pod }],
        scale,
    }
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
    agent.templates[0].pod.placement.node_selector = [("zone".to_owned(), "a".to_owned())].into();
    assert!(warning(&agent, &cluster()).ends_with("remedy: replicas: 2"));
    agent.templates[0].pod.placement.node_selector = [("zone".to_owned(), "nowhere".to_owned())].into();
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
    agent.templates[0].pod.containers[0].gpus.clear();
    agent.templates[0].pod.declarations = Declarations::default();
    assert_eq!(judged(&agent, Mode::Enforce), None);
}

#[test]
fn a_declaration_that_is_refused_has_no_demand_to_compare() {
    let mut agent = workload("Deployment", 9_000, replicas(9));
    agent.templates[0].pod.declarations.pod.as_mut().unwrap().amount = Err("is not an amount".into());
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

/// A LeaderWorkerSet whose groups have `workers` of 9,000, and a leader that declares this if it has a template of its own.
fn groups(workers: u64, leader: Option<u64>, scale: Scale) -> Workload {
    let mut set = workload("LeaderWorkerSet", 9_000, scale);
    let members = |is_alone| if is_alone { Members::All } else { Members::Workers };
    let each = workers + u64::from(leader.is_none());
    (set.templates[0].members, set.templates[0].each) = (Some(members(leader.is_none())), each);
    if let Some(declared) = leader {
        let Workload { mut templates, .. } = workload("LeaderWorkerSet", declared, Scale::default());
        set.templates.push(Template { members: Some(Members::Leaders), ..templates.remove(0) });
    }
    set
}

#[test]
fn a_group_fits_if_all_its_pods_do() {
    // Four pods of 9,000 fit, or two of more than 12,000.
    for (workers, leader, count, expected) in [
        (1, None, 2, ""),
        (1, None, 3, "it should have 3 groups with 6 pods of 9000Mi; 0 run, and 4 more fit now; remedy: replicas: 2"),
        (2, None, 2, "it should have 2 groups with 6 pods of 9000Mi; 0 run, and 4 more fit now; remedy: replicas: 1"),
        (
            4,
            None,
            1,
            "it should have 1 group with 5 pods of 9000Mi; 0 run, and 4 more fit now; remedy: lower what it declares, or add \
             room",
        ),
        // A leader with a template of its own that demands the same counts with the workers.
        (1, Some(9_000), 2, ""),
        (
            2,
            Some(9_000),
            2,
            "it should have 2 groups with 6 pods of 9000Mi; 0 run, and 4 more fit now; remedy: replicas: 1",
        ),
        // Each of them alone fits once for each group, which is all that is compared.
        (2, Some(13_000), 2, ""),
        (
            1,
            Some(13_000),
            3,
            "it should have 3 groups with 3 leaders of 13000Mi; 0 run, and 2 more fit now; remedy: replicas: 2  # or fewer: the \
             other pods of each group need room too",
        ),
        (
            3,
            Some(13_000),
            2,
            "it should have 2 groups with 6 workers of 9000Mi; 0 run, and 4 more fit now; remedy: replicas: 1  # or fewer: the \
             other pods of each group need room too",
        ),
        (0, Some(9_000), 4, ""),
    ] {
        let expected = match expected {
            "" => String::new(),
            expected => format!("LeaderWorkerSet \"ml/agent\": {expected}"),
        };
        assert_eq!(
            warning(&groups(workers, leader, replicas(count)), &cluster()),
            expected,
            "{workers} {leader:?} {count}"
        );
    }
}

#[test]
fn a_leader_without_a_gpu_needs_no_room() {
    let mut set = groups(2, Some(9_000), replicas(3));
    set.templates[1].pod.containers[0].gpus.clear();
    set.templates[1].pod.declarations = Declarations::default();
    assert_eq!(
        warning(&set, &cluster()),
        "LeaderWorkerSet \"ml/agent\": it should have 3 groups with 6 workers of 9000Mi; 0 run, and 4 more fit now; remedy: \
         replicas: 2"
    );
}

#[test]
fn a_leader_that_never_fits_is_told_before_the_number_of_groups() {
    let never = warning(&groups(8, Some(30_000), replicas(3)), &cluster());
    assert!(never.starts_with("LeaderWorkerSet \"ml/agent\": waits until the cluster changes: 30000Mi"), "{never}");
}

#[test]
fn the_pods_of_groups_that_run_count_by_their_place_in_the_group() {
    let mut cluster = cluster();
    for (name, node) in [("agent-0", "a"), ("agent-0-1", "a"), ("agent-0-0", "b")] {
        runs(&mut cluster, "ml", name, node);
    }
    let told = |set: &Workload| warning(set, &cluster);
    assert!(told(&groups(1, None, replicas(2))).contains("2 run, and 1 more fit now; remedy: replicas: 1"));
    assert!(told(&groups(3, Some(8_000), replicas(1))).contains("3 workers of 9000Mi; 1 run, and 1 more fit now"));
}

#[test]
fn a_surge_and_an_autoscaler_count_whole_groups() {
    let surge = Scale { replicas: 2, surge: 1, autoscaler: None };
    assert_eq!(
        warning(&groups(1, None, surge), &cluster()),
        "LeaderWorkerSet \"ml/agent\": a rollout needs 3 groups with 6 pods at a time of 9000Mi; 0 run, and 4 more fit now; \
         remedy: rolloutStrategy: {rollingUpdateConfiguration: {maxSurge: 0, maxUnavailable: 1}}"
    );
    let scaled = Scale { replicas: 1, surge: 0, autoscaler: Some(("hpa".into(), 9)) };
    assert_eq!(
        warning(&groups(1, None, scaled), &cluster()),
        "LeaderWorkerSet \"ml/agent\": HorizontalPodAutoscaler \"hpa\" may scale it to 9 groups with 18 pods of 9000Mi; 0 run, \
         and 4 more fit now; remedy: maxReplicas: 2"
    );
    let huge = groups(u64::MAX - 1, None, replicas(u64::MAX));
    assert!(warning(&huge, &cluster()).ends_with("remedy: lower what it declares, or add room"));
}
