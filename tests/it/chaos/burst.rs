//! The workload of a run, by seed: nodes of every accounting mode, pods of every size, and what becomes of them.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::serde::de::DeserializeOwned;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::hardware::{HANDOUT, Handout, SIZES};
use super::seed::Chance;
use crate::support::{ControlPlane, GpuNode, Patience, SECOND_SCHEDULER};

/// Label that keeps pods with an annotation for a GPU on nodes that honour it, and all others off them.
const POOL: &str = "chaos.test/pool";
/// Namespace whose pods are pinned.
pub const PINNED: &str = "pinned";
/// Namespace of the others.
pub const OPEN: &str = "open";
/// Priority class of pods that preempt. They keep to nodes of one GPU: kube-scheduler takes a victim's request for room of the
/// node, which on nodes of several GPUs it is not, so there it would evict one after the other in vain.
const URGENT: &str = "urgent";
/// Requests in flight while the workload is created.
const AT_ONCE: usize = 16;
/// For an attempt that fails while parts of the cluster are away.
const INSIST: Duration = Duration::from_secs(60);

/// 24 GiB, 48 GiB.
const SIZES_MIB: [u64; 2] = [24_576, 49_152];

/// Twenty nodes of four GPUs in every accounting mode, and four of one GPU.
pub fn nodes() -> Vec<GpuNode> {
    let groups = [
        (Handout::Unverified, 6, "open"),
        (Handout::Distributed, 4, "open"),
        (Handout::Packed, 4, "open"),
        (Handout::Pinned, 6, "pinned"),
        (Handout::Single, 4, "open"),
    ];
    let mut nodes = Vec::new();
    for (handout, count, pool) in groups {
        for number in 0..count {
            let mut node = GpuNode::new(&format!("{}-{number}", handout.name().to_lowercase()));
            node.gpus = if handout == Handout::Single { 1 } else { 4 };
            node.memory_mib = SIZES_MIB[number % 2];
            node.labels.insert(HANDOUT.into(), handout.name().into());
            node.labels.insert(POOL.into(), pool.into());
            // GPUs of two sizes, which labels cannot say: the agent does. The label's size is the smaller one.
            let is_verified = !matches!(handout, Handout::Single | Handout::Unverified);
            if is_verified && number == 2 {
                let [small, large] = SIZES_MIB;
                node.labels.insert(SIZES.into(), format!("{small}.{large}.{small}.{large}"));
            }
            nodes.push(node);
        }
    }
    nodes
}

/// Policies, namespaces and priorities of the workload.
pub fn policies() -> [(&'static str, String); 2] {
    let document = |kind: &str, metadata: &str, spec: &str| {
        format!("apiVersion: vramguard.dev/v1alpha1\nkind: {kind}\nmetadata: {metadata}\nspec: {spec}\n")
    };
    let pin =
        document("VramPolicy", &format!("{{name: p, namespace: {PINNED}}}"), "{environment: {visibleDevices: Pin}}");
    [("cluster.yaml", document("ClusterVramPolicy", "{name: cluster}", "{mode: Enforce}")), ("pinned.yaml", pin)]
}

/// Namespaces and priority classes.
pub async fn prepare(plane: &ControlPlane) {
    for namespace in [OPEN, PINNED] {
        plane.kubectl(&["create", "namespace", namespace]).await.expect_success();
    }
    for (name, value, policy) in
        [("low", 100, "Never"), ("high", 1000, "Never"), (URGENT, 1000, "PreemptLowerPriority")]
    {
        let class = json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value,
            "preemptionPolicy": policy,
        });
        plane.apply(&class.to_string()).await;
    }
}

/// What is created, and what becomes of it midway.
#[derive(Debug, Clone)]
pub struct Burst {
    pub bare: Vec<Value>,
    pub deployments: Vec<Value>,
    /// Bare pods, by namespace and name, that are deleted midway.
    deleted: Vec<(String, String)>,
    /// Bare pods that end by themselves, if they run by then.
    finished: Vec<(String, String)>,
    /// Deployments that are scaled: to so many.
    scaled: Vec<(String, String, u64)>,
}

