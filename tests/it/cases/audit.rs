//! The audit, as one more entry point: what it says of the pod of a case is what the webhooks say.

use vramguard::capacity::audit;
use vramguard::capacity::policy::Policies;
use vramguard::k8s::audit::Reader;
use vramguard::k8s::document;
use vramguard::keys;
use vramguard::report::assemble::{self, Origin};
use vramguard::report::document::{Report, Severity};

use super::*;

/// Violations that only a review can have: a scheduler, or the mutating webhook, is part of the way to them.
const OF_A_REVIEW: [&str; 6] =
    ["NodeNameSet", "RequestMismatch", "PodMaxUnchecked", "SharedReplicas", "ReservedAnnotation", "VramShortfall"];

/// Audits the cluster of a suite with the pod of a case in it.
fn report(suite: &Suite, pod: &Value) -> Report {
    let texts: Vec<(String, String)> = suite
        .policies
        .iter()
        .enumerate()
        .map(|(number, policy)| (format!("policy {number}"), policy.to_string()))
        .collect();
    let texts = texts.iter().map(|(name, text)| (name.as_str(), text.as_str()));
    let configuration = document::read(texts).expect("the suite was read before");
    let mut reader = Reader::default();
    for object in suite.cluster.iter().chain([pod]) {
        reader.add(None, object).unwrap_or_else(|error| panic!("{error}: {object}"));
    }
    let policies = Policies::new(&configuration.documents, keys::NAMESPACE);
    let scene = reader.finish(policies, &configuration.overrides);
    assemble::report(&audit::run(&scene), &Origin::default())
}

#[test]
fn the_audit_says_of_every_case_what_the_webhooks_say() {
    let (mut denied, mut failures) = (0, Vec::new());
    for (path, suite) in suites() {
        let simulation = suite.simulation();
        for case in &suite.cases {
            let outcome = case.play(&simulation).expect("the core answers it");
            let mut pod = case.pod.clone();
            let (name, namespace) =
                ("of-the-case", pod["metadata"]["namespace"].as_str().unwrap_or("default").to_owned());
            pod["metadata"]["name"] = json!(name);
            pod["apiVersion"] = json!("v1");
            pod["kind"] = json!("Pod");
            let report = report(&suite, &pod);
            let of_pod =
                report.findings.iter().filter(|finding| finding.name == name && finding.namespace == namespace);
            let reasons: Vec<(&str, Severity)> =
                of_pod.map(|finding| (finding.reason.as_str(), finding.severity)).collect();
            let failure = match (&outcome.verdict, &outcome.reason) {
                (_, Some(reason)) if OF_A_REVIEW.contains(&reason.as_str()) => None,
                (Expected::Deny, Some(reason)) => {
                    denied += 1;
                    let found = reasons.iter().any(|(found, severity)| found == reason && *severity == Severity::Deny);
                    (!found).then(|| format!("denied for {reason}, and the audit finds {reasons:?}"))
                }
                _ => {
                    // Such pods are admitted, and wait.
                    let waits = ["NeverFits", "OnlySharedGpus"];
                    let grave =
                        |(reason, severity): &&(&str, Severity)| *severity == Severity::Deny && !waits.contains(reason);
                    reasons.iter().find(grave).map(|reason| format!("admitted, and the audit finds {reason:?}"))
                }
            };
            failures.extend(failure.map(|failure| format!("{}: {}: {failure}", path.display(), case.name)));
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
    assert!(denied > 15, "{denied} denials were compared");
}
