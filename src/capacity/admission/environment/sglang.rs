//! SGLang: nothing takes an amount. `--mem-fraction-static` is a share of the memory that is free at its start, which
//! depends on its neighbours. `--max-total-tokens` fixes the KV cache, and what a token takes depends on the model: it is
//! the user's to write. PyTorch's own limit would end it in the middle of a request.

use super::merge::Merge;
use crate::capacity::pod::software::Framework;
use crate::capacity::verdict::{BoundedBy, Why};
use crate::keys;

pub(super) fn plan(merge: &Merge<'_>) -> (BoundedBy, Why) {
    let name = keys::SGLANG_MAX_TOKENS;
    match merge.software().flag(name).and_then(|flag| flag.value.clone()) {
        Some(value) => (BoundedBy::Plan, Why::Holds { name, value }),
        None => (BoundedBy::Nothing, Why::NoKnob(Framework::SgLang)),
    }
}
