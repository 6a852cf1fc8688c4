//! The log of events: how it is read, and the port to it.

use std::sync::Arc;

use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Binary, Integer, Nullable, Text};
use diesel::{OptionalExtension, QueryResult};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use driftline_engine::{
    Answer, DeviceEvents, Drained, Event, EventLog, EventName, EventPage, EventQuery, OutboxRouter,
    StoreError, TopicRules,
};
use driftline_model::{DeviceNo, Epoch, TenantNo};
use futures_util::future::BoxFuture;
use tokio::join;

use super::snapshot::{first, give_back, last, whole};
use super::sql::{LoadHead, statement};
use super::topics::{self, TopicNumbers};
use super::{PostgresStore, Shared, followers, listen, outbox, store_error, trim};
use crate::codec::corrupt;
use crate::names::tenant_sql;
use crate::rows::{EventColumns, EventRow, HeadRow, event_of, head_of, sql_ms};

statement! {
    /// The events of some topics after a place, in their order: at most so many less one, and until their data has used
    /// up the bytes. Beside each stands how many there were before the bytes were looked at. Each topic is read in its
    /// own order; an event of several comes once.
    PageUp {
        topics: Vec<i32> => Array<Integer>, after: i64 => BigInt, until: i64 => BigInt,
        kind: Option<String> => Nullable<Text>, tenant_no: i32 => Integer, rows: i64 => BigInt, bytes: i64 => BigInt,
    } =
    "SELECT event_id, event_type, topics, owner, vals, data, at, total FROM (SELECT e.*, count(*) OVER () AS total, \
     sum(octet_length(e.data)) OVER (ORDER BY e.event_id ROWS UNBOUNDED PRECEDING) AS upto, \
     row_number() OVER (ORDER BY e.event_id) AS place FROM (SELECT DISTINCT t.event_id FROM unnest("
    ? topics: Array<Integer>
    ") AS s(topic_no) CROSS JOIN LATERAL (SELECT m.event_id FROM event_topics AS m WHERE m.topic_no = s.topic_no \
     AND m.event_id > " ? after: BigInt
    " AND m.event_id <= " ? until: BigInt
    " AND (" ? kind: Nullable<Text>
    " IS NULL OR (SELECT k.event_type FROM events AS k WHERE k.tenant_no = " ? tenant_no: Integer
    " AND k.event_id >= m.event_id AND k.event_id <= m.event_id ORDER BY k.event_id LIMIT 1) = " ? kind: Nullable<Text>
    ") ORDER BY m.event_id LIMIT " ? rows: BigInt
    ") AS t ORDER BY t.event_id LIMIT " ? rows: BigInt
    ") AS p CROSS JOIN LATERAL (SELECT * FROM events WHERE tenant_no = " ? tenant_no: Integer
    " AND event_id >= p.event_id AND event_id <= p.event_id ORDER BY event_id LIMIT 1) AS e) AS c \
     WHERE (place = 1 OR upto <= " ? bytes: BigInt
    ") AND place < " ? rows: BigInt
    " ORDER BY event_id"
}

statement! {
    /// As [`PageUp`], but the newest first, and up to a place.
    PageDown {
        topics: Vec<i32> => Array<Integer>, until: i64 => BigInt, kind: Option<String> => Nullable<Text>,
        tenant_no: i32 => Integer, rows: i64 => BigInt, bytes: i64 => BigInt,
    } =
    "SELECT event_id, event_type, topics, owner, vals, data, at, total FROM (SELECT e.*, count(*) OVER () AS total, \
     sum(octet_length(e.data)) OVER (ORDER BY e.event_id DESC ROWS UNBOUNDED PRECEDING) AS upto, \
     row_number() OVER (ORDER BY e.event_id DESC) AS place FROM (SELECT DISTINCT t.event_id FROM unnest("
    ? topics: Array<Integer>
    ") AS s(topic_no) CROSS JOIN LATERAL (SELECT m.event_id FROM event_topics AS m WHERE m.topic_no = s.topic_no \
     AND m.event_id <= " ? until: BigInt
    " AND (" ? kind: Nullable<Text>
    " IS NULL OR (SELECT k.event_type FROM events AS k WHERE k.tenant_no = " ? tenant_no: Integer
    " AND k.event_id >= m.event_id AND k.event_id <= m.event_id ORDER BY k.event_id LIMIT 1) = " ? kind: Nullable<Text>
    ") ORDER BY m.event_id DESC LIMIT " ? rows: BigInt
    ") AS t ORDER BY t.event_id DESC LIMIT " ? rows: BigInt
    ") AS p CROSS JOIN LATERAL (SELECT * FROM events WHERE tenant_no = " ? tenant_no: Integer
    " AND event_id >= p.event_id AND event_id <= p.event_id ORDER BY event_id LIMIT 1) AS e) AS c \
     WHERE (place = 1 OR upto <= " ? bytes: BigInt
    ") AND place < " ? rows: BigInt
    " ORDER BY event_id DESC"
}

