//! Decides one binding against the rules and the ledger of its node.
//!
//! Owns who may bind which pod, whether a binding needs a reservation, and which annotations the pod gets. [`assume`]
//! owns the choice of the GPU and the new reservation, [`upkeep`] its later life. The shells read the API and write
//! the result.

use std::collections::{BTreeMap, BTreeSet};

use crate::capacity::gpu::{Contents, Gpu, GpuId, Pool, Rules};
use crate::capacity::name::PodUid;
use crate::capacity::node::holder::Holder;
use crate::capacity::node::ledger::NodeLedger;
use crate::capacity::node::reservation::Reservations;
use crate::capacity::pod::{Container, Pod, PodName};
use crate::capacity::time::Moment;
use crate::capacity::verdict::{Refusal, Unplaced};
use crate::capacity::vram::Vram;
use crate::keys;

pub mod assume;
pub mod upkeep;

/// A scheduler's request to bind a pod to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Namespace and name of the pod.
    pub pod: PodName,
    /// UID of the pod; `None` if the Binding carries none.
    pub uid: Option<PodUid>,
    /// Name of the target node.
    pub node: String,
    /// Keys of the annotations in the Binding that only vramguard may set.
    pub reserved_annotations: Vec<String>,
    /// User name of the client that creates the Binding.
    pub binder: String,
}

/// What the binding guard must do before it allows a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Nothing: the pod requests no VRAM, and it counts once it is seen bound.
    None,
    /// Annotate the pod with its GPU. No reservation is needed, because kube-scheduler's own sum holds on that node.
    Annotate,
    /// Reserve a place for the pod in the node's ledger first.
    Reserve,
}

/// What an allowed binding brings with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Annotations that the pod gets together with its node.
    pub annotations: BTreeMap<String, String>,
    /// Reservations to write before the binding may be allowed; `None` if nothing has to be written.
    pub write: Option<Reservations>,
}

/// Applies the rules that need only the Binding and not the pod.
///
/// # Errors
///
/// Fails if the Binding sets an annotation that only vramguard may set.
pub fn screen(binding: &Binding) -> Result<(), Refusal> {
    match binding.reserved_annotations.first() {
        Some(key) => Err(Refusal::ReservedAnnotation { key: key.clone() }),
        None => Ok(()),
    }
}

/// Maximum number of nodes on which one pod may have a reservation at the same time.
///
/// A scheduler that gets no answer tries the next node, and each reservation stays until it expires. Without a bound,
/// one pod could hold a place on every node.
pub const MAX_RESERVED_NODES: usize = 4;

/// Returns whether a pod with reservations on `places` other nodes must not get one more.
pub fn has_enough_reservations(places: usize) -> bool {
    places >= MAX_RESERVED_NODES
}

/// Applies the rules for a guarded pod, as the pod was read from the API.
///
/// `uid` is the UID of that pod. `binders` are the users who may bind guarded pods. `places` is the number of other
/// nodes on which the pod has a reservation.
///
/// # Errors
///
/// Fails if the binder is not one of `binders`, if the Binding names another UID, if the pod already has a node, or if
/// it has reservations on too many other nodes.
pub fn judge(
    binding: &Binding,
    uid: &PodUid,
    pod: &Pod,
    binders: &BTreeSet<String>,
    places: usize,
) -> Result<(), Refusal> {
    if !binders.contains(&binding.binder) {
        let binders = binders.iter().cloned().collect();
        return Err(Refusal::ForeignBinder { user: binding.binder.clone(), binders });
    }
    if binding.uid.as_ref().is_some_and(|bound| bound != uid) {
        return Err(Refusal::OtherUid);
    }
    if let Some(node) = &pod.placement.node_name {
        return Err(Refusal::Bound { node: node.clone() });
    }
    if has_enough_reservations(places) {
        return Err(Refusal::Unplaced { node: binding.node.clone(), why: Unplaced::TooManyPlaces { places } });
    }
    Ok(())
}

