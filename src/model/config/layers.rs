//! What each layer of a model keeps, by its configuration. Owns how architectures name layers with windows, states and latent
//! attention.

use serde_json::Value;

use super::{Config, Unreadable};
use crate::capacity::estimate::shape::{Cache, Group};
use crate::capacity::verdict::quoted;
use crate::model::grouped;

/// What a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Attention to the whole context.
    Attention,
    /// Attention to the last tokens, of which there are so many.
    Window(u64),
    /// Linear attention with a gated delta rule.
    Linear,
    /// A state-space model.
    StateSpace,
    /// Attention and a state-space model side by side.
    Both,
    /// A short convolution.
    Convolution,
    /// A feed-forward layer alone.
    FeedForward,
}

/// All layers of a model.
pub(super) struct Layers {
    /// What each layer is, in order.
    pub(super) kinds: Vec<Kind>,
    /// A window of layers that are not known.
    pub(super) unplaced_window: Option<u64>,
}

/// Architectures whose fields mean what this file makes of them.
const KNOWN: [&str; 60] = [
    "bamba",
    "bloom",
    "cohere",
    "cohere2",
    "deepseek_v2",
    "deepseek_v3",
    "exaone4",
    "falcon",
    "falcon_h1",
    "falcon_mamba",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm4",
    "glm4_moe",
    "gpt2",
    "gpt_bigcode",
    "gpt_neox",
    "gpt_oss",
    "granite",
    "granitemoe",
    "granitemoehybrid",
    "internlm2",
    "jamba",
    "kimi_k2",
    "lfm2",
    "lfm2_moe",
    "llama",
    "llama4_text",
    "mamba",
    "mamba2",
    "ministral3",
    "mistral",
    "mixtral",
    "nemotron",
    "nemotron_h",
    "olmo",
    "olmo2",
    "olmo3",
    "olmoe",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen2_5_vl",
    "qwen2_5_vl_text",
    "qwen2_moe",
    "qwen2_vl",
    "qwen3",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_vl_moe_text",
    "qwen3_vl_text",
    "seed_oss",
    "smollm3",
    "stablelm",
    "starcoder2",
    "phimoe",
];

/// Fields of states that other architectures have. What they keep cannot be counted as attention.
const OTHER_STATES: [&str; 6] = ["rwkv", "ssm", "mamba", "recurrent", "retention", "linear_attn"];

/// Whether the caches of an architecture are known.
pub(super) fn is_known(architecture: &str) -> bool {
    KNOWN.contains(&architecture)
}

/// What each layer is.
pub(super) fn layers(config: &Config) -> Result<Layers, Unreadable> {
    let count = config.layers()?;
    let all = |kind: Kind| Layers { kinds: (0..count).map(|_| kind).collect(), unplaced_window: None };
    let each = |kind: &dyn Fn(u64) -> Kind| Layers { kinds: (0..count).map(kind).collect(), unplaced_window: None };
    if let Some(kinds) = pattern(config, count)? {
        return Ok(Layers { kinds, unplaced_window: None });
    }
    for field in ["layer_types", "layers_block_type"] {
        if let Some(kinds) = listed(config, field, count)? {
            return Ok(Layers { kinds, unplaced_window: None });
        }
    }
    let architecture = config.architecture();
    match architecture.as_str() {
        "falcon_h1" => return Ok(all(Kind::Both)),
        "mamba" | "mamba2" | "falcon_mamba" => return Ok(all(Kind::StateSpace)),
        "jamba" => {
            let (period, offset) = (config.required(&["attn_layer_period"])?, config.required(&["attn_layer_offset"])?);
            let is_attention = |layer: u64| layer.checked_rem(period) == Some(offset);
            return Ok(each(&|layer| if is_attention(layer) { Kind::Attention } else { Kind::StateSpace }));
        }
        "bamba" => {
            let indices = config.numbers("attn_layer_indices")?.unwrap_or_default();
            return Ok(each(&|layer| if indices.contains(&layer) { Kind::Attention } else { Kind::StateSpace }));
        }
        "qwen3_next" | "qwen3_5_text" | "qwen3_5_moe_text" => {
            let interval = period(config, &["full_attention_interval"])?.unwrap_or(4);
            let is_attention = |layer: u64| (layer + 1).checked_rem(interval) == Some(0);
            return Ok(each(&|layer| if is_attention(layer) { Kind::Attention } else { Kind::Linear }));
        }
        _ => {}
    }
    if !is_known(&architecture) {
        refuse_states(config)?;
    }
    windows(config, count)
}

