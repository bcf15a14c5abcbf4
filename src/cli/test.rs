//! `vramguard test`: plays case files, and says which cases are as expected.
//!
//! Owns files and the exit code; `search` finds the files. `k8s::case` knows the format and plays the cases, and
//! `report::suite` shows the result.

use std::path::{Path, PathBuf};

use anyhow::anyhow;

use super::outputs::{self, Output};
use super::{Failure, files};
use crate::capacity::verdict::count;
use crate::k8s::case::{self, Suite};
use crate::report::suite::{Report, Unreadable, junit, table};

mod search;

/// Largest case file that is read, in bytes.
const MAX_CASE_FILE: u64 = 4 << 20;

/// Largest file that is read because a case file refers to it, in bytes: the snapshot of a cluster with thousands of pods.
const MAX_REFERENCED_FILE: u64 = 64 << 20;

/// Arguments of `test`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 all cases passed, 1 a case failed, 2 a file could not be read or nothing was tested.\n\
                        docs/policy-tests.md describes case files."
)]
pub(super) struct Args {
    /// Case files, and folders that are searched for files whose names end in `vramguard-test.yaml`
    #[arg(value_name = "PATH", default_value = ".")]
    paths: Vec<PathBuf>,
    /// Play only the cases whose name contains this text
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    filter: String,
    /// Form of the result: table, json or junit, to stdout or, as FORMAT=FILE, to a file. May be given several times
    #[arg(long, value_name = "FORMAT[=FILE]", default_value = "table")]
    output: Vec<Output<Format>>,
    #[command(flatten)]
    colours: outputs::Colours,
}

/// A form of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Table,
    Json,
    Junit,
}

/// Plays all cases and writes the result.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    outputs::check(&args.output, []).map_err(Failure::Input)?;
    let found = search::case_files(&args.paths).map_err(|errors| Failure::Input(anyhow!("{}", errors.join("\n"))))?;
    let readable = Readable::new(&args.paths).map_err(|error| Failure::Input(anyhow!(error)))?;
    let mut report = Report::new(env!("CARGO_PKG_VERSION"));
    for path in &found {
        match read(path, &readable) {
            Ok(suite) => report.play(&shown(path), &suite, &args.filter),
            Err(errors) => report.unreadable(errors),
        }
    }
    outputs::write(&args.output, args.colours.color, |format, look| match format {
        Format::Table => table::render(&report, look.coloured),
        Format::Json => report.json(),
        Format::Junit => junit::render(&report),
    })
    .map_err(Failure::Input)?;
    // The table has the errors already.
    let shown = args.output.iter().any(|output| output.format == Format::Table && output.file.is_none());
    outcome(&report, &args.filter, shown)
}

/// The failure that decides the exit code.
fn outcome(report: &Report, filter: &str, shown: bool) -> Result<(), Failure> {
    if !report.errors.is_empty() && shown {
        let errors = count(report.errors.len(), "error");
        return Err(Failure::Input(anyhow!("{errors} in files that could not be read")));
    }
    if !report.errors.is_empty() {
        let errors: Vec<String> = report.errors.iter().map(ToString::to_string).collect();
        return Err(Failure::Input(anyhow!("{}", errors.join("\n"))));
    }
    if report.summary.cases == 0 {
        let left_out = count(report.summary.left_out, "case");
        return Err(Failure::Input(anyhow!("--filter {filter:?} leaves out all {left_out}, so nothing was tested")));
    }
    match report.summary.failed {
        0 => Ok(()),
        failed => Err(Failure::Run(anyhow!("{failed} of {} failed", count(report.summary.cases, "case")))),
    }
}

/// Reads a case file and what it refers to.
fn read(path: &Path, readable: &Readable) -> Result<Suite, Vec<Unreadable>> {
    let text = files::text(path, MAX_CASE_FILE)
        .map_err(|message| vec![Unreadable { file: shown(path), line: None, field: String::new(), message }])?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let load = |reference: &str| readable.text(&folder.join(reference));
    case::read(&shown(path), &text, &load).map_err(|errors| errors.into_iter().map(Unreadable::from).collect())
}

/// A path as it is shown: without the `./` of the search in the current folder.
fn shown(path: &Path) -> String {
    path.strip_prefix(".").unwrap_or(path).display().to_string()
}

/// The folders that case files may refer into. A case file may be of a stranger, and the error about a file that is no
/// manifest repeats a part of it.
struct Readable {
    folders: Vec<PathBuf>,
}

impl Readable {
    /// The current folder, the folders that were named, and those of the files that were named.
    fn new(paths: &[PathBuf]) -> Result<Readable, String> {
        let current = std::env::current_dir().map_err(|error| format!("the current folder: {error}"))?;
        let named = paths.iter().map(|path| if path.is_dir() { path.clone() } else { current.join(path) });
        let folders = named.map(|path| if path.is_dir() { path } else { path.parent().unwrap_or(&path).to_owned() });
        let folders = std::iter::once(current.clone()).chain(folders);
        let resolved = folders.map(|folder| folder.canonicalize().map_err(|e| format!("{}: {e}", folder.display())));
        Ok(Readable { folders: resolved.collect::<Result<_, _>>()? })
    }

    /// The text of a file that a case file refers to.
    fn text(&self, path: &Path) -> Result<String, String> {
        let resolved = path.canonicalize().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => format!("there is no such file ({})", shown(path)),
            _ => format!("cannot be read: {error}"),
        })?;
        if !self.folders.iter().any(|folder| resolved.starts_with(folder)) {
            return Err(format!(
                "{} is outside of the current folder and of the folders that were named; run `vramguard test` in a folder \
                 that contains it, or name that folder",
                resolved.display()
            ));
        }
        files::text(&resolved, MAX_REFERENCED_FILE)
    }
}
