//! What is really used, next to what is held. Owns which amounts of a node agent are current, and which of its findings an
//! audit repeats. The agent decided on the findings and worded them.
//!
//! Nothing here changes what is held. The peak of a pod that declares nothing counts, by the ledger of its node.

use std::collections::BTreeMap;
use std::time::Duration;

use super::View;
use super::findings::Findings;
use super::nodes;
use super::outcome::{AgentState, GpuUse, HolderUse};
use super::scene::{Observed, ObservedContainer, ObservedGpu, Stage, Subject};
use crate::capacity::cluster::REPORT_DEADLINE;
use crate::capacity::name::{Name, PodUid};
use crate::capacity::observation::finding::{Finding as Observation, Problem};
use crate::capacity::time::Moment;
use crate::capacity::verdict::finding::{Finding, Matter, Object, Severity, Use};
use crate::capacity::verdict::{Outdated, Reason};
use crate::capacity::vram::Vram;

/// The report of one node's agent at the time of the audit.
pub(super) struct Seen<'a> {
    observed: &'a Observed,
    at: Option<Moment>,
    outdated: Option<Outdated>,
}

impl<'a> Seen<'a> {
    /// The report of the agent of a node; `None` if there is none.
    pub(super) fn on(view: &View<'a>, node: &str) -> Option<Seen<'a>> {
        view.scene.observed.get(node).map(|observed| Seen::of(observed, view.scene.at))
    }

    fn of(observed: &'a Observed, at: Option<Moment>) -> Seen<'a> {
        let age = observed.reported.zip(at).map(|(reported, at)| reported.until(at));
        let outdated = match (age, &observed.unreadable) {
            (Some(age), _) if age > REPORT_DEADLINE => Some(Outdated::Old(age)),
            (_, Some(why)) => Some(Outdated::Unreadable(why.clone())),
            (_, None) if observed.reported.is_none() => Some(Outdated::Undated),
            (_, None) => None,
        };
        Seen { observed, at, outdated }
    }

    /// State of the agent.
    pub(super) fn agent(&self) -> AgentState {
        AgentState {
            reported: self.observed.reported,
            source: self.observed.source,
            age: self.observed.reported.zip(self.at).map(|(reported, at)| reported.until(at)),
            outdated: self.outdated.clone(),
        }
    }

    /// What is used of a GPU. It is one GPU, also where several resources offer it.
    pub(super) fn gpu(&self, id: &str) -> GpuUse {
        let Some(gpu) = self.listed(id) else { return GpuUse::default() };
        GpuUse { used: gpu.used, outside: gpu.outside, outdated: self.outdated_of(gpu) }
    }

    fn listed(&self, id: &str) -> Option<&'a ObservedGpu> {
        self.observed.gpus.iter().find(|gpu| *gpu.uuid == *id)
    }

    fn outdated_of(&self, gpu: &ObservedGpu) -> Option<Outdated> {
        self.outdated.clone().or_else(|| gpu.unreadable.clone().map(Outdated::Unreadable))
    }

    /// What a container uses; `None` if the agent has not seen it on a GPU.
    pub(super) fn container(&self, pod: &PodUid, name: &Name) -> Option<HolderUse> {
        self.observed.containers.get(&(pod.clone(), name.clone())).map(|container| self.of_container(container))
    }

    fn of_container(&self, container: &ObservedContainer) -> HolderUse {
        let of_gpu = || self.listed(&container.gpu).and_then(|gpu| self.outdated_of(gpu));
        // A report that is old tells nothing of the time after it.
        let until = match &self.outdated {
            Some(Outdated::Old(_) | Outdated::Undated) => self.observed.reported,
            Some(Outdated::Unreadable(_)) | None => self.at.or(self.observed.reported),
        };
        HolderUse {
            used: container.used,
            peak: container.peak,
            idle: container.idle_since.zip(until).map(|(since, until)| since.until(until)),
            problem: container.finding.as_ref().map(|finding| finding.problem),
            outdated: self.outdated.clone().or_else(of_gpu),
        }
    }
}

/// One matter about the pods of one owner.
struct Group<'a> {
    /// The container with the most memory at stake, its finding, and for how long it is idle.
    worst: (&'a ObservedContainer, &'a Observation, Option<Duration>),
    /// What the containers use together, as far as known.
    together: Vram,
    pods: u64,
    subject: &'a Subject,
}

