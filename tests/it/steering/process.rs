//! The agent of the tests: `vramguard agent --steer` under the account of the manifests, with a stand-in for the driver.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::uuid;
use crate::agent::fake::Machine;
use crate::support::guard::manifests;
use crate::support::{ControlPlane, Process, RealNode, eventually, free_port};

/// What the driver keeps of each GPU.
pub(super) const DRIVER_RESERVE_MIB: u64 = 450;

/// An agent of the real node.
pub(super) struct Agent {
    pub process: Process,
    /// Port for metrics and health.
    pub http: u16,
    _machine: Machine,
}

/// An answer of the agent, as it logs it.
#[derive(Debug, Clone)]
pub(super) struct Answered {
    /// Namespace and name of the pod, and the container; empty if it is not known.
    pub caller: String,
    /// When it was given.
    pub at: Timestamp,
    /// Ids of the devices; empty if the device plugin chose them.
    pub given: BTreeSet<String>,
    /// Empty if the wanted GPU was given.
    pub fallback: String,
    pub ms: f64,
}

impl Answered {
    /// Reads a line of the log; `None` if it tells of something else.
    pub(super) fn of_log(line: &str) -> Option<Answered> {
        let line: Value = serde_json::from_str(line).ok()?;
        let text = |field: &str| line[field].as_str().unwrap_or_else(|| panic!("no {field} in {line}"));
        (line["message"] == "asked for a device").then(|| Answered {
            caller: text("caller").replace('"', ""),
            at: text("timestamp").parse().expect("a time"),
            given: serde_json::from_str(text("given")).expect("a list of ids"),
            fallback: text("why").to_owned(),
            ms: line["ms"].as_f64().unwrap_or(f64::NAN),
        })
    }
}

impl Agent {
    /// Describes the agent of the real node, whose kubelet has started, and applies the manifests for it. `further` are
    /// arguments.
    pub(super) async fn new(plane: &ControlPlane, node: &RealNode, further: &[&str]) -> Agent {
        let definition = include_str!("../../../deploy/crds/customresourcedefinition-gpuledgers.yaml");
        plane.apply(definition).await;
        let mut objects = manifests(plane, "deploy/agent-steering").await;
        // The agent is a process beside the kubelet here.
        objects.retain(|object| object["kind"] != "DaemonSet");
        plane.apply(&json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()).await;
        if !plane.kubectl(&["get", "namespace", "ml"]).await.status.success() {
            plane.kubectl(&["create", "namespace", "ml"]).await.expect_success();
        }
        eventually("the kubelet to join", Duration::from_secs(180), async || {
            let found = plane.kubectl(&["get", "node", RealNode::NAME]).await;
            let listens = node.kubelet_folder().join("device-plugins/kubelet.sock").exists();
            ensure!(found.status.success() && listens, "{}{}", found.stderr, node.kubelet_log_tail());
            Ok(())
        })
        .await;
        let account = ["create", "token", "vramguard-agent", "--namespace", "vramguard-agent", "--duration=2h"];
        let bound = ["--bound-object-kind=Node", &format!("--bound-object-name={}", RealNode::NAME)];
        let token = plane.kubectl(&[&account[..], &bound[..]].concat()).await.expect_success();
        let kubeconfig = plane.kubeconfig_for_token("agent", token.trim());
        let gpus = node.gpus();
        let gpu = |n| format!("gpu {} {} {DRIVER_RESERVE_MIB} 0\n", uuid(n), gpus.memory_mib);
        let machine = Machine::new(&(0..gpus.gpus).map(gpu).collect::<String>());
        let http = free_port();
        let (name, value) = machine.variable();
        let process = Process::new("agent", Path::new(env!("CARGO_BIN_EXE_vramguard")), plane.folder())
            .args(["agent", "--steer", "--node-name", RealNode::NAME, "--log-format", "json"])
            .args(further)
            .args(["--interval-ms", "200", "--listen", &format!("127.0.0.1:{http}")])
            .args(["--kubeconfig".as_ref(), kubeconfig.as_os_str()])
            .args(["--kubelet-config".as_ref(), node.kubelet_configuration().as_os_str()])
            .args(machine.arguments_beside(&node.kubelet_folder()))
            .env(name, value)
            .env("RUST_LOG", "info,kube=warn");
        Agent { process, http, _machine: machine }
    }
}
