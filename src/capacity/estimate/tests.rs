use proptest::prelude::*;

use super::shape::{Cache, Group, Parameters};
use super::*;

fn request(context: u64, concurrency: u64, kv: KvType, runtime: Runtime) -> Request {
    Request { context, concurrency, kv, weights: None, runtime }
}

fn shape(caches: Vec<Group>, weights: Weights) -> ModelShape {
    ModelShape {
        architecture: "llama".to_owned(),
        known: true,
        weights,
        caches,
        unplaced_window: None,
        hidden: Some(4_096),
        feed_forward: Some(14_336),
        vocabulary: Some(128_256),
        longest: None,
        other_inputs: false,
    }
}

fn stored() -> Weights {
    Weights::Stored(Stored { bytes: 1 << 30, ..Stored::default() })
}

fn attention(layers: u64, window: Option<u64>) -> Group {
    Group { layers, cache: Cache::Attention { keys: 1_024, values: 1_024, window } }
}

fn amounts(estimate: &Estimate) -> Vec<(&'static str, u64)> {
    estimate.parts.iter().map(|part| (part.kind.name(), part.amount.mib())).collect()
}

#[test]
fn a_token_takes_the_bytes_of_its_type() {
    let shape = shape(vec![attention(32, None)], stored());
    let of = |kv| estimate(&shape, &request(8_192, 1, kv, Runtime::None)).unwrap();
    // 32 layers × 2,048 elements × bytes.
    let types = [(KvType::F16, 131_072), (KvType::Fp8, 65_536), (KvType::Q8_0, 69_632), (KvType::Q4_0, 36_864)];
    for (kv, bytes) in types {
        let estimate = of(kv);
        assert_eq!(estimate.kv_bytes_per_token, bytes, "{kv:?}");
        assert_eq!(estimate.kv.bytes(), u128::from(bytes) * 8_192, "{kv:?}");
    }
}

#[test]
fn a_window_keeps_the_last_tokens_and_those_that_are_read_now() {
    let shape = shape(vec![attention(5, Some(1_024)), attention(1, None)], stored());
    let of = |context, sequences, runtime| {
        let estimate = estimate(&shape, &request(context, sequences, KvType::F16, runtime)).unwrap();
        let part = |kind| estimate.parts.iter().find(|part| part.kind == kind).unwrap().amount.mib();
        (part(PartKind::KvCache), part(PartKind::WindowCache))
    };
    // A token takes 4 KiB in one layer.
    assert_eq!(of(32_768, 1, Runtime::None), (128, 5 * 4));
    assert_eq!(of(32_768, 4, Runtime::None), (4 * 128, 4 * 5 * 4));
    assert_eq!(of(512, 1, Runtime::None), (2, 10), "a context that is shorter than the window");
    assert_eq!(of(32_768, 1, Runtime::LlamaCpp), (128, 5 * (1_024 + 512) * 4 / 1_024));
    assert_eq!(of(32_768, 4, Runtime::LlamaCpp), (512, 5 * (4 * 1_024 + 512) * 4 / 1_024));
    assert_eq!(of(32_768, 1, Runtime::Vllm), (128, 5 * (1_024 + 8_192) * 4 / 1_024));
    assert_eq!(of(2_048, 1, Runtime::Vllm), (8, 40), "never more than the whole context");
}

#[test]
fn llama_cpp_quantizes_the_whole_context_and_no_window() {
    let shape = shape(vec![attention(5, Some(1_024)), attention(1, None)], stored());
    let estimate = estimate(&shape, &request(32_768, 1, KvType::Q8_0, Runtime::LlamaCpp)).unwrap();
    assert_eq!((estimate.parts[1].amount.mib(), estimate.parts[2].amount.mib()), (68, 30));
    assert!(estimate.remarks.contains(&Remark::WindowNotQuantized));
}

#[test]
fn transformers_stores_latent_attention_after_decompression() {
    let cache = Cache::Latent { compressed: 576, expanded: 128 * 320 };
    let shape = shape(vec![Group { layers: 61, cache }], stored());
    let of = |runtime| estimate(&shape, &request(1_024, 1, KvType::F16, runtime)).unwrap().kv_bytes_per_token;
    assert_eq!((of(Runtime::Vllm), of(Runtime::Transformers)), (61 * 576 * 2, 61 * 40_960 * 2));
}

#[test]
fn a_state_depends_on_the_sequences_and_not_on_the_context() {
    let shape = shape(vec![Group { layers: 48, cache: Cache::State { elements: 1 << 20 } }], stored());
    let of = |context, sequences| {
        let estimate = estimate(&shape, &request(context, sequences, KvType::Q4_0, Runtime::LlamaCpp)).unwrap();
        (estimate.kv.mib(), estimate.kv_bytes_per_token)
    };
    assert_eq!((of(1, 1), of(1 << 20, 1), of(1, 3)), ((192, 0), (192, 0), (576, 0)));
}

