//! A policy of each field, written as a file and then as a resource: webhooks, `explain`, `audit`, ResourceQuota and the
//! published amount give the same answer.

use k8s_openapi::api::core::v1::ResourceQuota;
use kube::Api;
use kube::api::{DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::json;

use super::*;
use crate::support::GpuNode;
use crate::support::guard::configurations_reread;
use crate::support::objects::{VRAM, cluster_policy};

/// What shows that a field has an effect: this part of the answers differs from those without the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    /// What becomes of new pods.
    Pods,
    /// The amount that the node publishes.
    Published,
    /// The ResourceQuota of the namespace.
    Quota,
    /// `explain` alone: the field matters while pods start.
    Explained,
}

/// A policy that sets one field, with what the field needs to have an effect.
struct Policy {
    field: &'static str,
    /// Fields of the ClusterVramPolicy, in flow style.
    cluster: &'static str,
    /// `spec` of the VramPolicy, in flow style.
    namespace: Option<&'static str>,
    shown: Shown,
}

const fn policy(field: &'static str, shown: Shown, cluster: &'static str, namespace: Option<&'static str>) -> Policy {
    Policy { field, cluster, namespace, shown }
}

/// Every field of both documents. `each_field_has_a_policy` compares the list with the settings that `explain` prints.
const POLICIES: [Policy; 20] = [
    policy("mode", Shown::Pods, "", Some("{mode: \"Off\"}")),
    policy("onShortfall", Shown::Pods, "", Some("{onShortfall: Deny}")),
    policy("declaration.required", Shown::Pods, "", Some("{declaration: {required: true}}")),
    policy("declaration.onUnaccounted", Shown::Pods, "", Some("{declaration: {onUnaccounted: Warn}}")),
    policy("declaration.default", Shown::Pods, "", Some("{declaration: {default: 3Gi}}")),
    policy("declaration.min", Shown::Pods, "declaration: {min: 1Gi}", Some("{declaration: {min: 9Gi}}")),
    policy("declaration.max", Shown::Pods, "declaration: {max: 20Gi}", Some("{declaration: {max: 5Gi}}")),
    policy("quota", Shown::Quota, "quota: 40Gi", Some("{quota: 15Gi}")),
    policy("models", Shown::Pods, "models: {small: 2Gi}", Some("{models: {small: 3Gi, large: 9Gi}}")),
    policy("environment.framework", Shown::Pods, "", Some("{environment: {framework: None}}")),
    policy(
        "reroute.pools",
        Shown::Pods,
        "reroute: {pools: [{matchLabels: {nvidia.com/gpu.product: NVIDIA-L40S-SHARED}}]}",
        Some("{onShortfall: Reroute}"),
    ),
    policy("perProcessOverhead", Shown::Pods, "perProcessOverhead: 1Gi", None),
    policy("headroom.percent", Shown::Published, "headroom: {percent: 20}", None),
    policy("headroom.minimum", Shown::Published, "headroom: {minimum: 3Gi}", None),
    policy("headroom.driverReserve", Shown::Published, "headroom: {driverReserve: 0}", None),
    policy("overcommit", Shown::Published, "overcommit: \"1.5\"", None),
    policy("startup.serializePerGpu", Shown::Explained, "startup: {serializePerGpu: true}", None),
    policy("exemptNamespaces", Shown::Pods, "exemptNamespaces: [kube-system, ml]", None),
    policy("locked", Shown::Explained, "locked: [declaration.required]", Some("{declaration: {required: true}}")),
    // The last one: it is looser than the others in this.
    policy("environment.onConflict", Shown::Pods, "", Some("{environment: {onConflict: Warn}}")),
];

const BASE: Policy = policy("", Shown::Explained, "", None);

impl Policy {
    fn documents(&self) -> String {
        let namespace = self.namespace.map(|spec| of_namespace("ml", spec));
        // Each of them refuses values of the user's own: what a looser policy tolerates, the next one does for two minutes.
        let cluster =
            cluster_policy(&format!("{{mode: Enforce, environment: {{onConflict: Deny}}, {}}}", self.cluster));
        [Some(cluster), namespace].into_iter().flatten().collect::<Vec<_>>().join("---\n")
    }
}

