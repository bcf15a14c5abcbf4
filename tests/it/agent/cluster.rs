//! The agent against a real API server, under the account and the policy of `deploy/agent`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use vramguard::k8s::gpu_ledger::GpuLedger;

use super::fake::Machine;
use super::kubelet::{Known, Kubelet};
use crate::support::guard::{Guard, manifests};
use crate::support::http::{get, metric};
use crate::support::objects::{ENFORCE, gpu_pod};
use crate::support::{ControlPlane, Finished, GpuNode, PATIENCE, Process, eventually, free_port, stays};

const NAMESPACE: &str = "vramguard-agent";

/// A control plane with two GPU nodes and the manifests of the agent.
pub(super) async fn start() -> ControlPlane {
    start_with(&["gpu-0", "gpu-1"].map(|name| GpuNode { gpus: 2, ..GpuNode::new(name) }), "deploy/agent").await
}

/// A control plane with these GPU nodes and these manifests of the agent.
pub(super) async fn start_with(nodes: &[GpuNode], kustomization: &str) -> ControlPlane {
    let plane = ControlPlane::start().await;
    for node in nodes {
        plane.add_gpu_node(node).await;
    }
    let definitions = manifests(&plane, "deploy/crds").await;
    plane.apply(&json!({"apiVersion": "v1", "kind": "List", "items": definitions}).to_string()).await;
    plane.kubectl(&["wait", "--for=condition=Established", "--timeout=30s", "--all", "crd"]).await.expect_success();
    install(&plane, kustomization).await;
    plane.kubectl(&["create", "namespace", "ml"]).await.expect_success();
    plane
}

/// Applies these manifests of the agent, but not its DaemonSet, whose pods kwok would run as its own.
pub(super) async fn install(plane: &ControlPlane, kustomization: &str) {
    let mut objects = manifests(plane, kustomization).await;
    objects.retain(|object| object["kind"] != "DaemonSet");
    plane.apply(&json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()).await;
}

/// A kubeconfig of the agent's account with a token for a pod on this node, as its kubelet would request it.
pub(super) async fn kubeconfig(plane: &ControlPlane, node: &str) -> PathBuf {
    let arguments = ["create", "token", NAMESPACE, "--namespace", NAMESPACE, "--duration=2h"];
    let bound = ["--bound-object-kind=Node", &format!("--bound-object-name={node}")];
    let token = plane.kubectl(&[&arguments[..], &bound[..]].concat()).await.expect_success();
    plane.kubeconfig_for_token(&format!("agent-{node}"), token.trim())
}

/// An agent of a node, not started yet, and its port.
pub(super) async fn agent(plane: &ControlPlane, node: &str, machine: &Machine) -> (Process, u16) {
    let port = free_port();
    let (name, value) = machine.variable();
    let agent = Process::new("agent", Path::new(env!("CARGO_BIN_EXE_vramguard")), plane.folder())
        .args(["agent", "--node-name", node, "--interval-ms", "200"])
        .args(["--listen".to_owned(), format!("127.0.0.1:{port}")])
        .args(["--kubeconfig".as_ref(), kubeconfig(plane, node).await.as_os_str()])
        .args(machine.arguments())
        .env(name, value);
    (agent, port)
}

pub(super) async fn json_of(plane: &ControlPlane, arguments: &str) -> anyhow::Result<Value> {
    let found = plane.kubectl(&[&arguments.split(' ').collect::<Vec<_>>()[..], &["-o", "json"][..]].concat()).await;
    ensure!(found.status.success(), "{}", found.stderr);
    serde_json::from_str(&found.stdout).context("kubectl prints JSON")
}

/// Patches the status of a ledger as the user of a kubeconfig.
///
/// # Errors
/// The message of the API server.
async fn patch_status(kubeconfig: &str, ledger: &str, patch: &Value) -> Result<(), String> {
    let kubeconfig = kube::config::Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.expect("it is complete");
    let ledgers: Api<GpuLedger> = Api::all(kube::Client::try_from(config).expect("a client"));
    let written = ledgers.patch_status(ledger, &PatchParams::default(), &Patch::Merge(patch)).await;
    written.map(|_| ()).map_err(|error| error.to_string())
}

/// Waits until the section of the agent is as `is` wants it, and returns it.
pub(super) async fn section(plane: &ControlPlane, agent: &Process, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    eventually(what, PATIENCE, async || {
        let ledger = json_of(plane, "get gpuledger gpu-0").await?;
        let section = ledger["status"]["agent"].clone();
        ensure!(is(&section), "{section}{}", agent.log_tail());
        Ok(section)
    })
    .await
}