/// An architecture that is not known may keep a state, which is no attention.
fn refuse_states(config: &Config) -> Result<(), Unreadable> {
    let is_state = |name: &&String| OTHER_STATES.iter().any(|part| name.contains(part));
    match config.fields().keys().find(is_state) {
        None => Ok(()),
        Some(name) => {
            let what = format!("architecture {} keeps a state that is not known", quoted(&config.architecture()));
            Err(config.error(name, format!("{what}; a GGUF file of the model may say more")))
        }
    }
}

/// The pattern of Nemotron-H: one letter for each layer.
fn pattern(config: &Config, count: u64) -> Result<Option<Vec<Kind>>, Unreadable> {
    const FIELD: &str = "hybrid_override_pattern";
    let Some(pattern) = config.field(FIELD) else { return Ok(None) };
    let letters = pattern.as_str().unwrap_or_default();
    if letters.chars().count() as u64 != count {
        return Err(config.error(FIELD, format!("is no text of {count} letters, one for each layer")));
    }
    let kinds: Option<Vec<Kind>> = letters
        .chars()
        .map(|letter| match letter {
            'M' => Some(Kind::StateSpace),
            '*' => Some(Kind::Attention),
            '-' | 'E' => Some(Kind::FeedForward),
            _ => None,
        })
        .collect();
    let what = format!("is {}; the letters M, *, - and E were expected", quoted(letters));
    kinds.map(Some).ok_or_else(|| config.error(FIELD, what))
}

/// A list with the name of each layer's kind.
fn listed(config: &Config, field: &str, count: u64) -> Result<Option<Vec<Kind>>, Unreadable> {
    let Some(list) = config.field(field) else { return Ok(None) };
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    if list.len() as u64 != count {
        return Err(config.error(field, format!("is no list of {count} names, one for each layer")));
    }
    let kind = |name: &Value| -> Result<Kind, Unreadable> {
        Ok(match name.as_str().unwrap_or_default() {
            "full_attention" | "attention" => Kind::Attention,
            "sliding_attention" => Kind::Window(config.required(&["sliding_window"])?),
            "chunked_attention" => Kind::Window(config.required(&["attention_chunk_size"])?),
            "linear_attention" => Kind::Linear,
            "mamba" | "mamba2" => Kind::StateSpace,
            "conv" => Kind::Convolution,
            "mlp" | "moe" => Kind::FeedForward,
            _ => {
                let name = quoted(&name.to_string());
                let what = format!("has {name}, which is no kind of layer that is known; a newer release may know it");
                return Err(config.error(field, what));
            }
        })
    };
    list.iter().map(kind).collect::<Result<Vec<Kind>, _>>().map(Some)
}

/// Every how many layers something is. Zero says of no layer what it is.
fn period(config: &Config, names: &[&str]) -> Result<Option<u64>, Unreadable> {
    let period = config.number(names)?;
    if period == Some(0) {
        let name = names.iter().find(|name| config.field(name).is_some()).copied().unwrap_or_default();
        return Err(config.error(name, "is 0; a number of layers from 1 was expected"));
    }
    Ok(period)
}

