//! Reports of the Kubernetes policy working group, to apply to a cluster: one for each namespace and one for what has no
//! namespace. Dashboards such as Policy Reporter show them.
//!
//! `deny` is the result `fail`; `warn` and `info` are `warn`, which is not scored; what could not be read is `error`.
//! The audit does not list what it found in order, so nothing is `pass`. A namespace without findings has an empty
//! report, which takes the place of the one of an earlier run.
//! A name that no API server accepts as a namespace is written in the report of the cluster.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde_json::{Value, json};

use super::baseline::key;
use super::document::{Finding, Gap, Report, Severity};
use super::text::{clean, count};
use super::yaml;
use crate::keys;

/// The API of the reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReportApi {
    /// `openreports.io/v1alpha1`: `Report` and `ClusterReport`.
    #[default]
    OpenReports,
    /// `wgpolicyk8s.io/v1alpha2`: `PolicyReport` and `ClusterPolicyReport`.
    WgPolicy,
}

impl ReportApi {
    /// `apiVersion` of the reports.
    pub fn api_version(self) -> &'static str {
        match self {
            ReportApi::OpenReports => "openreports.io/v1alpha1",
            ReportApi::WgPolicy => "wgpolicyk8s.io/v1alpha2",
        }
    }

    /// The kinds of the reports: that of a namespace, and that of the cluster.
    pub fn kinds(self) -> [&'static str; 2] {
        [self.kind(Some("")), self.kind(None)]
    }

    fn kind(self, namespace: Option<&str>) -> &'static str {
        match (self, namespace.is_some()) {
            (ReportApi::OpenReports, true) => "Report",
            (ReportApi::OpenReports, false) => "ClusterReport",
            (ReportApi::WgPolicy, true) => "PolicyReport",
            (ReportApi::WgPolicy, false) => "ClusterPolicyReport",
        }
    }
}

/// A text that names no API of reports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown API {}; expected openreports or wgpolicyk8s", crate::capacity::verdict::quoted(.0))]
pub struct UnknownApi(String);

impl FromStr for ReportApi {
    type Err = UnknownApi;

    /// Reads `openreports` or `wgpolicyk8s`.
    ///
    /// # Errors
    /// The text is neither.
    fn from_str(text: &str) -> Result<ReportApi, UnknownApi> {
        match text {
            "openreports" => Ok(ReportApi::OpenReports),
            "wgpolicyk8s" => Ok(ReportApi::WgPolicy),
            other => Err(UnknownApi(other.to_owned())),
        }
    }
}

/// Name of each report, and of the policy in its results.
pub const NAME: &str = "vramguard-audit";

/// The source of all results.
const SOURCE: &str = "vramguard";

/// The largest number of results of one report. etcd takes about 1.5 MiB, and a result about 2 KiB at most.
const MAX_RESULTS: usize = 500;

/// The largest number of characters of a message.
const MAX_MESSAGE: usize = 1024;

/// Renders the findings as YAML documents, the report of the cluster first.
pub(super) fn render(report: &Report, api: ReportApi) -> String {
    objects(report, api).iter().map(yaml::document).collect::<Vec<_>>().join("---\n")
}

/// The reports as objects, that of the cluster first.
pub fn objects(report: &Report, api: ReportApi) -> Vec<Value> {
    let mut by_namespace: BTreeMap<Option<&str>, Vec<&Finding>> = BTreeMap::from([(None, Vec::new())]);
    for namespace in &report.namespaces {
        by_namespace.entry(valid(&namespace.namespace)).or_default();
    }
    for finding in &report.findings {
        by_namespace.entry(valid(&finding.namespace)).or_default().push(finding);
    }
    let documents = by_namespace.into_iter().map(|(namespace, findings)| {
        let gaps: &[Gap] = if namespace.is_none() { &report.gaps } else { &[] };
        document(report, api, namespace, &findings, gaps)
    });
    documents.collect()
}

/// The text, if it is the name of a namespace: a label of RFC 1123.
fn valid(namespace: &str) -> Option<&str> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_valid = (1..=63).contains(&namespace.len())
        && namespace.bytes().all(allowed)
        && !namespace.starts_with('-')
        && !namespace.ends_with('-');
    is_valid.then_some(namespace)
}

