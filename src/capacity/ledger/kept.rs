//! What a cluster wants of a node's holders for its own upkeep: their lowest priority, and that they take little memory.

use super::NodeLedger;

impl NodeLedger {
    /// The lowest priority of the pods seen here that request VRAM.
    pub(in crate::capacity) fn lowest_priority(&self) -> Option<i32> {
        let requesting = self.holders.values().filter(|holder| holder.request.is_some());
        requesting.map(|holder| holder.priority).min()
    }

    /// Moves what is kept together.
    pub(in crate::capacity) fn pack(&mut self) {
        self.holders = std::mem::take(&mut self.holders).into_iter().collect();
    }
}