/// Attention in each layer, some with a window.
fn windows(config: &Config, count: u64) -> Result<Layers, Unreadable> {
    const PATTERN: [&str; 2] = ["sliding_window_pattern", "_sliding_window_pattern"];
    let architecture = config.architecture();
    // transformers has no window in Qwen's models unless this says so, and one in others unless this says otherwise.
    let is_on = config.flag("use_sliding_window")?.unwrap_or(!architecture.starts_with("qwen"));
    let window = config.number(&["sliding_window", "attention_chunk_size"])?.filter(|window| *window > 0 && is_on);
    let all = || vec![Kind::Attention; usize::try_from(count).unwrap_or(0)];
    let Some(window) = window else { return Ok(Layers { kinds: all(), unplaced_window: None }) };
    let period = match architecture.as_str() {
        "gemma2" | "gpt_oss" => Some(2),
        "gemma3_text" => Some(period(config, &PATTERN)?.unwrap_or(6)),
        _ => period(config, &PATTERN)?,
    };
    let first = match architecture.as_str() {
        "qwen2" | "qwen2_moe" | "qwen3" | "qwen3_moe" => Some(config.number_or(&["max_window_layers"], 0)?),
        "mistral" | "mixtral" | "phi3" | "starcoder2" | "phimoe" => Some(0),
        _ => None,
    };
    let has_window = |layer: u64| match (period, first) {
        // The last layer of each period attends to everything.
        (Some(period), _) => (layer + 1).checked_rem(period) != Some(0),
        (None, Some(first)) => layer >= first,
        (None, None) => false,
    };
    let kind = |layer: u64| if has_window(layer) { Kind::Window(window) } else { Kind::Attention };
    let is_placed = period.is_some() || first.is_some();
    Ok(Layers { kinds: (0..count).map(kind).collect(), unplaced_window: (!is_placed).then_some(window) })
}

/// What the layers keep.
pub(super) fn caches(config: &Config, kinds: &[Kind]) -> Result<Vec<Group>, Unreadable> {
    let mut found = Vec::new();
    for kind in kinds {
        match kind {
            Kind::Attention => found.push(attention(config, None)?),
            Kind::Window(window) => found.push(attention(config, Some(*window))?),
            Kind::Linear => found.push(linear(config)?),
            Kind::StateSpace => found.push(state_space(config)?),
            Kind::Both => found.extend([attention(config, None)?, state_space(config)?]),
            Kind::Convolution => {
                let kept = config.required(&["conv_L_cache"])?.saturating_sub(1);
                found.push(Cache::State { elements: product(config, "conv_L_cache", &[config.hidden()?, kept])? });
            }
            Kind::FeedForward => {}
        }
    }
    if found.is_empty() {
        return Err(Unreadable::new("the configuration", "no layer keeps anything for a context"));
    }
    Ok(grouped(found))
}

fn attention(config: &Config, window: Option<u64>) -> Result<Cache, Unreadable> {
    if let Some(rank) = config.number(&["kv_lora_rank"])?.filter(|rank| *rank > 0) {
        let rotary = config.required(&["qk_rope_head_dim"])?;
        let of_head = config.required(&["qk_nope_head_dim"])? + rotary + config.required(&["v_head_dim"])?;
        let expanded = product(config, "v_head_dim", &[config.heads()?, of_head])?;
        return Ok(Cache::Latent { compressed: rank + rotary, expanded });
    }
    let elements = product(config, "num_key_value_heads", &[config.kv_heads()?, config.head_length()?])?;
    Ok(Cache::Attention { keys: elements, values: elements, window })
}

/// Sizes of linear attention with a gated delta rule, as Qwen3-Next has it.
pub(super) struct Linear {
    pub(super) key_width: u64,
    pub(super) value_width: u64,
    pub(super) value_heads: u64,
    pub(super) key_length: u64,
    pub(super) kernel: u64,
}

