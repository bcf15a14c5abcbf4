//! Owns vramguard next to a control plane: the manifests of `deploy/`, with webhooks that call a process of this machine.
//!
//! The process runs under the service account of the manifests, so that the tests cover their RBAC.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};

use super::http::{get, metric, sum};
use super::{ControlPlane, Process, eventually, free_port, pause};

mod proxy;
mod replicas;

pub(crate) use replicas::Replicas;

/// One server that guards a control plane.
pub(crate) struct Guard {
    pub server: Process,
    /// Folder of policy files, which the server follows.
    pub policies: PathBuf,
    /// Port for the API server and kube-scheduler.
    pub https: u16,
    /// Port for metrics and health.
    http: u16,
}

const NAMESPACE: &str = "vramguard-system";

/// The `failurePolicy` of the webhook entry for bindings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnOutage {
    /// The one in the manifests.
    AsShipped,
    /// `failurePolicy: Fail`.
    Refuse,
    /// `failurePolicy: Ignore`.
    Allow,
}

impl Guard {
    /// Applies the manifests, starts a server, and waits until it is ready and the API server calls it.
    pub(crate) async fn start(plane: &ControlPlane, policies: &[(&str, &str)]) -> Guard {
        Guard::start_from(plane, "deploy", policies).await
    }

    /// As [`Guard::start`], with further flags for the server.
    pub(crate) async fn start_with(plane: &ControlPlane, policies: &[(&str, &str)], flags: &[&str]) -> Guard {
        Guard::start_all(plane, "deploy", policies, flags).await
    }

    /// As [`Guard::start`], with another kustomization of this repository.
    pub(crate) async fn start_from(plane: &ControlPlane, kustomization: &str, policies: &[(&str, &str)]) -> Guard {
        Guard::start_all(plane, kustomization, policies, &[]).await
    }

    /// As [`Guard::start_from`], with further flags for the server.
    pub(crate) async fn start_in(
        plane: &ControlPlane,
        kustomization: &str,
        policies: &[(&str, &str)],
        flags: &[&str],
    ) -> Guard {
        Guard::start_all(plane, kustomization, policies, flags).await
    }

    async fn start_all(plane: &ControlPlane, kustomization: &str, policies: &[(&str, &str)], flags: &[&str]) -> Guard {
        let (https, http) = (free_port(), free_port());
        apply_manifests(plane, kustomization, https, OnOutage::AsShipped).await;
        let directory = write_policies(plane, policies);
        let kubeconfig = plane.service_account_kubeconfig(NAMESPACE, "vramguard").await;
        let mut guard = Guard {
            server: server("vramguard", plane, &kubeconfig, &directory, https, http).args(flags),
            policies: directory,
            https,
            http,
        };
        guard.server.start();
        guard.ready(plane).await;
        guard
    }

    /// Waits until the server is ready and the webhook configurations trust it.
    pub(crate) async fn ready(&mut self, plane: &ControlPlane) {
        eventually("the server to be ready", Duration::from_secs(60), async || {
            self.server.expect_running();
            let ready = get(self.http, "/readyz");
            ensure!(ready.starts_with("HTTP/1.1 200"), "{ready}{}", self.server.log_tail());
            Ok(())
        })
        .await;
        trusted(plane, || self.server.log_tail()).await;
    }

    /// Starts another replica, which waits for leadership. Returns it with its port for metrics and health.
    pub(crate) async fn standby(&self, plane: &ControlPlane) -> (Process, u16) {
        let (https, http) = (free_port(), free_port());
        let kubeconfig = plane.service_account_kubeconfig(NAMESPACE, "vramguard").await;
        let mut standby = server("standby", plane, &kubeconfig, &self.policies, https, http);
        standby.start();
        eventually("the standby to be ready", Duration::from_secs(60), async || {
            standby.expect_running();
            let ready = get(http, "/readyz");
            ensure!(ready.starts_with("HTTP/1.1 200"), "{ready}");
            Ok(())
        })
        .await;
        (standby, http)
    }

    /// Writes a policy file and waits until the server has put it in force.
    pub(crate) async fn policy(&self, name: &str, text: &str) {
        let generation = || metric(self.http, "vramguard_policy_generation");
        let before = generation();
        std::fs::write(self.policies.join(name), text).expect("a policy file");
        eventually("the policy to be in force", Duration::from_secs(20), async || {
            ensure!(generation() > before, "generation {before:?}");
            Ok(())
        })
        .await;
    }

