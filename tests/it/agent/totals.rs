//! `vramguard agent --dcgm-exporter`: GPUs as current, use by pod not told, and what an earlier agent with a driver knew.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::cluster::{agent, json_of, kubeconfig, section, start};
use super::exporter::{Answer, Exporter};
use super::fake::Machine;
use crate::support::guard::Guard;
use crate::support::http::{get, metric};
use crate::support::objects::{ENFORCE, gpu_pod};
use crate::support::{ControlPlane, Finished, PATIENCE, Process, eventually, free_port, run};

const GPUS: [(&str, u64, u64, Option<u64>); 2] =
    [("GPU-aaaa", 5_006, 19_120, Some(450)), ("GPU-bbbb", 0, 24_126, Some(450))];

fn once(url: &str, more: &[&str]) -> Finished {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vramguard"));
    command.args(["agent", "--once", "--dcgm-exporter", url]).args(more);
    run(&mut command, Duration::from_secs(60))
}

#[test]
fn one_look_through_an_exporter_shows_the_gpus_and_says_that_it_shows_no_processes() {
    let mut gpus = GPUS.to_vec();
    gpus[1].3 = None;
    let exporter = Exporter::start(Answer::Gpus(gpus));
    let seen: Value =
        serde_json::from_str(&once(&exporter.url(), &["--output", "json"]).expect_success()).expect("JSON");
    assert_eq!((&seen["source"], &seen["driverVersion"]), (&json!("DCGMExporter"), &json!("580.159.04")));
    let first = &seen["gpus"][0];
    assert_eq!(
        (&first["uuid"], &first["product"], &first["totalMiB"], &first["reservedMiB"], &first["usedMiB"]),
        (&json!("GPU-aaaa"), &json!("NVIDIA L4"), &json!(24_576), &json!(450), &json!(5_006))
    );
    assert_eq!((&seen["gpus"][1]["totalMiB"], &seen["gpus"][1]["usedMiB"]), (&json!(24_126), &json!(0)));
    for (gpu, absent) in [(0, "processes"), (1, "processes"), (1, "reservedMiB")] {
        assert!(seen["gpus"][gpu].get(absent).is_none(), "{absent}: {seen}");
    }
    assert!(
        seen["notTold"].as_str().is_some_and(|text| text.contains("processes")) && seen.get("unreadable").is_none()
    );
    let table = once(&format!("{}/metrics", exporter.url()), &[]).expect_success();
    println!("{table}");
    assert!(table.contains("it does not tell the processes of a GPU") && !table.contains('?'), "{table}");
    let asked = exporter.asked();
    let host = exporter.url().replace("http://", "");
    assert_eq!(asked, vec![format!("GET /metrics HTTP/1.1 host: {host}"); 2]);
}

