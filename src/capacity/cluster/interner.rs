//! [`Interner`]: lets equal parts of the records of pods and nodes share one allocation. Owns which parts are shared;
//! knows nothing of what they mean.

use std::collections::BTreeSet;

use crate::capacity::gpu::{GpuId, Resource};
use crate::capacity::list::List;
use crate::capacity::name::{Name, PodUid};
use crate::capacity::node::holder::{Holder, Part};
use crate::capacity::node::inventory::Inventory;
use crate::capacity::node::ledger::LedgerContent;
use crate::capacity::node::reservation::Reservations;
use crate::capacity::pod::placement::NodeProfile;

/// A value that can be shared and knows its number of owners.
trait Interned: Clone + Ord {
    fn owners(&self) -> usize;
}

impl Interned for Name {
    fn owners(&self) -> usize {
        Name::owners(self)
    }
}

impl<T: Clone + Ord> Interned for List<T> {
    fn owners(&self) -> usize {
        List::owners(self)
    }
}

/// Up to this number of values, none is removed.
const FEW: usize = 1_000;

/// The values of one kind that are in use, each stored once.
#[derive(Debug)]
struct Values<T> {
    values: BTreeSet<T>,
    /// The number of values after unused ones were last removed.
    used: usize,
}

impl<T: Ord> Default for Values<T> {
    fn default() -> Values<T> {
        Values { values: BTreeSet::new(), used: 0 }
    }
}

impl<T: Interned> Values<T> {
    /// Replaces a value by the stored one that equals it, or stores it.
    fn share(&mut self, value: &mut T) {
        if let Some(known) = self.values.get(value) {
            *value = known.clone();
            return;
        }
        self.values.insert(value.clone());
        if self.values.len() > FEW.max(2 * self.used) {
            // A value in use has an owner other than this set.
            self.values.retain(|value| value.owners() > 1);
            self.used = self.values.len();
        }
    }
}

/// All shared values of a cluster.
#[derive(Debug, Default)]
pub(super) struct Interner {
    names: Values<Name>,
    parts: Values<List<Part>>,
    gpus: Values<List<(Resource, u64)>>,
    assigned: Values<List<(Name, GpuId)>>,
    nodes: Values<List<Name>>,
}

impl Interner {
    /// Shares the parts of a holder, except the name of the pod, which no other pod has.
    pub(super) fn holder(&mut self, holder: &mut Holder) {
        self.names.share(&mut holder.name.namespace);
        self.parts.share(&mut holder.parts);
        self.gpus.share(&mut holder.gpus);
    }

    /// Shares the list of nodes of a pod. Pods that have a reservation on the same node then share one list.
    pub(super) fn nodes(&mut self, nodes: &mut List<Name>) {
        self.nodes.share(nodes);
    }

    /// Shares the parts of a ledger's content. `seen` returns the holder of a pod that is seen on the node; a
    /// reservation of that pod shares its name.
    pub(super) fn ledger<'h>(&mut self, content: &mut LedgerContent, seen: impl Fn(&PodUid) -> Option<&'h Holder>) {
        self.reservations(&mut content.reservations, seen);
        if let Some(inventory) = &mut content.inventory {
            self.report(inventory);
        }
    }

    fn reservations<'h>(&mut self, reservations: &mut Reservations, seen: impl Fn(&PodUid) -> Option<&'h Holder>) {
        for (uid, reservation) in reservations.iter_mut() {
            self.holder(&mut reservation.holder);
            if let Some(holder) = seen(uid).filter(|holder| holder.name == reservation.holder.name) {
                reservation.holder.name = holder.name.clone();
            }
            if let Some(GpuId::Uuid(uuid)) = &mut reservation.gpu {
                self.names.share(uuid);
            }
        }
    }

    fn report(&mut self, inventory: &mut Inventory) {
        for reported in inventory.gpus.values_mut().flatten() {
            if let GpuId::Uuid(uuid) = &mut reported.gpu.id {
                self.names.share(uuid);
            }
        }
        for (_, assigned) in &mut inventory.assigned {
            self.assigned.share(assigned);
        }
    }

    /// Shares the labels of a node.
    pub(super) fn profile(&mut self, profile: &mut NodeProfile) {
        for (key, value) in profile.labels.iter_mut() {
            self.names.share(key);
            self.names.share(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_and_those_out_of_use_go() {
        let mut names = Values::default();
        let (mut a, mut b) = (Name::from("ml"), Name::from("ml"));
        names.share(&mut a);
        names.share(&mut b);
        assert_eq!(a.owners(), 3, "two and the set");
        for number in 0..10 * FEW {
            names.share(&mut Name::from(number.to_string()));
        }
        assert!(names.values.len() <= FEW + 1, "{}", names.values.len());
        assert!(names.values.contains("ml"));
    }
}
