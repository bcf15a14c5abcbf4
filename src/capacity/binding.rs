//! One binding against the rules and the ledger of its node. Owns what may be bound by whom and what is written on the way;
//! where a pod finds its place is [`super::reservation`]'s, how the promise is kept the shells'.

use std::collections::{BTreeMap, BTreeSet};

use super::gpu::{Accounting, Contents, Gpu, GpuId, Pool, Rules};
use super::ledger::{Holder, NodeLedger, PodUid};
use super::moment::Moment;
use super::pod::{Container, Pod, PodName};
use super::reservation::Reservations;
use super::verdict::{Refusal, Unplaced};
use super::vram::Vram;
use crate::keys;

/// What a scheduler wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The pod, by name.
    pub pod: PodName,
    /// The pod, if the Binding says which one of that name.
    pub uid: Option<PodUid>,
    /// Where it should go.
    pub node: String,
    /// Annotations that it would put on the pod and that only vramguard sets.
    pub reserved_annotations: Vec<String>,
    /// Who binds.
    pub binder: String,
}

/// What there is to do about a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Nothing: its pod requests no VRAM, and is counted when it is seen bound.
    None,
    /// Say on the pod which GPU it gets: kube-scheduler's own sum holds on that node.
    Annotate,
    /// Promise it a place first.
    Reserve,
}

/// What an allowed binding brings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Annotations that the pod gets with its node.
    pub annotations: BTreeMap<String, String>,
    /// What has to be written before the binding may be allowed; `None` where nothing has to be.
    pub write: Option<Reservations>,
}

/// The rules that need no look at the pod.
pub fn screen(binding: &Binding) -> Result<(), Refusal> {
    match binding.reserved_annotations.first() {
        Some(key) => Err(Refusal::ReservedAnnotation { key: key.clone() }),
        None => Ok(()),
    }
}

/// Other nodes on which a pod may be promised a place at the same time. A scheduler that gets no answer moves on to the next
/// node, and each promise stands until it is old; without an end to that one pod could hold a place on every node.
pub const MAX_PLACES: usize = 4;

/// Whether a pod that is promised a place on so many other nodes gets none on one more.
pub fn is_promised_enough(places: usize) -> bool {
    places >= MAX_PLACES
}

/// The rules on a guarded pod, as it was read from the API. `places` are the other nodes on which it is promised one.
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
    if is_promised_enough(places) {
        return Err(Refusal::TooManyPlaces { places });
    }
    Ok(())
}

impl NodeLedger {
    /// What a pod that [`judge`] let pass gets on this node, or why it has no place there. `holder` as it will be when bound;
    /// `pools` as [`NodeLedger::reported`] gives them.
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
            Task::Annotate => (only_gpu(holder, pools), None),
            Task::Reserve => {
                let assumed = self.assume(uid, holder, pools, rules, now)?;
                (assumed.gpu, assumed.write)
            }
        };
        Ok(Grant { annotations: annotations(pod, holder, gpu.as_ref(), pools), write })
    }
}

/// What there is to do for a pod that would hold `holder` on a node with these pools.
pub fn task(holder: &Holder, pools: &[Pool], rules: &Rules) -> Task {
    if holder.request.is_none() {
        return Task::None;
    }
    let taken: Vec<&Pool> = pools.iter().filter(|pool| holder.takes(&pool.resource).is_some()).collect();
    let nameless = holder.is_pinned() && only_gpu(holder, pools).is_none();
    match taken.as_slice() {
        [pool] if !needs_reservations(pool, rules) && !nameless => Task::Annotate,
        // Also where there is no place for it: refused with the reason, by the same path.
        _ => Task::Reserve,
    }
}

/// Whether kube-scheduler's sum over the node does not keep the GPUs of a pool from being overcommitted.
pub fn needs_reservations(pool: &Pool, rules: &Rules) -> bool {
    match pool.accounting() {
        Accounting::Slot | Accounting::Confirmed | Accounting::Pinned | Accounting::Unknown => true,
        Accounting::Exact => rules.serialize_per_gpu || rules.several_schedulers,
        Accounting::Exclusive => false,
    }
}

/// The GPU behind the resource that a pod takes, where there is no other. A position says nothing on a node with several
/// pools: each counts its own GPUs from zero.
pub fn only_gpu(holder: &Holder, pools: &[Pool]) -> Option<GpuId> {
    let pool = pools.iter().find(|pool| holder.takes(&pool.resource).is_some())?;
    match pool.contents.as_ref().ok()?.gpus.as_slice() {
        [only] if pools.len() == 1 || matches!(only.id, GpuId::Uuid(_)) => Some(only.id.clone()),
        _ => None,
    }
}

/// The annotations that a pod gets with its node: which GPU each container is on and how large that is, as far as both are
/// known, and each container's share of it.
pub fn annotations(pod: &Pod, holder: &Holder, gpu: Option<&GpuId>, pools: &[Pool]) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::new();
    let pool = pools.iter().find(|pool| holder.takes(&pool.resource).is_some());
    let Some(contents) = pool.and_then(|pool| pool.contents.as_ref().ok()) else { return annotations };
    let total = seen_total(contents, gpu);
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

/// Whether a pod that is bound lacks annotations that could be given to it.
pub fn lacks_annotations(holder: &Holder, gpu: Option<&GpuId>, pools: &[Pool]) -> bool {
    let pool = pools.iter().find(|pool| holder.takes(&pool.resource).is_some());
    let Some(contents) = pool.and_then(|pool| pool.contents.as_ref().ok()) else { return false };
    let unnamed = gpu.is_some() && holder.parts.iter().any(|part| part.gpu.is_none());
    holder.request.is_some() && (unnamed || !holder.annotated && seen_total(contents, gpu).is_some())
}

/// What CUDA reports as the total of the pod's GPU: the driver's own part is not in it, once the agent reports that part. Known
/// also where the GPU is not, if all of them are alike.
fn seen_total(contents: &Contents, gpu: Option<&GpuId>) -> Option<Vram> {
    let seen = |gpu: &Gpu| gpu.total.less(gpu.driver_reserved.unwrap_or(Vram::ZERO)).room();
    match gpu {
        Some(id) => contents.gpus.iter().find(|gpu| gpu.is(id)).map(seen),
        None => {
            let mut totals = contents.gpus.iter().map(seen);
            let first = totals.next()?;
            totals.all(|total| total == first).then_some(first)
        }
    }
}

/// What a container was told to keep to.
fn budget(container: &Container) -> Option<Vram> {
    let mib = container.env(keys::ENV_VRAM_MIB)?.value.as_ref()?.parse().ok()?;
    Vram::checked_from_mib(mib)
}

#[cfg(test)]
mod tests;
