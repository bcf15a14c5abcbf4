use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::capacity::estimate::shape::{Cache, Group, Parameters};
use crate::capacity::estimate::{self, KvType, Request, Runtime};

fn config(value: &Value) -> Config {
    read(&value.to_string()).unwrap()
}

/// The shape of a model with stored tensors, of which nothing is said.
fn shape_of(value: &Value) -> Result<ModelShape, Unreadable> {
    config(value).with(|_| Stored::default())
}

fn error(value: &Value) -> String {
    shape_of(value).unwrap_err().to_string()
}

/// The parameters that a configuration implies, in billions.
fn billions(value: &Value) -> f64 {
    let Weights::Computed(parameters, _) = config(value).alone(Some(WeightsDtype::Bf16)).unwrap().weights else {
        panic!("weights are computed")
    };
    parameters.total().unwrap() as f64 / 1e9
}

/// The fields of a model with these changes.
fn with(base: &Value, changes: &Value) -> Value {
    let mut fields = base.as_object().unwrap().clone();
    fields.extend(changes.as_object().unwrap().clone());
    Value::Object(fields)
}

fn llama() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "sliding_window": null,
    })
}

fn deepseek() -> Value {
    json!({
        "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
        "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "num_hidden_layers": 61,
        "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
        "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "first_k_dense_replace": 3, "moe_layer_freq": 1,
        "vocab_size": 129280, "tie_word_embeddings": false,
    })
}

fn jamba() -> Value {
    json!({
        "model_type": "jamba", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 65536, "attn_layer_period": 8,
        "attn_layer_offset": 4, "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 16,
        "num_experts_per_tok": 2, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 256,
        "tie_word_embeddings": false,
    })
}

fn qwen3_next() -> Value {
    json!({
        "model_type": "qwen3_next", "hidden_size": 2048, "intermediate_size": 5120, "num_hidden_layers": 48,
        "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "num_experts": 512,
        "num_experts_per_tok": 10, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "full_attention_interval": 4, "linear_num_key_heads": 16,
        "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4, "vocab_size": 151936, "tie_word_embeddings": false,
    })
}

fn nemotron_h() -> Value {
    let pattern = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-";
    json!({
        "model_type": "nemotron_h", "hidden_size": 4096, "intermediate_size": 21504, "num_hidden_layers": 52,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "hybrid_override_pattern": pattern,
        "mamba_num_heads": 128, "mamba_head_dim": 64, "n_groups": 8, "ssm_state_size": 128, "conv_kernel": 4,
        "vocab_size": 131072, "tie_word_embeddings": false,
    })
}

fn gpt_oss() -> Value {
    let kinds: Vec<&str> =
        (0..24).map(|layer| if layer % 2 == 0 { "sliding_attention" } else { "full_attention" }).collect();
    json!({
        "model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "num_local_experts": 32,
        "num_experts_per_tok": 4, "sliding_window": 128, "layer_types": kinds, "vocab_size": 201088,
        "tie_word_embeddings": false,
    })
}

fn mixtral() -> Value {
    json!({
        "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
        "vocab_size": 32000, "sliding_window": null, "tie_word_embeddings": false,
    })
}

/// The numbers of parameters are those of the models' cards; that of gpt-oss is as llama.cpp prints it.
#[test]
fn the_weights_of_each_kind_of_architecture_are_those_of_the_published_models() {
    for (value, expected) in [
        (llama(), 8.03),
        (deepseek(), 671.0),
        (jamba(), 51.6),
        (qwen3_next(), 79.7),
        (nemotron_h(), 8.10),
        (gpt_oss(), 20.91),
        (mixtral(), 46.7),
    ] {
        let computed = billions(&value);
        assert!((computed / expected - 1.0).abs() < 0.005, "{}: {computed} for {expected}", value["model_type"]);
    }
}

