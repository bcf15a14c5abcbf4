//! How much memory a model needs: weights, caches of its sequences, and what the runtime adds. Owns the arithmetic; readers
//! of model files make the [`ModelShape`], and [`verdict`](crate::capacity::verdict::estimate) words the result.
//!
//! The total is what a container should declare. It contains no CUDA context: `perProcessOverhead` of the policy, which is
//! added to every declaration, is that.
//!
//! # Examples
//!
//! ```
//! use vramguard::capacity::estimate::shape::{Cache, Group, ModelShape, Parameters, Weights};
//! use vramguard::capacity::estimate::{self, KvType, Request, Runtime, WeightsDtype};
//!
//! // Llama 3.1 8B: 32 layers with 8 KV heads of 128 elements.
//! let cache = Cache::Attention { keys: 1_024, values: 1_024, window: None };
//! let parameters =
//!     Parameters { matrices: 6_979_321_856, embedding: 525_336_576, head: Some(525_336_576), other: 266_240 };
//! let shape = ModelShape {
//!     architecture: "llama".to_owned(),
//!     known: true,
//!     weights: Weights::Computed(parameters, WeightsDtype::Bf16),
//!     caches: vec![Group { layers: 32, cache }],
//!     unplaced_window: None,
//!     hidden: Some(4_096),
//!     feed_forward: Some(14_336),
//!     vocabulary: Some(128_256),
//!     longest: Some(131_072),
//!     other_inputs: false,
//! };
//! let request =
//!     Request { context: 8_192, concurrency: 4, kv: KvType::F16, weights: None, runtime: Runtime::None };
//! let estimate = estimate::estimate(&shape, &request)?;
//! assert_eq!(estimate.kv_bytes_per_token, 2 * 32 * 8 * 128 * 2);
//! assert_eq!((estimate.weights.mib(), estimate.kv.mib()), (15_317, 4_096));
//! # Ok::<(), vramguard::capacity::verdict::estimate::NoEstimate>(())
//! ```

use crate::capacity::verdict::estimate::{Basis, Confidence, Left, NoEstimate, PartKind, Remark, SUM};
use crate::capacity::vram::Vram;

mod cache;
mod runtime;
pub mod shape;

use self::shape::{ModelShape, Stored, Weights};

/// What is estimated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Tokens of each sequence, prompt and answer together.
    pub context: u64,
    /// Number of sequences at the same time.
    pub concurrency: u64,
    /// Type of the KV cache.
    pub kv: KvType,
    /// Type of the weights; `None` for that of the files.
    pub weights: Option<WeightsDtype>,
    /// The runtime.
    pub runtime: Runtime,
}

/// The type of a KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// 16 bits: f16 or bf16.
    F16,
    /// 8 bits, without scales.
    Fp8,
    /// Blocks of 32 elements in 34 bytes.
    Q8_0,
    /// Blocks of 32 elements in 18 bytes.
    Q4_0,
}

impl KvType {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F16 => "f16",
            KvType::Fp8 => "fp8",
            KvType::Q8_0 => "q8_0",
            KvType::Q4_0 => "q4_0",
        }
    }

    /// Bytes of one element, as a fraction.
    fn bytes_per_element(self) -> (u128, u128) {
        match self {
            KvType::F16 => (2, 1),
            KvType::Fp8 => (1, 1),
            KvType::Q8_0 => (34, 32),
            KvType::Q4_0 => (18, 32),
        }
    }
}

/// The type of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightsDtype {
    /// 32 bits.
    F32,
    /// 16 bits: bf16 or f16.
    Bf16,
    /// 8 bits, with one f32 scale for each block of 128 × 128.
    Fp8,
    /// 8 bits, with a scale and a zero point for each group of 128, as GPTQ has them.
    Int8,
    /// 4 bits, with a scale and a zero point for each group of 128, as AWQ and GPTQ have them.
    Int4,
}