/// A pod that runs on gpu-0, and the line of its process in a cgroup file.
pub(super) async fn pod(plane: &ControlPlane, name: &str) -> String {
    let annotations = "{vramguard.dev/vram: 8Gi}";
    plane.apply(&gpu_pod("ml", name, annotations, "nodeName: gpu-0,")).await;
    let uid =
        json_of(plane, &format!("-n ml get pod {name}")).await.expect("it was created")["metadata"]["uid"].clone();
    format!("0::/kubepods/besteffort/pod{}/4c01db0b339c4de2", uid.as_str().expect("a uid"))
}

const SHOWS: &str = "gpu GPU-aaaa 24576 450 5006\nprocess 101 5000 90\ngpu GPU-bbbb 24576 450 0\n";

#[tokio::test]
async fn the_agent_reports_what_it_sees_and_keeps_the_last_values_of_what_it_does_not() {
    let plane = start().await;
    let machine = Machine::new(SHOWS);
    let cgroup = pod(&plane, "llm").await;
    machine.process(101, "python3", &cgroup);
    let (mut agent, port) = agent(&plane, "gpu-0", &machine).await;
    agent.start();

    // It makes the ledger, and reports the GPUs with the replicas that the capacity of the node implies.
    let has_gpus = |section: &Value| section["gpus"].as_array().is_some_and(|gpus| gpus.len() == 2);
    let seen = section(&plane, &agent, "a report of both GPUs", has_gpus).await;
    assert_eq!((&seen["gpus"][0]["replicas"], &seen["gpus"][0]["reservedMiB"]), (&json!(4), &json!(450)));
    let ledger = json_of(&plane, "get gpuledger gpu-0").await.unwrap();
    let owner = &ledger["metadata"]["ownerReferences"][0];
    let node = json_of(&plane, "get node gpu-0").await.unwrap();
    assert_eq!((&owner["kind"], &owner["uid"]), (&json!("Node"), &node["metadata"]["uid"]));
    let used = |section: &Value| section["containers"][0]["usedMiB"] == 5_000;
    let seen = section(&plane, &agent, "the use of the container", used).await;
    assert_eq!((&seen["containers"][0]["pod"], &seen["containers"][0]["demandMiB"]), (&json!("llm"), &json!(8_912)));
    eventually("the agent to be ready", PATIENCE, async || {
        let ready = get(port, "/readyz");
        ensure!(ready.starts_with("HTTP/1.1 200"), "{ready}");
        Ok(())
    })
    .await;
    let sample = "vramguard_agent_container_memory_used_bytes{namespace=\"ml\",pod=\"llm\",container=\"main\"}";
    assert_eq!(metric(port, sample), Some(5_000.0 * 1_048_576.0), "{}", get(port, "/metrics"));
    let wide = plane.kubectl(&["get", "gpuledgers", "-o", "wide"]).await.expect_success();
    println!("{wide}");
    assert!(wide.contains("5006Mi"), "{wide}");

    // A process of no pod is reported at once.
    machine.shows("gpu GPU-aaaa 24576 450 5912\nprocess 101 5000 90\nprocess 102 900 0\ngpu GPU-bbbb 24576 450 0\n");
    machine.process(102, "stray", "0::/user.slice");
    let stray = |section: &Value| section["gpus"][0]["outOfBandMiB"].as_u64().is_some_and(|mib| mib >= 900);
    section(&plane, &agent, "the process of no pod", stray).await;

    // A GPU that falls off the bus keeps its size and says so; so does everything while the driver is gone.
    machine.shows("gpu GPU-aaaa 24576 450 5006\nprocess 101 5000 90\ngpu GPU-bbbb 24576 450 0\nfails handle 15\n");
    let lost =
        |section: &Value| section["gpus"][1]["unreadable"].is_string() && section["gpus"][1]["totalMiB"] == 24_576;
    section(&plane, &agent, "the lost GPU", lost).await;
    machine.shows("init 9\ncount 9\n");
    let gone = |section: &Value| section["unreadable"].as_str().is_some_and(|why| why.contains("kernel module"));
    let seen = section(&plane, &agent, "the driver that is gone", gone).await;
    assert!(has_gpus(&seen) && used(&seen), "{seen}");
    assert!(get(port, "/readyz").starts_with("HTTP/1.1 503"));

    // A new agent goes on from the ledger, and reports again once the driver is back.
    agent.stop();
    agent.start();
    stays("the report of the earlier agent", Duration::from_secs(3), async || {
        let ledger = json_of(&plane, "get gpuledger gpu-0").await?;
        ensure!(has_gpus(&ledger["status"]["agent"]), "{ledger}");
        Ok(())
    })
    .await;
    machine.shows(SHOWS);
    let back = |section: &Value| section["unreadable"].is_null() && section["gpus"][1]["unreadable"].is_null();
    section(&plane, &agent, "the driver that is back", back).await;

    // A pod that is deleted by force counts until its process is gone.
    let deleted = ["-n", "ml", "delete", "pod", "llm", "--force", "--grace-period=0"];
    plane.kubectl(&deleted).await.expect_success();
    let held = |section: &Value| section["gpus"][0]["outOfBandMiB"].as_u64().is_some_and(|mib| mib >= 5_000);
    section(&plane, &agent, "the memory of the deleted pod", held).await;

    // A ledger that somebody deletes is made again.
    plane.kubectl(&["delete", "gpuledger", "gpu-0"]).await.expect_success();
    section(&plane, &agent, "the ledger that is made again", has_gpus).await;
    assert!(!agent.log_tail().contains("orbidden"), "{}", agent.log_tail());
    assert!(agent.terminate(Duration::from_secs(10)).success());
}

