//! What an agent costs: CPU time and memory with a hundred processes on eight GPUs. It prints and does not assert, because
//! the load of a shared machine would decide an assertion.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use super::fake::Machine;
use crate::support::{Process, free_port, http, pause};

const SECONDS: u64 = 60;

#[tokio::test]
#[ignore = "a minute, and measures: `just figures`"]
async fn cpu_time_and_memory_of_an_agent_with_a_hundred_processes() {
    let mut shows = String::new();
    for gpu in 0..8_u32 {
        let _ = writeln!(shows, "gpu GPU-{gpu} 81559 480 60000");
        for process in (0..100_u32).filter(|process| process % 8 == gpu) {
            let _ = writeln!(shows, "process {} 600 50", 1_000 + process);
        }
    }
    let machine = Machine::new(&shows);
    for process in 0..100_u32 {
        let pod = format!("0b6f1b1c-5e8e-4a3c-9a34-7d1f1f0a{process:04}");
        let slice = format!("kubepods-besteffort-pod{}.slice", pod.replace('-', "_"));
        machine.process(
            1_000 + process,
            "python3",
            &format!("0::/kubepods.slice/kubepods-besteffort.slice/{slice}/cri-containerd-{process:064}.scope"),
        );
    }
    // The API server is a port that refuses connections: a cost of the agent that a real one does not have.
    let kubeconfig = machine.folder().join("kubeconfig");
    let server = format!("http://127.0.0.1:{}", free_port());
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: \"{server}\"}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\nusers: [{{name: u, user: {{}}}}]\n"
    );
    std::fs::write(&kubeconfig, text).expect("a kubeconfig");
    let port = free_port();
    let (name, value) = machine.variable();
    let mut agent = Process::new("agent", Path::new(env!("CARGO_BIN_EXE_vramguard")), machine.folder())
        .args(["agent", "--node-name", "gpu-0", "--listen", &format!("127.0.0.1:{port}")])
        .args(["--kubeconfig".as_ref(), kubeconfig.as_os_str()])
        .args(machine.arguments())
        .env(name, value)
        .env("MALLOC_ARENA_MAX", "1");
    agent.start();
    pause(Duration::from_secs(5)).await;
    let pid = agent.pid().expect("it runs");
    let (before, start) = (cpu(pid), std::time::Instant::now());
    tokio::time::sleep(Duration::from_secs(SECONDS)).await;
    agent.expect_running();
    let share = (cpu(pid) - before).as_secs_f64() / start.elapsed().as_secs_f64();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let memory = |field: &str| status.lines().find(|line| line.starts_with(field)).unwrap_or_default().to_owned();
    println!("100 processes on 8 GPUs: {:.2} % of a core, {} {}", share * 100.0, memory("VmRSS"), memory("VmHWM"));
    println!(
        "{}",
        http::get(port, "/metrics").lines().filter(|line| line.contains("look_")).collect::<Vec<_>>().join("\n")
    );
}

/// CPU time of a process in user and kernel mode, in steps of 10 ms.
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().expect("a number")).sum();
    Duration::from_millis(ticks * 10)
}
