//! What an agent that steers costs: CPU time and memory with a hundred processes on eight GPUs, next to a real API
//! server.
//!
//! The limits are those of a release build. A debug build is measured and printed only.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;

use super::cluster;
use super::fake::Machine;
use super::kubelet::{Known, Kubelet};
use crate::support::objects::gpu_pod;
use crate::support::{ControlPlane, GpuNode, PATIENCE, Process, assets, eventually, free_port, http, pause};

const SECONDS: u64 = 60;
const GPUS: u32 = 8;
const PROCESSES: u32 = 100;
/// The largest memory of a release build, without pages of the program's file: the kernel takes those back when it needs
/// memory.
const MEMORY_KIB: u64 = 30 << 10;
/// The largest CPU time of a release build, in percent of a core.
const CPU_PERCENT: f64 = 0.5;

/// The id that the device plugin of the tests gives the GPU.
fn uuid(gpu: u32) -> String {
    format!("GPU-{gpu:08x}-0000-4000-8000-{gpu:012x}")
}

/// A machine with a process of each pod.
fn machine(uids: &BTreeMap<String, String>) -> Machine {
    let mut shows = String::new();
    for gpu in 0..GPUS {
        let _ = writeln!(shows, "gpu {} 81559 480 60000", uuid(gpu));
        for process in (0..PROCESSES).filter(|process| process % GPUS == gpu) {
            let _ = writeln!(shows, "process {} 600 50", 1_000 + process);
        }
    }
    let machine = Machine::new(&shows);
    for process in 0..PROCESSES {
        let slice = format!("kubepods-besteffort-pod{}.slice", uids[&format!("pod-{process}")].replace('-', "_"));
        machine.process(
            1_000 + process,
            "python3",
            &format!("0::/kubepods.slice/kubepods-besteffort.slice/{slice}/cri-containerd-{process:064}.scope"),
        );
    }
    machine
}

/// Pods that run on the node, each with its uid.
async fn pods(plane: &ControlPlane) -> BTreeMap<String, String> {
    let pod = |process| gpu_pod("ml", &format!("pod-{process}"), "{vramguard.dev/vram: 1Gi}", "nodeName: gpu-0,");
    plane.apply(&(0..PROCESSES).map(pod).collect::<Vec<_>>().join("\n---\n")).await;
    let pods: Api<Pod> = Api::namespaced(plane.client(), "ml");
    let listed = pods.list(&ListParams::default()).await.expect("they can be listed");
    let uid = |pod: Pod| Some((pod.metadata.name?, pod.metadata.uid?));
    listed.into_iter().filter_map(uid).collect()
}

/// The device plugin of the tests, which registers with the agent.
fn device_plugin(machine: &Machine) -> Option<Process> {
    let program = match assets::program("deviceplugin") {
        Ok(program) => program,
        Err(why) => {
            println!("skipped, no device plugin: {why}");
            return None;
        }
    };
    let folder = machine.folder().join("device-plugins").display().to_string();
    let plugin = Process::new("deviceplugin", &program, machine.folder())
        .args([format!("--gpus={GPUS}"), "--replicas=16".to_owned(), "--preferred-allocation".to_owned()])
        .args([format!("--plugin-dir={folder}"), format!("--kubelet-socket={folder}/vramguard.sock")]);
    Some(plugin)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "two minutes, and measures a release build: `just agent-cost`"]
async fn an_agent_with_a_hundred_processes_holds_its_limits_of_cpu_time_and_memory() {
    let nodes = [GpuNode { gpus: GPUS, replicas: 16, memory_mib: 81_559, ..GpuNode::new("gpu-0") }];
    let plane = cluster::start_with(&nodes, "deploy/agent-steering").await;
    let machine = machine(&pods(&plane).await);
    let Some(mut plugin) = device_plugin(&machine) else { return };
    let device = |process: u32| format!("{}::{}", uuid(process % GPUS), process / GPUS);
    let known = Known {
        devices: (0..GPUS).flat_map(|gpu| (0..16).map(move |n| format!("{}::{n}", uuid(gpu)))).collect(),
        pods: (0..PROCESSES).map(|process| (format!("pod-{process}"), device(process))).collect(),
    };
    let mut kubelet = Kubelet::start(machine.folder(), known);
    kubelet.takes_registrations(machine.folder());
    let port = free_port();
    let (name, value) = machine.variable();
    let mut agent = Process::new("agent", Path::new(env!("CARGO_BIN_EXE_vramguard")), machine.folder())
        .args(["agent", "--steer", "--node-name", "gpu-0", "--listen", &format!("127.0.0.1:{port}")])
        .args(["--kubeconfig".as_ref(), cluster::kubeconfig(&plane, "gpu-0").await.as_os_str()])
        .args(machine.arguments())
        .env(name, value)
        .env("MALLOC_ARENA_MAX", "1"); // as in the DaemonSet
    agent.start();
    plugin.start();
    eventually("the agent to steer, and to see all containers", PATIENCE, async || {
        let page = http::get(port, "/metrics");
        let containers = page.lines().filter(|line| line.starts_with("vramguard_agent_container_memory_used_bytes{"));
        let (containers, steers) = (containers.count(), page.contains("\nvramguard_agent_steered 1"));
        ensure!(containers == PROCESSES as usize && steers, "{containers} {steers}{}", agent.log_tail());
        Ok(())
    })
    .await;
    pause(Duration::from_secs(15)).await;
    let pid = agent.pid().expect("it runs");
    let (before, start) = (cpu(pid), Instant::now());
    tokio::time::sleep(Duration::from_secs(SECONDS)).await;
    agent.expect_running();
    let percent = (cpu(pid) - before).as_secs_f64() / start.elapsed().as_secs_f64() * 100.0;
    let [own, resident, most] = ["RssAnon:", "VmRSS:", "VmHWM:"].map(|field| memory_kib(pid, field));
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    println!("{build} build, {PROCESSES} processes on {GPUS} GPUs, with --steer: {percent:.2} % of a core");
    println!("{own} KiB of its own; {resident} KiB resident with pages of files, {most} KiB at most");
    if cfg!(debug_assertions) {
        return println!("the limits are those of a release build, and are not looked at");
    }
    assert!(percent <= CPU_PERCENT, "{percent:.2} % of a core");
    assert!(own <= MEMORY_KIB, "{own} KiB");
}

/// A line of a process's status in KiB.
fn memory_kib(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("each process has it");
    line.trim().strip_suffix(" kB").expect("the kernel's unit").parse().expect("a number")
}

/// CPU time of a process in user and kernel mode, in steps of 10 ms.
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().expect("a number")).sum();
    Duration::from_millis(ticks * 10)
}
