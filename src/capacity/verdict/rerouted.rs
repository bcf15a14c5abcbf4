//! A pod that runs in another pool than its own. Owns its message.

use std::fmt;

use super::{Shortfall, quoted};
use crate::capacity::name::Name;

/// A pod on a node outside of its own pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rerouted {
    /// Its own pool, as text.
    pub own: String,
    /// Its node.
    pub node: Name,
    /// How much its own pool is short of now; `None` if that has room.
    pub shortfall: Option<Shortfall>,
}

impl fmt::Display for Rerouted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "runs on node {:?}, outside of its own pool {}, as the policy allows; ",
            self.node,
            quoted(&self.own)
        )?;
        match &self.shortfall {
            Some(shortfall) => write!(f, "its own pool has no room now: {shortfall}"),
            None => f.write_str(
                "its own pool has VRAM for it now, so kube-scheduler chose by something else, or room was freed since",
            ),
        }
    }
}
