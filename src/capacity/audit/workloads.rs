//! Workloads: how many of their pods fit, against how many they may have. [`admission::workload`](workload) decides
//! both, as for a review.

use super::View;
use super::findings::Findings;
use super::outcome::WorkloadState;
use super::pods::Reassessments;
use super::scene::{Template, Workload};
use crate::capacity::admission::workload::{self, Fit, Scale, Share};
use crate::capacity::verdict::finding::{Finding, Severity};

/// All workloads whose template requests a guarded resource.
pub(super) fn look(view: &View<'_>, reassessments: &Reassessments, findings: &mut Findings) -> Vec<WorkloadState> {
    let look = |workload: &Workload| {
        let Workload { object, templates, replicas, surge, autoscaler } = workload;
        let share = |template: &Template| {
            let Template { subject, members, each, bound } = *template;
            let placement = &view.scene.subjects.get(subject)?.pod.placement;
            let reassessment = reassessments.all.get(subject)?.as_ref()?;
            Some(Share { members, each, bound, reassessment, placement })
        };
        let shares: Vec<Share<'_>> = templates.iter().filter_map(share).collect();
        shares.iter().find(|share| share.reassessment.resource.is_some())?;
        let scale = Scale { replicas: *replicas, surge: *surge, autoscaler: autoscaler.clone() };
        let Fit { demand, each, bound, fits, matter } = workload::fit(object, &scale, &shares, view.cluster);
        if let Some(matter) = matter {
            let place = templates.first().and_then(|template| view.scene.subjects.get(template.subject)?.place.clone());
            findings.add(Finding {
                object: object.clone(),
                matter,
                severity: Severity::Warn,
                node: None,
                pods: bound,
                place,
            });
        }
        let [replicas, most] = [*replicas, scale.most()].map(|replicas| replicas.saturating_mul(each));
        Some(WorkloadState { object: object.clone(), demand, replicas, most, fits })
    };
    view.scene.workloads.iter().filter_map(look).collect()
}
