//! Tests `vramguard estimate` as a user starts it: files of each format, split models, directories, and what cannot be read.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // a test starts programs

#[path = "../../src/model/testing.rs"]
mod files;
mod measured;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Finished, run};
use files::{Gguf, safetensors, with_header};

const BINARY: &str = env!("CARGO_BIN_EXE_vramguard");

fn estimate(model: &Path, arguments: &[&str]) -> Finished {
    let mut command = Command::new(BINARY);
    command.arg("estimate").arg(model).args(arguments).env("KUBECONFIG", "/nonexistent");
    run(&mut command, Duration::from_secs(60))
}

/// The estimate of a model as JSON.
fn document(model: &Path, arguments: &[&str]) -> Value {
    let output = estimate(model, &[arguments, &["--output", "json"]].concat()).expect_success();
    serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output}"))
}

/// The error of a model that cannot be estimated. Nothing goes to stdout.
fn refused(model: &Path, arguments: &[&str]) -> String {
    let finished = estimate(model, &[&["--context", "4096"], arguments].concat());
    assert_eq!((finished.status.code(), finished.stdout.as_str()), (Some(2), ""), "{}", finished.stderr);
    finished.stderr
}

/// Writes a header, and makes the file as long as its data would. The data are a hole, which takes no room on the disk.
fn write(path: &Path, (header, length): (Vec<u8>, u64)) {
    std::fs::write(path, header).expect("a file");
    let file = std::fs::File::options().write(true).open(path).expect("a file");
    file.set_len(length).expect("a length");
}

fn configuration() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": false,
    })
}

/// A tensor of so many MiB in bf16.
fn matrix(name: &str, mib: u64) -> (&str, &'static str, [u64; 2], u64) {
    (name, "BF16", [mib << 9, 1 << 10], mib << 20)
}

fn of_matrices(tensors: &[(&str, &'static str, [u64; 2], u64)]) -> (Vec<u8>, u64) {
    let tensors: Vec<(&str, &str, &[u64], u64)> =
        tensors.iter().map(|(name, dtype, shape, bytes)| (*name, *dtype, shape.as_slice(), *bytes)).collect();
    safetensors(&tensors)
}

/// Llama 3 8B with a tokenizer of some MiB, and weights of 100 GiB that are not there.
fn large_gguf() -> Gguf {
    let vast = 100u64 << 30;
    Gguf::new("llama")
        .number("llama.block_count", 32)
        .number("llama.embedding_length", 4_096)
        .number("llama.feed_forward_length", 14_336)
        .number("llama.context_length", 8_192)
        .number("llama.attention.head_count", 32)
        .numbers("llama.attention.head_count_kv", &[8; 32])
        .texts("tokenizer.ggml.tokens", 200_000)
        .tensor("token_embd.weight", &[4_096, 128_256], 1, 4_096 * 128_256 * 2)
        .tensor("blk.0.ffn_up.weight", &[1 << 20, vast >> 21], 1, vast)
        .tensor("output.weight", &[4_096, 128_256], 1, 4_096 * 128_256 * 2)
}

#[test]
fn a_gguf_file_of_100_gib_takes_only_its_header() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("model.gguf");
    write(&file, large_gguf().header());
    let read = document(&file, &["--context", "8192", "--concurrency", "4", "--kv-type", "q8_0"]);
    // Llama 3 8B: 2 × 32 layers × 8 heads × 128 elements × 34/32 bytes.
    assert_eq!((&read["kvBytesPerToken"], &read["kvMib"]), (&69_632.into(), &2_176.into()));
    // The embedding stays in host memory; the head of 1,002 MiB does not.
    assert_eq!((&read["weightsMib"], &read["runtime"]), (&(100 * 1_024 + 1_002).into(), &"llama.cpp".into()));
    assert_eq!(read["totalMib"], 100 * 1_024 + 1_002 + 2_176 + 259);
    let parts = read["parts"].as_array().expect("parts");
    let sum: u64 = parts.iter().map(|part| part["mib"].as_u64().expect("an amount")).sum();
    assert_eq!(read["totalMib"], sum);
    assert!(parts.iter().all(|part| part["source"].is_string() && part["confidence"].is_string()), "{read}");
}

#[test]
fn the_annotation_is_one_line_that_the_webhook_reads() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("config.json");
    std::fs::write(&file, configuration().to_string()).expect("a file");
    let line = estimate(&file, &["--context", "8192", "--runtime", "none", "--annotation"]).expect_success();
    assert_eq!(line, "vramguard.dev/vram: \"16341Mi\"\n");
    let read: Value = serde_saphyr::from_str(&line).expect("YAML");
    let amount = read["vramguard.dev/vram"].as_str().expect("a text");
    assert_eq!(amount.parse(), Ok(vramguard::capacity::vram::Vram::from_mib(16_341)));
}

