//! Owns several servers behind one port, which a test can kill, pause and restart one by one.
//!
//! The API server calls the port, and any server may answer.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use anyhow::ensure;

use super::proxy::Proxy;
use super::{NAMESPACE, OnOutage, apply_manifests, server, trusted, write_policies};
use crate::support::http::metric;
use crate::support::{ControlPlane, Process, eventually, free_port};

/// The replicas and the port in front of them.
pub(crate) struct Replicas {
    replicas: Vec<Replica>,
    proxy: Proxy,
}

struct Replica {
    process: Mutex<Process>,
    http: u16,
}

impl Replicas {
    /// Applies the manifests and starts `count` servers, which all are in rotation and trusted when this returns.
    ///
    /// `binders` are the users that may bind pods.
    pub(crate) async fn start(
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

    /// Waits until all replicas are in rotation.
    pub(crate) async fn ready(&self) {
        eventually("all replicas to be ready", Duration::from_secs(60), async || {
            self.expect_running();
            let ready = self.proxy.ready();
            ensure!(ready.iter().all(|ready| *ready), "{ready:?}{}", self.log_tails());
            Ok(())
        })
        .await;
    }

    /// Number of replicas, running or not.
    pub(crate) fn count(&self) -> usize {
        self.replicas.len()
    }

    /// Index of a replica whose metric says that it leads.
    pub(crate) async fn leader(&self) -> Option<usize> {
        for (index, replica) in self.replicas.iter().enumerate() {
            let port = replica.http;
            // On another thread, because the call blocks while a replica is paused.
            let asked = tokio::task::spawn_blocking(move || metric(port, "vramguard_leader"));
            if let Ok(Ok(Some(1.0))) = tokio::time::timeout(Duration::from_secs(1), asked).await {
                return Some(index);
            }
        }
        None
    }

    /// Sum of a metric without labels over all replicas.
    pub(crate) fn sum(&self, name: &str) -> f64 {
        self.replicas.iter().filter_map(|replica| metric(replica.http, name)).sum()
    }

    /// Waits until a replica leads, and returns its index.
    pub(crate) async fn led(&self, within: Duration) -> usize {
        eventually("a replica to lead", within, async || {
            self.leader().await.ok_or_else(|| anyhow::anyhow!("none does{}", self.log_tails()))
        })
        .await
    }

    /// Kills a replica with SIGKILL.
    pub(crate) fn kill(&self, index: usize) {
        self.process(index).stop();
    }

    /// Sends SIGTERM and waits for the end: the replica leaves the rotation and releases its Lease.
    pub(crate) fn terminate(&self, index: usize) {
        let status = self.process(index).terminate(Duration::from_secs(30));
        assert!(status.success(), "{status}");
    }

    /// Starts a replica on its former ports, if it does not run. It is in rotation a little later.
    pub(crate) fn start_again(&self, index: usize) {
        self.process(index).start();
    }

    /// Sends SIGSTOP. The replica stays in rotation until a probe fails.
    pub(crate) fn pause(&self, index: usize) {
        self.process(index).pause();
    }

    /// Sends SIGCONT.
    pub(crate) fn resume(&self, index: usize) {
        self.process(index).resume();
    }

    /// # Panics
    /// With the end of its log if a replica ended by itself.
    #[track_caller]
    pub(crate) fn expect_running(&self) {
        for index in 0..self.count() {
            self.process(index).expect_running();
        }
    }

    /// The ends of all logs.
    pub(crate) fn log_tails(&self) -> String {
        (0..self.count()).map(|index| self.process(index).log_tail()).collect()
    }

    fn process(&self, index: usize) -> MutexGuard<'_, Process> {
        self.replicas[index].process.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
