//! The folder of a fresh cluster, which is made once for a machine.

use std::env;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::programs::{Programs, USER, output};
use crate::TempFolder;

/// Part of the file's name: another number for another content.
const EDITION: u32 = 1;

/// Unpacks a fresh cluster as `data` in a folder.
///
/// `initdb` takes the better part of a second, so what it made is kept as one file among the temporary ones. It is
/// renamed to its place when it is whole, so processes that start at once do not disturb each other.
pub(super) fn unpack(programs: &Programs, folder: &Path) {
    let own = TempFolder::new().path().metadata().expect("it was just made").uid();
    let name = format!("driftline-postgres-{}-{EDITION}-{own}.tar", programs.version());
    let archive = env::temp_dir().join(name);
    // A file with this name that somebody else put there is not to be trusted.
    if !archive.metadata().is_ok_and(|found| found.uid() == own) {
        make(programs, &archive);
    }
    let mut tar = programs.system("tar");
    tar.args(["-b", "2048", "-xf", "-", "-C"]).arg(folder);
    output(tar.stdin(File::open(&archive).expect("it was just there")));
}

fn make(programs: &Programs, archive: &Path) {
    let folder = TempFolder::new();
    programs.give(folder.path());
    initdb(programs, &folder.path().join("data"));
    let part = folder.path().join("tar");
    let mut tar = programs.system("tar");
    tar.args(["-b", "2048", "-cf", "-", "-C"]).arg(folder.path()).arg("data");
    let file = File::create(&part).unwrap_or_else(|error| panic!("{}: {error}", part.display()));
    let status = tar.stdout(file).status().expect("there is a tar");
    assert!(status.success(), "{tar:?}: {status}");
    fs::rename(&part, archive).unwrap_or_else(|error| panic!("{}: {error}", archive.display()));
}

/// Databases sort by language unless a schema says otherwise, as they do where Driftline is deployed: an order of bytes
/// that a schema forgot to ask for is noticed. Where the programs cannot, they sort by bytes.
fn initdb(programs: &Programs, data: &Path) {
    let command = |locale: &[&str]| {
        let mut command = programs.command("initdb");
        command.args(["-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync", "--locale=C", "-D"]).arg(data);
        command.args(locale);
        command
    };
    let by_language = command(&["--locale-provider=icu", "--icu-locale=und"]).output();
    if !by_language.is_ok_and(|output| output.status.success()) {
        output(&mut command(&[]));
    }
}