    /// Port for metrics and health.
    pub(crate) fn http(&self) -> u16 {
        self.http
    }

    /// The value of a metric without labels.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        metric(self.http, name)
    }

    /// Sum of the samples of a counter whose name and labels begin with `prefix`.
    pub(crate) fn sum(&self, prefix: &str) -> u64 {
        sum(self.http, prefix)
    }

    /// The answer to a scrape, headers included.
    pub(crate) fn metrics(&self) -> String {
        get(self.http, "/metrics")
    }
}

/// A server with this kubeconfig, not started yet. Its log is in the folder of the control plane.
fn server(name: &str, plane: &ControlPlane, kubeconfig: &Path, policies: &Path, https: u16, http: u16) -> Process {
    Process::new(name, Path::new(env!("CARGO_BIN_EXE_vramguard")), plane.folder())
        .arg("serve")
        .args(["--kubeconfig".as_ref(), kubeconfig.as_os_str()])
        .args(["--policies".as_ref(), policies.as_os_str()])
        .args(["--listen", &format!("127.0.0.1:{https}"), "--metrics-listen", &format!("127.0.0.1:{http}")])
        .args(["--cert-secret", "vramguard-tls", "--cert-name", "127.0.0.1"])
        .args(["--identity", name, "--drain", "1"])
        .env("RUST_LOG", "info,vramguard=debug,kube=warn")
}

/// Waits until the webhook configurations have a CA; a failure shows `log`.
async fn trusted(plane: &ControlPlane, log: impl Fn() -> String) {
    eventually("the webhook configurations to trust it", Duration::from_secs(60), async || {
        for kind in ["mutatingwebhookconfiguration", "validatingwebhookconfiguration"] {
            let path = "jsonpath={.webhooks[*].clientConfig.caBundle}";
            let bundle = plane.kubectl(&["get", kind, "vramguard", "-o", path]).await.expect_success();
            ensure!(!bundle.is_empty(), "{kind} has no caBundle{}", log());
        }
        Ok(())
    })
    .await;
    configurations_reread().await;
}

/// Waits for the API server to see changed webhook configurations.
///
/// It reads them through a watch of its own and does not say which version it uses, so this waits for a fixed time.
pub(crate) async fn configurations_reread() {
    pause(Duration::from_secs(2)).await;
}

fn write_policies(plane: &ControlPlane, policies: &[(&str, &str)]) -> PathBuf {
    let directory = plane.folder().join("policies");
    std::fs::create_dir_all(&directory).expect("a folder for policies");
    for (name, text) in policies {
        std::fs::write(directory.join(name), text).expect("a policy file");
    }
    directory
}

/// The objects of a kustomization as `kubectl apply -k` would send them.
pub(crate) async fn manifests(plane: &ControlPlane, kustomization: &str) -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(kustomization);
    let folder = folder.to_str().expect("a checkout has a plain path");
    let rendered = plane.kubectl(&["kustomize", folder]).await.expect_success();
    let objects = rendered.split("\n---\n").map(|text| serde_saphyr::from_str(text).expect("kubectl prints YAML"));
    objects.collect()
}

/// Applies the shipped manifests, without the Deployment and with the URL of a local port in place of the Service.
pub(crate) async fn apply_manifests(plane: &ControlPlane, kustomization: &str, https: u16, bindings: OnOutage) {
    let mut objects = manifests(plane, kustomization).await;
    objects.retain(|object| object["kind"] != "Deployment");
    for entry in objects.iter_mut().filter_map(|object| object["webhooks"].as_array_mut()).flatten() {
        let path = entry["clientConfig"]["service"]["path"].as_str().expect("each entry names a path").to_owned();
        entry["clientConfig"] = json!({"url": format!("https://127.0.0.1:{https}{path}")});
        let outage = match bindings {
            OnOutage::AsShipped => continue,
            OnOutage::Refuse => "Fail",
            OnOutage::Allow => "Ignore",
        };
        if entry["name"] == "bindings.vramguard.dev" {
            entry["failurePolicy"] = json!(outage);
        }
    }
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    plane.apply(&list.to_string()).await;
}
