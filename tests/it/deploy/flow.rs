//! API priority and fairness: which calls of the guard have their own priority level.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::ensure;
use axum::http::Request;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};

use super::kubectl;
use crate::support::guard::{OnOutage, apply_manifests};
use crate::support::{ControlPlane, eventually, free_port};

const SCHEMA: &str = "X-Kubernetes-PF-FlowSchema-UID";

/// Names of all FlowSchemas by uid.
async fn schemas(plane: &ControlPlane) -> BTreeMap<String, String> {
    let path = "jsonpath={range .items[*]}{.metadata.uid}={.metadata.name} {end}";
    let listed = plane.kubectl(&["get", "flowschemas", "-o", path]).await.expect_success();
    listed
        .split_whitespace()
        .filter_map(|pair| pair.split_once('='))
        .map(|(u, n)| (u.to_owned(), n.to_owned()))
        .collect()
}

#[tokio::test]
async fn calls_that_a_binding_waits_for_have_seats_of_their_own() {
    let plane = ControlPlane::start().await;
    apply_manifests(&plane, "deploy", free_port(), OnOutage::AsShipped).await;
    let kubeconfig = plane.service_account_kubeconfig("vramguard-system", "vramguard").await;
    let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("the harness writes it");
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let client = kube::Client::try_from(config.expect("it is complete")).expect("the certificate is readable");
    let schemas = schemas(&plane).await;
    let schema_of = async |method: &str, path: &str| {
        let request =
            Request::builder().method(method).uri(path).header("Content-Type", "application/merge-patch+json");
        let answer = client.send(request.body(Body::from(b"{}".to_vec())).expect("a request")).await;
        let answer = answer.expect("the API server answers");
        let uid = answer.headers()[SCHEMA].to_str().expect("a uid").to_owned();
        schemas[&uid].clone()
    };
    eventually("the API server to follow the new schemas", Duration::from_secs(30), async || {
        let schema = schema_of("GET", "/api/v1/namespaces/ml/pods/llm-0").await;
        ensure!(schema == "vramguard-bindings", "{schema}");
        Ok(())
    })
    .await;

    let (ledgers, leases) =
        ("/apis/vramguard.dev/v1alpha1/gpuledgers", "/apis/coordination.k8s.io/v1/namespaces/vramguard-system/leases");
    let calls = [
        ("GET", "/api/v1/namespaces/ml/pods/llm-0".to_owned(), "vramguard-bindings"),
        ("GET", format!("{ledgers}/gpu-0"), "vramguard-bindings"),
        ("POST", ledgers.to_owned(), "vramguard-bindings"),
        ("GET", "/api/v1/nodes/gpu-0".to_owned(), "vramguard-bindings"),
        ("PUT", format!("{ledgers}/gpu-0"), "vramguard-bindings"),
        ("PATCH", format!("{ledgers}/gpu-0/status"), "vramguard-bindings"),
        ("PATCH", "/api/v1/nodes/gpu-0/status".to_owned(), "vramguard-controller"),
        ("PUT", format!("{leases}/vramguard"), "vramguard-controller"),
        // The lists of a starting replica must not delay those calls.
        ("GET", "/api/v1/pods".to_owned(), "service-accounts"),
        ("GET", "/api/v1/nodes?watch=true&timeoutSeconds=1".to_owned(), "service-accounts"),
        ("GET", ledgers.to_owned(), "service-accounts"),
    ];
    for (method, path, expected) in calls {
        assert_eq!(schema_of(method, &path).await, expected, "{method} {path}");
    }

    // The priority level has dispatched the guard's calls.
    let metrics = kubectl(&plane, "get --raw /metrics", "").await.expect_success();
    let dispatched = |schema: &str| {
        let head = format!(
            "apiserver_flowcontrol_dispatched_requests_total{{flow_schema=\"{schema}\",priority_level=\"vramguard\"}} "
        );
        metrics.lines().find_map(|line| line.strip_prefix(&head)?.parse::<f64>().ok())
    };
    assert!(dispatched("vramguard-bindings") >= Some(5.0), "{:?}", dispatched("vramguard-bindings"));
    assert!(dispatched("vramguard-controller") >= Some(2.0), "{:?}", dispatched("vramguard-controller"));
    let level = "jsonpath={.spec.priorityLevelConfiguration.name} {.status.conditions[?(@.type==\"Dangling\")].status}";
    for schema in ["vramguard-bindings", "vramguard-controller"] {
        let found = plane.kubectl(&["get", "flowschema", schema, "-o", level]).await.expect_success();
        assert_eq!(found, "vramguard False");
    }
}
