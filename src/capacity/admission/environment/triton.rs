//! Triton Inference Server: its backends allocate by themselves, and no setting bounds them.

use crate::capacity::pod::software::Framework;
use crate::capacity::verdict::{BoundedBy, Why};

pub(super) fn plan() -> (BoundedBy, Why) {
    (BoundedBy::Nothing, Why::NoKnob(Framework::Triton))
}
