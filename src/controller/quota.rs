//! Keeps the quota of each policy as a ResourceQuota of its namespace, and the metrics of all ResourceQuotas that limit
//! VRAM. Owns the watches and the writes; what is written is decided in [`capacity::quota`](crate::capacity::quota).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Namespace, ResourceQuota};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource, ResourceExt};
use tokio::time::Instant;

use super::{Controller, RETRY, bounded, events};
use crate::capacity::quota::{self, Action, Found, Left};
use crate::capacity::verdict::{self, Reason};
use crate::capacity::vram::Vram;
use crate::k8s::resource_quota::{self as translate, MANAGER, NAME};
use crate::metrics::Metrics;

/// Namespaces that one pass writes, before the watches are looked at again.
const BATCH: usize = 64;
/// Failures that end a pass. If the API server refuses each write, the log gets no more of them.
const MAX_FAILURES: usize = 3;

/// The ResourceQuota that vramguard keeps, or would keep, in one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    found: Found,
    uid: String,
    version: String,
}

/// What the watches reported.
struct Seen {
    metrics: Arc<Metrics>,
    /// Namespaces that are not being deleted.
    namespaces: BTreeSet<String>,
    namespaces_listed: bool,
    quotas_listed: bool,
    /// The ResourceQuotas of our name, by namespace.
    kept: BTreeMap<String, Kept>,
    /// All ResourceQuotas that limit VRAM, by namespace and name.
    limits: BTreeSet<(String, String)>,
    /// What a list of namespaces has named so far.
    namespaces_listing: BTreeSet<String>,
    /// What a list of ResourceQuotas has named so far.
    quotas_listing: BTreeSet<(String, String)>,
    /// Namespaces to look at.
    due: BTreeSet<String>,
    /// Namespaces that could not be written. They are due once no others are.
    failed: BTreeSet<String>,
    /// Why the ResourceQuota of a namespace is not the policy's, as last told.
    told: BTreeMap<String, (Left, Vram)>,
}

/// Keeps the ResourceQuotas until the task is aborted.
pub(super) async fn run(controller: Controller) {
    let recorder = events::Recorder::new(&controller);
    let mut policies = controller.policies.subscribe();
    let mut namespaces = namespaces(&controller);
    let mut quotas = quotas(&controller);
    let mut seen = Seen::new(controller.metrics.clone());
    // No pass begins before this time.
    let mut next = Instant::now();
    loop {
        if next <= Instant::now() && pass(&controller, &recorder, &mut seen).await {
            next = Instant::now() + RETRY;
        }
        let more = seen.is_listed() && !(seen.due.is_empty() && seen.failed.is_empty());
        tokio::select! {
            Some(event) = namespaces.next() => seen.namespace(event),
            Some(event) = quotas.next() => seen.quota(event),
            changed = policies.changed() => {
                if changed.is_err() { return }
                seen.all_due();
            }
            () = tokio::time::sleep_until(next), if more => {}
        }
    }
}

/// Brings the namespaces that are due up to date. Returns whether one could not be written. It is tried again later.
async fn pass(controller: &Controller, recorder: &events::Recorder, seen: &mut Seen) -> bool {
    if !seen.is_listed() {
        return false;
    }
    if seen.due.is_empty() {
        seen.due = std::mem::take(&mut seen.failed);
    }
    let batch: Vec<String> = seen.due.iter().take(BATCH).cloned().collect();
    let mut failures = 0;
    for namespace in batch {
        seen.due.remove(&namespace);
        if let Err(error) = bring(controller, recorder, seen, &namespace).await {
            tracing::warn!(?namespace, "ResourceQuota {NAME:?}: {error:#}; trying again");
            // The others come first, so that one namespace cannot keep them waiting.
            seen.failed.insert(namespace);
            failures += 1;
            if failures == MAX_FAILURES {
                break;
            }
        }
    }
    failures > 0
}

