//! Pages of the log.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Integer, Text};
use diesel::sqlite::Sqlite;
use driftline_engine::{Event, EventName, EventPage, EventQuery, StoreError};
use driftline_model::{Epoch, TenantNo};

use super::super::hot::statement;
use super::super::load::json_array;
use super::super::{queries, store_error};
use crate::log::{Filling, IdRange};
use crate::names::tenant_sql;
use crate::rows::{EventColumns, EventRow, event_of, sql, sql_ms};

/// Numbers of events that are read ahead of a topic, or looked up at once.
const AHEAD: usize = 256;

statement! {
    /// Topics whose names stand in a JSON array, with the highest event that each lost.
    LoadTopics { names: String => Text, tenant_no: i32 => Integer } =
    "SELECT t.topic_no, t.floor FROM json_each(" ? names: Text
    ") AS j CROSS JOIN topics AS t ON t.tenant_no = " ? tenant_no: Integer
    " AND t.topic = j.value"
}

impl Query for LoadTopics {
    type SqlType = (Integer, BigInt);
}

statement! {
    /// The events of one topic, oldest first.
    OfTopic { tenant_no: i32 => Integer, topic_no: i32 => Integer, above: i64 => BigInt, through: i64 => BigInt, limit: i64 => BigInt } =
    "SELECT e.event_id, e.event_type, e.topics, e.owner, e.vals, e.data, e.at FROM event_topics AS t \
     CROSS JOIN events AS e ON e.tenant_no = " ? tenant_no: Integer
    " AND e.event_id = t.event_id WHERE t.topic_no = " ? topic_no: Integer
    " AND t.event_id > " ? above: BigInt
    " AND t.event_id <= " ? through: BigInt
    " ORDER BY t.event_id LIMIT " ? limit: BigInt
}

impl Query for OfTopic {
    type SqlType = EventColumns;
}

statement! {
    /// The numbers of a topic's events, oldest first.
    RisingIds { topic_no: i32 => Integer, above: i64 => BigInt, through: i64 => BigInt, limit: i64 => BigInt } =
    "SELECT event_id FROM event_topics WHERE topic_no = " ? topic_no: Integer
    " AND event_id > " ? above: BigInt
    " AND event_id <= " ? through: BigInt
    " ORDER BY event_id LIMIT " ? limit: BigInt
}

impl Query for RisingIds {
    type SqlType = BigInt;
}

statement! {
    /// The numbers of a topic's events, newest first.
    FallingIds { topic_no: i32 => Integer, above: i64 => BigInt, through: i64 => BigInt, limit: i64 => BigInt } =
    "SELECT event_id FROM event_topics WHERE topic_no = " ? topic_no: Integer
    " AND event_id > " ? above: BigInt
    " AND event_id <= " ? through: BigInt
    " ORDER BY event_id DESC LIMIT " ? limit: BigInt
}

impl Query for FallingIds {
    type SqlType = BigInt;
}

statement! {
    /// Events whose numbers stand in a JSON array. They come in its order, because it is the outer one of the join.
    ByIds { ids: String => Text, tenant_no: i32 => Integer } =
    "SELECT e.event_id, e.event_type, e.topics, e.owner, e.vals, e.data, e.at FROM json_each(" ? ids: Text
    ") AS j CROSS JOIN events AS e ON e.tenant_no = " ? tenant_no: Integer
    " AND e.event_id = j.value"
}

impl Query for ByIds {
    type SqlType = EventColumns;
}

statement! {
    /// The event of a key.
    ByDedupe { tenant_no: i32 => Integer, key: String => Text } =
    "SELECT event_id, event_type, topics, owner, vals, data, at FROM events WHERE tenant_no = " ? tenant_no: Integer
    " AND dedupe_key = " ? key: Text
}

impl Query for ByDedupe {
    type SqlType = EventColumns;
}

