//! `vramguard audit`: reads a cluster or files, audits them, and writes the report. Owns these arguments, files and exit
//! codes; what is found is decided in [`capacity::audit`](crate::capacity::audit), and how it looks in
//! [`report`](crate::report).

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, anyhow};

use self::output::Progress;
use super::outputs::{self, Output};
use super::{Failure, live, numbers};
use crate::capacity::audit::{self as core, Assumption, scene::Scene};
use crate::capacity::name::Name;
use crate::capacity::policy::{Mode, Policies};
use crate::capacity::recommend::Observations;
use crate::capacity::verdict;
use crate::capacity::verdict::finding::Place;
use crate::k8s::audit::Reader;
use crate::k8s::document::{self, Configuration, DocumentError, PolicyResource, texts};
use crate::k8s::{manifests, pod, wording};
use crate::keys;
use crate::report::assemble::{self, Origin};
use crate::report::baseline::{self, FailOn};
use crate::report::document::{Gap, Report};
use crate::report::{Format, ReportApi};
use crate::state::objects::{Objects, Unread, has_all_pods};
use crate::state::policies;

mod output;

/// Arguments of `audit`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    source: Source,

    /// Report the same cluster under an assumption next to today's: mode=MODE, replicas=N, policy=FILE or steered.
    /// Repeatable
    #[arg(long, value_name = "ASSUMPTION")]
    assume: Vec<Assumed>,

    /// Format of the report: table, json, yaml, markdown, html, sarif, junit, github or policyreport. With =FILE it is
    /// written to that file. Repeatable [default: table]
    #[arg(long, short = 'o', value_name = "FORMAT[=FILE]")]
    output: Vec<Output<Format>>,

    /// Earlier report in JSON to compare with
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,

    /// Earlier reports in JSON that the HTML report shows as a trend. Repeatable
    #[arg(long, value_name = "FILE")]
    history: Vec<PathBuf>,

    /// Findings for which the exit code is 1: deny, warn (and deny), new (deny or warn that --baseline does not have), or
    /// never
    #[arg(long, value_name = "WHICH", default_value = "deny")]
    fail_on: FailOn,

    /// API of the format policyreport: openreports or wgpolicyk8s [default: the one that the cluster serves, else
    /// openreports]
    #[arg(long, value_name = "API")]
    report_api: Option<ReportApi>,

    /// Show healthy GPUs one by one, and all findings
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    colours: outputs::Colours,
}

/// The cluster, or the files, that are read.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Source {
    /// File with objects instead of a live cluster, as `kubectl get nodes,pods -A -o json` prints them, or manifests.
    /// `-` is standard input. Repeatable
    #[arg(long, short = 'f', value_name = "FILE", conflicts_with_all = ["context", "kubeconfig", "all_namespaces"])]
    pub(super) snapshot: Vec<PathBuf>,

    /// Directory of policy files [default: those of the cluster, or those among the objects, or else the built-in
    /// policy, mode Audit]
    #[arg(long, value_name = "DIR")]
    pub(super) policies: Option<PathBuf>,

    /// Report on one namespace. What other namespaces hold still counts on each GPU
    #[arg(long, short = 'n', value_name = "NAMESPACE", conflicts_with = "all_namespaces")]
    pub(super) namespace: Option<String>,

    /// Report on all namespaces, which is the default
    #[arg(long, short = 'A')]
    pub(super) all_namespaces: bool,

    /// Kubeconfig of the cluster [default: that of KUBECONFIG, or ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    pub(super) kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig [default: the current one]
    #[arg(long, value_name = "NAME")]
    pub(super) context: Option<String>,
}

impl Source {
    /// Refuses values that the command line allows and that make no sense.
    pub(super) fn check(&self) -> Result<(), Failure> {
        if self.namespace.as_ref().is_some_and(String::is_empty) {
            let error = anyhow!("--namespace is empty; leave it out to report on all namespaces");
            return Err(Failure::Input(error));
        }
        Ok(())
    }

    /// The cluster to read.
    fn chosen(&self) -> live::Chosen<'_> {
        live::Chosen { kubeconfig: self.kubeconfig.as_deref(), context: self.context.as_deref() }
    }
}

