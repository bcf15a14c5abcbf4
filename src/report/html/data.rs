//! The report as JSON for the script of the page. Owns its shape, which only `page.js` reads, and its escaping.
//!
//! Names that repeat are written once, in a list of strings, and are numbers elsewhere. So the page of 40,000 GPUs with
//! 150,000 holders stays small.

use std::collections::BTreeMap;
use std::io;

use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, Serializer};

use super::findings::Group;
use super::nodes::{NodeView, seen};
use super::tables::{Cell, Table};
use super::text::visible;
use crate::capacity::audit::amounts::Amounts;
use crate::capacity::vram::Vram;
use crate::report::document::{Holder, Severity, Status};

/// All that the script can show.
#[derive(Serialize)]
struct Data<'a> {
    /// The names that repeat.
    strings: Vec<&'a str>,
    /// The findings, by reason.
    findings: Vec<GroupData<'a>>,
    /// The nodes, the worst first.
    nodes: Vec<NodeData<'a>>,
    /// The tables that can be filtered, by the id of their section.
    tables: BTreeMap<&'a str, Vec<RowData<'a>>>,
}

/// Severity, reason, findings.
#[derive(Serialize)]
struct GroupData<'a>(Severity, &'a str, Vec<FindingData<'a>>);

/// Anchor, kind, namespace, name, container, node, message, remedy, pods, source, whether it is new.
#[derive(Serialize)]
struct FindingData<'a>(
    &'a str,
    &'a str,
    &'a str,
    &'a str,
    Option<&'a str>,
    Option<&'a str>,
    &'a str,
    &'a str,
    u64,
    Option<String>,
    bool,
);

/// Name, status, mode, product, pods, allocatable, held, free, why it is not known, its bars, unassigned holders, notes.
#[derive(Serialize)]
struct NodeData<'a>(
    &'a str,
    Status,
    usize,
    Option<usize>,
    u64,
    Option<u64>,
    u64,
    Option<u64>,
    Option<usize>,
    Vec<BarData<'a>>,
    Vec<HolderData<'a>>,
    &'a [String],
);

/// Name, number of its GPUs, headroom, outside, allocatable, held, free, used, holders, what is in use in words, whether that
/// is not current.
#[derive(Serialize)]
struct BarData<'a>(
    &'a str,
    u64,
    u64,
    u64,
    u64,
    u64,
    Option<u64>,
    Option<u64>,
    Vec<HolderData<'a>>,
    Option<&'a str>,
    u8,
);

/// Namespace, pod, container, amount, what that comes from, what keeps it to that. Where a node agent saw the container: what is
/// in use, peak, and what it saw in words.
#[derive(Serialize)]
#[serde(untagged)]
enum HolderData<'a> {
    Unseen(usize, &'a str, usize, Option<u64>, u8, Option<usize>),
    Seen(usize, &'a str, usize, Option<u64>, u8, Option<usize>, Option<u64>, Option<u64>, String),
}

/// Namespace, node, cells. The first two are what the filters look at.
#[derive(Serialize)]
struct RowData<'a>(&'a str, &'a str, &'a [Cell]);

/// Numbers for strings, in the order in which they were first asked for.
#[derive(Default)]
struct Interner<'a> {
    numbers: BTreeMap<&'a str, usize>,
    strings: Vec<&'a str>,
}

impl<'a> Interner<'a> {
    fn number(&mut self, text: &'a str) -> usize {
        *self.numbers.entry(text).or_insert_with(|| {
            self.strings.push(text);
            self.strings.len() - 1
        })
    }

    fn holders(&mut self, holders: impl IntoIterator<Item = &'a Holder>) -> Vec<HolderData<'a>> {
        let data = |holder: &'a Holder| {
            let (namespace, container) = (self.number(&holder.namespace), self.number(&holder.container));
            let (pod, amount, basis) = (&holder.pod, holder.vram_mib, basis(holder));
            let bound = holder.bounded_by.as_deref().map(|word| self.number(word));
            if (holder.used_mib, holder.peak_mib) == (None, None) {
                return HolderData::Unseen(namespace, pod, container, amount, basis, bound);
            }
            let (used, peak, seen) = (holder.used_mib, holder.peak_mib, seen(holder));
            HolderData::Seen(namespace, pod, container, amount, basis, bound, used, peak, seen)
        };
        holders.into_iter().map(data).collect()
    }

