//! Parses objects out of a response body as its bytes arrive. Owns how much of a body is in memory: one object and the
//! bytes that arrived with it in the same read, never a page. Knows nothing of HTTP.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;

/// Bytes of JSON in the longest object or list member that is read. etcd accepts objects of 1.5 MiB, and JSON encodes
/// one of their bytes in at most six.
pub const MAX_VALUE: usize = 16 << 20;
/// Capacity that the buffer keeps for the next object. Memory above it is released after a large object.
const KEPT_CAPACITY: usize = 256 << 10;

/// Why a body cannot be parsed further.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// The body is not the JSON that was requested.
    #[error("is not what was asked for: {0}")]
    Json(#[from] serde_json::Error),
    /// The punctuation between two values is wrong.
    #[error("has byte {found:#04x} where {expected} belongs")]
    Punctuation {
        /// The byte in the body.
        found: u8,
        /// The punctuation that JSON allows there.
        expected: &'static str,
    },
    /// One object is too long.
    #[error("has an object longer than {} MiB", MAX_VALUE >> 20)]
    TooLong,
    /// The body ended within a value.
    #[error("ends before it is whole")]
    Truncated,
}

/// Bytes that arrived and are not parsed yet.
#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// Offset of the first byte that is not parsed yet.
    at: usize,
    /// The search for the end of the value at `at`, once a first attempt found the value incomplete.
    scan: Option<Scan>,
}

/// State of the search for the end of a value. It looks at each byte once, however many pieces a value arrives in.
#[derive(Debug, Default)]
struct Scan {
    at: usize,
    depth: usize,
    in_text: bool,
    escaped: bool,
}

impl Scan {
    /// Whether the value at the start of `bytes` is complete. Continues where the last search ended.
    fn finds_end(&mut self, bytes: &[u8]) -> bool {
        for &byte in &bytes[self.at..] {
            self.at += 1;
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_text => self.escaped = true,
                b'"' => self.in_text = !self.in_text,
                _ if self.in_text => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                _ => continue,
            }
            if self.depth == 0 && !self.in_text {
                return true;
            }
        }
        false
    }
}

impl Buffer {
    fn feed(&mut self, bytes: &[u8]) {
        if self.at > 0 {
            self.bytes.drain(..self.at);
            self.at = 0;
        }
        if self.bytes.len() + bytes.len() <= KEPT_CAPACITY {
            self.bytes.shrink_to(KEPT_CAPACITY);
        }
        self.bytes.extend_from_slice(bytes);
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    /// Returns the next byte that is not white space, without consuming it.
    fn peek(&mut self) -> Option<u8> {
        let blank = self.rest().iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        self.at += blank;
        self.rest().first().copied()
    }

    /// Consumes one punctuation byte. `false` if it has not arrived yet.
    fn take(&mut self, wanted: u8, expected: &'static str) -> Result<bool, Malformed> {
        match self.peek() {
            None => Ok(false),
            Some(found) if found == wanted => {
                self.at += 1;
                Ok(true)
            }
            Some(found) => Err(Malformed::Punctuation { found, expected }),
        }
    }

    /// Consumes an object, a list or a string. `None` if it is not complete yet.
    fn value<'b, T: Deserialize<'b>>(&'b mut self) -> Result<Option<T>, Malformed> {
        self.peek(); // skips white space
        let rest = &self.bytes[self.at..];
        if self.scan.as_mut().is_some_and(|scan| !scan.finds_end(rest)) {
            return if rest.len() > MAX_VALUE { Err(Malformed::TooLong) } else { Ok(None) };
        }
        let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<T>();
        match values.next() {
            None => Ok(None),
            Some(Ok(value)) => {
                (self.at, self.scan) = (self.at + values.byte_offset(), None);
                Ok(Some(value))
            }
            Some(Err(error)) if error.is_eof() => {
                // A literal such as null has no closing byte to search for, so it is parsed again when more bytes
                // arrive.
                self.scan = matches!(rest[0], b'{' | b'[' | b'"').then(Scan::default);
                Ok(None)
            }
            Some(Err(error)) => Err(error.into()),
        }
    }
}

/// The `metadata` of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ListMeta {
    /// The version that a watch continues from.
    pub resource_version: String,
    /// The token of the next page; empty on the last page.
    #[serde(rename = "continue")]
    pub next: String,
}

