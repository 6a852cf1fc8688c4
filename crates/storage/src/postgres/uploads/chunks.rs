//! Receipts of chunks.
//!
//! Those of one upload that wait while others of it are committed become the next transaction: they need the same row, and
//! would only wait for it with a connection each. A task of its own commits them as long as some wait. It outlives whoever
//! asked: the work is done whether or not somebody waits for the answer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Binary, Nullable, Text};
use diesel::{OptionalExtension, QueryResult};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use driftline_engine::{ChunkReceipt, Kept, StoreError};
use driftline_uploads::{RunningHash, State, UploadId};
use tokio::join;
use tokio::sync::oneshot;

use super::super::connect::Lease;
use super::super::snapshot::give_back;
use super::super::sql::{Commit, statement};
use super::super::{Shared, store_error};
use super::LockUpload;
use crate::rows::{StandingRow, digest_sql, id_sql, running_sql, sql, sql_ms, standing_of};
use crate::uploads::{Standing, chunk_refused};

statement! {
    /// Of an upload that is locked the rights to some of its chunks, with whose they are. They stay so until the end of the
    /// transaction.
    LockRights { id: Vec<u8> => Binary, chunks: Vec<i64> => Array<BigInt> } =
    "SELECT l.slot, l.holder FROM unnest(" ? chunks: Array<BigInt>
    ") AS w(slot) CROSS JOIN LATERAL (SELECT slot, holder FROM upload_leases WHERE upload = " ? id: Binary
    " AND slot >= w.slot AND slot <= w.slot ORDER BY slot LIMIT 1 FOR SHARE) AS l"
}

impl Query for LockRights {
    type SqlType = (BigInt, BigInt);
}

statement! {
    /// Which of some chunks are there.
    FindChunks { id: Vec<u8> => Binary, chunks: Vec<i64> => Array<BigInt> } =
    "SELECT c.chunk_no FROM unnest(" ? chunks: Array<BigInt>
    ") AS w(chunk_no) CROSS JOIN LATERAL (SELECT chunk_no FROM upload_chunks WHERE upload = " ? id: Binary
    " AND chunk_no >= w.chunk_no AND chunk_no <= w.chunk_no ORDER BY chunk_no LIMIT 1) AS c"
}

impl Query for FindChunks {
    type SqlType = BigInt;
}

statement! {
    /// Writes chunks down.
    PutChunks<'a> {
        id: Vec<u8> => Binary, chunks: Vec<i64> => Array<BigInt>, digests: Vec<Vec<u8>> => Array<Binary>,
        tags: Vec<Option<&'a str>> => Array<Nullable<Text>>,
    } =
    "INSERT INTO upload_chunks (upload, chunk_no, digest, tag) SELECT " ? id: Binary
    ", w.chunk_no, w.digest, w.tag FROM unnest(" ? chunks: Array<BigInt>
    ", " ? digests: Array<Binary>
    ", " ? tags: Array<Nullable<Text>>
    ") AS w(chunk_no, digest, tag)"
}

statement! {
    /// Takes down that chunks came, and how many bytes are there then.
    TakeChunks {
        received: i64 => BigInt, at: i64 => BigInt, expires_at: i64 => BigInt, running: Option<Vec<u8>> => Nullable<Binary>,
        hashed: i64 => BigInt, id: Vec<u8> => Binary,
    } =
    "UPDATE uploads SET received = " ? received: BigInt
    ", changed_at = greatest(changed_at, " ? at: BigInt
    "), expires_at = " ? expires_at: BigInt
    ", running = CASE WHEN " ? hashed: BigInt
    " > hashed THEN " ? running: Nullable<Binary>
    " ELSE running END, hashed = greatest(hashed, " ? hashed: BigInt
    ") WHERE id = " ? id: Binary
    ""
}

/// Receipts of one upload that may wait.
const WAITING_MAX: usize = 4_096;

/// Receipts that one transaction takes.
const GROUP: usize = 64;

type KeptAnswer = oneshot::Sender<Result<Kept, StoreError>>;

