//! One real control plane: etcd, kube-apiserver, kube-scheduler, kube-controller-manager, and kwok for the nodes.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;
use tempfile::TempDir;

use super::components::{ClientLimits, Component, SECOND_SCHEDULER, Site};
use super::gpu_node::GpuNode;
use super::process::{Finished, Process, run_with_input};
use super::{assets, eventually};

/// Other tests, of this process or another, hold the machine for minutes; a queue of them for longer.
const PATIENCE_FOR_LOCK: Duration = Duration::from_secs(45 * 60);
/// A loaded machine of two cores takes ten seconds.
const PATIENCE_FOR_START: Duration = Duration::from_secs(90);
const PATIENCE_FOR_KUBECTL: Duration = Duration::from_secs(60);

/// Holds the machine-wide lock while it lives: two at once would halve each other's speed and share the real node's
/// cgroups and network names. A test that fails leaves the ends of all logs on stderr, and its folder.
pub struct ControlPlane {
    processes: BTreeMap<Component, Mutex<Process>>,
    site: Site,
    admin_kubeconfig: PathBuf,
    /// Read once the API server has made its certificate.
    admin: OnceLock<kube::Config>,
    kubectl: PathBuf,
    // Dropped last, in this order: processes have ended when the folder goes, and the folder is gone when the next one
    // may start.
    folder: TempDir,
    _lock: File,
}

impl ControlPlane {
    /// Starts one in a folder and on ports of its own; it is ready when this returns.
    pub async fn start() -> Self {
        Self::start_prepared(|_| {}).await
    }

    /// As [`ControlPlane::start`], after its folder was prepared: the API server reads its
    /// `AdmissionConfiguration` there.
    pub async fn start_prepared(prepare: impl FnOnce(&Path)) -> Self {
        let kubectl = assets::program("kubectl").unwrap_or_else(|reason| panic!("no kubectl: {reason}"));
        let lock = machine_lock().await;
        let folder = working_folder();
        let site = Site::create(folder.path());
        prepare(folder.path());
        let processes = Component::ALL.map(|component| (component, Mutex::new(site.process(component)))).into();
        let admin_kubeconfig = site.admin_kubeconfig();
        let admin = OnceLock::new();
        let plane = Self { processes, site, admin_kubeconfig, admin, kubectl, folder, _lock: lock };
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

    /// Waits until the API server says that it is ready: after a restart, or after etcd's.
    pub async fn ready(&self) {
        eventually("the API server to be ready", PATIENCE_FOR_START, async || {
            self.expect_running();
            let ready = self.kubectl(&["get", "--raw=/readyz"]).await;
            ensure!(ready.status.success(), "{}{}", ready.stderr, self.log_tail(Component::ApiServer));
            Ok(())
        })
        .await;
    }

    /// Its own folder, gone with it: for files that a test hands to the programs it starts.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn url(&self) -> String {
        self.site.url()
    }

    pub fn admin_kubeconfig(&self) -> &Path {
        &self.admin_kubeconfig
    }

    /// A new client of the cluster's administrator, without a limit on requests. It belongs to the calling runtime.
    pub fn client(&self) -> kube::Client {
        let config = self.admin.get().expect("it is there once start has returned");
        kube::Client::try_from(config.clone()).expect("the certificate is readable")
    }

    /// A kubeconfig with a fresh token of a service account: who uses it may do what that account's RBAC allows.
    pub async fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> PathBuf {
        let arguments = ["create", "token", name, "--namespace", namespace, "--duration=2h"];
        let token = eventually("a service account's token", Duration::from_secs(10), async || {
            let created = self.kubectl(&arguments).await;
            ensure!(created.status.success(), "{}", created.stderr);
            Ok(created.stdout)
        })
        .await;
        self.kubeconfig_for_token(&format!("{namespace}-{name}"), token.trim())
    }

    /// A kubeconfig with this bearer token, in this control plane's folder.
    pub fn kubeconfig_for_token(&self, name: &str, token: &str) -> PathBuf {
        let path = self.folder().join(format!("{name}.kubeconfig"));
        self.site.write_kubeconfig(&path, token);
        path
    }

    /// Runs kubectl as the administrator, off this thread: a webhook that the test serves can answer meanwhile.
    pub async fn kubectl(&self, arguments: &[&str]) -> Finished {
        self.kubectl_with_input(arguments, "").await
    }

