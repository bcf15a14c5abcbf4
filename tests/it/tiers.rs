//! Checks the source tree itself: the direction of imports, a core without Kubernetes, and names in one file.
//!
//! Clippy forbids clocks, files, the environment, threads and hash maps in the pure tiers (`clippy.toml`). A build
//! without the `cluster` feature (`.ci/run`) proves that they need none of the shells' crates. This file checks the
//! rest.

use std::collections::BTreeSet;
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
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(under);
    let file = root.with_extension("rs");
    files.extend(file.is_file().then_some(file));
    if root.is_dir() {
        walk(&root, &mut files);
    }
    files.sort();
    assert!(!files.is_empty(), "{under} holds no sources");
    files.into_iter().map(|path| (path.clone(), std::fs::read_to_string(path).expect("a source"))).collect()
}

/// Returns whether a file is a `tests.rs`, or in a folder named `tests`.
fn is_test(path: &Path) -> bool {
    let path = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).expect("a source is in the crate");
    path.components().any(|part| ["tests", "tests.rs", "testing.rs"].iter().any(|name| part.as_os_str() == *name))
}

/// Returns the lines of code under a folder that contain any of the words. Comments and tests are left out.
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
fn the_core_imports_nothing_but_std_two_crates_and_itself() {
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
    // Each entry is the path, the line number and then the line. A message may contain the word somewhere inside.
    foreign.retain(|line| line.splitn(3, ':').nth(2).is_some_and(|code| code.starts_with(" use ")));
    assert!(foreign.len() > 10, "the core has imports: {foreign:?}");
    // `litemap` is a sorted list with the interface of a map. `thiserror` is used by its path.
    let crates = "use litemap::LiteMap;";
    let allowed = ["use std::", "use super::", "use self::", "use crate::keys", "use crate::capacity", crates];
    none(foreign.into_iter().filter(|line| !allowed.iter().any(|prefix| line.contains(prefix))).collect());
}

#[test]
fn translation_imports_no_client_no_runtime_and_no_shell() {
    let shells: Vec<String> = shells().iter().map(|shell| format!("crate::{shell}::")).collect();
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
    none(lines_with("src/report", &words));
    words.push("crate::report::");
    none(lines_with("src/k8s", &[words.as_slice(), &["crate::model::"]].concat()));
    // Files of models have nothing to do with Kubernetes.
    none(lines_with("src/model", &[words.as_slice(), &["crate::k8s::", "k8s_openapi"]].concat()));
}

#[test]
fn names_of_annotations_and_resources_stand_in_one_file() {
    let mut stray =
        lines_with("src", &["\"vramguard.dev/", "\"nvidia.com/", "\"NVIDIA_", "\"CUDA_", "\"VRAMGUARD_VRAM"]);
    stray.retain(|line| !line.contains("src/keys.rs"));
    none(stray);
}

/// Shells ask the core about VRAM and do not compute with it themselves.
///
/// Two places that compute the same amount are the first bug of every tool of this kind.
#[test]
fn shells_do_not_compare_or_sum_vram() {
    let arithmetic = [
        ".plus(",
        ".minus(",
        ".checked_times(",
        ".deficit() >",
        ".free() >",
        ".free() <",
        ".free >",
        ".free <",
        ".held >",
        ".held <",
        ".allocatable >",
        ".allocatable <",
        ".demand >",
        ".demand <",
        "Vram::from_mib(",
    ];
    for shell in shells() {
        none(lines_with(&format!("src/{shell}"), &arithmetic));
    }
    // Reports show amounts of a document, in MiB. `report::document::amounts` gives them to the core, which sums them.
    let sums = [".plus(", ".minus(", ".checked_times(", ".deficit()", ".sum::<Vram>", "checked_from_mib("];
    let mut found = lines_with("src/report", &sums);
    found.retain(|line| !line.contains("src/report/document/amounts.rs"));
    none(found);
    none(lines_with("src/report", &["_mib", ".mib()"]).into_iter().filter(|line| is_sum(line)).collect());
}

/// Whether a line of code adds or subtracts a number of MiB.
fn is_sum(line: &str) -> bool {
    let operators =
        ["saturating_", "checked_add", "checked_sub", "wrapping_", ".sum", " + ", " - ", "+=", "-=", ".fold("];
    let code = line.splitn(3, ':').nth(2).unwrap_or_default();
    // Texts have such signs too.
    let code: String = code.split('"').step_by(2).collect();
    operators.iter().any(|operator| code.contains(operator))
}

#[test]
fn a_sum_of_mib_in_a_report_is_found() {
    for line in [
        "gpus.iter().map(|gpu| gpu.total_mib).fold(0, u64::saturating_add)",
        "excess: gpu.held_mib.saturating_sub(gpu.allocatable_mib)",
        "let start = headroom.mib() + outside.mib();",
    ] {
        assert!(is_sum(&format!("f.rs:1: {line}")), "{line}");
    }
    assert!(!is_sum("f.rs:1: text.push_str(\"held_mib - all of it + more\");"));
    assert!(!is_sum("f.rs:1: held: gpu.held_mib,"));
}

/// The modules at the top of the crate that are neither the core nor translation nor names.
fn shells() -> BTreeSet<String> {
    let pure = ["capacity", "k8s", "keys", "lib", "main", "model", "report"];
    modules("src").into_iter().filter(|module| !pure.contains(&module.as_str())).collect()
}

