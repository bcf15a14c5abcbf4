//! Keeps a policy report in each namespace. Owns which reports are written and deleted, and whose are left alone.
//!
//! Reports are compared as they are listed, one at a time, because a namespace's owner may write one of any size.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail, ensure};
use kube::Client;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde_json::Value;

use crate::controller::bounded;
use crate::report::{self, ReportApi};
use crate::state::objects::Objects;
use crate::state::watch::stream::{Source, StreamError};

/// Field manager of the policy reports.
const MANAGER: &str = "vramguard-audit";
/// Value of the label `app.kubernetes.io/managed-by` of the reports that vramguard keeps.
const OWN: &str = "vramguard";
/// Selects the reports that have the name of vramguard's. A test holds it to [`report::POLICY_REPORT`].
const NAMED: &str = "metadata.name=vramguard-audit";
/// Errors that are described one by one.
const MAX_ERRORS: usize = 3;

/// Namespace of a report; empty for the cluster. All reports have the same name.
type Namespace = String;

/// What has been logged, so that each audit does not log it again.
#[derive(Debug, Default)]
pub(super) struct Logged {
    no_api: bool,
    foreign: BTreeSet<Namespace>,
}

/// The API of policy reports that the cluster serves, the newer one first; `None` if it serves neither.
pub(super) async fn served(client: &Client, logged: &mut Logged) -> anyhow::Result<Option<ReportApi>> {
    let objects = Objects { client: client.clone(), namespace: None };
    let api = objects.report_api().await.map_err(anyhow::Error::msg)?;
    if api.is_some() {
        logged.no_api = false;
        return Ok(api);
    }
    if !std::mem::replace(&mut logged.no_api, true) {
        tracing::warn!(
            "audit: no policy reports are written, because the cluster serves no API for them: install the CRDs of \
             OpenReports (openreports.io) or of the policy working group (wgpolicyk8s.io)"
        );
    }
    Ok(None)
}

/// Writes the reports that changed, and deletes those of vramguard that are not needed any more. An error with one of
/// them does not keep the others from being written.
///
/// # Errors
/// The reports cannot be listed, or some of them cannot be written or deleted.
pub(super) async fn publish(
    client: &Client,
    api: ReportApi,
    wanted: Vec<Value>,
    logged: &mut Logged,
) -> anyhow::Result<()> {
    let mut plan = Plan::of(wanted);
    for kind in api.kinds() {
        let path = format!("/apis/{}/{}s", api.api_version(), kind.to_lowercase());
        let source = Source::new(client.clone(), NAMED);
        let listed = source.values(&path, |report| plan.compare(&report)).await;
        listed.map_err(|error: StreamError| anyhow::anyhow!("{path} cannot be read: {error}"))?;
    }
    for namespace in &plan.foreign {
        if logged.foreign.insert(namespace.clone()) {
            tracing::warn!(
                "audit: the report {MANAGER} in {} is left alone: its label app.kubernetes.io/managed-by is not {OWN}",
                place(namespace)
            );
        }
    }
    logged.foreign.retain(|namespace| plan.foreign.contains(namespace));
    let mut errors = Errors::default();
    for (namespace, report) in &plan.write {
        errors.note(namespace, write(client, namespace, report).await);
    }
    for namespace in &plan.delete {
        errors.note(namespace, delete(client, namespace, api).await);
    }
    errors.finish()
}

/// What to do, after the reports in the cluster were compared with those that are wanted.
#[derive(Debug, Default)]
struct Plan {
    write: BTreeMap<Namespace, Value>,
    delete: BTreeSet<Namespace>,
    /// The namespaces where a report of that name is another's.
    foreign: BTreeSet<Namespace>,
}

impl Plan {
    /// Writes all.
    fn of(wanted: Vec<Value>) -> Plan {
        Plan { write: wanted.into_iter().map(|report| (namespace(&report), report)).collect(), ..Plan::default() }
    }

    /// Compares a report in the cluster with the wanted one.
    fn compare(&mut self, seen: &Value) {
        if seen.pointer("/metadata/name").and_then(Value::as_str) != Some(report::POLICY_REPORT) {
            return;
        }
        let namespace = namespace(seen);
        let label = seen.pointer("/metadata/labels/app.kubernetes.io~1managed-by").and_then(Value::as_str);
        if label != Some(OWN) {
            self.write.remove(&namespace);
            self.foreign.insert(namespace);
            return;
        }
        match self.write.get(&namespace) {
            Some(wanted) if timeless(wanted) == timeless(seen) => {
                self.write.remove(&namespace);
            }
            Some(_) => {}
            None => {
                self.delete.insert(namespace);
            }
        }
    }
}

/// The errors of several reports as one.
#[derive(Debug, Default)]
struct Errors {
    count: usize,
    first: Vec<String>,
}

impl Errors {
    fn note(&mut self, namespace: &str, result: anyhow::Result<()>) {
        let Err(error) = result else { return };
        self.count += 1;
        if self.first.len() < MAX_ERRORS {
            self.first.push(format!("{}: {error:#}", place(namespace)));
        }
    }

