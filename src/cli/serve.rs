//! `vramguard serve`: turns its arguments into a [`Config`].
//!
//! Owns these arguments and the log format. Running the server belongs to [`crate::server`].

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::Failure;
use crate::controller::audit::{Audits, Page};
use crate::keys;
use crate::metrics::Detail;
use crate::server::{self, CertificateSource, ClientCertificates, Config};

/// Arguments of `serve`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Directory of policy files (*.yaml, *.yml, *.json). The server applies changes to them while it runs. Without
    /// a ClusterVramPolicy every namespace is in mode Audit unless a VramPolicy sets another
    #[arg(long, value_name = "DIR", env = "VRAMGUARD_POLICIES")]
    pub policies: Option<PathBuf>,

    /// File with a snapshot of a cluster, as `kubectl get nodes,pods -A -o yaml` prints it. The server answers from the
    /// snapshot instead of a live cluster. Repeatable
    #[arg(long, value_name = "FILE", env = "VRAMGUARD_SNAPSHOT", value_delimiter = ',')]
    pub snapshot: Vec<PathBuf>,

    /// Address on which the server answers reviews (HTTPS). `[::]` includes IPv4; on a machine without IPv6 it falls
    /// back to 0.0.0.0
    #[arg(long, value_name = "ADDR", env = "VRAMGUARD_LISTEN", default_value = "[::]:8443")]
    pub listen: SocketAddr,

    /// Address on which the server serves /metrics, /healthz and /readyz (plain HTTP)
    #[arg(long, value_name = "ADDR", env = "VRAMGUARD_METRICS_LISTEN", default_value = "[::]:8080")]
    pub metrics_listen: SocketAddr,

    /// Serve POST /scheduler/filter, for a kube-scheduler that is configured to call this server as an extender
    #[arg(long, env = "VRAMGUARD_SCHEDULER_EXTENDER")]
    pub scheduler_extender: bool,

    /// PEM bundle of the CAs whose client certificates the HTTPS port accepts. The server applies changes to the file
    /// while it runs. Without this flag any client that reaches the port is accepted
    #[arg(long, value_name = "FILE", env = "VRAMGUARD_CLIENT_CA")]
    pub client_ca: Option<PathBuf>,

    /// Common name or DNS name of an accepted client certificate. Repeatable. Without this flag any certificate of
    /// --client-ca is accepted
    #[arg(long, value_name = "NAME", env = "VRAMGUARD_CLIENT_NAME", value_delimiter = ',', requires = "client_ca")]
    pub client_name: Vec<String>,

    /// Directory with tls.crt and tls.key. The server applies changes to them while it runs. Required unless
    /// --cert-secret is given
    #[arg(long, value_name = "DIR", env = "VRAMGUARD_CERT_DIR", required_unless_present = "cert_secret")]
    pub cert_dir: Option<PathBuf>,

    /// Create tls.crt, tls.key and ca.crt in --cert-dir if they are missing (for development)
    #[arg(long, env = "VRAMGUARD_SELF_SIGNED", requires = "cert_dir")]
    pub self_signed: bool,

    /// Name of the Secret, in the namespace of this server, in which the leader keeps the serving certificate. The
    /// leader also keeps the caBundle of the webhook configurations
    #[arg(long, value_name = "NAME", env = "VRAMGUARD_CERT_SECRET", conflicts_with_all = ["cert_dir", "snapshot"])]
    pub cert_secret: Option<String>,

    /// Additional DNS name or IP address for the certificates that vramguard issues. Repeatable
    #[arg(long, value_name = "NAME", env = "VRAMGUARD_CERT_NAME", value_delimiter = ',')]
    pub cert_name: Vec<String>,

    /// Name of the Service in front of this server; certificates are issued for it
    #[arg(long, value_name = "NAME", env = "VRAMGUARD_SERVICE", default_value = "vramguard")]
    pub service: String,

    /// Name of the mutating and of the validating webhook configuration that the leader keeps in step with the policies
    #[arg(long, value_name = "NAME", env = "VRAMGUARD_WEBHOOK_CONFIGURATION", default_value = "vramguard")]
    pub webhook_configuration: String,

    /// Namespace of this server. It holds the Lease and the Secret, and is always exempt
    #[arg(long, value_name = "NAMESPACE", env = "VRAMGUARD_NAMESPACE", default_value = keys::NAMESPACE)]
    pub namespace: String,

    /// Identity of this replica, unique among the replicas of the server [default: hostname and process id]
    #[arg(long, value_name = "NAME", env = "VRAMGUARD_IDENTITY")]
    pub identity: Option<String>,

    /// Kubeconfig file [default: $KUBECONFIG, ~/.kube/config, or the service account of the pod]
    #[arg(long, value_name = "FILE", env = "VRAMGUARD_KUBECONFIG", conflicts_with = "snapshot")]
    pub kubeconfig: Option<PathBuf>,

    /// User of a further scheduler that may bind guarded pods, in addition to system:kube-scheduler. Repeatable. With
    /// any such user, nodes with one GPU need reservations too, because each scheduler sums up a node on its own
    #[arg(long, value_name = "USER", env = "VRAMGUARD_BINDER", value_delimiter = ',')]
    pub binder: Vec<String>,

    /// Value of the API server's --request-timeout, in seconds. An allowed binding is committed within this time or
    /// never
    #[arg(long, value_name = "SECONDS", env = "VRAMGUARD_API_REQUEST_TIMEOUT", default_value_t = 60)]
    pub api_request_timeout: u64,

    /// Time in seconds between SIGTERM, when /readyz begins to fail, and the end of listening. In this time endpoints
    /// drop the replica
    #[arg(long, value_name = "SECONDS", env = "VRAMGUARD_DRAIN", default_value_t = 10)]
    pub drain: u64,

    /// Report metrics of each GPU, not only of nodes and pools. On nodes with eight GPUs this is six times as many
    /// lines
    #[arg(long, env = "VRAMGUARD_METRICS_PER_GPU")]
    pub metrics_per_gpu: bool,

    /// Pause in seconds between two audits of the cluster by the leader, which sets the metrics `audit_*`. 0 makes none.
    /// It reads what `vramguard audit` reads: deploy/audit/ has the rights and the memory for that
    #[arg(
        long,
        value_name = "SECONDS",
        env = "VRAMGUARD_AUDIT_EVERY",
        default_value_t = 0,
        conflicts_with = "snapshot"
    )]
    pub audit_every: u64,

    /// Keep a policy report in each namespace, where the CRDs of OpenReports or of the policy working group are
    /// installed. Needs --audit-every
    #[arg(long, env = "VRAMGUARD_POLICY_REPORTS", requires = "audit_every")]
    pub policy_reports: bool,

    /// Serve the last audit as a page at /report of --metrics-listen. It names pods and namespaces. Needs --audit-every
    #[arg(long, env = "VRAMGUARD_REPORT", requires = "audit_every")]
    pub report: bool,

    /// Format of the log on standard error. RUST_LOG sets what is logged
    #[arg(long, value_enum, value_name = "FORMAT", env = "VRAMGUARD_LOG_FORMAT", default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Format of the log.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum LogFormat {
    /// Text lines, for people.
    Text,
    /// One JSON object a line, for log collectors.
    Json,
}

