//! Receipts of bytes: what waits is written in one transaction.

use std::sync::{Arc, Mutex, PoisonError};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Binary, Nullable, Text};
use diesel::sqlite::Sqlite;
use driftline_engine::{ChunkReceipt, Kept, LeaseKey, LeaseSlot, StoreError, StreamReceipt};
use tokio::sync::oneshot;

use super::super::hot::statement;
use super::super::writer::{GroupError, Job, Writer};
use super::super::{SqliteStore, stopped, store_error};
use super::{Fence, Held, read, reserve_more, standing};
use crate::rows::{digest_sql, id_sql, running_sql, sql, sql_ms};
use crate::uploads::{chunk_refused, go_on};

statement! {
    /// Writes down a chunk, if its upload is open and the chunk is not there.
    PutChunk {
        id: Vec<u8> => Binary, chunk_no: i64 => BigInt, digest: Vec<u8> => Binary, tag: Option<String> => Nullable<Text>,
    } =
    "INSERT OR IGNORE INTO upload_chunks (upload, chunk_no, digest, tag) SELECT id, " ? chunk_no: BigInt
    ", " ? digest: Binary
    ", " ? tag: Nullable<Text>
    " FROM uploads WHERE id = " ? id: Binary
    " AND state = 'open'"
}

statement! {
    /// Takes down that a chunk came; gives how many bytes are there.
    TakeChunk {
        bytes: i64 => BigInt, at: i64 => BigInt, expires_at: i64 => BigInt, running: Option<Vec<u8>> => Nullable<Binary>,
        hashed: i64 => BigInt, id: Vec<u8> => Binary,
    } =
    "UPDATE uploads SET received = received + " ? bytes: BigInt
    ", changed_at = max(changed_at, " ? at: BigInt
    "), expires_at = " ? expires_at: BigInt
    ", running = iif(" ? hashed: BigInt
    " > hashed, " ? running: Nullable<Binary>
    ", running), hashed = max(hashed, " ? hashed: BigInt
    ") WHERE id = " ? id: Binary
    " RETURNING received"
}

impl Query for TakeChunk {
    type SqlType = BigInt;
}

statement! {
    /// Takes down how far a stream came.
    TakeStream {
        received: i64 => BigInt, size: Option<i64> => Nullable<BigInt>, reserved: i64 => BigInt, at: i64 => BigInt,
        expires_at: i64 => BigInt, running: Option<Vec<u8>> => Nullable<Binary>, hashed: i64 => BigInt,
        id: Vec<u8> => Binary,
    } =
    "UPDATE uploads SET received = " ? received: BigInt
    ", size = " ? size: Nullable<BigInt>
    ", reserved = " ? reserved: BigInt
    ", changed_at = max(changed_at, " ? at: BigInt
    "), expires_at = " ? expires_at: BigInt
    ", running = iif(" ? hashed: BigInt
    " > hashed, " ? running: Nullable<Binary>
    ", running), hashed = max(hashed, " ? hashed: BigInt
    ") WHERE id = " ? id: Binary
}

/// A receipt of either form.
pub(super) enum Receipt {
    Chunk(ChunkReceipt),
    Stream(StreamReceipt),
}

type KeptAnswer = oneshot::Sender<Result<Kept, StoreError>>;

/// Receipts that wait for the writer.
#[derive(Default)]
pub(in super::super) struct Waiting {
    /// The lock is held to put receipts in or take them out.
    receipts: Mutex<Vec<(Receipt, KeptAnswer)>>,
}

impl Waiting {
    fn put(&self, receipt: Receipt, answer: KeptAnswer) {
        self.receipts.lock().unwrap_or_else(PoisonError::into_inner).push((receipt, answer));
    }

