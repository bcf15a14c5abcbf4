//! Reads the text of a file that a user names, up to a bound. Owns what is no text: another kind of file, one that is
//! too large, and one that is not UTF-8.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, anyhow, bail};

/// Reads a file of at most `most` bytes.
///
/// # Errors
/// The file is missing, no regular file, too large, or not UTF-8. The text does not name the file.
pub(super) fn text(path: &Path, most: u64) -> Result<String, String> {
    let metadata = std::fs::metadata(path).map_err(|error| unreadable(&error))?;
    if metadata.is_dir() {
        return Err("is a folder; a file is expected".to_owned());
    }
    // Reading a pipe or a device may not end.
    if !metadata.is_file() {
        return Err("is not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| unreadable(&error))?;
    file.take(most + 1).read_to_end(&mut bytes).map_err(|error| unreadable(&error))?;
    if bytes.len() as u64 > most {
        return Err(format!("is larger than {} MiB, the most that is read; leave out what is not needed", most >> 20));
    }
    decoded(bytes).map_err(|line| format!("line {line} is not UTF-8 text"))
}

/// Whether a path stands for standard input.
pub(super) fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

/// Reads a file of at most `most` bytes or, for `-`, standard input, and returns its name too.
///
/// # Errors
/// As [`text`], and the error names the file.
pub(super) fn named(path: &Path, most: u64) -> anyhow::Result<(String, String)> {
    if is_stdin(path) {
        return bounded(STDIN.to_owned(), std::io::stdin().lock(), most);
    }
    let name = path.display().to_string();
    let text = text(path, most).map_err(|error| anyhow!("{name}: {error}"))?;
    Ok((name, text))
}

/// The name of standard input in messages.
const STDIN: &str = "standard input";

/// Reads a stream of at most `most` bytes.
fn bounded(name: String, input: impl Read, most: u64) -> anyhow::Result<(String, String)> {
    let mut bytes = Vec::new();
    input.take(most.saturating_add(1)).read_to_end(&mut bytes).with_context(|| name.clone())?;
    if bytes.len() as u64 > most {
        bail!("{name}: is larger than {} MiB, the most that is read; leave out what is not needed", most >> 20);
    }
    let text = decoded(bytes).map_err(|line| anyhow!("{name}:{line}: is not text in UTF-8"))?;
    Ok((name, text))
}

/// The text of a file; the error is the line of the first byte that is not UTF-8.
fn decoded(bytes: Vec<u8>) -> Result<String, usize> {
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        1 + valid.iter().filter(|byte| **byte == b'\n').count()
    })
}

/// Bytes of the largest file that is read. Its objects take some times its size in memory.
const MAX_FILE: u64 = 1 << 30;

/// Reads a file, a pipe or, for `-`, standard input as text, and returns its name too. It reads up to [`MAX_FILE`].
///
/// # Errors
/// It cannot be read, is too large, or is not UTF-8. The error names the file.
pub(super) fn text_of(path: &Path) -> anyhow::Result<(String, String)> {
    if is_stdin(path) {
        return bounded(STDIN.to_owned(), std::io::stdin().lock(), MAX_FILE);
    }
    let name = path.display().to_string();
    let file = std::fs::File::open(path).with_context(|| name.clone())?;
    bounded(name, file, MAX_FILE)
}

fn unreadable(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        _ => format!("cannot be read: {error}"),
    }
}
