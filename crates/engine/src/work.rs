//! Work that a session asks for, and what comes of it.

use std::sync::Arc;

use driftline_model::{Seq, SyncId};
use driftline_protocol::{
    Ack, AnalyticsBatch, BareAck, Checksums, ConflictResolved, DeviceStatus, EventPlace, EventsSubscribed,
    Fault, Publish, PublishAck, RequestChecksums, RequestServerData, ResolveConflict, ResyncRequired,
    ServerData, SessionInfo, StartSync, SyncData, TelemetryAck, Topics,
};
use thiserror::Error;

use crate::events::EventDraft;
use crate::fanout::Listener;
use crate::group::Once;
use crate::pull::PullFault;
use crate::service::{Ingest, Missed, MissedPage, PreparedIngest};

/// Something a session needs done. It is started at once; answers come in the order of the asking.
#[derive(Debug)]
#[non_exhaustive]
pub enum Work {
    /// Open a sync session.
    Start {
        /// The session's name.
        sync_id: SyncId,
        /// What the device said.
        request: StartSync,
    },
    /// Apply a batch.
    Push {
        /// The session's name.
        sync_id: SyncId,
        /// The batch.
        data: SyncData,
        /// The epoch of the items' bases.
        epoch: Option<driftline_model::Epoch>,
        /// What the message is remembered by.
        once: Vec<Once>,
        /// A random number, for names of samples that nobody else gave.
        seed: u128,
    },
    /// Append samples.
    Ingest {
        /// The samples.
        ingest: Box<Ingest>,
    },
    /// Add what the device counted to hourly series.
    Aggregate {
        /// What it counted.
        batch: Box<AnalyticsBatch>,
        /// What the message is remembered by; none: its window.
        once: Option<Once>,
    },
    /// Take what the device says of itself.
    Report {
        /// What it says.
        status: Box<DeviceStatus>,
    },
    /// Listen to topics.
    Subscribe {
        /// What listens.
        listener: Arc<Listener>,
        /// What is wanted.
        wanted: Topics,
    },
    /// Read a page of the log.
    Missed {
        /// What listens.
        listener: Arc<Listener>,
        /// What is wanted.
        missed: Missed,
    },
    /// Take down which events the device has.
    Acknowledge {
        /// The last of them.
        last: EventPlace,
    },
    /// Publish an event.
    Publish {
        /// The event.
        publish: Box<Publish>,
        /// What the message is remembered by.
        once: Option<Once>,
        /// A random number, for a notification without an id.
        seed: u128,
    },
    /// Read a page.
    Pull {
        /// What is wanted.
        request: RequestServerData,
    },
    /// Sum the parts of a range.
    Checksums {
        /// The range.
        request: RequestChecksums,
    },
    /// Decide a conflict.
    Resolve {
        /// The decision.
        request: Box<ResolveConflict>,
        /// What the message is remembered by.
        once: Option<Once>,
    },
}

/// A [`Work`] on its way, as [`crate::Engine::prepare`] left it.
#[derive(Debug)]
pub enum Prepared {
    /// A batch that is ready for the store.
    Push(Box<PreparedPush>),
    /// A session to be opened.
    Start {
        /// The session's name.
        sync_id: SyncId,
        /// What the device said.
        request: StartSync,
    },
    /// A page to be read.
    Pull {
        /// What is wanted.
        request: RequestServerData,
    },
    /// A range to be summed.
    Checksums {
        /// The range.
        request: RequestChecksums,
    },
    /// A conflict to be decided.
    Resolve {
        /// The decision.
        request: Box<ResolveConflict>,
        /// What the message is remembered by.
        once: Option<Once>,
        /// Finds the request in the log.
        correlation: String,
    },
    /// Samples that are ready for the store.
    Ingest(Box<PreparedIngest>),
    /// What a device counted, to be added to hourly series.
    Aggregate {
        /// What it counted.
        batch: Box<AnalyticsBatch>,
        /// What the message is remembered by.
        once: Option<Once>,
        /// Finds the request in the log.
        correlation: String,
    },
    /// A page of the log to be read.
    Missed {
        /// What listens.
        listener: Arc<Listener>,
        /// What is wanted.
        missed: Missed,
    },
    /// An event to be published.
    Publish {
        /// The event.
        draft: Box<EventDraft>,
        /// What the message is remembered by.
        once: Option<Once>,
        /// Finds the request in the log.
        correlation: String,
    },
    /// Work that was done, or failed, while it was prepared.
    Failed(Done),
}

/// A batch that is ready for the store, with what its answer repeats.
#[derive(Debug)]
pub struct PreparedPush {
    pub(crate) submission: crate::group::Submission,
    pub(crate) echoes: Vec<crate::push::Echo>,
    pub(crate) batch_seq: Option<u64>,
    /// Whether a resend would be recognised.
    pub(crate) recognised: bool,
}

/// What came of a [`Work`].
#[derive(Debug)]
#[non_exhaustive]
pub enum Done {
    /// A sync session is open, or not.
    Started(Result<Box<Started>, Fault>),
    /// A batch is applied, or not.
    Pushed(Result<Ack, Fault>),
    /// A page is read, or not.
    Pulled(Result<Pulled, PullFault>),
    /// A range is summed, or not.
    Summed(Result<Checksums, Fault>),
    /// A conflict is decided, or not.
    Resolved(Result<Box<ConflictResolved>, Fault>),
    /// Samples are appended, or not.
    Ingested(Result<TelemetryAck, Fault>),
    /// Topics are listened to, or not.
    Subscribed(Result<EventsSubscribed, Fault>),
    /// A page of the log is read, or not.
    Missed(Result<Box<MissedPage>, Fault>),
    /// It is taken down which events the device has, or not.
    Acknowledged(Result<(), Fault>),
    /// An event is published, or not.
    Published(Result<PublishAck, Fault>),
    /// Something was taken of which there is nothing else to tell, or not.
    Noted(Result<BareAck, Fault>),
}

/// A page that was read.
#[derive(Debug)]
pub struct Pulled {
    /// The page.
    pub data: ServerData,
    /// How many rows it holds.
    pub rows: u64,
}

/// An open sync session.
#[derive(Debug)]
pub struct Started {
    /// What the device is told.
    pub info: SessionInfo,
    /// The head at that moment.
    pub seq: Seq,
    /// The epoch at that moment.
    pub epoch: driftline_model::Epoch,
    /// Whether the device's cursor, if it gave one, tells of all kinds of the session.
    pub covered: bool,
    /// What the device must do first, if its cursor or bases are of no use.
    pub resync: Option<ResyncRequired>,
    /// The kinds that the session may read, of those it asked for; empty: all. Nothing: none.
    pub kinds: Option<Vec<driftline_model::KindName>>,
    /// Makes the cursors of the session's deltas.
    pub sealer: crate::service::Sealer,
}

/// The answer to an HTTP sync.
#[derive(Debug)]
pub struct SyncAnswer {
    /// How the batch went.
    pub ack: Ack,
    /// A page.
    pub data: ServerData,
}

/// Why an HTTP sync did nothing.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SyncFault {
    /// The request is refused.
    #[error(transparent)]
    Refused(#[from] Fault),
    /// The cursor or the epoch is of no use.
    #[error(transparent)]
    Pull(#[from] PullFault),
}
