//! vramguard on a real control plane: the manifests of `deploy/`, a stock scheduler and controller-manager, and kwok nodes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};

use crate::support::http::metric;
use crate::support::objects::{
    ENFORCE, VRAM, cluster_policy, deployment, gpu_pod, mib, namespace_policy, node_of, plain_pod, requested,
};
use crate::support::{GpuNode, GuardedCluster, PATIENCE, Patience, eventually};

#[tokio::test]
async fn a_third_agent_waits_and_is_bound_soon_after_room_is_freed() {
    let cluster = GuardedCluster::start(&[GpuNode::new("gpu-0")], &[("cluster.yaml", ENFORCE)]).await;
    assert_eq!(cluster.published("gpu-0").await, "23870Mi");
    cluster.plane.apply(&deployment("ml", "agent", 2, "{vramguard.dev/vram: 8Gi}")).await;
    let pods = cluster.settles("ml", 2, 0).await;
    assert!(pods.iter().all(|pod| requested(pod) == 8912), "{pods:?}");
    let env: Value = serde_json::to_value(&pods[0].spec.as_ref().unwrap().containers[0].env).unwrap();
    let expected = json!([
        { "name": "VRAMGUARD_VRAM_MIB", "value": "8192" },
        { "name": "CUDA_DEVICE_ORDER", "value": "PCI_BUS_ID" },
    ]);
    assert_eq!(env, expected);

    cluster.plane.kubectl(&["-n", "ml", "scale", "deployment/agent", "--replicas=3"]).await.expect_success();
    cluster.settles("ml", 2, 1).await;
    cluster.event("ml", "FailedScheduling", "Insufficient vramguard.dev/vram").await;
    let ours = cluster.event("ml", "VramShortfall", "waits for VRAM").await;
    assert_eq!(
        ours,
        "waits for VRAM: 8912Mi demanded (8Gi declared + 720Mi for 1 process), but the best node it may land on, \"gpu-0\", has \
         room for 6046Mi (17824Mi of 23870Mi held by 2 pods, exact accounting)"
    );

    // A bound pod is deleted; its replacement and a small pod then compete for the freed VRAM.
    let running = cluster.pods("ml").await.into_iter().find(|pod| node_of(pod).is_some()).unwrap();
    let freed = Instant::now();
    cluster.plane.apply(&gpu_pod("ml", "small", "{vramguard.dev/vram: 1Gi}", "")).await;
    cluster
        .plane
        .kubectl(&["-n", "ml", "delete", "pod", running.metadata.name.as_deref().unwrap(), "--wait=false"])
        .await
        .expect_success();
    cluster.settles("ml", 3, 1).await;
    println!("settled {:?} after a pod was deleted", freed.elapsed());
    assert_eq!(cluster.published("gpu-0").await, "23870Mi", "constant, whatever is held");
    assert_eq!(cluster.guard.metric("vramguard_node_publications_total"), Some(1.0), "one write for all of this");
}

#[tokio::test]
async fn a_refusal_is_an_event_on_the_replica_set_that_says_what_to_add() {
    let required = namespace_policy("ml", "{declaration: {required: true}}");
    let policies = [("cluster.yaml", ENFORCE), ("ml.yaml", &required)];
    let cluster = GuardedCluster::start(&[GpuNode::new("gpu-0")], &policies).await;
    cluster.plane.apply(&deployment("ml", "agent", 1, "{}")).await;
    let message = cluster.event("ml", "FailedCreate", "declares no VRAM").await;
    assert!(
        message.contains("admission webhook \"enforce.pods.vramguard.dev\" denied the request: pod \"ml/agent-"),
        "{message}"
    );
    assert!(
        message.ends_with("add the annotation vramguard.dev/vram: <amount>, as in vramguard.dev/vram: 8Gi"),
        "{message}"
    );
    assert!(cluster.pods("ml").await.is_empty());

    // The same Deployment with the annotation from the message runs.
    cluster.plane.apply(&deployment("ml", "agent", 1, "{vramguard.dev/vram: 8Gi}")).await;
    cluster.settles("ml", 1, 0).await;

    // A pod with spec.nodeName bypasses the scheduler, so the webhook refuses it and says how much is free on that node.
    let direct = gpu_pod("ml", "direct", "{vramguard.dev/vram: 20Gi}", "nodeName: gpu-0,");
    let refused = cluster.plane.kubectl_with_input(&["apply", "-f", "-"], &direct).await.expect_failure();
    assert!(refused.contains("spec.nodeName \"gpu-0\" passes by kube-scheduler"), "{refused}");
    assert!(refused.contains("(21200Mi demanded, 14958Mi left there)"), "{refused}");
}

