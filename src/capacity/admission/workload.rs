//! Whether the pods that a workload may have fit where they may land, for audits and for reviews of workloads. Owns what
//! counts as too many, and which pods on nodes are those of a workload.
//!
//! The answer is a warning and never a refusal: other pods end, nodes come, and a pod that waits is a normal state.

use super::{Assessed, Reassessment, reassess};
use crate::capacity::cluster::{Cluster, Room};
use crate::capacity::gpu::Resource;
use crate::capacity::name::Name;
use crate::capacity::pod::placement::Placement;
use crate::capacity::pod::{Pod, PodName};
use crate::capacity::policy::{Mode, Policy};
use crate::capacity::verdict::finding::{Groups, Growth, Matter, Members, Object};
use crate::capacity::vram::Vram;

mod names;

use self::names::{makes, makes_in_group};

/// How many replicas a workload may have: pods, or groups of pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scale {
    /// Number of replicas that it should have now.
    pub replicas: u64,
    /// Number of replicas that a rollout adds while it lasts; 0 if it replaces them in place.
    pub surge: u64,
    /// Name and `maxReplicas` of the HorizontalPodAutoscaler that scales it.
    pub autoscaler: Option<(Name, u64)>,
}

impl Scale {
    /// The most replicas that the workload may have at a time.
    pub fn most(&self) -> u64 {
        let scaled = self.autoscaler.as_ref().map_or(0, |(_, most)| *most);
        scaled.max(self.with_surge())
    }

    fn with_surge(&self) -> u64 {
        self.replicas.saturating_add(self.surge)
    }

    /// Why the workload may have more than `held` pods, and how many; `None` if it may not. Each replica has `each`.
    fn beyond(&self, held: u64, each: u64, kind: &str) -> Option<(Growth, u64)> {
        let exceeds = |replicas: u64| Some(replicas.saturating_mul(each)).filter(|pods| *pods > held);
        if let Some(pods) = exceeds(self.replicas) {
            let is_job = matches!(kind, "Job" | "CronJob");
            return Some((if is_job { Growth::Parallelism } else { Growth::Replicas }, pods));
        }
        let scaled = self.autoscaler.as_ref().and_then(|(name, most)| Some((name, exceeds(*most)?)));
        if let Some((name, pods)) = scaled {
            return Some((Growth::Autoscaler(name.clone()), pods));
        }
        exceeds(self.with_surge()).map(|pods| (Growth::Rollout, pods))
    }
}

/// The pods of one template in each replica of a workload.
#[derive(Clone, Copy, Debug)]
pub struct Share<'a> {
    /// Which pods of each group these are; `None` if the replicas are pods.
    pub members: Option<Members>,
    /// Number of these pods in each replica.
    pub each: u64,
    /// Number of them that are on nodes already.
    pub bound: u64,
    /// What the policy says of the template.
    pub reassessment: &'a Reassessment,
    /// The template's own placement.
    pub placement: &'a Placement,
}

/// Whether the pods of a workload fit. Of several templates it is about the one of which the fewest replicas fit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fit {
    /// Demand of one pod; `None` if it is not known.
    pub demand: Option<Vram>,
    /// Number of pods in each replica that are compared.
    pub each: u64,
    /// Number of them that are on nodes already, in all replicas.
    pub bound: u64,
    /// Number of further pods that fit now for certain, counted up to what the workload may have; `None` if its demand
    /// is not known, or without any node.
    pub fits: Option<u64>,
    /// What is the matter if the workload may have more pods than fit now. A pod that never fits is not reported here.
    pub matter: Option<Matter>,
}

/// Compares what a workload may have with the room for it. Templates of which the pods request the same count together.
/// Others are compared one by one, so each number is what would fit if the others took no room.
pub fn fit(object: &Object, scale: &Scale, shares: &[Share<'_>], cluster: &Cluster) -> Fit {
    let requests = requests(shares);
    // Manifests alone have no room to exceed.
    let has_nodes = cluster.node_names().next().is_some();
    let rooms = requests.iter().filter(|_| has_nodes).filter_map(|request| {
        let room = request.room(scale, cluster)?;
        Some((request, room))
    });
    let least = rooms.min_by_key(|(request, room)| request.bound.saturating_add(room.pods) / request.each);
    let Some((request, room)) = least else {
        let first = requests.first();
        return first
            .map(|Request { demand, each, bound, .. }| Fit {
                demand: *demand,
                each: *each,
                bound: *bound,
                ..Fit::default()
            })
            .unwrap_or_default();
    };
    let never_fits = shares.iter().any(|share| share.reassessment.never_fits.is_some());
    let matter = if never_fits { None } else { request.exceeds(object, scale, room, requests.len() > 1, cluster) };
    let Request { demand, each, bound, .. } = *request;
    Fit { demand, each, bound, fits: Some(room.pods), matter }
}

/// The pods of a workload that request the same.
#[derive(Debug)]
struct Request<'a> {
    members: Option<Members>,
    /// Number of them in each replica; at least 1.
    each: u64,
    bound: u64,
    resource: &'a Resource,
    demand: Option<Vram>,
    placement: &'a Placement,
}

