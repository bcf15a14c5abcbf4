//! What is used, next to what is held.

use super::*;
use crate::capacity::audit::scene::{Observed, ObservedContainer, ObservedGpu};
use crate::capacity::cluster::REPORT_DEADLINE;
use crate::capacity::gpu::Resource;
use crate::capacity::observation::finding::{Finding as Observation, Problem};
use crate::capacity::time::Moment;
use crate::capacity::verdict::Outdated;

const NOW: Moment = Moment(1_000_000_000);

/// The reasons of findings about what is used.
const OF_USE: [Reason; 6] = [
    Reason::OverDeclaration,
    Reason::Undeclared,
    Reason::Idle,
    Reason::FarUnder,
    Reason::AgentStale,
    Reason::AgentUnreadable,
];

fn of_use(audit: &Audit) -> Vec<(Severity, Reason, String)> {
    reasons(audit).into_iter().filter(|(_, reason, _)| OF_USE.contains(reason)).collect()
}

fn container(used: Option<u64>, peak: u64, problem: Option<Problem>) -> ObservedContainer {
    let finding = |problem| Observation { problem, message: format!("pod uses {used:?}; do something") };
    ObservedContainer {
        used: used.map(mib),
        peak: mib(peak),
        idle_since: None,
        gpu: "0".into(),
        demand: Some(mib(9_000)),
        finding: problem.map(finding),
    }
}

/// What an agent reported just now of the only GPU of a node, and of the container of each pod.
fn observed(used: Option<u64>, containers: Vec<(&str, ObservedContainer)>) -> Observed {
    let containers = containers.into_iter().map(|(pod, seen)| ((uid(pod), "main".into()), seen)).collect();
    let gpu = ObservedGpu { uuid: "0".into(), used: used.map(mib), outside: None, unreadable: None };
    Observed { reported: Some(NOW), gpus: vec![gpu], containers, ..Observed::default() }
}

/// One node with one GPU of 24,000 and these pods of 9,000.
fn seen(pods: &[&str], observed: Observed) -> Scene {
    let mut scene = scene(vec![("a", vec![pool(&[24_000], 4)])]);
    for pod in pods {
        scene.running(pod, "a", Some(9_000));
    }
    scene.observed.insert("a".into(), observed);
    scene.at = Some(NOW);
    scene
}

#[test]
fn a_report_is_current_up_to_the_deadline_and_old_after_it() {
    let mut scene =
        seen(&["p"], observed(Some(8_000), vec![("p", container(Some(8_000), 8_500, Some(Problem::Idle)))]));
    scene.at = Some(NOW.after(REPORT_DEADLINE));
    let audit = run(&scene);
    assert_eq!((audit.gpus[0].in_use.used, &audit.gpus[0].in_use.outdated), (Some(mib(8_000)), &None));
    assert_eq!(audit.totals.used, Some(mib(8_000)));
    assert!(reasons(&audit).contains(&(Severity::Warn, Reason::Idle, "p".into())));
    let age = REPORT_DEADLINE + std::time::Duration::from_millis(1);
    scene.at = Some(NOW.after(age));
    let audit = run(&scene);
    assert_eq!(audit.gpus[0].in_use.outdated, Some(Outdated::Old(age)));
    assert_eq!(audit.gpus[0].holders[0].in_use.as_ref().unwrap().outdated, Some(Outdated::Old(age)));
    assert_eq!((audit.totals.used, audit.totals.used_gpus), (None, 0), "an old amount is no part of a sum");
    assert_eq!(of_use(&audit), [(Severity::Warn, Reason::AgentStale, "a".into())]);
}

#[test]
fn a_report_without_a_time_is_not_current() {
    let scene = seen(&["p"], Observed { reported: None, ..observed(Some(1), Vec::new()) });
    assert_eq!(run(&scene).gpus[0].in_use.outdated, Some(Outdated::Undated));
}

#[test]
fn findings_about_pods_that_are_not_there_are_left_out() {
    let over = || container(Some(9_500), 9_500, Some(Problem::OverDeclaration));
    let scene = seen(&["p"], observed(Some(19_000), vec![("p", over()), ("gone", over())]));
    let audit = run(&scene);
    assert_eq!(of_use(&audit), [(Severity::Deny, Reason::OverDeclaration, "p".into())]);
    assert_eq!(audit.gpus[0].holders.len(), 1);
}

