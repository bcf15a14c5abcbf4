//! Warnings about workloads on a real control plane: what `kubectl apply` prints, and that nothing depends on it.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // a test starts programs

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::objects::{ENFORCE, deployment};
use crate::support::{GpuNode, GuardedCluster, run};

const AGENT: &str = "{vramguard.dev/vram: 8Gi}";
const TEMPLATE: &str = "template: {metadata: {labels: {app: other}, annotations: {vramguard.dev/vram: 8Gi}}, spec: {restartPolicy: \
                        Never, containers: [{name: main, image: none, resources: {limits: {nvidia.com/gpu: 1}}}]}}";

/// A cluster with one GPU, which takes two pods of 8Gi.
async fn cluster() -> GuardedCluster {
    GuardedCluster::start(&[GpuNode::new("gpu-0")], &[("cluster.yaml", ENFORCE)]).await
}

/// Applies an object, which must succeed, and returns the warnings that kubectl prints.
async fn apply(cluster: &GuardedCluster, object: &str) -> String {
    warnings(cluster, &["apply", "-f", "-"], object).await
}

/// As [`apply`], on a dry run.
async fn try_on(cluster: &GuardedCluster, object: &str) -> String {
    warnings(cluster, &["apply", "--dry-run=server", "-f", "-"], object).await
}

async fn warnings(cluster: &GuardedCluster, arguments: &[&str], object: &str) -> String {
    let finished = cluster.plane.kubectl_with_input(arguments, object).await;
    let warnings = finished.stderr.clone();
    finished.expect_success();
    warnings.trim_end().to_owned()
}

/// What kubectl prints of a warning about an object in `ml`.
fn warning(object: &str, what: &str) -> String {
    let (kind, name) = object.split_once(' ').expect("a kind and a name");
    format!("Warning: vramguard: {kind} \"ml/{name}\": {what}")
}

/// Reviews of workloads that were answered.
fn reviews(cluster: &GuardedCluster) -> u64 {
    cluster.guard.sum("vramguard_reviews_total{webhook=\"workloads\"")
}

fn with_strategy(deployment: &str, strategy: &str) -> String {
    deployment.replacen("  selector:", &format!("  strategy: {strategy}\n  selector:"), 1)
}

fn autoscaler(target: &str, most: u32) -> String {
    format!(
        "{{apiVersion: autoscaling/v2, kind: HorizontalPodAutoscaler, metadata: {{name: agents, namespace: ml}}, spec: {{maxReplicas: \
         {most}, scaleTargetRef: {{apiVersion: apps/v1, kind: Deployment, name: {target}}}}}}}"
    )
}

