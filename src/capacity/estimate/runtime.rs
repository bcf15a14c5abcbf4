//! What a runtime needs in addition to weights and caches. Owns one small model for each runtime, with terms that stand for
//! something: a forward pass, logits, graphs, a workspace. The constants are the runtimes' defaults.
//!
//! `docs/estimate.md` says where each constant comes from and how far the result is off.

use super::cache::narrow;
use super::{ModelShape, Part, Request, Runtime};
use crate::capacity::verdict::estimate::{Basis, Confidence, NoEstimate, PartKind, Remark, Unsaid};
use crate::capacity::vram::Vram;

/// Tokens of one forward pass of vLLM: `--max-num-batched-tokens`, as its server sets it on large GPUs.
pub(super) const VLLM_BATCH: u64 = 8_192;
/// Sequences whose logits vLLM samples when it measures its peak: `--max-num-seqs`.
const VLLM_SEQUENCES: u64 = 256;
/// Bytes that sampling needs for each logit: 16 bits, its copy as f32, and its sorted copy with indices of 64 bits.
const SAMPLED: u128 = 2 + 4 + 4 + 8;
/// What captured CUDA graphs take, in MiB. vLLM logs 0.73 GiB for a model of today.
const VLLM_GRAPHS: u64 = 768;
/// Tokens of one forward pass of llama.cpp: `--ubatch-size`.
pub(super) const GGML_BATCH: u64 = 512;
/// The workspace of cuBLAS in PyTorch on Hopper, in MiB. It is 8 MiB on other GPUs.
const CUBLAS: u64 = 32;
/// Bytes of an activation: 16 bits.
const HALF: u128 = 2;

/// The parts of a runtime.
pub(super) fn parts(shape: &ModelShape, request: &Request) -> Result<Vec<Part>, NoEstimate> {
    match request.runtime {
        Runtime::None => Ok(Vec::new()),
        Runtime::Transformers => transformers(shape, request),
        Runtime::Vllm => vllm(shape, request),
        Runtime::LlamaCpp | Runtime::Ollama => ggml(shape, request),
    }
}

/// A prompt's activations are not counted: see [`prompt_at_once`].
fn transformers(shape: &ModelShape, request: &Request) -> Result<Vec<Part>, NoEstimate> {
    let vocabulary = known(shape.vocabulary, Unsaid::Vocabulary, request)?;
    // The last token of each sequence, as 16 bits and as f32.
    let logits = product(PartKind::Sampling, &[request.concurrency.into(), vocabulary, HALF + 4])?;
    let basis = Basis::CublasWorkspace;
    Ok(vec![
        Part { kind: PartKind::Workspace, amount: Vram::from_mib(CUBLAS), confidence: Confidence::Medium, basis },
        part(PartKind::Sampling, logits, Confidence::Medium, Basis::Logits(request.concurrency))?,
    ])
}

fn vllm(shape: &ModelShape, request: &Request) -> Result<Vec<Part>, NoEstimate> {
    let vocabulary = known(shape.vocabulary, Unsaid::Vocabulary, request)?;
    let activations = product(PartKind::Activations, &[VLLM_BATCH.into(), forward(shape, request)?, HALF])?;
    let sampling = product(PartKind::Sampling, &[VLLM_SEQUENCES.into(), vocabulary, SAMPLED])?;
    let basis = Basis::LoggedGraphs;
    Ok(vec![
        part(PartKind::Activations, activations, Confidence::Low, Basis::Batch(VLLM_BATCH))?,
        part(PartKind::Sampling, sampling, Confidence::Low, Basis::Logits(VLLM_SEQUENCES))?,
        Part { kind: PartKind::Graphs, amount: Vram::from_mib(VLLM_GRAPHS), confidence: Confidence::Low, basis },
    ])
}

fn ggml(shape: &ModelShape, request: &Request) -> Result<Vec<Part>, NoEstimate> {
    let vocabulary = known(shape.vocabulary, Unsaid::Vocabulary, request)?;
    let hidden = known(shape.hidden, Unsaid::Hidden, request)?;
    let width = vocabulary.checked_add(hidden).ok_or(NoEstimate::TooLarge { what: PartKind::ComputeBuffer.name() })?;
    // Logits and the residual stream of one batch, as f32.
    let buffer = product(PartKind::ComputeBuffer, &[GGML_BATCH.into(), width, 4])?;
    Ok(vec![part(PartKind::ComputeBuffer, buffer, Confidence::Low, Basis::Batch(GGML_BATCH))?])
}

/// Elements that one token holds at the widest place of a forward pass: the gate, the projection and their product in the
/// feed-forward layer, and the residual stream with its norm.
fn forward(shape: &ModelShape, request: &Request) -> Result<u128, NoEstimate> {
    let hidden = known(shape.hidden, Unsaid::Hidden, request)?;
    let feed_forward = known(shape.feed_forward, Unsaid::FeedForward, request)?;
    let sum = feed_forward.checked_mul(3).zip(hidden.checked_mul(2)).and_then(|(ours, rest)| ours.checked_add(rest));
    sum.ok_or(NoEstimate::TooLarge { what: PartKind::Activations.name() })
}

/// What transformers takes for a moment to read a prompt in one forward pass. The published measurements of Qwen3 do not
/// show it, so it is a remark and no part.
pub(super) fn prompt_at_once(shape: &ModelShape, request: &Request) -> Option<Remark> {
    if request.runtime != Runtime::Transformers {
        return None;
    }
    let elements = forward(shape, request).ok()?;
    let bytes = product(PartKind::Activations, &[request.context.into(), elements, HALF]).ok()?;
    Some(Remark::PromptAtOnce { tokens: request.context, amount: Vram::from_bytes_rounded_up(bytes)? })
}

fn known(number: Option<u64>, what: Unsaid, request: &Request) -> Result<u128, NoEstimate> {
    number.map(u128::from).ok_or(NoEstimate::Unknown { what, runtime: request.runtime.name() })
}

fn product(kind: PartKind, factors: &[u128]) -> Result<u128, NoEstimate> {
    let product = factors.iter().try_fold(1u128, |product, factor| product.checked_mul(*factor));
    product.ok_or(NoEstimate::TooLarge { what: kind.name() })
}

fn part(kind: PartKind, bytes: u128, confidence: Confidence, basis: Basis) -> Result<Part, NoEstimate> {
    Ok(Part { kind, amount: narrow(kind, bytes)?, confidence, basis })
}
