//! JSON as it arrives: the items of a List are cut out and parsed one by one. Owns the cutting, and the line of each
//! object. [`value`] parses each object, and with that checks everything within it.

use std::io::Read;

use serde::de::DeserializeSeed;
use serde_json::Value;
use serde_json::error::Category;

use self::value::Unique;
use super::{Found, Head, MAX_LISTS, Stop, too_many_lists};
use crate::k8s::wording;

pub(super) mod value;

pub(super) use self::value::Level;

/// Bytes of the longest object. etcd accepts 1.5 MiB, and JSON encodes one of their bytes in at most six.
const MAX_OBJECT: usize = 16 << 20;
/// Levels of nesting in an object. Custom resource definitions have some thirty.
const MAX_DEPTH: u32 = 100;
/// Bytes that are read at once.
const PIECE: u64 = 256 << 10;

/// Reads JSON objects, one after the other, to the end of the input.
pub(super) fn read(input: impl Read, found: &mut Found<'_, '_>) -> Result<(), Stop> {
    let mut text = Text { input, buffer: Vec::new(), kept: 0, at: 0, line: 1, counted: 0 };
    let mut reader = Reader { text: &mut text, found };
    loop {
        match reader.next()? {
            None => return Ok(()),
            Some(b'{') => reader.object(&Head::default(), 0)?,
            Some(b'-') => reader.separator()?,
            Some(_) => {
                let line = reader.text.line();
                return Err(reader.found.fatal(line, "is not a JSON object; a file is either JSON or YAML".to_owned()));
            }
        }
        reader.text.release();
    }
}

/// The part of the input that is in memory.
struct Text<R> {
    input: R,
    buffer: Vec<u8>,
    /// Index of the first byte that is still needed.
    kept: usize,
    /// Index of the next byte.
    at: usize,
    /// Line of the byte at `counted`, from 1.
    line: u64,
    /// Index of the byte up to which lines are counted.
    counted: usize,
}

impl<R: Read> Text<R> {
    /// Reads more of the input; `false` at its end.
    fn more(&mut self) -> std::io::Result<bool> {
        self.count_to(self.kept);
        self.buffer.drain(..self.kept);
        self.at -= self.kept;
        self.counted -= self.kept;
        self.kept = 0;
        Ok(self.input.by_ref().take(PIECE).read_to_end(&mut self.buffer)? > 0)
    }

    fn count_to(&mut self, index: usize) {
        if index > self.counted {
            // In pieces whose count fits a byte, because a sum of bytes takes a fraction of the time.
            for piece in self.buffer[self.counted..index].chunks(usize::from(u8::MAX)) {
                self.line += u64::from(piece.iter().map(|byte| u8::from(*byte == b'\n')).sum::<u8>());
            }
            self.counted = index;
        }
    }

    /// The line of the next byte.
    fn line(&mut self) -> u64 {
        self.count_to(self.at);
        self.line
    }

    /// What comes before the next byte is not needed any more.
    fn release(&mut self) {
        self.kept = self.at;
    }
}

/// Why a value has no end.
enum Endless {
    Truncated,
    TooLong,
    TooDeep,
    /// The next byte is a closing bracket of the other kind.
    Mismatch,
    Io(std::io::Error),
}

struct Reader<'r, 'f, 's, R> {
    text: &'r mut Text<R>,
    found: &'r mut Found<'f, 's>,
}

