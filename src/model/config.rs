//! `config.json` of transformers. Owns its fields and the names that models give them; `layers` says what each layer
//! keeps, and `parameters` how many weights the configuration implies.

use serde_json::{Map, Value};

use super::{MAX_LAYERS, Unreadable};
use crate::capacity::estimate::WeightsDtype;
use crate::capacity::estimate::shape::{ModelShape, Stored, Weights};
use crate::capacity::verdict::quoted;

mod layers;
mod parameters;

/// Bytes of the largest `config.json` that is read. Real ones have a few KiB.
pub const MAX_CONFIG: u64 = 4 << 20;

/// The largest number in a configuration. No width or window of a model comes near it, and products of three fit 128 bits.
const MAX_NUMBER: u64 = 1 << 28;

/// Fields that hold the language model of a model that reads other inputs too.
const INNER: [&str; 3] = ["text_config", "llm_config", "language_config"];
/// Fields of encoders of images and audio.
const ENCODERS: [&str; 4] = ["vision_config", "audio_config", "visual", "vision_tower_config"];

/// A configuration that was read.
#[derive(Clone, Debug)]
pub struct Config {
    outer: Map<String, Value>,
    /// The field of the language model; `None` if the fields are at the top.
    inner: Option<&'static str>,
}

/// Reads a configuration.
///
/// # Errors
/// The text is no JSON object.
pub fn read(text: &str) -> Result<Config, Unreadable> {
    let value: Value = serde_json::from_str(text).map_err(|error| {
        let text = error.to_string();
        let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
        Unreadable::new(format!("line {}", error.line()), what)
    })?;
    let Value::Object(outer) = value else {
        return Err(Unreadable::new("line 1", "is no object; the configuration of a model was expected"));
    };
    let inner = INNER.into_iter().find(|name| outer.get(*name).is_some_and(Value::is_object));
    Ok(Config { outer, inner })
}

impl Config {
    /// The fields of the language model.
    fn fields(&self) -> &Map<String, Value> {
        self.inner.and_then(|name| self.outer.get(name)).and_then(Value::as_object).unwrap_or(&self.outer)
    }

    /// A field of the language model. `null` is as good as absent.
    fn field(&self, name: &str) -> Option<&Value> {
        self.fields().get(name).filter(|value| !value.is_null())
    }

    /// A field of the language model or, failing that, of the whole model.
    fn anywhere(&self, name: &str) -> Option<&Value> {
        self.field(name).or_else(|| self.outer.get(name).filter(|value| !value.is_null()))
    }

    /// An error at a field.
    fn error(&self, name: &str, what: impl Into<String>) -> Unreadable {
        match self.inner {
            Some(inner) => Unreadable::field(&format!("{inner}.{name}"), what),
            None => Unreadable::field(name, what),
        }
    }

    /// The first of these numbers that is there.
    fn number(&self, names: &[&str]) -> Result<Option<u64>, Unreadable> {
        let Some((name, value)) = names.iter().find_map(|name| self.field(name).map(|value| (name, value))) else {
            return Ok(None);
        };
        match value.as_u64().filter(|number| *number <= MAX_NUMBER) {
            Some(number) => Ok(Some(number)),
            None => {
                let is = quoted(&value.to_string());
                Err(self.error(name, format!("is {is}; a whole number from 0 to {MAX_NUMBER} was expected")))
            }
        }
    }

    /// A number that must be there; the first name is used in the error.
    fn required(&self, names: &[&str]) -> Result<u64, Unreadable> {
        self.number(names)?.ok_or_else(|| {
            let name = names.first().copied().unwrap_or_default();
            let why = format!("is missing; architecture {} is not known without it", quoted(&self.architecture()));
            self.error(name, why)
        })
    }