    fn take(&self) -> Vec<(Receipt, KeptAnswer)> {
        std::mem::take(&mut *self.receipts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Drops receipts whose answers were given up.
    fn drop_given_up(&self) {
        let mut receipts = self.receipts.lock().unwrap_or_else(PoisonError::into_inner);
        receipts.retain(|(_, answer)| !answer.is_closed());
    }
}

impl SqliteStore {
    /// Has a receipt written down with all others that wait; the answer comes after the commit.
    pub(super) async fn keep(&self, receipt: Receipt) -> Result<Kept, StoreError> {
        let (answer, answered) = oneshot::channel();
        let waiting = Arc::clone(&self.shared.receipts);
        waiting.put(receipt, answer);
        let (theirs, held) = (Arc::clone(&waiting), Arc::clone(&self.shared.held));
        let job = Job::Run(Box::new(move |writer: &mut Writer| writer.keep_receipts(theirs.take(), &held)));
        if let Err(error) = self.send(job) {
            // The writer has too much to do: what nobody comes for must not pile up.
            drop(answered);
            waiting.drop_given_up();
            return Err(error);
        }
        answered.await.map_err(|_| stopped())?
    }
}

impl Writer {
    /// Writes receipts in one transaction. An earlier job may have taken all of them.
    fn keep_receipts(&mut self, receipts: Vec<(Receipt, KeptAnswer)>, held: &Held) {
        if receipts.is_empty() {
            return;
        }
        let (receipts, answers): (Vec<_>, Vec<_>) = receipts.into_iter().unzip();
        match self.commit_receipts(&receipts, held) {
            Ok(kept) => {
                for (answer, kept) in answers.into_iter().zip(kept) {
                    // Nobody waits any more: the receipt is written down all the same.
                    let _ = answer.send(Ok(kept));
                }
            }
            Err(GroupError::Store(error)) if receipts.len() > 1 => {
                tracing::warn!(%error, receipts = receipts.len(), "receipts failed, they are written one by one");
                for (receipt, answer) in receipts.iter().zip(answers) {
                    let kept = self.commit_receipts(std::slice::from_ref(receipt), held);
                    let kept =
                        kept.map_err(StoreError::from).and_then(|mut kept| kept.pop().ok_or_else(stopped));
                    let _ = answer.send(kept);
                }
            }
            Err(error) => {
                let error = StoreError::from(error);
                for answer in answers {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
    }

    /// Nobody is told of the commit before the rights that it needed can be had again.
    fn commit_receipts(&mut self, receipts: &[Receipt], held: &Held) -> Result<Vec<Kept>, GroupError> {
        let mut fence = held.fence();
        let begun = self.connection.batch_execute("BEGIN IMMEDIATE").map_err(store_error);
        begun.map_err(GroupError::NotBegun)?;
        let kept = self.end_transaction(|writer| {
            let connection = &mut writer.connection;
            let keep = |receipt: &Receipt| match receipt {
                Receipt::Chunk(receipt) => keep_chunk(connection, receipt, &mut fence),
                Receipt::Stream(receipt) => keep_stream(connection, receipt, &mut fence),
            };
            receipts.iter().map(keep).collect()
        });
        kept.map_err(GroupError::Store)
    }
}

fn keep_chunk(
    connection: &mut SqliteConnection,
    receipt: &ChunkReceipt,
    fence: &mut Fence<'_>,
) -> Result<Kept, StoreError> {
    let key = LeaseKey { id: receipt.id, slot: LeaseSlot::Chunk(receipt.index) };
    let put = PutChunk {
        id: id_sql(receipt.id),
        chunk_no: sql(receipt.index),
        digest: digest_sql(receipt.digest),
        tag: receipt.tag.as_deref().map(str::to_owned),
    };
    if !fence.holds(key, receipt.holder) || put.execute(connection).map_err(store_error)? == 0 {
        let state = standing(connection, receipt.id)?.map(|(_, standing)| standing.state);
        let is_there = read::chunk(connection, receipt.id, receipt.index)?.is_some();
        return Ok(chunk_refused(state, is_there));
    }
    let (hashed, running) = running_sql(receipt.running.as_ref());
    let take = TakeChunk {
        bytes: sql(receipt.bytes),
        at: sql_ms(receipt.at_ms),
        expires_at: sql_ms(receipt.expires_ms),
        running,
        hashed,
        id: id_sql(receipt.id),
    };
    let received: i64 = take.get_result(connection).map_err(store_error)?;
    Ok(Kept::Kept { received: crate::rows::count_of(received)? })
}

fn keep_stream(
    connection: &mut SqliteConnection,
    receipt: &StreamReceipt,
    fence: &mut Fence<'_>,
) -> Result<Kept, StoreError> {
    let found = standing(connection, receipt.id)?;
    let key = LeaseKey { id: receipt.id, slot: LeaseSlot::Stream };
    let holds = || fence.holds(key, receipt.holder);
    let streamed = match go_on(found.as_ref().map(|(_, standing)| standing), receipt, holds) {
        Ok(streamed) => streamed,
        Err(kept) => return Ok(kept),
    };
    if let Some((tenant_no, standing)) = found
        && !reserve_more(connection, tenant_no, (standing.reserved, streamed.reserved), receipt.quota_bytes)?
    {
        return Ok(Kept::NoRoom);
    }
    let (hashed, running) = running_sql(receipt.running.as_ref());
    let take = TakeStream {
        received: sql(receipt.to),
        size: streamed.size.map(sql),
        reserved: sql(streamed.reserved),
        at: sql_ms(receipt.at_ms),
        expires_at: sql_ms(receipt.expires_ms),
        running,
        hashed,
        id: id_sql(receipt.id),
    };
    take.execute(connection).map_err(store_error)?;
    Ok(Kept::Kept { received: receipt.to })
}
