//! Keeps selectors and CA of the webhook configurations: from the watch, so that a re-applied manifest or a hand is
//! corrected at once. Owns the two watches; what is written is `k8s::webhook_configuration`'s.

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

/// Between two writes: somebody else may hold another opinion, and two controllers must not fight at full speed.
const PACE: Duration = Duration::from_secs(1);

/// Whom the API servers trust, as seen in the watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Not seen yet.
    Unseen,
    /// The configurations are not there, or our entries trust nobody or different CAs.
    Nobody,
    /// All our entries trust this bundle (PEM).
    Bundle(String),
}

/// Ties the keeper of the certificate to the configurations: which CA to write, and what has come of it.
pub struct Ca {
    /// To be trusted; `None` until it is known.
    pub wanted: watch::Receiver<Option<String>>,
    /// As seen.
    pub seen: watch::Sender<Trust>,
}

/// With `ca`, the CA is ours to write, and nothing is written before it is known: a selector that asks a webhook nobody
/// trusts would refuse every GPU pod.
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
            // Each for itself: what is wrong with one object must not keep the other as it was.
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
        return Trust::Nobody;
    };
    let entries = [mutating.entries(), validating.entries()].concat();
    webhook_configuration::trusted(&entries).map_or(Trust::Nobody, Trust::Bundle)
}

/// Waits for another CA; for ever where it is not ours.
async fn changed(ca: Option<&mut Ca>) {
    let changed = match ca {
        Some(ca) => ca.wanted.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        std::future::pending::<()>().await;
    }
}

/// One object as it is, whenever it changes; `None` while it does not exist.
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

/// Writes what one object lacks; returns whether anything.
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