/// Uploads of which receipts wait or are being committed.
#[derive(Default)]
pub(in super::super) struct Waiting {
    /// The lock is held to put receipts in or take them out.
    uploads: Mutex<HashMap<UploadId, Vec<(ChunkReceipt, KeptAnswer)>>>,
}

impl Waiting {
    /// Has a receipt written down with all others of its upload that wait; the answer comes after the commit.
    pub(super) fn keep(
        shared: &Arc<Shared>,
        receipt: ChunkReceipt,
    ) -> Result<oneshot::Receiver<Result<Kept, StoreError>>, StoreError> {
        let (answer, answered) = oneshot::channel();
        let id = receipt.id;
        let mut uploads = shared.receipts.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        match uploads.get_mut(&id) {
            Some(waiting) if waiting.len() >= WAITING_MAX => {
                return Err(StoreError::Unavailable("too much waits to be written".into()));
            }
            Some(waiting) => waiting.push((receipt, answer)),
            None => {
                uploads.insert(id, vec![(receipt, answer)]);
                shared.runtime.spawn(run(Arc::clone(shared), id));
            }
        }
        Ok(answered)
    }

    /// Takes what waits next of an upload, which is left when nothing does.
    fn next(&self, id: UploadId) -> Option<Vec<(ChunkReceipt, KeptAnswer)>> {
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = uploads.get_mut(&id)?;
        let rest = waiting.split_off(waiting.len().min(GROUP));
        let group = std::mem::replace(waiting, rest);
        if group.is_empty() {
            uploads.remove(&id);
            return None;
        }
        Some(group)
    }
}

async fn run(shared: Arc<Shared>, id: UploadId) {
    let left = Leaving { waiting: &shared.receipts, id };
    while let Some(group) = shared.receipts.next(id) {
        let (receipts, answers): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        let kept = keep_all(&shared, &receipts).await;
        for (answer, kept) in answers.into_iter().zip(kept) {
            // Nobody waits any more: the receipt is written down all the same.
            let _ = answer.send(kept);
        }
    }
    drop(left);
}

/// An upload whose receipts are being committed. A panic fails what waits, and does not leave the upload to nobody.
struct Leaving<'a> {
    waiting: &'a Waiting,
    id: UploadId,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.waiting.uploads.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        }
    }
}

/// Commits receipts of one upload. Where that fails, they are committed one by one: a bad one fails alone.
async fn keep_all(shared: &Shared, receipts: &[ChunkReceipt]) -> Vec<Result<Kept, StoreError>> {
    match keep_group(shared, receipts).await {
        Ok(kept) => kept.into_iter().map(Ok).collect(),
        Err(Failed { error, begun: true }) if receipts.len() > 1 => {
            tracing::warn!(%error, receipts = receipts.len(), "receipts failed, they are written one by one");
            let mut answers = Vec::with_capacity(receipts.len());
            for receipt in receipts {
                let kept = keep_group(shared, std::slice::from_ref(receipt)).await;
                answers.extend(
                    kept.map(|kept| kept.into_iter().map(Ok).collect())
                        .unwrap_or_else(|failed: Failed| vec![Err(failed.error)]),
                );
            }
            answers
        }
        Err(failed) => vec![Err(failed.error); receipts.len()],
    }
}

/// Why receipts were not written down.
struct Failed {
    error: StoreError,
    /// Whether there was a connection: else none of the receipts is at fault.
    begun: bool,
}

async fn keep_group(shared: &Shared, receipts: &[ChunkReceipt]) -> Result<Vec<Kept>, Failed> {
    let lease = shared.writer().await.map_err(|error| Failed { error, begun: false })?;
    let kept = keep_within(&lease, receipts).await;
    give_back(lease, kept).await.map_err(|error| Failed { error, begun: true })
}

