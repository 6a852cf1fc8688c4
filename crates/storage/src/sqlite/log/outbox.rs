//! What other programs publish: rows that they insert in transactions of their own.
//!
//! Nothing that such a row holds is relied upon. Its columns are read as bytes with the sort that SQLite gives each
//! value, because SQLite puts anything into any column, texts that are no UTF-8 among them.

use std::collections::BTreeMap;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_query;
use diesel::sql_types::{BigInt, Binary, Integer, Nullable, Text};
use diesel::sqlite::Sqlite;
use driftline_engine::{Drained, EventDraft, OutboxRouter, OutboxRow, StoreError, Submission};
use driftline_model::{DeviceNo, TenantNo};
use driftline_protocol::{Document, parse_time, write_json_string};

use super::super::hot::statement;
use super::super::prune::STEP;
use super::super::writer::{GroupError, Writer};
use super::super::{queries, registry, store_error};
use crate::group::{GROUP_BYTES, Lookup};
use crate::log::{named, own};
use crate::rows::{sql, sql_ms};

/// The columns of a row beside its number, the claims and what became of it.
const COLUMNS: [&str; 8] =
    ["tenant", "event_type", "topic", "user_id", "role", "payload", "dedupe_key", "created_at"];

/// The other columns of the table.
const OWN: [&str; 3] = ["id", "processed_at", "error"];

/// Characters of what is wrong with a row that are kept.
const ERROR_CHARS: usize = 500;

/// The last Unix millisecond that can be written as a time.
const AT_MS_MAX: u64 = 253_402_300_799_999;

/// The first rows that wait, with the bytes of their payloads.
pub(super) const WAITING: &str = "SELECT id, coalesce(length(CAST(payload AS BLOB)), 0) AS bytes FROM sync_events \
     WHERE processed_at IS NULL ORDER BY id LIMIT ?";

/// Removes a step of the rows that were processed before a time.
pub(super) const CLEAN: &str = "DELETE FROM sync_events WHERE id IN \
     (SELECT id FROM sync_events WHERE processed_at < ? ORDER BY processed_at LIMIT ?)";

statement! {
    /// Marks a row as processed.
    MarkRow { at: i64 => BigInt, error: Option<String> => Nullable<Text>, id: i64 => BigInt } =
    "UPDATE sync_events SET processed_at = " ? at: BigInt
    ", error = " ? error: Nullable<Text>
    " WHERE id = " ? id: BigInt
}

#[derive(QueryableByName)]
struct Waiting {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = BigInt)]
    bytes: i64,
}

#[derive(QueryableByName)]
struct Cell {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Integer)]
    place: i32,
    #[diesel(sql_type = Text)]
    sort: String,
    #[diesel(sql_type = Nullable<Binary>)]
    value: Option<Vec<u8>>,
}

/// Finds the first name that cannot be a column for a claim.
pub(in super::super) fn check_claims(claims: &[Box<str>]) -> Result<(), Box<str>> {
    let is_name = |name: &str| {
        name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
            && name.chars().all(|char| char.is_ascii_lowercase() || char.is_ascii_digit() || char == '_')
            && !COLUMNS.contains(&name)
            && !OWN.contains(&name)
    };
    let twice = |at: usize| claims[..at].contains(&claims[at]);
    match claims.iter().enumerate().find(|(at, name)| !is_name(name) || twice(*at)) {
        Some((_, name)) => Err(name.clone()),
        None => Ok(()),
    }
}

#[derive(QueryableByName)]
struct Column {
    #[diesel(sql_type = Text)]
    name: String,
}

/// Adds the columns of claims that the table does not have. They have no type, so that an integer stays one.
pub(in super::super) fn add_claims(
    connection: &mut SqliteConnection,
    claims: &[Box<str>],
) -> Result<(), StoreError> {
    let columns: Vec<Column> = sql_query("SELECT name FROM pragma_table_info('sync_events')")
        .load(connection)
        .map_err(store_error)?;
    for claim in claims {
        if !columns.iter().any(|column| column.name == **claim) {
            let add = format!("ALTER TABLE sync_events ADD COLUMN \"{claim}\"");
            connection.batch_execute(&add).map_err(store_error)?;
        }
    }
    Ok(())
}