#[test]
fn the_table_names_each_part_its_confidence_and_the_line_to_paste() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("config.json"), configuration().to_string()).expect("a file");
    let table = estimate(folder.path(), &["--context", "8192"]).expect_success();
    let lines: Vec<String> = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for line in [
        "weights 15317Mi medium 8.03B parameters by the configuration, as bf16",
        "KV cache 1024Mi high 32 layers × 8192 tokens as f16",
        "declare: vramguard.dev/vram: \"18473Mi\"",
        "note: the CUDA context of a process is not contained: vramguard adds perProcessOverhead to each declaration",
    ] {
        assert!(lines.iter().any(|found| found == line), "{line}\n{table}");
    }
}

#[test]
fn the_shards_of_a_directory_are_one_model_and_a_missing_one_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let (first, second) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    write(&path(first), of_matrices(&[matrix("model.embed_tokens.weight", 100), matrix("a.weight", 1_000)]));
    write(&path(second), of_matrices(&[matrix("b.weight", 2_000), matrix("lm_head.weight", 100)]));
    let index =
        json!({"metadata": {}, "weight_map": {"a.weight": first, "b.weight": second, "lm_head.weight": second}});
    std::fs::write(path("model.safetensors.index.json"), index.to_string()).expect("a file");
    std::fs::write(path("config.json"), configuration().to_string()).expect("a file");
    let arguments = ["--context", "4096", "--runtime", "none"];
    for model in [folder.path().to_owned(), path("model.safetensors.index.json"), path(first), path(second)] {
        let read = document(&model, &arguments);
        assert_eq!((&read["weightsMib"], &read["kvMib"]), (&3_200.into(), &512.into()), "{}", model.display());
        assert_eq!(read["parts"][0]["confidence"], "high");
    }
    let rescaled = document(folder.path(), &["--context", "4096", "--weights-dtype", "int4"]);
    assert_eq!(rescaled["weightsMib"], 200 + (3_000 / 2 * 133_u64).div_ceil(256));
    assert_eq!(rescaled["parts"][0]["confidence"], "low");
    std::fs::remove_file(path(second)).expect("a file");
    for model in [folder.path().to_owned(), path(first)] {
        let error = refused(&model, &[]);
        assert!(error.contains(&format!("{second}: is missing")), "{error}");
    }
    std::fs::remove_file(path("config.json")).expect("a file");
    write(&path(second), of_matrices(&[matrix("b.weight", 1)]));
    assert!(refused(folder.path(), &[]).contains("config.json: is missing; safetensors files do not say"));
}

#[test]
fn the_files_of_a_split_gguf_are_one_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |number: u32| folder.path().join(format!("m-{number:05}-of-00002.gguf"));
    let first = || large_gguf().number("split.count", 2).number("split.no", 0).header();
    write(&path(1), first());
    let rest = Gguf::new("llama").number("split.count", 2).number("split.no", 1);
    write(&path(2), rest.tensor("blk.1.ffn_up.weight", &[1 << 10, 1 << 19], 1, 1 << 30).header());
    for model in [folder.path().to_owned(), path(1), path(2)] {
        let read = document(&model, &["--context", "4096", "--runtime", "none"]);
        assert_eq!(read["weightsMib"], 101 * 1_024 + 2 * 1_002, "{}", model.display());
        assert_eq!(read["files"].as_array().map(Vec::len), Some(2));
    }
    // The same file twice is not the model.
    write(&path(2), first());
    assert!(refused(folder.path(), &[]).contains("the file is part 1 of 2; part 2 of 2 was expected"));
    std::fs::remove_file(path(2)).expect("a file");
    assert!(refused(&path(1), &[]).contains("m-00002-of-00002.gguf: is missing; the model is in 2 files"));
}

