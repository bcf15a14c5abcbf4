//! Runs the case files through the binding guard, on a real control plane.
//!
//! The guard reads the pod and writes the node's ledger through the API. So an API server that holds the cluster of
//! the case asks the guard.
//!
//! A case is used here if it expects something about a node and its pod is created. The guard is asked about each node
//! of the case.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use serde_json::{Value, json};
use vramguard::k8s::case::{Bound, Case, Expected, Suite};
use vramguard::k8s::gpu_ledger::GpuLedger;
use vramguard::k8s::simulation::Simulation;

use super::suites;
use crate::guard::Guard;
use crate::support::{Component, ControlPlane, GpuNode, eventually};

const PATIENCE: Duration = Duration::from_secs(30);
/// The prefix that the API server adds to the message of a refusal.
const DENIED: &str = "admission webhook \"bindings.vramguard.dev\" denied the request: ";

#[tokio::test]
async fn the_binding_guard_answers_every_case_as_the_core_does() {
    let plane = ControlPlane::start().await;
    plane.stop_component(Component::Scheduler); // the test binds
    let mut asked = 0;
    for (path, suite) in suites() {
        let of_nodes = |case: &&Case| !case.expect.filter.is_empty() || !case.expect.bind.is_empty();
        let created = |case: &&Case| case.expect.verdict == Expected::Allow;
        let cases: Vec<&Case> = suite.cases.iter().filter(of_nodes).filter(created).collect();
        if cases.is_empty() {
            continue;
        }
        let played = Played::start(&plane, &suite).await;
        for case in cases {
            let by_core = case.play(&played.simulation).expect("checked in cases").bind;
            for (node, answer) in &by_core {
                let of = format!("{}: {}: {node}", path.display(), case.name);
                played.expect_bind(case, node, answer, &of).await;
            }
            asked += by_core.len();
            played.remove(&case.pod).await;
        }
        played.end().await;
    }
    assert!(asked > 20, "{asked}");
}

/// The cluster of a suite in an API server, under the policies of the suite.
struct Played<'a> {
    plane: &'a ControlPlane,
    suite: &'a Suite,
    simulation: Simulation,
    guard: Guard,
    admin: Client,
    scheduler: Client,
}

