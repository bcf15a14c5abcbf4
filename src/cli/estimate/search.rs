//! Which files make a model: one file, the files that it was split into, or those of a directory. Owns their names; what is in
//! them is not read, except for the first bytes of a file and an index.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};

use crate::model::safetensors;

/// Files of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// GGUF files, in the order of the split.
    Gguf(Vec<PathBuf>),
    /// Safetensors files and their configuration.
    Safetensors {
        /// The files with tensors.
        files: Vec<PathBuf>,
        /// The configuration.
        config: PathBuf,
    },
    /// A configuration without weights.
    Config(PathBuf),
}

impl Found {
    /// All files that are read.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        match self {
            Found::Gguf(files) => files.clone(),
            Found::Safetensors { files, config } => files.iter().chain([config]).cloned().collect(),
            Found::Config(config) => vec![config.clone()],
        }
    }
}

/// The configuration of a model in its directory.
const CONFIG: &str = "config.json";
/// The ending of an index of safetensors files.
const INDEX: &str = ".safetensors.index.json";
/// Entries of a directory that are looked at.
const MAX_ENTRIES: usize = 100_000;
/// Files that a model may be split into.
const MAX_PARTS: u32 = 4_096;
/// Names that an error lists.
const LISTED: usize = 4;

/// Finds the files of a model.
///
/// # Errors
/// There is no model at the path, there are several, or one of its files is missing.
pub(super) fn find(path: &Path) -> anyhow::Result<Found> {
    let name = path.display();
    let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => anyhow!("{name}: there is no such file or directory"),
        _ => anyhow!("{name}: cannot be read: {error}"),
    })?;
    if metadata.is_dir() {
        return in_directory(path);
    }
    // Reading a pipe or a device may not end.
    ensure!(metadata.is_file(), "{name}: is no regular file and no directory");
    if ends_with(path, INDEX) {
        return of_index(path);
    }
    match kind(path)? {
        Some(Kind::Gguf) => Ok(Found::Gguf(parts(path)?)),
        Some(Kind::Safetensors) => with_config(parts(path)?, path),
        Some(Kind::Json) => Ok(Found::Config(path.to_owned())),
        None => bail!(
            "{name}: is no model file; a GGUF file, a safetensors file, a {CONFIG} or a directory with these was expected"
        ),
    }
}

/// What a file is, by its first bytes.
enum Kind {
    Gguf,
    Safetensors,
    Json,
}

fn kind(path: &Path) -> anyhow::Result<Option<Kind>> {
    let context = || path.display().to_string();
    let mut first = Vec::new();
    File::open(path).with_context(context)?.take(9).read_to_end(&mut first).with_context(context)?;
    Ok(match first.as_slice() {
        [b'G', b'G', b'U', b'F', ..] => Some(Kind::Gguf),
        [_, _, _, _, _, _, _, _, b'{'] => Some(Kind::Safetensors),
        bytes if bytes.trim_ascii_start().first() == Some(&b'{') => Some(Kind::Json),
        // The reader says what is wrong with the content.
        _ if ends_with(path, ".gguf") => Some(Kind::Gguf),
        _ if ends_with(path, ".safetensors") => Some(Kind::Safetensors),
        _ if ends_with(path, ".json") => Some(Kind::Json),
        _ => None,
    })
}

fn ends_with(path: &Path, ending: &str) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(ending))
}

/// The files with one name that a model was split into: `x-00001-of-00003.gguf`. One file, if it has no such name.
///
/// # Errors
/// A part is missing.
fn parts(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let Some(split) = path.file_name().and_then(|name| Split::of(&name.to_string_lossy())) else {
        return Ok(vec![path.to_owned()]);
    };
    let name = path.display();
    ensure!(
        (1..=MAX_PARTS).contains(&split.count),
        "{name}: is one of {} parts; 1 to {MAX_PARTS} was expected",
        split.count
    );
    let part = |number: u32| {
        let part = path.with_file_name(split.name(number));
        ensure!(part.is_file(), "{}: is missing; the model is in {} files like {name}", part.display(), split.count);
        Ok(part)
    };
    (1..=split.count).map(part).collect()
}

/// The name of a part.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Split {
    stem: String,
    count: u32,
    ending: String,
}

