//! From the keys of GGUF files to the shape of a model. Owns what each architecture's keys mean, and what llama.cpp knows of
//! an architecture that its files do not say.

use super::{Header, Unreadable};
use crate::capacity::estimate::shape::{Cache, Group, ModelShape, Stored, Weights};
use crate::capacity::verdict::quoted;
use crate::model::{MAX_LAYERS, Tensors, grouped};

/// Architectures for which the keys mean what this file makes of them.
const KNOWN: [&str; 61] = [
    "arcee",
    "bailingmoe",
    "bailingmoe2",
    "chatglm",
    "cohere2",
    "command-r",
    "deepseek",
    "deepseek2",
    "dots1",
    "ernie4_5",
    "ernie4_5-moe",
    "exaone",
    "exaone4",
    "falcon",
    "falcon-h1",
    "gemma",
    "gemma2",
    "gemma3",
    "glm4",
    "glm4moe",
    "gpt-oss",
    "gpt2",
    "gptneox",
    "granite",
    "granitehybrid",
    "granitemoe",
    "hunyuan-dense",
    "hunyuan-moe",
    "internlm2",
    "jamba",
    "lfm2",
    "lfm2moe",
    "llama",
    "llama4",
    "mamba",
    "mamba2",
    "minicpm",
    "mistral3",
    "nemotron",
    "nemotron_h",
    "nemotron_h_moe",
    "olmo",
    "olmo2",
    "olmoe",
    "phi2",
    "phi3",
    "phimoe",
    "qwen2",
    "qwen2moe",
    "qwen2vl",
    "qwen3",
    "qwen35",
    "qwen35moe",
    "qwen3moe",
    "qwen3next",
    "qwen3vl",
    "qwen3vlmoe",
    "seed_oss",
    "smollm3",
    "stablelm",
    "starcoder2",
];

/// Architectures of which every `n`th layer attends to the whole context and the others to a window, as llama.cpp has it.
const WINDOWS: [(&str, u64); 7] =
    [("cohere2", 4), ("exaone4", 4), ("gemma2", 2), ("gemma3", 6), ("gpt-oss", 2), ("llama4", 4), ("olmo2", 4)];

/// Architectures of which every `n`th layer is attention and the others linear attention, unless a key says otherwise.
const STRIDES: [(&str, u64); 3] = [("qwen3next", 4), ("qwen35", 4), ("qwen35moe", 4)];

/// Parts of keys of states. What they keep cannot be counted as attention.
const STATES: [&str; 4] = [".ssm.", ".wkv.", ".kda.", "recurrent"];

/// The window of Llama 4, which its files need not say.
const LLAMA4_WINDOW: u64 = 8_192;

/// The keys of one architecture.
struct Keys<'h> {
    header: &'h Header,
    architecture: &'h str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn number(&self, name: &str) -> Result<Option<u64>, Unreadable> {
        self.header.number(&self.key(name))
    }

    fn required(&self, name: &str) -> Result<u64, Unreadable> {
        self.number(name)?.ok_or_else(|| {
            let why = format!("is missing; architecture {} is not known without it", quoted(self.architecture));
            Unreadable::field(&self.key(name), why)
        })
    }

    fn each(&self, name: &str, layers: u64) -> Result<Option<Vec<u64>>, Unreadable> {
        self.header.numbers(&self.key(name), layers)
    }

    fn product(&self, name: &str, factors: [u64; 2]) -> Result<u64, Unreadable> {
        let product = factors[0].checked_mul(factors[1]);
        product.ok_or_else(|| Unreadable::field(&self.key(name), "is too large; check the file"))
    }

    fn default_of(&self, table: &[(&str, u64)]) -> Option<u64> {
        table.iter().find(|(name, _)| *name == self.architecture).map(|(_, number)| *number)
    }
}

/// The shape of a model of one file, or of all files that it was split into, in their order.
///
/// # Errors
/// A file of the split is missing or of another model, or a key that is needed is missing or cannot be read.
pub fn shape(files: &[Header]) -> Result<ModelShape, Unreadable> {
    let Some(first) = files.first() else { return Err(Unreadable::new("the model", "has no file")) };
    let tensors = joined(files)?;
    let Some(architecture) = first.text("general.architecture") else {
        return Err(Unreadable::field("general.architecture", "is missing; the name of an architecture was expected"));
    };
    let keys = Keys { header: first, architecture };
    if keys.number("attention.causal")? == Some(0) {
        let what = "is false: the model is an encoder, which keeps nothing for a context";
        return Err(Unreadable::field(&keys.key("attention.causal"), what));
    }
    let layers = keys.required("block_count")?;
    if layers == 0 || layers > MAX_LAYERS {
        let what = format!("is {layers}; 1 to {MAX_LAYERS} was expected");
        return Err(Unreadable::field(&keys.key("block_count"), what));
    }
    let (caches, unplaced_window) = caches(&keys, files, layers)?;
    let vocabulary = files.iter().find_map(|file| file.vocabulary);
    Ok(ModelShape {
        architecture: architecture.to_owned(),
        known: KNOWN.contains(&architecture),
        weights: Weights::Stored(Stored {
            bytes: tensors.bytes(),
            embedding: tensors.embedding.bytes,
            head: tensors.head.bytes,
            tied: false,
            fp8: false,
            gguf: true,
            parameters: Some(tensors.parameters(tensors.head.elements == 0)),
        }),
        caches,
        unplaced_window,
        hidden: keys.number("embedding_length")?,
        feed_forward: feed_forward(&keys, layers)?,
        vocabulary: vocabulary.or(keys.number("vocab_size")?),
        longest: keys.number("context_length")?,
        other_inputs: false,
    })
}

