//! [`Outlook`]: whether a pod without a node waits until other pods leave, or never fits the cluster as it is. Owns
//! that distinction and the remedy; what a node can take now is [`super`]'s.

use super::{Cluster, Resource, Vram};
use crate::capacity::gpu::Pool;
use crate::capacity::pod::placement::Placement;
use crate::capacity::verdict::{LargestNode, NeverFits, Remedy, Shortfall};

/// The number of nodes that are checked for one pod, largest first. If the pod is kept off all of them, it counts as
/// waiting, although it may never fit.
const MAX_NODES_COMPARED: usize = 64;

/// What a pod without a node can expect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// A node can take it now, as far as VRAM is concerned.
    Fits,
    /// A node that it may land on could take it if other pods left.
    Waits(Shortfall),
    /// No node that it may land on could take it, even when empty.
    NeverFits(NeverFits),
}

impl Cluster {
    /// Returns the outlook of a demand on the nodes that the pod may land on.
    pub fn outlook(&self, resource: &Resource, demand: Vram, placement: &Placement) -> Outlook {
        match self.shortfall(resource, demand, placement) {
            None => Outlook::Fits,
            Some(shortfall) => {
                self.never_fits(resource, demand, placement).map_or(Outlook::Waits(shortfall), Outlook::NeverFits)
            }
        }
    }

    /// Returns why no node that the pod may land on could take the demand, even when empty. It includes a remedy.
    /// `None` if a node could take it, if the pod may land on no node, or if `MAX_NODES_COMPARED` nodes do not give the answer.
    pub fn never_fits(&self, resource: &Resource, demand: Vram, placement: &Placement) -> Option<NeverFits> {
        let ranked = self.max_demands.get(resource)?.iter().rev().take(MAX_NODES_COMPARED);
        let mut allowed = ranked.filter(|(_, name)| self.allows(placement, name)).peekable();
        // The ranking is descending, so no later node is larger.
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
