//! The scheduler extender and the real kube-scheduler, configured as `deploy/examples/scheduler-config.yaml` says.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};

use crate::guard::Guard;
use crate::support::{Component, ControlPlane, GpuNode, Patience, Process, eventually, pause};

const VRAM: &str = "vramguard.dev/vram";
const PATIENCE: Duration = Duration::from_secs(60);
const ENFORCE: &str =
    "apiVersion: vramguard.dev/v1alpha1\nkind: ClusterVramPolicy\nmetadata: {name: cluster}\nspec: {mode: Enforce}\n";

struct Cluster {
    // Dropped in this order: with the control plane goes the folder that the others write their logs into.
    scheduler: Process,
    guard: Guard,
    plane: ControlPlane,
}

impl Cluster {
    /// A guarded cluster whose scheduler asks the extender.
    async fn start(nodes: &[GpuNode]) -> Cluster {
        let plane = ControlPlane::start().await;
        for node in nodes {
            plane.add_gpu_node(node).await;
        }
        let guard = Guard::start_with(&plane, &[("cluster.yaml", ENFORCE)], &["--scheduler-extender"]).await;
        let path =
            ["get", "mutatingwebhookconfiguration", "vramguard", "-o", "jsonpath={.webhooks[0].clientConfig.caBundle}"];
        let ca = plane.kubectl(&path).await.expect_success();
        plane.stop_component(Component::Scheduler);
        let mut scheduler = plane.configured_scheduler(configuration(guard.https, &ca));
        scheduler.start();
        let cluster = Cluster { scheduler, guard, plane };
        cluster.plane.kubectl(&["create", "namespace", "ml"]).await.expect_success();
        for node in nodes {
            cluster.published(&node.name).await;
        }
        cluster
    }

    /// Waits until a node advertises anything, and returns it.
    async fn published(&self, node: &str) -> String {
        let nodes: Api<Node> = Api::all(self.plane.client());
        eventually("the node to publish VRAM", PATIENCE, async || {
            let allocatable = nodes.get(node).await?.status.and_then(|status| status.allocatable);
            Ok(allocatable.and_then(|mut list: BTreeMap<_, _>| list.remove(VRAM)).context("nothing")?.0)
        })
        .await
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.plane.client(), "ml")
    }

    async fn create(&self, name: &str, vram: &str, node: &str) {
        let resources = json!({ "limits": { "nvidia.com/gpu": 1 } });
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": "ml", "annotations": { "vramguard.dev/vram": vram } },
            "spec": {
                "terminationGracePeriodSeconds": 0, "nodeSelector": { "kubernetes.io/hostname": node },
                "containers": [{ "name": "main", "image": "none", "resources": resources }],
            },
        });
        self.plane.apply(&pod.to_string()).await;
    }

    async fn bound(&self, name: &str) {
        let pods = self.pods();
        eventually(&format!("pod {name} to be bound"), PATIENCE, async || {
            let node = pods.get(name).await?.spec.and_then(|spec| spec.node_name);
            ensure!(node.is_some(), "{}{}", self.scheduler.log_tail(), self.guard.server.log_tail());
            Ok(())
        })
        .await;
    }

    /// Waits for the event that says why a pod has no node.
    async fn failed(&self, name: &str, text: &str) {
        let events: Api<Event> = Api::namespaced(self.plane.client(), "ml");
        eventually(&format!("{name} to be told {text:?}"), PATIENCE, async || {
            let of_pod = ListParams::default().fields(&format!("involvedObject.name={name}"));
            let events = events.list(&of_pod).await?.items;
            let messages: Vec<String> = events.into_iter().filter_map(|event| event.message).collect();
            ensure!(messages.iter().any(|message| message.contains(text)), "{messages:?}{}", self.scheduler.log_tail());
            Ok(())
        })
        .await;
    }

    /// How many questions were answered so.
    fn answered(&self, verdict: &str) -> u64 {
        let labels = format!(r#"vramguard_reviews_total{{webhook="filter",verdict="{verdict}""#);
        let metrics = self.guard.metrics();
        let of_verdict = metrics.lines().filter(|line| line.starts_with(&labels));
        of_verdict.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }

    /// Takes the server's right to publish away, and waits until a number that somebody else wrote stays.
    async fn misreport(&self, node: &str, vram: &str) {
        let role = self.plane.kubectl(&["get", "clusterrole", "vramguard", "-o", "json"]).await.expect_success();
        let mut role: Value = serde_json::from_str(&role).expect("kubectl prints JSON");
        let rules = role["rules"].as_array_mut().expect("a role has rules");
        rules.retain(|rule| rule["resources"] != json!(["nodes/status"]));
        self.plane.apply(&role.to_string()).await;
        eventually("the number to stay", PATIENCE, async || {
            self.plane.publish(node, VRAM, Some(vram)).await;
            pause(Duration::from_secs(1)).await;
            let published = self.published(node).await;
            ensure!(published == vram, "{published}");
            Ok(())
        })
        .await;
    }
}

