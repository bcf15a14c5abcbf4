//! How many weights a configuration implies. Owns the matrices of each kind of layer; biases are left out, since they are less
//! than a thousandth.

use super::layers::{Kind, Linear, StateSpace, product};
use super::{Config, Unreadable};
use crate::capacity::estimate::shape::Parameters;
use crate::capacity::verdict::quoted;

/// Architectures whose matrices are these: queries, keys, values and output; a gated feed-forward layer; experts.
const KNOWN: [&str; 32] = [
    "bamba",
    "cohere",
    "cohere2",
    "deepseek_v2",
    "deepseek_v3",
    "exaone4",
    "falcon_h1",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm4",
    "glm4_moe",
    "gpt_oss",
    "granite",
    "granitemoe",
    "granitemoehybrid",
    "jamba",
    "kimi_k2",
    "llama",
    "mistral",
    "mixtral",
    "nemotron_h",
    "olmo2",
    "olmo3",
    "olmoe",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "qwen3_next",
    "smollm3",
];

/// The weights of all layers, the embedding and the head.
pub(super) fn parameters(config: &Config, kinds: &[Kind]) -> Result<Parameters, Unreadable> {
    let architecture = config.architecture();
    if !KNOWN.contains(&architecture.as_str()) {
        let what = format!(
            "the number of weights of architecture {} is not known; give the safetensors or GGUF files of the model",
            quoted(&architecture)
        );
        return Err(Unreadable::field("model_type", what));
    }
    let hidden = config.hidden()?;
    let vocabulary = config.vocabulary()?.ok_or_else(|| config.error("vocab_size", "is missing"))?;
    let embedding = u128::from(product(config, "vocab_size", &[vocabulary, hidden])?);
    let mut sum = Parameters {
        embedding,
        head: (!config.is_tied()?).then_some(embedding),
        // The norm after the last layer.
        other: hidden.into(),
        ..Parameters::default()
    };
    for (layer, kind) in (0u64..).zip(kinds) {
        let (matrices, other) = of_layer(config, layer, *kind)?;
        sum.matrices = sum.matrices.saturating_add(matrices);
        sum.other = sum.other.saturating_add(other).saturating_add(2 * u128::from(hidden));
    }
    Ok(sum)
}

/// Elements of matrices and of everything else in one layer.
fn of_layer(config: &Config, layer: u64, kind: Kind) -> Result<(u128, u128), Unreadable> {
    // Each layer of Nemotron-H is one of the two.
    let is_single = config.architecture() == "nemotron_h";
    let mixer = match kind {
        Kind::Attention | Kind::Window(_) => (attention(config)?, 0),
        Kind::Linear => linear(config)?,
        Kind::StateSpace => state_space(config)?,
        Kind::Both => {
            let (matrices, other) = state_space(config)?;
            (matrices.saturating_add(attention(config)?), other)
        }
        Kind::Convolution | Kind::FeedForward => (0, 0),
    };
    if is_single && kind != Kind::FeedForward {
        return Ok(mixer);
    }
    let (matrices, other) = feed_forward_of(config, layer)?;
    Ok((mixer.0.saturating_add(matrices), mixer.1.saturating_add(other)))
}

/// A product of two numbers, each of which is at most a few products of two numbers of a configuration.
fn times(factors: [u64; 2]) -> u128 {
    u128::from(factors[0]) * u128::from(factors[1])
}

fn attention(config: &Config) -> Result<u128, Unreadable> {
    let (hidden, heads) = (config.hidden()?, config.heads()?);
    if let Some(rank) = config.number(&["kv_lora_rank"])?.filter(|rank| *rank > 0) {
        return latent(config, hidden, heads, rank);
    }
    let length = config.head_length()?;
    let queries = product(config, "num_attention_heads", &[heads, length])?;
    let keys = product(config, "num_key_value_heads", &[config.kv_heads()?, length])?;
    // Qwen3-Next has a gate for each query.
    let gated = if config.architecture() == "qwen3_next" { 3 } else { 2 };
    Ok(times([hidden, queries]) * gated + times([hidden, keys]) * 2)
}

fn latent(config: &Config, hidden: u64, heads: u64, rank: u64) -> Result<u128, Unreadable> {
    let (rotary, plain) = (config.required(&["qk_rope_head_dim"])?, config.required(&["qk_nope_head_dim"])?);
    let value = config.required(&["v_head_dim"])?;
    let queries = product(config, "qk_nope_head_dim", &[heads, plain + rotary])?;
    let queries = match config.number(&["q_lora_rank"])?.filter(|rank| *rank > 0) {
        Some(of_queries) => times([hidden, of_queries]) + times([of_queries, queries]),
        None => times([hidden, queries]),
    };
    let values = product(config, "v_head_dim", &[heads, value])?;
    let decompressed = product(config, "kv_lora_rank", &[heads, plain + value])?;
    Ok(queries + times([hidden, rank + rotary]) + times([rank, decompressed]) + times([values, hidden]))
}

