//! Events as the API server accepts them. Owns their form and length; the core owns their text. They are of API `v1`,
//! because an event of `events.k8s.io/v1` may not have the `lastTimestamp` that `kubectl get events
//! --sort-by=.lastTimestamp` sorts by.

use std::fmt;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::{Value, json};

use super::resource_quota;
use crate::capacity::name::PodUid;
use crate::capacity::pod::PodName;
use crate::capacity::verdict::Reason;

/// The reporting component of all events.
pub const COMPONENT: &str = "vramguard";
/// Largest message that the API server accepts, in bytes.
const MAX_MESSAGE: usize = 1024;
/// Longest name of an object that the API server accepts, in bytes.
const MAX_NAME: usize = 253;
/// Namespace of events about objects without a namespace; the kubelet uses the same.
const NO_NAMESPACE: &str = "default";

/// The type of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Something that its reader may want to know.
    Normal,
    /// Something that its reader should look at.
    Warning,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The name of the variant is what the API accepts.
        fmt::Debug::fmt(self, f)
    }
}

/// The reference to a pod in an event.
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

/// The reference to the ResourceQuota that vramguard would keep in a namespace.
pub fn quota(namespace: &str, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("ResourceQuota".into()),
        namespace: Some(namespace.to_owned()),
        name: Some(resource_quota::NAME.into()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    }
}

/// The reference to a node in an event. Its uid is the node's name, as in the kubelet's events, so that `kubectl
/// describe node` finds the event.
pub fn node(name: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(name.to_owned()),
        uid: Some(name.to_owned()),
        ..ObjectReference::default()
    }
}

/// The namespace of events about an object.
pub fn namespace(about: &ObjectReference) -> &str {
    about.namespace.as_deref().unwrap_or(NO_NAMESPACE)
}

/// Makes the event of a first occurrence. A message that is too long is cut.
pub fn first(
    about: &ObjectReference,
    kind: Kind,
    reason: Reason,
    note: &str,
    action: &str,
    instance: &str,
    now: Timestamp,
) -> Event {
    let stamp = format!(".{:x}", now.as_nanosecond());
    let name = cut(about.name.as_deref().unwrap_or(COMPONENT), MAX_NAME - stamp.len());
    Event {
        metadata: ObjectMeta {
            // After the cut, the name must still end in a letter or digit.
            name: Some(format!("{}{stamp}", name.trim_end_matches(['.', '-']))),
            namespace: Some(namespace(about).to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: about.clone(),
        type_: Some(kind.to_string()),
        reason: Some(reason.to_string()),
        message: Some(cut(note, MAX_MESSAGE).to_owned()),
        action: Some(action.to_owned()),
        count: Some(1),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        source: Some(EventSource { component: Some(COMPONENT.into()), host: None }),
        reporting_component: Some(COMPONENT.into()),
        reporting_instance: Some(instance.to_owned()),
        ..Event::default()
    }
}

/// The merge patch for a further occurrence: `count` is the number of occurrences so far.
pub fn again(count: i32, note: &str, now: Timestamp) -> Value {
    json!({ "count": count, "lastTimestamp": Time(now), "message": cut(note, MAX_MESSAGE) })
}

fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_carries_the_time_that_kubectl_sorts_by_and_fits_the_limits() {
        let now: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
        let name = PodName { namespace: "ml".into(), name: (format!("{}-", "a".repeat(233)) + &"b".repeat(19)).into() };
        let about = pod(&PodUid::from("uid"), &name);
        let event =
            first(&about, Kind::Warning, Reason::VramShortfall, &"ü".repeat(600), "Scheduling", "vramguard-0", now);
        assert_eq!(event.last_timestamp, Some(Time(now)));
        assert_eq!((event.count, event.event_time), (Some(1), None));
        assert_eq!(event.message.unwrap().len(), 1024);
        let name = event.metadata.name.unwrap();
        assert!(name.len() <= 253 && !name.contains("-."), "{name}");
        let later: Timestamp = "2026-11-24T12:01:00Z".parse().unwrap();
        let patch = json!({ "count": 2, "lastTimestamp": "2026-11-24T12:01:00Z", "message": "note" });
        assert_eq!(again(2, "note", later), patch);
    }
}
