//! The quota of a policy as a ResourceQuota, on a real control plane: kept, counted, and never fought over.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // a test starts programs

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::ResourceQuota;
use kube::Api;
use kube::api::ListParams;

use crate::support::http::metric;
use crate::support::objects::{ENFORCE, cluster_policy, deployment, namespace_policy};
use crate::support::{GpuNode, GuardedCluster, PATIENCE, eventually, run, stays};

const LIMIT: &str = "requests.vramguard.dev/vram";

/// The limit of the ResourceQuota `vramguard` in a namespace; `None` if there is none.
async fn hard(cluster: &GuardedCluster, namespace: &str) -> anyhow::Result<Option<String>> {
    let quotas: Api<ResourceQuota> = Api::namespaced(cluster.plane.client(), namespace);
    let quota = quotas.get_opt("vramguard").await?;
    Ok(quota.and_then(|quota| Some(quota.spec?.hard?.get(LIMIT)?.0.clone())))
}

async fn has(cluster: &GuardedCluster, namespace: &str, expected: Option<&str>) {
    eventually(&format!("the quota of {namespace} to be {expected:?}"), PATIENCE, async || {
        let found = hard(cluster, namespace).await?;
        ensure!(found.as_deref() == expected, "{found:?}{}", cluster.guard.server.log_tail());
        Ok(())
    })
    .await;
}