/// Pods whose creation shows what the fields do.
fn probes() -> Vec<Value> {
    let pod = |name: &str, annotations: Value, image: &str, env: Value, resource: &str| {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "ml", "annotations": annotations},
            "spec": {"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-A10-SHARED"},
                "containers": [{"name": "main", "image": image, "env": env, "resources": {"limits": {resource: "1"}}}]}})
    };
    let gpu = "nvidia.com/gpu";
    let declared = json!({"vramguard.dev/vram": "8Gi"});
    vec![
        pod("declared", declared.clone(), "none", json!([]), gpu),
        pod("undeclared", json!({}), "none", json!([]), gpu),
        pod("model", json!({"vramguard.dev/model": "small"}), "none", json!([]), gpu),
        pod("torch", declared.clone(), "pytorch/pytorch:2.9.0-cuda12.8-cudnn9-runtime", json!([]), gpu),
        pod(
            "conflict",
            declared.clone(),
            "none",
            json!([{"name": "CUDA_DEVICE_ORDER", "value": "FASTEST_FIRST"}]),
            gpu,
        ),
        pod("unaccounted", declared, "none", json!([]), "nvidia.com/gpu.unknown"),
        pod("larger-than-free", json!({"vramguard.dev/vram": "20Gi"}), "none", json!([]), gpu),
    ]
}

/// Removes what differs between two runs or names where a policy is written.
fn without_places(value: &mut Value) {
    const PLACES: [&str; 8] =
        ["source", "generatedAt", "notes", "gaps", "uid", "creationTimestamp", "managedFields", "resourceVersion"];
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !PLACES.contains(&name.as_str()));
            fields.values_mut().for_each(without_places);
        }
        Value::Array(items) => items.iter_mut().for_each(without_places),
        _ => {}
    }
}

/// What becomes of each probe when it is created, without keeping it.
async fn created(cluster: &GuardedCluster) -> Value {
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Pod"));
    let pods: Api<DynamicObject> = Api::namespaced_with(cluster.plane.client(), "ml", &kind);
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let create = async |pod: Value| {
        let name = pod["metadata"]["name"].as_str().expect("a name").to_owned();
        let pod: DynamicObject = serde_json::from_value(pod).expect("a pod");
        let answer = match pods.create(&dry_run, &pod).await {
            Ok(pod) => json!({"annotations": pod.metadata.annotations, "spec": pod.data["spec"]}),
            Err(error) => json!({"refused": error.to_string()}),
        };
        (name, answer)
    };
    let answers = futures::future::join_all(probes().into_iter().map(create)).await;
    Value::Object(answers.into_iter().collect())
}

/// What the cluster does under the policies in force.
async fn effects(cluster: &GuardedCluster) -> anyhow::Result<Value> {
    let quotas: Api<ResourceQuota> = Api::namespaced(cluster.plane.client(), "ml");
    let mut all = json!({
        "pods": created(cluster).await,
        "published": [
            cluster.plane.published("a10-0", VRAM).await?,
            cluster.plane.published("l40s-0", VRAM).await?,
        ],
        "quota": quotas.get_opt("vramguard").await?.and_then(|quota| quota.spec),
    });
    without_places(&mut all);
    Ok(all)
}

/// What the commands say about the policies in force. `folder` has them if they are files.
async fn reports(cluster: &GuardedCluster, folder: Option<&str>) -> anyhow::Result<Value> {
    let folder: Vec<&str> = folder.into_iter().flat_map(|folder| ["--policies", folder]).collect();
    let json =
        |arguments: &[&str]| serde_json::from_str::<Value>(&vramguard(cluster, &[arguments, &folder[..]].concat()));
    let probe = cluster.plane.folder().join("probe.json");
    std::fs::write(&probe, probes()[0].to_string())?;
    let probe = probe.to_str().context("a plain path")?;
    let mut all = json!({
        "explain": json(&["explain", "-n", "ml", "--live", "--pod", probe, "--output", "json"])?,
        "audit": json(&["audit", "--output", "json", "--fail-on", "never"])?,
    });
    without_places(&mut all);
    Ok(all)
}

fn part(answers: &Value, shown: Shown) -> &Value {
    match shown {
        Shown::Pods => &answers["pods"],
        Shown::Published => &answers["published"],
        Shown::Quota => &answers["quota"],
        Shown::Explained => &answers["nothing"],
    }
}

/// Fields in which two documents differ, as `path: one | other`.
fn differences(path: &str, one: &Value, other: &Value, found: &mut Vec<String>) {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            let names: std::collections::BTreeSet<&String> = one.keys().chain(other.keys()).collect();
            for name in names {
                let of = |fields: &serde_json::Map<String, Value>| fields.get(name).cloned().unwrap_or(Value::Null);
                differences(&format!("{path}.{name}"), &of(one), &of(other), found);
            }
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            for (index, (one, other)) in one.iter().zip(other).enumerate() {
                differences(&format!("{path}[{index}]"), one, other, found);
            }
        }
        _ if one != other => found.push(format!("{path}: {one} | {other}")),
        _ => {}
    }
}

