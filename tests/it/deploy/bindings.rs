//! The webhook entry for bindings: its namespace selector, and failing closed.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::kubectl;
use crate::support::guard::{Guard, configurations_reread, manifests};
use crate::support::objects::{cluster_policy, namespace_policy, plain_pod};
use crate::support::{ControlPlane, GpuNode, PATIENCE, eventually};

/// The entry for bindings in the API server.
async fn entry(plane: &ControlPlane) -> Value {
    let found = kubectl(plane, "get mutatingwebhookconfiguration vramguard -o json", "").await.expect_success();
    let found: Value = serde_json::from_str(&found).expect("kubectl prints JSON");
    of_bindings(&found)
}

pub(super) fn of_bindings(configuration: &Value) -> Value {
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
#[expect(clippy::too_many_lines, reason = "one story, step by step")]
async fn failing_closed_binds_nothing_in_guarded_namespaces_and_everything_in_others() {
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
    let cluster = |mode: &str| cluster_policy(&format!("{{mode: {mode}}}"));
    let policies = [
        ("cluster.yaml", cluster("Enforce")),
        ("lax.yaml", namespace_policy("lax", "{mode: Warn}")),
        ("audited.yaml", namespace_policy("audited", "{mode: Audit}")),
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
    guard.policy("cluster.yaml", &cluster("Audit")).await;
    becomes(selects("In", json!(["lax"]))).await;
    guard.policy("cluster.yaml", &cluster("Warn")).await;
    becomes(all_but(&["audited"])).await;
    configurations_reread().await;

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

    // With the shipped failurePolicy, Ignore, the same pods are bound without the guard.
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

/// Tests that both resources for bindings are reviewed, and that the API server refuses a Binding without a node.
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
