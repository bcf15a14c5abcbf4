//! What sequences keep on the GPU: keys and values, windows of them, latent vectors and states. Owns the bytes of each KV
//! type, and how many tokens each runtime keeps room for.

use super::runtime::{GGML_BATCH, VLLM_BATCH};
use super::shape::Cache;
use super::{KvType, ModelShape, Part, Request, Runtime};
use crate::capacity::verdict::estimate::{Basis, Confidence, NoEstimate, PartKind};
use crate::capacity::vram::Vram;

/// Bytes of one element of a state. llama.cpp keeps states as f32; others may take half of it.
const STATE: u128 = 4;

/// The caches of all layers, one part for each kind.
pub(super) fn parts(shape: &ModelShape, request: &Request) -> Result<Vec<Part>, NoEstimate> {
    let kinds = [PartKind::KvCache, PartKind::WindowCache, PartKind::LatentCache, PartKind::State];
    kinds.into_iter().filter_map(|kind| of_kind(kind, shape, request).transpose()).collect()
}

/// The layers that keep one kind of cache; `None` if there are none.
fn of_kind(kind: PartKind, shape: &ModelShape, request: &Request) -> Result<Option<Part>, NoEstimate> {
    let too_large = || NoEstimate::TooLarge { what: kind.name() };
    let (mut layers, mut bytes, mut most) = (0u64, 0u128, 0u128);
    for group in &shape.caches {
        let (of_group, per_token) = per_token(&group.cache, request);
        if of_group != kind || group.layers == 0 {
            continue;
        }
        let held = tokens(&group.cache, request).ok_or_else(too_large)?;
        let elements = per_token.and_then(|each| each.checked_mul(held)).ok_or_else(too_large)?;
        let of_layer = sized(elements, kind, request).ok_or_else(too_large)?;
        let of_all = of_layer.checked_mul(group.layers.into()).ok_or_else(too_large)?;
        bytes = bytes.checked_add(of_all).ok_or_else(too_large)?;
        layers = layers.checked_add(group.layers).ok_or_else(too_large)?;
        most = most.max(held);
    }
    if layers == 0 {
        return Ok(None);
    }
    let basis = if kind == PartKind::State {
        Basis::PerSequence { layers, sequences: request.concurrency }
    } else {
        Basis::PerToken { layers, tokens: most, dtype: stored_as(kind, request).name() }
    };
    Ok(Some(Part { kind, amount: narrow(kind, bytes)?, confidence: confidence(kind, shape, request), basis }))
}

fn confidence(kind: PartKind, shape: &ModelShape, request: &Request) -> Confidence {
    let latent = kind == PartKind::LatentCache && request.runtime != Runtime::Transformers;
    if !shape.known {
        Confidence::Low
    } else if (kind == PartKind::KvCache || latent) && shape.unplaced_window.is_none() {
        Confidence::High
    } else {
        Confidence::Medium
    }
}

/// The kind of a cache, and its elements for one token, or for one sequence of a state; `None` if they overflow.
fn per_token(cache: &Cache, request: &Request) -> (PartKind, Option<u128>) {
    match *cache {
        Cache::Attention { keys, values, window } => {
            let kind = if window.is_some() { PartKind::WindowCache } else { PartKind::KvCache };
            (kind, u128::from(keys).checked_add(values.into()))
        }
        // It stores keys and values after decompression.
        Cache::Latent { expanded, .. } if request.runtime == Runtime::Transformers => {
            (PartKind::LatentCache, Some(expanded.into()))
        }
        Cache::Latent { compressed, .. } => (PartKind::LatentCache, Some(compressed.into())),
        Cache::State { elements } => (PartKind::State, Some(elements.into())),
    }
}

/// Tokens for which one layer keeps room, of all sequences together; sequences for a state.
fn tokens(cache: &Cache, request: &Request) -> Option<u128> {
    let (context, sequences) = (u128::from(request.context), u128::from(request.concurrency));
    // Caches are made of blocks: 16 tokens in vLLM, 256 in llama.cpp.
    let (block, batch) = match request.runtime {
        Runtime::Vllm => (16, VLLM_BATCH),
        Runtime::LlamaCpp | Runtime::Ollama => (256, GGML_BATCH),
        Runtime::Transformers | Runtime::None => (1, 0),
    };
    let whole = context.checked_next_multiple_of(block)?.checked_mul(sequences)?;
    match cache {
        Cache::State { .. } => Some(sequences),
        Cache::Latent { .. } | Cache::Attention { window: None, .. } => Some(whole),
        Cache::Attention { window: Some(window), .. } => {
            // The tokens that are read now are kept in addition to the window.
            let windows = context.min((*window).into()).checked_mul(sequences)?.checked_add(batch.into())?;
            Some(whole.min(windows.checked_next_multiple_of(block)?))
        }
    }
}

/// The type in which a kind of cache is stored.
pub(super) fn stored_as(kind: PartKind, request: &Request) -> KvType {
    let is_ggml = matches!(request.runtime, Runtime::LlamaCpp | Runtime::Ollama);
    if kind == PartKind::WindowCache && is_ggml { KvType::F16 } else { request.kv }
}

/// Bytes of so many elements of a kind of cache; `None` if they overflow.
fn sized(elements: u128, kind: PartKind, request: &Request) -> Option<u128> {
    if kind == PartKind::State {
        return elements.checked_mul(STATE);
    }
    let (numerator, denominator) = stored_as(kind, request).bytes_per_element();
    Some(elements.checked_mul(numerator)?.div_ceil(denominator))
}

/// Bytes that one more token takes in all layers, while it is within every window.
pub(super) fn bytes_per_token(shape: &ModelShape, request: &Request) -> Result<u64, NoEstimate> {
    let too_large = || NoEstimate::TooLarge { what: PartKind::KvCache.name() };
    let mut bytes = 0u128;
    for group in &shape.caches {
        let (kind, elements) = per_token(&group.cache, request);
        if kind != PartKind::State {
            let elements = elements.and_then(|each| each.checked_mul(group.layers.into())).ok_or_else(too_large)?;
            let of_group = sized(elements, kind, request).ok_or_else(too_large)?;
            bytes = bytes.checked_add(of_group).ok_or_else(too_large)?;
        }
    }
    u64::try_from(bytes).map_err(|_| too_large())
}

/// Bytes as an amount, rounded up.
pub(super) fn narrow(kind: PartKind, bytes: u128) -> Result<Vram, NoEstimate> {
    Vram::from_bytes_rounded_up(bytes).ok_or(NoEstimate::TooLarge { what: kind.name() })
}
