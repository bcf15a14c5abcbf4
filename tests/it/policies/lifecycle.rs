//! From `kubectl apply` to an effect, and back: files before resources, status, tenants, restarts, unreadable documents.

use anyhow::ensure;

use super::*;
use crate::support::objects::{cluster_policy, gpu_pod};
use crate::support::{Finished, GpuNode, stays};

const CLUSTER: &[&str] = &["clustervrampolicy", "cluster"];
const OF_ML: &[&str] = &["vrampolicy", "default", "-n", "ml"];

/// Creates a pod that declares nothing, without keeping it.
async fn undeclared(cluster: &GuardedCluster, namespace: &str) -> Finished {
    let pod = gpu_pod(namespace, "undeclared", "{}", "");
    cluster.plane.kubectl_with_input(&["create", "--dry-run=server", "-f", "-"], &pod).await
}

async fn refuses(cluster: &GuardedCluster, namespace: &str) {
    eventually("a pod that declares nothing to be refused", PATIENCE, async || {
        let refused = undeclared(cluster, namespace).await;
        ensure!(!refused.status.success() && refused.stderr.contains("declares no VRAM"), "{}", refused.stderr);
        Ok(())
    })
    .await;
}

async fn admits(cluster: &GuardedCluster, namespace: &str) {
    eventually("a pod that declares nothing to be admitted", PATIENCE, async || {
        let admitted = undeclared(cluster, namespace).await;
        ensure!(admitted.status.success(), "{}", admitted.stderr);
        Ok(())
    })
    .await;
}

const REQUIRED: &str = "{mode: Enforce, declaration: {required: true}}";

/// Replaces the policy file by a resource that requires declarations. The resource comes first, as the documentation says:
/// in between, the built-in policy would be in force.
async fn required_by_resource(cluster: &GuardedCluster) {
    cluster.plane.apply(&cluster_policy(REQUIRED)).await;
    in_force(cluster, CLUSTER, "FileInForce").await;
    std::fs::remove_file(cluster.guard.policies.join("cluster.yaml")).expect("the policy file");
    in_force(cluster, CLUSTER, "InForce").await;
}

#[tokio::test]
async fn a_file_is_in_force_before_a_resource_and_each_says_so() {
    let file = cluster_policy("{mode: Enforce}");
    let cluster = GuardedCluster::start(&[GpuNode::new("gpu-0")], &[("cluster.yaml", &file)]).await;
    cluster.plane.apply(&cluster_policy(REQUIRED)).await;
    let message = in_force(&cluster, CLUSTER, "FileInForce").await;
    assert!(message.contains("cluster.yaml has the same document"), "{message}");
    admits(&cluster, "ml").await;
    let folder = cluster.guard.policies.to_str().expect("a plain path");
    assert!(!vramguard(&cluster, &["explain", "-n", "ml", "--live", "--policies", folder]).contains("note:"));

    // The file goes, and the resource takes effect. The ConfigMap is what the commands read in place of the folder.
    std::fs::remove_file(cluster.guard.policies.join("cluster.yaml")).expect("the policy file");
    in_force(&cluster, CLUSTER, "InForce").await;
    refuses(&cluster, "ml").await;
    let explained = vramguard(&cluster, &["explain", "-n", "ml", "--live"]);
    assert!(explained.contains("note: ClusterVramPolicy cluster is not in force: ConfigMap"), "{explained}");
    let map = ["-n", "vramguard-system", "delete", "configmap", "vramguard-policies"];
    cluster.plane.kubectl(&map).await.expect_success();
    let explained = vramguard(&cluster, &["explain", "-n", "ml", "--live"]);
    let line = explained.lines().find(|line| line.starts_with("declaration.required")).expect("the field");
    assert!(line.contains("true") && line.ends_with("ClusterVramPolicy cluster"), "{explained}");

    // A namespace's own, with a field that the cluster locks.
    cluster.plane.apply(&cluster_policy("{mode: Enforce, declaration: {required: true}, locked: [mode]}")).await;
    cluster.plane.apply(&of_namespace("ml", "{mode: Warn, declaration: {required: false}}")).await;
    in_force(&cluster, OF_ML, "InForce").await;
    eventually("the locked field to be named", PATIENCE, async || {
        let (status, _, message) = condition(&cluster, OF_ML, "LockedFieldsIgnored").await?;
        ensure!(status == "True" && message.contains("locks mode;"), "{status}: {message}");
        Ok(())
    })
    .await;
    admits(&cluster, "ml").await;
    cluster.plane.apply(&of_namespace("kube-system", "{mode: Warn}")).await;
    in_force(&cluster, &["vrampolicy", "default", "-n", "kube-system"], "NamespaceExempt").await;

    // Written once, and not again and again.
    let version = async || {
        let output = ["get", "vrampolicy", "default", "-n", "ml", "-o", "jsonpath={.metadata.resourceVersion}"];
        cluster.plane.kubectl(&output).await.expect_success()
    };
    let before = version().await;
    stays("the version of the document", LONG_ENOUGH, async || {
        ensure!(version().await == before, "the status was written again");
        Ok(())
    })
    .await;
    let listed = cluster.plane.kubectl(&["get", "vrampolicies", "-A", "-o", "wide"]).await.expect_success();
    for text in ["MODE", "IN FORCE", "Warn", "NamespaceExempt"] {
        assert!(listed.contains(text), "{listed}");
    }

    // Without its resource, the namespace is back under the policy of the cluster.
    cluster.plane.kubectl(&["delete", "vrampolicy", "default", "-n", "ml"]).await.expect_success();
    refuses(&cluster, "ml").await;
}