/// The parser's position in a list: what the next byte belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Start,
    /// Before the name of a member, or at the closing brace of an empty list object.
    Name,
    /// After the name of a member.
    Colon(Member),
    Value(Member),
    /// After the value of a member.
    Comma,
    /// Before the first item.
    FirstItem,
    /// Before an item, after a comma.
    Item,
    /// After an item.
    ItemComma,
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Member {
    Items,
    Metadata,
    Other,
}

/// Reads a list with its members in any order: built-in kinds have `metadata` first, custom resources last.
#[derive(Debug)]
pub struct ListReader {
    buffer: Buffer,
    place: Place,
    metadata: ListMeta,
}

impl Default for ListReader {
    fn default() -> ListReader {
        ListReader { buffer: Buffer::default(), place: Place::Start, metadata: ListMeta::default() }
    }
}

impl ListReader {
    /// Adds bytes of the body.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.feed(bytes);
    }

    /// Returns the next item; `None` if more bytes must arrive first, or if all items are read.
    ///
    /// # Errors
    /// If the body is no list, or an item is too long or of another kind.
    pub fn item<K: DeserializeOwned>(&mut self) -> Result<Option<K>, Malformed> {
        loop {
            let next = match self.place {
                Place::Start => self.buffer.take(b'{', "{")?.then_some(Place::Name),
                Place::Name if self.buffer.peek() == Some(b'}') => Some(Place::End),
                Place::Name => self.name()?.map(Place::Colon),
                Place::Colon(member) => self.buffer.take(b':', ":")?.then_some(Place::Value(member)),
                Place::Value(Member::Items) => match self.buffer.peek() {
                    // Go encodes an empty list as null if nothing was ever appended to it.
                    Some(b'n') => self.buffer.value::<IgnoredAny>()?.map(|_| Place::Comma),
                    _ => self.buffer.take(b'[', "[")?.then_some(Place::FirstItem),
                },
                Place::Value(Member::Metadata) => self.buffer.value()?.map(|metadata| {
                    self.metadata = metadata;
                    Place::Comma
                }),
                Place::Value(Member::Other) => self.buffer.value::<IgnoredAny>()?.map(|_| Place::Comma),
                Place::Comma if self.buffer.peek() == Some(b'}') => Some(Place::End),
                Place::Comma => self.buffer.take(b',', ", or }")?.then_some(Place::Name),
                Place::FirstItem if self.buffer.peek() == Some(b']') => self.end_of_items(),
                Place::FirstItem | Place::Item => match self.buffer.value()? {
                    Some(item) => {
                        self.place = Place::ItemComma;
                        return Ok(Some(item));
                    }
                    None => None,
                },
                Place::ItemComma if self.buffer.peek() == Some(b']') => self.end_of_items(),
                Place::ItemComma => self.buffer.take(b',', ", or ]")?.then_some(Place::Item),
                Place::End => None,
            };
            match next {
                Some(place) => self.place = place,
                None => return Ok(None),
            }
        }
    }

    fn name(&mut self) -> Result<Option<Member>, Malformed> {
        let name = self.buffer.value::<Cow<'_, str>>()?;
        Ok(name.map(|name| match name.as_ref() {
            "items" => Member::Items,
            "metadata" => Member::Metadata,
            _ => Member::Other,
        }))
    }

    fn end_of_items(&mut self) -> Option<Place> {
        self.buffer.at += 1;
        Some(Place::Comma)
    }

    /// Returns the metadata of the list, after the last byte.
    ///
    /// # Errors
    /// If the body ended early. What an incomplete list does not name may still exist.
    pub fn finish(self) -> Result<ListMeta, Malformed> {
        if self.place == Place::End { Ok(self.metadata) } else { Err(Malformed::Truncated) }
    }
}