#[tokio::test]
async fn a_burst_fills_every_node_and_overcommits_none() {
    let nodes: Vec<GpuNode> =
        (0..10).map(|number| GpuNode { replicas: 20, ..GpuNode::new(&format!("gpu-{number}")) }).collect();
    let cluster = GuardedCluster::start(&nodes, &[("cluster.yaml", ENFORCE)]).await;
    let start = Instant::now();
    // Each node has 23,870 MiB. There are ten pods of 8Gi and 190 of 512Mi, so the free VRAM of a node is always usable by a
    // small pod, whatever the order.
    let sizes = [("large", 10, "8Gi"), ("a", 60, "512Mi"), ("b", 60, "512Mi"), ("c", 70, "512Mi")];
    let together: Vec<String> = sizes
        .iter()
        .map(|(name, n, vram)| deployment("ml", name, *n, &format!("{{vramguard.dev/vram: {vram}}}")))
        .collect();
    cluster.plane.apply(&together.join("---\n")).await;
    let (mut whole, mut quiet) = (Patience::of(Duration::from_secs(120)), Patience::of(Duration::from_secs(5)));
    let (mut overcommitted, mut last) = (Vec::new(), 0);
    while !quiet.is_over() && !whole.is_over() {
        let pods = cluster.pods("ml").await;
        let mut held: BTreeMap<&str, u64> = BTreeMap::new();
        for pod in pods.iter().filter(|pod| node_of(pod).is_some()) {
            *held.entry(node_of(pod).unwrap()).or_default() += requested(pod);
        }
        overcommitted.extend(held.iter().filter(|(_, mib)| **mib > 23_870).map(|(node, mib)| format!("{node}: {mib}")));
        let bound = pods.iter().filter(|pod| node_of(pod).is_some()).count();
        if bound != last || pods.len() < 200 {
            (last, quiet) = (bound, Patience::of(Duration::from_secs(5)));
        }
        tokio::time::sleep(Duration::from_millis(100)).await; // between two looks
    }
    assert_eq!(overcommitted, Vec::<String>::new());
    let pods = cluster.pods("ml").await;
    assert_eq!(pods.len(), 200);
    let mut room: BTreeMap<String, (u64, u32)> = nodes.iter().map(|node| (node.name.clone(), (23_870, 20))).collect();
    for pod in pods.iter().filter(|pod| node_of(pod).is_some()) {
        let left = room.get_mut(node_of(pod).unwrap()).unwrap();
        *left = (left.0 - requested(pod), left.1 - 1);
    }
    for pod in pods.iter().filter(|pod| node_of(pod).is_none()) {
        let fits = room.iter().find(|(_, (mib, replicas))| *mib >= requested(pod) && *replicas > 0);
        assert_eq!(fits, None, "{:?} waits although it fits", pod.metadata.name);
    }
    println!("{last} of 200 bound after {:?}", start.elapsed());
}

#[tokio::test]
async fn a_higher_priority_preempts_and_a_quota_on_vram_holds() {
    let cluster = GuardedCluster::start(&[GpuNode::new("gpu-0")], &[("cluster.yaml", ENFORCE)]).await;
    cluster
        .plane
        .apply("{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: urgent}, value: 1000}")
        .await;
    cluster.plane.apply(&gpu_pod("ml", "low", "{vramguard.dev/vram: 20Gi}", "")).await;
    cluster.settles("ml", 1, 0).await;
    cluster.plane.apply(&gpu_pod("ml", "high", "{vramguard.dev/vram: 20Gi}", "priorityClassName: urgent,")).await;
    eventually("the urgent pod to take the room", PATIENCE, async || {
        let pods = cluster.pods("ml").await;
        let names: Vec<_> =
            pods.iter().filter(|pod| node_of(pod).is_some()).map(|pod| pod.metadata.name.clone()).collect();
        ensure!(names == [Some("high".to_owned())], "{names:?}");
        Ok(())
    })
    .await;

    cluster.namespace("budget").await;
    let quota = "{apiVersion: v1, kind: ResourceQuota, metadata: {name: vram, namespace: budget}, spec: {hard: \
                 {requests.vramguard.dev/vram: 14Gi}}}";
    cluster.plane.apply(quota).await;
    eventually("the quota to be counted", PATIENCE, async || {
        let status =
            cluster.plane.kubectl(&["-n", "budget", "get", "quota", "vram", "-o", "jsonpath={.status.hard}"]).await;
        ensure!(status.stdout.contains("vram"), "{}", status.stdout);
        Ok(())
    })
    .await;
    cluster.plane.apply(&deployment("budget", "agent", 2, "{vramguard.dev/vram: 8Gi}")).await;
    let refused = cluster.event("budget", "FailedCreate", "exceeded quota: vram").await;
    assert!(refused.contains("requested: requests.vramguard.dev/vram=8912Mi"), "{refused}");
    assert_eq!(cluster.pods("budget").await.len(), 1);
}

