//! `[store]` of the configuration file, and the store that it asks for.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use driftline_engine::{Clock, Listeners, Random};
use driftline_model::Limits;
use driftline_storage::{
    AnyStore, Failover, PostgresOptions, PostgresStore, PostgresTarget, SqliteOptions, SqliteStore,
};
use serde::Deserialize;

/// `[store]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct StoreConfig {
    /// The connection string of a PostgreSQL database; absent: the embedded database in the data folder.
    pub(crate) url: Option<DatabaseUrl>,
    /// The certificates of the authorities that may sign the database's certificate.
    pub(crate) tls_ca_file: Option<PathBuf>,
    failover: Option<FailoverChoice>,
    write_connections: Option<usize>,
    read_connections: Option<usize>,
    connect_ms: Option<u64>,
    wait_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FailoverChoice {
    Lossy,
    Lossless,
}

/// Connections, unless the file says otherwise.
const CONNECTIONS: usize = 8;
/// How long making a connection may take, in milliseconds.
const CONNECT_MS: u64 = 5_000;
/// How long a request waits for the database, in milliseconds.
const WAIT_MS: u64 = 10_000;
/// How often heads are compared with what other nodes wrote, in milliseconds.
const WATCH_MS: u64 = 2_000;
/// The readers of the embedded database.
const READERS: usize = 2;
/// The most threads that the work for a database of its own gets.
const THREADS_MAX: usize = 8;

/// A connection string, which may hold a password: it is never shown as it is.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub(crate) struct DatabaseUrl(String);

impl DatabaseUrl {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }

    /// Tells where it leads, of its parts only those that hold no secret; nothing when they cannot be told apart.
    fn place(&self) -> Option<(String, String)> {
        let rest = ["postgres://", "postgresql://"].iter().find_map(|scheme| self.0.strip_prefix(scheme));
        let (hosts, database) = match rest {
            Some(rest) => place_of_url(rest)?,
            None => place_of_pairs(&self.0)?,
        };
        let plain = |text: &str, more: &str| {
            text.chars().all(|letter| letter.is_ascii_alphanumeric() || more.contains(letter))
        };
        (plain(&hosts, ".,:-_/[]%") && plain(&database, "-_.")).then_some((hosts, database))
    }

    /// Checks what can be checked without a database.
    fn check(&self) -> anyhow::Result<()> {
        let is_url = ["postgres://", "postgresql://"].iter().any(|scheme| self.0.starts_with(scheme));
        if !is_url && (self.0.contains("://") || !self.0.contains('=')) {
            // The text itself is not repeated.
            bail!("store.url is neither postgres://user@host/database nor host=... user=... dbname=...");
        }
        Ok(())
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

/// Tells hosts and database, and nothing else.
impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place() {
            Some((hosts, database)) => write!(f, "PostgreSQL at {hosts}, database {database}"),
            None => f.write_str("PostgreSQL"),
        }
    }
}

