//! Headers of safetensors files, and the index of a model in several of them. Owns the format and its bounds.
//!
//! A header is JSON of up to 100 MB. It is read as a stream: of each tensor only its place, size and role are kept.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::io::{BufReader, Read};

use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::input::{Input, at};
use super::{MAX_TENSORS, Span, Tensors, Unreadable, contiguous};
use crate::capacity::estimate::shape::Stored;
use crate::capacity::verdict::quoted;

/// Bytes of the longest header, as the format has it.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes of the longest index.
pub const MAX_INDEX: u64 = 100_000_000;
/// Files of one model.
const MAX_FILES: usize = 4_096;
/// Dimensions of one tensor.
const MAX_DIMENSIONS: usize = 32;
/// Bytes before the header: its length.
const PREFIX: u64 = 8;

/// The tensors of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    tensors: Tensors,
    /// Whether an element may hold several parameters.
    packed: bool,
    fp8: bool,
}

/// The tensors of all files of a model.
pub fn joined(files: &[Header], tied: bool) -> Stored {
    let tensors = files.iter().fold(Tensors::default(), |sum, file| sum.plus(file.tensors));
    Stored {
        bytes: tensors.bytes(),
        embedding: tensors.embedding.bytes,
        head: tensors.head.bytes,
        tied,
        fp8: files.iter().any(|file| file.fp8),
        gguf: false,
        parameters: (!files.iter().any(|file| file.packed)).then(|| tensors.parameters(tied)),
    }
}

/// Reads the header of a file. `length` is the size of the file in bytes, where it is known.
///
/// # Errors
/// The header is longer than the format allows, is no JSON of tensors, or the tensors do not fit each other or the file.
pub fn read(stream: impl Read, length: Option<u64>) -> Result<Header, Unreadable> {
    let mut input = Input::new(stream, PREFIX);
    let size = input.u64("the length of the header")?;
    if !(2..=MAX_HEADER).contains(&size) {
        let what =
            format!("says that the header has {size} bytes; 2 to {MAX_HEADER} was expected in a safetensors file");
        return Err(at(0, what));
    }
    let text = BufReader::new(input.into_stream().take(size));
    let mut tensors = Collected::default();
    let mut parser = serde_json::Deserializer::from_reader(text);
    let read = (&mut tensors).deserialize(&mut parser).and_then(|()| parser.end());
    read.map_err(|error| unreadable(PREFIX, &error))?;
    let end = contiguous(tensors.spans, 1)?;
    let begin = PREFIX + size;
    if let (Some(end), Some(length)) = (begin.checked_add(end), length)
        && end != length
    {
        let what = format!("the file has {length} bytes, but its header describes {end}; download it again");
        return Err(at(length.min(end), what));
    }
    Ok(tensors.header)
}

/// An error of the JSON parser. The header of a file is one line, so that its column is an offset.
fn unreadable(begin: u64, error: &serde_json::Error) -> Unreadable {
    let text = error.to_string();
    // The parser appends the place, which is said in bytes here.
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    let place = match error.line() {
        0 | 1 => format!("byte {}", begin.saturating_add(error.column() as u64)),
        line => format!("line {line}"),
    };
    let ends = if error.is_eof() { "; the file ends early, download it again" } else { "" };
    Unreadable::new(place, format!("{what}{ends}"))
}

/// What is collected of the tensors of a file.
#[derive(Default)]
struct Collected {
    header: Header,
    spans: Vec<Span>,
}

impl<'de> DeserializeSeed<'de> for &mut Collected {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &mut Collected {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if self.spans.len() >= MAX_TENSORS {
                return Err(de::Error::custom(format!("there are more than {MAX_TENSORS} tensors")));
            }
            let tensor = map.next_value::<Tensor>()?;
            self.add(&name, &tensor).map_err(|what| de::Error::custom(format!("tensor {}: {what}", quoted(&name))))?;
        }
        Ok(())
    }
}

