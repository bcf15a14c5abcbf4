//! When nodes are looked up again, and when a call gets no answer.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use futures::poll;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::capacity::gpu::Rules;
use crate::metrics::Metrics;
use crate::state::index::Index;
use crate::state::policies::PolicyStore;
use crate::tls::CertificateStore;

/// A server whose index is not synced yet.
fn webhook() -> Webhook {
    let policies = Arc::new(PolicyStore::new(&Vec::new(), "own").unwrap());
    let index = Arc::new(Index::new(Rules::default(), Vec::new()));
    let metrics = Arc::new(Metrics::new(index.clone(), policies.clone(), Arc::new(CertificateStore::default())));
    Webhook { index, policies, metrics }
}

/// A server that has seen a node with one GPU and a pod that fills it.
fn full() -> Webhook {
    let webhook = webhook();
    let node = json!({
        "metadata": { "name": "gpu-0", "labels": {
            "nvidia.com/gpu.memory": "24576", "nvidia.com/gpu.count": "1", "nvidia.com/gpu.replicas": "4",
            "nvidia.com/gpu.sharing-strategy": "time-slicing",
        } },
        "status": { "capacity": { "nvidia.com/gpu": "4" } },
    });
    webhook.index.apply_node(&serde_json::from_value(node).unwrap());
    webhook.index.apply_pod(&serde_json::from_value(pod("there", json!("gpu-0"))).unwrap());
    webhook.index.reset_nodes(&BTreeSet::from(["gpu-0".to_owned()]));
    webhook.index.reset_pods(&BTreeSet::from([PodUid::from("there")]));
    webhook.index.reset_ledgers(&BTreeSet::new());
    webhook
}

fn pod(uid: &str, node: Value) -> Value {
    let limits = json!({ "nvidia.com/gpu": "1", "vramguard.dev/vram": "20Gi" });
    json!({
        "metadata": { "name": uid, "namespace": "ml", "uid": uid },
        "spec": { "nodeName": node, "containers": [{ "name": "main", "resources": { "limits": limits } }] },
    })
}

fn question(nodes: &[&str]) -> String {
    json!({ "Pod": pod("new", Value::Null), "NodeNames": nodes }).to_string()
}

fn served(webhook: Webhook) -> Router {
    crate::webhook::limited(crate::webhook::filter(webhook))
}

fn wants(args: &Args<'_>) -> (PodUid, Holder) {
    (pod::uid(&args.pod.metadata), pod::would_hold(&args.pod).unwrap())
}

#[tokio::test]
async fn a_pod_that_kube_scheduler_saw_go_first_is_waited_for() {
    let webhook = full();
    let body = question(&["gpu-0"]);
    let args = extender::read(body.as_bytes()).unwrap();
    let (uid, holder) = wants(&args);
    let mut answers = pin!(webhook.filtered(&args, &uid, &holder));
    assert!(poll!(&mut answers).is_pending(), "the first look leaves a doubt");
    webhook.index.delete_pod(&serde_json::from_value(pod("there", json!("gpu-0"))).unwrap());
    assert_eq!(answers.await, [Ok(())]);
}

#[tokio::test]
async fn a_refusal_stands_if_nothing_happens_soon() {
    let webhook = full();
    let body = question(&["gpu-0"]);
    let args = extender::read(body.as_bytes()).unwrap();
    let (uid, holder) = wants(&args);
    let answers = webhook.filtered(&args, &uid, &holder).await;
    assert!(answers[0].is_err());
}

#[tokio::test]
async fn an_answer_that_leaves_no_doubt_is_given_at_once() {
    let webhook = full();
    webhook.index.delete_pod(&serde_json::from_value(pod("there", json!("gpu-0"))).unwrap());
    let body = question(&["gpu-0", "cpu-0"]);
    let args = extender::read(body.as_bytes()).unwrap();
    let (uid, holder) = wants(&args);
    let mut answers = pin!(webhook.filtered(&args, &uid, &holder));
    assert!(poll!(&mut answers).is_ready(), "one node can take it");
}

#[tokio::test]
async fn nothing_is_answered_before_nodes_and_pods_are_listed() {
    let ask = async |webhook: Webhook| {
        let request = Request::post("/scheduler/filter").body(Body::from(question(&["gpu-0"]))).unwrap();
        served(webhook).oneshot(request).await.unwrap().status()
    };
    assert_eq!(ask(webhook()).await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ask(full()).await, StatusCode::OK);
}

#[tokio::test]
async fn more_nodes_than_the_bound_get_an_error_that_kube_scheduler_logs() {
    let names: Vec<&str> = vec!["a"; extender::MAX_NODES + 1];
    let nodes = json!({ "items": vec![json!({ "metadata": { "name": "a" } }); extender::MAX_NODES + 1] });
    for question in [
        json!({ "Pod": pod("new", Value::Null), "NodeNames": names }),
        json!({ "Pod": pod("new", Value::Null), "Nodes": nodes }),
    ] {
        let request = Request::post("/scheduler/filter").body(Body::from(question.to_string())).unwrap();
        let response = served(full()).oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let answer: Value = serde_json::from_slice(&body).unwrap();
        let said = "10001 nodes in one question, and vramguard answers 10000 at most; lower percentageOfNodesToScore";
        assert_eq!(answer["Error"], said);
        assert_eq!(answer["NodeNames"], Value::Null);
    }
}