impl NodeLedger {
    /// Decides what a pod that [`judge`] accepted gets on this node.
    ///
    /// `holder` is the pod as it will count once it is bound. `pools` are the pools that [`NodeLedger::reported`]
    /// returns.
    ///
    /// # Errors
    ///
    /// Fails if the pod needs a reservation and the node has no place for it. The error is the reason.
    pub fn grant(
        &self,
        uid: &PodUid,
        pod: &Pod,
        holder: &Holder,
        pools: &[Pool],
        rules: &Rules,
        now: Moment,
    ) -> Result<Grant, Unplaced> {
        let (gpu, write) = match task(holder, pools, rules) {
            Task::None => return Ok(Grant::default()),
            Task::Annotate => (holder.only_gpu(pools), None),
            Task::Reserve => {
                let assumed = self.assume(uid, holder, pools, rules, now)?;
                (assumed.gpu, assumed.write)
            }
        };
        Ok(Grant { annotations: annotations(pod, holder, gpu.as_ref(), pools), write })
    }
}

/// Returns what a binding needs if its pod would count as `holder` on a node with these pools.
pub fn task(holder: &Holder, pools: &[Pool], rules: &Rules) -> Task {
    if holder.request.is_none() {
        return Task::None;
    }
    let taken: Vec<&Pool> = pools.iter().filter(|pool| holder.takes(&pool.resource).is_some()).collect();
    match taken.as_slice() {
        [pool] if !pool.needs_reservations(rules) => Task::Annotate,
        // This includes a pod without a place on the node: the attempt to reserve one refuses it with the reason.
        _ => Task::Reserve,
    }
}

/// Returns the annotations that a pod gets together with its node.
///
/// They name the GPU of each container, the size of that GPU, and the container's share of it, as far as these are
/// known.
pub fn annotations(pod: &Pod, holder: &Holder, gpu: Option<&GpuId>, pools: &[Pool]) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::new();
    let pool = pools.iter().find(|pool| holder.takes(&pool.resource).is_some());
    let Some(contents) = pool.and_then(|pool| pool.contents.as_ref().ok()) else { return annotations };
    let total = reported_total(contents, gpu);
    if let Some(total) = total {
        annotations.insert(keys::GPU_TOTAL_MIB.to_owned(), total.mib().to_string());
    }
    for container in pod.containers.iter().filter(|container| !container.gpus.is_empty()) {
        if let Some(gpu) = gpu {
            annotations.insert(format!("{}{}", keys::GPU_OF, container.name), gpu.to_string());
        }
        if let Some(fraction) = total.zip(budget(container)).and_then(|(total, budget)| budget.fraction_of(total)) {
            annotations.insert(format!("{}{}", keys::VRAM_FRACTION_OF, container.name), fraction);
        }
    }
    annotations
}

/// Returns whether a bound pod lacks annotations whose values are known.
pub fn lacks_annotations(holder: &Holder, gpu: Option<&GpuId>, pools: &[Pool]) -> bool {
    let pool = pools.iter().find(|pool| holder.takes(&pool.resource).is_some());
    let Some(contents) = pool.and_then(|pool| pool.contents.as_ref().ok()) else { return false };
    let unnamed = gpu.is_some() && holder.parts.iter().any(|part| part.gpu.is_none());
    holder.request.is_some() && (unnamed || !holder.annotated && reported_total(contents, gpu).is_some())
}

/// Returns what CUDA reports as the total of the pod's GPU.
///
/// The total excludes the driver's own part once the agent reports that part. If the GPU is not known, the total is
/// known only if all GPUs of the pool have the same one.
fn reported_total(contents: &Contents, gpu: Option<&GpuId>) -> Option<Vram> {
    match gpu {
        Some(id) => contents.gpus.iter().find(|gpu| gpu.has_id(id)).map(Gpu::reported_total),
        None => {
            let mut totals = contents.gpus.iter().map(Gpu::reported_total);
            let first = totals.next()?;
            totals.all(|total| total == first).then_some(first)
        }
    }
}

/// The amount that a container's environment allows it to use.
fn budget(container: &Container) -> Option<Vram> {
    let mib = container.env(keys::ENV_VRAM_MIB)?.value.as_ref()?.parse().ok()?;
    Vram::checked_from_mib(mib)
}

#[cfg(test)]
mod tests;