impl Burst {
    /// So many pods, a third of them bare.
    pub fn of(chance: &mut Chance, pods: u64) -> Burst {
        let mut burst = Burst {
            bare: Vec::new(),
            deployments: Vec::new(),
            deleted: Vec::new(),
            finished: Vec::new(),
            scaled: Vec::new(),
        };
        let mut left = pods;
        for number in 0.. {
            if left == 0 {
                break;
            }
            let namespace = if chance.percent(30) { PINNED } else { OPEN };
            let (name, template) = (format!("p-{number}"), template(chance, namespace));
            if chance.percent(60) {
                left -= 1;
                match chance.between(1, 100) {
                    1..=20 => burst.deleted.push((namespace.into(), name.clone())),
                    21..=30 => burst.finished.push((namespace.into(), name.clone())),
                    _ => {}
                }
                burst.bare.push(pod(namespace, &name, template));
            } else {
                let replicas = chance.between(2, 8).min(left);
                left -= replicas;
                if chance.percent(25) {
                    let to = chance.between(0, replicas + 1);
                    burst.scaled.push((namespace.into(), name.clone(), to));
                }
                burst.deployments.push(deployment(namespace, &name, replicas, template));
            }
        }
        chance.shuffle(&mut burst.bare);
        burst
    }

    /// Creates all of it; what is refused because nobody answers is tried again, as users and controllers do.
    pub async fn create(&self, client: &Client) {
        let places = std::sync::Arc::new(Semaphore::new(AT_ONCE));
        let mut tasks = JoinSet::new();
        for object in self.deployments.iter().chain(&self.bare).cloned() {
            let place = places.clone().acquire_owned().await.expect("it is never closed");
            let client = client.clone();
            tasks.spawn(async move {
                let _place = place;
                if object["kind"] == "Pod" {
                    create::<Pod>(&client, object).await;
                } else {
                    create::<Deployment>(&client, object).await;
                }
            });
        }
        while let Some(created) = tasks.join_next().await {
            created.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()));
        }
    }

    /// Frees room: deletes, finishes and scales what the seed chose.
    pub async fn free_some(&self, client: &Client) {
        for (namespace, name) in &self.deleted {
            let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
            let parameters = DeleteParams::default().grace_period(0);
            let delete = || async {
                match pods.delete(name, &parameters).await {
                    // Preempted before.
                    Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                    other => other.map(|_| ()),
                }
            };
            insist(delete).await;
        }
        for (namespace, name) in &self.finished {
            let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
            insist(|| finish(&pods, name)).await;
        }
        for (namespace, name, replicas) in &self.scaled {
            let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
            let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
            let parameters = PatchParams::default();
            insist(|| async { deployments.patch(name, &parameters, &patch).await.map(|_| ()) }).await;
        }
    }

    /// How many pods there are to be in the end, preempted bare ones not counted.
    pub fn describe(&self) -> String {
        let replicas: u64 = self.deployments.iter().filter_map(|d| d["spec"]["replicas"].as_u64()).sum();
        format!(
            "{} bare pods, {} Deployments of {replicas}; midway {} deleted, {} finished, {} scaled",
            self.bare.len(),
            self.deployments.len(),
            self.deleted.len(),
            self.finished.len(),
            self.scaled.len()
        )
    }
}

/// A pod that runs has done its work.
async fn finish(pods: &Api<Pod>, name: &str) -> kube::Result<()> {
    let Some(pod) = pods.get_opt(name).await? else { return Ok(()) };
    if pod.spec.is_none_or(|spec| spec.node_name.is_none()) {
        return Ok(());
    }
    let patch = Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
    match pods.patch_status(name, &PatchParams::default(), &patch).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(|_| ()),
    }
}

