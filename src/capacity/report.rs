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

/// The reported contents, if the node has as many replicas as they make. Labels may be missing or useless, which is why an
/// agent is asked; the capacity is there all the same.
fn agreed(pool: &Pool, reported: Contents) -> Result<Contents, Unknown> {
    let counted = match &pool.contents {
        Ok(contents) => Some(replicas_in(contents)),
        Err(unknown) => unknown.capacity(),
    };
    match counted.filter(|counted| *counted != replicas_in(&reported)) {
        None => Ok(reported),
        Some(capacity) => Err(Unknown::ReportContradicts {
            gpus: reported.gpus.len(),
            replicas: reported.replicas.get(),
            resource: pool.resource.clone(),
            capacity,
        }),
    }
}

fn replicas_in(contents: &Contents) -> u64 {
    u64::from(contents.replicas.get()).saturating_mul(contents.gpus.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::gpu::Accounting;
    use crate::capacity::vram::Vram;

    fn report(gpus: u32, replicas: u32) -> Report {
        let replicas = NonZeroU32::new(replicas).unwrap();
        let reported = |index| Reported { gpu: Gpu::of_size(index, Vram::from_mib(24_576)), replicas };
        let gpus = BTreeMap::from([(Resource("nvidia.com/gpu".into()), (0..gpus).map(reported).collect())]);
        Report { gpus, ..Report::default() }
    }

    fn pool(why: Unknown) -> Pool {
        Pool {
            resource: Resource("nvidia.com/gpu".into()),
            sharing: Sharing::Unstated,
            contents: Err(why),
            handout: Handout::Unverified,
        }
    }

    #[test]
    fn a_report_that_contradicts_the_capacity_is_not_believed_where_labels_say_nothing() {
        let (resource, capacity) = (Resource("nvidia.com/gpu".into()), 8);
        for why in [
            Unknown::Unlabelled { label: "nvidia.com/gpu.memory", capacity },
            Unknown::BadLabel { label: "nvidia.com/gpu.memory", value: "much".into(), capacity },
            Unknown::Contradiction { gpus: 3, replicas: 4, resource: resource.clone(), capacity },
            Unknown::Unsupported { resource: resource.clone(), capacity },
        ] {
            let applied = |report: Report| report.applied_to(&[pool(why.clone())]).remove(0);
            assert_eq!(applied(report(2, 4)).accounting(), Accounting::Slot, "{why}");
            let contradicts = Unknown::ReportContradicts { gpus: 1, replicas: 4, resource: resource.clone(), capacity };
            assert_eq!(applied(report(1, 4)).contents, Err(contradicts), "{why}");
        }
        // With nothing to compare it with, the agent's word is all there is.
        let unreadable = Unknown::BadCapacity { resource, value: "many".into() };
        assert_eq!(report(1, 4).applied_to(&[pool(unreadable)])[0].accounting(), Accounting::Exact);
    }
}
