//! What each workload should declare, from what its pods were seen to use. Owns when enough was seen, and which of several
//! pods decides; the figure to write is [`finding::to_write`]'s, so that it is the one that audits and node agents name.
//!
//! A declaration that was seen to be too small is raised at once, as the finding about it says. Everything else needs a
//! full load cycle and a time: a peak from before the first load would be too low for the next one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::capacity::audit::scene::{Scene, Stage, Subject};
use crate::capacity::cluster::REPORT_DEADLINE;
use crate::capacity::name::{Name, PodUid};
use crate::capacity::observation::containers::{ContainerKey, Use};
use crate::capacity::observation::finding;
use crate::capacity::observation::owners::LiveContainer;
use crate::capacity::pod::Declarations;
use crate::capacity::time::Moment;
use crate::capacity::verdict::finding::Object;
use crate::capacity::verdict::{Missing, Recommendation};
use crate::capacity::vram::Vram;
use crate::keys;

/// A declaration that is too large by less than this is kept.
const LOWER_BY: Vram = Vram::from_mib(512);

/// What the node agents have reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observations {
    /// When the agent of each node last reported. A node without an entry has no agent, or none whose report can be read.
    pub nodes: BTreeMap<Name, Moment>,
    /// When the agent of each node last reported that reads a source without processes. What it knows of containers is from
    /// an earlier time, and no data.
    pub totals_only: BTreeMap<Name, Moment>,
    /// What each container of a pod uses and has used.
    pub containers: BTreeMap<ContainerKey, Use>,
    /// Nodes whose agent wrote a report that cannot be read.
    pub unreadable: Vec<Name>,
}

impl Observations {
    /// When the last of all agents reported: the present of objects that were read from files.
    pub fn latest(&self) -> Moment {
        self.nodes.values().chain(self.totals_only.values()).max().copied().unwrap_or_default()
    }
}

/// One container of a workload, or of a pod without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The workload, or the pod.
    pub object: Object,
    /// Name of the container.
    pub container: Name,
    /// The number of its pods on nodes.
    pub pods: usize,
    /// The number of these that were seen to use a GPU.
    pub seen_on: usize,
    /// The number of these whose node agent has not reported lately. Their peaks count.
    pub stale: usize,
    /// What it declares, in MiB; `None` if nothing.
    pub declared: Option<Vram>,
    /// The most that one of its pods has used, in MiB; `None` if none was seen.
    pub peak: Option<Vram>,
    /// For how long the pod was seen that decides: the one that computed and was seen for longest, or else the one that was
    /// seen for longest.
    pub observed: Option<Duration>,
    /// The number of load cycles of the pod that was seen to compute for longest; `None` if none was.
    pub cycles: Option<u64>,
    /// Nodes of its pods on which no agent reports.
    pub without_agent: Vec<Name>,
    /// Nodes of its pods whose agents read a source that does not tell processes.
    pub totals_only: Vec<Name>,
    /// The annotations of its pods that declare the amount, or the one that would.
    pub keys: Vec<Name>,
    /// What to do.
    pub recommendation: Recommendation,
}

/// Recommends a declaration for each container that takes a shared GPU, in the order of workloads. `least` is how long a
/// container must have been seen.
pub fn rows(scene: &Scene, observed: &Observations, least: Duration, now: Moment) -> Vec<Row> {
    let mut groups: BTreeMap<(Object, Name), Group<'_>> = BTreeMap::new();
    let per_process = scene.policies.rules().per_process_overhead;
    for subject in &scene.subjects {
        for container in &subject.pod.containers {
            if !container.gpus.iter().any(|(resource, _)| scene.cluster.guards(resource)) {
                continue;
            }
            let live = LiveContainer::of(&subject.pod, container, None, per_process);
            let key = (subject.object.clone(), live.name.clone());
            let group = groups.entry(key).or_default();
            if matches!(subject.stage, Stage::Bound(_)) {
                group.requested = group.requested.max(live.demand.filter(|_| live.declares));
            }
            // The template is what the next pod is made of.
            if group.live.is_none() || subject.stage == Stage::Template {
                group.keys = annotations(&subject.pod.declarations, &live);
                group.live = Some(live);
            }
            if let Stage::Bound(node) = &subject.stage {
                group.add(subject, node, container.name.as_str(), observed, now);
            }
        }
    }
    groups.into_iter().filter_map(|((object, container), group)| group.row(object, container, least)).collect()
}

