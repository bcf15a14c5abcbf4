//! Numbers on the command line. Owns what is said of one that cannot be read.

use std::fmt::Display;
use std::num::NonZeroU32;

/// A reader of whole numbers in a range.
pub(super) fn between<T: TryFrom<u64>>(
    least: u64,
    most: u64,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |text| {
        let why = match text.parse::<i128>() {
            // All digits, and too many for the type.
            Err(_) if text.len() > 30 && text.bytes().all(|byte| byte.is_ascii_digit()) => "is too large",
            Err(_) => "is not a whole number",
            Ok(number) if number < 0 => "is below zero",
            Ok(number) if number < i128::from(least) => "is too small",
            Ok(number) => match u64::try_from(number).ok().filter(|number| *number <= most).map(T::try_from) {
                Some(Ok(number)) => return Ok(number),
                Some(Err(_)) | None => "is too large",
            },
        };
        Err(format!("{why}; {}", expected(least, most)))
    }
}

fn expected(least: impl Display, most: u64) -> String {
    if most >= u64::from(u32::MAX) {
        format!("expected a whole number of at least {least}")
    } else {
        format!("expected a whole number from {least} to {most}")
    }
}

/// Reads a whole number above zero.
pub(super) fn above_zero(text: &str) -> Result<NonZeroU32, String> {
    let number = between::<u32>(1, u64::from(u32::MAX))(text)?;
    Ok(NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// They were in the words of Rust: "number would be zero for non-zero type".
    #[test]
    fn a_number_that_cannot_be_read_says_what_is_wrong_with_it() {
        let percent = between::<u8>(0, 100);
        assert_eq!(percent("90"), Ok(90));
        assert_eq!(percent("101"), Err("is too large; expected a whole number from 0 to 100".to_owned()));
        assert_eq!(percent("-1"), Err("is below zero; expected a whole number from 0 to 100".to_owned()));
        for text in ["abc", "1.5", "", "-"] {
            assert_eq!(percent(text), Err("is not a whole number; expected a whole number from 0 to 100".to_owned()));
        }
        assert_eq!(above_zero("0"), Err("is too small; expected a whole number of at least 1".to_owned()));
        let vast = "9".repeat(60);
        assert_eq!(above_zero(&vast), Err("is too large; expected a whole number of at least 1".to_owned()));
        assert_eq!(above_zero("3"), Ok(NonZeroU32::new(3).unwrap()));
    }
}
