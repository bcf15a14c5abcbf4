//! Which of some nodes can take a pod now, and why the others cannot: what the scheduler extender answers. Owns the short way
//! to the answer of [`NodeLedger::choose`](super::ledger::NodeLedger::choose), which is the binding guard's: most pods come to their GPU as the room of a node is
//! computed for, so that a comparison with where the node stands is enough. Nothing is reserved here, and nodes that
//! were not asked for are not looked at.

use super::binding;
use super::cluster::Cluster;
use super::gpu::{Pool, Resource};
use super::ledger::{Holder, PodUid, Standing};
use super::reservation::pool_for;
use super::verdict::{Unfit, Unplaced};
use super::vram::Vram;

/// A pod that looks for a node. Made once, asked for each node.
#[derive(Debug)]
pub struct Filter<'c, 'p> {
    cluster: &'c Cluster,
    uid: &'c PodUid,
    holder: &'p Holder,
    /// Whether it has a share in any guarded GPU.
    guarded: bool,
    /// What it demands wherever it goes; `None` where that depends on the node.
    demand: Option<Vram>,
    /// Where it counts already: there it must not stand in its own way, and there cannot be many.
    counts_on: Vec<&'c str>,
}

/// Why a node cannot take the pod now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejected<'p> {
    /// The reason.
    pub why: Unfit<'p>,
    /// Whether the number that the node publishes says the same. kube-scheduler asks about nodes whose number is large enough,
    /// so either it or this picture has not seen yet what the other has.
    pub published: bool,
}

/// Whether answers for all nodes together leave a doubt: none can take the pod, and kube-scheduler should have known.
pub fn is_doubtful(answers: &[Result<(), Rejected<'_>>]) -> bool {
    let refused = |answer: &Result<(), Rejected<'_>>| answer.is_err();
    let known = |answer: &Result<(), Rejected<'_>>| answer.is_err_and(|rejected| rejected.published);
    answers.iter().all(refused) && answers.iter().any(known)
}

impl<'c, 'p> Filter<'c, 'p> {
    /// For a pod that would hold `holder`.
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

    /// Whether a node can take the pod now.
    pub fn node(&self, name: &str) -> Result<(), Rejected<'p>> {
        if !self.guarded {
            return Ok(());
        }
        let places = self.counts_on.iter().filter(|place| **place != name).count();
        if binding::is_promised_enough(places) {
            return Err(Rejected { why: Unfit::TooManyPlaces { places }, published: false });
        }
        let Some((facts, ledger, standing)) = self.cluster.node(name) else {
            let resource = self.holder.gpus.first().map(|(resource, _)| resource);
            return Err(Rejected { why: Unfit::NoGpu { resource }, published: true });
        };
        let at_a_glance = if self.counts_on.contains(&name) { None } else { self.at_a_glance(&facts.pools, standing) };
        at_a_glance.unwrap_or_else(|| {
            let chosen = ledger.choose(self.uid, self.holder, &facts.pools, self.cluster.rules());
            chosen.map(|_| ()).map_err(|unplaced| Rejected { why: self.unfit(&unplaced), published: false })
        })
    }

    /// The answer, where it follows from where the node stands.
    fn at_a_glance(&self, pools: &[Pool], standing: &Standing) -> Option<Result<(), Rejected<'p>>> {
        let pool = match pool_for(self.holder, pools) {
            Ok(pool) => pool,
            Err(unplaced) => {
                let why = self.unfit(&unplaced);
                return Some(Err(Rejected { why, published: matches!(why, Unfit::NoGpu { .. } | Unfit::Unknown) }));
            }
        };
        let demand = self.demand?;
        let stands = standing.pools.iter().find(|stands| stands.resource == pool.resource)?;
        let room = stands.room_for(self.holder.comes_to(pool))?;
        if demand <= room {
            return Some(Ok(()));
        }
        Some(Err(Rejected { why: Unfit::short(demand, room, stands), published: demand > stands.room }))
    }

    fn unfit(&self, unplaced: &Unplaced) -> Unfit<'p> {
        match unplaced {
            // It is one that the pod asks for.
            Unplaced::NoGpu { resource } => Unfit::NoGpu { resource: self.asked(resource.as_ref()) },
            Unplaced::SeveralResources => Unfit::SeveralResources,
            Unplaced::Unknown(_) => Unfit::Unknown,
            Unplaced::PinUnverified { .. } => Unfit::PinUnverified,
            Unplaced::Starting => Unfit::Starting,
            Unplaced::Shortfall { demand, room, stands } => Unfit::short(*demand, *room, stands),
        }
    }

    fn asked(&self, resource: Option<&Resource>) -> Option<&'p Resource> {
        self.holder.gpus.iter().map(|(asked, _)| asked).find(|asked| Some(*asked) == resource)
    }
}

#[cfg(test)]
mod tests;