fn document(report: &Report, api: ReportApi, namespace: Option<&str>, findings: &[&Finding], gaps: &[Gap]) -> Value {
    let timestamp = timestamp(report);
    let mut results: Vec<Value> = gaps.iter().map(of_gap).collect();
    results.extend(findings.iter().map(|finding| of_finding(finding)));
    let left_out = results.len().saturating_sub(MAX_RESULTS - 1);
    if results.len() > MAX_RESULTS {
        results.truncate(MAX_RESULTS - 1);
        let number = count(u64::try_from(left_out).unwrap_or(u64::MAX), "further finding");
        let message = format!("{number}: a report has at most {MAX_RESULTS} results; vramguard audit --all lists them");
        results.push(json!({ "rule": "LeftOut", "result": "skip", "message": message }));
    }
    for result in &mut results {
        result["source"] = SOURCE.into();
        result["policy"] = NAME.into();
        result["category"] = "GPU memory".into();
        if let Some(timestamp) = &timestamp {
            result["timestamp"] = timestamp.clone();
        }
    }
    let number = |severity: Severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let warn = number(Severity::Warn) + number(Severity::Info);
    let mut metadata = json!({
        "name": NAME,
        "labels": { "app.kubernetes.io/managed-by": SOURCE },
    });
    let mut document = json!({
        "apiVersion": api.api_version(),
        "kind": api.kind(namespace),
        "results": results,
        "summary": { "pass": 0, "fail": number(Severity::Deny), "warn": warn, "error": gaps.len(), "skip": 0 },
    });
    if let Some(namespace) = namespace {
        metadata["namespace"] = namespace.into();
        document["scope"] = json!({ "apiVersion": "v1", "kind": "Namespace", "name": namespace });
    }
    if api == ReportApi::OpenReports {
        document["source"] = SOURCE.into();
    }
    document["metadata"] = metadata;
    document
}

/// When the cluster was read, as the reports say it; `None` if that is not known.
fn timestamp(report: &Report) -> Option<Value> {
    let at: jiff::Timestamp = report.generated_at.parse().ok()?;
    (at.as_second() >= 0).then(|| json!({ "seconds": at.as_second(), "nanos": at.subsec_nanosecond() }))
}

fn of_gap(gap: &Gap) -> Value {
    let message = short(&format!("not read: {}: {}", clean(&gap.what), clean(&gap.why)));
    json!({ "rule": "NotRead", "result": "error", "severity": "medium", "message": message })
}

fn of_finding(finding: &Finding) -> Value {
    let (result, severity) = match finding.severity {
        Severity::Deny => ("fail", "high"),
        Severity::Warn => ("warn", "medium"),
        Severity::Info => ("warn", "info"),
    };
    let mut properties: BTreeMap<&str, String> =
        finding.numbers.iter().map(|(name, number)| (name.as_str(), number.to_string())).collect();
    properties.insert("id", key(finding));
    if finding.pods > 0 {
        properties.insert("pods", finding.pods.to_string());
    }
    let texts =
        [("container", finding.container.as_ref()), ("node", finding.node.as_ref()), ("remedy", Some(&finding.remedy))];
    for (name, text) in texts {
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            properties.insert(name, short(&clean(text)));
        }
    }
    if let Some(source) = &finding.source {
        properties.insert("source", short(&format!("{}:{}", clean(&source.file), source.line)));
    }
    json!({
        "rule": short(&clean(&finding.reason)),
        "result": result,
        "scored": finding.severity == Severity::Deny,
        "severity": severity,
        "message": short(&clean(&finding.message)),
        "resources": [resource(finding)],
        "properties": properties,
    })
}

fn resource(finding: &Finding) -> Value {
    let mut resource = json!({ "kind": short(&clean(&finding.kind)), "name": short(&clean(&finding.name)) });
    if let Some(api_version) = api_version(&finding.kind) {
        resource["apiVersion"] = api_version.into();
    }
    if !finding.namespace.is_empty() {
        resource["namespace"] = short(&clean(&finding.namespace)).into();
    }
    resource
}

/// The API version of a kind that the audit looks at.
fn api_version(kind: &str) -> Option<&'static str> {
    match kind {
        "Pod" | "Node" | "Namespace" | "ResourceQuota" | "ReplicationController" | "ConfigMap" => Some("v1"),
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" => Some("apps/v1"),
        "Job" | "CronJob" => Some("batch/v1"),
        "HorizontalPodAutoscaler" => Some("autoscaling/v2"),
        "ResourceClaim" | "ResourceClaimTemplate" | "ResourceSlice" | "DeviceClass" => Some("resource.k8s.io/v1"),
        "ClusterVramPolicy" | "VramPolicy" => Some(keys::API_VERSION),
        _ => None,
    }
}

