//! Which LLM framework a container runs, by its image, command and arguments, and by what its author or the policy
//! says. Owns the names by which a framework is recognised; what it is told is in one file for each framework.
//!
//! The command is better evidence than the image: an image of PyTorch can run vLLM. Only a version that is certain
//! counts: the tag of PyTorch's own image. Any other tag may be the version of something else.

use crate::capacity::pod::software::{ArgumentList, Flag, Framework, Software, Version};
use crate::keys;

/// Words of a command, of arguments or of a script that are looked at. What is longer is never edited.
pub const MOST_WORDS: usize = 1024;
/// Characters of a flag's value that are kept. A number has fewer.
pub const LONGEST_VALUE: usize = 64;

/// Programs that take a script as text. What such a script starts is never edited.
const SHELLS: [&str; 6] = ["sh", "bash", "dash", "ash", "zsh", "ksh"];

/// What a container runs. An empty list is the same as an absent one, as in Kubernetes. Of a longer list than
/// [`MOST_WORDS`], one more word is enough.
pub fn recognise(image: &str, command: &[&str], args: &[&str]) -> Software {
    let mut words: Vec<&str> = command.iter().chain(args).copied().take(MOST_WORDS + 1).collect();
    let image = Image::read(image);
    let is_script = runs_shell(&words);
    if is_script {
        // A script is one argument, and its words tell as much as a list does.
        words = words.iter().flat_map(|word| word.split_whitespace()).map(unquoted).take(MOST_WORDS).collect();
    }
    let is_cut = words.len() > MOST_WORDS;
    let server = server(&words);
    let framework = server.map(|(framework, _)| framework).or(image.framework);
    let arguments = match server {
        Some((_, start)) => &words[start..],
        // The image starts a server, with these arguments.
        None if command.is_empty() => &words[..],
        None => &[],
    };
    let starts_server = server.is_some() || command.is_empty() && image.starts_server;
    let list = match (command.is_empty(), args.is_empty()) {
        _ if is_script || is_cut || !starts_server || arguments.contains(&"--") => None,
        (_, false) => Some(ArgumentList::Args),
        (false, true) => Some(ArgumentList::Command),
        (true, true) => None,
    };
    let version = image.version.filter(|_| framework == image.framework);
    Software { framework, version, flags: flags(arguments), list }
}

fn unquoted(word: &str) -> &str {
    word.trim_matches(['"', '\'', '\\', ';'])
}

