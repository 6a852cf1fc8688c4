//! Connections: where to, how secured, how many, and how one that hangs is ended.

use std::future::poll_fn;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{self, Metrics, Object, PoolError, RecycleError, RecycleResult, TimeoutType};
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use driftline_engine::StoreError;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::timeout;
use tokio_postgres::config::{Host, TargetSessionAttrs};
use tokio_postgres::{AsyncMessage, Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::PostgresError;
use super::target::{PostgresTarget, Understood, understand};
use super::timeline::Timeline;
use crate::tls;

/// The target, read and checked once.
#[derive(Clone)]
pub(super) struct Connector {
    hosts: Arc<[Config]>,
    /// The place of the host that served last.
    served: Arc<AtomicUsize>,
    /// How often a connection that waited for a borrower was found not to answer.
    doubts: Arc<AtomicU64>,
    tls: MakeRustlsConnect,
    /// How long making a connection may take, over all hosts.
    limit: Duration,
}

/// How long the server lets a transaction wait for its client: so long a node that hangs inside of one may hold up
/// its tenant's other nodes.
const IDLE_IN_TRANSACTION_MS: u64 = 4_000;
/// How long a statement waits for a lock; longer than the above, so that whoever waits for a node that hangs gets its
/// turn.
const LOCK_MS: u64 = 6_000;
/// A connection that nobody used for so long is tried before it is lent: a database that hangs, or that the network hides,
/// takes what is sent to it and never answers.
const UNTRIED: Duration = Duration::from_secs(1);
/// How often it is looked whether a connection that listens is gone.
const ENDED: Duration = Duration::from_millis(250);
/// How long a statement may run.
const STATEMENT_MS: u64 = 30_000;

impl Connector {
    pub(super) fn new(target: &PostgresTarget) -> Result<Self, PostgresError> {
        let Understood { config, tls_ca } = understand(&target.url)?;
        let limit = Duration::from_millis(target.connect_ms.max(1));
        let hosts: Arc<[Config]> = (0..config.get_hosts().len()).map(|at| host(&config, at, limit)).collect();
        let tls_ca = target.tls_ca.as_deref().or(tls_ca.as_deref());
        let tls = MakeRustlsConnect::new(tls_config(tls_ca)?);
        Ok(Self { hosts, served: Arc::default(), doubts: Arc::default(), tls, limit })
    }

    /// Connects to a host that takes writes, and that `timeline` does not refuse: the one that served last, or the
    /// first of the others. Each has the same share of the time, so that one that does not answer leaves the others theirs.
    pub(super) async fn connect(&self, timeline: Option<&Timeline>) -> Result<Connection, PostgresError> {
        let share = self.share();
        let first = self.served.load(Ordering::Relaxed);
        let mut failed = Vec::new();
        for turn in 0..self.hosts.len() {
            let at = if turn == 0 { first } else { turn - usize::from(turn <= first) };
            let made = match timeout(share, self.open(&self.hosts[at])).await {
                Ok(Ok(connection)) => checked(connection, timeline, self.limit).await,
                Ok(Err(error)) => Err(error),
                Err(_) => Err(PostgresError::Connect("it did not answer in time".into())),
            };
            match made {
                Ok(connection) => {
                    self.served.store(at, Ordering::Relaxed);
                    return Ok(connection);
                }
                Err(error) => failed.push((at, error)),
            }
        }
        Err(self.told(failed))
    }

    /// The time that each host gets.
    fn share(&self) -> Duration {
        self.limit / u32::try_from(self.hosts.len()).unwrap_or(u32::MAX)
    }

    /// Whether the database at the other end of a connection still answers.
    async fn answers(&self, connection: &mut Connection) -> bool {
        matches!(timeout(self.share(), connection.pg.batch_execute("")).await, Ok(Ok(())))
    }

    /// Says what was wrong with each host.
    fn told(&self, mut failed: Vec<(usize, PostgresError)>) -> PostgresError {
        if failed.len() == 1 {
            return failed.swap_remove(0).1;
        }
        failed.sort_by_key(|(at, _)| *at);
        let reasons: Vec<String> = failed
            .into_iter()
            .map(|(at, error)| match error {
                PostgresError::Connect(reason) => format!("{}: {reason}", name(&self.hosts[at])),
                other => format!("{}: {other}", name(&self.hosts[at])),
            })
            .collect();
        PostgresError::Connect(reasons.join("; "))
    }

    /// Connects to a host that takes writes and listens to a channel: `heard` is called whenever it rings.
    pub(super) async fn listen(
        &self,
        channel: &str,
        heard: impl Fn() + Clone + Send + 'static,
    ) -> Result<Listening, PostgresError> {
        let share = self.share();
        let first = self.served.load(Ordering::Relaxed);
        let mut failed = Vec::new();
        for turn in 0..self.hosts.len() {
            let at = if turn == 0 { first } else { turn - usize::from(turn <= first) };
            match timeout(share, self.listen_to(&self.hosts[at], channel, heard.clone())).await {
                Ok(Ok(listening)) => return Ok(listening),
                Ok(Err(error)) => failed.push((at, refused(&error))),
                Err(_) => failed.push((at, PostgresError::Connect("it did not answer in time".into()))),
            }
        }
        Err(self.told(failed))
    }

    async fn listen_to(
        &self,
        host: &Config,
        channel: &str,
        heard: impl Fn() + Send + 'static,
    ) -> Result<Listening, tokio_postgres::Error> {
        let (client, mut connection) = host.connect(self.tls.clone()).await?;
        let driver = tokio::spawn(async move {
            // It ends with the connection, whatever ended that.
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
                if matches!(message, AsyncMessage::Notification(_)) {
                    heard();
                }
            }
        });
        let listening = Listening { client, driver: driver.abort_handle() };
        listening.client.batch_execute(&format!("LISTEN {channel}")).await?;
        Ok(listening)
    }

    async fn open(&self, host: &Config) -> Result<Connection, PostgresError> {
        let doubts = self.doubts.load(Ordering::Relaxed);
        let (client, connection) = host.connect(self.tls.clone()).await.map_err(|error| refused(&error))?;
        let driver = tokio::spawn(async move {
            // What ended the connection is told to the statement that waits, or to nobody.
            let _ = connection.await;
        });
        let mut pg = AsyncPgConnection::try_from(client)
            .await
            .map_err(|error| PostgresError::Connect(error.to_string()))?;
        pg.batch_execute(&settings()).await.map_err(|error| PostgresError::Connect(error.to_string()))?;
        Ok(Connection { pg, driver, clean: true, doubts })
    }
}

