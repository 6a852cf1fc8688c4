//! Migrations, while nodes of the version before go on.
//!
//! One session migrates at a time. The others ask again and again for the lock instead of waiting in a statement: what
//! is built `CONCURRENTLY` waits for every statement that runs, and would wait for those that wait for it.

use std::time::Duration;

use diesel::QueryableByName;
use diesel::connection::SimpleConnection;
use diesel::migration::{Migration, MigrationSource};
use diesel::pg::Pg;
use diesel::sql_query;
use diesel::sql_types::{Bool, Integer, Text};
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use diesel_migrations::MigrationHarness;
use tokio::runtime::Runtime;

use super::PostgresError;
use super::connect::Connector;

/// The oldest version that serves, as the database numbers it.
pub(super) const VERSION_MIN: i32 = 140_000;

/// Held while migrations run, so that nodes that start together run them once. Any number serves.
const MIGRATION_LOCK: i64 = 0x6472_6966_746c_696e;

/// How long is waited before the lock is asked for again.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// How long a migration waits for a table. Whoever comes after it waits as well, so it is short, and below the time
/// that a commit waits for a lock. It is above `deadlock_timeout`, 1 s, after which whoever waits looks whether it waits
/// in a circle: one of the circle is told then, and an autovacuum that is in the way gives up. A commit that is told is
/// written again, and so is a migration.
const LOCK_MS: u64 = 2_000;

/// How often a migration that did not get its table is tried, and how long the others have the table in between.
const TRIES: usize = 5;
const BETWEEN_TRIES: Duration = Duration::from_millis(1_000);

/// A migration may take long, and what it reads may be whole tables. A node that is cut off from the network is noticed
/// soon, so that its lock is free for another one.
const SESSION: &str = "RESET ALL; SET statement_timeout = 0; SET tcp_keepalives_idle = 5; \
     SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3";

/// Indexes that were being built when a migration failed; they cost and serve nobody. An operator's `REINDEX
/// CONCURRENTLY` marks its own by their names.
const UNFINISHED: &str = "SELECT format('DROP INDEX CONCURRENTLY %I.%I', n.nspname, c.relname) AS text \
     FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace \
     WHERE NOT i.indisvalid AND c.relkind = 'i' AND n.nspname = current_schema() \
     AND c.relname !~ '_cc(new|old)[0-9]*$'";

#[derive(QueryableByName)]
struct Version {
    #[diesel(sql_type = Integer)]
    number: i32,
    #[diesel(sql_type = Text)]
    name: String,
}

#[derive(QueryableByName)]
struct Held {
    #[diesel(sql_type = Bool)]
    held: bool,
}

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    text: String,
}

/// Runs the migrations of a source that did not run yet; gives their names. It blocks.
pub(super) fn run(
    runtime: &Runtime,
    connector: &Connector,
    source: &impl MigrationSource<Pg>,
) -> Result<Vec<String>, PostgresError> {
    let migrations = source.migrations().map_err(|error| PostgresError::Migration(error.to_string()))?;
    let names: Vec<String> =
        migrations.iter().map(|migration| migration.name().version().to_string()).collect();
    let Some(pg) = runtime.block_on(lock(connector, &names))? else { return Ok(Vec::new()) };
    // diesel's migrations are synchronous: they drive the connection from this thread.
    let _within = runtime.enter();
    let mut pg: AsyncConnectionWrapper<AsyncPgConnection> = AsyncConnectionWrapper::from(pg);
    // What others ran meanwhile is not pending any more. What a newer program ran is none of this one's business.
    let pending = pg
        .pending_migrations(Borrowed(source))
        .map_err(|error| PostgresError::Migration(error.to_string()))?;
    let mut ran = Vec::new();
    for migration in pending {
        let name = migration.name().version().to_string();
        run_one(&mut pg, &*migration)
            .map_err(|reason| PostgresError::Migration(format!("{name}: {reason}")))?;
        tracing::info!(migration = name, "migrated");
        ran.push(name);
    }
    // The lock ends with the connection.
    Ok(ran)
}

