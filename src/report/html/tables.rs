//! The tables of namespaces, workloads, and pods under Enforce. Owns their columns; rows are the same here and in the
//! data of the script.

use maud::{Markup, html};
use serde::Serialize;

use super::text::{UNKNOWN, grouped, percent, room, taken, taken_or_unknown};
use crate::report::document::{Enforced, Moved, Namespace, Report, Workload};

/// Number of rows that the page shows before its script runs.
pub(super) const FIRST: usize = 50;

/// One table.
pub(super) struct Table {
    /// Id of its element.
    pub(super) id: &'static str,
    /// What it shows, for screen readers.
    caption: &'static str,
    /// Titles of columns, and whether each has numbers.
    columns: &'static [(&'static str, bool)],
    /// The rows; the first cell of each is its header.
    pub(super) rows: Vec<Row>,
}

/// One row.
pub(super) struct Row {
    /// The namespace that it is about.
    pub(super) namespace: String,
    /// The nodes that it is about, one a line; empty if it is about none.
    pub(super) node: String,
    /// One for each column.
    pub(super) cells: Vec<Cell>,
}

/// One cell: the text; whether it needs attention; the percent of a bar below the text.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Cell {
    Text(String),
    Marked(String, bool, Option<u64>),
}

impl Cell {
    fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    fn count(count: u64) -> Self {
        Self::Text(grouped(count))
    }

    /// A count that should be zero.
    fn bad(count: u64) -> Self {
        Self::Marked(grouped(count), count > 0, None)
    }
}

impl Table {
    /// The table, or a sentence if it has no rows.
    pub(super) fn markup(&self, none: &str) -> Markup {
        let left = self.rows.len().saturating_sub(FIRST);
        html! {
            @if self.rows.is_empty() {
                p class="none" { (none) }
            } @else {
                div class="scroll" tabindex="0" role="region" aria-label=(self.caption) {
                    table id=(self.id) {
                        caption class="hidden" { (self.caption) }
                        thead { tr {
                            @for (title, numeric) in self.columns {
                                th scope="col" class=[numeric.then_some("n")] { (title) }
                            }
                        } }
                        tbody { @for row in self.rows.iter().take(FIRST) { (self.row(row)) } }
                    }
                }
                @if left > 0 {
                    p class="more" { (grouped(left as u64)) " more rows are in this file. They need JavaScript." }
                }
            }
        }
    }

    /// One row. `page.js` builds the same elements.
    fn row(&self, row: &Row) -> Markup {
        html! {
            tr {
                @for (index, (cell, (_, numeric))) in row.cells.iter().zip(self.columns).enumerate() {
                    @if index == 0 { th scope="row" { (cell.content()) } }
                    @else { td class=[numeric.then_some("n")] { (cell.content()) } }
                }
            }
        }
    }
}

impl Cell {
    fn content(&self) -> Markup {
        html! {
            @match self {
                Self::Text(text) => (text),
                Self::Marked(text, marked, bar) => {
                    span class=[marked.then_some("bad")] { (text) }
                    @if let Some(percent) = bar {
                        span class="mini" aria-hidden="true" { i style={ "width:" ((*percent).min(100)) "%" } {} }
                    }
                }
            }
        }
    }
}

/// All tables of a report.
pub(super) fn all(report: &Report) -> [Table; 5] {
    let Enforced { refused, waiting, elsewhere } = &report.enforced;
    let refused = refused.iter().map(|pod| Row {
        namespace: pod.namespace.clone(),
        node: String::new(),
        cells: vec![
            Cell::text(format!("{}/{}", pod.namespace, pod.pod)),
            Cell::text(&pod.reason),
            Cell::text(&pod.message),
        ],
    });
    [
        Table {
            id: "t-namespaces",
            caption: "Namespaces with pods or workloads that request GPUs",
            columns: &[
                ("Namespace", false),
                ("Mode", false),
                ("Pods", true),
                ("Undeclared", true),
                ("Refused under Enforce", true),
                ("Held GiB", true),
                ("Declared GiB", true),
                ("Quota GiB", true),
                ("Of quota", true),
            ],
            rows: report.namespaces.iter().map(namespace).collect(),
        },
        Table {
            id: "t-workloads",
            caption: "Workloads that request shared GPUs",
            columns: &[
                ("Workload", false),
                ("Kind", false),
                ("GiB a pod", true),
                ("Pods now", true),
                ("At most", true),
                ("May still start", true),
                ("Fit now", true),
            ],
            rows: report.workloads.iter().map(workload).collect(),
        },
        Table {
            id: "t-refused",
            caption: "Pods that mode Enforce would refuse",
            columns: &[("Pod", false), ("Reason", false), ("Why", false)],
            rows: refused.collect(),
        },
        Table {
            id: "t-waiting",
            caption: "Running pods that would wait",
            columns: &[("Pod", false), ("Node today", false)],
            rows: waiting.iter().map(|pod| moved(pod, false)).collect(),
        },
        Table {
            id: "t-elsewhere",
            caption: "Running pods that would run on another node",
            columns: &[("Pod", false), ("Node today", false), ("Node under Enforce", false)],
            rows: elsewhere.iter().map(|pod| moved(pod, true)).collect(),
        },
    ]
}

fn namespace(namespace: &Namespace) -> Row {
    let used = namespace.quota_mib.map(|quota| (percent(namespace.declared_mib, quota), quota));
    let of_quota = match used {
        None => Cell::text(""),
        Some((Some(percent), quota)) => {
            Cell::Marked(format!("{} %", grouped(percent)), namespace.declared_mib > quota, Some(percent))
        }
        Some((None, _)) => Cell::Marked("quota is 0".to_owned(), namespace.declared_mib > 0, None),
    };
    Row {
        namespace: namespace.namespace.clone(),
        node: String::new(),
        cells: vec![
            Cell::text(&namespace.namespace),
            Cell::text(&namespace.mode),
            Cell::count(namespace.pods),
            Cell::bad(namespace.undeclared_pods),
            Cell::bad(namespace.refused_pods),
            Cell::text(taken(namespace.held_mib)),
            Cell::text(taken(namespace.declared_mib)),
            Cell::text(namespace.quota_mib.map_or_else(|| "none".to_owned(), room)),
            of_quota,
        ],
    }
}

fn workload(workload: &Workload) -> Row {
    let more = workload.max_replicas.saturating_sub(workload.replicas);
    let fits = match workload.fits_more {
        None => Cell::text(UNKNOWN),
        Some(fits) => Cell::Marked(grouped(fits), fits < more, None),
    };
    Row {
        namespace: workload.namespace.clone(),
        node: String::new(),
        cells: vec![
            Cell::text(format!("{}/{}", workload.namespace, workload.name)),
            Cell::text(&workload.kind),
            Cell::text(taken_or_unknown(workload.demand_mib)),
            Cell::count(workload.replicas),
            Cell::count(workload.max_replicas),
            Cell::count(more),
            fits,
        ],
    }
}

fn moved(pod: &Moved, lands: bool) -> Row {
    let mut cells = vec![Cell::text(format!("{}/{}", pod.namespace, pod.pod)), Cell::text(&pod.from)];
    cells.extend(lands.then(|| Cell::text(pod.to.as_deref().unwrap_or(UNKNOWN))));
    let node = format!("{}\n{}", pod.from, pod.to.as_deref().unwrap_or_default());
    Row { namespace: pod.namespace.clone(), node, cells }
}