impl Collected {
    fn add(&mut self, name: &str, tensor: &Tensor) -> Result<(), String> {
        let bits = bits(&tensor.dtype)
            .ok_or_else(|| format!("dtype {} is not known; a newer release may know it", quoted(&tensor.dtype)))?;
        let elements = tensor.shape.0.iter().try_fold(1u64, |product, size| product.checked_mul(*size));
        let size = elements.and_then(|elements| elements.checked_mul(bits));
        let (elements, size) = elements.zip(size).ok_or("shape: has 2^64 bits or more")?;
        let [begin, end] = tensor.data_offsets;
        let bytes = size.div_ceil(8);
        if end.checked_sub(begin) != Some(bytes) {
            return Err(format!("data_offsets: is {begin} to {end}; {bytes} bytes were expected by dtype and shape"));
        }
        self.spans.push(Span { begin, end });
        self.header.packed |= is_packed(&tensor.dtype, tensor.shape.0.len());
        self.header.fp8 |= tensor.dtype.starts_with("F8_E4M3") || tensor.dtype.starts_with("F8_E5M2");
        self.header.tensors.add(name, tensor.shape.0.len(), bytes, elements);
        Ok(())
    }
}

/// One tensor. Fields that are not known are left out.
#[derive(Deserialize)]
struct Tensor {
    dtype: String,
    shape: Shape,
    data_offsets: [u64; 2],
}

/// The sizes of a tensor's dimensions, of which there are at most [`MAX_DIMENSIONS`].
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Shape, D::Error> {
        struct Sizes;
        impl<'de> Visitor<'de> for Sizes {
            type Value = Shape;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of sizes")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
                let mut sizes = Vec::new();
                while let Some(size) = list.next_element()? {
                    if sizes.len() == MAX_DIMENSIONS {
                        return Err(de::Error::custom(format!("a tensor has more than {MAX_DIMENSIONS} dimensions")));
                    }
                    sizes.push(size);
                }
                Ok(Shape(sizes))
            }
        }
        deserializer.deserialize_seq(Sizes)
    }
}

/// Bits of one element.
fn bits(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F64" | "I64" | "U64" | "C64" => 64,
        "F32" | "I32" | "U32" => 32,
        "F16" | "BF16" | "I16" | "U16" => 16,
        "BOOL" | "I8" | "U8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => 8,
        "F6_E2M3" | "F6_E3M2" => 6,
        "F4" => 4,
        _ => return None,
    })
}

/// Whether the elements of a matrix of this type may hold several parameters each.
fn is_packed(dtype: &str, dimensions: usize) -> bool {
    dimensions > 1 && matches!(dtype, "I32" | "U32" | "I64" | "U64" | "I16" | "U16" | "U8")
}

/// Reads an index, and returns the names of the files that it lists.
///
/// # Errors
/// It is no JSON of that form, lists no file or too many, or a name leads out of its folder.
pub fn index(stream: impl Read) -> Result<BTreeSet<String>, Unreadable> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: Files,
    }
    let parsed: Result<Index, _> = serde_json::from_reader(BufReader::new(stream.take(MAX_INDEX)));
    let Files(files) = parsed.map_err(|error| unreadable(0, &error))?.weight_map;
    if files.is_empty() {
        return Err(Unreadable::field("weight_map", "lists no file; a file for each tensor was expected"));
    }
    Ok(files)
}

/// The distinct values of a map from tensors to files.
struct Files(BTreeSet<String>);

impl<'de> Deserialize<'de> for Files {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Files, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = Files;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from tensors to files")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Files, A::Error> {
                let mut files = BTreeSet::new();
                while let Some((IgnoredAny, name)) = map.next_entry::<IgnoredAny, String>()? {
                    let is_plain = !name.is_empty() && name.len() <= 255 && !name.contains(['/', '\\', '\0']);
                    if !is_plain || name.starts_with('.') {
                        let what = format!("weight_map: {} is no name of a file in the same folder", quoted(&name));
                        return Err(de::Error::custom(what));
                    }
                    files.insert(name);
                    if files.len() > MAX_FILES {
                        return Err(de::Error::custom(format!("weight_map: lists more than {MAX_FILES} files")));
                    }
                }
                Ok(Files(files))
            }
        }
        deserializer.deserialize_map(Names)
    }
}

#[cfg(test)]
mod tests;
