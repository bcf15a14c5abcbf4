//! Compares the map in ARCHITECTURE.md, an indented list of folders and files, with the tree.
//!
//! ```text
//! src/
//!   capacity/    a folder ends in `/`; its content is indented by two more spaces
//!     a.rs b.rs    names on one line are one space apart; a description follows two or more
//!   ── a line that begins like this is a title ──
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use super::markdown;

/// Modules down to this depth below `src` must be in the map. Deeper ones may be.
const DEPTH: usize = 2;

#[derive(Debug, PartialEq)]
struct Entry {
    line: usize,
    /// Path from the root. That of a folder ends in `/`.
    path: String,
}

/// Returns the mistakes in the map, and the modules that it does not name.
pub(super) fn mistakes(architecture: &str, root: &Path) -> Vec<String> {
    let Some((first, lines)) = markdown::block_under(architecture, "## Map") else {
        return vec!["there is no fenced block under \"## Map\"".to_owned()];
    };
    let (entries, mut mistakes) = parse(first, &lines);
    let mut named: BTreeMap<&str, usize> = BTreeMap::new();
    let mut wrong = 0;
    for Entry { line, path } in &entries {
        let exists = if path.ends_with('/') { root.join(path).is_dir() } else { root.join(path).is_file() };
        if exists {
            if let Some(before) = named.insert(path, *line) {
                mistakes.push(format!("line {line}: {path} is in line {before} already"));
            }
        } else if wrong != *line {
            // Only the first mistake of a line is reported. If it begins a description, the rest are words too.
            wrong = *line;
            mistakes.push(format!("line {line}: {path} does not exist (a description follows two spaces or more)"));
        }
    }
    for module in modules(root) {
        if !named.contains_key(module.as_str()) {
            mistakes.push(format!("{module} is not in the map"));
        }
    }
    mistakes
}

/// Parses the lines of the map into entries and mistakes in their form. `first` is the number of the first line.
fn parse(first: usize, lines: &[&str]) -> (Vec<Entry>, Vec<String>) {
    let mut entries = Vec::new();
    let mut mistakes = Vec::new();
    // The folder of each level. It is `None` for a line with files or several names, under which nothing can be.
    let mut folders: Vec<Option<String>> = vec![Some(String::new())];
    for (line, text) in (first..).zip(lines) {
        let content = text.trim();
        if content.is_empty() || content.starts_with("──") {
            continue;
        }
        let indent = text.len() - text.trim_start().len();
        folders.truncate(indent / 2 + 1);
        let folder = match folders.last() {
            Some(Some(folder)) if indent.is_multiple_of(2) && folders.len() == indent / 2 + 1 => folder.clone(),
            _ => {
                mistakes.push(format!("line {line}: `{content}` is indented, but not by two spaces under one folder"));
                continue;
            }
        };
        let names: Vec<&str> = content.split("  ").next().unwrap_or_default().split(' ').collect();
        let paths: Vec<String> = names.iter().map(|name| format!("{folder}{name}")).collect();
        folders.push(match &paths[..] {
            [path] if path.ends_with('/') => Some(path.clone()),
            _ => None,
        });
        entries.extend(paths.into_iter().map(|path| Entry { line, path }));
    }
    (entries, mistakes)
}

/// Returns the modules of the crate as the map names them.
///
/// A `mod.rs` is named by its folder. Tests and the roots of the crate are left out.
fn modules(root: &Path) -> Vec<String> {
    fn walk(root: &Path, folder: &str, depth: usize, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(root.join(folder)).expect("a readable folder") {
            let entry = entry.expect("a readable entry");
            let name = entry.file_name().into_string().expect("a name in UTF-8");
            if entry.path().is_dir() && depth < DEPTH && name != "tests" {
                walk(root, &format!("{folder}{name}/"), depth + 1, found);
            } else if name == "mod.rs" {
                found.push(folder.to_owned());
            } else if name.ends_with(".rs") && name != "tests.rs" {
                found.push(format!("{folder}{name}"));
            }
        }
    }
    let mut found = Vec::new();
    walk(root, "src/", 1, &mut found);
    found.retain(|path| path != "src/lib.rs" && path != "src/main.rs");
    found.sort();
    found
}

/// Returns the mistakes of a map whose first line is line 6, compared with a tree of empty files.
fn mistakes_of(map: &[&str], files: &[&str]) -> Vec<String> {
    let files: Vec<(&str, &str)> = files.iter().map(|file| (*file, "")).collect();
    let tree = super::tree(&files);
    mistakes(&format!("# A\n\n## Map\n\n```text\n{}\n```\n\n## B\n", map.join("\n")), tree.path())
}

const FILES: [&str; 9] = [
    "src/lib.rs",
    "src/keys.rs",
    "src/core/mod.rs",
    "src/core/a.rs",
    "src/core/b.rs",
    "src/core/a/tests.rs",
    "src/core/a/deep/c.rs",
    "deploy/x.yaml",
    ".github/y.yml",
];

#[test]
fn a_map_that_agrees_with_the_tree_passes() {
    let map = [
        "src/",
        "  core/    decides",
        "    a.rs b.rs   two",
        "    a/",
        "      deep/",
        "  ── acts ──",
        "  keys.rs  names",
        "deploy/ .github/  two folders",
    ];
    assert_eq!(mistakes_of(&map, &FILES), [""; 0]);
}

#[test]
fn doubled_missing_and_invented_names_are_found() {
    let map =
        ["src/", "  core/", "    a.rs  one", "    a.rs gone.rs  two", "    gone/", "  keys.rs one space is too few"];
    assert_eq!(
        mistakes_of(&map, &FILES),
        [
            "line 9: src/core/a.rs is in line 8 already",
            "line 9: src/core/gone.rs does not exist (a description follows two spaces or more)",
            "line 10: src/core/gone/ does not exist (a description follows two spaces or more)",
            "line 11: src/one does not exist (a description follows two spaces or more)",
            "src/core/b.rs is not in the map",
        ]
    );
}

#[test]
fn wrong_indentation_is_found() {
    let map = ["src/", "   core/", "  keys.rs", "    core/", "        a.rs", "deploy/ src/core/", "  a.rs"];
    assert_eq!(
        mistakes_of(&map, &FILES),
        [
            "line 7: `core/` is indented, but not by two spaces under one folder",
            "line 9: `core/` is indented, but not by two spaces under one folder",
            "line 10: `a.rs` is indented, but not by two spaces under one folder",
            "line 12: `a.rs` is indented, but not by two spaces under one folder",
            "src/core/a.rs is not in the map",
            "src/core/b.rs is not in the map",
        ]
    );
}

#[test]
fn a_document_without_a_map_is_found() {
    let text = "# A\n## Map\nprose\n## B\n```text\nsrc/\n```\n";
    assert_eq!(mistakes(text, Path::new("/nonexistent")), ["there is no fenced block under \"## Map\""]);
}
