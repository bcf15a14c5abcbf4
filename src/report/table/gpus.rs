//! The GPUs: the worst first, and healthy ones summed up in a large cluster.
//!
//! Where it is not known which pod is on which GPU, a node is one row with the amounts of all its GPUs. Its GPUs follow
//! only as far as something is known about each.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::Page;
use super::grid::{Cell, Column, Grid};
use super::paint::Role;
use crate::capacity::audit::amounts::Amounts;
use crate::report::document::{Gpu, Holder, Node, Report, Status};
use crate::report::summary::{self, Tone, at_least};
use crate::report::text::{count, room_gib, taken_gib};

/// The largest number of rows without `--all`, sums of the others not counted.
const ROWS: usize = 20;

/// Columns of the bar.
const BAR: u64 = 12;

/// One row: a GPU, or all GPUs of a node. `None` is not known.
struct Row {
    name: String,
    gpu: String,
    mode: String,
    amounts: Amounts,
    /// Whether more than `held` may be held: what a pod holds is not known.
    is_least: bool,
    pods: Option<u64>,
    undeclared: Option<u64>,
    /// Whether what is used is not that of now.
    is_stale: bool,
    status: Status,
    /// The number of GPUs in this row.
    gpus: u64,
    /// Whether `--all` shows several rows instead.
    is_sum: bool,
}

/// A row, and the rows under it.
struct Block {
    rows: Vec<Row>,
}

impl Block {
    fn head(&self) -> &Row {
        &self.rows[0]
    }

    /// The worst first: by status, by what is missing, by how full it is.
    fn rank(&self) -> impl Ord + use<> {
        let Row { status, amounts, .. } = self.head();
        (Reverse(*status), Reverse(amounts.over()), Reverse(amounts.held_part(1000)))
    }
}

pub(super) fn section(report: &Report, page: &Page) -> Vec<String> {
    let mut blocks = blocks(report, page);
    if blocks.is_empty() {
        return Vec::new();
    }
    let is_long = |blocks: &[Block]| !page.all && blocks.iter().map(|block| block.rows.len()).sum::<usize>() > ROWS;
    if is_long(&blocks) {
        blocks = by_node(blocks);
    }
    blocks.sort_by_key(Block::rank);
    let summed = if is_long(&blocks) { beyond(&mut blocks) } else { Vec::new() };
    let is_shortened = blocks.iter().any(|block| block.rows[0].is_sum) || !summed.is_empty();
    let mut grid = Grid::new(columns(page));
    blocks.iter().flat_map(|block| &block.rows).for_each(|row| grid.push(cells(row, page)));
    let summed_up = sums(&summed);
    summed_up.iter().for_each(|row| grid.push(cells(row, page)));
    let about = ["in GiB".to_owned(), "worst first".to_owned()].map(|text| (text, Tone::Plain));
    let mut lines = page.title("GPUS", &about);
    lines.extend(grid.lines(&page.paint, page.width));
    if is_shortened {
        lines.push(page.paint.role("--all shows each GPU", Role::Faint));
    }
    if blocks.iter().any(|block| block.head().mode == "slot") {
        let legend = "slot: the GPU of each pod is not known; FREE is the worst case for one pod";
        lines.extend(page.paint.wrapped(legend, 0, page.width, Role::Faint));
    }
    if blocks.iter().flat_map(|block| &block.rows).chain(&summed_up).any(|row| row.is_stale) {
        let legend = page.paint.text(&summary::stale(report));
        lines.extend(page.paint.wrapped(&legend, 0, page.width, Role::Faint));
    }
    if let Some(legend) = summary::totals_only(report) {
        lines.extend(page.paint.wrapped(&page.paint.text(&legend), 0, page.width, Role::Faint));
    }
    lines
}

/// Puts the healthy GPUs of each node into one row.
fn by_node(blocks: Vec<Block>) -> Vec<Block> {
    let mut healthy: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    let mut merged = Vec::new();
    for mut block in blocks {
        if block.rows.len() == 1 && is_healthy(block.head().status) {
            healthy.entry(block.head().name.clone()).or_default().append(&mut block.rows);
        } else {
            merged.push(block);
        }
    }
    for (name, mut rows) in healthy {
        // A node has room if one of its GPUs has.
        let status = rows.iter().map(|row| row.status).min().unwrap_or_default();
        let row = if rows.len() == 1 { rows.remove(0) } else { sum(&rows.iter().collect::<Vec<_>>(), name, status) };
        merged.push(Block { rows: vec![row] });
    }
    merged
}

fn is_healthy(status: Status) -> bool {
    matches!(status, Status::Ok | Status::Full)
}

