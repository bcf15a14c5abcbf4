//! Pods and templates: what the policy of its namespace says of each, and what is wrong with it.

use std::collections::BTreeMap;

use super::findings::Findings;
use super::outcome::{GpuState, NodeState};
use super::scene::{Scene, Stage, Subject};
use super::{Modes, View};
use crate::capacity::admission::{self, Assessed, Reassessment};
use crate::capacity::cluster::{Cluster, OnlyShared};
use crate::capacity::name::Name;
use crate::capacity::node::holder::{Amount, Part};
use crate::capacity::observation::finding;
use crate::capacity::pod::PodName;
use crate::capacity::pod::placement::Placement;
use crate::capacity::policy::Mode;
use crate::capacity::verdict::finding::{Finding, ForeignDeclaration, Given, Matter, Severity};
use crate::capacity::verdict::{Advice, BoundedBy, Rerouted, Violation};
use crate::capacity::vram::Vram;

/// What the policy says of each subject of a scene, by its index; `None` if its namespace is exempt.
pub(super) struct Reassessments {
    pub(super) all: Vec<Option<Reassessment>>,
}

impl Reassessments {
    /// The smallest demand of a pod without a node. A pod that never fits waits for another cluster, not for room.
    pub(super) fn smallest_waiting(&self, scene: &Scene) -> Option<Vram> {
        let waiting = scene.subjects.iter().zip(&self.all).filter(|(subject, _)| subject.stage == Stage::Waiting);
        let fitting = waiting.filter_map(|(_, reassessment)| {
            reassessment.as_ref().filter(|reassessment| reassessment.never_fits.is_none())
        });
        fitting.filter_map(|reassessment| reassessment.demand).min()
    }
}

impl Reassessments {
    /// Adds to each container that holds memory what bounds it.
    pub(super) fn fill_in(&self, scene: &Scene, gpus: &mut [GpuState], nodes: &mut [NodeState]) {
        let subjects = scene.subjects.iter().zip(&self.all).filter(|(subject, _)| subject.stage != Stage::Template);
        let of_subject = |(subject, reassessment): (&'_ Subject, &'_ Option<Reassessment>)| {
            let bounds = reassessment.as_ref().map(|reassessment| reassessment.bounds.clone()).unwrap_or_default();
            let names = subject.pod.containers.iter().map(|container| Name::from(container.name.as_str()));
            let pod = subject.pod.name.clone();
            names
                .zip(bounds)
                .filter_map(move |(name, bound)| Some(((pod.clone(), name), bound?.by)))
                .collect::<Vec<_>>()
        };
        let bounds: BTreeMap<(PodName, Name), BoundedBy> = subjects.flat_map(of_subject).collect();
        let holders = gpus.iter_mut().flat_map(|gpu| &mut gpu.holders);
        for held in holders.chain(nodes.iter_mut().flat_map(|node| &mut node.unassigned)) {
            held.bounded_by = bounds.get(&(held.pod.clone(), held.container.clone())).copied();
        }
    }
}

/// Looks at every pod and template.
pub(super) fn reassessments(
    view: &View<'_>,
    policies: &BTreeMap<Name, Option<Modes>>,
    findings: &mut Findings,
) -> Reassessments {
    let look = |subject: &Subject| {
        let modes = policies.get(&subject.pod.name.namespace)?.as_ref()?;
        let assessed = if subject.stage == Stage::Template { Assessed::Template } else { Assessed::Pod };
        let mut reassessment = admission::reassess(&subject.pod, assessed, &modes.enforced, view.cluster);
        if !view.scene.has_nodes() {
            reassessment.violations.retain(|violation| !violation.depends_on_nodes());
            reassessment.never_fits = None;
        }
        let reporter = Reporter { subject, mode: modes.mode, cluster: view.cluster };
        reporter.policy(&reassessment, findings);
        reporter.facts(findings);
        reporter.several_gpus(view.cluster, findings);
        Some(reassessment)
    };
    Reassessments { all: view.scene.subjects.iter().map(look).collect() }
}

/// Reports about one subject.
struct Reporter<'a> {
    subject: &'a Subject,
    mode: Mode,
    cluster: &'a Cluster,
}

