//! Keeps the selectors and the CA bundle of the webhook configurations. It acts on watch events, so that a re-applied
//! manifest or a manual edit is corrected at once. Owns the two watches; `k8s::webhook_configuration` owns what is
//! written.

use std::fmt::Debug;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::{Controller, RETRY, bounded};
use crate::k8s::webhook_configuration::{self, Entries};

/// Pause after a write. Another controller may write other values, and two of them must not undo each other at full
/// speed.
const PACE: Duration = Duration::from_secs(1);

/// The CA bundle that the API servers trust, as the watch reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The configurations have not been read yet.
    Unknown,
    /// A configuration is missing, or our entries carry no CA or different ones.
    Untrusted,
    /// All our entries carry this bundle (PEM).
    Bundle(String),
}

/// The link to the task that keeps the certificate: which CA bundle to write, and which one is in place.
pub struct Ca {
    /// The bundle (PEM) to write; `None` until it is known.
    pub wanted: watch::Receiver<Option<String>>,
    /// The bundle that the watch reports.
    pub seen: watch::Sender<Trust>,
}

/// Keeps both webhook configurations up to date. With `ca`, it also writes the CA bundle, and writes nothing before the
/// bundle is known: a selector that activates a webhook with an untrusted certificate would make the API server refuse
/// every GPU pod.
pub async fn run(controller: Controller, mut ca: Option<Ca>) {
    let mut policies = controller.policies.subscribe();
    let name = controller.webhook_configuration.clone();
    let mut mutating = follow::<MutatingWebhookConfiguration>(&controller, &name);
    let mut validating = follow::<ValidatingWebhookConfiguration>(&controller, &name);
    let (mut mutating_is, mut validating_is) = (None, None);
    loop {
        if let (Some(ca), Some(mutating), Some(validating)) = (&ca, &mutating_is, &validating_is) {
            ca.seen.send_replace(trust(mutating, validating));
        }
        let wanted = ca.as_ref().map(|ca| ca.wanted.borrow().clone());
        let bundle = wanted.clone().flatten();
        let mut wrote = Ok(false);
        if wanted.is_none() || bundle.is_some() {
            // Each object is written by itself: an error in one must not keep the other out of date.
            let first = bring(&controller, &mutating_is, bundle.as_deref()).await;
            let second = bring(&controller, &validating_is, bundle.as_deref()).await;
            wrote = first.and_then(|first| second.map(|second| first || second));
        }
        let again = match &wrote {
            Ok(false) => None,
            Ok(true) => Some(PACE),
            Err(error) => {
                tracing::warn!("webhook configuration {name:?}: {error:#}; trying again");
                Some(RETRY)
            }
        };
        if let Some(pause) = again {
            tokio::time::sleep(pause).await;
        }
        tokio::select! {
            Some(seen) = mutating.next() => mutating_is = Some(seen),
            Some(seen) = validating.next() => validating_is = Some(seen),
            _ = policies.changed() => {}
            () = changed(ca.as_mut()) => {}
            () = std::future::ready(()), if wrote.is_err() => {}
        }
    }
}

fn trust(
    mutating: &Option<MutatingWebhookConfiguration>,
    validating: &Option<ValidatingWebhookConfiguration>,
) -> Trust {
    let (Some(mutating), Some(validating)) = (mutating, validating) else {
        return Trust::Untrusted;
    };
    let entries = [mutating.entries(), validating.entries()].concat();
    webhook_configuration::trusted(&entries).map_or(Trust::Untrusted, Trust::Bundle)
}

/// Waits for another CA bundle; forever if others manage the CA.
async fn changed(ca: Option<&mut Ca>) {
    let changed = match ca {
        Some(ca) => ca.wanted.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        std::future::pending::<()>().await;
    }
}

/// Streams one object whenever it changes; `None` while it does not exist.
fn follow<K>(controller: &Controller, name: &str) -> BoxStream<'static, Option<K>>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + 'static,
{
    let api: Api<K> = Api::all(controller.client.clone());
    let seen = watcher::watch_object(api, name).default_backoff();
    seen.filter_map(|seen| async {
        seen.inspect_err(|error| tracing::warn!("watching {}: {error}; trying again", K::kind(&()))).ok()
    })
    .boxed()
}

/// Writes what one object lacks. Returns whether anything was written.
async fn bring<K>(controller: &Controller, seen: &Option<Option<K>>, ca: Option<&str>) -> anyhow::Result<bool>
where
    K: Resource<DynamicType = ()> + Entries + DeserializeOwned + Clone + Debug,
{
    let Some(Some(object)) = seen else { return Ok(false) };
    let generation = controller.policies.current();
    let Some(operations) = webhook_configuration::patch(&object.entries(), &generation.policies, ca) else {
        return Ok(false);
    };
    let patch: Patch<()> =
        Patch::Json(serde_json::from_value(operations).expect("operations of ours are a JSON Patch"));
    let api: Api<K> = Api::all(controller.client.clone());
    bounded(api.patch(&controller.webhook_configuration, &PatchParams::default(), &patch)).await?;
    tracing::info!("{} {:?}: selectors and CA written", K::kind(&()), controller.webhook_configuration);
    Ok(true)
}
