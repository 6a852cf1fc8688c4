//! Copies of the embedded database, and the way back.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use driftline_storage::{Report, RestoreError, SqliteStore};
use driftline_transport::SystemRandom;

use super::{database, require_embedded};
use crate::config::Config;
use crate::run::{DATABASE, data_dir};

/// What is copied, and where to.
#[derive(Debug, Args)]
pub(crate) struct BackupArguments {
    /// The copy; it must not exist yet.
    file: PathBuf,
    /// The configuration file.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The data folder.
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

/// What is put in place, and where.
#[derive(Debug, Args)]
pub(crate) struct RestoreArguments {
    /// The backup; it stays as it is.
    file: PathBuf,
    /// Only check the backup: every page, index, row and sum.
    #[arg(long)]
    check: bool,
    /// The configuration file.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The data folder.
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

/// Copies the database and says what is in the copy.
pub(crate) fn backup(arguments: &BackupArguments) -> anyhow::Result<()> {
    let config = Config::load(arguments.config.as_deref())?;
    require_embedded(&config)?;
    let file = data_dir(arguments.data_dir.as_deref(), &config).join(DATABASE);
    let contents = SqliteStore::backup(&file, &arguments.file)?;
    println!("{} holds {contents}", arguments.file.display());
    Ok(())
}

/// Checks a backup, and puts it in place unless it was only to be checked.
pub(crate) fn restore(arguments: &RestoreArguments) -> anyhow::Result<()> {
    let backup = &arguments.file;
    if arguments.check {
        let report = SqliteStore::check(backup);
        list(&report);
        return judge(&report, backup);
    }
    let config = Config::load(arguments.config.as_deref())?;
    require_embedded(&config)?;
    let file = database(&data_dir(arguments.data_dir.as_deref(), &config))?;
    let restored = match SqliteStore::restore(backup, &file, &SystemRandom) {
        Ok(restored) => restored,
        Err(RestoreError::NotWhole { report, .. }) => {
            list(&report);
            return judge(&report, backup);
        }
        Err(other) => return Err(other.into()),
    };
    println!("{} holds {}", file.display(), restored.contents);
    for name in &restored.migrated {
        println!("ran {name}");
    }
    if let Some(replaced) = &restored.replaced {
        println!("the database before is kept as {}", replaced.display());
    }
    println!(
        "every tenant begins a new epoch: devices pull everything anew, keep what they have not sent yet, and give back \
         what they hold and the backup lacks"
    );
    Ok(())
}

/// Prints one line for everything that was found.
fn list(report: &Report) {
    for finding in &report.findings {
        println!("bad: {finding}");
    }
    for migration in &report.pending {
        println!("note: migration {migration} is still to run; rows are checked after it, by a restore");
    }
    if report.findings.is_empty() && !report.sealed {
        println!("note: it has no seal: nobody can tell whether letters changed within a text");
    }
}

fn judge(report: &Report, backup: &std::path::Path) -> anyhow::Result<()> {
    if !report.findings.is_empty() {
        bail!("{} is not whole", backup.display());
    }
    println!("{} is whole and holds {}", backup.display(), report.contents);
    Ok(())
}
