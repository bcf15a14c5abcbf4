//! What `vramguard estimate` says of a model: the names of the parts, where each amount comes from, and what it leaves
//! out. Owns the wording; [`crate::capacity::estimate`] decides what applies.

use std::fmt;

use super::quoted;
use crate::capacity::vram::Vram;

/// What a part of an estimate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PartKind {
    /// The weights of the model.
    Weights,
    /// Keys and values of layers that attend to the whole context.
    KvCache,
    /// Keys and values of layers that attend to a window.
    WindowCache,
    /// The compressed cache of multi-head latent attention.
    LatentCache,
    /// The state of layers that keep no token, such as Mamba's.
    State,
    /// What one forward pass holds between its layers.
    Activations,
    /// Logits, and what sampling makes of them.
    Sampling,
    /// Captured CUDA graphs.
    Graphs,
    /// Workspace of the matrix library.
    Workspace,
    /// The compute buffer of ggml.
    ComputeBuffer,
}

impl PartKind {
    /// The name in tables and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            PartKind::Weights => "weights",
            PartKind::KvCache => "KV cache",
            PartKind::WindowCache => "KV cache of sliding windows",
            PartKind::LatentCache => "latent KV cache",
            PartKind::State => "recurrent state",
            PartKind::Activations => "activations",
            PartKind::Sampling => "logits and sampling",
            PartKind::Graphs => "CUDA graphs",
            PartKind::Workspace => "matrix workspace",
            PartKind::ComputeBuffer => "compute buffer",
        }
    }
}

/// How sure an amount is. The lowest comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Confidence {
    /// A rule of thumb for the runtime's defaults: it may be wrong by a large part of itself.
    Low,
    /// Exact arithmetic on an assumption that the basis names.
    Medium,
    /// Exact arithmetic on what the files say.
    High,
}

impl Confidence {
    /// The name in tables and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Confidence::Low => "low",
            Confidence::Medium => "medium",
            Confidence::High => "high",
        }
    }
}

/// Where an amount comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Basis {
    /// The sizes of all stored tensors.
    Stored,
    /// The sizes of all stored tensors but one, by its role.
    StoredWithout(Left),
    /// The parameters of the stored tensors, as another type.
    Rescaled(&'static str),
    /// Parameters that the configuration implies, as a type.
    Computed {
        /// Number of parameters.
        parameters: u128,
        /// Name of the type.
        dtype: &'static str,
    },
    /// Elements of a cache for each token.
    PerToken {
        /// Number of layers.
        layers: u64,
        /// Tokens that all sequences hold together in one layer.
        tokens: u128,
        /// Name of the type of the cache.
        dtype: &'static str,
    },
    /// A cache that exists once for each sequence.
    PerSequence {
        /// Number of layers.
        layers: u64,
        /// Number of sequences.
        sequences: u64,
    },
    /// One forward pass of this many tokens.
    Batch(u64),
    /// Logits of this many sequences.
    Logits(u64),
    /// The workspace of cuBLAS, whose size PyTorch fixes.
    CublasWorkspace,
    /// Captured graphs, as vLLM logged them.
    LoggedGraphs,
}

/// A stored tensor that the runtime does not load onto the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// The token embedding, which llama.cpp keeps in host memory.
    Embedding,
    /// The output head, which is the token embedding again.
    TiedHead,
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Basis::Stored => f.write_str("sizes of the stored tensors"),
            Basis::StoredWithout(Left::Embedding) => {
                f.write_str("sizes of the stored tensors, without the token embedding, which stays in host memory")
            }
            Basis::StoredWithout(Left::TiedHead) => {
                f.write_str("sizes of the stored tensors, without the output head, which is the token embedding again")
            }
            Basis::Rescaled(dtype) => write!(f, "parameters of the stored tensors as {dtype}"),
            Basis::Computed { parameters, dtype } => {
                write!(f, "{} parameters by the configuration, as {dtype}", short(*parameters))
            }
            Basis::PerToken { layers, tokens, dtype } => {
                write!(f, "{} × {tokens} tokens as {dtype}", count(*layers, "layer"))
            }
            Basis::PerSequence { layers, sequences } => {
                write!(f, "{} × {} as f32", count(*layers, "layer"), count(*sequences, "sequence"))
            }
            Basis::Batch(tokens) => write!(f, "one forward pass of {tokens} tokens"),
            Basis::Logits(sequences) => write!(f, "logits of {}", count(*sequences, "sequence")),
            Basis::CublasWorkspace => f.write_str("cuBLAS workspace of PyTorch on Hopper"),
            Basis::LoggedGraphs => f.write_str("as vLLM logs it; none with --enforce-eager"),
        }
    }
}

/// A number of parameters, as people write it: `8.03B`.
fn short(parameters: u128) -> String {
    let (unit, name) = if parameters >= 1_000_000_000 { (1_000_000_000, "B") } else { (1_000_000, "M") };
    let hundredths = parameters.saturating_mul(100) / unit;
    format!("{}.{:02}{name}", hundredths / 100, hundredths % 100)
}

fn count(number: u64, noun: &str) -> String {
    super::count(usize::try_from(number).unwrap_or(usize::MAX), noun)
}