#[tokio::test]
async fn a_server_whose_policy_is_a_resource_never_starts_under_the_built_in_one() {
    let mut cluster =
        GuardedCluster::start(&[GpuNode::new("gpu-0")], &[("cluster.yaml", &cluster_policy("{mode: Enforce}"))]).await;
    required_by_resource(&cluster).await;
    refuses(&cluster, "ml").await;
    let selector = async || {
        let path = "jsonpath={.webhooks[*].namespaceSelector}";
        cluster
            .plane
            .kubectl(&["get", "validatingwebhookconfiguration", "vramguard", "-o", path])
            .await
            .expect_success()
    };
    let before = selector().await;
    for _ in 0..3 {
        cluster.guard.server.stop();
        cluster.guard.server.start();
        // The first answer after the start is by the resource already. The built-in policy (Audit) would admit the pod.
        eventually("the first answer", PATIENCE, async || {
            let answer = undeclared(&cluster, "ml").await;
            assert!(!answer.status.success(), "admitted after a restart: {}", answer.stderr);
            ensure!(answer.stderr.contains("declares no VRAM"), "{}", answer.stderr);
            Ok(())
        })
        .await;
    }
    stays("the selectors of the webhooks", LONG_ENOUGH, async || {
        ensure!(selector().await == before, "they were written by another policy");
        Ok(())
    })
    .await;
}

/// Lets the API server accept what this version of vramguard cannot read, as the definition of a newer version would.
async fn accept_anything(cluster: &GuardedCluster) {
    let schema = r#"[{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec",
        "value": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}]"#;
    for name in ["clustervrampolicies.vramguard.dev", "vrampolicies.vramguard.dev"] {
        cluster.plane.kubectl(&["patch", "crd", name, "--type=json", "-p", schema]).await.expect_success();
    }
}