    fn finish(self) -> anyhow::Result<()> {
        let more = self.count - self.first.len();
        let more = if more == 0 { String::new() } else { format!("; and {more} more") };
        let reports = if self.count == 1 { "report" } else { "reports" };
        ensure!(self.count == 0, "{} {reports} could not be kept: {}{more}", self.count, self.first.join("; "));
        Ok(())
    }
}

fn place(namespace: &str) -> String {
    if namespace.is_empty() { "the cluster".to_owned() } else { format!("namespace {namespace:?}") }
}

fn namespace(report: &Value) -> Namespace {
    report.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// A report without what differs at each audit although nothing changed, and without what the API server adds.
fn timeless(report: &Value) -> (Value, Value) {
    let mut results = report["results"].clone();
    for result in results.as_array_mut().into_iter().flatten() {
        if let Some(result) = result.as_object_mut() {
            result.remove("timestamp");
        }
    }
    (results, report["summary"].clone())
}

/// The reports of a namespace, or of the cluster.
fn interface(client: &Client, namespace: &str, api: &str, kind: &str) -> anyhow::Result<kube::Api<DynamicObject>> {
    let Some((group, version)) = api.split_once('/') else { bail!("{api:?} is not group/version") };
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    Ok(if namespace.is_empty() {
        kube::Api::all_with(client.clone(), &resource)
    } else {
        kube::Api::namespaced_with(client.clone(), namespace, &resource)
    })
}

async fn write(client: &Client, namespace: &str, report: &Value) -> anyhow::Result<()> {
    let text = |field: &str| report[field].as_str().context("a report has kind and apiVersion");
    let reports = interface(client, namespace, text("apiVersion")?, text("kind")?)?;
    let params = kube::api::PatchParams::apply(MANAGER).force();
    let patch = kube::api::Patch::Apply(report);
    unless_gone(bounded(reports.patch(report::POLICY_REPORT, &params, &patch)).await)
}

async fn delete(client: &Client, namespace: &str, api: ReportApi) -> anyhow::Result<()> {
    let [of_namespace, of_cluster] = api.kinds();
    let kind = if namespace.is_empty() { of_cluster } else { of_namespace };
    let reports = interface(client, namespace, api.api_version(), kind)?;
    unless_gone(bounded(reports.delete(report::POLICY_REPORT, &kube::api::DeleteParams::default())).await)
}

/// No error if the namespace or the report was deleted since the cluster was read, or if the namespace is being
/// deleted: its report goes with it.
fn unless_gone<T>(result: anyhow::Result<T>) -> anyhow::Result<()> {
    match result {
        Err(error) if code(&error) == Some(404) || is_terminating(&error) => Ok(()),
        other => other.map(drop),
    }
}

fn status(error: &anyhow::Error) -> Option<&kube::core::Status> {
    match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => Some(status),
        _ => None,
    }
}

fn code(error: &anyhow::Error) -> Option<u16> {
    status(error).map(|status| status.code)
}

fn is_terminating(error: &anyhow::Error) -> bool {
    let details = status(error).and_then(|status| status.details.as_ref());
    details.is_some_and(|details| details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(namespace: &str, manager: Option<&str>, results: &Value) -> Value {
        let mut report =
            json!({"metadata": {"name": "vramguard-audit", "namespace": namespace}, "results": results, "summary": {}});
        if let Some(manager) = manager {
            report["metadata"]["labels"] = json!({"app.kubernetes.io/managed-by": manager});
        }
        report
    }

    #[test]
    fn the_selector_has_the_name_of_the_reports() {
        assert_eq!(NAMED, format!("metadata.name={}", report::POLICY_REPORT));
    }

    #[test]
    fn a_report_that_is_not_labelled_as_ours_is_neither_written_nor_deleted() {
        let results = json!([{"rule": "GpuBypass", "timestamp": 1}]);
        let wanted = ["changed", "same", "another", "nobody", "new"];
        let mut plan = Plan::of(wanted.map(|namespace| report(namespace, Some(OWN), &results)).to_vec());
        let none = json!([]);
        plan.compare(&report("changed", Some(OWN), &none));
        plan.compare(&report("same", Some(OWN), &json!([{"rule": "GpuBypass", "timestamp": 2}])));
        plan.compare(&report("another", Some("kyverno"), &none));
        plan.compare(&report("nobody", None, &none));
        plan.compare(&report("gone", Some(OWN), &none));
        plan.compare(&report("not-wanted", Some("kyverno"), &none));
        assert_eq!(plan.write.into_keys().collect::<Vec<_>>(), ["changed", "new"]);
        assert_eq!(plan.delete.into_iter().collect::<Vec<_>>(), ["gone"]);
        assert_eq!(plan.foreign.into_iter().collect::<Vec<_>>(), ["another", "nobody", "not-wanted"]);
    }

    #[test]
    fn errors_of_many_reports_are_one_error_of_bounded_length() {
        let mut errors = Errors::default();
        errors.note("fine", Ok(()));
        for number in 0..1_000 {
            errors.note(&format!("ns-{number}"), Err(anyhow::anyhow!("exceeded quota")));
        }
        let text = errors.finish().expect_err("there are errors").to_string();
        assert!(text.starts_with("1000 reports could not be kept: namespace \"ns-0\": exceeded quota"), "{text}");
        assert!(text.ends_with("; and 997 more"), "{text}");
        Errors::default().finish().expect("no error");
    }
}
