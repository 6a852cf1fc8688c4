//! The store on PostgreSQL, for any number of nodes.
//!
//! The head row of a tenant is locked first by every transaction that writes its rows. That orders all writers of a
//! tenant on all nodes, so that sequence numbers become visible in their order and a reader never misses a committed
//! change; it closes the race of two nodes that create one record, and that of one change sent to two nodes.
//!
//! The store has threads of its own: planning a large group keeps no connection of the server waiting, and its futures
//! may be awaited from any executor.

mod audit;
mod caches;
mod claims;
mod commit;
mod conflicts;
mod connect;
mod diagnose;
#[cfg(test)]
mod ears;
mod events;
mod filter;
mod followers;
mod lanes;
mod leases;
mod listen;
mod load;
mod log;
mod migrate;
mod names;
#[cfg(test)]
mod nodes;
mod once;
mod open;
mod outbox;
mod paged;
mod pages;
mod prune;
mod queries;
mod registry;
mod samples;
mod snapshot;
mod sql;
mod sums;
mod target;
mod tell;
mod timeline;
mod topics;
mod trim;
#[cfg(test)]
mod under_way;
mod uploads;
mod watch;
mod write;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use driftline_engine::{
    AuditEntry, AuditQuery, Clock, ConflictQuery, ConflictRow, DeviceChange, DeviceChanged, DeviceNote,
    DeviceOnce, DeviceQuery, DeviceRow, Head, History, Listeners, Page, PageQuery, PartSum, Random, Receipt,
    Remembered, Retention, Row, SampleQuery, SampleRow, SeriesQuery, SeriesRow, SessionProgress, Store,
    StoreError, StoredPolicy, Submission, SumQuery,
};
use driftline_idempotency::Record;
use driftline_model::{
    ConflictId, DeviceKey, DeviceNo, Epoch, KindName, RecordId, SyncId, TenantId, TenantNo,
};
use thiserror::Error;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

pub use diagnose::PostgresDiagnosis;
pub use target::PostgresTarget;
pub use timeline::Failover;

use caches::Caches;
use connect::{Lease, Pool};
use lanes::Lanes;

/// How a store is opened.
pub struct PostgresOptions {
    /// Where the database is.
    pub target: PostgresTarget,
    /// What a failover may have lost.
    pub failover: Failover,
    /// The wall clock; none: the database's, which is the same for all nodes.
    pub clock: Option<Arc<dyn Clock>>,
    /// Randomness for epochs and secrets.
    pub random: Arc<dyn Random>,
    /// Who is told of commits.
    pub listeners: Arc<dyn Listeners>,
    /// Milliseconds that a device's clock may run ahead.
    pub skew_ms_max: u64,
    /// Bytes that a record's fields may have.
    pub record_bytes: usize,
    /// Connections that write: so many tenants' commit groups are under way at once.
    pub write_connections: usize,
    /// Connections that read.
    pub read_connections: usize,
    /// Milliseconds after which whoever waits for the database is told to come again.
    pub wait_ms: u64,
    /// Milliseconds between two looks at the heads, for what other nodes have committed.
    pub watch_ms: u64,
    /// Threads that the store works with.
    pub threads: usize,
    /// Claims that have a column of their own in the outbox (`sync_events`), where other programs address events by them.
    /// Columns that are missing are added. Names are made of `a` to `z`, `0` to `9` and `_`, and begin with no digit.
    pub outbox_claims: Vec<Box<str>>,
}

impl std::fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresOptions").field("target", &self.target).finish_non_exhaustive()
    }
}

/// Why a store could not be opened, or a connection not be made.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PostgresError {
    /// The connection string cannot be read. It is not repeated here: it may hold a password.
    #[error("the database's connection string cannot be used: {0}")]
    Url(String),
    /// The certificates of authorities cannot be used.
    #[error("cannot use the certificates in {file}: {reason}")]
    Authorities {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The database is away, or lets nobody in.
    #[error("cannot connect to the database: {0}")]
    Connect(String),
    /// The database is older than version 14.
    #[error("the database is PostgreSQL {0}, and 14 is the oldest that serves")]
    Version(String),
    /// A migration failed.
    #[error("a migration failed: {0}")]
    Migration(String),
    /// Stored bytes are not what this program wrote.
    #[error("the database holds something unreadable: {0}")]
    Corrupt(String),
    /// A claim cannot have a column in the outbox.
    #[error("the claim {claim} cannot have a column in the outbox: {reason}")]
    Claim {
        /// The claim.
        claim: Box<str>,
        /// What is wrong with it.
        reason: String,
    },
    /// The threads could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(String),
}

/// The engine's store on PostgreSQL. Every clone speaks to the same connections; the last one to go ends them.
#[derive(Clone)]
pub struct PostgresStore {
    shared: Arc<Shared>,
    _threads: Arc<Threads>,
}

impl std::fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PostgresStore")
    }
}

