//! Tests of recommendations, on hand-made scenes, and of their figures against the findings of a node agent.

use proptest::prelude::*;

use super::*;
use crate::capacity::cluster::Cluster;
use crate::capacity::observation::finding::{Finding, Problem};
use crate::capacity::observation::owners::LivePod;
use crate::capacity::pod::demand::Role;
use crate::capacity::pod::placement::Placement;
use crate::capacity::pod::{Container, HostAccess, Origin, Pod, PodName, VramRequest, Written};
use crate::capacity::policy::{Documents, Policies};
use crate::capacity::testing::{facts, gpu, mib, pool, uid};

const HOUR: i64 = 3_600_000;
const DAY: Duration = Duration::from_secs(24 * 3600);
/// What the built-in policy adds for each process.
const OVERHEAD: u64 = 720;

fn written(key: &str, amount: u64) -> Written {
    Written { key: key.into(), text: format!("{amount}Mi"), amount: Ok(mib(amount)) }
}

fn pod(name: &str, containers: &[&str], declared: Option<u64>) -> Pod {
    let container = |name: &&str| Container {
        name: (*name).to_owned(),
        role: Role::App,
        gpus: vec![(gpu(), 1)],
        vram_request: VramRequest::Absent,
        env: Vec::new(),
        software: crate::capacity::pod::software::Software::default(),
    };
    let declared = declared.map(|amount| written("vramguard.dev/vram", amount));
    Pod {
        name: PodName { namespace: "ml".into(), name: name.into() },
        containers: containers.iter().map(container).collect(),
        declarations: Declarations { pod: declared, ..Declarations::default() },
        reserved_annotations: Vec::new(),
        bounded_by: std::collections::BTreeMap::new(),
        unknown_annotations: Vec::new(),
        placement: Placement::default(),
        access: HostAccess::None,
        origin: Origin::Api,
        excess: None,
    }
}

fn subject(pod: Pod, stage: Stage, owner: &str) -> Subject {
    let name = pod.name.name.clone();
    Subject {
        uid: uid(&name),
        pod,
        stage,
        object: Object { kind: "Deployment".into(), namespace: "ml".into(), name: owner.into() },
        owner_kind: None,
        place: None,
        foreign: Vec::new(),
        environment: Vec::new(),
        bypasses: Vec::new(),
    }
}

/// Two nodes with a shared GPU each. Only `a` has an agent, which reported 48 hours after the start of time.
fn scene(subjects: Vec<Subject>) -> Scene {
    let policies = Policies::new(&Documents::default(), "vramguard-system");
    let mut cluster = Cluster::new(*policies.rules(), BTreeSet::new());
    for node in ["a", "b"] {
        cluster.apply_node(node, facts(vec![pool(&[24_000], 4)]));
    }
    Scene {
        cluster,
        policies,
        installed: false,
        subjects,
        workloads: Vec::new(),
        quotas: BTreeMap::new(),
        devices: Vec::new(),
        unusable: Vec::new(),
        observed: BTreeMap::new(),
        at: None,
    }
}

fn used(peak: u64, since: i64, cycles: Option<u64>) -> Use {
    Use {
        used: Some(mib(peak)),
        peak: mib(peak),
        idle_since: None,
        first: Moment(since * HOUR),
        cycles,
        gpu: "GPU-0".into(),
    }
}

fn observed(of: &[(&str, Use)]) -> Observations {
    let containers = of.iter().map(|(pod, seen)| ((uid(pod), "main".into()), seen.clone()));
    Observations {
        nodes: BTreeMap::from([("a".into(), Moment(48 * HOUR))]),
        containers: containers.collect(),
        ..Observations::default()
    }
}

fn bound(name: &str, node: &str, declared: Option<u64>) -> Subject {
    subject(pod(name, &["main"], declared), Stage::Bound(node.into()), "agent")
}

fn only(subjects: Vec<Subject>, observed: &Observations) -> Row {
    let rows = rows(&scene(subjects), observed, DAY, Moment(48 * HOUR));
    let [row] = rows.as_slice() else { panic!("{rows:?}") };
    row.clone()
}

