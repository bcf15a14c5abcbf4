//! The nodes of a pod under review: what it requires of their labels, and the pools that the policy opens to it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::Assessment;
use crate::capacity::gpu::Resource;
use crate::capacity::pod::placement::{NodeNeeds, Placement, Reroute, TooManyAlternatives};
use crate::capacity::verdict::Violation;
use crate::keys;

impl Assessment<'_> {
    /// How the pod is rerouted; `None` if it is not, or not any more.
    ///
    /// # Errors
    /// The pod would get too many alternatives.
    pub fn reroute(&self) -> Result<Option<Reroute>, TooManyAlternatives> {
        if self.is_guarded() { self.pod.placement.reroute(self.policy.fallbacks()) } else { Ok(None) }
    }

    /// Where the pod may be placed once it is rerouted.
    pub(super) fn placement(&self) -> Cow<'_, Placement> {
        let placement = &self.pod.placement;
        match self.reroute() {
            Ok(Some(reroute)) => Cow::Owned(placement.rerouted(&reroute)),
            Ok(None) | Err(TooManyAlternatives) => Cow::Borrowed(placement),
        }
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