impl<R: Read> Reader<'_, '_, '_, R> {
    /// Skips white space. Returns the next byte without consuming it; `None` at the end of the input.
    fn next(&mut self) -> Result<Option<u8>, Stop> {
        loop {
            let rest = &self.text.buffer[self.text.at..];
            if let Some(blank) = rest.iter().position(|byte| !byte.is_ascii_whitespace()) {
                self.text.at += blank;
                return Ok(Some(self.text.buffer[self.text.at]));
            }
            self.text.at = self.text.buffer.len();
            match self.text.more() {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(error) => {
                    let line = self.text.line();
                    return Err(self.found.fatal(line, format!("cannot be read: {error}")));
                }
            }
        }
    }

    /// Like [`Reader::next`], within the object that begins at line `start`.
    fn inside(&mut self, start: u64) -> Result<u8, Stop> {
        match self.next()? {
            Some(byte) => Ok(byte),
            None => Err(self.endless(start, Endless::Truncated)),
        }
    }

    fn endless(&mut self, start: u64, why: Endless) -> Stop {
        let line = self.text.line();
        match why {
            Endless::Truncated => self
                .found
                .fatal(line, format!("ends within the object that begins at line {start}; the file is truncated")),
            Endless::TooLong => self.found.fatal(start, format!("has an object longer than {} MiB", MAX_OBJECT >> 20)),
            Endless::Mismatch if self.text.buffer[self.text.at] == b'}' => self.unexpected(b'}', "`,` or `]`"),
            Endless::Mismatch => self.unexpected(b']', "`,` or `}`"),
            Endless::TooDeep => self.found.fatal(line, format!("is nested more than {MAX_DEPTH} levels deep")),
            Endless::Io(error) => self.found.fatal(line, format!("cannot be read: {error}")),
        }
    }

    /// Consumes a line of hyphens, which separates YAML documents.
    fn separator(&mut self) -> Result<(), Stop> {
        let line = self.text.line();
        for _ in 0..3 {
            if self.next()? != Some(b'-') {
                return Err(self.found.fatal(line, "is not a JSON object; a file is either JSON or YAML".to_owned()));
            }
            self.text.at += 1;
        }
        Ok(())
    }

    /// Reads an object, of which the opening brace is next. The items of a List are read one by one.
    fn object(&mut self, list: &Head, depth: usize) -> Result<(), Stop> {
        self.text.release();
        let start = self.text.line();
        let (mut head, mut items) = (Head::default(), None);
        self.text.at += 1;
        if self.inside(start)? == b'}' {
            self.text.at += 1;
        } else {
            loop {
                let name = self.name(start)?;
                self.punctuation(b':', "`:`", start)?;
                let value = self.inside(start)?;
                if name == "items" && value == b'[' {
                    if items.is_some() {
                        let line = self.text.line();
                        return Err(self.found.fatal(line, "key \"items\" is there twice".to_owned()));
                    }
                    let line = self.text.line();
                    items = Some(line);
                    self.items(&head, start, depth)?;
                } else {
                    self.member(&name, &mut head, start)?;
                }
                if items.is_some() {
                    self.text.release();
                }
                match self.inside(start)? {
                    b',' => self.text.at += 1,
                    b'}' => {
                        self.text.at += 1;
                        break;
                    }
                    other => return Err(self.unexpected(other, "`,` or `}`")),
                }
            }
        }
        match items {
            None => self.parsed(list, start, depth),
            Some(_) if head.is_list() => Ok(()),
            Some(line) if head.kind.is_empty() => {
                self.found.wrong(line, "holds no Kubernetes object: kind is missing".to_owned())
            }
            Some(line) => self.found.wrong(line, format!("{} has items, and is no List", head.kind)),
        }
    }

    /// Reads the name of a member.
    fn name(&mut self, start: u64) -> Result<String, Stop> {
        match self.inside(start)? {
            b'"' => {}
            other => return Err(self.unexpected(other, "a name in quotes")),
        }
        let name = self.text.at;
        let kept = name - self.text.kept;
        self.text_end().map_err(|why| self.endless(start, why))?;
        let name = &self.text.buffer[self.text.kept + kept..self.text.at];
        serde_json::from_slice(name).map_err(|error| self.malformed(start, &error))
    }

    /// Skips the value of a member. The members that tell a List are read.
    fn member(&mut self, name: &str, head: &mut Head, start: u64) -> Result<(), Stop> {
        let kept = self.text.at - self.text.kept;
        self.value_end().map_err(|why| self.endless(start, why))?;
        let value = &self.text.buffer[self.text.kept + kept..self.text.at];
        let field = match name {
            "kind" => &mut head.kind,
            "apiVersion" => &mut head.api_version,
            _ => return Ok(()),
        };
        // A value of another type is an error once the object is parsed.
        *field = serde_json::from_slice(value).unwrap_or_default();
        Ok(())
    }

    /// Reads the items of a List, of which the opening bracket is next.
    fn items(&mut self, head: &Head, start: u64, depth: usize) -> Result<(), Stop> {
        if depth == MAX_LISTS {
            let line = self.text.line();
            return Err(self.found.fatal(line, too_many_lists()));
        }
        self.text.at += 1;
        if self.inside(start)? == b']' {
            self.text.at += 1;
            return Ok(());
        }
        for index in 0_usize.. {
            self.text.release();
            if self.inside(start)? == b'{' {
                self.object(head, depth + 1)?;
            } else {
                let line = self.text.line();
                let kept = self.text.at - self.text.kept;
                self.value_end().map_err(|why| self.endless(start, why))?;
                let value = &self.text.buffer[self.text.kept + kept..self.text.at];
                match serde_json::from_slice::<Value>(value) {
                    Ok(value) => self.found.wrong(line, head.complete(index, value).map(|_| ()).unwrap_err())?,
                    Err(error) => return Err(self.malformed(line, &error)),
                }
            }
            match self.inside(start)? {
                b',' => self.text.at += 1,
                b']' => {
                    self.text.at += 1;
                    return Ok(());
                }
                other => return Err(self.unexpected(other, "`,` or `]` after an item")),
            }
        }
        Ok(())
    }

    /// Parses the object that was just skipped, and passes it on.
    fn parsed(&mut self, list: &Head, start: u64, depth: usize) -> Result<(), Stop> {
        let bytes = &self.text.buffer[self.text.kept..self.text.at];
        let mut deserializer = serde_json::Deserializer::from_slice(bytes);
        match Unique(self.found.level).deserialize(&mut deserializer) {
            Ok(value) => match list.complete(0, value) {
                Ok(value) => self.found.expanded(start, value, depth),
                Err(what) => self.found.wrong(start, what),
            },
            Err(error) if error.classify() == Category::Data => {
                self.found.wrong(start + (error.line() as u64).saturating_sub(1), without_place(&error))
            }
            Err(error) => Err(self.malformed(start, &error)),
        }
    }

    fn malformed(&mut self, start: u64, error: &serde_json::Error) -> Stop {
        self.found.fatal(start + (error.line() as u64).saturating_sub(1), without_place(error))
    }

    fn punctuation(&mut self, wanted: u8, expected: &str, start: u64) -> Result<(), Stop> {
        let found = self.inside(start)?;
        if found != wanted {
            return Err(self.unexpected(found, expected));
        }
        self.text.at += 1;
        Ok(())
    }

    fn unexpected(&mut self, found: u8, expected: &str) -> Stop {
        let line = self.text.line();
        let found =
            if found.is_ascii_graphic() { format!("`{}`", found as char) } else { format!("byte {found:#04x}") };
        self.found.fatal(line, format!("has {found}, expected {expected}"))
    }

    /// Consumes a value of any kind. A literal ends where another byte than its own begins.
    fn value_end(&mut self) -> Result<(), Endless> {
        match self.text.buffer[self.text.at] {
            b'"' => self.text_end(),
            b'{' | b'[' => self.nested_end(),
            _ => loop {
                let rest = &self.text.buffer[self.text.at..];
                let ends = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b',' | b'}' | b']' | b':');
                if let Some(length) = rest.iter().position(ends) {
                    self.text.at += length;
                    return Ok(());
                }
                self.text.at = self.text.buffer.len();
                self.fill()?;
            },
        }
    }

    /// Consumes a text, of which the opening quote is next.
    fn text_end(&mut self) -> Result<(), Endless> {
        self.text.at += 1;
        let mut escaped = false;
        loop {
            let rest = &self.text.buffer[self.text.at..];
            if escaped && !rest.is_empty() {
                escaped = false;
                self.text.at += 1;
                continue;
            }
            match rest.iter().position(|byte| matches!(byte, b'"' | b'\\')) {
                Some(index) => {
                    self.text.at += index + 1;
                    if rest[index] == b'"' {
                        return Ok(());
                    }
                    escaped = true;
                }
                None => {
                    self.text.at = self.text.buffer.len();
                    self.fill()?;
                }
            }
        }
    }

    /// Consumes an object or a list.
    fn nested_end(&mut self) -> Result<(), Endless> {
        // One bit for each open bracket, the innermost lowest: 1 for an object.
        let (mut depth, mut open) = (0_u32, 0_u128);
        loop {
            let rest = &self.text.buffer[self.text.at..];
            let mut quote = None;
            for (index, byte) in rest.iter().enumerate() {
                match byte {
                    b'"' => {
                        quote = Some(index);
                        break;
                    }
                    b'{' | b'[' => {
                        depth += 1;
                        open = open << 1 | u128::from(*byte == b'{');
                        if depth > MAX_DEPTH {
                            self.text.at += index;
                            return Err(Endless::TooDeep);
                        }
                    }
                    b'}' | b']' => {
                        if open & 1 != u128::from(*byte == b'}') {
                            self.text.at += index;
                            return Err(Endless::Mismatch);
                        }
                        depth -= 1;
                        open >>= 1;
                        if depth == 0 {
                            self.text.at += index + 1;
                            return Ok(());
                        }
                    }
                    _ => {}
                }
            }
            match quote {
                Some(index) => {
                    self.text.at += index;
                    self.text_end()?;
                }
                None => {
                    self.text.at = self.text.buffer.len();
                    self.fill()?;
                }
            }
        }
    }

    /// Reads more of the input within a value.
    fn fill(&mut self) -> Result<(), Endless> {
        if self.text.buffer.len() - self.text.kept > MAX_OBJECT {
            return Err(Endless::TooLong);
        }
        match self.text.more() {
            Ok(true) => Ok(()),
            Ok(false) => Err(Endless::Truncated),
            Err(error) => Err(Endless::Io(error)),
        }
    }
}

/// The message of a JSON error without its position, which is relative to the object.
fn without_place(error: &serde_json::Error) -> String {
    let text = wording::json(error);
    if error.classify() == Category::Data { text } else { format!("is not JSON: {text}") }
}
