//! Reports for the tests of all formats.

use super::document::{Assumed, Finding, Report, Severity, Status};

/// The report of `tests/reports/sample.json`, which has each field and texts of an attacker.
pub(super) fn sample() -> Report {
    serde_json::from_str(include_str!("../../tests/reports/sample.json")).expect("the sample is a report")
}

/// The sample with a baseline and an assumption.
pub(super) fn compared() -> Report {
    let mut report = sample();
    let mut earlier = sample();
    earlier.generated_at = "2026-11-28T12:00:00Z".into();
    earlier.findings.retain(|finding| finding.reason != "VramUnreadable");
    let gone = Finding {
        id: "a1b2c3d4e5f60008".into(),
        name: "batch-1".into(),
        namespace: "training".into(),
        ..sample().findings.remove(1)
    };
    earlier.findings.push(gone);
    super::baseline::compare(&mut report, &earlier);
    let mut assumed = sample();
    assumed.findings.retain(|finding| finding.reason != "GpuOvercommitted");
    assumed.findings[0].id = "a1b2c3d4e5f60009".into();
    assumed.summary.overcommitted_gpus = 0;
    assumed.summary.deny = 2;
    assumed.summary.held_mib = 112_875;
    assumed.gpus[0].status = Status::Full;
    report.assumed =
        Some(Assumed { assumptions: vec!["replicas=2".into(), "mode=Enforce".into()], report: Box::new(assumed) });
    report
}

/// A report of a large cluster: 250 idle nodes with 8 GPUs each, and 8 overcommitted ones; one reason has 400 findings.
pub(super) fn large() -> Report {
    let sample = sample();
    let mut report = Report { summary: sample.summary.clone(), ..Report::default() };
    for number in 0..250 {
        let mut node = sample.nodes[1].clone();
        node.node = format!("gpu-pool-a100-node-{number:04}");
        node.mode = "steered".into();
        node.unassigned.clear();
        for index in 0..8 {
            let mut gpu = sample.gpus[0].clone();
            gpu.node.clone_from(&node.node);
            gpu.gpu = index.to_string();
            gpu.mode = "steered".into();
            (gpu.used_mib, gpu.outside_mib) = (None, None);
            for holder in &mut gpu.holders {
                (holder.used_mib, holder.peak_mib, holder.idle_seconds, holder.problem) = (None, None, None, None);
            }
            let bad = index == 3 && number % 31 == 0;
            if !bad {
                gpu.holders.clear();
                gpu.held_mib = 0;
                gpu.free_mib = Some(gpu.allocatable_mib);
                gpu.overcommitted = false;
                gpu.status = Status::Ok;
            } else {
                gpu.held_mib += number;
            }
            report.gpus.push(gpu);
        }
        report.nodes.push(node);
    }
    for number in 0..400 {
        let mut finding = sample.findings[1].clone();
        finding.name = format!("notebook-{number}");
        finding.id = format!("{number:016x}");
        finding.severity = Severity::Deny;
        report.findings.push(finding);
    }
    report.summary.gpus = 2000;
    report.summary.nodes = 250;
    report.summary.deny = 400;
    report
}
