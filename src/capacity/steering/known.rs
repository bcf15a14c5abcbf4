//! From the view of a node to what a decision needs: the room of each GPU, and the reserved GPU of each pod.

use std::collections::BTreeMap;

use super::{GpuContainer, GpuRoom, KnownNode, KnownPod, Phase};
use crate::capacity::cluster::{Cluster, NodeView};
use crate::capacity::gpu::{Accounting, GpuId, Resource, Rules};
use crate::capacity::name::PodUid;
use crate::capacity::node::holder::Holder;
use crate::capacity::node::reservation::State;
use crate::capacity::node::usage::GpuUsage;
use crate::capacity::pod::PodName;
use crate::capacity::vram::Vram;

/// A pod of the node, as its object tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodOnNode<'p> {
    /// The uid of the pod.
    pub uid: &'p PodUid,
    /// Namespace and name.
    pub name: &'p PodName,
    /// Its GPU containers in the order in which the kubelet allocates.
    pub containers: &'p [GpuContainer],
    /// How far the pod is.
    pub phase: Phase,
    /// Whether the API server no longer has the pod.
    pub deleted: bool,
    /// What it holds; `None` if it requests neither a GPU nor VRAM.
    pub holder: Option<&'p Holder>,
}

impl KnownNode {
    /// The pools of a node that share GPUs and are guarded. `None` if the cluster does not know the node.
    pub fn pools(cluster: &Cluster, node: &str) -> Option<BTreeMap<Resource, Vec<GpuRoom>>> {
        let view = cluster.node(node)?;
        let shared = view.usage.pools.iter();
        let shared = shared.filter(|pool| cluster.guards(&pool.resource) && pool.accounting != Accounting::Exclusive);
        let rooms = |resource: &Resource| {
            let pool = view.usage.pools.iter().find(|pool| pool.resource == *resource);
            let usages = pool.into_iter().flat_map(|pool| &pool.gpus);
            usages.filter_map(|usage| room(&view, resource, usage)).collect()
        };
        Some(shared.map(|pool| (pool.resource.clone(), rooms(&pool.resource))).collect())
    }

    /// A pod with what the ledger of its node tells.
    pub fn pod(view: Option<&NodeView<'_>>, rules: &Rules, pod: &PodOnNode<'_>) -> KnownPod {
        KnownPod {
            uid: pod.uid.clone(),
            name: pod.name.clone(),
            containers: pod.containers.to_vec(),
            phase: pod.phase,
            deleted: pod.deleted,
            demand: pod.holder.and_then(|holder| demand(view, rules, pod.uid, holder)),
            reserved: pod.holder.and_then(|_| reserved(view, pod.uid)),
        }
    }
}

/// The room of one GPU. `None` as long as its UUID is not known: the kubelet's devices have UUIDs.
fn room(view: &NodeView<'_>, resource: &Resource, usage: &GpuUsage) -> Option<GpuRoom> {
    let GpuId::Uuid(uuid) = &usage.id else { return None };
    let pool = view.facts.pools.iter().find(|pool| pool.resource == *resource)?;
    let gpu = pool.contents.as_ref().ok()?.gpus.iter().find(|gpu| gpu.id == usage.id)?;
    Some(GpuRoom { uuid: uuid.clone(), index: gpu.index, room: usage.allocatable.minus(usage.held) })
}

/// What the pod counts with on its node, which includes what was seen of a pod that declares nothing.
fn demand(view: Option<&NodeView<'_>>, rules: &Rules, uid: &PodUid, holder: &Holder) -> Option<Vram> {
    let pools = view.into_iter().flat_map(|view| &view.facts.pools);
    let slot = pools.into_iter().find(|pool| holder.takes(&pool.resource).is_some()).and_then(|pool| pool.slot(rules));
    match view {
        Some(view) => view.ledger.amount(uid, holder, slot, rules),
        None => holder.amount(slot, rules),
    }
}

/// The GPU that counts for a pod: the one that the agent reported, else the one that the binding guard reserved.
///
/// The pod's annotation does not decide, nor a reservation that was adopted from it. Whoever creates a pod in a namespace
/// that is not guarded may write the annotation, and would choose the GPU of others.
fn reserved(view: Option<&NodeView<'_>>, uid: &PodUid) -> Option<GpuId> {
    let content = view?.ledger.content()?;
    let reported = || content.inventory.as_ref()?.assigned.get(uid)?.first().map(|(_, gpu)| gpu.clone());
    let reservation = content.reservations.of(uid).filter(|reservation| reservation.state != State::Adopted);
    reported().or_else(|| reservation?.gpu.clone())
}

#[cfg(test)]
mod tests;