#[test]
fn a_node_whose_agent_does_not_see_processes_is_no_data_and_is_named() {
    let blind = Observations {
        totals_only: BTreeMap::from([("b".into(), Moment(48 * HOUR))]),
        ..observed(&[("p", used(5_000, 0, Some(3))), ("q", used(9_000, 0, Some(3)))])
    };
    let row = only(vec![bound("q", "b", None)], &blind);
    assert_eq!((row.peak, row.seen_on, &row.totals_only[..]), (None, 0, &["b".into()][..]));
    let missing = Missing::Processes { nodes: vec!["b".into()] };
    assert_eq!(row.recommendation, Recommendation::NotEnoughData(missing));
    let row = only(vec![bound("p", "a", None), bound("q", "b", None)], &blind);
    assert_eq!((row.peak, row.pods, row.seen_on), (Some(mib(5_000)), 2, 1), "the other pod was seen");
    assert!(row.without_agent.is_empty() && row.totals_only == ["b"]);
}

#[test]
fn the_largest_peak_of_all_pods_of_a_workload_decides() {
    let subjects = vec![bound("p", "a", None), bound("q", "a", None), bound("r", "b", None)];
    let seen = [("p", used(5_000, 0, Some(3))), ("q", used(9_000, 47, None))];
    let row = only(subjects, &observed(&seen));
    assert_eq!((row.pods, row.seen_on, row.peak, row.declared), (3, 2, Some(mib(9_000)), None));
    assert_eq!((row.observed, row.cycles), (Some(DAY * 2), Some(3)), "one pod was seen for long enough");
    assert_eq!(row.without_agent, ["b"]);
    // (9000 - 720) x 1.05 = 8694, the next multiple of 64 is 8704.
    assert_eq!(row.recommendation, Recommendation::Declare(mib(8_704)));
}

#[test]
fn too_little_data_is_said_with_what_is_missing_and_never_as_a_number() {
    let missing = |subjects: Vec<Subject>, seen: &[(&str, Use)]| match only(subjects, &observed(seen)).recommendation {
        Recommendation::NotEnoughData(missing) => missing,
        other => panic!("{other:?}"),
    };
    let on = |node: &str| vec![bound("p", node, Some(8_192))];
    let seen = Duration::from_secs(3 * 3600);
    assert_eq!(missing(on("a"), &[("p", used(5_000, 45, Some(3)))]), Missing::Time { seen, of: DAY });
    assert_eq!(missing(on("a"), &[("p", used(5_000, 0, None))]), Missing::Load);
    assert_eq!(missing(on("a"), &[]), Missing::Use);
    assert_eq!(missing(on("b"), &[]), Missing::Agent { nodes: vec!["b".into()] });
    let template = subject(pod("", &["main"], None), Stage::Template, "agent");
    assert_eq!(missing(vec![template], &[]), Missing::Pods);
}

#[test]
fn a_declaration_is_kept_lowered_or_raised_and_a_raise_waits_for_nothing() {
    let advice = |declared: u64, peak: u64, since: i64| {
        only(vec![bound("p", "a", Some(declared))], &observed(&[("p", used(peak, since, Some(1)))])).recommendation
    };
    assert_eq!(advice(8_192, 8_192 + OVERHEAD + 64, 0), Recommendation::Keep, "within the allowance of a finding");
    assert_eq!(advice(8_192, 8_192 + OVERHEAD + 65, 47), Recommendation::Raise(mib(8_704)));
    assert_eq!(advice(8_192, 8_200, 0), Recommendation::Keep);
    assert_eq!(advice(8_192, 5_000, 0), Recommendation::Lower(mib(4_544)));
}

#[test]
fn the_template_counts_before_the_pods_that_were_made_of_an_older_one() {
    let template = subject(pod("", &["main"], Some(4_096)), Stage::Template, "agent");
    let row = only(vec![bound("p", "a", Some(8_192)), template], &observed(&[("p", used(4_500, 0, Some(1)))]));
    assert_eq!((row.pods, row.declared, row.recommendation), (1, Some(mib(4_096)), Recommendation::Keep));
}

