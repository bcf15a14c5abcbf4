//! `vramguard agent`: the node agent, or one look at the GPUs of this machine.
//!
//! Owns its arguments and exit codes. [`crate::agent`] does the work.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::builder::NonEmptyStringValueParser;

use super::Failure;
use super::outputs::{self, Output};
use super::serve::{LogFormat, log};
use crate::agent::dcgm::{self, Exporter};
use crate::agent::plugin_config::{self, ConfigMapName};
use crate::agent::{self, Config, Gpus, PolicyName, steering};
use crate::capacity::gpu::AllocationPolicy;
use crate::capacity::name::PodUid;
use crate::capacity::node::presence::NamedPod;
use crate::capacity::pod::PodName;
use crate::capacity::vram::Vram;
use crate::k8s::device_plugin;
use crate::keys;
use crate::report::glance::Glance;
use crate::server;

/// Arguments of `agent`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Look once at the GPUs of this machine, print what is there, and end. It needs no cluster
    #[arg(long)]
    once: bool,

    /// What --once prints, and where: table or json, each as FORMAT or FORMAT=FILE. Repeatable
    #[arg(long, value_name = "FORMAT[=FILE]", value_delimiter = ',', default_value = "table", requires = "once")]
    output: Vec<Output<Format>>,

    /// Name of the node that this agent runs on
    #[arg(long, value_name = "NAME", env = "NODE_NAME", required_unless_present = "once")]
    node_name: Option<String>,

    /// Uid of the pod that this agent runs in. Its reports name the pod, and the server counts the node as steered only
    /// while that pod runs. Set it by the variable, by which the server recognises the pod: deploy/agent does so
    #[arg(long, value_name = "UID", env = keys::AGENT_POD_UID, value_parser = NonEmptyStringValueParser::new(),
        requires_all = ["pod_namespace", "pod_name"])]
    pod_uid: Option<String>,

    /// Namespace of that pod
    #[arg(long, value_name = "NAME", env = keys::AGENT_POD_NAMESPACE, value_parser = NonEmptyStringValueParser::new(),
        requires = "pod_uid")]
    pod_namespace: Option<String>,

    /// Name of that pod
    #[arg(long, value_name = "NAME", env = keys::AGENT_POD_NAME, value_parser = NonEmptyStringValueParser::new(),
        requires = "pod_uid")]
    pod_name: Option<String>,

    /// Address of the plain HTTP port: /healthz, /readyz, /metrics
    #[arg(long, value_name = "ADDRESS", env = "VRAMGUARD_AGENT_LISTEN", default_value = "0.0.0.0:8081")]
    listen: SocketAddr,

    /// Milliseconds between two looks at the GPUs [default: 1000; 10000 with --dcgm-exporter]
    #[arg(long, value_name = "MS", env = "VRAMGUARD_AGENT_INTERVAL_MS",
        value_parser = clap::value_parser!(u64).range(100..=60_000))]
    interval_ms: Option<u64>,

    /// Configuration file of the NVIDIA device plugin of this node. It names the policy by which the plugin chooses GPUs,
    /// which is then verified by what is seen
    #[arg(long, value_name = "FILE", env = "VRAMGUARD_AGENT_PLUGIN_CONFIG")]
    plugin_config: Option<PathBuf>,

    /// ConfigMap of the NVIDIA device plugin, in place of --plugin-config. The agent follows it, and the label
    /// nvidia.com/device-plugin.config of its node, which selects a key. deploy/examples has the rights for it
    #[arg(
        long,
        value_name = "NAMESPACE/NAME",
        env = "VRAMGUARD_AGENT_PLUGIN_CONFIG_MAP",
        conflicts_with = "plugin_config"
    )]
    plugin_config_map: Option<ConfigMapName>,

    /// Key of the ConfigMap for nodes without that label [default: the key default, or the only one]
    #[arg(long, value_name = "KEY", env = "VRAMGUARD_AGENT_PLUGIN_CONFIG_DEFAULT", requires = "plugin_config_map")]
    plugin_config_default: Option<String>,

    /// What each process takes in addition to what its pod declares, for pods without a request. Use the policy's
    /// perProcessOverhead
    #[arg(long, value_name = "AMOUNT", env = "VRAMGUARD_AGENT_OVERHEAD", default_value = "720Mi")]
    per_process_overhead: Vram,

    /// Where the /proc of the machine is mounted
    #[arg(long, value_name = "DIR", env = "VRAMGUARD_AGENT_PROC", default_value = "/proc")]
    proc: PathBuf,

    /// The kubelet's directory
    #[arg(long, value_name = "DIR", env = "VRAMGUARD_AGENT_KUBELET", default_value = "/var/lib/kubelet")]
    kubelet: PathBuf,

    /// Path of the driver's library [default: libnvidia-ml.so.1, where the system finds it]
    #[arg(long, value_name = "FILE", env = "VRAMGUARD_AGENT_NVML")]
    nvml_library: Option<PathBuf>,

    /// Read the GPUs from the DCGM exporter of this node, as http://HOST:PORT/metrics, instead of the driver. It does not
    /// tell what each pod uses
    #[arg(long, value_name = "URL", env = "VRAMGUARD_AGENT_DCGM_EXPORTER", conflicts_with = "nvml_library")]
    dcgm_exporter: Option<Exporter>,

    /// Stand between the device plugin and the kubelet, and give each pod the GPU that is reserved for it. The device
    /// plugin must register with the agent: docs/steering.md
    #[arg(long, conflicts_with = "once")]
    steer: bool,

    /// Steer a device plugin that registers with the kubelet too. It needs no change of the plugin, and kubelet v1.37 or newer:
    /// on older ones the agent says so and only observes
    #[arg(long, requires = "steer")]
    takeover: bool,

    /// Directory of policy files, the same as the server has. Their rules count when a GPU must be chosen for a pod without
    /// a reservation
    #[arg(long, value_name = "DIR", env = "VRAMGUARD_AGENT_POLICIES", requires = "steer")]
    policies: Option<PathBuf>,

    /// The kubelet's configuration file, for the policy of its topology manager [default: config.yaml in the kubelet's
    /// directory]
    #[arg(long, value_name = "FILE", env = "VRAMGUARD_AGENT_KUBELET_CONFIG")]
    kubelet_config: Option<PathBuf>,

    /// Kubeconfig file [default: $KUBECONFIG, ~/.kube/config, or the service account of the pod]
    #[arg(long, value_name = "FILE", env = "VRAMGUARD_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,

    /// Format of the log on standard error. RUST_LOG sets what is logged
    #[arg(long, value_enum, value_name = "FORMAT", env = "VRAMGUARD_LOG_FORMAT", default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

