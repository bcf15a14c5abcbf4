//! Keeps selectors and CA of the webhook configurations: from the watch, so that a re-applied manifest or a hand is
//! corrected at once. Owns the two watches; what is written is `k8s::webhook_configuration`'s.

use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::{Controller, RETRY};
use crate::k8s::webhook_configuration::{self, Entry};

/// With `trusted`, the CA is ours to write, and nothing is written before it is known: a selector that asks a webhook
/// nobody trusts would refuse every GPU pod.
pub async fn run(controller: Controller, mut trusted: Option<watch::Receiver<Option<String>>>) {
    let mut policies = controller.policies.subscribe();
    let name = controller.webhook_configuration.clone();
    let mut mutating = follow::<MutatingWebhookConfiguration>(&controller, &name);
    let mut validating = follow::<ValidatingWebhookConfiguration>(&controller, &name);
    let (mut mutating_is, mut validating_is) = (None, None);
    loop {
        let ca = trusted.as_ref().map(|trusted| trusted.borrow().clone());
        let written = match ca {
            Some(None) => Ok(()), // ours, not issued yet
            Some(Some(ca)) => write(&controller, &mutating_is, &validating_is, Some(&ca)).await,
            None => write(&controller, &mutating_is, &validating_is, None).await,
        };
        if let Err(error) = &written {
            tracing::warn!("webhook configuration {name:?}: {error}; trying again");
        }
        tokio::select! {
            Some(seen) = mutating.next() => mutating_is = seen,
            Some(seen) = validating.next() => validating_is = seen,
            _ = policies.changed() => {}
            () = changed(trusted.as_mut()) => {}
            () = tokio::time::sleep(RETRY), if written.is_err() => {}
        }
    }
}

/// Waits for another CA; for ever where it is not ours.
async fn changed(trusted: Option<&mut watch::Receiver<Option<String>>>) {
    let changed = match trusted {
        Some(trusted) => trusted.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        std::future::pending::<()>().await;
    }
}

/// One object as it is, whenever it changes; `None` while it does not exist.
fn follow<K>(controller: &Controller, name: &str) -> stream::BoxStream<'static, Option<K>>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug + Send + 'static,
{
    let api: Api<K> = Api::all(controller.client.clone());
    let seen = watcher::watch_object(api, name).default_backoff();
    logged(seen, std::any::type_name::<K>()).boxed()
}

fn logged<K: Send + 'static>(
    seen: impl Stream<Item = Result<Option<K>, watcher::Error>> + Send + 'static,
    what: &'static str,
) -> impl Stream<Item = Option<K>> + Send {
    seen.filter_map(move |seen| async move {
        match seen {
            Ok(object) => Some(object),
            Err(error) => {
                tracing::warn!("watching {what}: {error}; trying again");
                None
            }
        }
    })
}

async fn write(
    controller: &Controller,
    mutating: &Option<MutatingWebhookConfiguration>,
    validating: &Option<ValidatingWebhookConfiguration>,
    ca: Option<&str>,
) -> kube::Result<()> {
    let generation = controller.policies.current();
    let name = &controller.webhook_configuration;
    let (client, params) = (&controller.client, PatchParams::default());
    if let Some(entries) = mutating.as_ref().and_then(|object| object.webhooks.as_ref()) {
        let entries: Vec<Entry> = entries
            .iter()
            .map(|e| Entry {
                name: &e.name,
                selector: e.namespace_selector.as_ref(),
                client: &e.client_config,
            })
            .collect();
        if let Some(patch) = webhook_configuration::patch(&entries, &generation.policies, ca) {
            let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
            api.patch(name, &params, &json_patch(patch)).await?;
            tracing::info!("mutating webhook configuration {name:?} follows the policies again");
        }
    }
    if let Some(entries) = validating.as_ref().and_then(|object| object.webhooks.as_ref()) {
        let entries: Vec<Entry> = entries
            .iter()
            .map(|e| Entry {
                name: &e.name,
                selector: e.namespace_selector.as_ref(),
                client: &e.client_config,
            })
            .collect();
        if let Some(patch) = webhook_configuration::patch(&entries, &generation.policies, ca) {
            let api: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
            api.patch(name, &params, &json_patch(patch)).await?;
            tracing::info!("validating webhook configuration {name:?} follows the policies again");
        }
    }
    Ok(())
}

fn json_patch(operations: serde_json::Value) -> Patch<()> {
    Patch::Json(serde_json::from_value(operations).expect("operations written here are a JSON Patch"))
}
