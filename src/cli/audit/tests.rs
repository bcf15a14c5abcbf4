//! Reading a cluster that a script answers for, and files.

use std::convert::Infallible;

use axum::body::Body;
use hyper::{Request, Response};
use kube::Client;
use serde_json::{Value, json};

use super::*;

/// An API server that answers these paths, and 404 to all others.
fn cluster(answers: Vec<(&'static str, Value)>) -> Objects {
    let answer = move |request: Request<kube::client::Body>| {
        let found = answers.iter().find(|(path, _)| *path == request.uri().path()).map(|(_, body)| body.to_string());
        let missing =
            json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "message": "no"});
        let (code, body) = found.map_or_else(|| (404, missing.to_string()), |body| (200, body));
        async move { Ok::<_, Infallible>(Response::builder().status(code).body(Body::from(body)).unwrap()) }
    };
    Objects { client: Client::new(tower::service_fn(answer), "default"), namespace: None }
}

fn list(items: &[Value]) -> Value {
    json!({"metadata": {"resourceVersion": "1"}, "items": items})
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "ml", "uid": name},
        "spec": {"containers": [{"name": "c", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]}})
}

#[tokio::test]
async fn an_object_of_a_cluster_that_cannot_be_read_is_a_gap_and_the_others_are_read() {
    let scaler = |name: &str| json!({"metadata": {"name": name, "namespace": "ml"}, "spec": {"maxReplicas": "many"}});
    let gaps = async |scalers: &[Value]| {
        let objects = cluster(vec![
            ("/api/v1/nodes", list(&[json!({"metadata": {"name": "gpu-0"}})])),
            ("/api/v1/pods", list(&[pod("a"), pod("b")])),
            ("/apis/autoscaling/v2/horizontalpodautoscalers", list(scalers)),
        ]);
        let mut reader = Reader::new();
        let gaps =
            read_live(&objects, &mut reader, &Progress::default()).await.unwrap_or_else(|_| panic!("it goes on"));
        assert_eq!(reader.subjects(), 2);
        gaps.into_iter().map(|gap| format!("{}: {}", gap.what, gap.why)).collect::<Vec<_>>()
    };
    assert!(gaps(&[]).await.is_empty());
    let first = "HorizontalPodAutoscaler ml/x: spec.maxReplicas: \"many\" is a text, expected a whole number";
    assert_eq!(
        gaps(&[scaler("x")]).await,
        [format!("objects: 1 object could not be read: {first}; it is not counted")]
    );
    let both = format!("objects: 2 objects could not be read, the first: {first}; they are not counted");
    assert_eq!(gaps(&[scaler("x"), scaler("y")]).await, [both]);
}

#[tokio::test]
async fn the_api_of_reports_is_the_one_that_the_cluster_serves_and_the_newer_of_both() {
    let served = |api: &str| json!({"kind": "APIResourceList", "groupVersion": api, "resources": []});
    let newer = ("/apis/openreports.io/v1alpha1", served("openreports.io/v1alpha1"));
    let older = ("/apis/wgpolicyk8s.io/v1alpha2", served("wgpolicyk8s.io/v1alpha2"));
    assert_eq!(cluster(vec![older.clone()]).report_api().await, Ok(Some(ReportApi::WgPolicy)));
    assert_eq!(cluster(vec![older, newer.clone()]).report_api().await, Ok(Some(ReportApi::OpenReports)));
    assert_eq!(cluster(vec![newer]).report_api().await, Ok(Some(ReportApi::OpenReports)));
    assert_eq!(cluster(Vec::new()).report_api().await, Ok(None));
}

/// Kubernetes 1.32 serves the older versions alone. Their GPUs were missing, and nothing said so.
#[tokio::test]
async fn shared_gpus_of_an_older_api_server_are_read_in_the_version_that_it_serves() {
    let device = json!({"name": "gpu-0", "basic": {"allowMultipleAllocations": true, "capacity": {"memory": {"value": "80Gi"}}}});
    let slice = json!({"metadata": {"name": "s"}, "spec": {"driver": "gpu.nvidia.com", "pool": {"name": "a"}, "nodeName": "a",
        "devices": [device]}});
    let objects = cluster(vec![
        ("/api/v1/nodes", list(&[])),
        ("/api/v1/pods", list(&[])),
        ("/apis/resource.k8s.io/v1beta1/resourceslices", list(std::slice::from_ref(&slice))),
        // A newer server serves both; the same slice is read once.
        ("/apis/resource.k8s.io/v1beta2/resourceclaims", list(&[])),
        ("/apis/resource.k8s.io/v1beta1/resourceclaims", json!("not asked for")),
    ]);
    let mut reader = Reader::new();
    let gaps = read_live(&objects, &mut reader, &Progress::default()).await.unwrap_or_else(|_| panic!("it is read"));
    assert!(gaps.is_empty(), "{gaps:?}");
    let scene = reader.finish(Policies::new(&document::Configuration::default().documents, keys::NAMESPACE), &[]);
    assert_eq!(scene.devices.len(), 1);
}