#[tokio::test]
async fn a_deployment_and_its_autoscaler_are_told_the_largest_number_that_fits() {
    let mut cluster = cluster().await;
    let told = apply(&cluster, &deployment("ml", "agent", 5, AGENT)).await;
    let too_many = "it should have 5 pods of 8912Mi; 0 run, and 2 more fit now; remedy: replicas: 2";
    assert_eq!(told, warning("Deployment agent", too_many));
    cluster.settles("ml", 2, 3).await;
    // Its ReplicaSet is not reviewed, and neither is what the controller writes onto the Deployment.
    assert_eq!(reviews(&cluster), 1);
    assert_eq!(apply(&cluster, &deployment("ml", "agent", 5, AGENT)).await, "", "nothing changes");
    assert_eq!(reviews(&cluster), 1, "and nothing is sent");

    assert_eq!(apply(&cluster, &deployment("ml", "agent", 2, AGENT)).await, "", "a scale-down");
    cluster.settles("ml", 2, 0).await;
    let more = try_on(&cluster, &deployment("ml", "agent", 3, AGENT)).await;
    let one_more = "it should have 3 pods of 8912Mi; 2 run, and 0 more fit now; remedy: replicas: 2";
    assert_eq!(more, warning("Deployment agent", one_more));

    let scaled = apply(&cluster, &autoscaler("agent", 10)).await;
    let too_far = "HorizontalPodAutoscaler \"agents\" may scale it to 10 pods of 8912Mi; 2 run, and 0 more fit now; remedy: \
                   maxReplicas: 2";
    assert_eq!(scaled, warning("Deployment agent", too_far));
    assert_eq!(apply(&cluster, &autoscaler("agent", 2)).await, "", "what runs fits");
    assert_eq!(try_on(&cluster, &autoscaler("missing", 10)).await, "", "a target that is not there");

    // The old pods have no room next to a new one, and may not go before it runs.
    let surge = "{rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}";
    let rollout = with_strategy(
        &deployment("ml", "agent", 2, "{vramguard.dev/vram: 8Gi, vramguard.dev/processes: \"1\"}"),
        surge,
    );
    let told = try_on(&cluster, &rollout).await;
    let no_room = "a rollout needs 3 pods at a time of 8912Mi; 2 run, and 0 more fit now; remedy: strategy: {rollingUpdate: \
                   {maxSurge: 0, maxUnavailable: 1}}";
    assert_eq!(told, warning("Deployment agent", no_room));
    let in_place = with_strategy(&rollout.replace(surge, "{type: Recreate}"), "").replace("  strategy: \n", "");
    assert_eq!(try_on(&cluster, &in_place).await, "", "it replaces its pods in place");

    cluster.guard.server.stop();
    assert_eq!(apply(&cluster, &deployment("ml", "agent", 4, AGENT)).await, "", "nothing depends on the guard");
}

#[tokio::test]
async fn every_kind_is_told_and_what_another_makes_is_not() {
    let cluster = cluster().await;
    let object = |version: &str, kind: &str, spec: &str| {
        format!("{{apiVersion: {version}, kind: {kind}, metadata: {{name: other, namespace: ml}}, spec: {{{spec}}}}}",)
    };
    let selected =
        format!("selector: {{matchLabels: {{app: other}}}}, {}", TEMPLATE.replace("restartPolicy: Never, ", ""));
    let set = |kind: &str, extra: &str| object("apps/v1", kind, &format!("{extra} {selected}"));
    let job = |spec: &str| object("batch/v1", "Job", &format!("{spec} {TEMPLATE}"));
    let cron = |spec: &str| {
        let job = format!("schedule: '0 0 1 1 *', jobTemplate: {{spec: {{{spec} {TEMPLATE}}}}}");
        object("batch/v1", "CronJob", &job)
    };
    let should = |remedy: &str| format!("it should have 5 pods of 8912Mi; 0 run, and 2 more fit now; remedy: {remedy}");
    let run = "a run needs 5 pods at a time of 8912Mi; 0 run, and 2 more fit now; remedy: parallelism: 2";
    for (workload, told) in [
        (set("StatefulSet", "serviceName: s, replicas: 5,"), warning("StatefulSet other", &should("replicas: 2"))),
        (set("ReplicaSet", "replicas: 5,"), warning("ReplicaSet other", &should("replicas: 2"))),
        (job("parallelism: 5,"), warning("Job other", run)),
        (cron("parallelism: 5,"), warning("CronJob other", run)),
        (job("parallelism: 5, completions: 2,"), String::new()),
        (job("parallelism: 5, suspend: true,"), String::new()),
        (cron("parallelism: 2,"), String::new()),
        (set("DaemonSet", ""), String::new()),
    ] {
        assert_eq!(try_on(&cluster, &workload).await, told, "{workload}");
    }

    let nowhere = set("StatefulSet", "serviceName: s, replicas: 1,")
        .replace("spec: {containers", "spec: {nodeSelector: {zone: x}, containers");
    let told = try_on(&cluster, &nowhere).await;
    let kept_off = "no node that has nvidia.com/gpu is one that its pods may land on, so none of them can run; remedy: look at its \
                    nodeSelector, affinity and tolerations, and whether the nodes are cordoned";
    assert_eq!(told, warning("StatefulSet other", kept_off));
    let large = set("StatefulSet", "serviceName: s, replicas: 1,").replace("8Gi", "40Gi");
    let told = try_on(&cluster, &large).await;
    assert!(told.contains("waits until the cluster changes: 41680Mi demanded"), "{told}");

    // A ReplicaSet of somebody else, a workload without GPUs and an exempt namespace are not even sent.
    let before = reviews(&cluster);
    let owner = "ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: x, uid: x, controller: true}]";
    let owned = set("ReplicaSet", "replicas: 5,").replace("namespace: ml}", &format!("namespace: ml, {owner}}}"));
    let plain = set("StatefulSet", "serviceName: s, replicas: 5,")
        .replace("nvidia.com/gpu: 1", "cpu: 1")
        .replace(", annotations: {vramguard.dev/vram: 8Gi}", "");
    let exempt = set("StatefulSet", "serviceName: s, replicas: 5,").replace("namespace: ml", "namespace: kube-system");
    for silent in [owned, plain, exempt] {
        assert_eq!(try_on(&cluster, &silent).await, "", "{silent}");
    }
    assert_eq!(reviews(&cluster), before);
}

