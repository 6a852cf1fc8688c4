//! A look at a database, for whoever sets it up.

use std::collections::BTreeMap;

use diesel::QueryableByName;
use diesel::migration::{Migration, MigrationSource as _};
use diesel::pg::Pg;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, Integer, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use driftline_model::Hlc;

use super::connect::Connector;
use super::migrate::VERSION_MIN;
use super::open::{MIGRATIONS, runtime};
use super::{PostgresError, PostgresStore, PostgresTarget};

/// The state of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PostgresDiagnosis {
    /// The version of PostgreSQL.
    pub version: String,
    /// Whether the version is too old to serve.
    pub too_old: bool,
    /// The encoding of the database's texts, `UTF8` if it can hold all of them.
    pub encoding: String,
    /// Whether the role may make tables, as a new month of the audit needs.
    pub may_create: bool,
    /// Whether the disk is asked to keep what is committed (`fsync` and `full_page_writes`).
    pub durable: bool,
    /// Whether commits wait for a standby.
    pub waits_for_standby: bool,
    /// Standbys that follow now.
    pub standbys: u64,
    /// Connections that the database takes from ordinary roles.
    pub connections_max: u64,
    /// Migrations that the next start runs.
    pub pending: Vec<String>,
    /// Migrations of a newer program.
    pub newer: Vec<String>,
    /// Tenants.
    pub tenants: u64,
    /// The highest clock that is stored, in Unix milliseconds.
    pub hlc_ms: u64,
    /// The database's clock, in Unix milliseconds.
    pub now_ms: u64,
}

#[derive(QueryableByName)]
struct Settings {
    #[diesel(sql_type = Text)]
    version: String,
    #[diesel(sql_type = Integer)]
    number: i32,
    #[diesel(sql_type = Text)]
    encoding: String,
    #[diesel(sql_type = Bool)]
    may_create: bool,
    #[diesel(sql_type = Bool)]
    durable: bool,
    #[diesel(sql_type = Bool)]
    waits_for_standby: bool,
    #[diesel(sql_type = BigInt)]
    standbys: i64,
    #[diesel(sql_type = BigInt)]
    connections_max: i64,
    #[diesel(sql_type = BigInt)]
    now_ms: i64,
    #[diesel(sql_type = Bool)]
    migrated: bool,
    #[diesel(sql_type = Bool)]
    has_heads: bool,
}

const SETTINGS: &str = "SELECT current_setting('server_version') AS version, \
     current_setting('server_version_num')::INTEGER AS number, \
     pg_encoding_to_char((SELECT encoding FROM pg_database WHERE datname = current_database()))::TEXT AS encoding, \
     coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) AS may_create, \
     current_setting('fsync')::BOOLEAN AND current_setting('full_page_writes')::BOOLEAN AS durable, \
     current_setting('synchronous_standby_names') <> '' AS waits_for_standby, \
     (SELECT count(*) FROM pg_stat_replication) AS standbys, \
     current_setting('max_connections')::BIGINT \
     - current_setting('superuser_reserved_connections')::BIGINT AS connections_max, \
     (extract(epoch FROM clock_timestamp()) * 1000)::BIGINT AS now_ms, \
     to_regclass('__diesel_schema_migrations') IS NOT NULL AS migrated, \
     to_regclass('stream_head') IS NOT NULL AS has_heads";

#[derive(QueryableByName)]
struct Ran {
    #[diesel(sql_type = Text)]
    version: String,
}

#[derive(QueryableByName)]
struct Heads {
    #[diesel(sql_type = BigInt)]
    tenants: i64,
    #[diesel(sql_type = BigInt)]
    hlc: i64,
}

impl PostgresStore {
    /// Looks at a database, beside servers that may run on it. Nothing is migrated or written. It blocks.
    ///
    /// # Errors
    /// [`PostgresError`] says what is wrong with the target, or why the database lets nobody in.
    pub fn diagnose(target: &PostgresTarget) -> Result<PostgresDiagnosis, PostgresError> {
        let connector = Connector::new(target)?;
        runtime(1)?.block_on(async {
            let mut pg = connector.connect(None).await?.pg;
            look(&mut pg).await.map_err(|error| PostgresError::Connect(error.to_string()))
        })
    }
}

async fn look(pg: &mut AsyncPgConnection) -> diesel::QueryResult<PostgresDiagnosis> {
    let settings: Settings = sql_query(SETTINGS).get_result(pg).await?;
    let (pending, newer) = history(pg, settings.migrated).await?;
    let heads = if settings.has_heads {
        sql_query("SELECT count(*) AS tenants, coalesce(max(hlc), 0) AS hlc FROM stream_head")
            .get_result(pg)
            .await?
    } else {
        Heads { tenants: 0, hlc: 0 }
    };
    let unsigned = |number: i64| u64::try_from(number).unwrap_or_default();
    Ok(PostgresDiagnosis {
        version: settings.version,
        too_old: settings.number < VERSION_MIN,
        encoding: settings.encoding,
        may_create: settings.may_create,
        durable: settings.durable,
        waits_for_standby: settings.waits_for_standby,
        standbys: unsigned(settings.standbys),
        connections_max: unsigned(settings.connections_max),
        pending,
        newer,
        tenants: unsigned(heads.tenants),
        hlc_ms: Hlc::from_bits(unsigned(heads.hlc)).millis(),
        now_ms: unsigned(settings.now_ms),
    })
}

/// The migrations that did not run yet, and those that this program does not know.
async fn history(
    pg: &mut AsyncPgConnection,
    migrated: bool,
) -> diesel::QueryResult<(Vec<String>, Vec<String>)> {
    let known: Vec<Box<dyn Migration<Pg>>> =
        MIGRATIONS.migrations().map_err(diesel::result::Error::QueryBuilderError)?;
    let mut known: BTreeMap<String, String> = known
        .iter()
        .map(|migration| (migration.name().version().to_string(), migration.name().to_string()))
        .collect();
    let ran: Vec<Ran> = if migrated {
        sql_query("SELECT version::TEXT AS version FROM __diesel_schema_migrations").load(pg).await?
    } else {
        Vec::new()
    };
    let newer = ran.into_iter().map(|ran| ran.version).filter(|version| known.remove(version).is_none());
    let newer = newer.collect();
    Ok((known.into_values().collect(), newer))
}
