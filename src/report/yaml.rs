//! The document of the JSON contract as YAML. Strings that YAML 1.1 or 1.2 would read as another type are quoted.

use serde::Serialize;

use super::document::Report;

/// Renders a report as YAML.
pub(super) fn render(report: &Report) -> String {
    document(report)
}

/// Renders any document as block YAML. Each string stays on one line.
pub(super) fn document<T: Serialize>(document: &T) -> String {
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    let mut text = serde_saphyr::to_string_with_options(document, options)
        .expect("a document has string keys and no failing serializer");
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::document::{Finding, Report};
    use super::super::testing;
    use super::*;

    #[test]
    fn the_report_is_read_back_as_it_was() {
        let report = testing::compared();
        assert_eq!(serde_saphyr::from_str::<Report>(&render(&report)).expect("valid YAML"), report);
    }

    /// Strings that a reader of YAML 1.1 or 1.2 would take for another type, or for syntax.
    const TREACHEROUS: [&str; 30] = [
        "no",
        "yes",
        "on",
        "Off",
        "y",
        "N",
        "null",
        "~",
        "",
        "1e3",
        "1_000",
        "0o17",
        "017",
        "0x1f",
        "12:30:45",
        ".inf",
        ".NaN",
        "2026-11-29",
        "2026-11-29T12:00:00Z",
        "=",
        "<<",
        "- a",
        "a: b",
        "a #b",
        "&a",
        "*a",
        "!a",
        "%a",
        "@a",
        "`a",
    ];

    #[test]
    fn a_string_that_looks_like_another_type_stays_a_string() {
        let mut report = testing::sample();
        let finding = report.findings[0].clone();
        report.findings = TREACHEROUS.map(|name| Finding { name: name.to_owned(), ..finding.clone() }).into();
        let text = render(&report);
        assert_eq!(serde_saphyr::from_str::<Report>(&text).expect("valid YAML"), report);
        let (_, findings) = text.split_once("\nfindings:\n").expect("the list of findings");
        let names: Vec<&str> = findings.lines().filter_map(|line| line.trim().strip_prefix("name: ")).collect();
        assert_eq!(names.len(), TREACHEROUS.len());
        for (name, value) in TREACHEROUS.iter().zip(names) {
            assert!(value.starts_with(['"', '\'']), "{name:?} is written as {value}");
        }
    }

    #[test]
    fn no_text_leaves_its_line() {
        let text = render(&testing::sample());
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text}");
        assert!(text.lines().all(|line| !line.trim_start().starts_with("::")), "{text}");
    }
}
