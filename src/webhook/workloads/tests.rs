//! Reviews over HTTP, with a stand-in for the API server that has the target of an autoscaler.

use std::collections::BTreeSet;
use std::convert::Infallible;

use axum::body::Body;
use axum::http::Response as HttpResponse;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::metrics::Metrics;
use crate::state::index::Index;
use crate::state::policies::PolicyStore;
use crate::tls::CertificateStore;

/// Namespace `audited` is in mode Audit, `off` in mode Off, and the others in mode Enforce.
const POLICIES: &str = "\
apiVersion: vramguard.dev/v1alpha1
kind: ClusterVramPolicy
metadata: {name: cluster}
spec: {mode: Enforce}
---
apiVersion: vramguard.dev/v1alpha1
kind: VramPolicy
metadata: {name: p, namespace: audited}
spec: {mode: Audit}
---
apiVersion: vramguard.dev/v1alpha1
kind: VramPolicy
metadata: {name: p, namespace: \"off\"}
spec: {mode: \"Off\"}
";

/// A server that has seen a node with one GPU of 24 GiB.
fn webhook() -> Webhook {
    let webhook = unsynced();
    let node = json!({
        "metadata": { "name": "gpu-0", "labels": {
            "nvidia.com/gpu.memory": "24576", "nvidia.com/gpu.count": "1", "nvidia.com/gpu.replicas": "8",
            "nvidia.com/gpu.sharing-strategy": "time-slicing",
        } },
        "status": { "capacity": { "nvidia.com/gpu": "8" } },
    });
    webhook.index.apply_node(&serde_json::from_value(node).expect("a node"));
    webhook.index.reset_nodes(&BTreeSet::from(["gpu-0".to_owned()]));
    webhook.index.reset_pods(&BTreeSet::new());
    webhook.index.reset_ledgers(&BTreeSet::new());
    webhook
}

fn unsynced() -> Webhook {
    let policies = PolicyStore::new(&vec![("policies.yaml".to_owned(), POLICIES.to_owned())], "own");
    let policies = Arc::new(policies.expect("policies"));
    let rules = *policies.current().policies.rules();
    let index = Arc::new(Index::new(rules, Vec::new()));
    let metrics = Arc::new(Metrics::new(index.clone(), policies.clone(), Arc::new(CertificateStore::default())));
    Webhook { index, policies, metrics }
}

fn deployment(replicas: u64) -> Value {
    json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "agent" }, "spec": {
        "replicas": replicas,
        "template": { "metadata": { "annotations": { "vramguard.dev/vram": "8Gi" } },
            "spec": { "containers": [{ "name": "main", "resources": { "limits": { "nvidia.com/gpu": "1" } } }] } },
    } })
}