#[test]
fn layers_with_windows_are_found_by_what_each_architecture_says() {
    let attention = |layers, window| {
        let cache = Cache::Attention { keys: 1024, values: 1024, window };
        Group { layers, cache }
    };
    let window = |changes: Value| {
        let shape = shape_of(&with(&llama(), &changes)).unwrap();
        (shape.caches, shape.unplaced_window)
    };
    for (changes, groups, unplaced) in [
        (json!({}), vec![attention(32, None)], None),
        (json!({"model_type": "mistral", "sliding_window": 4096}), vec![attention(32, Some(4096))], None),
        (
            json!({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": false}),
            vec![attention(32, None)],
            None,
        ),
        (
            json!({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": true, "max_window_layers": 28}),
            vec![attention(28, None), attention(4, Some(4096))],
            None,
        ),
        (
            json!({"model_type": "gemma3_text", "sliding_window": 1024}),
            vec![attention(27, Some(1024)), attention(5, None)],
            None,
        ),
        (
            json!({"model_type": "cohere2", "sliding_window": 4096, "sliding_window_pattern": 4}),
            vec![attention(24, Some(4096)), attention(8, None)],
            None,
        ),
        (json!({"model_type": "gemma2", "sliding_window": 9}), vec![attention(16, Some(9)), attention(16, None)], None),
        (json!({"model_type": "llama", "sliding_window": 512}), vec![attention(32, None)], Some(512)),
        (json!({"model_type": "llama4_text", "attention_chunk_size": 64}), vec![attention(32, None)], Some(64)),
    ] {
        assert_eq!(window(changes.clone()), (groups, unplaced), "{changes}");
    }
}

#[test]
fn a_model_of_qwen_has_a_window_only_if_it_says_so() {
    for architecture in ["qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen2_5_vl_text"] {
        let fields = json!({"model_type": architecture, "sliding_window": 4096});
        let shape = shape_of(&with(&llama(), &fields)).unwrap();
        let cache = Cache::Attention { keys: 1024, values: 1024, window: None };
        assert_eq!((shape.caches, shape.unplaced_window), (vec![Group { layers: 32, cache }], None), "{architecture}");
    }
}

#[test]
fn a_period_of_zero_layers_is_refused() {
    let window = |name: &str, architecture: &str| {
        error(&with(&llama(), &json!({"model_type": architecture, "sliding_window": 4096, name: 0})))
    };
    for name in ["sliding_window_pattern", "_sliding_window_pattern"] {
        for architecture in ["gemma3_text", "cohere2", "brandnew"] {
            let error = window(name, architecture);
            let expected = format!("field \"{name}\": is 0; a number of layers from 1 was expected");
            assert!(error.contains(&expected), "{architecture}: {error}");
        }
    }
    let error = error(&with(&qwen3_next(), &json!({"full_attention_interval": 0})));
    assert!(error.contains("field \"full_attention_interval\": is 0"), "{error}");
}

#[test]
fn hybrid_models_keep_states_in_the_layers_that_have_them() {
    let attention = |layers, elements| {
        let cache = Cache::Attention { keys: elements, values: elements, window: None };
        Group { layers, cache }
    };
    let state = |layers, elements| Group { layers, cache: Cache::State { elements } };
    // 2 × 4096 channels; a convolution of 4 keeps 3 inputs; 16 numbers for each channel.
    assert_eq!(shape_of(&jamba()).unwrap().caches, [state(28, 8192 * 3 + 8192 * 16), attention(4, 1024)]);
    // Queries, keys and values of 2048, 2048 and 4096 channels; 32 heads with matrices of 128 × 128.
    assert_eq!(shape_of(&qwen3_next()).unwrap().caches, [state(36, 8192 * 3 + 32 * 128 * 128), attention(12, 512)]);
    assert_eq!(
        shape_of(&nemotron_h()).unwrap().caches,
        [state(24, (8192 + 2 * 8 * 128) * 3 + 8192 * 128), attention(4, 1024)]
    );
    let mamba2 = json!({
        "mamba_n_heads": 48, "mamba_d_head": 64, "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_conv": 4,
    });
    let both = with(&with(&llama(), &mamba2), &json!({"model_type": "falcon_h1"}));
    let elements = (3072 + 2 * 256) * 3 + 3072 * 256;
    assert_eq!(shape_of(&both).unwrap().caches, [attention(32, 1024), state(32, elements)]);
    let kinds: Vec<&str> = (0..32).map(|layer| if layer % 8 == 5 { "attention" } else { "mamba" }).collect();
    let granite =
        json!({"model_type": "granitemoehybrid", "layer_types": kinds, "mamba_d_head": "auto", "mamba_expand": 1});
    let granite = with(&with(&llama(), &mamba2), &granite);
    let elements = (4096 + 2 * 256) * 3 + 4096 * 256;
    assert_eq!(shape_of(&granite).unwrap().caches, [state(28, elements), attention(4, 1024)]);
    let kinds: Vec<&str> = (0..32).map(|layer| if layer % 4 == 3 { "full_attention" } else { "conv" }).collect();
    let lfm2 = with(&llama(), &json!({"model_type": "lfm2", "layer_types": kinds, "conv_L_cache": 3}));
    assert_eq!(shape_of(&lfm2).unwrap().caches, [state(24, 4096 * 2), attention(8, 1024)]);
}

#[test]
fn the_fields_of_a_language_model_inside_of_another_are_read_and_named() {
    let outer = json!({"model_type": "gemma3", "vision_config": {"hidden_size": 1152}, "text_config": llama()});
    let shape = shape_of(&outer).unwrap();
    assert!(shape.other_inputs && shape.hidden == Some(4096) && shape.architecture == "llama");
    let error = config(&outer).alone(None).unwrap_err().to_string();
    assert!(error.contains("has an encoder of images or audio, whose weights cannot be computed"), "{error}");
    let broken = with(&outer, &json!({"text_config": {"model_type": "llama", "hidden_size": -1}}));
    let error = self::error(&with(&broken, &json!({})));
    assert!(error.contains("field \"text_config.num_hidden_layers\": is missing"), "{error}");
}

#[test]
fn what_cannot_be_read_is_named_with_what_was_expected() {
    for (changes, expected) in [
        (json!({"num_hidden_layers": 0}), "field \"num_hidden_layers\": is 0; 1 to 4096 was expected"),
        (json!({"num_hidden_layers": "32"}), "field \"num_hidden_layers\": is \"\\\"32\\\"\"; a whole number"),
        (json!({"hidden_size": 1u64 << 40}), "a whole number from 0 to 268435456 was expected"),
        (json!({"num_attention_heads": 33}), "field \"num_attention_heads\": is 33, which does not divide 4096"),
        (json!({"num_attention_heads": 0}), "is 0, which does not divide 4096"),
        (json!({"layer_types": ["full_attention"]}), "is no list of 32 names, one for each layer"),
        (json!({"layer_types": vec!["odd"; 32]}), "which is no kind of layer that is known"),
        (json!({"layer_types": vec!["linear_attention"; 32]}), "field \"linear_num_key_heads\": is missing"),
        (json!({"hybrid_override_pattern": "M"}), "is no text of 32 letters, one for each layer"),
        (json!({"hybrid_override_pattern": "x".repeat(32)}), "the letters M, *, - and E were expected"),
        (json!({"use_sliding_window": 1}), "field \"use_sliding_window\": is \"1\"; true or false was expected"),
        (
            json!({"model_type": "zamba9", "mamba_d_state": 1}),
            "architecture \"zamba9\" keeps a state that is not known",
        ),
    ] {
        let error = error(&with(&llama(), &changes));
        assert!(error.contains(expected), "{changes}: {error}");
    }
    assert_eq!(read("{\n").unwrap_err().at, "line 2");
    assert!(read("[]").unwrap_err().what.starts_with("is no object"));
    assert!(read(&"[".repeat(100_000)).is_err(), "no overflow of the stack");
}

#[test]
fn an_architecture_that_is_not_known_counts_as_attention_and_has_no_computed_weights() {
    let other = with(&llama(), &json!({"model_type": "brandnew"}));
    let shape = shape_of(&other).unwrap();
    assert!(!shape.known && shape.caches.len() == 1);
    let error = config(&other).alone(None).unwrap_err().to_string();
    assert!(
        error.contains("the number of weights of architecture \"brandnew\" is not known; give the safetensors"),
        "{error}"
    );
}

#[test]
fn the_type_of_the_weights_is_that_of_the_checkpoint_unless_it_is_given() {
    let dtype = |changes: Value, wanted| {
        let shape = config(&with(&llama(), &changes)).alone(wanted).map_err(|error| error.to_string())?;
        match shape.weights {
            Weights::Computed(_, dtype) => Ok(dtype),
            Weights::Stored(_) => Err("stored".to_owned()),
        }
    };
    let quantized = |fields: Value| json!({"quantization_config": fields});
    assert_eq!(dtype(json!({}), None), Ok(WeightsDtype::Bf16));
    assert_eq!(dtype(json!({"torch_dtype": "float32"}), None), Ok(WeightsDtype::F32));
    assert_eq!(dtype(quantized(json!({"quant_method": "awq", "bits": 4})), None), Ok(WeightsDtype::Int4));
    assert_eq!(dtype(quantized(json!({"quant_method": "gptq", "bits": 8})), None), Ok(WeightsDtype::Int8));
    assert_eq!(dtype(quantized(json!({"quant_method": "fp8"})), None), Ok(WeightsDtype::Fp8));
    let mixed = quantized(json!({"quant_method": "compressed-tensors"}));
    assert!(dtype(mixed.clone(), None).unwrap_err().contains("give --weights-dtype, or the safetensors files"));
    assert_eq!(dtype(mixed, Some(WeightsDtype::Int4)), Ok(WeightsDtype::Int4));
}

/// Amounts that programs printed for published models. Each is a cache alone, so that it must be met exactly.
#[test]
fn caches_are_those_that_programs_printed() {
    let bytes = |value: &Value, request: Request| {
        let shape = shape_of(value).unwrap();
        let only = |kind: &str| {
            let estimate = estimate::estimate(&shape, &request).unwrap();
            estimate.parts.iter().find(|part| part.kind.name() == kind).map(|part| part.amount.mib())
        };
        ["KV cache", "KV cache of sliding windows", "latent KV cache", "recurrent state"].map(only)
    };
    let request = |context, kv, runtime| Request { context, concurrency: 1, kv, weights: None, runtime };
    // https://github.com/ikawrakow/ik_llama.cpp/pull/235: 2196.00 MiB, c^KV (f16), 61 layers, 32,768 tokens.
    let f16 = request(32_768, KvType::F16, Runtime::LlamaCpp);
    assert_eq!(bytes(&deepseek(), f16)[2], Some(2_196));
    // https://github.com/ikawrakow/ik_llama.cpp/pull/259: 1166.62 MiB, c^KV (q8_0).
    assert_eq!(bytes(&deepseek(), request(32_768, KvType::Q8_0, Runtime::LlamaCpp))[2], Some(1_167));
    // https://github.com/ggml-org/llama.cpp/pull/18720: 624 MiB for the windows of Gemma 3 27B.
    let gemma = json!({
        "model_type": "gemma3_text", "hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 62,
        "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128, "sliding_window": 1024, "vocab_size": 262208,
    });
    assert_eq!(bytes(&gemma, f16)[1], Some(624));
    // https://github.com/Luce-Org/lucebox/pull/21: Qwen3.5-27B, q4_0: 1152 MiB at 64K tokens and 2304 MiB at 128K.
    // https://github.com/ggml-org/llama.cpp/pull/23792: states of 3 sequences: 448.88 MiB.
    let qwen = with(
        &qwen3_next(),
        &json!({
            "model_type": "qwen3_5_text", "hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 24,
            "num_key_value_heads": 4, "linear_num_value_heads": 48, "num_experts": 0,
        }),
    );
    assert_eq!(bytes(&qwen, request(65_536, KvType::Q4_0, Runtime::LlamaCpp))[0], Some(1_152));
    assert_eq!(bytes(&qwen, request(131_072, KvType::Q4_0, Runtime::LlamaCpp))[0], Some(2_304));
    assert_eq!(bytes(&qwen, Request { concurrency: 3, ..f16 })[3], Some(449));
    // https://github.com/vllm-project/vllm/issues/15871: 0.95 GiB for 32,768 tokens of DeepSeek-V2-Lite.
    let lite =
        with(&deepseek(), &json!({"model_type": "deepseek_v2", "num_hidden_layers": 27, "num_attention_heads": 16}));
    assert_eq!(bytes(&lite, request(32_768, KvType::F16, Runtime::Vllm))[2], Some(972));
}

/// https://github.com/vllm-project/vllm/pull/10511: `vllm serve meta-llama/Meta-Llama-3-8B` logs 14.96 GiB of weights and
/// 1.26 GiB of activations at their peak.
#[test]
fn vllm_needs_for_llama_3_8b_what_it_logged() {
    let shape = config(&llama()).alone(None).unwrap();
    let request = Request { context: 8_192, concurrency: 1, kv: KvType::F16, weights: None, runtime: Runtime::Vllm };
    let estimate = estimate::estimate(&shape, &request).unwrap();
    let logged = |gib: f64| gib * 1024.0;
    let off = |ours: u64, theirs: f64| (ours as f64 / theirs - 1.0).abs();
    assert!(off(estimate.weights.mib(), logged(14.96)) < 0.001, "{estimate:?}");
    let graphs = estimate.parts.iter().find(|part| part.kind.name() == "CUDA graphs").unwrap().amount.mib();
    assert!(off(estimate.runtime.mib() - graphs, logged(1.26)) < 0.10, "{estimate:?}");
}

proptest! {
    /// Numbers of any size in any field: an error or an estimate, and no overflow.
    #[test]
    fn no_configuration_panics(
        which in 0usize..7,
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![
            any::<u64>().prop_map(Value::from),
            (0u64..1 << 28).prop_map(Value::from),
            Just(Value::from(1u64 << 28)),
            Just(Value::from(0)),
            Just(Value::Null),
            "\\PC{0,9}".prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
        ]), 0..6),
    ) {
        let mut value = [llama(), deepseek(), jamba(), qwen3_next(), nemotron_h(), gpt_oss(), mixtral()][which].clone();
        let names: Vec<String> = value.as_object().unwrap().keys().filter(|name| *name != "model_type").cloned().collect();
        for (name, new) in changes {
            value[&names[name.index(names.len())]] = new;
        }
        let config = config(&value);
        let shapes = [config.alone(Some(WeightsDtype::Int4)), config.with(|_| Stored::default())];
        for shape in shapes.into_iter().flatten() {
            for runtime in [Runtime::Vllm, Runtime::LlamaCpp, Runtime::Transformers] {
                let request =
                    Request { context: 1 << 30, concurrency: 1 << 16, kv: KvType::F16, weights: None, runtime };
                let _ = estimate::estimate(&shape, &request);
            }
        }
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,80}") {
        let _ = read(&text);
    }
}

#[test]
fn parameters_without_a_head_are_tied() {
    let tied = with(&llama(), &json!({"tie_word_embeddings": true}));
    let of = |value: &Value| match config(value).alone(None).unwrap().weights {
        Weights::Computed(parameters, _) => parameters,
        Weights::Stored(_) => Parameters::default(),
    };
    let (own, shared) = (of(&llama()), of(&tied));
    assert_eq!((own.head, shared.head), (Some(128_256 * 4_096), None));
    // Gemma leaves the field out.
    let gemma = with(&llama(), &json!({"model_type": "gemma2", "tie_word_embeddings": null}));
    assert_eq!(of(&gemma).head, None);
}
