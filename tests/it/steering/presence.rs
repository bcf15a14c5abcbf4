//! A node is steered only while its agent runs, as the server sees by the pod that the reports name.
//!
//! The agent is a process of the test next to a pod that really runs on the node. It names that pod as its own, and the test
//! ends both together.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::guarded::Cluster;
use super::process::Agent;
use crate::support::http::metric;
use crate::support::{Component, RealNode, eventually, stays};

const PATIENCE: Duration = Duration::from_secs(120);
/// Limit for the server to see an end. The kubelet writes the status of a container a second or two after it has ended.
const SOON: Duration = Duration::from_secs(30);

/// What an agent logs whose last report is refused.
const REFUSED: &str = "the account or the rights of this agent are gone";

/// The pod of an agent, whose container sleeps.
struct AgentPod {
    name: &'static str,
    uid: String,
}

impl Cluster {
    async fn kubectl(&self, arguments: &[&str]) -> String {
        self.plane.kubectl(arguments).await.expect_success()
    }

    /// Creates the pod of an agent, which the kubelet runs.
    async fn agent_pod(&self, name: &'static str) -> AgentPod {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "vramguard-agent" },
            "spec": {
                "nodeName": RealNode::NAME, "hostNetwork": true, "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 1, "tolerations": [{ "operator": "Exists" }],
                "containers": [{
                    "name": "agent", "image": RealNode::IMAGE, "imagePullPolicy": "Never",
                    "env": [{ "name": "VRAMGUARD_AGENT_POD_UID", "valueFrom": { "fieldRef": { "fieldPath": "metadata.uid" } } }],
                }],
            },
        });
        self.plane.apply(&pod.to_string()).await;
        let uid = self.kubectl(&["-n", "vramguard-agent", "get", "pod", name, "-o", "jsonpath={.metadata.uid}"]).await;
        AgentPod { name, uid }
    }

    /// Runs another agent, which names this pod as its own, in place of the present one.
    async fn run_agent_in(&mut self, pod: &AgentPod) {
        let own = ["--pod-uid", &pod.uid, "--pod-namespace", "vramguard-agent", "--pod-name", pod.name];
        self.agent.process.stop();
        self.agent = Agent::new(&self.plane, &self.node, &own).await;
        self.agent.process.start();
    }

    /// Waits until the node is steered by what the agent in this pod reports. Returns the container that the report names.
    async fn steered_in(&self, pod: &AgentPod, other_than: &str) -> String {
        eventually("the node to be steered by the agent in the pod", PATIENCE, async || {
            let status = self.ledger().await?["status"].take();
            let named = &status["agent"]["pod"];
            let container = named["containerID"].as_str().with_context(|| format!("{status}{}", self.logs()))?;
            let is_new = named["uid"] == pod.uid && container != other_than;
            ensure!(is_new && status["mode"] == "steered", "{status}{}", self.logs());
            Ok(container.to_owned())
        })
        .await
    }

    /// Waits until the server no longer counts the node as steered, although the last report says so, and says why.
    async fn is_doubted(&self, what: &str, pod: &AgentPod) {
        let since = Instant::now();
        let message = eventually("the end of the agent to be seen", SOON, async || {
            let status = self.ledger().await?["status"].take();
            ensure!(status["mode"] == "slot", "{status}{}", self.logs());
            ensure!(status["agent"]["allocationPolicy"] == "Steered", "no report may say so: {status}");
            let conditions = status["conditions"].as_array().context("conditions")?;
            let accounted =
                conditions.iter().find(|condition| condition["type"] == "Accounted").context("Accounted")?;
            Ok(accounted["message"].as_str().unwrap_or_default().to_owned())
        })
        .await;
        println!("{what}: not steered after {:.1} s: {message}", since.elapsed().as_secs_f32());
        assert!(
            message.contains("not steered: the ") && message.contains(&format!("vramguard-agent/{}", pod.name)),
            "{message}"
        );
    }
}