#[test]
fn an_architecture_that_is_not_known_lowers_the_confidence_and_says_so() {
    let known = shape(vec![attention(1, None)], stored());
    let unknown = ModelShape { known: false, architecture: "new".to_owned(), ..known.clone() };
    let window = ModelShape { unplaced_window: Some(512), ..known.clone() };
    let of = |shape: &ModelShape| estimate(shape, &request(1_024, 1, KvType::F16, Runtime::None)).unwrap();
    let confidence = |shape: &ModelShape| of(shape).parts[1].confidence;
    assert_eq!(
        (confidence(&known), confidence(&window), confidence(&unknown)),
        (Confidence::High, Confidence::Medium, Confidence::Low)
    );
    assert!(of(&unknown).remarks.contains(&Remark::UnknownArchitecture("new".to_owned())));
    assert!(of(&window).remarks.contains(&Remark::WindowOfUnknownLayers(512)));
}

#[test]
fn a_head_that_is_the_embedding_is_loaded_once_except_in_fp8() {
    let tensors = Stored { bytes: 10 << 20, embedding: 4 << 20, head: 4 << 20, tied: true, ..Stored::default() };
    let weights = |stored: &Stored| {
        let shape = shape(vec![attention(1, None)], Weights::Stored(stored.clone()));
        let estimate = estimate(&shape, &request(1, 1, KvType::F16, Runtime::Vllm)).unwrap();
        (estimate.weights.mib(), estimate.remarks.contains(&Remark::HeadOfFp8))
    };
    assert_eq!(weights(&tensors), (6, false));
    assert_eq!(weights(&Stored { tied: false, ..tensors.clone() }), (10, false));
    assert_eq!(weights(&Stored { fp8: true, ..tensors.clone() }), (10, true));
    assert_eq!(weights(&Stored { head: 0, ..tensors }), (10, false), "it is stored once");
    let parameters = Parameters { matrices: 0, embedding: 1 << 20, head: None, other: 0 };
    let own = Parameters { head: Some(1 << 20), ..parameters };
    let mib = |parameters: &Parameters, dtype| parameters.bytes(dtype).unwrap() >> 20;
    assert_eq!((mib(&parameters, WeightsDtype::Bf16), mib(&own, WeightsDtype::Bf16)), (2, 4));
    assert_eq!((mib(&parameters, WeightsDtype::Fp8), mib(&own, WeightsDtype::Fp8)), (4, 4));
}

#[test]
fn stored_parameters_become_another_type_with_less_confidence_and_packed_ones_do_not() {
    let parameters = Parameters { matrices: 256 << 20, embedding: 1 << 20, head: Some(1 << 20), other: 0 };
    let with = |parameters| Weights::Stored(Stored { bytes: 516 << 20, parameters, ..Stored::default() });
    let wanted = Request { weights: Some(WeightsDtype::Int4), ..request(1, 1, KvType::F16, Runtime::None) };
    let rescaled = estimate(&shape(vec![attention(1, None)], with(Some(parameters))), &wanted).unwrap();
    assert_eq!((rescaled.weights.mib(), rescaled.parts[0].confidence), (133 + 4, Confidence::Low));
    let error = estimate(&shape(vec![attention(1, None)], with(None)), &wanted).unwrap_err();
    assert_eq!(error, NoEstimate::Packed { dtype: "int4" });
}

#[test]
fn a_runtime_refuses_types_that_it_does_not_have() {
    let shape = shape(vec![attention(1, None)], stored());
    for (runtime, kv) in [
        (Runtime::Vllm, KvType::Q8_0),
        (Runtime::Ollama, KvType::Fp8),
        (Runtime::LlamaCpp, KvType::Fp8),
        (Runtime::Transformers, KvType::Q4_0),
    ] {
        let error = estimate(&shape, &request(1, 1, kv, runtime)).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{} has no KV cache of type {}", runtime.name(), kv.name())), "{error}");
    }
}

#[test]
fn what_a_runtime_adds_has_its_own_parts() {
    let shape = shape(vec![attention(32, None)], stored());
    let of = |runtime| amounts(&estimate(&shape, &request(8_192, 1, KvType::F16, runtime)).unwrap());
    let model = [("weights", 1_024), ("KV cache", 1_024)];
    assert_eq!(of(Runtime::None), model);
    assert_eq!(of(Runtime::Transformers)[2..], [("matrix workspace", 32), ("logits and sampling", 1)]);
    // 8,192 × (3 × 14,336 + 2 × 4,096) × 2 bytes, and 256 × 128,256 × 18 bytes.
    let vllm = [("activations", 800), ("logits and sampling", 564), ("CUDA graphs", 768)];
    assert_eq!(of(Runtime::Vllm)[2..], vllm);
    // 512 × (128,256 + 4,096) × 4 bytes.
    assert_eq!(of(Runtime::LlamaCpp)[2..], [("compute buffer", 259)]);
    assert_eq!(of(Runtime::Ollama), of(Runtime::LlamaCpp));
    let blind = ModelShape { vocabulary: None, ..shape };
    let error = estimate(&blind, &request(1, 1, KvType::F16, Runtime::Vllm)).unwrap_err().to_string();
    assert!(error.contains("do not say the size of its vocabulary, on which the memory of vllm depends"), "{error}");
    assert!(estimate(&blind, &request(1, 1, KvType::F16, Runtime::None)).is_ok());
}

