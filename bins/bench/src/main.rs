//! `driftline-bench`: load on a running server, seen from outside.
//!
//! The tool speaks only the public wire protocol and reads `/proc`; it shares no code with the server, so
//! that it can drive any server and cannot inherit its mistakes. It does not judge: it prints figures, and
//! `scripts/bars` sets two servers side by side.

mod load;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures a running server.
#[derive(Debug, Parser)]
#[command(name = "driftline-bench", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// What to measure.
#[derive(Debug, Subcommand)]
enum Command {
    /// Puts load on a server: one JSON object on stdout, a summary on stderr.
    #[command(subcommand)]
    Load(load::Scenario),
}

fn main() -> ExitCode {
    match run(&Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("error: {fault:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> anyhow::Result<()> {
    // One thread, so that the tool can be pinned to one core and leaves the others to the server.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match command {
        Command::Load(scenario) => runtime.block_on(load::run(scenario)),
    }
}
