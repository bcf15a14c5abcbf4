//! Several servers behind one port, each of which can be killed, hung and started again. What the API server calls is the
//! port; who answers is chance.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use anyhow::ensure;

use super::proxy::Proxy;
use super::{NAMESPACE, OnOutage, apply_manifests, metric, server, trusted, write_policies};
use crate::support::{ControlPlane, Process, eventually, free_port};

/// The replicas, and the port before them.
pub struct Replicas {
    replicas: Vec<Replica>,
    proxy: Proxy,
}

struct Replica {
    process: Mutex<Process>,
    http: u16,
}

impl Replicas {
    /// Applies the manifests and starts `count` servers; returns when all are in rotation and the API server trusts them.
    /// `binders` are the users that may bind pods.
    pub async fn start(
        plane: &ControlPlane,
        policies: &[(&str, &str)],
        count: usize,
        bindings: OnOutage,
        binders: &[&str],
    ) -> Replicas {
        let port = free_port();
        apply_manifests(plane, "deploy", port, bindings).await;
        let policies = write_policies(plane, policies);
        let kubeconfig = plane.service_account_kubeconfig(NAMESPACE, "vramguard").await;
        let ports: Vec<(u16, u16)> = (0..count).map(|_| (free_port(), free_port())).collect();
        let proxy = Proxy::start(port, &ports).await;
        let replica = |(number, &(https, http)): (usize, &(u16, u16))| {
            let process = server(&format!("vramguard-{number}"), plane, &kubeconfig, &policies, https, http);
            let mut process = process.env("VRAMGUARD_BINDER", binders.join(","));
            process.start();
            Replica { process: Mutex::new(process), http }
        };
        let replicas = ports.iter().enumerate().map(replica).collect();
        let replicas = Replicas { replicas, proxy };
        replicas.ready().await;
        trusted(plane, || replicas.log_tails()).await;
        replicas
    }

    /// Waits until all are in rotation.
    pub async fn ready(&self) {
        eventually("all replicas to be ready", Duration::from_secs(60), async || {
            self.expect_running();
            let ready = self.proxy.ready();
            ensure!(ready.iter().all(|ready| *ready), "{ready:?}{}", self.log_tails());
            Ok(())
        })
        .await;
    }

    /// How many there are, in whatever state.
    pub fn count(&self) -> usize {
        self.replicas.len()
    }

    /// The one that says that it leads, if one does.
    pub async fn leader(&self) -> Option<usize> {
        for (index, replica) in self.replicas.iter().enumerate() {
            let port = replica.http;
            // Off this thread: the call blocks for as long as a replica hangs.
            let asked = tokio::task::spawn_blocking(move || metric(port, "vramguard_leader"));
            if let Ok(Ok(Some(1.0))) = tokio::time::timeout(Duration::from_secs(1), asked).await {
                return Some(index);
            }
        }
        None
    }

    /// The sum over all of a metric without labels.
    pub fn sum(&self, name: &str) -> f64 {
        self.replicas.iter().filter_map(|replica| metric(replica.http, name)).sum()
    }

    /// Waits until one of them leads.
    pub async fn led(&self, within: Duration) -> usize {
        eventually("a replica to lead", within, async || {
            self.leader().await.ok_or_else(|| anyhow::anyhow!("none does{}", self.log_tails()))
        })
        .await
    }

    /// SIGKILL.
    pub fn kill(&self, index: usize) {
        self.process(index).stop();
    }

    /// SIGTERM, and waits for the end: it leaves the rotation and gives its Lease back.
    pub fn terminate(&self, index: usize) {
        let status = self.process(index).terminate(Duration::from_secs(30));
        assert!(status.success(), "{status}");
    }

    /// On its former ports; it is in rotation a little later. Does nothing where it runs.
    pub fn start_again(&self, index: usize) {
        self.process(index).start();
    }

    /// SIGSTOP: it stays in rotation until a probe fails.
    pub fn pause(&self, index: usize) {
        self.process(index).pause();
    }

    /// SIGCONT.
    pub fn resume(&self, index: usize) {
        self.process(index).resume();
    }

    /// Panics with a log's tail if one ended by itself.
    #[track_caller]
    pub fn expect_running(&self) {
        for index in 0..self.count() {
            self.process(index).expect_running();
        }
    }

    /// The ends of all logs.
    pub fn log_tails(&self) -> String {
        (0..self.count()).map(|index| self.process(index).log_tail()).collect()
    }

    fn process(&self, index: usize) -> MutexGuard<'_, Process> {
        self.replicas[index].process.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