impl Reporter<'_> {
    /// What the policy makes of it.
    fn policy(&self, reassessment: &Reassessment, findings: &mut Findings) {
        // A namespace in another mode refuses nothing today.
        let refused = if self.mode == Mode::Enforce { Severity::Deny } else { Severity::Warn };
        for violation in &reassessment.violations {
            let matter = if self.is_infrastructure(violation) {
                Matter::Infrastructure(violation.clone())
            } else {
                Matter::Violation(violation.clone())
            };
            self.add(matter, refused, findings);
        }
        for advice in &reassessment.advice {
            // What it declares for another tool is reported as such.
            if matches!(advice, Advice::CountsAsSlot { .. }) && !self.subject.foreign.is_empty() {
                continue;
            }
            let severity = match advice {
                Advice::NotGuarded { .. } => Severity::Info,
                _ => Severity::Warn,
            };
            let advice = self.counts_as_seen(advice).unwrap_or_else(|| advice.clone());
            self.add(Matter::Advice(advice), severity, findings);
        }
        // A pod that runs has found a node.
        if let Some(never) = reassessment.never_fits.as_ref().filter(|_| !matches!(self.subject.stage, Stage::Bound(_)))
        {
            self.add(Matter::NeverFits(never.clone()), Severity::Deny, findings);
        }
        if let Some(rerouted) = self.rerouted(reassessment) {
            self.add(rerouted, Severity::Info, findings);
        }
    }

    /// The advice about a container that declares nothing, if its node saw it use more than what it would count as.
    fn counts_as_seen(&self, advice: &Advice) -> Option<Advice> {
        let (Advice::CountsAsSlot { container, key, .. }, Stage::Bound(node)) = (advice, &self.subject.stage) else {
            return None;
        };
        let (view, rules) = (self.cluster.node(node)?, self.cluster.rules());
        let holder = view.ledger.holders().get(&self.subject.uid)?;
        let part = holder.parts.iter().find(|part| part.container == *container)?;
        let pool = view.facts.pools.iter().find(|pool| holder.takes(&pool.resource).is_some())?;
        let seen = view.ledger.counts_as_seen(&self.subject.uid, part, pool.slot(rules), rules)?;
        let processes = self.subject.pod.declarations.processes.as_ref().and_then(|processes| processes.as_ref().ok());
        let overhead = finding::overhead(rules.per_process_overhead, processes.copied());
        let write = finding::to_write(seen, overhead);
        Some(Advice::CountsAsSeen { container: container.clone(), seen, key: key.clone(), write })
    }

    /// What is wrong with it under any policy.
    fn facts(&self, findings: &mut Findings) {
        for declaration in &self.subject.foreign {
            let given = self.given(declaration);
            self.add(Matter::Foreign(ForeignDeclaration { given, ..declaration.clone() }), Severity::Warn, findings);
        }
        for fault in &self.subject.environment {
            self.add(Matter::Environment(fault.clone()), Severity::Warn, findings);
        }
        for what in &self.subject.bypasses {
            self.add(Matter::Bypass { what: what.clone() }, Severity::Warn, findings);
        }
    }

    /// Whether it runs in another pool than its own.
    fn rerouted(&self, reassessment: &Reassessment) -> Option<Matter> {
        let Stage::Bound(node) = &self.subject.stage else { return None };
        let placement = &self.subject.pod.placement;
        let own = placement.own_pool.as_ref()?;
        let profile = &self.cluster.node(node)?.facts.profile;
        let shortfall =
            || self.cluster.shortfall(reassessment.resource.as_ref()?, reassessment.demand?, &placement.within(own));
        let rerouted = || Rerouted { own: own.to_string(), node: node.clone(), shortfall: shortfall() };
        (!own.includes(profile)).then(|| Matter::Rerouted(rerouted()))
    }

    /// What another tool gave the container of a declaration, as the node counts it.
    fn given(&self, declaration: &ForeignDeclaration) -> Given {
        let Stage::Bound(node) = &self.subject.stage else { return Given::Nothing };
        let holder = self.cluster.node(node).and_then(|node| node.ledger.holders().get(&self.subject.uid));
        let is_it = |part: &&Part| declaration.container.as_ref().is_none_or(|name| *part.container == **name);
        let amount = |part: &Part| match part.amount {
            Amount::Counted(amount) => Some(amount),
            Amount::Requested(_) | Amount::Injected(_) | Amount::Declared { .. } | Amount::Slots(_) => None,
        };
        let counted = holder.and_then(|holder| holder.parts.iter().filter(is_it).find_map(amount));
        counted.map_or(Given::Unrecorded, Given::Counted)
    }

    /// Containers that request several GPUs where only shared ones are.
    fn several_gpus(&self, cluster: &Cluster, findings: &mut Findings) {
        let Subject { pod, stage, .. } = self.subject;
        // A pod that runs does so, but is not placed again.
        let severity = if matches!(stage, Stage::Bound(_)) { Severity::Warn } else { Severity::Deny };
        for container in &pod.containers {
            for (resource, count) in container.gpus.iter().filter(|(_, count)| *count > 1) {
                let placement = Placement { node_name: None, ..pod.placement.clone() };
                let Some(OnlyShared { node, others }) = cluster.only_shared(resource, &placement) else { continue };
                let (container, resource) = (container.name.clone(), resource.clone());
                let matter = Matter::OnlyShared { container, resource, count: *count, node, others };
                self.add(matter, severity, findings);
            }
        }
    }

    /// Whether a DaemonSet makes GPUs visible to itself without requesting one, as device plugins and exporters do.
    fn is_infrastructure(&self, violation: &Violation) -> bool {
        self.subject.owner_kind.as_ref().is_some_and(|kind| *kind == "DaemonSet")
            && matches!(violation, Violation::VisibleDevices { .. })
    }

    fn add(&self, matter: Matter, severity: Severity, findings: &mut Findings) {
        let Subject { object, stage, place, .. } = self.subject;
        let pods = if *stage == Stage::Template { 0 } else { 1 };
        findings.add(Finding { object: object.clone(), matter, severity, node: None, pods, place: place.clone() });
    }
}
