//! Amounts of GPU memory: [`Vram`], and [`Balance`] for what is left of one.
//!
//! Owns the grammar in which users write amounts, and all arithmetic on them; knows nothing of GPUs or pods.

use std::fmt;
use std::iter::Sum;
use std::str::FromStr;

/// An amount of GPU memory in whole MiB.
///
/// An amount is at most [`Vram::MAX`], the limit of a Kubernetes quantity of bytes. A sum may be larger, and a million
/// amounts do not overflow it. No subtraction returns a `Vram`, because the result may be negative: see [`Balance`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vram(u64);

const MIB: u128 = 1 << 20;

impl Vram {
    /// Zero MiB. It is never used for an unknown amount.
    pub const ZERO: Vram = Vram(0);
    /// The largest whole number of MiB below 2^63 bytes, the limit of a quantity in the Kubernetes API.
    pub const MAX: Vram = Vram((1 << 43) - 1);

    /// Makes an amount of `mib` MiB.
    ///
    /// Use it for constants and for values that were parsed before.
    ///
    /// # Panics
    ///
    /// If `mib` is above [`Vram::MAX`].
    pub const fn from_mib(mib: u64) -> Vram {
        assert!(mib <= Vram::MAX.0, "an amount of VRAM is less than 2^43 MiB");
        Vram(mib)
    }

    /// Makes an amount of `mib` MiB, or returns `None` above [`Vram::MAX`].
    pub const fn checked_from_mib(mib: u64) -> Option<Vram> {
        if mib <= Vram::MAX.0 { Some(Vram(mib)) } else { None }
    }

    /// Rounds `bytes` up to whole MiB, or returns `None` above [`Vram::MAX`].
    pub fn from_bytes_rounded_up(bytes: u128) -> Option<Vram> {
        u64::try_from(bytes.div_ceil(MIB)).ok().and_then(Vram::checked_from_mib)
    }

    /// The number of times that this amount fits in another; `u64::MAX` if it is zero.
    pub fn times_in(self, room: Vram) -> u64 {
        room.0.checked_div(self.0).unwrap_or(u64::MAX)
    }

    /// The amount in MiB.
    pub const fn mib(self) -> u64 {
        self.0
    }

    /// The amount in bytes.
    pub const fn bytes(self) -> u128 {
        self.0 as u128 * MIB
    }

    /// Whether the amount is zero.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// Adds `other`. The sum may exceed [`Vram::MAX`].
    ///
    /// # Panics
    ///
    /// If the sum reaches 2^64 MiB, which a million amounts of [`Vram::MAX`] do not.
    pub fn plus(self, other: Vram) -> Vram {
        Vram(self.0.checked_add(other.0).expect("sums of VRAM stay below 2^64 MiB"))
    }

    /// Multiplies the amount by `times`, or returns `None` above [`Vram::MAX`].
    pub fn checked_times(self, times: u64) -> Option<Vram> {
        self.0.checked_mul(times).and_then(Vram::checked_from_mib)
    }

    /// Subtracts `other`. The balance is negative if `other` is larger.
    pub fn minus(self, other: Vram) -> Balance {
        Balance(i128::from(self.0) - i128::from(other.0))
    }

    /// Computes `self` × `thousandths` / 1000, rounded down; `None` above [`Vram::MAX`].
    pub fn scaled_down(self, thousandths: u32) -> Option<Vram> {
        let scaled = u128::from(self.0) * u128::from(thousandths) / 1000;
        u64::try_from(scaled).ok().and_then(Vram::checked_from_mib)
    }

    /// Computes `percent` % of the amount, rounded up.
    ///
    /// # Panics
    ///
    /// If `percent` is above 100.
    pub fn percent_rounded_up(self, percent: u8) -> Vram {
        assert!(percent <= 100, "a share of a GPU is at most all of it");
        Vram((self.0 * u64::from(percent)).div_ceil(100))
    }

    /// Computes `thousandths` ‰ of the amount, rounded up.
    ///
    /// # Panics
    ///
    /// If `thousandths` is above 1000.
    pub fn thousandths_rounded_up(self, thousandths: u32) -> Vram {
        assert!(thousandths <= 1000, "a share of a GPU is at most all of it");
        Vram((self.0 * u64::from(thousandths)).div_ceil(1000))
    }

    /// The amount as a share of `total`, written with four decimals; `None` if `total` is zero.
    ///
    /// It is rounded down, so that the shares of one GPU together do not exceed 1.
    pub fn fraction_of(self, total: Vram) -> Option<String> {
        let parts = (u128::from(self.0) * 10_000).checked_div(u128::from(total.0))?;
        Some(format!("{}.{:04}", parts / 10_000, parts % 10_000))
    }

    /// Divides the amount into `parts` equal shares, rounded down.
    ///
    /// # Panics
    ///
    /// If `parts` is zero.
    pub fn share(self, parts: u32) -> Vram {
        Vram(self.0 / u64::from(parts))
    }
}

