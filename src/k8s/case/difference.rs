//! The comparison of an expected with an actual outcome. Owns which fields are compared, and the texts of both sides;
//! `report::suite` shows them.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use super::{BindExpectation, Bound, Expectation, Expected, FITS, FilterExpectation, Outcome, TextMatch};

/// A field of the outcome that is not as expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The field below `expect`, such as `message` or `bind.a10.reason`.
    pub field: String,
    /// The expected value.
    pub expected: Wanted,
    /// The actual value; `None` if there is none.
    pub got: Option<String>,
}

/// An expected value, as text. Lists and patches have several lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// This value.
    Value(String),
    /// A text with more parts than it has; these are missing.
    Missing(Vec<String>),
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wanted::Value(value) => f.write_str(value),
            Wanted::Missing(parts) => {
                let parts: Vec<String> = parts.iter().map(|part| format!("{part:?}")).collect();
                write!(f, "a text that contains {}", parts.join(" and "))
            }
        }
    }
}

/// One line, or several if a value has several.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let got = self.got.as_deref().unwrap_or("none");
        write!(f, "{}: expected {}, got {got}", self.field, self.expected)
    }
}

impl TextMatch {
    /// What the text lacks; `None` if it is as expected.
    fn lacking(&self, text: Option<&str>) -> Option<Wanted> {
        match self {
            TextMatch::Exactly(whole) => (text != Some(whole)).then(|| Wanted::Value(whole.clone())),
            TextMatch::Contains(parts) => {
                let missing = |part: &&String| !text.is_some_and(|text| text.contains(part.as_str()));
                let missing: Vec<String> = parts.iter().filter(missing).cloned().collect();
                (!missing.is_empty()).then_some(Wanted::Missing(missing))
            }
        }
    }
}

impl Expectation {
    /// Lists the differences from an outcome.
    ///
    /// # Panics
    /// The outcome lacks a node that is named here; [`Case::nodes`](super::Case::nodes) lists all of them.
    pub fn compare(&self, outcome: &Outcome) -> Vec<Difference> {
        let mut differences = Differences::default();
        if self.verdict != outcome.verdict {
            differences.add("verdict", Wanted::Value(format!("{:?}", self.verdict)), Some(verdict(outcome)));
        }
        for (field, expected, got) in
            [("reason", &self.reason, &outcome.reason), ("demand", &self.demand, &outcome.demand)]
        {
            if expected.is_some() && expected != got {
                differences.add(field, Wanted::Value(expected.clone().unwrap_or_default()), got.clone());
            }
        }
        differences.text("message", self.message.as_ref(), outcome.message.as_deref());
        if let Some(expected) = &self.warnings {
            differences.warnings(expected, &outcome.warnings);
        }
        if let Some(expected) = self.patch.as_ref().filter(|expected| **expected != outcome.patch) {
            differences.add("patch", Wanted::Value(operations(expected)), Some(operations(&outcome.patch)));
        }
        for (node, expected) in &self.filter {
            let got = outcome.filter.get(node).expect("each node that is named is asked about");
            let field = format!("filter.{node}");
            match expected {
                FilterExpectation::Fits if got == FITS => {}
                FilterExpectation::Fits => differences.add(&field, Wanted::Value(FITS.to_owned()), Some(got.clone())),
                // `fits` is an answer and not a reason, so a part of that word does not match it.
                FilterExpectation::Rejected(TextMatch::Contains(parts)) if got == FITS => {
                    differences.add(&field, Wanted::Missing(parts.clone()), Some(got.clone()));
                }
                FilterExpectation::Rejected(text) => differences.text(&field, Some(text), Some(got)),
            }
        }
        for (node, expected) in &self.bind {
            let got = outcome.bind.get(node).expect("each node that is named is asked about");
            differences.bind(&format!("bind.{node}"), expected, got);
        }
        differences.0
    }
}

/// The verdict, with the cause of a denial: it is what one looks for if the denial is not expected.
fn verdict(outcome: &Outcome) -> String {
    match (outcome.verdict, &outcome.reason, &outcome.message) {
        (Expected::Deny, Some(reason), Some(message)) => format!("Deny, {reason}: {message}"),
        (verdict, ..) => format!("{verdict:?}"),
    }
}

/// One line for each entry.
fn list(entries: &[String]) -> String {
    if entries.is_empty() {
        return "[]".to_owned();
    }
    entries.join("\n")
}

/// One line for each operation.
fn operations(patch: &Value) -> String {
    match patch.as_array() {
        Some(operations) => list(&operations.iter().map(Value::to_string).collect::<Vec<_>>()),
        None => patch.to_string(),
    }
}

fn annotations(annotations: &BTreeMap<String, String>) -> String {
    if annotations.is_empty() {
        return "{}".to_owned();
    }
    annotations.iter().map(|(key, value)| format!("{key}: {value:?}")).collect::<Vec<_>>().join("\n")
}

#[derive(Default)]
struct Differences(Vec<Difference>);

impl Differences {
    fn add(&mut self, field: &str, expected: Wanted, got: Option<String>) {
        self.0.push(Difference { field: field.to_owned(), expected, got });
    }

    fn text(&mut self, field: &str, expected: Option<&TextMatch>, got: Option<&str>) {
        if let Some(lacking) = expected.and_then(|expected| expected.lacking(got)) {
            self.add(field, lacking, got.map(str::to_owned));
        }
    }

    fn warnings(&mut self, expected: &[TextMatch], got: &[String]) {
        let lacking = |(at, text): (usize, &TextMatch)| text.lacking(got.get(at).map(String::as_str));
        let lacking: Vec<Option<Wanted>> = expected.iter().enumerate().map(lacking).collect();
        if expected.len() == got.len() && lacking.iter().all(Option::is_none) {
            return;
        }
        // A warning that is as expected is shown as it is, so that a line diff leaves it out.
        let shown = lacking.iter().enumerate().map(|(at, lacking)| match lacking {
            Some(wanted) => wanted.to_string(),
            None => got.get(at).cloned().unwrap_or_default(),
        });
        self.add("warnings", Wanted::Value(list(&shown.collect::<Vec<_>>())), Some(list(got)));
    }

    fn bind(&mut self, field: &str, expected: &BindExpectation, got: &Bound) {
        let at = |part: &str| format!("{field}.{part}");
        match (expected, got) {
            (BindExpectation::Allow { annotations: None }, Bound::Allow { .. }) => {}
            (BindExpectation::Allow { annotations: Some(expected) }, Bound::Allow { annotations: got }) => {
                if expected != got {
                    let expected = Wanted::Value(annotations(expected));
                    self.add(&at("annotations"), expected, Some(annotations(got)));
                }
            }
            (BindExpectation::Deny { reason: expected_reason, message: expected }, Bound::Deny { reason, message }) => {
                if let Some(expected) = expected_reason.as_ref().filter(|expected| *expected != reason) {
                    self.add(&at("reason"), Wanted::Value(expected.clone()), Some(reason.clone()));
                }
                self.text(&at("message"), expected.as_ref(), Some(message));
            }
            (BindExpectation::Allow { .. }, Bound::Deny { reason, message }) => {
                let got = format!("Deny, {reason}: {message}");
                self.add(&at("verdict"), Wanted::Value("Allow".to_owned()), Some(got));
            }
            (BindExpectation::Deny { .. }, Bound::Allow { .. }) => {
                self.add(&at("verdict"), Wanted::Value("Deny".to_owned()), Some("Allow".to_owned()));
            }
        }
    }
}
