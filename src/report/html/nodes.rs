//! The nodes with their GPUs. Owns their order and what each bar is made of.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use maud::{Markup, html};

use super::bars::{self, Bar};
use super::text::{counted, grouped, room_or_unknown, taken, taken_or_unknown};
use crate::capacity::audit::amounts::{self, Amounts};
use crate::capacity::verdict::hours;
use crate::capacity::vram::Vram;
use crate::report::document::{Gpu, Holder, Node, Report, Status};

/// Number of nodes that the page shows before its script runs.
pub(super) const FIRST: usize = 40;
/// Seconds without computing from which on a container is called idle; an agent warns only after hours.
const IDLE: u64 = 3600;
/// The mode in which the GPU of no pod is known.
const SLOT: &str = "slot";

/// One node with what its bars show.
pub(super) struct NodeView<'a> {
    pub(super) node: &'a Node,
    /// One for each GPU whose holders are known, and one for all the others together.
    pub(super) bars: Vec<Bar<'a>>,
    /// The holders that no bar shows.
    pub(super) unassigned: Vec<&'a Holder>,
    /// Sentences about amounts in use that are not current.
    pub(super) notes: Vec<String>,
}

/// Returns the nodes of a report, the worst first: by status, then by how much they are over, then by name.
pub(super) fn views<'a>(report: &'a Report, orphans: &'a [Node]) -> Vec<NodeView<'a>> {
    let mut gpus: BTreeMap<&str, Vec<&Gpu>> = BTreeMap::new();
    for gpu in &report.gpus {
        gpus.entry(&gpu.node).or_default().push(gpu);
    }
    let nodes = report.nodes.iter().chain(orphans);
    let mut views: Vec<NodeView> =
        nodes.map(|node| view(node, gpus.get(node.node.as_str()).map_or(&[], Vec::as_slice))).collect();
    views.sort_by_cached_key(|view| {
        let over = amounts::sum(view.bars.iter().map(|bar| bar.amounts.over()));
        (Reverse(view.node.status), Reverse(over), view.node.node.as_str())
    });
    views
}

/// Nodes that only the GPUs of a report name. A report of `vramguard audit` has none; one written by hand may.
pub(super) fn orphans(report: &Report) -> Vec<Node> {
    let known: std::collections::BTreeSet<&str> = report.nodes.iter().map(|node| node.node.as_str()).collect();
    let mut orphans: BTreeMap<&str, Vec<&Gpu>> = BTreeMap::new();
    for gpu in report.gpus.iter().filter(|gpu| !known.contains(gpu.node.as_str())) {
        orphans.entry(&gpu.node).or_default().push(gpu);
    }
    orphans.into_iter().map(|(name, gpus)| orphan(name, &gpus)).collect()
}

/// A node, as far as its GPUs tell.
fn orphan(name: &str, gpus: &[&Gpu]) -> Node {
    let all: Vec<Amounts> = gpus.iter().map(|gpu| gpu.amounts()).collect();
    let together = Amounts::together(&all);
    Node {
        node: name.to_owned(),
        mode: gpus.first().map(|gpu| gpu.mode.clone()).unwrap_or_default(),
        product: gpus.first().and_then(|gpu| gpu.product.clone()),
        status: gpus.iter().map(|gpu| gpu.status).max().unwrap_or_default(),
        held_mib: together.held.map_or(0, Vram::mib),
        allocatable_mib: together.allocatable.map(Vram::mib),
        free_mib: together.free.map(Vram::mib),
        ..Node::default()
    }
}

