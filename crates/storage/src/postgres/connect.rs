//! Connections: where to, how secured, how many, and how one that hangs is ended.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{self, Metrics, Object, PoolError, RecycleError, RecycleResult, TimeoutType};
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use driftline_engine::StoreError;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::task::{AbortHandle, JoinHandle};
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::PostgresError;
use super::timeline::Timeline;

/// Where a database is, and how it is reached.
#[derive(Clone)]
pub struct PostgresTarget {
    /// A connection string: `postgres://user@host/db` or `host=… dbname=…`. Several hosts are tried in their order,
    /// and only one that takes writes is used. `sslmode` is `disable`, `prefer` (the default) or `require`; a
    /// certificate is always verified, the host's name included.
    pub url: String,
    /// A PEM file with the certificates of the authorities that may sign the database's certificate; none: those
    /// that the operating system trusts.
    pub tls_ca: Option<PathBuf>,
    /// Milliseconds that making a connection may take.
    pub connect_ms: u64,
}

impl std::fmt::Debug for PostgresTarget {
    /// Leaves the connection string out: it may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresTarget").field("tls_ca", &self.tls_ca).finish_non_exhaustive()
    }
}

/// The target, read and checked once.
#[derive(Clone)]
pub(super) struct Connector {
    config: tokio_postgres::Config,
    tls: MakeRustlsConnect,
}

/// How long the server lets a transaction wait for its client: so long a node that hangs inside of one may hold up
/// its tenant's other nodes.
const IDLE_IN_TRANSACTION_MS: u64 = 4_000;
/// How long a statement waits for a lock; longer than the above, so that whoever waits for a node that hangs gets its
/// turn.
const LOCK_MS: u64 = 6_000;
/// How long a statement may run.
const STATEMENT_MS: u64 = 30_000;

impl Connector {
    pub(super) fn new(target: &PostgresTarget) -> Result<Self, PostgresError> {
        let parsed = target.url.parse::<tokio_postgres::Config>();
        // The parser's own words may repeat parts of the string, and with them a password.
        let mut config = parsed.map_err(|error| PostgresError::Url(plain(&error)))?;
        if config.get_hosts().is_empty() {
            return Err(PostgresError::Url("it names no host".into()));
        }
        if config.get_dbname().is_none() {
            return Err(PostgresError::Url("it names no database".into()));
        }
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        if config.get_application_name().is_none() {
            config.application_name("driftline");
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(Duration::from_millis(target.connect_ms.max(1)));
        }
        config.keepalives_idle(Duration::from_secs(5));
        config.keepalives_interval(Duration::from_secs(2)).keepalives_retries(3);
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(Duration::from_secs(10));
        }
        Ok(Self { config, tls: MakeRustlsConnect::new(tls_config(target.tls_ca.as_deref())?) })
    }

    /// Connects to the first host that takes writes.
    pub(super) async fn connect(&self) -> Result<Connection, PostgresError> {
        let (client, connection) =
            self.config.connect(self.tls.clone()).await.map_err(|error| refused(&error))?;
        let driver = tokio::spawn(async move {
            // What ended the connection is told to the statement that waits, or to nobody.
            let _ = connection.await;
        });
        let mut pg = AsyncPgConnection::try_from(client)
            .await
            .map_err(|error| PostgresError::Connect(error.to_string()))?;
        pg.batch_execute(&settings()).await.map_err(|error| PostgresError::Connect(error.to_string()))?;
        Ok(Connection { pg, driver, clean: true })
    }
}

/// What every session is set to. The plans of the hot statements are made once, for tables that grow, so those that
/// read a whole table are out of the question.
fn settings() -> String {
    format!(
        "SET idle_in_transaction_session_timeout = {IDLE_IN_TRANSACTION_MS}; SET lock_timeout = {LOCK_MS}; \
         SET statement_timeout = {STATEMENT_MS}; SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; \
         SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off; \
         SELECT set_config('synchronous_commit', 'on', false) \
         WHERE current_setting('synchronous_commit') IN ('off', 'local')"
    )
}

/// What the driver says, without what it quotes of the connection string.
fn plain(error: &tokio_postgres::Error) -> String {
    let text = error.to_string();
    text.split(':').next().unwrap_or_default().to_owned()
}

fn refused(error: &tokio_postgres::Error) -> PostgresError {
    match error.as_db_error() {
        Some(told) => PostgresError::Connect(told.message().to_owned()),
        None => {
            let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
            PostgresError::Connect(format!("{error}{}", cause.unwrap_or_default()))
        }
    }
}