/// Repeats the findings of node agents about pods that are there, and says whose reports are not current. What an agent
/// found on amounts that are not current is left out.
pub(super) fn look(view: &View<'_>, findings: &mut Findings) {
    let scene = view.scene;
    let bound = scene.subjects.iter().filter_map(|subject| match &subject.stage {
        Stage::Bound(node) => Some((&subject.uid, (node, subject))),
        Stage::Template | Stage::Waiting => None,
    });
    let bound: BTreeMap<&PodUid, (&Name, &Subject)> = bound.collect();
    let mut groups: BTreeMap<(&Object, Problem, &Name), Group<'_>> = BTreeMap::new();
    for (node, observed) in &scene.observed {
        let has_gpus = scene.cluster.node(node).is_some_and(|seen| !seen.facts.pools.is_empty());
        if !has_gpus {
            continue;
        }
        let seen = Seen::of(observed, scene.at);
        not_current(node, &seen, findings);
        for ((uid, name), container) in &observed.containers {
            let used = seen.of_container(container);
            let subject = bound.get(uid).filter(|(bound, _)| **bound == **node).map(|(_, subject)| *subject);
            let (Some(finding), Some(subject), None) = (&container.finding, subject, used.outdated) else { continue };
            // Nobody asks the pods of an exempt namespace to declare.
            let is_exempt = || view.policies.of(&subject.pod.name.namespace).is_none();
            if finding.problem == Problem::Undeclared && is_exempt() {
                continue;
            }
            let one = Group {
                worst: (container, finding, used.idle),
                together: container.used.unwrap_or_default(),
                pods: 1,
                subject,
            };
            let key = (&subject.object, finding.problem, name);
            match groups.remove(&key) {
                Some(known) => groups.insert(key, known.with(one)),
                None => groups.insert(key, one),
            };
        }
    }
    for ((object, problem, name), group) in groups {
        findings.add(group.finding(object, problem, name));
    }
}

impl<'a> Group<'a> {
    fn with(self, other: Group<'a>) -> Group<'a> {
        let weight = |group: &Group<'_>| weight(group.worst.0, group.worst.1.problem);
        let (together, pods) = (self.together.plus(other.together), self.pods + other.pods);
        let worst = if weight(&other) > weight(&self) { other } else { self };
        Group { together, pods, ..worst }
    }

    fn finding(self, object: &Object, problem: Problem, name: &Name) -> Finding {
        let (container, found, idle) = self.worst;
        let (reason, severity) = match problem {
            Problem::OverDeclaration => (Reason::OverDeclaration, Severity::Deny),
            Problem::Undeclared => (Reason::Undeclared, Severity::Warn),
            Problem::Idle => (Reason::Idle, Severity::Warn),
            Problem::FarUnder => (Reason::FarUnder, Severity::Warn),
        };
        let matter = Matter::Use(Use {
            reason,
            container: name.clone(),
            found: found.message.clone(),
            used: container.used,
            peak: container.peak,
            demand: container.demand,
            idle,
            pods: self.pods,
            together: self.together,
        });
        let place = self.subject.place.clone();
        Finding { object: object.clone(), matter, severity, node: None, pods: self.pods, place }
    }
}

/// How much memory a finding is about.
fn weight(container: &ObservedContainer, problem: Problem) -> Vram {
    let (used, demand) = (container.used.unwrap_or_default(), container.demand.unwrap_or_default());
    match problem {
        Problem::OverDeclaration => used.minus(demand).free(),
        Problem::FarUnder => demand.minus(container.peak).free(),
        Problem::Undeclared | Problem::Idle => used,
    }
}

/// Says of a node that its amounts are not current, or those of one GPU.
fn not_current(node: &str, seen: &Seen<'_>, findings: &mut Findings) {
    let mut add = |matter| {
        let object = nodes::object(node);
        findings.add(Finding { object, matter, severity: Severity::Warn, node: None, pods: 0, place: None });
    };
    match &seen.outdated {
        Some(Outdated::Unreadable(why)) => add(Matter::AgentUnreadable { gpu: None, why: why.clone() }),
        Some(old @ (Outdated::Old(_) | Outdated::Undated)) => add(Matter::AgentStale(old.clone())),
        None => {
            for gpu in &seen.observed.gpus {
                if let Some(why) = &gpu.unreadable {
                    add(Matter::AgentUnreadable { gpu: Some(gpu.uuid.clone()), why: why.clone() });
                }
            }
        }
    }
}