/// What the pods of each replica request of guarded resources.
fn requests<'a>(shares: &[Share<'a>]) -> Vec<Request<'a>> {
    let mut requests: Vec<Request<'a>> = Vec::new();
    for Share { members, each, bound, reassessment, placement } in shares.iter().filter(|share| share.each > 0) {
        let Some(resource) = &reassessment.resource else { continue };
        let (demand, placement) = (reassessment.demand, reassessment.rerouted.as_deref().unwrap_or(placement));
        let is_same =
            |known: &&mut Request<'_>| (known.resource, known.demand, known.placement) == (resource, demand, placement);
        match requests.iter_mut().find(is_same) {
            Some(known) => {
                known.members = known.members.and(Some(Members::All));
                known.each = known.each.saturating_add(*each);
                known.bound = known.bound.saturating_add(*bound);
            }
            None => {
                requests.push(Request { members: *members, each: *each, bound: *bound, resource, demand, placement });
            }
        }
    }
    requests
}

impl Request<'_> {
    /// The room for these pods; `None` if their demand is not known.
    fn room(&self, scale: &Scale, cluster: &Cluster) -> Option<Room> {
        // A count over all nodes is expensive, so it ends once all that the workload may have fits.
        let most = scale.most().saturating_mul(self.each);
        Some(cluster.room(self.resource, self.demand?, self.placement, most.saturating_sub(self.bound)))
    }

    fn exceeds(
        &self,
        object: &Object,
        scale: &Scale,
        room: Room,
        others_need: bool,
        cluster: &Cluster,
    ) -> Option<Matter> {
        let Request { members, each, bound, resource, demand, placement } = *self;
        let Room { pods: fits, is_exact } = room;
        let (growth, wanted) = scale.beyond(bound.saturating_add(fits), each, &object.kind)?;
        if fits == 0 && !cluster.may_land(resource, placement) {
            return Some(Matter::KeptOff { resource: resource.clone() });
        }
        let groups = members.map(|members| Groups { members, each, others_need });
        Some(Matter::ExceedsRoom { growth, demand: demand?, bound, wanted, fits, is_exact, groups })
    }
}

/// A workload under review.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// The object that makes the pods.
    pub object: Object,
    /// Its templates: one, or those of the leaders and of the workers of its groups.
    pub templates: Vec<Template>,
    /// How many replicas it may have.
    pub scale: Scale,
}

/// A template of a workload under review.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// Which pods of each group are made of it; `None` if the replicas are pods.
    pub members: Option<Members>,
    /// Number of pods in each replica that are made of it.
    pub each: u64,
    /// The pod.
    pub pod: Pod,
}

impl Workload {
    /// Whether this workload asks for more than it did before: another template, or more pods. An update that changes
    /// neither, or takes pods away, needs no answer.
    pub fn asks_more_than(&self, before: &Workload) -> bool {
        self.templates != before.templates
            || self.scale.replicas > before.scale.replicas
            || self.scale.most() > before.scale.most()
    }
}

/// What a review finds in a workload that requests a guarded resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadJudgement {
    /// The workload.
    pub object: Object,
    /// The policy mode of the namespace, which decides who is told.
    pub mode: Mode,
    /// The demand of one pod as Kubernetes counts it, in MiB; `None` if a declaration is refused.
    pub demand: Option<Vram>,
    /// Why not all of its pods can run.
    pub matter: Option<Matter>,
}

/// Judges a workload under the policy of its namespace. `None` if nothing is to be said: under mode Off, and about a
/// workload without pods or without a guarded resource.
pub fn judge(workload: &Workload, policy: &Policy, cluster: &Cluster) -> Option<WorkloadJudgement> {
    let Workload { object, templates, scale } = workload;
    if policy.mode == Mode::Off || scale.most() == 0 {
        return None;
    }
    let enforced = Policy { mode: Mode::Enforce, ..policy.clone() };
    let reassess = |template: &Template| reassess(&template.pod, Assessed::Template, &enforced, cluster);
    let reassessments: Vec<Reassessment> = templates.iter().map(reassess).collect();
    reassessments.iter().find(|reassessment| reassessment.resource.is_some())?;
    let (demand, matter) = match reassessments.iter().find_map(|reassessment| reassessment.never_fits.clone()) {
        Some(never) => (Some(never.demand), Some(Matter::NeverFits(never))),
        None => {
            let shares = templates.iter().zip(&reassessments).map(|(Template { members, each, pod }, reassessment)| {
                let bound = bound(object, *members, cluster);
                Share { members: *members, each: *each, bound, reassessment, placement: &pod.placement }
            });
            let Fit { demand, matter, .. } = fit(object, scale, &shares.collect::<Vec<_>>(), cluster);
            (demand, matter)
        }
    };
    Some(WorkloadJudgement { object: object.clone(), mode: policy.mode, demand, matter })
}

/// The number of pods on nodes whose names are those that the workload gives its pods, or these members of its groups.
///
/// This looks at every pod that counts on a node, because none is kept by owner. Workloads are reviewed when people or
/// pipelines change them, and not for each of their pods.
fn bound(object: &Object, members: Option<Members>, cluster: &Cluster) -> u64 {
    let makes = |pod: &str| match members {
        Some(members) => makes_in_group(&object.name, members, pod),
        None => makes(&object.kind, &object.name, pod),
    };
    let is_its = |name: &PodName| name.namespace == object.namespace && makes(&name.name);
    cluster.count_pods(|holder| is_its(&holder.name))
}

#[cfg(test)]
mod tests;
