//! The assessment of a pod that exists: what mode Enforce would answer if it were created again, and what it would
//! demand. Owns what differs from a review: the scheduler's choice of a node is no violation, and neither is what
//! `/mutate/pods` corrects.

use std::sync::Arc;

use super::makeup::Makeup;
use super::{Assessment, assess};
use crate::capacity::cluster::Cluster;
use crate::capacity::gpu::Resource;
use crate::capacity::pod::placement::Placement;
use crate::capacity::pod::{Origin, Pod};
use crate::capacity::policy::{Mode, Policy};
use crate::capacity::verdict::{Advice, Bound, MAX_FINDINGS, NeverFits, Violation};
use crate::capacity::vram::Vram;

/// What a policy says of a pod that exists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reassessment {
    /// The violations for which it would be refused; at most [`MAX_FINDINGS`].
    pub violations: Vec<Violation>,
    /// Other warnings; at most [`MAX_FINDINGS`].
    pub advice: Vec<Advice>,
    /// The first guarded resource that it requests.
    pub resource: Option<Resource>,
    /// Its demand as Kubernetes counts it, in MiB; `None` if no container has one or a declaration is refused.
    pub demand: Option<Vram>,
    /// The demand of each container, in its order; `None` for a container without one.
    pub demands: Vec<Option<Vram>>,
    /// What bounds each container on its node, or on those that it may land on, in its order; `None` for a container
    /// that takes no part of a shared GPU.
    pub bounds: Vec<Option<Bound>>,
    /// Why no node could take it, even when empty.
    pub never_fits: Option<NeverFits>,
    /// Where its copies may be placed once `/mutate/pods` has rerouted them; `None` if it reroutes none.
    pub rerouted: Option<Arc<Placement>>,
}

/// What is assessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assessed {
    /// A pod that exists. It is not rerouted any more.
    Pod,
    /// A template, whose pods are rerouted when they are created.
    Template,
}

/// Assesses a pod or a template under a policy whose mode is Enforce. The mirror of a static pod breaks nothing.
pub fn reassess(pod: &Pod, assessed: Assessed, policy: &Policy, cluster: &Cluster) -> Reassessment {
    // A scheduler chose the node of a running pod, so `spec.nodeName` is no constraint here.
    let landed = &pod.placement;
    let placement = Placement { node_name: None, ..landed.clone() };
    let pod = Pod { placement, ..pod.clone() };
    let mut assessment = assess(&pod, policy, cluster);
    if pod.origin == Origin::Mirror {
        assessment.violations.clear();
    } else if let Some(excess) = assessment.excess() {
        // The other violations come from an incomplete pod.
        assessment.violations = vec![Violation::TooMany(excess)];
    }
    assessment.keep_uncorrected();
    let guarded = pod.containers.iter().find_map(|container| assessment.guarded_gpu(container));
    let resource = guarded.map(|(resource, _)| resource.clone());
    let demand = assessment.total();
    let rerouted = match assessed {
        Assessed::Template => assessment.rerouted(),
        Assessed::Pod => None,
    };
    let never_fits = resource.as_ref().zip(demand).and_then(|(resource, demand)| {
        let never = cluster.never_fits(resource, demand, rerouted.as_deref().unwrap_or(&pod.placement))?;
        let made_of = Makeup::of(&pod).and_then(|makeup| makeup.explains(demand, policy.per_process_overhead));
        Some(NeverFits { made_of, ..never })
    });
    let demands = assessment.demands.iter().map(|demand| demand.map(|demand| demand.total)).collect();
    let bounds = assessment.bounds(rerouted.as_deref().unwrap_or(landed));
    assessment.advice.truncate(MAX_FINDINGS);
    let Assessment { violations, advice, .. } = assessment;
    Reassessment { violations, advice, resource, demand, demands, bounds, never_fits, rerouted }
}

/// The violations for which a running pod would be refused when created again, for instance after its node is replaced.
/// Those that `/mutate/pods` corrects do not count. Empty if the mode refuses nothing.
pub fn refused_if_created(pod: &Pod, policy: &Policy, cluster: &Cluster) -> Vec<Violation> {
    if policy.mode != Mode::Enforce {
        return Vec::new();
    }
    reassess(pod, Assessed::Pod, policy, cluster).violations
}

impl Assessment<'_> {
    /// Drops the violations that `/mutate/pods` corrects, and those beyond [`MAX_FINDINGS`].
    fn keep_uncorrected(&mut self) {
        let taken_out = |violation: &Violation| matches!(violation, Violation::EnvironmentConflict { conflict, .. } if conflict.ours.is_none());
        let denies = self.denies_conflicts();
        self.violations.retain(|violation| denies || !taken_out(violation));
        self.violations.truncate(MAX_FINDINGS);
    }
}
