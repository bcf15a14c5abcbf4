//! Columns of a table: which are cut where the terminal is too narrow, and which never are.

use super::paint::{Paint, Role};
use crate::report::text::width;

/// One column.
#[derive(Clone)]
pub(super) struct Column {
    title: &'static str,
    /// Numbers are on the right, everything else on the left.
    is_number: bool,
    /// The width to which it may be cut; `None` if it may not be.
    least: Option<usize>,
}

impl Column {
    /// A column of numbers.
    pub(super) fn number(title: &'static str) -> Column {
        Column { title, is_number: true, least: None }
    }

    /// A column of short words, which are not cut.
    pub(super) fn word(title: &'static str) -> Column {
        Column { title, is_number: false, least: None }
    }

    /// A column of names, which may be cut to `least` columns. The first such column of a table is cut last.
    pub(super) fn name(title: &'static str, least: usize) -> Column {
        Column { title, is_number: false, least: Some(least) }
    }
}

/// One cell: a text that is safe to print, and its role.
pub(super) struct Cell(String, Role);

impl Cell {
    pub(super) fn new(text: impl Into<String>) -> Cell {
        Cell(text.into(), Role::Plain)
    }

    pub(super) fn with(text: impl Into<String>, role: Role) -> Cell {
        Cell(text.into(), role)
    }

    /// A number, or `-` if it is not known.
    pub(super) fn known<T: ToString>(number: Option<T>) -> Cell {
        number.map_or(Cell::with("-", Role::Faint), |number| Cell::new(number.to_string()))
    }
}

/// A table.
pub(super) struct Grid {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Grid {
    pub(super) fn new(columns: Vec<Column>) -> Grid {
        Grid { columns, rows: Vec::new() }
    }

    /// Adds a row, which has one cell for each column.
    pub(super) fn push(&mut self, row: Vec<Cell>) {
        debug_assert_eq!(row.len(), self.columns.len());
        self.rows.push(row);
    }

    /// The header and the rows, in at most `most` columns where cutting names can achieve that.
    pub(super) fn lines(&self, paint: &Paint, most: usize) -> Vec<String> {
        let natural: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(at, column)| {
                let cells = self.rows.iter().map(|row| width(&paint.plain(&row[at].0)));
                cells.chain([width(column.title)]).max().unwrap_or(0)
            })
            .collect();
        // Two spaces between columns where that costs no name, else one.
        let gap = if natural.iter().sum::<usize>() + 2 * (natural.len() - 1) <= most { 2 } else { 1 };
        let widths = self.fitted(natural, most.saturating_sub(gap * (self.columns.len() - 1)));
        let header: Vec<Cell> = self.columns.iter().map(|column| Cell::with(column.title, Role::Faint)).collect();
        let rows = std::iter::once(&header).chain(&self.rows);
        rows.map(|row| self.line(row, &widths, gap, paint)).collect()
    }

    /// The widths of all columns, after names are cut until all fit. The last column of names is cut first.
    fn fitted(&self, mut widths: Vec<usize>, most: usize) -> Vec<usize> {
        for (at, column) in self.columns.iter().enumerate().rev() {
            let excess = widths.iter().sum::<usize>().saturating_sub(most);
            if let Some(least) = column.least {
                let least = least.max(width(column.title)).min(widths[at]);
                widths[at] = widths[at].saturating_sub(excess).max(least);
            }
        }
        widths
    }

    fn line(&self, row: &[Cell], widths: &[usize], gap: usize, paint: &Paint) -> String {
        let mut line = String::new();
        let mut owed = 0; // Spaces before the next text, so that no line ends in spaces.
        for ((Cell(text, role), column), most) in row.iter().zip(&self.columns).zip(widths) {
            let text = paint.plain(text);
            let text = if column.least.is_some() { paint.cut(&text, *most) } else { text };
            let pad = most.saturating_sub(width(&text));
            let (left, right) = if column.is_number { (pad, 0) } else { (0, pad) };
            owed += left;
            if !text.is_empty() {
                line.extend(std::iter::repeat_n(' ', owed));
                line.push_str(&paint.role(&text, *role));
                owed = 0;
            }
            owed += right + gap;
        }
        line
    }
}
