//! Whether the pods that a workload may have fit where they may land, for audits and for reviews of workloads. Owns what
//! counts as too many, and which pods on nodes are those of a workload.
//!
//! The answer is a warning and never a refusal: other pods end, nodes come, and a pod that waits is a normal state.

use super::{Assessed, Reassessment, reassess};
use crate::capacity::cluster::{Cluster, Room};
use crate::capacity::name::Name;
use crate::capacity::pod::placement::Placement;
use crate::capacity::pod::{Pod, PodName};
use crate::capacity::policy::{Mode, Policy};
use crate::capacity::verdict::finding::{Growth, Matter, Object};
use crate::capacity::vram::Vram;

mod names;

use self::names::makes;

/// How many pods a workload may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scale {
    /// Number of pods that it should have now.
    pub replicas: u64,
    /// Number of pods that a rollout adds while it lasts; 0 if it replaces pods in place.
    pub surge: u64,
    /// Name and `maxReplicas` of the HorizontalPodAutoscaler that scales it.
    pub autoscaler: Option<(Name, u64)>,
}

impl Scale {
    /// The most pods that the workload may have at a time.
    pub fn most(&self) -> u64 {
        let scaled = self.autoscaler.as_ref().map_or(0, |(_, most)| *most);
        scaled.max(self.with_surge())
    }

    fn with_surge(&self) -> u64 {
        self.replicas.saturating_add(self.surge)
    }

    /// Why the workload may have more than `held` pods, and how many; `None` if it may not.
    fn beyond(&self, held: u64, kind: &str) -> Option<(Growth, u64)> {
        if self.replicas > held {
            let is_job = matches!(kind, "Job" | "CronJob");
            return Some((if is_job { Growth::Parallelism } else { Growth::Replicas }, self.replicas));
        }
        if let Some((name, most)) = self.autoscaler.as_ref().filter(|(_, most)| *most > held) {
            return Some((Growth::Autoscaler(name.clone()), *most));
        }
        (self.with_surge() > held).then(|| (Growth::Rollout, self.with_surge()))
    }
}

/// Whether the pods of a workload fit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fit {
    /// Number of further pods that fit now for certain, counted up to what the workload may have; `None` if its demand
    /// is not known, or without any node.
    pub fits: Option<u64>,
    /// What is the matter if the workload may have more pods than fit now. A pod that never fits is not reported here.
    pub matter: Option<Matter>,
}

/// Compares what a workload may have with the room for it. `bound` of its pods are on nodes already, and `reassessment` is
/// that of its template, whose own placement is `placement`.
pub fn fit(
    object: &Object,
    scale: &Scale,
    bound: u64,
    reassessment: &Reassessment,
    placement: &Placement,
    cluster: &Cluster,
) -> Fit {
    // Manifests alone have no room to exceed.
    if cluster.node_names().next().is_none() {
        return Fit::default();
    }
    let (Some(resource), Some(demand)) = (&reassessment.resource, reassessment.demand) else { return Fit::default() };
    let placement = reassessment.rerouted.as_deref().unwrap_or(placement);
    // A count over all nodes is expensive, so it ends once all that the workload may have fits.
    let Room { pods: fits, is_exact } = cluster.room(resource, demand, placement, scale.most().saturating_sub(bound));
    let exceeds = || {
        if reassessment.never_fits.is_some() {
            return None;
        }
        let (growth, wanted) = scale.beyond(bound.saturating_add(fits), &object.kind)?;
        if fits == 0 && !cluster.may_land(resource, placement) {
            return Some(Matter::KeptOff { resource: resource.clone() });
        }
        Some(Matter::ExceedsRoom { growth, demand, bound, wanted, fits, is_exact })
    };
    Fit { fits: Some(fits), matter: exceeds() }
}

/// A workload under review.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// The object that makes the pods.
    pub object: Object,
    /// The pod of its template.
    pub pod: Pod,
    /// How many pods it may have.
    pub scale: Scale,
}

impl Workload {
    /// Whether this workload asks for more than it did before: another template, or more pods. An update that changes
    /// neither, or takes pods away, needs no answer.
    pub fn asks_more_than(&self, before: &Workload) -> bool {
        self.pod != before.pod || self.scale.replicas > before.scale.replicas || self.scale.most() > before.scale.most()
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
    let Workload { object, pod, scale } = workload;
    if policy.mode == Mode::Off || scale.most() == 0 {
        return None;
    }
    let enforced = Policy { mode: Mode::Enforce, ..policy.clone() };
    let reassessment = reassess(pod, Assessed::Template, &enforced, cluster);
    reassessment.resource.as_ref()?;
    let never = reassessment.never_fits.clone().map(Matter::NeverFits);
    let matter = never.or_else(|| {
        let bound = bound(object, cluster);
        fit(object, scale, bound, &reassessment, &pod.placement, cluster).matter
    });
    Some(WorkloadJudgement { object: object.clone(), mode: policy.mode, demand: reassessment.demand, matter })
}

/// The number of pods on nodes whose names are those that the workload gives its pods.
///
/// This looks at every pod that counts on a node, because none is kept by owner. Workloads are reviewed when people or
/// pipelines change them, and not for each of their pods.
fn bound(object: &Object, cluster: &Cluster) -> u64 {
    let is_its = |name: &PodName| name.namespace == object.namespace && makes(&object.kind, &object.name, &name.name);
    cluster.count_pods(|holder| is_its(&holder.name))
}

#[cfg(test)]
mod tests;
