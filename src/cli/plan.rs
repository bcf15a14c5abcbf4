//! `vramguard plan`: reads nodes, pods and policies, and prints a plan or the check of an existing configuration.
//!
//! Owns its arguments, files and exit codes. [`capacity::plan`](crate::capacity::plan) decides.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::numbers::{self, between};
use super::outputs::{self, Output};
use super::{Failure, files};
use crate::capacity::cluster::NodeFacts;
use crate::capacity::gpu::Resource;
use crate::capacity::plan::{self, EqualPools, Plan, Wanted};
use crate::capacity::pod::demand::Demand;
use crate::capacity::policy::Policies;
use crate::capacity::verdict;
use crate::capacity::vram::Vram;
use crate::k8s::device_plugin::fleet::{self, Change, Fleet};
use crate::k8s::device_plugin::lint::{self, Finding, Linted, Severity};
use crate::k8s::device_plugin::{self, NamedConfig};
use crate::k8s::node::{self, MAX_GPU, Override};
use crate::k8s::object::NodeObject;
use crate::k8s::template::{self, Copies, Declared, Demands};
use crate::k8s::{document, snapshot};
use crate::keys;
use crate::report::plan::{Extras, Input, Report};
use crate::report::printable;
use crate::state::policies;

/// Arguments of `plan`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Manifests of workloads to plan for; `-` is standard input
    #[arg(value_name = "FILE")]
    manifests: Vec<PathBuf>,

    /// File with nodes, pods and workloads, as `kubectl get nodes,pods,deployments,replicasets,statefulsets,jobs -A -o yaml` prints
    /// them. Repeatable; `-` is standard input
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    snapshot: Vec<PathBuf>,

    /// Memory of each GPU in MiB, as nvidia-smi shows it, for a plan without a snapshot
    #[arg(long, value_name = "MIB", requires = "count", conflicts_with = "snapshot",
        value_parser = between::<u64>(1, u64::MAX))]
    gpu_memory_mib: Option<u64>,

    /// Number of GPUs of all nodes together
    #[arg(long, value_name = "N", requires = "gpu_memory_mib", value_parser = between::<u32>(1, 100_000))]
    count: Option<u32>,

    /// Number of GPUs of one node
    #[arg(long, value_name = "N", requires = "gpu_memory_mib", default_value_t = 1,
        value_parser = between::<u32>(1, 64))]
    gpus_per_node: u32,

    /// A demand to plan for: the amount that a pod declares, and how many pods there are (as many as fit if left out),
    /// as in 8Gi or 8Gi:40. Repeatable
    #[arg(long, value_name = "AMOUNT[:PODS]", value_delimiter = ',')]
    demand: Vec<String>,

    /// Directory of policy files. Their model catalogue is planned for if there is no other demand
    #[arg(long, value_name = "DIR")]
    policies: Option<PathBuf>,

    /// Measured utilisation of the GPUs in percent, such as the average of DCGM_FI_DEV_GPU_UTIL
    #[arg(long, alias = "utilization", value_name = "PERCENT", value_parser = between::<u8>(0, 100))]
    utilisation: Option<u8>,

    /// The most replicas to propose
    #[arg(long, value_name = "N", value_parser = numbers::above_zero)]
    max_replicas: Option<NonZeroU32>,

    /// Name of the ConfigMap to print
    #[arg(long, value_name = "NAME", default_value = "time-slicing-config")]
    config_map: String,

    /// Namespace of the ConfigMap to print: that of the GPU Operator or of the device plugin
    #[arg(long, value_name = "NAMESPACE", default_value = "gpu-operator")]
    namespace: String,

    /// Existing ConfigMap of the device plugin, or one config of it, to check instead of printing a new one; `-` is
    /// standard input. With nodes and demands, it is also compared with the plan
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,

    /// Form of the plan: table, json or yaml (the ConfigMap alone, for `kubectl apply -f -`), to stdout or, as FORMAT=FILE,
    /// to a file. Repeatable
    #[arg(long, short = 'o', value_name = "FORMAT[=FILE]", default_value = "table")]
    output: Vec<Output<Format>>,
}

/// A form of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// Tables and reasons, for people
    Table,
    /// One JSON document
    Json,
    /// The ConfigMap alone, for `kubectl apply -f -`
    Yaml,
}

