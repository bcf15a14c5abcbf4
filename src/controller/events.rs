//! Events on pods and nodes. Owns how they are addressed; what they say is the core's.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use super::{Controller, bounded};
use crate::capacity::ledger::PodUid;
use crate::capacity::pod::PodName;
use crate::capacity::verdict::Reason;

/// What events are recorded with.
pub fn recorder(controller: &Controller) -> Recorder {
    let reporter = Reporter { controller: "vramguard".into(), instance: Some(controller.identity.clone()) };
    Recorder::new(controller.client.clone(), reporter)
}

/// A pod, as events address it.
pub fn pod(uid: &PodUid, name: &PodName) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(name.namespace.to_string()),
        name: Some(name.name.to_string()),
        uid: Some(uid.to_string()),
        ..ObjectReference::default()
    }
}

/// A warning. Returns whether it could be said; one that could not is logged.
pub async fn warn(recorder: &Recorder, about: &ObjectReference, reason: Reason, note: String, action: &str) -> bool {
    let event = Event {
        type_: EventType::Warning,
        reason: reason.to_string(),
        note: Some(note),
        action: action.into(),
        secondary: None,
    };
    let published = bounded(recorder.publish(&event, about)).await;
    if let Err(error) = &published {
        tracing::warn!("event {reason}: {error:#}");
    }
    published.is_ok()
}

/// A warning on a pod, once.
pub async fn warn_pod(
    controller: &Controller,
    uid: &PodUid,
    name: &PodName,
    reason: Reason,
    note: String,
    action: &str,
) {
    warn(&recorder(controller), &pod(uid, name), reason, note, action).await;
}

/// A warning on a node, once. Events about nodes, which have no namespace, go to `default` as the kubelet's do; their uid is
/// the node's name, so that `kubectl describe node` finds them.
pub async fn warn_node(controller: &Controller, node: &str, reason: Reason, note: String) {
    let about = ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(node.to_owned()),
        uid: Some(node.to_owned()),
        ..ObjectReference::default()
    };
    warn(&recorder(controller), &about, reason, note, "Accounting").await;
}
