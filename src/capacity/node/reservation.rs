//! [`Reservations`] of one node: a pod's place in the node's `GpuLedger`, shared by all replicas of vramguard. Owns the
//! life cycle of a reservation; `k8s::gpu_ledger` translates it, and the tiers that act write it.
//!
//! ```text
//!                 assume                      seen bound here
//!   absent ─────────────────────▶ assumed ─────────────────────▶ confirmed
//!    ▲ ▲ ▲                         │ │  ▲ assume again: same GPU, │
//!    │ │ │  forget: seen bound to  │ │  └─┘ later `since`         │
//!    │ │ └─ another node, or gone ─┘ │                            │
//!    │ └── expire: too old, and a ───┘                            │
//!    │     quorum read found it unbound                           │
//!    │ release: seen ended or gone                                │
//!    └────────────────────────────────────────────────────────────┤
//!                                                                 │
//!   absent ─── seen bound here without a reservation ──▶ adopted ─┘
//! ```
//!
//! Each arrow is one compare-and-swap write of the node's `GpuLedger`. The write succeeds only if nobody wrote the
//! object since it was read. A replica of vramguard that loses the race reads again and decides again. So any number of
//! them may assume, and the sum stays as correct as with one.
//!
//! *A pod that moved*: a scheduler that got no answer may try another node. The pod is then assumed on both nodes,
//! because the first bind may still commit. When the pod is seen bound on one node, the other node forgets it.
//!
//! *Expire*: an allowed bind commits before the API server's request timeout, or never. An assumed reservation is old
//! when the request timeout has passed, plus the skew between the clocks of two replicas of vramguard. An old reservation
//! is void if a quorum read made after that finds the pod unbound. To assume the pod again renews `since`, because
//! another bind is then under way.
//!
//! *Assume again*: the node may have changed its mode since the first time. So the pod must still fit. Where the device
//! plugin chooses the GPU now, the reservation no longer names one.

use std::fmt;
use std::time::Duration;

use litemap::LiteMap;

use super::holder::Holder;
use crate::capacity::gpu::GpuId;
use crate::capacity::name::PodUid;
use crate::capacity::time::Moment;

/// All reservations of one node, by pod uid.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reservations(LiteMap<PodUid, Reservation>);

/// One pod's place in the ledger of a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reservation {
    /// The pod, and the amount and replicas that it holds.
    pub holder: Holder,
    /// The GPU that vramguard chose for the pod, or the one that it got according to its annotation or to the node agent.
    /// `None` if the device plugin chooses.
    pub gpu: Option<GpuId>,
    /// Its state in the life cycle.
    pub state: State,
    /// When it was assumed, most recently, or when it was adopted.
    pub since: Moment,
}

/// State of a reservation in its life cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// The guard allowed the binding, and the pod has not been seen on the node yet.
    Assumed,
    /// The pod was assumed and then seen bound to the node.
    Confirmed,
    /// The pod was seen bound, but was never assumed: the bind came before the guard was installed, or bypassed it.
    Adopted,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The name of the variant is the wire format.
        fmt::Debug::fmt(self, f)
    }
}

/// How long an allowed binding may take to commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Value of the API server's `--request-timeout`.
    pub request_timeout: Duration,
    /// Upper bound on the difference of two clocks, plus the delay of a write after its request.
    pub skew: Duration,
}

/// What a quorum read found out about a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The pod is missing or has ended, or another pod has its name.
    Gone,
    /// The pod exists and is not bound.
    Unbound,
    /// The pod is bound to the node of the ledger.
    Here,
    /// The pod is bound to another node.
    Elsewhere,
}

impl Reservations {
    /// The reservation of a pod.
    pub fn of(&self, uid: &PodUid) -> Option<&Reservation> {
        self.0.get(uid)
    }

    /// Whether the pod has a reservation.
    pub fn contains(&self, uid: &PodUid) -> bool {
        self.0.contains_key(uid)
    }

    /// All reservations, ordered by uid.
    pub fn iter(&self) -> impl Iterator<Item = (&PodUid, &Reservation)> {
        self.0.iter()
    }

    /// All reservations, ordered by uid and mutable, so that the interner can replace equal values by shared ones.
    pub(in crate::capacity) fn iter_mut(&mut self) -> impl Iterator<Item = (&PodUid, &mut Reservation)> {
        self.0.iter_mut()
    }

    /// The number of reservations.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no reservations.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The reservation of a pod, mutable.
    pub(in crate::capacity) fn get_mut(&mut self, uid: &PodUid) -> Option<&mut Reservation> {
        self.0.get_mut(uid)
    }

    /// Adds a reservation, or replaces the one of that pod.
    pub(in crate::capacity) fn insert(&mut self, uid: PodUid, reservation: Reservation) {
        self.0.insert(uid, reservation);
    }

    /// Removes the reservations for which `keep` returns false.
    pub(in crate::capacity) fn retain(&mut self, mut keep: impl FnMut(&PodUid) -> bool) {
        self.0.retain(|uid, _| keep(uid));
    }

    /// Removes the reservation of a pod.
    pub fn remove(&mut self, uid: &PodUid) {
        self.0.remove(uid);
    }
}

impl FromIterator<(PodUid, Reservation)> for Reservations {
    fn from_iter<I: IntoIterator<Item = (PodUid, Reservation)>>(reservations: I) -> Reservations {
        Reservations(reservations.into_iter().collect())
    }
}

impl Reservation {
    /// The GPU that vramguard chose for a container; `None` if it chose none or the pod has no such container.
    pub fn gpu_of(&self, container: &str) -> Option<&GpuId> {
        self.gpu.as_ref().filter(|_| self.holder.parts.iter().any(|part| part.container == container))
    }

    /// Whether every bind that the reservation was made for has committed or failed by `now`.
    pub fn is_expired(&self, patience: &Patience, now: Moment) -> bool {
        now >= self.since.after(patience.request_timeout).after(patience.skew)
    }

    /// Whether the reservation stays after a quorum read, which must have been made at `now` or later.
    pub fn survives(&self, found: Found, patience: &Patience, now: Moment) -> bool {
        match found {
            Found::Gone | Found::Elsewhere => false,
            Found::Here => true,
            Found::Unbound => !self.is_expired(patience, now),
        }
    }
}
