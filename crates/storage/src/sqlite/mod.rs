//! The embedded store: one SQLite file, one writing thread, a few reading ones.

mod audit;
mod backup;
mod check;
mod conflicts;
mod diagnose;
mod files;
mod filter;
mod hot;
mod load;
mod lock;
mod log;
mod names;
mod once;
mod open;
mod pages;
#[cfg(test)]
mod plans;
mod prune;
mod queries;
mod readers;
mod registry;
mod restore;
mod samples;
mod seal;
mod side;
mod sums;
mod uploads;
mod write;
mod writer;

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use diesel::prelude::*;
use driftline_engine::{
    AuditEntry, AuditQuery, ConflictQuery, ConflictRow, DeviceChange, DeviceChanged, DeviceNote, DeviceOnce,
    DeviceQuery, DeviceRow, Head, History, Page, PageQuery, PartSum, Receipt, Remembered, Retention, Row,
    SampleQuery, SampleRow, SeriesQuery, SeriesRow, SessionProgress, Store, StoreError, StoredPolicy,
    Submission, SumQuery,
};
use driftline_idempotency::Record;
use driftline_model::{
    ConflictId, DeviceKey, DeviceNo, Epoch, KindName, RecordId, SyncId, TenantId, TenantNo,
};
use tokio::sync::oneshot;

pub use backup::BackupError;
pub use check::{Contents, Finding, Report};
pub use diagnose::{Diagnosis, SideFile};
pub use open::{Fatal, OpenError, SqliteOptions};
pub use restore::{RestoreError, Restored};

use crate::names::Names;
use crate::once::Kept;
use readers::Readers;
use writer::{Job, Queued, Writer};

/// The engine's store on one SQLite file.
///
/// The file is opened with a write-ahead log and `synchronous=FULL`, asserted on every connection: what was
/// answered is on the disk. Every clone speaks to the same threads; the last one to go stops them.
#[derive(Clone)]
pub struct SqliteStore {
    shared: Arc<Shared>,
}

struct Shared {
    jobs: Option<SyncSender<Job>>,
    readers: Readers,
    names: Arc<Names>,
    cursor_secret: [u8; 32],
    /// Numbers of tenants and devices that were asked for. The lock is held for look-ups and insertions only.
    tenants: Mutex<HashMap<TenantId, TenantNo>>,
    /// Heads as the writer left them. The lock is held for look-ups and insertions only.
    heads: Arc<Mutex<HashMap<TenantNo, Head>>>,
    /// Bytes of batches that wait for the writer.
    waiting_bytes: Arc<AtomicUsize>,
    /// As above.
    devices: Mutex<HashMap<(TenantNo, DeviceKey), DeviceNo>>,
    writer: Option<JoinHandle<()>>,
    side: Option<side::Side>,
    watch: log::Watch,
    /// Receipts of uploads that wait for the writer.
    receipts: Arc<uploads::Waiting>,
    /// Rights to write uploads.
    held: Arc<uploads::Held>,
    /// The columns of the outbox that hold claims.
    outbox_claims: Arc<[Box<str>]>,
    /// The last one to go: everything else is closed before somebody else may open the file.
    _lock: lock::Lock,
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SqliteStore")
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // One connection after the other: of two that close at once neither folds the log into the file.
        self.readers.stop();
        self.watch.stop();
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            // A panic of the writer was reported by the panic hook already.
            let _ = writer.join();
        }
        // After the last commit, so that it tells of it.
        self.side = None;
    }
}

/// Numbers of devices that are held in memory.
const DEVICES_MAX: usize = 200_000;

/// Notes of devices that one transaction writes.
const NOTES: usize = 1000;

pub(crate) fn store_error(error: diesel::result::Error) -> StoreError {
    match error {
        diesel::result::Error::DeserializationError(error) => StoreError::Corrupt(error.to_string()),
        other => StoreError::Unavailable(other.to_string()),
    }
}

fn stopped() -> StoreError {
    StoreError::Unavailable("the store has stopped".into())
}

impl SqliteStore {
    fn send(&self, job: Job) -> Result<(), StoreError> {
        let jobs = self.shared.jobs.as_ref().ok_or_else(stopped)?;
        jobs.try_send(job).map_err(|_| StoreError::Unavailable("the writer's queue is full".into()))
    }

    /// Runs a function on the writing connection, in a transaction of its own.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Writer) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run(move |writer| writer.transaction(work)).await
    }

    /// Runs a function on the writing connection.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Writer) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let run = Box::new(move |writer: &mut Writer| {
            // Nobody waits any more; the work is done all the same.
            let _ = answer.send(work(writer));
        });
        self.send(Job::Run(run))?;
        answered.await.map_err(|_| stopped())?
    }

    /// Runs a function in one transaction after the other until it removes less than a step; commits go between.
    async fn in_steps(
        &self,
        step: impl FnOnce(&mut Writer) -> Result<u64, StoreError> + Copy + Send + 'static,
    ) -> Result<u64, StoreError> {
        let mut removed = 0;
        loop {
            let gone = self.write(step).await?;
            removed += gone;
            if gone < prune::STEP as u64 {
                return Ok(removed);
            }
        }
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut SqliteConnection, &Names) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let names = Arc::clone(&self.shared.names);
        self.shared.readers.run(move |connection| work(connection, &names)).await
    }
}

