//! Node object → the GPUs behind each of its resources. They come from the labels of GPU Feature Discovery and the
//! node's capacity, or from a [`GpuInventory`](super::document) entry of an operator. Owns which labels are trusted. A
//! node whose labels contradict its capacity is unknown; nothing is guessed.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use super::object::{Condition, NodeObject, Quantity};
use super::quantity;
use crate::capacity::audit::scene::Unusable;
use crate::capacity::cluster::NodeFacts;
use crate::capacity::gpu::{AllocationPolicy, Contents, Gpu, Pool, Resource, Sharing, Unknown};
use crate::capacity::pod::placement::{NodeProfile, Taint, UNSCHEDULABLE};
use crate::capacity::vram::Vram;
use crate::keys;

/// Resources that overrides describe as shared. They are guarded even while the cluster has no node that shares them.
pub fn guarded_by(overrides: &[Override]) -> BTreeSet<Resource> {
    overrides.iter().filter(|o| o.replicas.get() > 1).map(|o| o.resource.clone()).collect()
}

/// An operator's description of nodes whose labels are missing or wrong: one entry of a `GpuInventory`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// Names of the nodes; nodes with the labels in `labels` are described too.
    pub names: BTreeSet<String>,
    /// Labels that a node must have, all of them; never empty together with `names`.
    pub labels: BTreeMap<String, String>,
    /// The resource whose GPUs are described.
    pub resource: Resource,
    /// How the GPUs are shared; [`Sharing::UnknownMethod`] if the operator left it out. It has no effect with one replica.
    pub sharing: Sharing,
    /// Device plugin replicas of each GPU; 1 means that the GPUs are not shared.
    pub replicas: NonZeroU32,
    /// Total memory of each GPU; at most [`MAX_GPU`], never zero.
    pub gpus: Vec<Vram>,
    /// Whether these nodes enforce hard limits of GPU memory, as the operator says.
    pub hard_limits: bool,
}

impl Override {
    /// The capacity that the device plugin advertises for these GPUs while it runs: replicas × GPUs.
    fn capacity(&self) -> u64 {
        u64::from(self.replicas.get()).saturating_mul(self.gpus.len() as u64)
    }

    fn describes(&self, node: &str, labels: &BTreeMap<String, String>) -> bool {
        let labelled = !self.labels.is_empty() && self.labels.iter().all(|(key, value)| labels.get(key) == Some(value));
        self.names.contains(node) || labelled
    }
}

/// Translates a node object. For each resource, the first override that describes it counts instead of the labels of
/// GPU Feature Discovery.
pub fn facts(node: &NodeObject, overrides: &[Override]) -> NodeFacts {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let described =
        |resource: &Resource| overrides.iter().find(|o| o.resource == *resource && o.describes(name, &labels));
    let capacity = Capacity::of(node, &labels, described);
    let pools = capacity
        .counts
        .iter()
        .map(|(resource, count)| match (count, described(resource)) {
            (Err(value), _) => unreadable(resource, value),
            (Ok(count), Some(described)) => from_override(resource, *count, described, &labels),
            (Ok(count), None) => from_labels(resource, *count, &capacity, &labels),
        })
        .collect();
    let advertises_vram = node.status.capacity.contains_key(keys::VRAM_RESOURCE);
    NodeFacts {
        profile: NodeProfile {
            labels: labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect(),
            taints: taints(node),
        },
        pools,
        advertises_vram,
    }
}

/// The GPU resources of a node of which pods can request less than the node has, by its status and labels.
///
/// A device plugin that is down leaves a capacity or labels behind, and no allocatable. One that reports devices as
/// unhealthy lowers allocatable alone. A node without allocatable in its status, as in a file written by hand, tells
/// nothing.
pub fn unusable(node: &NodeObject, overrides: &[Override]) -> Vec<Unusable> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let described =
        |resource: &Resource| overrides.iter().find(|o| o.resource == *resource && o.describes(name, &labels));
    let amount = |of: &BTreeMap<String, Quantity>, resource: &str| quantity::count(&of.get(resource)?.0);
    // With MIG, all GPUs may be behind other names.
    let others = |resource: &Resource| {
        let others = node.status.allocatable.keys().filter(|name| keys::is_gpu_resource(name) && **name != *resource.0);
        others.filter_map(|name| amount(&node.status.allocatable, name)).any(|count| count > 0)
    };
    // It has what the labels say where the capacity is zero.
    let has = Capacity::of(node, &labels, described).counts;
    let of = |(resource, count): (Resource, Result<u64, String>)| {
        let usable = amount(&node.status.allocatable, &resource.0)?;
        let has = count.ok().filter(|has| *has > usable)?;
        let is_labelled = amount(&node.status.capacity, &resource.0) == Some(0);
        (!is_labelled || !others(&resource)).then(|| Unusable { node: name.into(), resource, has, usable })
    };
    has.into_iter().filter_map(of).collect()
}

