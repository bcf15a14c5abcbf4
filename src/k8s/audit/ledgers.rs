//! GpuLedgers → what counts on a node, and what its agent reports. Owns the time up to which the age of a report is counted.

use std::collections::BTreeMap;

use super::Reader;
use crate::capacity::audit::scene::Observed;
use crate::capacity::node::inventory::Inventory;
use crate::capacity::node::ledger::LedgerContent;
use crate::capacity::time::Moment;
use crate::k8s::pod;

impl Reader {
    /// Sets when the objects were read. Without it, this is the newest heartbeat of a node, or the newest report of a node
    /// agent, among them: a file does not say when it was written.
    pub fn read_at(&mut self, at: Moment) {
        self.read_at = Some(at);
    }

    pub(super) fn note_time(&mut self, text: Option<&str>) {
        self.newest = self.newest.max(text.and_then(pod::moment));
    }

    /// Applies the ledgers, and returns what is used by node, as vramguard's agents report it. A node without such a report
    /// gets what HAMi or KAI says of its GPUs, which is as old as the objects.
    pub(super) fn apply_ledgers(
        &mut self,
        mut inventories: BTreeMap<String, Inventory>,
        at: Option<Moment>,
    ) -> BTreeMap<String, Observed> {
        inventories.values_mut().for_each(|inventory| inventory.reported = at);
        let mut observed = BTreeMap::new();
        for ledger in std::mem::take(&mut self.ledgers) {
            observed.extend(ledger.observed().map(|seen| (ledger.node().to_owned(), seen)));
            let mut content = ledger.content_or_fault();
            if content.inventory.is_none() {
                content.inventory = inventories.remove(ledger.node());
            } else {
                inventories.remove(ledger.node());
            }
            self.cluster.apply_ledger(ledger.node(), Some(content));
        }
        for (node, inventory) in inventories {
            let content = LedgerContent { inventory: Some(inventory), ..LedgerContent::default() };
            self.cluster.apply_ledger(&node, Some(content));
        }
        observed
    }
}
