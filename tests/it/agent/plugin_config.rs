//! `--plugin-config-map` against a real API server, under the rights of the shipped example: the agent follows ConfigMap and
//! label, and what neither says is inferred.

use std::path::Path;

use anyhow::ensure;
use serde_json::{Value, json};

use super::cluster::{agent, kubeconfig, section, start};
use super::fake::Machine;
use super::kubelet::{Known, Kubelet};
use crate::support::objects::gpu_pod;
use crate::support::{ControlPlane, PATIENCE, Process, eventually};

fn shipped(example: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples").join(example);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Lets the kubelet give a device to a new pod. The agent asks the kubelet once the pod is in the API.
async fn place(plane: &ControlPlane, kubelet: &Kubelet, name: &str, device: &str) {
    kubelet.knows(|known| known.pods.push((name.to_owned(), device.to_owned())));
    plane.apply(&gpu_pod("ml", name, "{vramguard.dev/vram: 2Gi}", "nodeName: gpu-0,")).await;
}

async fn placed(plane: &ControlPlane, agent: &Process, count: usize) -> Value {
    let all = |section: &Value| section["pods"].as_array().is_some_and(|pods| pods.len() == count);
    section(plane, agent, &format!("{count} placements"), all).await
}

async fn logs(agent: &Process, text: &str) {
    eventually(&format!("{text:?} in the log"), PATIENCE, async || {
        ensure!(agent.whole_log().contains(text), "{}", agent.log_tail());
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn the_policy_follows_the_config_map_and_the_label_of_the_node_without_a_restart() {
    let plane = start().await;
    plane.kubectl(&["create", "namespace", "gpu-operator"]).await.expect_success();
    plane.apply(&shipped("agent-plugin-config-map.yaml")).await;
    let machine = Machine::new("gpu GPU-aaaa 24576 450 10\ngpu GPU-bbbb 24576 450 10\n");
    let both = ["GPU-aaaa", "GPU-bbbb"];
    let devices = both.iter().flat_map(|gpu| (0..4).map(move |n| format!("{gpu}::{n}"))).collect();
    let kubelet = Kubelet::start(machine.folder(), Known { devices, pods: Vec::new() });
    let (agent, _) = agent(&plane, "gpu-0", &machine).await;
    let mut agent = agent.args(["--plugin-config-map", "gpu-operator/time-slicing"]);
    agent.start();

    // Without the ConfigMap, two placements are too few.
    logs(&agent, "ConfigMap gpu-operator/time-slicing: it does not exist; create it").await;
    place(&plane, &kubelet, "p0", "GPU-aaaa::0").await;
    placed(&plane, &agent, 1).await;
    place(&plane, &kubelet, "p1", "GPU-bbbb::0").await;
    let seen = placed(&plane, &agent, 2).await;
    assert_eq!(seen["allocationPolicy"], Value::Null);

    // Its only key names the plugin's default policy, which the second placement has confirmed.
    plane.apply(&shipped("time-slicing-config.yaml")).await;
    section(&plane, &agent, "the policy of the only key", |section| section["allocationPolicy"] == "Distributed").await;

    // A label that selects no key leaves the policy to be inferred; the key then names another policy.
    plane.kubectl(&["label", "node", "gpu-0", "nvidia.com/device-plugin.config=packed"]).await.expect_success();
    logs(&agent, "it has no key \"packed\", which the label nvidia.com/device-plugin.config of the node selects").await;
    section(&plane, &agent, "no policy", |section| section["allocationPolicy"].is_null()).await;
    let config = "version: v1\nflags: {plugin: {sharedDevicesAllocationPolicy: packed}}\n";
    let patch = json!({"data": {"packed": config}}).to_string();
    let patched = ["-n", "gpu-operator", "patch", "configmap", "time-slicing", "--type=merge", "-p", &patch];
    plane.kubectl(&patched).await.expect_success();
    logs(&agent, "ConfigMap gpu-operator/time-slicing names the allocation policy Packed").await;
    place(&plane, &kubelet, "p2", "GPU-aaaa::1").await;
    let seen = placed(&plane, &agent, 3).await;
    assert_eq!(seen["allocationPolicy"], Value::Null, "both had one replica taken");
    place(&plane, &kubelet, "p3", "GPU-aaaa::2").await;
    section(&plane, &agent, "the policy of the label", |section| section["allocationPolicy"] == "Packed").await;

    // Content that cannot be read, and a ConfigMap that is deleted, end nothing but the trust in the name.
    let patch = json!({"data": {"packed": "flags: {plugin: {sharedDevicesAllocationPolicy: random}}"}}).to_string();
    let patched = ["-n", "gpu-operator", "patch", "configmap", "time-slicing", "--type=merge", "-p", &patch];
    plane.kubectl(&patched).await.expect_success();
    logs(&agent, "key \"packed\": flags.plugin.sharedDevicesAllocationPolicy: \"random\" is not one of").await;
    section(&plane, &agent, "no policy again", |section| section["allocationPolicy"].is_null()).await;
    plane.kubectl(&["-n", "gpu-operator", "delete", "configmap", "time-slicing"]).await.expect_success();
    eventually("the deletion in the log", PATIENCE, async || {
        ensure!(agent.whole_log().matches("it does not exist").count() == 2, "{}", agent.log_tail());
        Ok(())
    })
    .await;
    agent.expect_running();
    assert!(!agent.whole_log().contains("orbidden"), "{}", agent.log_tail());
    assert_eq!(agent.whole_log().matches("it has no key").count(), 1, "a reason is logged once");

    // The rights are for this ConfigMap alone.
    let kubeconfig = kubeconfig(&plane, "gpu-0").await.display().to_string();
    let list = async |more: &[&str]| {
        let arguments = ["--kubeconfig", kubeconfig.as_str(), "-n", "gpu-operator", "get", "configmaps"];
        plane.kubectl_with_input(&[&arguments[..], more].concat(), "").await
    };
    list(&["--field-selector", "metadata.name=time-slicing"]).await.expect_success();
    for more in [&[][..], &["--field-selector", "metadata.name=kube-root-ca.crt"], &["kube-root-ca.crt"]] {
        let refused = list(more).await.expect_failure();
        assert!(refused.contains("forbidden"), "{more:?}: {refused}");
    }
}
