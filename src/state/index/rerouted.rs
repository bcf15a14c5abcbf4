//! Pods that have just been bound outside of their own pool. Owns how many are kept until somebody takes them.

use std::collections::VecDeque;

use super::State;
use super::waiting::{self, PlacementKept, Waiting, WaitingPods};
use crate::capacity::name::PodUid;
use crate::k8s::object::PodObject;
use crate::k8s::pod::{self, Stage};

/// Pods that are kept; a further pod displaces the oldest one. Only the leader takes them, so others keep some for long.
const MAX_KEPT: usize = 256;

/// A pod that was bound outside of its own pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rerouted {
    /// Its uid.
    pub uid: PodUid,
    /// Its node.
    pub node: String,
    /// What it requested, and where.
    pub pod: Waiting,
}

impl State {
    /// Notes a pod if it has been bound since it was last seen, outside of its own pool.
    pub(super) fn note_rerouted(&mut self, uid: &PodUid, object: &PodObject, stage: &Stage) {
        let Stage::Holds(node, _) = stage else { return };
        let was_unbound = self.unbound.get(uid).is_some() || self.waiting.contains(uid);
        if !was_unbound || !pod::is_rerouted(object) {
            return;
        }
        let Some(pod) = waiting::requesting(object) else { return };
        let Some(profile) = self.cluster.node(node).map(|node| &node.facts.profile) else { return };
        if pod.placement.own_pool.as_ref().is_none_or(|own| own.includes(profile)) {
            return;
        }
        // The bounds on what is kept of a waiting pod hold here too.
        let mut bounded = WaitingPods::default();
        bounded.insert(uid.clone(), pod);
        let Some(pod) = bounded.take(uid).filter(|pod| pod.landing == PlacementKept::Yes) else { return };
        if self.rerouted.len() == MAX_KEPT {
            self.rerouted.pop_front();
        }
        self.rerouted.push_back(Rerouted { uid: uid.clone(), node: node.clone(), pod });
    }

    /// The pods that are kept, which are then forgotten.
    pub(super) fn take_rerouted(&mut self) -> VecDeque<Rerouted> {
        std::mem::take(&mut self.rerouted)
    }
}
