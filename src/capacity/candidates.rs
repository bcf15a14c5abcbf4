//! Which of all nodes can take a pod now, later or never, and why, for `vramguard explain`.
//!
//! Owns the distinction between now, later and never. What a node can take now is the answer of [`Filter`], what it could
//! take when it is empty is that of its pools.

use std::collections::BTreeMap;

use crate::capacity::binding::assume::pool_for;
use crate::capacity::cluster::{Cluster, NodeView};
use crate::capacity::filter::Filter;
use crate::capacity::name::PodUid;
use crate::capacity::node::holder::Holder;
use crate::capacity::pod::placement::Placement;
use crate::capacity::verdict::{Unplaced, Unsuitable};

/// What becomes of a pod on each node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidates {
    /// Nodes that can take it now, by name.
    pub now: Vec<String>,
    /// Nodes that can take it once others leave, by the reason.
    pub later: BTreeMap<String, Group>,
    /// Nodes that can never take it as they are, by the reason.
    pub never: BTreeMap<String, Group>,
}

/// The nodes with one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Names of the nodes; at least one.
    pub nodes: Vec<String>,
    /// The message about the first of them, with its numbers. It continues a sentence that begins with its name.
    pub example: String,
}

/// Asks all nodes about a pod that would count as `holder`.
pub fn of(cluster: &Cluster, uid: &PodUid, holder: &Holder, placement: &Placement) -> Candidates {
    let filter = Filter::of(cluster, uid, holder);
    let mut candidates = Candidates::default();
    for name in cluster.node_names() {
        let Some(NodeView { facts, .. }) = cluster.node(name) else { continue };
        let never = |unsuitable: Unsuitable<'_>| (unsuitable.countable(), unsuitable.to_string());
        let (group, (reason, example)) = if let Some(why) = placement.kept_off(name, &facts.profile) {
            (&mut candidates.never, never(Unsuitable::KeptOff(why)))
        } else {
            let pool = pool_for(holder, &facts.pools);
            // The filter has no say about a pod without a request, and such a pod needs a GPU too.
            let answer = match (&pool, filter.node(name)) {
                (Err(why), _) => Err(why.clone()),
                (Ok(_), answer) => answer.map_err(|rejected| rejected.why),
            };
            let most = pool.ok().and_then(|pool| pool.max_demand(cluster.rules()));
            match (answer, holder.amount(None, cluster.rules()).zip(most)) {
                (Ok(()), _) => {
                    candidates.now.push(name.to_owned());
                    continue;
                }
                (Err(_), Some((demand, most))) if demand > most => {
                    (&mut candidates.never, never(Unsuitable::TooSmall { demand, most }))
                }
                (Err(why), _) => {
                    let passes =
                        matches!(why, Unplaced::Shortfall { .. } | Unplaced::Starting | Unplaced::TooManyPlaces { .. });
                    let group = if passes { &mut candidates.later } else { &mut candidates.never };
                    (group, (why.countable().to_string(), why.to_string()))
                }
            }
        };
        group.entry(reason).or_insert_with(|| Group { nodes: Vec::new(), example }).nodes.push(name.to_owned());
    }
    candidates
}
