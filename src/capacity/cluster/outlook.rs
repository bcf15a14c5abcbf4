//! What becomes of a pod that found no node: it waits until somebody leaves, or it never fits as the cluster is. Owns that
//! difference and the remedy; what a node can take now is [`super`]'s.

use super::{Cluster, Resource, Vram};
use crate::capacity::gpu::Pool;
use crate::capacity::placement::Placement;
use crate::capacity::verdict::{LargestNode, NeverFits, Remedy, Shortfall};

/// Nodes looked at for one pod, the largest first. A pod may be kept off more large nodes than that; it is then said to wait,
/// which is what was said of all of them before.
const LOOKED_AT: usize = 64;

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// A node can take it now, as far as VRAM goes.
    Fits,
    /// One that it may land on could take it if others left.
    Waits(Shortfall),
    /// None that it may land on could take it, even when empty.
    NeverFits(NeverFits),
}

impl Cluster {
    /// What becomes of a demand on the nodes that a pod may land on.
    pub fn outlook(&self, resource: &Resource, demand: Vram, placement: &Placement) -> Outlook {
        match self.shortfall(resource, demand, placement) {
            None => Outlook::Fits,
            Some(shortfall) => {
                self.never_fits(resource, demand, placement).map_or(Outlook::Waits(shortfall), Outlook::NeverFits)
            }
        }
    }

    /// Why none of the nodes that a pod may land on could take a demand, even when empty, and what would help. `None` where one
    /// could, where the pod may land on none at all, and where that was not found out within `LOOKED_AT` nodes.
    pub fn never_fits(&self, resource: &Resource, demand: Vram, placement: &Placement) -> Option<NeverFits> {
        let ranked = self.ceilings.get(resource)?.iter().rev().take(LOOKED_AT);
        let mut allowed = ranked.filter(|(_, name)| self.allows(placement, name)).peekable();
        // In this order no later one is larger.
        let (most, node) = allowed.peek()?;
        if demand <= *most {
            return None;
        }
        let largest = LargestNode { node: node.clone(), most: *most };
        let pools = allowed.filter_map(|(_, name)| {
            let pools = &self.nodes.get(name)?.facts.pools;
            Some((name, pools.iter().find(|pool| pool.resource == *resource)?))
        });
        let mut remedy = None;
        for (name, pool) in pools {
            let better = self.remedy(name, pool, demand);
            if better.as_ref().map(Remedy::rank) > remedy.as_ref().map(Remedy::rank) {
                remedy = better;
            }
        }
        Some(NeverFits { demand, resource: resource.clone(), made_of: None, largest, remedy: remedy? })
    }

    fn remedy(&self, node: &str, pool: &Pool, demand: Vram) -> Option<Remedy> {
        let (node, gpu) = (node.to_owned(), pool.smallest_gpu(&self.rules)?);
        let replicas = pool.contents.as_ref().ok()?.replicas.get();
        Some(match pool.replicas_for(demand, &self.rules) {
            Some(fits) => Remedy::FewerReplicas { node, replicas, fits, slot: gpu.share(fits) },
            None => Remedy::LargerGpu { node, gpu },
        })
    }
}

#[cfg(test)]
mod tests;
