//! The port to the log of events, and what is asked of it.

use std::sync::Arc;

use driftline_model::{DeviceId, DeviceNo, Epoch, TenantId, TenantNo};
use futures_util::future::BoxFuture;

use crate::events::{Event, EventDraft};
use crate::ports::StoreError;

/// The port to a tenant's log of events. Events get into it as a part of a [`crate::Submission`], or from the outbox.
///
/// Dropping a returned future gives up the answer, never half of the work.
pub trait EventLog: Send + Sync {
    /// Reads a page of a tenant's log, with the log's end of the same moment.
    fn events(&self, tenant: TenantNo, query: EventQuery) -> Answer<'_, EventPage>;

    /// Reads one event of a tenant's log.
    fn event(&self, tenant: TenantNo, name: EventName) -> Answer<'_, Option<Arc<Event>>>;

    /// Removes what is past its retention from the log, each topic by its own; gives the number of events that went.
    /// A topic remembers the highest number that it lost. States that events told of go 90 days after the last one.
    fn trim_events(&self, now_ms: u64, rules: Arc<dyn TopicRules>) -> Answer<'_, u64>;

    /// Publishes what other programs wrote into the outbox, at most `batch` rows in the order of their numbers, each
    /// exactly once whichever node does it, and marks it as processed in the same transaction. Rows that no event can be
    /// made of are marked with what is wrong.
    fn drain_outbox(&self, batch: usize, router: Arc<dyn OutboxRouter>) -> Answer<'_, Drained>;

    /// Removes rows of the outbox that were processed before a time in Unix milliseconds; gives their number.
    fn clean_outbox(&self, before_ms: u64) -> Answer<'_, u64>;

    /// Waits until rows may have come into the outbox. It ends at once after the opening, and may end without a row.
    /// Dropping the future loses nothing.
    fn outbox_waits(&self) -> BoxFuture<'_, ()>;

    /// Reads how far a device has followed the log; it is written by [`crate::Store::note_devices`].
    fn device_events(&self, tenant: TenantNo, device: DeviceNo) -> Answer<'_, Option<DeviceEvents>>;

    /// Takes down that a user has read a notification, unless that is known; tells whether it was news.
    fn read_notice(&self, tenant: TenantNo, user: Box<str>, id: Box<str>, now_ms: u64) -> Answer<'_, bool>;

    /// Tells of each notification whether the user has read it.
    fn notices_read(&self, tenant: TenantNo, user: Box<str>, ids: Vec<Box<str>>) -> Answer<'_, Vec<bool>>;
}

/// The answer of a log.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Which events of a tenant's log are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventQuery {
    /// Only events on one of these topics.
    pub topics: Vec<Box<str>>,
    /// Only events after this one; newest first: before it, and zero stands for the end of the log.
    pub after: u64,
    /// Only events up to this one; none: up to the head.
    pub until: Option<u64>,
    /// Only events of this type.
    pub kind: Option<Box<str>>,
    /// Whether the newest come first.
    pub newest_first: bool,
    /// The most events.
    pub rows: usize,
    /// The most bytes of their data; a page holds at least one event.
    pub bytes: usize,
}

/// A page of the log, read at one moment.
#[derive(Debug)]
pub struct EventPage {
    /// The life of the log at that moment.
    pub epoch: Epoch,
    /// The number of its last event.
    pub head: u64,
    /// The highest number that was trimmed in one of the wanted topics; zero: none.
    pub floor: u64,
    /// The events.
    pub events: Vec<Arc<Event>>,
    /// Whether more events wait, of those that were wanted.
    pub more: bool,
}

/// What names a stored event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventName {
    /// Its number.
    Id(u64),
    /// The key by which duplicates of it are known.
    Dedupe(Box<str>),
}

/// For how long the log keeps the events of a topic, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TopicRetention {
    /// Events go so many milliseconds after they were kept; none: they stay.
    pub age_ms: Option<u64>,
    /// So many of the newest stay; none: all.
    pub keep: Option<u64>,
}

/// Says for how long the log keeps what.
pub trait TopicRules: Send + Sync + 'static {
    /// Returns the retention of a topic.
    fn retention(&self, topic: &str) -> TopicRetention;
}

/// What another program wrote into the outbox.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OutboxRow {
    /// The row's number.
    pub id: i64,
    /// The tenant.
    pub tenant: String,
    /// The event's type.
    pub kind: Option<String>,
    /// The topic.
    pub topic: Option<String>,
    /// The user who is to get it.
    pub user: Option<String>,
    /// The role whose members are to get it.
    pub role: Option<String>,
    /// The columns of claims that are not null, by name: canonical JSON values.
    pub claims: Vec<(Box<str>, Box<str>)>,
    /// The event's own fields, as they were written.
    pub payload: Option<String>,
    /// Of events with equal keys the log keeps the first.
    pub dedupe_key: Option<String>,
    /// When it was written, in Unix milliseconds, if the row tells.
    pub created_ms: Option<u64>,
}

/// Makes events of what other programs wrote.
pub trait OutboxRouter: Send + Sync + 'static {
    /// Returns the tenant and the event of a row, or what is wrong with the row. `now_ms` stands for a missing time.
    ///
    /// # Errors
    /// The text is kept with the row; no other row waits for it.
    fn route(&self, row: &OutboxRow, now_ms: u64) -> Result<(TenantId, EventDraft), String>;

    /// Names the device on whose topics the event goes, if it goes on no others: the store looks up whose it is.
    fn device_of(&self, draft: &EventDraft) -> Option<DeviceId> {
        let _ = draft;
        None
    }
}

/// What came of a look into the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drained {
    /// Rows that were marked as processed.
    pub processed: u64,
    /// Of them, rows of which no event could be made.
    pub failed: u64,
}

/// What is known of how far a device has followed the log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceEvents {
    /// The life of the log that the numbers are of.
    pub epoch: Option<Epoch>,
    /// The device has acknowledged everything up to this event.
    pub acked: u64,
    /// Since which event it listens; none: it never listened.
    pub since: Option<u64>,
    /// The topics that it listened to last.
    pub topics: Vec<Box<str>>,
    /// The topics that it asked for last and may not have.
    pub refused: Vec<Box<str>>,
    /// The last event that it took before it was cut for reading too slowly; none: it was not, or came again.
    pub slow: Option<u64>,
}
