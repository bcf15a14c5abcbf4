//! llama.cpp: the length of its context, and one request at once, so that all of this length is for that request. Who
//! sets a length decides on requests too: they share it, and take no more memory. A flag wins over the variable.

use super::budget::Budget;
use super::context;
use super::merge::Merge;
use crate::capacity::verdict::{BoundedBy, Why};
use crate::keys;

pub(super) fn plan(merge: &mut Merge<'_>, budget: &Budget) -> (BoundedBy, Why) {
    let name = keys::LLAMA_CTX_SIZE;
    let by_flag = merge.software().flag(keys::LLAMA_CTX_SIZE_FLAG).and_then(|flag| flag.value.as_deref());
    let (name, own) = match by_flag {
        Some(value) => (keys::LLAMA_CTX_SIZE_FLAG, Some(value)),
        None => (name, merge.own(name)),
    };
    // Zero is the length that the model was trained with, or what fits into the whole GPU.
    if own.is_some_and(|own| own.trim() == "0") {
        return (BoundedBy::Nothing, Why::Looser { name });
    }
    if by_flag.is_none() && !merge.sets(keys::LLAMA_CTX_SIZE) {
        merge.set(keys::LLAMA_CTX_SIZE, context::length(budget.declared));
        merge.unless_set(keys::LLAMA_N_PARALLEL, "1");
    }
    (BoundedBy::Plan, Why::Context { name })
}
