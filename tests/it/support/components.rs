//! Owns the programs of the control plane, their flags, and their files.
//!
//! The programs behave as in a stock cluster wherever a test could notice; each deviation below has its reason.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::json;

use super::assets;
use super::process::{Process, write};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Component {
    Etcd,
    ApiServer,
    ControllerManager,
    Scheduler,
    /// Simulates the kubelets of the nodes that [`super::ControlPlane::add_gpu_node`] adds.
    Kwok,
}

impl Component {
    /// All components, each after the ones that it depends on.
    pub(crate) const ALL: [Self; 5] =
        [Self::Etcd, Self::ApiServer, Self::ControllerManager, Self::Scheduler, Self::Kwok];

    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Kwok => "kwok",
        }
    }
}

/// Annotation of the nodes that kwok simulates.
pub(super) const KWOK_NODE: (&str, &str) = ("kwok.x-k8s.io/node", "fake");

const ADMIN: &str = "admin";

/// Name and user of a scheduler that runs next to the stock one.
pub(crate) const SECOND_SCHEDULER: &str = "second-scheduler";

/// How many requests a second a scheduler may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientLimits {
    /// The defaults of kube-scheduler.
    Default,
    /// A limit above what a test machine can serve.
    Raised,
}

/// Token, name and groups of each user. Kubernetes' bootstrap roles bind the names of the components.
const USERS: [(&str, &str, &str); 6] = [
    (ADMIN, "admin", "system:masters"),
    ("controller-manager", "system:kube-controller-manager", ""),
    ("scheduler", "system:kube-scheduler", ""),
    (SECOND_SCHEDULER, SECOND_SCHEDULER, ""),
    ("kwok", "kwok", "system:masters"),
    // The API server reads tokens once, at its start, and a real node may join later.
    ("real-0", "system:node:real-0", "system:nodes"),
];

/// Name of the certificate and key with which the API server calls a kubelet.
pub(super) const KUBELET_CLIENT: &str = "kubelet-client";

/// File name of the API server's AdmissionConfiguration, which a test may write.
pub(crate) const ADMISSION_CONFIGURATION: &str = "admission-configuration.yaml";

/// Files and ports of one control plane.
pub(super) struct ControlPlaneFiles {
    folder: PathBuf,
    api_server: u16,
    etcd_client: u16,
    etcd_peer: u16,
    controller_manager: u16,
    scheduler: u16,
}

impl ControlPlaneFiles {
    /// Writes keys, tokens and kubeconfigs into `folder`.
    pub(super) fn create(folder: &Path) -> Self {
        let files = Self {
            folder: folder.to_owned(),
            api_server: free_port(),
            etcd_client: free_port(),
            etcd_peer: free_port(),
            controller_manager: free_port(),
            scheduler: free_port(),
        };
        let key = rcgen::KeyPair::generate().expect("a key can be generated");
        write(&files.file("service-accounts.key"), key.serialize_pem());
        write(&files.file("service-accounts.pub"), key.public_key_pem());
        files.write_kubelet_client();
        let line = |(token, user, groups): (&str, &str, &str)| format!("token-{token},{user},{user},\"{groups}\"\n");
        let nodes = (0..4).map(|n| format!("token-real-{n},system:node:real-{n},real-{n},\"system:nodes\"\n"));
        write(&files.file("tokens.csv"), USERS.into_iter().map(line).chain(nodes).collect::<String>());
        for (token, ..) in USERS {
            files.write_kubeconfig(&files.kubeconfig(token), &format!("token-{token}"));
        }
        write(&files.file("kwok.yaml"), include_str!("kwok.yaml"));
        files
    }

