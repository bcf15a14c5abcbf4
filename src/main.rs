//! The `vramguard` binary: parses the arguments and returns the exit code. The library does everything else.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // a shell: only the pure tiers deny these lints

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    vramguard::cli::run(vramguard::cli::Cli::parse())
}
