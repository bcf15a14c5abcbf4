//! A report about one namespace.

use super::document::{Report, Severity};

impl Report {
    /// Leaves out what is about other namespaces. GPUs and nodes stay, with what others hold there, and so do findings
    /// about them.
    pub fn narrow(&mut self, namespace: &str) {
        let is_here = |other: &str| other == namespace;
        self.namespaces.retain(|known| is_here(&known.namespace));
        self.workloads.retain(|workload| is_here(&workload.namespace));
        self.findings.retain(|finding| {
            let about_namespace = finding.kind == "Namespace" && is_here(&finding.name);
            is_here(&finding.namespace)
                || finding.namespace.is_empty() && (finding.kind != "Namespace" || about_namespace)
        });
        self.enforced.refused.retain(|pod| is_here(&pod.namespace));
        self.enforced.waiting.retain(|pod| is_here(&pod.namespace));
        self.enforced.elsewhere.retain(|pod| is_here(&pod.namespace));
        let of = |severity| self.findings.iter().filter(|finding| finding.severity == severity).count() as u64;
        let summary = &mut self.summary;
        (summary.deny, summary.warn, summary.info) = (of(Severity::Deny), of(Severity::Warn), of(Severity::Info));
        summary.undeclared_pods = self.namespaces.iter().map(|known| known.undeclared_pods).sum();
        summary.gpu_pods = self.namespaces.iter().map(|known| known.pods).sum();
        summary.waiting_pods = self.namespaces.iter().map(|known| known.waiting_pods).sum();
        summary.refused_pods = self.enforced.refused.len() as u64;
        if let Some(assumed) = &mut self.assumed {
            assumed.report.narrow(namespace);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_about_one_namespace_keeps_the_gpus_and_counts_anew() {
        let sample = include_str!("../../tests/reports/sample.json");
        let mut report: Report = serde_json::from_str(sample).expect("the sample is a report");
        let gpus = report.gpus.clone();
        report.narrow("notebooks");
        assert_eq!(report.gpus, gpus);
        assert_eq!(report.namespaces.len(), 1);
        let reasons: Vec<&str> = report.findings.iter().map(|finding| finding.reason.as_str()).collect();
        assert_eq!(reasons, ["GpuOvercommitted", "VramUndeclared", "StrandedVram"]);
        assert_eq!((report.summary.deny, report.summary.warn, report.summary.info), (2, 0, 1));
        assert_eq!((report.summary.undeclared_pods, report.summary.refused_pods), (1, 1));
    }
}