struct Shared {
    runtime: tokio::runtime::Handle,
    writers: Pool,
    readers: Pool,
    lanes: Lanes,
    /// Receipts of uploads that wait.
    receipts: uploads::Waiting,
    caches: Arc<Caches>,
    clock: Option<Arc<dyn Clock>>,
    random: Arc<dyn Random>,
    listeners: Arc<dyn Listeners>,
    skew_ms_max: u64,
    record_bytes: usize,
    wait: Duration,
    outbox_claims: Vec<Box<str>>,
    bell: listen::Bell,
    cursor_secret: [u8; 32],
    #[cfg(test)]
    faults: std::sync::OnceLock<commit::Faults>,
}

/// The store's own runtime. It is told to end, and not waited for: the last clone may go within another runtime, where
/// waiting is not allowed.
struct Threads {
    runtime: Option<Runtime>,
    shared: Arc<Shared>,
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.writers.close();
        self.shared.readers.close();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn store_error(error: diesel::result::Error) -> StoreError {
    match error {
        diesel::result::Error::DeserializationError(error) => StoreError::Corrupt(error.to_string()),
        other => StoreError::Unavailable(other.to_string()),
    }
}

fn stopped() -> StoreError {
    StoreError::Unavailable("the store has stopped".into())
}

impl Shared {
    async fn writer(&self) -> Result<Lease, StoreError> {
        self.writers.lease().await
    }

    async fn reader(&self) -> Result<Lease, StoreError> {
        self.readers.lease().await
    }

    /// The time as the store's own clock or the database's tells it.
    fn now(&self, database_ms: i64) -> u64 {
        self.clock
            .as_ref()
            .map_or_else(|| u64::try_from(database_ms).unwrap_or_default(), |clock| clock.now_ms())
    }
}

impl PostgresStore {
    /// Runs work on the store's own threads. It goes on when the answer is given up, which happens at the latest when
    /// the time to wait is over.
    async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.shared.runtime.spawn(async move {
            // Nobody may wait any more.
            let _ = answer.send(work.await);
        });
        self.answer(answered).await
    }

    /// Runs work on the store's own threads and waits for its end, however long it takes. It goes on when the answer is
    /// given up.
    async fn finish<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.shared.runtime.spawn(async move {
            // Nobody may wait any more.
            let _ = answer.send(work.await);
        });
        answered.await.map_err(|_| stopped())?
    }

    /// Waits for an answer from the store's own threads.
    async fn answer<T: Send + 'static>(
        &self,
        answered: oneshot::Receiver<Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let timeout = {
            // The clock of the store's own threads ends the wait, whoever awaits this.
            let _within = self.shared.runtime.enter();
            tokio::time::timeout(self.shared.wait, answered)
        };
        match timeout.await {
            Ok(answered) => answered.map_err(|_| stopped())?,
            Err(_) => Err(StoreError::Unavailable("the database did not answer in time".into())),
        }
    }
}

impl Store for PostgresStore {
    async fn tenant(&self, tenant: &TenantId) -> Result<TenantNo, StoreError> {
        if let Some(known) = self.shared.caches.tenants.get(tenant) {
            self.shared.caches.tellers.watch(known);
            return Ok(known);
        }
        let (shared, tenant) = (Arc::clone(&self.shared), tenant.clone());
        self.run(async move { queries::tenant(&shared, &tenant).await }).await
    }

    async fn device(&self, tenant: TenantNo, device: &DeviceKey) -> Result<DeviceNo, StoreError> {
        let key = (tenant, device.clone());
        if let Some(known) = self.shared.caches.devices.get(&key) {
            return Ok(known);
        }
        let shared = Arc::clone(&self.shared);
        self.run(async move { queries::device(&shared, tenant, &key.1).await }).await
    }

    async fn head(&self, tenant: TenantNo) -> Result<Head, StoreError> {
        let shared = Arc::clone(&self.shared);
        self.run(async move { queries::head(&shared, tenant).await }).await
    }

    async fn commit(&self, submission: Submission) -> Result<Receipt, StoreError> {
        self.answer(Lanes::submit(&self.shared, submission)?).await
    }

    async fn page(&self, query: PageQuery) -> Result<Page, StoreError> {
        let shared = Arc::clone(&self.shared);
        self.run(async move { pages::page(&shared, &query).await }).await
    }

    async fn record(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        id: &RecordId,
    ) -> Result<Option<Row>, StoreError> {
        let (shared, kind, id) = (Arc::clone(&self.shared), kind.clone(), id.clone());
        self.run(async move { pages::record(&shared, tenant, &kind, &id).await }).await
    }

    async fn history(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        id: &RecordId,
    ) -> Result<Option<History>, StoreError> {
        let (shared, kind, id) = (Arc::clone(&self.shared), kind.clone(), id.clone());
        self.run(async move { audit::history(&shared, tenant, &kind, &id).await }).await
    }

    async fn conflict(
        &self,
        tenant: TenantNo,
        conflict_id: &ConflictId,
    ) -> Result<Option<ConflictRow>, StoreError> {
        let (shared, conflict_id) = (Arc::clone(&self.shared), conflict_id.clone());
        self.run(async move { conflicts::conflict(&shared, tenant, &conflict_id).await }).await
    }

