//! PyTorch: `per_process_memory_fraction` in the configuration of its allocator, since 2.10 (pytorch/pytorch#161035).
//!
//! An older version ends at its first use of CUDA if it finds that key, so a version that is not known gets none. The
//! configuration is a list, and the key is appended to the user's.

use super::budget::{Budget, is_at_most};
use super::merge::{Merge, Outcome};
use super::{Value, Variable};
use crate::capacity::pod::software::{Framework, Version};
use crate::capacity::verdict::{BoundedBy, Why};
use crate::keys;

const KEY: &str = "per_process_memory_fraction";
const SINCE: Version = Version { major: 2, minor: 10 };
/// Since when `expandable_segments` is known. It bounds nothing, but less memory is lost to fragments.
const EXPANDABLE_SINCE: Version = Version { major: 2, minor: 1 };
/// Bytes of a configuration that is looked at, and of one that was extended: a second pass must look at it too. The patch
/// repeats it.
const LONGEST: usize = 4096;
/// Both names. A process may read either, so both are kept in order.
const NAMES: [&str; 2] = [keys::PYTORCH_ALLOC_CONF, keys::PYTORCH_CUDA_ALLOC_CONF];

pub(super) fn plan(merge: &mut Merge<'_>, budget: &Budget, version: Option<Version>) -> (BoundedBy, Why) {
    let share = match budget.share() {
        Ok(share) => share,
        Err(why) => return (BoundedBy::Nothing, why),
    };
    let ours = format!("{KEY}:{share}");
    let set: Vec<&'static str> = NAMES.into_iter().filter(|name| merge.sets(name)).collect();
    let mut lacking = Vec::new();
    let mut held = None;
    for &name in &set {
        let Some(own) = merge.own(name).filter(|own| own.len() <= LONGEST).map(str::to_owned) else {
            return (BoundedBy::Nothing, Why::OtherAllocator { name });
        };
        match Configuration::read(&own) {
            None | Some(Configuration { is_native: false, .. }) => {
                return (BoundedBy::Nothing, Why::OtherAllocator { name });
            }
            Some(Configuration { share: None, .. }) => match extended(&own, &ours) {
                Some(merged) => lacking.push((name, merged)),
                None => return (BoundedBy::Nothing, Why::OtherAllocator { name }),
            },
            Some(Configuration { share: Some(theirs), .. }) if is_at_most(theirs, &share) => {
                held = Some(Why::Holds { name, value: own });
            }
            Some(Configuration { share: Some(_), .. }) => {
                let (Outcome::Holds(why) | Outcome::Looser(why)) = merge.looser(name, Some(own), ours);
                return (BoundedBy::Nothing, why);
            }
        }
    }
    if let Some(why) = held.filter(|_| lacking.is_empty()) {
        return (BoundedBy::Allocator, why);
    }
    match version {
        None => return (BoundedBy::Nothing, Why::VersionUnknown(Framework::PyTorch)),
        Some(version) if version < SINCE => {
            if set.is_empty() && version >= EXPANDABLE_SINCE {
                merge.set(keys::PYTORCH_CUDA_ALLOC_CONF, "expandable_segments:True");
            }
            return (BoundedBy::Nothing, Why::VersionTooOld(Framework::PyTorch, version));
        }
        Some(_) => {}
    }
    if set.is_empty() {
        merge.set(keys::PYTORCH_CUDA_ALLOC_CONF, ours.as_str());
    }
    for (name, merged) in lacking {
        merge.injection.edited.push(Variable { name, value: Value::Literal(merged) });
    }
    let name = set.first().copied().unwrap_or(keys::PYTORCH_CUDA_ALLOC_CONF);
    (BoundedBy::Allocator, Why::Holds { name, value: ours })
}

/// A configuration with our key after the user's own; `None` if it would be longer than is looked at.
fn extended(own: &str, ours: &str) -> Option<String> {
    let own = own.trim().trim_end_matches(',');
    let merged = if own.is_empty() { ours.to_owned() } else { format!("{own},{ours}") };
    (merged.len() <= LONGEST).then_some(merged)
}

/// What counts of a configuration of PyTorch's allocator.
struct Configuration<'t> {
    /// The last value of our key.
    share: Option<&'t str>,
    /// Whether its allocator is PyTorch's own, the only one that the key limits.
    is_native: bool,
}

impl<'t> Configuration<'t> {
    /// Reads `key:value,key:[value,value]`; `None` if the text is not one. A value in brackets has commas of its own.
    fn read(text: &'t str) -> Option<Configuration<'t>> {
        let mut found = Configuration { share: None, is_native: true };
        let mut rest = text.trim();
        while !rest.is_empty() {
            let (key, after) = rest.split_once(':')?;
            let key = key.trim();
            if key.is_empty() || key.contains([',', '[', ']']) {
                return None;
            }
            let after = after.trim_start();
            let end = match after.strip_prefix('[') {
                Some(list) => list.find(']')? + 2,
                None => after.find(',').unwrap_or(after.len()),
            };
            let (value, after) = after.split_at(end);
            match (key, value.trim()) {
                (_, "") => return None,
                (KEY, value) => found.share = Some(value),
                ("backend", value) => found.is_native = value == "native",
                _ => {}
            }
            rest = match after.trim_start() {
                "" => "",
                after => after.strip_prefix(',')?.trim_start(),
            };
        }
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<(Option<&str>, bool)> {
        Configuration::read(text).map(|found| (found.share, found.is_native))
    }

    #[test]
    fn a_configuration_that_would_grow_past_what_is_looked_at_is_not_extended() {
        let ours = "per_process_memory_fraction:0.1000";
        let own = |length: usize| format!("a:{}", "x".repeat(length - 2));
        let room = LONGEST - ours.len() - 1;
        assert_eq!(extended(&own(room), ours).map(|merged| merged.len()), Some(LONGEST));
        assert_eq!(extended(&own(room + 1), ours), None);
    }

    #[test]
    fn the_key_is_found_in_any_configuration_that_pytorch_reads() {
        for (text, expected) in [
            ("", Some((None, true))),
            ("expandable_segments:True", Some((None, true))),
            ("per_process_memory_fraction:0.5", Some((Some("0.5"), true))),
            (" a : 1 , per_process_memory_fraction : 0.5 ,", Some((Some("0.5"), true))),
            ("per_process_memory_fraction:0.5,per_process_memory_fraction:0.7", Some((Some("0.7"), true))),
            ("roundup_power2_divisions:[256:1,>:8],backend:cudaMallocAsync", Some((None, false))),
            ("backend:native", Some((None, true))),
            ("expandable_segments", None),
            ("roundup_power2_divisions:[256:1", None),
            ("a:[1]b:2", None),
            (":1", None),
            ("a:", None),
        ] {
            assert_eq!(read(text), expected, "{text:?}");
        }
    }
}
