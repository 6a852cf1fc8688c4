//! The command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{bytes, fanout, idempotency, load, replay, simulate};

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
    /// Publishes events of one topic to many subscribers: one JSON object on stdout, a summary on stderr.
    Fanout(fanout::Options),
    /// Reads missed events again and again: one JSON object on stdout, a summary on stderr.
    Replay(replay::Options),
    /// Serves the rows of a file as events, with a plain SELECT and a socket: what `replay` is set beside.
    Rows(replay::RowsOptions),
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
            on_one_thread(load::run(scenario))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Fanout(options) => {
            on_one_thread(fanout::run(options))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Replay(options) => {
            on_one_thread(replay::run(options))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Rows(options) => {
            replay::serve(options)?;
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

/// Runs on one thread, so that the tool can be pinned to one core and leaves the others to the server.
fn on_one_thread(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
