use proptest::prelude::*;

use super::*;
use crate::capacity::estimate::shape::{Cache, Group, ModelShape, Weights};
use crate::capacity::estimate::{self, KvType, Request, Runtime};
use crate::model::testing::Gguf;

/// A model of two layers with a tokenizer.
fn small() -> Gguf {
    Gguf::new("llama")
        .number("llama.block_count", 2)
        .number("llama.embedding_length", 512)
        .number("llama.feed_forward_length", 1_024)
        .number("llama.context_length", 4_096)
        .number("llama.attention.head_count", 8)
        .number("llama.attention.head_count_kv", 2)
        .texts("tokenizer.ggml.tokens", 1_000)
        .text("tokenizer.chat_template", &"x".repeat(5_000))
        .tensor("token_embd.weight", &[512, 1_000], 14, 512_000 / 256 * 210)
        .tensor("blk.0.attn_q.weight", &[512, 512], 12, 512 * 2 * 144)
        .tensor("blk.1.attn_norm.weight", &[512], 0, 2_048)
        .tensor("output.weight", &[512, 1_000], 8, 512_000 / 32 * 34)
}

fn header(file: &Gguf) -> Result<Header, Unreadable> {
    let (bytes, length) = file.header();
    read(bytes.as_slice(), Some(length))
}

fn shape_of(file: &Gguf) -> Result<ModelShape, Unreadable> {
    header(file).and_then(|header| shape::shape(&[header]))
}

#[test]
fn a_header_says_what_tensors_take_and_what_each_layer_keeps() {
    let shape = shape_of(&small()).unwrap();
    let cache = Cache::Attention { keys: 128, values: 128, window: None };
    assert_eq!(shape.caches, [Group { layers: 2, cache }]);
    assert_eq!((shape.hidden, shape.feed_forward, shape.vocabulary), (Some(512), Some(1_024), Some(1_000)));
    assert!(shape.known && shape.longest == Some(4_096));
    let Weights::Stored(stored) = shape.weights else { panic!("tensors are stored") };
    assert_eq!((stored.embedding, stored.head), (420_000, 544_000));
    assert_eq!(stored.bytes, 420_000 + 147_456 + 2_048 + 544_000);
    let parameters = stored.parameters.unwrap();
    assert_eq!((parameters.matrices, parameters.other, parameters.head), (512 * 512, 512, Some(512_000)));
}

#[test]
fn nothing_is_kept_of_a_tokenizer() {
    let header = header(&small()).unwrap();
    assert!(header.keys.keys().all(|key| !key.starts_with("tokenizer.")), "{:?}", header.keys.keys());
    assert_eq!(header.keys.len(), 7);
}

#[test]
fn the_token_embedding_stays_in_host_memory_under_llama_cpp() {
    let shape = shape_of(&small()).unwrap();
    let with = |runtime| {
        let request = Request { context: 256, concurrency: 1, kv: KvType::F16, weights: None, runtime };
        estimate::estimate(&shape, &request).unwrap().weights.mib()
    };
    assert_eq!((with(Runtime::LlamaCpp), with(Runtime::None)), (1, 2));
}

