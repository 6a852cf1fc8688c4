//! The offline verifier: which accepted values disappeared without a trace?
//!
//! *No value of an accepted write disappears without being visible, overwritten by a write that had seen it, or in an
//! audit row.* [`verify`] holds a [`History`] to that rule: the accepted items in the order of their commits, the audit
//! rows, the conflicts that were set aside, and the records as they stand in the end.
//!
//! It decides nothing again. It shares no code with the resolver, knows no strategy and no clock, and takes from the
//! audit only what stands there; so it cannot inherit the resolver's mistakes. What it does not do: it does not say
//! whether the right value won.
//!
//! ```
//! use driftline_bench::verify::{History, verify};
//!
//! let history = History::parse(r#"{
//!     "items": [
//!         {"record": "t-1", "device": "ada", "n": 1, "op": "create", "fields": {"a": 1}, "code": "applied", "version": 1},
//!         {"record": "t-1", "device": "bob", "n": 1, "op": "patch", "fields": {"a": 2}, "code": "merged", "version": 2}
//!     ],
//!     "records": [{"record": "t-1", "fields": {"a": 2}}]
//! }"#)?;
//! let report = verify(&history);
//! assert_eq!(report.silent_losses[0].value, "1", "bob had not seen it, and no audit row names it");
//! # Ok::<(), serde_json::Error>(())
//! ```

mod account;
mod excuse;
mod existence;
mod history;
mod ledger;
mod review;

pub use history::{Audit, Conflict, History, Item, Op, Record, Resolution};
pub use ledger::{Loss, Report, verify};
