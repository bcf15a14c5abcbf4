//! The scheduler extender under a real kube-scheduler with the configuration in `deploy/examples/scheduler-config.yaml`.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};

use crate::support::objects::{ENFORCE, VRAM, gpu_pod};
use crate::support::{Component, GpuNode, GuardedCluster, PATIENCE, Patience, Process, eventually, pause};

/// A guarded cluster whose scheduler calls the extender.
struct ExtenderCluster {
    // Dropped in this order: the folder of the control plane holds the scheduler's log.
    scheduler: Process,
    cluster: GuardedCluster,
}

impl ExtenderCluster {
    async fn start(node: GpuNode) -> ExtenderCluster {
        let cluster =
            GuardedCluster::start_with(&[node], &[("cluster.yaml", ENFORCE)], &["--scheduler-extender"]).await;
        let plane = &cluster.plane;
        let path =
            ["get", "mutatingwebhookconfiguration", "vramguard", "-o", "jsonpath={.webhooks[0].clientConfig.caBundle}"];
        let ca = plane.kubectl(&path).await.expect_success();
        plane.stop_component(Component::Scheduler);
        let mut scheduler = plane.configured_scheduler(configuration(cluster.guard.https, &ca));
        scheduler.start();
        ExtenderCluster { scheduler, cluster }
    }

    async fn create(&self, name: &str, vram: &str, node: &str) {
        let annotations = format!("{{vramguard.dev/vram: {vram}}}");
        let on_node = format!("nodeSelector: {{kubernetes.io/hostname: {node}}},");
        self.cluster.plane.apply(&gpu_pod("ml", name, &annotations, &on_node)).await;
    }

    async fn bound(&self, name: &str) {
        self.cluster.bound("ml", name).await;
    }

    /// Waits for an event on a pod whose message contains `text`.
    async fn failed(&self, name: &str, text: &str) {
        let events: Api<Event> = Api::namespaced(self.cluster.plane.client(), "ml");
        eventually(&format!("{name} to be told {text:?}"), PATIENCE, async || {
            let of_pod = ListParams::default().fields(&format!("involvedObject.name={name}"));
            let events = events.list(&of_pod).await?.items;
            let messages: Vec<String> = events.into_iter().filter_map(|event| event.message).collect();
            ensure!(messages.iter().any(|message| message.contains(text)), "{messages:?}{}", self.scheduler.log_tail());
            Ok(())
        })
        .await;
    }

    /// Number of filter requests that were answered with this verdict.
    fn answered(&self, verdict: &str) -> u64 {
        self.cluster.guard.sum(&format!(r#"vramguard_reviews_total{{webhook="filter",verdict="{verdict}""#))
    }

    /// Revokes the server's right to publish, and waits until a number that the test writes is not repaired.
    async fn misreport(&self, node: &str, vram: &str) {
        let plane = &self.cluster.plane;
        let role = plane.kubectl(&["get", "clusterrole", "vramguard", "-o", "json"]).await.expect_success();
        let mut role: Value = serde_json::from_str(&role).expect("kubectl prints JSON");
        let rules = role["rules"].as_array_mut().expect("a role has rules");
        rules.retain(|rule| rule["resources"] != json!(["nodes/status"]));
        plane.apply(&role.to_string()).await;
        eventually("the number to stay", PATIENCE, async || {
            plane.publish(node, VRAM, Some(vram)).await;
            // The API server applies the changed role a moment later; until then the server repairs within this second.
            pause(Duration::from_secs(1)).await;
            let published = self.cluster.published(node).await;
            ensure!(published == vram, "{published}");
            Ok(())
        })
        .await;
    }
}

/// The shipped configuration with the address and the CA of this extender.
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
async fn a_node_that_kube_scheduler_would_take_is_refused_with_our_reason_while_the_extender_answers() {
    let slots = GpuNode { gpus: 2, ..GpuNode::new("slots") };
    let mut asking = ExtenderCluster::start(slots).await;
    asking.create("small", "4Gi", "slots").await;
    asking.bound("small").await;
    assert!(asking.answered("allowed") > 0, "it was asked{}", asking.scheduler.log_tail());

    // By its published number the node has room for much more than a slot of 5,967 MiB, and no label limits one pod to a slot.
    asking.misreport("slots", "99Gi").await;
    asking.cluster.plane.kubectl(&["label", "node", "slots", "vramguard.dev/pod-max-mib-"]).await.expect_success();
    asking.create("large", "8Gi", "slots").await;
    asking.failed("large", "1 node(s) had no room for 8912Mi on one GPU (slot accounting)").await;
    assert!(asking.answered("denied") > 0);

    // Without the extender, kube-scheduler uses the published number alone, because the example sets `ignorable`.
    asking.cluster.guard.server.stop();
    asking.cluster.plane.publish("slots", VRAM, Some("98Gi")).await;
    asking.bound("large").await;
    asking.scheduler.expect_running();
    asking.cluster.plane.expect_running();
}

/// Regression: kube-scheduler may see the deletion of a pod before the server does, because each has its own watch.
///
/// Without a second look, 5 of 12 pods were refused here, and a refused pod waits for the next event in the cluster.
#[tokio::test]
async fn freed_room_is_found_whichever_watch_sees_it_first() {
    const ROUNDS: usize = 12;
    let asking = ExtenderCluster::start(GpuNode::new("gpu-0")).await;
    for name in ["p0", "p1"] {
        asking.create(name, "8Gi", "gpu-0").await;
        asking.bound(name).await;
    }
    let pods: Api<Pod> = Api::namespaced(asking.cluster.plane.client(), "ml");
    let mut took = Vec::new();
    for round in 0..ROUNDS {
        let (goes, waits) = (format!("p{round}"), format!("p{}", round + 2));
        asking.create(&waits, "8Gi", "gpu-0").await;
        asking.failed(&waits, "Insufficient vramguard.dev/vram").await;
        pause(Duration::from_millis(1500)).await; // the back-off after a first attempt is a second
        let mut freed = Patience::of(PATIENCE);
        pods.delete(&goes, &DeleteParams::default()).await.expect("it is there");
        asking.bound(&waits).await;
        took.push(freed.spent());
    }
    took.sort();
    println!("freed → bound, {ROUNDS} times: {took:?}; refused by the extender {} times", asking.answered("denied"));
    assert!(took[ROUNDS - 1] < Duration::from_secs(10), "{took:?}");
}
