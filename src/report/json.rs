//! The JSON contract itself, indented.

use serde::Serialize;

use super::document::Report;

/// Renders a report as JSON.
pub(super) fn render(report: &Report) -> String {
    pretty(report)
}

/// A document as JSON, indented, with a line break at its end.
///
/// # Panics
/// A map of the document has keys that are no texts.
pub(super) fn pretty(document: &impl Serialize) -> String {
    serde_json::to_string_pretty(document).expect("a document has string keys and no failing serializer") + "\n"
}

#[cfg(test)]
mod tests {
    use super::super::{document::Report, testing};

    #[test]
    fn what_is_written_is_what_baseline_reads() {
        let report = testing::compared();
        assert_eq!(serde_json::from_str::<Report>(&super::render(&report)).expect("valid JSON"), report);
    }
}