/// The tensors of all files.
fn joined(files: &[Header]) -> Result<Tensors, Unreadable> {
    let tensors = files.iter().fold(Tensors::default(), |sum, file| sum.plus(file.tensors));
    for (place, file) in (0u64..).zip(files) {
        let (count, number) = (file.files()?, file.number("split.no")?.unwrap_or(0));
        if count != files.len() as u64 || number != place {
            let (number, place) = (number.saturating_add(1), place + 1);
            let what = format!("the file is part {number} of {count}; part {place} of {} was expected", files.len());
            return Err(Unreadable::field("split.no", what));
        }
    }
    let said = files.first().map_or(Ok(None), |file| file.number("split.tensors.count"))?;
    match said.filter(|said| *said != tensors.count) {
        Some(said) => {
            let what = format!("is {said}, but the files have {} tensors; download them again", tensors.count);
            Err(Unreadable::field("split.tensors.count", what))
        }
        None => Ok(tensors),
    }
}

/// The widest feed-forward layer that one token goes through.
fn feed_forward(keys: &Keys<'_>, layers: u64) -> Result<Option<u64>, Unreadable> {
    let dense = keys.each("feed_forward_length", layers)?.and_then(|widths| widths.into_iter().max());
    let Some(expert) = keys.number("expert_feed_forward_length")? else { return Ok(dense) };
    let used = keys.number("expert_used_count")?.unwrap_or(1);
    let shared = match keys.number("expert_shared_feed_forward_length")? {
        Some(width) => width,
        None => keys.product("expert_shared_count", [keys.number("expert_shared_count")?.unwrap_or(0), expert])?,
    };
    let experts = keys.product("expert_used_count", [used, expert])?.saturating_add(shared);
    Ok(Some(dense.unwrap_or(0).max(experts)))
}

/// What a layer is, apart from a state.
struct Attention {
    kv_heads: Vec<u64>,
    keys: u64,
    values: u64,
    /// Length of keys and values in layers with a window.
    windowed: (u64, u64),
    window: Option<u64>,
    /// Whether each layer has the window; `None` if that is not known.
    has_window: Option<Vec<bool>>,
    /// Every how many layers attention is; `None` if all layers with KV heads are.
    stride: Option<u64>,
}

fn caches(keys: &Keys<'_>, files: &[Header], layers: u64) -> Result<(Vec<Group>, Option<u64>), Unreadable> {
    let has_state = |layer: u64| files.iter().any(|file| file.state_layers.contains(&layer));
    let has_convolution = |layer: u64| files.iter().any(|file| file.convolution_layers.contains(&layer));
    let attention = attention(keys, layers, (0..layers).all(has_state))?;
    let mut found: Vec<Cache> = Vec::new();
    for (layer, kv_heads) in (0..layers).zip(&attention.kv_heads) {
        if has_state(layer) {
            found.push(Cache::State { elements: state(keys)? });
        }
        if has_convolution(layer) {
            found.push(Cache::State { elements: convolution(keys)? });
        }
        let is_linear = has_state(layer) && attention.stride.is_some_and(|stride| (layer + 1) % stride != 0);
        if *kv_heads > 0 && !is_linear {
            found.push(of_layer(keys, &attention, layer, *kv_heads)?);
        }
    }
    // A state in tensors of other names.
    let is_known = KNOWN.contains(&keys.architecture);
    let is_state = |key: &&String| STATES.iter().any(|part| key.contains(part));
    if let Some(key) = keys.header.keys.keys().find(is_state).filter(|_| !is_known && !(0..layers).any(has_state)) {
        let what = format!("architecture {} keeps a state that is not known", quoted(keys.architecture));
        return Err(Unreadable::field(key, what));
    }
    if found.is_empty() {
        let what = format!("no layer of architecture {} keeps anything that is known", quoted(keys.architecture));
        return Err(Unreadable::new("the model", what));
    }
    let unplaced = attention.window.filter(|_| attention.has_window.is_none());
    Ok((grouped(found), unplaced))
}

