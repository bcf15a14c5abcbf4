//! The verdict of a report in one sentence, and its totals. Owns what a reader sees first.

use maud::{Markup, html};

use super::text::{counted, grouped, percent, room, room_or_unknown, taken, time};
use crate::report::document::{Report, Summary};

/// How grave the verdict is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Bad,
    Doubtful,
    Good,
}

/// The first sentence of the page.
pub(super) fn verdict(summary: &Summary) -> (Tone, String) {
    let Summary { gpus, overcommitted_gpus, maybe_overcommitted_nodes, unknown_nodes, nodes, .. } = *summary;
    if overcommitted_gpus > 0 {
        let verb = if overcommitted_gpus == 1 {
            "is promised more memory than it has"
        } else {
            "are promised more memory than they have"
        };
        return (Tone::Bad, format!("{} of {} {verb}", grouped(overcommitted_gpus), counted(gpus, "GPU")));
    }
    if maybe_overcommitted_nodes > 0 {
        let nodes = counted(maybe_overcommitted_nodes, "node");
        return (Tone::Doubtful, format!("A GPU may be promised more memory than it has on {nodes}"));
    }
    if nodes == 0 && gpus == 0 {
        return (Tone::Doubtful, "No GPUs were found".to_owned());
    }
    if unknown_nodes > 0 {
        let nodes = counted(unknown_nodes, "node");
        return (Tone::Doubtful, format!("No GPU is known to be overcommitted, but the GPUs of {nodes} are not known"));
    }
    if summary.refused_pods > 0 {
        let pods = counted(summary.refused_pods, "pod");
        return (Tone::Doubtful, format!("No GPU is overcommitted; {pods} would be refused under Enforce"));
    }
    if summary.deny > 0 {
        let findings = counted(summary.deny, "finding");
        return (Tone::Doubtful, format!("No GPU is overcommitted, and {findings} of severity deny"));
    }
    if gpus == 1 {
        return (Tone::Good, "The GPU is not promised more memory than it has".to_owned());
    }
    (Tone::Good, format!("None of {} is promised more memory than it has", counted(gpus, "GPU")))
}

/// The head of the page.
pub(super) fn header(report: &Report) -> Markup {
    let (tone, sentence) = verdict(&report.summary);
    let (class, sign) = match tone {
        Tone::Bad => ("deny", "■"),
        Tone::Doubtful => ("warn", "▲"),
        Tone::Good => ("good", "✓"),
    };
    let summary = &report.summary;
    html! {
        header class={ "verdict " (class) } {
            p class="eyebrow" {
                "GPU memory audit"
                @if !report.cluster.is_empty() { " · " strong { (report.cluster) } }
                @if !report.generated_at.is_empty() { " · " time datetime=(report.generated_at) { (time(&report.generated_at)) } }
            }
            h1 { span class="sign" aria-hidden="true" { (sign) } " " (sentence) "." }
            p class="line" {
                @if summary.deny == 0 && summary.warn == 0 && summary.info == 0 {
                    "No findings."
                } @else {
                    (counted(summary.deny, "finding")) " of severity deny, " (grouped(summary.warn)) " warn, "
                    (grouped(summary.info)) " info."
                }
                @if !report.gaps.is_empty() {
                    " " a href="#gaps" { (counted(report.gaps.len() as u64, "resource")) " could not be read" }
                    ", so this report may say too little."
                }
            }
            dl class="totals" { @for total in totals(summary) { (total.markup()) } }
        }
    }
}

/// One total.
struct Total {
    name: &'static str,
    value: String,
    note: String,
    is_bad: bool,
}

impl Total {
    fn markup(&self) -> Markup {
        html! {
            div {
                dt { (self.name) }
                dd {
                    span class={ "value" @if self.is_bad { " bad" } } { (self.value) }
                    @if !self.note.is_empty() { " " span class="note" { (self.note) } }
                }
            }
        }
    }
}

fn totals(summary: &Summary) -> [Total; 7] {
    let total = |name, value: String, note: String, is_bad| Total { name, value, note, is_bad };
    let count = |name, count: u64, note: &str| total(name, grouped(count), note.to_owned(), count > 0);
    let mut held = match percent(summary.held_mib, summary.allocatable_mib) {
        Some(percent) if summary.unknown_nodes == 0 => format!("of {} GiB, {percent} %", room(summary.allocatable_mib)),
        _ => format!("of {} GiB", room(summary.allocatable_mib)),
    };
    if let Some(used) = summary.used_mib {
        held += &format!("; in use {} on {}", taken(used), counted(summary.used_gpus, "GPU"));
    }
    let mut nodes = format!("on {}", counted(summary.nodes, "node"));
    if summary.unknown_nodes > 0 {
        nodes += &format!(", {} not known", grouped(summary.unknown_nodes));
    }
    let doubtful = match summary.maybe_overcommitted_nodes {
        0 => "GPUs, for certain".to_owned(),
        nodes => format!("GPUs, and maybe on {} more", counted(nodes, "node")),
    };
    let stranded = if summary.stranded_mib.is_some() { "GiB free, too small for what waits" } else { "no pod waits" };
    [
        total("GPUs", grouped(summary.gpus), nodes, false),
        total("Held", taken(summary.held_mib), held, false),
        count("Overcommitted", summary.overcommitted_gpus, &doubtful),
        count("Refused under Enforce", summary.refused_pods, &format!("of {}", counted(summary.gpu_pods, "GPU pod"))),
        count("Undeclared", summary.undeclared_pods, "pods declare nothing"),
        total("Waiting", grouped(summary.waiting_pods), "pods without a node".to_owned(), false),
        total("Stranded", room_or_unknown(summary.stranded_mib), stranded.to_owned(), false),
    ]
}
