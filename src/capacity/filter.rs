//! Decides which of some nodes can take a pod now, and why the others cannot, for the scheduler extender.
//!
//! Owns a fast path to the answer of the binding guard, [`NodeLedger::choose`]. A node's usage contains the largest
//! demand that it can take, computed for the usual ways in which a pod gets its GPU. For most pods, one comparison
//! with that amount is enough. Nothing is reserved here, and nodes that are not in the request are not read.
//!
//! [`NodeLedger::choose`]: crate::capacity::node::ledger::NodeLedger::choose

use crate::capacity::binding;
use crate::capacity::binding::assume::pool_for;
use crate::capacity::cluster::{Cluster, NodeView};
use crate::capacity::gpu::{Pool, Resource};
use crate::capacity::name::PodUid;
use crate::capacity::node::holder::Holder;
use crate::capacity::node::usage::NodeUsage;
use crate::capacity::verdict::Unplaced;
use crate::capacity::vram::Vram;

/// A pod that looks for a node. One filter answers for each node of a request.
#[derive(Debug)]
pub struct Filter<'c, 'p> {
    cluster: &'c Cluster,
    uid: &'c PodUid,
    holder: &'p Holder,
    /// Whether the pod requests VRAM on any guarded GPU.
    guarded: bool,
    /// The demand of the pod; `None` if it depends on the node.
    demand: Option<Vram>,
    /// Nodes on which the pod already counts; there cannot be many.
    ///
    /// Their usage includes the pod, which must not count against itself. So these nodes take the full choice of a
    /// GPU.
    counts_on: Vec<&'c str>,
}

/// Why a node cannot take the pod now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The reason.
    pub why: Unplaced,
    /// Whether the amount that the node publishes leads to the same answer.
    ///
    /// kube-scheduler asks only about nodes whose published amount is large enough. So if this is true, either
    /// kube-scheduler or this replica of the server lags behind the other.
    pub published: bool,
}

/// Returns whether the answers for all nodes together are doubtful.
///
/// They are if no node can take the pod, and the published amount of at least one node should have shown that to
/// kube-scheduler.
pub fn is_doubtful(answers: &[Result<(), Rejected>]) -> bool {
    let refused = |answer: &Result<(), Rejected>| answer.is_err();
    let known = |answer: &Result<(), Rejected>| answer.as_ref().is_err_and(|rejected| rejected.published);
    answers.iter().all(refused) && answers.iter().any(known)
}

impl<'c, 'p> Filter<'c, 'p> {
    /// Creates the filter for a pod that would count as `holder` on a node.
    pub fn of(cluster: &'c Cluster, uid: &'c PodUid, holder: &'p Holder) -> Filter<'c, 'p> {
        let guarded = |(resource, _): &(Resource, u64)| cluster.guards(resource);
        Filter {
            cluster,
            uid,
            holder,
            guarded: holder.request.is_some() && holder.gpus.iter().any(guarded),
            demand: holder.amount(None, cluster.rules()),
            counts_on: cluster.counts_on(uid).collect(),
        }
    }

    /// Decides whether a node can take the pod now.
    ///
    /// # Errors
    ///
    /// Fails with the reason if the node cannot take the pod.
    pub fn node(&self, name: &str) -> Result<(), Rejected> {
        if !self.guarded {
            return Ok(());
        }
        let places = self.counts_on.iter().filter(|place| **place != name).count();
        if binding::has_enough_reservations(places) {
            return Err(Rejected { why: Unplaced::TooManyPlaces { places }, published: false });
        }
        let Some(NodeView { facts, ledger, usage }) = self.cluster.node(name) else {
            let resource = self.holder.gpus.first().map(|(resource, _)| resource.clone());
            return Err(Rejected { why: Unplaced::NoGpu { resource }, published: true });
        };
        let by_usage = if self.counts_on.contains(&name) { None } else { self.by_usage(&facts.pools, usage) };
        by_usage.unwrap_or_else(|| {
            let chosen = ledger.choose(self.uid, self.holder, &facts.pools, self.cluster.rules());
            chosen.map(|_| ()).map_err(|why| Rejected { why, published: false })
        })
    }

    /// Returns the answer if it follows from the usage of the node, and `None` otherwise.
    fn by_usage(&self, pools: &[Pool], usage: &NodeUsage) -> Option<Result<(), Rejected>> {
        let pool = match pool_for(self.holder, pools) {
            Ok(pool) => pool,
            Err(why) => {
                let published = matches!(why, Unplaced::NoGpu { .. } | Unplaced::Unknown(_));
                return Some(Err(Rejected { why, published }));
            }
        };
        let demand = self.demand?;
        let pool_usage = usage.pools.iter().find(|pool_usage| pool_usage.resource == pool.resource)?;
        let free = pool_usage.free_for(self.holder.comes_to(pool))?;
        if demand <= free {
            return Some(Ok(()));
        }
        Some(Err(Rejected { why: Unplaced::short(demand, free, pool_usage), published: demand > pool_usage.free }))
    }
}

#[cfg(test)]
mod tests;