/// A value of `--assume`.
#[derive(Clone, Debug)]
enum Assumed {
    Core(Assumption),
    Policy(PathBuf),
}

impl FromStr for Assumed {
    type Err = String;

    fn from_str(text: &str) -> Result<Assumed, String> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        match (name, value) {
            ("steered", "") => Ok(Assumed::Core(Assumption::Steered)),
            ("mode", mode) => {
                let modes = [Mode::Enforce, Mode::Warn, Mode::Audit, Mode::Off];
                let known = modes.into_iter().find(|known| known.to_string().eq_ignore_ascii_case(mode));
                let known = known.ok_or_else(|| format!("{mode:?} is not Enforce, Warn, Audit or Off"))?;
                Ok(Assumed::Core(Assumption::Mode(known)))
            }
            ("replicas", number) => Ok(Assumed::Core(Assumption::Replicas(numbers::above_zero(number)?))),
            ("policy", file) if !file.is_empty() => Ok(Assumed::Policy(file.into())),
            _ => Err("expected mode=MODE, replicas=N, policy=FILE or steered".to_owned()),
        }
    }
}

/// Audits, writes the report, and fails if a finding is grave enough.
pub(super) async fn run(mut args: Args) -> Result<(), Failure> {
    check(&args)?;
    let earlier = args.baseline.as_deref().map(report_of).transpose()?;
    let history = args.history.iter().map(|file| report_of(file)).collect::<Result<Vec<Report>, Failure>>()?;
    let reports = args.output.iter().any(|output| output.format == Format::PolicyReport);
    let wanted = Wanted { report_api: reports.then_some(&mut args.report_api), observed: false };
    let Found { mut scene, origin, .. } = read(&args.source, wanted).await?;
    let mut report = assemble::report(&core::run(&scene), &origin);
    if !args.assume.is_empty() {
        let given: Vec<String> = given(&args.assume);
        let audit = assuming(&mut scene, &args.assume)?;
        report.assume(given, assemble::report(&audit, &origin));
    }
    drop(scene);
    if let Some(namespace) = &args.source.namespace {
        if !report.namespaces.iter().any(|known| known.namespace == *namespace) {
            eprintln!("warning: nothing in namespace {namespace:?} requests a GPU; is its name right?");
        }
        report.narrow(namespace);
    }
    if let Some(earlier) = &earlier {
        baseline::compare(&mut report, earlier);
    }
    output::write(&report, history, &args).map_err(Failure::Input)?;
    if baseline::fails(&report, args.fail_on) {
        // The table says what it found; a run that writes files alone says why it fails.
        if !args.output.is_empty() && args.output.iter().all(|output| output.file.is_some()) {
            let summary = &report.summary;
            eprintln!("{} deny and {} warn findings; --fail-on is {}", summary.deny, summary.warn, args.fail_on);
        }
        return Err(Failure::Findings);
    }
    Ok(())
}

/// Checks what the command line allows and makes no sense.
fn check(args: &Args) -> Result<(), Failure> {
    let input = |text: String| Err(Failure::Input(anyhow!(text)));
    args.source.check()?;
    if args.fail_on == FailOn::New && args.baseline.is_none() {
        return input("--fail-on new compares with an earlier report: give --baseline FILE".to_owned());
    }
    if !args.history.is_empty() && !args.output.iter().any(|output| output.format == Format::Html) {
        return input("--history is shown by the HTML report alone: add --output html=FILE".to_owned());
    }
    let inputs = args.source.snapshot.iter().chain(&args.baseline).chain(&args.history);
    outputs::check(&args.output, inputs).map_err(Failure::Input)?;
    Ok(())
}

/// The assumptions as they were given.
fn given(assumed: &[Assumed]) -> Vec<String> {
    let text = |assumed: &Assumed| match assumed {
        Assumed::Core(Assumption::Mode(mode)) => format!("mode={mode}"),
        Assumed::Core(Assumption::Replicas(replicas)) => format!("replicas={replicas}"),
        Assumed::Core(Assumption::Steered) => "steered".to_owned(),
        Assumed::Policy(file) => format!("policy={}", file.display()),
    };
    assumed.iter().map(text).collect()
}

