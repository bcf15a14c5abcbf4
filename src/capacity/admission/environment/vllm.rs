//! vLLM: the flag `--gpu-memory-utilization`. There is no variable for it.
//!
//! vLLM plans its weights, activations and KV cache within that share of the total. It measures from after its CUDA
//! context exists (`MemorySnapshot` in vllm/v1/worker/gpu_worker.py), so the context comes on top, and the share is of
//! the declared amount and not of the demand. Nothing refuses more after the start.
//!
//! `--kv-cache-memory-bytes` takes the place of the share, and plans the cache alone: the weights come on top.

use super::Argument;
use super::budget::Budget;
use super::merge::{Merge, Outcome};
use crate::capacity::pod::software::ArgumentList;
use crate::capacity::verdict::{BoundedBy, Why};
use crate::capacity::vram::Vram;
use crate::keys;

/// `list` is where a flag can be appended; `None` if it is not certain that the flag would reach vLLM.
pub(super) fn plan(merge: &mut Merge<'_>, budget: &Budget, list: Option<ArgumentList>) -> (BoundedBy, Why) {
    let own = |name| merge.software().flag(name).map(|flag| flag.value.clone());
    // It wins over the share, and the rest of vLLM's memory does not depend on either.
    if let Some(theirs) = own(keys::VLLM_KV_CACHE) {
        let name = keys::VLLM_KV_CACHE;
        if theirs.as_deref().is_some_and(|text| is_at_most(text, budget.declared)) {
            return (BoundedBy::Nothing, Why::CacheAlone { name });
        }
        let (Outcome::Holds(why) | Outcome::Looser(why)) =
            merge.looser(name, theirs, budget.declared.bytes().to_string());
        return (BoundedBy::Nothing, why);
    }
    let own = own(keys::VLLM_UTILIZATION);
    let share = match budget.share() {
        Ok(share) => share,
        Err(why) => return (BoundedBy::Nothing, why),
    };
    let name = keys::VLLM_UTILIZATION;
    if let Some(theirs) = own {
        return match merge.judge(name, theirs, share) {
            Outcome::Holds(why) => (BoundedBy::Plan, why),
            Outcome::Looser(why) => (BoundedBy::Nothing, why),
        };
    }
    if merge.software().flag(keys::VLLM_CONFIG).is_some() {
        return (BoundedBy::Nothing, Why::FlagsFromFile { name: keys::VLLM_CONFIG });
    }
    let Some(list) = list else { return (BoundedBy::Nothing, Why::WriteFlag { name, value: share }) };
    merge.injection.argument = Some(Argument { list, text: format!("{name}={share}") });
    (BoundedBy::Plan, Why::Holds { name, value: share })
}

/// Whether a text is a number of bytes above zero, and not above an amount. Zero is no size to vLLM: it plans with a share.
fn is_at_most(text: &str, most: Vram) -> bool {
    bytes(text).is_some_and(|bytes| bytes > 0.0 && bytes <= most.bytes() as f64)
}

/// A number of bytes as vLLM reads it (`human_readable_int` in vllm/engine/arg_utils.py): a capital unit is a power of
/// 1024, a small one a power of 1000, and only a small one may follow decimals. vLLM ends at any other text.
fn bytes(text: &str) -> Option<f64> {
    let text = text.trim();
    let (number, factor) = match text.char_indices().last()? {
        (end, unit) if unit.is_ascii_alphabetic() => {
            let power = i32::try_from("kmgt".find(unit.to_ascii_lowercase())?).ok()? + 1;
            (&text[..end], if unit.is_ascii_uppercase() { 1024_f64.powi(power) } else { 1000_f64.powi(power) })
        }
        _ => (text, 1.0),
    };
    let takes_decimals = text.ends_with(|unit: char| unit.is_ascii_lowercase());
    let is_count = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let is_number = match number.split_once('.') {
        Some((whole, decimals)) => takes_decimals && is_count(whole) && is_count(decimals),
        None => is_count(number),
    };
    if is_number { Some(number.parse::<f64>().ok()? * factor) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_as_vllm_reads_them() {
        for (text, expected) in [
            ("1024", Some(1024.0)),
            (" 1k ", Some(1000.0)),
            ("1K", Some(1024.0)),
            ("25.6k", Some(25_600.0)),
            ("3M", Some(3.0 * 1_048_576.0)),
            ("80G", Some(80.0 * 1_073_741_824.0)),
            ("80g", Some(80e9)),
            ("1T", Some(1_099_511_627_776.0)),
            ("0", Some(0.0)),
            ("1.5G", None),
            ("1.5", None),
            ("80Gi", None),
            ("80GB", None),
            ("1a", None),
            ("1\u{e9}", None),
            (".5k", None),
            ("-1", None),
            ("1e3", None),
            ("inf", None),
            ("k", None),
            ("", None),
        ] {
            assert_eq!(bytes(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_cache_keeps_to_the_declaration_up_to_its_last_byte_and_zero_does_not() {
        let of = |text| is_at_most(text, Vram::from_mib(8192));
        for text in ["1", "8G", "8192M", "8589934592", "8.589934592g"] {
            assert!(of(text), "{text}");
        }
        for text in ["0", "0G", "8589934593", "8.6g", "9G", "80G", "8Gi", ""] {
            assert!(!of(text), "{text}");
        }
    }
}
