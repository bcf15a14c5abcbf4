//! The webhook entry for bindings: which namespaces the API server asks about, and what failing closed means.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::kubectl;
use crate::guard::{Guard, manifests};
use crate::support::{ControlPlane, GpuNode, eventually, pause};

const PATIENCE: Duration = Duration::from_secs(60);

fn policy(kind: &str, namespace: &str, mode: &str) -> String {
    format!(
        "apiVersion: vramguard.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: p{namespace}}}\nspec: {{mode: {mode}}}\n"
    )
}

/// A pod without GPUs: to the entry for bindings all pods look alike.
fn plain_pod(namespace: &str, name: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}}}, spec: {{containers: [{{name: main, image: none}}]}}}}"
    )
}

/// Of the entry for bindings, as the API server has it.
async fn entry(plane: &ControlPlane) -> Value {
    let found = kubectl(plane, "get mutatingwebhookconfiguration vramguard -o json", "").await.expect_success();
    let found: Value = serde_json::from_str(&found).expect("kubectl prints JSON");
    of_bindings(&found)
}

fn of_bindings(configuration: &Value) -> Value {
    let entries = configuration["webhooks"].as_array().expect("it has entries");
    entries.iter().find(|entry| entry["name"] == "bindings.vramguard.dev").expect("it is shipped").clone()
}

fn selects(operator: &str, values: Value) -> Value {
    let mut requirement = json!({"key": "kubernetes.io/metadata.name", "operator": operator});
    if !values.is_null() {
        requirement["values"] = values;
    }
    json!({"matchExpressions": [requirement]})
}

async fn bound(plane: &ControlPlane, namespace: &str, name: &str) {
    eventually(&format!("pod {namespace}/{name} to be bound"), PATIENCE, async || {
        let get = format!("-n {namespace} get pod {name} -o jsonpath={{.spec.nodeName}}");
        let node = kubectl(plane, &get, "").await.expect_success();
        ensure!(!node.is_empty(), "no node yet");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn failing_closed_binds_nothing_in_guarded_namespaces_and_everything_elsewhere() {
    let plane = ControlPlane::start().await;
    plane.add_gpu_node(&GpuNode::new("gpu-0")).await;
    for namespace in ["ml", "lax", "audited"] {
        kubectl(&plane, &format!("create namespace {namespace}"), "").await.expect_success();
    }
    for (kustomization, failure_policy) in
        [("deploy", "Ignore"), ("deploy/cert-manager", "Ignore"), ("deploy/fail-closed", "Fail")]
    {
        let shipped = manifests(&plane, kustomization).await;
        let configuration = shipped.iter().find(|object| object["kind"] == "MutatingWebhookConfiguration");
        let entry = of_bindings(configuration.expect("it is shipped"));
        assert_eq!(entry["failurePolicy"], failure_policy, "{kustomization}");
        assert_eq!(
            entry["namespaceSelector"],
            selects("DoesNotExist", json!(null)),
            "nobody before a controller has run"
        );
    }
    let namespaced = |namespace: &str, mode: &str| {
        policy("VramPolicy", namespace, mode).replace("metadata: {", &format!("metadata: {{namespace: {namespace}, "))
    };
    let policies = [
        ("cluster.yaml", policy("ClusterVramPolicy", "", "Enforce")),
        ("lax.yaml", namespaced("lax", "Warn")),
        ("audited.yaml", namespaced("audited", "Audit")),
    ];
    let policies: Vec<(&str, &str)> = policies.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let mut guard = Guard::start_from(&plane, "deploy/fail-closed", &policies).await;
    let exempt = [
        "gpu-operator",
        "gpu-operator-resources",
        "kube-node-lease",
        "kube-system",
        "node-feature-discovery",
        "nvidia-device-plugin",
        "nvidia-gpu-operator",
        "vramguard-system",
    ];
    let all_but = |more: &[&str]| {
        let mut names: Vec<&str> = exempt.iter().chain(more).copied().collect();
        names.sort_unstable();
        selects("NotIn", json!(names))
    };
    let becomes = async |expected: Value| {
        eventually("the selector to follow policy", PATIENCE, async || {
            let found = entry(&plane).await["namespaceSelector"].clone();
            ensure!(found == expected, "{found}{}", guard.server.log_tail());
            Ok(())
        })
        .await;
    };
    becomes(all_but(&["audited"])).await;
    guard.policy("cluster.yaml", &policy("ClusterVramPolicy", "", "Audit")).await;
    becomes(selects("In", json!(["lax"]))).await;
    guard.policy("cluster.yaml", &policy("ClusterVramPolicy", "", "Warn")).await;
    becomes(all_but(&["audited"])).await;
    // The API server reads webhook configurations through a watch of its own.
    pause(Duration::from_secs(2)).await;

    guard.server.stop();
    kubectl(&plane, "create namespace later", "").await.expect_success();
    for namespace in ["ml", "lax", "later", "audited", "kube-system"] {
        plane.apply(&plain_pod(namespace, "web")).await;
    }
    bound(&plane, "audited", "web").await;
    bound(&plane, "kube-system", "web").await;
    for namespace in ["ml", "lax", "later"] {
        eventually("the scheduler to say why it cannot bind", PATIENCE, async || {
            let events = kubectl(&plane, &format!("-n {namespace} get events -o json"), "").await.expect_success();
            let events: Value = serde_json::from_str(&events).context("JSON")?;
            let said = |event: &Value| {
                let message = event["message"].as_str().unwrap_or_default();
                event["reason"] == "FailedScheduling"
                    && message.contains("failed calling webhook \"bindings.vramguard.dev\"")
            };
            ensure!(events["items"].as_array().context("a list")?.iter().any(said), "{events}");
            Ok(())
        })
        .await;
    }
    asked_under_both_names(&plane).await;

    // As it is shipped, the same pods are bound without the guard.
    let index =
        kubectl(&plane, "get mutatingwebhookconfiguration vramguard -o jsonpath={.webhooks[*].name}", "").await.stdout;
    let index = index.split(' ').position(|name| name == "bindings.vramguard.dev").expect("it is there");
    let patch = format!(r#"[{{"op":"replace","path":"/webhooks/{index}/failurePolicy","value":"Ignore"}}]"#);
    let patch = format!("patch mutatingwebhookconfiguration vramguard --type=json -p {patch}");
    kubectl(&plane, &patch, "").await.expect_success();
    for namespace in ["ml", "lax", "later"] {
        bound(&plane, namespace, "web").await;
    }
}

/// A Binding is reviewed under its name of today and of old; one that names no node is left to the API server's refusal.
async fn asked_under_both_names(plane: &ControlPlane) {
    let binding = |target: Value| {
        json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "web", "namespace": "ml"}, "target": target})
            .to_string()
    };
    for path in ["pods/web/binding", "bindings"] {
        let create = format!("create --raw /api/v1/namespaces/ml/{path} -f -");
        let to_a_node = binding(json!({"apiVersion": "v1", "kind": "Node", "name": "gpu-0"}));
        let refused = kubectl(plane, &create, &to_a_node).await.expect_failure();
        assert!(refused.contains("bindings.vramguard.dev"), "{path}: {refused}");
        let nowhere = kubectl(plane, &create, &binding(json!({"kind": "Node"}))).await.expect_failure();
        assert!(nowhere.contains("target.name: Required value"), "{path}: {nowhere}");
    }
}