#[test]
fn a_directory_without_one_model_says_what_it_has() {
    let folder = tempfile::tempdir().expect("a folder");
    assert!(refused(folder.path(), &[]).contains("has no model; GGUF files, safetensors files or a config.json"));
    write(&folder.path().join("a.gguf"), large_gguf().header());
    write(&folder.path().join("b.gguf"), large_gguf().header());
    assert!(refused(folder.path(), &[]).contains("has several models; name one: a.gguf, b.gguf"));
    write(&folder.path().join("c.safetensors"), with_header("{}", 0));
    assert!(refused(folder.path(), &[]).contains("has GGUF files and safetensors files; name the file of one model"));
}

#[test]
fn what_cannot_be_read_names_file_and_place_and_exits_2() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let (header, length) = large_gguf().header();
    std::fs::write(path("cut.gguf"), &header[..100]).expect("a file");
    write(&path("short.gguf"), (header, length - 1));
    write(&path("hole.safetensors"), with_header(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}}"#, 9));
    std::fs::write(path("broken.json"), "{\n\n").expect("a file");
    std::fs::write(path("other.json"), r#"{"model_type":"brandnew"}"#).expect("a file");
    std::fs::write(path("config.json"), configuration().to_string()).expect("a file");
    for (name, expected) in [
        ("cut.gguf", "cut.gguf: byte 98: the file ends within a number; download it again"),
        ("short.gguf", "the file ends, but its tensors end at byte"),
        ("hole.safetensors", "hole.safetensors: data byte 1: a tensor leaves a hole; byte 0 was expected"),
        ("broken.json", "broken.json: line 3: EOF while parsing an object"),
        ("other.json", "other.json: field \"num_hidden_layers\": is missing; architecture \"brandnew\" is not known"),
        ("none.gguf", "none.gguf: there is no such file or directory"),
    ] {
        let error = refused(&path(name), &[]);
        assert!(error.contains(expected), "{name}: {error}");
    }
    assert!(refused(&path("config.json"), &["--kv-type", "q4_0"]).contains("vllm has no KV cache of type q4_0"));
    let output = format!("json={}", path("config.json").display());
    assert!(refused(&path("config.json"), &["--output", &output]).contains("is read too, and would be overwritten"));
    for arguments in [&["--context", "0"][..], &["--concurrency", "0", "--context", "1"], &[]] {
        assert_eq!(estimate(&path("config.json"), arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn the_page_shows_what_is_printed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/estimate.md")).expect("a page");
    let shown = page.split("\n```text\n").nth(1).and_then(|rest| rest.split("\n```").next()).expect("an output");
    let model = root.join("tests/estimate/Qwen3-8B.json");
    let printed = estimate(&model, &["--context", "32768", "--concurrency", "4"]).expect_success();
    assert!(printed.contains(shown), "{printed}");
    let arguments = ["--context", "32768", "--weights-dtype", "fp8", "--annotation"];
    let line = estimate(&model, &arguments).expect_success();
    assert!(page.contains(&format!(" --weights-dtype fp8 --annotation\n{line}```")), "{line}");
}

/// Ollama names its files by their hash.
#[test]
fn a_file_is_known_by_its_first_bytes_and_not_by_its_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("sha256-6a0746a1ec1aef3e7ec53868f220ff6e389f6f8ef87a01d77c96807de94ca2aa");
    write(&file, large_gguf().header());
    assert_eq!(document(&file, &["--context", "4096", "--runtime", "ollama"])["architecture"], "llama");
    std::fs::write(&file, "#!/bin/sh\n").expect("a file");
    assert!(refused(&file, &[]).contains("is no model file; a GGUF file, a safetensors file, a config.json"));
}