#[test]
fn peaks_of_a_stale_report_count_and_are_marked() {
    let seen = observed(&[("p", used(9_000, 0, Some(1)))]);
    let scene = scene(vec![bound("p", "a", None)]);
    let at = |hours: i64| rows(&scene, &seen, DAY, Moment(hours * HOUR)).remove(0);
    assert_eq!((at(48).stale, at(49).stale), (0, 1));
    assert_eq!(at(49).recommendation, at(48).recommendation);
    assert_eq!(at(49).observed, at(48).observed, "nobody has seen it since");
}

#[test]
fn the_amount_is_written_where_the_pod_declares_it_now() {
    let keys = |containers: &[&str], declarations: Declarations| {
        let pod = Pod { declarations, ..pod("p", containers, None) };
        let rows = rows(
            &scene(vec![subject(pod, Stage::Bound("a".into()), "agent")]),
            &Observations::default(),
            DAY,
            Moment(0),
        );
        rows.iter().flat_map(|row| row.keys.iter().map(ToString::to_string)).collect::<Vec<_>>()
    };
    assert_eq!(keys(&["main"], Declarations::default()), ["vramguard.dev/vram"]);
    let two = keys(&["draft", "main"], Declarations::default());
    assert_eq!(two, ["vramguard.dev/vram.draft", "vramguard.dev/vram.main"]);
    let own = [("main".to_owned(), written("vramguard.dev/vram.main", 1))];
    let own = Declarations { containers: own.into(), ..Declarations::default() };
    assert_eq!(keys(&["main"], own), ["vramguard.dev/vram.main"]);
    let of_kai = ["nvidia.com/container.main.gpu-memory.request", "nvidia.com/container.main.gpu-memory.limit"];
    let foreign = [("main".to_owned(), of_kai.map(|key| written(key, 1)).into())];
    let foreign = Declarations { foreign: foreign.into(), ..Declarations::default() };
    assert_eq!(keys(&["main"], foreign), of_kai);
}

#[test]
fn a_gpu_that_nothing_shares_needs_no_declaration() {
    let mut whole = bound("p", "a", None);
    whole.pod.containers[0].gpus = vec![(crate::capacity::gpu::Resource("nvidia.com/mig-1g.10gb".into()), 1)];
    assert_eq!(rows(&scene(vec![whole]), &Observations::default(), DAY, Moment(0)), []);
}

proptest! {
    /// An agent that says "set it to X" and a recommendation of something else would both be distrusted.
    #[test]
    fn a_recommendation_and_the_finding_of_an_agent_never_contradict_each_other(
        declared in proptest::option::of(1u64..20_000), peak in 0u64..30_000, hours in 0i64..48, loaded: bool,
    ) {
        let seen = used(peak, 48 - hours, loaded.then_some(1));
        let row = only(vec![bound("p", "a", declared)], &observed(&[("p", seen.clone())]));
        let pod = pod("p", &["main"], declared);
        let live = LiveContainer::of(&pod, &pod.containers[0], None, mib(OVERHEAD));
        let of = LivePod { uid: uid("p"), cgroup_uid: uid("p"), name: pod.name.clone(), containers: vec![live.clone()] };
        let finding = Finding::of(&of, &live, &seen, Moment(48 * HOUR));
        let write = row.recommendation.write();
        let is_enough = !matches!(row.recommendation, Recommendation::NotEnoughData(_));
        match finding.as_ref().map(|finding| finding.problem) {
            Some(Problem::OverDeclaration) => prop_assert!(matches!(row.recommendation, Recommendation::Raise(_))),
            Some(Problem::Undeclared) if is_enough => prop_assert!(matches!(row.recommendation, Recommendation::Declare(_))),
            Some(Problem::FarUnder) if is_enough => prop_assert!(matches!(row.recommendation, Recommendation::Lower(_))),
            _ => prop_assert!(!matches!(row.recommendation, Recommendation::Raise(_))),
        }
        if let (Some(finding), Some(write)) = (finding.filter(|finding| finding.problem != Problem::Idle), write) {
            prop_assert!(finding.message.ends_with(&format!(" {write}")), "{} and {write}", finding.message);
        }
        if let Some(write) = write {
            prop_assert!(write.mib() + OVERHEAD >= peak, "it covers the peak");
            prop_assert_eq!(write.mib() % 64, 0);
        }
    }
}