#[cfg(test)]
impl SqliteStore {
    /// Writes what was planned by hand.
    pub(crate) async fn write_planned(
        &self,
        planned: driftline_engine::Planned,
        state: driftline_engine::GroupState,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        self.write(move |writer| {
            let now = crate::rows::sql(now_ms);
            writer.write(&planned, &state, now).map_err(StoreError::from)
        })
        .await
    }

    /// Loads what a commit group needs.
    pub(crate) async fn load_group(
        &self,
        group: Vec<Submission>,
    ) -> Result<driftline_engine::GroupState, StoreError> {
        self.run(move |writer| writer.load(&group, crate::group::Lookup::Thorough).map_err(StoreError::from))
            .await
    }
}

impl Store for SqliteStore {
    async fn tenant(&self, tenant: &TenantId) -> Result<TenantNo, StoreError> {
        let known = self.shared.tenants.lock().unwrap_or_else(PoisonError::into_inner).get(tenant).copied();
        if let Some(number) = known {
            return Ok(number);
        }
        let wanted = tenant.clone();
        let number = self.write(move |writer| queries::tenant(writer, &wanted)).await?;
        let mut tenants = self.shared.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        tenants.insert(tenant.clone(), number);
        Ok(number)
    }

    async fn device(&self, tenant: TenantNo, device: &DeviceKey) -> Result<DeviceNo, StoreError> {
        let key = (tenant, device.clone());
        let known = self.shared.devices.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
        if let Some(number) = known {
            return Ok(number);
        }
        let wanted = device.clone();
        let found = self.read(move |connection, _| queries::find_device(connection, tenant, &wanted)).await?;
        let number = match found {
            Some(number) => number,
            None => {
                let wanted = device.clone();
                self.write(move |writer| queries::register_device(writer, tenant, &wanted)).await?
            }
        };
        let mut devices = self.shared.devices.lock().unwrap_or_else(PoisonError::into_inner);
        if devices.len() >= DEVICES_MAX {
            devices.clear();
        }
        devices.insert(key, number);
        Ok(number)
    }

    async fn head(&self, tenant: TenantNo) -> Result<Head, StoreError> {
        let known = self.shared.heads.lock().unwrap_or_else(PoisonError::into_inner).get(&tenant).copied();
        match known {
            Some(head) => Ok(head),
            // The writer looks it up and keeps it, so that no older head can replace a newer one.
            None => self.write(move |writer| queries::keep_head(writer, tenant)).await,
        }
    }

    async fn commit(&self, submission: Submission) -> Result<Receipt, StoreError> {
        let (answer, answered) = oneshot::channel();
        let queued = Queued::count(&self.shared.waiting_bytes, submission.bytes());
        let queued =
            queued.ok_or_else(|| StoreError::Unavailable("the writer has too much to write".into()))?;
        self.send(Job::Commit(submission, answer, queued))?;
        answered.await.map_err(|_| stopped())?
    }

    async fn page(&self, query: PageQuery) -> Result<Page, StoreError> {
        self.read(move |connection, names| pages::page(connection, names, &query)).await
    }

    fn record(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        id: &RecordId,
    ) -> impl Future<Output = Result<Option<Row>, StoreError>> + Send {
        let (kind, id) = (kind.clone(), id.clone());
        self.read(move |connection, names| queries::record(connection, names, tenant, &kind, &id))
    }

    fn history(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        id: &RecordId,
    ) -> impl Future<Output = Result<Option<History>, StoreError>> + Send {
        let (kind, id) = (kind.clone(), id.clone());
        self.read(move |connection, names| audit::history(connection, names, tenant, &kind, &id))
    }

    fn conflict(
        &self,
        tenant: TenantNo,
        conflict_id: &ConflictId,
    ) -> impl Future<Output = Result<Option<ConflictRow>, StoreError>> + Send {
        let conflict_id = conflict_id.clone();
        self.read(move |connection, names| conflicts::conflict(connection, names, tenant, &conflict_id))
    }

    async fn conflicts(
        &self,
        tenant: TenantNo,
        query: ConflictQuery,
    ) -> Result<Vec<ConflictRow>, StoreError> {
        self.read(move |connection, names| conflicts::conflicts(connection, names, tenant, &query)).await
    }

    async fn audit(&self, tenant: TenantNo, query: AuditQuery) -> Result<Vec<AuditEntry>, StoreError> {
        self.read(move |connection, names| audit::audit(connection, names, tenant, &query)).await
    }

    async fn sums(&self, query: SumQuery) -> Result<(Head, Vec<PartSum>), StoreError> {
        self.read(move |connection, names| sums::of_range(connection, names, &query)).await
    }

