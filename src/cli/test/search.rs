//! Finds case files. Owns which names are those of case files, what is skipped, and how far a search goes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use walkdir::{DirEntry, WalkDir};

/// The ends of the names of case files.
const ENDS: [&str; 2] = ["vramguard-test.yaml", "vramguard-test.yml"];

/// Largest number of files and folders that one search looks at. It ends a search of a whole disk.
const MAX_ENTRIES: usize = 500_000;

/// The case files under these paths, in the order of the paths and then by name, each once. A file counts whatever its
/// name is. A folder is searched with its subfolders, through symbolic links too, but not in hidden ones.
///
/// # Errors
/// A path cannot be read, or has no case file. The list has all errors.
pub(super) fn case_files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Vec<String>> {
    let (mut found, mut errors) = (Vec::new(), Vec::new());
    let mut seen = BTreeSet::new();
    for path in paths {
        match under(path) {
            Ok(files) => {
                // The same file may be reached by several paths.
                let real = |file: &PathBuf| file.canonicalize().unwrap_or_else(|_| file.clone());
                found.extend(files.into_iter().filter(|file| seen.insert(real(file))));
            }
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(found) } else { Err(errors) }
}

fn under(path: &Path) -> Result<Vec<PathBuf>, String> {
    let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => format!("{}: there is no such file or folder", path.display()),
        _ => format!("{}: cannot be read: {error}", path.display()),
    })?;
    if !metadata.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let walk = WalkDir::new(path).follow_links(true).sort_by_file_name().into_iter();
    let (mut files, mut looked_at) = (Vec::new(), 0);
    for entry in walk.filter_entry(|entry| entry.depth() == 0 || !is_hidden(entry)) {
        looked_at += 1;
        if looked_at > MAX_ENTRIES {
            return Err(format!(
                "{}: holds more than {MAX_ENTRIES} files and folders; name the folder of the case files",
                path.display()
            ));
        }
        match entry {
            Ok(entry) => files.extend(is_case_file(&entry).then(|| entry.into_path())),
            Err(error) if is_harmless(&error) => {}
            Err(error) => return Err(unreadable(path, &error)),
        }
    }
    if files.is_empty() {
        return Err(format!(
            "{}: holds no case files: {looked_at} files and folders were looked at, and the name of none ends in {}. \
             Name a file, or see docs/policy-tests.md",
            path.display(),
            ENDS[0]
        ));
    }
    Ok(files)
}

fn is_hidden(entry: &DirEntry) -> bool {
    entry.file_name().as_encoded_bytes().starts_with(b".")
}

fn is_case_file(entry: &DirEntry) -> bool {
    !entry.file_type().is_dir() && has_name(entry.path())
}

fn has_name(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    ENDS.iter().any(|end| name.ends_with(end.as_bytes()))
}

/// A link back to a folder that is being searched, or a broken link that is no case file.
fn is_harmless(error: &walkdir::Error) -> bool {
    let broken = error.io_error().is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound);
    error.loop_ancestor().is_some() || broken && error.path().is_some_and(|path| !has_name(path))
}

fn unreadable(path: &Path, error: &walkdir::Error) -> String {
    let at = error.path().unwrap_or(path).display();
    match error.io_error() {
        Some(error) => format!("{at}: cannot be read: {error}"),
        None => format!("{at}: cannot be read: {error}"),
    }
}
