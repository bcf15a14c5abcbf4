//! What bounds the GPU memory of a container, and why. Owns the four statuses and these sentences; the status is decided
//! by [`crate::capacity::admission::environment`].

use std::fmt;

use super::quoted;
use crate::capacity::pod::software::{Framework, Version};
use crate::capacity::vram::Vram;

/// What keeps a container to the memory that it declares, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BoundedBy {
    /// The driver refuses memory beyond the limit, whatever the program is.
    Driver,
    /// The allocator of its framework refuses memory beyond the limit. Libraries that allocate past it are not bounded.
    Allocator,
    /// Its framework plans its memory when it starts, and nothing refuses more later.
    Plan,
    /// Nothing does.
    Nothing,
}

impl BoundedBy {
    /// The word in annotations, reports and metrics.
    pub fn word(self) -> &'static str {
        match self {
            BoundedBy::Driver => "driver",
            BoundedBy::Allocator => "allocator",
            BoundedBy::Plan => "plan",
            BoundedBy::Nothing => "nothing",
        }
    }
}

impl fmt::Display for BoundedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BoundedBy::Driver => "enforced by the driver",
            BoundedBy::Allocator => "bounded by the allocator of its framework",
            BoundedBy::Plan => "planned at start",
            BoundedBy::Nothing => "unenforced",
        })
    }
}

/// What bounds one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The framework that it runs; `None` if none is known.
    pub framework: Option<Framework>,
    /// What bounds it.
    pub by: BoundedBy,
    /// Why.
    pub why: Why,
}

/// Why a container is bounded as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It declares nothing, so no framework is told a number.
    Undeclared,
    /// No framework is recognised.
    NoFramework,
    /// The policy injects nothing for frameworks.
    Policy,
    /// A variable or flag holds it, whoever wrote it.
    Holds {
        /// Name of the variable or flag.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// The pod exists, and was created without a variable or flag.
    Absent {
        /// Name of the first one that is missing.
        name: String,
    },
    /// Its author's value of a variable or flag allows more than it declares, or cannot be read.
    Looser {
        /// Name of the variable or flag.
        name: &'static str,
    },
    /// The length of its context is set, which its framework sizes its memory by.
    Context {
        /// Name of the variable or flag.
        name: &'static str,
    },
    /// Its author sets the size of its KV cache, and its weights come on top.
    CacheAlone {
        /// Name of the flag.
        name: &'static str,
    },
    /// The framework has no variable or flag that takes an amount.
    NoKnob(Framework),
    /// The version of the framework decides, and it is not known.
    VersionUnknown(Framework),
    /// The version of the framework does not know the setting yet.
    VersionTooOld(Framework, Version),
    /// PyTorch's allocator is another one, or its configuration cannot be read.
    OtherAllocator {
        /// Name of the variable that says so.
        name: &'static str,
    },
    /// A shell or an unknown program starts the server, so the flag cannot be appended.
    WriteFlag {
        /// The flag.
        name: &'static str,
        /// The value to write.
        value: String,
    },
    /// A file has flags of the server, which an appended one would override.
    FlagsFromFile {
        /// The flag that names the file.
        name: &'static str,
    },
    /// The memory of the GPUs that it may land on is not known, so no share of it can be computed.
    SizeUnknown,
    /// It may land on GPUs of different sizes, so no share fits all of them.
    SizesDiffer {
        /// The smallest total, in MiB.
        smallest: Vram,
        /// The largest total, in MiB.
        largest: Vram,
    },
    /// The declared amount is no share of such a GPU that could be written: it is larger, or far too small.
    NoShare {
        /// The total of the GPU, in MiB.
        total: Vram,
    },
}

/// The reason without a full stop. It follows the status and a colon.
impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Undeclared => f.write_str("it declares no VRAM, so nothing is told to its framework"),
            Why::NoFramework => write!(
                f,
                "no framework is recognised by its image and command; the annotation {} names it",
                crate::keys::FRAMEWORK
            ),
            Why::Policy => f.write_str("environment.framework of the policy is None"),
            Why::Holds { name, value } if *name == crate::keys::ENV_MPS_LIMIT => {
                write!(f, "{name} is {} for each process", quoted(value))
            }
            Why::Holds { name, value } => write!(f, "{name} is {}", quoted(value)),
            Why::Absent { name } => write!(f, "it was created without {}", quoted(name)),
            Why::Looser { name } => {
                write!(f, "its own value of {name} allows more than it declares, or cannot be read")
            }
            Why::Context { name } => write!(f, "{name} sets the length of its context, by which it sizes its memory"),
            Why::CacheAlone { name } => write!(f, "{name} plans its KV cache alone, and its weights come on top"),
            Why::NoKnob(framework) => write!(f, "{framework} has no setting that takes an amount of memory"),
            Why::VersionUnknown(framework) => write!(
                f,
                "the version of {framework} is not known, and a version that does not know the setting ends; name it by the \
                 annotation {}: {framework}@<version>",
                crate::keys::FRAMEWORK
            ),
            Why::VersionTooOld(framework, version) => {
                write!(f, "{framework} {version} has no setting that takes an amount of memory")
            }
            Why::OtherAllocator { name } => {
                write!(f, "{name} chooses an allocator or has a value that no limit can be added to")
            }
            Why::WriteFlag { name, value } => write!(
                f,
                "a shell or a program that vramguard does not know starts it; write {name}={value} there to keep to what is \
                 declared"
            ),
            Why::FlagsFromFile { name } => write!(f, "{name} names a file with its flags, which are not known here"),
            Why::SizeUnknown => f.write_str("the memory of the GPUs that it may land on is not known"),
            Why::SizesDiffer { smallest, largest } => write!(
                f,
                "it may land on GPUs of {smallest} to {largest}, and a share of one is wrong on another; select nodes with \
                 GPUs of one size"
            ),
            Why::NoShare { total } => {
                write!(f, "what it declares is no share of a GPU of {total} that its framework could be told")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_mps_is_said_to_be_for_each_process() {
        let why = |name| Why::Holds { name, value: "0=8912M".into() }.to_string();
        assert_eq!(why(crate::keys::ENV_MPS_LIMIT), "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT is \"0=8912M\" for each process");
        assert_eq!(why(crate::keys::ENV_GPU_MEMORY_LIMIT), "NVIDIA_GPU_MEMORY_LIMIT is \"0=8912M\"");
    }
}
