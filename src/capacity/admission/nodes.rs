//! The nodes of a pod under review: what it requires of their labels, and the pools that the policy opens to it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::Assessment;
use crate::capacity::gpu::Resource;
use crate::capacity::pod::placement::{NodeNeeds, Placement, Reroute, TooManyAlternatives};
use crate::capacity::verdict::Violation;
use crate::keys;

/// How a pod is rerouted.
#[derive(Debug, Default)]
pub(super) struct Rerouting {
    /// What changes; `None` if it is not rerouted, or not any more.
    pub reroute: Option<Reroute>,
    /// Where it may be placed then. Shared, so that a lookup can be kept while it is used.
    placement: Option<Arc<Placement>>,
    /// Whether it is not rerouted because it would get too many alternatives.
    pub is_refused: bool,
}

impl Assessment<'_> {
    /// Decides how the pod is rerouted.
    pub(super) fn rerouting(&self) -> Rerouting {
        let own = &self.pod.placement;
        let reroute = if self.is_guarded() { own.reroute(self.policy.fallbacks()) } else { Ok(None) };
        match reroute {
            Err(TooManyAlternatives) => Rerouting { is_refused: true, ..Rerouting::default() },
            Ok(None) => Rerouting::default(),
            Ok(Some(reroute)) => {
                let placement = own.rerouted(&reroute);
                // A pod with several GPUs is refused if a node that it may land on shares them without saying so.
                let mut several = self.pod.containers.iter().flat_map(|container| &container.gpus);
                let refused = |(resource, count): &(Resource, u64)| {
                    *count > 1
                        && self.cluster.guards(resource)
                        && self.cluster.shares_unlabelled(resource, &placement).is_some()
                };
                if several.any(refused) {
                    return Rerouting::default();
                }
                Rerouting { reroute: Some(reroute), placement: Some(Arc::new(placement)), is_refused: false }
            }
        }
    }

    /// Where the pod may be placed once it is rerouted.
    pub(super) fn placement(&self) -> &Placement {
        self.reroute.placement.as_deref().unwrap_or(&self.pod.placement)
    }

    /// The placement of the rerouted pod; `None` if it is not rerouted.
    pub(super) fn rerouted(&self) -> Option<Arc<Placement>> {
        self.reroute.placement.clone()
    }

    /// Where the pod may be placed once all that `/mutate/pods` adds is there, apart from our label.
    pub(super) fn final_placement(&self) -> Cow<'_, Placement> {
        let placement = self.placement();
        if self.node_needs().avoid_shared { Cow::Owned(placement.kept_off_shared()) } else { Cow::Borrowed(placement) }
    }

    /// What the pod requires of the labels of its node.
    pub(super) fn node_needs(&self) -> NodeNeeds {
        let avoid_shared = !self.kept_off_shared() && self.several_replicas().next().is_some();
        NodeNeeds { avoid_shared, pod_max_at_least: self.request() }
    }

    /// A violation for each container with several replicas that may all be one GPU where the pod may land.
    pub(super) fn several_replicas(&self) -> impl Iterator<Item = Violation> {
        let kept_off = self.kept_off_shared();
        let mut unlabelled_of: BTreeMap<&Resource, Option<&str>> = BTreeMap::new();
        self.pod.containers.iter().filter_map(move |container| {
            let several = |(resource, count): &&(Resource, u64)| *count > 1 && self.cluster.guards(resource);
            let (resource, count) = container.gpus.iter().find(several)?;
            // An affinity on the label does not exclude a node that shares its GPUs without that label.
            let look = || self.cluster.shares_unlabelled(resource, &self.pod.placement);
            let unlabelled = unlabelled_of.entry(resource).or_insert_with(look).map(str::to_owned);
            (!kept_off || unlabelled.is_some()).then(|| Violation::SharedReplicas {
                container: container.name.clone(),
                resource: resource.clone(),
                count: *count,
                unlabelled,
            })
        })
    }

    /// Whether the pod's nodeSelector or affinity excludes all nodes whose label names a way of sharing.
    fn kept_off_shared(&self) -> bool {
        let shared = [keys::SHARING_TIME_SLICING, keys::SHARING_MPS];
        self.pod.placement.excludes_everywhere(keys::GFD_SHARING, &shared)
    }
}
