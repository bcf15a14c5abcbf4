//! The long form: attacks through the API server, with the shipped manifests, many nodes and the pods of a tenant.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::iter;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::attacks::{self, Target};
use super::memory::{self, Limited};
use super::probe::Asker;
use super::{HELD, LONG, Victim, ports};
use crate::support::guard::Guard;
use crate::support::objects::{ENFORCE, VRAM};
use crate::support::test_server::{pod, review};
use crate::support::{Component, ControlPlane, eventually};

const GPUS: u32 = 8;
/// Number of concurrent requests to the API server.
const AT_ONCE: usize = 16;
const PATIENCE: Duration = Duration::from_secs(300);

/// The number in an environment variable, or `default`.
fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Environment: `VRAMGUARD_NODES` (5,000) nodes of 8 GPUs, `VRAMGUARD_WAITING` (200) waiting pods of 1 MiB, and
/// `VRAMGUARD_PODS` (500) pods of 1 MiB in one LIST.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: `just hostile`"]
async fn a_cluster_under_attack_keeps_its_guard() {
    let limited = Limited::new("vramguard-hostile-cluster");
    let plane = ControlPlane::start().await;
    // Without these components, nodes without kubelets do not change, and pods wait.
    for component in [Component::ControllerManager, Component::Scheduler, Component::Kwok] {
        plane.stop_component(component);
    }
    let nodes = number("VRAMGUARD_NODES", 5_000);
    add_nodes(&plane, nodes).await;
    let mut guard = Guard::start_with(&plane, &[("cluster.yaml", ENFORCE)], &[]).await;
    limited.take(guard.server.pid().expect("it runs"));
    let tenant = tenant(&plane).await;
    published(&plane, nodes).await;

    let ca = plane.kubectl(&["get", "mutatingwebhookconfiguration", "vramguard", "-o", CA]).await.expect_success();
    let ca = decoded(&ca);
    let target = Target { https: guard.https, http: guard.http(), ca, namespace: "ml".into() };
    let victim = victim(&plane, &guard, &target);
    println!("{nodes} nodes of {GPUS} GPUs, limit kept by the kernel: {}", limited.is_kept());
    ports(&victim, &target, LONG).await;
    victim.suffers("8 pods of 2.9 MiB through the API server", attacks::large_pods(&tenant, "ml", 8)).await;
    victim.suffers("16 pods of 2.9 MiB through the API server", attacks::large_pods(&tenant, "ml", 16)).await;

    let waiting = number("VRAMGUARD_WAITING", 200);
    victim.suffers(&format!("{waiting} waiting pods of 1 MiB"), waiting_pods(&plane, waiting)).await;
    victim.suffers("8 scrapes at a time beside them", target.scrapes(8, HELD)).await;
    let pods = number("VRAMGUARD_PODS", 500);
    large_pods(&plane, pods).await;
    restart(&mut guard, &plane, &limited).await;
    let victim = self::victim(&plane, &guard, &target);
    // The sleep is the scenario: good reviews after a restart, without an attack.
    victim.suffers(&format!("after a start with {pods} more pods of 1 MiB"), tokio::time::sleep(HELD)).await;
    guard.server.stop();
    drop(limited);
}

const CA: &str = "jsonpath={.webhooks[0].clientConfig.caBundle}";

fn decoded(base64: &str) -> String {
    use base64::Engine;
    let text = base64::prelude::BASE64_STANDARD.decode(base64.trim()).expect("a caBundle is base64");
    String::from_utf8(text).expect("a caBundle is PEM")
}

fn victim(plane: &ControlPlane, guard: &Guard, target: &Target) -> Victim {
    let (client, target) = (plane.client(), target.clone());
    let askers = move || {
        let mut good = pod("ml", json!({ "vramguard.dev/vram": "4Gi" }));
        let body = review(&good).to_string();
        good["metadata"] = json!({ "generateName": "good-", "annotations": { "vramguard.dev/vram": "4Gi" } });
        vec![
            ("review", Asker::Port { port: target.https, ca: target.ca.clone(), body, client: None }),
            ("create", Asker::ApiServer { client: client.clone(), namespace: "ml".into(), pod: good.to_string() }),
        ]
    };
    Victim { pid: guard.server.pid().expect("it runs"), askers: Box::new(askers) }
}

/// Kills and restarts the server, and waits until it has listed all objects.
async fn restart(guard: &mut Guard, plane: &ControlPlane, limited: &Limited) {
    guard.server.stop();
    let start = Instant::now();
    guard.server.start();
    let pid = guard.server.pid().expect("it was started");
    limited.take(pid);
    guard.ready(plane).await;
    let (now, peak) = memory::resident(pid).expect("it lives");
    println!("started in {:.1?}: peak {peak} MiB, then {now} MiB", start.elapsed());
}

