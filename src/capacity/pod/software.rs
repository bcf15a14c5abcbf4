//! What a container runs: its LLM framework, and the flags by which that framework is told how much memory to take. Owns
//! the shape and the names of frameworks. `admission::environment::recognise` finds out what a container runs.

use std::fmt;

/// An LLM framework that vramguard knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Framework {
    /// PyTorch without a serving framework.
    PyTorch,
    /// vLLM.
    Vllm,
    /// SGLang.
    SgLang,
    /// Text Generation Inference.
    Tgi,
    /// JAX.
    Jax,
    /// TensorFlow.
    TensorFlow,
    /// llama.cpp.
    LlamaCpp,
    /// Ollama.
    Ollama,
    /// Triton Inference Server.
    Triton,
}

impl Framework {
    /// All of them.
    pub const ALL: [Framework; 9] = [
        Framework::PyTorch,
        Framework::Vllm,
        Framework::SgLang,
        Framework::Tgi,
        Framework::Jax,
        Framework::TensorFlow,
        Framework::LlamaCpp,
        Framework::Ollama,
        Framework::Triton,
    ];

    /// The name, as policies and annotations write it.
    pub fn name(self) -> &'static str {
        match self {
            Framework::PyTorch => "PyTorch",
            Framework::Vllm => "vLLM",
            Framework::SgLang => "SGLang",
            Framework::Tgi => "TGI",
            Framework::Jax => "JAX",
            Framework::TensorFlow => "TensorFlow",
            Framework::LlamaCpp => "llama.cpp",
            Framework::Ollama => "Ollama",
            Framework::Triton => "Triton",
        }
    }
}

impl fmt::Display for Framework {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The version of a framework, as far as it decides anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
}

impl Version {
    /// Reads the first two numbers of a version: `2.10` of `v2.10.0-cuda12.8`. `None` if the text does not begin with
    /// two numbers.
    pub fn read(text: &str) -> Option<Version> {
        let mut numbers = text.strip_prefix('v').unwrap_or(text).splitn(3, '.');
        let major = number(numbers.next()?)?;
        let minor = numbers.next()?;
        let digits = minor.bytes().take_while(u8::is_ascii_digit).count();
        Some(Version { major, minor: number(&minor[..digits])? })
    }
}

/// A number without sign. `str::parse` accepts a leading `+`.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What a container runs, as far as its image, command and arguments tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Software {
    /// The framework; `None` if none is recognised.
    pub framework: Option<Framework>,
    /// Its version; `None` if it is not known.
    pub version: Option<Version>,
    /// The flags of [`crate::keys::FLAGS_READ`] that it is started with, each once, with the value that takes effect.
    pub flags: Vec<Flag>,
    /// The list to which a flag of the framework can be appended; `None` if a shell, or an unknown program, starts it.
    pub list: Option<ArgumentList>,
}

/// A flag that is written in the command or arguments of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// Its full name.
    pub name: &'static str,
    /// Its value, cut; `None` if none follows.
    pub value: Option<String>,
}

/// A list of a container's arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArgumentList {
    /// `command`.
    Command,
    /// `args`.
    Args,
}

impl Software {
    /// The flag with that name.
    pub fn flag(&self, name: &str) -> Option<&Flag> {
        self.flags.iter().find(|flag| flag.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_its_first_two_numbers() {
        let read = |text| Version::read(text).map(|version| version.to_string());
        for (text, version) in [
            ("2.10", Some("2.10")),
            ("v2.9.1", Some("2.9")),
            ("2.10.0-cuda12.8-cudnn9-runtime", Some("2.10")),
            ("2.11-rc1", Some("2.11")),
            ("latest", None),
            ("2", None),
            ("2.x", None),
            ("+2.10", None),
            ("2.+1", None),
            ("", None),
            ("99999999999.1", None),
        ] {
            assert_eq!(read(text).as_deref(), version, "{text:?}");
        }
    }
}