impl WeightsDtype {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            WeightsDtype::F32 => "f32",
            WeightsDtype::Bf16 => "bf16",
            WeightsDtype::Fp8 => "fp8",
            WeightsDtype::Int8 => "int8",
            WeightsDtype::Int4 => "int4",
        }
    }

    /// Bytes of one parameter of a matrix with its share of scales and zero points, as a fraction.
    fn bytes_per_parameter(self) -> (u128, u128) {
        match self {
            WeightsDtype::F32 => (4, 1),
            WeightsDtype::Bf16 => (2, 1),
            WeightsDtype::Fp8 => (16_384 + 4, 16_384),
            // 128 bytes, a scale of 2 and a zero point of 1.
            WeightsDtype::Int8 => (131, 128),
            // 64 bytes, a scale of 2 and a zero point of a half.
            WeightsDtype::Int4 => (133, 256),
        }
    }

    /// Bytes of one parameter that is not quantized, such as one of the embedding.
    fn bytes_if_kept(self) -> u128 {
        match self {
            WeightsDtype::F32 => 4,
            WeightsDtype::Bf16 | WeightsDtype::Fp8 | WeightsDtype::Int8 | WeightsDtype::Int4 => 2,
        }
    }
}

/// The program that runs the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// vLLM.
    Vllm,
    /// Ollama.
    Ollama,
    /// llama.cpp.
    LlamaCpp,
    /// Hugging Face transformers.
    Transformers,
    /// None: weights and caches alone.
    None,
}

impl Runtime {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Runtime::Vllm => "vllm",
            Runtime::Ollama => "ollama",
            Runtime::LlamaCpp => "llama.cpp",
            Runtime::Transformers => "transformers",
            Runtime::None => "none",
        }
    }

    /// The types of KV cache that it has.
    fn kv_types(self) -> &'static [KvType] {
        match self {
            Runtime::Vllm => &[KvType::F16, KvType::Fp8],
            Runtime::Ollama | Runtime::LlamaCpp => &[KvType::F16, KvType::Q8_0, KvType::Q4_0],
            Runtime::Transformers => &[KvType::F16],
            Runtime::None => &[KvType::F16, KvType::Fp8, KvType::Q8_0, KvType::Q4_0],
        }
    }
}

/// One part of an estimate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it is for.
    pub kind: PartKind,
    /// The amount, rounded up to MiB.
    pub amount: Vram,
    /// How sure it is.
    pub confidence: Confidence,
    /// Where it comes from.
    pub basis: Basis,
}

/// How much memory a model needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// The parts: weights first, then caches, then the runtime's.
    pub parts: Vec<Part>,
    /// The weights.
    pub weights: Vram,
    /// All caches and states of sequences.
    pub kv: Vram,
    /// The runtime's parts.
    pub runtime: Vram,
    /// The sum of all parts: what a container declares. It has no CUDA context.
    pub total: Vram,
    /// Bytes that one more token takes in all layers, while it is within every window.
    pub kv_bytes_per_token: u64,
    /// What is not contained or assumed.
    pub remarks: Vec<Remark>,
}

/// Estimates the memory of a model.
///
/// # Errors
/// The runtime has no such KV type, a number is missing on which its part depends, packed tensors should be rescaled, or an
/// amount is above [`Vram::MAX`].
pub fn estimate(shape: &ModelShape, request: &Request) -> Result<Estimate, NoEstimate> {
    if !request.runtime.kv_types().contains(&request.kv) {
        let known: Vec<&str> = request.runtime.kv_types().iter().map(|kv| kv.name()).collect();
        let (runtime, kv) = (request.runtime.name(), request.kv.name());
        return Err(NoEstimate::KvType { runtime, kv, known: known.join(", ") });
    }
    let weights = weights(shape, request)?;
    let caches = cache::parts(shape, request)?;
    let runtime = runtime::parts(shape, request)?;
    let sum = |parts: &[Part]| parts.iter().map(|part| part.amount).sum::<Vram>();
    let (of_weights, kv, of_runtime) = (weights.amount, sum(&caches), sum(&runtime));
    let total = Vram::checked_from_mib(of_weights.plus(kv).plus(of_runtime).mib());
    Ok(Estimate {
        kv_bytes_per_token: cache::bytes_per_token(shape, request)?,
        remarks: remarks(shape, request, &caches),
        parts: std::iter::once(weights).chain(caches).chain(runtime).collect(),
        weights: of_weights,
        kv,
        runtime: of_runtime,
        total: total.ok_or(NoEstimate::TooLarge { what: SUM })?,
    })
}