impl Split {
    fn of(name: &str) -> Option<Split> {
        let (stem, ending) = name.rsplit_once('.')?;
        let (stem, count) = stem.rsplit_once("-of-")?;
        let (stem, number) = stem.rsplit_once('-')?;
        let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        if !(is_number(number) && is_number(count)) {
            return None;
        }
        Some(Split { stem: stem.to_owned(), count: count.parse().ok()?, ending: ending.to_owned() })
    }

    fn name(&self, number: u32) -> String {
        format!("{}-{number:05}-of-{:05}.{}", self.stem, self.count, self.ending)
    }
}

/// Safetensors files with the configuration in the same directory.
fn with_config(files: Vec<PathBuf>, path: &Path) -> anyhow::Result<Found> {
    let config = path.with_file_name(CONFIG);
    ensure!(
        config.is_file(),
        "{}: is missing; safetensors files do not say what a model keeps for a context",
        config.display()
    );
    Ok(Found::Safetensors { files, config })
}

/// The files that an index lists.
///
/// # Errors
/// The index cannot be read, or a file that it lists is missing.
fn of_index(path: &Path) -> anyhow::Result<Found> {
    let name = path.display();
    let length = std::fs::metadata(path).with_context(|| name.to_string())?.len();
    ensure!(
        length <= safetensors::MAX_INDEX,
        "{name}: has {length} bytes; an index of at most {} was expected",
        safetensors::MAX_INDEX
    );
    let index = File::open(path).with_context(|| name.to_string())?;
    let listed = safetensors::index(index).map_err(|error| anyhow!("{name}: {error}"))?;
    let mut files = Vec::new();
    for file in listed {
        let file = path.with_file_name(file);
        ensure!(file.is_file(), "{}: is missing; {name} lists it", file.display());
        files.push(file);
    }
    with_config(files, path)
}

fn in_directory(path: &Path) -> anyhow::Result<Found> {
    let name = path.display();
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(path).with_context(|| name.to_string())? {
        let entry = entry.with_context(|| name.to_string())?;
        ensure!(names.len() < MAX_ENTRIES, "{name}: has more than {MAX_ENTRIES} entries; name a file");
        names.insert(entry.file_name().to_string_lossy().into_owned());
    }
    let ending = |ending: &str| -> Vec<&str> {
        names.iter().map(String::as_str).filter(|name| name.ends_with(ending)).collect()
    };
    let (ggufs, tensors, indices) = (ending(".gguf"), ending(".safetensors"), ending(INDEX));
    ensure!(
        ggufs.is_empty() || tensors.is_empty(),
        "{name}: has GGUF files and safetensors files; name the file of one model"
    );
    if !ggufs.is_empty() {
        return Ok(Found::Gguf(parts(&path.join(single(path, &ggufs)?))?));
    }
    if !indices.is_empty() {
        return of_index(&path.join(single(path, &indices)?));
    }
    if !tensors.is_empty() {
        let first = path.join(single(path, &tensors)?);
        return with_config(parts(&first)?, &first);
    }
    ensure!(names.contains(CONFIG), "{name}: has no model; GGUF files, safetensors files or a {CONFIG} were expected");
    Ok(Found::Config(path.join(CONFIG)))
}

/// The first file of the only model among these.
///
/// # Errors
/// There are several models.
fn single<'n>(path: &Path, names: &[&'n str]) -> anyhow::Result<&'n str> {
    let mut models: Vec<(Option<Split>, &str)> = Vec::new();
    for name in names {
        let split = Split::of(name);
        if split.is_none() || !models.iter().any(|(other, _)| *other == split) {
            models.push((split, name));
        }
    }
    match models.as_slice() {
        [(_, name)] => Ok(name),
        _ => {
            let listed: Vec<&str> = models.iter().map(|(_, name)| *name).take(LISTED).collect();
            let more = if models.len() > LISTED { ", …" } else { "" };
            bail!("{}: has several models; name one: {}{more}", path.display(), listed.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_known_by_its_name_and_names_the_others() {
        let split = Split::of("a-b-00002-of-00003.gguf").expect("a part");
        assert_eq!(split.name(1), "a-b-00001-of-00003.gguf");
        for name in ["a.gguf", "a-00002-of-3.gguf", "a-2-of-00003.gguf", "00002-of-00003.gguf", "a-+0002-of-00003.x"] {
            assert_eq!(Split::of(name), None, "{name}");
        }
    }
}
