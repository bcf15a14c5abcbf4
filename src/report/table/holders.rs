//! Who holds an overcommitted GPU, or may: the pods of which one has to go, the largest first.

use std::cmp::Reverse;

use super::Page;
use super::findings::more;
use super::gpus::used_cell;
use super::grid::{Cell, Column, Grid};
use super::paint::Role;
use crate::capacity::verdict::BoundedBy;
use crate::capacity::vram::Vram;
use crate::report::document::{Holder, Report, Status};
use crate::report::summary::Tone;
use crate::report::text::{named, taken_gib};

/// The largest number of rows without `--all`.
const ROWS: usize = 20;

/// A GPU, or a node of which it is not known which pod is on which GPU.
struct Place<'r> {
    /// What is held beyond the allocatable; zero if not known.
    excess: Vram,
    node: &'r str,
    gpu: &'r str,
    holders: &'r [Holder],
}

pub(super) fn section(report: &Report, page: &Page) -> Vec<String> {
    let of_gpus = report.gpus.iter().filter(|gpu| gpu.status == Status::Overcommitted && !gpu.holders.is_empty());
    let of_gpus = of_gpus.map(|gpu| Place {
        excess: gpu.amounts().over(),
        node: &gpu.node,
        gpu: &gpu.gpu,
        holders: &gpu.holders,
    });
    // Where the GPU of a pod is not known, all pods of the node come into question.
    let bad = |status: Status| matches!(status, Status::Overcommitted | Status::MaybeOvercommitted);
    let of_nodes = report.nodes.iter().filter(|node| bad(node.status) && !node.unassigned.is_empty());
    let of_nodes =
        of_nodes.map(|node| Place { excess: Vram::ZERO, node: &node.node, gpu: "-", holders: &node.unassigned });
    let mut places: Vec<Place<'_>> = of_gpus.chain(of_nodes).collect();
    places.sort_by_key(|place| Reverse(place.excess));
    if places.is_empty() {
        return Vec::new();
    }
    let rows = places.iter().flat_map(|place| {
        let mut holders: Vec<&Holder> = place.holders.iter().collect();
        holders.sort_by_key(|holder| (Reverse(holder.vram_mib), &holder.namespace, &holder.pod, &holder.container));
        holders.into_iter().map(move |holder| (place.node, place.gpu, holder))
    });
    let rows: Vec<(&str, &str, &Holder)> = rows.collect();
    let shown = if page.all { rows.len() } else { ROWS };
    let is_used = rows.iter().take(shown).any(|(_, _, holder)| holder.peak_mib.is_some());
    let used = if is_used { vec![Column::number("USED"), Column::number("PEAK")] } else { Vec::new() };
    let is_bounded = page.is_wide() && rows.iter().take(shown).any(|(_, _, holder)| holder.bounded_by.is_some());
    let bounded = if is_bounded { vec![Column::word("BOUNDED BY")] } else { Vec::new() };
    let columns = vec![Column::name("POD", 24), Column::number("HELD")];
    let others = vec![Column::word("GPU"), Column::name("NODE", 12)];
    let mut grid = Grid::new([columns, used, vec![Column::word("AS")], bounded, others].concat());
    for (node, gpu, holder) in rows.iter().take(shown) {
        let by = match (holder.seen, holder.declared) {
            (true, _) => Cell::with("seen", Role::Doubtful),
            (false, true) => Cell::new("declared"),
            (false, false) => Cell::with("slot", Role::Doubtful),
        };
        let mut cells = vec![
            Cell::new(page.paint.plain(&named(&holder.namespace, &holder.pod))),
            Cell::known(holder.vram_mib.map(taken_gib)),
        ];
        if is_used {
            let amounts = [holder.used_mib, holder.peak_mib];
            cells.extend(amounts.map(|mib| used_cell(mib, holder.stale.is_some())));
        }
        cells.push(by);
        if is_bounded {
            cells.push(bounded_by(holder, page));
        }
        cells.extend([Cell::new(page.paint.cut(&page.paint.text(gpu), 12)), Cell::new(page.paint.text(node))]);
        grid.push(cells);
    }
    let about = ["of overcommitted GPUs".to_owned(), "in GiB".to_owned(), "largest first".to_owned()]
        .map(|text| (text, Tone::Plain));
    let mut lines = page.title("HOLDERS", &about);
    lines.extend(grid.lines(&page.paint, page.width));
    lines.extend(more(rows.len(), shown, page));
    lines
}

/// What keeps the container to what it declares. Where nothing does, it is one to look at first.
fn bounded_by(holder: &Holder, page: &Page) -> Cell {
    match holder.bounded_by.as_deref() {
        Some(word) if word == BoundedBy::Nothing.word() => Cell::with(word, Role::Doubtful),
        Some(word) => Cell::new(page.paint.text(word)),
        None => Cell::known(None::<u64>),
    }
}