/// The annotations to write for a container: those that declare its amount now, or else the usual one.
fn annotations(declarations: &Declarations, live: &LiveContainer) -> Vec<Name> {
    let own = declarations.containers.get(live.name.as_str()).map(|written| written.key.as_str());
    let of_pod = declarations.pod.as_ref().map(|_| keys::VRAM).filter(|key| *live.annotation == **key);
    let ours = own.or(of_pod);
    // Those of KAI must be equal to ours.
    let foreign =
        declarations.foreign.get(live.name.as_str()).into_iter().flatten().map(|written| written.key.as_str());
    let written: Vec<Name> = ours.into_iter().chain(foreign).map(Name::from).collect();
    if written.is_empty() { vec![live.annotation.clone()] } else { written }
}

/// What is known of one container of one workload.
#[derive(Default)]
struct Group<'s> {
    live: Option<LiveContainer>,
    keys: Vec<Name>,
    pods: usize,
    stale: usize,
    without_agent: BTreeSet<Name>,
    totals_only: BTreeSet<Name>,
    seen: Vec<(&'s Use, Duration)>,
    /// The most that one of its pods requests by a declaration whose amount the template does not say, such as a model.
    requested: Option<Vram>,
}

impl<'s> Group<'s> {
    fn add(&mut self, subject: &Subject, node: &Name, container: &str, observed: &'s Observations, now: Moment) {
        self.pods += 1;
        let Some(reported) = observed.nodes.get(node) else {
            let blind = observed.totals_only.contains_key(node);
            let of = if blind { &mut self.totals_only } else { &mut self.without_agent };
            of.insert(node.clone());
            return;
        };
        let key: (PodUid, Name) = (subject.uid.clone(), container.into());
        if let Some(seen) = observed.containers.get(&key) {
            self.stale += usize::from(*reported < now.before(REPORT_DEADLINE));
            self.seen.push((seen, seen.first.until(*reported)));
        }
    }

    fn row(self, object: Object, container: Name, least: Duration) -> Option<Row> {
        let live = self.live?;
        let peak = self.seen.iter().map(|(seen, _)| seen.peak).max();
        // Time and load must be those of one pod: a model that is loaded for a day and not used has not shown its peak.
        let computed = self.seen.iter().filter(|(seen, _)| seen.cycles.is_some()).max_by_key(|(_, time)| *time);
        let longest = computed.or_else(|| self.seen.iter().max_by_key(|(_, time)| *time));
        let observed = longest.map(|(_, time)| *time);
        let cycles = longest.and_then(|(seen, _)| seen.cycles);
        let without_agent: Vec<Name> = self.without_agent.into_iter().collect();
        let totals_only: Vec<Name> = self.totals_only.into_iter().collect();
        let demand = live.demand.or(self.requested).filter(|_| live.declares);
        let recommendation = match (peak, demand) {
            (None, _) if self.pods == 0 => Recommendation::NotEnoughData(Missing::Pods),
            (None, _) if !without_agent.is_empty() => {
                Recommendation::NotEnoughData(Missing::Agent { nodes: without_agent.clone() })
            }
            (None, _) if !totals_only.is_empty() => {
                Recommendation::NotEnoughData(Missing::Processes { nodes: totals_only.clone() })
            }
            (None, _) => Recommendation::NotEnoughData(Missing::Use),
            (Some(peak), demand) => {
                recommend(peak, demand, live.overhead, (observed.unwrap_or_default(), least), cycles)
            }
        };
        Some(Row {
            object,
            container,
            pods: self.pods,
            seen_on: self.seen.len(),
            stale: self.stale,
            declared: demand.map(|demand| demand.minus(live.overhead).free()),
            peak,
            observed,
            cycles,
            without_agent,
            totals_only,
            keys: self.keys,
            recommendation,
        })
    }
}

/// What to do with the declaration of a container with this peak. `demand` is what it counts with by its declaration, and
/// `times` how long it was seen, and how long it should be.
fn recommend(
    peak: Vram,
    demand: Option<Vram>,
    overhead: Vram,
    (seen, of): (Duration, Duration),
    cycles: Option<u64>,
) -> Recommendation {
    let write = finding::to_write(peak, overhead);
    if demand.is_some_and(|demand| finding::exceeds(peak, demand)) {
        return Recommendation::Raise(write);
    }
    if seen < of {
        return Recommendation::NotEnoughData(Missing::Time { seen, of });
    }
    if cycles.is_none() {
        return Recommendation::NotEnoughData(Missing::Load);
    }
    let Some(demand) = demand else { return Recommendation::Declare(write) };
    let spare = demand.minus(overhead).free().minus(write).free();
    if spare >= LOWER_BY || finding::is_far_under(peak, demand) && !spare.is_zero() {
        return Recommendation::Lower(write);
    }
    Recommendation::Keep
}

#[cfg(test)]
mod tests;
