//! What a node agent saw of its node: the GPUs themselves, how the device plugin hands out their replicas, and the GPU that
//! each container got. Owns how a report replaces what labels say; who holds how much stays with [`super::ledger`].
//!
//! A report without GPUs says nothing about them: missing is not zero.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use super::gpu::{Contents, Gpu, GpuId, Handout, Pool, Resource, Sharing, Unknown};
use super::ledger::PodUid;

/// What the agent of one node says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How replicas are handed out there.
    pub handout: Handout,
    /// The GPUs behind each resource.
    pub gpus: BTreeMap<Resource, Vec<Reported>>,
    /// Which GPU the kubelet gave to a container of a pod.
    pub given: BTreeMap<PodUid, BTreeMap<String, GpuId>>,
}

/// A GPU as the agent sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    /// Identity, size and what of it is gone before the first pod.
    pub gpu: Gpu,
    /// Replicas that the device plugin makes of it.
    pub replicas: NonZeroU32,
}

impl Report {
    /// The pools of a node with what is reported in place of what labels say. A report that contradicts the node's own
    /// capacity makes the pool unknown: one of the two is out of date, and neither may be guessed.
    pub fn applied_to(&self, pools: &[Pool]) -> Vec<Pool> {
        let replaced = |pool: &Pool| match self.gpus.get(&pool.resource) {
            Some(gpus) => self.replace(pool, gpus),
            None => Pool { handout: self.handout, ..pool.clone() },
        };
        pools.iter().map(replaced).collect()
    }

    fn replace(&self, pool: &Pool, reported: &[Reported]) -> Pool {
        let resource = pool.resource.clone();
        let contents = match reported.first() {
            None => Err(Unknown::ReportedNone { resource }),
            Some(first) if reported.iter().any(|other| other.replicas != first.replicas) => {
                Err(Unknown::UnevenReplicas { resource })
            }
            Some(first) => {
                let gpus = reported.iter().map(|reported| reported.gpu.clone()).collect();
                agreed(pool, Contents { gpus, replicas: first.replicas })
            }
        };
        let shared = contents.as_ref().is_ok_and(|contents| contents.replicas.get() > 1);
        let sharing = match pool.sharing {
            said @ (Sharing::TimeSlicing | Sharing::Mps | Sharing::SomeWay) => said,
            Sharing::Exclusive | Sharing::Unstated if shared => Sharing::SomeWay,
            said @ (Sharing::Exclusive | Sharing::Unstated) => said,
        };
        Pool { resource: pool.resource.clone(), sharing, contents, handout: self.handout }
    }
}

/// The reported contents, if the node has as many replicas as they make.
fn agreed(pool: &Pool, reported: Contents) -> Result<Contents, Unknown> {
    let counted = match &pool.contents {
        Ok(contents) => Some(replicas_in(contents)),
        Err(Unknown::Contradiction { capacity, .. }) => Some(*capacity),
        // Nothing to compare with: the labels say nothing of use, and so the agent is asked.
        Err(_) => None,
    };
    if counted.is_none_or(|counted| counted == replicas_in(&reported)) {
        return Ok(reported);
    }
    Err(Unknown::ReportContradicts {
        gpus: reported.gpus.len(),
        replicas: reported.replicas.get(),
        resource: pool.resource.clone(),
        capacity: counted.unwrap_or_default(),
    })
}

fn replicas_in(contents: &Contents) -> u64 {
    u64::from(contents.replicas.get()).saturating_mul(contents.gpus.len() as u64)
}
