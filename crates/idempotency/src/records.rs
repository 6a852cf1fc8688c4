//! The port to where records are kept.

use std::error::Error;
use std::future::Future;
use std::sync::Arc;

use thiserror::Error;

use crate::{Answer, EffectId, Fingerprint, Key, Scope};

/// Where records are kept for effects that cannot share a transaction with them.
///
/// A request is claimed with a lease, carried out, and completed with its answer or released. Every grant of a key has a
/// fencing number above all earlier ones of that key, also after a release, an expiry or a removal; who was overtaken can
/// neither complete nor release. An expired record is none, whether or not it was removed.
///
/// An effect in a database is better served by a [`Record`](crate::Record) that is written in its transaction: then there
/// is nothing to lease.
pub trait Records: Send + Sync + 'static {
    /// Asks for the right to carry out a request.
    ///
    /// A dropped future may have claimed: the lease then ends by itself.
    ///
    /// # Errors
    /// [`RecordsError`] when nothing is known; the request is not to be carried out then.
    fn claim(&self, claim: Claim) -> impl Future<Output = Result<Claimed, RecordsError>> + Send;

    /// Keeps the answer of a request that was carried out.
    ///
    /// A dropped future may have completed.
    ///
    /// # Errors
    /// [`CompleteError::Fenced`] when the claim is no longer held: somebody took over, or completed it before.
    fn complete(
        &self,
        held: &Held,
        answer: Answer,
        now_ms: u64,
    ) -> impl Future<Output = Result<(), CompleteError>> + Send;

    /// Gives a key back whose effect did not happen: it is free for any request. A claim that is no longer held stays as
    /// it is.
    ///
    /// A dropped future may have released.
    ///
    /// # Errors
    /// [`RecordsError`] when the records cannot be reached; the lease then ends by itself.
    fn release(&self, held: &Held) -> impl Future<Output = Result<(), RecordsError>> + Send;

    /// Removes at most `limit` expired records and returns how many it removed.
    ///
    /// A dropped future may have removed some.
    ///
    /// # Errors
    /// [`RecordsError`] when the records cannot be reached.
    fn prune(&self, now_ms: u64, limit: usize) -> impl Future<Output = Result<usize, RecordsError>> + Send;
}

/// A wish to carry out a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Whose key it is.
    pub scope: Scope,
    /// The key.
    pub key: Key,
    /// What the request is.
    pub fingerprint: Fingerprint,
    /// The time, in milliseconds.
    pub now_ms: u64,
    /// After which time somebody else may take over, in milliseconds. Above the longest time that the effect takes.
    pub lease_ms: u64,
    /// How long the answer is remembered from the claim on, in milliseconds: at least as long as the lease, and at most
    /// [`WINDOW_MS_MAX`](crate::WINDOW_MS_MAX).
    pub window_ms: u64,
}

/// What became of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// The request is to be carried out.
    Granted {
        /// The fencing number.
        attempt: u64,
        /// The name of the effect outside, the same for every attempt.
        effect_id: EffectId,
    },
    /// It was carried out before.
    Replay {
        /// What was answered.
        answer: Answer,
        /// Until when this is remembered, in milliseconds.
        expires_ms: u64,
    },
    /// Somebody else is at it.
    InProgress {
        /// When the other one's lease ends, in milliseconds from the claim.
        retry_after_ms: u64,
    },
    /// The key belongs to another request.
    Mismatch,
}

/// A claim that was granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Whose key it is.
    pub scope: Scope,
    /// The key.
    pub key: Key,
    /// The fencing number.
    pub attempt: u64,
}

/// The records say nothing.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RecordsError {
    /// There is no room for another key until one expires.
    #[error("there is no room for another idempotency record")]
    Full,
    /// The store behind the records failed or did not answer.
    #[error("the idempotency records cannot be reached")]
    Unavailable(#[source] Box<dyn Error + Send + Sync>),
}

/// The answer was not kept.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CompleteError {
    /// The claim is no longer held.
    #[error("the claim is no longer held")]
    Fenced,
    /// The records cannot be written.
    #[error(transparent)]
    Records(#[from] RecordsError),
}

impl<R: Records> Records for Arc<R> {
    fn claim(&self, claim: Claim) -> impl Future<Output = Result<Claimed, RecordsError>> + Send {
        R::claim(self, claim)
    }

    fn complete(
        &self,
        held: &Held,
        answer: Answer,
        now_ms: u64,
    ) -> impl Future<Output = Result<(), CompleteError>> + Send {
        R::complete(self, held, answer, now_ms)
    }

    fn release(&self, held: &Held) -> impl Future<Output = Result<(), RecordsError>> + Send {
        R::release(self, held)
    }

    fn prune(&self, now_ms: u64, limit: usize) -> impl Future<Output = Result<usize, RecordsError>> + Send {
        R::prune(self, now_ms, limit)
    }
}