async fn keeps(cluster: &GuardedCluster, namespace: &str, expected: Option<&str>) {
    stays("the quota", Duration::from_secs(4), async || {
        let found = hard(cluster, namespace).await?;
        ensure!(found.as_deref() == expected, "{found:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn the_quota_of_a_policy_holds_for_its_namespace_and_follows_the_policy() {
    let policy = |quota: &str| namespace_policy("ml", &format!("{{quota: {quota}}}"));
    let policies = [("cluster.yaml", ENFORCE), ("ml.yaml", &policy("20Gi"))];
    let nodes = [GpuNode::new("gpu-0"), GpuNode::new("gpu-1")];
    let cluster = GuardedCluster::start(&nodes, &policies).await;
    has(&cluster, "ml", Some("20Gi")).await;
    cluster.plane.apply(&deployment("ml", "agent", 3, "{vramguard.dev/vram: 8Gi}")).await;
    cluster.settles("ml", 2, 0).await;
    let refused = cluster.event("ml", "FailedCreate", "exceeded quota: vramguard").await;
    assert!(refused.contains("requested: requests.vramguard.dev/vram=8912Mi"), "{refused}");

    let sample = |what: &str| format!("vramguard_quota_{what}_bytes{{namespace=\"ml\",resourcequota=\"vramguard\"}}");
    eventually("the metrics", PATIENCE, async || {
        let of = |what: &str| metric(cluster.guard.http(), &sample(what));
        let (hard, used) = (of("hard"), of("used"));
        ensure!(hard == Some(20.0 * 1024.0 * 1_048_576.0) && used == Some(17_824.0 * 1_048_576.0), "{hard:?} {used:?}");
        Ok(())
    })
    .await;
    let mut explain = Command::new(env!("CARGO_BIN_EXE_vramguard"));
    let folder = cluster.guard.policies.to_str().expect("a plain path");
    explain.args(["explain", "-n", "ml", "--live", "--policies", folder]);
    explain.env("KUBECONFIG", cluster.plane.admin_kubeconfig());
    let explained = run(&mut explain, PATIENCE).expect_success();
    let line = "resourcequota vramguard (kept by vramguard): 20Gi of requests, 17824Mi used, 2656Mi left";
    assert!(explained.contains(line), "{explained}");

    // A larger quota lets the third pod in; without one, the ResourceQuota goes.
    cluster.guard.policy("ml.yaml", &policy("30Gi")).await;
    has(&cluster, "ml", Some("30Gi")).await;
    cluster.plane.kubectl(&["-n", "ml", "rollout", "restart", "deployment/agent"]).await.expect_success();
    cluster.plane.kubectl(&["-n", "ml", "scale", "deployment/agent", "--replicas=2"]).await.expect_success();
    cluster.guard.policy("ml.yaml", &namespace_policy("ml", "{}")).await;
    has(&cluster, "ml", None).await;

    // Deleted by hand, it comes back.
    cluster.guard.policy("ml.yaml", &policy("30Gi")).await;
    has(&cluster, "ml", Some("30Gi")).await;
    cluster.plane.kubectl(&["-n", "ml", "delete", "resourcequota", "vramguard"]).await.expect_success();
    has(&cluster, "ml", Some("30Gi")).await;
}

#[tokio::test]
async fn a_quota_of_the_cluster_is_for_each_namespace_that_is_enforced() {
    let policy = cluster_policy("{mode: Enforce, quota: 40Gi, exemptNamespaces: [infra, kube-system]}");
    let policies = [
        ("cluster.yaml", policy.as_str()),
        ("warned.yaml", &namespace_policy("warned", "{mode: Warn}")),
        ("strict.yaml", &namespace_policy("strict", "{quota: 10Gi}")),
        ("loose.yaml", &namespace_policy("loose", "{quota: 90Gi}")),
    ];
    let cluster = GuardedCluster::start(&[GpuNode::new("gpu-0")], &policies).await;
    has(&cluster, "ml", Some("40Gi")).await;
    for namespace in ["infra", "warned", "strict", "loose", "later"] {
        cluster.namespace(namespace).await;
    }
    // The stricter of both holds, whoever sets it.
    for (namespace, expected) in [("strict", "10Gi"), ("loose", "40Gi"), ("later", "40Gi")] {
        has(&cluster, namespace, Some(expected)).await;
    }
    for namespace in ["infra", "warned", "kube-system", "vramguard-system"] {
        keeps(&cluster, namespace, None).await;
    }
    cluster.plane.kubectl(&["delete", "namespace", "later", "--wait=false"]).await.expect_success();
    eventually("the namespace to be gone", PATIENCE, async || {
        let quotas: Api<ResourceQuota> = Api::all(cluster.plane.client());
        let left = quotas.list(&ListParams::default()).await?.items;
        ensure!(left.iter().all(|quota| quota.metadata.namespace.as_deref() != Some("later")), "a quota is left");
        Ok(())
    })
    .await;
    let log = std::fs::read_to_string(cluster.plane.folder().join("vramguard.log")).expect("the log of the server");
    assert!(!log.contains("because it is being terminated"), "no write into a namespace that ends");
}

#[tokio::test]
async fn what_people_made_or_changed_is_left_and_said() {
    let cluster = GuardedCluster::start(&[GpuNode::new("gpu-0")], &[("cluster.yaml", ENFORCE)]).await;
    cluster.namespace("own").await;
    let theirs = "{apiVersion: v1, kind: ResourceQuota, metadata: {name: vramguard, namespace: own}, spec: {hard: \
                  {requests.vramguard.dev/vram: 5Gi}}}";
    cluster.plane.apply(theirs).await;
    cluster.guard.policy("own.yaml", &namespace_policy("own", "{quota: 20Gi}")).await;
    let note = cluster.event("own", "QuotaNotKept", "somebody else made this ResourceQuota").await;
    assert!(note.starts_with("the policy's quota is 20Gi, and its limit is 5Gi: "), "{note}");
    keeps(&cluster, "own", Some("5Gi")).await;

    // One of vramguard's that somebody edits is theirs from then on.
    cluster.guard.policy("ml.yaml", &namespace_policy("ml", "{quota: 20Gi}")).await;
    has(&cluster, "ml", Some("20Gi")).await;
    let edit = r#"{"spec": {"hard": {"requests.vramguard.dev/vram": "12Gi"}}}"#;
    cluster.plane.kubectl(&["-n", "ml", "patch", "resourcequota", "vramguard", "-p", edit]).await.expect_success();
    cluster.event("ml", "QuotaNotKept", "somebody else changed its limit").await;
    keeps(&cluster, "ml", Some("12Gi")).await;
    eventually("the metric", PATIENCE, async || {
        let left = cluster.guard.metric("vramguard_quotas_not_kept").context("no sample")?;
        ensure!((left - 2.0).abs() < 0.1, "{left}");
        Ok(())
    })
    .await;
    cluster.guard.policy("ml.yaml", &namespace_policy("ml", "{}")).await;
    keeps(&cluster, "ml", Some("12Gi")).await;
    keeps(&cluster, "own", Some("5Gi")).await;

    // With other limits beside it, only vramguard's own is taken back.
    cluster.namespace("shared").await;
    cluster.guard.policy("shared.yaml", &namespace_policy("shared", "{quota: 20Gi}")).await;
    has(&cluster, "shared", Some("20Gi")).await;
    let pods = r#"{"spec": {"hard": {"pods": "10"}}}"#;
    cluster.plane.kubectl(&["-n", "shared", "patch", "resourcequota", "vramguard", "-p", pods]).await.expect_success();
    cluster.guard.policy("shared.yaml", &namespace_policy("shared", "{quota: 21Gi}")).await;
    has(&cluster, "shared", Some("21Gi")).await;
    cluster.guard.policy("shared.yaml", &namespace_policy("shared", "{}")).await;
    has(&cluster, "shared", None).await;
    let path = "jsonpath={.spec.hard.pods}";
    let kept = cluster.plane.kubectl(&["-n", "shared", "get", "resourcequota", "vramguard", "-o", path]).await;
    assert_eq!(kept.expect_success(), "10");
}
