//! Several reports as lines over time. Owns the charts and the table with their numbers.

use std::fmt::Write as _;

use maud::{Markup, html};

use super::text::{grouped, instant, room, taken, time};
use crate::report::document::{Report, Summary};

/// Size of a chart.
const SIZE: (f64, f64) = (360.0, 148.0);
/// The left, right, top and bottom edge of the lines in it.
const PLOT: (f64, f64, f64, f64) = (8.0, 286.0, 14.0, 122.0);
/// Up to so many reports, each has a dot.
const DOTS: usize = 40;
/// Least distance between the labels of two lines.
const LABEL: f64 = 13.0;

/// One line of a chart.
struct Line {
    name: &'static str,
    class: &'static str,
    amount: fn(&Summary) -> u64,
    shown: fn(u64) -> String,
}

/// One chart.
struct Chart {
    title: &'static str,
    shown: fn(u64) -> String,
    lines: &'static [Line],
}

const CHARTS: [Chart; 3] = [
    Chart {
        title: "Memory, GiB",
        shown: room,
        lines: &[
            Line { name: "allocatable", class: "quiet", amount: |summary| summary.allocatable_mib, shown: room },
            Line { name: "held", class: "main", amount: |summary| summary.held_mib, shown: taken },
        ],
    },
    Chart {
        title: "Overcommitted GPUs",
        shown: grouped,
        lines: &[Line { name: "certain", class: "bad", amount: |summary| summary.overcommitted_gpus, shown: grouped }],
    },
    Chart {
        title: "Findings",
        shown: grouped,
        lines: &[
            Line { name: "warn", class: "doubtful", amount: |summary| summary.warn, shown: grouped },
            Line { name: "deny", class: "bad", amount: |summary| summary.deny, shown: grouped },
        ],
    },
];

/// The reports in the order of their times. A report without a time comes before the others.
pub(super) fn ordered(reports: &[Report]) -> Vec<&Report> {
    let mut ordered: Vec<&Report> = reports.iter().collect();
    ordered.sort_by_key(|report| instant(&report.generated_at)); // stable: equal times stay in order
    ordered
}

/// The section of the trend.
pub(super) fn section(reports: &[&Report]) -> Markup {
    let places = places(reports);
    html! {
        div class="charts" { @for (index, chart) in CHARTS.iter().enumerate() { (chart.markup(index, reports, &places)) } }
        (numbers(reports))
    }
}

/// The place of each report from left to right: by time, or evenly if a time is missing or all are the same.
fn places(reports: &[&Report]) -> Vec<f64> {
    let times: Option<Vec<f64>> = reports
        .iter()
        .map(|report| instant(&report.generated_at).map(|time| time.as_duration().as_secs_f64()))
        .collect();
    let (left, right, ..) = PLOT;
    let place = |part: f64| left + part * (right - left);
    match times.as_deref() {
        Some([first, .., last]) if last > first => {
            times.iter().flatten().map(|time| place((time - first) / (last - first))).collect()
        }
        _ => (0..reports.len()).map(|index| place(index as f64 / (reports.len().max(2) - 1) as f64)).collect(),
    }
}

