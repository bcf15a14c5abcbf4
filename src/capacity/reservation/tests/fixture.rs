//! Nodes, pods and ledgers for the tests of reservations.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::capacity::cluster::NodeFacts;
use crate::capacity::demand::Role;
use crate::capacity::gpu::{
    Contents, DriverReserve, Gpu, GpuId, Handout, Headroom, Overcommit, Pool, Resource, Rules, Sharing,
};
use crate::capacity::ledger::{Amount, Holder, Part, PodUid, Shared};
use crate::capacity::moment::Moment;
use crate::capacity::pod::PodName;
use crate::capacity::report::Report;
use crate::capacity::reservation::{Patience, Reservation, Reservations, State};
use crate::capacity::vram::Vram;

/// No headroom: the figures of the tests are the figures of the GPUs.
pub fn rules() -> Rules {
    let headroom = Headroom { percent: 0, minimum: Vram::ZERO };
    Rules {
        driver_reserve: DriverReserve::Amount(Vram::ZERO),
        per_process_overhead: Vram::ZERO,
        headroom,
        overcommit: Overcommit::NONE,
        serialize_per_gpu: false,
        several_schedulers: false,
    }
}

pub fn resource() -> Resource {
    Resource("nvidia.com/gpu".into())
}

/// A node that shares GPUs of these sizes by time-slicing.
pub fn node(sizes: &[u64], replicas: u32) -> NodeFacts {
    let gpus = (0..).zip(sizes).map(|(index, &size)| Gpu::of_size(index, Vram::from_mib(size))).collect();
    let pool = Pool {
        resource: resource(),
        sharing: Sharing::TimeSlicing,
        contents: Ok(Contents { gpus, replicas: NonZeroU32::new(replicas).unwrap() }),
        handout: Handout::Unverified,
    };
    NodeFacts { pools: vec![pool], ..NodeFacts::default() }
}

/// A pod that requests that much and takes the GPU it is given.
pub fn pod(request: u64) -> Holder {
    Holder {
        name: PodName { namespace: "ml".into(), name: "llm".into() },
        request: Some(Vram::from_mib(request)),
        parts: vec![Part {
            container: "main".into(),
            role: Role::App,
            amount: Amount::Requested(Vram::from_mib(request)),
            pinned: false,
            gpu: None,
        }]
        .into(),
        gpus: vec![(resource(), 1)].into(),
        label_at_least: None,
        priority: 0,
        starting: None,
        bound: None,
        annotated: true,
    }
}

/// One that takes its GPU from our annotation, which it does not have yet.
pub fn pinned(request: u64) -> Holder {
    annotated(request, None)
}

/// One that takes its GPU from our annotation.
pub fn annotated(request: u64, gpu: Option<u32>) -> Holder {
    let mut holder = pod(request);
    holder.parts[0].pinned = true;
    holder.parts[0].gpu = gpu.map(GpuId::Index);
    holder
}

/// The ledger of a node whose agent says how replicas are handed out there.
pub fn shared(handout: Handout, reservations: Reservations) -> Shared {
    Shared { reservations, report: Some(Report { handout, ..Report::default() }), fault: None }
}

pub fn reservation(holder: Holder, gpu: Option<u32>, state: State, since: i64) -> Reservation {
    Reservation { holder, gpu: gpu.map(GpuId::Index), state, since: Moment(since) }
}

pub fn reservations(all: impl IntoIterator<Item = (&'static str, Reservation)>) -> Reservations {
    all.into_iter().map(|(name, reservation)| (uid(name), reservation)).collect()
}

pub fn uid(name: &str) -> PodUid {
    PodUid::from(name.to_owned())
}

/// A minute, and clocks half a minute apart.
pub const PATIENCE: Patience = Patience { request_timeout: Duration::from_secs(60), skew: Duration::from_secs(30) };
