//! How equal parts of what is kept of pods and nodes become one in memory. Owns [`List`] and `Interner`; what the parts mean is
//! their modules' own. Most pods of a workload differ in nothing but name and uid.

use std::collections::BTreeSet;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::gpu::{GpuId, Resource};
use super::ledger::{Holder, Part, Shared};
use super::name::Name;
use super::placement::Site;
use super::report::Report;
use super::reservation::Reservations;

/// A list that is shared where it is cloned, and copied where a shared one is changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct List<T>(Arc<[T]>);

impl<T> Deref for List<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Clone> DerefMut for List<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        Arc::make_mut(&mut self.0)
    }
}

impl<T> From<Vec<T>> for List<T> {
    fn from(list: Vec<T>) -> List<T> {
        List(list.into())
    }
}

impl<T> FromIterator<T> for List<T> {
    fn from_iter<I: IntoIterator<Item = T>>(list: I) -> List<T> {
        List(list.into_iter().collect())
    }
}

impl<'l, T> IntoIterator for &'l List<T> {
    type Item = &'l T;
    type IntoIter = std::slice::Iter<'l, T>;
    fn into_iter(self) -> std::slice::Iter<'l, T> {
        self.0.iter()
    }
}

impl<T: PartialEq, const N: usize> PartialEq<[T; N]> for List<T> {
    fn eq(&self, list: &[T; N]) -> bool {
        *self.0 == *list
    }
}

/// What can be shared, and knows by how many it is.
trait Counted: Clone + Ord {
    fn owners(&self) -> usize;
}

impl Counted for Name {
    fn owners(&self) -> usize {
        Name::owners(self)
    }
}

impl<T: Clone + Ord> Counted for List<T> {
    fn owners(&self) -> usize {
        Arc::strong_count(&self.0)
    }
}

/// Below this many values, none is thrown out.
const FEW: usize = 1_000;

/// The values of one kind that are in use, each once.
#[derive(Debug)]
struct Known<T> {
    values: BTreeSet<T>,
    /// How many were in use when the others were last thrown out.
    used: usize,
}

impl<T: Ord> Default for Known<T> {
    fn default() -> Known<T> {
        Known { values: BTreeSet::new(), used: 0 }
    }
}

impl<T: Counted> Known<T> {
    /// Puts the value that is known in the place of an equal one.
    fn share(&mut self, value: &mut T) {
        if let Some(known) = self.values.get(value) {
            *value = known.clone();
            return;
        }
        self.values.insert(value.clone());
        if self.values.len() > FEW.max(2 * self.used) {
            // One that is in use has an owner besides this set.
            self.values.retain(|value| value.owners() > 1);
            self.used = self.values.len();
        }
    }
}

/// All values that are shared in a cluster.
#[derive(Debug, Default)]
pub(super) struct Interner {
    names: Known<Name>,
    parts: Known<List<Part>>,
    gpus: Known<List<(Resource, u64)>>,
}

impl Interner {
    /// Puts known values in the place of a holder's own; all but the name of the pod, which is its alone.
    pub fn holder(&mut self, holder: &mut Holder) {
        self.names.share(&mut holder.name.namespace);
        self.parts.share(&mut holder.parts);
        self.gpus.share(&mut holder.gpus);
    }

    /// The same for what a ledger says. `seen` are the pods on its node, which have their names already.
    pub fn ledger<'h>(&mut self, shared: &mut Shared, seen: impl Fn(&super::ledger::PodUid) -> Option<&'h Holder>) {
        self.reservations(&mut shared.reservations, seen);
        if let Some(report) = &mut shared.report {
            self.report(report);
        }
    }

    fn reservations<'h>(
        &mut self,
        reservations: &mut Reservations,
        seen: impl Fn(&super::ledger::PodUid) -> Option<&'h Holder>,
    ) {
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

    fn report(&mut self, report: &mut Report) {
        let of_gpus = report.gpus.values_mut().flatten().map(|reported| &mut reported.gpu.id);
        let given = report.given.values_mut().flat_map(|given| given.values_mut());
        for id in of_gpus.chain(given) {
            if let GpuId::Uuid(uuid) = id {
                self.names.share(uuid);
            }
        }
    }

    /// The same for what a node says of itself.
    pub fn site(&mut self, site: &mut Site) {
        for (key, value) in site.labels.iter_mut() {
            self.names.share(key);
            self.names.share(value);
        }
    }
}

/// Labels of a node, sorted by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(Vec<(Name, Name)>);

impl Labels {
    /// The value of a label.
    pub fn get(&self, key: &str) -> Option<&Name> {
        let place = self.place(key).ok()?;
        Some(&self.0[place].1)
    }

    /// Sets a label.
    pub fn insert(&mut self, key: Name, value: Name) {
        match self.place(&key) {
            Ok(place) => self.0[place].1 = value,
            Err(place) => self.0.insert(place, (key, value)),
        }
    }

    fn place(&self, key: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.as_str().cmp(key))
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut (Name, Name)> {
        self.0.iter_mut()
    }
}

impl FromIterator<(Name, Name)> for Labels {
    fn from_iter<I: IntoIterator<Item = (Name, Name)>>(labels: I) -> Labels {
        let mut labels: Vec<(Name, Name)> = labels.into_iter().collect();
        labels.sort_unstable();
        labels.dedup_by(|later, first| later.0 == first.0);
        labels.shrink_to_fit();
        Labels(labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_and_those_out_of_use_go() {
        let mut names = Known::default();
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

    #[test]
    fn a_shared_list_is_copied_before_it_is_changed() {
        let first: List<u8> = vec![1, 2].into();
        let mut second = first.clone();
        second[0] = 7;
        assert_eq!((&first[..], &second[..]), (&[1, 2][..], &[7, 2][..]));
    }

    #[test]
    fn a_label_is_found_by_its_key() {
        let mut labels: Labels = [("b", "2"), ("a", "1")].map(|(k, v)| (k.into(), v.into())).into_iter().collect();
        labels.insert("c".into(), "3".into());
        labels.insert("a".into(), "4".into());
        let value = |key| labels.get(key).map(Name::as_str);
        assert_eq!([value("a"), value("b"), value("c"), value("d")], [Some("4"), Some("2"), Some("3"), None]);
    }
}
