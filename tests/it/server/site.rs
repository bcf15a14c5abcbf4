//! A server with its files: a snapshot of two GPU nodes, policies for four namespaces, certificates.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::Client;
use crate::guard::get;
use crate::support::{Process, eventually, free_port, run};

pub const BINARY: &str = env!("CARGO_BIN_EXE_vramguard");

/// How long anything may take that should take a moment: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(20);

const SNAPSHOT: &str = r#"
apiVersion: v1
kind: List
items:
  - apiVersion: v1
    kind: Node
    metadata:
      name: h100-0
      labels:
        nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3-SHARED
        nvidia.com/gpu.memory: "81559"
        nvidia.com/gpu.count: "1"
        nvidia.com/gpu.replicas: "8"
        nvidia.com/gpu.sharing-strategy: time-slicing
    status:
      capacity: {nvidia.com/gpu: "8"}
      allocatable: {nvidia.com/gpu: "8"}
  - apiVersion: v1
    kind: Node
    metadata:
      name: l40s-0
      labels:
        nvidia.com/gpu.product: NVIDIA-L40S-SHARED
        nvidia.com/gpu.memory: "46068"
        nvidia.com/gpu.count: "2"
        nvidia.com/gpu.replicas: "4"
        nvidia.com/gpu.sharing-strategy: time-slicing
    status:
      capacity: {nvidia.com/gpu: "8"}
      allocatable: {nvidia.com/gpu: "8"}
"#;

/// Namespace `lab` requires a declaration; others, `team` say, don't.
pub const POLICIES: &str = "\
apiVersion: vramguard.dev/v1alpha1
kind: ClusterVramPolicy
metadata: {name: cluster}
spec: {mode: Enforce}
---
apiVersion: vramguard.dev/v1alpha1
kind: VramPolicy
metadata: {name: lab, namespace: lab}
spec: {declaration: {required: true}}
";

/// The files and ports of a server.
pub struct Site {
    folder: TempDir,
    /// Where reviews are answered.
    pub https: u16,
    /// Where metrics and health are.
    pub http: u16,
}

impl Site {
    /// Writes snapshot and policies; there is no certificate yet.
    pub fn new() -> Site {
        let folder = tempfile::tempdir().expect("a folder for a server");
        let site = Site { folder, https: free_port(), http: free_port() };
        for made in [site.policies(), site.certificates()] {
            std::fs::create_dir(made).expect("a folder in a new one");
        }
        write(&site.snapshot(), SNAPSHOT);
        write(&site.policies().join("policies.yaml"), POLICIES);
        site
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn snapshot(&self) -> PathBuf {
        self.folder.path().join("cluster.yaml")
    }

    pub fn policies(&self) -> PathBuf {
        self.folder.path().join("policies")
    }

    pub fn certificates(&self) -> PathBuf {
        self.folder.path().join("certificates")
    }

    /// The arguments of a server on these files.
    pub fn arguments(&self) -> Vec<String> {
        let (snapshot, policies, certificates) = (self.snapshot(), self.policies(), self.certificates());
        let path = |path: PathBuf| path.display().to_string();
        [
            ("--snapshot", path(snapshot)),
            ("--policies", path(policies)),
            ("--cert-dir", path(certificates)),
            ("--listen", format!("127.0.0.1:{}", self.https)),
            ("--metrics-listen", format!("127.0.0.1:{}", self.http)),
            ("--drain", "1".to_owned()),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
    }

    /// A command that serves on these files, for servers that are not expected to.
    pub fn command(&self) -> Command {
        let mut command = Command::new(BINARY);
        command.arg("serve").args(self.arguments());
        command
    }

    /// A server that is to be started with these flags too.
    pub fn server(self, flags: &[&str]) -> Server {
        let process = Process::new("vramguard", Path::new(BINARY), self.folder.path())
            .arg("serve")
            .args(self.arguments())
            .args(flags)
            .env("RUST_LOG", "info,vramguard=trace");
        Server { process, site: self }
    }
}

/// A server that runs, or may.
pub struct Server {
    pub process: Process,
    pub site: Site,
}

impl Server {
    /// Starts one with a certificate of its own making, and waits until it is ready.
    pub async fn start() -> Server {
        Server::start_with(&[]).await
    }

    /// As [`Server::start`], with further flags.
    pub async fn start_with(flags: &[&str]) -> Server {
        let mut server = Site::new().server(&[&["--self-signed"], flags].concat());
        server.process.start();
        server.ready().await;
        server
    }

    /// One for all tests that leave it as they found it: each holds it while it runs, the last one stops it.
    pub async fn shared() -> Arc<Server> {
        static SHARED: tokio::sync::Mutex<Weak<Server>> = tokio::sync::Mutex::const_new(Weak::new());
        let mut shared = SHARED.lock().await;
        if let Some(server) = shared.upgrade() {
            return server;
        }
        let server = Arc::new(Server::start().await);
        *shared = Arc::downgrade(&server);
        server
    }

    pub async fn ready(&mut self) {
        eventually("the server to be ready", PATIENCE, async || {
            self.process.expect_running();
            let answer = self.plain("/readyz");
            ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            Ok(())
        })
        .await;
    }

    /// Whether it is alive and would be sent reviews.
    pub fn expect_ready(&self) {
        let answer = self.plain("/readyz");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}{}", self.process.log_tail());
    }

    /// Asks the plain port.
    pub fn plain(&self, path: &str) -> String {
        get(self.site.http, path)
    }

    /// The value of one sample, named as it stands in `/metrics`, labels and all.
    pub fn metric(&self, sample: &str) -> Option<f64> {
        let text = self.plain("/metrics");
        let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '))?;
        Some(value.parse().expect("a sample is a number"))
    }

    pub fn log(&self) -> String {
        let log = std::fs::read(self.site.folder().join("vramguard.log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// The CA of a server that signed for itself.
    pub fn ca(&self) -> String {
        std::fs::read_to_string(self.site.certificates().join("ca.crt")).expect("the CA is there once it is ready")
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.site.https, &self.ca(), "http/1.1").await.expect("the server takes connections")
    }

    /// Sends SIGTERM and does not wait.
    pub fn tell_to_stop(&self) {
        let pid = self.process.pid().expect("it runs").to_string();
        run(Command::new("kill").args(["-TERM", &pid]), Duration::from_secs(5)).expect_success();
    }
}

/// Writes a file as a whole, or panics.
pub fn write(path: &Path, text: impl AsRef<[u8]>) {
    std::fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// A pod with one container that asks for one replica.
pub fn pod(namespace: &str, annotations: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": namespace, "name": "agent", "annotations": annotations },
        "spec": { "containers": [
            { "name": "main", "image": "none", "resources": { "limits": { "nvidia.com/gpu": "1" }, "requests": { "nvidia.com/gpu": "1" } } },
        ] },
    })
}

/// The review of a pod's creation, as the API server sends it.
pub fn review(pod: &Value) -> Value {
    let namespace = &pod["metadata"]["namespace"];
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "resource": { "group": "", "version": "v1", "resource": "pods" },
            "requestKind": { "group": "", "version": "v1", "kind": "Pod" },
            "requestResource": { "group": "", "version": "v1", "resource": "pods" },
            "name": pod["metadata"]["name"], "namespace": namespace, "operation": "CREATE",
            "userInfo": { "username": "system:serviceaccount:kube-system:replicaset-controller", "groups": ["system:authenticated"] },
            "object": pod, "oldObject": null, "dryRun": false,
            "options": { "kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1" },
        },
    })
}