    async fn conflicts(
        &self,
        tenant: TenantNo,
        query: ConflictQuery,
    ) -> Result<Vec<ConflictRow>, StoreError> {
        let shared = Arc::clone(&self.shared);
        self.run(async move { conflicts::conflicts(&shared, tenant, &query).await }).await
    }

    async fn audit(&self, tenant: TenantNo, query: AuditQuery) -> Result<Vec<AuditEntry>, StoreError> {
        let shared = Arc::clone(&self.shared);
        self.run(async move { audit::audit(&shared, tenant, &query).await }).await
    }

    async fn sums(&self, query: SumQuery) -> Result<(Head, Vec<PartSum>), StoreError> {
        let shared = Arc::clone(&self.shared);
        self.run(async move { sums::of_range(&shared, &query).await }).await
    }

    async fn policies(&self, tenant: TenantNo) -> Result<Vec<StoredPolicy>, StoreError> {
        let shared = Arc::clone(&self.shared);
        self.run(async move { queries::policies(&shared, tenant).await }).await
    }

    async fn set_policy(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        doc: Option<String>,
    ) -> Result<Option<u64>, StoreError> {
        let (shared, kind) = (Arc::clone(&self.shared), kind.clone());
        self.run(async move { queries::set_policy(&shared, tenant, &kind, doc.as_deref()).await }).await
    }

    async fn begin_epoch(&self, tenant: TenantNo, left: Epoch) -> Result<Head, StoreError> {
        let shared = Arc::clone(&self.shared);
        self.run(async move { queries::begin_epoch(&shared, tenant, left).await }).await
    }

    async fn session(
        &self,
        tenant: TenantNo,
        device: DeviceNo,
        sync_id: &SyncId,
    ) -> Result<Option<SessionProgress>, StoreError> {
        let (shared, sync_id) = (Arc::clone(&self.shared), sync_id.clone());
        self.run(async move { queries::session(&shared, tenant, device, &sync_id).await }).await
    }

    async fn prune(&self, now_ms: u64, retention: &Retention) -> Result<u64, StoreError> {
        let (shared, retention) = (Arc::clone(&self.shared), retention.clone());
        // However long it takes: nobody is told to prune again.
        self.finish(async move { prune::prune(&shared, now_ms, &retention).await }).await
    }

    async fn samples(&self, tenant: TenantNo, query: SampleQuery) -> Result<Vec<SampleRow>, StoreError> {
        let shared = Arc::clone(&self.shared);
        self.run(async move { samples::samples(&shared, tenant, &query).await }).await
    }

    async fn series(&self, tenant: TenantNo, query: SeriesQuery) -> Result<Vec<SeriesRow>, StoreError> {
        let shared = Arc::clone(&self.shared);
        self.run(async move { samples::series(&shared, tenant, &query).await }).await
    }

    async fn device_row(&self, tenant: TenantNo, device: DeviceNo) -> Result<Option<DeviceRow>, StoreError> {
        let shared = Arc::clone(&self.shared);
        self.run(async move { registry::device_row(&shared, tenant, device).await }).await
    }

    async fn devices(&self, tenant: TenantNo, query: DeviceQuery) -> Result<Vec<DeviceRow>, StoreError> {
        let shared = Arc::clone(&self.shared);
        self.run(async move { registry::devices(&shared, tenant, &query).await }).await
    }

    async fn device_by_digest(
        &self,
        digest: [u8; 32],
    ) -> Result<Option<(TenantId, TenantNo, DeviceRow)>, StoreError> {
        let shared = Arc::clone(&self.shared);
        self.run(async move { registry::device_by_digest(&shared, digest).await }).await
    }

    async fn change_device(
        &self,
        tenant: TenantNo,
        change: DeviceChange,
        once: Option<DeviceOnce>,
    ) -> Result<DeviceChanged, StoreError> {
        let shared = Arc::clone(&self.shared);
        self.run(async move { registry::change_device(&shared, tenant, &change, once.as_ref()).await }).await
    }

    async fn note_devices(&self, notes: Vec<DeviceNote>) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.shared);
        self.run(async move { registry::note_devices(&shared, notes).await }).await
    }

    async fn remembered(
        &self,
        tenant: TenantNo,
        owner: &str,
        key: &str,
    ) -> Result<Option<Record<Remembered>>, StoreError> {
        let (shared, owner, key) = (Arc::clone(&self.shared), owner.to_owned(), key.to_owned());
        self.run(async move { once::remembered(&shared, tenant, &owner, &key).await }).await
    }

    fn log(&self) -> &dyn driftline_engine::EventLog {
        self
    }

    fn uploads(&self) -> &dyn driftline_engine::UploadRows {
        self
    }

    async fn probe(&self) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.shared);
        self.run(async move { queries::probe(&shared).await }).await
    }

    fn cursor_secret(&self) -> [u8; 32] {
        self.shared.cursor_secret
    }
}
