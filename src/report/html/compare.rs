//! The report next to another: under assumptions, and with an earlier one. Owns both comparisons.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::findings::{View, object, severity};
use super::text::{UNKNOWN, counted, grouped, room, taken, time};
use crate::report::document::{Assumed, Baseline, Finding, Report, Summary};

/// Number of findings that a comparison lists.
const FIRST: usize = 100;

/// A total in both reports.
struct Line {
    name: &'static str,
    amount: fn(&Summary) -> Option<u64>,
    shown: fn(u64) -> String,
    /// Whether more is worse; `None` if more is neither.
    more_is_worse: Option<bool>,
}

const LINES: [Line; 12] = [
    Line { name: "GPUs", amount: |s| Some(s.gpus), shown: grouped, more_is_worse: None },
    Line { name: "Allocatable GiB", amount: |s| Some(s.allocatable_mib), shown: room, more_is_worse: None },
    Line { name: "Held GiB", amount: |s| Some(s.held_mib), shown: taken, more_is_worse: None },
    Line { name: "Stranded GiB", amount: |s| s.stranded_mib, shown: room, more_is_worse: Some(true) },
    Line {
        name: "Overcommitted GPUs",
        amount: |s| Some(s.overcommitted_gpus),
        shown: grouped,
        more_is_worse: Some(true),
    },
    Line {
        name: "Nodes that may be overcommitted",
        amount: |s| Some(s.maybe_overcommitted_nodes),
        shown: grouped,
        more_is_worse: Some(true),
    },
    Line { name: "Nodes not known", amount: |s| Some(s.unknown_nodes), shown: grouped, more_is_worse: Some(true) },
    Line {
        name: "Pods refused under Enforce",
        amount: |s| Some(s.refused_pods),
        shown: grouped,
        more_is_worse: Some(true),
    },
    Line { name: "Pods waiting", amount: |s| Some(s.waiting_pods), shown: grouped, more_is_worse: Some(true) },
    Line { name: "Findings: deny", amount: |s| Some(s.deny), shown: grouped, more_is_worse: Some(true) },
    Line { name: "Findings: warn", amount: |s| Some(s.warn), shown: grouped, more_is_worse: Some(true) },
    Line { name: "Findings: info", amount: |s| Some(s.info), shown: grouped, more_is_worse: None },
];

impl Line {
    fn markup(&self, today: &Summary, then: &Summary) -> Markup {
        let (today, then) = ((self.amount)(today), (self.amount)(then));
        let show = |amount: Option<u64>| amount.map_or_else(|| UNKNOWN.to_owned(), self.shown);
        let (class, difference) = match (today, then) {
            (Some(today), Some(then)) if then > today => (
                self.more_is_worse.map(|worse| if worse { "worse" } else { "better" }),
                format!("+{}", (self.shown)(then - today)),
            ),
            (Some(today), Some(then)) if then < today => (
                self.more_is_worse.map(|worse| if worse { "better" } else { "worse" }),
                format!("−{}", (self.shown)(today - then)),
            ),
            (Some(_), Some(_)) => (None, "same".to_owned()),
            _ => (None, UNKNOWN.to_owned()),
        };
        html! {
            tr {
                th scope="row" { (self.name) }
                td class="n" { (show(today)) }
                td class="n" { (show(then)) }
                td class="n" { span class=[class] { (difference) @if let Some(class) = class { " (" (class) ")" } } }
            }
        }
    }
}

/// The report of today next to the one under assumptions.
pub(super) fn assumed(report: &Report, assumed: &Assumed) -> Markup {
    let by_id = |report: &'_ Report| -> BTreeMap<String, Finding> {
        report.findings.iter().map(|finding| (finding.id.clone(), finding.clone())).collect()
    };
    let (today, then) = (by_id(report), by_id(&assumed.report));
    let appear: Vec<&Finding> =
        then.iter().filter(|(id, _)| !today.contains_key(*id)).map(|(_, finding)| finding).collect();
    let vanish: Vec<&Finding> =
        today.iter().filter(|(id, _)| !then.contains_key(*id)).map(|(_, finding)| finding).collect();
    html! {
        p { "Assumed: " @for (index, text) in assumed.assumptions.iter().enumerate() { @if index > 0 { ", " } code { (text) } } "." }
        div class="scroll" tabindex="0" role="region" aria-label="Totals of today and under the assumptions" {
            table class="compare" {
                caption class="hidden" { "Totals of today and under the assumptions" }
                thead { tr {
                    th scope="col" { "Total" }
                    th scope="col" class="n" { "Today" }
                    th scope="col" class="n" { "Assumed" }
                    th scope="col" class="n" { "Difference" }
                } }
                tbody { @for line in &LINES { (line.markup(&report.summary, &assumed.report.summary)) } }
            }
        }
        (list("Findings that would appear", &appear))
        (list("Findings that would go", &vanish))
    }
}

/// What is new and gone since an earlier report.
pub(super) fn baseline<'a>(baseline: &'a Baseline, findings: impl Iterator<Item = &'a View<'a>>) -> Markup {
    let new: Vec<&View> = findings.filter(|view| view.is_new).collect();
    let gone: Vec<&Finding> = baseline.gone.iter().collect();
    html! {
        p {
            "Since the report of " (time(&baseline.generated_at)) ": "
            b { (counted(baseline.new.len() as u64, "finding")) " new" } ", "
            b { (grouped(gone.len() as u64)) " gone" } ", " b { (grouped(baseline.same)) " the same" } "."
        }
        @if !new.is_empty() {
            h3 { "New " span class="count" { (grouped(new.len() as u64)) } }
            ul class="plain" {
                @for view in new.iter().take(FIRST) {
                    li { a href={ "#" (view.anchor) } { (summary(view.finding)) } }
                }
                (rest(new.len()))
            }
        }
        (list("Gone", &gone))
    }
}

fn list(title: &str, findings: &[&Finding]) -> Markup {
    html! {
        @if !findings.is_empty() {
            h3 { (title) " " span class="count" { (grouped(findings.len() as u64)) } }
            ul class="plain" {
                @for finding in findings.iter().take(FIRST) { li { (summary(finding)) } }
                (rest(findings.len()))
            }
        }
    }
}

fn summary(finding: &Finding) -> Markup {
    let (word, sign) = severity(finding.severity);
    html! {
        span class={ "badge " (word) } { span aria-hidden="true" { (sign) } " " (word) } " "
        (finding.reason) " " (finding.kind) " " (object(finding))
    }
}

fn rest(all: usize) -> Markup {
    html! { @if all > FIRST { li { (grouped((all - FIRST) as u64)) " more" } } }
}
