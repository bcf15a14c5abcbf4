//! A report as one HTML page. Owns the order of its sections; each section is in a module of its own.
//!
//! The page is one file and makes no request: style and script are in it, and [`CONTENT_SECURITY_POLICY`] forbids the
//! rest. It can be read without its script, which adds filters and shows what is too much for the first screen.
//!
//! Names, annotations and messages are written by strangers. In markup, [`maud`] escapes each of them. The data of the
//! script is JSON without `<`, `>` and `&`, and the script sets text and never markup. Characters without a glyph, and
//! those that change the order of others, are written out in both.

mod bars;
mod compare;
mod data;
mod findings;
mod headline;
mod nodes;
mod tables;
#[cfg(test)]
mod tests;
mod text;
mod trend;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use self::tables::Table;
use super::document::Report;

/// The style of the page.
const STYLE: &str = include_str!("html/page.css");
/// The script of the page.
const SCRIPT: &str = include_str!("html/page.js");

/// What the page may do: apply its own style and run its own script. A server that serves the page sends it too.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; \
    script-src 'sha256-x65c8tYEhodyI+U+iE4HTcpQVmRAS93rQHIdmd+Pg1M='; base-uri 'none'; form-action 'none'";

/// Renders reports of one cluster as a page.
///
/// The last report is the one that the page is about. It and the earlier ones make the trend.
pub fn render(reports: &[Report]) -> String {
    let empty = Report::default();
    let report = reports.last().unwrap_or(&empty);
    let orphans = nodes::orphans(report);
    let groups = findings::groups(report);
    let nodes = nodes::views(report, &orphans);
    let tables = tables::all(report);
    let data = data::json(&groups, &nodes, &tables).expect("texts and numbers have a form in JSON");
    let sections = sections(reports, report, &groups, &nodes, &tables);
    let body = html! {
        a class="skip" href="#findings" { "Skip to the findings" }
        a class="skip" href="#q" { "Skip to the filter" }
        (headline::header(report))
        (navigation(&sections))
        main id="main" {
            @for section in &sections {
                section id=(section.id) aria-labelledby={ (section.id) "-title" } {
                    h2 id={ (section.id) "-title" } {
                        (section.title)
                        @if let Some(count) = section.count { " " span class="count" { (text::grouped(count as u64)) } }
                    }
                    (section.content)
                }
            }
        }
        (footer(report))
    };
    let body = body.into_string();
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(CONTENT_SECURITY_POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="referrer" content="no-referrer";
                title { "GPU memory audit" @if !report.cluster.is_empty() { ": " (text::visible(&report.cluster)) } }
                style { (PreEscaped(STYLE)) }
            }
            body {
                (PreEscaped(text::visible(&body)))
                script type="application/json" id="data" { (PreEscaped(data)) }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    let mut page = page.into_string();
    page.push('\n');
    page
}

/// One section of the page.
struct Section {
    id: &'static str,
    title: &'static str,
    count: Option<usize>,
    content: Markup,
}

fn sections(
    reports: &[Report],
    report: &Report,
    groups: &[findings::Group],
    nodes: &[nodes::NodeView],
    tables: &[Table; 5],
) -> Vec<Section> {
    let section = |id, title, count, content| Section { id, title, count, content };
    let [namespaces, workloads, refused, waiting, elsewhere] = tables;
    let mut sections = Vec::new();
    if reports.len() > 1 {
        sections.push(section("trend", "Trend", None, trend::section(&trend::ordered(reports))));
    }
    let count = Some(report.findings.len());
    sections.push(section("findings", "Findings", count, findings::section(groups)));
    sections.push(section("nodes", "Nodes and GPUs", Some(nodes.len()), nodes::section(nodes)));
    let content = namespaces.markup("No namespace has pods or workloads that request GPUs.");
    sections.push(section("namespaces", "Namespaces", Some(namespaces.rows.len()), content));
    let content = workloads.markup("No workload requests shared GPUs.");
    sections.push(section("workloads", "Workloads", Some(workloads.rows.len()), content));
    sections.push(section("enforce", "Under Enforce", None, enforce(refused, waiting, elsewhere)));
    if let Some(assumed) = &report.assumed {
        sections.push(section("assumed", "Under assumptions", None, compare::assumed(report, assumed)));
    }
    if let Some(baseline) = &report.baseline {
        let views = groups.iter().flat_map(|group| &group.findings);
        sections.push(section("baseline", "Since the earlier report", None, compare::baseline(baseline, views)));
    }
    sections.push(section("gaps", "What could not be read", Some(report.gaps.len()), gaps(report)));
    sections
}

fn enforce(refused: &Table, waiting: &Table, elsewhere: &Table) -> Markup {
    let part = |table: &Table, title, none| {
        html! {
            h3 { (title) " " span class="count" { (text::grouped(table.rows.len() as u64)) } }
            (table.markup(none))
        }
    };
    html! {
        p class="say" { "What would happen to the pods of today if every namespace were in mode Enforce and each were created again." }
        (part(refused, "Refused", "No pod would be refused."))
        (part(waiting, "Would wait", "No running pod would have to wait."))
        (part(elsewhere, "On another node", "No pod would run on another node."))
    }
}

fn gaps(report: &Report) -> Markup {
    html! {
        @if report.gaps.is_empty() {
            p class="none" { "Everything that the audit looks at could be read." }
        } @else {
            dl class="gaps" { @for gap in &report.gaps { dt { (gap.what) } dd { (gap.why) } } }
        }
    }
}

/// Links to the sections, and the filters, which the script shows.
fn navigation(sections: &[Section]) -> Markup {
    html! {
        div class="tools" {
            nav aria-label="Sections" {
                ul {
                    @for section in sections {
                        li { a href={ "#" (section.id) } {
                            (section.title)
                            @if let Some(count) = section.count { " " span class="count" { (text::grouped(count as u64)) } }
                        } }
                    }
                }
            }
            form role="search" class="filters" aria-label="Filter the report" hidden {
                label { span { "Search" } input id="q" type="search" placeholder="Search ( / )" autocomplete="off" spellcheck="false"; }
                label { span { "Namespace" } select id="ns" { option value="" { "All namespaces" } } }
                label { span { "Node" } input id="node" type="search" placeholder="Node" autocomplete="off" spellcheck="false"; }
                button type="reset" hidden { "Clear" }
            }
            p id="hits" role="status" aria-live="polite" {}
        }
    }
}

fn footer(report: &Report) -> Markup {
    html! {
        footer {
            h2 { "How to read this" }
            dl class="terms" {
                dt { "Allocatable" } dd { "What pods can be given of a GPU: its memory without driver reserve, headroom and what others use." }
                dt { "Held" } dd { "What the pods on a GPU or node are promised. A pod that declares nothing counts as one slot, or as the most that it was seen to use, if that is more." }
                dt { "In use" } dd { "What processes really take, as the node agent reports it. What is held decides; of this, only the peak of a pod that declares nothing counts." }
                dt { "Overcommitted" } dd { "Held exceeds allocatable. The process that allocates last fails, whichever pod that is." }
                dt { "Largest next pod" } dd { "The largest demand that fits now, in the worst case." }
                dt { "Mode" } dd {
                    "How much is known. exact: the node has one shared GPU. exclusive: its GPUs are not shared. "
                    "slot: it is not known which pod is on which GPU. confirmed: a node agent verified how the device plugin chooses. steered: vramguard chooses. "
                    "unknown: the GPUs are not known, so nothing is certain."
                }
                dt { (text::UNKNOWN) } dd { "Not known. 0 is none." }
            }
            p class="by" {
                @if report.generated_by.is_empty() { "vramguard" } @else { (report.generated_by) }
                " · report " (report.schema_version) " · this file makes no request to any server"
            }
        }
    }
}
