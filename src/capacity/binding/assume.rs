//! Reserves a place for a pod on a node, when the binding guard allows its binding.
//!
//! Owns the choice of the GPU and the creation of a reservation in state assumed. [`super::upkeep`] owns the later
//! steps of a reservation's life, and [`crate::capacity::node::reservation`] its data.

use crate::capacity::gpu::{GpuId, Pool, Rules};
use crate::capacity::name::PodUid;
use crate::capacity::node::holder::Holder;
use crate::capacity::node::ledger::NodeLedger;
use crate::capacity::node::reservation::{Reservation, Reservations, State};
use crate::capacity::node::usage::Counted;
use crate::capacity::time::Moment;
use crate::capacity::verdict::Unplaced;
use crate::capacity::vram::Vram;

/// The binding guard's decision to let a pod onto a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assumed {
    /// The GPU that the pod gets; `None` if the device plugin chooses it, so that it is not known yet.
    pub gpu: Option<GpuId>,
    /// Reservations to write before the binding may be allowed; `None` if nothing has to be written.
    pub write: Option<Reservations>,
}

impl NodeLedger {
    /// Reserves a place for a pod on this node.
    ///
    /// `holder` is what the pod will hold once it is bound. A pod never gets a second reservation on the node: if it
    /// has one, the answer names the GPU of that one. If the pod has not been seen here yet, it must still fit as the
    /// node counts now, and the time of the reservation starts anew.
    ///
    /// # Errors
    ///
    /// Fails if the node has no place for the pod.
    pub fn assume(
        &self,
        uid: &PodUid,
        holder: &Holder,
        pools: &[Pool],
        rules: &Rules,
        now: Moment,
    ) -> Result<Assumed, Unplaced> {
        let mut reservations = self.content().map(|content| content.reservations.clone()).unwrap_or_default();
        if let Some(reservation) = reservations.get_mut(uid) {
            if reservation.state != State::Assumed {
                // The pod has been seen bound here, so the reservation does not expire.
                return Ok(Assumed { gpu: reservation.gpu.clone(), write: None });
            }
            // The node may have changed its mode since the first bind. A device plugin that chooses the GPU may give
            // the pod another one than the reserved one, so the pod has to fit again.
            let gpu = self.choose_again(uid, holder, reservation.gpu.as_ref(), pools, rules)?;
            reservation.gpu.clone_from(&gpu);
            // A second bind of the pod to this node is in progress, and it may take as long as the first one. So the
            // reservation expires later.
            reservation.since = reservation.since.max(now);
            return Ok(Assumed { gpu, write: Some(reservations) });
        }
        let gpu = self.choose(uid, holder, pools, rules)?;
        reservations.retain(|uid| !self.departed().contains(uid));
        let reservation = Reservation { holder: holder.clone(), gpu: gpu.clone(), state: State::Assumed, since: now };
        reservations.insert(uid.clone(), reservation);
        Ok(Assumed { gpu, write: Some(reservations) })
    }

    /// Returns the GPU that a pod would get now, without reserving it; `None` if the device plugin chooses.
    ///
    /// # Errors
    ///
    /// Fails if the node has no place for the pod.
    pub fn choose(
        &self,
        uid: &PodUid,
        holder: &Holder,
        pools: &[Pool],
        rules: &Rules,
    ) -> Result<Option<GpuId>, Unplaced> {
        let pool = pool_for(holder, pools)?;
        self.place(uid, holder, pool, rules).map_err(|free| self.unplaced(holder, pool, free, rules))
    }

    /// Returns the GPU of a pod that has a reservation which names `reserved`, if the pod still fits.
    fn choose_again(
        &self,
        uid: &PodUid,
        holder: &Holder,
        reserved: Option<&GpuId>,
        pools: &[Pool],
        rules: &Rules,
    ) -> Result<Option<GpuId>, Unplaced> {
        let pool = pool_for(holder, pools)?;
        let kept = self.place_again(uid, holder, reserved, pool, rules);
        kept.map_err(|free| self.unplaced(holder, pool, free, rules))
    }

    fn unplaced(&self, holder: &Holder, pool: &Pool, free: Vram, rules: &Rules) -> Unplaced {
        let Some(demand) = holder.amount(pool.slot(rules), rules) else {
            return Unplaced::NoGpu { resource: Some(pool.resource.clone()) };
        };
        Unplaced::short(demand, free, &self.pool_usage(pool, rules, Counted::All))
    }
}

/// Returns the one pool whose resource a pod requests.
///
/// # Errors
///
/// Fails if the pod requests the resources of no pool or of several pools, or if the GPUs of the pool are not known.
pub(in crate::capacity) fn pool_for<'p>(holder: &Holder, pools: &'p [Pool]) -> Result<&'p Pool, Unplaced> {
    let mut taken = pools.iter().filter(|pool| holder.takes(&pool.resource).is_some());
    let (Some(pool), None) = (taken.next(), taken.next()) else {
        if holder.gpus.len() > 1 {
            return Err(Unplaced::SeveralResources);
        }
        return Err(Unplaced::NoGpu { resource: holder.gpus.first().map(|(resource, _)| resource.clone()) });
    };
    if let Err(why) = &pool.contents {
        return Err(Unplaced::Unknown(Box::new(why.clone())));
    }
    Ok(pool)
}

#[cfg(test)]
mod tests;
