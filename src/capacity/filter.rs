//! Which of some nodes can take a pod now, and why the others cannot: what the scheduler extender answers. Owns the short way
//! to the answer of [`NodeLedger::choose`], which is the binding guard's: most pods come to their GPU as the room of a node is
//! computed for, so that a comparison with where the node stands is enough. Nothing is reserved here, and nodes that
//! were not asked for are not looked at.

use super::cluster::Cluster;
use super::gpu::{Pool, Resource};
use super::ledger::{Holder, NodeLedger, PodUid, Standing, Viewpoint};
use super::placement::Preemption;
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
    /// Where it counts already, which it must not stand in its own way.
    counts_on: Vec<&'c str>,
    /// Whether there is anybody at all whom it may preempt.
    may_preempt: bool,
}

/// Why a node cannot take the pod now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejected<'p> {
    /// The reason.
    pub why: Unfit<'p>,
    /// Whether there would be room if pods of lower priority went. Where not, evicting them is in vain.
    pub preemptable: bool,
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
    pub fn of(cluster: &'c Cluster, uid: &'c PodUid, holder: &'p Holder, preemption: Preemption) -> Filter<'c, 'p> {
        let resources = || holder.gpus.iter().map(|(resource, _)| resource);
        let lowest = resources().filter_map(|resource| cluster.lowest_priority(resource)).min();
        Filter {
            cluster,
            uid,
            holder,
            guarded: holder.request.is_some() && resources().any(|resource| cluster.guards(resource)),
            demand: holder.amount(None, cluster.rules()),
            counts_on: cluster.counts_on(uid).collect(),
            may_preempt: preemption != Preemption::Never && lowest.is_some_and(|lowest| lowest < holder.priority),
        }
    }

    /// Whether a node can take the pod now.
    pub fn node(&self, name: &str) -> Result<(), Rejected<'p>> {
        if !self.guarded {
            return Ok(());
        }
        let Some((facts, ledger, standing)) = self.cluster.node(name) else {
            let resource = self.holder.gpus.first().map(|(resource, _)| resource);
            return Err(Rejected { why: Unfit::NoGpu { resource }, preemptable: false, published: true });
        };
        let counted = self.counts_on.contains(&name);
        let (why, published) = match self.at_a_glance(&facts.pools, standing) {
            Some(Ok(())) if !counted => return Ok(()),
            Some(Err(why)) if !counted => (why, why != Unfit::PinUnverified),
            _ => match ledger.choose(self.uid, self.holder, &facts.pools, self.cluster.rules()) {
                Ok(_) => return Ok(()),
                Err(unplaced) => (self.unfit(&unplaced), false),
            },
        };
        let preemptable = match why {
            Unfit::Shortfall { .. } | Unfit::Starting => self.fits_by_preemption(ledger, &facts.pools),
            Unfit::NoGpu { .. } | Unfit::SeveralResources | Unfit::Unknown | Unfit::PinUnverified => false,
        };
        Err(Rejected { why, preemptable, published })
    }

    /// The answer, where it follows from where the node stands.
    fn at_a_glance(&self, pools: &[Pool], standing: &Standing) -> Option<Result<(), Unfit<'p>>> {
        let pool = match pool_for(self.holder, pools) {
            Ok(pool) => pool,
            Err(unplaced) => return Some(Err(self.unfit(&unplaced))),
        };
        let demand = self.demand?;
        let stands = standing.pools.iter().find(|stands| stands.resource == pool.resource)?;
        if !self.holder.comes_to(pool).is_usual(stands.accounting) {
            return None;
        }
        let fits = demand <= stands.room;
        Some(if fits { Ok(()) } else { Err(Unfit::short(demand, stands.room, stands)) })
    }

    fn fits_by_preemption(&self, ledger: &NodeLedger, pools: &[Pool]) -> bool {
        let lower = |holder: &Holder| holder.priority < self.holder.priority && holder.request.is_some();
        let viewpoint = Viewpoint::Preempting(self.holder.priority);
        let place = |pool| ledger.place_before(self.uid, self.holder, pool, self.cluster.rules(), viewpoint);
        self.may_preempt
            && ledger.counted().any(|(_, holder)| lower(holder))
            && pool_for(self.holder, pools).is_ok_and(|pool| place(pool).is_ok())
    }

    fn unfit(&self, unplaced: &Unplaced) -> Unfit<'p> {
        match unplaced {
            // It is one that the pod asks for.
            Unplaced::NoGpu { resource } => Unfit::NoGpu { resource: self.asked(resource.as_ref()) },
            Unplaced::SeveralResources => Unfit::SeveralResources,
            Unplaced::Unknown(_) => Unfit::Unknown,
            Unplaced::PinUnverified { .. } => Unfit::PinUnverified,
            Unplaced::Shortfall { demand, room, stands, .. } => Unfit::short(*demand, *room, stands),
        }
    }

    fn asked(&self, resource: Option<&Resource>) -> Option<&'p Resource> {
        self.holder.gpus.iter().map(|(asked, _)| asked).find(|asked| Some(*asked) == resource)
    }
}

#[cfg(test)]
mod tests;
