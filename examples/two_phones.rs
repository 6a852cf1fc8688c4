//! Two phones edit the same records offline, and agree.
//!
//!     cargo run --release -p driftline-examples --example two_phones [FOLDER]
//!
//! FOLDER holds `movies.json` and `cars.json` of the npm package `vega-datasets`; without it the tables that
//! `scripts/test` installs are taken.

use std::path::PathBuf;

use driftline_examples::server::Embedded;
use driftline_examples::two_phones::{STRATEGIES, Size, Tables, folder, play};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let folder = match std::env::args().nth(1) {
        Some(named) => PathBuf::from(named),
        None => folder()?,
    };
    let size = Size { movies: 3201, cars: 406, edits: 500 };
    let tables = Tables::read(&folder, size)?;
    let data = std::env::temp_dir().join(format!("driftline-two-phones-{}", std::process::id()));
    std::fs::create_dir_all(&data)?;
    let server = Embedded::start(&data).await?;
    for policy in STRATEGIES {
        println!("{policy}");
        play(&server, &tables, policy, size, &mut |line| println!("  {line}")).await?;
    }
    server.stop().await?;
    std::fs::remove_dir_all(&data)?;
    Ok(())
}