/// The shipped file; only where the extender is, and whom to trust, are this machine's.
fn configuration(https: u16, ca: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples/scheduler-config.yaml");
    let text = std::fs::read_to_string(path).expect("the example");
    let mut configuration: Value = serde_saphyr::from_str(&text).expect("the example is YAML");
    let extender = &mut configuration["extenders"][0];
    extender["urlPrefix"] = json!(format!("https://127.0.0.1:{https}/scheduler"));
    let tls = extender["tlsConfig"].as_object_mut().expect("the example names a CA");
    assert!(tls.remove("caFile").is_some(), "the example names a CA");
    tls.insert("caData".to_owned(), json!(ca));
    configuration
}

#[tokio::test]
async fn a_node_that_kube_scheduler_would_take_is_refused_with_our_reason_while_somebody_answers() {
    let slots = GpuNode { gpus: 2, ..GpuNode::new("slots") };
    let mut cluster = Cluster::start(&[slots]).await;
    cluster.create("small", "4Gi", "slots").await;
    cluster.bound("small").await;
    assert!(cluster.answered("allowed") > 0, "it was asked{}", cluster.scheduler.log_tail());

    // By its number the node has room for much more than a slot of 5,967 MiB, and nothing says that one pod gets no more.
    cluster.misreport("slots", "99Gi").await;
    cluster.plane.kubectl(&["label", "node", "slots", "vramguard.dev/pod-max-mib-"]).await.expect_success();
    cluster.create("large", "8Gi", "slots").await;
    cluster.failed("large", "1 node(s) had no room for 8912Mi on one GPU (slot accounting)").await;
    assert!(cluster.answered("denied") > 0);

    // With nobody there to ask, kube-scheduler goes by the number alone, because the example says `ignorable`.
    cluster.guard.server.stop();
    cluster.plane.publish("slots", VRAM, Some("98Gi")).await;
    cluster.bound("large").await;
    cluster.scheduler.expect_running();
    cluster.plane.expect_running();
}

/// kube-scheduler and the server see the deletion of a pod by a watch each, and nobody says who sees it first: without a second
/// look 5 of 12 pods were refused here at first. Such a one waits for another event in the cluster, whatever that is.
#[tokio::test]
async fn room_that_is_freed_is_found_whoever_sees_it_first() {
    const ROUNDS: usize = 12;
    let cluster = Cluster::start(&[GpuNode::new("gpu-0")]).await;
    for name in ["p0", "p1"] {
        cluster.create(name, "8Gi", "gpu-0").await;
        cluster.bound(name).await;
    }
    let (pods, mut took) = (cluster.pods(), Vec::new());
    for round in 0..ROUNDS {
        let (goes, waits) = (format!("p{round}"), format!("p{}", round + 2));
        cluster.create(&waits, "8Gi", "gpu-0").await;
        cluster.failed(&waits, "Insufficient vramguard.dev/vram").await;
        pause(Duration::from_millis(1500)).await; // the back-off after a first attempt is a second
        let mut freed = Patience::of(PATIENCE);
        pods.delete(&goes, &DeleteParams::default()).await.expect("it is there");
        cluster.bound(&waits).await;
        took.push(freed.spent());
    }
    took.sort();
    println!("freed → bound, {ROUNDS} times: {took:?}; refused by the extender {} times", cluster.answered("denied"));
    assert!(took[ROUNDS - 1] < Duration::from_secs(10), "{took:?}");
}
