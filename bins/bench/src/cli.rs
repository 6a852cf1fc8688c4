//! The command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{bytes, idempotency, load, simulate};

/// Measures a running server or its messages, or simulates whole systems.
#[derive(Debug, Parser)]
#[command(name = "driftline-bench", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Command {
    /// Puts load on a server: one JSON object on stdout, a summary on stderr.
    #[command(subcommand)]
    Load(load::Scenario),
    /// Counts the bytes of messages in every form: one JSON object on stdout, a table on stderr.
    Bytes(bytes::Arguments),
    /// Takes the time of requests that come again: one JSON object on stdout, a table on stderr.
    Idempotency(idempotency::Arguments),
    /// Simulates devices, a network and a server from a seed, and checks that nothing is lost.
    Simulate(simulate::Arguments),
}

/// Runs the program with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    match run(&Arguments::parse().command) {
        Ok(code) => code,
        Err(fault) => {
            eprintln!("error: {fault:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Load(scenario) => {
            // One thread, so that the tool can be pinned to one core and leaves the others to the server.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(load::run(scenario))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Bytes(arguments) => {
            bytes::command(arguments)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Idempotency(arguments) => {
            idempotency::command(arguments)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Simulate(arguments) => simulate::command(arguments),
    }
}