/// Connects, and waits for the lock; nothing when there is nothing to migrate, so that a node of an older version may
/// start while a migration runs that takes long.
async fn lock(connector: &Connector, names: &[String]) -> Result<Option<AsyncPgConnection>, PostgresError> {
    let failed = |error: diesel::result::Error| PostgresError::Migration(error.to_string());
    let mut pg = connector.connect(None).await?.pg;
    let version: Version = sql_query(
        "SELECT current_setting('server_version_num')::INTEGER AS number, current_setting('server_version') AS name",
    )
    .get_result(&mut pg)
    .await
    .map_err(failed)?;
    check_version(version.number, version.name)?;
    pg.batch_execute(SESSION).await.map_err(failed)?;
    let mut told = false;
    while !all_ran(&mut pg, names).await.map_err(failed)? {
        let asked: Held = sql_query(format!("SELECT pg_try_advisory_lock({MIGRATION_LOCK}) AS held"))
            .get_result(&mut pg)
            .await
            .map_err(failed)?;
        if asked.held {
            return Ok(Some(pg));
        }
        if !told {
            tracing::info!("somebody else migrates the database, waiting");
        }
        told = true;
        tokio::time::sleep(ASK_AGAIN).await;
    }
    Ok(None)
}

fn check_version(number: i32, name: String) -> Result<(), PostgresError> {
    if number < VERSION_MIN { Err(PostgresError::Version(name)) } else { Ok(()) }
}

async fn all_ran(pg: &mut AsyncPgConnection, names: &[String]) -> diesel::QueryResult<bool> {
    let there: Held = sql_query("SELECT to_regclass('__diesel_schema_migrations') IS NOT NULL AS held")
        .get_result(pg)
        .await?;
    if !there.held {
        return Ok(false);
    }
    let ran: Vec<Line> =
        sql_query("SELECT version::TEXT AS text FROM __diesel_schema_migrations").load(pg).await?;
    Ok(names.iter().all(|name| ran.iter().any(|line| line.text == *name)))
}

fn run_one(
    pg: &mut AsyncConnectionWrapper<AsyncPgConnection>,
    migration: &dyn Migration<Pg>,
) -> Result<(), String> {
    if !migration.metadata().run_in_transaction() {
        // It holds nothing that others wait for, and waits itself for every transaction that runs.
        drop_unfinished(pg).map_err(|error| error.to_string())?;
        set_lock_timeout(pg, 0)?;
        return pg.run_migration(migration).map(drop).map_err(|error| error.to_string());
    }
    set_lock_timeout(pg, LOCK_MS)?;
    let mut tries = 1;
    loop {
        let reason = match pg.run_migration(migration) {
            Ok(_) => return Ok(()),
            Err(error) => error.to_string(),
        };
        if !["lock timeout", "deadlock detected"].iter().any(|known| reason.contains(known)) {
            return Err(reason);
        }
        if tries == TRIES {
            return Err(format!(
                "{reason}: something holds its tables for long; nothing is changed, run it again"
            ));
        }
        tries += 1;
        std::thread::sleep(BETWEEN_TRIES);
    }
}

fn set_lock_timeout(pg: &mut AsyncConnectionWrapper<AsyncPgConnection>, ms: u64) -> Result<(), String> {
    SimpleConnection::batch_execute(pg, &format!("SET lock_timeout = {ms}"))
        .map_err(|error| error.to_string())
}

fn drop_unfinished(pg: &mut AsyncConnectionWrapper<AsyncPgConnection>) -> diesel::QueryResult<()> {
    let drops: Vec<Line> = diesel::RunQueryDsl::load(sql_query(UNFINISHED), pg)?;
    for drop in drops {
        tracing::warn!(statement = drop.text, "an index was not finished");
        SimpleConnection::batch_execute(pg, &drop.text)?;
    }
    Ok(())
}

/// A source that is lent: the harness wants its own.
struct Borrowed<'a, S>(&'a S);

impl<S: MigrationSource<Pg>> MigrationSource<Pg> for Borrowed<'_, S> {
    fn migrations(&self) -> diesel::migration::Result<Vec<Box<dyn Migration<Pg>>>> {
        self.0.migrations()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_14_is_refused() {
        for (number, name, serves) in [
            (90_624, "9.6.24", false),
            (130_023, "13.23 (Debian 13.23-1)", false),
            (140_000, "14.0", true),
            (150_018, "15.18", true),
            (180_000, "18beta1", true),
        ] {
            let checked = check_version(number, name.to_owned());
            assert_eq!(checked.is_ok(), serves, "{name}");
            if let Err(error) = checked {
                let wanted = format!("the database is PostgreSQL {name}, and 14 is the oldest that serves");
                assert_eq!(error.to_string(), wanted);
            }
        }
    }
}