/// The modules of a folder: its files and folders, without tests.
fn modules(folder: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).expect("a folder of sources");
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name in UTF-8"));
    let modules = names.map(|name| name.trim_end_matches(".rs").to_owned());
    modules.filter(|module| !["mod", "tests", "testing"].contains(&module.as_str())).collect()
}

/// The modules of the core and of its largest wing, bottom up: each may use those above it in the list, and no others.
const ORDER: [(&[&str], &[&str]); 2] = [
    (
        &[],
        &[
            "vram",
            "time",
            "name",
            "list",
            "gpu",
            "pod",
            "policy",
            "quota",
            "node",
            "verdict",
            "observation",
            "cluster",
            "admission",
            "binding",
            "steering",
            "preflight",
            "filter",
            "plan",
            "candidates",
            "audit",
            "recommend",
            "estimate",
        ],
    ),
    (&["node"], &["presence", "inventory", "holder", "reservation", "usage", "occupancy", "ledger"]),
];

#[test]
fn the_modules_of_the_core_use_those_below_them_and_no_others() {
    for (wing, order) in ORDER {
        let folder = ["src", "capacity"].iter().chain(wing).copied().collect::<Vec<_>>().join("/");
        let listed: BTreeSet<String> = order.iter().map(|module| (*module).to_owned()).collect();
        assert_eq!(modules(&folder), listed, "the list has every module of {folder}");
        let mut wrong = Vec::new();
        for (path, text) in sources(&folder) {
            let module = module_path(&path);
            let Some(place) = module.get(wing.len()).and_then(|name| order.iter().position(|other| other == name))
            else {
                continue; // `mod.rs`, tests and their builders
            };
            if is_test(&path) {
                continue;
            }
            for used in used_modules(&module, &text).into_iter().filter(|used| used.starts_with_all(wing)) {
                let below = used.0.get(wing.len()).and_then(|name| order.iter().position(|other| other == name));
                if below.is_some_and(|below| below > place) {
                    wrong.push(format!("{}: {} is not below {}", path.display(), used.0.join("::"), order[place]));
                }
            }
        }
        none(wrong);
    }
}

/// A path of modules from the root of the core.
struct Used(Vec<String>);

impl Used {
    fn starts_with_all(&self, wing: &[&str]) -> bool {
        self.0.len() >= wing.len() && self.0.iter().zip(wing).all(|(one, other)| one == other)
    }
}

/// Where a file of the core is in its tree of modules: `["node", "ledger"]`.
fn module_path(path: &Path) -> Vec<String> {
    let path =
        path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/capacity")).expect("a file of the core");
    let parts = path.with_extension("");
    parts.iter().map(|part| part.to_str().expect("a name in UTF-8").to_owned()).filter(|part| part != "mod").collect()
}

/// The modules of the core that the code of a file names, by `crate::capacity::…` or `super::…`, alone or in braces.
fn used_modules(module: &[String], text: &str) -> Vec<Used> {
    let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let code: String = code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let identifier = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let mut used = Vec::new();
    let mut rest = code.as_str();
    while let Some(start) = rest.find(identifier) {
        let after = &rest[start..];
        let (path, after) = after.split_at(after.find(|c: char| !identifier(c)).unwrap_or(after.len()));
        rest = after;
        match (path.strip_suffix("::"), after.strip_prefix('{').and_then(|group| group.split_once('}'))) {
            (Some(path), Some((group, after))) => {
                assert!(!group.contains('{'), "a group of imports in a group: write out {path}::{{{group}}}");
                used.extend(group.split(',').filter_map(|item| absolute(module, &format!("{path}::{}", item.trim()))));
                rest = after;
            }
            _ => used.extend(absolute(module, path)),
        }
    }
    used
}

/// A path from the root of the core; `None` for one that leads elsewhere.
fn absolute(module: &[String], path: &str) -> Option<Used> {
    let parts: Vec<&str> = path.split("::").filter(|part| !part.is_empty()).collect();
    let supers = parts.iter().take_while(|part| **part == "super").count();
    let owned = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect::<Vec<String>>();
    match parts.as_slice() {
        ["crate", "capacity", rest @ ..] => Some(Used(owned(rest))),
        ["super", ..] if supers <= module.len() => {
            Some(Used([&module[..module.len() - supers], &owned(&parts[supers..])].concat()))
        }
        _ => None,
    }
}

#[test]
fn a_use_of_a_module_is_found_in_whichever_way_it_is_written() {
    let module = ["node".to_owned(), "ledger".to_owned()];
    let text = "use super::usage::Counted;\nuse super::super::vram::Vram; // super::super::filter\n\
                use crate::capacity::{cluster::Cluster,\n    gpu};\nuse super::{holder};\nuse std::fmt;\n\
                fn f() { crate::capacity::gpu::Pool::x() }\n#[cfg(test)]\nmod tests {\nuse crate::capacity::filter::X;";
    let used: Vec<String> = used_modules(&module, text).into_iter().map(|used| used.0.join("::")).collect();
    let expected = ["node::usage::Counted", "vram::Vram", "cluster::Cluster", "gpu", "node::holder", "gpu::Pool::x"];
    assert_eq!(used, expected);
}

#[test]
fn files_stay_small_enough_to_be_read() {
    for (path, text) in sources("src") {
        let lines = text.lines().count();
        assert!(lines <= 500, "{} has {lines} lines: a hard look is due", path.display());
    }
}