/// Time between two looks at the driver, unless another is configured.
const INTERVAL: Duration = Duration::from_secs(1);

/// What `--once` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// Tables for a terminal.
    Table,
    /// JSON for programs.
    Json,
}

/// Runs the agent until SIGTERM or SIGINT, or looks once.
///
/// # Errors
/// [`Failure::Input`] if the GPUs cannot be read by `--once`, or if a file cannot be read or written. [`Failure::Run`] if the agent
/// cannot start, or if a part of it ends.
pub(super) async fn run(args: Args) -> Result<(), Failure> {
    if args.once {
        return once(args).await;
    }
    log(args.log_format);
    let policy = match (args.plugin_config_map, &args.plugin_config) {
        (Some(map), _) => PolicyName::ConfigMap(plugin_config::Config { map, default: args.plugin_config_default }),
        (None, Some(file)) => PolicyName::Known(policy(file).map_err(Failure::Input)?),
        (None, None) => PolicyName::Nowhere,
    };
    let client = server::client(args.kubeconfig.as_deref()).await?;
    let interval = args.dcgm_exporter.as_ref().map_or(INTERVAL, |_| dcgm::INTERVAL);
    let config = Config {
        node: args.node_name.ok_or_else(|| Failure::Input(anyhow!("--node-name is missing")))?,
        pod: pod(args.pod_uid, args.pod_namespace, args.pod_name),
        interval: args.interval_ms.map_or(interval, Duration::from_millis),
        gpus: gpus(args.dcgm_exporter, args.nvml_library),
        proc: args.proc,
        kubelet: args.kubelet,
        allocation_policy: policy,
        overhead: args.per_process_overhead,
        listen: args.listen,
        steering: args.steer.then_some(steering::Config {
            policies: args.policies,
            kubelet_configuration: args.kubelet_config,
            takeover: args.takeover,
        }),
    };
    Ok(agent::run(config, client).await?)
}

fn pod(uid: Option<String>, namespace: Option<String>, name: Option<String>) -> Option<NamedPod> {
    let name = PodName { namespace: namespace?.into(), name: name?.into() };
    Some(NamedPod { uid: PodUid::from(uid?), name, container: None })
}

fn policy(path: &PathBuf) -> anyhow::Result<AllocationPolicy> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    device_plugin::allocation_policy(&text).map_err(|why| anyhow!("{}: {why}", path.display()))
}

fn gpus(exporter: Option<Exporter>, library: Option<PathBuf>) -> Gpus {
    exporter.map_or(Gpus::Driver(library), Gpus::Exporter)
}

async fn once(args: Args) -> Result<(), Failure> {
    outputs::check(&args.output, []).map_err(Failure::Input)?;
    let gpus = gpus(args.dcgm_exporter, args.nvml_library);
    let source = gpus.source();
    let seen = agent::glance(gpus, args.proc).await.map_err(|why| Failure::Input(anyhow!("{why}")))?;
    let gpus = seen.look.gpus.iter().zip(&seen.reading.gpus).zip(&seen.programs);
    let gpus = gpus.map(|((look, reading), programs)| (look, reading.product.as_str(), programs.as_slice()));
    let glance = Glance::new(source, seen.reading.driver.as_ref(), gpus);
    outputs::write(&args.output, clap::ColorChoice::Never, |format, _look| match format {
        Format::Table => glance.table(),
        Format::Json => glance.json(),
    })
    .map_err(Failure::Input)
}