/// Finds hosts and database in what follows the scheme. A password that breaks the syntax might be taken for one of
/// them, so that nothing is found where an `@` stands behind the first `?`.
fn place_of_url(rest: &str) -> Option<(String, String)> {
    let (head, query) = rest.split_once('?').unwrap_or((rest, ""));
    if query.contains('@') {
        return None;
    }
    let place = head.rsplit_once('@').map_or(head, |(_, place)| place);
    let (hosts, database) = place.split_once('/')?;
    let ports = hosts.split(',').filter_map(|host| host.rsplit_once(':'));
    let numbered = ports.filter(|(host, _)| !host.contains('[') || host.ends_with(']'));
    let numbered = numbered.map(|(_, port)| port).all(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    (numbered && !hosts.is_empty()).then(|| (hosts.to_owned(), database.to_owned()))
}

/// Finds hosts and database among `name=value` pairs. Values in quotes and spaces around the sign are not told apart
/// from secrets, so that nothing is found then.
fn place_of_pairs(text: &str) -> Option<(String, String)> {
    if text.contains(['\'', '\\']) {
        return None;
    }
    let pairs = text.split_whitespace().map(|pair| pair.split_once('='));
    let pairs: Vec<(&str, &str)> = pairs.collect::<Option<_>>()?;
    let value = |name: &str| {
        let found = pairs.iter().rfind(|(own, value)| *own == name && !value.is_empty());
        found.map(|(_, value)| (*value).to_owned())
    };
    Some((value("host").or_else(|| value("hostaddr"))?, value("dbname")?))
}

impl StoreConfig {
    /// Checks that the parts go together.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let numbers = [
            ("write_connections", self.write_connections.map(|count| count as u64)),
            ("read_connections", self.read_connections.map(|count| count as u64)),
            ("connect_ms", self.connect_ms),
            ("wait_ms", self.wait_ms),
        ];
        if let Some((name, _)) = numbers.iter().find(|(_, number)| *number == Some(0)) {
            bail!("store.{name} must be at least 1");
        }
        if let Some(url) = &self.url {
            return url.check();
        }
        let choices =
            [("tls_ca_file", self.tls_ca_file.is_some()), ("failover", self.failover.is_some())].into_iter();
        let given = numbers.iter().map(|(name, number)| (*name, number.is_some())).chain(choices);
        // Whoever forgets the database does not get another one.
        if let Some((name, _)) = given.into_iter().find(|(_, given)| *given) {
            bail!("store.{name} is for PostgreSQL: set store.url or DRIFTLINE_STORE_URL");
        }
        Ok(())
    }

    /// Tells whether a promoted standby lacks nothing that was acknowledged.
    pub(crate) fn is_lossless(&self) -> bool {
        self.failover == Some(FailoverChoice::Lossless)
    }

    /// Returns how many connections one server holds.
    pub(crate) fn connections(&self) -> usize {
        self.write_connections().saturating_add(self.read_connections())
    }

    fn write_connections(&self) -> usize {
        self.write_connections.unwrap_or(CONNECTIONS)
    }

    fn read_connections(&self) -> usize {
        self.read_connections.unwrap_or(CONNECTIONS)
    }

    /// Where the PostgreSQL database is, if there is one; `folder` is where paths start from.
    pub(crate) fn target(&self, folder: &Path) -> Option<PostgresTarget> {
        let url = self.url.as_ref()?;
        Some(PostgresTarget {
            url: url.0.clone(),
            tls_ca: self.tls_ca_file.as_ref().map(|file| folder.join(file)),
            connect_ms: self.connect_ms.unwrap_or(CONNECT_MS),
        })
    }
}

/// Where the data is.
#[derive(Debug, Clone)]
pub(crate) enum DataPlace {
    /// In the embedded database, in this file.
    Embedded(PathBuf),
    /// In PostgreSQL.
    Postgres { target: PostgresTarget, shown: String },
}

impl DataPlace {
    /// Finds it: what `[store]` names, else the file.
    pub(crate) fn of(store: &StoreConfig, config_folder: &Path, file: PathBuf) -> Self {
        match (store.target(config_folder), &store.url) {
            (Some(target), Some(url)) => Self::Postgres { target, shown: url.to_string() },
            _ => Self::Embedded(file),
        }
    }

    /// Brings the database to the newest schema; gives the names of the migrations that ran.
    pub(crate) fn migrate(&self) -> anyhow::Result<Vec<String>> {
        match self {
            Self::Embedded(file) => Ok(SqliteStore::migrate(file)?),
            Self::Postgres { target, shown } => PostgresStore::migrate(target).with_context(|| shown.clone()),
        }
    }
}

impl fmt::Display for DataPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded(file) => write!(f, "{}", file.display()),
            Self::Postgres { shown, .. } => f.write_str(shown),
        }
    }
}

/// What a store needs of the server.
pub(crate) struct Surroundings {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) listeners: Arc<dyn Listeners>,
    /// Claims that have a column of the outbox.
    pub(crate) outbox_claims: Vec<Box<str>>,
}