#[tokio::test]
async fn a_document_that_cannot_be_read_leaves_its_last_version_in_force_and_holds_no_other_up() {
    let mut cluster =
        GuardedCluster::start(&[GpuNode::new("gpu-0")], &[("cluster.yaml", &cluster_policy("{mode: Enforce}"))]).await;
    cluster.namespace("other").await;
    required_by_resource(&cluster).await;
    accept_anything(&cluster).await;
    let newer = "{mode: Enforce, declaration: {required: true}, fromTheFuture: 1}";
    eventually("the looser definition to be in effect", PATIENCE, async || {
        let input = cluster_policy(newer);
        let applied = cluster.plane.kubectl_with_input(&["apply", "-f", "-"], &input).await;
        ensure!(applied.status.success(), "{}", applied.stderr);
        Ok(())
    })
    .await;
    let message = in_force(&cluster, CLUSTER, "EarlierVersionInForce").await;
    assert!(message.contains("spec.fromTheFuture"), "{message}");
    refuses(&cluster, "ml").await;
    assert!(cluster.guard.metric("vramguard_policy_reload_errors_total") >= Some(1.0));

    // The document of one namespace cannot be read; that of another takes effect.
    cluster.plane.apply(&of_namespace("ml", "{fromTheFuture: 1}")).await;
    in_force(&cluster, OF_ML, "Unreadable").await;
    cluster.plane.apply(&of_namespace("other", "{declaration: {required: false}}")).await;
    admits(&cluster, "other").await;
    refuses(&cluster, "ml").await;
    let map = ["-n", "vramguard-system", "delete", "configmap", "vramguard-policies"];
    cluster.plane.kubectl(&map).await.expect_success();
    let mut explain = Command::new(env!("CARGO_BIN_EXE_vramguard"));
    explain.args(["explain", "-n", "ml", "--live"]).env("KUBECONFIG", cluster.plane.admin_kubeconfig());
    let error = run(&mut explain, PATIENCE).expect_failure();
    let expected = "ClusterVramPolicy cluster cannot be read by this version: spec.fromTheFuture";
    assert!(error.contains(expected), "{error}");

    // A replica that starts now knows no earlier version. It must not answer as if there were no policy.
    cluster.guard.server.stop();
    cluster.guard.server.start();
    stays("the server to be unready", LONG_ENOUGH, async || {
        let ready = crate::support::http::get(cluster.guard.http(), "/readyz");
        ensure!(!ready.starts_with("HTTP/1.1 200"), "{ready}");
        Ok(())
    })
    .await;
    let log = cluster.guard.server.whole_log();
    assert!(log.contains("ClusterVramPolicy cluster: spec.fromTheFuture"), "{log}");
    cluster.plane.apply(&cluster_policy(REQUIRED)).await;
    cluster.guard.ready(&cluster.plane).await;
    refuses(&cluster, "ml").await;
    let explained = vramguard(&cluster, &["explain", "-n", "ml", "--live"]);
    let expected = "note: VramPolicy ml/default cannot be read by this version: spec.fromTheFuture";
    assert!(explained.contains(expected), "{explained}");
    let explained = vramguard(&cluster, &["explain", "-n", "other", "--live"]);
    assert!(!explained.contains("note:"), "{explained}");
}

#[tokio::test]
async fn without_the_definitions_files_alone_are_in_force_and_resources_follow_once_they_are_installed() {
    let file = cluster_policy("{mode: Enforce}");
    let mut cluster = GuardedCluster::start(&[GpuNode::new("gpu-0")], &[("cluster.yaml", &file)]).await;
    cluster.guard.server.stop();
    let names = ["clustervrampolicies.vramguard.dev", "vrampolicies.vramguard.dev", "gpuinventories.vramguard.dev"];
    let folder = format!("{}/deploy/crds", env!("CARGO_MANIFEST_DIR"));
    cluster.plane.kubectl(&[&["delete", "crd"], &names[..]].concat()).await.expect_success();
    cluster.guard.server.start();
    cluster.guard.ready(&cluster.plane).await;
    admits(&cluster, "ml").await;
    assert!(
        cluster.guard.server.whole_log().contains("VramPolicy is not served"),
        "{}",
        cluster.guard.server.log_tail()
    );
    cluster.plane.kubectl(&["apply", "--server-side", "-k", &folder]).await.expect_success();
    eventually("the document to be accepted", PATIENCE, async || {
        let input = of_namespace("ml", "{declaration: {required: true}}");
        let applied = cluster.plane.kubectl_with_input(&["apply", "-f", "-"], &input).await;
        ensure!(applied.status.success(), "{}", applied.stderr);
        Ok(())
    })
    .await;
    refuses(&cluster, "ml").await;
}

#[tokio::test]
async fn an_inventory_that_is_a_resource_describes_a_node_without_a_restart() {
    let node = GpuNode { gpus: 2, replicas: 2, ..GpuNode::new("gpu-0") };
    let cluster = GuardedCluster::start(&[node], &[("cluster.yaml", &cluster_policy("{mode: Enforce}"))]).await;
    let inventory = "apiVersion: vramguard.dev/v1alpha1\nkind: GpuInventory\nmetadata: {name: small}\nspec:\n  nodes:\n    \
                     - {names: [gpu-0], resource: nvidia.com/gpu, sharing: TimeSlicing, replicas: 2, gpus: [8Gi, 8Gi]}\n";
    let before = cluster.published("gpu-0").await;
    cluster.plane.apply(inventory).await;
    in_force(&cluster, &["gpuinventory", "small"], "InForce").await;
    eventually("the node to publish less", PATIENCE, async || {
        let now = cluster.plane.published("gpu-0", crate::support::objects::VRAM).await?;
        ensure!(now != before, "{now}");
        Ok(())
    })
    .await;
    cluster.plane.kubectl(&["delete", "gpuinventory", "small"]).await.expect_success();
    eventually("the node to publish as before", PATIENCE, async || {
        let now = cluster.plane.published("gpu-0", crate::support::objects::VRAM).await?;
        ensure!(now == before, "{now}");
        Ok(())
    })
    .await;
}