/// Runs the command.
pub(super) fn run(args: Args) -> Result<(), Failure> {
    let inputs = args.snapshot.iter().chain(&args.manifests).chain(&args.check);
    outputs::check(&args.output, inputs).map_err(Failure::Input)?;
    let input = Inputs::read(&args).map_err(Failure::Input)?;
    let write = |render: &dyn Fn(Format) -> String| {
        outputs::write(&args.output, clap::ColorChoice::Never, |format, _| render(format)).map_err(Failure::Input)
    };
    let has_findings = match &args.check {
        None => {
            ensure_nodes(&input).map_err(Failure::Input)?;
            let report = input.report(&args, &input.plan());
            write(&|format| rendered(&report, format))?;
            report.has_findings()
        }
        Some(file) => {
            let checked = check(&args, file, &input)?;
            write(&|format| checked.rendered(format))?;
            checked.findings.iter().any(|finding| finding.severity != Severity::Note)
        }
    };
    if has_findings { Err(Failure::Findings) } else { Ok(()) }
}

fn ensure_nodes(input: &Inputs) -> anyhow::Result<()> {
    let planned = !input.fleet.groups.is_empty();
    let unknown = input.fleet.unknown.first();
    match unknown {
        _ if planned => Ok(()),
        Some((node, resource, why)) => bail!("the GPUs of no node are known; of node {node:?}, {resource}: {why}"),
        None => bail!("no node with GPUs: give --snapshot FILE with nodes, or --gpu-memory-mib with --count"),
    }
}

/// Checks that each object is one, and is there once: counted twice, it would be planned for twice.
fn ensure_once(objects: &[Located]) -> anyhow::Result<()> {
    let mut seen: BTreeMap<[&str; 4], (&str, u64)> = BTreeMap::new();
    for (file, line, object) in objects {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let id = ["/apiVersion", "/kind", "/metadata/namespace", "/metadata/name"].map(text);
        let [_, kind, namespace, name] = id;
        ensure!(!kind.is_empty(), "{file}:{line}: holds no Kubernetes object: kind is missing; is the file complete?");
        let first = if name.is_empty() { None } else { seen.insert(id, (file, *line)) };
        if let Some((first, at)) = first {
            bail!("{file}:{line}: {kind} {namespace}/{name} is there twice, the first time in {first}:{at}; keep one");
        }
    }
    Ok(())
}

fn rendered(report: &Report, format: Format) -> String {
    match format {
        Format::Table => report.table(),
        Format::Json => report.json(),
        Format::Yaml => report.yaml(),
    }
}

/// What is planned for, as it was read.
struct Inputs {
    fleet: Fleet,
    pools: Vec<EqualPools>,
    demands: Demands,
    wanted: Vec<Wanted>,
    who: Vec<Vec<String>>,
    policies: Policies,
    /// The config that each node is labelled with.
    labels: BTreeMap<String, String>,
    /// Whether the nodes do not exist yet.
    imagined: bool,
    max_replicas: Option<NonZeroU32>,
}

impl Inputs {
    fn read(args: &Args) -> anyhow::Result<Inputs> {
        let mut objects = Vec::new();
        for path in args.snapshot.iter().chain(&args.manifests) {
            let (name, text) = files::text_of(path)?;
            objects.extend(
                snapshot::objects(&name, &text)?.into_iter().map(|(line, object)| (name.clone(), line, object)),
            );
        }
        ensure_once(&objects)?;
        let (policies, overrides, models) = read_policies(args, &objects)?;
        let mut nodes = read_nodes(&objects, &overrides)?;
        let labels = labels(&objects);
        let imagined = args.gpu_memory_mib.is_some();
        nodes.extend(imagined_nodes(args)?);
        let values: Vec<Value> = objects.into_iter().map(|(_, _, object)| object).collect();
        let demands = template::demands(&values, &policies);
        let mut declared = demands.declared.clone();
        let resources = nodes.iter().flat_map(|(_, facts)| facts.pools.iter().map(|pool| pool.resource.clone()));
        let any: Vec<Resource> = resources.collect();
        let mut named = args.demand.iter().map(|text| asked(text, &policies)).collect::<anyhow::Result<Vec<_>>>()?;
        if declared.is_empty() && named.is_empty() {
            for (name, amount) in models {
                let demand = with_overhead(amount, &policies).with_context(|| format!("model {name:?}"))?;
                named.push((format!("model {name}"), demand, None));
            }
        }
        let fixed = declared.len();
        let resource = any.first().cloned().unwrap_or(Resource(keys::GPU_RESOURCE.into()));
        declared.extend(named.iter().map(|(name, demand, count)| Declared {
            object: name.clone(),
            resource: resource.clone(),
            demand: *demand,
            copies: Copies::Exactly(count.unwrap_or(0)),
            placement: template::anywhere(),
        }));
        let fleet = Fleet::of(&nodes, &declared);
        let pools = fleet.pools(args.utilisation);
        let mut wanted = Vec::new();
        let mut who = Vec::new();
        for (part, indices) in fleet.wanted(&declared[..fixed]) {
            who.push(indices.iter().map(|&index| declared[index].object.clone()).collect());
            wanted.push(part);
        }
        for (name, demand, count) in named {
            wanted.push(Wanted { demand, count, pools: (0..pools.len()).collect() });
            who.push(vec![name]);
        }
        let max_replicas = args.max_replicas;
        Ok(Inputs { fleet, pools, demands, wanted, who, policies, labels, imagined, max_replicas })
    }

