//! The Driftline wire: canonical JSON, the envelope, messages, codes and cursors.
//!
//! Bytes come in, typed messages go out, and back. The crate keeps no state and opens nothing; arbitrary
//! bytes never make it panic. What it does not do: it does not decide which message may come when (that
//! is the session) nor what a change does to a record (that is conflict resolution).
//!
//! ```
//! use driftline_model::Limits;
//! use driftline_protocol::{Encoding, Inbound, decode};
//!
//! let frame = br#"{"type":"ping","timestamp":123}"#;
//! let message = decode(Encoding::Json, frame, &Limits::default())?;
//! assert!(matches!(message.body, Inbound::Ping { .. }));
//! # Ok::<(), driftline_protocol::Fault>(())
//! ```

mod canonical;
mod checksums;
mod client;
mod code;
mod conflict;
mod cursor;
mod devices;
mod element;
mod envelope;
mod events;
mod form;
mod http;
mod inbound;
mod intents;
mod item;
mod json;
mod msgpack;
mod outbound;
mod policy;
mod realtime_http;
mod rows;
#[cfg(feature = "schema")]
mod sample_schema;
#[cfg(feature = "schema")]
mod schema;
mod status;
mod telemetry;
mod telemetry_client;
mod throttle;
mod time;
mod uploads;
mod views;
mod write;

pub use canonical::{ValueError, ValueErrorKind, canonical_object, canonical_value, object_of_text};
pub use checksums::{Checksum, ChecksumPart, Checksums, Progress, Range, RequestChecksums, row_sum};
pub use client::{ClientMessage, Rows, ServerMessage};
pub use code::{CloseCode, ErrorCode, ItemClass, ItemCode, Retry};
pub use conflict::{AuditDoc, ConflictDoc, ConflictResolved, Resolution, ResolveConflict, ResolvePost};
pub use cursor::{Cursor, CursorError, CursorKey, Missing, Phase, Resume};
pub use devices::{DevicePatch, DevicePost, HashChange, SampleDoc, SeriesDoc, is_device_hash};
pub use envelope::{Envelope, Fault, FieldError, UploadPlace, is_key};
pub use events::{
    AckEvents, DeliveryDoc, EventFilter, EventPlace, EventPublished, EventView, EventsSubscribed, NoticeDoc,
    Publish, PublishAck, ReplayComplete, ReplayRequest, ServerHeartbeat, TopicAnswer, Topics, event_id,
    event_kind,
};
pub use form::{Deflater, Encoding, Form, InflateError, Inflater};
pub use http::{SyncAnswer, SyncPost};
pub use inbound::{
    Auth, Heartbeat, Inbound, IngestPost, Message, MessageKey, RequestServerData, StartSync, SyncData,
    SyncRequest, decode, unknown_type,
};
pub use item::{BadItem, Item, ItemOp};
pub use json::{Document, JsonError, Node};
pub use msgpack::{MsgpackError, json_of_msgpack, msgpack_of_json};
pub use outbound::{
    Ack, AckStatus, ConnectionEstablished, Details, ErrorMessage, Features, Head, HeartbeatAck, ItemResult,
    Outbound, Pong, Problem, RecordView, ResyncReason, ResyncRequired, ServerDraining, SessionInfo,
    SyncSessionEnded, SyncSessionStarted, Totals, WinnerName,
};
pub use policy::{FieldPolicyDoc, PolicyDoc};
pub use realtime_http::{
    DrainPost, DrainedDoc, MONITORING_TOPIC, MonitoringDoc, PresenceDoc, PresentUser, SessionDoc, Shortcut,
    StatsDoc, StreamEstablished, TicketDoc, has_topics, stop_monitoring,
};
pub use rows::{Change, ChangeKind, ServerData, ServerDelta, encode_changes};
#[cfg(feature = "schema")]
pub use sample_schema::SampleSchema;
#[cfg(feature = "schema")]
pub use schema::{KindSchema, SchemaError, Whole};
pub use status::{AnalyticsBatch, DeviceDoc, DeviceStatus, Histogram};
pub use telemetry::{BareAck, Rejected, Sample, Telemetry, TelemetryAck};
pub use telemetry_client::{
    Introduction, TelemetryGreeting, TelemetryMessage, TelemetryPayload, TelemetryReply, encode_ping,
    is_sample_kind, telemetry_item, telemetry_problem,
};
pub use throttle::{Throttle, ThrottleScope};
pub use time::{format_millis, parse_time};
pub use uploads::{ChunkDoc, FileDoc, RecordRefDoc, UploadDoc, UploadPost, UploadStatusDoc, decode_finalize};
pub use views::{
    ExplainDoc, ExplainField, ExplainLoss, ListDoc, PolicyView, RecordDoc, encode_changes_answer,
    encode_flat_answer, encode_sync_answer, plain_name, raw_json, raw_object, to_json,
};
pub use write::{write_json_string, write_number};
