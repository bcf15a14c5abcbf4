//! A question → its answer. Owns the order in which the core is asked, and what is left out if no cluster is known.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::{
    Container, Explanation, Group, Ignored, Mutate, Nodes, Origin, Pod, Quota, SCHEMA_VERSION, Setting, Source,
    Validate, Violation,
};
use crate::capacity::admission::account::{Account, ContainerAccount};
use crate::capacity::admission::environment::Value;
use crate::capacity::admission::{self, Changes, ContainerChange, Judgement};
use crate::capacity::candidates::{self, Candidates};
use crate::capacity::cluster::Cluster;
use crate::capacity::pod::Pod as CorePod;
use crate::capacity::pod::demand::{Basis, Role};
use crate::capacity::pod::placement::{Affinity, Requirement, Reroute};
use crate::capacity::pod::software::Framework;
use crate::capacity::policy::{self, DocumentState, Documents, Mode, Policies, Policy, Scope, Why};
use crate::capacity::verdict::{self, Advice, Condition, Counts, Verdict};
use crate::capacity::vram::Vram;
use crate::k8s::document::{Configuration, Placed, Sources};
use crate::k8s::manifest::Manifest;
use crate::k8s::object::PodObject;
use crate::k8s::pod_review::{self, Subject};
use crate::k8s::resource_quota::Limit;
use crate::k8s::simulation::Simulation;
use crate::k8s::snapshot::Snapshot;
use crate::k8s::{foreign, patch, pod, wording};
use crate::keys;

/// The most names of nodes that are listed with one reason.
const MAX_NAMES: usize = 100;
/// The most nodes of which a note says that they are no longer steered.
const MAX_NOT_STEERED: usize = 8;

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The namespace.
    pub namespace: &'a str,
    /// All policy documents.
    pub configuration: &'a Configuration,
    /// Where they are written.
    pub sources: &'a Sources,
    /// The pod, if one is asked about.
    pub manifest: Option<&'a Manifest>,
    /// The cluster, if it is known.
    pub cluster: Option<&'a Snapshot>,
    /// Version of the program.
    pub version: &'a str,
}

/// Answers a question.
///
/// # Errors
/// The pod cannot be reviewed. [`crate::k8s::manifest`] reads only pods that can be.
pub fn answer(question: Question<'_>) -> Result<Explanation, String> {
    let Question { namespace, configuration, sources, manifest, cluster, version } = question;
    let policies = Policies::new(&configuration.documents, keys::NAMESPACE);
    let settings = configuration.documents.settings(namespace);
    let mut explanation = Explanation {
        schema_version: SCHEMA_VERSION.to_owned(),
        generated_by: format!("vramguard {version}"),
        namespace: namespace.to_owned(),
        exempt: policies.of(namespace).is_none(),
        policy: settings.into_iter().map(|setting| located(setting, namespace, sources)).collect(),
        ..Explanation::default()
    };
    let quotas = cluster.iter().flat_map(|cluster| &cluster.quotas).filter(|quota| quota.namespace == namespace);
    explanation.quotas = quotas.map(quota).collect();
    if configuration.documents == Documents::default() && configuration.resources.is_empty() {
        explanation.notes.push(verdict::NO_POLICY.to_owned());
    }
    explanation.notes.extend(not_in_force(configuration, &policies, namespace));
    let (Some(manifest), Some(policy)) = (manifest, policies.of(namespace).cloned()) else {
        return Ok(explanation);
    };
    let mut manifest = manifest.clone();
    let read = |pod: &serde_json::Value| PodObject::deserialize(pod).map_err(|error| wording::json(&error));
    let mut object = read(&manifest.pod)?;
    let itself = cluster.filter(|_| manifest.kind == "Pod").and_then(|cluster| existing(cluster, &object));
    if let Some(itself) = itself {
        explanation.notes.push(verdict::exists_already(&pod::translate(itself, None, None).name));
        // Its scheduler chose the node, and its author did not.
        if itself.spec.node_name.is_some() && object.spec.node_name == itself.spec.node_name {
            manifest.pod["spec"]["nodeName"] = serde_json::Value::Null;
            object = read(&manifest.pod)?;
        }
    }
    let pod = pod::translate(&object, Some(namespace), Some(""));
    let resources = pod.containers.iter().flat_map(|container| &container.gpus).map(|(resource, _)| resource.clone());
    let (nothing, overrides) = (Snapshot::default(), &configuration.overrides);
    let simulation = match cluster {
        Some(cluster) => match itself {
            Some(itself) => Simulation::without(cluster, policies, overrides, itself),
            None => Simulation::new(cluster, policies, overrides),
        },
        None => Simulation::guarding(&nothing, policies, overrides, resources.collect::<BTreeSet<_>>()),
    };
    let asked =
        Asked { manifest: &manifest, object: &object, pod: &pod, policy: &policy, cluster: simulation.cluster() };
    explanation.pod = Some(asked.explain(cluster.is_some())?);
    let foreign = foreign::of_pod(&asked.manifest.pod).into_iter().filter(|declaration| !declaration.understood);
    explanation
        .notes
        .extend(foreign.map(|found| {
            verdict::not_for_us(found.container.as_deref(), &found.key, &found.text, found.scheme.name())
        }));
    let of_hami = cluster.map_or(0, |cluster| cluster.of_hami);
    explanation.notes.extend((of_hami > 0).then(|| verdict::hami_not_read(of_hami)));
    explanation.notes.extend(not_steered(simulation.cluster()));
    match cluster {
        Some(snapshot) => explanation.nodes = asked.nodes(snapshot)?,
        None => explanation.notes.push(verdict::NO_CLUSTER.to_owned()),
    }
    if matches!(policy.mode, Mode::Audit | Mode::Off) {
        explanation.notes.push(verdict::not_held_back(policy.mode));
    }
    Ok(explanation)
}