fn attention(keys: &Keys<'_>, layers: u64, all_states: bool) -> Result<Attention, Unreadable> {
    // A model of states alone may have no heads.
    let heads = keys.each("attention.head_count", layers)?;
    let heads = match heads {
        Some(heads) => heads,
        None if all_states => vec![0; usize::try_from(layers).unwrap_or(0)],
        None => vec![keys.required("attention.head_count")?],
    };
    let kv_heads = keys.each("attention.head_count_kv", layers)?.unwrap_or_else(|| heads.clone());
    let most_heads = heads.iter().copied().max().unwrap_or(0);
    let default = match keys.number("embedding_length")? {
        Some(hidden) => hidden.checked_div(most_heads),
        None => None,
    };
    let length = |name: &str| -> Result<u64, Unreadable> {
        let given = keys.number(name)?.or(default);
        match given {
            Some(length) => Ok(length),
            None if most_heads == 0 => Ok(0),
            None => keys.required(name),
        }
    };
    let (of_keys, of_values) = (length("attention.key_length")?, length("attention.value_length")?);
    let windowed = (
        keys.number("attention.key_length_swa")?.unwrap_or(of_keys),
        keys.number("attention.value_length_swa")?.unwrap_or(of_values),
    );
    let window = keys.number("attention.sliding_window")?.filter(|window| *window > 0);
    let window = window.or((keys.architecture == "llama4").then_some(LLAMA4_WINDOW));
    let stride = keys.number("full_attention_interval")?.or(keys.default_of(&STRIDES)).filter(|stride| *stride > 0);
    let has_window = if window.is_some() { windows(keys, layers)? } else { None };
    Ok(Attention { kv_heads, keys: of_keys, values: of_values, windowed, window, has_window, stride })
}

/// Whether each layer has the window; `None` if that is not known.
fn windows(keys: &Keys<'_>, layers: u64) -> Result<Option<Vec<bool>>, Unreadable> {
    let name = "attention.sliding_window_pattern";
    let is_array = matches!(keys.header.keys.get(&keys.key(name)), Some(super::Value::Integers(_)));
    if is_array {
        return Ok(keys.each(name, layers)?.map(|each| each.into_iter().map(|flag| flag != 0).collect()));
    }
    // A number without the architecture's own order of layers does not say which are whole.
    let Some(default) = keys.default_of(&WINDOWS) else { return Ok(None) };
    let period = keys.number(name)?.unwrap_or(default);
    if period == 0 {
        return Err(Unreadable::field(&keys.key(name), "is 0; a number of layers from 1 was expected"));
    }
    Ok(Some((0..layers).map(|layer| layer % period < period - 1).collect()))
}

fn of_layer(keys: &Keys<'_>, attention: &Attention, layer: u64, kv_heads: u64) -> Result<Cache, Unreadable> {
    if let Some(latent) = latent(keys, attention)? {
        return Ok(latent);
    }
    let index = usize::try_from(layer).unwrap_or(usize::MAX);
    let has_window = attention.has_window.as_ref().and_then(|each| each.get(index)).copied().unwrap_or(false);
    let (of_key, of_value) = if has_window { attention.windowed } else { (attention.keys, attention.values) };
    Ok(Cache::Attention {
        keys: keys.product("attention.key_length", [kv_heads, of_key])?,
        values: keys.product("attention.value_length", [kv_heads, of_value])?,
        window: attention.window.filter(|_| has_window),
    })
}

/// Multi-head latent attention. Files from before llama.cpp had it lack these keys, and it runs them as plain attention.
fn latent(keys: &Keys<'_>, attention: &Attention) -> Result<Option<Cache>, Unreadable> {
    let (key, value) = (keys.number("attention.key_length_mla")?, keys.number("attention.value_length_mla")?);
    let (Some(key), Some(value)) = (key, value) else { return Ok(None) };
    let heads = keys.each("attention.head_count", 1)?.and_then(|heads| heads.first().copied()).unwrap_or(0);
    let of_head = key.checked_add(value);
    let of_head = of_head.ok_or_else(|| Unreadable::field(&keys.key("attention.key_length_mla"), "is too large"))?;
    let expanded = keys.product("attention.key_length_mla", [heads, of_head])?;
    // The length of keys is the rank and the rotary part together.
    Ok(Some(Cache::Latent { compressed: attention.keys, expanded }))
}

/// Elements of the state of a layer: the last inputs of its convolution, and the state itself.
fn state(keys: &Keys<'_>) -> Result<u64, Unreadable> {
    let [kernel, inner, size] = ["ssm.conv_kernel", "ssm.inner_size", "ssm.state_size"].map(|name| keys.required(name));
    let (kernel, inner, size) = (kernel?, inner?, size?);
    let groups = keys.number("ssm.group_count")?.unwrap_or(0);
    let convolved = groups.checked_mul(size).and_then(|each| each.checked_mul(2)?.checked_add(inner));
    let kept = convolved.and_then(|width| width.checked_mul(kernel.saturating_sub(1)));
    let elements = kept.zip(inner.checked_mul(size)).and_then(|(kept, state)| kept.checked_add(state));
    elements.ok_or_else(|| Unreadable::field(&keys.key("ssm.inner_size"), "is too large; check the file"))
}

/// Elements of a short convolution: its last inputs.
fn convolution(keys: &Keys<'_>) -> Result<u64, Unreadable> {
    let kernel = keys.required("shortconv.l_cache")?;
    keys.product("shortconv.l_cache", [keys.required("embedding_length")?, kernel.saturating_sub(1)])
}