async fn create<K>(client: &Client, object: Value)
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + k8s_openapi::serde::Serialize,
{
    let namespace = object["metadata"]["namespace"].as_str().expect("the workload has namespaces");
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let object: K = serde_json::from_value(object.clone()).expect("the workload is well-formed");
    let parameters = PostParams::default();
    let attempt = || async {
        match api.create(&parameters, &object).await {
            // The answer to an earlier attempt was lost.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            other => other.map(|_| ()),
        }
    };
    insist(attempt).await;
}

/// Repeats what fails while parts of the cluster are away.
async fn insist<F: Future<Output = kube::Result<()>>>(mut attempt: impl FnMut() -> F) {
    let mut patience = Patience::of(INSIST);
    while let Err(error) = attempt().await {
        assert!(!patience.is_over(), "still refused after {patience}: {error}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Metadata (without a name) and spec of a pod.
fn template(chance: &mut Chance, namespace: &str) -> Value {
    // Many small, some large, a few that fit nowhere.
    let mib = match chance.between(1, 100) {
        1..=55 => chance.between(4, 20) * 256,
        56..=80 => chance.between(20, 48) * 256,
        81..=96 => chance.between(40, 80) * 256,
        _ => 60 * 1024,
    };
    let second = chance.percent(50);
    let priority = match chance.between(1, 100) {
        1..=20 => Some("low"),
        21..=30 => Some("high"),
        31..=34 if namespace == OPEN => Some(URGENT),
        _ => None,
    };
    let two = chance.percent(5);
    let names: &[&str] = if two { &["main", "second"] } else { &["main"] };
    let container =
        |name: &&str| json!({"name": name, "image": "none", "resources": {"limits": {"nvidia.com/gpu": "1"}}});
    let mut containers: Vec<Value> = names.iter().map(container).collect();
    if chance.percent(20) {
        containers.push(json!({"name": "beside", "image": "none"}));
    }
    let annotations: BTreeMap<String, String> = if two {
        names.iter().map(|name| (format!("vramguard.dev/vram.{name}"), format!("{}Mi", mib.min(4096) / 2))).collect()
    } else {
        BTreeMap::from([("vramguard.dev/vram".to_owned(), format!("{mib}Mi"))])
    };
    let mut spec =
        json!({"terminationGracePeriodSeconds": 0, "containers": containers, "nodeSelector": {POOL: namespace}});
    if second {
        spec["schedulerName"] = json!(SECOND_SCHEDULER);
    }
    if let Some(priority) = priority {
        spec["priorityClassName"] = json!(priority);
        if priority == URGENT {
            spec["nodeSelector"][HANDOUT] = json!(Handout::Single.name());
        }
    }
    json!({"metadata": {"annotations": annotations}, "spec": spec})
}

fn pod(namespace: &str, name: &str, mut template: Value) -> Value {
    template["apiVersion"] = json!("v1");
    template["kind"] = json!("Pod");
    template["metadata"]["name"] = json!(name);
    template["metadata"]["namespace"] = json!(namespace);
    template
}

fn deployment(namespace: &str, name: &str, replicas: u64, mut template: Value) -> Value {
    template["metadata"]["labels"] = json!({"app": name});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template},
    })
}

/// Deletes two of three bound pods; returns how many.
pub async fn delete_bound(client: &Client, chance: &mut Chance) -> usize {
    let mut deleted = 0;
    for namespace in [OPEN, PINNED] {
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let list = pods.list(&ListParams::default()).await.expect("pods can be listed");
        for pod in list.items.into_iter().filter(|pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some())) {
            if chance.percent(67) {
                let name = pod.metadata.name.expect("a pod has a name");
                // Somebody else may be faster: a preemption, a ReplicaSet that is scaled down.
                match pods.delete(&name, &DeleteParams::default().grace_period(0)).await {
                    Ok(_) => deleted += 1,
                    Err(kube::Error::Api(status)) if status.is_not_found() => {}
                    Err(error) => panic!("{namespace}/{name} can be deleted: {error}"),
                }
            }
        }
    }
    deleted
}