/// Publishes at most so many rows and marks them, in one transaction.
pub(super) fn drain(
    writer: &mut Writer,
    batch: usize,
    claims: &[Box<str>],
    router: &dyn OutboxRouter,
) -> Result<Drained, StoreError> {
    // An empty outbox takes no lock.
    if waiting(&mut writer.connection, 1)?.is_empty() {
        return Ok(Drained::default());
    }
    writer.connection.batch_execute("BEGIN IMMEDIATE").map_err(store_error)?;
    match publish(writer, batch, claims, router) {
        Ok((planned, drained)) => {
            if let Err(error) = writer.connection.batch_execute("COMMIT") {
                (writer.fatal)(&format!("the commit failed: {error}"));
                return Err(store_error(error));
            }
            writer.committed(planned);
            Ok(drained)
        }
        Err(error) => {
            writer.roll_back();
            Err(match error {
                GroupError::Store(error) | GroupError::NotBegun(error) => error,
                GroupError::DoubledName => StoreError::Unavailable("a doubled key".into()),
            })
        }
    }
}

fn publish(
    writer: &mut Writer,
    batch: usize,
    claims: &[Box<str>],
    router: &dyn OutboxRouter,
) -> Result<(driftline_engine::Planned, Drained), GroupError> {
    let now_ms = writer.now_ms();
    let ids = waiting(&mut writer.connection, batch)?;
    let rows = rows(&mut writer.connection, &ids, claims)?;
    let (mut group, mut drained) = (Vec::new(), Drained::default());
    for (id, row) in rows {
        let routed = row.and_then(|row| route(router, &row, now_ms));
        drained.processed += 1;
        let published = match routed {
            Ok((tenant, mut draft)) => {
                let tenant = queries::tenant(writer, &tenant)?;
                let owned = match router.device_of(&draft) {
                    None => Ok(()),
                    Some(device_id) => {
                        own(&mut draft, registry::devices(&mut writer.connection, tenant, &named(device_id))?)
                    }
                };
                owned.map(|()| group.push(publication(tenant, draft)))
            }
            Err(reason) => Err(reason),
        };
        let error = match published {
            Ok(()) => None,
            Err(reason) => {
                drained.failed += 1;
                Some(reason.chars().take(ERROR_CHARS).collect())
            }
        };
        MarkRow { at: sql_ms(now_ms), error, id }.execute(&mut writer.connection)?;
    }
    let (planned, _) = writer.apply(&group, Lookup::Likely)?;
    Ok((planned, drained))
}

fn route(
    router: &dyn OutboxRouter,
    row: &OutboxRow,
    now_ms: u64,
) -> Result<(driftline_model::TenantId, EventDraft), String> {
    let (tenant, draft) = router.route(row, now_ms)?;
    let is_name = |topic: &str| !topic.is_empty() && !topic.contains(char::is_whitespace);
    let named = !draft.topics.is_empty() && draft.topics.iter().all(|topic| is_name(topic));
    if named { Ok((tenant, draft)) } else { Err("it has no topic".into()) }
}

fn publication(tenant: TenantNo, draft: EventDraft) -> Submission {
    Submission {
        tenant,
        // Nobody: no state of a device is looked at.
        device: DeviceNo::new(0),
        user: "".into(),
        scopes: Vec::new(),
        epoch: None,
        acked_n: None,
        batch: None,
        once: Vec::new(),
        correlation: "outbox".into(),
        entries: Vec::new(),
        events: vec![draft],
    }
}

/// The numbers of the first rows that wait: at most so many, and so many bytes of payloads as a commit group holds.
fn waiting(connection: &mut SqliteConnection, batch: usize) -> Result<Vec<i64>, StoreError> {
    let rows: Vec<Waiting> =
        sql_query(WAITING).bind::<BigInt, _>(sql(batch as u64)).load(connection).map_err(store_error)?;
    let mut bytes = 0;
    let fits = rows.iter().take_while(|row| {
        let first = bytes == 0;
        bytes += usize::try_from(row.bytes).unwrap_or(0).clamp(1, GROUP_BYTES);
        first || bytes <= GROUP_BYTES
    });
    Ok(fits.map(|row| row.id).collect())
}

