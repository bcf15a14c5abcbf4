//! Looks for pods that run and would be refused if they were created again: a device plugin that is refused when its node is
//! replaced is noticed only when the node has no GPUs. Owns when it looks and how many pods it names; what would refuse them is
//! the core's.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Controller, RETRY, events};
use crate::capacity::admission;
use crate::capacity::ledger::PodUid;
use crate::capacity::pod::PodName;
use crate::capacity::verdict::{self, Reason};
use crate::k8s::object::PodObject;
use crate::k8s::pod;
use crate::watch::{self, stream::Source};

/// After this replica began to lead: what has to be published and repaired comes first.
const DELAY: Duration = Duration::from_secs(10);
/// Between two looks, each of which lists all pods. Policies that change more often wait.
const GAP: Duration = Duration::from_secs(300);
/// Pods that are named in the log and in events. The metric counts all of them.
const NAMED: usize = 20;

/// What one look found.
#[derive(Default)]
struct Found {
    by_reason: BTreeMap<Reason, usize>,
    named: Vec<(PodUid, PodName, String)>,
}

/// Looks once, and again when policies change.
pub async fn run(controller: Controller) {
    let recorder = events::Recorder::new(&controller);
    let mut changed = controller.policies.subscribe();
    tokio::time::sleep(DELAY).await;
    loop {
        changed.mark_unchanged();
        let found = look(&controller).await;
        controller.metrics.refused_if_created(&found.by_reason);
        let all: usize = found.by_reason.values().sum();
        if all > 0 {
            tracing::warn!(
                pods = all,
                named = found.named.len(),
                "pods that run would be refused if they were created again; change them or exempt their namespaces"
            );
        }
        for (uid, name, note) in found.named {
            // As debug text: a message quotes what a tenant wrote, and may not end the line.
            tracing::warn!(namespace = ?name.namespace.as_str(), pod = ?name.name.as_str(), "{note:?}");
            recorder.warn_pod(&uid, &name, Reason::RefusedIfCreated, note, "Admission").await;
        }
        tokio::time::sleep(GAP).await;
        if changed.changed().await.is_err() {
            return;
        }
    }
}

async fn look(controller: &Controller) -> Found {
    let source = Source { client: controller.client.clone(), fields: watch::LIVE_PODS };
    loop {
        let mut found = Found::default();
        match source.once(|object: PodObject| found.judge(controller, &object)).await {
            Ok(()) => return found,
            Err(error) => tracing::warn!("listing pods for the preflight: {error}; trying again"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

impl Found {
    fn judge(&mut self, controller: &Controller, object: &PodObject) {
        if pod::is_mirror(object) {
            return; // a static pod runs whether its mirror is refused or not
        }
        let generation = controller.policies.current();
        let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
        let Some((policy, _)) = generation.of(namespace) else { return };
        let pod = pod::translate(object, None, None);
        let state = controller.index.read();
        let violations = admission::refused_if_created(&pod, policy, &state.cluster);
        drop(state);
        let Some(first) = violations.first() else { return };
        *self.by_reason.entry(first.reason()).or_default() += 1;
        if self.named.len() < NAMED {
            self.named.push((pod::uid(&object.metadata), pod.name, verdict::refused_if_created(&violations)));
        }
    }
}
