//! What differs between an expected and an actual value, line by line. Owns when a diff is shown in place of both
//! values, and how many equal lines are shown around a change.

use similar::{ChangeTag, TextDiff};

use super::Difference;
use crate::k8s::case::Wanted;

/// Equal lines that are shown before and after a change.
const CONTEXT: usize = 3;

/// A text of one line is long if it does not fit next to its label on a screen.
const LONG: usize = 60;

/// One line of a difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Which side it is of.
    pub side: Side,
    /// The text, without line break.
    pub text: String,
}

/// Which side a line is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A label and one value: `expected Deny`.
    Expected,
    /// A label and one value: `got Allow`.
    Got,
    /// Expected and missing.
    Minus,
    /// Not expected.
    Plus,
    /// In both, for context.
    Same,
    /// Lines that are in both were left out here.
    Gap,
    /// Words of one long line: `[-expected-]`, `{+actual+}`, and what is in both.
    Words,
}

/// The lines that show a difference.
pub fn lines(difference: &Difference) -> Vec<Line> {
    let got = difference.got.as_deref();
    let line = |side, text: &str| Line { side, text: text.to_owned() };
    let (Wanted::Value(expected), Some(actual)) = (&difference.expected, got) else {
        let expected = difference.expected.to_string();
        return vec![line(Side::Expected, &expected), line(Side::Got, got.unwrap_or("none"))];
    };
    if expected.contains('\n') || actual.contains('\n') {
        return by_line(expected, actual);
    }
    let mut lines = vec![line(Side::Expected, expected), line(Side::Got, actual)];
    // A denial that is not expected has its cause in the actual value, which is no variant of the expected one.
    if expected.chars().count() > LONG && actual.chars().count() > LONG {
        lines.push(Line { side: Side::Words, text: by_word(expected, actual) });
    }
    lines
}

fn by_line(expected: &str, actual: &str) -> Vec<Line> {
    let diff = TextDiff::from_lines(expected, actual);
    let mut lines = Vec::new();
    for (number, group) in diff.grouped_ops(CONTEXT).iter().enumerate() {
        if number > 0 {
            lines.push(Line { side: Side::Gap, text: String::new() });
        }
        for change in group.iter().flat_map(|operation| diff.iter_changes(operation)) {
            let side = match change.tag() {
                ChangeTag::Delete => Side::Minus,
                ChangeTag::Insert => Side::Plus,
                ChangeTag::Equal => Side::Same,
            };
            lines.push(Line { side, text: change.value().trim_end_matches('\n').to_owned() });
        }
    }
    lines
}

fn by_word(expected: &str, actual: &str) -> String {
    let diff = TextDiff::from_words(expected, actual);
    let mut words = String::new();
    let mut last = ChangeTag::Equal;
    let close = |words: &mut String, tag| match tag {
        ChangeTag::Delete => words.push_str("-]"),
        ChangeTag::Insert => words.push_str("+}"),
        ChangeTag::Equal => {}
    };
    for change in diff.iter_all_changes() {
        if change.tag() != last {
            close(&mut words, last);
            match change.tag() {
                ChangeTag::Delete => words.push_str("[-"),
                ChangeTag::Insert => words.push_str("{+"),
                ChangeTag::Equal => {}
            }
            last = change.tag();
        }
        words.push_str(change.value());
    }
    close(&mut words, last);
    words
}