fn linear(config: &Config) -> Result<(u128, u128), Unreadable> {
    let (hidden, linear) = (config.hidden()?, Linear::of(config)?);
    let convolved = 2 * linear.key_width + linear.value_width;
    // Queries, keys, values and a gate; two numbers for each head; the output.
    let matrices = times([hidden, convolved + linear.value_width])
        + times([hidden, 2 * linear.value_heads])
        + times([linear.value_width, hidden]);
    Ok((matrices, times([convolved, linear.kernel])))
}

fn state_space(config: &Config) -> Result<(u128, u128), Unreadable> {
    let (hidden, sizes) = (config.hidden()?, StateSpace::of(config)?);
    let (inner, convolved) = (sizes.inner, sizes.convolved());
    let output = times([inner, hidden]);
    let convolution = times([convolved, sizes.kernel.saturating_add(1)]);
    if let Some((_, heads)) = sizes.second {
        let input = times([hidden, inner.saturating_add(convolved).saturating_add(heads)]);
        return Ok((input + output, convolution + 3 * u128::from(heads) + u128::from(inner)));
    }
    let default = hidden.div_ceil(16);
    let rank = config.number_or(&["mamba_dt_rank", "time_step_rank"], default)?;
    let selected = times([inner, rank.saturating_add(2 * sizes.state)]) + times([rank, inner]);
    let states = times([inner, sizes.state.saturating_add(2)]);
    Ok((times([hidden, 2 * inner]) + output + selected, convolution + states))
}

/// The number of experts; 0 for a dense model.
fn experts(config: &Config) -> Result<u64, Unreadable> {
    config.number_or(&["num_experts", "num_local_experts", "n_routed_experts"], 0)
}

/// Whether a layer has experts.
fn has_experts(config: &Config, layer: u64) -> Result<bool, Unreadable> {
    if experts(config)? <= 1 {
        return Ok(false);
    }
    Ok(match config.architecture().as_str() {
        "deepseek_v2" | "deepseek_v3" | "kimi_k2" | "glm4_moe" => {
            let first = config.number_or(&["first_k_dense_replace"], 0)?;
            layer >= first && layer.checked_rem(config.number_or(&["moe_layer_freq"], 1)?) == Some(0)
        }
        "qwen2_moe" | "qwen3_moe" | "qwen3_next" => {
            let step = config.number_or(&["decoder_sparse_step"], 1)?;
            let dense = config.numbers("mlp_only_layers")?.unwrap_or_default();
            (layer + 1).checked_rem(step) == Some(0) && !dense.contains(&layer)
        }
        "jamba" => {
            let (period, offset) =
                (config.required(&["expert_layer_period"])?, config.required(&["expert_layer_offset"])?);
            layer.checked_rem(period) == Some(offset)
        }
        _ => true,
    })
}

/// Width of one expert, and of all shared experts together.
fn expert_widths(config: &Config) -> Result<(u64, u64), Unreadable> {
    let width = config.required(&["moe_intermediate_size", "intermediate_size"])?;
    let number = config.number_or(&["n_shared_experts"], 0)?;
    let shared = match config.number(&["shared_expert_intermediate_size", "shared_intermediate_size"])? {
        Some(shared) => shared,
        None => product(config, "n_shared_experts", &[number, width])?,
    };
    Ok((width, shared))
}

fn feed_forward_of(config: &Config, layer: u64) -> Result<(u128, u128), Unreadable> {
    let hidden = config.hidden()?;
    // The feed-forward layers of Nemotron-H have no gate.
    let matrices = if config.architecture() == "nemotron_h" { 2 } else { 3 };
    if !has_experts(config, layer)? {
        return Ok((times([hidden, dense(config)?]) * matrices, 0));
    }
    let (width, shared) = expert_widths(config)?;
    let all = product(config, "num_experts", &[experts(config)?, width])?;
    let router = times([hidden, experts(config)?]);
    Ok(((times([hidden, all]) + times([hidden, shared])) * matrices, router))
}

/// Width of a layer without experts.
fn dense(config: &Config) -> Result<u64, Unreadable> {
    // A hybrid Granite without experts has its only feed-forward layer under this name.
    let shared =
        if config.architecture() == "granitemoehybrid" { config.number(&["shared_intermediate_size"])? } else { None };
    match shared {
        Some(width) => Ok(width),
        None => config.required(&["intermediate_size", "n_inner", "ffn_hidden_size"]),
    }
}

/// The widest feed-forward layer that one token goes through; `None` if the configuration does not say it.
pub(super) fn feed_forward(config: &Config) -> Result<Option<u64>, Unreadable> {
    let dense = config.number(&["intermediate_size", "n_inner", "ffn_hidden_size"])?;
    if experts(config)? <= 1 {
        return Ok(dense.max(config.number(&["shared_intermediate_size"])?));
    }
    let (width, shared) = expert_widths(config)?;
    let used = config.number_or(&["num_experts_per_tok", "num_experts_per_token", "experts_per_token"], 1)?;
    let routed = product(config, "num_experts_per_tok", &[used, width])?;
    Ok(dense.max(Some(routed.saturating_add(shared))))
}
