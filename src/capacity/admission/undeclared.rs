//! Containers that declare nothing. Owns what they count as, what is reported if nothing accounts for them, and that
//! each lookup over the nodes is made once for a pod, however many containers it has.

use std::collections::BTreeMap;

use super::Assessment;
use crate::capacity::gpu::Resource;
use crate::capacity::pod::Container;
use crate::capacity::verdict::{Advice, Unaccounted, Violation};
use crate::capacity::vram::Vram;
use crate::keys;

/// The results of lookups for a pod, each made once.
///
/// A tenant may send hundreds of containers and a node affinity that is expensive to compare with nodes.
#[derive(Debug, Default)]
pub(super) struct Lookups {
    slot_of: BTreeMap<Resource, Option<Vram>>,
    is_slot: BTreeMap<(Resource, Vram), bool>,
    unaccounted: BTreeMap<Resource, Option<Unaccounted>>,
}

impl Assessment<'_> {
    /// Whether `/mutate/pods` may have given this request to an undeclared container a moment ago.
    ///
    /// `least` is the demand of `declaration.min`, or zero.
    pub(super) fn is_given(&mut self, resource: &Resource, request: Vram, least: Vram) -> bool {
        if request.is_zero() || request == least {
            return !request.is_zero();
        }
        let (cluster, rerouted) = (self.cluster, self.rerouted());
        let placement = rerouted.as_deref().unwrap_or(&self.pod.placement);
        let known = self.lookups.is_slot.entry((resource.clone(), request));
        *known.or_insert_with(|| cluster.is_slot(resource, request, placement))
    }

    /// The slot that an undeclared container counts as, in MiB; `None` if it is not known.
    pub(super) fn slot(&mut self, resource: &Resource) -> Option<Vram> {
        let (cluster, rerouted) = (self.cluster, self.rerouted());
        let placement = rerouted.as_deref().unwrap_or(&self.pod.placement);
        let known = self.lookups.slot_of.entry(resource.clone());
        *known.or_insert_with(|| cluster.slot_for(resource, placement))
    }

    /// Why nothing accounts for a resource that is not guarded; `None` if that is harmless.
    pub(super) fn why_unaccounted(&mut self, resource: &Resource) -> Option<Unaccounted> {
        let (cluster, rerouted) = (self.cluster, self.rerouted());
        let placement = rerouted.as_deref().unwrap_or(&self.pod.placement);
        let known = self.lookups.unaccounted.entry(resource.clone());
        known.or_insert_with(|| cluster.unaccounted(resource, placement)).clone()
    }

    /// Adds a finding for an undeclared container, if a node does not advertise how it shares the requested GPUs.
    ///
    /// Declaring nothing must not circumvent a check that refuses a declaration.
    pub(super) fn unaccounted(&mut self) {
        let pod = self.pod;
        let unguarded = |c: &&Container| self.guarded_gpu(c).is_none() && !c.gpus.is_empty();
        // A container that requests several GPUs gets whole ones. One finding is enough for all such containers.
        let single = |c: &&Container| c.gpus.iter().all(|(_, count)| *count == 1);
        let Some(container) = pod.containers.iter().filter(unguarded).find(single) else { return };
        let (resource, _) = &container.gpus[0];
        let declared = pod.declarations.pod.is_some() || pod.declarations.containers.contains_key(&container.name);
        let why = if declared { None } else { self.why_unaccounted(resource) };
        let Some(why @ Unaccounted::Unstated { .. }) = why else { return };
        let (container, resource) = (container.name.clone(), resource.clone());
        if self.policy.required {
            self.violations.push(Violation::Undeclared { container, resource, key: keys::VRAM.to_owned() });
        } else {
            self.advice.push(Advice::NothingAccounts { container, resource, why });
        }
    }
}