/// The nodes whose agents said that they steer, and no longer run: the first ones by name, and how many more there are.
fn not_steered(cluster: &Cluster) -> Vec<String> {
    let doubted = cluster.node_names().filter_map(|name| Some((name, cluster.node(name)?.ledger.doubt()?)));
    let doubted: Vec<_> = doubted.collect();
    let mut notes: Vec<String> =
        doubted.iter().take(MAX_NOT_STEERED).map(|(name, doubt)| verdict::not_steered(name, doubt)).collect();
    let more = doubted.len().saturating_sub(MAX_NOT_STEERED);
    notes.extend((more > 0).then(|| verdict::more_not_steered(more)));
    notes
}

/// The policy resources for this namespace that are not in force, and why.
fn not_in_force(configuration: &Configuration, policies: &Policies, namespace: &str) -> Vec<String> {
    let of_resource = |resource: &Placed| {
        let concerns_it = match &resource.scope {
            Scope::Cluster | Scope::Nodes => true,
            Scope::Namespace(of) => of == namespace,
        };
        let file = match &resource.file {
            Ok(file) => file,
            Err(error) => {
                return concerns_it.then(|| verdict::unreadable_policy(&resource.name, &error.reason()));
            }
        };
        let state = policies.state_of(&resource.scope, file.as_deref());
        let why = || verdict::not_in_force(&resource.name, &Condition::in_force(&state).message);
        (concerns_it && !matches!(state, DocumentState::InForce { .. })).then(why)
    };
    configuration.resources.iter().filter_map(of_resource).collect()
}

fn quota(limit: &Limit) -> Quota {
    Quota {
        name: limit.name.clone(),
        kept_by_vramguard: limit.ours,
        hard_mib: limit.hard.map(Vram::mib),
        used_mib: limit.used.map(Vram::mib),
        left_mib: limit.left().map(Vram::mib),
    }
}

/// The pod of the cluster that is the one asked about: of the same uid, or else of the same namespace and name.
fn existing<'s>(cluster: &'s Snapshot, object: &PodObject) -> Option<&'s PodObject> {
    let wanted = &object.metadata;
    let namespace = |object: &PodObject| object.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let is_named = |pod: &PodObject| {
        wanted.name.is_some() && pod.metadata.name == wanted.name && namespace(pod) == namespace(object)
    };
    let same_uid = |pod: &&PodObject| wanted.uid.is_some() && pod.metadata.uid == wanted.uid;
    cluster.pods.iter().find(same_uid).or_else(|| cluster.pods.iter().find(|pod| is_named(pod)))
}

/// A setting of the core, with the place in a file where it is written.
fn located(setting: policy::Setting, namespace: &str, sources: &Sources) -> Setting {
    let policy::Setting { path, value, origin, locked, passed_over } = setting;
    let source = |origin: policy::Origin| {
        let document = match origin {
            policy::Origin::Default => None,
            policy::Origin::Cluster => sources.cluster.as_ref(),
            policy::Origin::Namespace => sources.namespaces.get(namespace),
        }?;
        Some(Source { file: document.file.clone(), line: document.lines.get(&path).copied() })
    };
    let in_force = source(origin);
    let ignored = passed_over.map(|other| Ignored {
        source: source(other.origin),
        value: other.value,
        origin: other.origin.into(),
        why: match other.why {
            Why::Locked => "locked",
            Why::Replaced => "replaced",
            Why::LessStrict => "lessStrict",
        },
    });
    Setting { source: in_force, field: path, value, origin: origin.into(), locked, ignored }
}

