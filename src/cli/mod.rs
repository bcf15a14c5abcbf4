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

/// Runs a command to its end.
pub fn run(cli: Cli) -> ExitCode {
    // Two providers could be linked in by dependencies; whichever is installed first counts, so it is ours.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
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
