//! The JSON contract itself, indented.

use super::document::Report;

/// Renders a report as JSON.
pub(super) fn render(report: &Report) -> String {
    let mut text = serde_json::to_string_pretty(report).expect("a report has string keys and no failing serializer");
    text.push('\n');
    text
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
