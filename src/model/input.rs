//! Bytes of a file with their offsets. Owns little-endian numbers, texts up to a bound, and the bound of a header.

use std::io::{ErrorKind, Read};

use super::Unreadable;

/// A stream that knows its offset, and ends at a bound.
pub(super) struct Input<R> {
    stream: R,
    at: u64,
    most: u64,
}

impl<R: Read> Input<R> {
    /// Reads from a stream of which at most `most` bytes are read.
    pub(super) fn new(stream: R, most: u64) -> Input<R> {
        Input { stream, at: 0, most }
    }

    /// The offset of the next byte.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// An error at the next byte.
    pub(super) fn error(&self, what: impl Into<String>) -> Unreadable {
        at(self.at, what)
    }

    /// Moves the offset on, before so many bytes are read.
    fn reserve(&mut self, bytes: u64, what: &str) -> Result<(), Unreadable> {
        let end = self.at.checked_add(bytes).filter(|end| *end <= self.most);
        let Some(end) = end else {
            let most = self.most >> 20;
            return Err(self.error(format!("{what} ends beyond {most} MiB, the most that is read of a header")));
        };
        self.at = end;
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8], what: &str) -> Result<(), Unreadable> {
        let begin = self.at;
        self.reserve(buffer.len() as u64, what)?;
        self.stream.read_exact(buffer).map_err(|error| failed(begin, what, &error))
    }

    /// The next bytes, of which there are `N`. `what` names them in errors.
    pub(super) fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Unreadable> {
        let mut buffer = [0; N];
        self.fill(&mut buffer, what)?;
        Ok(buffer)
    }

    /// A number of 32 bits.
    pub(super) fn u32(&mut self, what: &str) -> Result<u32, Unreadable> {
        self.bytes(what).map(u32::from_le_bytes)
    }

    /// A number of 64 bits.
    pub(super) fn u64(&mut self, what: &str) -> Result<u64, Unreadable> {
        self.bytes(what).map(u64::from_le_bytes)
    }

    /// A text of `length` bytes, which are at most `most`.
    pub(super) fn text(&mut self, length: u64, most: usize, what: &str) -> Result<String, Unreadable> {
        let begin = self.at;
        let size = usize::try_from(length).ok().filter(|size| *size <= most);
        let Some(size) = size else {
            return Err(self.error(format!("{what} has {length} bytes; at most {most} were expected")));
        };
        let mut buffer = vec![0; size];
        self.fill(&mut buffer, what)?;
        String::from_utf8(buffer).map_err(|_| at(begin, format!("{what} is not UTF-8")))
    }

    /// Leaves out so many bytes, without keeping them.
    pub(super) fn skip(&mut self, bytes: u64, what: &str) -> Result<(), Unreadable> {
        let begin = self.at;
        self.reserve(bytes, what)?;
        let skipped = std::io::copy(&mut self.stream.by_ref().take(bytes), &mut std::io::sink());
        match skipped {
            Ok(skipped) if skipped == bytes => Ok(()),
            Ok(_) => Err(failed(begin, what, &ErrorKind::UnexpectedEof.into())),
            Err(error) => Err(failed(begin, what, &error)),
        }
    }

    /// The stream.
    pub(super) fn into_stream(self) -> R {
        self.stream
    }
}

fn failed(begin: u64, what: &str, error: &std::io::Error) -> Unreadable {
    let why = match error.kind() {
        ErrorKind::UnexpectedEof => format!("the file ends within {what}; download it again"),
        _ => format!("{what} cannot be read: {error}"),
    };
    at(begin, why)
}

/// An error at a byte.
pub(super) fn at(byte: u64, what: impl Into<String>) -> Unreadable {
    Unreadable::new(format!("byte {byte}"), what)
}
