//! A report for people, as lines of text. Owns layout and colours; it shows failures in full and passes by name.

use std::fmt::Write;

use super::diff::{self, Line, Side};
use super::{Case, Report, Status, Summary};
use crate::capacity::verdict::count;
use crate::report::ansi::{BOLD, BOLD_RED, DIM, GREEN, RED, Style};
use crate::report::text::printable;

/// The report as text. `coloured` adds the codes of a terminal.
pub fn render(report: &Report, coloured: bool) -> String {
    let mut table = Table { out: String::new(), coloured };
    for file in &report.files {
        table.line(&table.styled(BOLD, &printable(&file.file)));
        for case in &file.cases {
            table.case(&file.file, case);
        }
        table.line("");
    }
    for error in &report.errors {
        let error = printable(&error.to_string());
        table.line(&format!("{} {error}", table.styled(BOLD_RED, "error ")));
    }
    if !report.errors.is_empty() {
        table.line("");
    }
    table.summary(&report.summary);
    table.out
}

struct Table {
    out: String,
    coloured: bool,
}

impl Table {
    fn styled(&self, style: Style, text: &str) -> String {
        style.of(text, self.coloured)
    }

    fn line(&mut self, text: &str) {
        self.out.push_str(text.trim_end());
        self.out.push('\n');
    }

    fn case(&mut self, file: &str, case: &Case) {
        let name = printable(&case.name);
        match case.status {
            Status::Pass => self.line(&format!("  {}  {name}", self.styled(GREEN, "pass"))),
            Status::Fail => {
                self.line(&format!("  {}  {}", self.styled(BOLD_RED, "FAIL"), self.styled(BOLD, &name)));
                self.line(&self.styled(DIM, &format!("        {}:{}", printable(file), case.line)));
            }
        }
        if let Some(error) = &case.error {
            self.line(&format!("        {}", printable(error)));
        }
        for difference in &case.differences {
            self.line(&format!("        {}", printable(&difference.field)));
            for line in diff::lines(difference) {
                self.difference(&line);
            }
        }
    }

    fn difference(&mut self, Line { side, text }: &Line) {
        let text = printable(text);
        let line = match side {
            Side::Expected => format!("expected  {}", self.styled(GREEN, &text)),
            Side::Got => format!("got       {}", self.styled(RED, &text)),
            Side::Words => format!("differs   {text}"),
            Side::Minus => self.styled(GREEN, &format!("- {text}")),
            Side::Plus => self.styled(RED, &format!("+ {text}")),
            Side::Same => self.styled(DIM, &format!("  {text}")),
            Side::Gap => self.styled(DIM, "  …"),
        };
        self.line(&format!("          {line}"));
    }

    fn summary(&mut self, summary: &Summary) {
        let Summary { files, cases, passed, failed, left_out, errors } = *summary;
        let mut text = format!("{} in {}: ", count(cases, "case"), count(files, "file"));
        let passed = format!("{passed} passed");
        text += &if failed == 0 && errors == 0 { self.styled(GREEN, &passed) } else { passed };
        if failed > 0 {
            let _ = write!(text, ", {}", self.styled(BOLD_RED, &format!("{failed} failed")));
        }
        if left_out > 0 {
            let _ = write!(text, ", {left_out} left out by --filter");
        }
        if errors > 0 {
            let unreadable = self.styled(BOLD_RED, &count(errors, "error"));
            let _ = write!(text, "; {unreadable} in files that could not be read");
        }
        self.line(&text);
    }
}