fn tls_config(authorities: Option<&Path>) -> Result<ClientConfig, PostgresError> {
    let mut roots = RootCertStore::empty();
    match authorities {
        Some(file) => {
            let unreadable = |reason: String| PostgresError::Authorities { file: file.to_owned(), reason };
            let certificates =
                CertificateDer::pem_file_iter(file).map_err(|error| unreadable(error.to_string()))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| unreadable(error.to_string()))?;
                roots.add(certificate).map_err(|error| unreadable(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(unreadable("it holds no certificate".into()));
            }
        }
        // A machine without any may still reach a database without TLS.
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| PostgresError::Connect(error.to_string()))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// A connection with the task that moves its bytes.
pub(super) struct Connection {
    pub(super) pg: AsyncPgConnection,
    driver: JoinHandle<()>,
    /// Whether no transaction is open on it.
    clean: bool,
}

impl Connection {
    fn is_lost(&self) -> bool {
        self.driver.is_finished()
    }
}

/// Makes connections for the pool. Each new one is asked for the timeline first: a database that left it may have lost
/// what was acknowledged.
pub(super) struct Manager {
    pub(super) connector: Connector,
    pub(super) timeline: Arc<Timeline>,
}

impl managed::Manager for Manager {
    type Type = Connection;
    type Error = PostgresError;

    async fn create(&self) -> Result<Connection, PostgresError> {
        let mut connection = self.connector.connect().await?;
        self.timeline.check(&mut connection.pg).await?;
        Ok(connection)
    }

    async fn recycle(&self, connection: &mut Connection, _: &Metrics) -> RecycleResult<PostgresError> {
        if connection.clean && !connection.is_lost() {
            Ok(())
        } else {
            Err(RecycleError::message("the connection was left in the middle of something"))
        }
    }
}

/// Connections that are lent, one at a time to each borrower.
pub(super) struct Pool {
    pool: managed::Pool<Manager>,
    /// How long a lease may last.
    lease: Duration,
}

impl Pool {
    pub(super) fn new(manager: Manager, size: usize, wait: Duration, connect: Duration) -> Self {
        let pool = managed::Pool::builder(manager)
            .max_size(size.max(1))
            .wait_timeout(Some(wait))
            .create_timeout(Some(connect))
            .recycle_timeout(Some(connect))
            .runtime(Runtime::Tokio1)
            .build()
            .expect("a pool with a runtime can have timeouts");
        // Longer than any statement, so that the server's own limits have their say first.
        Self { pool, lease: Duration::from_millis(STATEMENT_MS + 5_000) }
    }

    /// Lends a connection, waiting for one to come back if need be.
    pub(super) async fn lease(&self) -> Result<Lease, StoreError> {
        let mut connection =
            self.pool.get().await.map_err(|error| StoreError::Unavailable(pool_error(&error)))?;
        connection.clean = false;
        let (driver, limit) = (connection.driver.abort_handle(), self.lease);
        let watchdog = tokio::spawn(async move {
            tokio::time::sleep(limit).await;
            tracing::warn!(limit_ms = limit.as_millis(), "a database connection hung and was ended");
            driver.abort();
        });
        Ok(Lease { connection, watchdog: watchdog.abort_handle() })
    }

    /// Ends the connections that wait for a borrower; those that are lent end when they come back.
    pub(super) fn close(&self) {
        self.pool.close();
    }
}

fn pool_error(error: &PoolError<PostgresError>) -> String {
    match error {
        PoolError::Timeout(TimeoutType::Wait) => "no database connection was free in time".into(),
        PoolError::Timeout(_) => "the database did not take a connection in time".into(),
        PoolError::Backend(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// A lent connection. It goes back to the pool only by [`Lease::done`]; otherwise it is ended, and with it whatever
/// transaction is open on it. A future of its statements is never dropped half way to bound its time: the watchdog
/// ends the connection, which fails the statement.
pub(super) struct Lease {
    connection: Object<Manager>,
    watchdog: AbortHandle,
}

impl Lease {
    /// Returns the connection, for statements that follow each other or, by [`tokio::join`], travel together.
    pub(super) fn pg(&self) -> &AsyncPgConnection {
        &self.connection.pg
    }

    /// Tells whether the connection is gone.
    pub(super) fn is_lost(&self) -> bool {
        self.connection.is_lost()
    }

    /// Gives the connection back: no transaction is open on it.
    pub(super) fn done(mut self) {
        self.connection.clean = true;
    }

    /// Takes back what the open transaction did and gives the connection back; or ends it. Tells whether the
    /// connection still stood.
    pub(super) async fn roll_back(self) -> bool {
        let rolled = (&mut self.pg()).batch_execute("ROLLBACK").await;
        let stood = rolled.is_ok() && !self.is_lost();
        if stood {
            self.done();
        }
        stood
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.watchdog.abort();
    }
}