/// Writes Gi for a whole number of GiB, and Mi otherwise.
///
/// The text is exact: Kubernetes and [`Vram::from_str`] read the same amount back.
impl fmt::Display for Vram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 != 0 && self.0.is_multiple_of(1024) {
            write!(f, "{}Gi", self.0 / 1024)
        } else {
            write!(f, "{}Mi", self.0)
        }
    }
}

impl Sum for Vram {
    fn sum<I: Iterator<Item = Vram>>(iter: I) -> Vram {
        iter.fold(Vram::ZERO, Vram::plus)
    }
}

/// What is left of an amount, in MiB; negative if it is overcommitted.
///
/// A negative balance stays negative through all further arithmetic. It is reported, never clamped on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Balance(i128);

impl Balance {
    /// The amount that can still be placed: zero if overcommitted.
    pub fn free(self) -> Vram {
        Vram(u64::try_from(self.0.max(0)).expect("a balance is at most an amount of VRAM"))
    }

    /// By how much the amount is overcommitted, or `None` if it is not.
    pub fn deficit(self) -> Option<Vram> {
        (self.0 < 0).then(|| Vram(u64::try_from(-self.0).expect("a deficit is at most a sum of VRAM")))
    }

    /// Subtracts `other`.
    pub fn minus(self, other: Vram) -> Balance {
        Balance(self.0 - i128::from(other.0))
    }
}

impl From<Vram> for Balance {
    fn from(amount: Vram) -> Balance {
        Balance(i128::from(amount.0))
    }
}

/// Why a text is not an amount of VRAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VramError {
    /// The text is empty.
    #[error("is empty")]
    Empty,
    /// The number has no unit.
    #[error("has no unit; write one of Ki Mi Gi Ti k M G T, as in 8Gi")]
    NoUnit,
    /// The text is not digits, at most one point, and a unit.
    #[error("is not an amount of VRAM; write digits and one of Ki Mi Gi Ti k M G T, as in 8Gi or 1.5Gi")]
    Malformed,
    /// The fraction has more digits than are read exactly.
    #[error("has more than {MAX_FRACTION} digits behind the point")]
    TooPrecise,
    /// The amount is above [`Vram::MAX`].
    #[error("is 2^63 bytes or more")]
    TooLarge,
}

/// Digits of a fraction that are read at most.
const MAX_FRACTION: usize = 18;

/// Reads digits with an optional decimal fraction, then one of Ki Mi Gi Ti k M G T, and nothing else.
///
/// The amount is rounded up to whole MiB here, once. Zero is accepted: a caller for which it makes no sense refuses it.
///
/// # Errors
///
/// If the text has another form, if its fraction has too many digits, or if the amount is above [`Vram::MAX`].
/// [`VramError`] tells these cases apart.
///
/// # Examples
///
/// ```
/// use vramguard::capacity::vram::{Vram, VramError};
///
/// assert_eq!("8Gi".parse(), Ok(Vram::from_mib(8_192)));
/// assert_eq!("1.5Gi".parse(), Ok(Vram::from_mib(1_536)));
/// assert_eq!("8G".parse(), Ok(Vram::from_mib(7_630))); // 7629.4 MiB, rounded up
/// assert_eq!("8".parse::<Vram>(), Err(VramError::NoUnit));
/// assert_eq!("8Pi".parse::<Vram>(), Err(VramError::Malformed));
/// ```
impl FromStr for Vram {
    type Err = VramError;

    fn from_str(text: &str) -> Result<Vram, VramError> {
        if text.is_empty() {
            return Err(VramError::Empty);
        }
        let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(unit_at);
        let (whole, fraction) = match number.split_once('.') {
            Some((whole, fraction)) if !fraction.is_empty() => (whole, fraction),
            Some(_) => return Err(VramError::Malformed),
            None => (number, ""),
        };
        if whole.is_empty() || fraction.contains('.') {
            return Err(VramError::Malformed);
        }
        let unit: u128 = match unit {
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1 << 40,
            "k" => 1_000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "T" => 1_000_000_000_000,
            "" => return Err(VramError::NoUnit),
            _ => return Err(VramError::Malformed),
        };
        exact_bytes_rounded_up(whole, fraction, unit)
            .and_then(|mib| Vram::checked_from_mib(mib).ok_or(VramError::TooLarge))
    }
}

