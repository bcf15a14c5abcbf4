//! The workload of a run, from its seed: nodes of every accounting mode, pods of every size, and later changes to them.

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

use super::hardware::{AllocationPolicy, HANDOUT, SIZES};
use super::seed::Chance;
use crate::support::objects::{ENFORCE, node_of};
use crate::support::{ControlPlane, GpuNode, Patience, SECOND_SCHEDULER};

/// Label of nodes, which pods select: nodes whose agent steers the device plugin, and the others.
const POOL: &str = "chaos.test/pool";
/// Namespace of the pods for nodes whose agent steers the device plugin.
pub(super) const STEERED: &str = "steered";
/// Namespace of the other pods.
pub(super) const OPEN: &str = "open";
/// Priority class of pods that preempt, which select nodes with one GPU.
///
/// kube-scheduler counts the request of a victim as free VRAM of the node. With several GPUs that VRAM may be split, so
/// kube-scheduler would evict one pod after the other without success.
const URGENT: &str = "urgent";
/// Number of concurrent requests while the workload is created.
const AT_ONCE: usize = 16;
/// Limit of the retries of a request that fails during a fault.
const INSIST: Duration = Duration::from_secs(60);

/// GPU memory of the nodes: 24 GiB and 48 GiB.
const SIZES_MIB: [u64; 2] = [24_576, 49_152];

/// Twenty nodes with four GPUs, of every accounting mode, and four nodes with one GPU.
pub(super) fn nodes() -> Vec<GpuNode> {
    let groups = [
        (AllocationPolicy::Unverified, 6, "open"),
        (AllocationPolicy::Distributed, 4, "open"),
        (AllocationPolicy::Packed, 4, "open"),
        (AllocationPolicy::Steered, 6, "steered"),
        (AllocationPolicy::Single, 4, "open"),
    ];
    let mut nodes = Vec::new();
    for (allocation_policy, count, pool) in groups {
        for number in 0..count {
            let mut node = GpuNode::new(&format!("{}-{number}", allocation_policy.name().to_lowercase()));
            node.gpus = if allocation_policy == AllocationPolicy::Single { 1 } else { 4 };
            node.memory_mib = SIZES_MIB[number % 2];
            node.labels.insert(HANDOUT.into(), allocation_policy.name().into());
            node.labels.insert(POOL.into(), pool.into());
            // The label has the smaller of two sizes, because GPU Feature Discovery knows only one. The agent reports both.
            let is_verified = !matches!(allocation_policy, AllocationPolicy::Single | AllocationPolicy::Unverified);
            if is_verified && number == 2 {
                let [small, large] = SIZES_MIB;
                node.labels.insert(SIZES.into(), format!("{small}.{large}.{small}.{large}"));
            }
            nodes.push(node);
        }
    }
    nodes
}

/// File names and texts of the policies.
pub(super) fn policies() -> [(&'static str, String); 1] {
    [("cluster.yaml", ENFORCE.to_owned())]
}

/// Creates the namespaces and priority classes of the workload.
pub(super) async fn prepare(plane: &ControlPlane) {
    for namespace in [OPEN, STEERED] {
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

/// The objects of a workload, and the changes to them midway.
#[derive(Debug, Clone)]
pub(super) struct Burst {
    pub bare: Vec<Value>,
    pub deployments: Vec<Value>,
    /// Namespace and name of bare pods that are deleted midway.
    deleted: Vec<(String, String)>,
    /// Namespace and name of bare pods that succeed midway, if they run.
    finished: Vec<(String, String)>,
    /// Namespace, name and new replicas of Deployments that are scaled midway.
    scaled: Vec<(String, String, u64)>,
}

impl Burst {
    /// Draws a workload of `pods` pods.
    pub(super) fn of(chance: &mut Chance, pods: u64) -> Burst {
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
            let namespace = if chance.percent(30) { STEERED } else { OPEN };
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

    /// Creates all objects. A request that fails during a fault is retried, as by users and controllers.
    pub(super) async fn create(&self, client: &Client) {
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

    /// Deletes, finishes and scales the chosen objects, which frees VRAM.
    pub(super) async fn free_some(&self, client: &Client) {
        for (namespace, name) in &self.deleted {
            let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
            let parameters = DeleteParams::default().grace_period(0);
            let delete = || async {
                match pods.delete(name, &parameters).await {
                    // The pod was preempted before.
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

    /// The numbers of this workload, for the log.
    pub(super) fn describe(&self) -> String {
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

/// Sets a bound pod to Succeeded.
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
            // An earlier attempt succeeded, and its answer was lost.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            other => other.map(|_| ()),
        }
    };
    insist(attempt).await;
}

/// Retries a request that fails during a fault.
async fn insist<F: Future<Output = kube::Result<()>>>(mut attempt: impl FnMut() -> F) {
    let mut patience = Patience::of(INSIST);
    while let Err(error) = attempt().await {
        assert!(!patience.is_over(), "still refused after {patience}: {error}");
        tokio::time::sleep(Duration::from_millis(200)).await; // between two attempts
    }
}

/// Draws metadata without a name, and spec of a pod.
fn template(chance: &mut Chance, namespace: &str) -> Value {
    // Many pods are small, some are large, and a few fit on no node.
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
            spec["nodeSelector"][HANDOUT] = json!(AllocationPolicy::Single.name());
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

/// Names of pods that no scheduler binds. Any two of them overcommit the GPU of [`SMALL_NODE`].
const UNSCHEDULED: [&str; 2] = ["unscheduled-0", "unscheduled-1"];
/// A node with one GPU of 24 GiB.
const SMALL_NODE: &str = "single-0";

/// Creates pods that wait until [`bind_unscheduled`] binds them.
pub(super) async fn create_unscheduled(client: &Client) {
    for name in UNSCHEDULED {
        let container = json!({"name": "main", "image": "none", "resources": {"limits": {"nvidia.com/gpu": "1"}}});
        let spec = json!({
            "schedulerName": "nobody", "terminationGracePeriodSeconds": 0, "nodeSelector": {POOL: OPEN},
            "containers": [container],
        });
        let template = json!({"metadata": {"annotations": {"vramguard.dev/vram": "14Gi"}}, "spec": spec});
        create::<Pod>(client, pod(OPEN, name, template)).await;
    }
}

/// Binds the pods of [`create_unscheduled`] to a GPU that cannot hold both.
pub(super) async fn bind_unscheduled(client: &Client) {
    for name in UNSCHEDULED {
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": SMALL_NODE},
        });
        let pods: Api<Pod> = Api::namespaced(client.clone(), OPEN);
        let bound = pods.create_subresource::<Value, Value>("binding", name, &PostParams::default(), &binding).await;
        bound.unwrap_or_else(|error| panic!("{name} can be bound while nobody guards: {error}"));
    }
}

/// Deletes about two of three bound pods, and returns how many.
pub(super) async fn delete_bound(client: &Client, chance: &mut Chance) -> usize {
    let mut deleted = 0;
    for namespace in [OPEN, STEERED] {
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let list = pods.list(&ListParams::default()).await.expect("pods can be listed");
        for pod in list.items.into_iter().filter(|pod| node_of(pod).is_some()) {
            if chance.percent(67) {
                let name = pod.metadata.name.expect("a pod has a name");
                // A preemption or a ReplicaSet may have deleted the pod before.
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