#[test]
fn pods_of_one_owner_are_one_finding_with_the_words_about_the_worst() {
    let over = |used| container(Some(used), used, Some(Problem::OverDeclaration));
    let mut scene =
        seen(&["p", "q", "r"], observed(None, vec![("p", over(9_100)), ("q", over(9_900)), ("r", over(9_200))]));
    for subject in &mut scene.subjects {
        subject.object = object("Deployment", "llm");
    }
    let audit = run(&scene);
    let found: Vec<_> = audit.findings.iter().filter(|f| f.matter.reason() == Reason::OverDeclaration).collect();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].pods, 3);
    assert_eq!(
        found[0].matter.to_string(),
        "pod uses Some(9900); the same of 3 pods of this owner, with 28200Mi in use together"
    );
    assert_eq!(found[0].matter.remedy(), "do something");
}

#[test]
fn pods_of_an_exempt_namespace_are_not_asked_to_declare() {
    let mut scene = seen(&["p"], observed(None, vec![("p", container(Some(500), 500, Some(Problem::Undeclared)))]));
    assert!(reasons(&run(&scene)).contains(&(Severity::Warn, Reason::Undeclared, "p".into())));
    scene.subjects[0].pod.name.namespace = "kube-system".into();
    assert!(!reasons(&run(&scene)).iter().any(|(_, reason, _)| *reason == Reason::Undeclared));
}

#[test]
fn a_gpu_behind_two_resources_is_in_use_once() {
    let other = Pool { resource: Resource("nvidia.com/gpu-b".into()), ..pool(&[24_000], 4) };
    let mut scene = scene(vec![("a", vec![pool(&[24_000], 4), other])]);
    scene.observed.insert("a".into(), observed(Some(8_000), Vec::new()));
    scene.at = Some(NOW);
    let audit = run(&scene);
    assert_eq!((audit.gpus.len(), audit.totals.used, audit.totals.used_gpus), (2, Some(mib(8_000)), 1));
}

/// The audit without what is used.
fn held(mut audit: Audit) -> String {
    for gpu in &mut audit.gpus {
        gpu.in_use = Default::default();
        gpu.holders.iter_mut().for_each(|held| held.in_use = None);
    }
    for node in &mut audit.nodes {
        node.agent = None;
        node.unassigned.iter_mut().for_each(|held| held.in_use = None);
    }
    audit.findings.retain(|finding| !OF_USE.contains(&finding.matter.reason()));
    (audit.totals.used, audit.totals.used_gpus) = (None, 0);
    format!("{audit:?}")
}

proptest! {
    #[test]
    fn what_is_used_never_changes_what_is_held(
        pods in prop::collection::vec((0_usize..2, prop::option::of(1_u64..20_000), prop::option::of(0_u64..40_000)), 0..12),
        on_gpu in prop::option::of(0_u64..60_000),
        age in 0_u64..1_200,
        is_unreadable: bool,
    ) {
        let names = ["a", "b"];
        let mut scene = scene(vec![("a", vec![pool(&[24_000], 4)]), ("b", vec![pool(&[24_000, 24_000], 4)])]);
        let mut seen: [Observed; 2] = std::array::from_fn(|_| observed(on_gpu, Vec::new()));
        for (number, (node, declared, used)) in pods.iter().enumerate() {
            let name = format!("p{number}");
            scene.running(&name, names[*node], *declared);
            let problem = Problem::ALL[number % 4];
            seen[*node].containers.insert((uid(&name), "main".into()), container(*used, 50_000, Some(problem)));
        }
        let without = held(run(&scene));
        for (name, mut observed) in names.into_iter().zip(seen) {
            observed.unreadable = is_unreadable.then(|| "the driver is silent".into());
            scene.observed.insert(name.into(), observed);
        }
        scene.at = Some(NOW.after(std::time::Duration::from_secs(age)));
        prop_assert_eq!(held(run(&scene)), without);
    }
}
