//! Decides how the reservations of a node follow the pods that are seen there: which to confirm, add and remove.
//!
//! Owns every step in the life of a reservation after [`super::assume`]; [`crate::capacity::node::reservation`] draws
//! that life. Some steps need a quorum read of the pod. The controller makes those reads, and writes the result.

use crate::capacity::gpu::{Accounting, GpuId, Pool, Resource, Rules};
use crate::capacity::name::PodUid;
use crate::capacity::node::holder::Holder;
use crate::capacity::node::ledger::NodeLedger;
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
    /// Pods that were seen bound here without a reservation, and may be bound past the guard. `reservations` contains one
    /// for each of them.
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
                reservations.insert(uid.clone(), Reservation::adopt(holder, now));
                // The guard only names the single GPU to a pod while nothing else makes reservations necessary.
                let is_named = holder.annotated
                    && pools.iter().filter(|pool| counts(pool)).all(|pool| pool.accounting() == Accounting::Exact);
                if !is_named {
                    adopted.push(uid.clone());
                }
            }
        }
        self.record_gpus(&mut reservations, pools);
        Upkeep { reservations, doubtful, adopted }
    }

    /// Records in each reservation the GPU that its pod really got, where the agent steers the device plugin.
    ///
    /// It differs from the reserved one if the agent had to move the pod. An adopted reservation that names no GPU gets the
    /// one that the pod's annotation names, until the agent reports it; the binding guard wrote none for others.
    fn record_gpus(&self, reservations: &mut Reservations, pools: &[Pool]) {
        for (uid, holder) in self.holders().iter().filter(|(_, holder)| holder.is_steered(pools)) {
            if let Some(reservation) = reservations.get_mut(uid) {
                let before = reservation.gpu.take();
                let reported = self.reported_gpu(uid, holder);
                let named = || holder.named_gpu(pools).filter(|_| reservation.state == State::Adopted);
                reservation.gpu = reported.or(before).or_else(named);
            }
        }
    }

    /// The GPU that the agent reports for all containers of a pod; `None` if it reports none or several.
    fn reported_gpu(&self, uid: &PodUid, holder: &Holder) -> Option<GpuId> {
        let inventory = self.content()?.inventory.as_ref()?;
        let mut gpus = holder.parts.iter().map(|part| inventory.gpu_of(uid, &part.container));
        let first = gpus.next()??;
        gpus.all(|gpu| gpu == Some(first)).then(|| first.clone())
    }
}

impl Reservation {
    /// Creates the reservation of a pod that is already here, whether or not its GPU has enough free memory.
    fn adopt(holder: &Holder, now: Moment) -> Reservation {
        Reservation { holder: holder.settled(), gpu: None, state: State::Adopted, since: now }
    }

    /// Updates the reservation of a pod that is seen bound here. An assumed one becomes confirmed.
    fn record_bound(&mut self, holder: &Holder, pools: &[Pool]) {
        if self.state == State::Assumed {
            // Of several bindings that were allowed, the annotation tells which one the API server committed.
            let named = holder.named_gpu(pools).filter(|_| holder.is_steered(pools));
            self.gpu = named.or(self.gpu.take());
            self.state = State::Confirmed;
        }
        self.holder = holder.settled();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::capacity::testing;

    #[test]
    fn a_pod_to_which_the_guard_has_named_the_single_gpu_was_not_bound_past_it() {
        let patience = Patience { request_timeout: Duration::ZERO, skew: Duration::ZERO };
        let adopted = |gpus: &[u64], annotated: bool| {
            let pool = Pool { tells_processes: true, ..testing::pool(gpus, 4) };
            let mut ledger = NodeLedger::default();
            ledger.confirm(testing::uid("p"), Holder { annotated, ..testing::holder(4_000) });
            let upkeep = ledger.upkeep(&[pool], &testing::rules(), |_| true, &patience, Moment(0));
            assert!(upkeep.reservations.contains(&testing::uid("p")));
            upkeep.adopted.len()
        };
        assert_eq!(adopted(&[10_000], true), 0, "there was no agent yet, or it did not report");
        assert_eq!(adopted(&[10_000], false), 1);
        assert_eq!(adopted(&[10_000, 10_000], true), 1, "any user may write the annotation");
    }

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