    async fn policies(&self, tenant: TenantNo) -> Result<Vec<StoredPolicy>, StoreError> {
        self.read(move |connection, names| queries::policies(connection, names, tenant)).await
    }

    fn set_policy(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        doc: Option<String>,
    ) -> impl Future<Output = Result<Option<u64>, StoreError>> + Send {
        let kind = kind.clone();
        self.run(move |writer| {
            if doc.is_some() {
                // Before the transaction, so that the kind keeps its number if that fails.
                let interned = writer.intern_kind(tenant, &kind);
                writer.fresh.clear();
                interned?;
            }
            writer.transaction(|writer| queries::set_policy(writer, tenant, &kind, doc.as_deref()))
        })
    }

    async fn begin_epoch(&self, tenant: TenantNo, left: Epoch) -> Result<Head, StoreError> {
        self.write(move |writer| queries::begin_epoch(writer, tenant, left)).await
    }

    fn session(
        &self,
        tenant: TenantNo,
        device: DeviceNo,
        sync_id: &SyncId,
    ) -> impl Future<Output = Result<Option<SessionProgress>, StoreError>> + Send {
        let sync_id = sync_id.clone();
        self.read(move |connection, _| queries::session(connection, tenant, device, &sync_id))
    }

    async fn prune(&self, now_ms: u64, retention: &Retention) -> Result<u64, StoreError> {
        let mut removed = self.write(move |writer| prune::prune(writer, now_ms)).await?;
        removed += self.in_steps(move |writer| prune::keys(writer, now_ms, prune::STEP)).await?;
        for (kind, kept_ms) in &retention.samples {
            let (kind, before_ms) = (kind.clone(), now_ms.saturating_sub(*kept_ms));
            let kinds = self.read(move |connection, _| prune::samples(connection, &kind, before_ms)).await?;
            for mut steps in kinds {
                let mut more = true;
                while more {
                    let gone;
                    (gone, more, steps) = self
                        .write(move |writer| steps.step(writer).map(|(gone, more)| (gone, more, steps)))
                        .await?;
                    removed += gone;
                }
            }
        }
        if let Some(kept_ms) = retention.series_ms {
            let before_ms = now_ms.saturating_sub(kept_ms);
            removed += self.in_steps(move |writer| prune::series(writer, before_ms)).await?;
        }
        Ok(removed)
    }

    async fn samples(&self, tenant: TenantNo, query: SampleQuery) -> Result<Vec<SampleRow>, StoreError> {
        self.read(move |connection, names| samples::samples(connection, names, tenant, &query)).await
    }

    async fn series(&self, tenant: TenantNo, query: SeriesQuery) -> Result<Vec<SeriesRow>, StoreError> {
        self.read(move |connection, _| samples::series(connection, tenant, &query)).await
    }

    async fn device_row(&self, tenant: TenantNo, device: DeviceNo) -> Result<Option<DeviceRow>, StoreError> {
        self.read(move |connection, _| registry::device_row(connection, tenant, device)).await
    }

    async fn devices(&self, tenant: TenantNo, query: DeviceQuery) -> Result<Vec<DeviceRow>, StoreError> {
        self.read(move |connection, _| registry::devices(connection, tenant, &query)).await
    }

    async fn device_by_digest(
        &self,
        digest: [u8; 32],
    ) -> Result<Option<(TenantId, TenantNo, DeviceRow)>, StoreError> {
        self.read(move |connection, _| registry::device_by_digest(connection, digest)).await
    }

    async fn change_device(
        &self,
        tenant: TenantNo,
        change: DeviceChange,
        once: Option<DeviceOnce>,
    ) -> Result<DeviceChanged, StoreError> {
        self.write(move |writer| registry::change_device(writer, tenant, &change, once.as_ref())).await
    }

    async fn note_devices(&self, mut notes: Vec<DeviceNote>) -> Result<(), StoreError> {
        while !notes.is_empty() {
            let later = notes.split_off(notes.len().min(NOTES));
            let now = std::mem::replace(&mut notes, later);
            self.write(move |writer| registry::note(&mut writer.connection, now)).await?;
        }
        Ok(())
    }

    fn remembered(
        &self,
        tenant: TenantNo,
        owner: &str,
        key: &str,
    ) -> impl Future<Output = Result<Option<Record<Remembered>>, StoreError>> + Send {
        let (owner, key) = (owner.to_owned(), key.to_owned());
        self.read(move |connection, _| {
            let kept = once::kept(connection, tenant, (&owner, &key)).map_err(store_error)??;
            kept.as_ref().map(Kept::record).transpose()
        })
    }

    fn log(&self) -> &dyn driftline_engine::EventLog {
        self
    }

    fn uploads(&self) -> &dyn driftline_engine::UploadRows {
        self
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.write(queries::probe).await
    }

    fn cursor_secret(&self) -> [u8; 32] {
        self.shared.cursor_secret
    }
}
