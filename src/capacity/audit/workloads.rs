//! Workloads: how many of their pods fit, against how many they may have. [`admission::workload`](workload) decides
//! both, as for a review.

use super::View;
use super::findings::Findings;
use super::outcome::WorkloadState;
use super::pods::Reassessments;
use super::scene::Workload;
use crate::capacity::admission::workload::{self, Fit, Scale};
use crate::capacity::verdict::finding::{Finding, Severity};

/// All workloads whose template requests a guarded resource.
pub(super) fn look(view: &View<'_>, reassessments: &Reassessments, findings: &mut Findings) -> Vec<WorkloadState> {
    let look = |workload: &Workload| {
        let (subject, reassessment) =
            (view.scene.subjects.get(workload.template)?, reassessments.all.get(workload.template)?);
        let reassessment = reassessment.as_ref()?;
        reassessment.resource.as_ref()?;
        let Workload { object, replicas, surge, autoscaler, bound, .. } = workload;
        let scale = Scale { replicas: *replicas, surge: *surge, autoscaler: autoscaler.clone() };
        let Fit { fits, matter } =
            workload::fit(object, &scale, *bound, reassessment, &subject.pod.placement, view.cluster);
        if let Some(matter) = matter {
            let (object, place) = (object.clone(), subject.place.clone());
            findings.add(Finding { object, matter, severity: Severity::Warn, node: None, pods: *bound, place });
        }
        let (object, demand, most) = (object.clone(), reassessment.demand, scale.most());
        Some(WorkloadState { object, demand, replicas: *replicas, most, fits })
    };
    view.scene.workloads.iter().filter_map(look).collect()
}
