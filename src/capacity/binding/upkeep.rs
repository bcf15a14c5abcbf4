//! Decides how the reservations of a node follow the pods that are seen there: which to confirm, add and remove.
//!
//! Owns every step in the life of a reservation after [`super::assume`]; [`crate::capacity::node::reservation`] draws
//! that life. Some steps need a quorum read of the pod. The controller makes those reads, and writes the result.

use crate::capacity::gpu::{Pool, Resource, Rules};
use crate::capacity::name::PodUid;
use crate::capacity::node::holder::Holder;
use crate::capacity::node::ledger::{LedgerContent, NodeLedger};
use crate::capacity::node::reservation::{Patience, Reservation, Reservations, State};
use crate::capacity::pod::PodName;
use crate::capacity::policy::Mode;
use crate::capacity::time::Moment;

/// The reservations that a node should have, as far as they can be decided without a quorum read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upkeep {
    /// All reservations as they should be. It still contains the doubtful ones, unchanged.
    pub reservations: Reservations,
    /// Pods that have a reservation and should have been seen here by now. A quorum read of the pod decides whether its
    /// reservation stays: see [`Reservation::survives`].
    pub doubtful: Vec<(PodUid, PodName)>,
    /// Pods that were seen bound here without a reservation. `reservations` contains one for each of them.
    pub adopted: Vec<PodUid>,
}

/// Returns whether an adopted pod is a slip: the API server should have asked the binding guard, but bound it without.
///
/// `holder` is a pod that was seen bound without a reservation. `ledger_created` is the time at which the ledger of
/// its node was created. `mode` is the policy mode of its namespace, `None` for a namespace that is never guarded.
///
/// A pod without a request is not a slip, and neither is a pod that was bound before its node had a ledger. Nor is a
/// pod in a namespace that is not guarded: the policy of such a namespace injects no request.
pub fn is_slip(holder: &Holder, ledger_created: Option<Moment>, mode: Option<Mode>) -> bool {
    let guarded = holder.request.is_some() && matches!(mode, Some(Mode::Enforce | Mode::Warn));
    guarded && ledger_created.is_some_and(|created| holder.bound.is_some_and(|bound| bound >= created))
}

impl NodeLedger {
    /// Returns the reservations that this node should have, given the pods that are seen here.
    ///
    /// The reservations of departed pods are dropped. Those of pods seen here are confirmed or brought up to date. Of
    /// the others, an assumed one stays until it expires. After that it is doubtful, and a confirmed or adopted one is
    /// doubtful at once, because its pod had been seen here before. A pod seen here without a reservation is adopted,
    /// if it takes a resource for which `guarded` returns true and which needs reservations.
    pub fn upkeep(
        &self,
        pools: &[Pool],
        rules: &Rules,
        guarded: impl Fn(&Resource) -> bool,
        patience: &Patience,
        now: Moment,
    ) -> Upkeep {
        let mut reservations = self.content().map(|content| content.reservations.clone()).unwrap_or_default();
        reservations.retain(|uid| !self.departed().contains(uid));
        let mut doubtful = Vec::new();
        for (uid, reservation) in reservations.iter_mut() {
            if let Some(holder) = self.holders().get(uid) {
                reservation.record_bound(holder, pools);
            } else if reservation.state != State::Assumed || reservation.is_expired(patience, now) {
                doubtful.push((uid.clone(), reservation.holder.name.clone()));
            }
        }
        let mut adopted = Vec::new();
        for (uid, holder) in self.holders() {
            let counts = |pool: &Pool| {
                guarded(&pool.resource) && holder.takes(&pool.resource).is_some() && pool.needs_reservations(rules)
            };
            if pools.iter().any(counts) && !reservations.contains(uid) {
                reservations.insert(uid.clone(), Reservation::adopt(holder, pools, now));
                adopted.push(uid.clone());
            }
        }
        self.pin_unpinned(&mut reservations, pools, rules);
        Upkeep { reservations, doubtful, adopted }
    }

    /// Records a GPU in the reservation of each pinned pod that is seen here, if the reservation names none.
    ///
    /// It is the GPU that the pod's annotation names, or else one that can take the pod. The pods are placed one after
    /// the other, each with the reservations of the ones before it, so that no two get the same free memory.
    fn pin_unpinned(&self, reservations: &mut Reservations, pools: &[Pool], rules: &Rules) {
        let unpinned = |(uid, holder): &(&PodUid, &Holder)| {
            holder.is_pinned() && reservations.of(uid).is_some_and(|reservation| reservation.gpu.is_none())
        };
        let unpinned: Vec<(&PodUid, &Holder)> = self.holders().iter().filter(unpinned).collect();
        for (uid, holder) in unpinned {
            let mut ledger = self.clone();
            let content = self.content().cloned().unwrap_or_default();
            ledger.set_content(Some(LedgerContent { reservations: reservations.clone(), ..content }));
            let chosen = || ledger.choose(uid, holder, pools, rules).ok().flatten();
            reservations.get_mut(uid).expect("looked up above").gpu = holder.named_gpu(pools).or_else(chosen);
        }
    }
}

impl Reservation {
    /// Creates the reservation of a pod that is already here, whether or not its GPU has enough free memory.
    fn adopt(holder: &Holder, pools: &[Pool], now: Moment) -> Reservation {
        let gpu = holder.named_gpu(pools).filter(|_| holder.is_pinned());
        Reservation { holder: holder.settled(), gpu, state: State::Adopted, since: now }
    }

    /// Updates the reservation of a pod that is seen bound here. An assumed one becomes confirmed.
    fn record_bound(&mut self, holder: &Holder, pools: &[Pool]) {
        if self.state == State::Assumed {
            // The container starts with the GPU in the pod's annotation, so the annotation wins over the reservation.
            let named = holder.named_gpu(pools).filter(|_| holder.is_pinned());
            self.gpu = named.or(self.gpu.take());
            self.state = State::Confirmed;
        }
        self.holder = holder.settled();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::testing;

    #[test]
    fn only_a_pod_with_a_request_bound_after_the_ledger_in_a_guarded_namespace_is_a_slip() {
        let holder =
            |request: Option<u64>, bound| Holder { request: request.map(testing::mib), bound, ..testing::holder(0) };
        let (before, created, after) = (Some(Moment(1)), Some(Moment(2)), Some(Moment(3)));
        let slip = holder(Some(8912), after);
        assert!(is_slip(&slip, created, Some(Mode::Enforce)));
        assert!(is_slip(&slip, created, Some(Mode::Warn)));
        assert!(is_slip(&holder(Some(8912), created), created, Some(Mode::Enforce)));
        assert!(!is_slip(&holder(None, after), created, Some(Mode::Enforce)));
        assert!(!is_slip(&holder(Some(8912), before), created, Some(Mode::Enforce)));
        assert!(!is_slip(&holder(Some(8912), None), created, Some(Mode::Enforce)), "nobody knows when it was bound");
        assert!(!is_slip(&slip, None, Some(Mode::Enforce)), "its node has no ledger yet");
        for mode in [Some(Mode::Audit), Some(Mode::Off), None] {
            assert!(!is_slip(&slip, created, mode));
        }
    }
}