statement! {
    /// The events of all topics after a place and up to another one, as [`PageUp`] gives them.
    PageOfAll {
        tenant_no: i32 => Integer, after: i64 => BigInt, until: i64 => BigInt, rows: i64 => BigInt,
        bytes: i64 => BigInt,
    } =
    "SELECT event_id, event_type, topics, owner, vals, data, at, total FROM (SELECT e.*, count(*) OVER () AS total, \
     sum(octet_length(e.data)) OVER (ORDER BY e.event_id ROWS UNBOUNDED PRECEDING) AS upto, \
     row_number() OVER (ORDER BY e.event_id) AS place FROM (SELECT * FROM events WHERE tenant_no = "
    ? tenant_no: Integer
    " AND event_id > " ? after: BigInt
    " AND event_id <= " ? until: BigInt
    " ORDER BY event_id LIMIT " ? rows: BigInt
    ") AS e) AS c WHERE (place = 1 OR upto <= " ? bytes: BigInt
    ") AND place < " ? rows: BigInt
    " ORDER BY event_id"
}

impl Query for PageUp {
    type SqlType = (EventColumns, BigInt);
}

impl Query for PageDown {
    type SqlType = (EventColumns, BigInt);
}

impl Query for PageOfAll {
    type SqlType = (EventColumns, BigInt);
}

statement! {
    /// The highest event that one of the topics lost.
    Floor { topics: Vec<i32> => Array<Integer> } =
    "SELECT coalesce(max(floor), 0) FROM topics WHERE topic_no = ANY(" ? topics: Array<Integer>
    ")"
}

impl Query for Floor {
    type SqlType = BigInt;
}

statement! {
    /// One event by its number, with the epoch.
    EventById { tenant_no: i32 => Integer, event_id: i64 => BigInt } =
    "SELECT event_id, event_type, topics, owner, vals, data, at, (SELECT epoch FROM stream_head AS h \
     WHERE h.tenant_no = e.tenant_no) FROM events AS e WHERE tenant_no = " ? tenant_no: Integer
    " AND event_id = " ? event_id: BigInt
    ""
}

statement! {
    /// One event by the key of its duplicates, with the epoch.
    EventByKey<'a> { tenant_no: i32 => Integer, key: &'a [u8] => Binary } =
    "SELECT event_id, event_type, topics, owner, vals, data, at, (SELECT epoch FROM stream_head AS h \
     WHERE h.tenant_no = e.tenant_no) FROM events AS e WHERE tenant_no = " ? tenant_no: Integer
    " AND dedupe_key = " ? key: Binary
    ""
}

impl Query for EventById {
    type SqlType = (EventColumns, Text);
}

impl Query for EventByKey<'_> {
    type SqlType = (EventColumns, Text);
}

/// Reads a page, at one moment.
pub(super) async fn events(
    shared: &Shared,
    tenant: TenantNo,
    query: &EventQuery,
) -> Result<EventPage, StoreError> {
    let lease = shared.reader().await?;
    let (caches, pg) = (&shared.caches, lease.pg());
    let wanted = || query.topics.iter().map(|topic| &**topic);
    let read = async {
        // A topic is looked up after the moment was fixed: one that has no number has no event up to the head.
        match topics::remembered(caches, tenant, wanted()) {
            Some(topics) => whole(&lease, read_page(pg, tenant, query, &topics)).await,
            None => {
                let topics = first(&lease, topics::find(caches, pg, tenant, wanted())).await?;
                last(&lease, read_page(pg, tenant, query, &topics)).await
            }
        }
    };
    let page = read.await;
    give_back(lease, page).await
}

async fn read_page(
    pg: &AsyncPgConnection,
    tenant: TenantNo,
    query: &EventQuery,
    topics: &TopicNumbers,
) -> Result<EventPage, StoreError> {
    let tenant_no = tenant_sql(tenant);
    let numbers: Vec<i32> = topics.values().copied().collect();
    let (head, floor, rows) = join!(
        biased;
        LoadHead { tenant_no }.get_result::<HeadRow>(&mut { pg }),
        Floor { topics: numbers.clone() }.get_result::<i64>(&mut { pg }),
        rows_of(pg, tenant_no, query, numbers),
    );
    let head = head_of(head.map_err(store_error)?)?;
    let floor = u64::try_from(floor.map_err(store_error)?).map_err(|_| corrupt("floor"))?;
    let (events, more) = kept(head.epoch, rows.map_err(store_error)?)?;
    Ok(EventPage { epoch: head.epoch, head: head.event_id, floor, events, more })
}

async fn rows_of(
    pg: &AsyncPgConnection,
    tenant_no: i32,
    query: &EventQuery,
    topics: Vec<i32>,
) -> QueryResult<Vec<(EventRow, i64)>> {
    let bound = |size: usize| i64::try_from(size).unwrap_or(i64::MAX);
    let (rows, bytes) = (bound(query.rows).saturating_add(1), bound(query.bytes));
    let (until, kind) = (query.until.map_or(i64::MAX, sql_ms), query.kind.as_deref().map(str::to_owned));
    if query.newest_first {
        let until = match query.after {
            0 => until,
            before => until.min(sql_ms(before - 1)),
        };
        return PageDown { topics, until, kind, tenant_no, rows, bytes }.load(&mut { pg }).await;
    }
    PageUp { topics, after: sql_ms(query.after), until, kind, tenant_no, rows, bytes }.load(&mut { pg }).await
}

