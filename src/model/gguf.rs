//! Headers of GGUF files, versions 2 and 3: keys with their values, and what each tensor is. Owns the format and its bounds;
//! [`shape`] makes a model of the keys.
//!
//! The tokenizer makes a header megabytes long. Its arrays are read past, and nothing of them is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use super::input::{Input, at};
use super::{MAX_LAYERS, MAX_TENSORS, Span, Tensors, Unreadable, contiguous};
use crate::capacity::verdict::quoted;

pub mod shape;
mod types;

/// Bytes of the longest header that is read. Tokenizers of large vocabularies take some 20 MiB.
const MAX_HEADER: u64 = 512 << 20;
/// Keys of one file.
const MAX_KEYS: u64 = 1 << 14;
/// Bytes of a key. The format allows 65,535, and files have fewer than 64.
const MAX_KEY: usize = 1_024;
/// Bytes of a text that is kept.
const MAX_TEXT: u64 = 256;
/// Elements of an array that is kept: one for each layer.
const MAX_ARRAY: u64 = MAX_LAYERS;
/// Elements of all arrays that are kept.
const MAX_KEPT: usize = 1 << 18;
/// Arrays in arrays.
const MAX_DEPTH: u32 = 4;
/// Bytes of the name of a tensor. The format allows 64.
const MAX_NAME: usize = 1_024;
/// Dimensions of a tensor. The format has 4.
const MAX_DIMENSIONS: u32 = 8;
/// Where data begins, unless a key says otherwise: at a multiple of this.
const ALIGNMENT: u64 = 32;
/// The largest alignment.
const MAX_ALIGNMENT: u64 = 1 << 20;

/// A value that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    /// A whole number or a boolean.
    Integer(i128),
    Text(String),
    /// Whole numbers or booleans.
    Integers(Vec<i128>),
}

/// The header of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    keys: BTreeMap<String, Value>,
    tensors: Tensors,
    /// Number of tokens that the embedding has.
    vocabulary: Option<u64>,
    /// Layers with a convolution before a state-space model.
    state_layers: BTreeSet<u64>,
    /// Layers with a short convolution.
    convolution_layers: BTreeSet<u64>,
}

/// Reads the header of a file. `length` is the size of the file in bytes, where it is known.
///
/// # Errors
/// The file is no GGUF file of these versions, ends early, breaks a bound, or its tensors do not fit each other.
pub fn read(stream: impl Read, length: Option<u64>) -> Result<Header, Unreadable> {
    let mut input = Input::new(std::io::BufReader::new(stream), MAX_HEADER);
    let magic: [u8; 4] = input.bytes("the magic number")?;
    if &magic != b"GGUF" {
        return Err(at(0, "is no GGUF file: it does not begin with GGUF"));
    }
    match input.u32("the version")? {
        2 | 3 => {}
        1 => return Err(at(4, "version 1 is not read; convert the model again with a current llama.cpp")),
        version if version.swap_bytes() <= 3 => {
            return Err(at(4, "is big-endian; a file for little-endian machines was expected"));
        }
        version => return Err(at(4, format!("version {version} is not known; 2 or 3 was expected"))),
    }
    let tensors = input.u64("the number of tensors")?;
    if tensors > MAX_TENSORS as u64 {
        return Err(at(8, format!("says that there are {tensors} tensors; at most {MAX_TENSORS} are read")));
    }
    let keys = input.u64("the number of keys")?;
    if keys > MAX_KEYS {
        return Err(at(16, format!("says that there are {keys} keys; at most {MAX_KEYS} are read")));
    }
    let mut header = Header {
        keys: BTreeMap::new(),
        tensors: Tensors::default(),
        vocabulary: None,
        state_layers: BTreeSet::new(),
        convolution_layers: BTreeSet::new(),
    };
    let mut room = MAX_KEPT;
    for _ in 0..keys {
        read_key(&mut input, &mut header, &mut room)?;
    }
    let alignment = header.number("general.alignment")?.unwrap_or(ALIGNMENT);
    if alignment == 0 || alignment > MAX_ALIGNMENT {
        return Err(Unreadable::field(
            "general.alignment",
            format!("is {alignment}; 1 to {MAX_ALIGNMENT} was expected"),
        ));
    }
    let mut spans = Vec::new();
    for _ in 0..tensors {
        spans.push(read_tensor(&mut input, &mut header)?);
    }
    check_end(input.at(), alignment, contiguous(spans, alignment)?, length)?;
    Ok(header)
}

