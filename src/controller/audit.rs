//! Audits the cluster at an interval, where that is asked for: sets metrics, keeps the HTML page, and keeps a policy
//! report in each namespace (`reports`). Owns when that happens and how long it may take; what is found is decided in
//! [`capacity::audit`](crate::capacity::audit).
//!
//! An audit reads what any tenant may write, in the process that admits pods. So one object at a time is in memory, and
//! an audit that would hold too much is given up (`bound`): `vramguard audit` reads larger clusters from outside.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwapOption;
use axum::body::Bytes;
use serde_json::Value;
use tokio::sync::Semaphore;

use super::{Controller, now};
use crate::capacity::audit;
use crate::capacity::time::Moment;
use crate::k8s::audit::Reader;
use crate::k8s::document::resource;
use crate::report;
use crate::report::assemble::{self, Origin};
use crate::report::document::{Gap, Report};
use crate::state::objects::{Objects, Unread, has_all_pods};

mod bound;
mod reports;

/// Bytes of the HTML page, at most.
const MAX_PAGE: usize = 32 << 20;
/// Delay after this replica begins to lead: publishing and repairing come first.
const DELAY: Duration = Duration::from_secs(15);
/// Time limit for reading the cluster and computing the report, and again for writing policy reports.
const DEADLINE: Duration = Duration::from_secs(300);
/// One audit at a time is in memory. What runs on a thread of its own goes on after its task was aborted or its deadline
/// has passed, and keeps the permit until it ends.
static ONE: Semaphore = Semaphore::const_new(1);

/// The HTML page of the last audit of this replica; empty until there is one.
pub type Page = Arc<ArcSwapOption<Bytes>>;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Audits {
    /// Pause between two audits.
    pub every: Duration,
    /// Whether policy reports are kept in the cluster.
    pub policy_reports: bool,
    /// Where the HTML page goes; `None` if nobody asked for it.
    pub page: Option<Page>,
}

/// Audits until the task is aborted.
pub(super) async fn run(controller: Controller, audits: Audits) {
    tokio::time::sleep(DELAY).await;
    let mut logged = reports::Logged::default();
    loop {
        if let Err(error) = once(&controller, &audits, &mut logged).await {
            tracing::warn!("audit: {error:#}; trying again in {} s", audits.every.as_secs());
            controller.metrics.audit_failed();
        }
        tokio::time::sleep(audits.every).await;
    }
}

async fn once(controller: &Controller, audits: &Audits, logged: &mut reports::Logged) -> anyhow::Result<()> {
    let Audit { report, page } =
        within(DEADLINE, "reading and computing", look(controller, audits.page.is_some())).await?;
    controller.metrics.audited(Some((&report, now())));
    if let Some(kept) = &audits.page {
        kept.store(page.map(Arc::new));
    }
    if audits.policy_reports {
        within(DEADLINE, "writing policy reports", publish(controller, report, logged)).await?;
    }
    Ok(())
}

/// Limits the time of a part of an audit.
async fn within<T>(limit: Duration, what: &str, part: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let ended = tokio::time::timeout(limit, part).await;
    ended.map_err(|_| anyhow::anyhow!("{what} did not end within {} s", limit.as_secs()))?
}

/// An audit, and its page if that was asked for.
struct Audit {
    report: Report,
    page: Option<Bytes>,
}

/// Reads and audits the cluster.
async fn look(controller: &Controller, with_page: bool) -> anyhow::Result<Audit> {
    let permit = ONE.acquire().await?;
    let objects = Objects { client: controller.client.clone(), namespace: None };
    let (mut reader, mut held, mut unread) = (Reader::default(), bound::Held::default(), Unread::default());
    let mut add = |object: Value| {
        reader.add(None, &object).unwrap_or_else(|error| unread.note(&error));
        held.count(&object, reader.subjects())
    };
    // The store has the policies already.
    let is_read = |kind: &str| resource::Kind::ALL.iter().all(|policy| policy.name() != kind);
    let mut gaps = objects.read_kinds(is_read, &|_, _| {}, &mut add).await?;
    let left_out = unread.gap();
    if let Some(Gap { why, .. }) = &left_out {
        tracing::warn!("audit: {why:?}");
    }
    gaps.extend(left_out);
    if has_all_pods(&gaps) {
        reader.follow_agent_pods();
    }
    let generation = controller.policies.current();
    let now = now();
    reader.read_at(Moment(now.as_millisecond()));
    let generated_at = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    // Seconds of computing: on a worker, reviews and the Lease would wait for it.
    let computed = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let scene = reader.finish(generation.policies.clone(), &generation.overrides);
        let origin = Origin { generated_at, cluster: "this cluster".into(), gaps };
        let report = assemble::report(&audit::run(&scene), &origin);
        drop(scene);
        let page = if with_page { page(&report) } else { None };
        Audit { report, page }
    });
    computed.await.context("computing the report")
}

/// The HTML page, if it is short enough to be kept.
fn page(report: &Report) -> Option<Bytes> {
    let html = report::html::render(std::slice::from_ref(report));
    if html.len() > MAX_PAGE {
        tracing::warn!("audit: the HTML page is longer than {} MiB and is not kept", MAX_PAGE >> 20);
        return None;
    }
    Some(Bytes::from(html))
}

/// Keeps the policy reports, if the cluster serves an API for them.
async fn publish(controller: &Controller, report: Report, logged: &mut reports::Logged) -> anyhow::Result<()> {
    let Some(api) = reports::served(&controller.client, logged).await? else { return Ok(()) };
    let wanted = tokio::task::spawn_blocking(move || report::policy_reports(&report, api)).await?;
    reports::publish(&controller.client, api, wanted, logged).await
}

#[cfg(test)]
mod tests;
