//! Containers that declare nothing: what they count as, and what to say where nothing accounts for them. Owns that nodes are
//! looked through once for a pod, however many containers it has.

use std::collections::BTreeMap;

use super::Assessment;
use crate::capacity::gpu::Resource;
use crate::capacity::pod::Container;
use crate::capacity::verdict::{Advice, Unaccounted, Violation};
use crate::capacity::vram::Vram;
use crate::keys;

/// What was looked up for a pod. A tenant may send hundreds of containers and an affinity that is dear to compare with.
#[derive(Debug, Default)]
pub(super) struct Slots {
    of_resource: BTreeMap<Resource, Option<Vram>>,
    of_some_node: BTreeMap<(Resource, Vram), bool>,
}

impl Assessment<'_> {
    /// Whether an undeclared container may have been given that request a moment ago.
    pub(super) fn is_given(&mut self, resource: &Resource, request: Vram, least: Vram) -> bool {
        if request.is_zero() || request == least {
            return !request.is_zero();
        }
        let (cluster, placement) = (self.cluster, &self.pod.placement);
        let known = self.slots.of_some_node.entry((resource.clone(), request));
        *known.or_insert_with(|| cluster.is_slot(resource, request, placement))
    }

    /// What an undeclared container counts as.
    pub(super) fn slot(&mut self, resource: &Resource) -> Option<Vram> {
        let (cluster, placement) = (self.cluster, &self.pod.placement);
        let known = self.slots.of_resource.entry(resource.clone());
        *known.or_insert_with(|| cluster.slot_for(resource, placement))
    }

    /// A container that declares nothing and requests a GPU of which a node does not say how it is shared. To declare nothing must
    /// not be the way around what a declaration is refused for.
    pub(super) fn unaccounted(&mut self) {
        let pod = self.pod;
        let unguarded = |c: &&Container| self.guarded_gpu(c).is_none() && !c.gpus.is_empty();
        // Several GPUs are whole ones. Of several such containers one is enough to say it.
        let single = |c: &&Container| c.gpus.iter().all(|(_, count)| *count == 1);
        let Some(container) = pod.containers.iter().filter(unguarded).find(single) else { return };
        let (resource, _) = &container.gpus[0];
        let declared = pod.declarations.pod.is_some() || pod.declarations.containers.contains_key(&container.name);
        let why = if declared { None } else { self.cluster.unaccounted(resource, &pod.placement) };
        let Some(why @ Unaccounted::Unstated { .. }) = why else { return };
        let (container, resource) = (container.name.clone(), resource.clone());
        if self.policy.required {
            self.violations.push(Violation::Undeclared { container, resource, key: keys::VRAM.to_owned() });
        } else {
            self.advice.push(Advice::NothingAccounts { container, resource, why });
        }
    }
}
