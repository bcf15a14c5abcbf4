//! `vramguard preflight`: reads a cluster or files, and says of each node whether it can be steered. Owns its arguments
//! and exit codes; [`capacity::preflight`](crate::capacity::preflight) decides.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use serde::Deserialize as _;
use serde_json::Value;

use super::outputs::{self, Output};
use super::{Failure, live};
use crate::capacity::gpu::Rules;
use crate::capacity::preflight::{Candidate, Reported};
use crate::capacity::time::Moment;
use crate::k8s::agent_pod::agent_pod;
use crate::k8s::gpu_ledger::GpuLedger;
use crate::k8s::manifests;
use crate::k8s::object::PodObject;
use crate::k8s::preflight::{Part, part_of};
use crate::k8s::snapshot::Snapshot;
use crate::keys;
use crate::report::preflight::Preflight;
use crate::state::index::Index;

/// Arguments of `preflight`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// File with objects instead of a live cluster, as `kubectl get nodes,pods,gpuledgers -A -o json` prints them.
    /// `-` is standard input. Repeatable. The newest report of an agent in it is the present
    #[arg(long, short = 'f', value_name = "FILE", conflicts_with_all = ["context", "kubeconfig"])]
    snapshot: Vec<PathBuf>,

    /// Kubeconfig of the cluster [default: that of KUBECONFIG, or ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig [default: the current one]
    #[arg(long, value_name = "NAME")]
    context: Option<String>,

    /// What to print, and where: table or json, each as FORMAT or FORMAT=FILE. Repeatable
    #[arg(long, short = 'o', value_name = "FORMAT[=FILE]", value_delimiter = ',', default_value = "table")]
    output: Vec<Output<Format>>,
}

/// What is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// A table for a terminal.
    Table,
    /// JSON for programs.
    Json,
}

/// Reads and reports.
///
/// # Errors
/// [`Failure::Findings`] if a node that needs steering lacks something, [`Failure::Input`] if something cannot be read or
/// written.
pub(super) async fn run(args: Args) -> Result<(), Failure> {
    outputs::check(&args.output, args.snapshot.iter()).map_err(Failure::Input)?;
    // A file may be without pods.
    let mut seen = Seen { has_pods: args.snapshot.is_empty(), ..Seen::default() };
    if args.snapshot.is_empty() {
        let chosen = live::Chosen { kubeconfig: args.kubeconfig.as_deref(), context: args.context.as_deref() };
        let (objects, _) = live::connect(chosen, None).await?;
        let kinds = |kind: &str| ["Node", "Pod", "GpuLedger"].contains(&kind);
        let read = objects.read_kinds(kinds, &|_, _| {}, &mut |object| seen.add(object)).await;
        // Without one of the three, each node would seem to lack something.
        if let Some(gap) = read.map_err(live::failure)?.first() {
            return Err(Failure::Input(anyhow!("{} cannot be read: {}", gap.what, gap.why)));
        }
    }
    for file in &args.snapshot {
        read_file(file, &mut seen)?;
    }
    let clock = Moment(jiff::Timestamp::now().as_millisecond());
    let now = if args.snapshot.is_empty() { clock } else { seen.newest().unwrap_or(clock) };
    let report = Preflight::new(seen.nodes(now));
    outputs::write(&args.output, clap::ColorChoice::Never, |format, _look| match format {
        Format::Table => report.table(),
        Format::Json => report.json(),
    })
    .map_err(Failure::Input)?;
    if report.is_missing() { Err(Failure::Findings) } else { Ok(()) }
}

fn read_file(file: &Path, seen: &mut Seen) -> Result<(), Failure> {
    let name = file.display().to_string();
    let mut add = |_line, object| seen.add(object);
    let read = if file == Path::new("-") {
        manifests::read(&name, std::io::stdin().lock(), &mut add)
    } else {
        let opened = File::open(file).with_context(|| name.clone()).map_err(Failure::Input)?;
        manifests::read(&name, BufReader::new(opened), &mut add)
    };
    let wrong = |errors: Vec<_>| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    read.map(drop).map_err(|errors: Vec<crate::k8s::document::DocumentError>| Failure::Input(anyhow!(wrong(errors))))
}

/// What was read.
#[derive(Default)]
struct Seen {
    /// Nodes and ledgers, and the pods of agents.
    snapshot: Snapshot,
    /// Whether pods were read. A pod that was not read is then gone.
    has_pods: bool,
    parts: Vec<(String, Part)>,
}

impl Seen {
    fn add(&mut self, object: Value) -> Result<(), String> {
        match object["kind"].as_str() {
            Some("Pod") => {
                self.has_pods = true;
                self.parts.extend(part_of(&object));
                let pod = PodObject::deserialize(&object).map_err(|error| error.to_string())?;
                self.snapshot.pods.extend(agent_pod(&pod).is_some().then_some(pod));
            }
            Some("Node" | "GpuLedger") => self.snapshot.push(object)?,
            _ => {}
        }
        Ok(())
    }

    /// When the newest report was written, which is the present of files. `None` if there is none.
    fn newest(&self) -> Option<Moment> {
        self.snapshot.ledgers.iter().filter_map(GpuLedger::reported).max()
    }

    /// Each node with GPUs, by name.
    fn nodes(self, now: Moment) -> Vec<(String, crate::capacity::preflight::Readiness)> {
        let index = Index::of_snapshot(&self.snapshot, Rules::default(), Vec::new());
        let index = if self.has_pods { index.with_all_pods() } else { index };
        index.tick(now);
        let state = index.read();
        let mut candidates: BTreeMap<String, Candidate> = BTreeMap::new();
        for node in &self.snapshot.nodes {
            let view = state.cluster.node(node.name());
            let pools = view.iter().flat_map(|view| view.facts.pools.iter().zip(&view.usage.pools));
            let pools = pools.map(|(pool, usage)| (pool.sharing, usage.accounting)).collect();
            let kubelet = node.status.node_info.kubelet();
            candidates.insert(node.name().to_owned(), Candidate { pools, kubelet, ..Candidate::default() });
        }
        for (node, part) in self.parts {
            let Some(candidate) = candidates.get_mut(&node) else { continue };
            match part {
                Part::Plugin(plugin) => candidate.plugins.push(plugin),
                Part::Agent(agent) => candidate.agents.push(agent),
            }
        }
        for ledger in &self.snapshot.ledgers {
            if let Some(candidate) = candidates.get_mut(ledger.node()) {
                let doubt = state.cluster.node(ledger.node()).and_then(|view| view.ledger.doubt());
                candidate.report = ledger.steering(now).map(|report| Reported { doubt: doubt.cloned(), ..report });
            }
        }
        let socket = format!("/var/lib/kubelet/device-plugins/{}", keys::REGISTRY_SOCKET);
        candidates.into_iter().filter_map(|(node, candidate)| Some((node, candidate.readiness(&socket)?))).collect()
    }
}
