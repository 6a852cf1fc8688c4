//! Makes requests safe to send again: the effect happens once, and the second answer equals the first.

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
