//! Pods that exceed the limits on what is read of a pod. Owns their reporting: one log line for each, and their number
//! for a metric. What was read of such a pod counts like that of any other pod.

use std::collections::BTreeSet;

use parking_lot::Mutex;

use crate::capacity::name::PodUid;
use crate::k8s::object::PodObject;
use crate::k8s::pod::Stage;

/// Pods that are remembered. The bound exists because a tenant may create any number of them.
const MAX_REMEMBERED: usize = 1024;

/// Pods that may hold a GPU and were read only in part.
#[derive(Debug, Default)]
pub(super) struct Oversized(Mutex<BTreeSet<PodUid>>);

impl Oversized {
    /// Notes a pod that a list or watch delivered, and logs it the first time that it is oversized.
    pub(super) fn note(&self, uid: &PodUid, object: &PodObject, stage: &Stage) {
        let concerns = |hides_gpus: bool| hides_gpus || *stage != Stage::WithoutGpu;
        let excess = object.excess.as_ref().filter(|excess| *stage != Stage::Ended && concerns(excess.hides_gpus));
        let mut known = self.0.lock();
        let Some(excess) = excess else {
            known.remove(uid);
            return;
        };
        if known.len() < MAX_REMEMBERED && known.insert(uid.clone()) {
            let metadata = &object.metadata;
            // Logged as debug text: a tenant chooses the name, which must not be able to end the log line.
            tracing::warn!(
                namespace = ?metadata.namespace, pod = ?metadata.name, node = ?object.spec.node_name,
                field = excess.field, count = excess.count, read = excess.most,
                "a pod is larger than what is read of it; it counts by what was read"
            );
        }
    }

    /// Forgets a deleted pod.
    pub(super) fn forget(&self, uid: &PodUid) {
        self.0.lock().remove(uid);
    }

    /// Keeps only the pods that `listed` accepts.
    pub(super) fn keep(&self, listed: impl Fn(&PodUid) -> bool) {
        self.0.lock().retain(listed);
    }

    /// Number of oversized pods, at most [`MAX_REMEMBERED`].
    pub(super) fn count(&self) -> usize {
        self.0.lock().len()
    }
}
