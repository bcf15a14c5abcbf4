//! `vramguard recommend`: what each workload should declare, from what the node agents saw. Owns its arguments; what is
//! recommended is decided in [`capacity::recommend`](crate::capacity::recommend), and how it looks in
//! [`report::recommendation`](crate::report::recommendation). It changes nothing in a cluster.

use std::time::Duration;

use super::audit::{self, Found, Source, Wanted};
use super::outputs::{self, Output};
use super::{Failure, numbers};
use crate::capacity::recommend;
use crate::capacity::time::Moment;
use crate::report::document::Gap;
use crate::report::recommendation::Recommendations;

/// Arguments of `recommend`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    source: Source,

    /// Hours for which a container must have been seen before its declaration is lowered, kept or made
    #[arg(long, value_name = "HOURS", default_value = "24", value_parser = hours)]
    min_observed: u64,

    /// Format: table, json, or patch (strategic merge patches of the manifests, for git). With =FILE it is written to
    /// that file. Repeatable
    #[arg(long, short = 'o', value_name = "FORMAT[=FILE]", default_value = "table")]
    output: Vec<Output<Format>>,
}

/// What `recommend` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// A table for a terminal.
    Table,
    /// JSON for programs.
    Json,
    /// Patches of manifests.
    Patch,
}

/// The most hours that may be asked for: a year.
const MAX_HOURS: u64 = 8_760;

/// Reads a number of hours, with or without its unit: `24` and `24h`.
fn hours(text: &str) -> Result<u64, String> {
    numbers::between(0, MAX_HOURS)(text.strip_suffix('h').unwrap_or(text))
}

/// Reads the cluster or the files, and prints what to declare.
///
/// # Errors
/// [`Failure::Input`] if something cannot be read or written, [`Failure::Run`] if a request fails.
pub(super) async fn run(args: Args) -> Result<(), Failure> {
    args.source.check()?;
    outputs::check(&args.output, &args.source.snapshot).map_err(Failure::Input)?;
    let Found { scene, mut origin, observed } =
        audit::read(&args.source, Wanted { observed: true, ..Wanted::default() }).await?;
    // Files may be old. Their present is the newest report in them.
    let now = if args.source.snapshot.is_empty() {
        Moment(jiff::Timestamp::now().as_millisecond())
    } else {
        observed.latest()
    };
    let least = Duration::from_secs(args.min_observed.saturating_mul(3600));
    let mut rows = recommend::rows(&scene, &observed, least, now);
    if let Some(namespace) = &args.source.namespace {
        rows.retain(|row| *row.object.namespace == **namespace);
    }
    for node in &observed.unreadable {
        let why = "a field of it cannot be read; `vramguard audit` names it".to_owned();
        origin.gaps.push(Gap { what: format!("the report of the agent on {node}"), why });
    }
    let document = Recommendations::new(&rows, args.min_observed, &origin);
    outputs::write(&args.output, clap::ColorChoice::Never, |format, _look| match format {
        Format::Table => document.table(),
        Format::Json => document.json(),
        Format::Patch => document.patch(),
    })
    .map_err(Failure::Input)
}

#[cfg(test)]
mod tests {
    use super::hours;

    #[test]
    fn a_time_is_a_number_of_hours_with_or_without_its_unit() {
        assert_eq!((hours("24"), hours("3h"), hours("0")), (Ok(24), Ok(3), Ok(0)));
        assert!(hours("1d").is_err() && hours("").is_err() && hours("8761").is_err());
    }
}
