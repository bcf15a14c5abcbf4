//! Runs the case files of `tests/cases` through every entry point and compares the answers.
//!
//! The entry points are the pure core, the handlers (webhooks and extender) over HTTP, and the binding guard. The
//! guard needs an API server: see [`bindings`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use axum::http::Request;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;
use vramguard::capacity::admission;
use vramguard::capacity::policy::{Mode, Policy};
use vramguard::capacity::verdict::{Reason, Violation};
use vramguard::capacity::vram::Vram;
use vramguard::k8s::case::{self, Bound, Case, Expected, FilterExpectation, Outcome, Suite, TextMatch};
use vramguard::k8s::object::PodObject;
use vramguard::k8s::pod_review::{self, Subject};
use vramguard::k8s::simulation::Simulation;
use vramguard::k8s::{pod, snapshot};
use vramguard::metrics::Metrics;
use vramguard::state::index::Index;
use vramguard::state::policies::PolicyStore;
use vramguard::tls::CertificateStore;
use vramguard::webhook::{self, Webhook};

mod audit;
mod bindings;
mod format;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases");

/// All case files, as path and text.
fn files() -> Vec<(PathBuf, String)> {
    let entries = std::fs::read_dir(FOLDER).expect("tests/cases").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == "yaml")).collect();
    files.sort();
    assert!(!files.is_empty(), "{FOLDER} holds no case files");
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).expect("a case file");
        (path, text)
    };
    files.into_iter().map(read).collect()
}

/// Reads a file that a case file refers to.
fn load(path: &str) -> Result<String, String> {
    std::fs::read_to_string(Path::new(FOLDER).join(path)).map_err(|error| error.to_string())
}

fn read(file: &str, text: &str) -> Result<Suite, String> {
    case::read(file, text, &load).map_err(|errors| errors.iter().map(|e| format!("{e}\n")).collect())
}

fn suites() -> Vec<(PathBuf, Suite)> {
    let read = |(path, text): (PathBuf, String)| {
        let suite = read(&path.display().to_string(), &text).unwrap_or_else(|errors| panic!("\n{errors}"));
        (path, suite)
    };
    files().into_iter().map(read).collect()
}

