//! Pods with more entries than the server reads: refused under Enforce, and reported under the other modes.

use serde_json::{Value, json};

use crate::support::client::patch_of;
use crate::support::test_server::{POLICIES, ServerFiles, TestServer, pod, review};
use crate::support::write;

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

async fn server() -> TestServer {
    let files = ServerFiles::new();
    write(&files.policies().join("others.yaml"), [POLICIES, "---\n", OTHERS].concat());
    std::fs::remove_file(files.policies().join("policies.yaml")).expect("it was written");
    let mut server = files.server(&["--self-signed"]);
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
async fn a_pod_that_is_not_read_whole_is_refused_under_enforce_and_warned_about_or_recorded_under_other_modes() {
    let server = server().await;
    let mut client = server.client().await;
    let said = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution (values of all its terms) has a \
                length of 200000, and vramguard reads 8192 at most, so it cannot tell what the pod demands or where it may \
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

/// The mutation adds requirements, terms and a resource, so a pod at its bounds exceeds them afterwards.
#[tokio::test]
async fn what_mutate_makes_of_a_pod_at_its_bounds_passes_validate() {
    let server = server().await;
    let mut client = server.client().await;
    let mut pod = pod("team", json!({ "vramguard.dev/vram": "2Gi" }));
    let requirement = |n: usize| json!({ "key": format!("k{n}"), "operator": "NotIn", "values": ["a", "b"] });
    let terms: Vec<Value> = (0..64)
        .map(|term| json!({ "matchExpressions": (0..62).map(|n| requirement(term * 62 + n)).collect::<Value>() }))
        .collect();
    let extra = json!({ "key": "last", "operator": "NotIn", "values": vec!["a"; 8192 - 64 * 62 * 2 + 2] });
    let mut terms = json!(terms);
    terms[0]["matchExpressions"][0] = extra;
    pod["spec"]["affinity"] =
        json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms } } });
    let mut others: Value = (0..63).map(|n| (format!("example.com/r{n}"), json!("1"))).collect();
    others["nvidia.com/gpu"] = json!("1");
    pod["spec"]["containers"][0]["resources"] = json!({ "limits": others });
    let mutated = client.ask("/mutate/pods", &review(&pod)).await;
    let patch = patch_of(&mutated).expect("it is patched");
    json_patch::patch(&mut pod, &patch).expect("the patch applies");
    let terms =
        &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
    assert_eq!(terms.as_array().map(Vec::len), Some(128));
    assert_eq!(pod["spec"]["containers"][0]["resources"]["limits"].as_object().map(serde_json::Map::len), Some(65));
    let judged = client.ask("/validate/pods", &review(&pod)).await;
    assert_eq!(judged["allowed"], json!(true), "{judged}");
    // A copy of the running pod needs no second patch.
    let again = client.ask("/mutate/pods", &review(&pod)).await;
    assert_eq!((&again["allowed"], patch_of(&again)), (&json!(true), None), "{again}");
}