#[tokio::test]
async fn without_the_server_gpu_pods_are_not_created_and_nothing_else_is_touched() {
    let warn = namespace_policy("lax", "{mode: Warn}");
    let policies = [("cluster.yaml", ENFORCE), ("lax.yaml", warn.as_str())];
    let mut cluster = GuardedCluster::start(&[GpuNode::new("gpu-0")], &policies).await;
    cluster.namespace("lax").await;
    cluster.plane.apply(&gpu_pod("ml", "before", "{vramguard.dev/vram: 4Gi}", "")).await;
    cluster.settles("ml", 1, 0).await;
    cluster.guard.server.stop();

    let create = async |yaml: &str| cluster.plane.kubectl_with_input(&["apply", "-f", "-"], yaml).await;
    create(&plain_pod("ml", "web")).await.expect_success();
    create(&gpu_pod("kube-system", "system-gpu", "{}", "")).await.expect_success();
    create(&gpu_pod("lax", "unguarded", "{}", "")).await.expect_success();
    let refused = create(&gpu_pod("ml", "during", "{vramguard.dev/vram: 4Gi}", "")).await.expect_failure();
    assert!(refused.contains("enforce.pods.vramguard.dev"), "{refused}");
    for change in ["label pod before a=b", "annotate pod before note=1", "delete pod before"] {
        let arguments: Vec<&str> = ["-n", "ml"].into_iter().chain(change.split(' ')).collect();
        cluster.plane.kubectl(&arguments).await.expect_success();
    }

    cluster.guard.server.start();
    cluster.guard.ready(&cluster.plane).await;
    cluster.plane.apply(&gpu_pod("ml", "after", "{vramguard.dev/vram: 4Gi}", "")).await;
    cluster.bound("ml", "after").await;
    // Two pods were created without mutation and without a request. Each holds one slot of 5,967 MiB.
    eventually("the pods of the outage to be subtracted", PATIENCE, async || {
        let published = cluster.published("gpu-0").await;
        ensure!(published == format!("{}Mi", 23_870 - 2 * 5967), "{published}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_dry_run_leaves_no_trace_and_audit_and_off_patch_nothing() {
    let (audit, off) = (namespace_policy("audited", "{mode: Audit}"), namespace_policy("quiet", "{mode: \"Off\"}"));
    let policies = [("cluster.yaml", ENFORCE), ("audit.yaml", audit.as_str()), ("off.yaml", off.as_str())];
    let cluster = GuardedCluster::start(&[GpuNode::new("gpu-0")], &policies).await;
    let dry = ["apply", "--dry-run=server", "-o", "json", "-f", "-"];
    let pod = gpu_pod("ml", "dry", "{vramguard.dev/vram: 20Gi}", "");
    for _ in 0..2 {
        let seen: Value =
            serde_json::from_str(&cluster.plane.kubectl_with_input(&dry, &pod).await.expect_success()).unwrap();
        assert_eq!(seen["spec"]["containers"][0]["resources"]["limits"][VRAM], "21200Mi");
    }
    assert!(cluster.pods("ml").await.is_empty());
    assert_eq!(cluster.published("gpu-0").await, "23870Mi");

    for namespace in ["audited", "quiet"] {
        cluster.namespace(namespace).await;
        cluster.plane.apply(&gpu_pod(namespace, "p", "{vramguard.dev/vram: 100Gi}", "")).await;
        let pods = cluster.settles(namespace, 1, 0).await;
        assert_eq!(requested(&pods[0]), 0);
        assert_eq!(pods[0].spec.as_ref().unwrap().containers[0].env, None);
    }
    // These pods still hold VRAM, by their declaration.
    eventually("the deficit to be published", PATIENCE, async || {
        let published = cluster.published("gpu-0").await;
        ensure!(published == "0" || published == "0Mi", "{published}");
        Ok(())
    })
    .await;
    let condition = cluster
        .plane
        .kubectl(&["get", "node", "gpu-0", "-o", "jsonpath={.status.conditions[?(@.type==\"VramAccounted\")].message}"])
        .await
        .expect_success();
    assert!(condition.starts_with("nvidia.com/gpu: the GPU is overcommitted by 182370Mi"), "{condition}");
}

#[tokio::test]
async fn what_is_published_is_repaired_at_once() {
    let cluster = GuardedCluster::start(&[GpuNode::new("gpu-0")], &[("cluster.yaml", ENFORCE)]).await;
    for tampered in [None, Some("99Gi"), Some("0")] {
        let start = Instant::now();
        cluster.plane.publish("gpu-0", VRAM, tampered).await;
        eventually("the figure to be put back", Duration::from_secs(10), async || {
            let published = cluster.published("gpu-0").await;
            ensure!(published == "23870Mi", "{published}");
            Ok(())
        })
        .await;
        println!("{tampered:?} repaired after {:?}", start.elapsed());
    }
    // A re-applied manifest resets the selector of the Fail entry, which the controller repairs too.
    let selector = || async {
        let path = "jsonpath={.webhooks[?(@.name==\"enforce.pods.vramguard.dev\")].namespaceSelector}";
        cluster
            .plane
            .kubectl(&["get", "validatingwebhookconfiguration", "vramguard", "-o", path])
            .await
            .expect_success()
    };
    let right = selector().await;
    assert!(right.contains("NotIn"), "{right}");
    let reset = r#"[{"op":"replace","path":"/webhooks/0/namespaceSelector","value":{"matchExpressions":[{"key":"kubernetes.io/metadata.name","operator":"DoesNotExist"}]}}]"#;
    let patch = ["patch", "validatingwebhookconfiguration", "vramguard", "--type=json", "-p", reset];
    cluster.plane.kubectl(&patch).await.expect_success();
    eventually("the selector to be put back", Duration::from_secs(10), async || {
        ensure!(selector().await == right, "{}", selector().await);
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn another_replica_leads_when_the_leader_is_killed() {
    let mut cluster = GuardedCluster::start(&[GpuNode::new("gpu-0")], &[("cluster.yaml", ENFORCE)]).await;
    let (mut standby, http) = cluster.guard.standby(&cluster.plane).await;
    assert_eq!((cluster.guard.metric("vramguard_leader"), metric(http, "vramguard_leader")), (Some(1.0), Some(0.0)));
    cluster.guard.server.stop();
    cluster.plane.publish("gpu-0", VRAM, None).await;
    let killed = Instant::now();
    assert_eq!(cluster.published("gpu-0").await, "23870Mi");
    println!("the standby had repaired the node {:?} after the kill", killed.elapsed());
    assert_eq!(metric(http, "vramguard_leader"), Some(1.0));

    // A replica that stops on SIGTERM releases the Lease, so the next one leads without waiting for its expiry.
    cluster.guard.server.start();
    cluster.guard.ready(&cluster.plane).await;
    let status = standby.terminate(Duration::from_secs(20));
    assert!(status.success(), "{status}{}", standby.log_tail());
    let stopped = Instant::now();
    eventually("the first one to lead again", Duration::from_secs(10), async || {
        ensure!(cluster.guard.metric("vramguard_leader") == Some(1.0));
        Ok(())
    })
    .await;
    println!("led again {:?} after the other was told to stop", stopped.elapsed());
}

#[tokio::test]
async fn a_secret_that_is_deleted_or_spoilt_is_made_anew_and_no_pod_is_refused_meanwhile() {
    let cluster = GuardedCluster::start(&[GpuNode::new("gpu-0")], &[("cluster.yaml", ENFORCE)]).await;
    let secret = async |path: &str| {
        let path = format!("jsonpath={{.data.{path}}}");
        let get = ["-n", "vramguard-system", "get", "secret", "vramguard-tls", "--ignore-not-found", "-o", &path];
        cluster.plane.kubectl(&get).await.expect_success()
    };
    let (before, dry) = (secret("tls\\.crt").await, ["create", "--dry-run=server", "-f", "-"]);
    let pod = gpu_pod("ml", "asked", "{vramguard.dev/vram: 1Gi}", "");
    cluster.plane.kubectl(&["-n", "vramguard-system", "delete", "secret", "vramguard-tls"]).await.expect_success();
    let start = Instant::now();
    let mut reviews = 0;
    // Until the new secret exists and for five seconds after, the API server trusts the server at every review.
    let (mut again, mut whole) = (None, Patience::of(Duration::from_secs(120)));
    while again.as_mut().is_none_or(|after: &mut Patience| !after.is_over()) {
        assert!(!whole.is_over(), "no new secret{}", cluster.guard.server.log_tail());
        cluster.plane.kubectl_with_input(&dry, &pod).await.expect_success();
        reviews += 1;
        if again.is_none() && !secret("tls\\.crt").await.is_empty() {
            again = Some(Patience::of(Duration::from_secs(5)));
        }
    }
    println!("{reviews} reviews while the secret was made anew, {:?} in all", start.elapsed());
    let after = secret("tls\\.crt").await;
    assert_ne!(after, before);

    // Without its CA the secret is spoilt: the served certificate is still trusted, but it would not be after a restart.
    let spoilt = r#"{"data":{"ca.crt":""}}"#;
    let patch = ["-n", "vramguard-system", "patch", "secret", "vramguard-tls", "-p", spoilt];
    cluster.plane.kubectl(&patch).await.expect_success();
    eventually("a whole new pair", PATIENCE, async || {
        ensure!(secret("tls\\.crt").await != after && !secret("ca\\.crt").await.is_empty(), "still spoilt");
        Ok(())
    })
    .await;
    eventually("reviews to be answered under it", PATIENCE, async || {
        let created = cluster.plane.kubectl_with_input(&dry, &pod).await;
        ensure!(created.status.success(), "{}", created.stderr);
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn nodes_and_policies_may_change_while_it_runs() {
    let several = GpuNode { gpus: 4, memory_mib: 81_559, ..GpuNode::new("several") };
    let whole = GpuNode { gpus: 2, replicas: 1, memory_mib: 40_960, ..GpuNode::new("whole") };
    let mut odd = GpuNode::new("odd");
    odd.labels.insert("nvidia.com/gpu.count".to_owned(), "3".to_owned());
    let cluster = GuardedCluster::start(&[several, whole, odd], &[("cluster.yaml", ENFORCE)]).await;
    let becomes = async |node: &str, expected: u64| {
        eventually(&format!("{node} to publish {expected}Mi"), PATIENCE, async || {
            let published = mib(&cluster.published(node).await);
            ensure!(published == expected, "{published}");
            Ok(())
        })
        .await;
    };
    becomes("several", (81_559 - 490 - 816) / 4 * 16).await;
    becomes("whole", 2 * (40_960 - 450 - 410)).await;
    becomes("odd", 0).await;

    // An operator describes the node in a GpuInventory, without a restart.
    let inventory = "apiVersion: vramguard.dev/v1alpha1\nkind: GpuInventory\nmetadata: {name: i}\nspec:\n  nodes:\n    - {names: [odd], \
                     resource: nvidia.com/gpu, replicas: 4, gpus: [24Gi]}\n";
    cluster.guard.policy("inventory.yaml", inventory).await;
    becomes("odd", 23_870).await;

    // A larger headroom, a deleted node, and a new one.
    let wider = cluster_policy("{mode: Enforce, headroom: {percent: 50}}");
    cluster.guard.policy("cluster.yaml", &wider).await;
    becomes("several", (81_559 - 490 - 40_780) / 4 * 16).await;
    cluster.plane.kubectl(&["delete", "node", "odd"]).await.expect_success();
    cluster.plane.add_gpu_node(&GpuNode::new("late")).await;
    becomes("late", 24_576 - 450 - 12_288).await;
    cluster
        .plane
        .kubectl(&["label", "node", "late", "nvidia.com/gpu.memory=40960", "--overwrite"])
        .await
        .expect_success();
    becomes("late", 40_960 - 450 - 20_480).await;

    // A broken file changes no policy and counts as an error.
    std::fs::write(cluster.guard.policies.join("cluster.yaml"), "kind: [").unwrap();
    eventually("the error to be counted", PATIENCE, async || {
        ensure!(cluster.guard.metric("vramguard_policy_reload_errors_total") > Some(0.0));
        Ok(())
    })
    .await;
    becomes("several", (81_559 - 490 - 40_780) / 4 * 16).await;
    let metrics = cluster.guard.metrics();
    assert!(
        metrics.contains(r#"vramguard_pool_allocatable_bytes{node="several",resource="nvidia.com/gpu",mode="slot"}"#),
        "{metrics}"
    );
    cluster.plane.expect_running();
}
