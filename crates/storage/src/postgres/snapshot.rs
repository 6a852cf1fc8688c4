//! What is read at one moment.
//!
//! The statements of a flight travel together and are answered in their order, so a read costs one round trip however
//! many statements it is made of.

use std::future::Future;

use diesel::QueryResult;
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use driftline_engine::StoreError;
use tokio::join;

use super::connect::Lease;
use super::sql::Commit;
use super::store_error;

/// The moment is that of the first statement behind it.
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// Reads everything at one moment, in one flight. The statements of `reads` must all be on their way when it first
/// waits: the end of the transaction follows them closely.
pub(super) async fn whole<T>(
    lease: &Lease,
    reads: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let (begun, read, ended) = join!(biased; begun(lease.pg()), reads, committed(lease.pg()));
    begun.map_err(store_error)?;
    let read = read?;
    ended.map_err(store_error)?;
    Ok(read)
}

/// Reads the first of what is read at one moment.
pub(super) async fn first<T>(
    lease: &Lease,
    reads: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let (begun, read) = join!(biased; begun(lease.pg()), reads);
    begun.map_err(store_error)?;
    read
}

/// Reads the last of what is read at one moment; as [`whole`] about `reads`.
pub(super) async fn last<T>(
    lease: &Lease,
    reads: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let (read, ended) = join!(biased; reads, committed(lease.pg()));
    let read = read?;
    ended.map_err(store_error)?;
    Ok(read)
}

/// Gives a connection back after a read. What failed may have left a transaction open.
pub(super) async fn give_back<T>(lease: Lease, read: Result<T, StoreError>) -> Result<T, StoreError> {
    if read.is_ok() {
        lease.done();
    } else {
        lease.roll_back().await;
    }
    read
}

async fn begun(mut pg: &AsyncPgConnection) -> QueryResult<()> {
    pg.batch_execute(BEGIN).await
}

async fn committed(mut pg: &AsyncPgConnection) -> QueryResult<()> {
    Commit {}.execute(&mut pg).await.map(drop)
}
