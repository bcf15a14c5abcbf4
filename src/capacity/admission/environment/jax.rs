//! JAX: `XLA_PYTHON_CLIENT_MEM_FRACTION`, the older of two names, which all versions read. JAX ends if both names are
//! set (`generate_pjrt_gpu_plugin_options` in jaxlib's xla_client.py), so only one is ever injected, and none next to a
//! user's. The share bounds its own allocator, and no other one.

use super::budget::Budget;
use super::merge::{Merge, Outcome};
use crate::capacity::verdict::{BoundedBy, Why};
use crate::keys;

pub(super) fn plan(merge: &mut Merge<'_>, budget: &Budget) -> (BoundedBy, Why) {
    let allocator = keys::XLA_ALLOCATOR;
    if merge.sets(allocator) && !merge.own(allocator).is_some_and(is_default) {
        return (BoundedBy::Nothing, Why::OtherAllocator { name: allocator });
    }
    let share = match budget.share() {
        Ok(share) => share,
        Err(why) => return (BoundedBy::Nothing, why),
    };
    let newer = keys::XLA_CLIENT_MEM_FRACTION;
    let name = if merge.sets(newer) { newer } else { keys::XLA_PYTHON_CLIENT_MEM_FRACTION };
    match merge.at_most(name, share) {
        Outcome::Holds(why) => (BoundedBy::Allocator, why),
        Outcome::Looser(why) => (BoundedBy::Nothing, why),
    }
}

fn is_default(allocator: &str) -> bool {
    matches!(allocator.to_ascii_lowercase().as_str(), "default" | "bfc")
}
