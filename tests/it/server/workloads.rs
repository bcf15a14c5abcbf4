//! Reviews of workloads: every one is allowed, whatever is in it.

use std::cell::RefCell;

use hyper::StatusCode;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::{Value, json};

use super::garbage::{any_json, places};
use crate::support::client::Client;
use crate::support::test_server::TestServer;

/// The review of an update of a Deployment from 2 to `replicas` pods of 70Gi, of which the H100 of the snapshot takes one.
fn review(replicas: u64) -> Value {
    let deployment = |replicas: u64| {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "name": "agent", "namespace": "team", "ownerReferences": [{ "kind": "App", "controller": true }] },
            "spec": {
                "replicas": replicas, "paused": false,
                "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": "25%", "maxUnavailable": 1 } },
                "template": {
                    "metadata": { "annotations": { "vramguard.dev/vram": "70Gi" } },
                    "spec": {
                        "nodeSelector": { "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3-SHARED" },
                        "containers": [{ "name": "main", "resources": { "limits": { "nvidia.com/gpu": "1" } } }],
                    },
                },
            },
        })
    };
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002", "operation": "UPDATE", "namespace": "team", "name": "agent",
            "resource": { "group": "apps", "version": "v1", "resource": "deployments" },
            "userInfo": { "username": "me" }, "dryRun": false, "object": deployment(replicas), "oldObject": deployment(2),
        },
    })
}

#[tokio::test]
async fn a_deployment_that_does_not_fit_is_allowed_with_a_warning_over_http_1_and_http_2() {
    let server = TestServer::shared().await;
    for protocol in ["http/1.1", "h2"] {
        let mut client = Client::connect(server.files.https, &server.ca(), protocol).await.expect("a connection");
        let answer = client.ask("/validate/workloads", &review(3)).await;
        assert_eq!(answer["allowed"], true, "{answer}");
        let warning = "vramguard: Deployment \"team/agent\": it should have 3 pods of 72400Mi; 0 run, and 1 more fit now; remedy: \
                       replicas: 1";
        assert_eq!(answer["warnings"], json!([warning]));
        let silent = client.ask("/validate/workloads", &review(2)).await;
        assert_eq!(silent, json!({ "uid": review(2)["request"]["uid"], "allowed": true }));
    }
}

/// Sends a review and checks what must hold for any answer.
async fn check(client: &mut Client, review: &Value) -> Result<(), TestCaseError> {
    let answered = client.post("/validate/workloads", review.to_string()).await;
    let (status, body) = answered.map_err(|error| TestCaseError::fail(format!("{error:#}")))?;
    let text = String::from_utf8_lossy(&body).into_owned();
    if status == StatusCode::BAD_REQUEST {
        prop_assert!(!text.contains("allowed"), "{}", text);
        return Ok(());
    }
    prop_assert_eq!(status, StatusCode::OK, "{}", text);
    let answer: Value = serde_json::from_str(&text).expect("an answer is JSON");
    let response = answer["response"].as_object().expect("a response");
    prop_assert_eq!(&response["allowed"], &Value::Bool(true));
    prop_assert_eq!(&response["uid"], &review["request"]["uid"]);
    let others: Vec<&String> =
        response.keys().filter(|key| ["patch", "patchType", "status"].contains(&key.as_str())).collect();
    prop_assert!(others.is_empty(), "{}", text);
    prop_assert!(text.len() < 8 << 10, "{}", text);
    Ok(())
}

#[test]
fn any_json_in_any_place_of_a_workload_is_allowed_or_no_review() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let server = runtime.block_on(TestServer::shared());
    let client = RefCell::new(runtime.block_on(server.client()));
    let base = review(3);
    let mut found = Vec::new();
    places(&base, "", &mut found);
    assert!(found.len() > 50, "{found:?}");
    let changes = prop::collection::vec((prop::sample::select(found), any_json()), 1..4);
    let config = Config { cases: 300, failure_persistence: None, max_shrink_iters: 500, ..Config::default() };
    let tested = TestRunner::new(config).run(&changes, |changes| {
        let mut review = base.clone();
        for (place, value) in changes {
            // An earlier change may have removed the place.
            if let Some(at) = review.pointer_mut(&place) {
                *at = value;
            }
        }
        runtime.block_on(check(&mut client.borrow_mut(), &review))
    });
    tested.unwrap_or_else(|error| panic!("{error}"));
    server.expect_ready();
}

#[tokio::test]
async fn a_workload_with_more_entries_than_are_read_is_answered_within_the_memory_of_a_review() {
    let server = TestServer::shared().await;
    let mut client = server.client().await;
    let mut many = review(3);
    let containers = vec![json!({ "name": "main" }); 20_000];
    many["request"]["object"]["spec"]["template"]["spec"]["containers"] = json!(containers);
    many["request"]["object"]["metadata"]["ownerReferences"] = json!(vec![json!({}); 20_000]);
    many["request"]["object"]["spec"]["replicas"] = json!(vec![0; 20_000]);
    let answer = client.ask("/validate/workloads", &many).await;
    let unread = "object: spec.replicas: [] is a list, expected a whole number";
    assert_eq!((&answer["allowed"], &answer["auditAnnotations"]["unread"]), (&json!(true), &json!(unread)));
    // What is nested more deeply than any stack is passed over, and not followed.
    let (open, close) = ("[".repeat(100_000), "]".repeat(100_000));
    let deep = review(3).to_string().replacen("\"paused\":false", &format!("\"paused\":{open}{close}"), 1);
    let (status, body) = client.post("/validate/workloads", deep).await.expect("an answer");
    assert_eq!(status, StatusCode::OK, "{body:?}");
    server.expect_ready();
}
