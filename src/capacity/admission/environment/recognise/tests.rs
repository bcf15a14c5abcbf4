//! What images, commands and arguments tell.

use super::*;

fn of(image: &str, command: &[&str], args: &[&str]) -> String {
    let Software { framework, version, list, flags } = recognise(image, command, args);
    let mut text = framework.map_or("none", Framework::name).to_owned();
    if let Some(version) = version {
        text += &format!(" {version}");
    }
    for flag in flags {
        text += &format!(" {}={}", flag.name, flag.value.unwrap_or_default());
    }
    match list {
        Some(ArgumentList::Command) => text + " command",
        Some(ArgumentList::Args) => text + " args",
        None => text,
    }
}

#[test]
fn a_framework_is_recognised_by_the_last_part_of_its_image() {
    for (image, framework) in [
        ("vllm/vllm-openai:v0.11.0", "vLLM"),
        ("registry.example.com:5000/mirror/vllm-openai@sha256:00", "vLLM"),
        ("lmsysorg/sglang:latest", "SGLang"),
        ("ghcr.io/huggingface/text-generation-inference:3.3.4", "TGI"),
        ("ghcr.io/huggingface/text-embeddings-inference:1.8", "none"),
        ("ollama/ollama", "Ollama"),
        ("ghcr.io/ggml-org/llama.cpp:server-cuda", "llama.cpp"),
        ("nvcr.io/nvidia/tritonserver:25.10-vllm-python-py3", "Triton"),
        ("nvcr.io/nvidia/jax:25.10-py3", "JAX"),
        ("tensorflow/tensorflow:2.20.0-gpu", "TensorFlow"),
        ("nvcr.io/nvidia/pytorch:25.10-py3", "PyTorch"),
        ("pytorch/pytorch:2.10.0-cuda12.8-cudnn9-runtime", "PyTorch 2.10"),
        ("docker.io/pytorch/pytorch:2.9.1-cuda12.8-cudnn9-devel", "PyTorch 2.9"),
        ("pytorch/pytorch:latest", "PyTorch"),
        ("pytorch/pytorch", "PyTorch"),
        // The digest decides what runs.
        ("pytorch/pytorch:2.10.0@sha256:00", "PyTorch"),
        // The tag is the version of their own image.
        ("example.com/ml/trainer-pytorch:2.11", "PyTorch"),
        ("example.com/pytorch/app:2.11", "none"),
        ("example.com/llm/agent:1", "none"),
        ("", "none"),
    ] {
        assert_eq!(of(image, &[], &[]), framework, "{image}");
    }
}

#[test]
fn a_command_is_better_evidence_than_an_image() {
    for (image, command, args, expected) in [
        ("agent:1", &["vllm", "serve", "m"][..], &[][..], "vLLM command"),
        ("agent:1", &["vllm"], &["serve", "m"], "vLLM args"),
        ("agent:1", &[], &["/opt/bin/vllm", "serve", "m"], "vLLM args"),
        ("agent:1", &["python3", "-m", "vllm.entrypoints.openai.api_server"], &[], "vLLM command"),
        ("pytorch/pytorch:2.10.0", &["vllm", "serve"], &["m"], "vLLM args"),
        ("pytorch/pytorch:2.10.0", &["python", "train.py"], &[], "PyTorch 2.10"),
        ("agent:1", &["torchrun", "--nproc-per-node=1", "train.py"], &[], "PyTorch command"),
        ("agent:1", &["torchrun", "-m", "vllm.entrypoints.api_server"], &[], "vLLM command"),
        ("agent:1", &["tini", "--", "vllm", "serve", "m"], &[], "vLLM command"),
        ("agent:1", &["python", "-m", "sglang.launch_server"], &[], "SGLang command"),
        ("agent:1", &["text-generation-launcher"], &[], "TGI command"),
        ("agent:1", &["/bin/ollama", "serve"], &[], "Ollama command"),
        ("agent:1", &["/app/llama-server"], &["-m", "/m.gguf"], "llama.cpp args"),
        ("agent:1", &["tritonserver"], &[], "Triton command"),
        ("vllm/vllm-openai", &[], &["--model", "m"], "vLLM args"),
        ("vllm/vllm-openai", &[], &[], "vLLM"),
        ("vllm/vllm-openai", &["python", "bench.py"], &["--model", "m"], "vLLM"),
        ("example.com/our-vllm", &[], &["--model", "m"], "vLLM"),
        ("vllm/vllm-openai", &["vllm", "serve", "m", "--", "x"], &[], "vLLM"),
    ] {
        assert_eq!(of(image, command, args), expected, "{image} {command:?} {args:?}");
    }
}