    /// A number with what it is if it is absent.
    fn number_or(&self, names: &[&str], default: u64) -> Result<u64, Unreadable> {
        Ok(self.number(names)?.unwrap_or(default))
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, Unreadable> {
        match self.field(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => {
                Err(self.error(name, format!("is {}; true or false was expected", quoted(&other.to_string()))))
            }
        }
    }

    /// A list of whole numbers.
    fn numbers(&self, name: &str) -> Result<Option<Vec<u64>>, Unreadable> {
        let Some(value) = self.field(name) else { return Ok(None) };
        let list = value.as_array().and_then(|list| list.iter().map(Value::as_u64).collect::<Option<Vec<u64>>>());
        list.map(Some).ok_or_else(|| self.error(name, "is no list of whole numbers"))
    }

    /// Name of the architecture: `model_type` of the language model, or of the whole.
    fn architecture(&self) -> String {
        self.anywhere("model_type").and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    fn hidden(&self) -> Result<u64, Unreadable> {
        self.required(&["hidden_size", "n_embd", "d_model", "dim"])
    }

    fn layers(&self) -> Result<u64, Unreadable> {
        let layers = self.required(&["num_hidden_layers", "n_layer", "n_layers", "num_layers"])?;
        if layers == 0 || layers > MAX_LAYERS {
            let what = format!("is {layers}; 1 to {MAX_LAYERS} was expected");
            return Err(self.error("num_hidden_layers", what));
        }
        Ok(layers)
    }

    fn heads(&self) -> Result<u64, Unreadable> {
        self.required(&["num_attention_heads", "n_head", "n_heads"])
    }

    /// Heads of keys and values. Without a number of their own there is one for each head.
    fn kv_heads(&self) -> Result<u64, Unreadable> {
        let is_multi_query =
            self.flag("multi_query")? == Some(true) && self.flag("new_decoder_architecture")? != Some(true);
        match self.number(&["num_key_value_heads", "num_kv_heads", "n_head_kv"])? {
            _ if is_multi_query => Ok(1),
            Some(heads) => Ok(heads),
            None => self.heads(),
        }
    }

    fn head_length(&self) -> Result<u64, Unreadable> {
        if let Some(length) = self.number(&["head_dim", "attention_head_dim"])? {
            return Ok(length);
        }
        let (hidden, heads) = (self.hidden()?, self.heads()?);
        match hidden.checked_div(heads) {
            Some(length) if hidden % heads == 0 => Ok(length),
            _ => Err(self.error("num_attention_heads", format!("is {heads}, which does not divide {hidden}"))),
        }
    }

    fn vocabulary(&self) -> Result<Option<u64>, Unreadable> {
        self.number(&["vocab_size", "padded_vocab_size"])
    }

    /// Whether the output head is the token embedding. Saved configurations leave out what is usual for the architecture.
    fn is_tied(&self) -> Result<bool, Unreadable> {
        if let Some(tied) = self.flag("tie_word_embeddings")? {
            return Ok(tied);
        }
        match self.outer.get("tie_word_embeddings") {
            Some(Value::Bool(tied)) => Ok(*tied),
            _ => {
                let tied = ["gemma", "gemma2", "gemma3_text", "cohere", "cohere2", "gpt2", "bloom", "opt", "mamba"];
                Ok(tied.contains(&self.architecture().as_str()))
            }
        }
    }

    /// Whether the model encodes images or audio.
    fn has_encoder(&self) -> bool {
        ENCODERS.iter().any(|name| self.outer.get(*name).is_some_and(Value::is_object))
    }

    /// The type in which the checkpoint has its weights, by what the configuration says of it.
    ///
    /// # Errors
    /// The weights are quantized in a way that says no type.
    fn dtype(&self) -> Result<WeightsDtype, Unreadable> {
        if let Some(quantization) = self.anywhere("quantization_config") {
            return quantized(quantization);
        }
        let written = self.anywhere("dtype").or_else(|| self.anywhere("torch_dtype")).and_then(Value::as_str);
        Ok(if written == Some("float32") { WeightsDtype::F32 } else { WeightsDtype::Bf16 })
    }

    /// The shape of a model whose tensors are in files.
    ///
    /// # Errors
    /// A field is missing or cannot be read, or nothing is known of what the layers keep.
    pub fn with(&self, stored: impl FnOnce(bool) -> Stored) -> Result<ModelShape, Unreadable> {
        let tied = self.is_tied()?;
        self.shape(Weights::Stored(stored(tied)))
    }

    /// The shape of a model of which there is the configuration alone. `wanted` is the type that the user gave.
    ///
    /// # Errors
    /// As [`Config::with`], or the number of weights of the architecture is not known.
    pub fn alone(&self, wanted: Option<WeightsDtype>) -> Result<ModelShape, Unreadable> {
        if self.has_encoder() {
            let what = "the model has an encoder of images or audio, whose weights cannot be computed; give its safetensors \
                        files";
            return Err(Unreadable::new("the configuration", what));
        }
        let parameters = parameters::parameters(self, &layers::layers(self)?.kinds)?;
        let dtype = match wanted {
            Some(dtype) => dtype,
            None => self.dtype()?,
        };
        self.shape(Weights::Computed(parameters, dtype))
    }

    fn shape(&self, weights: Weights) -> Result<ModelShape, Unreadable> {
        let layers = layers::layers(self)?;
        let caches = layers::caches(self, &layers.kinds)?;
        Ok(ModelShape {
            architecture: self.architecture(),
            known: layers::is_known(&self.architecture()),
            weights,
            caches,
            unplaced_window: layers.unplaced_window,
            hidden: Some(self.hidden()?),
            feed_forward: parameters::feed_forward(self)?,
            vocabulary: self.vocabulary()?,
            longest: self.number(&["max_position_embeddings", "n_positions", "seq_length"])?,
            other_inputs: self.has_encoder(),
        })
    }
}

/// The type of quantized weights.
fn quantized(quantization: &Value) -> Result<WeightsDtype, Unreadable> {
    let method = quantization.get("quant_method").and_then(Value::as_str).unwrap_or_default();
    let bits = quantization.get("bits").or_else(|| quantization.get("w_bit")).and_then(Value::as_u64);
    let is = |name: &str| quantization.get(name).and_then(Value::as_bool) == Some(true);
    match (method, bits) {
        ("fp8" | "fbgemm_fp8", _) => Ok(WeightsDtype::Fp8),
        ("awq" | "gptq", Some(4)) => Ok(WeightsDtype::Int4),
        ("awq" | "gptq", Some(8)) => Ok(WeightsDtype::Int8),
        ("bitsandbytes", _) if is("load_in_4bit") => Ok(WeightsDtype::Int4),
        ("bitsandbytes", _) if is("load_in_8bit") => Ok(WeightsDtype::Int8),
        _ => Err(Unreadable::field(
            "quantization_config.quant_method",
            format!(
                "is {}, which does not say the type of all weights; give --weights-dtype, or the safetensors files",
                quoted(method)
            ),
        )),
    }
}

#[cfg(test)]
mod tests;