/// Takes the blocks away that a large cluster does not show: all healthy ones, and bad ones beyond the limit.
fn beyond(blocks: &mut Vec<Block>) -> Vec<Block> {
    let mut rows = 0;
    let shown = blocks.iter().take_while(|block| {
        let is_first = rows == 0;
        rows += block.rows.len();
        !is_healthy(block.head().status) && (is_first || rows <= ROWS)
    });
    let shown = shown.count();
    blocks.split_off(shown)
}

/// One row for each status of the blocks that are not shown.
fn sums(blocks: &[Block]) -> Vec<Row> {
    let mut by_status: BTreeMap<Reverse<Status>, Vec<&Row>> = BTreeMap::new();
    for block in blocks {
        by_status.entry(Reverse(block.head().status)).or_default().push(block.head());
    }
    let of = |(Reverse(status), rows): (Reverse<Status>, Vec<&Row>)| {
        let nodes: BTreeSet<&str> = rows.iter().map(|row| row.name.as_str()).collect();
        let name = format!("… on {}", count(u64::try_from(nodes.len()).unwrap_or(u64::MAX), "node"));
        sum(&rows, name, status)
    };
    by_status.into_iter().map(of).collect()
}

/// Several rows as one. An amount that is not known of one of them is not known.
fn sum(rows: &[&Row], name: String, status: Status) -> Row {
    let number =
        |of: fn(&Row) -> Option<u64>| rows.iter().try_fold(0_u64, |sum, row| Some(sum.saturating_add(of(row)?)));
    let amounts: Vec<Amounts> = rows.iter().map(|row| row.amounts).collect();
    let modes: BTreeSet<&str> = rows.iter().map(|row| row.mode.as_str()).collect();
    let gpus = rows.iter().map(|row| row.gpus).fold(0, u64::saturating_add);
    Row {
        name,
        gpu: if gpus == 0 { "-".to_owned() } else { count(gpus, "GPU") },
        mode: if modes.len() == 1 { rows[0].mode.clone() } else { "several".to_owned() },
        amounts: Amounts::together(&amounts),
        is_least: rows.iter().any(|row| row.is_least),
        pods: number(|row| row.pods),
        undeclared: number(|row| row.undeclared),
        is_stale: rows.iter().any(|row| row.is_stale),
        status,
        gpus,
        is_sum: true,
    }
}

fn blocks(report: &Report, page: &Page) -> Vec<Block> {
    let mut gpus: BTreeMap<&str, Vec<&Gpu>> = BTreeMap::new();
    for gpu in &report.gpus {
        gpus.entry(&gpu.node).or_default().push(gpu);
    }
    let mut blocks = Vec::new();
    for node in &report.nodes {
        let gpus = gpus.remove(node.node.as_str()).unwrap_or_default();
        let is_one_row = gpus.is_empty() || !node.unassigned.is_empty() || !node.is_assigned(&gpus);
        if is_one_row {
            blocks.push(of_node(node, &gpus, page));
        } else {
            blocks.extend(gpus.into_iter().map(|gpu| Block { rows: vec![of_gpu(gpu, page)] }));
        }
    }
    // A report of another program may list GPUs of nodes that it does not list.
    blocks.extend(gpus.into_values().flatten().map(|gpu| Block { rows: vec![of_gpu(gpu, page)] }));
    blocks
}

/// A node as one row, and its GPUs under it if `--all` is given or something is known about one.
fn of_node(node: &Node, gpus: &[&Gpu], page: &Page) -> Block {
    let unknown = node.unassigned.iter().any(|holder| holder.vram_mib.is_none());
    let amounts = node.amounts(gpus);
    let head = Row {
        name: page.paint.text(&node.node),
        gpu: if node.gpus == 0 { "-".to_owned() } else { count(node.gpus, "GPU") },
        mode: page.paint.text(&node.mode),
        amounts: Amounts { held: amounts.held.filter(|held| !unknown || !held.is_zero()), ..amounts },
        is_least: unknown,
        pods: Some(node.pods),
        undeclared: Some(node.undeclared_pods),
        is_stale: amounts.used.is_some() && gpus.iter().any(|gpu| gpu.stale.is_some()),
        status: node.status,
        gpus: node.gpus,
        is_sum: false,
    };
    let tells =
        |gpu: &&&Gpu| page.all || !gpu.holders.is_empty() || gpu.status > Status::Full || gpu.used_mib.is_some();
    let under = gpus.iter().filter(tells).map(|gpu| {
        let known = !gpu.holders.is_empty();
        let row = of_gpu(gpu, page);
        Row {
            name: "  └".to_owned(),
            amounts: Amounts { held: row.amounts.held.filter(|_| known), ..row.amounts },
            pods: row.pods.filter(|_| known),
            undeclared: row.undeclared.filter(|_| known),
            ..row
        }
    });
    let rows: Vec<Row> = std::iter::once(head).chain(under).collect();
    Block { rows }
}

