//! Metrics of the last audit of a leader that audits.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};

use crate::report::document::{Report, Severity};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Found {
    reason: String,
    severity: &'static str,
}

/// A gauge without a sample while its value is not known.
#[derive(Clone, Debug, Default)]
struct Sample(Arc<Mutex<Option<i64>>>);

impl Sample {
    fn set(&self, value: Option<i64>) {
        *self.0.lock() = value;
    }
}

impl EncodeMetric for Sample {
    fn encode(&self, encoder: MetricEncoder) -> Result<(), std::fmt::Error> {
        let value = *self.0.lock();
        value.map_or(Ok(()), |value| ConstGauge::new(value).encode(encoder))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

/// The metrics of audits.
#[derive(Debug, Default)]
pub(super) struct Audits {
    findings: Family<Found, Gauge>,
    overcommitted: Sample,
    stranded: Sample,
    last_success: Sample,
    failures: Counter,
}

impl Audits {
    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Findings of the last audit, by reason and severity; only on a leader that audits";
        registry.register("audit_findings", help, self.findings.clone());
        let help = "VRAM that is held beyond the allocatable of its GPU, for certain, at the last audit";
        registry.register_with_unit("audit_overcommitted", help, Unit::Bytes, self.overcommitted.clone());
        let help = "VRAM that is free and smaller than the smallest demand that waits, at the last audit; absent if none waits";
        registry.register_with_unit("audit_stranded", help, Unit::Bytes, self.stranded.clone());
        let help = "When the last audit that succeeded ended, in seconds since 1970; only on a leader that audits";
        registry.register("audit_last_success_timestamp_seconds", help, self.last_success.clone());
        let help = "Audits that failed, or whose policy reports could not all be kept";
        registry.register("audit_failures", help, self.failures.clone());
    }

    /// Sets the numbers of a report, and when it was made.
    pub(super) fn set(&self, report: &Report, at: Timestamp) {
        let mut counts: BTreeMap<(&str, &'static str), i64> = BTreeMap::new();
        for finding in &report.findings {
            let severity = match finding.severity {
                Severity::Deny => "deny",
                Severity::Warn => "warn",
                Severity::Info => "info",
            };
            *counts.entry((&finding.reason, severity)).or_default() += 1;
        }
        self.findings.clear();
        for ((reason, severity), count) in counts {
            self.findings.get_or_create(&Found { reason: reason.to_owned(), severity }).set(count);
        }
        self.overcommitted.set(Some(bytes(report.summary.overcommitted_mib)));
        self.stranded.set(report.summary.stranded_mib.map(bytes));
        self.last_success.set(Some(at.as_second()));
    }

    /// Removes the numbers: another replica leads.
    pub(super) fn clear(&self) {
        self.findings.clear();
        for sample in [&self.overcommitted, &self.stranded, &self.last_success] {
            sample.set(None);
        }
    }

    pub(super) fn failed(&self) {
        self.failures.inc();
    }
}

fn bytes(mib: u64) -> i64 {
    i64::try_from(mib.saturating_mul(1 << 20)).unwrap_or(i64::MAX)
}
