//! Owns one real control plane: etcd, kube-apiserver, kube-scheduler, kube-controller-manager, and kwok for the nodes.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;
use tempfile::TempDir;

use super::components::{ClientLimits, Component, ControlPlaneFiles, SECOND_SCHEDULER};
use super::gpu_node::GpuNode;
use super::process::{Finished, Process, run_with_input};
use super::{assets, eventually};

/// Limit of the wait for other tests, of this process or another. Each holds the lock for minutes.
const PATIENCE_FOR_LOCK: Duration = Duration::from_secs(45 * 60);
/// Limit of a start, which takes ten seconds on a busy machine with two cores.
const PATIENCE_FOR_START: Duration = Duration::from_secs(90);
const PATIENCE_FOR_KUBECTL: Duration = Duration::from_secs(60);

/// A running control plane, which holds a machine-wide lock.
///
/// Two control planes at once would halve each other's speed and share the real node's cgroups and network names. A test
/// that fails prints the ends of all logs and keeps the folder.
pub(crate) struct ControlPlane {
    processes: BTreeMap<Component, Mutex<Process>>,
    files: ControlPlaneFiles,
    admin_kubeconfig: PathBuf,
    /// Set once the API server has created its certificate.
    admin: OnceLock<kube::Config>,
    kubectl: PathBuf,
    // Dropped last and in this order: the processes end before the folder is deleted, and the folder is deleted before the
    // lock is released.
    folder: TempDir,
    _lock: File,
}

impl ControlPlane {
    /// Starts a control plane in a new folder and on free ports; it is ready when this returns.
    pub(crate) async fn start() -> Self {
        Self::start_prepared(|_| {}).await
    }

    /// As [`ControlPlane::start`], but calls `prepare` with the folder first, for example to write an
    /// `AdmissionConfiguration`.
    pub(crate) async fn start_prepared(prepare: impl FnOnce(&Path)) -> Self {
        let kubectl = assets::program("kubectl").unwrap_or_else(|reason| panic!("no kubectl: {reason}"));
        let lock = machine_lock().await;
        let folder = working_folder();
        let files = ControlPlaneFiles::create(folder.path());
        prepare(folder.path());
        let processes = Component::ALL.map(|component| (component, Mutex::new(files.process(component)))).into();
        let admin_kubeconfig = files.admin_kubeconfig();
        let admin = OnceLock::new();
        let plane = Self { processes, files, admin_kubeconfig, admin, kubectl, folder, _lock: lock };
        plane.start_component(Component::Etcd);
        plane.start_component(Component::ApiServer);
        plane.ready().await;
        let admin = config(&plane.admin_kubeconfig).await;
        plane.admin.set(admin).expect("it is set here only");
        for component in [Component::ControllerManager, Component::Scheduler, Component::Kwok] {
            plane.start_component(component);
        }
        let accounts: Api<ServiceAccount> = Api::namespaced(plane.client(), "default");
        eventually("the controllers' first work, a service account", PATIENCE_FOR_START, async || {
            plane.expect_running();
            Ok(accounts.get("default").await?)
        })
        .await;
        plane
    }

    /// Waits until the API server is ready, for example after a restart of it or of etcd.
    pub(crate) async fn ready(&self) {
        eventually("the API server to be ready", PATIENCE_FOR_START, async || {
            self.expect_running();
            let ready = self.kubectl(&["get", "--raw=/readyz"]).await;
            ensure!(ready.status.success(), "{}{}", ready.stderr, self.log_tail(Component::ApiServer));
            Ok(())
        })
        .await;
    }