/// Brings one namespace up to date.
async fn bring(
    controller: &Controller,
    recorder: &events::Recorder,
    seen: &mut Seen,
    namespace: &str,
) -> anyhow::Result<()> {
    if !seen.namespaces.contains(namespace) {
        seen.told.remove(namespace);
        controller.metrics.quotas.not_kept(seen.told.len());
        return Ok(());
    }
    let generation = controller.policies.current();
    let wanted = quota::wanted(generation.policies.of(namespace).map(AsRef::as_ref));
    let kept = seen.kept.get(namespace).cloned();
    let api: Api<ResourceQuota> = Api::namespaced(controller.client.clone(), namespace);
    let mut action = quota::decide(wanted, kept.as_ref().map(|kept| kept.found));
    match action {
        Action::Nothing | Action::Leave(_) => {}
        Action::Write(_) | Action::Release => {
            let limit = if let Action::Write(limit) = action { Some(limit) } else { None };
            match bounded(api.patch(NAME, &PatchParams::apply(MANAGER), &Patch::Apply(translate::applied(limit)))).await
            {
                Ok(_) => {
                    tracing::info!(?namespace, limit = limit.map(|limit| limit.to_string()), "ResourceQuota written")
                }
                // Somebody has changed the limit since the watch reported it.
                Err(error) if is_contested(&error) => action = Action::Leave(Left::ChangedByOthers),
                Err(error) => return Err(error),
            }
        }
        Action::Delete => {
            let Some(Kept { uid, version, .. }) = kept.clone() else { return Ok(()) };
            let preconditions = Some(Preconditions { uid: Some(uid), resource_version: Some(version) });
            match bounded(api.delete(NAME, &DeleteParams { preconditions, ..DeleteParams::default() })).await {
                Ok(_) => tracing::info!(?namespace, "ResourceQuota deleted: no policy sets a quota"),
                Err(error) if has_code(&error, 404) => {}
                // A conflict too: it has changed, if only in what is used, and is tried again with its new version.
                Err(error) => return Err(error),
            }
        }
    }
    if let (Action::Leave(left), Some(limit)) = (action, wanted) {
        if seen.told.insert(namespace.to_owned(), (left, limit)) != Some((left, limit)) {
            let note = verdict::quota_not_kept(left, limit, kept.as_ref().and_then(|kept| kept.found.hard));
            tracing::warn!(?namespace, "ResourceQuota {NAME:?}: {note}");
            // One that the watch has not reported yet has no uid to name.
            if let Some(kept) = kept {
                recorder.warn_quota(namespace, &kept.uid, Reason::QuotaNotKept, note).await;
            }
        }
    } else {
        seen.told.remove(namespace);
    }
    controller.metrics.quotas.not_kept(seen.told.len());
    Ok(())
}

impl Seen {
    fn new(metrics: Arc<Metrics>) -> Seen {
        Seen {
            metrics,
            namespaces: BTreeSet::new(),
            namespaces_listed: false,
            quotas_listed: false,
            kept: BTreeMap::new(),
            limits: BTreeSet::new(),
            namespaces_listing: BTreeSet::new(),
            quotas_listing: BTreeSet::new(),
            due: BTreeSet::new(),
            failed: BTreeSet::new(),
            told: BTreeMap::new(),
        }
    }

    fn is_listed(&self) -> bool {
        self.namespaces_listed && self.quotas_listed
    }

    fn all_due(&mut self) {
        self.due.extend(self.namespaces.iter().cloned());
    }

    fn namespace(&mut self, event: Event<PartialObjectMeta<Namespace>>) {
        match event {
            Event::Init => self.namespaces_listing.clear(),
            Event::InitApply(namespace) => {
                if namespace.meta().deletion_timestamp.is_none() {
                    self.namespaces_listing.insert(namespace.name_any());
                }
            }
            Event::Apply(namespace) => {
                let name = namespace.name_any();
                if namespace.meta().deletion_timestamp.is_some() {
                    self.namespaces.remove(&name);
                } else if self.namespaces.insert(name.clone()) {
                    self.due.insert(name);
                }
            }
            Event::Delete(namespace) => {
                let name = namespace.name_any();
                self.namespaces.remove(&name);
                self.due.insert(name);
            }
            Event::InitDone => {
                self.namespaces = std::mem::take(&mut self.namespaces_listing);
                self.namespaces_listed = true;
                self.all_due();
            }
        }
    }

