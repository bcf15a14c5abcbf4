//! vLLM: the flag `--gpu-memory-utilization`. There is no variable for it.
//!
//! vLLM plans its weights, activations and KV cache within that share of the total. It measures from after its CUDA
//! context exists (`MemorySnapshot` in vllm/v1/worker/gpu_worker.py), so the context comes on top, and the share is of
//! the declared amount and not of the demand. Nothing refuses more after the start.

use super::Argument;
use super::budget::Budget;
use super::merge::{Merge, Outcome};
use crate::capacity::pod::software::ArgumentList;
use crate::capacity::verdict::{BoundedBy, Why};
use crate::keys;

/// `list` is where a flag can be appended; `None` if it is not certain that the flag would reach vLLM.
pub(super) fn plan(merge: &mut Merge<'_>, budget: &Budget, list: Option<ArgumentList>) -> (BoundedBy, Why) {
    let own = |name| merge.software().flag(name).map(|flag| flag.value.clone());
    // It wins over the share, and the rest of vLLM's memory does not depend on either.
    if let Some(value) = own(keys::VLLM_KV_CACHE) {
        let value = value.unwrap_or_default();
        let bytes = budget.declared.mib().saturating_mul(1 << 20).to_string();
        let is_count = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        return match merge_amount(merge, is_count, value, bytes) {
            Outcome::Holds(why) => (BoundedBy::Plan, why),
            Outcome::Looser(why) => (BoundedBy::Nothing, why),
        };
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

/// A KV cache in bytes. A number with a unit is the user's to choose.
fn merge_amount(merge: &mut Merge<'_>, is_count: bool, value: String, ours: String) -> Outcome {
    if is_count {
        return merge.judge(keys::VLLM_KV_CACHE, Some(value), ours);
    }
    Outcome::Holds(Why::Holds { name: keys::VLLM_KV_CACHE, value })
}