impl<'a> Played<'a> {
    async fn start(plane: &'a ControlPlane, suite: &'a Suite) -> Played<'a> {
        for node in of_kind(suite, "Node") {
            add_node(plane, node).await;
        }
        for name in pods(suite).map(namespace).collect::<BTreeSet<_>>() {
            let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
            plane.apply(&object.to_string()).await;
        }
        // The pods of the cluster must exist before the guard starts.
        let admin = plane.client();
        for pod in of_kind(suite, "Pod") {
            eventually("a pod to be created past the guard", PATIENCE, async || create(&admin, pod).await).await;
        }
        let policies = suite.policies.iter().enumerate();
        let policies: Vec<(String, String)> =
            policies.map(|(n, text)| (format!("{n}.yaml"), text.to_string())).collect();
        let policies: Vec<(&str, &str)> = policies.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        let guard = Guard::start(plane, &policies).await;
        let scheduler = scheduler(plane.admin_kubeconfig()).await;
        let simulation = suite.simulation();
        Played { plane, suite, simulation, guard, admin, scheduler }
    }

    /// Deletes what the next suite must not find.
    async fn end(mut self) {
        self.guard.server.stop();
        for kind in ["mutatingwebhookconfiguration", "validatingwebhookconfiguration"] {
            self.plane.kubectl(&["delete", kind, "vramguard"]).await.expect_success();
        }
        for pod in of_kind(self.suite, "Pod") {
            self.remove(pod).await;
        }
        self.plane.kubectl(&["delete", "gpuledgers,nodes", "--all"]).await.expect_success();
        std::fs::remove_dir_all(&self.guard.policies).expect("it was written");
    }

    /// Asserts that the guard answers a binding of the case's pod as the core does, and writes the same annotations.
    async fn expect_bind(&self, case: &Case, node: &str, answer: &Bound, of: &str) {
        let pods = self.pods(&case.pod);
        let name = text(&case.pod, "/metadata/name");
        if pods.get_opt(name).await.expect("pods can be read").is_none() {
            eventually(of, PATIENCE, async || create(&self.admin, &case.pod).await).await;
        }
        self.write_ledgers().await;
        self.sees_the_case().await;
        // The guard's watches lag behind what was written, so this retries. A dry run changes nothing.
        eventually(of, PATIENCE, async || {
            let answered = match (self.bind(case, node, true).await, answer) {
                (Ok(()), Bound::Allow { .. }) => return Ok(()),
                (Ok(()), Bound::Deny { .. }) => "allowed".to_owned(),
                (Err(denied), _) if denied == *answer => return Ok(()),
                (Err(denied), _) => format!("{denied:?}"),
            };
            bail!("{answered}, but the core says {answer:?}{}", self.guard.server.log_tail());
        })
        .await;
        let Bound::Allow { annotations } = answer else { return };
        let before = annotated(&pods.get(name).await.expect("it was created"));
        self.bind(case, node, false).await.unwrap_or_else(|denied| panic!("{of}: {denied:?}"));
        let mut after = annotated(&pods.get(name).await.expect("it was bound"));
        after.retain(|key, _| !before.contains_key(key));
        assert_eq!(after, *annotations, "{of}");
        self.remove(&case.pod).await;
    }

    /// Creates a Binding as kube-scheduler does.
    async fn bind(&self, case: &Case, node: &str, dry_run: bool) -> Result<(), Bound> {
        let name = text(&case.pod, "/metadata/name");
        let binding = json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": name },
            "target": { "apiVersion": "v1", "kind": "Node", "name": node } });
        let pods: Api<Pod> = Api::namespaced(self.scheduler.clone(), namespace(&case.pod));
        let parameters = PostParams { dry_run, ..PostParams::default() };
        let bound: kube::Result<Value> = pods.create_subresource("binding", name, &parameters, &binding).await;
        match bound {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) => {
                let message = status.message.strip_prefix(DENIED).unwrap_or(&status.message).to_owned();
                Err(Bound::Deny { reason: status.reason.clone(), message })
            }
            Err(error) => panic!("{}: {error}", case.name),
        }
    }

    /// Writes the ledgers of the suite as they are at its start, with the UIDs that the API server assigned.
    async fn write_ledgers(&self) {
        let ledgers: Api<GpuLedger> = Api::all(self.admin.clone());
        for object in of_kind(self.suite, "GpuLedger") {
            let mut written = object.to_string();
            for pod in pods(self.suite).filter(|pod| !text(pod, "/metadata/uid").is_empty()) {
                let there = self.pods(pod).get_opt(text(pod, "/metadata/name")).await.expect("pods can be read");
                let Some(real) = there.and_then(|pod| pod.metadata.uid) else { continue };
                let uid = |uid: &str| format!("\"uid\":\"{uid}\"");
                written = written.replace(&uid(text(pod, "/metadata/uid")), &uid(&real));
            }
            let written: Value = serde_json::from_str(&written).expect("it was JSON");
            let (name, parameters) = (text(object, "/metadata/name"), PatchParams::default());
            // The controller creates the ledger, so this retries until it exists.
            eventually("the ledger to be written", PATIENCE, async || {
                let spec = Patch::Merge(json!({ "spec": written["spec"].as_object().cloned().unwrap_or_default() }));
                ledgers.patch(name, &parameters, &spec).await?;
                let mut agent = written["status"]["agent"].clone();
                if agent.is_object() {
                    // An agent that reports again and again, so that it never becomes stale.
                    agent["time"] = json!("2100-01-01T00:00:00Z");
                    let status = Patch::Merge(json!({ "status": { "agent": agent } }));
                    ledgers.patch_status(name, &parameters, &status).await?;
                }
                Ok(())
            })
            .await;
        }
    }

    /// Waits until the server counts the same amount as held of each pool as the core does.
    ///
    /// Then the server has seen all pods that came and went.
    async fn sees_the_case(&self) {
        let cluster = self.simulation.cluster();
        let standings = cluster.node_names().filter_map(|name| Some((name, cluster.node(name)?.usage)));
        let figure = |node: &str, pool: &vramguard::capacity::node::usage::PoolUsage| {
            let labels = format!("node=\"{node}\",resource=\"{}\",mode=\"{}\"", pool.resource, pool.accounting);
            format!("vramguard_pool_held_bytes{{{labels}}} {}", pool.held.bytes())
        };
        let expected: Vec<String> =
            standings.flat_map(|(name, usage)| usage.pools.iter().map(move |pool| figure(name, pool))).collect();
        eventually("the server to see the case", PATIENCE, async || {
            let metrics = self.guard.metrics();
            let missing: Vec<&String> = expected.iter().filter(|line| !metrics.lines().any(|l| l == **line)).collect();
            let said: Vec<&str> = metrics.lines().filter(|line| line.starts_with("vramguard_pool_held")).collect();
            ensure!(missing.is_empty(), "{missing:#?} are not in {said:#?}");
            Ok(())
        })
        .await;
    }

    async fn remove(&self, pod: &Value) {
        let (pods, name) = (self.pods(pod), text(pod, "/metadata/name"));
        eventually("the pod to be gone", PATIENCE, async || {
            // kwok may delete it first.
            _ = pods.delete(name, &DeleteParams::default().grace_period(0)).await;
            ensure!(pods.get_opt(name).await?.is_none(), "it is there");
            Ok(())
        })
        .await;
    }

    fn pods(&self, pod: &Value) -> Api<Pod> {
        Api::namespaced(self.admin.clone(), namespace(pod))
    }
}