    fn plan(&self) -> Plan {
        plan::plan(&self.pools, &self.wanted, self.policies.rules(), self.max_replicas)
    }

    fn report(&self, args: &Args, plan: &Plan) -> Report {
        let (configs, of_groups) = self.fleet.configs(plan);
        let names = self.fleet.groups.iter().zip(&of_groups);
        let names: Vec<(String, String)> = names
            .flat_map(|(group, config)| group.pools.iter().map(|_| (group.base.clone(), config.clone())))
            .collect();
        let copies = |copies: Copies| match copies {
            Copies::Exactly(1) => String::new(),
            Copies::Exactly(count) => format!(" ×{count}"),
            Copies::PerNode => " on each node".to_owned(),
        };
        let unknown = self.fleet.unknown.iter().map(|(node, resource, why)| format!("node {node}, {resource}: {why}"));
        let extras = Extras {
            unknown: unknown.collect(),
            undeclared: self
                .demands
                .undeclared
                .iter()
                .map(|(who, number)| format!("{who}{}", copies(*number)))
                .collect(),
            left_out: self.demands.left_out.clone(),
            config_map: device_plugin::config_map(&args.config_map, &args.namespace, &configs),
            apply: format!("{} --output yaml | kubectl apply -f -", this_command()),
            commands: self.commands(args, &configs, &of_groups),
        };
        let rules = self.policies.rules();
        let input = Input { pools: &self.pools, names: &names, wanted: &self.wanted, who: &self.who, rules };
        Report::of(plan, input, extras)
    }

    fn commands(&self, args: &Args, configs: &[NamedConfig], of_groups: &[String]) -> Vec<String> {
        let mut commands: Vec<String> = Vec::new();
        let others = configs.iter().filter(|config| config.name != device_plugin::DEFAULT);
        for config in others {
            let groups = self.fleet.groups.iter().zip(of_groups).filter(|(_, name)| **name == config.name);
            let nodes: Vec<String> =
                groups.flat_map(|(group, _)| group.nodes.iter().map(|node| shell_word(node))).collect();
            let nodes = if self.imagined { "NODE".to_owned() } else { nodes.join(" ") };
            let (key, value) = (keys::DEVICE_PLUGIN_CONFIG, &config.name);
            commands.push(format!("kubectl label node --overwrite {nodes} {key}={value}"));
        }
        let patch = device_plugin::cluster_policy_patch(&args.config_map).to_string();
        let patch = shell_word(&patch);
        commands.push(format!("kubectl patch clusterpolicies.nvidia.com/cluster-policy --type merge -p {patch}"));
        commands
    }
}

/// The command that the user wrote, without its output format.
fn this_command() -> String {
    let mut words = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--output" | "-o" => drop(arguments.next()),
            other if other.starts_with("--output=") || (other.starts_with("-o") && other.len() > 2) => {}
            other => words.push(shell_word(other)),
        }
    }
    format!("vramguard {}", words.join(" "))
}

/// A word for a shell: as it is if no shell changes it, else in quotes.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/=:".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

type Located = (String, u64, Value);