#[tokio::test]
async fn a_cron_job_that_runs_counts_with_the_pods_of_its_run() {
    let cluster = cluster().await;
    let cron = |parallelism: u32| {
        format!(
            "{{apiVersion: batch/v1, kind: CronJob, metadata: {{name: nightly, namespace: ml}}, spec: {{schedule: '0 0 1 1 *', \
             concurrencyPolicy: Forbid, jobTemplate: {{spec: {{parallelism: {parallelism}, {TEMPLATE}}}}}}}}}"
        )
    };
    assert_eq!(apply(&cluster, &cron(1)).await, "");
    cluster
        .plane
        .kubectl(&["-n", "ml", "create", "job", "--from=cronjob/nightly", "nightly-29384720"])
        .await
        .expect_success();
    cluster.settles("ml", 1, 0).await;
    let told = try_on(&cluster, &cron(3)).await;
    let what = "a run needs 3 pods at a time of 8912Mi; 1 run, and 1 more fit now; remedy: parallelism: 2";
    assert_eq!(told, warning("CronJob nightly", what));
    cluster.stays_settled("ml", 1, 0, Duration::from_secs(1)).await;
}

/// A definition of LeaderWorkerSets with no more of a schema than a test needs.
const GROUPS: &str = "\
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: leaderworkersets.leaderworkerset.x-k8s.io}
spec:
  group: leaderworkerset.x-k8s.io
  names: {kind: LeaderWorkerSet, listKind: LeaderWorkerSetList, plural: leaderworkersets, singular: leaderworkerset}
  scope: Namespaced
  versions:
    - name: v1
      served: true
      storage: true
      subresources:
        scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas}
      schema:
        openAPIV3Schema:
          type: object
          properties:
            spec: {type: object, x-kubernetes-preserve-unknown-fields: true}
";

fn groups(replicas: u32, pods: &str) -> String {
    format!(
        "{{apiVersion: leaderworkerset.x-k8s.io/v1, kind: LeaderWorkerSet, metadata: {{name: vllm, namespace: ml}}, spec: {{replicas: \
         {replicas}, leaderWorkerTemplate: {{{pods}}}}}}}"
    )
}