/// The capacity of each GPU resource of a node, or its text if it is not a count.
struct Capacity {
    counts: BTreeMap<Resource, Result<u64, String>>,
}

impl Capacity {
    /// Reads the capacity of a node, and completes the zeros of a kubelet that just started.
    ///
    /// A starting kubelet advertises zero of every device until its plugins have registered again, some ten seconds
    /// later. The GPUs and their holders are still there, so zero means "not back yet" while the labels describe GPUs.
    /// No pod can be placed in that time, because kube-scheduler sees the device count of zero too.
    fn of<'o>(
        node: &NodeObject,
        labels: &BTreeMap<String, String>,
        described: impl Fn(&Resource) -> Option<&'o Override>,
    ) -> Capacity {
        let counted =
            node.status.capacity.iter().filter(|(name, _)| keys::is_gpu_resource(name)).map(|(name, quantity)| {
                (Resource(name.into()), quantity::count(&quantity.0).ok_or_else(|| quantity.0.clone()))
            });
        let mut counts: BTreeMap<Resource, Result<u64, String>> = counted.collect();
        let (gpu, shared) = (Resource(keys::GPU_RESOURCE.into()), Resource(keys::GPU_SHARED_RESOURCE.into()));
        // The labels do not describe the GPUs behind a renamed resource, and so not the GPUs that remain behind the
        // other two names.
        let renamed = |resource: &Resource| keys::is_renamed_resource(&resource.0);
        if counts.keys().any(renamed) {
            for (resource, count) in counts.iter_mut().filter(|(resource, count)| renamed(resource) && **count == Ok(0))
            {
                *count = Ok(described(resource).map_or(0, Override::capacity));
            }
            counts.retain(|_, count| *count != Ok(0));
            return Capacity { counts };
        }
        let known = [&gpu, &shared].map(|resource| counts.get(resource).cloned());
        let back = match known {
            [Some(Ok(0)), None] => labelled_count(labels).map(|count| (gpu, count)),
            [None, Some(Ok(0))] => labelled_count(labels).map(|count| (shared, count)),
            // With renameByDefault the product label has no suffix `-SHARED`, and the labels do not say how many GPUs
            // are behind each of the two names. A product with the suffix rules renameByDefault out.
            [Some(Ok(0)), Some(Ok(0))] if is_shared_product(labels) => labelled_count(labels).map(|count| (gpu, count)),
            [_, Some(Ok(0))] if is_renamed(labels) => Some((shared, 0)),
            _ => None,
        };
        counts.retain(|_, count| *count != Ok(0));
        counts.extend(back.map(|(resource, count)| (resource, Ok(count))));
        Capacity { counts }
    }

    fn of_resource(&self, name: &str) -> u64 {
        match self.counts.get(&Resource(name.into())) {
            Some(Ok(count)) => *count,
            Some(Err(_)) | None => 0,
        }
    }
}

/// The capacity that the device plugin advertises while it runs, computed from the labels; `None` if they lack it.
fn labelled_count(labels: &BTreeMap<String, String>) -> Option<u64> {
    let gpus = number(labels, keys::GFD_COUNT)?;
    let replicas = if sharing(labels, false).is_shared() { number(labels, keys::GFD_REPLICAS)? } else { 1 };
    gpus.checked_mul(replicas)
}

/// Whether the labels describe shared GPUs under a resource name of their own (renameByDefault).
fn is_renamed(labels: &BTreeMap<String, String>) -> bool {
    sharing(labels, false).is_shared() && labels.contains_key(keys::GFD_PRODUCT) && !is_shared_product(labels)
}

fn is_shared_product(labels: &BTreeMap<String, String>) -> bool {
    labels.get(keys::GFD_PRODUCT).is_some_and(|product| product.ends_with(keys::SHARED_SUFFIX))
}

/// What a node advertises of vramguard: the amounts of its resource as text, the label, the condition, and the uid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advertised {
    /// `vramguard.dev/vram` in `status.capacity`.
    pub capacity: Option<String>,
    /// `vramguard.dev/vram` in `status.allocatable`.
    pub allocatable: Option<String>,
    /// The label `vramguard.dev/pod-max-mib`, in MiB.
    pub pod_max: Option<String>,
    /// The condition of type [`CONDITION`].
    pub condition: Option<Condition>,
    /// The uid of the node.
    pub uid: Option<String>,
}

/// Type of the condition that vramguard writes to nodes with guarded GPUs.
pub const CONDITION: &str = "VramAccounted";

