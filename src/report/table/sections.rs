//! The smaller tables: what could not be read, namespaces, workloads that cannot grow, and the assumptions.

use std::collections::{BTreeMap, BTreeSet};

use super::Page;
use super::findings::more;
use super::grid::{Cell, Column, Grid};
use super::paint::Role;
use crate::report::baseline::key;
use crate::report::document::{Assumed, Finding, Namespace, Report, Status, Summary};
use crate::report::summary::{self, Tone, missing};
use crate::report::text::{count, named, object, room_gib, taken_gib};

/// The largest number of rows of a table without `--all`.
const ROWS: usize = 10;

pub(super) fn gaps(report: &Report, page: &Page) -> Vec<String> {
    let mut lines = Vec::new();
    for gap in &report.gaps {
        let text = format!("not read: {}: {}", gap.what, gap.why);
        let mut wrapped = page.paint.wrapped(&text, 2, page.width, Role::Doubtful);
        wrapped[0] = wrapped[0].replacen("  ", "", 1);
        lines.extend(wrapped);
    }
    lines
}

/// Indents all lines but the first, which is a title.
fn under(mut title: Vec<String>, lines: Vec<String>) -> Vec<String> {
    title.extend(lines.into_iter().map(|line| format!("  {line}")));
    title
}

pub(super) fn namespaces(report: &Report, page: &Page) -> Vec<String> {
    if report.namespaces.is_empty() {
        return Vec::new();
    }
    let mut all: Vec<&Namespace> = report.namespaces.iter().collect();
    all.sort_by_key(|space| std::cmp::Reverse((space.refused_pods, space.undeclared_pods, space.held_mib)));
    let shown = if page.all { all.len() } else { ROWS };
    let mut columns = vec![Column::name("NAMESPACE", 20), Column::word("POLICY")];
    columns.extend(["PODS", "UNDECL", "REFUSED", "DECLARED", "HELD", "QUOTA"].map(Column::number));
    let mut grid = Grid::new(columns);
    let counted = |number: u64, role: Role| Cell::with(number.to_string(), if number > 0 { role } else { Role::Plain });
    for space in all.iter().take(shown) {
        let is_above = space.quota_mib.is_some_and(|quota| space.declared_mib > quota);
        let declared = Cell::with(taken_gib(space.declared_mib), if is_above { Role::Bad } else { Role::Plain });
        grid.push(vec![
            Cell::new(page.paint.text(&space.namespace)),
            Cell::new(page.paint.text(&space.mode)),
            Cell::new(space.pods.to_string()),
            counted(space.undeclared_pods, Role::Doubtful),
            counted(space.refused_pods, Role::Bad),
            declared,
            Cell::new(taken_gib(space.held_mib)),
            space.quota_mib.map_or(Cell::with("none", Role::Faint), |quota| Cell::new(room_gib(quota))),
        ]);
    }
    let mut lines = page.title("NAMESPACES", &[("in GiB".to_owned(), Tone::Plain)]);
    lines.extend(grid.lines(&page.paint, page.width));
    lines.extend(more(all.len(), shown, page));
    lines
}

pub(super) fn cramped(report: &Report, page: &Page) -> Vec<String> {
    let cramped = summary::cramped(report);
    if cramped.is_empty() {
        return Vec::new();
    }
    let shown = if page.all { cramped.len() } else { ROWS };
    let mut columns = vec![Column::name("WORKLOAD", 24)];
    columns.extend(["EACH", "NOW", "MAX", "FIT", "SHORT"].map(Column::number));
    let mut grid = Grid::new(columns);
    for workload in cramped.iter().take(shown) {
        let name = named(&workload.namespace, &workload.name);
        grid.push(vec![
            Cell::new(page.paint.plain(&format!("{} {name}", page.paint.text(&workload.kind)))),
            Cell::known(workload.demand_mib.map(taken_gib)),
            Cell::new(workload.replicas.to_string()),
            Cell::new(workload.max_replicas.to_string()),
            Cell::known(workload.fits_more.map(|more| format!("+{more}"))),
            missing(workload).map_or(Cell::known(None::<u64>), |short| Cell::with(short.to_string(), Role::Doubtful)),
        ]);
    }
    let what = "fewer pods fit than an autoscaler or a rollout may ask for".to_owned();
    let mut lines = page.title("CANNOT GROW", &[(what, Tone::Plain)]);
    lines = under(lines, grid.lines(&page.paint, page.width - 2));
    lines.extend(more(cramped.len(), shown, page));
    lines
}

/// The rows that are shown even if the assumptions do not change them.
const ALWAYS: [&str; 2] = ["overcommitted GPUs", "pods that would be refused"];