#[test]
fn what_a_shell_starts_is_recognised_and_never_edited() {
    for (command, args) in [
        (&["sh", "-c", "exec vllm serve m --port 80"][..], &[][..]),
        (&["/bin/bash", "-lc"], &["vllm serve m"]),
        (&["env", "A=b", "bash", "-c", "vllm serve m; sleep 1"], &[]),
        (&["tini", "--", "sh", "-ec", "vllm serve m"], &[]),
        (&["sh", "start.sh", "vllm", "serve"], &[]),
    ] {
        assert_eq!(of("agent:1", command, args), "vLLM", "{command:?} {args:?}");
    }
    let own = of("agent:1", &["sh", "-c", "vllm serve m --gpu-memory-utilization \"0.2\""], &[]);
    assert_eq!(own, "vLLM --gpu-memory-utilization=0.2");
    assert_eq!(of("vllm/vllm-openai", &["bash", "start.sh"], &[]), "vLLM");
}

#[test]
fn a_flag_is_found_in_every_spelling() {
    for (written, found) in [
        (&["--gpu-memory-utilization", "0.5"][..], "--gpu-memory-utilization=0.5"),
        (&["--gpu-memory-utilization=0.5"], "--gpu-memory-utilization=0.5"),
        (&["--gpu_memory_utilization", "0.5"], "--gpu-memory-utilization=0.5"),
        (&["--gpu-memory-util", "0.5"], "--gpu-memory-utilization=0.5"),
        (&["--gpu-mem=0.05"], "--gpu-memory-utilization=0.05"),
        (&["--gpu_m", "0.05"], "--gpu-memory-utilization=0.05"),
        (&["--kv-cache-m", "1024"], "--kv-cache-memory-bytes=1024"),
        (&["--gpu-memory-utilization", "--port"], "--gpu-memory-utilization="),
        (&["--gpu-memory-utilization"], "--gpu-memory-utilization="),
        (&["--kv-cache-memory-bytes", "1024"], "--kv-cache-memory-bytes=1024"),
        (&["--config", "/c.yaml"], "--config=/c.yaml"),
        (&["--max-total-tokens", "7"], "--max-total-tokens=7"),
        (&["-c", "8192"], "--ctx-size=8192"),
        (&["--ctx-size", "8192"], "--ctx-size=8192"),
    ] {
        let command = [&["vllm", "serve"], written].concat();
        assert_eq!(of("", &command, &[]), format!("vLLM {found} command"), "{written:?}");
    }
    for other in
        ["--gpu", "--gpu-memory-utilization-of-others", "--kv-cache-metrics", "--conf", "---", "gpu-memory-utilization"]
    {
        assert_eq!(of("", &["vllm", "serve", other, "1"], &[]), "vLLM command", "{other}");
    }
}

#[test]
fn what_is_kept_of_flags_is_bounded_and_the_last_one_counts() {
    let many: Vec<String> = (0..900).map(|value| format!("--max-total-tokens={value}")).collect();
    let long = format!("--config={}", "x".repeat(100_000));
    let words: Vec<&str> =
        ["vllm", "serve"].into_iter().chain(many.iter().map(String::as_str)).chain([&*long]).collect();
    let software = recognise("", &words, &[]);
    assert_eq!(software.flags.len(), 2);
    assert_eq!(software.flag("--max-total-tokens").unwrap().value.as_deref(), Some("899"));
    assert_eq!(software.flag("--config").unwrap().value.as_ref().unwrap().len(), LONGEST_VALUE);
}

#[test]
fn an_annotation_names_a_framework_and_may_name_its_version() {
    let named =
        |text| named(text).map(|(framework, version)| (framework, version.map(|version: Version| version.to_string())));
    assert_eq!(named("PyTorch"), Some((Framework::PyTorch, None)));
    assert_eq!(named("pytorch@2.11.0"), Some((Framework::PyTorch, Some("2.11".into()))));
    assert_eq!(named("llama.cpp"), Some((Framework::LlamaCpp, None)));
    for text in ["", "torch", "PyTorch@", "PyTorch@latest", "PyTorch 2.11", "@2.11", "Auto", "None"] {
        assert_eq!(named(text), None, "{text:?}");
    }
    for framework in Framework::ALL {
        assert_eq!(named(framework.name()), Some((framework, None)), "{framework}");
    }
}

#[test]
fn a_list_that_is_too_long_to_look_at_is_never_edited() {
    for (more, list) in [(MOST_WORDS - 2, Some(ArgumentList::Command)), (MOST_WORDS - 1, None), (1_000_000, None)] {
        let words = [&["vllm", "serve"][..], &vec![""; more]].concat();
        let software = recognise("", &words, &[]);
        assert_eq!((software.framework, software.list), (Some(Framework::Vllm), list), "{more}");
    }
    let script = "vllm serve m ".repeat(100_000);
    assert_eq!(recognise("", &["sh", "-c", &script], &[]).framework, Some(Framework::Vllm));
}
