//! Owns an endless LIST and WATCH: every version of every object of a kind that the API server shows, in order.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::serde::de::DeserializeOwned;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Resource};

/// One step of a stream, with its resource version.
#[derive(Debug, Clone)]
pub(crate) enum Seen<K> {
    /// A list of all objects: at the start, and after the API server has compacted versions that were not seen.
    All(Vec<K>, u64),
    /// An object was created or changed.
    Now(K, u64),
    /// An object was deleted.
    Gone(K, u64),
}

/// Follows a kind and calls `see` with each step. It continues after restarts of the API server.
pub(crate) async fn follow<K>(api: Api<K>, mut see: impl FnMut(Seen<K>))
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    loop {
        if let Ok(list) = api.list(&ListParams::default()).await {
            let version = number(list.metadata.resource_version.as_deref());
            see(Seen::All(list.items, version));
            watch(&api, version, &mut see).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await; // between two attempts
    }
}

/// Watches from `version` until the API server answers 410 Gone.
async fn watch<K>(api: &Api<K>, mut version: u64, see: &mut impl FnMut(Seen<K>))
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    let of = |object: &K| number(object.meta().resource_version.as_deref());
    loop {
        let mut stream = match api.watch(&WatchParams::default(), &version.to_string()).await {
            Ok(stream) => stream.boxed(),
            Err(kube::Error::Api(status)) if status.code == 410 => return,
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(50)).await; // the API server is down: between two attempts
                continue;
            }
        };
        loop {
            match stream.try_next().await {
                Ok(Some(WatchEvent::Added(object) | WatchEvent::Modified(object))) => {
                    version = of(&object);
                    see(Seen::Now(object, version));
                }
                Ok(Some(WatchEvent::Deleted(object))) => {
                    version = of(&object);
                    see(Seen::Gone(object, version));
                }
                Ok(Some(WatchEvent::Bookmark(bookmark))) => {
                    version = number(Some(&bookmark.metadata.resource_version));
                }
                Ok(Some(WatchEvent::Error(status))) if status.code == 410 => return,
                Ok(Some(WatchEvent::Error(_)) | None) | Err(_) => break,
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await; // between two watches
    }
}

fn number(version: Option<&str>) -> u64 {
    let version = version.expect("the API server gives every object a version");
    version.parse().unwrap_or_else(|e| panic!("resource version {version:?}: {e}"))
}
