//! Tests of the embedded database.

use std::path::Path;

use driftline_storage::{Diagnosis, SideFile, SqliteStore};

use super::{Line, StoreTested};

pub(super) fn embedded(file: &Path) -> StoreTested {
    const ABOUT: &str = "database";
    let nothing = |line: Line| StoreTested { lines: vec![line], hlc_ms: 0, in_use: false };
    if !file.exists() {
        return nothing(Line::note(
            ABOUT,
            format!("{} does not exist yet; the first start makes it", file.display()),
        ));
    }
    match SqliteStore::diagnose(file) {
        Ok(diagnosis) => {
            StoreTested { lines: lines(file, &diagnosis), hlc_ms: diagnosis.hlc_ms, in_use: diagnosis.in_use }
        }
        Err(error) => {
            nothing(Line::bad(ABOUT, format!("{error}; restore a backup (driftline-server restore)")))
        }
    }
}

fn lines(file: &Path, diagnosis: &Diagnosis) -> Vec<Line> {
    let by = if diagnosis.in_use { "a server runs on it" } else { "no server runs on it" };
    let opens = format!(
        "{} opens with its log and full syncs, and holds {}; {by}",
        file.display(),
        diagnosis.contents
    );
    let mut lines = vec![Line::ok("database", opens)];
    if diagnosis.restoring {
        lines.push(Line::note("restore", "one was cut short; the next start finishes it"));
    }
    lines.push(integrity(diagnosis));
    lines.push(schema(diagnosis));
    lines.push(side_file(diagnosis));
    lines
}

fn integrity(diagnosis: &Diagnosis) -> Line {
    const ABOUT: &str = "integrity";
    match &diagnosis.damage[..] {
        [] => Line::ok(ABOUT, "every page is where it should be"),
        [first, more @ ..] => Line::bad(
            ABOUT,
            format!("{first} (and {} more); stop the server and restore a backup", more.len()),
        ),
    }
}

fn schema(diagnosis: &Diagnosis) -> Line {
    const ABOUT: &str = "schema";
    if let Some(newer) = diagnosis.newer.first() {
        return Line::bad(ABOUT, format!("a newer version of this program wrote {newer}; run that version"));
    }
    match &diagnosis.pending[..] {
        [] => Line::ok(ABOUT, "up to date"),
        pending => Line::note(
            ABOUT,
            format!("{} still to run; the next start does, or driftline-server migrate", pending.join(", ")),
        ),
    }
}

fn side_file(diagnosis: &Diagnosis) -> Line {
    const ABOUT: &str = "side file";
    match &diagnosis.side {
        SideFile::Fits => Line::ok(ABOUT, "the database is as far as it was"),
        SideFile::Absent => {
            Line::note(ABOUT, "absent: an older database would not be noticed; the next start makes it")
        }
        SideFile::Damaged(reason) => Line::note(
            ABOUT,
            format!("{reason}: an older database would not be noticed; the next start makes it anew"),
        ),
        SideFile::Ahead(tenants) => Line::bad(
            ABOUT,
            format!(
                "the database is older than it was, for {tenants} tenants: at the next start they begin new epochs and \
                 devices give back what they hold; if that is not meant, put the newer file back before"
            ),
        ),
        other => Line::note(ABOUT, format!("{other:?}")),
    }
}