/// Checks that the file has the data that its header describes.
fn check_end(header: u64, alignment: u64, data: u64, length: Option<u64>) -> Result<(), Unreadable> {
    let end = match data {
        0 => Some(header),
        _ => header.checked_next_multiple_of(alignment).and_then(|begin| begin.checked_add(data)),
    };
    match (end, length) {
        (None, _) => Err(at(header, "the tensors end beyond 2^64 bytes")),
        (Some(end), Some(length)) if length < end => {
            Err(at(length, format!("the file ends, but its tensors end at byte {end}; download it again")))
        }
        (Some(_), _) => Ok(()),
    }
}

/// Numbers of the types of values.
mod kind {
    pub(super) const BOOL: u32 = 7;
    pub(super) const TEXT: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
}

/// Bytes of a value of a type with a fixed size.
fn fixed(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | kind::BOOL => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

fn read_key<R: Read>(input: &mut Input<R>, header: &mut Header, room: &mut usize) -> Result<(), Unreadable> {
    let length = input.u64("the length of a key")?;
    let key = input.text(length, MAX_KEY, "a key")?;
    let kind = input.u32("the type of a value")?;
    // Tokens, merges and chat templates.
    let is_kept = !key.starts_with("tokenizer.");
    let value = read_value(input, kind, is_kept, room)?;
    if let Some(value) = value
        && header.keys.insert(key.clone(), value).is_some()
    {
        return Err(input.error(format!("key {} is there twice", quoted(&key))));
    }
    Ok(())
}

fn read_value<R: Read>(
    input: &mut Input<R>,
    kind: u32,
    is_kept: bool,
    room: &mut usize,
) -> Result<Option<Value>, Unreadable> {
    match kind {
        kind::TEXT => {
            let length = input.u64("the length of a text")?;
            if is_kept && length <= MAX_TEXT {
                return input.text(length, MAX_KEY, "a text").map(|text| Some(Value::Text(text)));
            }
            input.skip(length, "a text")?;
            Ok(None)
        }
        kind::ARRAY => {
            let of = input.u32("the type of an array")?;
            let count = input.u64("the length of an array")?;
            let fits = count <= MAX_ARRAY && usize::try_from(count).is_ok_and(|count| count <= *room);
            if !(is_kept && fits && is_integer(of)) {
                skip_array(input, of, count, MAX_DEPTH)?;
                return Ok(None);
            }
            let mut integers = Vec::new();
            for _ in 0..count {
                integers.push(integer(input, of)?);
            }
            *room -= integers.len();
            Ok(Some(Value::Integers(integers)))
        }
        _ if is_integer(kind) => Ok(Some(Value::Integer(integer(input, kind)?)).filter(|_| is_kept)),
        _ => {
            let size = fixed(kind).ok_or_else(|| unknown_type(input, kind))?;
            input.skip(size, "a value")?;
            Ok(None)
        }
    }
}

fn unknown_type<R: Read>(input: &Input<R>, kind: u32) -> Unreadable {
    input.error(format!("a value has the unknown type {kind}; 0 to 12 was expected"))
}

/// Reads past an array. Its texts are read one by one, and nothing of them is kept.
fn skip_array<R: Read>(input: &mut Input<R>, of: u32, count: u64, depth: u32) -> Result<(), Unreadable> {
    if let Some(size) = fixed(of) {
        let bytes = count.checked_mul(size).ok_or_else(|| input.error("an array is longer than 2^64 bytes"))?;
        return input.skip(bytes, "an array");
    }
    for _ in 0..count {
        match of {
            kind::TEXT => {
                let length = input.u64("the length of a text")?;
                input.skip(length, "a text")?;
            }
            kind::ARRAY if depth > 0 => {
                let of = input.u32("the type of an array")?;
                let count = input.u64("the length of an array")?;
                skip_array(input, of, count, depth - 1)?;
            }
            kind::ARRAY => return Err(input.error(format!("arrays are nested deeper than {MAX_DEPTH}"))),
            _ => return Err(unknown_type(input, of)),
        }
    }
    Ok(())
}

/// Whether a type is a whole number or a boolean.
fn is_integer(kind: u32) -> bool {
    matches!(kind, 0..=5 | kind::BOOL | 10 | 11)
}

fn integer<R: Read>(input: &mut Input<R>, kind: u32) -> Result<i128, Unreadable> {
    const WHAT: &str = "a number";
    Ok(match kind {
        1 => i8::from_le_bytes(input.bytes(WHAT)?).into(),
        2 => u16::from_le_bytes(input.bytes(WHAT)?).into(),
        3 => i16::from_le_bytes(input.bytes(WHAT)?).into(),
        4 => u32::from_le_bytes(input.bytes(WHAT)?).into(),
        5 => i32::from_le_bytes(input.bytes(WHAT)?).into(),
        10 => u64::from_le_bytes(input.bytes(WHAT)?).into(),
        11 => i64::from_le_bytes(input.bytes(WHAT)?).into(),
        _ => u8::from_le_bytes(input.bytes(WHAT)?).into(),
    })
}

fn read_tensor<R: Read>(input: &mut Input<R>, header: &mut Header) -> Result<Span, Unreadable> {
    let length = input.u64("the length of a tensor's name")?;
    let name = input.text(length, MAX_NAME, "a tensor's name")?;
    let error = |what: String| Unreadable::new(format!("tensor {}", quoted(&name)), what);
    let dimensions = input.u32("the number of dimensions")?;
    if dimensions > MAX_DIMENSIONS {
        return Err(error(format!("has {dimensions} dimensions; at most {MAX_DIMENSIONS} are read")));
    }
    let (mut elements, mut row, mut last) = (1u64, 1u64, 1u64);
    for dimension in 0..dimensions {
        last = input.u64("a dimension")?;
        row = if dimension == 0 { last } else { row };
        elements = elements.checked_mul(last).ok_or_else(|| error("has 2^64 elements or more".to_owned()))?;
    }
    let kind = input.u32("the type of a tensor")?;
    let offset = input.u64("the offset of a tensor")?;
    let (block, size) = types::block(kind)
        .ok_or_else(|| error(format!("has type {kind}, which is not known; a newer release may know it")))?;
    if row % block != 0 {
        return Err(error(format!("has rows of {row} elements; a multiple of {block} was expected for type {kind}")));
    }
    let bytes = (elements / block).checked_mul(size).ok_or_else(|| error("has 2^64 bytes or more".to_owned()))?;
    let end = offset.checked_add(bytes).ok_or_else(|| error("ends beyond 2^64 bytes".to_owned()))?;
    header.tensors.add(&name, dimensions as usize, bytes, elements);
    if name == "token_embd.weight" {
        header.vocabulary = Some(last);
    }
    if let Some((layer, rest)) = of_layer(&name) {
        if rest.starts_with("ssm_conv1d") {
            header.state_layers.insert(layer);
        } else if rest.starts_with("shortconv.conv") {
            header.convolution_layers.insert(layer);
        }
    }
    Ok(Span { begin: offset, end })
}

/// The layer of a tensor, and the rest of its name: `blk.3.attn_k.weight` is in layer 3.
fn of_layer(name: &str) -> Option<(u64, &str)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok().filter(|layer| *layer < MAX_LAYERS)?, rest))
}