impl Linear {
    pub(super) fn of(config: &Config) -> Result<Linear, Unreadable> {
        let number = |name: &str| config.required(&[name]);
        let (key_heads, key_length) = (number("linear_num_key_heads")?, number("linear_key_head_dim")?);
        let value_heads = number("linear_num_value_heads")?;
        Ok(Linear {
            key_width: product(config, "linear_num_key_heads", &[key_heads, key_length])?,
            value_width: product(config, "linear_num_value_heads", &[value_heads, number("linear_value_head_dim")?])?,
            value_heads,
            key_length,
            kernel: number("linear_conv_kernel_dim")?,
        })
    }
}

fn linear(config: &Config) -> Result<Cache, Unreadable> {
    let linear = Linear::of(config)?;
    // The last inputs of the convolution over queries, keys and values, and a matrix for each head.
    let convolved = linear.key_width.saturating_mul(2).saturating_add(linear.value_width);
    let kept = product(config, "linear_conv_kernel_dim", &[convolved, linear.kernel.saturating_sub(1)])?;
    let state = product(config, "linear_key_head_dim", &[linear.value_width, linear.key_length])?;
    sum(config, "linear_key_head_dim", kept, state)
}

/// Sizes of a state-space model.
pub(super) struct StateSpace {
    pub(super) inner: u64,
    pub(super) state: u64,
    pub(super) kernel: u64,
    /// Groups and heads of Mamba 2; `None` for the first Mamba.
    pub(super) second: Option<(u64, u64)>,
}

impl StateSpace {
    pub(super) fn of(config: &Config) -> Result<StateSpace, Unreadable> {
        let state = config.required(&["mamba_d_state", "ssm_state_size", "state_size"])?;
        let kernel = config.required(&["mamba_d_conv", "conv_kernel"])?;
        let expanded = |config: &Config| -> Result<u64, Unreadable> {
            let expand = config.number_or(&["mamba_expand", "expand"], 2)?;
            product(config, "mamba_expand", &[expand, config.hidden()?])
        };
        if matches!(config.architecture().as_str(), "jamba" | "mamba" | "falcon_mamba") {
            return Ok(StateSpace { inner: expanded(config)?, state, kernel, second: None });
        }
        let heads = config.required(&["mamba_n_heads", "mamba_num_heads", "num_heads"])?;
        let groups = config.required(&["mamba_n_groups", "n_groups"])?;
        // Granite and Bamba write "auto".
        let is_auto = config.field("mamba_d_head").is_some_and(|length| length.as_str() == Some("auto"));
        let names = ["mamba_d_head", "mamba_head_dim", "head_dim"];
        let inner = if is_auto {
            expanded(config)?
        } else {
            product(config, "mamba_d_head", &[heads, config.required(&names)?])?
        };
        Ok(StateSpace { inner, state, kernel, second: Some((groups, heads)) })
    }

    /// Channels of the convolution.
    pub(super) fn convolved(&self) -> u64 {
        let groups = self.second.map_or(0, |(groups, _)| groups);
        groups.saturating_mul(self.state).saturating_mul(2).saturating_add(self.inner)
    }
}

fn state_space(config: &Config) -> Result<Cache, Unreadable> {
    let sizes = StateSpace::of(config)?;
    let kept = product(config, "mamba_d_conv", &[sizes.convolved(), sizes.kernel.saturating_sub(1)])?;
    let state = product(config, "mamba_d_state", &[sizes.inner, sizes.state])?;
    sum(config, "mamba_d_state", kept, state)
}

fn sum(config: &Config, field: &str, kept: u64, state: u64) -> Result<Cache, Unreadable> {
    let elements = kept.checked_add(state).ok_or_else(|| config.error(field, "is too large; check the file"))?;
    Ok(Cache::State { elements })
}

/// A product of numbers of a configuration.
pub(super) fn product(config: &Config, field: &str, factors: &[u64]) -> Result<u64, Unreadable> {
    let product = factors.iter().try_fold(1u64, |product, factor| product.checked_mul(*factor));
    product.ok_or_else(|| config.error(field, "is too large; check the file"))
}
