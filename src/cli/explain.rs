//! `vramguard explain`: the policy in force in a namespace, and what it makes of a pod.
//!
//! Owns files and arguments. `report::explanation` asks the core and shows the answer.

use std::path::PathBuf;

use anyhow::anyhow;

use super::outputs::{self, Output};
use super::{Failure, files, live};
use crate::capacity::verdict;
use crate::k8s::document::{self, DocumentError, resource, texts};
use crate::k8s::manifest::{self, Manifest};
use crate::k8s::snapshot::{self, Snapshot};
use crate::report::explanation::{self, Question, table};
use crate::state::policies;

/// Largest manifest that is read, in bytes.
const MAX_MANIFEST: u64 = 4 << 20;

/// Largest snapshot that is read, in bytes.
const MAX_SNAPSHOT: u64 = 4 << 30;

/// Arguments of `explain`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 explained, whatever the answer is, 2 wrong usage, or a file could not be read or written.\n\
                        docs/explain.md describes the answer, docs/policies.md the fields."
)]
pub(super) struct Args {
    /// Namespace whose policy is explained; without it, that of the pod
    #[arg(long, short, value_name = "NAME", required_unless_present = "pod")]
    namespace: Option<String>,
    /// Manifest of a Pod, or of a workload with a pod template, to explain what becomes of its pod; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pod: Option<PathBuf>,
    /// Folder with policy files; policies in a snapshot count too
    #[arg(long, value_name = "DIR")]
    policies: Option<PathBuf>,
    /// Output of `kubectl get nodes,pods,gpuledgers -A -o yaml` (or json), to explain where the pod fits; `-` is standard input. May be given several times
    #[arg(long, value_name = "FILE")]
    snapshot: Vec<PathBuf>,
    /// Read nodes, pods and policies of the cluster of the current context
    #[arg(long, conflicts_with = "snapshot")]
    live: bool,
    /// Read them of a cluster of this kubeconfig, in place of the one of KUBECONFIG or ~/.kube/config
    #[arg(long, value_name = "FILE", conflicts_with = "snapshot")]
    kubeconfig: Option<PathBuf>,
    /// Read them of the cluster of this context of the kubeconfig
    #[arg(long, value_name = "NAME", conflicts_with = "snapshot")]
    context: Option<String>,
    /// Form of the answer: table or json, to stdout or, as FORMAT=FILE, to a file. May be given several times
    #[arg(long, value_name = "FORMAT[=FILE]", default_value = "table")]
    output: Vec<Output<Format>>,
    #[command(flatten)]
    colours: outputs::Colours,
}

/// A form of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Table,
    Json,
}

/// Explains, and writes the answer.
pub(super) async fn run(args: &Args) -> Result<(), Failure> {
    outputs::check(&args.output, args.snapshot.iter().chain(&args.pod)).map_err(Failure::Input)?;
    let from_stdin = args.snapshot.iter().chain(&args.pod).filter(|file| files::is_stdin(file)).count();
    if from_stdin > 1 {
        return Err(Failure::Input(anyhow!("-: standard input can be read once; give the other files by name")));
    }
    let cluster = if args.live || args.context.is_some() || args.kubeconfig.is_some() {
        Some(read_live(args).await?)
    } else {
        read_snapshot(&args.snapshot).map_err(Failure::Input)?
    };
    explain(args, cluster).map_err(Failure::Input)
}

/// Reads nodes, pods, ledgers and quotas of a live cluster, and its policies unless a folder takes their place.
async fn read_live(args: &Args) -> Result<Snapshot, Failure> {
    let chosen = live::Chosen { kubeconfig: args.kubeconfig.as_deref(), context: args.context.as_deref() };
    let (objects, _) = live::connect(chosen, args.namespace.as_deref()).await?;
    let mut snapshot = Snapshot::default();
    // A folder takes the place of the cluster's policies, of files and of resources.
    let is_policy = |kind: &str| resource::Kind::ALL.iter().any(|known| known.name() == kind);
    let kinds = |kind: &str| {
        matches!(kind, "Node" | "Pod" | "GpuLedger" | "ResourceQuota") || args.policies.is_none() && is_policy(kind)
    };
    let read = objects.read_kinds(kinds, &|_, _| {}, &mut |object| snapshot.push(object)).await;
    let mut gaps = read.map_err(live::failure)?;
    if args.policies.is_none() {
        match objects.policies().await {
            Ok(files) => snapshot.policies.extend(files),
            Err(gap) => gaps.push(gap),
        }
    }
    for gap in gaps {
        eprintln!("warning: {}: {}", gap.what, gap.why);
    }
    Ok(snapshot)
}

fn explain(args: &Args, cluster: Option<Snapshot>) -> anyhow::Result<()> {
    let manifest = args.pod.as_ref().map(|path| read_manifest(path, args.namespace.as_deref())).transpose()?;
    let files = args.policies.as_deref().map_or_else(|| Ok(Vec::new()), policies::files_of)?;
    if let (Some(folder), true) = (&args.policies, files.is_empty()) {
        return Err(anyhow!("{}: holds no policy files (.yaml, .yml or .json)", folder.display()));
    }
    let (mut files, mut resources) = (files, Vec::new());
    if let Some(cluster) = &cluster {
        files.extend(cluster.policies.iter().cloned());
        resources.extend(cluster.policy_resources.iter().cloned());
    }
    let configuration = document::read_with(texts(&files), &resources).map_err(|errors| all(&errors))?;
    if let Some(error) = configuration.unreadable_cluster_policy() {
        // Its absence would say that nothing is refused.
        return Err(anyhow!(verdict::unreadable_policy(&error.file, &error.reason())));
    }
    let sources = document::sources(texts(&files), &resources);
    let of_pod = |manifest: &Manifest| manifest.pod["metadata"]["namespace"].as_str().map(str::to_owned);
    let namespace = args.namespace.clone().or_else(|| manifest.as_ref().and_then(of_pod));
    let question = Question {
        namespace: namespace.as_deref().unwrap_or("default"),
        configuration: &configuration,
        sources: &sources,
        manifest: manifest.as_ref(),
        cluster: cluster.as_ref(),
        version: env!("CARGO_PKG_VERSION"),
    };
    let explanation = explanation::answer(question).map_err(|error| anyhow!("--pod: {error}"))?;
    outputs::write(&args.output, args.colours.color, |format, look| match format {
        Format::Table => table::render(&explanation, look.coloured),
        Format::Json => explanation.json(),
    })
}

fn read_manifest(path: &std::path::Path, namespace: Option<&str>) -> anyhow::Result<Manifest> {
    let (name, text) = files::named(path, MAX_MANIFEST)?;
    Ok(manifest::read(&name, &text, namespace)?)
}

/// The objects of all snapshots; `None` if there are none.
fn read_snapshot(paths: &[PathBuf]) -> anyhow::Result<Option<Snapshot>> {
    if paths.is_empty() {
        return Ok(None);
    }
    let read = |path: &PathBuf| files::named(path, MAX_SNAPSHOT);
    let texts = paths.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
    let objects = snapshot::read(texts.iter().map(|(file, text)| (file.as_str(), text.as_str())));
    objects.map(Some).map_err(|errors| all(&errors))
}

/// All errors, one a line.
fn all(errors: &[DocumentError]) -> anyhow::Error {
    anyhow!("{}", errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}