    /// The folder of this control plane, deleted on drop. Tests put files for their programs there.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn url(&self) -> String {
        self.files.url()
    }

    pub(crate) fn admin_kubeconfig(&self) -> &Path {
        &self.admin_kubeconfig
    }

    /// A new client of the administrator, without a rate limit. It belongs to the calling runtime.
    pub(crate) fn client(&self) -> kube::Client {
        let config = self.admin.get().expect("it is there once start has returned");
        kube::Client::try_from(config.clone()).expect("the certificate is readable")
    }

    /// Writes a kubeconfig with a new token of a service account.
    pub(crate) async fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> PathBuf {
        let arguments = ["create", "token", name, "--namespace", namespace, "--duration=2h"];
        let token = eventually("a service account's token", Duration::from_secs(10), async || {
            let created = self.kubectl(&arguments).await;
            ensure!(created.status.success(), "{}", created.stderr);
            Ok(created.stdout)
        })
        .await;
        self.kubeconfig_for_token(&format!("{namespace}-{name}"), token.trim())
    }

    /// Writes a kubeconfig with this bearer token into the folder of this control plane.
    pub(crate) fn kubeconfig_for_token(&self, name: &str, token: &str) -> PathBuf {
        let path = self.folder().join(format!("{name}.kubeconfig"));
        self.files.write_kubeconfig(&path, token);
        path
    }

    /// Runs kubectl as the administrator, on another thread, so that the test can serve a webhook at the same time.
    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> Finished {
        self.kubectl_with_input(arguments, "").await
    }

    /// Runs a shell script as the administrator, with kubectl in its `PATH`.
    pub(crate) async fn shell(&self, script: &str) -> Finished {
        let mut command = Command::new("bash");
        let path = std::env::var("PATH").unwrap_or_default();
        let folder = self.kubectl.parent().expect("a program is in a folder").display();
        command.args(["-euo", "pipefail", "-c", script]).env("PATH", format!("{folder}:{path}"));
        command.env("KUBECONFIG", &self.admin_kubeconfig).env("HOME", self.folder());
        let call =
            tokio::task::spawn_blocking(move || run_with_input(&mut command, String::new(), PATIENCE_FOR_KUBECTL));
        call.await.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))
    }

    /// Runs `kubectl apply -f -`.
    ///
    /// # Panics
    /// With kubectl's message if an object is refused.
    pub(crate) async fn apply(&self, yaml: &str) {
        self.kubectl_with_input(&["apply", "-f", "-"], yaml).await.expect_success();
    }

    pub(crate) async fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> Finished {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(&self.admin_kubeconfig).arg("--request-timeout=30s").args(arguments);
        command.env("HOME", self.folder()); // kubectl keeps its discovery cache there
        let input = input.to_owned();
        let call = tokio::task::spawn_blocking(move || run_with_input(&mut command, input, PATIENCE_FOR_KUBECTL));
        call.await.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))
    }

    /// Adds a node that kwok simulates; it is schedulable when this returns.
    pub(crate) async fn add_gpu_node(&self, node: &GpuNode) {
        let nodes: Api<Node> = Api::all(self.client());
        let object = serde_json::from_value(node.object()).expect("the object is a Node");
        nodes.create(&PostParams::default(), &object).await.expect("the node can be created");
        let status = Patch::Merge(node.status());
        nodes.patch_status(&node.name, &PatchParams::default(), &status).await.expect("its status can be written");
        self.schedulable(&node.name).await;
    }

    /// A scheduler with its own name and user and the rights of the stock one; not started yet.
    pub(crate) async fn second_scheduler(&self) -> Process {
        let user = format!("--user={SECOND_SCHEDULER}");
        for (kind, name, role) in [
            ("clusterrolebinding", "second-scheduler", "--clusterrole=system:kube-scheduler"),
            ("clusterrolebinding", "second-scheduler-volumes", "--clusterrole=system:volume-scheduler"),
            ("rolebinding", "second-scheduler", "--role=extension-apiserver-authentication-reader"),
        ] {
            self.kubectl(&["create", kind, name, "-n", "kube-system", role, &user]).await.expect_success();
        }
        self.files.another_scheduler(SECOND_SCHEDULER, SECOND_SCHEDULER, ClientLimits::Default)
    }

    /// The stock scheduler with other client limits. Stop the stock one before this one is started.
    pub(crate) fn scheduler_with(&self, limits: ClientLimits) -> Process {
        self.files.another_scheduler("default-scheduler", "scheduler", limits)
    }

    /// Waits until a node is ready and the taints of an unready node are removed.
    pub(crate) async fn schedulable(&self, node: &str) {
        let nodes: Api<Node> = Api::all(self.client());
        eventually("a schedulable node", Duration::from_secs(60), async || {
            let node = nodes.get(node).await?;
            let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
            if let Some(taint) = taints.iter().find(|taint| taint.key.starts_with("node.kubernetes.io/")) {
                bail!("taint {}{}", taint.key, self.log_tail(Component::ControllerManager));
            }
            Ok(())
        })
        .await;
    }

    /// Writes the quantity of a resource into capacity and allocatable of a node; `None` removes it.
    pub(crate) async fn publish(&self, node: &str, resource: &str, quantity: Option<&str>) {
        let nodes: Api<Node> = Api::all(self.client());
        let status = json!({"status": {"capacity": {resource: quantity}, "allocatable": {resource: quantity}}});
        let patched = nodes.patch_status(node, &PatchParams::default(), &Patch::Merge(status)).await;
        patched.expect("a node's status can be written");
    }

    /// The quantity of a resource in the status of a node.
    ///
    /// # Errors
    /// If the node has none, or if capacity and allocatable differ.
    pub(crate) async fn published(&self, node: &str, resource: &str) -> anyhow::Result<String> {
        let nodes: Api<Node> = Api::all(self.client());
        let status = nodes.get(node).await?.status.context("no status")?;
        let of = |list: Option<BTreeMap<String, Quantity>>| list.and_then(|mut list| list.remove(resource));
        let (capacity, allocatable) = (of(status.capacity), of(status.allocatable));
        ensure!(capacity == allocatable, "capacity {capacity:?}, allocatable {allocatable:?}");
        Ok(capacity.with_context(|| format!("no {resource}"))?.0)
    }

    pub(crate) fn log_tail(&self, component: Component) -> String {
        self.process(component).log_tail()
    }

    /// # Panics
    /// With the end of its log if a component ended without being stopped.
    #[track_caller]
    pub(crate) fn expect_running(&self) {
        for component in Component::ALL {
            self.process(component).expect_running();
        }
    }

    /// Kills a component.
    pub(crate) fn stop_component(&self, component: Component) {
        self.process(component).stop();
    }

    /// Starts a component with its former data and port. The API server needs [`ControlPlane::ready`] after it.
    pub(crate) fn start_component(&self, component: Component) {
        self.process(component).start();
    }

    /// A scheduler with a `KubeSchedulerConfiguration`. It has the port of the stock one, so stop that first.
    pub(crate) fn configured_scheduler(&self, configuration: serde_json::Value) -> Process {
        self.files.configured_scheduler(configuration)
    }

    /// Stops a component with SIGSTOP: its connections stay open and get no answer.
    pub(crate) fn pause_component(&self, component: Component) {
        self.process(component).pause();
    }

    pub(crate) fn resume_component(&self, component: Component) {
        self.process(component).resume();
    }

    /// Process id of a component, while it runs.
    pub(crate) fn pid(&self, component: Component) -> Option<u32> {
        self.process(component).pid()
    }

    fn process(&self, component: Component) -> MutexGuard<'_, Process> {
        // After a panic that poisoned the lock, drop still reads the logs.
        self.processes[&component].lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for component in Component::ALL {
                eprint!("{}", self.log_tail(component));
            }
            // The next start of a control plane deletes the folder.
            self.folder.disable_cleanup(true);
            eprintln!("all logs and files stay in {} until the next test", self.folder().display());
        }
        // Dependants stop first, so that none logs the end of its dependency.
        for component in Component::ALL.into_iter().rev() {
            self.stop_component(component);
        }
    }
}

async fn config(kubeconfig: &Path) -> kube::Config {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("the harness writes readable kubeconfigs");
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    config.expect("the kubeconfig is complete")
}

/// A new folder in the cache folder. The caller holds the lock, so an older one belongs to a killed test process.
fn working_folder() -> TempDir {
    const PREFIX: &str = "run-";
    let cache = assets::cache_folder();
    for entry in std::fs::read_dir(&cache).expect("the cache folder can be read").flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            let _ = std::fs::remove_dir_all(entry.path()); // may fail: the new folder has a new name
        }
    }
    tempfile::Builder::new().prefix(PREFIX).tempdir_in(&cache).expect("a folder can be made in the cache")
}

async fn machine_lock() -> File {
    let path = assets::cache_folder().join("control-plane.lock");
    let lock = File::options().create(true).truncate(false).write(true).read(true).open(&path);
    let lock = lock.unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()));
    let what = format!("other tests to give the machine free ({})", path.display());
    eventually(&what, PATIENCE_FOR_LOCK, async || lock.try_lock().context("another control plane runs")).await;
    lock
}
