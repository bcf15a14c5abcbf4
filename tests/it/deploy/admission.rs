//! The ValidatingAdmissionPolicies: what holds whether vramguard runs or not. Here it does not.

use std::time::Duration;

use anyhow::ensure;
use serde_json::json;

use super::{kubectl, kubectl_as};
use crate::guard::{OnOutage, apply_manifests};
use crate::support::{ControlPlane, GpuNode, eventually, free_port};

const PATIENCE: Duration = Duration::from_secs(30);
const OWN: &str = "vramguard.dev/gpu.main";

fn pod(namespace: &str, name: &str, annotations: &str, limits: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, annotations: {annotations}}}, spec: {{containers: \
         [{{name: main, image: none, resources: {{limits: {limits}}}}}]}}}}"
    )
}

/// The manifests without a server, a namespace, and a kubeconfig of somebody who may edit there.
async fn start() -> (ControlPlane, String) {
    let plane = ControlPlane::start().await;
    apply_manifests(&plane, "deploy", free_port(), OnOutage::AsShipped).await;
    for command in [
        "create namespace ml",
        "-n ml create serviceaccount dev",
        "-n ml create rolebinding dev --clusterrole=edit --serviceaccount=ml:dev",
        // More than `edit`, which has no status: whoever can write it could write annotations through it.
        "create clusterrole status-writer --verb=patch,update --resource=pods/status",
        "-n ml create rolebinding status --clusterrole=status-writer --serviceaccount=ml:dev",
    ] {
        kubectl(&plane, command, "").await.expect_success();
    }
    let dev = plane.service_account_kubeconfig("ml", "dev").await;
    eventually("the policies to be in force", PATIENCE, async || {
        let stray = pod("ml", "stray", "{}", "{vramguard.dev/vram: 1Gi}");
        let created = kubectl(&plane, "create --dry-run=server -f -", &stray).await;
        let written = kubectl(&plane, "-n vramguard-system get pods", "").await;
        ensure!(!created.status.success() && written.status.success(), "{}", created.stdout);
        Ok(())
    })
    .await;
    (plane, dev.to_str().expect("temporary folders have plain names").to_owned())
}

#[tokio::test]
async fn annotations_that_count_stay_as_they_are_for_the_life_of_a_pod() {
    let (plane, dev) = start().await;
    let annotations =
        format!("{{{OWN}: GPU-a, vramguard.dev/vram: 8Gi, nvidia.com/container.main.gpu-memory.limit: 8Gi, note: a}}");
    plane.apply(&pod("ml", "llm", &annotations, "{nvidia.com/gpu: 1}")).await;
    let patch = async |subresource: &str, patch: &str| {
        kubectl_as(&plane, &dev, &format!("-n ml patch pod llm {subresource}-p {patch}"), "").await
    };
    let changes = [
        (OWN, json!("GPU-b"), "is fixed once the pod exists"),
        (OWN, json!(null), "is fixed once the pod exists"),
        ("vramguard.dev/vram", json!("1Gi"), "is fixed once the pod exists"),
        ("nvidia.com/container.main.gpu-memory.limit", json!("1Gi"), "is fixed once the pod exists"),
        ("nvidia.com/container.main.gpu-memory.request", json!("1Gi"), "counts at the creation of a pod only"),
        ("vramguard.dev/gpu.other", json!("GPU-b"), "counts at the creation of a pod only"),
        ("vramguard.dev/processes", json!("2"), "counts at the creation of a pod only"),
    ];
    eventually("the policy to be in force", PATIENCE, async || {
        let (key, value, _) = &changes[0];
        let asked = patch("--dry-run=server ", &json!({"metadata": {"annotations": {*key: value}}}).to_string()).await;
        ensure!(!asked.status.success());
        Ok(())
    })
    .await;
    for subresource in ["", "--subresource=status "] {
        for (key, value, why) in &changes {
            let refused = patch(subresource, &json!({"metadata": {"annotations": {*key: value}}}).to_string()).await;
            let refused = refused.expect_failure();
            let expected = format!(
                "ValidatingAdmissionPolicy 'vramguard-annotations' with binding 'vramguard-annotations' denied request: annotation \"{key}\" {why}"
            );
            assert!(refused.contains(&expected), "{refused}");
        }
        for allowed in [r#"{"metadata":{"annotations":{"note":"b"}}}"#, r#"{"metadata":{"labels":{"a":"b"}}}"#] {
            patch(subresource, allowed).await.expect_success();
        }
    }
    // Elsewhere nothing is touched.
    plane.apply(&pod("kube-system", "llm", &annotations, "{nvidia.com/gpu: 1}")).await;
    kubectl(&plane, "-n kube-system annotate pod llm vramguard.dev/vram=1Gi --overwrite", "").await.expect_success();
}