pub(super) fn events(
    connection: &mut SqliteConnection,
    tenant: TenantNo,
    query: &EventQuery,
) -> Result<EventPage, StoreError> {
    queries::snapshot(connection, |connection| {
        let head = queries::head(connection, tenant)?;
        let names: Vec<&str> = query.topics.iter().map(|topic| &**topic).collect();
        let load = LoadTopics { names: json_array(&names), tenant_no: tenant_sql(tenant) };
        let mut topics: Vec<(i32, i64)> = load.load(connection).map_err(store_error)?;
        // A topic may have been named twice.
        topics.sort_unstable();
        topics.dedup();
        let floor = topics.iter().map(|(_, floor)| *floor).max().unwrap_or(0);
        let floor = u64::try_from(floor).unwrap_or(0);
        let mut page = Filling::new(query, head.epoch, head.event_id, floor);
        let range = IdRange::of(query, head.event_id);
        if !range.is_empty() {
            let mut topics = topics.iter().map(|(topic_no, _)| *topic_no);
            match (topics.next(), topics.next()) {
                (None, _) => {}
                (Some(topic_no), None) if !query.newest_first && query.kind.is_none() => {
                    one_topic(connection, (tenant, head.epoch), topic_no, range, &mut page)?;
                }
                (Some(first), second) => {
                    let topics = [first].into_iter().chain(second).chain(topics).collect();
                    let merge = Merge::new(topics, range, query, page.wants());
                    merged(connection, (tenant, head.epoch), query, merge, &mut page)?;
                }
            }
        }
        Ok(page.finish())
    })
}

fn one_topic(
    connection: &mut SqliteConnection,
    (tenant, epoch): (TenantNo, Epoch),
    topic_no: i32,
    range: IdRange,
    page: &mut Filling,
) -> Result<(), StoreError> {
    let limit = i64::try_from(page.wants()).unwrap_or(i64::MAX);
    let (above, through) = (sql_ms(range.above), sql_ms(range.through));
    let query = OfTopic { tenant_no: tenant_sql(tenant), topic_no, above, through, limit };
    for row in query.load_iter::<EventRow, _>(connection).map_err(store_error)? {
        if !page.take(event_of(epoch, row.map_err(store_error)?)?) {
            break;
        }
    }
    Ok(())
}

fn merged(
    connection: &mut SqliteConnection,
    (tenant, epoch): (TenantNo, Epoch),
    query: &EventQuery,
    mut merge: Merge,
    page: &mut Filling,
) -> Result<(), StoreError> {
    loop {
        let ids = merge.next(connection, page.wants().min(AHEAD))?;
        if ids.is_empty() {
            return Ok(());
        }
        let by_ids = ByIds { ids: json_numbers(&ids), tenant_no: tenant_sql(tenant) };
        for row in by_ids.load_iter::<EventRow, _>(connection).map_err(store_error)? {
            let row = row.map_err(store_error)?;
            if query.kind.as_deref().is_some_and(|kind| kind != row.1) {
                continue;
            }
            if !page.take(event_of(epoch, row)?) {
                return Ok(());
            }
        }
    }
}

/// The numbers of the events of several topics in one order, each once. Each topic is read ahead by its own, so that
/// nothing of the log is looked at but what is wanted.
struct Merge {
    topics: Vec<Ahead>,
    /// The next number of every topic that has one, with the topic's place: the next of all at the top.
    heap: BinaryHeap<(Next, usize)>,
    newest_first: bool,
    started: bool,
    ahead: usize,
}

/// What is read ahead of one topic.
struct Ahead {
    topic_no: i32,
    /// What is still to be read.
    range: IdRange,
    /// The next one stands at the end.
    ids: Vec<u64>,
}

/// A number that is the greater, the earlier it comes.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    Rising(Reverse<u64>),
    Falling(u64),
}

impl Next {
    const fn id(&self) -> u64 {
        match self {
            Self::Rising(Reverse(id)) | Self::Falling(id) => *id,
        }
    }
}