impl From<policy::Origin> for Origin {
    fn from(origin: policy::Origin) -> Origin {
        match origin {
            policy::Origin::Default => Origin::Default,
            policy::Origin::Cluster => Origin::Cluster,
            policy::Origin::Namespace => Origin::Namespace,
        }
    }
}

/// A pod that is asked about, with all that decides on it.
struct Asked<'a> {
    manifest: &'a Manifest,
    object: &'a PodObject,
    pod: &'a CorePod,
    policy: &'a Policy,
    cluster: &'a Cluster,
}

impl Asked<'_> {
    fn explain(&self, knows_nodes: bool) -> Result<Pod, String> {
        let account = admission::assess(self.pod, self.policy, self.cluster).account();
        let subject = |object| Subject { object, namespace: None, user: "" };
        let mutation = pod_review::mutate(subject(self.object), self.policy, || self.cluster);
        let mutated = self.patched(&mutation.patch)?;
        let validation = pod_review::validate(subject(&mutated), self.policy, &[], || self.cluster);
        let overhead = self.policy.per_process_overhead;
        let changes = mutation.changes.containers.iter().map(Some).chain(std::iter::repeat(None));
        let containers = account.containers.iter().zip(changes);
        Ok(Pod {
            kind: self.manifest.kind.clone(),
            name: self.manifest.name.clone(),
            containers: containers
                .map(|(container, change)| self.container(container, &account, overhead, change))
                .collect(),
            demand_mib: account.demand.map(Vram::mib),
            mutate: Mutate {
                changes: !mutation.patch.0.is_empty(),
                removed_annotations: mutation.changes.strip.clone(),
                affinity: alternatives(&mutation.changes),
                own_pool: mutation.changes.reroute.as_ref().map(|reroute| reroute.own.to_string()),
                further_pools: mutation.changes.reroute.iter().flat_map(Reroute::further).collect(),
                warnings: mutation.changes.advice.iter().map(Advice::to_string).collect(),
            },
            validate: validation.map_or_else(not_asked, |validation| validate(validation.judgement, knows_nodes)),
        })
    }

    fn patched(&self, patch: &json_patch::Patch) -> Result<PodObject, String> {
        let mut pod = self.manifest.pod.clone();
        json_patch::patch(&mut pod, patch).map_err(|error| error.to_string())?;
        PodObject::deserialize(&pod).map_err(|error| error.to_string())
    }

    fn container(
        &self,
        container: &ContainerAccount,
        account: &Account,
        overhead: Vram,
        change: Option<&ContainerChange>,
    ) -> Container {
        let key = |source| verdict::source(source, &container.name, &self.pod.declarations);
        let demand = container.demand;
        let bound = change.and_then(|change| change.bound.as_ref());
        let overhead =
            demand.zip(account.processes).and_then(|(demand, processes)| demand.overhead(overhead, processes));
        Container {
            name: container.name.clone(),
            role: match container.role {
                Role::App => "app",
                Role::Init => "init",
                Role::Sidecar => "sidecar",
            },
            counts: demand.is_some() || matches!(container.counts, Counts::Guarded(_)),
            why: container.counts.to_string(),
            declared_mib: container.declared.map(|(amount, _)| amount.mib()),
            source: container.declared.map(|(_, source)| key(source)).unwrap_or_default(),
            also: container.also.iter().map(|source| key(*source)).collect(),
            processes: account.processes,
            overhead_mib: overhead.map(Vram::mib),
            demand_mib: demand.map(|demand| demand.total.mib()),
            slot: demand.is_some_and(|demand| demand.basis == Basis::Slot),
            injected_request_mib: change.and_then(|change| change.request).map(Vram::mib),
            injected_env: change.into_iter().flat_map(|change| &change.env).map(variable).collect(),
            removed_env: change.and_then(|change| change.remove_env).map(str::to_owned),
            edited_env: change.into_iter().flat_map(|change| &change.edit_env).map(variable).collect(),
            appended_argument: change.and_then(|change| Some(change.argument.as_ref()?.text.clone())),
            framework: bound.and_then(|bound| bound.framework).map(Framework::name),
            bounded_by: bound.map(|bound| bound.by.word()),
            bound: bound.map(|bound| format!("{}: {}", bound.by, bound.why)).unwrap_or_default(),
        }
    }

    /// What becomes of the pod on the nodes; `None` if it has no say on VRAM, or if its declaration is refused.
    fn nodes(&self, snapshot: &Snapshot) -> Result<Option<Nodes>, String> {
        // Under Audit and Off nothing is injected, so the pod is asked about as Enforce would create it.
        let enforced = Policy { mode: Mode::Enforce, ..self.policy.clone() };
        let changes = admission::assess(self.pod, &enforced, self.cluster).changes();
        let mutated = self.patched(&patch::operations(self.object, &changes))?;
        let Some(holder) = pod::would_hold(&mutated).filter(|holder| holder.request.is_some()) else { return Ok(None) };
        // The node affinity that is added to the pod rules nodes out too.
        let placement = pod::translate(&mutated, None, None).placement;
        let candidates = candidates::of(self.cluster, &pod::uid(&mutated.metadata), &holder, &placement);
        let known: BTreeSet<&str> = self.cluster.node_names().collect();
        let others = snapshot.nodes.iter().map(|node| node.name()).filter(|name| !known.contains(name));
        Ok(Some(nodes(candidates, others.map(str::to_owned).collect())))
    }
}