    fn node(&mut self, view: &'a NodeView<'a>) -> NodeData<'a> {
        let node = view.node;
        let bars = view.bars.iter().map(|bar| {
            let holders = self.holders(bar.holders.iter().copied());
            let Amounts { headroom, allocatable, held, free, used, .. } = bar.amounts;
            let mib = |amount: Option<Vram>| amount.map_or(0, Vram::mib);
            BarData(
                bar.name,
                bar.gpus,
                mib(headroom),
                bar.amounts.outside().mib(),
                mib(allocatable),
                mib(held),
                free.map(Vram::mib),
                used.map(Vram::mib),
                holders,
                bar.in_use.as_deref(),
                u8::from(bar.stale.is_some()),
            )
        });
        let bars = bars.collect();
        NodeData(
            &node.node,
            node.status,
            self.number(&node.mode),
            node.product.as_deref().map(|product| self.number(product)),
            node.pods,
            node.allocatable_mib,
            node.held_mib,
            node.free_mib,
            node.unknown.as_deref().map(|why| self.number(why)),
            bars,
            self.holders(view.unassigned.iter().copied()),
            &view.notes,
        )
    }
}

/// Returns the data of the page as JSON that cannot end the element that it is in.
///
/// # Errors
/// None is possible: each type of the data has a form in JSON, and memory takes all that is written.
pub(super) fn json(groups: &[Group], nodes: &[NodeView], tables: &[Table]) -> serde_json::Result<String> {
    let mut interner = Interner::default();
    let findings = groups.iter().map(|group| {
        let findings = group.findings.iter().map(|view| {
            let finding = view.finding;
            FindingData(
                &view.anchor,
                &finding.kind,
                &finding.namespace,
                &finding.name,
                finding.container.as_deref(),
                finding.node.as_deref(),
                &finding.message,
                &finding.remedy,
                finding.pods,
                view.source(),
                view.is_new,
            )
        });
        GroupData(group.severity, group.reason, findings.collect())
    });
    let findings = findings.collect();
    let nodes = nodes.iter().map(|node| interner.node(node)).collect();
    let tables = tables.iter().map(|table| {
        let rows = table.rows.iter().map(|row| RowData(&row.namespace, &row.node, &row.cells));
        (table.id, rows.collect())
    });
    let data = Data { strings: interner.strings, findings, nodes, tables: tables.collect() };
    let mut written = Vec::new();
    data.serialize(&mut Serializer::with_formatter(&mut written, Inert))?;
    Ok(String::from_utf8_lossy(&written).into_owned())
}

/// Writes strings without the characters that mean something in HTML, and with deceptive characters [`visible`].
struct Inert;

impl Formatter for Inert {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        for piece in visible(fragment).split_inclusive(['<', '>', '&', '\\']) {
            let (plain, escape): (&str, &[u8]) = match piece.as_bytes().last() {
                Some(b'<') => (&piece[..piece.len() - 1], br"\u003c"),
                Some(b'>') => (&piece[..piece.len() - 1], br"\u003e"),
                Some(b'&') => (&piece[..piece.len() - 1], br"\u0026"),
                Some(b'\\') => (&piece[..piece.len() - 1], br"\\"), // of `visible`: others are not in a fragment
                _ => (piece, b""),
            };
            writer.write_all(plain.as_bytes())?;
            writer.write_all(escape)?;
        }
        Ok(())
    }

    fn write_char_escape<W: ?Sized + io::Write>(&mut self, writer: &mut W, escape: CharEscape) -> io::Result<()> {
        writer.write_all(match escape {
            CharEscape::Quote => br#"\""#,
            CharEscape::ReverseSolidus => br"\\",
            CharEscape::LineFeed => br"\n",
            CharEscape::Tab => br"\t",
            CharEscape::Solidus => b"/",
            CharEscape::Backspace => br"\\u{8}",
            CharEscape::FormFeed => br"\\u{c}",
            CharEscape::CarriageReturn => br"\\u{d}",
            CharEscape::AsciiControl(byte) => return write!(writer, r"\\u{{{byte:x}}}"),
        })
    }
}

/// What the amount of a holder comes from, as the page reads it: a slot, a declaration, or the use.
fn basis(holder: &Holder) -> u8 {
    if holder.seen { 2 } else { u8::from(holder.declared) }
}
