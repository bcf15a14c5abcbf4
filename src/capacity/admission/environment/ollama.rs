//! Ollama: the length of the context, and how much it serves at once.

use super::budget::Budget;
use super::context;
use super::merge::Merge;
use crate::capacity::verdict::{BoundedBy, Why};
use crate::keys;

pub(super) fn plan(merge: &mut Merge<'_>, budget: &Budget) -> (BoundedBy, Why) {
    let name = keys::OLLAMA_CONTEXT_LENGTH;
    // Zero is the length that Ollama chooses by the whole GPU.
    if merge.own(name).is_some_and(|own| own.trim() == "0") {
        return (BoundedBy::Nothing, Why::Looser { name });
    }
    merge.unless_set(name, context::length(budget.declared));
    merge.unless_set(keys::OLLAMA_NUM_PARALLEL, "1");
    merge.unless_set(keys::OLLAMA_MAX_LOADED_MODELS, "1");
    (BoundedBy::Plan, Why::Context { name })
}