#[test]
fn an_amount_that_no_quantity_can_hold_is_an_error() {
    let vast = Cache::Attention { keys: u64::MAX, values: u64::MAX, window: None };
    for caches in [vec![Group { layers: u64::MAX, cache: vast }], vec![Group { layers: 1, cache: vast }; 3]] {
        let error = estimate(&shape(caches, stored()), &request(1 << 30, 1 << 16, KvType::F16, Runtime::Vllm));
        assert_eq!(error, Err(NoEstimate::TooLarge { what: "KV cache" }));
    }
    let weights = Weights::Stored(Stored { bytes: u128::MAX, ..Stored::default() });
    let error = estimate(&shape(vec![attention(1, None)], weights), &request(1, 1, KvType::F16, Runtime::None));
    assert_eq!(error, Err(NoEstimate::TooLarge { what: "weights" }));
}

#[test]
fn a_context_beyond_the_model_is_said() {
    let shape = ModelShape { longest: Some(4_096), ..shape(vec![attention(1, None)], stored()) };
    let said = |context| {
        let remarks = estimate(&shape, &request(context, 1, KvType::F16, Runtime::None)).unwrap().remarks;
        remarks.contains(&Remark::BeyondModel { context, most: 4_096 })
    };
    assert!(!said(4_096) && said(4_097));
}

fn caches() -> impl Strategy<Value = Vec<Group>> {
    let cache = prop_oneof![
        (1u64..4_096, 1u64..4_096, prop::option::of(1u64..40_000))
            .prop_map(|(keys, values, window)| Cache::Attention { keys, values, window }),
        (1u64..4_096, 1u64..65_536).prop_map(|(compressed, expanded)| Cache::Latent { compressed, expanded }),
        (1u64..1 << 21).prop_map(|elements| Cache::State { elements }),
    ];
    prop::collection::vec((1u64..80, cache).prop_map(|(layers, cache)| Group { layers, cache }), 1..5)
}

proptest! {
    /// The oracle goes layer by layer, sequence by sequence and token by token of a window.
    #[test]
    fn caches_are_what_each_layer_keeps_for_each_sequence(
        groups in caches(), context in 1u64..100_000, sequences in 1u64..9, quantized in any::<bool>(),
    ) {
        let kv = if quantized { KvType::Q8_0 } else { KvType::F16 };
        let estimate = estimate(&shape(groups.clone(), stored()), &request(context, sequences, kv, Runtime::None)).unwrap();
        let per_element = if quantized { 1.0625 } else { 2.0 };
        let mut bytes = 0.0;
        for group in &groups {
            for _ in 0..group.layers {
                for _ in 0..sequences {
                    bytes += match group.cache {
                        Cache::Attention { keys, values, window } => {
                            (keys + values) as f64 * context.min(window.unwrap_or(u64::MAX)) as f64 * per_element
                        }
                        Cache::Latent { compressed, .. } => (compressed * context) as f64 * per_element,
                        Cache::State { elements } => elements as f64 * 4.0,
                    };
                }
            }
        }
        // Each of the four kinds is rounded up to MiB.
        let mib = bytes / f64::from(1 << 20);
        let ours = estimate.kv.mib() as f64;
        prop_assert!(ours >= mib * 0.999_999 && ours < mib * 1.000_001 + 4.001, "{} {}", ours, mib);
    }

    #[test]
    fn the_total_is_the_sum_of_the_parts_and_never_falls_with_context_or_sequences(
        groups in caches(), context in 1u64..200_000, more in 0u64..200_000, sequences in 1u64..20, others in 0u64..20,
        which in 0usize..5,
    ) {
        let runtime =
            [Runtime::Vllm, Runtime::Ollama, Runtime::LlamaCpp, Runtime::Transformers, Runtime::None][which];
        let shape = shape(groups, stored());
        let of = |context, sequences| estimate(&shape, &request(context, sequences, KvType::F16, runtime)).unwrap();
        let (small, large) = (of(context, sequences), of(context + more, sequences + others));
        for estimate in [&small, &large] {
            let sum: u64 = estimate.parts.iter().map(|part| part.amount.mib()).sum();
            prop_assert_eq!(sum, estimate.total.mib());
            prop_assert_eq!(estimate.weights.mib() + estimate.kv.mib() + estimate.runtime.mib(), sum);
        }
        prop_assert!(large.total >= small.total);
    }
}
