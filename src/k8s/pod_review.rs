//! The review of a pod, from its object to the answer. Owns the order of the steps: translate, assess and patch for
//! `/mutate/pods`; translate and judge for `/validate/pods`. The core makes every decision. It knows no HTTP and no
//! lock.
//!
//! Handlers and simulation share these two functions. A handler's cluster is behind a lock, and translation and patch
//! do not need it. So both functions get the cluster from a closure and drop it right after the decision.

use std::ops::Deref;

use json_patch::Patch;

use super::object::PodObject;
use super::review::Answer;
use super::{patch, pod};
use crate::capacity::admission::{self, Changes, Judgement};
use crate::capacity::cluster::Cluster;
use crate::capacity::pod::{Pod, PodName};
use crate::capacity::policy::{Mode, Policy};

/// A pod that is being created.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The pod in its current state.
    pub object: &'a PodObject,
    /// The namespace of the request; the object may lack its own.
    pub namespace: Option<&'a str>,
    /// User name of the pod's creator.
    pub user: &'a str,
}

impl Subject<'_> {
    fn translate(&self) -> Pod {
        pod::translate(self.object, self.namespace, Some(self.user))
    }
}

/// The result of `/mutate/pods` for a pod.
#[derive(Clone, Debug)]
pub struct Mutation {
    /// The decision, with its advice.
    pub changes: Changes,
    /// The changes as JSON Patch; empty if there are none.
    pub patch: Patch,
}

impl Mutation {
    /// The answer to the review with this uid.
    pub fn answer(&self, uid: String) -> Answer {
        Answer::mutated(uid, &self.patch, &self.changes)
    }
}

/// Decides what `/mutate/pods` changes.
pub fn mutate<C: Deref<Target = Cluster>>(
    subject: Subject<'_>,
    policy: &Policy,
    cluster: impl FnOnce() -> C,
) -> Mutation {
    let pod = subject.translate();
    let cluster = cluster();
    let changes = admission::assess(&pod, policy, &cluster).changes();
    drop(cluster);
    let patch = patch::operations(subject.object, &changes);
    Mutation { changes, patch }
}

/// The result of `/validate/pods` for a pod.
#[derive(Clone, Debug)]
pub struct Validation {
    /// Name of the pod.
    pub pod: PodName,
    /// The violations of the pod, under the mode of its namespace.
    pub judgement: Judgement,
}

impl Validation {
    /// The answer to the review with this uid.
    pub fn answer(self, uid: String) -> Answer {
        Answer::judged(uid, &self.pod, self.judgement)
    }
}

/// Decides what `/validate/pods` answers; `None` under mode Off, which ignores pods. `earlier` are the policies that
/// were in force shortly before, the latest first.
pub fn validate<C: Deref<Target = Cluster>>(
    subject: Subject<'_>,
    policy: &Policy,
    earlier: &[&Policy],
    cluster: impl FnOnce() -> C,
) -> Option<Validation> {
    if policy.mode == Mode::Off {
        return None;
    }
    let pod = subject.translate();
    let cluster = cluster();
    let judgement = admission::judge(&pod, policy, earlier, &cluster);
    drop(cluster);
    Some(Validation { pod: pod.name, judgement })
}

#[cfg(test)]
mod tests;