/// Locks the upload, then the rights to the chunks. Each statement sees what was there when the one before it had ended, so
/// rights and chunks are looked at behind the lock of the upload. Whoever asks for one of the rights waits for the commit,
/// and reads what it wrote.
async fn keep_within(lease: &Lease, receipts: &[ChunkReceipt]) -> Result<Vec<Kept>, StoreError> {
    let Some(first) = receipts.first() else { return Ok(Vec::new()) };
    let (id, pg) = (first.id, lease.pg());
    let chunks: BTreeSet<i64> = receipts.iter().map(|receipt| sql(receipt.index)).collect();
    let chunks: Vec<i64> = chunks.into_iter().collect();
    let mut begin = pg;
    let (begun, found, rights, there) = join!(
        biased;
        begin.batch_execute("BEGIN"),
        LockUpload { id: id_sql(id) }.get_result::<StandingRow>(&mut { pg }),
        LockRights { id: id_sql(id), chunks: chunks.clone() }.load::<(i64, i64)>(&mut { pg }),
        FindChunks { id: id_sql(id), chunks }.load::<i64>(&mut { pg }),
    );
    begun.map_err(store_error)?;
    let found = found.optional().map_err(store_error)?;
    let standing = found.as_ref().map(standing_of).transpose()?.map(|(_, standing)| standing);
    let mut group = Group {
        standing,
        rights: rights.map_err(store_error)?.into_iter().collect(),
        there: there.map_err(store_error)?.into_iter().collect(),
        taken: Vec::new(),
    };
    let kept = receipts.iter().map(|receipt| group.keep(receipt)).collect();
    let written = group.write(lease, id).await;
    written.map(|()| kept)
}

/// What decides on receipts of one upload.
struct Group<'a> {
    standing: Option<Standing>,
    /// Whose the rights to the chunks are.
    rights: BTreeMap<i64, i64>,
    /// The chunks that are there.
    there: BTreeSet<i64>,
    taken: Vec<&'a ChunkReceipt>,
}

impl<'a> Group<'a> {
    fn keep(&mut self, receipt: &'a ChunkReceipt) -> Kept {
        let chunk_no = sql(receipt.index);
        let holds = self.rights.get(&chunk_no) == Some(&receipt.holder.cast_signed());
        let is_there = self.there.contains(&chunk_no);
        match &mut self.standing {
            Some(standing) if standing.state == State::Open && holds && !is_there => {
                self.there.insert(chunk_no);
                self.taken.push(receipt);
                standing.received += receipt.bytes;
                Kept::Kept { received: standing.received }
            }
            standing => chunk_refused(standing.map(|standing| standing.state), is_there),
        }
    }

    /// Writes what was taken and ends the transaction.
    async fn write(&self, lease: &Lease, id: UploadId) -> Result<(), StoreError> {
        let pg = lease.pg();
        let (Some(standing), Some(last)) = (&self.standing, self.taken.last()) else {
            return Commit {}.execute(&mut { pg }).await.map(drop).map_err(store_error);
        };
        let put = PutChunks {
            id: id_sql(id),
            chunks: self.taken.iter().map(|receipt| sql(receipt.index)).collect(),
            digests: self.taken.iter().map(|receipt| digest_sql(receipt.digest)).collect(),
            tags: self.taken.iter().map(|receipt| receipt.tag.as_deref()).collect(),
        };
        let farthest = self.taken.iter().filter_map(|receipt| receipt.running.as_ref());
        let (hashed, running) = running_sql(farthest.max_by_key(|running| RunningHash::through(running)));
        let take = TakeChunks {
            received: sql(standing.received),
            at: sql_ms(self.taken.iter().map(|receipt| receipt.at_ms).max().unwrap_or_default()),
            expires_at: sql_ms(last.expires_ms),
            running,
            hashed,
            id: id_sql(id),
        };
        let (put, taken, ended) = join!(
            biased;
            put.execute(&mut { pg }),
            take.execute(&mut { pg }),
            Commit {}.execute(&mut { pg }),
        );
        put.map_err(store_error)?;
        taken.map_err(store_error)?;
        ended.map(drop).map_err(store_error)
    }
}
