//! `driftline-server`: an offline-first sync and real-time backend.

use std::process::ExitCode;

fn main() -> ExitCode {
    driftline_server::main()
}