/// Reads what a node advertises of vramguard.
pub fn advertised(node: &NodeObject) -> Advertised {
    let of = |quantities: &BTreeMap<String, Quantity>| {
        quantities.get(keys::VRAM_RESOURCE).map(|quantity| quantity.0.clone())
    };
    Advertised {
        capacity: of(&node.status.capacity),
        allocatable: of(&node.status.allocatable),
        pod_max: node.metadata.labels.as_ref().and_then(|labels| labels.get(keys::POD_MAX_MIB)).cloned(),
        condition: node.status.conditions.iter().find(|condition| condition.kind == CONDITION).cloned(),
        uid: node.metadata.uid.clone(),
    }
}

/// Whether an advertised quantity equals an amount, in any notation.
pub fn advertises(advertised: Option<&str>, amount: Option<Vram>) -> bool {
    match (advertised, amount) {
        (None, None) => true,
        (Some(text), Some(amount)) => quantity::bytes(text) == Some(quantity::Bytes::Exactly(amount)),
        (Some(_), None) | (None, Some(_)) => false,
    }
}

fn unreadable(resource: &Resource, value: &str) -> Pool {
    let why = Unknown::BadCapacity { resource: resource.clone(), value: value.to_owned() };
    Pool {
        resource: resource.clone(),
        sharing: Sharing::Unstated,
        contents: Err(why),
        allocation_policy: AllocationPolicy::Unverified,
        hard_limits: false,
        tells_processes: false,
    }
}

fn from_override(resource: &Resource, capacity: u64, described: &Override, labels: &BTreeMap<String, String>) -> Pool {
    let labelled = || labels.get(keys::GFD_SHARING).is_some_and(|label| label == keys::SHARING_MPS);
    let sharing = match described.sharing {
        _ if described.replicas.get() == 1 => Sharing::Exclusive,
        Sharing::UnknownMethod if labelled() => Sharing::Mps,
        said => said,
    };
    let gpus = u32::try_from(described.gpus.len()).unwrap_or(u32::MAX);
    let contents = if u64::from(gpus) * u64::from(described.replicas.get()) == capacity {
        Ok(contents(&described.gpus, described.replicas))
    } else {
        let replicas = described.replicas.get();
        Err(Unknown::Contradiction { gpus, replicas, resource: resource.clone(), capacity })
    };
    Pool {
        resource: resource.clone(),
        sharing,
        contents,
        allocation_policy: AllocationPolicy::Unverified,
        hard_limits: described.hard_limits,
        tells_processes: false,
    }
}

fn from_labels(resource: &Resource, count: u64, capacity: &Capacity, labels: &BTreeMap<String, String>) -> Pool {
    if resource.is_mig() {
        let contents = Err(Unknown::Unsupported { resource: resource.clone(), capacity: count });
        return Pool {
            resource: resource.clone(),
            sharing: Sharing::Unstated,
            contents,
            allocation_policy: AllocationPolicy::Unverified,
            hard_limits: false,
            tells_processes: false,
        };
    }
    if keys::is_renamed_resource(&resource.0) {
        let contents = Err(Unknown::Renamed { resource: resource.clone(), capacity: count });
        return Pool {
            resource: resource.clone(),
            sharing: Sharing::Unstated,
            contents,
            allocation_policy: AllocationPolicy::Unverified,
            hard_limits: false,
            tells_processes: false,
        };
    }
    // With renameByDefault the shared GPUs have a resource name of their own, and the other GPUs keep the plain name.
    let renamed = capacity.counts.contains_key(&Resource(keys::GPU_SHARED_RESOURCE.into()));
    let sharing = match (renamed, resource.0 == keys::GPU_SHARED_RESOURCE) {
        (true, false) => Sharing::Exclusive,
        (_, is_shared_name) => sharing(labels, is_shared_name),
    };
    let others = match (renamed, sharing.is_shared()) {
        (true, true) => Others { exclusive: capacity.of_resource(keys::GPU_RESOURCE), shared: 0 },
        (true, false) => Others { exclusive: 0, shared: capacity.of_resource(keys::GPU_SHARED_RESOURCE) },
        (false, _) => Others { exclusive: 0, shared: 0 },
    };
    let contents = labelled(resource, count, sharing, others, labels);
    Pool {
        resource: resource.clone(),
        sharing,
        contents,
        allocation_policy: AllocationPolicy::Unverified,
        hard_limits: false,
        tells_processes: false,
    }
}

/// Capacity of the node's other GPU resource, by whether that one is shared.
struct Others {
    exclusive: u64,
    shared: u64,
}

