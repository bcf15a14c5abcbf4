//! The command line. Owns arguments and exit codes: 0 clean, 1 findings or failure, 2 usage or unreadable input.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod demo;
pub mod serve;

/// GPU memory as a first-class Kubernetes resource on NVIDIA time-sliced GPUs
#[derive(Debug, Parser)]
#[command(name = "vramguard", version, about, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the webhook and, in a cluster, control what its nodes publish
    Serve(Box<serve::Args>),
    /// Show what it does, end to end, on an embedded picture of a cluster
    Demo(demo::Args),
}

/// Why a command ended early.
#[derive(Debug)]
pub enum Failure {
    /// Usage or unreadable input: exit code 2.
    Input(anyhow::Error),
    /// Anything else: exit code 1.
    Run(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::Run(error)
    }
}

/// Threads that answer. What is parsed at once, and so memory, grows with them; a review takes tens of microseconds, so four
/// are tens of thousands a second. Two at least: while one parses a large body the other answers.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4)
}

/// Threads that read files and resolve names.
const MAX_BLOCKING: usize = 4;

/// Runs a command to its end.
pub fn run(cli: Cli) -> ExitCode {
    // Two providers could be linked in by dependencies; whichever is installed first counts, so it is ours.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers())
        .max_blocking_threads(MAX_BLOCKING)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::from(1);
        }
    };
    let ended = runtime.block_on(async {
        match cli.command {
            Command::Serve(args) => serve::run(*args).await,
            Command::Demo(args) => demo::run(args).await,
        }
    });
    // Blocking file reads of the followers end with the process.
    runtime.shutdown_background();
    let (code, error) = match ended {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Input(error)) => (2, error),
        Err(Failure::Run(error)) => (1, error),
    };
    for line in format!("{error:#}").lines() {
        eprintln!("error: {line}");
    }
    ExitCode::from(code)
}