/// Computes ceil(whole.fraction × unit / MiB), without a float and without rounding twice.
fn exact_bytes_rounded_up(whole: &str, fraction: &str, unit: u128) -> Result<u64, VramError> {
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > MAX_FRACTION {
        return Err(VramError::TooPrecise);
    }
    // An amount of 2^63 bytes or more is refused, so a whole part that does not fit `u64` is refused before it is
    // multiplied.
    let whole: u64 = whole.parse().map_err(|_| VramError::TooLarge)?;
    let whole_bytes = u128::from(whole).checked_mul(unit).ok_or(VramError::TooLarge)?;
    if whole_bytes > Vram::MAX.bytes() {
        return Err(VramError::TooLarge);
    }
    let scale = 10_u128.pow(u32::try_from(fraction.len()).expect("at most 18 digits"));
    let digits: u128 = if fraction.is_empty() { 0 } else { fraction.parse().expect("only digits reach this") };
    // The whole MiB are set aside first, so that the rest fits `u128` in units of 1/scale byte: less than 2^20 × 10^18
    // for the whole part, and less than 2^40 × 10^18 for the fraction.
    let rest = (whole_bytes % MIB) * scale + digits * unit;
    let mib = whole_bytes / MIB + rest.div_ceil(MIB * scale);
    u64::try_from(mib).map_err(|_| VramError::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn amounts_are_read_as_users_write_them() {
        for (text, mib) in [
            ("8Gi", 8192),
            ("1.5Gi", 1536),
            ("600Mi", 600),
            ("1Ti", 1 << 20),
            ("0.5Ti", 1 << 19),
            ("1024Ki", 1),
            ("1Ki", 1),
            ("8G", 7630),
            ("24G", 22889),
            ("1T", 953_675),
            ("1M", 1),
            ("1k", 1),
            ("0Gi", 0),
            ("0.0Mi", 0),
            ("0.000000001Gi", 1),
            ("8.0Gi", 8192),
            ("14.901161193847656250Gi", 15259),
            ("007Gi", 7168),
        ] {
            assert_eq!(text.parse(), Ok(Vram::from_mib(mib)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_with_what_to_write() {
        use VramError::*;
        for (text, error) in [
            ("", Empty),
            ("8", NoUnit),
            ("8.5", NoUnit),
            ("Gi", Malformed),
            (".5Gi", Malformed),
            ("8.Gi", Malformed),
            ("-8Gi", Malformed),
            ("+8Gi", Malformed),
            ("8 Gi", Malformed),
            (" 8Gi", Malformed),
            ("8Gi ", Malformed),
            ("8gi", Malformed),
            ("8GB", Malformed),
            ("8GiB", Malformed),
            ("8K", Malformed),
            ("8000m", Malformed),
            ("8e3Mi", Malformed),
            ("1.2.3Gi", Malformed),
            ("8,5Gi", Malformed),
            ("٨Gi", Malformed),
            ("8Pi", Malformed),
            ("1.1234567890123456789Gi", TooPrecise),
            ("99999999Ti", TooLarge),
            ("99999999999999999999Ki", TooLarge),
            ("8388608.1Ti", TooLarge),
        ] {
            assert_eq!(text.parse::<Vram>(), Err(error), "{text:?}");
        }
        assert_eq!("8388608Ti".parse::<Vram>(), Err(TooLarge));
        assert_eq!("8796093022207Mi".parse(), Ok(Vram::MAX));
    }

    #[test]
    fn an_overcommit_is_a_negative_balance_and_no_room() {
        let left = Vram::from_mib(10).minus(Vram::from_mib(30));
        assert_eq!((left.free(), left.deficit()), (Vram::ZERO, Some(Vram::from_mib(20))));
        assert_eq!(Vram::from_mib(30).minus(Vram::from_mib(30)).deficit(), None);
    }

    proptest! {
        /// The oracle is the definition in exact arithmetic: the smallest whole number of MiB that is not less.
        #[test]
        fn parsing_rounds_up_exactly_once(whole in 0u64..3_000_000, fraction in "[0-9]{0,18}", unit in 0usize..8) {
            let (name, bytes) = [("Ki", 1u128 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30), ("Ti", 1 << 40), ("k", 1_000),
                ("M", 1_000_000), ("G", 1_000_000_000), ("T", 1_000_000_000_000)][unit];
            let text = if fraction.is_empty() { format!("{whole}{name}") } else { format!("{whole}.{fraction}{name}") };
            let mib = u128::from(text.parse::<Vram>().unwrap().mib());
            // `value` is the number × `scale`. It stays below 2^128 because `whole` is below 3,000,000.
            let scale = 10u128.pow(u32::try_from(fraction.len()).unwrap());
            let digits = if fraction.is_empty() { 0 } else { fraction.parse::<u128>().unwrap() };
            let value = u128::from(whole).checked_mul(scale).and_then(|v| v.checked_add(digits)).unwrap();
            // Checks mib − 1 < value × bytes / (scale × MiB) ≤ mib with an exact division.
            let (quotient, remainder) = mul_div(value, bytes, scale * MIB);
            prop_assert_eq!(mib, if remainder { quotient + 1 } else { quotient });
        }

        #[test]
        fn display_reads_back(mib in 0u64..1 << 43) {
            let vram = Vram::from_mib(mib);
            prop_assert_eq!(vram.to_string().parse(), Ok(vram));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<Vram>();
        }
    }

    /// Computes a × b / c and whether a remainder is left.
    ///
    /// It works bit by bit, so that the oracle shares nothing with the code under test.
    fn mul_div(a: u128, b: u128, c: u128) -> (u128, bool) {
        let (mut quotient, mut remainder) = (0u128, 0u128);
        for bit in (0..128).rev() {
            quotient <<= 1;
            remainder <<= 1;
            if b >> bit & 1 == 1 {
                remainder += a;
            }
            quotient += remainder / c;
            remainder %= c;
        }
        (quotient, remainder != 0)
    }
}
