//! The sections that are lists: what mode Enforce would do to the pods of today, and the comparison with a baseline.

use std::collections::BTreeSet;

use super::Page;
use super::findings::{SHOWN, more};
use super::grid::{Cell, Column, Grid};
use super::paint::Role;
use super::sections::{described, list};
use crate::report::baseline::key;
use crate::report::document::{Finding, Moved, Refused, Report};
use crate::report::summary::Tone;
use crate::report::text::{count, named};

pub(super) fn enforced(report: &Report, page: &Page) -> Vec<String> {
    let enforced = &report.enforced;
    let counts = [
        (enforced.refused.len(), "refused", Tone::Bad),
        (enforced.waiting.len(), "waiting", Tone::Doubtful),
        (enforced.elsewhere.len(), "on another node", Tone::Plain),
    ];
    let parts: Vec<(String, Tone)> = counts
        .into_iter()
        .filter(|(number, ..)| *number > 0)
        .map(|(number, what, tone)| {
            (format!("{} {what}", count(u64::try_from(number).unwrap_or(u64::MAX), "pod")), tone)
        })
        .collect();
    if parts.is_empty() {
        return Vec::new();
    }
    let paint = &page.paint;
    let mut lines = page.title("IF ENFORCED", &parts);
    let shown = if page.all { enforced.refused.len() } else { SHOWN };
    let refused: Vec<&Refused> = enforced.refused.iter().take(shown).collect();
    // Pods that are refused for the same share the message, as those of one workload do.
    for alike in refused.chunk_by(|one, other| (&one.reason, &one.message) == (&other.reason, &other.message)) {
        for refused in alike {
            let pod = format!("  {}", paint.plain(&named(&refused.namespace, &refused.pod)));
            lines.extend(paint.joined(&[(pod, Role::Plain), (paint.text(&refused.reason), Role::Bad)], page.width));
        }
        lines.extend(paint.wrapped(&alike[0].message, 4, page.width, Role::Faint));
    }
    lines.extend(more(enforced.refused.len(), shown, page));
    lines.extend(moves(report, page));
    lines
}

/// The pods that would wait or be on another node.
fn moves(report: &Report, page: &Page) -> Vec<String> {
    let moved: Vec<&Moved> = report.enforced.waiting.iter().chain(&report.enforced.elsewhere).collect();
    if moved.is_empty() {
        return Vec::new();
    }
    let shown = if page.all { moved.len() } else { 2 * SHOWN };
    let mut grid = Grid::new(vec![Column::name("POD", 24), Column::name("TODAY ON", 16), Column::name("THEN", 16)]);
    for moved in moved.iter().take(shown) {
        let then = moved.to.as_ref().map(|to| Cell::new(page.paint.text(to)));
        grid.push(vec![
            Cell::new(page.paint.plain(&named(&moved.namespace, &moved.pod))),
            Cell::new(page.paint.text(&moved.from)),
            then.unwrap_or_else(|| Cell::with("waits", Role::Doubtful)),
        ]);
    }
    let mut lines: Vec<String> =
        grid.lines(&page.paint, page.width - 2).into_iter().map(|line| format!("  {line}")).collect();
    lines.extend(more(moved.len(), shown, page));
    lines
}

pub(super) fn baseline(report: &Report, page: &Page) -> Vec<String> {
    let Some(baseline) = &report.baseline else { return Vec::new() };
    let tone = |number: usize, tone: Tone| if number > 0 { tone } else { Tone::Plain };
    let (new, gone) = (baseline.new.len(), baseline.gone.len());
    let mut parts = vec![
        (format!("{new} new"), tone(new, Tone::Bad)),
        (format!("{gone} gone"), tone(gone, Tone::Good)),
        (format!("{} the same", baseline.same), Tone::Plain),
    ];
    if !baseline.generated_at.is_empty() {
        parts.push((format!("since {}", page.paint.text(&baseline.generated_at)), Tone::Plain));
    }
    let mut lines = page.title("BASELINE", &parts);
    let ids: BTreeSet<&String> = baseline.new.iter().collect();
    let is_new = |finding: &&Finding| ids.contains(&key(finding));
    let new: Vec<String> = report.findings.iter().filter(is_new).map(|finding| described(finding, page)).collect();
    lines.extend(list("+ ", &new, page, Role::Bad));
    let gone: Vec<String> = baseline.gone.iter().map(|finding| described(finding, page)).collect();
    lines.extend(list("- ", &gone, page, Role::Good));
    lines
}
