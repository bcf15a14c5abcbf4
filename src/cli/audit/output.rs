//! What reports look like by where they go, and the progress on standard error.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use clap::builder::PossibleValue;
use parking_lot::Mutex;

use super::Args;
use crate::cli::outputs::{self, Look, Output};
use crate::report::document::Report;
use crate::report::{self, Format, Options};

/// Width of a table that is not written to a terminal.
const WIDTH: usize = 120;

impl clap::ValueEnum for Format {
    fn value_variants<'a>() -> &'a [Format] {
        &Format::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

/// Writes the report in each format that was asked for. The HTML page shows the history too.
///
/// # Errors
/// A file cannot be written.
pub(super) fn write(report: &Report, mut history: Vec<Report>, args: &Args) -> anyhow::Result<()> {
    let table = [Output { format: Format::Table, file: None }];
    let outputs = if args.output.is_empty() { table.as_slice() } else { &args.output };
    if outputs.iter().any(|output| output.format == Format::Html) {
        history.push(report.clone());
    }
    outputs::write(outputs, args.colours.color, |format, look| match format {
        Format::Html => report::html::render(&history),
        format => report::render(report, format, &options(args, look)),
    })
}

fn options(args: &Args, look: Look) -> Options {
    let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let size = || terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
    Options {
        width: columns.or_else(|| if look.to_terminal { size() } else { None }).unwrap_or(WIDTH),
        color: look.coloured,
        all: args.all,
        fail_on: args.fail_on,
        report_api: args.report_api.unwrap_or_default(),
        ..Options::default()
    }
}

/// Tells on a terminal how far a long run is.
pub(super) struct Progress {
    started: Instant,
    told: Mutex<Option<Instant>>,
}

/// A run that is shorter tells nothing.
const QUIET: Duration = Duration::from_secs(1);
/// Pause between two lines.
const PAUSE: Duration = Duration::from_millis(200);

impl Default for Progress {
    fn default() -> Progress {
        Progress { started: Instant::now(), told: Mutex::new(None) }
    }
}

impl Progress {
    /// Tells that this number of objects was read.
    pub(super) fn tell(&self, what: &str, count: usize) {
        let mut told = self.told.lock();
        let recently = told.is_some_and(|told| told.elapsed() < PAUSE);
        if self.started.elapsed() < QUIET || recently || !std::io::stderr().is_terminal() {
            return;
        }
        *told = Some(Instant::now());
        eprint!("\r\x1b[2Kreading {what:?}: {count}");
    }

    /// Removes the line.
    pub(super) fn end(&self) {
        if self.told.lock().is_some() {
            eprint!("\r\x1b[2K");
        }
    }
}