/// An amount that is compared, in MiB, whether more of it is worse, and how it is written.
type Amount = (&'static str, fn(&Summary) -> Option<u64>, bool, fn(u64) -> String);

const HELD: &str = "held, GiB";

pub(super) fn assumed(report: &Report, page: &Page) -> Vec<String> {
    let Some(assumed) = &report.assumed else { return Vec::new() };
    let (now, then) = (&report.summary, &assumed.report.summary);
    let mut grid =
        Grid::new(vec![Column::word(""), Column::number("TODAY"), Column::number("ASSUMED"), Column::number("CHANGE")]);
    for (name, number, is_bad) in summary::COUNTED {
        let (before, after) = (number(now), number(then));
        if before != after || ALWAYS.contains(&name) {
            grid.push(vec![
                Cell::new(name),
                Cell::new(before.to_string()),
                Cell::new(after.to_string()),
                change(before, after, is_bad, &u64::to_string),
            ]);
        }
    }
    let amounts: [Amount; 3] = [
        (HELD, |s| Some(s.held_mib), false, taken_gib),
        ("allocatable, GiB", |s| Some(s.allocatable_mib), false, room_gib),
        ("stranded, GiB", |s| s.stranded_mib, true, room_gib),
    ];
    for (name, amount, is_bad, gib) in amounts {
        let (before, after) = (amount(now), amount(then));
        if before == after && name != HELD {
            continue;
        }
        let change = match (before, after) {
            (Some(before), Some(after)) => change(before, after, is_bad, &|mib| gib(*mib)),
            _ => Cell::known(None::<u64>),
        };
        grid.push(vec![Cell::new(name), Cell::known(before.map(gib)), Cell::known(after.map(gib)), change]);
    }
    let assumptions: Vec<(String, Tone)> =
        assumed.assumptions.iter().map(|text| (page.paint.text(text), Tone::Plain)).collect();
    let mut lines = under(page.title("ASSUMED", &assumptions), grid.lines(&page.paint, page.width - 2));
    lines.extend(changes(report, assumed, page));
    lines
}

fn change(before: u64, after: u64, is_bad: bool, show: &dyn Fn(&u64) -> String) -> Cell {
    let tone = |worse: bool| match (is_bad, worse) {
        (false, _) => Role::Plain,
        (true, true) => Role::Bad,
        (true, false) => Role::Good,
    };
    match after.cmp(&before) {
        std::cmp::Ordering::Equal => Cell::with("=", Role::Faint),
        std::cmp::Ordering::Greater => Cell::with(format!("+{}", show(&(after - before))), tone(true)),
        std::cmp::Ordering::Less => Cell::with(format!("-{}", show(&(before - after))), tone(false)),
    }
}

/// What the assumptions change: the status of GPUs, and which findings come and go.
fn changes(report: &Report, assumed: &Assumed, page: &Page) -> Vec<String> {
    let then: BTreeMap<(&str, &str), Status> =
        assumed.report.gpus.iter().map(|gpu| ((gpu.node.as_str(), gpu.gpu.as_str()), gpu.status)).collect();
    let mut lines = Vec::new();
    let known = |gpu: &(&str, &str)| then.get(gpu).copied();
    let mut listed: Vec<String> = Vec::new();
    for gpu in &report.gpus {
        let status = known(&(&gpu.node, &gpu.gpu)).filter(|status| *status != gpu.status);
        listed.extend(status.map(|status| {
            let (node, index) = (page.paint.text(&gpu.node), page.paint.text(&gpu.gpu));
            format!("GPU {index} of {node}: {} → {}", status_word(gpu.status), status_word(status))
        }));
    }
    lines.extend(list("", &listed, page, Role::Plain));
    let ids = |report: &Report| report.findings.iter().map(key).collect::<BTreeSet<_>>();
    let (before, after) = (ids(report), ids(&assumed.report));
    let only = |report: &Report, other: &BTreeSet<String>| {
        let only = report.findings.iter().filter(|finding| !other.contains(&key(finding)));
        only.map(|finding| described(finding, page)).collect::<Vec<_>>()
    };
    lines.extend(list("+ ", &only(&assumed.report, &before), page, Role::Bad));
    lines.extend(list("- ", &only(report, &after), page, Role::Good));
    lines
}

fn status_word(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::Full => "full",
        Status::Unknown => "unknown",
        Status::MaybeOvercommitted => "maybe overcommitted",
        Status::Overcommitted => "overcommitted",
    }
}

/// A finding in one line.
pub(super) fn described(finding: &Finding, page: &Page) -> String {
    let (reason, kind) = (page.paint.text(&finding.reason), page.paint.text(&finding.kind));
    let pods = if finding.pods > 1 { format!(", {}", count(finding.pods, "pod")) } else { String::new() };
    page.paint.plain(&format!("{reason} {kind} {}{pods}", object(finding)))
}

/// Lines with a sign before each, and how many more there are.
pub(super) fn list(sign: &str, lines: &[String], page: &Page, role: Role) -> Vec<String> {
    let shown = if page.all { lines.len() } else { super::findings::SHOWN };
    let room = page.width.saturating_sub(2 + sign.len());
    let line =
        |text: &String| format!("  {}{}", page.paint.role(sign, role), page.paint.cut(&page.paint.plain(text), room));
    let mut all: Vec<String> = lines.iter().take(shown).map(line).collect();
    all.extend(more(lines.len(), shown, page));
    all
}