async fn checked(
    mut connection: Connection,
    timeline: Option<&Timeline>,
    limit: Duration,
) -> Result<Connection, PostgresError> {
    if let Some(timeline) = timeline {
        let driver = connection.driver.abort_handle();
        timeline.check(&mut connection.pg, driver, limit).await?;
    }
    Ok(connection)
}

/// The settings for one of the hosts.
fn host(all: &Config, at: usize, limit: Duration) -> Config {
    let mut config = Config::new();
    match &all.get_hosts()[at] {
        Host::Tcp(name) => drop(config.host(name)),
        #[cfg(unix)]
        Host::Unix(path) => drop(config.host_path(path)),
    }
    if let Some(address) = all.get_hostaddrs().get(at) {
        config.hostaddr(*address);
    }
    if let Some(port) = all.get_ports().get(at).or_else(|| all.get_ports().first()) {
        config.port(*port);
    }
    all.get_user().map(|user| config.user(user));
    all.get_password().map(|password| config.password(password));
    all.get_dbname().map(|name| config.dbname(name));
    all.get_options().map(|options| config.options(options));
    config.application_name(all.get_application_name().unwrap_or("driftline"));
    config.ssl_mode(all.get_ssl_mode()).ssl_negotiation(all.get_ssl_negotiation());
    config.channel_binding(all.get_channel_binding());
    config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    // A name may stand for two addresses, of which the first does not answer.
    let share = limit / u32::try_from(2 * all.get_hosts().len()).unwrap_or(u32::MAX);
    config.connect_timeout(all.get_connect_timeout().map_or(share, |given| share.min(*given)));
    config.keepalives(all.get_keepalives()).keepalives_idle(Duration::from_secs(5));
    config.keepalives_interval(Duration::from_secs(2)).keepalives_retries(3);
    let unacknowledged = all.get_tcp_user_timeout().copied();
    config.tcp_user_timeout(unacknowledged.unwrap_or(Duration::from_secs(10)));
    config
}

fn name(host: &Config) -> String {
    match host.get_hosts().first() {
        Some(Host::Tcp(name)) => name.clone(),
        #[cfg(unix)]
        Some(Host::Unix(path)) => path.display().to_string(),
        None => String::new(),
    }
}

/// What every session is set to. The plans of the hot statements are made once, for tables that grow, so those that
/// read a whole table are out of the question.
fn settings() -> String {
    format!(
        "SET default_transaction_isolation = 'read committed'; SET idle_in_transaction_session_timeout = {IDLE_IN_TRANSACTION_MS}; SET lock_timeout = {LOCK_MS}; \
         SET statement_timeout = {STATEMENT_MS}; SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; \
         SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off; \
         SELECT set_config('synchronous_commit', 'on', false) \
         WHERE current_setting('synchronous_commit') IN ('off', 'local')"
    )
}

