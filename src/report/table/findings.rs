//! The findings, grouped by reason, the most severe first. Each has its object, message and remedy.

use std::collections::BTreeSet;

use super::Page;
use super::paint::Role;
use crate::report::baseline::{key, new_ids};
use crate::report::document::{Finding, Report};
use crate::report::summary::{Group, Tone, groups, severities};
use crate::report::text::{count, object, severity};

/// The largest number of findings of a group without `--all`.
pub(super) const SHOWN: usize = 5;

pub(super) fn section(report: &Report, page: &Page) -> Vec<String> {
    if report.findings.is_empty() {
        return page.title("FINDINGS", &[("none".to_owned(), Tone::Good)]);
    }
    let new = new_ids(report).unwrap_or_default();
    let mut lines = page.title("FINDINGS", &severities(&report.summary));
    for group in groups(report) {
        lines.push(String::new());
        lines.extend(of_group(&group, &new, page));
    }
    lines
}

fn of_group(group: &Group<'_>, new: &BTreeSet<String>, page: &Page) -> Vec<String> {
    let paint = &page.paint;
    let role = Role::of(Tone::of(group.severity));
    let mut heading = vec![(format!("{} {}", severity(group.severity), paint.text(group.reason)), role)];
    if group.findings.len() > 1 {
        heading.push((group.extent(), Role::Faint));
    }
    let mut lines = paint.joined(&heading, page.width);
    let shown = if page.all { group.findings.len() } else { SHOWN };
    let findings: Vec<&Finding> = group.findings.iter().take(shown).copied().collect();
    // Objects about which the same is said share the message.
    for alike in findings.chunk_by(|one, other| (&one.message, &one.remedy) == (&other.message, &other.remedy)) {
        alike.iter().for_each(|finding| lines.extend(about(finding, new.contains(&key(finding)), page)));
        lines.extend(advice(alike[0], page));
    }
    lines.extend(more(group.findings.len(), shown, page));
    lines
}

/// The object of a finding, and where it is.
fn about(finding: &Finding, is_new: bool, page: &Page) -> Vec<String> {
    let paint = &page.paint;
    let mut about = vec![(format!("  {} {}", paint.text(&finding.kind), paint.plain(&object(finding))), Role::Name)];
    let mut add = |text: String, role: Role| about.push((text, role));
    if finding.pods > 1 {
        add(count(finding.pods, "pod"), Role::Plain);
    }
    if let Some(node) = &finding.node {
        add(format!("on {}", paint.text(node)), Role::Plain);
    }
    if let Some(source) = &finding.source {
        add(format!("{}:{}", paint.text(&source.file), source.line), Role::Plain);
    }
    if is_new {
        add("new".to_owned(), Role::Doubtful);
    }
    paint.joined(&about, page.width)
}

/// What is the matter and what to do.
fn advice(finding: &Finding, page: &Page) -> Vec<String> {
    let paint = &page.paint;
    let mut lines = paint.wrapped(&finding.message, 4, page.width, Role::Plain);
    if !finding.remedy.is_empty() {
        // Not wrapped: it may be a line to paste.
        let remedy = paint.role(&paint.text(&finding.remedy), Role::Command);
        lines.push(format!("    {} {remedy}", paint.role("→", Role::Faint)));
    }
    lines
}

/// The line about the entries of a list that are not shown, if there are any.
pub(super) fn more(all: usize, shown: usize, page: &Page) -> Option<String> {
    (all > shown).then(|| page.paint.role(&format!("  … and {} more (--all)", all - shown), Role::Faint))
}
