//! Assumptions: the same cluster with another configuration.

use std::num::NonZeroU32;

use super::scene::Scene;
use crate::capacity::cluster::{Cluster, NodeFacts};
use crate::capacity::gpu::{Accounting, AllocationPolicy, Contents, Gpu, GpuId, Pool};
use crate::capacity::name::PodUid;
use crate::capacity::node::holder::{Holder, Part};
use crate::capacity::node::ledger::{LedgerContent, NodeLedger};
use crate::capacity::policy::Mode;
use crate::capacity::vram::Vram;

/// What an audit assumes to differ from the cluster as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assumption {
    /// Every namespace that is not exempt is in this mode.
    Mode(Mode),
    /// The device plugin makes this number of replicas of each shared GPU.
    Replicas(NonZeroU32),
    /// A pod may get any GPU that has room, because vramguard chooses it. Each shared GPU then counts by itself.
    Steered,
}

/// The cluster of a scene under assumptions: other pools, and the same pods.
pub(super) fn cluster(scene: &Scene, assumptions: &[Assumption]) -> Cluster {
    let old = &scene.cluster;
    let mut cluster = Cluster::new(*old.rules(), old.guarded());
    cluster.defer_ranking();
    cluster.copy_agent_pods(old);
    let steered = assumptions.contains(&Assumption::Steered);
    let replicas = assumptions.iter().rev().find_map(|assumption| match assumption {
        Assumption::Replicas(replicas) => Some(*replicas),
        Assumption::Mode(_) | Assumption::Steered => None,
    });
    for name in old.node_names() {
        let Some(seen) = old.node(name) else { continue };
        let mut facts = seen.facts.clone();
        for pool in &mut facts.pools {
            if let (Some(replicas), Ok(contents), true) = (replicas, &mut pool.contents, pool.sharing.is_shared()) {
                contents.replicas = replicas;
            }
        }
        if steered {
            split(name, &facts, seen.ledger, &mut cluster);
        } else {
            // The pools have the agent's report already. Reported again, it would contradict other replicas.
            let content = seen.ledger.content().cloned();
            let content = content.map(|content| match replicas {
                Some(_) => LedgerContent { inventory: None, ..content },
                None => content,
            });
            cluster.apply_ledger(name, content);
            cluster.apply_node(name, facts);
            for (uid, holder) in seen.ledger.holders().iter() {
                cluster.apply_pod(uid, name, holder.clone());
            }
        }
    }
    cluster.rank_all();
    cluster
}

/// Adds a node whose shared GPUs count one by one: each GPU becomes a node with one GPU, named `node/index`. Its pods
/// go to the GPU with the least free that can take them, the largest pod first.
///
/// GPUs that share an index, such as one that was lost and the one that has its index now, are named by their UUIDs.
fn split(name: &str, facts: &NodeFacts, ledger: &NodeLedger, cluster: &mut Cluster) {
    let rules = *cluster.rules();
    let divides =
        |pool: &Pool| matches!(pool.accounting(), Accounting::Slot | Accounting::Confirmed | Accounting::Steered);
    let (several, kept): (Vec<&Pool>, Vec<&Pool>) = facts.pools.iter().partition(|pool| divides(pool));
    let rest = NodeFacts { pools: kept.into_iter().cloned().collect(), ..facts.clone() };
    let mut places: Vec<(String, &Pool, Vram)> = Vec::new();
    for pool in &several {
        let Ok(contents) = &pool.contents else { continue };
        for gpu in &contents.gpus {
            let one = Pool {
                contents: Ok(Contents { gpus: vec![renumbered(gpu)], replicas: contents.replicas }),
                allocation_policy: AllocationPolicy::Unverified,
                ..(*pool).clone()
            };
            let is_unique = contents.gpus.iter().filter(|other| other.index == gpu.index).count() == 1;
            let gpu_name = if is_unique { gpu.index.to_string() } else { gpu.id.to_string() };
            // Each pool counts its GPUs from zero.
            let place = match several.len() {
                1 => format!("{name}/{gpu_name}"),
                _ => format!("{name}/{}/{gpu_name}", pool.resource),
            };
            cluster.apply_node(&place, NodeFacts { pools: vec![one], ..facts.clone() });
            places.push((place, pool, gpu.allocatable(&rules).free()));
        }
    }
    if !rest.pools.is_empty() || several.is_empty() {
        cluster.apply_node(name, rest);
    }
    let mut sized: Vec<(Vram, &PodUid, &Holder)> = Vec::new();
    for (uid, holder) in ledger.counted() {
        match several.iter().find(|pool| holder.takes(&pool.resource).is_some()) {
            Some(pool) => {
                let amount = ledger.amount(uid, holder, pool.slot(&rules), &rules);
                sized.push((amount.unwrap_or(Vram::MAX), uid, holder));
            }
            None => cluster.apply_pod(uid, name, holder.clone()),
        }
    }
    sized.sort_by(|one, other| (other.0, one.1).cmp(&(one.0, other.1)));
    for (amount, uid, holder) in sized {
        let of_pool = |(_, pool, _): &(String, &Pool, Vram)| holder.takes(&pool.resource).is_some();
        let fitting = places.iter_mut().filter(|place| of_pool(place) && place.2 >= amount).min_by_key(|place| place.2);
        let chosen = match fitting {
            Some(place) => Some(place),
            None => places.iter_mut().filter(|place| of_pool(place)).max_by_key(|place| place.2),
        };
        let Some((place, _, free)) = chosen else { continue };
        *free = free.minus(amount).free();
        cluster.apply_pod(uid, place, unplaced(holder));
    }
}

fn renumbered(gpu: &Gpu) -> Gpu {
    let id = match &gpu.id {
        GpuId::Uuid(uuid) => GpuId::Uuid(uuid.clone()),
        GpuId::Index(_) => GpuId::Index(0),
    };
    Gpu { id, index: 0.into(), ..gpu.clone() }
}

/// The holder without its GPU.
fn unplaced(holder: &Holder) -> Holder {
    let without = |part: &Part| Part { gpu: None, ..part.clone() };
    Holder { parts: holder.parts.iter().map(without).collect(), ..holder.clone() }
}
