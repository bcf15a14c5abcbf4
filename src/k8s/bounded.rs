//! Lists and maps of a pod, kept up to a named bound however long the JSON is. Owns which entries beyond a bound are
//! kept, and the count of all entries. [`super::object`] owns what an exceeded bound means for an object.
//!
//! One byte of JSON can become dozens of bytes in memory: the entry `"",` has three bytes of JSON, while a `String` in
//! a `Vec` takes 24 bytes and its own allocation. Entries beyond a bound are therefore counted and skipped, and short
//! strings share one buffer.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};

use crate::keys;

/// An entry of a [`Bounded`] list, or a value of a [`BoundedMap`].
pub trait Entry {
    /// Whether a list reads its entries beyond the bound, to find those that matter.
    const READ_BEYOND: bool = false;

    /// Whether the entry is kept beyond the bound; up to `MOST` more entries are. In a map, the key of the entry must
    /// also have NVIDIA's or our prefix.
    fn matters(&self) -> bool {
        false
    }
}

/// A list that keeps its first `MOST` entries, and up to `MOST` later ones that matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounded<T, const MOST: usize> {
    kept: Vec<T>,
    count: usize,
}

impl<T, const MOST: usize> Default for Bounded<T, MOST> {
    fn default() -> Self {
        Bounded { kept: Vec::new(), count: 0 }
    }
}

impl<T, const MOST: usize> Deref for Bounded<T, MOST> {
    type Target = Vec<T>;
    fn deref(&self) -> &Vec<T> {
        &self.kept
    }
}

impl<'l, T, const MOST: usize> IntoIterator for &'l Bounded<T, MOST> {
    type Item = &'l T;
    type IntoIter = std::slice::Iter<'l, T>;
    fn into_iter(self) -> Self::IntoIter {
        self.kept.iter()
    }
}

impl<T, const MOST: usize> Bounded<T, MOST> {
    /// Number of entries in the JSON.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Number of entries in the JSON and the bound, if the bound is exceeded.
    pub fn excess(&self) -> Option<(usize, usize)> {
        (self.count > MOST).then_some((self.count, MOST))
    }

    /// Converts each entry; the count stays.
    pub(super) fn map<U>(self, into: impl FnMut(T) -> U) -> Bounded<U, MOST> {
        Bounded { kept: self.kept.into_iter().map(into).collect(), count: self.count }
    }

    /// Converts each entry; the count stays.
    ///
    /// # Errors
    /// The first error of a conversion.
    pub(super) fn try_map<U, E>(self, into: impl FnMut(T) -> Result<U, E>) -> Result<Bounded<U, MOST>, E> {
        let kept = self.kept.into_iter().map(into).collect::<Result<_, E>>()?;
        Ok(Bounded { kept, count: self.count })
    }

    pub(super) fn kept_mut(&mut self) -> &mut [T] {
        &mut self.kept
    }
}

impl<'de, T: Deserialize<'de> + Entry, const MOST: usize> Deserialize<'de> for Bounded<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T, const MOST: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de> + Entry, const MOST: usize> Visitor<'de> for Entries<T, MOST> {
            type Value = Bounded<T, MOST>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut entries = Bounded::default();
                while entries.count < MOST {
                    let Some(entry) = list.next_element()? else { return Ok(entries) };
                    entries.kept.push(entry);
                    entries.count += 1;
                }
                while T::READ_BEYOND && entries.kept.len() < 2 * MOST {
                    let Some(entry) = list.next_element::<T>()? else { return Ok(entries) };
                    entries.count += 1;
                    if entry.matters() {
                        entries.kept.push(entry);
                    }
                }
                while list.next_element::<IgnoredAny>()?.is_some() {
                    entries.count += 1;
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_seq(Entries(PhantomData))
    }
}

impl Entry for String {
    fn matters(&self) -> bool {
        true
    }
}

/// A map that keeps its first `MOST` entries, and up to `MOST` later ones that matter.
///
/// Later entries must also have a key with NVIDIA's or our prefix. An entry that matters under [`keys::VRAM`], which
/// declares and requests VRAM, is kept at any position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundedMap<V, const MOST: usize> {
    kept: BTreeMap<String, V>,
    count: usize,
}

impl<V, const MOST: usize> Default for BoundedMap<V, MOST> {
    fn default() -> Self {
        BoundedMap { kept: BTreeMap::new(), count: 0 }
    }
}

impl<V, const MOST: usize> Deref for BoundedMap<V, MOST> {
    type Target = BTreeMap<String, V>;
    fn deref(&self) -> &BTreeMap<String, V> {
        &self.kept
    }
}

impl<V, const MOST: usize> BoundedMap<V, MOST> {
    /// Number of entries in the JSON.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Number of entries in the JSON and the bound, if the bound is exceeded.
    pub fn excess(&self) -> Option<(usize, usize)> {
        (self.count > MOST).then_some((self.count, MOST))
    }

    pub(super) fn into_kept(self) -> BTreeMap<String, V> {
        self.kept
    }

