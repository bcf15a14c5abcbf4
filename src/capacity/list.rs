//! Lists that many records have in common, [`List`], and the labels of a node, [`Labels`].
//!
//! Owns how they are kept in memory.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::name::Name;

/// A list that its clones share. A change to a shared list copies it first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct List<T>(Arc<[T]>);

impl<T> List<T> {
    /// The number of values that share the list, this one included.
    pub(super) fn owners(&self) -> usize {
        Arc::strong_count(&self.0)
    }
}

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

/// Labels of a node, sorted by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(Vec<(Name, Name)>);

impl Labels {
    /// The value of the label `key`, if the node has it.
    pub fn get(&self, key: &str) -> Option<&Name> {
        let place = self.place(key).ok()?;
        Some(&self.0[place].1)
    }

    /// Sets the label `key`, and replaces its value if the node has it.
    pub fn insert(&mut self, key: Name, value: Name) {
        match self.place(&key) {
            Ok(place) => self.0[place].1 = value,
            Err(place) => self.0.insert(place, (key, value)),
        }
    }

    /// The position of the label `key`, or the position to insert it at.
    fn place(&self, key: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.as_str().cmp(key))
    }

    /// All labels, so that equal texts can be replaced by shared ones.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut (Name, Name)> {
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