impl Header {
    /// A whole number that is not negative; `None` if there is no such key.
    fn number(&self, key: &str) -> Result<Option<u64>, Unreadable> {
        match self.keys.get(key) {
            None => Ok(None),
            Some(Value::Integer(number)) => match u64::try_from(*number) {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(Unreadable::field(key, format!("is {number}; a number of 0 or more was expected"))),
            },
            Some(_) => Err(Unreadable::field(key, "is no number; a whole number was expected")),
        }
    }

    /// A whole number for each of so many layers, from one number or an array; `None` if there is no such key.
    fn numbers(&self, key: &str, layers: u64) -> Result<Option<Vec<u64>>, Unreadable> {
        let count = usize::try_from(layers).unwrap_or(usize::MAX);
        let Some(Value::Integers(numbers)) = self.keys.get(key) else {
            return Ok(self.number(key)?.map(|number| vec![number; count]));
        };
        if numbers.len() < count {
            let what = format!("has {} numbers; one for each of {layers} layers was expected", numbers.len());
            return Err(Unreadable::field(key, what));
        }
        let each = numbers.iter().take(count).map(|number| u64::try_from(*number));
        let each: Result<Vec<u64>, _> = each.collect();
        each.map(Some).map_err(|_| Unreadable::field(key, "has a negative number; 0 or more was expected"))
    }

    fn text(&self, key: &str) -> Option<&str> {
        match self.keys.get(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The number of files that the model was split into, as this file says; 1 if it was not.
    ///
    /// # Errors
    /// The number cannot be read.
    pub fn files(&self) -> Result<u64, Unreadable> {
        Ok(self.number("split.count")?.unwrap_or(1).max(1))
    }
}

#[cfg(test)]
mod tests;
