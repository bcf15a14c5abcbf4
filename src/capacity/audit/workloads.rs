//! Workloads: how many of their pods fit, against how many they may have.

use super::View;
use super::findings::Findings;
use super::outcome::WorkloadState;
use super::pods::Reassessments;
use super::scene::Workload;
use crate::capacity::admission::Reassessment;
use crate::capacity::cluster::Room;
use crate::capacity::verdict::finding::{Finding, Growth, Matter, Severity};

/// All workloads whose template requests a guarded resource.
pub(super) fn look(view: &View<'_>, reassessments: &Reassessments, findings: &mut Findings) -> Vec<WorkloadState> {
    let look = |workload: &Workload| {
        let (subject, reassessment) =
            (view.scene.subjects.get(workload.template)?, reassessments.all.get(workload.template)?);
        let reassessment = reassessment.as_ref()?;
        let resource = reassessment.resource.as_ref()?;
        let most = most(workload);
        let needed = most.saturating_sub(workload.bound);
        // Manifests alone have no room to exceed. A count over all nodes is expensive, so it ends once all that the
        // workload may have fits.
        let placement = reassessment.rerouted.as_deref().unwrap_or(&subject.pod.placement);
        let room = reassessment
            .demand
            .filter(|_| view.scene.has_nodes())
            .map(|demand| view.cluster.room(resource, demand, placement, needed));
        let matter = exceeds(workload, reassessment, room).map(|matter| match room {
            Some(Room { pods: 0, .. }) if !view.cluster.may_land(resource, placement) => {
                Matter::KeptOff { resource: resource.clone() }
            }
            _ => matter,
        });
        if let Some(matter) = matter {
            let (object, place) = (workload.object.clone(), subject.place.clone());
            findings.add(Finding { object, matter, severity: Severity::Warn, node: None, pods: workload.bound, place });
        }
        let object = workload.object.clone();
        let fits = room.map(|room| room.pods);
        Some(WorkloadState { object, demand: reassessment.demand, replicas: workload.replicas, most, fits })
    };
    view.scene.workloads.iter().filter_map(look).collect()
}

/// The most pods that a workload may have.
fn most(workload: &Workload) -> u64 {
    let scaled = workload.autoscaler.as_ref().map_or(0, |(_, most)| *most);
    scaled.max(workload.replicas.saturating_add(workload.surge))
}

fn exceeds(workload: &Workload, reassessment: &Reassessment, room: Option<Room>) -> Option<Matter> {
    // A pod that never fits is reported as such.
    let (demand, Room { pods: fits, is_exact }) = (reassessment.demand?, room?);
    if reassessment.never_fits.is_some() {
        return None;
    }
    let held = workload.bound.saturating_add(fits);
    let autoscaler = workload.autoscaler.as_ref().filter(|(_, most)| *most > held);
    let (growth, wanted) = if workload.replicas > held {
        let is_job = matches!(&*workload.object.kind, "Job" | "CronJob");
        (if is_job { Growth::Parallelism } else { Growth::Replicas }, workload.replicas)
    } else if let Some((name, most)) = autoscaler {
        (Growth::Autoscaler(name.clone()), *most)
    } else if workload.replicas.saturating_add(workload.surge) > held {
        (Growth::Rollout, workload.replicas.saturating_add(workload.surge))
    } else {
        return None;
    };
    Some(Matter::ExceedsRoom { growth, demand, bound: workload.bound, wanted, fits, is_exact })
}