#[test]
fn an_exporter_that_cannot_be_read_is_told_with_its_address_and_the_exit_code_is_2() {
    let exporter = Exporter::start(Answer::Nothing);
    let url = exporter.url();
    let page = format!("{url}/metrics");
    let cut = "DCGM_FI_DEV_FB_USED{gpu=\"0\",UUID=\"GPU-aaaa";
    let cases = [
        (Answer::Nothing, page.as_str()),
        (Answer::Status("503 Service Unavailable"), "it answers with status 503 Service Unavailable"),
        (Answer::Status("302 Found"), "it answers with status 302 Found"),
        (Answer::Text(String::new()), "it prints neither DCGM_FI_DEV_FB_USED nor DCGM_FI_DEV_FB_FREE of any GPU"),
        (Answer::Text("<html><body>GPU Exporter</body></html>".to_owned()), "it prints neither"),
        (Answer::Text(cut.to_owned()), "line 1: label \"UUID\" has no closing quote"),
        (Answer::Endless(1 << 20, Duration::ZERO), "it prints more than 32 MiB"),
        (Answer::Endless(1 << 10, Duration::from_millis(100)), "no complete answer within 5 s"),
    ];
    for (answer, why) in cases {
        exporter.answers(answer.clone());
        let ended = once(&url, &[]);
        assert_eq!(ended.status.code(), Some(2), "{answer:?}");
        assert!(ended.stderr.contains(why) && ended.stdout.is_empty(), "{answer:?}: {}", ended.stderr);
    }
    let refused = once(&format!("http://127.0.0.1:{}", free_port()), &[]);
    assert!(refused.stderr.contains("refused"), "{}", refused.stderr);
    let wrong = once("https://127.0.0.1:9400", &[]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(wrong.stderr.contains("must begin with http://"), "{}", wrong.stderr);
    let both = once(&url, &["--nvml-library", "/nonexistent"]);
    assert!(both.stderr.contains("cannot be used with"), "{}", both.stderr);
}

#[test]
fn a_mig_device_is_shown_and_said_to_have_no_uuid() {
    let line = |metric: &str, value: u64| {
        format!(
            "{metric}{{gpu=\"0\",UUID=\"GPU-aaaa\",modelName=\"NVIDIA H100\",GPU_I_PROFILE=\"1g.10gb\",GPU_I_ID=\"9\"}} {value}\n"
        )
    };
    let page = line("DCGM_FI_DEV_FB_USED", 50) + &line("DCGM_FI_DEV_FB_FREE", 9_000);
    let exporter = Exporter::start(Answer::Text(page));
    let table = once(&exporter.url(), &[]).expect_success();
    println!("{table}");
    assert!(table.contains("0 (MIG)") && table.contains("9050Mi"), "{table}");
    assert!(table.contains("does not tell the UUID of a MIG device"), "{table}");
}

/// An agent of gpu-0 that reads the exporter, not started yet, and its port.
async fn reads(plane: &ControlPlane, exporter: &Exporter, kubelet: &Path) -> (Process, u16) {
    let port = free_port();
    let agent = Process::new("agent-dcgm", Path::new(env!("CARGO_BIN_EXE_vramguard")), plane.folder())
        .args(["agent", "--node-name", "gpu-0", "--interval-ms", "200", "--dcgm-exporter"])
        .args([exporter.url(), "--listen".to_owned(), format!("127.0.0.1:{port}")])
        .args(["--kubeconfig".as_ref(), kubeconfig(plane, "gpu-0").await.as_os_str()])
        .args(["--kubelet".as_ref(), kubelet.as_os_str()]);
    (agent, port)
}

/// A pod on gpu-0 that declares nothing, and the line of its process in a cgroup file.
async fn undeclared(plane: &ControlPlane, name: &str) -> String {
    plane.apply(&gpu_pod("ml", name, "{}", "nodeName: gpu-0,")).await;
    let pod = json_of(plane, &format!("-n ml get pod {name}")).await.expect("it was created");
    format!("0::/kubepods/besteffort/pod{}/4c01db0b339c4de2", pod["metadata"]["uid"].as_str().expect("a uid"))
}

/// The condition, kubectl, the metrics, the audit and `recommend` say that the use of pods is not told.
async fn people_are_told(plane: &ControlPlane, port: u16, machine: &Machine) {
    let condition = eventually("the condition", PATIENCE, async || {
        let ledger = json_of(plane, "get gpuledger gpu-0").await?;
        let conditions = ledger["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|condition| condition["type"] == "AgentReports").context("not yet")?;
        ensure!(found["reason"] == "ReportingTotals", "{found}");
        Ok(found)
    })
    .await;
    assert!(condition["message"].as_str().is_some_and(|text| text.contains("does not tell what each pod uses")));
    let wide = plane.kubectl(&["get", "gpuledgers", "-o", "wide"]).await.expect_success();
    assert!(wide.contains("SOURCE") && wide.contains("DCGMExporter") && wide.contains("5006Mi"), "{wide}");
    let metrics = get(port, "/metrics");
    assert_eq!(
        metric(port, "vramguard_agent_gpu_memory_used_bytes{gpu=\"GPU-aaaa\",index=\"0\"}"),
        Some(5_006.0 * 1_048_576.0)
    );
    for absent in ["gpu_memory_out_of_band_bytes{", "container_memory_used_bytes{", "findings{", "gpu_unreadable{"] {
        assert!(!metrics.contains(absent), "{absent}: {metrics}");
    }
    let snapshot = plane.kubectl(&["get", "nodes,pods,gpuledgers", "-A", "-o", "json"]).await.expect_success();
    let file = machine.folder().join("cluster.json");
    crate::support::write(&file, &snapshot);
    let cli = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vramguard"));
        command.args(arguments).arg("--snapshot").arg(&file);
        run(&mut command, Duration::from_secs(60))
    };
    let audit: Value = serde_json::from_str(&cli(&["audit", "--output", "json"]).stdout).expect("JSON");
    let node = audit["nodes"].as_array().expect("nodes").iter().find(|node| node["node"] == "gpu-0").expect("gpu-0");
    assert!(node["agent"]["totalsOnly"].is_string() && node["agent"].get("stale").is_none(), "{node}");
    let recommend: Value =
        serde_json::from_str(&cli(&["recommend", "--output", "json"]).expect_success()).expect("JSON");
    let row = &recommend["rows"][0];
    assert_eq!((&row["status"], &row["nodesWithTotalsOnly"]), (&json!("not enough data"), &json!(["gpu-0"])), "{row}");
    assert!(row.get("peakMiB").is_none() && row["reason"].as_str().is_some_and(|why| why.contains("gpu-0")), "{row}");
}

#[tokio::test]
async fn an_agent_that_changes_to_an_exporter_reports_gpus_as_current_and_lets_no_old_use_stand() {
    let plane = start().await;
    // An agent with a driver has seen a pod that declares nothing, and a process of no pod.
    let machine =
        Machine::new("gpu GPU-aaaa 24576 450 9000\nprocess 101 8000 90\nprocess 102 900 0\ngpu GPU-bbbb 24576 450 0\n");
    let cgroup = undeclared(&plane, "llm").await;
    // The pod is older than the guard, which would refuse its nodeName.
    let _guard = Guard::start(&plane, &[("cluster.yaml", ENFORCE)]).await;
    machine.process(101, "python3", &cgroup);
    machine.process(102, "stray", "0::/user.slice");
    let (mut driver, _) = agent(&plane, "gpu-0", &machine).await;
    driver.start();
    let seen_by_driver = |section: &Value| {
        section["containers"][0]["usedMiB"] == 8_000 && section["gpus"][0]["outOfBandMiB"].as_u64() >= Some(900)
    };
    let seen = section(&plane, &driver, "a report by the driver", seen_by_driver).await;
    assert_eq!((&seen["source"], &seen["containers"][0]["problem"]), (&json!("NVML"), &json!("Undeclared")));
    driver.stop();

    let exporter = Exporter::start(Answer::Gpus(GPUS.to_vec()));
    let (mut agent, port) = reads(&plane, &exporter, machine.folder()).await;
    agent.start();
    let by_exporter = |section: &Value| section["source"] == "DCGMExporter" && section["gpus"][0]["usedMiB"] == 5_006;
    let seen = section(&plane, &agent, "a report by the exporter", by_exporter).await;
    assert!(seen["unreadable"].is_null() && seen["driverVersion"] == "580.159.04", "{seen}");
    let gpu = &seen["gpus"][0];
    assert_eq!((&gpu["totalMiB"], &gpu["reservedMiB"], &gpu["replicas"]), (&json!(24_576), &json!(450), &json!(4)));
    assert!(gpu.get("outOfBandMiB").is_none() && gpu.get("unreadable").is_none(), "neither old nor zero: {gpu}");
    let [row] = seen["containers"].as_array().expect("containers").as_slice() else { panic!("{seen}") };
    assert_eq!(row["peakMiB"], 8_000, "a pod that declares nothing counts with it");
    for absent in ["usedMiB", "idleSince", "problem", "message"] {
        assert!(row.get(absent).is_none(), "{absent}: {row}");
    }

    people_are_told(&plane, port, &machine).await;

    // A GPU that is gone, and an exporter that fails, keep what was read last.
    exporter.answers(Answer::Gpus(GPUS[..1].to_vec()));
    let lost =
        |section: &Value| section["gpus"][1]["unreadable"].as_str().is_some_and(|why| why.contains("no longer lists"));
    let seen = section(&plane, &agent, "the GPU that is gone", lost).await;
    assert_eq!((&seen["gpus"][1]["totalMiB"], &seen["gpus"][0]["unreadable"]), (&json!(24_576), &Value::Null));
    exporter.answers(Answer::Status("500 Internal Server Error"));
    let gone = |section: &Value| section["unreadable"].as_str().is_some_and(|why| why.contains("status 500"));
    let seen = section(&plane, &agent, "the exporter that fails", gone).await;
    assert_eq!(seen["gpus"][0]["usedMiB"], 5_006);
    let ready = get(port, "/readyz");
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("status 500"), "{ready}");
    exporter.answers(Answer::Gpus(GPUS.to_vec()));
    let back = |section: &Value| section["unreadable"].is_null() && section["gpus"][1]["unreadable"].is_null();
    section(&plane, &agent, "the exporter that is back", back).await;

    // The row of a pod ends with the pod, and what it leaves is not told either.
    plane.kubectl(&["-n", "ml", "delete", "pod", "llm", "--force", "--grace-period=0"]).await.expect_success();
    let ended = |section: &Value| section["containers"].as_array().is_some_and(Vec::is_empty);
    let seen = section(&plane, &agent, "the end of the row", ended).await;
    assert!(seen["gpus"][0].get("outOfBandMiB").is_none(), "{seen}");
    assert!(agent.terminate(Duration::from_secs(10)).success());
}