/// A client of the administrator that impersonates kube-scheduler.
async fn scheduler(kubeconfig: &Path) -> Client {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("the harness writes readable kubeconfigs");
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let mut config = config.expect("the kubeconfig is complete");
    config.auth_info.impersonate = Some("system:kube-scheduler".to_owned());
    Client::try_from(config).expect("the certificate is readable")
}

/// Adds a node that kwok simulates, with the labels and the capacity of the case.
async fn add_node(plane: &ControlPlane, node: &Value) {
    let name = text(node, "/metadata/name");
    let labels: BTreeMap<String, String> =
        serde_json::from_value(node["metadata"]["labels"].clone()).unwrap_or_default();
    plane.add_gpu_node(&GpuNode { gpus: 0, labels, ..GpuNode::new(name) }).await;
    for (resource, quantity) in node["status"]["capacity"].as_object().into_iter().flatten() {
        plane.publish(name, resource, quantity.as_str()).await;
    }
}

/// Creates a pod of a case, completed by what the API server requires.
///
/// Fields that the API server sets itself are removed. No case here depends on them.
async fn create(client: &Client, pod: &Value) -> anyhow::Result<()> {
    let mut object = pod.clone();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("uid");
    }
    let spec = object["spec"].as_object_mut().expect("a pod has a spec");
    // A PriorityClass sets these fields, and the guard decides without them.
    spec.remove("priority");
    spec.remove("preemptionPolicy");
    spec.insert("terminationGracePeriodSeconds".into(), json!(0));
    for containers in ["containers", "initContainers"] {
        for container in spec.get_mut(containers).and_then(Value::as_array_mut).into_iter().flatten() {
            container["image"] = json!("none");
        }
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace(pod));
    pods.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
    Ok(())
}

fn annotated(pod: &Pod) -> BTreeMap<String, String> {
    pod.metadata.annotations.clone().unwrap_or_default()
}

fn of_kind<'s>(suite: &'s Suite, kind: &'s str) -> impl Iterator<Item = &'s Value> {
    suite.cluster.iter().filter(move |object| text(object, "/kind") == kind)
}

/// The pods of all cases, and those of the cluster.
fn pods(suite: &Suite) -> impl Iterator<Item = &Value> {
    suite.cases.iter().map(|case| &case.pod).chain(of_kind(suite, "Pod"))
}

fn namespace(pod: &Value) -> &str {
    Some(text(pod, "/metadata/namespace")).filter(|namespace| !namespace.is_empty()).unwrap_or("default")
}

fn text<'v>(object: &'v Value, pointer: &str) -> &'v str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}