/// The name of a program without its folder.
fn program(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

/// Whether a shell runs: as the first program, or as a later one with a script as text.
fn runs_shell(words: &[&str]) -> bool {
    let is_shell = |word: &&str| SHELLS.contains(&program(word));
    let is_script = |word: &&str| word.starts_with('-') && word.ends_with('c') && !word.starts_with("--");
    words.first().is_some_and(is_shell) || words.windows(2).any(|pair| is_shell(&pair[0]) && is_script(&pair[1]))
}

/// The framework whose server the words start, and the index of its first argument.
fn server(words: &[&str]) -> Option<(Framework, usize)> {
    let start = |index: usize| {
        let (word, next) = (program(words[index]), words.get(index + 1).copied().unwrap_or_default());
        let found = match (word, next) {
            ("vllm", "serve") => (Framework::Vllm, 2),
            ("-m", module) if module.starts_with("vllm.entrypoints.") => (Framework::Vllm, 2),
            ("-m", "sglang.launch_server") | ("sglang", "serve") => (Framework::SgLang, 2),
            ("text-generation-launcher", _) => (Framework::Tgi, 1),
            ("ollama", "serve") => (Framework::Ollama, 2),
            ("llama-server" | "llama-cli", _) => (Framework::LlamaCpp, 1),
            ("tritonserver", _) => (Framework::Triton, 1),
            ("torchrun", _) | ("-m", "torch.distributed.run") => (Framework::PyTorch, 1),
            _ => return None,
        };
        Some((found.0, index + found.1))
    };
    // A launcher of PyTorch may start the server of another framework.
    let mut found = (0..words.len()).filter_map(start);
    let first = found.next()?;
    if first.0 == Framework::PyTorch { found.next().or(Some(first)) } else { Some(first) }
}

/// What an image tells.
struct Image {
    framework: Option<Framework>,
    version: Option<Version>,
    /// Whether it starts a server to which further arguments are given.
    starts_server: bool,
}

impl Image {
    fn read(reference: &str) -> Image {
        let (tagged, digest) = match reference.split_once('@') {
            Some((tagged, _)) => (tagged, true),
            None => (reference, false),
        };
        let folder = tagged.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match tagged[folder..].split_once(':') {
            Some((name, tag)) => (name, Some(tag)),
            None => (&tagged[folder..], None),
        };
        let publisher = tagged[..folder].trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let framework = of_name(name);
        // A digest decides what runs, and a tag in addition to it is a comment.
        let is_official = (publisher, name) == ("pytorch", "pytorch") && !digest;
        // NVIDIA's image has this name too, with the year as version.
        let released = |version: &Version| (1..10).contains(&version.major);
        let version = tag.filter(|_| is_official).and_then(Version::read).filter(released);
        Image { framework, version, starts_server: name == "vllm-openai" }
    }
}

/// The framework in the last part of an image's name.
fn of_name(name: &str) -> Option<Framework> {
    let has = |part: &str| name.contains(part);
    // NVIDIA's Triton has variants with vLLM, and images of servers have names with PyTorch.
    let by_name = [
        (Framework::Triton, has("tritonserver")),
        (Framework::Vllm, has("vllm")),
        (Framework::SgLang, has("sglang")),
        (Framework::Tgi, has("text-generation-inference")),
        (Framework::Ollama, name == "ollama" || name.starts_with("ollama-")),
        (Framework::LlamaCpp, has("llama.cpp")),
        (Framework::PyTorch, has("pytorch")),
        (Framework::TensorFlow, has("tensorflow")),
        (Framework::Jax, name == "jax" || name.starts_with("jax-")),
    ];
    by_name.into_iter().find(|(_, is_it)| *is_it).map(|(framework, _)| framework)
}

/// The flags that vramguard reads, among these arguments.
fn flags(arguments: &[&str]) -> Vec<Flag> {
    let mut flags: Vec<Flag> = Vec::new();
    for (index, argument) in arguments.iter().enumerate() {
        let (written, value) = match argument.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (*argument, arguments.get(index + 1).copied().filter(|next| !next.starts_with("--"))),
        };
        let Some(name) = flag(written) else { continue };
        let value = value.map(|value| unquoted(value).chars().take(LONGEST_VALUE).collect());
        // The last one with a name takes effect, and only that one is kept.
        flags.retain(|flag| flag.name != name);
        flags.push(Flag { name, value });
    }
    flags
}

/// The full name of a flag. Python's argument parsers accept a beginning that is unambiguous, and vLLM's takes an
/// underscore for a hyphen. A beginning that is not recognised would be overridden by the flag that is appended.
fn flag(written: &str) -> Option<&'static str> {
    // vLLM has other flags from `--kv-cache-`. It has no other from `--gpu`, but a program around it may well have one.
    const BEGINNINGS: [(&str, &str); 2] = [("--gpu-m", keys::VLLM_UTILIZATION), ("--kv-cache-m", keys::VLLM_KV_CACHE)];
    const SHORTEST: usize = "--kv-cache-m".len();
    if written == keys::LLAMA_CTX_SIZE_SHORT {
        return Some(keys::LLAMA_CTX_SIZE_FLAG);
    }
    if !written.starts_with("--") || written.len() > LONGEST_VALUE {
        return None;
    }
    let written = written.replace('_', "-");
    let shortest = |name: &str| {
        let beginning = BEGINNINGS.into_iter().find(|(_, full)| *full == name);
        beginning.map_or(SHORTEST, |(beginning, _)| beginning.len())
    };
    let is_it =
        |name: &&&str| **name == written || written.len() >= shortest(name) && name.starts_with(written.as_str());
    keys::FLAGS_READ.iter().find(is_it).copied()
}

/// The framework and version that an annotation names: `PyTorch`, or `PyTorch@2.11`. Case does not matter. `None` if it
/// names none.
pub fn named(text: &str) -> Option<(Framework, Option<Version>)> {
    let (name, version) = match text.split_once('@') {
        Some((name, version)) => (name, Some(Version::read(version)?)),
        None => (text, None),
    };
    let framework = Framework::ALL.into_iter().find(|framework| framework.name().eq_ignore_ascii_case(name))?;
    Some((framework, version))
}

#[cfg(test)]
mod tests;