    /// Runs a shell script as the administrator, with kubectl on its path.
    pub async fn shell(&self, script: &str) -> Finished {
        let mut command = Command::new("bash");
        let path = std::env::var("PATH").unwrap_or_default();
        let folder = self.kubectl.parent().expect("a program is in a folder").display();
        command.args(["-euo", "pipefail", "-c", script]).env("PATH", format!("{folder}:{path}"));
        command.env("KUBECONFIG", &self.admin_kubeconfig).env("HOME", self.folder());
        let call =
            tokio::task::spawn_blocking(move || run_with_input(&mut command, String::new(), PATIENCE_FOR_KUBECTL));
        call.await.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))
    }

    /// `kubectl apply -f -`; panics with what kubectl says when anything of it is refused.
    pub async fn apply(&self, yaml: &str) {
        self.kubectl_with_input(&["apply", "-f", "-"], yaml).await.expect_success();
    }

    pub async fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> Finished {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(&self.admin_kubeconfig).arg("--request-timeout=30s").args(arguments);
        command.env("HOME", self.folder()); // its discovery cache
        let input = input.to_owned();
        let call = tokio::task::spawn_blocking(move || run_with_input(&mut command, input, PATIENCE_FOR_KUBECTL));
        call.await.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))
    }

    /// Adds a node that kwok plays; when this returns it is ready and pods can be scheduled onto it.
    pub async fn add_gpu_node(&self, node: &GpuNode) {
        let nodes: Api<Node> = Api::all(self.client());
        let object = serde_json::from_value(node.object()).expect("the object is a Node");
        nodes.create(&PostParams::default(), &object).await.expect("the node can be created");
        let status = Patch::Merge(node.status());
        nodes.patch_status(&node.name, &PatchParams::default(), &status).await.expect("its status can be written");
        self.schedulable(&node.name).await;
    }

    /// A scheduler of its own name and user, with all the rights of the stock one; not started yet.
    pub async fn second_scheduler(&self) -> Process {
        let user = format!("--user={SECOND_SCHEDULER}");
        for (kind, name, role) in [
            ("clusterrolebinding", "second-scheduler", "--clusterrole=system:kube-scheduler"),
            ("clusterrolebinding", "second-scheduler-volumes", "--clusterrole=system:volume-scheduler"),
            ("rolebinding", "second-scheduler", "--role=extension-apiserver-authentication-reader"),
        ] {
            self.kubectl(&["create", kind, name, "-n", "kube-system", role, &user]).await.expect_success();
        }
        self.site.another_scheduler(SECOND_SCHEDULER, SECOND_SCHEDULER, ClientLimits::Default)
    }

    /// The stock scheduler with other client limits; to be started after that has been stopped.
    pub fn scheduler_with(&self, limits: ClientLimits) -> Process {
        self.site.another_scheduler("default-scheduler", "scheduler", limits)
    }

    /// Waits until a node is ready and the taint of nodes that are not is gone.
    pub async fn schedulable(&self, node: &str) {
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

    /// Writes a resource's number into the status of a node, capacity and allocatable alike; `None` takes it away.
    pub async fn publish(&self, node: &str, resource: &str, quantity: Option<&str>) {
        let nodes: Api<Node> = Api::all(self.client());
        let status = json!({"status": {"capacity": {resource: quantity}, "allocatable": {resource: quantity}}});
        let patched = nodes.patch_status(node, &PatchParams::default(), &Patch::Merge(status)).await;
        patched.expect("a node's status can be written");
    }

    pub fn log_tail(&self, component: Component) -> String {
        self.process(component).log_tail()
    }

    /// Panics with a log's tail if a component ended by itself; one that was stopped is none of that.
    #[track_caller]
    pub fn expect_running(&self) {
        for component in Component::ALL {
            self.process(component).expect_running();
        }
    }

    /// Kills it.
    pub fn stop_component(&self, component: Component) {
        self.process(component).stop();
    }

    /// Starts it on its former data and port. The API server answers a little later: [`ControlPlane::ready`].
    pub fn start_component(&self, component: Component) {
        self.process(component).start();
    }

    /// A scheduler with its own configuration (`KubeSchedulerConfiguration`), to be started in place of the stock one, whose
    /// port it has.
    pub fn configured_scheduler(&self, configuration: serde_json::Value) -> Process {
        self.site.configured_scheduler(configuration)
    }

    /// Lets it hang: connections stay open and nothing answers.
    pub fn pause_component(&self, component: Component) {
        self.process(component).pause();
    }

    pub fn resume_component(&self, component: Component) {
        self.process(component).resume();
    }

    /// Its process id, while it runs.
    pub fn pid(&self, component: Component) -> Option<u32> {
        self.process(component).pid()
    }

    fn process(&self, component: Component) -> MutexGuard<'_, Process> {
        // A test that panicked with the guard in hand is over, but its drop still wants the logs.
        self.processes[&component].lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for component in Component::ALL {
                eprint!("{}", self.log_tail(component));
            }
            // The next start of a control plane takes it away.
            self.folder.disable_cleanup(true);
            eprintln!("all logs and files stay in {} until the next test", self.folder().display());
        }
        // Dependants first, so that none logs the end of another.
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

/// A folder of its own, in the folder of the lock: with the lock in hand, one that is there already was left behind by
/// a test process that was killed.
fn working_folder() -> TempDir {
    const PREFIX: &str = "run-";
    let cache = assets::cache_folder();
    for entry in std::fs::read_dir(&cache).expect("the cache folder can be read").flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            let _ = std::fs::remove_dir_all(entry.path()); // only tidiness: the new one has a new name
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
