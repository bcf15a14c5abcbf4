//! The `vramguard` binary: arguments in, exit code out. Everything else is the library's.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // a shell: the pure tiers forbid these to themselves

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    vramguard::cli::run(vramguard::cli::Cli::parse())
}