/// Makes events of a page's rows, and tells whether more wait.
fn kept(epoch: Epoch, rows: Vec<(EventRow, i64)>) -> Result<(Vec<Arc<Event>>, bool), StoreError> {
    let total = rows.iter().map(|(_, total)| total.unsigned_abs()).next().unwrap_or(0);
    let more = total > rows.len() as u64;
    let events =
        rows.into_iter().map(|(row, _)| event_of(epoch, row).map(Arc::new)).collect::<Result<_, _>>()?;
    Ok((events, more))
}

/// Reads what the log has of all topics after a place and up to another one: at most so many events and bytes.
pub(super) async fn range(
    shared: &Shared,
    tenant: TenantNo,
    (after, until): (u64, u64),
    (rows, bytes): (i64, i64),
) -> Result<(Vec<Arc<Event>>, bool), StoreError> {
    let lease = shared.reader().await?;
    let pg = lease.pg();
    let tenant_no = tenant_sql(tenant);
    let page = PageOfAll { tenant_no, after: sql_ms(after), until: sql_ms(until), rows: rows + 1, bytes };
    let read = whole(&lease, async {
        let head = LoadHead { tenant_no }.get_result::<HeadRow>(&mut { pg });
        let (head, rows) = join!(biased; head, page.load::<(EventRow, i64)>(&mut { pg }));
        let head = head_of(head.map_err(store_error)?)?;
        kept(head.epoch, rows.map_err(store_error)?)
    });
    let read = read.await;
    give_back(lease, read).await
}

async fn event(
    shared: &Shared,
    tenant: TenantNo,
    name: &EventName,
) -> Result<Option<Arc<Event>>, StoreError> {
    let lease = shared.reader().await?;
    let (tenant_no, mut pg) = (tenant_sql(tenant), lease.pg());
    let found: QueryResult<(EventRow, String)> = match name {
        EventName::Id(event_id) => {
            EventById { tenant_no, event_id: sql_ms(*event_id) }.get_result(&mut pg).await
        }
        EventName::Dedupe(key) => EventByKey { tenant_no, key: key.as_bytes() }.get_result(&mut pg).await,
    };
    let found = give_back(lease, found.optional().map_err(store_error)).await?;
    let Some((row, epoch)) = found else { return Ok(None) };
    let event = event_of(epoch.parse().map_err(|_| corrupt("epoch"))?, row)?;
    Ok(Some(Arc::new(event)))
}

impl EventLog for PostgresStore {
    fn events(&self, tenant: TenantNo, query: EventQuery) -> Answer<'_, EventPage> {
        let shared = Arc::clone(&self.shared);
        Box::pin(self.run(async move { events(&shared, tenant, &query).await }))
    }

    fn event(&self, tenant: TenantNo, name: EventName) -> Answer<'_, Option<Arc<Event>>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(self.run(async move { event(&shared, tenant, &name).await }))
    }

    fn trim_events(&self, now_ms: u64, rules: Arc<dyn TopicRules>) -> Answer<'_, u64> {
        let shared = Arc::clone(&self.shared);
        // However long it takes: nobody is told to trim again.
        Box::pin(self.finish(async move { trim::trim(&shared, now_ms, &*rules).await }))
    }

    fn drain_outbox(&self, batch: usize, router: Arc<dyn OutboxRouter>) -> Answer<'_, Drained> {
        let shared = Arc::clone(&self.shared);
        Box::pin(self.run(async move { outbox::drain(&shared, batch, &*router).await }))
    }

    fn clean_outbox(&self, before_ms: u64) -> Answer<'_, u64> {
        let shared = Arc::clone(&self.shared);
        Box::pin(self.finish(async move { outbox::clean(&shared, before_ms).await }))
    }

    fn outbox_waits(&self) -> BoxFuture<'_, ()> {
        Box::pin(listen::waits(Arc::clone(&self.shared)))
    }

    fn device_events(&self, tenant: TenantNo, device: DeviceNo) -> Answer<'_, Option<DeviceEvents>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(self.run(async move { followers::device_events(&shared, tenant, device).await }))
    }

    fn read_notice(&self, tenant: TenantNo, user: Box<str>, id: Box<str>, now_ms: u64) -> Answer<'_, bool> {
        let shared = Arc::clone(&self.shared);
        Box::pin(self.run(async move { followers::read_notice(&shared, tenant, (&user, &id), now_ms).await }))
    }

    fn notices_read(&self, tenant: TenantNo, user: Box<str>, ids: Vec<Box<str>>) -> Answer<'_, Vec<bool>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(self.run(async move { followers::notices_read(&shared, tenant, &user, &ids).await }))
    }
}
