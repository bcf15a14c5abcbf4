//! Events on pods and nodes. Owns when a repeated event raises a count instead of creating an object. `k8s::event` owns
//! their form, and `capacity::verdict` their text.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Event, ObjectReference};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use parking_lot::Mutex;

use super::{Controller, bounded, now};
use crate::capacity::name::PodUid;
use crate::capacity::pod::PodName;
use crate::capacity::verdict::Reason;
use crate::k8s::event::{self, Kind};

/// An event that repeats within this time raises the count of the previous one.
const SERIES: Duration = Duration::from_secs(2 * 3600);
/// Events that are remembered for that. Past it, a repeated event creates a new object.
const MAX_SERIES: usize = 4096;

/// Records events, and remembers which it recorded.
pub(super) struct Recorder {
    client: Client,
    identity: String,
    series: Mutex<BTreeMap<Key, Series>>,
}

/// Uid of the object (for a node, its name), and the reason.
type Key = (String, Reason);

/// An event that was recorded.
#[derive(Clone)]
struct Series {
    name: String,
    count: i32,
    last: Instant,
}

impl Recorder {
    /// Creates a recorder that remembers no events.
    pub(super) fn new(controller: &Controller) -> Recorder {
        let (client, identity) = (controller.client.clone(), controller.identity.clone());
        Recorder { client, identity, series: Mutex::default() }
    }

    /// Records a warning on a pod. Returns whether that succeeded; a failure is logged.
    pub(super) async fn warn_pod(
        &self,
        uid: &PodUid,
        name: &PodName,
        reason: Reason,
        note: String,
        action: &str,
    ) -> bool {
        self.record(&event::pod(uid, name), Kind::Warning, reason, &note, action).await
    }

    /// Records an event on a pod about something that needs no action. A failure is logged.
    pub(super) async fn tell_pod(&self, uid: &PodUid, name: &PodName, reason: Reason, note: String, action: &str) {
        self.record(&event::pod(uid, name), Kind::Normal, reason, &note, action).await;
    }

    /// Records a warning on the ResourceQuota of a namespace. A failure is logged.
    pub(super) async fn warn_quota(&self, namespace: &str, uid: &str, reason: Reason, note: String) {
        self.record(&event::quota(namespace, uid), Kind::Warning, reason, &note, "Quota").await;
    }

    /// Records a warning on a node. A failure is logged.
    pub(super) async fn warn_node(&self, node: &str, reason: Reason, note: String) {
        self.record(&event::node(node), Kind::Warning, reason, &note, "Accounting").await;
    }

    async fn record(&self, about: &ObjectReference, kind: Kind, reason: Reason, note: &str, action: &str) -> bool {
        let said = self.say(about, kind, reason, note, action).await;
        if let Err(error) = &said {
            tracing::warn!("event {reason}: {error:#}");
        }
        said.is_ok()
    }

    async fn say(
        &self,
        about: &ObjectReference,
        kind: Kind,
        reason: Reason,
        note: &str,
        action: &str,
    ) -> anyhow::Result<()> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), event::namespace(about));
        let key = (about.uid.clone().unwrap_or_default(), reason);
        let before = self.series.lock().get(&key).filter(|series| series.last.elapsed() < SERIES).cloned();
        if let Some(Series { name, count, .. }) = before {
            let count = count.saturating_add(1);
            let patch = Patch::Merge(event::again(count, note, now()));
            let patched = bounded(async {
                match events.patch(&name, &PatchParams::default(), &patch).await {
                    // The API server has deleted the event, so a new one is created.
                    Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
                    patched => patched.map(|_| true),
                }
            });
            if patched.await? {
                self.remember(key, Series { name, count, last: Instant::now() });
                return Ok(());
            }
        }
        let event = event::first(about, kind, reason, note, action, &self.identity, now());
        let name = event.metadata.name.clone().unwrap_or_default();
        bounded(events.create(&PostParams::default(), &event)).await?;
        self.remember(key, Series { name, count: 1, last: Instant::now() });
        Ok(())
    }

    fn remember(&self, key: Key, said: Series) {
        let mut series = self.series.lock();
        if series.len() >= MAX_SERIES {
            series.retain(|_, series| series.last.elapsed() < SERIES);
        }
        if series.len() < MAX_SERIES || series.contains_key(&key) {
            series.insert(key, said);
        }
    }
}
