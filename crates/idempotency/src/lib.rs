//! Makes requests safe to send again: the effect happens once, and the second answer equals the first.
//!
//! A sender names a request by a [`Key`], which counts within its [`Scope`]; a [`Fingerprint`] says what the request is.
//! [`decide`] is a pure function of the stored [`Record`], the fingerprint and the time: carry the request out, answer it
//! from the record, let it wait or refuse it.
//!
//! There are two ways to keep records. Where the effect is in a database, the record is written in the same transaction,
//! and only [`decide`] is needed. Where it is elsewhere, [`Records`] grants a claim with a lease and a fencing number, and
//! an [`EffectId`] names the effect for every attempt; [`MemoryRecords`] is such a place in memory. The feature `cache`
//! puts a bounded cache in front of either, the feature `tower` is a layer for requests over HTTP.
//!
//! What it does not do: it does not say who somebody is or what they may do, which is to be asked again before a replay. It
//! reads no clock, starts no task and knows no database. It cannot take an effect back: what happens between an effect
//! outside and its completion is made to happen once by the other system, by the effect id.
//!
//! ```
//! use driftline_idempotency::{Decision, Fingerprint, Record, State, decide};
//!
//! let fingerprint = Fingerprint::builder("payment").text("10 EUR").finish();
//! assert_eq!(decide::<&str>(None, &fingerprint, 1_000), Decision::Execute);
//!
//! let record = Record { fingerprint, expires_ms: 2_000, state: State::Done("paid") };
//! assert_eq!(decide(Some(&record), &fingerprint, 1_999), Decision::Replay(&"paid"));
//! ```

mod answer;
#[cfg(feature = "cache")]
mod cache;
mod decision;
mod effect;
mod fingerprint;
mod key;
mod memory;
mod name;
mod records;
#[cfg(feature = "tower")]
pub mod tower;

pub use answer::{Answer, AnswerTooLarge, Body, Header};
#[cfg(feature = "cache")]
pub use cache::{Answers, Cached, Hit};
pub use decision::{
    ANSWER_BYTES_MAX, Decision, Record, State, WINDOW_MS_DEFAULT, WINDOW_MS_MAX, decide, is_stored,
};
pub use effect::EffectId;
pub use fingerprint::{Fingerprint, FingerprintBuilder, RequestParts};
pub use key::{Key, KeyError, Scope, ScopeError};
pub use memory::{MemoryLimits, MemoryRecords};
pub use records::{Claim, Claimed, CompleteError, Held, Records, RecordsError};

/// Compiles and runs the examples of the readme, which use the layer.
#[cfg(all(doctest, feature = "tower"))]
#[doc = include_str!("../README.md")]
struct Readme;
