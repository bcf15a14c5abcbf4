//! Reads the shape of a model from its files, without its weights: headers of GGUF and safetensors, and `config.json`. Owns
//! those formats; [`capacity::estimate`](crate::capacity::estimate) makes amounts of the shape.
//!
//! The files come from strangers. Readers take any [`Read`](std::io::Read), never read the data of a tensor, and bound what
//! they keep: counts, lengths and depths have named bounds, and arithmetic on numbers of a file is checked.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::capacity::estimate::shape::{Cache, Group, Parameters};
use crate::capacity::verdict::quoted;

pub mod config;
pub mod gguf;
mod input;
pub mod safetensors;

#[cfg(test)]
pub(crate) mod testing;

/// The most layers that a model may have.
pub const MAX_LAYERS: u64 = 4_096;

/// The most tensors that one file may have.
const MAX_TENSORS: usize = 1 << 20;

/// Why a model file cannot be read: the place in it, what was expected, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {what}")]
pub struct Unreadable {
    /// A byte offset, a field or a tensor.
    pub at: String,
    /// What is wrong and what was expected.
    pub what: String,
}

impl Unreadable {
    fn new(at: impl Into<String>, what: impl Into<String>) -> Unreadable {
        Unreadable { at: at.into(), what: what.into() }
    }

    /// The error at a field.
    fn field(name: &str, what: impl Into<String>) -> Unreadable {
        Unreadable::new(format!("field {}", quoted(name)), what)
    }
}

/// Where the data of one tensor is: its first byte, and the byte after its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Span {
    begin: u64,
    end: u64,
}

/// Checks that tensors lie one after the other, each at a multiple of `alignment`, and returns where the last one ends.
///
/// Two tensors that share bytes would be counted twice, and bytes of no tensor not at all.
fn contiguous(mut spans: Vec<Span>, alignment: u64) -> Result<u64, Unreadable> {
    spans.sort_unstable();
    let mut end = 0u64;
    for span in spans {
        let Some(expected) = end.checked_next_multiple_of(alignment) else {
            return Err(Unreadable::new(format!("data byte {end}"), "the tensors end beyond 2^64 bytes"));
        };
        if span.begin != expected {
            let what = if span.begin < expected { "overlaps the tensor before it" } else { "leaves a hole" };
            return Err(Unreadable::new(
                format!("data byte {}", span.begin),
                format!("a tensor {what}; byte {expected} was expected. Download the file again"),
            ));
        }
        end = span.end;
    }
    Ok(end)
}

/// Equal caches together, in the order of their first layers.
fn grouped(found: Vec<Cache>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for cache in found {
        match groups.iter_mut().find(|group| group.cache == cache) {
            Some(group) => group.layers += 1,
            None => groups.push(Group { layers: 1, cache }),
        }
    }
    groups
}

/// Which role a tensor has, by its name: embedding and output head are not quantized, and may be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Embedding,
    Head,
    Other,
}

impl Role {
    /// The role of a tensor of this name in a file of any format.
    fn of(name: &str) -> Role {
        let stem = name.strip_suffix(".weight").unwrap_or(name);
        let ends = |names: &[&str]| names.iter().any(|last| stem.rsplit('.').next() == Some(last));
        if stem == "token_embd" || ends(&["embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in"]) {
            Role::Embedding
        } else if stem == "output" || ends(&["lm_head", "embed_out"]) {
            Role::Head
        } else {
            Role::Other
        }
    }
}

/// The sum of some tensors: their bytes and elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    bytes: u128,
    elements: u128,
}

impl Sum {
    /// Adds one tensor. A file has at most [`MAX_TENSORS`], so that sums of 64-bit numbers do not overflow.
    fn add(&mut self, bytes: u64, elements: u64) {
        self.bytes += u128::from(bytes);
        self.elements += u128::from(elements);
    }

    fn plus(self, other: Sum) -> Sum {
        Sum { bytes: self.bytes + other.bytes, elements: self.elements + other.elements }
    }
}

/// Tensors by role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tensors {
    count: u64,
    embedding: Sum,
    head: Sum,
    /// Tensors of two dimensions and more.
    matrices: Sum,
    /// Norms and biases.
    vectors: Sum,
}

impl Tensors {
    fn add(&mut self, name: &str, dimensions: usize, bytes: u64, elements: u64) {
        let sum = match Role::of(name) {
            Role::Embedding => &mut self.embedding,
            Role::Head => &mut self.head,
            Role::Other if dimensions > 1 => &mut self.matrices,
            Role::Other => &mut self.vectors,
        };
        sum.add(bytes, elements);
        self.count += 1;
    }

    /// The tensors of both.
    fn plus(self, other: Tensors) -> Tensors {
        Tensors {
            count: self.count + other.count,
            embedding: self.embedding.plus(other.embedding),
            head: self.head.plus(other.head),
            matrices: self.matrices.plus(other.matrices),
            vectors: self.vectors.plus(other.vectors),
        }
    }

    fn bytes(&self) -> u128 {
        self.embedding.bytes + self.head.bytes + self.matrices.bytes + self.vectors.bytes
    }

    /// The parameters, if each element is one.
    fn parameters(&self, tied: bool) -> Parameters {
        let head = (!tied && self.head.elements > 0).then_some(self.head.elements);
        Parameters {
            matrices: self.matrices.elements,
            embedding: self.embedding.elements,
            head,
            other: self.vectors.elements,
        }
    }
}
