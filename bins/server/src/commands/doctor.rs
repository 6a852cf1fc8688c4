//! Tests of everything that the server needs.

mod database;
mod machine;
mod postgres;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;

use crate::config::Config;
use crate::run::{DATABASE, data_dir};
use crate::store::DataPlace;

/// Whose server is tested.
#[derive(Debug, Args)]
pub(crate) struct DoctorArguments {
    /// The configuration file.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The data folder.
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Ok,
    /// Worth knowing; the server runs as it should.
    Note,
    /// To be mended before the server runs, or soon.
    Bad,
}

/// What one test found.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    level: Level,
    /// What was tested.
    about: &'static str,
    /// What was found; where something is bad, what to do as well.
    says: String,
}

impl Line {
    fn ok(about: &'static str, says: impl Into<String>) -> Self {
        Self { level: Level::Ok, about, says: says.into() }
    }

    fn note(about: &'static str, says: impl Into<String>) -> Self {
        Self { level: Level::Note, about, says: says.into() }
    }

    fn bad(about: &'static str, says: impl Into<String>) -> Self {
        Self { level: Level::Bad, about, says: says.into() }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Ok => "ok  ",
            Level::Note => "note",
            Level::Bad => "bad ",
        };
        write!(f, "{level} {}: {}", self.about, self.says)
    }
}

/// Prints a line for each test.
pub(crate) fn doctor(arguments: &DoctorArguments) -> anyhow::Result<()> {
    let (config, line) = configuration(arguments.config.as_deref());
    let folder = data_dir(arguments.data_dir.as_deref(), &config);
    let mut lines = vec![line, machine::key(&config, arguments.config.is_some())];
    if config.store.url.is_none() {
        lines.extend(machine::folder(&folder));
    }
    let store = store(&config, &folder);
    lines.extend(store.lines);
    lines.push(machine::clock(&config, store.hlc_ms));
    lines.push(machine::descriptors(&config));
    lines.push(machine::port(&config, store.in_use));
    for line in &lines {
        println!("{line}");
    }
    match lines.iter().filter(|line| line.level == Level::Bad).count() {
        0 => Ok(()),
        1 => bail!("1 thing is to be mended"),
        count => bail!("{count} things are to be mended"),
    }
}

/// Reads the configuration; what comes after a bad one is tested with the defaults.
fn configuration(file: Option<&Path>) -> (Config, Line) {
    const ABOUT: &str = "configuration";
    let read = Config::load(file).and_then(|config| {
        config.limits()?;
        config.windows()?;
        config.catalogue(true)?;
        config.rules(true)?;
        config.check_uploads()?;
        config.outbox()?;
        Ok(config)
    });
    match (read, file) {
        (Ok(config), Some(file)) => (config, Line::ok(ABOUT, format!("{} is readable", file.display()))),
        (Ok(config), None) => {
            (config, Line::note(ABOUT, "no file is named (--config FILE): the defaults are tested"))
        }
        (Err(error), _) => (
            Config::default(),
            Line::bad(ABOUT, format!("{error:#}; mend it; the defaults are tested below")),
        ),
    }
}

/// What the tests of the store found, and what others need to know of it.
struct StoreTested {
    lines: Vec<Line>,
    /// The highest stored clock, in Unix milliseconds.
    hlc_ms: u64,
    /// Whether a server has the store open.
    in_use: bool,
}

/// Tests the store that the configuration names.
fn store(config: &Config, folder: &Path) -> StoreTested {
    match config.data_place(folder.join(DATABASE)) {
        DataPlace::Embedded(file) => database::embedded(&file),
        DataPlace::Postgres { target, shown } => postgres::shared(&config.store, &target, &shown),
    }
}
