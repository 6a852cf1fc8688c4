//! One log of events, many topics, and subscribers that come back: who gets what, and where each goes on.
//!
//! Events of a tenant stand in one log, numbered without a gap. A fan-out hands them on as they happen and remembers
//! nothing; whoever missed something reads the log. The parts, each usable alone:
//!
//! - [`TopicName`] and [`Pattern`] name topics; [`Topics`] is the catalogue of them, with the [`Access`] to each.
//! - A [`Position`] is a place in a log; [`recover`] says whether a subscriber that comes back with one can get
//!   everything that it missed.
//! - [`Follow`] merges what the fan-out hands on with what is read from the log, in constant memory.
//! - [`Filter`] lets events pass by type and by fields of their data.
//! - [`Queue`] holds what waits for one connection, bounded in bytes.
//!
//! What the crate does not do: it stores no event and sends none, reads no clock, starts no task and knows no wire
//! format. It does not say who somebody is: a [`Subject`] is what authentication found out.
//!
//! ```
//! use driftline_realtime::{Asked, Follow, Log, Offer, Position, Recovery, recover};
//!
//! // A subscriber comes back with the position after which it went on, as text.
//! let position: Position = "00c0ffee-40".parse()?;
//! let log = Log { epoch: position.epoch, head: 42, floor: 7 };
//! let Recovery::Complete { from } = recover(&Asked::from(position), &log) else { panic!("all is there") };
//!
//! // It reads the log while live events go by, and goes live once none went by that it did not read.
//! let mut follow = Follow::live(log.head);
//! follow.read_from(from);
//! assert_eq!(follow.offer(43), Offer::Missed);
//! assert!(!follow.read(42), "event 43 went by");
//! assert!(follow.read(43));
//! assert_eq!(follow.offer(44), Offer::Deliver);
//! # Ok::<(), driftline_realtime::PositionError>(())
//! ```

mod access;
mod filter;
mod follow;
mod joined;
mod name;
mod pattern;
mod position;
mod queue;
mod topics;

pub use access::{Access, Subject};
pub use filter::{FILTER_FIELDS_MAX, FILTER_TYPES_MAX, FILTER_VALUES_MAX, Filter, FilterError};
pub use follow::{Follow, Offer};
pub use joined::JOINED_PER_RULE_MAX;
pub use name::{NameError, TOPIC_BYTES_MAX, TopicName};
pub use pattern::{FillError, PLACEHOLDERS_MAX, Pattern, PatternError};
pub use position::{Asked, Incomplete, Log, Position, PositionError, Recovery, recover, recover_page};
pub use queue::{Pushed, Queue};
pub use topics::{RULES_MAX, TopicRule, Topics, TopicsError, Verdict};

/// Compiles and runs the example of the readme.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
