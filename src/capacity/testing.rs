//! Builders for the tests of this tier. Their rules deduct nothing, so that the amounts in a test are those of its
//! GPUs.

use std::num::NonZeroU32;

use super::cluster::NodeFacts;
use super::gpu::{
    AllocationPolicy, Contents, DriverReserve, Gpu, Headroom, Overcommit, Pool, Resource, Rules, Sharing,
};
use super::name::PodUid;
use super::node::holder::{Amount, Holder, Part};
use super::pod::PodName;
use super::pod::demand::Role;
use super::vram::Vram;

/// The name of the resource of [`pool`] and [`holder`].
pub(crate) const GPU: &str = "nvidia.com/gpu";

/// An amount in MiB.
pub(crate) fn mib(mib: u64) -> Vram {
    Vram::from_mib(mib)
}

/// [`GPU`] as a resource.
pub(crate) fn gpu() -> Resource {
    Resource(GPU.into())
}

/// The uid of a pod.
pub(crate) fn uid(text: &str) -> PodUid {
    PodUid::from(text.to_owned())
}

/// Rules without driver reserve, headroom, overhead or overcommit.
pub(crate) fn rules() -> Rules {
    Rules {
        driver_reserve: DriverReserve::Amount(Vram::ZERO),
        per_process_overhead: Vram::ZERO,
        headroom: Headroom { percent: 0, minimum: Vram::ZERO },
        overcommit: Overcommit::NONE,
        serialize_per_gpu: false,
        several_schedulers: false,
    }
}

/// A pool of time-sliced GPUs behind [`GPU`], with these sizes in MiB and `replicas` replicas of each GPU.
///
/// # Panics
/// If `replicas` is 0.
pub(crate) fn pool(sizes: &[u64], replicas: u32) -> Pool {
    let gpus = (0..).zip(sizes).map(|(index, &size)| Gpu::of_size(index, mib(size))).collect();
    Pool {
        resource: gpu(),
        sharing: Sharing::TimeSlicing,
        contents: Ok(Contents { gpus, replicas: NonZeroU32::new(replicas).expect("at least one replica") }),
        allocation_policy: AllocationPolicy::Unverified,
        hard_limits: false,
        tells_processes: false,
    }
}

/// The facts of a node with these pools and without labels.
pub(crate) fn facts(pools: Vec<Pool>) -> NodeFacts {
    NodeFacts { pools, ..NodeFacts::default() }
}

/// The container `main` of a holder, on a GPU that the device plugin chooses.
pub(crate) fn part(amount: Amount) -> Part {
    Part { container: "main".into(), role: Role::App, amount, gpu: None }
}

/// A pod with one container that requests an amount in MiB and one replica of [`GPU`].
pub(crate) fn holder(request: u64) -> Holder {
    Holder {
        name: PodName { namespace: "ml".into(), name: "llm".into() },
        request: Some(mib(request)),
        parts: vec![part(Amount::Requested(mib(request)))].into(),
        gpus: vec![(gpu(), 1)].into(),
        label_at_least: None,
        needs_label: false,
        priority: 0,
        starting: None,
        bound: None,
        annotated: true,
    }
}
