//! The source tree itself: imports point down, the core knows no Kubernetes, names stand in one place.
//!
//! Clippy forbids the pure tiers clocks, files, environment, threads and hash maps (`clippy.toml`); a build without the
//! `cluster` feature (`.ci/run`) proves that they need none of the shells' crates. This is the rest.

use std::path::{Path, PathBuf};

fn sources(under: &str) -> Vec<(PathBuf, String)> {
    fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    let mut files = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join(under), &mut files);
    files.sort();
    assert!(!files.is_empty(), "{under} holds no sources");
    files.into_iter().map(|path| (path.clone(), std::fs::read_to_string(path).expect("a source"))).collect()
}

/// `tests.rs`, and what is in a folder of that name beside it.
fn is_test(path: &Path) -> bool {
    let path = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).expect("a source is in the crate");
    path.components().any(|part| ["tests", "tests.rs"].iter().any(|name| part.as_os_str() == *name))
}

/// Lines of code (comments and tests left out) under a folder that hold any of the words.
fn lines_with(under: &str, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in sources(under) {
        if is_test(&path) {
            continue;
        }
        let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for (number, line) in (1..).zip(code.lines()) {
            let line_of_code = line.split("//").next().unwrap_or_default();
            if words.iter().any(|word| line_of_code.contains(word)) {
                found.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    found
}

fn none(found: Vec<String>) {
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn the_core_imports_nothing_but_std_thiserror_and_itself() {
    let words = [
        "k8s::",
        "k8s_openapi",
        "kube::",
        "serde",
        "tokio",
        "jiff",
        "tracing",
        "json",
        "async ",
        ".await",
        "HashMap",
        "HashSet",
    ];
    none(lines_with("src/capacity", &words));
    let mut foreign = lines_with("src/capacity", &["use "]);
    // Path, number, and then the line: a message may have the word in its midst.
    foreign.retain(|line| line.splitn(3, ':').nth(2).is_some_and(|code| code.starts_with(" use ")));
    assert!(foreign.len() > 10, "the core has imports: {foreign:?}");
    let allowed = ["use std::", "use super::", "use self::", "use crate::keys", "use crate::capacity"];
    none(foreign.into_iter().filter(|line| !allowed.iter().any(|prefix| line.contains(prefix))).collect());
}

#[test]
fn translation_imports_no_client_no_runtime_and_no_shell() {
    let shells = ["cli", "controller", "index", "ledgers", "metrics", "policies", "tls", "unbound", "watch", "webhook"];
    let shells: Vec<String> = shells.iter().map(|shell| format!("crate::{shell}::")).collect();
    let mut words: Vec<&str> = shells.iter().map(String::as_str).collect();
    words.extend([
        "kube::",
        "tokio",
        "hyper",
        "axum",
        "tracing",
        "std::fs",
        "std::env",
        "async ",
        ".await",
        "Timestamp::now",
    ]);
    none(lines_with("src/k8s", &words));
}

#[test]
fn names_of_annotations_and_resources_stand_in_one_file() {
    let mut stray =
        lines_with("src", &["\"vramguard.dev/", "\"nvidia.com/", "\"NVIDIA_", "\"CUDA_", "\"VRAMGUARD_VRAM"]);
    stray.retain(|line| !line.contains("src/keys.rs"));
    none(stray);
}

/// A second opinion on VRAM is the first bug of every tool of this kind: shells ask, they do not count.
#[test]
fn shells_do_not_compare_or_sum_vram() {
    for shell in ["src/cli", "src/controller", "src/webhook"] {
        let arithmetic =
            [".plus(", ".less(", ".checked_times(", ".deficit() >", ".room() >", ".room() <", "Vram::from_mib("];
        none(lines_with(shell, &arithmetic));
    }
}

#[test]
fn files_stay_small_enough_to_be_read() {
    for (path, text) in sources("src") {
        let lines = text.lines().count();
        assert!(lines <= 500, "{} has {lines} lines: a hard look is due", path.display());
    }
}