/// Audits a scene under assumptions. Its policies are those of the assumptions afterwards.
fn assuming(scene: &mut Scene, assumed: &[Assumed]) -> Result<core::outcome::Audit, Failure> {
    let mut assumptions = Vec::new();
    for assumed in assumed {
        match assumed {
            Assumed::Core(assumption) => assumptions.push(*assumption),
            Assumed::Policy(file) => {
                let name = file.display().to_string();
                let text = std::fs::read_to_string(file).with_context(|| name.clone()).map_err(Failure::Input)?;
                let configuration = document::read([(name.as_str(), text.as_str())]).map_err(errors)?;
                if !configuration.overrides.is_empty() {
                    let error =
                        anyhow!("{name}: a GpuInventory describes nodes and is no policy; give it in --policies DIR");
                    return Err(Failure::Input(error));
                }
                scene.policies = Policies::new(&configuration.documents, keys::NAMESPACE);
                let guarded = scene.cluster.guarded();
                scene.cluster.set_rules(*scene.policies.rules(), guarded);
            }
        }
    }
    Ok(core::run_assuming(scene, &assumptions))
}

/// What a command needs beyond the scene.
#[derive(Default)]
pub(super) struct Wanted<'a> {
    /// Set to the API of policy reports that a live cluster serves, if it is given and none is chosen.
    pub report_api: Option<&'a mut Option<ReportApi>>,
    /// Whether what the node agents have reported is wanted.
    pub observed: bool,
}

/// A cluster, or files, as they were read.
pub(super) struct Found {
    /// What an audit looks at.
    pub scene: Scene,
    /// Where it is from, and what could not be read.
    pub origin: Origin,
    /// What the node agents have reported, if it is wanted.
    pub observed: Observations,
}

/// Reads the cluster or the files.
pub(super) async fn read(source: &Source, wanted: Wanted<'_>) -> Result<Found, Failure> {
    let mut reader = Reader::default();
    let progress = Progress::default();
    let mut origin = Origin { generated_at: now(), ..Origin::default() };
    let mut found = Vec::new();
    if source.snapshot.is_empty() {
        if let Some(now) = pod::moment(&origin.generated_at) {
            reader.read_at(now);
        }
        let (objects, name) = live::connect(source.chosen(), source.namespace.as_deref()).await?;
        origin.gaps = read_live(&objects, &mut reader, &progress).await?;
        origin.cluster = name;
        match objects.policies().await {
            Ok(files) => found = files,
            Err(gap) if source.policies.is_none() => origin.gaps.push(gap),
            Err(_) => {}
        }
        if let Some(api) = wanted.report_api.filter(|api| api.is_none()) {
            *api = objects.report_api().await.unwrap_or_else(|error| {
                eprintln!("warning: {error}; the reports are of openreports.io, or choose one by --report-api");
                None
            });
        }
    } else {
        let names: Vec<String> = source.snapshot.iter().map(|file| file.display().to_string()).collect();
        read_files(source, &mut reader, &progress)?;
        origin.cluster = names.join(", ");
    }
    let from_files = !source.snapshot.is_empty();
    let lacks_policies = from_files && source.policies.is_none() && !reader.has_policies();
    origin.gaps.extend((from_files && reader.lacks_pods()).then(without_pods));
    let unread = |(kind, count): (&String, &usize)| Gap {
        what: kind.clone(),
        why: format!(
            "{count} of this kind ask for GPUs, and their templates are not read; their pods are, where there are any"
        ),
    };
    origin.gaps.extend(reader.unread().iter().map(unread));
    found.extend(reader.policies().iter().cloned());
    let configuration = policies_of(source, &found, reader.policy_resources())?;
    let unreadable = configuration.unreadable().map(|error| Gap {
        what: "policies".to_owned(),
        why: verdict::unreadable_policy(&error.file, &error.reason()),
    });
    origin.gaps.extend(unreadable);
    let policies = Policies::new(&configuration.documents, keys::NAMESPACE);
    let observed = if wanted.observed { reader.observed() } else { Observations::default() };
    let scene = reader.finish(policies, &configuration.overrides);
    origin.gaps.extend((lacks_policies && scene.installed).then(without_policies));
    Ok(Found { scene, origin, observed })
}

