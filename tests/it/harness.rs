//! The harness itself, and the facts of Kubernetes on which the product stands: when one of these fails, a new release
//! behaves differently and everything else fails for that reason.
#![allow(clippy::disallowed_methods)] // a test measures time

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;

use crate::support::{Component, ControlPlane, GpuNode, eventually};

const VRAM: &str = "vramguard.dev/vram";

fn pod(name: &str, requests: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: default}}, spec: {{containers: \
         [{{name: main, image: none, resources: {{limits: {{{requests}}}}}}}]}}}}"
    )
}

async fn running(plane: &ControlPlane, name: &str) {
    let pods: Api<Pod> = Api::default_namespaced(plane.client());
    eventually(&format!("pod {name} to run"), Duration::from_secs(20), async || {
        let phase = pods.get(name).await?.status.and_then(|status| status.phase);
        ensure!(phase.as_deref() == Some("Running"), "phase {phase:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_pod_waits_for_an_extended_resource_and_is_bound_when_it_is_published() {
    let plane = ControlPlane::start().await;
    plane.add_gpu_node(&GpuNode::new("gpu-0")).await;
    plane
        .apply(&pod("waits", "nvidia.com/gpu: 1, vramguard.dev/vram: 8Gi"))
        .await;
    let pods: Api<Pod> = Api::default_namespaced(plane.client());
    eventually(
        "the scheduler to say what is missing",
        Duration::from_secs(20),
        async || {
            let status = pods.get("waits").await?.status.unwrap_or_default();
            let message = status
                .conditions
                .unwrap_or_default()
                .into_iter()
                .find_map(|condition| condition.message);
            ensure!(
                message
                    .context("no condition")?
                    .contains("Insufficient vramguard.dev/vram")
            );
            Ok(())
        },
    )
    .await;

    let published = Instant::now();
    plane.publish("gpu-0", VRAM, Some("23Gi")).await;
    running(&plane, "waits").await;
    println!(
        "bound and running {:?} after the number was published",
        published.elapsed()
    );

    plane.kubectl(&["delete", "pod", "waits"]).await.expect_success();
    let node = plane
        .kubectl(&["get", "node", "gpu-0", "-o", "jsonpath={.status.allocatable}"])
        .await
        .expect_success();
    assert!(
        node.contains(r#""vramguard.dev/vram":"23Gi""#) && node.contains(r#""nvidia.com/gpu":"4""#),
        "{node}"
    );
}

#[tokio::test]
async fn the_control_plane_survives_stops_of_its_parts() {
    let plane = ControlPlane::start().await;
    plane.add_gpu_node(&GpuNode::new("gpu-0")).await;

    plane.stop_component(Component::Scheduler);
    plane.stop_component(Component::ApiServer);
    plane.start_component(Component::ApiServer);
    plane.ready().await;
    plane.apply(&pod("later", "nvidia.com/gpu: 1")).await;
    plane.start_component(Component::Scheduler);
    running(&plane, "later").await;
}

#[tokio::test]
async fn a_service_account_may_do_what_its_role_allows_and_no_more() {
    let plane = ControlPlane::start().await;
    plane
        .kubectl(&["create", "clusterrole", "reader", "--verb=get", "--resource=nodes"])
        .await
        .expect_success();
    let bind = [
        "create",
        "clusterrolebinding",
        "reader",
        "--clusterrole=reader",
        "--serviceaccount=default:default",
    ];
    plane.kubectl(&bind).await.expect_success();
    let account = plane.service_account_kubeconfig("default", "default").await;
    let account = account.to_str().expect("temporary folders have plain names");

    let nodes = plane
        .kubectl(&["--kubeconfig", account, "auth", "can-i", "get", "nodes"])
        .await;
    assert_eq!(nodes.stdout.trim(), "yes", "{}", nodes.stderr);
    let pods = plane
        .kubectl(&["--kubeconfig", account, "auth", "can-i", "list", "pods"])
        .await;
    assert_eq!(pods.stdout.trim(), "no", "{}", pods.stderr);
}
