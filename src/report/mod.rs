//! Reports of an audit, as text in each output format. Owns the JSON contract and how a report looks; what is found is
//! decided in [`capacity`](crate::capacity).
//!
//! Every format is rendered from a [`document::Report`], which is also what `--output json` writes and `--baseline`
//! reads. So no format says more than another knows. Renderers return text; they read no files, clock or terminal.
//!
//! Names, annotations and texts of policies are written by strangers. Each renderer escapes them by the rules of its
//! format.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::str::FromStr;

mod ansi;
pub mod assemble;
pub mod baseline;
pub mod document;
pub mod estimate;
pub mod explanation;
mod github;
pub mod glance;
pub mod html;
mod json;
mod junit;
mod markdown;
mod narrow;
pub mod plan;
mod policyreport;
pub mod preflight;
pub mod recommendation;
mod sarif;
pub mod suite;
mod summary;
mod table;
mod text;
mod yaml;

#[cfg(test)]
mod testing;

pub use policyreport::{NAME as POLICY_REPORT, ReportApi, objects as policy_reports};

pub use text::printable;

use baseline::FailOn;
use document::Report;

/// An output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// Tables for a terminal.
    Table,
    /// The JSON contract of [`document`].
    Json,
    /// The same document as YAML.
    Yaml,
    /// A page for a browser, in one file that loads nothing.
    Html,
    /// GitHub-flavoured Markdown that fits the summary of a CI job.
    Markdown,
    /// SARIF 2.1.0, for code scanning.
    Sarif,
    /// JUnit XML, for the test page of a CI system.
    Junit,
    /// Workflow commands of GitHub Actions, which annotate a pull request.
    Github,
    /// Reports of the API [`ReportApi`], as YAML documents to apply.
    PolicyReport,
}

impl Format {
    /// All formats, in the order of the documentation.
    pub const ALL: [Format; 9] = [
        Format::Table,
        Format::Json,
        Format::Yaml,
        Format::Html,
        Format::Markdown,
        Format::Sarif,
        Format::Junit,
        Format::Github,
        Format::PolicyReport,
    ];

    /// The name of the format on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Format::Table => "table",
            Format::Json => "json",
            Format::Yaml => "yaml",
            Format::Html => "html",
            Format::Markdown => "markdown",
            Format::Sarif => "sarif",
            Format::Junit => "junit",
            Format::Github => "github",
            Format::PolicyReport => "policyreport",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that names no format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown output format {}; expected one of: {}", crate::capacity::verdict::quoted(.0), names())]
pub struct UnknownFormat(String);

fn names() -> String {
    Format::ALL.map(Format::name).join(", ")
}

impl FromStr for Format {
    type Err = UnknownFormat;

    /// Reads the name of a format.
    ///
    /// # Errors
    /// The text is not the name of a format.
    fn from_str(text: &str) -> Result<Format, UnknownFormat> {
        Format::ALL.into_iter().find(|format| format.name() == text).ok_or_else(|| UnknownFormat(text.to_owned()))
    }
}

/// How a report is rendered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Width of the table in columns of a terminal. At least [`Options::NARROWEST`] are used.
    pub width: usize,
    /// Whether the table has colours.
    pub color: bool,
    /// Whether the table has only ASCII characters.
    pub ascii: bool,
    /// Whether the table shows healthy GPUs one by one and all findings of a group, and `github` annotates with all.
    pub all: bool,
    /// Which findings fail the run. JUnit shows them as failures.
    pub fail_on: FailOn,
    /// The API of the format `policyreport`.
    pub report_api: ReportApi,
}

impl Options {
    /// The smallest width of a table, in columns.
    pub const NARROWEST: usize = 72;
}

impl Default for Options {
    fn default() -> Options {
        Options {
            width: 80,
            color: false,
            ascii: false,
            all: false,
            fail_on: FailOn::Deny,
            report_api: ReportApi::OpenReports,
        }
    }
}

/// Renders a report. The text ends in a line feed.
pub fn render(report: &Report, format: Format, options: &Options) -> String {
    match format {
        Format::Table => table::render(report, options),
        Format::Json => json::render(report),
        Format::Yaml => yaml::render(report),
        Format::Html => html::render(std::slice::from_ref(report)),
        Format::Markdown => markdown::render(report),
        Format::Sarif => sarif::render(report),
        Format::Junit => junit::render(report, options.fail_on),
        Format::Github => github::render(report, options.all),
        Format::PolicyReport => policyreport::render(report, options.report_api),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_format_is_read_by_its_name_and_no_other_text_is() {
        for format in Format::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        let error = "xlsx".parse::<Format>().expect_err("no such format").to_string();
        insta::assert_snapshot!(error, @r#"unknown output format "xlsx"; expected one of: table, json, yaml, html, markdown, sarif, junit, github, policyreport"#);
        assert!("JSON".parse::<Format>().is_err());
    }

    #[test]
    fn every_format_of_every_report_ends_in_one_line_feed() {
        for report in [testing::sample(), testing::compared(), Report::default()] {
            for format in Format::ALL {
                let text = render(&report, format, &Options::default());
                assert!(text.ends_with('\n') && !text.ends_with("\n\n"), "{format}: {text:?}");
            }
        }
    }
}