fn view<'a>(node: &'a Node, gpus: &[&'a Gpu]) -> NodeView<'a> {
    let (together, alone): (Vec<&Gpu>, Vec<&Gpu>) =
        gpus.iter().partition(|gpu| gpu.mode == SLOT && !node.is_assigned(gpus));
    let mut bars: Vec<Bar> = alone.into_iter().map(Bar::of_gpu).collect();
    let mut unassigned: Vec<&Holder> = node.unassigned.iter().collect();
    if !together.is_empty() {
        bars.push(Bar::of_unassigned(&together, std::mem::take(&mut unassigned), node.free_mib));
    }
    let notes = notes(node, &bars);
    NodeView { node, bars, unassigned, notes }
}

/// Says once for the node why what is used is not that of now, or for each GPU.
fn notes(node: &Node, bars: &[Bar<'_>]) -> Vec<String> {
    if let Some(why) = node.agent.as_ref().and_then(|agent| agent.stale.as_ref()) {
        return vec![format!("What is used here is not current: {why}.")];
    }
    let of_bar = |bar: &Bar<'_>| bar.stale.map(|why| format!("What is used of {} is not current: {why}.", bar.title()));
    let totals_only = node.agent.as_ref().and_then(|agent| agent.totals_only.as_ref());
    let totals_only = totals_only.map(|why| format!("In use is what the node agent reports, {why}."));
    bars.iter().filter_map(of_bar).chain(totals_only).collect()
}

/// What a node agent saw of a container, in a few words; empty if nothing is to be said.
pub(super) fn seen(holder: &Holder) -> String {
    let idle = holder.idle_seconds.filter(|idle| *idle >= IDLE).map(|idle| {
        let idle = hours(Duration::from_secs(idle));
        format!("idle for {idle}")
    });
    let problem = match holder.problem.as_deref() {
        Some("OverDeclaration") => Some("over its declaration"),
        Some("Undeclared") => Some("declares nothing"),
        Some("FarUnder") => Some("far under its declaration"),
        Some("Idle") | None => None,
        Some(other) => Some(other),
    };
    let stale = holder.stale.as_ref().map(|_| "not current");
    let parts = [idle.as_deref(), problem, stale];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The words and the sign of a status. The sign tells states apart without colour.
pub(super) fn status(status: Status) -> (&'static str, &'static str, &'static str) {
    match status {
        Status::Overcommitted => ("overcommitted", "■", "Overcommitted"),
        Status::MaybeOvercommitted => ("maybe", "▲", "May be overcommitted"),
        Status::Unknown => ("unknown", "?", "Not known"),
        Status::Full => ("full", "●", "Full"),
        Status::Ok => ("ok", "○", "Has room"),
    }
}

/// The section of nodes.
pub(super) fn section(views: &[NodeView]) -> Markup {
    let left = views.len().saturating_sub(FIRST);
    html! {
        @if views.is_empty() {
            p class="none" { "No node has GPUs." }
        } @else {
            (states(views))
            (bars::legend(views.iter().flat_map(|view| &view.bars).any(|bar| bar.stale.is_some())))
        }
        div class="nodes" {
            @for view in views.iter().take(FIRST) { (node_markup(view)) }
        }
        @if left > 0 {
            p class="more" { (grouped(left as u64)) " more nodes, less full than these, are in this file. They need JavaScript." }
        }
    }
}

/// How many nodes are in each state, as one bar.
fn states(views: &[NodeView]) -> Markup {
    let mut counts: BTreeMap<Reverse<Status>, u64> = BTreeMap::new();
    for view in views {
        *counts.entry(Reverse(view.node.status)).or_default() += 1;
    }
    html! {
        div class="states" {
            div class="proportion" aria-hidden="true" {
                @for (Reverse(state), count) in &counts {
                    span class=(status(*state).0) style={ "flex-grow:" (count) } {}
                }
            }
            ul {
                @for (Reverse(state), count) in &counts {
                    @let (class, sign, words) = status(*state);
                    li { span class={ "badge " (class) } { span aria-hidden="true" { (sign) } " " (words) } " " (grouped(*count)) }
                }
            }
        }
    }
}

/// One node. `page.js` builds the same elements.
fn node_markup(view: &NodeView) -> Markup {
    let node = view.node;
    let (class, sign, words) = status(node.status);
    let domain = view.bars.iter().map(|bar| bar.layout.extent).max().unwrap_or_default().max(Vram::from_mib(1));
    let facts = [node.product.clone(), Some(format!("mode {}", node.mode)), Some(counted(node.pods, "pod"))];
    html! {
        article class={ "node " (class) } {
            header {
                h3 { (node.node) }
                span class={ "badge " (class) } { span aria-hidden="true" { (sign) } " " (words) }
                p class="facts" { (facts.into_iter().flatten().collect::<Vec<_>>().join(" · ")) }
                p class="amounts" { (amounts(node)) }
            }
            @if let Some(why) = &node.unknown {
                p class="say" { strong { "Its GPUs are not known: " } (why) }
            }
            @for note in &view.notes { p class="say" { (note) } }
            @for bar in &view.bars { (bar.markup(domain)) }
            @if !view.unassigned.is_empty() && !view.bars.is_empty() {
                p class="say" {
                    (counted(view.unassigned.len() as u64, "container"))
                    " more of this node: it is not known on which of its GPUs. No bar shows them."
                }
            }
            (holders_markup(view))
        }
    }
}

/// What is held and free. Where the GPUs are not known, a sum is only a lower bound, and zero says nothing.
fn amounts(node: &Node) -> Markup {
    html! {
        @if node.unknown.is_none() {
            b { (taken(node.held_mib)) } " of " (room_or_unknown(node.allocatable_mib)) " GiB held · largest next pod "
            b { (room_or_unknown(node.free_mib)) }
        } @else if node.held_mib == 0 {
            "amount held not known"
        } @else {
            "at least " b { (taken(node.held_mib)) } " GiB held"
        }
    }
}

/// All holders of a node in a table, for those who cannot point at a bar, and for paper.
fn holders_markup(view: &NodeView) -> Markup {
    let of_bars = view.bars.iter().flat_map(|bar| bar.holders.iter().map(|holder| (bar.place(), *holder)));
    let unassigned = view.unassigned.iter().map(|holder| ("not known".to_owned(), *holder));
    let holders: Vec<(String, &Holder)> = of_bars.chain(unassigned).collect();
    let is_used = holders.iter().any(|(_, holder)| holder.peak_mib.is_some());
    let is_bounded = holders.iter().any(|(_, holder)| holder.bounded_by.is_some());
    html! {
        @if !holders.is_empty() {
            details {
                summary { (counted(holders.len() as u64, "holder")) }
                table class="holders" {
                    thead {
                        tr {
                            th scope="col" { "Namespace / pod" }
                            th scope="col" { "Container" }
                            th scope="col" { "GPU" }
                            th scope="col" class="n" { "GiB" }
                            @if is_used {
                                th scope="col" class="n" { "In use" }
                                th scope="col" class="n" { "Peak" }
                            }
                            th scope="col" { "Counted by" }
                            @if is_bounded { th scope="col" { "Bounded by" } }
                            @if is_used { th scope="col" { "Seen" } }
                        }
                    }
                    tbody {
                        @for (place, holder) in &holders {
                            tr {
                                th scope="row" { (holder.namespace) "/" (holder.pod) }
                                td { (holder.container) }
                                td { (place) }
                                td class="n" { (taken_or_unknown(holder.vram_mib)) }
                                @if is_used {
                                    td class="n" { (taken_or_unknown(holder.used_mib)) }
                                    td class="n" { (taken_or_unknown(holder.peak_mib)) }
                                }
                                td { (holder.counted_by()) }
                                @if is_bounded { td { (holder.bounded_by.as_deref().unwrap_or_default()) } }
                                @if is_used { td { (seen(holder)) } }
                            }
                        }
                    }
                }
            }
        }
    }
}
