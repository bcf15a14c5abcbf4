//! Finds running pods that would be refused if they were created again. A device plugin, say, that is refused when its
//! node is replaced would be noticed only when the node has no GPUs. Owns when the check runs and how many pods it
//! names; which pods would be refused is decided in `capacity`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Controller, RETRY, events};
use crate::capacity::admission;
use crate::capacity::name::PodUid;
use crate::capacity::pod::PodName;
use crate::capacity::verdict::{self, Reason};
use crate::k8s::object::PodObject;
use crate::k8s::pod;
use crate::state::watch::{self, stream::Source};

/// Delay after this replica begins to lead: publishing and repairing come first.
const DELAY: Duration = Duration::from_secs(10);
/// Pause between two checks, because each check lists all pods. Policies that change more often have to wait.
const GAP: Duration = Duration::from_secs(300);
/// Pods that are named in the log and in events. The metric counts all of them.
const NAMED: usize = 20;

/// Result of one check.
#[derive(Default)]
struct Found {
    by_reason: BTreeMap<Reason, usize>,
    named: Vec<(PodUid, PodName, String)>,
}

/// Checks once, and again whenever policies change.
pub(super) async fn run(controller: Controller) {
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
            // Logged as debug text: the message quotes a tenant's text, which must not be able to end the log line.
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
    let source = Source::new(controller.client.clone(), watch::LIVE_PODS);
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
            return; // a static pod runs even if its mirror pod is refused
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
