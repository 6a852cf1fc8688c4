//! The command line.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{commands, run};

/// Offline-first sync and real-time backend.
#[derive(Debug, Parser)]
#[command(name = "driftline-server", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run for development: on this machine only, with a token printed; undeclared kinds are accepted.
    Dev(run::RunArguments),
    /// Run for others: needs a key in the configuration.
    Serve(run::RunArguments),
    /// Print a token for development or scripts.
    Token(commands::TokenArguments),
    /// Register devices that enter by a hash, and list, enable, disable and remove devices.
    Device(commands::DeviceArguments),
    /// Bring the database to the newest schema.
    Migrate(commands::MigrateArguments),
    /// Copy the database, while the server runs or not.
    Backup(commands::BackupArguments),
    /// Put a backup in the place of the database of a server that does not run, or check one.
    Restore(commands::RestoreArguments),
    /// Publish what other programs wrote into the outbox, or print a trigger that writes into it.
    Outbox(commands::OutboxArguments),
    /// Test everything that the server needs, and say what to mend.
    Doctor(commands::DoctorArguments),
}

/// Runs the program on the arguments of the process.
#[must_use]
pub fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_env("DRIFTLINE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,driftline_server=info"));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
    let command = Arguments::parse().command.unwrap_or_else(|| Command::Dev(run::RunArguments::default()));
    let done = match command {
        Command::Dev(arguments) => run::run(&arguments, run::Mode::Dev),
        Command::Serve(arguments) => run::run(&arguments, run::Mode::Serve),
        Command::Token(arguments) => commands::token(&arguments),
        Command::Device(arguments) => commands::device(&arguments),
        Command::Migrate(arguments) => commands::migrate(&arguments),
        Command::Backup(arguments) => commands::backup(&arguments),
        Command::Restore(arguments) => commands::restore(&arguments),
        Command::Outbox(arguments) => commands::outbox(&arguments),
        Command::Doctor(arguments) => commands::doctor(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line says what is wrong and where it comes from.
            eprintln!("driftline-server: {error:#}");
            ExitCode::FAILURE
        }
    }
}
