//! The command line: parses arguments and runs a command.
//!
//! Owns arguments and exit codes: 0 for success, 1 for findings or a failure, 2 for wrong usage, input that cannot be read
//! or output that cannot be written.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{report, server};

mod agent;
mod audit;
mod convert;
mod demo;
mod estimate;
mod explain;
mod files;
mod live;
mod numbers;
mod outputs;
mod plan;
mod preflight;
mod recommend;
pub mod serve;
mod test;

/// Makes GPU memory a first-class Kubernetes resource on NVIDIA time-sliced GPUs
#[derive(Debug, Parser)]
#[command(name = "vramguard", version, about, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the webhook server and, in a cluster, the controller
    Serve(Box<serve::Args>),
    /// Run the node agent, or look once at the GPUs of this machine
    Agent(Box<agent::Args>),
    /// Report what the GPUs of a cluster are promised to, and what is wrong with it
    Audit(Box<audit::Args>),
    /// Explain the policy in force in a namespace, and what it makes of a pod
    Explain(explain::Args),
    /// Test policies offline, with cases of pods and what is expected of them
    Test(test::Args),
    /// Plan time-slicing replicas, or check a device plugin's configuration
    Plan(plan::Args),
    /// Say of each node whether it can be steered, and what is missing
    Preflight(preflight::Args),
    /// Recommend what each workload should declare, from what the node agents saw
    Recommend(Box<recommend::Args>),
    /// Estimate how much VRAM a model needs, from the headers of its files
    Estimate(estimate::Args),
    /// Convert manifests of other GPU sharing projects, or to and from DRA claims
    Convert(convert::Args),
    /// Show how pods are admitted and placed, on an embedded example cluster
    Demo(demo::Args),
}

/// Why a command failed.
#[derive(Debug)]
pub enum Failure {
    /// Wrong usage, unreadable input, or output that cannot be written: exit code 2. Without its result, a run must not look
    /// as if it had findings.
    Input(anyhow::Error),
    /// Any other failure: exit code 1.
    Run(anyhow::Error),
    /// The command did its work, and what it reports fails the run: exit code 1 without a further message.
    Findings,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::Run(error)
    }
}

impl From<server::Error> for Failure {
    fn from(error: server::Error) -> Failure {
        match error {
            server::Error::Input(error) => Failure::Input(error),
            server::Error::Run(error) => Failure::Run(error),
        }
    }
}

/// Number of threads that answer requests: as many as CPUs, but 2 to 4.
///
/// Each thread may parse a body, so memory grows with their number. A review takes tens of microseconds, so four
/// threads answer tens of thousands a second. With two threads, one still answers while the other parses a large body.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4)
}

/// Maximum number of threads for blocking work: reading files and resolving names.
const MAX_BLOCKING: usize = 4;

/// Runs a command to its end, and prints its error.
pub fn run(cli: Cli) -> ExitCode {
    // Dependencies could link a second crypto provider. The first one that is installed counts, so this one is.
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
            Command::Agent(args) => agent::run(*args).await,
            Command::Preflight(args) => preflight::run(args).await,
            Command::Audit(args) => audit::run(*args).await,
            Command::Recommend(args) => recommend::run(*args).await,
            Command::Demo(args) => demo::run(args).await,
            Command::Test(args) => test::run(&args),
            Command::Explain(args) => explain::run(&args).await,
            Command::Plan(args) => plan::run(args),
            Command::Estimate(args) => estimate::run(&args),
            Command::Convert(args) => convert::run(args),
        }
    });
    // Blocking file reads may still run. They end with the process.
    runtime.shutdown_background();
    let (code, error) = match ended {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Findings) => return ExitCode::from(1),
        Err(Failure::Input(error)) => (2, error),
        Err(Failure::Run(error)) => (1, error),
    };
    for line in format!("{error:#}").lines() {
        // It may repeat what a stranger wrote.
        eprintln!("error: {}", report::printable(line));
    }
    ExitCode::from(code)
}