#[tokio::test]
async fn the_gpu_of_a_container_is_the_one_that_the_kubelet_gave_it() {
    let plane = start().await;
    let machine = Machine::new("gpu GPU-aaaa 24576 450 10\ngpu GPU-bbbb 24576 450 10\n");
    pod(&plane, "llm").await;
    let devices = |gpus: &[&str]| gpus.iter().flat_map(|gpu| (0..4).map(move |n| format!("{gpu}::{n}"))).collect();
    let both = ["GPU-aaaa", "GPU-bbbb"];
    let known = Known { devices: devices(&both), pods: vec![("llm".to_owned(), "GPU-bbbb::2".to_owned())] };
    let kubelet = Kubelet::start(machine.folder(), known);
    let (mut agent, _) = agent(&plane, "gpu-0", &machine).await;
    agent.start();
    let given = |section: &Value| section["pods"][0]["gpu"] == "GPU-bbbb" && section["gpus"][1]["replicas"] == 4;
    let seen = section(&plane, &agent, "the GPU of the container", given).await;
    let uid = json_of(&plane, "-n ml get pod llm").await.unwrap()["metadata"]["uid"].clone();
    assert_eq!((&seen["pods"][0]["uid"], &seen["pods"][0]["container"]), (&uid, &json!("main")));

    // Neither a device plugin nor a kubelet that restarts takes a GPU away, or the place of a container.
    kubelet.knows(|known| known.devices.clear());
    let stays_given = async || {
        stays("the GPU of the container", Duration::from_secs(12), async || {
            let ledger = json_of(&plane, "get gpuledger gpu-0").await?;
            ensure!(given(&ledger["status"]["agent"]), "{ledger}");
            Ok(())
        })
        .await;
    };
    stays_given().await;
    drop(kubelet);
    stays_given().await;
    let known = Known { devices: devices(&both), pods: Vec::new() };
    let _kubelet = Kubelet::start(machine.folder(), known);
    let ended = |section: &Value| section["pods"].as_array().is_some_and(Vec::is_empty);
    section(&plane, &agent, "the container that the kubelet lists no longer", ended).await;
    agent.expect_running();
}

