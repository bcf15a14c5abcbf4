//! [`Report`]: the result of `vramguard test` as a document. Owns names and shapes of its JSON fields, and the order of
//! files and cases. `table` and `junit` show it; they say nothing that it does not have.
//!
//! Fields may be added and are never renamed or removed while `schemaVersion` is `v1`.

use serde::{Serialize, Serializer};

use crate::k8s::case::{self, Failure, Suite, Wanted};
use crate::k8s::document::DocumentError;

pub mod diff;
pub mod junit;
pub mod table;

/// The version of the contract.
pub const SCHEMA_VERSION: &str = "v1";

/// The result of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema_version: String,
    /// Program and version, such as `vramguard 0.1.0`.
    pub generated_by: String,
    /// The totals.
    pub summary: Summary,
    /// The files that were played, in order.
    pub files: Vec<File>,
    /// What could not be read. Nothing of these files was played.
    pub errors: Vec<Unreadable>,
}

/// The totals of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Files that were read.
    pub files: usize,
    /// Cases that were played.
    pub cases: usize,
    /// Cases that are as expected.
    pub passed: usize,
    /// Cases that are not as expected.
    pub failed: usize,
    /// Cases that `--filter` left out.
    pub left_out: usize,
    /// Number of entries of [`Report::errors`].
    pub errors: usize,
}

/// One case file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct File {
    /// The file, as it was found.
    pub file: String,
    /// Its cases, without those that were left out.
    pub cases: Vec<Case>,
}

/// One case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Case {
    /// Its name.
    pub name: String,
    /// The line of its name, from 1.
    pub line: u64,
    /// Whether it is as expected.
    pub status: Status,
    /// The fields that are not as expected.
    pub differences: Vec<Difference>,
    /// Why it could not be played; `null` if it was.
    pub error: Option<String>,
}

/// Whether a case is as expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It is.
    Pass,
    /// It is not, or it could not be played.
    Fail,
}

/// One field that is not as expected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// The field below `expect`, such as `message` or `bind.a10.reason`.
    pub field: String,
    /// The expected value, or a sentence about the text that is expected.
    #[serde(serialize_with = "wanted")]
    pub expected: Wanted,
    /// The actual value; `null` if there is none.
    pub got: Option<String>,
}

/// Something that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Unreadable {
    /// The file, as it was found.
    pub file: String,
    /// The line, from 1; `null` if the file as a whole could not be read.
    pub line: Option<u64>,
    /// The field, such as `cases[0].expect.verdict`; empty if the error is not about a field.
    pub field: String,
    /// What is wrong, and what was expected.
    pub message: String,
}

fn wanted<S: Serializer>(wanted: &Wanted, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(wanted)
}

impl Report {
    /// A report without files.
    pub fn new(version: &str) -> Report {
        Report {
            schema_version: SCHEMA_VERSION.to_owned(),
            generated_by: format!("vramguard {version}"),
            ..Report::default()
        }
    }

    /// Plays the cases of a file whose name contains `filter`, and adds their results.
    pub fn play(&mut self, file: &str, suite: &Suite, filter: &str) {
        let simulation = suite.simulation();
        let chosen: Vec<&case::Case> = suite.cases.iter().filter(|case| case.name.contains(filter)).collect();
        let cases: Vec<Case> = chosen.iter().map(|case| Case::of(case, case.check(&simulation))).collect();
        let failed = cases.iter().filter(|case| case.status == Status::Fail).count();
        self.summary.files += 1;
        self.summary.cases += cases.len();
        self.summary.failed += failed;
        self.summary.passed += cases.len() - failed;
        self.summary.left_out += suite.cases.len() - cases.len();
        if !cases.is_empty() {
            self.files.push(File { file: file.to_owned(), cases });
        }
    }

    /// Adds what could not be read.
    pub fn unreadable(&mut self, errors: impl IntoIterator<Item = Unreadable>) {
        self.errors.extend(errors);
        self.summary.errors = self.errors.len();
    }

    /// The report as JSON, indented, with a line break at its end.
    pub fn json(&self) -> String {
        crate::report::json::pretty(self)
    }
}

impl Case {
    fn of(case: &case::Case, result: Result<(), Failure>) -> Case {
        let (status, differences, error) = match result {
            Ok(()) => (Status::Pass, Vec::new(), None),
            Err(Failure::Unplayable(error)) => (Status::Fail, Vec::new(), Some(error)),
            Err(Failure::Differs(differences)) => {
                let of = |case::Difference { field, expected, got }| Difference { field, expected, got };
                (Status::Fail, differences.into_iter().map(of).collect(), None)
            }
        };
        Case { name: case.name.clone(), line: case.line, status, differences, error }
    }
}

impl From<DocumentError> for Unreadable {
    fn from(DocumentError { file, line, field, what }: DocumentError) -> Unreadable {
        Unreadable { file, line: Some(line), field, message: what }
    }
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        f.write_str(": ")?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests;
