//! `driftline-bench`: load on running servers, and simulations of whole systems.

use std::process::ExitCode;

fn main() -> ExitCode {
    driftline_bench::main()
}
