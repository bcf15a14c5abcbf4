//! The findings, grouped by reason. Owns their order, anchors and markup.

use std::collections::{BTreeMap, BTreeSet};

use maud::{Markup, html};

use super::text::{counted, grouped};
use crate::report::document::{Finding, Report, Severity};

/// Number of findings of one reason that the page shows before its script runs.
pub(super) const FIRST: usize = 10;

/// The findings of one severity and reason.
pub(super) struct Group<'a> {
    pub(super) severity: Severity,
    pub(super) reason: &'a str,
    pub(super) findings: Vec<View<'a>>,
}

/// One finding with what the page adds to it.
pub(super) struct View<'a> {
    pub(super) finding: &'a Finding,
    /// The id of its element.
    pub(super) anchor: String,
    /// Whether the earlier report of the comparison does not have it.
    pub(super) is_new: bool,
}

impl View<'_> {
    /// Where the object is written, such as `agents.yaml:12`.
    pub(super) fn source(&self) -> Option<String> {
        self.finding.source.as_ref().map(|source| format!("{}:{}", source.file, source.line))
    }
}

/// Groups the findings of a report: the most severe first, then in their order in the report.
pub(super) fn groups(report: &Report) -> Vec<Group<'_>> {
    let new: BTreeSet<&str> = report.baseline.iter().flat_map(|baseline| &baseline.new).map(String::as_str).collect();
    let mut anchors = BTreeSet::new();
    let mut places: BTreeMap<(Severity, &str), usize> = BTreeMap::new();
    let mut groups: Vec<Group> = Vec::new();
    for (index, finding) in report.findings.iter().enumerate() {
        let place = *places.entry((finding.severity, &finding.reason)).or_insert_with(|| {
            groups.push(Group { severity: finding.severity, reason: &finding.reason, findings: Vec::new() });
            groups.len() - 1
        });
        let is_new = new.contains(finding.id.as_str());
        groups[place].findings.push(View { finding, anchor: anchor(&finding.id, index, &mut anchors), is_new });
    }
    groups.sort_by_key(|group| group.severity); // stable: reasons stay in their order
    groups
}

/// The id of the element of a finding: from the finding's own, if that is a plain word that no other finding has.
fn anchor<'a>(id: &'a str, index: usize, taken: &mut BTreeSet<&'a str>) -> String {
    let plain = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if plain && taken.insert(id) { format!("f-{id}") } else { format!("f-{index}_") }
}

/// The word and the sign of a severity. The sign tells severities apart without colour.
pub(super) fn severity(severity: Severity) -> (&'static str, &'static str) {
    match severity {
        Severity::Deny => ("deny", "■"),
        Severity::Warn => ("warn", "▲"),
        Severity::Info => ("info", "●"),
    }
}

/// The section of findings.
pub(super) fn section(groups: &[Group]) -> Markup {
    html! {
        @for group in groups {
            (group_markup(group))
        }
        @if groups.is_empty() {
            p class="none" { "No findings." }
        }
    }
}

fn group_markup(group: &Group) -> Markup {
    let (word, sign) = severity(group.severity);
    let left = group.findings.len().saturating_sub(FIRST);
    html! {
        div class={ "group " (word) } {
            h3 {
                span class={ "badge " (word) } { span aria-hidden="true" { (sign) } " " (word) } " "
                span class="reason" { (group.reason) } " "
                span class="count" { (counted(group.findings.len() as u64, "finding")) }
            }
            ul class="findings" {
                @for view in group.findings.iter().take(FIRST) { (finding_markup(view)) }
            }
            @if left > 0 {
                p class="more" { (grouped(left as u64)) " more of this reason are in this file. They need JavaScript." }
            }
        }
    }
}

/// `namespace/name`, or the name alone.
pub(super) fn object(finding: &Finding) -> String {
    match finding.namespace.as_str() {
        "" => finding.name.clone(),
        namespace => format!("{namespace}/{}", finding.name),
    }
}

/// One finding. `page.js` builds the same elements.
fn finding_markup(view: &View) -> Markup {
    let finding = view.finding;
    let object = object(finding);
    let mut facts = Vec::new();
    facts.extend(finding.container.as_ref().map(|container| format!("container {container}")));
    facts.extend(finding.node.as_ref().map(|node| format!("node {node}")));
    facts.extend((finding.pods > 1).then(|| counted(finding.pods, "pod")));
    facts.extend(view.source());
    html! {
        li class="finding" id=(view.anchor) {
            div class="what" {
                p class="object" {
                    span class="kind" { (finding.kind) } " " strong { (object) } " "
                    @if view.is_new { span class="new" { "new" } " " }
                    @if !facts.is_empty() { span class="facts" { (facts.join(" · ")) } " " }
                    a class="link" href={ "#" (view.anchor) } aria-label={ "Link to the finding about " (object) } { "#" }
                }
                p class="message" { (finding.message) }
            }
            @if !finding.remedy.is_empty() {
                div class="remedy" {
                    pre tabindex="0" role="group" aria-label={ "Remedy for " (object) } { code { (finding.remedy) } }
                    button type="button" class="copy" aria-label={ "Copy the remedy for " (object) } { "Copy" }
                }
            }
        }
    }
}