#[tokio::test]
async fn a_leader_worker_set_is_told_the_largest_number_of_groups_that_fit() {
    // The entry for LeaderWorkerSets is in force before there is such a resource.
    let cluster =
        GuardedCluster::start(&[GpuNode::new("gpu-0"), GpuNode::new("gpu-1")], &[("cluster.yaml", ENFORCE)]).await;
    let plane = &cluster.plane;
    plane.kubectl_with_input(&["apply", "-f", "-"], GROUPS).await.expect_success();
    let crd = "crd/leaderworkersets.leaderworkerset.x-k8s.io";
    plane.kubectl(&["wait", "--for=condition=Established", "--timeout=30s", crd]).await.expect_success();

    // Four pods fit: two groups of a leader and a worker.
    let template = |gpu: &str| {
        format!(
            "{{metadata: {{annotations: {{vramguard.dev/vram: {gpu}}}}}, spec: {{containers: [{{name: main, image: none, resources: {{limits: {{nvidia.com/gpu: 1}}}}}}]}}}}"
        )
    };
    let pairs = |replicas| groups(replicas, &format!("size: 2, workerTemplate: {}", template("8Gi")));
    let told = |what: &str| warning("LeaderWorkerSet vllm", what);
    let too_many = "it should have 3 groups with 6 pods of 8912Mi; 0 run, and 4 more fit now; remedy: replicas: 2";
    assert_eq!(apply(&cluster, &pairs(3)).await, told(too_many));
    assert_eq!(reviews(&cluster), 1);
    assert_eq!(apply(&cluster, &pairs(2)).await, "", "fewer groups");
    let leader = format!("size: 2, leaderTemplate: {}, workerTemplate: {}", template("12Gi"), template("8Gi"));
    let leaders = "it should have 3 groups with 3 leaders of 13008Mi; 0 run, and 2 more fit now; remedy: replicas: 2  # or fewer: the other \
                   pods of each group need room too";
    assert_eq!(try_on(&cluster, &groups(3, &leader)).await, told(leaders));
    let scaled = autoscaler("vllm", 9)
        .replace("apps/v1, kind: Deployment", "leaderworkerset.x-k8s.io/v1, kind: LeaderWorkerSet");
    let too_far = "HorizontalPodAutoscaler \"agents\" may scale it to 9 groups with 18 pods of 8912Mi; 0 run, and 4 more fit now; remedy: \
                   maxReplicas: 2";
    assert_eq!(try_on(&cluster, &scaled).await, told(too_far));

    // Its StatefulSets, a set without a GPU and one that is no set at all are not even sent.
    let before = reviews(&cluster);
    let made = |owner: &str| {
        let owner =
            format!("ownerReferences: [{{apiVersion: v1, kind: {owner}, name: vllm, uid: x, controller: true}}]");
        format!(
            "{{apiVersion: apps/v1, kind: StatefulSet, metadata: {{name: vllm, namespace: ml, {owner}}}, spec: {{replicas: 9, serviceName: \
             s, selector: {{matchLabels: {{app: other}}}}, {}}}}}",
            TEMPLATE.replace("restartPolicy: Never, ", "")
        )
    };
    let plain = pairs(9).replace("nvidia.com/gpu: 1", "cpu: 1").replace("annotations: {vramguard.dev/vram: 8Gi}", "");
    for silent in
        [made("LeaderWorkerSet"), made("Pod"), plain, groups(9, "").replace("leaderWorkerTemplate: {}", "x: 1")]
    {
        assert_eq!(try_on(&cluster, &silent).await, "", "{silent}");
    }
    assert_eq!(reviews(&cluster), before);
    assert_ne!(try_on(&cluster, &made("Operator")).await, "", "an operator's StatefulSet is one like any other");

    // The audit reads the set with the rights of an administrator, and says the same.
    plane.kubectl_with_input(&["replace", "-f", "-"], &pairs(3)).await.expect_success();
    let mut command = Command::new(env!("CARGO_BIN_EXE_vramguard"));
    command.args(["audit", "--output", "json"]).env("KUBECONFIG", plane.admin_kubeconfig());
    let audit = run(&mut command, Duration::from_secs(120));
    let report: Value = serde_json::from_str(&audit.stdout).unwrap_or_else(|error| panic!("{error}: {}", audit.stderr));
    let workload = json!({ "kind": "LeaderWorkerSet", "namespace": "ml", "name": "vllm", "demandMib": 8912, "replicas": 6,
        "maxReplicas": 6, "fitsMore": 4 });
    assert_eq!(report["workloads"], json!([workload]));
    let found = report["findings"]
        .as_array()
        .expect("findings")
        .iter()
        .find(|finding| finding["reason"] == "ReplicasExceedRoom");
    assert_eq!(found.expect("a finding")["remedy"], "replicas: 2");
}
