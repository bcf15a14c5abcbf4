//! Writes into the status of each policy document that is a resource whether it is in force. Owns the writes; the store
//! of policies knows which documents there are, and `capacity::policy` decides which are in force.

use std::collections::BTreeSet;
use std::sync::Arc;

use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::Value;

use super::{Controller, RETRY, bounded, now};
use crate::k8s::document::resource::{
    self, ClusterKind, InventoryKind, Kind, NamespaceKind, OfKind, PolicyObject, ResourceName,
};
use crate::state::policies::resources::State;

/// Failures that end a pass. If the API server refuses each write, the log gets no more of them.
const MAX_FAILURES: usize = 3;

/// Keeps the status until the task is aborted.
pub(super) async fn run(controller: Controller) {
    let mut states = controller.policies.states();
    let mut failed = BTreeSet::new();
    loop {
        let current = states.borrow_and_update().clone();
        pass(&controller, &current, &mut failed).await;
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if !failed.is_empty() => {}
        }
    }
}

/// Writes each status that is not up to date. Those that have failed before come last, so that they keep no others waiting.
async fn pass(controller: &Controller, states: &Arc<Vec<State>>, failed: &mut BTreeSet<ResourceName>) {
    let mut failures = 0;
    let before = std::mem::take(failed);
    let (last, first): (Vec<&State>, Vec<&State>) = states.iter().partition(|state| before.contains(&state.name));
    for State { name, generation, state, conditions } in first.into_iter().chain(last) {
        let Some(patch) = resource::status_patch(name.kind, state, *generation, conditions, now()) else { continue };
        match write(controller, name, patch).await {
            Ok(()) => {}
            // It was deleted, or its definition was.
            Err(error) if is_gone(&error) => {}
            Err(error) => {
                tracing::warn!("the status of {name}: {error:#}; trying again");
                failed.insert(name.clone());
                failures += 1;
                if failures == MAX_FAILURES {
                    break;
                }
            }
        }
    }
}

async fn write(controller: &Controller, name: &ResourceName, patch: Value) -> anyhow::Result<()> {
    match name.kind {
        Kind::Cluster => patched(Api::<PolicyObject<ClusterKind>>::all(controller.client.clone()), name, patch).await,
        Kind::Inventory => {
            patched(Api::<PolicyObject<InventoryKind>>::all(controller.client.clone()), name, patch).await
        }
        Kind::Namespace => {
            let namespace = name.namespace.as_deref().unwrap_or_default();
            let api = Api::<PolicyObject<NamespaceKind>>::namespaced(controller.client.clone(), namespace);
            patched(api, name, patch).await
        }
    }
}

async fn patched<K: OfKind>(api: Api<PolicyObject<K>>, name: &ResourceName, patch: Value) -> anyhow::Result<()> {
    bounded(api.patch_status(&name.name, &PatchParams::default(), &Patch::Merge(patch))).await.map(drop)
}

fn is_gone(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<kube::Error>(), Some(kube::Error::Api(status)) if status.code == 404)
}
