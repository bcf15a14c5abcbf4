//! Pods that are larger than what is read of them. Under Enforce none of them slips in, elsewhere all of them are said.

use serde_json::{Value, json};

use super::client::patch_of;
use super::site::{POLICIES, Server, Site, pod, review, write};

const OTHERS: &str = "\
apiVersion: vramguard.dev/v1alpha1
kind: VramPolicy
metadata: {name: lax, namespace: lax}
spec: {mode: Warn}
---
apiVersion: vramguard.dev/v1alpha1
kind: VramPolicy
metadata: {name: watched, namespace: watched}
spec: {mode: Audit}
";

async fn server() -> Server {
    let site = Site::new();
    write(&site.policies().join("others.yaml"), [POLICIES, "---\n", OTHERS].concat());
    std::fs::remove_file(site.policies().join("policies.yaml")).expect("it was written");
    let mut server = site.server(&["--self-signed"]);
    server.process.start();
    server.ready().await;
    server
}

/// A GPU pod with an affinity of 200,000 values.
fn oversized(namespace: &str) -> Value {
    let mut pod = pod(namespace, json!({ "vramguard.dev/vram": "8Gi" }));
    let expression = json!({ "key": "a", "operator": "NotIn", "values": vec!["a"; 200_000] });
    pod["spec"]["affinity"] = json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{ "matchExpressions": [expression] }],
    } } });
    pod
}

#[tokio::test]
async fn a_pod_that_is_not_read_whole_is_refused_under_enforce_and_told_or_recorded_elsewhere() {
    let server = server().await;
    let mut client = server.client().await;
    let said = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution (values of all its terms) has a \
                length of 200000, and vramguard reads 16384 at most, so it cannot tell what the pod demands or where it may \
                land; shorten it";
    for namespace in ["team", "lax", "watched"] {
        let review = review(&oversized(namespace));
        let mutated = client.ask("/mutate/pods", &review).await;
        assert_eq!((&mutated["allowed"], patch_of(&mutated)), (&json!(true), None), "{mutated}");
        let judged = client.ask("/validate/pods", &review).await;
        match namespace {
            "team" => {
                assert_eq!(judged["allowed"], json!(false));
                assert_eq!(judged["status"]["reason"], "TooManyEntries");
                assert_eq!(judged["status"]["code"], 422);
                assert_eq!(judged["status"]["message"], format!("pod \"team/agent\": {said}"));
            }
            "lax" => {
                let warning = format!("vramguard: would be refused under mode Enforce: {said}");
                assert_eq!((&judged["allowed"], &judged["warnings"]), (&json!(true), &json!([warning])));
            }
            _ => {
                assert_eq!((&judged["allowed"], &judged["warnings"]), (&json!(true), &Value::Null));
                assert_eq!(judged["auditAnnotations"]["reason"], "TooManyEntries");
            }
        }
    }
}

#[tokio::test]
async fn containers_that_may_hide_a_gpu_are_refused_and_tolerations_of_a_pod_without_one_are_not() {
    let server = server().await;
    let mut client = server.client().await;
    let mut web = pod("team", json!({}));
    web["spec"]["containers"] = json!([{ "name": "web", "image": "none" }]);
    web["spec"]["tolerations"] = json!(vec![json!({ "operator": "Exists" }); 1000]);
    let judged = client.ask("/validate/pods", &review(&web)).await;
    assert_eq!((&judged["allowed"], &judged["warnings"]), (&json!(true), &Value::Null));
    web["spec"]["containers"] = json!(vec![json!({ "name": "web", "image": "none" }); 1000]);
    let judged = client.ask("/validate/pods", &review(&web)).await;
    let message = judged["status"]["message"].as_str().expect("a denial");
    assert!(message.contains("spec.containers has a length of 1000, and vramguard reads 128 at most"), "{message}");
}
