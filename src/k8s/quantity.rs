//! Kubernetes quantities (`8Gi`, `1500m`, `2e3`, `4`), as the API server accepts and stores them. Owns their grammar.
//! The grammar of a declaration is narrower and belongs to [`Vram`].

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Visitor};
use serde_json::Value;

use super::bounded::Entry;
use crate::capacity::vram::Vram;

/// A quantity as written: `8Gi`, `"4"` or, in a hand-written manifest, `4`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantity(pub String);

impl Entry for Quantity {
    /// Whether the quantity is not zero. Like kube-scheduler, vramguard ignores a request of zero, and a pod may list
    /// any number of such requests before one that counts.
    fn matters(&self) -> bool {
        count(&self.0) != Some(0)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Quantity, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Quantity;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quantity, as in 8Gi or 4")
            }
            fn visit_str<E>(self, text: &str) -> Result<Quantity, E> {
                Ok(Quantity(text.to_owned()))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Quantity, E> {
                Ok(Quantity(number.to_string()))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Quantity, E> {
                Ok(Quantity(number.to_string()))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Quantity, E> {
                Ok(Quantity(number.to_string()))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

/// Parses a quantity into thousandths of its base unit. These are exact for every amount of VRAM and every count of
/// devices that the API server stores. `None` if the text is not a quantity, is negative, or does not fit.
fn thousandths(text: &str) -> Option<u128> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || fraction.len() > 18 {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let (multiply, divide) = unit(suffix)?;
    // Rounded up: the API server does the same with digits finer than it stores.
    Some(digits.checked_mul(multiply)?.checked_mul(1000)?.div_ceil(scale.checked_mul(divide)?))
}

/// Returns the factor of a suffix as numerator and denominator.
fn unit(suffix: &str) -> Option<(u128, u128)> {
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_u128.checked_pow(exponent.unsigned_abs())?;
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
    })
}

/// Parses a whole number, such as a number of GPUs. `None` if the text is not a quantity, is not whole, or does not
/// fit.
pub fn count(text: &str) -> Option<u64> {
    let thousandths = thousandths(text)?;
    thousandths.is_multiple_of(1000).then(|| u64::try_from(thousandths / 1000).ok()).flatten()
}

/// Parses a count of devices, and says what is wrong with a text that is none.
///
/// # Errors
/// The text is not a whole number from 0 to the largest that the API can express; the error says which of these it is.
pub fn checked_count(text: &str) -> Result<u64, &'static str> {
    const LARGEST: u64 = i64::MAX as u64;
    if let Some(count) = count(text) {
        return if count <= LARGEST { Ok(count) } else { Err(TOO_LARGE) };
    }
    let (is_negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (digits, suffix) = unsigned.split_at(end);
    let is_exponent = suffix.strip_prefix(['e', 'E']).is_some_and(|power| power.parse::<i64>().is_ok());
    let is_number = digits.contains(|c: char| c.is_ascii_digit()) && digits.matches('.').count() <= 1;
    if !is_number || (unit(suffix).is_none() && !is_exponent) {
        Err("is not a number")
    } else if is_negative {
        Err(BELOW_ZERO)
    } else if thousandths(unsigned).is_some_and(|read| !read.is_multiple_of(1000)) {
        Err(FRACTION)
    } else {
        Err(TOO_LARGE)
    }
}

const BELOW_ZERO: &str = "is below zero";
const FRACTION: &str = "is not whole";
const TOO_LARGE: &str = "is too large";

/// Reads a number of pods, as in `replicas`.
///
/// # Errors
/// The value is not a whole number from 0 to the largest that the API can express; the error says what it is instead.
pub fn whole(value: &Value) -> Result<u64, String> {
    const LARGEST: u64 = i32::MAX as u64;
    let Value::Number(number) = value else {
        let kind = match value {
            Value::String(_) => "a text",
            Value::Bool(_) => "a boolean",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
            Value::Null | Value::Number(_) => "null",
        };
        return Err(format!("{value} is {kind}, expected a whole number"));
    };
    let why = match (number.as_u64(), number.as_f64()) {
        (Some(whole), _) if whole <= LARGEST => return Ok(whole),
        (Some(_), _) => TOO_LARGE,
        (None, Some(other)) if other < 0.0 => BELOW_ZERO,
        (None, Some(other)) if other.fract() != 0.0 => FRACTION,
        (None, _) => TOO_LARGE,
    };
    let limit = if why == TOO_LARGE { format!("; the API accepts at most {LARGEST}") } else { String::new() };
    Err(format!("{value} {why}, expected a whole number{limit}"))
}

/// An amount of memory as Kubernetes counts it, in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bytes {
    /// A whole number of MiB.
    Exactly(Vram),
    /// Not a whole number of MiB: the next larger one.
    RoundedUp(Vram),
}

impl Bytes {
    /// The amount, rounded up to whole MiB.
    pub fn vram(self) -> Vram {
        match self {
            Bytes::Exactly(vram) | Bytes::RoundedUp(vram) => vram,
        }
    }
}

/// Parses an amount of memory. `None` if the text is not a quantity, or is larger than the API can express.
pub fn bytes(text: &str) -> Option<Bytes> {
    let thousandths = thousandths(text)?;
    let vram = Vram::from_bytes_rounded_up(thousandths.div_ceil(1000))?;
    Some(if vram.bytes() * 1000 == thousandths { Bytes::Exactly(vram) } else { Bytes::RoundedUp(vram) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_the_api_server_reads_them() {
        for (text, mib) in [
            ("8Gi", 8192),
            ("8589934592", 8192),
            ("8589934592000m", 8192),
            ("8388608Ki", 8192),
            ("0.5Gi", 512),
            (".5Gi", 512),
            ("1048576e0", 1),
            ("1Ei", 1 << 40),
            ("0", 0),
        ] {
            assert_eq!(bytes(text), Some(Bytes::Exactly(Vram::from_mib(mib))), "{text}");
        }
        assert_eq!(bytes("8G"), Some(Bytes::RoundedUp(Vram::from_mib(7630))));
        assert_eq!(bytes("1"), Some(Bytes::RoundedUp(Vram::from_mib(1))));
        assert_eq!(bytes("1n"), Some(Bytes::RoundedUp(Vram::from_mib(1))));
    }

    #[test]
    fn what_is_no_quantity_is_not_zero() {
        for text in ["", ".", "Gi", "8GB", "-1", "1e", "1e99", "8 Gi", "0x10", "1.2.3", "99999999999Ei", "1e-99"] {
            assert_eq!(bytes(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_count_that_cannot_be_one_says_what_is_wrong_with_it() {
        for text in ["abc", "", "1x", "--1", "1.2.3", "-"] {
            assert_eq!(checked_count(text), Err("is not a number"), "{text:?}");
        }
        for text in ["-1", "-0.5", "-1e30"] {
            assert_eq!(checked_count(text), Err("is below zero"), "{text:?}");
        }
        for text in ["0.5", "1500m", "1e-1"] {
            assert_eq!(checked_count(text), Err("is not whole"), "{text:?}");
        }
        for text in ["99999999999999999999", "9223372036854775808", "1e400", "99999999999Ei"] {
            assert_eq!(checked_count(text), Err("is too large"), "{text:?}");
        }
        assert_eq!((checked_count("4"), checked_count("1k"), checked_count("2000m")), (Ok(4), Ok(1000), Ok(2)));
    }

    /// All of them were "not a whole number", which -1 is.
    #[test]
    fn a_number_of_pods_that_cannot_be_one_says_what_is_wrong_with_it() {
        let error = |text: &str| whole(&serde_json::from_str(text).unwrap()).unwrap_err();
        assert_eq!(error("-1"), "-1 is below zero, expected a whole number");
        assert_eq!(error("1.5"), "1.5 is not whole, expected a whole number");
        assert_eq!(error("\"3\""), "\"3\" is a text, expected a whole number");
        let most = "expected a whole number; the API accepts at most 2147483647";
        assert_eq!(error("99999999999"), format!("99999999999 is too large, {most}"));
        assert!(error("1e30").contains("is too large"), "{}", error("1e30"));
        assert_eq!(whole(&Value::from(3)), Ok(3));
    }

    #[test]
    fn counts_are_whole() {
        assert_eq!((count("4"), count("1k"), count("2e3"), count("4000m")), (Some(4), Some(1000), Some(2000), Some(4)));
        assert_eq!((count("1500m"), count("-1"), count("many"), count("0.5")), (None, None, None, None));
    }
}