fn autoscaler(most: u64) -> Value {
    json!({ "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": { "name": "agents" }, "spec": {
        "maxReplicas": most, "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "agent" } } })
}

fn review_of(namespace: &str, object: &Value) -> Value {
    json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": { "uid": "u", "operation": "CREATE", "namespace": namespace, "object": object } })
}

async fn post(webhook: &Webhook, targets: Targets, body: String) -> (StatusCode, String) {
    let routes = crate::webhook::limited(crate::webhook::workloads(webhook.clone(), targets));
    let request = HttpRequest::post("/validate/workloads").body(Body::from(body)).expect("a request");
    let response = routes.oneshot(request).await.expect("an answer");
    let status = response.status();
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    (status, String::from_utf8(body.to_vec()).expect("UTF-8"))
}

/// The response to a review, which always allows.
async fn answered(webhook: &Webhook, targets: Targets, review: &Value) -> Value {
    let (status, body) = post(webhook, targets, review.to_string()).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let mut answer: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((&answer["response"]["uid"], &answer["response"]["allowed"]), (&json!("u"), &json!(true)));
    answer["response"].take()
}

fn nothing() -> Targets {
    Targets::new(None)
}

/// An API server that answers every request with this status and body.
fn answers(status: u16, body: Value) -> Targets {
    let answer = move |request: HttpRequest<kube::client::Body>| {
        assert_eq!(request.uri().path(), "/apis/apps/v1/namespaces/ml/deployments/agent");
        let response = HttpResponse::builder().status(status).body(Body::from(body.to_string())).expect("a response");
        async { Ok::<_, Infallible>(response) }
    };
    Targets::new(Some(Client::new(tower::service_fn(answer), "default")))
}

const TOO_MANY: &str =
    "Deployment \"ml/agent\": it should have 5 pods of 8912Mi; 0 run, and 2 more fit now; remedy: replicas: 2";
const TOO_FAR: &str = "Deployment \"ml/agent\": HorizontalPodAutoscaler \"agents\" may scale it to 10 pods of 8912Mi; 0 \
                       run, and 2 more fit now; remedy: maxReplicas: 2";

#[tokio::test]
async fn a_deployment_that_does_not_fit_gets_a_warning_by_the_mode_of_its_namespace() {
    let webhook = webhook();
    let ask = async |namespace: &str| answered(&webhook, nothing(), &review_of(namespace, &deployment(5))).await;
    let told = ask("ml").await;
    assert_eq!(told["warnings"], json!([format!("vramguard: {TOO_MANY}")]));
    assert_eq!(told["auditAnnotations"]["reason"], "ReplicasExceedRoom");
    let audited = ask("audited").await;
    assert_eq!(audited.get("warnings"), None);
    assert_eq!(audited["auditAnnotations"]["reason"], "ReplicasExceedRoom", "{audited}");
    for silent in ["off", "kube-system"] {
        assert_eq!(ask(silent).await, json!({ "uid": "u", "allowed": true }), "{silent}");
    }
    let metrics = webhook.metrics.scrape().await.expect("metrics");
    let metrics = String::from_utf8_lossy(&metrics);
    let line = "vramguard_reviews_total{webhook=\"workloads\",verdict=\"warned\",reason=\"ReplicasExceedRoom\",namespace=\"ml\"} 1";
    assert!(metrics.contains(line), "{metrics}");
}

#[tokio::test]
async fn an_autoscaler_is_judged_by_the_template_of_its_target() {
    let webhook = webhook();
    let ask = async |targets, most| answered(&webhook, targets, &review_of("ml", &autoscaler(most))).await;
    assert_eq!(ask(answers(200, deployment(1)), 10).await["warnings"], json!([format!("vramguard: {TOO_FAR}")]));
    assert_eq!(ask(answers(200, deployment(1)), 2).await.get("warnings"), None);
    let missing = json!({ "kind": "Status", "code": 404, "reason": "NotFound", "message": "secret" });
    for (targets, why) in [
        (nothing(), "there is no cluster to read it from"),
        (answers(404, missing), "the API server answered 404 NotFound"),
        (answers(200, json!("secret")), "it has not the shape of a workload"),
        (answers(200, json!({ "apiVersion": "apps/v1", "kind": "Deployment" })), "spec.template: is missing"),
    ] {
        let unread = format!("its target Deployment \"agent\" was not read, so its pods are not known: {why}");
        let expected = json!({ "uid": "u", "allowed": true, "auditAnnotations": { "unread": unread } });
        assert_eq!(ask(targets, 10).await, expected);
    }
}

#[tokio::test]
async fn a_target_that_is_not_read_in_time_is_not_waited_for() {
    let never = |_: HttpRequest<kube::client::Body>| std::future::pending::<Result<HttpResponse<Body>, Infallible>>();
    let targets = Targets::new(Some(Client::new(tower::service_fn(never), "default")));
    let start = Instant::now();
    let answer = answered(&webhook(), targets, &review_of("ml", &autoscaler(10))).await;
    assert!(start.elapsed() >= TARGET_DEADLINE);
    let unread = answer["auditAnnotations"]["unread"].as_str().expect("a reason");
    assert!(unread.ends_with("no answer within 1s"), "{unread}");
}

#[tokio::test]
async fn an_object_that_cannot_be_read_is_allowed_and_the_audit_log_says_why() {
    let webhook = webhook();
    let mut odd = deployment(5);
    odd["spec"]["replicas"] = json!("many");
    let answer = answered(&webhook, nothing(), &review_of("ml", &odd)).await;
    let unread = "object: spec.replicas: \"many\" is a text, expected a whole number";
    assert_eq!(answer, json!({ "uid": "u", "allowed": true, "auditAnnotations": { "unread": unread } }));
    let mut large = deployment(5);
    large["metadata"]["annotations"] = json!({ "note": "x".repeat(MAX_BODY) });
    let answer = answered(&webhook, nothing(), &review_of("ml", &large)).await;
    let unread = "the review is larger than 4 MiB";
    assert_eq!(answer, json!({ "uid": "u", "allowed": true, "auditAnnotations": { "unread": unread } }));
    large["metadata"]["annotations"] = json!({ "note": "x".repeat(MAX_BODY / 2) });
    let answer = answered(&webhook, nothing(), &review_of("ml", &large)).await;
    assert_eq!(answer["warnings"], json!([format!("vramguard: {TOO_MANY}")]));
}

#[tokio::test]
async fn no_review_and_no_synced_index_is_no_answer() {
    for body in ["", "{", "[]", "{\"apiVersion\": \"admission.k8s.io/v1\", \"kind\": \"AdmissionReview\"}"] {
        assert_eq!(post(&webhook(), nothing(), body.to_owned()).await.0, StatusCode::BAD_REQUEST, "{body}");
    }
    let review = review_of("ml", &deployment(5)).to_string();
    assert_eq!(post(&unsynced(), nothing(), review).await.0, StatusCode::SERVICE_UNAVAILABLE);
}
