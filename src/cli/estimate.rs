//! `vramguard estimate`: how much VRAM a model needs, from the headers of its files. Owns its arguments and opens the files
//! that [`search`] finds; [`model`](crate::model) reads them, and [`capacity::estimate`](crate::capacity::estimate) computes.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, ensure};

use super::outputs::{self, Output};
use super::{Failure, files, numbers};
use crate::capacity::estimate::shape::ModelShape;
use crate::capacity::estimate::{self, KvType, Request, Runtime, WeightsDtype};
use crate::model::{Unreadable, config, gguf, safetensors};
use crate::report::estimate::{Document, annotation};

mod search;

use search::Found;

/// Arguments of `estimate`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// A GGUF or safetensors file, a config.json, or a directory of one model
    #[arg(value_name = "FILE|DIR")]
    model: PathBuf,

    /// Tokens of each sequence, prompt and answer together
    #[arg(long, value_name = "TOKENS", value_parser = numbers::between::<u64>(1, MAX_CONTEXT))]
    context: u64,

    /// Sequences at the same time
    #[arg(long, value_name = "SEQUENCES", default_value = "1", value_parser = numbers::between::<u64>(1, MAX_SEQUENCES))]
    concurrency: u64,

    /// Type of the KV cache
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = Kv::F16)]
    kv_type: Kv,

    /// Type of the weights, if not that of the files. Their parameters are then counted as this type
    #[arg(long, value_enum, value_name = "TYPE")]
    weights_dtype: Option<Weights>,

    /// Program that runs the model; none leaves out what a program adds. llama.cpp for GGUF files, otherwise vllm, if absent
    #[arg(long, value_enum, value_name = "RUNTIME")]
    runtime: Option<Program>,

    /// Print only the annotation that declares the amount
    #[arg(long, conflicts_with = "output")]
    annotation: bool,

    /// Format: table or json. With =FILE it is written to that file. Repeatable
    #[arg(long, short = 'o', value_name = "FORMAT[=FILE]", default_value = "table")]
    output: Vec<Output<Format>>,
}

/// The longest context that is accepted: a thousand times that of today's models.
const MAX_CONTEXT: u64 = 1 << 30;
/// The most sequences that are accepted.
const MAX_SEQUENCES: u64 = 1 << 16;

/// What `estimate` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// A table for a terminal.
    Table,
    /// JSON for programs.
    Json,
}

/// Types of KV caches, by their names.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Kv {
    F16,
    Fp8,
    #[value(name = "q8_0")]
    Q8,
    #[value(name = "q4_0")]
    Q4,
}

impl From<Kv> for KvType {
    fn from(kv: Kv) -> KvType {
        match kv {
            Kv::F16 => KvType::F16,
            Kv::Fp8 => KvType::Fp8,
            Kv::Q8 => KvType::Q8_0,
            Kv::Q4 => KvType::Q4_0,
        }
    }
}

/// Types of weights, by their names.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Weights {
    Bf16,
    Fp8,
    Int8,
    Int4,
}

impl From<Weights> for WeightsDtype {
    fn from(weights: Weights) -> WeightsDtype {
        match weights {
            Weights::Bf16 => WeightsDtype::Bf16,
            Weights::Fp8 => WeightsDtype::Fp8,
            Weights::Int8 => WeightsDtype::Int8,
            Weights::Int4 => WeightsDtype::Int4,
        }
    }
}

/// Runtimes, by their names.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Program {
    Vllm,
    Ollama,
    #[value(name = "llama.cpp")]
    LlamaCpp,
    Transformers,
    None,
}

impl From<Program> for Runtime {
    fn from(program: Program) -> Runtime {
        match program {
            Program::Vllm => Runtime::Vllm,
            Program::Ollama => Runtime::Ollama,
            Program::LlamaCpp => Runtime::LlamaCpp,
            Program::Transformers => Runtime::Transformers,
            Program::None => Runtime::None,
        }
    }
}

/// Reads the headers, and prints the estimate.
///
/// # Errors
/// [`Failure::Input`] if a file is missing or cannot be read, or if nothing honest can be said of the model.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    print(args).map_err(Failure::Input)
}

fn print(args: &Args) -> anyhow::Result<()> {
    let found = search::find(&args.model)?;
    let inputs = found.files();
    outputs::check(&args.output, &inputs)?;
    let wanted = args.weights_dtype.map(WeightsDtype::from);
    let shape = read(&found, wanted)?;
    let usual = if matches!(found, Found::Gguf(_)) { Runtime::LlamaCpp } else { Runtime::Vllm };
    let request = Request {
        context: args.context,
        concurrency: args.concurrency,
        kv: args.kv_type.into(),
        weights: wanted,
        runtime: args.runtime.map_or(usual, Runtime::from),
    };
    let name = args.model.display();
    let estimate = estimate::estimate(&shape, &request).with_context(|| name.to_string())?;
    if args.annotation {
        return outputs::print(&format!("{}\n", annotation(&estimate)));
    }
    let inputs = inputs.iter().map(|file| file.display().to_string()).collect();
    let document = Document::new(&estimate, &request, &shape.architecture, inputs);
    outputs::write(&args.output, clap::ColorChoice::Never, |format, _look| match format {
        Format::Table => document.table(),
        Format::Json => document.json(),
    })
}

/// The shape of a model, from the headers of its files.
fn read(found: &Found, wanted: Option<WeightsDtype>) -> anyhow::Result<ModelShape> {
    match found {
        Found::Gguf(files) => {
            let headers: Vec<gguf::Header> = headers(files, gguf::read)?;
            let place = files.first().map(PathBuf::as_path).unwrap_or(Path::new(""));
            gguf::shape::shape(&headers).map_err(|error| in_file(place, &error))
        }
        Found::Safetensors { files, config: place, .. } => {
            let config = configuration(place)?;
            let headers: Vec<safetensors::Header> = headers(files, safetensors::read)?;
            config.with(|tied| safetensors::joined(&headers, tied)).map_err(|error| in_file(place, &error))
        }
        Found::Config(place) => configuration(place)?.alone(wanted).map_err(|error| in_file(place, &error)),
    }
}

/// Reads the header of each file.
fn headers<H>(
    files: &[PathBuf],
    read: impl Fn(Box<dyn Read>, Option<u64>) -> Result<H, Unreadable>,
) -> anyhow::Result<Vec<H>> {
    let header = |place: &PathBuf| {
        // Opening a pipe may not end.
        let is_file = std::fs::metadata(place).is_ok_and(|metadata| metadata.is_file());
        ensure!(is_file, "{}: is no regular file", place.display());
        let file = File::open(place).with_context(|| place.display().to_string())?;
        let length = file.metadata().with_context(|| place.display().to_string())?.len();
        read(Box::new(file), Some(length)).map_err(|error| in_file(place, &error))
    };
    files.iter().map(header).collect()
}

fn configuration(place: &Path) -> anyhow::Result<config::Config> {
    let text = files::text(place, config::MAX_CONFIG).map_err(|error| anyhow!("{}: {error}", place.display()))?;
    config::read(&text).map_err(|error| in_file(place, &error))
}

/// An error with the file in which it is.
fn in_file(place: &Path, error: &Unreadable) -> anyhow::Error {
    anyhow!("{}: {error}", place.display())
}
