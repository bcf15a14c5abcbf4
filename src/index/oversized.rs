//! Pods that are larger than what is read of them, as the watch saw them. Owns that they are said: in the log once each, and as
//! a number. What was read of such a pod is counted like any other's.

use std::collections::BTreeSet;

use parking_lot::Mutex;

use crate::capacity::ledger::PodUid;
use crate::k8s::object::PodObject;
use crate::k8s::pod::Stage;

/// Pods that are remembered; a tenant may make any number of them.
const MAX_REMEMBERED: usize = 1024;

/// Pods that may hold a GPU and were not read whole.
#[derive(Debug, Default)]
pub struct Oversized(Mutex<BTreeSet<PodUid>>);

impl Oversized {
    /// A pod was seen.
    pub fn note(&self, uid: &PodUid, object: &PodObject, stage: &Stage) {
        let concerns = |hides_gpus: bool| hides_gpus || *stage != Stage::Unconcerned;
        let excess = object.excess.as_ref().filter(|excess| *stage != Stage::Ended && concerns(excess.hides_gpus));
        let mut known = self.0.lock();
        let Some(excess) = excess else {
            known.remove(uid);
            return;
        };
        if known.len() < MAX_REMEMBERED && known.insert(uid.clone()) {
            let metadata = &object.metadata;
            // As debug text: a name is anyone's, and may not end the line.
            tracing::warn!(
                namespace = ?metadata.namespace, pod = ?metadata.name, node = ?object.spec.node_name,
                field = excess.field, count = excess.count, read = excess.most,
                "a pod is larger than what is read of it; it counts by what was read"
            );
        }
    }

    /// A pod is gone.
    pub fn forget(&self, uid: &PodUid) {
        self.0.lock().remove(uid);
    }

    /// All others are gone.
    pub fn keep(&self, listed: impl Fn(&PodUid) -> bool) {
        self.0.lock().retain(listed);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.lock().len()
    }
}
