//! A report as JUnit XML, which CI systems show. Owns how files, cases and errors become suites, cases and failures.
//!
//! There is no schema of JUnit XML that all readers agree on. This file keeps to elements and attributes that Jenkins,
//! GitLab, GitHub actions and Azure DevOps read. Cases have no time, because the same files give the same report.

use std::fmt::Write;

use super::diff::{self, Line, Side};
use super::{Case, Report, Status, Unreadable};
use crate::report::text::printable;

/// The report as XML.
pub fn render(report: &Report) -> String {
    let summary = &report.summary;
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let tests = summary.cases + summary.errors;
    let _ = writeln!(
        xml,
        "<testsuites name=\"vramguard test\" tests=\"{tests}\" failures=\"{}\" errors=\"{}\">",
        summary.failed, summary.errors
    );
    for file in &report.files {
        let failed = file.cases.iter().filter(|case| case.status == Status::Fail).count();
        let (name, tests) = (escaped(&file.file), file.cases.len());
        let _ = writeln!(xml, "  <testsuite name=\"{name}\" tests=\"{tests}\" failures=\"{failed}\" errors=\"0\">");
        for case in &file.cases {
            write_case(&mut xml, &file.file, case);
        }
        xml.push_str("  </testsuite>\n");
    }
    for error in &report.errors {
        write_error(&mut xml, error);
    }
    xml.push_str("</testsuites>\n");
    xml
}

fn write_case(xml: &mut String, file: &str, case: &Case) {
    let attributes = attributes(file, &case.name, Some(case.line));
    if case.status == Status::Pass {
        let _ = writeln!(xml, "    <testcase {attributes}/>");
        return;
    }
    let fields: Vec<&str> = case.differences.iter().map(|difference| difference.field.as_str()).collect();
    let message = case.error.clone().unwrap_or_else(|| format!("not as expected: {}", fields.join(", ")));
    let mut text = format!("{}:{}\n", escaped(file), case.line);
    for difference in &case.differences {
        let _ = writeln!(text, "{}", escaped(&difference.field));
        for Line { side, text: line } in diff::lines(difference) {
            let mark = match side {
                Side::Expected => "expected  ",
                Side::Got => "got       ",
                Side::Words => "differs   ",
                Side::Minus => "- ",
                Side::Plus => "+ ",
                Side::Same => "  ",
                Side::Gap => "  …",
            };
            let _ = writeln!(text, "  {mark}{}", escaped(&line));
        }
    }
    let message = escaped(&message);
    let _ = writeln!(xml, "    <testcase {attributes}>\n      <failure message=\"{message}\">{text}</failure>");
    xml.push_str("    </testcase>\n");
}

/// A file that could not be read is a suite with one case that did not run.
fn write_error(xml: &mut String, error: &Unreadable) {
    let (name, message) = (escaped(&error.file), escaped(&error.to_string()));
    let _ = writeln!(xml, "  <testsuite name=\"{name}\" tests=\"1\" failures=\"0\" errors=\"1\">");
    let attributes = attributes(&error.file, "the file can be read", error.line);
    let _ = writeln!(xml, "    <testcase {attributes}>\n      <error message=\"{message}\"/>\n    </testcase>");
    xml.push_str("  </testsuite>\n");
}

fn attributes(file: &str, name: &str, line: Option<u64>) -> String {
    let (file, name) = (escaped(file), escaped(name));
    let line = line.map(|line| format!(" line=\"{line}\"")).unwrap_or_default();
    format!("classname=\"{file}\" name=\"{name}\" file=\"{file}\"{line}")
}

/// Text for the value of an attribute, or for the content of an element. Control characters have no form in XML, so they
/// are shown as escapes.
fn escaped(text: &str) -> String {
    printable(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
