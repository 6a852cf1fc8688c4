//! A device of Driftline: local records, a queue of edits, and sync over WebSocket or HTTP.
//!
//! [`Replica`] is the whole device as a state machine: edits show at once, wait in a queue until the server has
//! decided them, and are laid over what the server says. It has no clock, no socket and no randomness, so that an app,
//! a simulation or another language's shell can drive it. [`Client`] is the small shell for tokio: one connection,
//! its timers, and nothing behind the app's back. The replica speaks JSON; the shell packs it as MessagePack and
//! compressed, as the server and the [`Endpoint`] agree.
//!
//! [`Telemetry`] is a buffer of samples, as much a state machine, and [`Courier`] the shell that carries it: over the
//! WebSocket, around a broken one over HTTP, and back.
//!
//! What the crate does not do: a [`Client`] does not reconnect by itself, and nothing is written to disk; records and
//! queue live in memory. It speaks plain TCP, unless a [`Connector`] of the app's brings TLS along.
//!
//! A replica works without a network:
//!
//! ```
//! use driftline_client::{Edit, KindName, OpId, RecordId, Replica, fields};
//!
//! let (kind, id) = (KindName::new("ticket")?, RecordId::new("t-17")?);
//! let mut replica = Replica::default();
//! let create = Edit::create(kind.clone(), id.clone(), fields(r#"{"state":"open","room":4}"#)?);
//! replica.edit(create, OpId::new("0192f3a1-b2c3-7000-8000-000000000001")?, 1_763_692_496_000)?;
//! let patch = Edit::patch(kind, id, fields(r#"{"state":"closed"}"#)?);
//! replica.edit(patch, OpId::new("0192f3a1-b2c3-7000-8000-000000000002")?, 1_763_692_497_000)?;
//!
//! let seen = replica.view("ticket", "t-17").expect("an edit shows at once");
//! assert_eq!(seen.fields.as_str(), r#"{"room":4,"state":"closed"}"#);
//! assert_eq!((replica.queue_len(), replica.is_settled()), (2, false));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! And with one:
//!
//! ```no_run
//! use std::time::Duration;
//! use driftline_client::{Client, DeviceId, Edit, Endpoint, KindName, RecordId, Replica, fields};
//!
//! # async fn run(token: &str) -> Result<(), Box<dyn std::error::Error>> {
//! let endpoint = Endpoint::new("http://127.0.0.1:8000", token, DeviceId::new("phone-a")?)?;
//! let mut client = Client::connect(&endpoint, Replica::default()).await?;
//! client.edit(Edit::patch(KindName::new("ticket")?, RecordId::new("t-17")?, fields(r#"{"state":"closed"}"#)?))?;
//! client.sync(Duration::from_secs(10)).await?;
//! for (kind, id, view) in client.replica().views() {
//!     println!("{kind}/{id} at {}: {:?}", view.version, view.fields);
//! }
//! let replica = client.close().await; // offline again, with everything it holds
//! # drop(replica);
//! # Ok(())
//! # }
//! ```

mod ack;
mod client;
mod courier;
mod edit;
mod endpoint;
mod event;
mod heal;
mod http;
mod intents;
mod journal;
mod pages;
mod policies;
mod pull;
mod queue;
mod record;
mod records;
mod repair;
mod replica;
mod reviews;
mod seen;
mod session;
mod socket;
mod sums;
mod system;
mod telemetry;
mod wire;
mod world;

pub use client::{Client, ClientError, ConnectError};
pub use courier::{
    Courier, CourierError, CourierMode, CourierOptions, CourierState, CourierStatus, Keeper, Switches,
};
pub use driftline_model::{
    ConflictId, DeviceId, Epoch, Hlc, Intents, KindName, Object, OpId, RecordId, ScopeName, Seq, SyncId,
};
pub use driftline_protocol::{
    ConflictDoc, ConflictResolved, Encoding, ErrorMessage, Fault, FieldError, Form, InflateError, Item,
    ItemClass, ItemCode, ItemOp, MsgpackError, Progress, Resolution, ResyncReason, TelemetryGreeting, Totals,
    WinnerName,
};
pub use edit::{Edit, EditError, Elements, FieldsError, elements, fields};
pub use endpoint::{Endpoint, EndpointError, Route};
pub use event::{Acknowledged, DeadLetter, Event};
pub use record::{Body, View};
pub use replica::Replica;
pub use system::{SystemClock, SystemRandom, TcpConnector};
pub use telemetry::{
    Backoff, CountError, Heard, RecordError, RefusedSample, SavedError, Telemetry, TelemetryLimits,
    TelemetryTotals, Window,
};
pub use wire::Unreadable;
pub use world::{Clock, Connector, Random, World};

/// Compiles the examples of the readme.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