impl Merge {
    fn new(topics: Vec<i32>, range: IdRange, query: &EventQuery, wanted: usize) -> Self {
        // Many topics share a page: each gives its share first.
        let ahead = (wanted / topics.len().max(1)).clamp(16, AHEAD);
        let topics = topics.into_iter().map(|topic_no| Ahead { topic_no, range, ids: Vec::new() }).collect();
        Self { topics, heap: BinaryHeap::new(), newest_first: query.newest_first, started: false, ahead }
    }

    /// Returns the next numbers, at most so many; none when there are no more.
    fn next(&mut self, connection: &mut SqliteConnection, wanted: usize) -> Result<Vec<u64>, StoreError> {
        if !std::mem::replace(&mut self.started, true) {
            for at in 0..self.topics.len() {
                self.advance(connection, at)?;
            }
        }
        let mut ids: Vec<u64> = Vec::with_capacity(wanted);
        while ids.len() < wanted
            && let Some((next, at)) = self.heap.pop()
        {
            self.advance(connection, at)?;
            let id = next.id();
            while let Some((same, at)) = self.heap.peek().map(|(next, at)| (next.id() == id, *at))
                && same
            {
                self.heap.pop();
                self.advance(connection, at)?;
            }
            ids.push(id);
        }
        Ok(ids)
    }

    /// Puts the next number of a topic on the heap.
    fn advance(&mut self, connection: &mut SqliteConnection, at: usize) -> Result<(), StoreError> {
        let topic = &mut self.topics[at];
        if topic.ids.is_empty() && !topic.range.is_empty() {
            topic.ids = read_ahead(connection, topic.topic_no, topic.range, self.newest_first, self.ahead)?;
            topic.range = match topic.ids.first() {
                Some(last) if topic.ids.len() == self.ahead => topic.range.behind(*last, self.newest_first),
                // There are no more behind them.
                _ => IdRange { above: 0, through: 0 },
            };
        }
        if let Some(id) = topic.ids.pop() {
            let next = if self.newest_first { Next::Falling(id) } else { Next::Rising(Reverse(id)) };
            self.heap.push((next, at));
        }
        Ok(())
    }
}

/// Reads numbers of a topic; the last of them comes first.
fn read_ahead(
    connection: &mut SqliteConnection,
    topic_no: i32,
    range: IdRange,
    newest_first: bool,
    ahead: usize,
) -> Result<Vec<u64>, StoreError> {
    let (above, through, limit) = (sql_ms(range.above), sql_ms(range.through), sql(ahead as u64));
    let ids: QueryResult<Vec<i64>> = if newest_first {
        FallingIds { topic_no, above, through, limit }.load(connection)
    } else {
        RisingIds { topic_no, above, through, limit }.load(connection)
    };
    Ok(ids.map_err(store_error)?.into_iter().rev().map(i64::cast_unsigned).collect())
}

pub(super) fn event(
    connection: &mut SqliteConnection,
    tenant: TenantNo,
    name: &EventName,
) -> Result<Option<Arc<Event>>, StoreError> {
    queries::snapshot(connection, |connection| {
        let epoch = queries::head(connection, tenant)?.epoch;
        let tenant_no = tenant_sql(tenant);
        let row: QueryResult<EventRow> = match name {
            EventName::Id(id) => ByIds { ids: json_numbers(&[*id]), tenant_no }.get_result(connection),
            EventName::Dedupe(key) => ByDedupe { tenant_no, key: key.to_string() }.get_result(connection),
        };
        let row = row.optional().map_err(store_error)?;
        row.map(|row| event_of(epoch, row).map(Arc::new)).transpose()
    })
}

pub(super) fn json_numbers(numbers: &[u64]) -> String {
    let mut out = String::with_capacity(numbers.len() * 8 + 2);
    for number in numbers {
        out.push(if out.is_empty() { '[' } else { ',' });
        out.push_str(&number.to_string());
    }
    if out.is_empty() {
        out.push('[');
    }
    out.push(']');
    out
}
