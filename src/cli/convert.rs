//! `vramguard convert`: reads manifests, and prints them with other declarations of VRAM.
//!
//! Owns its arguments, and what goes to standard error. [`k8s::convert`](crate::k8s::convert) changes the manifests.

use std::num::NonZeroU32;
use std::path::PathBuf;

use anyhow::{Context, anyhow};

use super::{Failure, files, numbers, outputs};
use crate::capacity::policy::{Documents, Policies};
use crate::capacity::vram::Vram;
use crate::k8s::convert::{self, Converted, Direction, Kind, Note};
use crate::k8s::document;
use crate::k8s::foreign::{AliyunUnit, Assumptions};
use crate::k8s::node::MAX_GPU;
use crate::keys;
use crate::report::printable;
use crate::state::policies;

/// Arguments of `convert`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Manifests to convert; `-` is standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,

    /// Convert vramguard's declarations to claims of Dynamic Resource Allocation
    #[arg(long, value_enum, value_name = "SCHEME", conflicts_with = "from")]
    to: Option<Scheme>,

    /// Convert claims of Dynamic Resource Allocation to vramguard's declarations
    #[arg(long, value_enum, value_name = "SCHEME")]
    from: Option<Scheme>,

    /// Unit of aliyun.com/gpu-mem: --memory-unit of gpushare's device plugin
    #[arg(long, value_enum, value_name = "UNIT", default_value_t = Unit::Gib)]
    aliyun_unit: Unit,

    /// How many MiB one unit of nvidia.com/gpumem or volcano.sh/vgpu-memory is: memoryFactor of HAMi, and
    /// gpu-memory-factor of Volcano's device plugin
    #[arg(long, value_name = "MIB", default_value = "1", value_parser = numbers::above_zero)]
    memory_factor: NonZeroU32,

    /// Memory of each GPU in MiB, as nvidia-smi shows it, to convert shares of a GPU. Only if all GPUs are equal
    #[arg(long, value_name = "MIB", value_parser = numbers::between::<u64>(1, u64::MAX))]
    gpu_memory_mib: Option<u64>,

    /// Directory of policy files, for model names and the overhead of a process
    #[arg(long, value_name = "DIR")]
    policies: Option<PathBuf>,
}

/// What declarations are converted to or from.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Scheme {
    /// ResourceClaimTemplates for NVIDIA's DRA driver
    Dra,
}

/// Unit of an amount of memory.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Unit {
    #[value(name = "GiB", alias = "gib")]
    Gib,
    #[value(name = "MiB", alias = "mib")]
    Mib,
}

/// Runs the command.
pub(super) fn run(args: Args) -> Result<(), Failure> {
    let assumptions = args.assumptions().map_err(Failure::Input)?;
    let policies = args.read_policies().map_err(Failure::Input)?;
    let direction = match (args.to, args.from) {
        (Some(Scheme::Dra), _) => Direction::ToClaims(&policies),
        (None, Some(Scheme::Dra)) => Direction::FromClaims(&policies),
        (None, None) => Direction::FromForeign(&assumptions),
    };
    let mut out = String::new();
    let (mut converted, mut refused) = (0, 0);
    // All files are read before anything is printed, so that a broken one leaves no half output.
    let mut remarks = Vec::new();
    for file in &args.files {
        let (name, text) = files::text_of(file).map_err(Failure::Input)?;
        let Converted { text, notes } = convert::convert(&text, direction)
            .map_err(|(line, what)| Failure::Input(anyhow!("{name}:{line}: {what}")))?;
        if !out.is_empty() && !text.starts_with("---") {
            out.push_str(if out.ends_with('\n') { "---\n" } else { "\n---\n" });
        }
        out.push_str(&text);
        converted += objects(&notes, Kind::Converted);
        refused += objects(&notes, Kind::Refused);
        remarks.extend(notes.into_iter().map(|note| remark(&name, &note)));
    }
    outputs::print(&out).map_err(Failure::Input)?;
    remarks.iter().for_each(|remark| eprintln!("{remark}"));
    let number = |number| crate::capacity::verdict::count(number, "object");
    match (converted, refused) {
        (0, 0) => eprintln!("nothing to convert"),
        (converted, 0) => eprintln!("{} converted", number(converted)),
        (converted, refused) => eprintln!("{} converted, {refused} not", number(converted)),
    }
    if refused > 0 { Err(Failure::Findings) } else { Ok(()) }
}

/// Number of objects with a remark of this kind.
fn objects(notes: &[Note], kind: Kind) -> usize {
    let mut objects: Vec<_> =
        notes.iter().filter(|note| note.kind == kind).map(|note| (note.line, note.object.as_str())).collect();
    objects.sort_unstable();
    objects.dedup();
    objects.len()
}

/// A remark as a line. Names are text from strangers.
fn remark(file: &str, note: &Note) -> String {
    let kind = match note.kind {
        Kind::Converted => "converted",
        Kind::Lost => "lost",
        Kind::LeftOut => "left out",
        Kind::Refused => "not converted",
        Kind::Form => "form",
    };
    printable(&format!("{file}:{}: {}: {kind}: {}", note.line, note.object, note.text))
}

impl Args {
    fn assumptions(&self) -> anyhow::Result<Assumptions> {
        let gpu = self.gpu_memory_mib.map(|mib| {
            let size = Vram::checked_from_mib(mib).filter(|size| *size <= MAX_GPU);
            size.with_context(|| format!("--gpu-memory-mib {mib} is more than any GPU has; it is in MiB"))
        });
        Ok(Assumptions {
            aliyun: match self.aliyun_unit {
                Unit::Gib => AliyunUnit::Gib,
                Unit::Mib => AliyunUnit::Mib,
            },
            factor: self.memory_factor,
            gpu: gpu.transpose()?,
        })
    }

    fn read_policies(&self) -> anyhow::Result<Policies> {
        let Some(directory) = &self.policies else {
            return Ok(Policies::new(&Documents::default(), keys::NAMESPACE));
        };
        let files = policies::files_of(directory)?;
        let read = document::read(files.iter().map(|(name, text)| (name.as_str(), text.as_str())));
        let configuration =
            read.map_err(|errors| anyhow!(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))?;
        Ok(Policies::new(&configuration.documents, keys::NAMESPACE))
    }
}
