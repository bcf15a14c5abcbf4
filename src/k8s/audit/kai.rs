//! What KAI Scheduler writes about shared GPUs. Owns how a reservation pod and the pods that share its GPU become
//! holders.
//!
//! For each shared GPU, KAI runs a reservation pod that requests the whole GPU, in namespace `kai-resource-reservation`
//! (`runai-reservation` before v0.6). The pods that share the GPU have an annotation with their amount and request no GPU.
//! All of them have the label `runai-gpu-group` with one value, and the reservation pod has the UUID of the GPU in the
//! annotation `run.ai/reserve_for_gpu_index` (NVIDIA/KAI-Scheduler `pkg/binder/binding/resourcereservation/`,
//! `pkg/resourcereservation/patcher/pod_patcher.go`, `pkg/common/constants/constants.go`).
//!
//! A pod with shares of several GPUs has a label for each group instead, and is left out: its reservation pods then
//! count as whole GPUs.
//!
//! Anyone may write label and annotation of a share, so a group counts only with a reservation pod: tenants create none
//! in those namespaces.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use serde_json::{Value, json};

use super::{annotation, gpu, kept, label};
use crate::capacity::cluster::Cluster;
use crate::capacity::gpu::{AllocationPolicy, Gpu, GpuId, Pool};
use crate::capacity::name::{Name, PodUid};
use crate::capacity::node::holder::{Amount, Holder, Part};
use crate::capacity::node::inventory::{Inventory, InventoryGpu};
use crate::capacity::pod::demand::Role;
use crate::capacity::vram::Vram;
use crate::k8s::foreign::{self, Assumptions};
use crate::k8s::object::PodObject;
use crate::k8s::pod;
use crate::keys;

/// What a reservation pod says.
#[derive(Debug)]
pub(super) struct Reservation {
    group: Name,
    /// UUID of its GPU; `None` until the pod has found it out.
    uuid: Option<Name>,
}

/// The groups that were read, by node.
#[derive(Debug, Default)]
pub(super) struct Groups(BTreeMap<Name, BTreeMap<Name, Group>>);

#[derive(Debug, Default)]
struct Group {
    reservations: Vec<(PodUid, Holder)>,
    uuid: Option<Name>,
    pods: Vec<Fraction>,
}

/// A pod with a share of a GPU.
#[derive(Debug)]
struct Fraction {
    uid: PodUid,
    /// Without GPU and amount, which the size of the GPU decides.
    holder: Holder,
    container: Name,
    /// The annotation and its value.
    declared: (&'static str, String),
}

/// Reads a reservation pod; `None` for any other pod.
pub(super) fn reservation(pod: &Value) -> Option<Reservation> {
    let namespace = pod.get("metadata")?.get("namespace")?.as_str()?;
    let group = label(pod, keys::KAI_GROUP)?.into();
    let uuid = annotation(pod, keys::KAI_RESERVED_GPU)
        .filter(|uuid| !uuid.is_empty() && kept::may_be_name(uuid))
        .map(Name::from);
    keys::KAI_RESERVATIONS.contains(&namespace).then_some(Reservation { group, uuid })
}

impl Groups {
    fn group(&mut self, node: &Name, group: &Name) -> &mut Group {
        self.0.entry(node.clone()).or_default().entry(group.clone()).or_default()
    }

    /// Adds a reservation pod on a node.
    pub(super) fn reserve(&mut self, reservation: Reservation, uid: &PodUid, node: &Name, holder: Holder) {
        let group = self.group(node, &reservation.group);
        group.reservations.push((uid.clone(), holder));
        group.uuid = group.uuid.take().or(reservation.uuid);
    }

    /// Adds a pod on a node, if it has a share of one GPU.
    pub(super) fn fraction(&mut self, uid: &PodUid, node: &Name, object: &PodObject, value: &Value) {
        let Some(group) = label(value, keys::KAI_GROUP) else { return };
        if reservation(value).is_some() || pod::would_hold(object).is_some() {
            return;
        }
        let declared = [keys::KAI_GPU_MEMORY, keys::KAI_GPU_FRACTION];
        let declared = declared.into_iter().find_map(|key| Some((key, kept::cut(annotation(value, key)?))));
        let container = annotation(value, keys::KAI_CONTAINER).filter(|name| kept::may_be_name(name));
        let container = container.or_else(|| object.spec.containers.first().map(|container| container.name.as_str()));
        let (Some(declared), Some(container)) = (declared, container) else { return };
        let fraction = Fraction {
            uid: uid.clone(),
            holder: pod::holder_without_gpu(object),
            container: container.into(),
            declared,
        };
        self.group(node, &group.into()).pods.push(fraction);
    }

