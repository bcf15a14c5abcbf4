//! Owns a server on a snapshot, without a control plane: its files, its ports and its process.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::Client;
use super::http::{get, metric};
use super::process::write;
use super::{Process, eventually, free_port, run};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_vramguard");

/// Limit for anything that takes a moment on a quiet machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

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

/// Namespace `lab` requires a declaration; other namespaces, such as `team`, do not.
pub(crate) const POLICIES: &str = "\
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
pub(crate) struct ServerFiles {
    folder: TempDir,
    /// Port for reviews.
    pub https: u16,
    /// Port for metrics and health.
    pub http: u16,
}

impl ServerFiles {
    /// Writes a snapshot of two GPU nodes and the policies, but no certificate.
    pub(crate) fn new() -> ServerFiles {
        let folder = tempfile::tempdir().expect("a folder for a server");
        let files = ServerFiles { folder, https: free_port(), http: free_port() };
        for made in [files.policies(), files.certificates()] {
            std::fs::create_dir(made).expect("a folder in a new one");
        }
        write(&files.snapshot(), SNAPSHOT);
        write(&files.policies().join("policies.yaml"), POLICIES);
        files
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn snapshot(&self) -> PathBuf {
        self.folder.path().join("cluster.yaml")
    }

    pub(crate) fn policies(&self) -> PathBuf {
        self.folder.path().join("policies")
    }

    pub(crate) fn certificates(&self) -> PathBuf {
        self.folder.path().join("certificates")
    }

    /// Arguments of a server with these files.
    pub(crate) fn arguments(&self) -> Vec<String> {
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

    /// A command that serves these files, for a server that must fail to start.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(BINARY);
        command.arg("serve").args(self.arguments());
        command
    }

    /// A server with further flags, not started yet.
    pub(crate) fn server(self, flags: &[&str]) -> TestServer {
        let process = Process::new("vramguard", Path::new(BINARY), self.folder.path())
            .arg("serve")
            .args(self.arguments())
            .args(flags)
            .env("RUST_LOG", "info,vramguard=trace");
        TestServer { process, files: self }
    }
}

/// A server, running or not.
pub(crate) struct TestServer {
    pub process: Process,
    pub files: ServerFiles,
}

impl TestServer {
    /// Starts a server with a self-signed certificate, and waits until it is ready.
    pub(crate) async fn start() -> TestServer {
        TestServer::start_with(&[]).await
    }

    /// As [`TestServer::start`], with further flags.
    pub(crate) async fn start_with(flags: &[&str]) -> TestServer {
        let mut server = ServerFiles::new().server(&[&["--self-signed"], flags].concat());
        server.process.start();
        server.ready().await;
        server
    }

    /// A server that concurrent tests share; the last one stops it. Its users must not change its files or count metrics.
    pub(crate) async fn shared() -> Arc<TestServer> {
        static SHARED: tokio::sync::Mutex<Weak<TestServer>> = tokio::sync::Mutex::const_new(Weak::new());
        let mut shared = SHARED.lock().await;
        if let Some(server) = shared.upgrade() {
            return server;
        }
        let server = Arc::new(TestServer::start().await);
        *shared = Arc::downgrade(&server);
        server
    }

    pub(crate) async fn ready(&mut self) {
        eventually("the server to be ready", PATIENCE, async || {
            self.process.expect_running();
            let answer = self.plain("/readyz");
            ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            Ok(())
        })
        .await;
    }

    /// # Panics
    /// If the server is not ready.
    pub(crate) fn expect_ready(&self) {
        let answer = self.plain("/readyz");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}{}", self.process.log_tail());
    }

    /// The answer of the port for metrics and health.
    pub(crate) fn plain(&self, path: &str) -> String {
        get(self.files.http, path)
    }

    /// Value of one sample in `/metrics`. `sample` is its name, with all its labels if it has any.
    pub(crate) fn metric(&self, sample: &str) -> Option<f64> {
        metric(self.files.http, sample)
    }

    pub(crate) fn log(&self) -> String {
        let log = std::fs::read(self.files.folder().join("vramguard.log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// The CA of a server with a self-signed certificate, in PEM.
    pub(crate) fn ca(&self) -> String {
        std::fs::read_to_string(self.files.certificates().join("ca.crt")).expect("the CA is there once it is ready")
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.files.https, &self.ca(), "http/1.1").await.expect("the server takes connections")
    }

    /// Sends SIGTERM and does not wait for the end.
    pub(crate) fn tell_to_stop(&self) {
        let pid = self.process.pid().expect("it runs").to_string();
        run(Command::new("kill").args(["-TERM", &pid]), Duration::from_secs(5)).expect_success();
    }
}

/// A pod with one container that requests one replica.
pub(crate) fn pod(namespace: &str, annotations: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": namespace, "name": "agent", "annotations": annotations },
        "spec": { "containers": [
            { "name": "main", "image": "none", "resources": { "limits": { "nvidia.com/gpu": "1" }, "requests": { "nvidia.com/gpu": "1" } } },
        ] },
    })
}

/// The review of the creation of a pod, as the API server sends it.
pub(crate) fn review(pod: &Value) -> Value {
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