/// Opens the store of a place, migrating it. It blocks, so it does not belong into an asynchronous task.
pub(crate) fn open(
    place: &DataPlace,
    config: &StoreConfig,
    limits: &Limits,
    surroundings: Surroundings,
) -> anyhow::Result<AnyStore> {
    let Surroundings { clock, random, listeners, outbox_claims } = surroundings;
    let (skew_ms_max, record_bytes) = (limits.skew_ms_max, limits.record_bytes);
    let target = match place {
        DataPlace::Postgres { target, .. } => target.clone(),
        DataPlace::Embedded(file) => {
            let fatal = Box::new(|reason: &str| {
                // Nobody can tell what is on the disk now; a restart reads it afresh.
                tracing::error!(reason, "the disk cannot be trusted, ending the process");
                std::process::exit(74);
            });
            let file = file.clone();
            let options = SqliteOptions {
                file,
                clock,
                random,
                listeners,
                fatal,
                skew_ms_max,
                record_bytes,
                readers: READERS,
                outbox_claims,
            };
            return Ok(AnyStore::Sqlite(SqliteStore::open(options)?));
        }
    };
    let options = PostgresOptions {
        target,
        failover: if config.is_lossless() { Failover::Lossless } else { Failover::Lossy },
        // All nodes go by the one clock that they share.
        clock: None,
        random,
        listeners,
        skew_ms_max,
        record_bytes,
        write_connections: config.write_connections(),
        read_connections: config.read_connections(),
        wait_ms: config.wait_ms.unwrap_or(WAIT_MS),
        watch_ms: WATCH_MS,
        threads: threads(),
        outbox_claims,
    };
    let store = PostgresStore::open(options).with_context(|| place.to_string())?;
    Ok(AnyStore::Postgres(store))
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(THREADS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(url: &str) -> String {
        DatabaseUrl::new(url.to_owned()).to_string()
    }

    #[test]
    fn a_connection_string_shows_hosts_and_database_alone() {
        let table = [
            ("postgres://host/db", "PostgreSQL at host, database db"),
            (
                "postgresql://ada:secret@one:5433,two/app?target_session_attrs=read-write",
                "PostgreSQL at one:5433,two, database app",
            ),
            ("postgres://ada:se@cret@one/app", "PostgreSQL at one, database app"),
            ("postgres://ada:se/cret@one/app", "PostgreSQL at one, database app"),
            ("postgres://[::1]:5432/app?password=secret", "PostgreSQL at [::1]:5432, database app"),
            ("postgres://%2Frun%2Fpostgresql/app", "PostgreSQL at %2Frun%2Fpostgresql, database app"),
            (
                "host=one,two port=1,2 user=ada password=secret dbname=app",
                "PostgreSQL at one,two, database app",
            ),
            ("host=/run/postgresql dbname=app", "PostgreSQL at /run/postgresql, database app"),
        ];
        for (url, told) in table {
            assert_eq!(shown(url), told, "{url}");
        }
    }

    #[test]
    fn what_cannot_be_told_from_a_secret_is_not_shown() {
        let table = [
            "postgres://ada:sec?ret@one/app",
            "postgres://one/app?password=sec@ret",
            "postgres://ada:secret",
            "postgres://ada:secret/app",
            "host=one password='se cret' dbname=app",
            "host=one password=se cret dbname=app",
            "host = one password = secret dbname = app",
            "password=secret",
            "secret",
            "",
        ];
        for url in table {
            assert_eq!(shown(url), "PostgreSQL", "{url}");
            assert_eq!(format!("{:?}", DatabaseUrl::new(url.to_owned())), "DatabaseUrl(PostgreSQL)");
        }
    }

    #[test]
    fn parts_that_do_not_go_together_are_refused_without_their_secrets() {
        let read = |text: &str| {
            let config = toml::from_str::<StoreConfig>(text)?;
            config.check()
        };
        let url = "url = \"postgres://ada:secret@one/app\"\n";
        for good in ["", url, &format!("{url}failover = \"lossless\"\nwait_ms = 1\ntls_ca_file = \"ca.pem\"")]
        {
            read(good).unwrap();
        }
        let table = [
            ("url = \"mysql://ada:secret@one/app\"", "store.url is neither"),
            ("url = \"secret\"", "store.url is neither"),
            ("url = \"\"", "store.url is neither"),
            ("failover = \"lossless\"", "store.failover is for PostgreSQL"),
            ("tls_ca_file = \"ca.pem\"", "store.tls_ca_file is for PostgreSQL"),
            ("read_connections = 3", "store.read_connections is for PostgreSQL"),
            (&format!("{url}wait_ms = 0"), "store.wait_ms must be at least 1"),
            (&format!("{url}write_connections = 0"), "store.write_connections must be at least 1"),
            (&format!("{url}failover = \"never\""), "never"),
            (&format!("{url}pool = 3"), "pool"),
        ];
        for (text, named) in table {
            let error = format!("{:#}", read(text).unwrap_err());
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
