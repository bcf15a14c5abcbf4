//! Tells pods that were bound outside of their own pool why. Owns when; `capacity::verdict` owns the sentence.

use super::{Controller, events};
use crate::capacity::verdict::{self, Reason};
use crate::state::index::{Rerouted, Waiting};

/// Records an event on each pod that was bound outside of its own pool while this replica leads.
pub(super) async fn run(controller: Controller) {
    let recorder = events::Recorder::new(&controller);
    let mut changed = controller.index.subscribe();
    // Another replica led when these were bound.
    controller.index.take_rerouted();
    while changed.changed().await.is_ok() {
        for Rerouted { uid, node, pod } in controller.index.take_rerouted() {
            let note = note(&controller, &node, &pod);
            controller.metrics.rerouted.inc();
            recorder.tell_pod(&uid, &pod.name, Reason::Rerouted, note, "Scheduling").await;
        }
    }
}

fn note(controller: &Controller, node: &str, pod: &Waiting) -> String {
    let state = controller.index.read();
    let own = pod.placement.own_pool.as_ref();
    let shortfall = own.and_then(|own| {
        let placement = pod.placement.within(own);
        state.cluster.shortfall(&pod.resource, pod.demand, &placement)
    });
    let own = own.map(ToString::to_string).unwrap_or_default();
    verdict::Rerouted { own, node: node.into(), shortfall }.to_string()
}
