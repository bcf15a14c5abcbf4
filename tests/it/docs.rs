//! The Markdown files against the tree: links, anchors, paths in backticks, and the map of ARCHITECTURE.md.
//!
//! The checks take the root of a tree, so that the tests at the end can show what each of them finds in a broken one.

mod map;
mod markdown;

use std::path::{Path, PathBuf};

use markdown::Document;

/// A code span that begins with one of these is a path from the root of the repository.
const ROOTS: [&str; 8] = ["src/", "tests/", "benches/", "docs/", "deploy/", "policies/", ".ci/", ".github/"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn none(mistakes: Vec<String>) {
    assert!(mistakes.is_empty(), "\n{}", mistakes.join("\n"));
}

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading() {
    none(dead_links(root()));
}

#[test]
fn every_path_in_backticks_exists() {
    none(dead_paths(root()));
}

#[test]
fn the_map_of_the_architecture_names_each_module_once_and_nothing_else() {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md is readable");
    none(map::mistakes(&text, root()));
}

/// Each Markdown file with its path from the root. Build output and hidden folders other than `.github` are skipped.
fn documents(root: &Path) -> Vec<(PathBuf, Document)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("a readable folder") {
            let path = entry.expect("a readable entry").path();
            let name = path.file_name().expect("an entry has a name").to_string_lossy();
            if path.is_dir() && name != "target" && (!name.starts_with('.') || name == ".github") {
                walk(&path, found);
            } else if path.is_file() && name.ends_with(".md") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(root, &mut found);
    found.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).expect("a readable document");
        (path.strip_prefix(root).expect("it is under the root").to_owned(), markdown::parse(&text))
    };
    found.into_iter().map(read).collect()
}

/// Links to files of this repository that lead nowhere.
fn dead_links(root: &Path) -> Vec<String> {
    let documents = documents(root);
    assert!(!documents.is_empty(), "{} holds no Markdown", root.display());
    let mut dead = Vec::new();
    for (file, document) in &documents {
        for link in document.links.iter().filter(|link| !has_scheme(&link.text)) {
            if let Err(reason) = follow(root, file, &link.text, &documents) {
                dead.push(format!("{}:{}: {}: {reason}", file.display(), link.line, link.text));
            }
        }
    }
    dead
}

/// `https:`, `mailto:` and the like: not a path.
fn has_scheme(target: &str) -> bool {
    target.split_once(':').is_some_and(|(scheme, _)| {
        !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+.-".contains(c))
    })
}

/// Whether a link in `file` leads to something: a file or folder of the tree, and a heading of a Markdown file.
fn follow(root: &Path, file: &Path, target: &str, documents: &[(PathBuf, Document)]) -> Result<(), String> {
    let (path, anchor) = target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)));
    let joined = match path.strip_prefix('/') {
        Some(from_root) => root.join(from_root),
        None if path.is_empty() => root.join(file),
        None => root.join(file).with_file_name("").join(path),
    };
    // Resolves `..`, and fails where there is no such file.
    let found = joined.canonicalize().map_err(|_| "there is no such file".to_owned())?;
    let base = root.canonicalize().expect("the root exists");
    let inside = found.strip_prefix(&base).map_err(|_| "it leads out of the repository".to_owned())?;
    let Some(anchor) = anchor else { return Ok(()) };
    let (_, document) = documents
        .iter()
        .find(|(other, _)| other == inside)
        .ok_or_else(|| format!("{} is no Markdown file, so it has no anchors", inside.display()))?;
    if document.anchors.contains(anchor) {
        return Ok(());
    }
    let anchors: Vec<&str> = document.anchors.iter().map(String::as_str).collect();
    Err(format!("{} has no heading #{anchor}, only #{}", inside.display(), anchors.join(" #")))
}

/// Paths in backticks that do not exist. The change log names what existed once.
fn dead_paths(root: &Path) -> Vec<String> {
    let mut dead = Vec::new();
    for (file, document) in documents(root).iter().filter(|(file, _)| file != Path::new("CHANGELOG.md")) {
        for span in document.code.iter().filter(|span| is_path(&span.text)) {
            let beside = root.join(file).with_file_name("").join(&span.text);
            if !root.join(&span.text).exists() && !beside.exists() {
                dead.push(format!("{}:{}: `{}` does not exist", file.display(), span.line, span.text));
            }
        }
    }
    dead
}

/// Patterns, commands and placeholders have other characters.
fn is_path(span: &str) -> bool {
    ROOTS.iter().any(|start| span.starts_with(start))
        && span.chars().all(|c| c.is_ascii_alphanumeric() || "_./-".contains(c))
}

/// A folder with the given files.
fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (path, text) in files {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    }
    folder
}

#[test]
fn dead_links_and_anchors_are_found_and_good_ones_pass() {
    let good = "# A b\n[f](docs/x.md) [h](docs/x.md#two-words) [own](#a-b) [folder](docs)\n\
                [web](https://example.com/no) ![root](/docs/x.md)\n\n[ref]: docs/x.md\n\
                ```text\n[code](nowhere)\n```\n`[code](nowhere)`\n";
    let files = tree(&[("README.md", good), ("docs/x.md", "## Two words\n[up](../README.md#a-b)\n")]);
    assert_eq!(dead_links(files.path()), [""; 0]);

    let bad = "# A\n[f](docs/y.md)\n[h](docs/x.md#three)\n[own](#b) [wrapped\nover](docs/z.md)\n[ref]: gone.md\n\
               [out](../)\n[line](Cargo.toml#L1)\n";
    let files = tree(&[("README.md", bad), ("docs/x.md", "## Two words\n"), ("Cargo.toml", "")]);
    assert_eq!(
        dead_links(files.path()),
        [
            "README.md:2: docs/y.md: there is no such file",
            "README.md:3: docs/x.md#three: docs/x.md has no heading #three, only #two-words",
            "README.md:4: #b: README.md has no heading #b, only #a",
            "README.md:5: docs/z.md: there is no such file",
            "README.md:6: gone.md: there is no such file",
            "README.md:7: ../: it leads out of the repository",
            "README.md:8: Cargo.toml#L1: Cargo.toml is no Markdown file, so it has no anchors",
        ]
    );
}

#[test]
fn dead_paths_in_backticks_are_found_but_not_in_the_change_log() {
    let text = "`src/a.rs` `src/` `src/*.rs`\n`src/gone.rs` and `src/a.rs/`\n```sh\ncat `src/gone.rs`\n```\n";
    let files = tree(&[("A.md", text), ("CHANGELOG.md", text), ("src/a.rs", "")]);
    assert_eq!(
        dead_paths(files.path()),
        ["A.md:2: `src/gone.rs` does not exist", "A.md:2: `src/a.rs/` does not exist"]
    );
}