/// What an estimate does not contain, or assumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remark {
    /// No part is the CUDA context of a process.
    NoContext,
    /// The architecture is not one of those whose caches are known.
    UnknownArchitecture(String),
    /// Layers have a window, and which of them is not known. All count with the whole context.
    WindowOfUnknownLayers(u64),
    /// llama.cpp does not quantize the cache of sliding windows.
    WindowNotQuantized,
    /// A checkpoint in FP8 loads the output head in addition to the embedding.
    HeadOfFp8,
    /// Images and audio are encoded on the GPU too.
    OtherInputs,
    /// transformers reads a prompt in one forward pass.
    PromptAtOnce {
        /// The most tokens of a prompt.
        tokens: u64,
        /// What their activations take for a moment.
        amount: Vram,
    },
    /// vLLM takes the share that it is told to take.
    VllmTakesItsShare,
    /// The context is longer than what the model was made for.
    BeyondModel {
        /// The context of the request.
        context: u64,
        /// The longest of the model.
        most: u64,
    },
    /// llama.cpp before its release of January 2026 stores values in addition.
    LatentInOldReleases,
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remark::NoContext => f.write_str(
                "the CUDA context of a process is not contained: vramguard adds perProcessOverhead to each declaration",
            ),
            Remark::UnknownArchitecture(name) => write!(
                f,
                "architecture {} is not known: every layer counts as attention to the whole context",
                quoted(name)
            ),
            Remark::WindowOfUnknownLayers(window) => write!(
                f,
                "some layers attend to a window of {window} tokens, but the file does not say which: all count with the \
                 whole context, which is an upper bound"
            ),
            Remark::WindowNotQuantized => {
                f.write_str("llama.cpp keeps the cache of sliding windows as f16, whatever the type of the KV cache")
            }
            Remark::HeadOfFp8 => f.write_str(
                "the output head is the token embedding again; it counts twice, as measured with checkpoints in FP8",
            ),
            Remark::OtherInputs => f.write_str(
                "the model reads images or audio too: what their encoder needs while it runs is not contained",
            ),
            Remark::PromptAtOnce { tokens, amount } => write!(
                f,
                "transformers reads a prompt in one forward pass: one of {tokens} tokens takes up to {amount} more for a \
                 moment, which is not contained"
            ),
            Remark::VllmTakesItsShare => f.write_str(
                "vLLM takes the whole share that --gpu-memory-utilization gives it; set it so that this amount suffices",
            ),
            Remark::BeyondModel { context, most } => write!(
                f,
                "a context of {context} tokens is longer than the {most} for which the model was made"
            ),
            Remark::LatentInOldReleases => f.write_str(
                "llama.cpp before January 2026 stores the values of latent attention in addition, almost as much again",
            ),
        }
    }
}

/// The sum of all parts, as an error names it.
pub const SUM: &str = "the sum of all parts";

/// Something that the files of a model do not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsaid {
    /// The number of tokens in its vocabulary.
    Vocabulary,
    /// The width of its residual stream.
    Hidden,
    /// The width of its feed-forward layers.
    FeedForward,
}

impl fmt::Display for Unsaid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unsaid::Vocabulary => "the size of its vocabulary",
            Unsaid::Hidden => "its hidden size",
            Unsaid::FeedForward => "the width of its feed-forward layers",
        })
    }
}

/// Why no estimate can be made of a model that could be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoEstimate {
    /// The runtime has no such type for its cache.
    #[error("{runtime} has no KV cache of type {kv}; choose one of: {known}")]
    KvType {
        /// Name of the runtime.
        runtime: &'static str,
        /// Name of the type.
        kv: &'static str,
        /// The types that it has.
        known: String,
    },
    /// An amount is above what can be requested from Kubernetes.
    #[error(
        "{what} would be 2^63 bytes or more; check the context, the concurrency and the numbers in the model's files"
    )]
    TooLarge {
        /// The part.
        what: &'static str,
    },
    /// The runtime's part depends on something that the files do not say.
    #[error(
        "the model's files do not say {what}, on which the memory of {runtime} depends; choose the runtime none to leave that out"
    )]
    Unknown {
        /// What is missing.
        what: Unsaid,
        /// Name of the runtime.
        runtime: &'static str,
    },
    /// Several parameters are packed into one stored element.
    #[error(
        "the stored tensors are quantized and packed, so that their parameters cannot be counted as {dtype}; leave out the type of the weights"
    )]
    Packed {
        /// Name of the type.
        dtype: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_written_as_people_write_them() {
        assert_eq!([8_030_261_248, 596_049_920, 999].map(short), ["8.03B", "596.04M", "0.00M"]);
    }

    #[test]
    fn each_basis_names_its_numbers() {
        let cache = Basis::PerToken { layers: 1, tokens: 65_536, dtype: "f16" };
        assert_eq!(cache.to_string(), "1 layer × 65536 tokens as f16");
        assert_eq!(Basis::PerSequence { layers: 48, sequences: 3 }.to_string(), "48 layers × 3 sequences as f32");
        let computed = Basis::Computed { parameters: 8_030_261_248, dtype: "bf16" };
        assert_eq!(computed.to_string(), "8.03B parameters by the configuration, as bf16");
    }

    #[test]
    fn a_name_of_a_stranger_is_quoted_and_cut() {
        let said = Remark::UnknownArchitecture("a\n".repeat(200)).to_string();
        assert!(said.contains(r#""a\na\n"#) && said.len() < 400, "{said}");
    }
}