/// Reads rows, each with what is wrong with its columns.
fn rows(
    connection: &mut SqliteConnection,
    ids: &[i64],
    claims: &[Box<str>],
) -> Result<BTreeMap<i64, Result<OutboxRow, String>>, StoreError> {
    let columns: Vec<&str> = COLUMNS.into_iter().chain(claims.iter().map(|claim| &**claim)).collect();
    let parts: Vec<String> = columns
        .iter()
        .enumerate()
        .map(|(place, column)| {
            format!(
                "SELECT s.id AS id, {place} AS place, typeof(s.\"{column}\") AS sort, \
                 CASE WHEN length(CAST(s.\"{column}\" AS BLOB)) <= {GROUP_BYTES} THEN CAST(s.\"{column}\" AS BLOB) END \
                 AS value FROM waiting AS w CROSS JOIN sync_events AS s ON s.id = w.id"
            )
        })
        .collect();
    let query = format!(
        "WITH waiting (id) AS MATERIALIZED (SELECT value FROM json_each(?)) {}",
        parts.join(" UNION ALL ")
    );
    let ids = numbers(ids);
    let cells: Vec<Cell> = sql_query(query).bind::<Text, _>(ids).load(connection).map_err(store_error)?;
    let mut rows: BTreeMap<i64, Result<OutboxRow, String>> = BTreeMap::new();
    for Cell { id, place, sort, value } in cells {
        let row = rows.entry(id).or_insert_with(|| Ok(OutboxRow { id, ..OutboxRow::default() }));
        let Some(column) = usize::try_from(place).ok().and_then(|place| columns.get(place)) else { continue };
        if let Ok(known) = row
            && let Err(reason) = put(known, column, &sort, value)
        {
            *row = Err(format!("{column} {reason}"));
        }
    }
    Ok(rows)
}

fn numbers(ids: &[i64]) -> String {
    let texts: Vec<String> = ids.iter().map(i64::to_string).collect();
    format!("[{}]", texts.join(","))
}

/// Puts a value into its place of a row, or tells why it cannot stand there.
fn put(row: &mut OutboxRow, column: &str, sort: &str, value: Option<Vec<u8>>) -> Result<(), &'static str> {
    let text = match sort {
        "null" => None,
        "blob" => return Err("holds bytes, not a text"),
        _ => {
            let bytes = value.ok_or("is too large")?;
            Some(String::from_utf8(bytes).map_err(|_| "holds a text that is not UTF-8")?)
        }
    };
    match column {
        "tenant" => row.tenant = text.ok_or("is null")?,
        "event_type" => row.kind = text,
        "topic" => row.topic = text,
        "user_id" => row.user = text,
        "role" => row.role = text,
        "payload" => row.payload = text,
        "dedupe_key" => row.dedupe_key = text,
        "created_at" => row.created_ms = text.as_deref().and_then(time_of),
        claim => {
            let Some(text) = text else { return Ok(()) };
            let value = match sort {
                "integer" => text,
                "text" => {
                    let mut json = String::with_capacity(text.len() + 2);
                    write_json_string(&mut json, &text);
                    json
                }
                _ => return Err("holds neither an integer nor a text"),
            };
            row.claims.push((claim.into(), value.into()));
        }
    }
    Ok(())
}

/// Reads Unix milliseconds or a time as RFC 3339 writes it.
fn time_of(text: &str) -> Option<u64> {
    let at_ms = match text.parse::<u64>() {
        Ok(at_ms) => Some(at_ms),
        Err(_) => {
            let mut json = String::with_capacity(text.len() + 2);
            write_json_string(&mut json, text);
            parse_time(Document::parse(json.as_bytes(), 2).ok()?.root())
        }
    };
    at_ms.filter(|at_ms| *at_ms <= AT_MS_MAX)
}

/// Removes a step of the rows that were processed before a time.
pub(super) fn clean(writer: &mut Writer, before_ms: u64) -> Result<u64, StoreError> {
    let removed = sql_query(CLEAN)
        .bind::<BigInt, _>(sql_ms(before_ms))
        .bind::<BigInt, _>(sql(STEP as u64))
        .execute(&mut writer.connection)
        .map_err(store_error)?;
    Ok(removed as u64)
}
