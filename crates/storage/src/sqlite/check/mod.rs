//! Whether a database file is whole: its pages, its tables, and what must be true between them.

mod log;
mod report;
mod tables;
mod telemetry;
mod uploads;

use std::collections::BTreeMap;
use std::path::Path;

use diesel::migration::{Migration, MigrationSource};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Text};
use diesel::sqlite::Sqlite;
use driftline_model::Seq;

pub use report::{Contents, Finding, Report};

use super::SqliteStore;
use super::files::{beside, uri};
use super::open::MIGRATIONS;
use super::seal::{self, Seal};
use tables::Tables;

/// Findings of one kind that are listed; the others are counted.
const LISTED_MAX: usize = 20;

impl SqliteStore {
    /// Checks a database file that nobody writes, such as a backup; the file and its folder stay as they are.
    ///
    /// Every page, index and row is read: it takes as long as reading the file does, and memory for one row and for the
    /// sums of every scope and kind. Whatever is wrong, with opening it too, is a finding.
    #[must_use]
    pub fn check(file: &Path) -> Report {
        let mut report = Report::default();
        let log = beside(file, "-wal");
        if log.metadata().is_ok_and(|log| log.len() > 0) {
            report.findings.push(Finding::Log(log.display().to_string()));
            return report;
        }
        match open_unchanging(file) {
            Ok(mut connection) => {
                report = check(&mut connection);
                look_at_seal(file, &mut report);
                report.contents.bytes = file.metadata().map_or(0, |file| file.len());
            }
            Err(reason) => report.findings.push(Finding::NotADatabase(reason)),
        }
        report
    }
}

/// A seal is a backup's; what is nobody's has none that could be broken.
fn look_at_seal(file: &Path, report: &mut Report) {
    if matches!(report.findings[..], [Finding::NotADatabase(_) | Finding::Foreign, ..]) {
        return;
    }
    match seal::look(file) {
        Ok(Seal::Broken) => report.findings.push(Finding::Seal),
        Ok(seal) => report.sealed = seal == Seal::Whole,
        Err(error) => report.findings.push(Finding::Damaged(error.to_string())),
    }
}

/// Opens a file that nobody writes: nothing is locked, and nothing appears beside it.
pub(super) fn open_unchanging(file: &Path) -> Result<SqliteConnection, String> {
    file.metadata().map_err(|error| error.to_string())?;
    let url = uri(file, "mode=ro&immutable=1")?;
    SqliteConnection::establish(&url).map_err(|error| error.to_string())
}

/// Checks what a connection sees.
pub(super) fn check(connection: &mut SqliteConnection) -> Report {
    let mut report = Report::default();
    let history = match history(connection) {
        Ok(history) => history,
        Err(finding) => {
            report.findings.push(finding);
            return report;
        }
    };
    report.findings.extend(history.newer.into_iter().map(Finding::Newer));
    report.pending = history.pending;
    report.findings.extend(damage(connection, "integrity_check").into_iter().map(Finding::Damaged));
    // Rows of a damaged file, or of another schema, say nothing about the rows.
    if report.findings.is_empty() && report.pending.is_empty() {
        Tables::default().check(connection, &mut report);
    }
    if let Ok(contents) = contents(connection) {
        report.contents = contents;
    }
    report
}

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    text: String,
}

/// What one of SQLite's own checks finds: `integrity_check` or `quick_check`.
pub(super) fn damage(connection: &mut SqliteConnection, check: &str) -> Vec<String> {
    // Asked as a table: the column has the pragma's name.
    let lines =
        sql_query(format!("SELECT {check} AS text FROM pragma_{check} LIMIT {LISTED_MAX}")).load(connection);
    match lines {
        Ok(lines) => lines.into_iter().map(|line: Line| line.text).filter(|text| text != "ok").collect(),
        Err(error) => vec![error.to_string()],
    }
}

/// Which migrations a file went through, beside those that are known.
#[derive(Debug, Default)]
pub(super) struct SchemaHistory {
    pub(super) pending: Vec<String>,
    pub(super) newer: Vec<String>,
}

pub(super) fn history(connection: &mut SqliteConnection) -> Result<SchemaHistory, Finding> {
    let tables = sql_query(
        "SELECT name AS text FROM sqlite_schema WHERE type = 'table' AND name = '__diesel_schema_migrations'",
    );
    let tables: Vec<Line> =
        tables.load(connection).map_err(|error| Finding::NotADatabase(error.to_string()))?;
    if tables.is_empty() {
        return Err(Finding::Foreign);
    }
    let ran: Vec<Line> = sql_query("SELECT version AS text FROM __diesel_schema_migrations")
        .load(connection)
        .map_err(|error| Finding::Damaged(error.to_string()))?;
    let known: Vec<Box<dyn Migration<Sqlite>>> =
        MIGRATIONS.migrations().map_err(|error| Finding::Damaged(error.to_string()))?;
    let mut known: BTreeMap<String, String> = known
        .iter()
        .map(|migration| (migration.name().version().to_string(), migration.name().to_string()))
        .collect();
    let newer = ran.into_iter().map(|line| line.text).filter(|version| known.remove(version).is_none());
    let newer = newer.collect();
    Ok(SchemaHistory { pending: known.into_values().collect(), newer })
}

#[derive(QueryableByName)]
struct ContentsSql {
    #[diesel(sql_type = BigInt)]
    tenants: i64,
    #[diesel(sql_type = BigInt)]
    records: i64,
    #[diesel(sql_type = BigInt)]
    seq: i64,
}

pub(super) fn contents(connection: &mut SqliteConnection) -> QueryResult<Contents> {
    let row: ContentsSql = sql_query(
        "SELECT (SELECT count(*) FROM tenants) AS tenants, (SELECT count(*) FROM records) AS records, \
         (SELECT coalesce(max(seq), 0) FROM stream_head) AS seq",
    )
    .get_result(connection)?;
    let unsigned = |number: i64| u64::try_from(number).unwrap_or(0);
    Ok(Contents {
        bytes: 0,
        tenants: unsigned(row.tenants),
        records: unsigned(row.records),
        seq: Seq::new(unsigned(row.seq)),
    })
}