async fn add_nodes(plane: &ControlPlane, count: usize) {
    let api: Api<Node> = Api::all(plane.client());
    let add = async |number: usize| {
        let name = format!("gpu-node-{number:05}");
        let labels = json!({
            "kubernetes.io/hostname": name, "nvidia.com/gpu.count": GPUS.to_string(), "nvidia.com/gpu.memory": "81559",
            "nvidia.com/gpu.replicas": "4", "nvidia.com/gpu.sharing-strategy": "time-slicing",
            "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3-SHARED",
        });
        let node = serde_json::from_value(json!({ "metadata": { "name": name, "labels": labels } })).expect("a Node");
        api.create(&PostParams::default(), &node).await.expect("a node can be created");
        let gpus = json!({ "nvidia.com/gpu": (GPUS * 4).to_string(), "cpu": "64", "memory": "512Gi", "pods": "500" });
        let status = Patch::Merge(json!({ "status": { "capacity": gpus, "allocatable": gpus } }));
        api.patch_status(&name, &PatchParams::default(), &status).await.expect("its status can be written");
    };
    iter(0..count).for_each_concurrent(AT_ONCE, add).await;
}

/// Waits until the leader has published all nodes, so that it does not do so during the first attack.
async fn published(plane: &ControlPlane, count: usize) {
    let last = format!("gpu-node-{:05}", count - 1);
    eventually("the last node to be published", PATIENCE, async || plane.published(&last, VRAM).await).await;
}

/// A client of a user who may only create pods in `ml`.
async fn tenant(plane: &ControlPlane) -> kube::Client {
    let namespaces: Api<Namespace> = Api::all(plane.client());
    let namespace = serde_json::from_value(json!({ "metadata": { "name": "ml" } })).expect("a Namespace");
    namespaces.create(&PostParams::default(), &namespace).await.expect("it can be created");
    for arguments in [
        &["create", "serviceaccount", "tenant", "-n", "ml"][..],
        &["create", "role", "tenant", "-n", "ml", "--verb=create", "--resource=pods"],
        &["create", "rolebinding", "tenant", "-n", "ml", "--role=tenant", "--serviceaccount=ml:tenant"],
    ] {
        plane.kubectl(arguments).await.expect_success();
    }
    let file: PathBuf = plane.service_account_kubeconfig("ml", "tenant").await;
    let config = kube::config::Kubeconfig::read_from(file).expect("the harness writes readable kubeconfigs");
    let config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await.expect("it is complete");
    kube::Client::try_from(config).expect("the certificate is readable")
}

/// A pod with `count` values of 60 bytes in its affinity.
fn of_values(count: usize, name: &str, limits: Value) -> Value {
    let values: Vec<String> = (0..count).map(|n| format!("{n:060}")).collect();
    let expression = json!({ "key": "kubernetes.io/hostname", "operator": "NotIn", "values": values });
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "ml" },
        "spec": {
            "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{ "matchExpressions": [expression] }],
            } } },
            "containers": [{ "name": "main", "image": "none", "resources": { "limits": limits, "requests": limits } }],
        },
    })
}

async fn create(plane: &ControlPlane, pod: Value) {
    let pods: Api<Pod> = Api::namespaced(plane.client(), "ml");
    let pod = serde_json::from_value(pod).expect("a Pod");
    let created = pods.create(&PostParams::default(), &pod).await;
    created.unwrap_or_else(|error| panic!("{:?}: {error}", pod.metadata.name));
}

/// Creates GPU pods that are marked as unschedulable, and holds them for [`HELD`].
async fn waiting_pods(plane: &ControlPlane, count: usize) {
    let pods: Api<Pod> = Api::namespaced(plane.client(), "ml");
    let add = async |number: usize| {
        let name = format!("waiting-{number:04}");
        // The webhook makes two terms of this one, which together have 1 MiB.
        let mut pod = of_values(8_000, &name, json!({ "nvidia.com/gpu": "1" }));
        pod["metadata"]["annotations"] = json!({ "vramguard.dev/vram": "8Gi" });
        create(plane, pod).await;
        let condition = json!({ "type": "PodScheduled", "status": "False", "reason": "Unschedulable" });
        let status = Patch::Strategic(json!({ "status": { "conditions": [condition] } }));
        pods.patch_status(&name, &PatchParams::default(), &status).await.expect("a status can be written");
    };
    iter(0..count).for_each_concurrent(AT_ONCE / 4, add).await;
    tokio::time::sleep(HELD).await; // part of the attack
}

/// Creates large pods without a GPU, for which a tenant needs no GPU quota.
async fn large_pods(plane: &ControlPlane, count: usize) {
    let add = async |number: usize| create(plane, of_values(16_000, &format!("large-{number:04}"), json!({}))).await;
    iter(0..count).for_each_concurrent(AT_ONCE / 4, add).await;
}