impl Chart {
    fn markup(&self, index: usize, reports: &[&Report], places: &[f64]) -> Markup {
        let amounts = |line: &Line| reports.iter().map(|report| (line.amount)(&report.summary)).collect::<Vec<u64>>();
        let most = self.lines.iter().flat_map(amounts).max().unwrap_or(0).max(1);
        let (left, right, top, bottom) = PLOT;
        let height = |amount: u64| bottom - (amount as f64 / most as f64) * (bottom - top);
        let (first, last) = (reports.first(), reports.last());
        let day = |report: Option<&&Report>| {
            report.map_or_else(String::new, |report| time(&report.generated_at).chars().take(10).collect())
        };
        html! {
            figure {
                figcaption id={ "chart-" (index) } { (self.title) }
                svg viewBox={ "0 0 " (SIZE.0) " " (SIZE.1) } role="img" aria-labelledby={ "chart-" (index) " chart-" (index) "-d" } {
                    desc id={ "chart-" (index) "-d" } { (self.description(reports)) }
                    line class="axis" x1=(left) x2=(right) y1=(bottom) y2=(bottom) {}
                    line class="grid" x1=(left) x2=(right) y1=(top) y2=(top) {}
                    text class="tick" x=(left) y=(top - 4.0) { ((self.shown)(most)) }
                    text class="tick" x=(left) y=(SIZE.1 - 10.0) { (day(first)) }
                    text class="tick" x=(right) y=(SIZE.1 - 10.0) text-anchor="end" { (day(last)) }
                    @for (line, label) in self.lines.iter().zip(self.labels(reports, height)) {
                        @let points: Vec<(f64, f64)> = places.iter().copied().zip(amounts(line).into_iter().map(height)).collect();
                        polyline class=(line.class) points=(path(&points)) {}
                        @if points.len() <= DOTS {
                            @for (x, y) in &points { circle class=(line.class) cx=(short(*x)) cy=(short(*y)) r="2.5" {} }
                        }
                        text class={ "end " (line.class) } x=(right + 7.0) y=(short(label)) { (line.name) }
                    }
                }
            }
        }
    }

    /// Where the labels of the lines are: next to their last point, and not on each other.
    fn labels(&self, reports: &[&Report], height: impl Fn(u64) -> f64) -> Vec<f64> {
        let last = |line: &Line| reports.last().map_or(0, |report| (line.amount)(&report.summary));
        let mut labels: Vec<f64> = self.lines.iter().map(|line| height(last(line)) + 4.0).collect();
        if let [above, below] = labels.as_mut_slice() {
            let middle = f64::midpoint(*above, *below);
            if (*above - *below).abs() < LABEL {
                let sign = if above > below { -1.0 } else { 1.0 };
                *above = middle - sign * LABEL / 2.0;
                *below = middle + sign * LABEL / 2.0;
            }
        }
        labels
    }

    fn description(&self, reports: &[&Report]) -> String {
        let mut text = String::new();
        if let [first, .., last] = reports {
            for line in self.lines {
                let (from, to) = ((line.amount)(&first.summary), (line.amount)(&last.summary));
                let _ = write!(text, "{} from {} to {}. ", line.name, (line.shown)(from), (line.shown)(to));
            }
        }
        text
    }
}

fn path(points: &[(f64, f64)]) -> String {
    points.iter().map(|(x, y)| format!("{},{}", short(*x), short(*y))).collect::<Vec<_>>().join(" ")
}

fn short(place: f64) -> String {
    format!("{place:.1}")
}

/// The numbers of the charts.
fn numbers(reports: &[&Report]) -> Markup {
    let several = reports.iter().any(|report| report.cluster != reports[0].cluster);
    html! {
        details {
            summary { "Numbers of " (reports.len()) " reports" }
            div class="scroll" tabindex="0" role="region" aria-label="Numbers of the reports" {
                table {
                    caption class="hidden" { "Totals of each report, the latest last" }
                    thead { tr {
                        th scope="col" { "Report" }
                        @if several { th scope="col" { "Cluster" } }
                        @for title in ["GPUs", "Allocatable GiB", "Held GiB", "Overcommitted GPUs", "Deny", "Warn", "Info"] {
                            th scope="col" class="n" { (title) }
                        }
                    } }
                    tbody {
                        @for report in reports {
                            @let summary = &report.summary;
                            tr {
                                th scope="row" { (time(&report.generated_at)) }
                                @if several { td { (report.cluster) } }
                                td class="n" { (grouped(summary.gpus)) }
                                td class="n" { (room(summary.allocatable_mib)) }
                                td class="n" { (taken(summary.held_mib)) }
                                @for count in [summary.overcommitted_gpus, summary.deny, summary.warn, summary.info] {
                                    td class="n" { (grouped(count)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
