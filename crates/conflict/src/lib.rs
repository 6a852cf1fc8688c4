//! Merges offline edits: finds the conflicts, decides them by policy and accounts for every losing value.
//!
//! [`apply`] is a pure function of the stored record, one change, the policy and the time of receipt. It
//! reads no clock, opens nothing and knows no wire format; the same inputs give the same bytes for ever.
//!
//! What it does not do: it does not remember which changes it has seen (that is idempotency), does not
//! store, and does not judge rights or schemas.
//!
//! ```
//! use driftline_conflict::{apply, Change, Context, DeviceTable, Op, Outcome, Policy, Rights};
//! use driftline_model::{DeviceNo, Hlc, Object, Seq};
//!
//! let object = |text: &str| Object::from_canonical(text.to_owned()).expect("canonical");
//! let devices = DeviceTable::new(["ada\u{1}phone", "bob\u{1}phone"]);
//! let policy = Policy::field_merge();
//! let change = |device, n, op, base, fields| Change {
//!     op, base: Seq::new(base), fields: object(fields), intents: None, hlc: Some(Hlc::new(1_000 + n, 0)),
//!     device: DeviceNo::new(device), n,
//! };
//! let at = |seq| Context { next: Seq::new(seq), received: Hlc::new(2_000, 0), latest: Hlc::new(62_000, 0), devices: &devices, rights: Rights::default() };
//!
//! let created = apply(None, &change(0, 1, Op::Create, 0, r#"{"room":"4","state":"open"}"#), &policy, &at(1));
//! let record = created.record.expect("a create makes a record");
//!
//! // Both phones saw version 1; each edits another field offline.
//! let first = apply(Some(&record), &change(0, 2, Op::Patch, 1, r#"{"state":"closed"}"#), &policy, &at(2));
//! let second = apply(first.record.as_ref(), &change(1, 1, Op::Patch, 1, r#"{"room":"5"}"#), &policy, &at(3));
//! assert_eq!(second.outcome, Outcome::Merged);
//! assert_eq!(second.record.expect("changed").fields.as_str(), r#"{"room":"5","state":"closed"}"#);
//! ```

mod apply;
mod change;
mod custom;
mod decision;
mod policy;
mod record;

pub use apply::apply;
pub use change::{Change, Context, DeviceOrder, DeviceTable, Op, Rights};
pub use custom::{Arriving, Clash, Contested, CustomStrategy, Promises, Side, Verdict};
pub use decision::{
    Audit, ChangeError, Decision, Existence, FieldDecision, Outcome, Part, Review, ReviewReason, Rule, Stamp,
    Winner,
};
pub use driftline_model::{DeviceNo, Hlc, Intents, NotCanonical, Object, Seq};
pub use policy::{Custom, DeletedRecord, FieldRule, Granularity, OnDelete, Order, Policy, Strategy};
pub use record::{Assertion, FieldState, Life, Mark, Parts, Record};

/// Compiles the examples of the readme.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
