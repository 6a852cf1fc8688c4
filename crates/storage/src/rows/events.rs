//! Events between SQL and the engine.

use std::sync::Arc;

use diesel::sql_types::{BigInt, Nullable, Text};
use driftline_engine::{Event, EventDraft, EventWrite, StoreError};
use driftline_model::{DeviceKey, Epoch};

use super::sql_ms;
use crate::codec::corrupt;
use crate::names::tenant_sql;

/// The columns of an event as a query gives them: its number, type, topics, owner, values, data and time.
pub(crate) type EventColumns = (BigInt, Text, Text, Nullable<Text>, Text, Text, BigInt);

/// An event as a query gives it.
pub(crate) type EventRow = (i64, String, String, Option<String>, String, String, i64);

/// A row of `events` to be written.
pub(crate) struct EventInsert<'a> {
    pub(crate) tenant_no: i32,
    pub(crate) event_id: i64,
    pub(crate) event_type: &'a str,
    pub(crate) topics: String,
    pub(crate) refs: i32,
    pub(crate) owner: Option<&'a str>,
    pub(crate) vals: &'a str,
    pub(crate) data: &'a str,
    pub(crate) dedupe_key: Option<&'a str>,
    pub(crate) at: i64,
    pub(crate) kept_at: i64,
}

impl<'a> EventInsert<'a> {
    /// Makes the row of an event that has a number; the others are not kept.
    pub(crate) fn new(write: &'a EventWrite, now: i64) -> Option<Self> {
        let event = &write.event;
        Some(Self {
            tenant_no: tenant_sql(write.tenant),
            event_id: sql_ms(event.id?),
            event_type: &event.kind,
            topics: topics_sql(&event.topics),
            refs: i32::try_from(event.topics.len()).unwrap_or(i32::MAX),
            owner: event.owner.as_ref().map(DeviceKey::as_str),
            vals: &event.values,
            data: &event.data,
            dedupe_key: write.dedupe_key.as_deref(),
            at: sql_ms(event.at_ms),
            kept_at: now,
        })
    }
}

/// Puts an event together; `epoch` is the life of the log now.
pub(crate) fn event_of(epoch: Epoch, row: EventRow) -> Result<Event, StoreError> {
    let (event_id, kind, topics, owner, values, data, at) = row;
    let id = u64::try_from(event_id).map_err(|_| corrupt("event_id"))?;
    let at_ms = u64::try_from(at).map_err(|_| corrupt("at"))?;
    let draft = EventDraft {
        owner: owner.as_deref().map(DeviceKey::from_text),
        values: values.into(),
        ..EventDraft::new(kind, topics_of(&topics), Arc::from(data), at_ms)
    };
    Ok(draft.into_event(epoch, Some(id)))
}

/// Joins the names of topics by spaces, which no name holds.
pub(crate) fn topics_sql(topics: &[Box<str>]) -> String {
    topics.join(" ")
}

/// Takes the names of topics apart.
pub(crate) fn topics_of(text: &str) -> Vec<Box<str>> {
    text.split_ascii_whitespace().map(Box::from).collect()
}