    /// Reads the entries whose keys are `wanted`. Other entries are not counted, and their values are not copied.
    pub(super) fn of_wanted<'de, A>(mut map: A, wanted: impl Fn(&str) -> bool) -> Result<Self, A::Error>
    where
        A: MapAccess<'de>,
        V: Deserialize<'de> + Entry,
    {
        let mut entries = BoundedMap::default();
        while let Some(key) = map.next_key::<String>()? {
            if !wanted(&key) {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            entries.count += 1;
            let ours = key.starts_with(keys::PREFIX) || key.starts_with(keys::NVIDIA);
            if entries.kept.len() < MOST {
                entries.kept.insert(key, map.next_value()?);
            } else if ours && (entries.kept.len() < 2 * MOST || key == keys::VRAM) {
                let value: V = map.next_value()?;
                if value.matters() {
                    entries.kept.insert(key, value);
                }
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(entries)
    }
}

impl<'de, V: Deserialize<'de> + Entry, const MOST: usize> Deserialize<'de> for BoundedMap<V, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<V, const MOST: usize>(PhantomData<V>);
        impl<'de, V: Deserialize<'de> + Entry, const MOST: usize> Visitor<'de> for Entries<V, MOST> {
            type Value = BoundedMap<V, MOST>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                BoundedMap::of_wanted(map, |_| true)
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

/// A list of strings in one buffer. Each string costs its own bytes and four bytes for its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Texts {
    text: String,
    ends: Vec<u32>,
}

impl Texts {
    /// Number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether the list has no strings.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// All strings, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let starts = std::iter::once(&0).chain(&self.ends);
        starts.zip(&self.ends).map(|(start, end)| &self.text[*start as usize..*end as usize])
    }

    /// Keeps the first `most` strings and frees the memory of the others.
    pub(super) fn truncate(&mut self, most: usize) {
        self.ends.truncate(most);
        self.text.truncate(self.ends.last().map_or(0, |end| *end as usize));
        self.ends.shrink_to_fit();
        self.text.shrink_to_fit();
    }
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Texts, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Texts;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of strings")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Texts, A::Error> {
                let mut texts = Texts::default();
                while list.next_element_seed(Push(&mut texts))?.is_some() {}
                Ok(texts)
            }
            fn visit_unit<E: de::Error>(self) -> Result<Texts, E> {
                Ok(Texts::default())
            }
        }
        // Go writes an empty list as null.
        deserializer.deserialize_any(List)
    }
}

/// Reads one string and appends it to the buffer.
struct Push<'t>(&'t mut Texts);

impl<'de> DeserializeSeed<'de> for Push<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Push<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.0.text.push_str(text);
        self.0.ends.push(u32::try_from(self.0.text.len()).map_err(|_| E::custom("longer than any object"))?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    struct Number(u32);
    impl Entry for Number {
        const READ_BEYOND: bool = true;
        fn matters(&self) -> bool {
            self.0 > 100
        }
    }

    #[test]
    fn a_list_keeps_its_first_entries_and_those_that_matter() {
        let read = |text: &str| serde_json::from_str::<Bounded<Number, 2>>(text).unwrap();
        let numbers = read("[1, 2, 3, 101, 4, 102, 103]");
        assert_eq!(*numbers, [1, 2, 101, 102].map(Number));
        assert_eq!(numbers.excess(), Some((7, 2)));
        assert_eq!(read("[1, 2]").excess(), None);
    }

    impl Entry for u32 {
        fn matters(&self) -> bool {
            *self > 0
        }
    }

    #[test]
    fn a_map_keeps_its_first_entries_and_those_of_ours() {
        let text = r#"{"a": 1, "b": 0, "c": 3, "nvidia.com/a": 0, "nvidia.com/gpu": 4, "nvidia.com/next": 5,
            "nvidia.com/late": 6, "vramguard.dev/vram": 7}"#;
        let map: BoundedMap<u32, 2> = serde_json::from_str(text).unwrap();
        let kept: Vec<&str> = map.keys().map(String::as_str).collect();
        assert_eq!(kept, ["a", "b", "nvidia.com/gpu", "nvidia.com/next", "vramguard.dev/vram"]);
        assert_eq!(map.excess(), Some((8, 2)));
    }

    #[test]
    fn texts_are_what_was_read() {
        let texts: Texts = serde_json::from_str(r#"["a", "", "\u00fc\n", "b"]"#).unwrap();
        assert_eq!(texts.iter().collect::<Vec<_>>(), ["a", "", "ü\n", "b"]);
        let mut first = texts.clone();
        first.truncate(3);
        assert_eq!(first.iter().collect::<Vec<_>>(), ["a", "", "ü\n"]);
        first.truncate(0);
        assert_eq!((first.iter().count(), first.is_empty()), (0, true));
        assert!(serde_json::from_str::<Texts>("null").unwrap().is_empty());
        assert!(serde_json::from_str::<Texts>("[null]").is_err());
    }
}