#[test]
fn each_mistake_says_where_it_is_and_what_was_expected() {
    let (good, length) = small().header();
    let patched = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        read(file.as_slice(), Some(length)).unwrap_err().to_string()
    };
    for (error, expected) in [
        (patched(0, b"GGML"), "byte 0: is no GGUF file: it does not begin with GGUF"),
        (patched(4, &1u32.to_le_bytes()), "byte 4: version 1 is not read; convert the model again"),
        (patched(4, &3u32.to_be_bytes()), "byte 4: is big-endian"),
        (patched(4, &99u32.to_le_bytes()), "byte 4: version 99 is not known; 2 or 3 was expected"),
        (patched(8, &u64::MAX.to_le_bytes()), "byte 8: says that there are 18446744073709551615 tensors"),
        (patched(16, &u64::MAX.to_le_bytes()), "byte 16: says that there are 18446744073709551615 keys"),
        (
            patched(24, &u64::MAX.to_le_bytes()),
            "byte 32: a key has 18446744073709551615 bytes; at most 1024 were expected",
        ),
    ] {
        assert!(error.starts_with(expected), "{error}");
    }
    let error = |file: Gguf| header(&file).unwrap_err().to_string();
    for (error, expected) in [
        (error(small().number("general.alignment", 0)), "field \"general.alignment\": is 0; 1 to 1048576 was expected"),
        (error(small().number("llama.block_count", 3)), "key \"llama.block_count\" is there twice"),
        (error(small().tensor("x", &[64], 4, 1)), "tensor \"x\": has type 4, which is not known"),
        (error(small().tensor("x", &[100], 12, 1)), "tensor \"x\": has rows of 100 elements; a multiple of 256"),
        (error(small().tensor("x", &[1 << 40, 1 << 40], 0, 1)), "tensor \"x\": has 2^64 elements or more"),
        (error(small().tensor("x", &[1 << 62], 0, 1)), "tensor \"x\": has 2^64 bytes or more"),
        (error(small().tensor("x", &[1; 9], 0, 4)), "tensor \"x\": has 9 dimensions; at most 8 are read"),
        (error(small().tensor("x", &[256], 0, 2_000).tensor("y", &[256], 0, 1_024)), "leaves a hole; byte 1114528 was"),
        (error(small().tensor("x", &[256], 0, 32).tensor("y", &[256], 0, 1_024)), "overlaps the tensor before it"),
    ] {
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_file_that_ends_early_is_told_from_a_whole_one() {
    let (good, length) = small().header();
    assert!(
        read(good.as_slice(), Some(length - 1)).unwrap_err().what.starts_with("the file ends, but its tensors end at")
    );
    assert!(read(good.as_slice(), None).is_ok(), "the size of a stream is not known");
    for end in 0..good.len() {
        let error = read(&good[..end], Some(length)).unwrap_err().to_string();
        assert!(error.contains("the file ends within"), "{end}: {error}");
    }
}

/// A tokenizer of 2^60 bytes would be read for years.
#[test]
fn a_header_that_does_not_end_is_left_at_the_bound() {
    let mut endless = Gguf::new("llama").header().0;
    endless[16] += 1;
    for part in
        [&7u64.to_le_bytes()[..], b"general", &9u32.to_le_bytes(), &0u32.to_le_bytes(), &(1u64 << 60).to_le_bytes()]
    {
        endless.extend(part);
    }
    let error = read(endless.chain(std::io::repeat(0)), None).unwrap_err().to_string();
    assert!(error.ends_with("an array ends beyond 512 MiB, the most that is read of a header"), "{error}");
    let mut nested = Gguf::new("llama").header().0;
    nested[16] += 1;
    nested.extend([&1u64.to_le_bytes()[..], b"x", &9u32.to_le_bytes()].concat());
    for _ in 0..100_000 {
        nested.extend([&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat());
    }
    assert!(read(nested.as_slice(), None).unwrap_err().to_string().ends_with("arrays are nested deeper than 4"));
}

#[test]
fn keys_that_are_missing_or_of_another_type_are_named() {
    let error = |file: Gguf| shape_of(&file).unwrap_err().to_string();
    let empty = || Gguf::new("llama");
    for (error, expected) in [
        (error(empty()), "field \"llama.block_count\": is missing; architecture \"llama\" is not known without it"),
        (error(empty().number("llama.block_count", 0)), "field \"llama.block_count\": is 0; 1 to 4096 was expected"),
        (error(empty().text("llama.block_count", "2")), "is no number; a whole number was expected"),
        (error(empty().number("llama.block_count", 2)), "field \"llama.attention.head_count\": is missing"),
        (
            error(small().numbers("llama.attention.key_length", &[1])),
            "field \"llama.attention.key_length\": is no number; a whole number was expected",
        ),
        (
            error(Gguf::new("bert").number("bert.block_count", 2).number("bert.attention.causal", 0)),
            "the model is an encoder, which keeps nothing for a context",
        ),
        (error(small().number("split.count", 2)), "the file is part 1 of 2; part 1 of 1 was expected"),
        (error(small().number("split.tensors.count", 9)), "is 9, but the files have 4 tensors; download them again"),
    ] {
        assert!(error.contains(expected), "{error}");
    }
    let each = |numbers: &[i32]| {
        Gguf::new("llama")
            .number("llama.block_count", 2)
            .number("llama.embedding_length", 64)
            .numbers("llama.attention.head_count", numbers)
    };
    assert!(error(each(&[1])).contains("has 1 numbers; one for each of 2 layers was expected"));
    assert!(error(each(&[1, -1])).contains("has a negative number; 0 or more was expected"));
}

#[test]
fn the_files_of_a_split_are_one_model_and_must_be_in_order() {
    let first = || small().number("split.count", 2).number("split.no", 0).number("split.tensors.count", 5);
    let second = Gguf::new("llama").number("split.count", 2).number("split.no", 1);
    let second = header(&second.tensor("blk.1.ffn_up.weight", &[512, 1_024], 1, 1 << 20)).unwrap();
    let first = header(&first()).unwrap();
    let one = shape::shape(&[first.clone(), second.clone()]).unwrap();
    let Weights::Stored(stored) = one.weights else { panic!("tensors are stored") };
    assert_eq!(stored.bytes, 1_113_504 + (1 << 20));
    let error = shape::shape(&[second, first]).unwrap_err().to_string();
    assert!(error.contains("the file is part 2 of 2; part 1 of 2 was expected"), "{error}");
}

/// Keys of an architecture with so many layers, 64 elements a head.
fn plain(architecture: &str, layers: u32, kv_heads: u32) -> Gguf {
    let key = |name: &str| format!("{architecture}.{name}");
    Gguf::new(architecture)
        .number(&key("block_count"), layers)
        .number(&key("embedding_length"), 512)
        .number(&key("attention.head_count"), 8)
        .number(&key("attention.head_count_kv"), kv_heads)
}

fn groups(file: &Gguf) -> Vec<Group> {
    shape_of(file).unwrap().caches
}

#[test]
fn layers_with_a_window_are_those_of_the_architecture_or_of_the_pattern() {
    let window = |layers, window| {
        let cache = Cache::Attention { keys: 128, values: 128, window };
        Group { layers, cache }
    };
    // Gemma 3 27B has 62 layers, of which every sixth attends to everything.
    let gemma = plain("gemma3", 62, 2).number("gemma3.attention.sliding_window", 1_024);
    assert_eq!(groups(&gemma), [window(52, Some(1_024)), window(10, None)]);
    let flags = plain("other", 3, 2)
        .number("other.attention.sliding_window", 128)
        .numbers("other.attention.sliding_window_pattern", &[1, 1, 0]);
    assert_eq!(groups(&flags), [window(2, Some(128)), window(1, None)]);
    let zero = gemma.number("gemma3.attention.sliding_window_pattern", 0);
    let error = shape_of(&zero).unwrap_err().to_string();
    assert!(
        error.contains("gemma3.attention.sliding_window_pattern") && error.contains("is 0; a number of"),
        "{error}"
    );
    // Nobody says which layers: all count with the whole context, and the estimate says so.
    let unplaced = shape_of(&plain("phi3", 4, 2).number("phi3.attention.sliding_window", 2_047)).unwrap();
    assert_eq!((unplaced.caches, unplaced.unplaced_window), (vec![window(4, None)], Some(2_047)));
}

#[test]
fn layers_with_a_state_are_those_that_have_its_tensors() {
    // Nemotron-H has layers of attention, of states, and of neither.
    let hybrid = Gguf::new("nemotron_h")
        .number("nemotron_h.block_count", 4)
        .number("nemotron_h.embedding_length", 512)
        .numbers("nemotron_h.attention.head_count", &[0, 0, 8, 0])
        .numbers("nemotron_h.attention.head_count_kv", &[0, 0, 2, 0])
        .number("nemotron_h.ssm.conv_kernel", 4)
        .number("nemotron_h.ssm.inner_size", 1_024)
        .number("nemotron_h.ssm.state_size", 128)
        .number("nemotron_h.ssm.group_count", 8)
        .tensor("blk.0.ssm_conv1d.weight", &[4, 3_072], 0, 49_152)
        .tensor("blk.3.ssm_conv1d.weight", &[4, 3_072], 0, 49_152);
    let state = Cache::State { elements: 3 * (1_024 + 2 * 8 * 128) + 1_024 * 128 };
    let attention = Cache::Attention { keys: 128, values: 128, window: None };
    assert_eq!(groups(&hybrid), [Group { layers: 2, cache: state }, Group { layers: 1, cache: attention }]);
    // Falcon-H1 has both in each layer.
    let both = plain("falcon-h1", 2, 2)
        .number("falcon-h1.ssm.conv_kernel", 4)
        .number("falcon-h1.ssm.inner_size", 1_024)
        .number("falcon-h1.ssm.state_size", 128)
        .number("falcon-h1.ssm.group_count", 8)
        .tensor("blk.0.ssm_conv1d.weight", &[4, 3_072], 0, 49_152)
        .tensor("blk.1.ssm_conv1d.weight", &[4, 3_072], 0, 49_152);
    assert_eq!(groups(&both), [Group { layers: 2, cache: state }, Group { layers: 2, cache: attention }]);
}

#[test]
fn linear_attention_is_told_from_attention_by_its_stride_and_short_convolutions_by_their_tensors() {
    let attention = Group { layers: 1, cache: Cache::Attention { keys: 128, values: 128, window: None } };
    let mut next = plain("qwen3next", 4, 2)
        .number("qwen3next.ssm.conv_kernel", 4)
        .number("qwen3next.ssm.inner_size", 4_096)
        .number("qwen3next.ssm.state_size", 128)
        .number("qwen3next.ssm.group_count", 16);
    for layer in 0..3 {
        next = next.tensor(&format!("blk.{layer}.ssm_conv1d.weight"), &[4, 8_192], 0, 131_072);
    }
    let state = Cache::State { elements: 3 * (4_096 + 2 * 16 * 128) + 4_096 * 128 };
    assert_eq!(groups(&next), [Group { layers: 3, cache: state }, attention]);
    let lfm2 = Gguf::new("lfm2")
        .number("lfm2.block_count", 2)
        .number("lfm2.embedding_length", 512)
        .number("lfm2.attention.head_count", 8)
        .numbers("lfm2.attention.head_count_kv", &[0, 2])
        .number("lfm2.shortconv.l_cache", 3)
        .tensor("blk.0.shortconv.conv.weight", &[3, 512], 0, 6_144);
    let state = Cache::State { elements: 2 * 512 };
    assert_eq!(groups(&lfm2), [Group { layers: 1, cache: state }, attention]);
}

/// The keys of a model with multi-head latent attention as llama.cpp writes them now, and as it wrote them before.
#[test]
fn latent_attention_counts_as_llama_cpp_runs_the_file() {
    let old = plain("deepseek2", 61, 8)
        .number("deepseek2.attention.key_length", 192)
        .number("deepseek2.attention.value_length", 128);
    let expanded = Cache::Attention { keys: 8 * 192, values: 8 * 128, window: None };
    assert_eq!(groups(&old), [Group { layers: 61, cache: expanded }]);
    let new = plain("deepseek2", 61, 1)
        .number("deepseek2.attention.key_length", 576)
        .number("deepseek2.attention.value_length", 512)
        .number("deepseek2.attention.key_length_mla", 192)
        .number("deepseek2.attention.value_length_mla", 128);
    let latent = Cache::Latent { compressed: 576, expanded: 8 * (192 + 128) };
    assert_eq!(groups(&new), [Group { layers: 61, cache: latent }]);
}

#[test]
fn a_model_whose_layers_keep_nothing_known_gets_no_estimate() {
    let rwkv = Gguf::new("rwkv7").number("rwkv7.block_count", 4).number("rwkv7.attention.head_count", 0);
    let error = shape_of(&rwkv).unwrap_err().to_string();
    assert!(error.contains("no layer of architecture \"rwkv7\" keeps anything that is known"), "{error}");
    let error = shape_of(&plain("other", 4, 2).number("other.ssm.state_size", 16)).unwrap_err().to_string();
    assert!(error.contains("field \"other.ssm.state_size\": architecture \"other\" keeps a state"), "{error}");
}

/// Types with what one block holds: scales, high bits and low bits, as ggml defines them.
const TYPES: [(u32, u64, u64); 8] = [
    (0, 1, 4),
    (30, 1, 2),
    (2, 32, 2 + 16),
    (8, 32, 2 + 32),
    (12, 256, 2 + 2 + 12 + 128),
    (14, 256, 128 + 64 + 16 + 2),
    (23, 256, 2 + 2 + 4 + 128),
    (39, 32, 1 + 16),
];

proptest! {
    /// The oracle adds the sizes of blocks up.
    #[test]
    fn bytes_are_the_sum_over_blocks(tensors in prop::collection::vec((0usize..8, 1u64..40, 1u64..40), 0..20)) {
        let mut file = plain("llama", 1, 1);
        let mut sum = 0;
        for (number, (kind, blocks, rows)) in tensors.iter().enumerate() {
            let (kind, elements, bytes) = TYPES[*kind];
            let size = blocks * rows * bytes;
            sum += u128::from(size);
            file = file.tensor(&format!("blk.0.t{number}"), &[blocks * elements, *rows], kind, size);
        }
        let Weights::Stored(stored) = shape_of(&file).unwrap().weights else { panic!("tensors are stored") };
        prop_assert_eq!(stored.bytes, sum);
    }

    /// A reader that keeps what a count says would take gigabytes; one that trusts a length would panic.
    #[test]
    fn no_file_panics_or_keeps_more_than_it_has(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        end in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let (mut file, length) = small().header();
        for (place, byte) in changes {
            let place = place.index(file.len());
            file[place] = byte;
        }
        if cut {
            file.truncate(end.index(file.len()));
        }
        if let Ok(header) = read(file.as_slice(), Some(length)) {
            let kept: usize = header.keys.iter().map(|(key, value)| key.len() + match value {
                Value::Integer(_) => 0,
                Value::Text(text) => text.len(),
                Value::Integers(list) => list.len(),
            }).sum();
            prop_assert!(kept <= file.len());
            if let Ok(shape) = shape::shape(&[header]) {
                let request = Request {
                    context: 1 << 30, concurrency: 1 << 16, kv: KvType::F16, weights: None, runtime: Runtime::LlamaCpp,
                };
                let _ = estimate::estimate(&shape, &request);
            }
        }
    }
}