    /// Adds the holders of a node to the cluster. Returns its GPUs with the UUIDs that are known; `None` for a node
    /// without groups.
    pub(super) fn settle(&mut self, node: &str, pools: &[Pool], cluster: &mut Cluster) -> Option<Inventory> {
        let groups = reserved(self.0.remove(node)?);
        let contents = pools.iter().find(|pool| pool.resource == gpu()).and_then(|pool| pool.contents.as_ref().ok());
        // KAI shares whole GPUs of the device plugin.
        let gpus = contents.filter(|contents| contents.replicas == NonZeroU32::MIN).map(|contents| &contents.gpus);
        let size = gpus.and_then(|gpus| Some(gpus.first()?.total));
        let mut inventory = Inventory { allocation_policy: AllocationPolicy::Unverified, ..Inventory::default() };
        let mut uuids: Vec<Name> = Vec::new();
        for group in groups {
            let gpu = group.uuid.clone().map(GpuId::Uuid);
            let held = group.settle(node, size, cluster);
            if let Some(gpu @ GpuId::Uuid(uuid)) = &gpu {
                uuids.push(uuid.clone());
                inventory
                    .assigned
                    .extend(held.into_iter().map(|(uid, container)| (uid, vec![(container, gpu.clone())].into())));
            }
        }
        let known = gpus.filter(|gpus| !uuids.is_empty() && uuids.len() <= gpus.len())?;
        // Which index the named GPUs have is not known; the others are counted behind them.
        let mut uuids = uuids.into_iter().map(GpuId::Uuid);
        let named = known.iter().map(|gpu| Gpu { id: uuids.next().unwrap_or_else(|| gpu.id.clone()), ..gpu.clone() });
        let report = named.map(|gpu| InventoryGpu { gpu, replicas: NonZeroU32::MIN }).collect();
        inventory.gpus.insert(gpu(), report);
        Some(inventory)
    }

    /// Adds the holders of nodes that were not seen.
    pub(super) fn settle_rest(&mut self, cluster: &mut Cluster) {
        for (node, groups) in std::mem::take(&mut self.0) {
            reserved(groups).for_each(|group| _ = group.settle(&node, None, cluster));
        }
    }
}

/// The groups that KAI made.
fn reserved(groups: BTreeMap<Name, Group>) -> impl Iterator<Item = Group> {
    groups.into_values().filter(|group| !group.reservations.is_empty())
}

impl Group {
    /// Adds the holders of one GPU. Returns them with the container that has the GPU.
    ///
    /// The first pod takes the GPU, and the others share it. Without such pods, or if their amounts are not known, the
    /// reservation pod holds the whole GPU.
    fn settle(self, node: &str, size: Option<Vram>, cluster: &mut Cluster) -> Vec<(PodUid, Name)> {
        let amounts: Option<Vec<Vram>> = self.pods.iter().map(|pod| pod.amount(size)).collect();
        let Some(amounts) = amounts.filter(|amounts| !amounts.is_empty()) else {
            let mut held = Vec::new();
            for (uid, holder) in self.reservations {
                held.extend(holder.parts.first().map(|part| (uid.clone(), part.container.clone())));
                cluster.apply_pod(&uid, node, holder);
            }
            return held;
        };
        let mut held = Vec::new();
        for (number, (pod, amount)) in self.pods.into_iter().zip(amounts).enumerate() {
            let part = Part {
                container: pod.container.clone(),
                role: Role::App,
                amount: Amount::Counted(amount),
                gpu: self.uuid.clone().map(GpuId::Uuid),
            };
            let gpus = vec![(gpu(), u64::from(number == 0))].into();
            cluster.apply_pod(&pod.uid, node, Holder { parts: vec![part].into(), gpus, ..pod.holder });
            held.push((pod.uid, pod.container));
        }
        held
    }
}

impl Fraction {
    /// Its amount on a GPU of this size.
    fn amount(&self, gpu: Option<Vram>) -> Option<Vram> {
        let (key, text) = &self.declared;
        let template = json!({
            "metadata": { "annotations": { *key: text } },
            "spec": { "containers": [{ "name": &*self.container }] },
        });
        let declared = foreign::of_pod_with(&template, &Assumptions { gpu, ..Assumptions::default() });
        declared.into_iter().next()?.amount.ok()
    }
}