fn of_gpu(gpu: &Gpu, page: &Page) -> Row {
    let pods = |wanted: fn(&Holder) -> bool| {
        let pods: BTreeSet<_> = gpu.holders.iter().filter(|h| wanted(h)).map(|h| (&h.namespace, &h.pod)).collect();
        u64::try_from(pods.len()).ok()
    };
    Row {
        name: page.paint.text(&gpu.node),
        gpu: page.paint.text(&gpu.gpu),
        mode: page.paint.text(&gpu.mode),
        amounts: gpu.amounts(),
        is_least: gpu.holders.iter().any(|holder| holder.vram_mib.is_none()),
        pods: pods(|_| true),
        undeclared: pods(|holder| !holder.declared),
        is_stale: gpu.used_mib.is_some() && gpu.stale.is_some(),
        status: gpu.status,
        gpus: 1,
        is_sum: false,
    }
}

fn columns(page: &Page) -> Vec<Column> {
    let mut columns = vec![Column::name("NODE", 12), Column::name("GPU", 9), Column::word("MODE")];
    if page.is_wide() {
        columns.push(Column::number("TOTAL"));
    }
    columns.extend(["ALLOC", "HELD", "FREE", "USED", "PODS"].map(Column::number));
    if page.is_wide() {
        columns.push(Column::number("UNDECL"));
        columns.push(Column::word("HELD OF ALLOC"));
    }
    columns.push(Column::word("STATUS"));
    columns
}

fn cells(row: &Row, page: &Page) -> Vec<Cell> {
    let role = role(row.status);
    let Amounts { total, allocatable, held, free, used, .. } = row.amounts;
    let held = held.and_then(|held| at_least(held.mib(), row.is_least));
    let held = held.map_or(Cell::known(None::<u64>), |held| {
        Cell::with(held, if row.status == Status::Overcommitted { Role::Bad } else { Role::Plain })
    });
    let mut cells =
        vec![Cell::with(row.name.clone(), Role::Plain), Cell::new(row.gpu.clone()), Cell::new(row.mode.clone())];
    if page.is_wide() {
        cells.push(Cell::known(total.map(|amount| room_gib(amount.mib()))));
    }
    cells.push(Cell::known(allocatable.map(|amount| room_gib(amount.mib()))));
    cells.push(held);
    cells.push(Cell::known(free.map(|amount| room_gib(amount.mib()))));
    cells.push(used_cell(used.map(|amount| amount.mib()), row.is_stale));
    cells.push(Cell::known(row.pods));
    if page.is_wide() {
        let undeclared = row.undeclared.filter(|undeclared| *undeclared > 0);
        cells.push(
            undeclared.map_or(Cell::known(row.undeclared), |number| Cell::with(number.to_string(), Role::Doubtful)),
        );
        cells.push(Cell::with(bar(row), role));
    }
    cells.push(Cell::with(word(row.status, page), role));
    cells
}

/// What is in use, with a sign if that is not of now; the sign is explained under the table.
pub(super) fn used_cell(mib: Option<u64>, is_stale: bool) -> Cell {
    match mib {
        Some(mib) if is_stale => Cell::with(format!("{}*", taken_gib(mib)), Role::Doubtful),
        mib => Cell::known(mib.map(taken_gib)),
    }
}

/// How much of the allocatable is held, as a bar and in percent.
fn bar(row: &Row) -> String {
    let part = |of: u64| row.amounts.held_part(of);
    let (Some(cells), Some(percent)) = (part(BAR), part(100)) else { return String::new() };
    // A cell is full only if all of it is held, except the first: what is held is seen.
    let least = u64::from(row.amounts.held.is_some_and(|held| !held.is_zero()));
    let filled = cells.clamp(least, BAR);
    let bar: String = (0..BAR).map(|cell| if cell < filled { '█' } else { '░' }).collect();
    format!("{bar} {percent:>3}%")
}

fn role(status: Status) -> Role {
    match status {
        Status::Ok => Role::Good,
        Status::Full => Role::Plain,
        Status::Unknown | Status::MaybeOvercommitted => Role::Doubtful,
        Status::Overcommitted => Role::Bad,
    }
}

fn word(status: Status, page: &Page) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::Full => "full",
        Status::Unknown => "unknown",
        Status::MaybeOvercommitted if page.is_wide() => "maybe overcommitted",
        Status::MaybeOvercommitted => "maybe over",
        Status::Overcommitted if page.is_wide() => "overcommitted",
        Status::Overcommitted => "over",
    }
}