fn read_policies(
    args: &Args,
    objects: &[Located],
) -> anyhow::Result<(Policies, Vec<Override>, BTreeMap<String, Vram>)> {
    let mut files = match &args.policies {
        Some(directory) => policies::files_of(directory)?,
        None => policies::Files::new(),
    };
    let is_policy = |object: &&Located| object.2.get("apiVersion").and_then(Value::as_str) == Some(keys::API_VERSION);
    let is_document = |object: &&Located| object.2.get("kind").and_then(Value::as_str) != Some("GpuLedger");
    let mut resources = Vec::new();
    for (file, line, object) in objects.iter().filter(is_policy).filter(is_document) {
        let name = format!("{file}:{line}");
        if document::is_resource(object) {
            resources.push(document::read_resource(&name, object));
        } else {
            files.push((name, object.to_string()));
        }
    }
    let read = document::read_with(document::texts(&files), &resources);
    let configuration =
        read.map_err(|errors| anyhow!(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))?;
    for error in configuration.unreadable() {
        eprintln!("warning: {}", verdict::unreadable_policy(&error.file, &error.reason()));
    }
    let layers = configuration.documents.cluster.iter().map(|cluster| &cluster.layer);
    let layers = layers.chain(configuration.documents.namespaces.values());
    let models = layers.flat_map(|layer| layer.models.clone()).collect();
    Ok((Policies::new(&configuration.documents, keys::NAMESPACE), configuration.overrides, models))
}

fn read_nodes(objects: &[Located], overrides: &[Override]) -> anyhow::Result<Vec<(String, NodeFacts)>> {
    let nodes = objects.iter().filter(|(_, _, object)| is_node(object));
    let read = |(file, line, object): &Located| {
        let mut node = NodeObject::deserialize(object)
            .with_context(|| format!("{file}:{line}: {} cannot be read", template::title(object)))?;
        // A name goes into commands for a shell, and the API server accepts no other characters in it.
        let tame = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        ensure!(
            !node.name().is_empty() && node.name().chars().all(tame),
            "{file}:{line}: metadata.name: {:?} is no name of a node",
            node.name()
        );
        // It changes with the replicas that are planned.
        if let Some(labels) = &mut node.metadata.labels {
            labels.remove(keys::POD_MAX_MIB);
        }
        anyhow::Ok((node.name().to_owned(), node::facts(&node, overrides)))
    };
    nodes.map(read).collect()
}

fn is_node(object: &Value) -> bool {
    let text = |key: &str| object.get(key).and_then(Value::as_str);
    (text("apiVersion"), text("kind")) == (Some("v1"), Some("Node"))
}

/// The config of the device plugin that each node is labelled with.
fn labels(objects: &[Located]) -> BTreeMap<String, String> {
    let of = |(_, _, object): &Located| {
        let name = object.pointer("/metadata/name")?.as_str()?.to_owned();
        let label = object.pointer("/metadata/labels")?.get(keys::DEVICE_PLUGIN_CONFIG)?.as_str()?.to_owned();
        is_node(object).then_some((name, label))
    };
    objects.iter().filter_map(of).collect()
}

fn imagined_nodes(args: &Args) -> anyhow::Result<Vec<(String, NodeFacts)>> {
    let (Some(mib), Some(count)) = (args.gpu_memory_mib, args.count) else { return Ok(Vec::new()) };
    let size = Vram::checked_from_mib(mib).filter(|size| *size <= MAX_GPU);
    let size = size.with_context(|| format!("--gpu-memory-mib {mib} is more than any GPU has; it is in MiB"))?;
    let each = args.gpus_per_node;
    ensure!(
        count % each == 0,
        "--count {count} is not a multiple of --gpus-per-node {each}; plan each kind of node apart"
    );
    let facts = NodeFacts { pools: vec![fleet::imagined(each, size)], ..NodeFacts::default() };
    Ok((0..count / each).map(|number| (format!("node-{number}"), facts.clone())).collect())
}

