//! What an estimate needs to know of a model: [`ModelShape`]. Owns which weights are loaded and what each layer keeps for
//! a token or a sequence. Readers of files make one.

use super::WeightsDtype;

/// A model, as far as its memory is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelShape {
    /// Name of the architecture, as the files write it.
    pub architecture: String,
    /// Whether the caches of this architecture are known. If not, every layer counts as attention.
    pub known: bool,
    /// The weights.
    pub weights: Weights,
    /// What the layers keep. A layer with two kinds of cache is in two groups.
    pub caches: Vec<Group>,
    /// A window that some layers have, of which the files do not say which layers these are.
    pub unplaced_window: Option<u64>,
    /// Width of the residual stream, in elements.
    pub hidden: Option<u64>,
    /// The widest feed-forward layer that one token goes through, in elements: all its experts together.
    pub feed_forward: Option<u64>,
    /// Number of tokens in the vocabulary.
    pub vocabulary: Option<u64>,
    /// The longest context for which the model was made, in tokens.
    pub longest: Option<u64>,
    /// Whether the model reads images or audio too.
    pub other_inputs: bool,
}

/// Layers that keep the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// The number of layers.
    pub layers: u64,
    /// What each of them keeps.
    pub cache: Cache,
}

/// What one layer keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Keys and values of each token.
    Attention {
        /// Elements of the keys of one token.
        keys: u64,
        /// Elements of the values of one token.
        values: u64,
        /// The number of last tokens that it attends to; `None` for all.
        window: Option<u64>,
    },
    /// Multi-head latent attention.
    Latent {
        /// Elements of the compressed keys and values of one token.
        compressed: u64,
        /// Elements of the keys and values of one token after decompression, which transformers stores.
        expanded: u64,
    },
    /// A state whose size does not depend on the number of tokens.
    State {
        /// Elements for one sequence.
        elements: u64,
    },
}

/// The weights of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Weights {
    /// Tensors in files.
    Stored(Stored),
    /// Parameters that a configuration implies, and the type in which the checkpoint has them.
    Computed(Parameters, WeightsDtype),
}

/// Tensors in files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Bytes of all tensors.
    pub bytes: u128,
    /// Bytes of the token embedding; 0 if no tensor is known to be it.
    pub embedding: u128,
    /// Bytes of the output head; 0 if no tensor is known to be it.
    pub head: u128,
    /// Whether the configuration says that the output head is the token embedding.
    pub tied: bool,
    /// Whether matrices are stored in FP8.
    pub fp8: bool,
    /// Whether the files are in the format of llama.cpp.
    pub gguf: bool,
    /// The parameters; `None` if several are packed into one element.
    pub parameters: Option<Parameters>,
}

/// Numbers of parameters, by what quantization does to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// Those in matrices of layers, which are quantized.
    pub matrices: u128,
    /// Those of the token embedding, which is not quantized.
    pub embedding: u128,
    /// Those of the output head, which is not quantized; `None` if it is the token embedding.
    pub head: Option<u128>,
    /// Norms, biases and routers, which are not quantized.
    pub other: u128,
}

impl Parameters {
    /// The number of all parameters; `None` if it overflows.
    pub fn total(&self) -> Option<u128> {
        let layers = self.matrices.checked_add(self.other)?;
        layers.checked_add(self.embedding)?.checked_add(self.head.unwrap_or(0))
    }

    /// Bytes as `dtype`; `None` if they overflow.
    ///
    /// A head that is the embedding is loaded once, except in FP8: Qwen3-4B-FP8 was measured with both.
    pub(super) fn bytes(&self, dtype: WeightsDtype) -> Option<u128> {
        let (numerator, denominator) = dtype.bytes_per_parameter();
        let matrices = self.matrices.checked_mul(numerator)?.div_ceil(denominator);
        let tied = if dtype == WeightsDtype::Fp8 { self.embedding } else { 0 };
        let kept = self.embedding.checked_add(self.head.unwrap_or(tied))?.checked_add(self.other)?;
        matrices.checked_add(kept.checked_mul(dtype.bytes_if_kept())?)
    }
}
