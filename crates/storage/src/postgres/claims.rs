//! Columns of the outbox for claims, which are added as they are configured.

use diesel::QueryableByName;
use diesel::sql_query;
use diesel::sql_types::Text;
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use driftline_protocol::write_json_string;

use super::PostgresError;
use super::connect::Connector;

/// The columns of the table that are no claims.
const OWN: [&str; 11] = [
    "id",
    "tenant",
    "event_type",
    "topic",
    "user_id",
    "role",
    "payload",
    "dedupe_key",
    "created_at",
    "processed_at",
    "error",
];

/// Bytes that the name of a column may have.
const NAME_MAX: usize = 63;

/// The largest integer that is one in every program that reads JSON.
const INTEGER_MAX: i64 = (1 << 53) - 1;

#[derive(QueryableByName)]
struct Column {
    #[diesel(sql_type = Text)]
    name: String,
}

/// Tells whether a claim can have a column of its name.
fn is_column(name: &str) -> bool {
    let mut letters = name.bytes();
    letters.next().is_some_and(|first| first.is_ascii_lowercase() || first == b'_')
        && letters.all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == b'_')
        && name.len() <= NAME_MAX
        && !OWN.contains(&name)
}

/// Adds the columns of claims that the table does not have.
pub(super) async fn add(connector: &Connector, claims: &[Box<str>]) -> Result<(), PostgresError> {
    if let Some(claim) = claims.iter().find(|claim| !is_column(claim)) {
        return Err(PostgresError::Claim { claim: claim.clone(), reason: "that cannot be its name".into() });
    }
    if claims.is_empty() {
        return Ok(());
    }
    let mut pg = connector.connect(None).await?.pg;
    let columns: Vec<Column> = sql_query(
        "SELECT attname::TEXT AS name FROM pg_attribute WHERE attrelid = 'sync_events'::REGCLASS \
         AND attnum > 0 AND NOT attisdropped",
    )
    .load(&mut pg)
    .await
    .map_err(|error| PostgresError::Connect(error.to_string()))?;
    for claim in claims.iter().filter(|claim| !columns.iter().any(|column| column.name == ***claim)) {
        add_one(&mut pg, claim).await?;
    }
    Ok(())
}

async fn add_one(pg: &mut AsyncPgConnection, claim: &str) -> Result<(), PostgresError> {
    let statement = format!("ALTER TABLE sync_events ADD COLUMN IF NOT EXISTS \"{claim}\" TEXT");
    pg.batch_execute(&statement).await.map_err(|error| PostgresError::Claim {
        claim: claim.into(),
        reason: format!("{error}: its owner may add it ({statement})"),
    })
}

/// Returns the value of a claim as JSON: an integer as other programs write it is one.
pub(super) fn json(value: &str) -> Box<str> {
    let integer = value.parse::<i64>().ok().filter(|integer| {
        integer.unsigned_abs() <= INTEGER_MAX.unsigned_abs() && integer.to_string() == value
    });
    if integer.is_some() {
        return value.into();
    }
    let mut text = String::with_capacity(value.len() + 2);
    write_json_string(&mut text, value);
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_stay_what_they_are() {
        for (value, wanted) in [
            ("1", "1"),
            ("-7", "-7"),
            ("0", "0"),
            ("9007199254740991", "9007199254740991"),
            ("9007199254740992", "\"9007199254740992\""),
            ("-0", "\"-0\""),
            ("+1", "\"+1\""),
            ("007", "\"007\""),
            (" 1", "\" 1\""),
            ("1.0", "\"1.0\""),
            ("", "\"\""),
            ("a\"b", "\"a\\\"b\""),
        ] {
            assert_eq!(&*json(value), wanted, "{value}");
        }
    }

    #[test]
    fn a_column_has_a_plain_name_of_its_own() {
        for name in ["cadet_id", "_x", "a1"] {
            assert!(is_column(name), "{name}");
        }
        let long = "x".repeat(64);
        for name in ["", "1a", "Cadet", "cadet-id", "id", "payload", "a\"b", "é", &long] {
            assert!(!is_column(name), "{name}");
        }
    }
}
