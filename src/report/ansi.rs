//! Styles of text on a terminal. Owns their codes.

/// The codes of one style.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style(&'static str);

/// Headings and names.
pub(super) const BOLD: Style = Style("1");
/// What is read last.
pub(super) const DIM: Style = Style("2");
/// The actual value, where it is not as expected.
pub(super) const RED: Style = Style("31");
/// Failures and refusals.
pub(super) const BOLD_RED: Style = Style("1;31");
/// Successes, and the expected value.
pub(super) const GREEN: Style = Style("32");
/// Warnings.
pub(super) const YELLOW: Style = Style("33");

impl Style {
    /// The text in this style, or as it is where nothing is `coloured`.
    pub(super) fn of(self, text: &str, coloured: bool) -> String {
        if coloured { format!("\u{1b}[{}m{text}\u{1b}[0m", self.0) } else { text.to_owned() }
    }
}
