//! The agent of the tests: this test program, started again with one test that runs an agent.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kube::config::{KubeConfigOptions, Kubeconfig};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use vramguard::agent::kubelet::KubeletDirectory;
use vramguard::agent::steer::{self, Config, Health, Outputs};
use vramguard::capacity::gpu::Rules;

use crate::support::{ControlPlane, Process, RealNode};

/// An answer of the agent, as it logs it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Answered {
    pub caller: String,
    pub given: Vec<String>,
    /// Empty if the wanted GPU was given.
    pub fallback: String,
    pub ms: f64,
}

/// Describes the agent of a node.
pub(super) fn agent(plane: &ControlPlane, kubelet: &Path) -> Process {
    let program = std::env::current_exe().expect("the test program");
    Process::new("agent", &program, plane.folder())
        .args(["--ignored", "--exact", "--nocapture", "steering::process::agent_process"])
        .env("AGENT_KUBELET", kubelet)
        .env("AGENT_KUBECONFIG", plane.admin_kubeconfig())
        .env("RUST_LOG", "info,vramguard=debug,kube=warn")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the agent of other tests, which start it as a process"]
async fn agent_process() {
    let (Some(kubelet), Some(kubeconfig)) = (std::env::var_os("AGENT_KUBELET"), std::env::var_os("AGENT_KUBECONFIG"))
    else {
        return; // started with all ignored tests
    };
    let level = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(level).with_writer(std::io::stderr).init();
    let kubeconfig = Kubeconfig::read_from(PathBuf::from(kubeconfig)).expect("a kubeconfig");
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let client = kube::Client::try_from(config.expect("a configuration")).expect("a client");
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        signal(SignalKind::terminate()).expect("a signal handler").recv().await;
        stopping.cancel();
    });
    let (answers, mut answered) = mpsc::channel::<steer::Answer>(1_000);
    tokio::spawn(async move {
        while let Some(answer) = answered.recv().await {
            let caller = answer.caller.map(|caller| format!("{}/{}", caller.pod, caller.container));
            let line = Answered {
                caller: caller.unwrap_or_default(),
                given: answer.given,
                fallback: answer.fallback.map_or("", |why| why.label()).to_owned(),
                ms: answer.took.as_secs_f64() * 1_000.0,
            };
            println!("{}", serde_json::to_string(&line).expect("plain fields"));
        }
    });
    let (health, mut changed) = watch::channel(Health::default());
    tokio::spawn(async move {
        while changed.changed().await.is_ok() {
            let now = changed.borrow_and_update().clone();
            println!("health {} {now:?}", now.steers());
        }
    });
    let outputs = Outputs { answers, counters: Arc::default(), health };
    let config = Config::new(KubeletDirectory::new(PathBuf::from(kubelet)));
    let rules = Rules::default();
    let ended = steer::run_in_cluster(config, client, RealNode::NAME.to_owned(), rules, outputs, stop).await;
    println!("ended {ended:?}");
}