#[tokio::test]
async fn the_service_account_writes_nothing_of_a_pod_but_missing_annotations_of_its_own() {
    let (plane, _) = start().await;
    plane.apply(&pod("ml", "llm", "{vramguard.dev/vram: 8Gi, note: a}", "{nvidia.com/gpu: 1}")).await;
    let own = plane.service_account_kubeconfig("vramguard-system", "vramguard").await;
    let own = own.to_str().expect("temporary folders have plain names");
    let patch = async |patch: &str| kubectl_as(&plane, own, &format!("-n ml patch pod llm -p {patch}"), "").await;
    let annotation = |key: &str, value| json!({"metadata": {"annotations": {key: value}}}).to_string();
    eventually("the policy to be in force", PATIENCE, async || {
        ensure!(!patch(r#"{"metadata":{"labels":{"probe":"a"}}}"#).await.status.success());
        Ok(())
    })
    .await;
    let others = r#"{"spec":{"containers":[{"name":"main","image":"other"}]}}"#;
    let finalizer = r#"{"metadata":{"finalizers":["example.com/hold"]}}"#;
    for refused in [others, finalizer, r#"{"metadata":{"labels":{"a":"b"}}}"#] {
        let refused = patch(refused).await.expect_failure();
        assert!(
            refused.contains("vramguard may change nothing of a pod but its vramguard.dev/ annotations"),
            "{refused}"
        );
    }
    for (key, value) in [("note", json!("b")), ("note", json!(null)), ("other", json!("c"))] {
        let refused = patch(&annotation(key, value)).await.expect_failure();
        assert!(
            refused.contains("vramguard may change no annotations of a pod but those of vramguard.dev/"),
            "{refused}"
        );
    }
    for key in ["vramguard.dev/vram", "vramguard.dev/model"] {
        patch(&annotation(key, json!("1Gi"))).await.expect_failure();
    }
    for key in [OWN, "vramguard.dev/gpu-total-mib", "vramguard.dev/vram-fraction.main"] {
        patch(&annotation(key, json!("1"))).await.expect_success();
        let refused = patch(&annotation(key, json!("2"))).await.expect_failure();
        assert!(refused.contains("is fixed once the pod exists"), "{refused}");
    }
    // No right of any other kind.
    for denied in ["-n ml delete pod llm", "delete gpuledger gpu-0", "-n ml get secrets", "delete node gpu-0"] {
        let refused = kubectl_as(&plane, own, denied, "").await.expect_failure();
        assert!(refused.contains("(Forbidden)"), "{denied}: {refused}");
    }
}

#[tokio::test]
async fn vram_is_requested_with_a_gpu_only_and_other_controllers_go_on() {
    let (plane, _) = start().await;
    plane.add_gpu_node(&GpuNode::new("gpu-0")).await;
    plane.publish("gpu-0", "vramguard.dev/vram", Some("23870Mi")).await;
    let create = async |namespace: &str, limits: &str| {
        kubectl(&plane, "create --dry-run=server -f -", &pod(namespace, "llm", "{}", limits)).await
    };
    let refused = create("ml", "{vramguard.dev/vram: 1Gi, cpu: 1}").await.expect_failure();
    assert!(
        refused.contains("container \"main\" requests vramguard.dev/vram but no GPU (nvidia.com/gpu, "),
        "{refused}"
    );
    for gpu in ["nvidia.com/gpu", "nvidia.com/gpu.shared", "nvidia.com/mig-1g.10gb"] {
        create("ml", &format!("{{vramguard.dev/vram: 1Gi, {gpu}: 1}}")).await.expect_success();
    }
    create("ml", "{cpu: 1}").await.expect_success();
    create("kube-system", "{vramguard.dev/vram: 1Gi}").await.expect_success();

    // The Job controller takes its finalizer off a pod that has ended, declared or not.
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "once", "namespace": "ml"}, "spec": {"template": {
        "metadata": {"annotations": {"vramguard.dev/vram": "8Gi"}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "none",
            "resources": {"limits": {"nvidia.com/gpu": "1", "vramguard.dev/vram": "8912Mi"}}}]}}}});
    plane.apply(&job.to_string()).await;
    let status = async |path: &str| {
        kubectl(&plane, &format!("-n ml get pods -l job-name=once -o jsonpath={path}"), "").await.stdout
    };
    eventually("the pod to run", PATIENCE, async || {
        let phase = status("{.items[*].status.phase}").await;
        ensure!(phase == "Running", "{phase}");
        Ok(())
    })
    .await;
    assert!(status("{.items[*].metadata.finalizers}").await.contains("batch.kubernetes.io/job-tracking"));
    let name = status("{.items[0].metadata.name}").await;
    let ended = r#"{"status":{"phase":"Succeeded"}}"#;
    kubectl(&plane, &format!("-n ml patch pod {name} --subresource=status -p {ended}"), "").await.expect_success();
    kubectl(&plane, "-n ml wait --for=condition=Complete --timeout=30s job/once", "").await.expect_success();
    assert_eq!(status("{.items[*].metadata.finalizers}").await, "");

    // The API server finds nothing to warn of in the expressions.
    let warnings =
        "get validatingadmissionpolicies -o jsonpath={range.items[*]}{.metadata.name}={.status.typeChecking}{end}";
    eventually("the expressions to be checked", PATIENCE, async || {
        let found = kubectl(&plane, warnings, "").await.stdout;
        ensure!(found == "vramguard-annotations={}vramguard-requests={}vramguard-serviceaccount={}", "{found}");
        Ok(())
    })
    .await;
}