fn sharing(labels: &BTreeMap<String, String>, is_shared_name: bool) -> Sharing {
    let label = |key: &str| labels.get(key).map(String::as_str);
    match label(keys::GFD_SHARING) {
        Some(keys::SHARING_TIME_SLICING) => Sharing::TimeSlicing,
        Some(keys::SHARING_MPS) => Sharing::Mps,
        _ if is_shared_name => Sharing::UnknownMethod,
        Some(keys::SHARING_NONE) => Sharing::Exclusive,
        _ if is_shared_product(labels) => Sharing::UnknownMethod,
        _ => match label(keys::GFD_REPLICAS).and_then(|text| text.parse::<u32>().ok()) {
            Some(0 | 1) => Sharing::Exclusive,
            Some(_) => Sharing::UnknownMethod,
            None => Sharing::Unstated,
        },
    }
}

/// The GPUs behind a resource according to the labels, if the capacity agrees with them.
fn labelled(
    resource: &Resource,
    capacity: u64,
    sharing: Sharing,
    others: Others,
    labels: &BTreeMap<String, String>,
) -> Result<Contents, Unknown> {
    let needed = |label| needed(labels, label, capacity);
    let size = needed(keys::GFD_MEMORY)?;
    let gpus = needed(keys::GFD_COUNT)?;
    let needs_replicas = sharing.is_shared() || others.shared > 0;
    let replicas = if needs_replicas { needed(keys::GFD_REPLICAS)? } else { 1 };
    let contradiction = || Unknown::Contradiction {
        gpus: u32::try_from(gpus).unwrap_or(u32::MAX),
        replicas: u32::try_from(replicas).unwrap_or(u32::MAX),
        resource: resource.clone(),
        capacity,
    };
    let shared = if sharing.is_shared() { capacity } else { others.shared };
    let exclusive = if sharing.is_shared() { others.exclusive } else { capacity };
    // Each GPU that the label counts is behind one of the two names, and each shared GPU has all its replicas there.
    let adds_up = shared.is_multiple_of(replicas) && shared / replicas + exclusive == gpus;
    let size = Vram::checked_from_mib(size).filter(|size| *size <= MAX_GPU);
    let bad_size = || bad(labels, keys::GFD_MEMORY, capacity);
    let size = size.ok_or_else(bad_size)?;
    if !adds_up {
        return Err(contradiction());
    }
    let (count, replicas) = if sharing.is_shared() { (shared / replicas, replicas) } else { (exclusive, 1) };
    let replicas = u32::try_from(replicas).ok().and_then(NonZeroU32::new).ok_or_else(contradiction)?;
    // A machine has tens of GPUs. No memory is allocated for a label that claims thousands.
    let count = usize::try_from(count).ok().filter(|count| *count <= MAX_GPUS).ok_or_else(contradiction)?;
    Ok(contents(&vec![size; count], replicas))
}

const MAX_GPUS: usize = 1024;
/// The largest GPU that is accepted: 16 TiB. A larger amount is a mistake, and the arithmetic with `overcommit` could
/// overflow.
pub const MAX_GPU: Vram = Vram::from_mib(16 << 20);

fn contents(sizes: &[Vram], replicas: NonZeroU32) -> Contents {
    Contents { gpus: (0..).zip(sizes).map(|(index, size)| Gpu::of_size(index, *size)).collect(), replicas }
}

fn number(labels: &BTreeMap<String, String>, label: &str) -> Option<u64> {
    labels.get(label)?.parse().ok().filter(|number| *number > 0)
}

fn needed(labels: &BTreeMap<String, String>, label: &'static str, capacity: u64) -> Result<u64, Unknown> {
    number(labels, label).ok_or_else(|| bad(labels, label, capacity))
}

/// Why a label gives no usable number: it is missing, or its value is not a positive number.
fn bad(labels: &BTreeMap<String, String>, label: &'static str, capacity: u64) -> Unknown {
    match labels.get(label) {
        None => Unknown::Unlabelled { label, capacity },
        Some(value) => Unknown::BadLabel { label, value: value.clone(), capacity },
    }
}

fn taints(node: &NodeObject) -> Vec<Taint> {
    let kept = node.spec.taints.iter().filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"));
    let mut taints: Vec<Taint> = kept
        .map(|taint| Taint {
            key: taint.key.clone(),
            value: taint.value.clone().unwrap_or_default(),
            effect: taint.effect.clone(),
        })
        .collect();
    if node.spec.unschedulable == Some(true) && !taints.iter().any(|taint| taint.key == UNSCHEDULABLE) {
        taints.push(Taint { key: UNSCHEDULABLE.into(), value: String::new(), effect: "NoSchedule".into() });
    }
    taints
}

#[cfg(test)]
mod tests;