    /// Writes a self-signed certificate, the only one that the test kubelet trusts.
    fn write_kubelet_client(&self) {
        let mut parameters = rcgen::CertificateParams::default();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "kube-apiserver");
        parameters.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let key = rcgen::KeyPair::generate().expect("a key can be generated");
        let certificate = parameters.self_signed(&key).expect("a certificate can be signed");
        write(&self.file(&format!("{KUBELET_CLIENT}.crt")), certificate.pem());
        write(&self.file(&format!("{KUBELET_CLIENT}.key")), key.serialize_pem());
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(super) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.api_server)
    }

    pub(super) fn admin_kubeconfig(&self) -> PathBuf {
        self.kubeconfig(ADMIN)
    }

    fn kubeconfig(&self, user: &str) -> PathBuf {
        self.file(&format!("{user}.kubeconfig"))
    }

    /// Writes a kubeconfig. It refers to a certificate that exists only once the API server has started.
    pub(super) fn write_kubeconfig(&self, path: &Path, token: &str) {
        let cluster = json!({"server": self.url(), "certificate-authority": self.file("tls/apiserver.crt")});
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        write(path, kubeconfig.to_string());
    }

    pub(super) fn process(&self, component: Component) -> Process {
        let name = component.program();
        let program = assets::program(name).unwrap_or_else(|reason| panic!("no {name}: {reason}"));
        let process = Process::new(name, &program, &self.folder);
        match component {
            Component::Etcd => self.etcd(process),
            Component::ApiServer => self.api_server(process),
            Component::ControllerManager => self.controller_manager(process),
            Component::Scheduler => self.scheduler(process),
            Component::Kwok => self.kwok(process),
        }
    }

    fn etcd(&self, process: Process) -> Process {
        let (client, peer) = (loopback(self.etcd_client), loopback(self.etcd_peer));
        process
            .arg(format!("--data-dir={}", self.file("etcd").display()))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster=default={peer}"))
            .arg("--unsafe-no-fsync") // data survives SIGKILL, and tests do nothing worse
            .arg("--log-level=warn")
    }

    fn api_server(&self, mut process: Process) -> Process {
        let configuration = self.file(ADMISSION_CONFIGURATION);
        if configuration.exists() {
            process = process.arg(format!("--admission-control-config-file={}", configuration.display()));
        }
        process
            .arg(format!("--etcd-servers={}", loopback(self.etcd_client)))
            .arg("--bind-address=127.0.0.1")
            .arg(format!("--secure-port={}", self.api_server))
            .arg(format!("--cert-dir={}", self.file("tls").display()))
            // The Service `kubernetes` may not have a loopback endpoint, and no test uses it.
            .arg("--endpoint-reconciler-type=none")
            .arg("--service-cluster-ip-range=10.96.0.0/24")
            .arg("--service-account-issuer=https://kubernetes.default.svc.cluster.local")
            .arg(format!("--service-account-key-file={}", self.file("service-accounts.pub").display()))
            .arg(format!("--service-account-signing-key-file={}", self.file("service-accounts.key").display()))
            .arg(format!("--token-auth-file={}", self.file("tokens.csv").display()))
            .arg("--authorization-mode=Node,RBAC")
            .arg("--enable-admission-plugins=NodeRestriction")
            // With this plugin a pod is refused until the controller-manager has created the service account of a new
            // namespace. Pods of tests need no token.
            .arg("--disable-admission-plugins=ServiceAccount")
            .arg("--allow-privileged=true")
            // No name server resolves the host names of the nodes.
            .arg("--kubelet-preferred-address-types=InternalIP")
            .arg(format!("--kubelet-client-certificate={}", self.file(&format!("{KUBELET_CLIENT}.crt")).display()))
            .arg(format!("--kubelet-client-key={}", self.file(&format!("{KUBELET_CLIENT}.key")).display()))
    }

    fn controller_manager(&self, process: Process) -> Process {
        process
            .arg(format!("--kubeconfig={}", self.kubeconfig("controller-manager").display()))
            .arg("--bind-address=127.0.0.1")
            .arg(format!("--secure-port={}", self.controller_manager))
            .arg(format!("--cert-dir={}", self.file("controller-manager-tls").display()))
            .arg(format!("--root-ca-file={}", self.file("tls/apiserver.crt").display()))
            .arg(format!("--service-account-private-key-file={}", self.file("service-accounts.key").display()))
            .arg("--leader-elect=false")
            // The bootstrap roles bind the service accounts of the single controllers.
            .arg("--use-service-account-credentials=true")
            // This client must not limit bursts of pods: the API server is what tests measure.
            .args(["--kube-api-qps=500", "--kube-api-burst=1000", "--resource-quota-sync-period=10s"])
    }

    /// The stock scheduler under `configuration`, which gets the connection to the API server added.
    pub(super) fn configured_scheduler(&self, mut configuration: serde_json::Value) -> Process {
        configuration["clientConnection"] = json!({"kubeconfig": self.kubeconfig("scheduler")});
        configuration["leaderElection"] = json!({"leaderElect": false});
        let path = self.file("scheduler-config.json");
        write(&path, configuration.to_string());
        let program = assets::program("kube-scheduler").unwrap_or_else(|reason| panic!("no kube-scheduler: {reason}"));
        let process = Process::new("kube-scheduler-configured", &program, &self.folder);
        self.scheduler_flags(process.arg(format!("--config={}", path.display())))
    }

    fn scheduler(&self, process: Process) -> Process {
        self.scheduler_flags(process.arg(format!("--kubeconfig={}", self.kubeconfig("scheduler").display())))
            .arg("--leader-elect=false")
    }

    fn scheduler_flags(&self, process: Process) -> Process {
        process
            .arg("--bind-address=127.0.0.1")
            .arg(format!("--secure-port={}", self.scheduler))
            .arg(format!("--cert-dir={}", self.file("scheduler-tls").display()))
            .arg("--v=2") // logs every binding and why a pod does not fit, which explains a failed test
    }

    /// A scheduler for pods with `spec.schedulerName: name`, with the kubeconfig of `user`.
    pub(super) fn another_scheduler(&self, name: &str, user: &str, limits: ClientLimits) -> Process {
        let mut client = json!({"kubeconfig": self.kubeconfig(user)});
        if limits == ClientLimits::Raised {
            client["qps"] = json!(5000);
            client["burst"] = json!(10_000);
        }
        let config = json!({
            "apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
            "clientConnection": client, "leaderElection": {"leaderElect": false}, "profiles": [{"schedulerName": name}],
        });
        let file = self.file(&format!("{name}.yaml"));
        write(&file, config.to_string());
        let program = assets::program("kube-scheduler").unwrap_or_else(|reason| panic!("no kube-scheduler: {reason}"));
        Process::new(&format!("scheduler-{name}"), &program, &self.folder)
            .arg(format!("--config={}", file.display()))
            .arg("--bind-address=127.0.0.1")
            .arg(format!("--secure-port={}", free_port()))
            .arg(format!("--cert-dir={}", self.file(&format!("{name}-tls")).display()))
            .arg("--v=2")
    }

    fn kwok(&self, process: Process) -> Process {
        process
            .arg(format!("--kubeconfig={}", self.kubeconfig("kwok").display()))
            .arg(format!("--config={}", self.file("kwok.yaml").display()))
            .arg("--manage-all-nodes=false")
            .arg(format!("--manage-nodes-with-annotation-selector={}={}", KWOK_NODE.0, KWOK_NODE.1))
            .arg("--node-lease-duration-seconds=40")
            .env("HOME", &self.folder) // it reads ~/.kwok otherwise
    }
}

fn loopback(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

/// A free TCP port of the loopback interface, below the ephemeral range.
///
/// While a server is stopped, the system could give its port to an outgoing connection if it were an ephemeral port.
pub(crate) fn free_port() -> u16 {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 10_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % u32::from(COUNT)) as u16; // two processes that start at once seldom collide
    for _ in 0..COUNT {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        let port = FIRST + (start + offset) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port from {FIRST} to {}", FIRST + COUNT);
}