#[tokio::test]
async fn a_node_is_steered_only_while_its_agent_runs_and_keeps_its_devices_when_the_agent_is_removed() {
    let socket = "--kubelet-socket=/var/lib/kubelet/device-plugins/vramguard.sock";
    let Some(mut cluster) = Cluster::start(&[socket, "--preferred-allocation"], &[]).await else { return };
    let first = cluster.agent_pod("agent-1").await;
    cluster.run_agent_in(&first).await;
    let container = cluster.steered_in(&first, "").await;

    // The container dies with the agent, without a last report, and the kubelet starts it again at once. What runs then has
    // reported nothing.
    cluster.agent.process.stop();
    // The command may end with the container, and then fails.
    _ = cluster.plane.kubectl(&["-n", "vramguard-agent", "exec", "agent-1", "--", "kill", "1"]).await;
    cluster.is_doubted("container killed", &first).await;
    let restarts = "jsonpath={.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].state.running}";
    eventually("the container to run again", PATIENCE, async || {
        let found = cluster.kubectl(&["-n", "vramguard-agent", "get", "pod", "agent-1", "-o", restarts]).await;
        ensure!(found.starts_with("1 {"), "{found}");
        Ok(())
    })
    .await;
    stays("a node that is not steered", Duration::from_secs(2), async || {
        let mode = cluster.ledger().await?["status"]["mode"].take();
        ensure!(mode == "slot", "{mode}");
        Ok(())
    })
    .await;
    cluster.agent.process.start();
    cluster.steered_in(&first, &container).await;

    // The pod is deleted, and another one comes.
    cluster.agent.process.stop();
    cluster.kubectl(&["-n", "vramguard-agent", "delete", "pod", "agent-1", "--wait=false"]).await;
    cluster.is_doubted("pod deleted", &first).await;
    let second = cluster.agent_pod("agent-2").await;
    cluster.run_agent_in(&second).await;
    cluster.steered_in(&second, "").await;

    // An API server that does not answer refuses nothing, and the server may not see the end of the pod either.
    cluster.plane.pause_component(Component::ApiServer);
    let stopped = cluster.agent.process.terminate(Duration::from_secs(30));
    cluster.plane.resume_component(Component::ApiServer);
    assert!(stopped.success(), "{stopped}{}", cluster.logs());
    let log = cluster.agent.process.whole_log();
    assert!(log.contains("is not handed back") && !log.contains(REFUSED), "{log}");
    let devices = r"jsonpath={.status.allocatable.nvidia\.com/gpu}";
    eventually("the node to lose its devices", PATIENCE, async || {
        let found = cluster.plane.kubectl(&["get", "node", RealNode::NAME, "-o", devices]).await;
        ensure!(found.stdout == "0", "{}{}", found.stdout, found.stderr);
        Ok(())
    })
    .await;
    cluster.agent.process.start();
    eventually("the agent to steer again", PATIENCE, async || {
        let steered = metric(cluster.agent.http, "vramguard_agent_steered");
        ensure!(steered == Some(1.0), "{steered:?}{}", cluster.logs());
        Ok(())
    })
    .await;
    cluster.steered_in(&second, "").await;

    // `kubectl delete -k` removes the rights of the agent with its pod.
    cluster.kubectl(&["delete", "clusterrolebinding", "vramguard-agent"]).await;
    cluster.kubectl(&["-n", "vramguard-agent", "delete", "pod", "agent-2", "--wait=false"]).await;
    let stopped = cluster.agent.process.terminate(Duration::from_secs(20));
    assert!(stopped.success(), "{stopped}{}", cluster.logs());
    let log = cluster.agent.process.whole_log();
    assert!(log.contains(REFUSED), "{log}");
    cluster.is_doubted("rights removed", &second).await;
    cluster.node.ready(&cluster.plane).await;
    cluster.create_each(&["small"], "2Gi").await;
    cluster.settles(1, 0).await;
    let report: Value = cluster.ledger().await.expect("a ledger")["status"]["agent"].take();
    assert_eq!(report["notSteered"], Value::Null, "the last report was refused: {report}");
}