/// The first [`MAX_MESSAGE`] characters of a text.
fn short(text: &str) -> String {
    match text.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::super::testing::{large, sample};
    use super::*;

    fn documents(text: &str) -> Vec<Value> {
        serde_saphyr::from_multiple::<Value>(text).expect("valid YAML")
    }

    #[test]
    fn the_sample_as_reports_of_both_apis() {
        insta::assert_snapshot!(render(&sample(), ReportApi::OpenReports));
        let other = documents(&render(&sample(), ReportApi::WgPolicy));
        assert!(other.iter().all(|document| document["apiVersion"] == "wgpolicyk8s.io/v1alpha2"));
        let kinds: Vec<&Value> = other.iter().map(|document| &document["kind"]).collect();
        assert_eq!(kinds, ["ClusterPolicyReport", "PolicyReport", "PolicyReport", "PolicyReport"]);
        // A field that the API does not have is an error of `kubectl apply`.
        assert!(other.iter().all(|document| document.get("source").is_none()));
    }

    /// The fields of the CRDs, so that one that does not exist is an error here as it is in an API server.
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    #[expect(dead_code, reason = "what is read matters, and not the values")]
    struct Crd {
        api_version: String,
        kind: String,
        metadata: Value,
        source: Option<String>,
        scope: Option<BTreeMap<String, String>>,
        summary: BTreeMap<String, u64>,
        results: Vec<CrdResult>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    #[expect(dead_code, reason = "what is read matters, and not the values")]
    struct CrdResult {
        source: String,
        policy: String,
        rule: String,
        category: String,
        severity: Option<String>,
        timestamp: BTreeMap<String, i64>,
        result: String,
        #[serde(default)]
        scored: bool,
        #[serde(default)]
        resources: Vec<BTreeMap<String, String>>,
        message: String,
        #[serde(default)]
        properties: BTreeMap<String, String>,
    }

    #[test]
    fn reports_have_the_fields_of_the_apis_and_no_others() {
        for api in [ReportApi::OpenReports, ReportApi::WgPolicy] {
            let read: Vec<Crd> = serde_saphyr::from_multiple(&render(&sample(), api)).expect("the fields of the CRD");
            assert_eq!(read.len(), 4);
            assert_eq!(read.iter().map(|report| report.results.len()).sum::<usize>(), 8);
        }
    }

    #[test]
    fn a_namespace_that_cannot_exist_is_reported_for_the_cluster() {
        let documents = documents(&render(&sample(), ReportApi::OpenReports));
        let cluster = &documents[0];
        assert!(cluster["metadata"].get("namespace").is_none());
        let namespaces: Vec<&Value> =
            documents[1..].iter().map(|document| &document["metadata"]["namespace"]).collect();
        assert_eq!(namespaces, ["agents", "notebooks", "training"]);
        let results = cluster["results"].as_array().expect("results");
        assert!(results.iter().any(|result| result["resources"][0]["namespace"] == "<script>alert(1)</script>"));
    }

    #[test]
    fn a_namespace_without_findings_has_an_empty_report() {
        let documents = documents(&render(&sample(), ReportApi::OpenReports));
        assert_eq!(documents[3]["metadata"]["namespace"], "training");
        assert_eq!(documents[3]["results"], json!([]));
        assert_eq!(documents[3]["summary"], json!({ "pass": 0, "fail": 0, "warn": 0, "error": 0, "skip": 0 }));
    }

    #[test]
    fn a_report_is_bounded_and_says_what_it_leaves_out() {
        let mut report = large();
        let finding = report.findings[0].clone();
        report.findings.resize(620, Finding { message: "x".repeat(5000), ..finding });
        let text = render(&report, ReportApi::OpenReports);
        let documents = documents(&text);
        let notebooks = documents.last().expect("a report");
        let results = notebooks["results"].as_array().expect("results");
        assert_eq!(results.len(), MAX_RESULTS);
        let last = results.last().expect("a result")["message"].as_str().expect("a message");
        assert!(last.starts_with("121 further findings: "), "{last}");
        assert_eq!(notebooks["summary"]["fail"], 620);
        assert!(serde_json::to_string(notebooks).expect("JSON").len() < 1_500_000);
    }

    #[test]
    fn the_name_of_a_namespace_is_a_label_of_rfc_1123() {
        assert_eq!(valid("team-a1"), Some("team-a1"));
        for text in ["", "-a", "a-", "A", "a.b", "a/b", "ä", &"a".repeat(64)] {
            assert_eq!(valid(text), None, "{text}");
        }
    }
}