/// The groups of nodes. `without_gpu` are the nodes that the core does not know, because they have no GPU.
fn nodes(candidates: Candidates, without_gpu: Vec<String>) -> Nodes {
    let group = |(why, group): (String, candidates::Group)| {
        let count = group.nodes.len();
        let why = why.strip_prefix("node(s) ").unwrap_or(&why).to_owned();
        Group { why, count, nodes: group.nodes.into_iter().take(MAX_NAMES).collect(), example: group.example }
    };
    let later: Vec<Group> = candidates.later.into_iter().map(group).collect();
    let mut never: Vec<Group> = candidates.never.into_iter().map(group).collect();
    if !without_gpu.is_empty() {
        let (count, why) = (without_gpu.len(), verdict::NO_GPU_AT_ALL.to_owned());
        let nodes = without_gpu.into_iter().take(MAX_NAMES).collect();
        never.push(Group { why, count, nodes, example: String::new() });
    }
    let total = candidates.now.len() + later.iter().chain(&never).map(|group| group.count).sum::<usize>();
    Nodes { total, now: candidates.now, later, never }
}

/// What the node affinity requires in addition, as alternatives.
fn alternatives(changes: &Changes) -> Vec<String> {
    let names_pool =
        |requirement: &Requirement| changes.reroute.as_ref().is_some_and(|reroute| reroute.names_pool(requirement));
    match &changes.affinity {
        Some(Affinity::Terms(terms)) => {
            let term = |term: &crate::capacity::pod::placement::NewTerm| {
                let ours = term.with.iter().filter(|requirement| !names_pool(requirement));
                ours.map(verdict::requirement).collect::<Vec<_>>().join(" and ")
            };
            let all: BTreeSet<String> = terms.iter().map(term).filter(|term| !term.is_empty()).collect();
            all.into_iter().collect()
        }
        Some(Affinity::Nothing) | None => Vec::new(),
    }
}

fn variable(variable: &admission::environment::Variable) -> String {
    match &variable.value {
        Value::Literal(value) => format!("{}={value}", variable.name),
        Value::Field(path) => format!("{} from {path}", variable.name),
    }
}

fn not_asked() -> Validate {
    Validate { verdict: "Allow", ..Validate::default() }
}

/// The answer of `/validate/pods`. Violations that follow from nodes are left out of the verdict if no nodes are known.
fn validate(judgement: Judgement, knows_nodes: bool) -> Validate {
    let violation = |violation: &verdict::Violation| Violation {
        reason: violation.reason().to_string(),
        message: violation.to_string(),
    };
    let (of_nodes, violations): (Vec<_>, Vec<_>) =
        judgement.violations.into_iter().partition(|violation| !knows_nodes && violation.depends_on_nodes());
    let written = violations.iter().map(violation).collect();
    let judgement = Judgement { violations, ..judgement };
    let (verdict, advice) = match judgement.verdict() {
        Verdict::Allow { advice } => ("Allow", advice),
        Verdict::Deny { advice, .. } => ("Deny", advice),
    };
    Validate {
        verdict,
        violations: written,
        depends_on_nodes: of_nodes.iter().map(violation).collect(),
        warnings: advice
            .iter()
            .filter(|advice| !matches!(advice, Advice::Violates(_)))
            .map(Advice::to_string)
            .collect(),
    }
}
