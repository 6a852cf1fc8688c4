//! The installed programs, and the user that may run them.

use std::env;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The superuser of every cluster.
pub(super) const USER: &str = "driftline";

/// Where the programs are, and as whom they run.
#[derive(Debug)]
pub(super) struct Programs {
    bin: PathBuf,
    /// None: as the user of the test, who is not root.
    account: Option<Account>,
}

#[derive(Debug, Clone, Copy)]
struct Account {
    uid: u32,
    gid: u32,
}

impl Programs {
    /// Looks for the programs, once for the process.
    ///
    /// # Panics
    /// When PostgreSQL is not installed.
    pub(super) fn installed() -> &'static Self {
        static FOUND: OnceLock<Programs> = OnceLock::new();
        FOUND.get_or_init(|| Self { bin: bin(), account: unprivileged() })
    }

    /// Makes a command of one of PostgreSQL's programs.
    pub(super) fn command(&self, name: &str) -> Command {
        self.prepare(Command::new(self.bin.join(name)))
    }

    /// Makes a command of a program of the system, with the same rights.
    pub(super) fn system(&self, name: &str) -> Command {
        self.prepare(Command::new(name))
    }

    fn prepare(&self, mut command: Command) -> Command {
        // What a developer set for another server has no meaning here.
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
            command.env_remove(name);
        }
        command.env("LC_ALL", "C").env("HOME", "/nonexistent").env("PGCONNECT_TIMEOUT", "10");
        // The folder of the test, and its home, may be closed to the other user.
        command.current_dir("/").stdin(Stdio::null());
        if let Some(Account { uid, gid }) = self.account {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Gives a file or a folder to the user that the programs run as.
    pub(super) fn give(&self, path: &Path) {
        if let Some(Account { uid, gid }) = self.account {
            chown(path, Some(uid), Some(gid)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }

    /// Writes a file that the programs may read.
    pub(super) fn write(&self, file: &Path, text: &str) {
        fs::write(file, text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        self.give(file);
    }

    /// Returns the version, such as `15.14`.
    pub(super) fn version(&self) -> String {
        let line = output(self.command("postgres").arg("--version"));
        line.split_whitespace().nth(2).expect("`postgres (PostgreSQL) 15.14`").to_owned()
    }
}

/// Makes a command of one of PostgreSQL's programs, such as `psql` or `pg_dump`, which runs as the user of the servers.
///
/// # Panics
/// When PostgreSQL is not installed.
#[must_use]
pub fn command(name: &str) -> Command {
    Programs::installed().command(name)
}

/// Runs a command and returns what it printed.
///
/// # Panics
/// With what it said, when it fails.
pub(super) fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    String::from_utf8(output.stdout).expect("what is printed is text")
}

fn bin() -> PathBuf {
    if let Some(given) = env::var_os("DRIFTLINE_PG_BIN") {
        return given.into();
    }
    let has_programs =
        |folder: &PathBuf| folder.join("initdb").is_file() && folder.join("postgres").is_file();
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let versions = versions.filter_map(|entry| {
        let number: u32 = entry.file_name().to_str()?.parse().ok()?;
        Some((number, entry.path().join("bin"))).filter(|(_, folder)| has_programs(folder))
    });
    let newest = versions.max().map(|(_, folder)| folder);
    let path = env::var_os("PATH").unwrap_or_default();
    newest
        .or_else(|| env::split_paths(&path).find(has_programs))
        .expect("PostgreSQL is installed, or DRIFTLINE_PG_BIN says where its programs are")
}

/// Finds the user that root has to become.
fn unprivileged() -> Option<Account> {
    let own = crate::TempFolder::new().path().metadata().expect("it was just made").uid();
    if own != 0 {
        return None;
    }
    let id = |option: &str, user: &str| {
        let printed = Command::new("id").args([option, user]).output().ok()?.stdout;
        String::from_utf8(printed).ok()?.trim().parse().ok()
    };
    let account = |user: &str| Some(Account { uid: id("-u", user)?, gid: id("-g", user)? });
    let found = account("postgres").or_else(|| account("nobody"));
    Some(found.expect("root finds a user `postgres` or `nobody` to run PostgreSQL as"))
}
