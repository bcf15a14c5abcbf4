//! Amounts, counts and times as a page shows them, and the characters of strangers that it makes visible. Owns the rules
//! that `page.js` repeats.

use std::borrow::Cow;
use std::fmt::Write as _;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::report::text::{room_gib, taken_gib};

/// What is shown in place of an amount that is not known.
pub(super) const UNKNOWN: &str = "–";

/// [`taken_gib`], with a comma between thousands.
pub(super) fn taken(mib: u64) -> String {
    with_commas(&taken_gib(mib))
}

/// [`room_gib`], with a comma between thousands.
pub(super) fn room(mib: u64) -> String {
    with_commas(&room_gib(mib))
}

fn with_commas(gib: &str) -> String {
    let whole = gib.split_once('.').and_then(|(whole, tenth)| Some((whole.parse().ok()?, tenth)));
    whole.map_or_else(|| gib.to_owned(), |(whole, tenth)| format!("{}.{tenth}", grouped(whole)))
}

/// As [`taken`], and [`UNKNOWN`] if the amount is not known.
pub(super) fn taken_or_unknown(mib: Option<u64>) -> String {
    mib.map_or_else(|| UNKNOWN.to_owned(), taken)
}

/// As [`room`], and [`UNKNOWN`] if the amount is not known.
pub(super) fn room_or_unknown(mib: Option<u64>) -> String {
    mib.map_or_else(|| UNKNOWN.to_owned(), room)
}

/// A number with a comma between thousands.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count with its noun: `1 pod`, `2 pods`.
pub(super) fn counted(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", grouped(number), if number == 1 { "" } else { "s" })
}

/// A part of a whole in percent, rounded down; `None` if the whole is nothing.
pub(super) fn percent(part: u64, whole: u64) -> Option<u64> {
    (u128::from(part) * 100).checked_div(u128::from(whole)).map(|percent| u64::try_from(percent).unwrap_or(u64::MAX))
}

/// A time to the minute, or the text as it is if it is not a time.
pub(super) fn time(text: &str) -> String {
    instant(text)
        .map_or_else(|| text.to_owned(), |time| time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M UTC").to_string())
}

/// The time of a report; `None` if it is not in RFC 3339.
pub(super) fn instant(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// The name of a GPU, cut in the middle if it is a UUID.
pub(super) fn gpu_name(gpu: &str) -> String {
    let letters: Vec<char> = gpu.chars().collect();
    if letters.len() <= 16 {
        return format!("GPU {gpu}").replacen("GPU GPU-", "GPU-", 1);
    }
    letters[..8].iter().chain(&['…']).chain(&letters[letters.len() - 4..]).collect()
}

/// Whether a character has no glyph or changes the order of others, so that a text may read as what it is not.
fn is_deceptive(letter: char) -> bool {
    (letter.is_control() && !matches!(letter, '\n' | '\t'))
        || matches!(letter, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(letter, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// The text with each deceptive character written out, such as `\u{202e}`.
pub(super) fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(is_deceptive) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        if is_deceptive(letter) {
            let _ = write!(shown, "{}", letter.escape_unicode()); // a String takes all that is written
        } else {
            shown.push(letter);
        }
    }
    Cow::Owned(shown)
}