#[tokio::test]
async fn the_agent_may_write_its_own_section_and_nothing_else() {
    let plane = start().await;
    let ledger = |name: &str, reservations: Value| {
        json!({"apiVersion": "vramguard.dev/v1alpha1", "kind": "GpuLedger", "metadata": {"name": name}, "spec": {"reservations": reservations}})
            .to_string()
    };
    let kubeconfig = kubeconfig(&plane, "gpu-0").await.display().to_string();
    let unbound = plane.service_account_kubeconfig(NAMESPACE, NAMESPACE).await.display().to_string();
    let as_agent = async |kubeconfig: &str, arguments: &str, input: &str| -> Finished {
        let arguments: Vec<&str> = ["--kubeconfig", kubeconfig].into_iter().chain(arguments.split(' ')).collect();
        plane.kubectl_with_input(&arguments, input).await
    };
    eventually("the policy to be in force", PATIENCE, async || {
        let refused = as_agent(&kubeconfig, "create --dry-run=server -f -", &ledger("gpu-1", json!([]))).await;
        ensure!(refused.stderr.contains("may write no other ledger"), "{}{}", refused.stderr, refused.stdout);
        Ok(())
    })
    .await;
    let row = json!([{"uid": "u", "namespace": "ml", "pod": "p", "container": "c", "resource": "nvidia.com/gpu", "replicas": 1,
        "basis": "Slot", "state": "Assumed", "since": "2026-11-22T21:00:00Z"}]);
    let refused = as_agent(&kubeconfig, "create -f -", &ledger("gpu-0", row)).await.expect_failure();
    assert!(refused.contains("only without reservations"), "{refused}");
    let refused = as_agent(&unbound, "create -f -", &ledger("gpu-0", json!([]))).await.expect_failure();
    assert!(refused.contains("names no node"), "{refused}");
    as_agent(&kubeconfig, "create -f -", &ledger("gpu-0", json!([]))).await.expect_success();
    plane.apply(&ledger("gpu-1", json!([]))).await;

    // kubectl reads an object before it patches it, which the agent neither does nor may.
    let agent_section = json!({"status": {"agent": {"time": "2026-11-22T21:00:00Z"}}});
    patch_status(&kubeconfig, "gpu-0", &agent_section).await.expect("its own section");
    let mode = json!({"status": {"mode": "exact"}});
    for (kubeconfig, ledger, patch, why) in [
        (&kubeconfig, "gpu-1", &agent_section, "may write no other ledger"),
        (&kubeconfig, "gpu-0", &mode, "nothing of a ledger but status.agent"),
        (&unbound, "gpu-0", &agent_section, "names no node"),
    ] {
        let refused = patch_status(kubeconfig, ledger, patch).await.expect_err("it is refused");
        assert!(refused.contains(why), "{ledger} {patch}: {refused}");
    }
    for arguments in [
        r#"patch gpuledger gpu-0 --type=merge -p {"spec":{}}"#,
        "delete gpuledger gpu-0",
        r#"patch node gpu-0 -p {"metadata":{"labels":{"a":"b"}}}"#,
        "get secrets -A",
        "-n ml delete pod llm",
    ] {
        let refused = as_agent(&kubeconfig, arguments, "").await.expect_failure();
        assert!(refused.contains("forbidden"), "{arguments}: {refused}");
    }
    for arguments in ["get nodes", "get pods -A", "get gpuledgers"] {
        as_agent(&kubeconfig, arguments, "").await.expect_success();
    }
    for kustomization in ["deploy/agent", "deploy/agent-host-driver", "deploy/agent-dcgm"] {
        let objects = manifests(&plane, kustomization).await;
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        let apply = ["apply", "--dry-run=server", "--validate=strict", "-f", "-"];
        plane.kubectl_with_input(&apply, &list).await.expect_success();
    }
}

#[tokio::test]
async fn a_report_that_is_not_renewed_is_marked_stale_by_the_controller() {
    let plane = start().await;
    let _guard = Guard::start(&plane, &[("cluster.yaml", ENFORCE)]).await;
    let condition = async |reason: &str| {
        eventually(&format!("the condition {reason}"), PATIENCE, async || {
            let ledger = json_of(&plane, "get gpuledger gpu-0").await?;
            let conditions = ledger["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let found = conditions.into_iter().find(|condition| condition["type"] == "AgentReports");
            let found = found.with_context(|| ledger["status"].to_string())?;
            ensure!(found["reason"] == reason, "{found}");
            Ok(found)
        })
        .await
    };
    // Any pod makes the ledger of a node with several GPUs.
    plane
        .apply(&gpu_pod("ml", "llm", "{vramguard.dev/vram: 5Gi}", "nodeSelector: {kubernetes.io/hostname: gpu-0},"))
        .await;
    eventually("the ledger", PATIENCE, async || json_of(&plane, "get gpuledger gpu-0").await).await;
    let report = async |time: &str| {
        let patch = json!({"status": {"agent": {"time": time, "gpus": [], "pods": []}}}).to_string();
        plane
            .kubectl(&["patch", "gpuledger", "gpu-0", "--subresource=status", "--type=merge", "-p", &patch])
            .await
            .expect_success();
    };
    report("2026-01-01T00:00:00Z").await;
    let stale = condition("Stale").await;
    assert_eq!(stale["status"], "False");
    assert!(stale["message"].as_str().unwrap().contains("2026-01-01T00:00:00.000Z"), "{stale}");
    report(&k8s_openapi::jiff::Timestamp::now().to_string()).await;
    assert_eq!(condition("Reporting").await["status"], "True");
}
