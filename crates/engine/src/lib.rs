//! The sync engine: what a server of Driftline decides, put together over ports.
//!
//! - [`Store`] is the port to a database; [`plan`] is the pure function that a store runs inside its
//!   transaction: loaded rows in, decisions and writes out.
//! - [`Session`] is one connection as a state machine without IO: messages, completions, deltas and the
//!   time go in, answers and work come out.
//! - [`Engine`] does the work: it checks rights, resolves policies and cursors, and asks the store.
//! - [`Hub`] carries committed changes to the sessions of a tenant.
//!
//! The engine reads no clock, draws no random number and opens nothing; it does not know HTTP, frames or
//! SQL. It authenticates nobody: an [`Identity`] is what the transport has found out.
//!
//! ```
//! use std::sync::Arc;
//!
//! use driftline_engine::{Catalogue, Engine, Hub, NullObserver, Store};
//! use driftline_model::{DeviceId, Limits, TenantId, UserId};
//! use driftline_protocol::RequestServerData;
//! use driftline_storage::MemoryStore;
//! use driftline_testkit::{Author, FixedClock, SeededRandom, block_on, create};
//!
//! // The world: a clock, randomness, a store that reports its commits to the hub.
//! let hub = Arc::new(Hub::new(256));
//! let (clock, random) = (Arc::new(FixedClock::new(1_767_225_600_000)), Arc::new(SeededRandom::new(1)));
//! let store = MemoryStore::new(clock, random, hub.clone(), Limits::default());
//! let kinds = Catalogue::default().allow_undeclared();
//! let engine = Engine::new(store, hub, kinds, Limits::default(), NullObserver);
//!
//! // Bob writes, Ada hears of it and pulls.
//! let bob = Author::join(engine.store(), "acme", "bob", "phone");
//! let (tenant, user) = (TenantId::new("acme")?, UserId::text("ada")?);
//! let ada = block_on(engine.identify(tenant, user, Some(DeviceId::new("phone")?), Vec::new(), &[]))?;
//! let mut commits = engine.subscribe(&ada);
//! block_on(engine.store().commit(bob.batch([create("n1", r#"{"title":"hello"}"#)])))?;
//! assert_eq!(commits.try_next().expect("a commit").seq.number(), 1);
//! let page = block_on(engine.pull(&ada, RequestServerData::default()))?;
//! assert!(page.changes.contains(r#""fields":{"title":"hello"}"#));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod audit;
mod catalogue;
mod events;
mod explain;
mod fanout;
mod group;
mod hub;
mod ingest;
mod log;
mod plan;
mod policies;
mod ports;
mod presence;
mod pull;
mod push;
mod rate;
mod registry;
mod review;
mod rules;
mod samples;
mod service;
mod session;
mod streams;
mod uploads;
mod work;

pub use audit::audit_detail;
pub use catalogue::{
    Announce, Catalogue, KindRule, REVIEW_ROLES, Reviewable, SERVICE_ROLES, STAFF_ROLES, ScopeRule,
    TelemetryRule, canonical_name,
};
pub use driftline_realtime::Log;
pub use events::{Announcing, Event, EventDraft, FORMS, Published};
pub use explain::{Explanation, FieldExplanation, LostValue};
pub use fanout::{Ear, Heard, Listener, Ring, Subscribed, devices_of};
pub use group::{
    Aggregate, Answered, Append, Apply, Entry, Known, KnownMore, Once, OnceKey, Placement, Receipt,
    Remembered, Resolve, Resolved, RowKey, Submission, SubmissionResult, Task,
};
pub use hub::{Committed, CommittedChange, CommittedConflict, Hub, Moved, Subscription};
pub use log::{
    Answer, DeviceEvents, Drained, EventLog, EventName, EventPage, EventQuery, OutboxRouter, OutboxRow,
    TopicRetention, TopicRules,
};
pub use plan::{
    AuditWrite, BatchWrite, DeviceWrite, EventWrite, ExitWrite, GroupState, OnceWrite, PlanEnv, Planned,
    ResultWrite, SampleMark, SampleWrite, SeriesKey, SumWrite, Writes, plan,
};
pub use policies::{Policies, PolicyError, PolicyView, policy_of_doc};
pub use ports::{
    AuditEntry, AuditRow, Clock, DeviceState, Head, History, Identity, Left, Listeners, NullObserver,
    Observer, Only, Page, PageQuery, PartSum, Place, Random, Row, ScopeSum, SessionProgress, Silent, Store,
    StoreError, StoredPolicy, SumQuery,
};
pub use presence::{Door, Presence, Turn};
pub use pull::PullFault;
pub use rate::{Bucket, Buckets, Connected, Level, UserMeter};
pub use registry::{
    DeviceAction, DeviceChange, DeviceChanged, DeviceNote, DeviceOnce, DeviceQuery, DeviceRow, DeviceSign,
    WriteAnswer,
};
pub use review::{
    AuditQuery, ConflictPlace, ConflictQuery, ConflictRow, ConflictStatus, conflict_doc, conflicts_kind,
};
pub use rules::{ANONYMOUS_ROLE, EventRules, PUBLISHER_ROLES, RETENTION_MS_DEFAULT};
pub use samples::{Retention, SamplePlace, SampleQuery, SampleRow, SeriesQuery, SeriesRow};
pub use service::{
    Authority, ChunkKept, ChunkUpload, DEVICE_ROLE, Engine, Finalized, Ingest, Missed, MissedPage, Monitored,
    NewUpload, NoticePage, OpenedUpload, Outcome, PreparedIngest, RecordPage, SampleWish, Sealer,
    StreamUpload, Streaming, Swept, UploadRight, UploadStatus, Windows, hash_digest,
};
pub use session::{Close, Greeting, Output, Preset, Session};
pub use uploads::{
    BlobAnswer, BlobError, Blobs, ChunkReceipt, ChunkThere, Joining, Kept, LeaseKey, LeaseSlot, Leased,
    PartPlace, PartSink, PartWritten, Purpose, Renewed, StreamReceipt, TenantUploads, UploadCaps, UploadOnce,
    UploadOpened, UploadRow, UploadRows, UploadRules, UploadTurn, UploadUsage, Verdict, Verify,
};
pub use work::{Done, Prepared, PreparedPush, Pulled, Started, SyncAnswer, SyncFault, Work};