/// One event of a watch.
#[derive(Debug, PartialEq, Eq)]
pub enum WatchEvent<K> {
    /// `ADDED` or `MODIFIED`.
    Applied(K),
    /// `DELETED`.
    Deleted(K),
    /// `BOOKMARK`: the watch is complete up to this version.
    Bookmark {
        /// The version.
        version: String,
    },
    /// `ERROR`: the watch is over.
    Failed(Status),
}

/// The error of a failed request, as the API server reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Status {
    /// HTTP status code.
    pub code: u16,
    /// Message for people.
    pub message: String,
}

/// Reads the events of a watch.
#[derive(Debug, Default)]
pub struct WatchReader {
    buffer: Buffer,
}

#[derive(Deserialize)]
struct Line<'l> {
    #[serde(rename = "type")]
    kind: &'l str,
    #[serde(borrow)]
    object: &'l RawValue,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Versioned {
    metadata: ListMeta,
}

impl WatchReader {
    /// Adds bytes of the body.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.feed(bytes);
    }

    /// Returns the next event; `None` if more bytes must arrive first.
    ///
    /// # Errors
    /// If the body is no watch, or an object is too long or of another kind.
    pub fn event<K: DeserializeOwned>(&mut self) -> Result<Option<WatchEvent<K>>, Malformed> {
        let Some(line) = self.buffer.value::<Line<'_>>()? else { return Ok(None) };
        let object = line.object.get();
        Ok(Some(match line.kind {
            "ADDED" | "MODIFIED" => WatchEvent::Applied(serde_json::from_str(object)?),
            "DELETED" => WatchEvent::Deleted(serde_json::from_str(object)?),
            "BOOKMARK" => {
                let Versioned { metadata } = serde_json::from_str(object)?;
                WatchEvent::Bookmark { version: metadata.resource_version }
            }
            _ => WatchEvent::Failed(serde_json::from_str(object)?),
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// Parses a body in pieces of `piece` bytes.
    fn list(body: &str, piece: usize) -> Result<(Vec<Value>, ListMeta), Malformed> {
        let (mut reader, mut items) = (ListReader::default(), Vec::new());
        for piece in body.as_bytes().chunks(piece) {
            reader.feed(piece);
            while let Some(item) = reader.item()? {
                items.push(item);
            }
        }
        Ok((items, reader.finish()?))
    }

    fn items() -> Vec<Value> {
        let escapes = "\"items\":[{\\ \u{1} ö \u{1f600}";
        vec![json!({ "a": escapes, "items": [{ "items": [] }] }), json!({}), json!({ "long": "x".repeat(40_000) })]
    }

    #[test]
    fn a_list_is_read_whatever_the_order_of_its_members() {
        let (items, metadata) =
            (json!(items()), json!({ "resourceVersion": "7", "continue": "next", "remainingItemCount": 3 }));
        for body in [
            format!(r#"{{"kind":"PodList","apiVersion":"v1","metadata":{metadata},"items":{items}}}"#),
            format!(r#" {{ "apiVersion" : "g/v1" , "items" : {items} , "kind" : "L", "metadata" : {metadata} }} "#),
        ] {
            for piece in [1, 7, 4096, usize::MAX] {
                let (read, meta) = list(&body, piece).unwrap();
                assert_eq!(json!(read), items, "in pieces of {piece}");
                assert_eq!((meta.resource_version.as_str(), meta.next.as_str()), ("7", "next"));
            }
        }
    }

    #[test]
    fn an_empty_list_and_one_of_null_have_no_items() {
        for items in ["[]", " [ ] ", "null"] {
            let body = format!(r#"{{"items":{items},"metadata":{{"resourceVersion":"1"}}}}"#);
            assert_eq!(list(&body, 3).unwrap().0, Vec::<Value>::new());
        }
    }

    /// An incomplete list must not pass for a complete one: what it does not name would count as deleted.
    #[test]
    fn a_list_that_breaks_off_is_an_error_wherever_it_does() {
        let body = json!({ "items": items(), "metadata": { "resourceVersion": "1" } }).to_string();
        let ends = (0..200).chain(body.len() - 200..body.len());
        for end in ends.filter(|end| body.is_char_boundary(*end)) {
            assert!(list(&body[..end], 64).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn what_is_no_list_is_an_error() {
        for body in ["[]", "<html>", r#"{"items":{}}"#, r#"{"items":[1 2]}"#, r#"{"items":[{}}"#, r#"{"items" []}"#] {
            assert!(list(body, usize::MAX).is_err(), "{body}");
        }
        let text: Result<Option<String>, Malformed> = {
            let mut reader = ListReader::default();
            reader.feed(br#"{"items":[{}]}"#);
            reader.item()
        };
        assert!(text.is_err(), "an item of another kind");
    }

    #[test]
    fn an_object_that_never_ends_is_given_up() {
        let mut reader = ListReader::default();
        reader.feed(br#"{"items":[{"a":""#);
        let piece = vec![b'x'; 1 << 20];
        let mut fed = 0;
        let error = loop {
            reader.feed(&piece);
            fed += piece.len();
            match reader.item::<IgnoredAny>() {
                Ok(found) => assert!(found.is_none() && fed <= MAX_VALUE + piece.len()),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Malformed::TooLong), "{error}");
    }

    /// Such pages are usual: 500 pods of 1 MiB.
    #[test]
    fn a_page_of_large_objects_is_in_memory_one_object_at_a_time() {
        let object = json!({ "a": "x".repeat(1 << 20) }).to_string();
        let mut reader = ListReader::default();
        reader.feed(br#"{"metadata":{"resourceVersion":"1"},"items":["#);
        let (mut most, mut read) = (0, 0);
        for number in 0..50 {
            let text = if number == 0 { object.clone() } else { format!(",{object}") };
            for piece in text.as_bytes().chunks(64 << 10) {
                reader.feed(piece);
                most = most.max(reader.buffer.bytes.capacity());
                while reader.item::<IgnoredAny>().unwrap().is_some() {
                    read += 1;
                }
            }
        }
        reader.feed(b"]}");
        assert_eq!((read, reader.item::<IgnoredAny>().unwrap().is_some()), (50, false));
        assert!(most <= 4 << 20, "{most} bytes");
        reader.feed(b"");
        assert!(reader.buffer.bytes.capacity() <= KEPT_CAPACITY, "and given back");
        reader.finish().unwrap();
    }

    #[test]
    fn events_of_a_watch_are_told_apart() {
        let lines = [
            json!({ "type": "ADDED", "object": { "n": 1 } }),
            json!({ "type": "MODIFIED", "object": { "n": 2 } }),
            json!({ "type": "DELETED", "object": { "n": 3 } }),
            json!({ "type": "BOOKMARK", "object": { "metadata": { "resourceVersion": "9", "creationTimestamp": null } } }),
            json!({ "type": "ERROR", "object": { "code": 410, "message": "too old" } }),
        ];
        let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
        for piece in [1, 10, 1000] {
            let (mut reader, mut events) = (WatchReader::default(), Vec::new());
            for piece in body.as_bytes().chunks(piece) {
                reader.feed(piece);
                while let Some(event) = reader.event::<Value>().unwrap() {
                    events.push(event);
                }
            }
            let version = "9".to_owned();
            assert_eq!(
                events,
                [
                    WatchEvent::Applied(json!({ "n": 1 })),
                    WatchEvent::Applied(json!({ "n": 2 })),
                    WatchEvent::Deleted(json!({ "n": 3 })),
                    WatchEvent::Bookmark { version },
                    WatchEvent::Failed(Status { code: 410, message: "too old".into() }),
                ]
            );
        }
    }

    proptest! {
        #[test]
        fn bytes_that_are_no_list_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), piece in 1usize..50) {
            let mut reader = ListReader::default();
            for piece in bytes.chunks(piece) {
                reader.feed(piece);
                while let Ok(Some(_)) = reader.item::<Value>() {}
            }
            _ = reader.finish();
        }
    }
}
