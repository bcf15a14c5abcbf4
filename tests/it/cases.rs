//! The case files of `tests/cases` through every mouth: the pure core, the handlers (webhooks and extender) over HTTP, and the
//! binding guard, which needs an API server ([`bindings`]). One answer.

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
use vramguard::index::Index;
use vramguard::k8s::case::{self, Bound, Case, Expected, Outcome, Stage, Suite};
use vramguard::k8s::object::PodObject;
use vramguard::k8s::{patch, pod, snapshot};
use vramguard::metrics::Metrics;
use vramguard::policies::PolicyStore;
use vramguard::tls::CertificateStore;
use vramguard::webhook::{self, Webhook};

mod bindings;

fn suites() -> Vec<(PathBuf, Suite)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(&directory).expect("tests/cases").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).expect("a case file");
        let suite = case::read(&path.display().to_string(), &text).unwrap_or_else(|error| panic!("{error}"));
        (path, suite)
    };
    files.into_iter().map(read).collect()
}

#[test]
fn the_core_answers_every_case_as_expected() {
    let mut failures = Vec::new();
    for (path, suite) in suites() {
        let stage = Stage::of(&suite).unwrap_or_else(|errors| panic!("{}: {errors:?}", path.display()));
        for case in &suite.cases {
            let differences = match stage.play(case) {
                Ok(outcome) => case.expect.compare(&outcome),
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
        let stage = Stage::of(&suite).expect("checked above");
        let routes = routes(&suite);
        for case in &suite.cases {
            let by_core = stage.play(case).unwrap_or_else(|error| panic!("{}: {}: {error}", path.display(), case.name));
            // Bindings are decided on what stands in an API server: see `bindings`.
            let by_core = Outcome { bind: BTreeMap::new(), ..by_core };
            let by_handlers = handled(&routes, &stage, case).await;
            assert_eq!(by_handlers, by_core, "{}: {}", path.display(), case.name);
        }
    }
}

/// Where it does not, kube-scheduler goes round in circles: it asks, binds, and is refused.
#[test]
fn where_the_extender_lets_a_pod_pass_the_binding_guard_binds_it() {
    let (mut asked, mut bound) = (0, 0);
    for (path, suite) in suites() {
        let stage = Stage::of(&suite).expect("checked above");
        // A pod that comes with a node is asked about by neither.
        let schedulable =
            |case: &&Case| case.expect.verdict == Expected::Allow && case.pod.pointer("/spec/nodeName").is_none();
        for case in suite.cases.iter().filter(schedulable) {
            let outcome = stage.play(case).expect("checked above");
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

/// Going from Audit to Enforce once left a hole: under the policy before, nothing was injected and so nothing compared.
#[test]
fn a_policy_that_injected_nothing_does_not_vouch_for_a_request() {
    let (_, suite) = suites().into_iter().find(|(path, _)| path.ends_with("requests.yaml")).expect("it is there");
    let stage = Stage::of(&suite).expect("checked above");
    let wrong = suite.cases.iter().find(|case| case.expect.reason.as_deref() == Some("RequestMismatch"));
    let object: PodObject = serde_json::from_value(wrong.expect("a case").pod.clone()).expect("a pod");
    let pod = pod::translate(&object, None, None);
    let policies = stage.policies();
    let policy = |namespace| policies.of(namespace).expect("not exempt").as_ref();
    let judged =
        |previous| admission::judge(&pod, policy("ml"), Some(policy(previous)), stage.cluster()).violations.len();
    for previous in ["watched", "quiet", "ml"] {
        assert_eq!(judged(previous), 1, "before: the policy of {previous}");
    }
}

/// What would be refused if it were created again is what `/validate/pods` refuses after `/mutate/pods`, but for what depends on
/// the moment and for requests that the pod's author wrote.
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
        let stage = Stage::of(&suite).expect("checked above");
        let policies = stage.policies();
        for case in &suite.cases {
            let object: PodObject = serde_json::from_value(case.pod.clone()).expect("a pod");
            let pod = pod::translate(&object, None, Some(&case.user));
            let Some(policy) = policies.of(&pod.name.namespace).filter(|policy| policy.mode == Mode::Enforce) else {
                continue;
            };
            let known = admission::refused_if_created(&pod, policy, stage.cluster());
            let mut mutated = case.pod.clone();
            let operations = patch::operations(&object, &admission::assess(&pod, policy, stage.cluster()).changes());
            json_patch::patch(&mut mutated, &operations).expect("the patch applies");
            let mutated: PodObject = serde_json::from_value(mutated).expect("a pod");
            let mutated = pod::translate(&mutated, None, Some(&case.user));
            let judged = admission::judge(&mutated, policy, None, stage.cluster()).violations;
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

/// What another webhook makes of the affinity, say.
#[test]
fn a_pod_whose_affinity_was_undone_is_refused() {
    let (_, suite) = suites().into_iter().find(|(path, _)| path.ends_with("requests.yaml")).expect("it is there");
    let stage = Stage::of(&suite).expect("checked above");
    let kept = suite.cases.iter().find(|case| case.name.contains("equals the demand is kept")).expect("a case");
    let policies = stage.policies();
    let policy = policies.of("ml").expect("not exempt").as_ref();
    let reasons = |change: &dyn Fn(&mut Value)| {
        let mut spec = kept.pod.clone();
        change(&mut spec);
        let object: PodObject = serde_json::from_value(spec).expect("a pod");
        let judged = admission::judge(&pod::translate(&object, None, None), policy, None, stage.cluster());
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

#[test]
fn a_request_of_the_policy_before_is_still_good() {
    let (_, suite) = suites().into_iter().find(|(path, _)| path.ends_with("requests.yaml")).expect("it is there");
    let stage = Stage::of(&suite).expect("checked above");
    let kept = suite.cases.iter().find(|case| case.name.contains("equals the demand is kept")).expect("a case");
    let object: PodObject = serde_json::from_value(kept.pod.clone()).expect("a pod");
    let pod = pod::translate(&object, None, None);
    let before = stage.policies().of("ml").expect("not exempt").as_ref().clone();
    let now = Policy { per_process_overhead: Vram::from_mib(800), ..before.clone() };
    assert_eq!(admission::judge(&pod, &now, None, stage.cluster()).violations.len(), 1);
    assert_eq!(admission::judge(&pod, &now, Some(&before), stage.cluster()).violations, []);
}

#[test]
fn a_case_file_with_a_mistake_names_it() {
    let suite = "cases:\n  - name: n\n    pod: {}\n    expect: {verdict: Maybe}\n";
    let error = case::read("suite.yaml", suite).unwrap_err().to_string();
    assert!(error.starts_with("suite.yaml:4: cases[0].expect.verdict: "), "{error}");
}

/// A comparison that finds nothing wrong with anything would make every test above pass.
#[test]
fn a_case_that_expects_something_else_fails() {
    let (_, mut suite) =
        suites().into_iter().find(|(path, _)| path.ends_with("declarations.yaml")).expect("it is there");
    let stage = Stage::of(&suite).expect("checked above");
    let case = &mut suite.cases[0];
    case.expect.verdict = Expected::Deny;
    case.expect.demand = Some("1Mi".into());
    case.expect.patch = Some(json!([]));
    case.expect.filter.insert("nobody".into(), "too far away".into());
    assert_eq!(case.expect.compare(&stage.play(case).expect("it plays")).len(), 4);
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

/// What the API server does with a new pod, and kube-scheduler after it, with the handlers for webhooks and extender.
async fn handled(routes: &axum::Router, stage: &Stage, case: &Case) -> Outcome {
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
        filter: filtered(routes, stage, case, &pod).await,
        bind: BTreeMap::new(),
    }
}

async fn filtered(routes: &axum::Router, stage: &Stage, case: &Case, pod: &Value) -> BTreeMap<String, String> {
    let nodes: Vec<&str> = stage.nodes(case).into_iter().collect();
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
