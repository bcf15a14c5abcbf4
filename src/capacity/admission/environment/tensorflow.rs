//! TensorFlow: no variable takes an amount. `TF_FORCE_GPU_ALLOW_GROWTH` keeps it from taking the whole GPU at its start.

use super::merge::Merge;
use crate::capacity::pod::software::Framework;
use crate::capacity::verdict::{BoundedBy, Why};
use crate::keys;

pub(super) fn plan(merge: &mut Merge<'_>) -> (BoundedBy, Why) {
    let (name, ours) = (keys::TF_ALLOW_GROWTH, "true");
    if !merge.sets(name) {
        merge.set(name, ours);
    } else if !merge.own(name).is_some_and(|own| own.eq_ignore_ascii_case(ours) || own == "1") {
        let theirs = merge.own(name).map(str::to_owned);
        merge.looser(name, theirs, ours.to_owned());
    }
    (BoundedBy::Nothing, Why::NoKnob(Framework::TensorFlow))
}