fn weights(shape: &ModelShape, request: &Request) -> Result<Part, NoEstimate> {
    let kind = PartKind::Weights;
    let too_large = NoEstimate::TooLarge { what: kind.name() };
    let (bytes, confidence, basis) = match (&shape.weights, request.weights) {
        (Weights::Stored(stored), None) => {
            let (bytes, basis) = loaded(stored, request.runtime);
            (Some(bytes), Confidence::High, basis)
        }
        (Weights::Stored(stored), Some(dtype)) => {
            let parameters = stored.parameters.ok_or(NoEstimate::Packed { dtype: dtype.name() })?;
            (parameters.bytes(dtype), Confidence::Low, Basis::Rescaled(dtype.name()))
        }
        (Weights::Computed(parameters, native), wanted) => {
            let dtype = wanted.unwrap_or(*native);
            let total = parameters.total().ok_or_else(|| too_large.clone())?;
            let basis = Basis::Computed { parameters: total, dtype: dtype.name() };
            let confidence =
                if dtype == WeightsDtype::Bf16 || dtype == *native { Confidence::Medium } else { Confidence::Low };
            (parameters.bytes(dtype), confidence, basis)
        }
    };
    let amount = cache::narrow(kind, bytes.ok_or(too_large)?)?;
    Ok(Part { kind, amount, confidence, basis })
}

/// The bytes of stored tensors that a runtime loads onto the GPU.
fn loaded(stored: &Stored, runtime: Runtime) -> (u128, Basis) {
    let is_ggml = matches!(runtime, Runtime::LlamaCpp | Runtime::Ollama);
    if stored.gguf && is_ggml && stored.head > 0 {
        // Without a head of its own, the embedding is the head, and is loaded.
        return (stored.bytes.saturating_sub(stored.embedding), Basis::StoredWithout(Left::Embedding));
    }
    if stored.tied && stored.embedding > 0 && stored.head > 0 && !stored.fp8 {
        return (stored.bytes.saturating_sub(stored.head), Basis::StoredWithout(Left::TiedHead));
    }
    (stored.bytes, Basis::Stored)
}

fn remarks(shape: &ModelShape, request: &Request, caches: &[Part]) -> Vec<Remark> {
    let has = |kind: PartKind| caches.iter().any(|part| part.kind == kind);
    let is_ggml = matches!(request.runtime, Runtime::LlamaCpp | Runtime::Ollama);
    let tied_in_fp8 = match &shape.weights {
        Weights::Stored(stored) => match request.weights {
            None => stored.fp8 && stored.tied && stored.head > 0,
            Some(dtype) => dtype == WeightsDtype::Fp8 && stored.parameters.is_some_and(|count| count.head.is_none()),
        },
        Weights::Computed(parameters, native) => {
            request.weights.unwrap_or(*native) == WeightsDtype::Fp8 && parameters.head.is_none()
        }
    };
    let beyond = shape.longest.filter(|most| *most < request.context);
    let all = [
        Some(Remark::NoContext),
        (!shape.known).then(|| Remark::UnknownArchitecture(shape.architecture.clone())),
        shape.unplaced_window.map(Remark::WindowOfUnknownLayers),
        (is_ggml && has(PartKind::WindowCache) && request.kv != KvType::F16).then_some(Remark::WindowNotQuantized),
        (is_ggml && has(PartKind::LatentCache)).then_some(Remark::LatentInOldReleases),
        tied_in_fp8.then_some(Remark::HeadOfFp8),
        shape.other_inputs.then_some(Remark::OtherInputs),
        beyond.map(|most| Remark::BeyondModel { context: request.context, most }),
        runtime::prompt_at_once(shape, request),
        (request.runtime == Runtime::Vllm).then_some(Remark::VllmTakesItsShare),
    ];
    all.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests;
