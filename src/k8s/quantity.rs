//! Kubernetes quantities (`8Gi`, `1500m`, `2e3`, `4`), as the API server accepts and stores them. Owns their grammar,
//! which is wider than that of a declaration ([`Vram`]'s own).

use crate::capacity::vram::Vram;

/// A quantity in thousandths of its base unit: exact for all that the API server keeps of amounts of VRAM and counts of
/// devices. `None` where the text is no quantity, is negative, or does not fit.
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
    // Rounded up, as the API server does with what is finer than it keeps.
    Some(digits.checked_mul(multiply)?.checked_mul(1000)?.div_ceil(scale.checked_mul(divide)?))
}

/// What one unit of a suffix is, as a fraction.
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

/// A whole number of things, such as GPUs. `None` where the text is no quantity or not whole.
pub fn count(text: &str) -> Option<u64> {
    let thousandths = thousandths(text)?;
    thousandths.is_multiple_of(1000).then(|| u64::try_from(thousandths / 1000).ok()).flatten()
}

/// An amount of bytes as Kubernetes counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bytes {
    /// A whole number of MiB.
    Exactly(Vram),
    /// Between two MiB: the upper one.
    RoundedUp(Vram),
}

impl Bytes {
    /// The amount, rounded up.
    pub fn vram(self) -> Vram {
        match self {
            Bytes::Exactly(vram) | Bytes::RoundedUp(vram) => vram,
        }
    }
}

/// An amount of memory. `None` where the text is no quantity or larger than the API can say.
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
    fn counts_are_whole() {
        assert_eq!((count("4"), count("1k"), count("2e3"), count("4000m")), (Some(4), Some(1000), Some(2000), Some(4)));
        assert_eq!((count("1500m"), count("-1"), count("many"), count("0.5")), (None, None, None, None));
    }
}
