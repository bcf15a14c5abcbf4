//! Texts that many records have in common, [`Name`], and the identity of a pod, [`PodUid`].
//!
//! Owns how they are kept in memory: a cluster may have 150,000 pods, but only some hundred namespaces, resources and
//! container names.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// A text that its clones share instead of copying it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The number of values that share the text, this one included.
    pub(super) fn owners(&self) -> usize {
        Arc::strong_count(&self.0)
    }
}

impl Default for Name {
    fn default() -> Name {
        Name::from("")
    }
}

impl Deref for Name {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Name {
        Name(text.into())
    }
}

impl From<String> for Name {
    fn from(text: String) -> Name {
        Name(text.into())
    }
}

impl From<&String> for Name {
    fn from(text: &String) -> Name {
        Name::from(text.as_str())
    }
}

impl PartialEq<str> for Name {
    fn eq(&self, text: &str) -> bool {
        self.as_str() == text
    }
}

impl PartialEq<&str> for Name {
    fn eq(&self, text: &&str) -> bool {
        self.as_str() == *text
    }
}

impl PartialEq<String> for Name {
    fn eq(&self, text: &String) -> bool {
        self.as_str() == text
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// The UID of a pod, which the API server assigns and never changes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodUid(Repr);

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Repr {
    /// A UUID, which is what API servers assign.
    Uuid([u8; 16]),
    /// Any other text, as in a snapshot that was written by hand.
    Text(Box<str>),
}

/// Positions of the hyphens in the text of a UUID.
const HYPHENS: [usize; 4] = [8, 13, 18, 23];

/// Reads a UUID in its canonical form: lower case, with hyphens.
///
/// Another spelling is not read, because it would be written back differently.
fn uuid(text: &str) -> Option<[u8; 16]> {
    let text = text.as_bytes();
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (mut bytes, mut nibbles) = ([0; 16], 0);
    for (place, byte) in text.iter().enumerate() {
        if HYPHENS.contains(&place) {
            if *byte != b'-' {
                return None;
            }
            continue;
        }
        let into: &mut u8 = bytes.get_mut(nibbles / 2)?;
        *into = *into << 4 | digit(*byte)?;
        nibbles += 1;
    }
    (nibbles == 32).then_some(bytes)
}

impl From<&str> for PodUid {
    fn from(text: &str) -> PodUid {
        PodUid(uuid(text).map_or_else(|| Repr::Text(text.into()), Repr::Uuid))
    }
}

impl From<String> for PodUid {
    fn from(text: String) -> PodUid {
        PodUid::from(text.as_str())
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Repr::Text(text) => f.write_str(text),
            Repr::Uuid(bytes) => bytes.iter().enumerate().try_for_each(|(place, byte)| {
                let hyphen = if matches!(place, 4 | 6 | 8 | 10) { "-" } else { "" };
                write!(f, "{hyphen}{byte:02x}")
            }),
        }
    }
}

impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PodUid({self})")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_uuid_takes_no_memory_of_its_own() {
        let uid = PodUid::from("705ab4f5-6393-11e8-b7cc-42010a800002");
        assert!(matches!(uid.0, Repr::Uuid(_)));
        assert!(size_of::<PodUid>() <= 24);
    }

    #[test]
    fn what_would_be_written_differently_stays_a_text() {
        for text in [
            "705AB4F5-6393-11e8-b7cc-42010a800002",
            "705ab4f5639311e8b7cc42010a800002",
            "705ab4f5-6393-11e8-b7cc-42010a8000021",
            "705ab4f5-6393-11e8-b7cc-42010a80000",
            "705ab4f5x6393-11e8-b7cc-42010a800002",
            "",
            "\"ml/llm\"",
        ] {
            assert_eq!(PodUid::from(text).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn a_uid_reads_back_as_it_was_written(bytes in any::<[u8; 16]>(), text in "[-0-9a-f]{30,40}") {
            let uid = PodUid(Repr::Uuid(bytes));
            prop_assert_eq!(PodUid::from(uid.to_string()), uid);
            prop_assert_eq!(PodUid::from(text.as_str()).to_string(), text);
        }

        #[test]
        fn uids_have_the_order_of_their_texts(a in any::<[u8; 16]>(), b in any::<[u8; 16]>()) {
            let (a, b) = (PodUid(Repr::Uuid(a)), PodUid(Repr::Uuid(b)));
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
        }
    }
}