#[test]
fn the_core_answers_every_case_as_expected() {
    let mut failures = Vec::new();
    for (path, suite) in suites() {
        let simulation = suite.simulation();
        for case in &suite.cases {
            let differences = match case.play(&simulation) {
                Ok(outcome) => case.expect.compare(&outcome).iter().map(ToString::to_string).collect(),
                Err(error) => vec![error],
            };
            failures.extend(differences.iter().map(|line| format!("{}: {}: {line}", path.display(), case.name)));
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[tokio::test]
async fn the_handlers_answer_every_case_as_the_core_does() {
    for (path, suite) in suites() {
        let simulation = suite.simulation();
        let routes = routes(&suite);
        for case in &suite.cases {
            let by_core =
                case.play(&simulation).unwrap_or_else(|error| panic!("{}: {}: {error}", path.display(), case.name));
            // The binding guard decides on what is in an API server: see `bindings`.
            let by_core = Outcome { bind: BTreeMap::new(), ..by_core };
            let by_handlers = handled(&routes, &simulation, case).await;
            assert_eq!(by_handlers, by_core, "{}: {}", path.display(), case.name);
        }
    }
}

/// Otherwise kube-scheduler repeats a futile cycle: it asks the extender, binds the pod, and is refused.
#[test]
fn where_the_extender_lets_a_pod_pass_the_binding_guard_binds_it() {
    let (mut asked, mut bound) = (0, 0);
    for (path, suite) in suites() {
        let simulation = suite.simulation();
        // Nobody asks the extender or the guard about a pod that is created with a node.
        let schedulable =
            |case: &&Case| case.expect.verdict == Expected::Allow && case.pod.pointer("/spec/nodeName").is_none();
        for case in suite.cases.iter().filter(schedulable) {
            let outcome = case.play(&simulation).expect("checked above");
            for (node, _) in outcome.filter.iter().filter(|(_, answer)| *answer == case::FITS) {
                let answer = &outcome.bind[node];
                assert!(matches!(answer, Bound::Allow { .. }), "{}: {}: {answer:?}", path.display(), case.name);
                bound += 1;
            }
            asked += outcome.filter.len();
        }
    }
    assert!(0 < bound && bound < asked, "{bound} of {asked}");
}

/// Regression: under policy mode Audit nothing was injected, so after a change to Enforce nothing was compared.
#[test]
fn a_policy_that_injected_nothing_does_not_vouch_for_a_request() {
    let (_, suite) = suites().into_iter().find(|(path, _)| path.ends_with("requests.yaml")).expect("it is there");
    let simulation = suite.simulation();
    let wrong = suite.cases.iter().find(|case| case.expect.reason.as_deref() == Some("RequestMismatch"));
    let object: PodObject = serde_json::from_value(wrong.expect("a case").pod.clone()).expect("a pod");
    let pod = pod::translate(&object, None, None);
    let policies = simulation.policies();
    let policy = |namespace| policies.of(namespace).expect("not exempt").as_ref();
    let judged =
        |previous| admission::judge(&pod, policy("ml"), &[policy(previous)], simulation.cluster()).violations.len();
    for previous in ["watched", "quiet", "ml"] {
        assert_eq!(judged(previous), 1, "before: the policy of {previous}");
    }
}

/// Compares `refused_if_created` with what `/validate/pods` refuses after `/mutate/pods`.
///
/// Left out are reasons that depend on the moment, and requests that the pod's author wrote.
#[test]
fn a_pod_that_would_be_refused_if_it_were_created_again_is_known_before() {
    let of_the_moment = |reason: &Reason| {
        matches!(
            reason,
            Reason::VramShortfall
                | Reason::NeverFits
                | Reason::NodeNameSet
                | Reason::RequestMismatch
                | Reason::PodMaxUnchecked
                | Reason::SharedReplicas
        )
    };
    let (mut refused, mut admitted) = (0, 0);
    for (path, suite) in suites() {
        let simulation = suite.simulation();
        let policies = simulation.policies();
        for case in &suite.cases {
            let object: PodObject = serde_json::from_value(case.pod.clone()).expect("a pod");
            let pod = pod::translate(&object, None, Some(&case.user));
            let Some(policy) = policies.of(&pod.name.namespace).filter(|policy| policy.mode == Mode::Enforce) else {
                continue;
            };
            let known = admission::refused_if_created(&pod, policy, simulation.cluster());
            let subject = |object| Subject { object, namespace: None, user: &case.user };
            let mutation = pod_review::mutate(subject(&object), policy, || simulation.cluster());
            let mut mutated = case.pod.clone();
            json_patch::patch(&mut mutated, &mutation.patch).expect("the patch applies");
            let mutated: PodObject = serde_json::from_value(mutated).expect("a pod");
            let validation = pod_review::validate(subject(&mutated), policy, &[], || simulation.cluster());
            let judged = validation.expect("the mode is Enforce").judgement.violations;
            let reasons = |violations: &[Violation]| {
                let all: BTreeSet<Reason> = violations.iter().map(Violation::reason).collect();
                all.into_iter().filter(|reason| !of_the_moment(reason)).collect::<Vec<_>>()
            };
            assert_eq!(reasons(&known), reasons(&judged), "{}: {}", path.display(), case.name);
            if known.is_empty() { admitted += 1 } else { refused += 1 }
        }
    }
    assert!(refused > 10 && admitted > 10, "{refused} refused, {admitted} admitted");
}

/// Another webhook may change the affinity, for example.
#[test]
fn a_pod_whose_affinity_was_undone_is_refused() {
    let (_, suite) = suites().into_iter().find(|(path, _)| path.ends_with("requests.yaml")).expect("it is there");
    let simulation = suite.simulation();
    let kept = suite.cases.iter().find(|case| case.name.contains("equals the demand is kept")).expect("a case");
    let policies = simulation.policies();
    let policy = policies.of("ml").expect("not exempt").as_ref();
    let reasons = |change: &dyn Fn(&mut Value)| {
        let mut spec = kept.pod.clone();
        change(&mut spec);
        let object: PodObject = serde_json::from_value(spec).expect("a pod");
        let judged = admission::judge(&pod::translate(&object, None, None), policy, &[], simulation.cluster());
        judged.violations.iter().map(Violation::reason).collect::<Vec<_>>()
    };
    const TERMS: &str = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let with_terms = |change: &dyn Fn(&mut Vec<Value>)| {
        reasons(&|pod| change(pod.pointer_mut(TERMS).and_then(Value::as_array_mut).expect("terms")))
    };
    let undone = [Reason::PodMaxUnchecked];
    assert_eq!(reasons(&|_| ()), []);
    assert_eq!(reasons(&|pod| pod["spec"]["affinity"] = json!({})), undone);
    assert_eq!(with_terms(&|terms| terms[1]["matchExpressions"][0]["values"] = json!(["1742"])), undone);
    assert_eq!(with_terms(&|terms| terms[1]["matchExpressions"][0]["values"] = json!(["many"])), undone);
    assert_eq!(with_terms(&|terms| terms[1]["matchExpressions"][0]["values"] = json!(["1744"])), []);
    let zone = json!({"matchExpressions": [{"key": "zone", "operator": "Exists"}]});
    assert_eq!(with_terms(&|terms| terms.push(zone.clone())), undone);
    assert_eq!(with_terms(&|terms| terms.truncate(1)), []);
}

/// Another replica may have mutated the pod under the previous policies.
///
/// Changed policy files take a minute to reach each replica.
#[test]
fn a_request_of_the_policies_before_is_still_good() {
    let (_, suite) = suites().into_iter().find(|(path, _)| path.ends_with("requests.yaml")).expect("it is there");
    let simulation = suite.simulation();
    let kept = suite.cases.iter().find(|case| case.name.contains("equals the demand is kept")).expect("a case");
    let object: PodObject = serde_json::from_value(kept.pod.clone()).expect("a pod");
    let pod = pod::translate(&object, None, None);
    let before = simulation.policies().of("ml").expect("not exempt").as_ref().clone();
    let now = Policy { per_process_overhead: Vram::from_mib(800), ..before.clone() };
    let between = Policy { per_process_overhead: Vram::from_mib(900), ..before.clone() };
    let violations = |earlier: &[&Policy]| admission::judge(&pod, &now, earlier, simulation.cluster()).violations.len();
    assert_eq!((violations(&[]), violations(&[&between])), (1, 1));
    assert_eq!((violations(&[&before]), violations(&[&between, &before])), (0, 0));
}

/// Without this test, a comparison that never finds a difference passes all tests above.
#[test]
fn a_case_that_expects_something_else_fails() {
    let (_, mut suite) =
        suites().into_iter().find(|(path, _)| path.ends_with("declarations.yaml")).expect("it is there");
    let simulation = suite.simulation();
    let case = &mut suite.cases[0];
    case.expect.verdict = Expected::Deny;
    case.expect.demand = Some("1Mi".into());
    case.expect.patch = Some(json!([]));
    let too_far = FilterExpectation::Rejected(TextMatch::Contains(vec!["too far away".into()]));
    case.expect.filter.insert("nobody".into(), too_far);
    assert_eq!(case.expect.compare(&case.play(&simulation).expect("it plays")).len(), 4);
}

fn routes(suite: &Suite) -> axum::Router {
    let texts: Vec<(String, String)> =
        suite.cluster.iter().enumerate().map(|(index, value)| (index.to_string(), value.to_string())).collect();
    let policies =
        suite.policies.iter().enumerate().map(|(index, value)| (index.to_string(), value.to_string())).collect();
    let snapshot = snapshot::read(texts.iter().map(|(n, t)| (n.as_str(), t.as_str()))).expect("a cluster");
    let policies = Arc::new(PolicyStore::new(&policies, "vramguard-system").expect("policies"));
    let generation = policies.current();
    let index = Index::of_snapshot(&snapshot, *generation.policies.rules(), generation.overrides.clone());
    let index = Arc::new(index);
    let metrics = Arc::new(Metrics::new(index.clone(), policies.clone(), Arc::new(CertificateStore::default())));
    let webhook = Webhook { index, policies, metrics };
    webhook::limited(webhook::reviews(webhook.clone()).merge(webhook::filter(webhook)))
}

/// Does with a new pod what the API server and then kube-scheduler do, through the handlers of webhooks and extender.
async fn handled(routes: &axum::Router, simulation: &Simulation, case: &Case) -> Outcome {
    let mutated = ask(routes, "/mutate/pods", case, &case.pod).await;
    let mut pod = case.pod.clone();
    let mut patch = json!([]);
    if let Some(encoded) = mutated["patch"].as_str() {
        assert_eq!(mutated["patchType"], "JSONPatch");
        patch = serde_json::from_slice(&BASE64_STANDARD.decode(encoded).expect("base64")).expect("JSON");
        let operations: json_patch::Patch = serde_json::from_value(patch.clone()).expect("a patch");
        json_patch::patch(&mut pod, &operations).expect("it applies");
    }
    let validated = ask(routes, "/validate/pods", case, &pod).await;
    let annotations: BTreeMap<String, String> =
        serde_json::from_value(validated["auditAnnotations"].clone()).unwrap_or_default();
    let texts = |value: &Value| -> Vec<String> { serde_json::from_value(value.clone()).unwrap_or_default() };
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let allowed = validated["allowed"] == true;
    if !allowed {
        assert!([403, 422].contains(&validated["status"]["code"].as_u64().expect("a code")), "{validated}");
    }
    Outcome {
        verdict: if allowed { Expected::Allow } else { Expected::Deny },
        reason: text(&validated["status"]["reason"]).or_else(|| annotations.get("reason").cloned()),
        message: text(&validated["status"]["message"]),
        demand: annotations.get("demand").cloned(),
        warnings: [texts(&mutated["warnings"]), texts(&validated["warnings"])].concat(),
        patch,
        filter: filtered(routes, simulation, case, &pod).await,
        bind: BTreeMap::new(),
    }
}

async fn filtered(
    routes: &axum::Router,
    simulation: &Simulation,
    case: &Case,
    pod: &Value,
) -> BTreeMap<String, String> {
    let nodes: Vec<&str> = case.nodes(simulation).into_iter().collect();
    let answer = post(routes, "/scheduler/filter", case, &json!({ "Pod": pod, "NodeNames": nodes })).await;
    let passed: Vec<String> = serde_json::from_value(answer["NodeNames"].clone()).expect("a list of names");
    let mut filter: BTreeMap<String, String> = passed.into_iter().map(|node| (node, case::FITS.to_owned())).collect();
    filter.extend(serde_json::from_value::<BTreeMap<_, _>>(answer["FailedNodes"].clone()).expect("reasons by name"));
    filter
}

async fn ask(routes: &axum::Router, path: &str, case: &Case, pod: &Value) -> Value {
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u", "operation": "CREATE", "resource": { "group": "", "version": "v1", "resource": "pods" },
            "namespace": pod["metadata"]["namespace"], "userInfo": { "username": case.user }, "object": pod,
        },
    });
    let answer = post(routes, path, case, &review).await;
    assert_eq!(answer["response"]["uid"], "u");
    answer["response"].clone()
}

async fn post(routes: &axum::Router, path: &str, case: &Case, body: &Value) -> Value {
    let request = Request::post(path).body(Body::from(body.to_string())).expect("a request");
    let response = routes.clone().oneshot(request).await.expect("infallible");
    assert_eq!(response.status(), 200, "{}", case.name);
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    serde_json::from_slice(&body).expect("JSON")
}