fn refused(error: &tokio_postgres::Error) -> PostgresError {
    if let Some(told) = error.as_db_error() {
        return PostgresError::Connect(told.message().to_owned());
    }
    let cause = std::error::Error::source(error);
    let told = cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"));
    // What rustls says, as one of the causes of the driver's error.
    let unverified = told.contains("invalid peer certificate");
    let hint = if unverified { " (tls_ca names who signs it; sslmode=disable does without)" } else { "" };
    PostgresError::Connect(format!("{told}{hint}"))
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
        None => roots = tls::native_roots(),
    }
    tls::client_config(roots).map_err(|error| PostgresError::Connect(error.to_string()))
}

/// A connection that listens to a channel, until it is dropped.
pub(super) struct Listening {
    client: Client,
    driver: AbortHandle,
}

impl Listening {
    /// Whether the database at the other end still answers.
    pub(super) async fn answers(&self) -> bool {
        self.client.batch_execute("").await.is_ok()
    }

    /// Waits until the connection is gone.
    pub(super) async fn ended(&self) {
        while !self.client.is_closed() {
            tokio::time::sleep(ENDED).await;
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A connection with the task that moves its bytes.
pub(super) struct Connection {
    pub(super) pg: AsyncPgConnection,
    driver: JoinHandle<()>,
    /// Whether no transaction is open on it.
    clean: bool,
    /// The connector's doubts when it was made.
    doubts: u64,
}

impl Connection {
    fn is_lost(&self) -> bool {
        self.driver.is_finished()
    }
}

/// Makes connections for the pool. Each new one is asked for the timeline first: a database that left it may have lost
/// what was acknowledged.
pub(super) struct Dialer {
    pub(super) connector: Connector,
    pub(super) timeline: Arc<Timeline>,
}

impl managed::Manager for Dialer {
    type Type = Connection;
    type Error = PostgresError;

    async fn create(&self) -> Result<Connection, PostgresError> {
        self.connector.connect(Some(&self.timeline)).await
    }

    async fn recycle(&self, connection: &mut Connection, metrics: &Metrics) -> RecycleResult<PostgresError> {
        if !connection.clean || connection.is_lost() {
            return Err(RecycleError::message("the connection was left in the middle of something"));
        }
        if connection.doubts != self.connector.doubts.load(Ordering::Relaxed) {
            return Err(RecycleError::message("another connection of its age did not answer"));
        }
        if metrics.last_used() < UNTRIED || self.connector.answers(connection).await {
            return Ok(());
        }
        // The others that wait were made to the same database: whoever comes next makes a new one.
        let doubts = connection.doubts;
        let _ =
            self.connector.doubts.compare_exchange(doubts, doubts + 1, Ordering::Relaxed, Ordering::Relaxed);
        Err(RecycleError::message("the database did not answer in time"))
    }
}

/// Connections that are lent, one at a time to each borrower.
pub(super) struct Pool {
    pool: managed::Pool<Dialer>,
    /// How long a lease may last.
    lease: Duration,
}

impl Pool {
    pub(super) fn new(manager: Dialer, size: usize, wait: Duration) -> Self {
        // How long a connection may take is bounded where it is made: new epochs for many tenants may take longer.
        let pool = managed::Pool::builder(manager)
            .max_size(size.max(1))
            .wait_timeout(Some(wait))
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

    /// Returns what connections are made with.
    pub(super) fn connector(&self) -> Connector {
        self.pool.manager().connector.clone()
    }

    /// Has the connections that wait for a borrower replaced, of all pools of the store: a database did not answer.
    pub(super) fn doubt(&self) {
        self.pool.manager().connector.doubts.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends the connections that wait for a borrower; those that are lent end when they come back.
    pub(super) fn close(&self) {
        self.pool.close();
    }
}

fn pool_error(error: &PoolError<PostgresError>) -> String {
    match error {
        PoolError::Timeout(TimeoutType::Wait) => "no database connection was free in time".into(),
        PoolError::Backend(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// A lent connection. It goes back to the pool only by [`Lease::done`]; otherwise it is ended, and with it whatever
/// transaction is open on it. A future of its statements is never dropped half way to bound its time: the watchdog
/// ends the connection, which fails the statement.
pub(super) struct Lease {
    connection: Object<Dialer>,
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
        // What is open on it ends now, not when the pool looks at it the next time.
        if !self.connection.clean {
            self.connection.driver.abort();
        }
    }
}