/// Reads a demand of the command line: its name, what a pod takes, and how many there are.
fn asked(text: &str, policies: &Policies) -> anyhow::Result<(String, Vram, Option<u64>)> {
    let (amount, pods) = text.split_once(':').map_or((text, None), |(amount, pods)| (amount, Some(pods)));
    let declared: Vram = amount.parse().map_err(|error| anyhow!("--demand {text}: {amount:?} {error}"))?;
    ensure!(!declared.is_zero(), "--demand {text}: an amount is above zero");
    let read = |pods: &str| {
        let grammar = "write AMOUNT:PODS, as in 8Gi:40, or AMOUNT alone for as many as fit";
        between::<u64>(1, u64::MAX)(pods)
            .map_err(|why| anyhow!("--demand {text}: {pods:?} is no number of pods: it {why}; {grammar}"))
    };
    let count = pods.map(read).transpose()?;
    let demand = with_overhead(declared, policies).with_context(|| format!("--demand {text}"))?;
    Ok((format!("--demand {amount}"), demand, count))
}

fn with_overhead(declared: Vram, policies: &Policies) -> anyhow::Result<Vram> {
    let demand = Demand::declared(declared, policies.rules().per_process_overhead, 1);
    demand.map(|demand| demand.total).context("is larger than any amount of memory")
}

/// Checks an existing configuration, and compares it with a plan if there are nodes.
fn check(args: &Args, file: &Path, input: &Inputs) -> Result<Checked, Failure> {
    if args.output.iter().any(|output| output.format == Format::Yaml) {
        let why = "--output yaml prints a new ConfigMap; with --check, use table or json";
        return Err(Failure::Input(anyhow!(why)));
    }
    let (name, text) = files::text_of(file).map_err(Failure::Input)?;
    let Linted { configs, mut findings } =
        lint::lint(&text).map_err(|(line, what)| Failure::Input(anyhow!("{name}:{line}: {what}")))?;
    let mut changes = Vec::new();
    let is_compared = !input.fleet.groups.is_empty() && !input.wanted.is_empty();
    if is_compared {
        let label = |node: &str| input.labels.get(node).cloned();
        let rules = input.policies.rules();
        let (more, changed) = input.fleet.compare(&configs, &input.plan(), &input.wanted, rules, label);
        findings.extend(more);
        findings.sort_by_key(|finding| finding.line);
        changes = changed;
    }
    Ok(Checked { name, configs: configs.len(), findings, changes, is_compared })
}

/// The check of an existing configuration.
struct Checked {
    name: String,
    configs: usize,
    findings: Vec<Finding>,
    changes: Vec<Change>,
    /// Whether it was compared with a plan.
    is_compared: bool,
}

impl Checked {
    fn rendered(&self, format: Format) -> String {
        match format {
            Format::Json => self.json(),
            // `check` refuses YAML.
            Format::Table | Format::Yaml => self.table(),
        }
    }

    fn json(&self) -> String {
        let finding = |f: &Finding| json!({"file": self.name, "line": f.line, "severity": f.severity.to_string(), "field": f.field, "message": f.what});
        let change = |c: &Change| json!({"pool": c.group, "nodes": c.nodes, "config": c.config, "resource": c.resource, "from": c.from, "to": c.to});
        let findings: Vec<Value> = self.findings.iter().map(finding).collect();
        let changes: Vec<Value> = self.changes.iter().map(change).collect();
        format!("{:#}\n", json!({"schemaVersion": "v1", "findings": findings, "changes": changes}))
    }

    fn table(&self) -> String {
        let name = &self.name;
        let mut lines = Vec::new();
        for Finding { severity, line, field, what } in &self.findings {
            lines.push(format!("{name}:{line}: {severity}: {field}: {what}"));
        }
        for Change { group, nodes, config, resource, from, to } in &self.changes {
            let config = config.as_deref().map_or_else(|| "no config".to_owned(), |config| format!("config {config}"));
            lines.push(format!("plan: {nodes} × {group}, {config}: {resource} replicas {from} -> {to}"));
        }
        let number = |noun, number| crate::capacity::verdict::count(number, noun);
        let faults = self.findings.iter().filter(|finding| finding.severity != Severity::Note).count();
        let summary = format!("{name}: {}, {}", number("config", self.configs), number("finding", faults));
        lines.push(match (self.is_compared, self.changes.len()) {
            (false, _) => format!("{summary}; give nodes and demands to compare it with a plan"),
            (true, 0) => format!("{summary}; a plan would change nothing"),
            (true, changes) => format!("{summary}; a plan would make {}", number("change", changes)),
        });
        // Names in the file are a stranger's.
        lines.iter().map(|line| printable(line) + "\n").collect()
    }
}