/// Reads the objects of a cluster. Returns what could not be read.
async fn read_live(objects: &Objects, reader: &mut Reader, progress: &Progress) -> Result<Vec<Gap>, Failure> {
    let mut unread = Unread::default();
    let mut add = |object| {
        reader.add(None, &object).unwrap_or_else(|error| unread.note(&error));
        Ok(())
    };
    let read = objects.read(&|what, count| progress.tell(what, count), &mut add).await;
    progress.end();
    let mut gaps = read.map_err(live::failure)?;
    gaps.extend(unread.gap());
    if has_all_pods(&gaps) {
        reader.follow_agent_pods();
    }
    Ok(gaps)
}

/// Files of a cluster with vramguard, and without its policies.
fn without_policies() -> Gap {
    let (namespace, name) = (keys::NAMESPACE, keys::POLICIES);
    Gap {
        what: format!("configmaps {namespace}/{name}"),
        why: format!(
            "vramguard is installed on the nodes, and the files have no policies; the built-in policy (mode Audit) is \
             used in place of the cluster's own; add `kubectl get configmap {name} -n {namespace} -o json`, or give \
             --policies DIR"
        ),
    }
}

/// Files of a cluster without its pods.
fn without_pods() -> Gap {
    Gap {
        what: "pods".to_owned(),
        why: "the files have nodes and no pods; what pods hold is missing, so GPUs look emptier than they are; add \
              `kubectl get pods -A -o json`"
            .to_owned(),
    }
}

/// Reads all files, and reports the errors of all of them together.
fn read_files(source: &Source, reader: &mut Reader, progress: &Progress) -> Result<(), Failure> {
    let mut wrong: Vec<DocumentError> = Vec::new();
    for file in &source.snapshot {
        let name = file.display().to_string();
        let shared = Name::from(&name);
        let mut count = 0;
        let mut add = |line, object| {
            count += 1;
            progress.tell(&name, count);
            reader.add(Some(Place { file: shared.clone(), line }), &object)
        };
        let read = if file == Path::new("-") {
            manifests::read_reduced(&name, std::io::stdin().lock(), &mut add)
        } else {
            let opened = File::open(file).with_context(|| name.clone()).map_err(Failure::Input)?;
            manifests::read_reduced(&name, BufReader::with_capacity(BUFFER, opened), &mut add)
        };
        wrong.extend(read.err().unwrap_or_default());
    }
    progress.end();
    if wrong.is_empty() { Ok(()) } else { Err(errors(wrong)) }
}

/// Bytes of a file that are read at a time.
const BUFFER: usize = 1 << 20;

/// The policy documents: of `--policies`, else those that were found.
fn policies_of(
    source: &Source,
    files: &[(String, String)],
    resources: &[PolicyResource],
) -> Result<Configuration, Failure> {
    let Some(directory) = &source.policies else {
        return document::read_with(texts(files), resources).map_err(errors);
    };
    let files = policies::files_of(directory).map_err(|error| Failure::Input(error.into()))?;
    if files.is_empty() {
        let error = anyhow!("{}: holds no policy files (.yaml, .yml or .json)", directory.display());
        return Err(Failure::Input(error));
    }
    document::read(texts(&files)).map_err(errors)
}

/// The most errors that are printed; the others are counted.
const MAX_ERRORS: usize = 20;

fn errors(wrong: Vec<DocumentError>) -> Failure {
    let mut lines: Vec<String> = wrong.iter().take(MAX_ERRORS).map(ToString::to_string).collect();
    if wrong.len() > MAX_ERRORS {
        lines.push(format!("and {} more errors", wrong.len() - MAX_ERRORS));
    }
    Failure::Input(anyhow!(lines.join("\n")))
}

/// Reads an earlier report in JSON.
fn report_of(file: &Path) -> Result<Report, Failure> {
    let read = || {
        let text = std::fs::read_to_string(file)?;
        let report: Report = serde_json::from_str(&text).map_err(|error| anyhow!(wording::json(&error)))?;
        anyhow::ensure!(
            report.schema_version == crate::report::document::SCHEMA_VERSION,
            "schemaVersion is {:?}, and this version reads {:?}",
            report.schema_version,
            crate::report::document::SCHEMA_VERSION
        );
        anyhow::Ok(report)
    };
    let expected = || format!("{}: no report in JSON, as --output json writes it", file.display());
    read().with_context(expected).map_err(Failure::Input)
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests;
