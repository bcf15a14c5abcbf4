//! Text Generation Inference: `CUDA_MEMORY_FRACTION`, which it gives to PyTorch's allocator. The flag of the same meaning
//! wins over the variable.

use super::budget::Budget;
use super::merge::{Merge, Outcome};
use crate::capacity::verdict::{BoundedBy, Why};
use crate::keys;

pub(super) fn plan(merge: &mut Merge<'_>, budget: &Budget) -> (BoundedBy, Why) {
    let share = match budget.share() {
        Ok(share) => share,
        Err(why) => return (BoundedBy::Nothing, why),
    };
    let flag = keys::TGI_MEMORY_FRACTION_FLAG;
    let own = merge.software().flag(flag).map(|flag| flag.value.clone());
    let outcome = match own {
        Some(theirs) => merge.judge(flag, theirs, share),
        None => merge.at_most(keys::TGI_MEMORY_FRACTION, share),
    };
    match outcome {
        Outcome::Holds(why) => (BoundedBy::Allocator, why),
        Outcome::Looser(why) => (BoundedBy::Nothing, why),
    }
}