#[tokio::test]
async fn a_policy_of_each_field_gives_one_answer_as_a_file_and_as_a_resource() {
    let l40s = GpuNode { memory_mib: 46_068, replicas: 2, product: "NVIDIA-L40S".to_owned(), ..GpuNode::new("l40s-0") };
    let nodes = [GpuNode::new("a10-0"), l40s];
    let mut cluster = GuardedCluster::start(&nodes, &[("policies.yaml", &BASE.documents())]).await;
    // The commands read it as the policy file of the cluster.
    let map = ["-n", "vramguard-system", "delete", "configmap", "vramguard-policies"];
    cluster.plane.kubectl(&map).await.expect_success();
    // A pod that holds most of the A10, so that the fields about shortfall matter.
    let holder = crate::support::objects::gpu_pod(
        "ml",
        "holder",
        "{vramguard.dev/vram: 12Gi}",
        "nodeSelector: {kubernetes.io/hostname: a10-0},",
    );
    cluster.plane.apply(&holder).await;
    cluster.bound("ml", "holder").await;
    let folder = cluster.guard.policies.to_str().expect("a plain path").to_owned();
    let base = effects(&cluster).await.expect("the effects of the base policy");
    let base_reports = reports(&cluster, Some(&folder)).await.expect("the reports under the base policy");

    let mut as_files = Vec::new();
    for policy in &POLICIES {
        cluster.guard.policy("policies.yaml", &policy.documents()).await;
        if ["mode", "exemptNamespaces"].contains(&policy.field) {
            configurations_reread().await;
        }
        let effects = eventually(&format!("{} to have an effect", policy.field), PATIENCE, async || {
            let effects = effects(&cluster).await?;
            let is_shown =
                policy.shown == Shown::Explained || part(&effects, policy.shown) != part(&base, policy.shown);
            ensure!(is_shown, "as without it: {}", part(&effects, policy.shown));
            for other in [Shown::Published, Shown::Quota].into_iter().filter(|other| *other != policy.shown) {
                ensure!(part(&effects, other) == part(&base, other), "{other:?} of the policy before");
            }
            Ok(effects)
        })
        .await;
        let reports = reports(&cluster, Some(&folder)).await.expect("reports");
        let settings = |reports: &Value| reports["explain"]["policy"].clone();
        assert_ne!(settings(&reports), settings(&base_reports), "{} is not explained", policy.field);
        as_files.push((effects, reports));
    }

    // A server that starts remembers no earlier policy.
    cluster.guard.server.stop();
    std::fs::write(cluster.guard.policies.join("policies.yaml"), "# none\n").expect("a policy file");
    cluster.guard.server.start();
    cluster.guard.ready(&cluster.plane).await;
    for (policy, (expected_effects, expected_reports)) in POLICIES.iter().zip(as_files) {
        if policy.namespace.is_none() {
            let delete = ["delete", "vrampolicy", "default", "-n", "ml", "--ignore-not-found"];
            cluster.plane.kubectl(&delete).await.expect_success();
        }
        cluster.plane.apply(&policy.documents()).await;
        let what = format!("one answer about {}", policy.field);
        eventually(&what, PATIENCE, async || {
            let mut found = Vec::new();
            differences("", &expected_effects, &effects(&cluster).await?, &mut found);
            ensure!(found.is_empty(), "file | resource\n{}{}", found.join("\n"), cluster.guard.server.log_tail());
            Ok(())
        })
        .await;
        eventually(&what, PATIENCE, async || {
            let mut found = Vec::new();
            differences("", &expected_reports, &reports(&cluster, None).await?, &mut found);
            ensure!(found.is_empty(), "file | resource\n{}", found.join("\n"));
            Ok(())
        })
        .await;
    }
}

#[test]
fn each_field_has_a_policy() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vramguard"));
    let explained = run(command.args(["explain", "-n", "ml", "--output", "json"]), PATIENCE).expect_success();
    let explained: Value = serde_json::from_str(&explained).expect("JSON");
    let settings = explained["policy"].as_array().expect("settings");
    let fields: Vec<&str> = settings.iter().filter_map(|setting| setting["field"].as_str()).collect();
    let tested: Vec<&str> = POLICIES.iter().map(|policy| policy.field).collect();
    let missing: Vec<&&str> = fields.iter().filter(|field| !tested.contains(field)).collect();
    assert!(missing.is_empty() && fields.len() == tested.len(), "not tested: {missing:?}");
}