/// Runs the server until SIGTERM or SIGINT.
///
/// # Errors
///
/// [`Failure::Input`] if a file cannot be read or is not valid. [`Failure::Run`] for any other failure of
/// [`server::run`].
pub async fn run(args: Args) -> Result<(), Failure> {
    log(args.log_format);
    Ok(server::run(args.config()).await?)
}

impl Args {
    fn config(self) -> Config {
        let certificate_names = self.certificate_names();
        let certificate = match (self.cert_secret, self.cert_dir) {
            (Some(name), _) => CertificateSource::Secret { name, certificate_names },
            (None, Some(directory)) => {
                CertificateSource::Directory { directory, self_sign: self.self_signed.then_some(certificate_names) }
            }
            (None, None) => unreachable!("clap requires --cert-dir or --cert-secret"),
        };
        let audits = (self.audit_every > 0).then(|| Audits {
            every: Duration::from_secs(self.audit_every),
            policy_reports: self.policy_reports,
            page: self.report.then(Page::default),
        });
        Config {
            policies: self.policies,
            snapshot: self.snapshot,
            listen: self.listen,
            plain_listen: self.metrics_listen,
            scheduler_extender: self.scheduler_extender,
            clients: self.client_ca.map(|ca| ClientCertificates { ca, names: self.client_name }),
            certificate,
            webhook_configuration: self.webhook_configuration,
            namespace: self.namespace,
            identity: self.identity.unwrap_or_else(identity),
            kubeconfig: self.kubeconfig,
            binders: self.binder.into_iter().chain([keys::KUBE_SCHEDULER.to_owned()]).collect::<BTreeSet<String>>(),
            api_request_timeout: Duration::from_secs(self.api_request_timeout),
            drain: Duration::from_secs(self.drain),
            audits,
            detail: if self.metrics_per_gpu { Detail::Gpus } else { Detail::Nodes },
        }
    }

    /// DNS names and IP addresses for the certificates that vramguard issues.
    fn certificate_names(&self) -> Vec<String> {
        let (service, namespace) = (&self.service, &self.namespace);
        let mut names = vec![format!("{service}.{namespace}.svc"), format!("{service}.{namespace}.svc.cluster.local")];
        if self.self_signed {
            names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
        }
        names.extend(self.cert_name.clone());
        names
    }
}

fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "vramguard".into());
    format!("{}-{}", host.trim(), std::process::id())
}

/// Starts the log on standard error.
pub(super) fn log(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info,kube=warn".into());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr);
    // This fails for a second server in one process (in tests), which then uses the log of the first.
    _ = match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}