    fn quota(&mut self, event: Event<ResourceQuota>) {
        match event {
            Event::Init => self.quotas_listing.clear(),
            Event::InitApply(quota) => {
                self.quotas_listing.insert(key(&quota));
                self.apply(&quota);
            }
            Event::Apply(quota) => self.apply(&quota),
            Event::Delete(quota) => self.forget(&key(&quota)),
            Event::InitDone => {
                let listing = std::mem::take(&mut self.quotas_listing);
                let known = self.limits.iter().cloned();
                let known = known.chain(self.kept.keys().map(|namespace| (namespace.clone(), NAME.to_owned())));
                let gone: BTreeSet<(String, String)> = known.filter(|key| !listing.contains(key)).collect();
                gone.iter().for_each(|key| self.forget(key));
                self.quotas_listed = true;
                self.all_due();
            }
        }
    }

    fn apply(&mut self, quota: &ResourceQuota) {
        let key = key(quota);
        match translate::limit(quota) {
            Some(limit) => {
                self.metrics.quotas.set(&limit);
                self.limits.insert(key.clone());
            }
            None => self.forget_limit(&key),
        }
        if key.1 == NAME {
            let found = translate::found(quota);
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            let kept = Kept { found, uid: text(&quota.metadata.uid), version: text(&quota.metadata.resource_version) };
            let before = self.kept.insert(key.0.clone(), kept);
            // Each pod changes what is used, and nothing that matters here.
            if before.is_none_or(|before| before.found != found) {
                self.due.insert(key.0);
            }
        }
    }

    fn forget_limit(&mut self, key: &(String, String)) {
        if self.limits.remove(key) {
            self.metrics.quotas.remove(&key.0, &key.1);
        }
    }

    fn forget(&mut self, key: &(String, String)) {
        self.forget_limit(key);
        if key.1 == NAME && self.kept.remove(&key.0).is_some() {
            self.due.insert(key.0.clone());
        }
    }
}

fn key(quota: &ResourceQuota) -> (String, String) {
    (quota.namespace().unwrap_or_default(), quota.name_any())
}

fn namespaces(controller: &Controller) -> BoxStream<'static, Event<PartialObjectMeta<Namespace>>> {
    let api: Api<PartialObjectMeta<Namespace>> = Api::all(controller.client.clone());
    logged(watcher::watcher(api, watcher::Config::default()).default_backoff(), "namespaces")
}

fn quotas(controller: &Controller) -> BoxStream<'static, Event<ResourceQuota>> {
    let api: Api<ResourceQuota> = Api::all(controller.client.clone());
    logged(watcher::watcher(api, watcher::Config::default()).default_backoff(), "resourcequotas")
}

/// The stream without its errors, which are logged; the watch goes on by itself.
fn logged<K: Send + 'static>(
    stream: impl futures::Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
    what: &'static str,
) -> BoxStream<'static, Event<K>> {
    stream
        .inspect_err(move |error| tracing::warn!("watching {what}: {error}; trying again"))
        .filter_map(|event| std::future::ready(event.ok()))
        .boxed()
}

/// Whether an apply was refused because another field manager has the field.
fn is_contested(error: &anyhow::Error) -> bool {
    let Some(kube::Error::Api(status)) = error.downcast_ref::<kube::Error>() else { return false };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 409 && causes.into_iter().any(|cause| cause.reason == "FieldManagerConflict")
}

fn has_code(error: &anyhow::Error, code: u16) -> bool {
    matches!(error.downcast_ref::<kube::Error>(), Some(kube::Error::Api(status)) if status.code == code)
}
