//! Builders of nodes, pods and ledgers for the tests of reservations.

use std::time::Duration;

use crate::capacity::cluster::NodeFacts;
use crate::capacity::gpu::{AllocationPolicy, GpuId};
use crate::capacity::node::holder::Holder;
use crate::capacity::node::inventory::Inventory;
use crate::capacity::node::ledger::LedgerContent;
use crate::capacity::node::reservation::{Patience, Reservation, Reservations, State};
use crate::capacity::testing::{facts, pool};
pub(super) use crate::capacity::testing::{gpu as resource, holder as pod, rules, uid};
use crate::capacity::time::Moment;

/// A node that shares GPUs of these sizes, in MiB, by time-slicing.
pub(super) fn node(sizes: &[u64], replicas: u32) -> NodeFacts {
    facts(vec![pool(sizes, replicas)])
}

/// A pod with the annotation that its binding wrote. `request` is in MiB.
pub(super) fn annotated(request: u64, gpu: Option<u32>) -> Holder {
    let mut holder = pod(request);
    holder.parts[0].gpu = gpu.map(GpuId::Index);
    holder
}

/// The ledger of a node whose agent reports this allocation policy.
pub(super) fn content(allocation_policy: AllocationPolicy, reservations: Reservations) -> LedgerContent {
    LedgerContent {
        reservations,
        inventory: Some(Inventory { reported: Some(Moment(i64::MAX)), allocation_policy, ..Inventory::default() }),
        fault: None,
    }
}

pub(super) fn reservation(holder: Holder, gpu: Option<u32>, state: State, since: i64) -> Reservation {
    Reservation { holder, gpu: gpu.map(GpuId::Index), state, since: Moment(since) }
}

pub(super) fn reservations(all: impl IntoIterator<Item = (&'static str, Reservation)>) -> Reservations {
    all.into_iter().map(|(name, reservation)| (uid(name), reservation)).collect()
}

/// A request timeout of one minute, and clocks that are half a minute apart.
pub(super) const PATIENCE: Patience =
    Patience { request_timeout: Duration::from_secs(60), skew: Duration::from_secs(30) };
