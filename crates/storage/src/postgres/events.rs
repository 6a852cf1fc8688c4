//! Events of commit groups: what is known of their keys, and how they are written.

use std::collections::BTreeSet;

use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Binary, Integer, Nullable, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use driftline_engine::{EventWrite, GroupState, StoreError, Submission};
use driftline_model::TenantNo;

use super::sql::statement;
use super::topics::TopicNumbers;
use crate::codec::corrupt;
use crate::names::{tenant_of, tenant_sql};
use crate::rows::EventInsert;

statement! {
    /// The numbers of events by the keys of their duplicates.
    LoadDedupe<'a> { tenants: Vec<i32> => Array<Integer>, keys: Vec<&'a [u8]> => Array<Binary> } =
    "SELECT e.tenant_no, e.dedupe_key, e.event_id FROM unnest(" ? tenants: Array<Integer>
    ", " ? keys: Array<Binary>
    ") AS w(tenant_no, dedupe_key) CROSS JOIN LATERAL (SELECT tenant_no, dedupe_key, event_id FROM events \
     WHERE tenant_no = w.tenant_no AND dedupe_key >= w.dedupe_key AND dedupe_key <= w.dedupe_key \
     ORDER BY dedupe_key LIMIT 1) AS e"
}

impl Query for LoadDedupe<'_> {
    type SqlType = (Integer, Binary, BigInt);
}

statement! {
    /// The latest states of what events tell of.
    LoadVersions<'a> { tenants: Vec<i32> => Array<Integer>, things: Vec<&'a [u8]> => Array<Binary> } =
    "SELECT v.tenant_no, v.thing, v.version FROM unnest(" ? tenants: Array<Integer>
    ", " ? things: Array<Binary>
    ") AS w(tenant_no, thing) CROSS JOIN LATERAL (SELECT tenant_no, thing, version FROM event_versions \
     WHERE tenant_no = w.tenant_no AND thing >= w.thing AND thing <= w.thing ORDER BY thing LIMIT 1) AS v"
}

impl Query for LoadVersions<'_> {
    type SqlType = (Integer, Binary, BigInt);
}

/// A key of a tenant and its number, as a query gives it.
pub(super) type KeyedRow = (i32, Vec<u8>, i64);

statement! {
    /// Writes events, and which topics have them.
    PutEvents<'a> {
        tenant_no: Vec<i32> => Array<Integer>, event_id: Vec<i64> => Array<BigInt>, kind: Vec<&'a str> => Array<Text>,
        topics: Vec<String> => Array<Text>, refs: Vec<i32> => Array<Integer>,
        owner: Vec<Option<&'a str>> => Array<Nullable<Text>>, vals: Vec<&'a str> => Array<Text>,
        data: Vec<&'a str> => Array<Text>, dedupe_key: Vec<Option<&'a [u8]>> => Array<Nullable<Binary>>,
        at: Vec<i64> => Array<BigInt>, kept_at: Vec<i64> => Array<BigInt>, topic_no: Vec<i32> => Array<Integer>,
        topic_event: Vec<i64> => Array<BigInt>,
    } =
    "WITH kept AS (INSERT INTO events (tenant_no, event_id, event_type, topics, refs, owner, vals, data, dedupe_key, \
     at, kept_at) SELECT * FROM unnest(" ? tenant_no: Array<Integer>
    ", " ? event_id: Array<BigInt>
    ", " ? kind: Array<Text>
    ", " ? topics: Array<Text>
    ", " ? refs: Array<Integer>
    ", " ? owner: Array<Nullable<Text>>
    ", " ? vals: Array<Text>
    ", " ? data: Array<Text>
    ", " ? dedupe_key: Array<Nullable<Binary>>
    ", " ? at: Array<BigInt>
    ", " ? kept_at: Array<BigInt>
    ")) INSERT INTO event_topics (topic_no, event_id) SELECT * FROM unnest(" ? topic_no: Array<Integer>
    ", " ? topic_event: Array<BigInt>
    ")"
}

statement! {
    /// Writes the latest states of what events tell of.
    PutVersions<'a> {
        tenant_no: Vec<i32> => Array<Integer>, thing: Vec<&'a [u8]> => Array<Binary>,
        version: Vec<i64> => Array<BigInt>, at: Vec<i64> => Array<BigInt>,
    } =
    "INSERT INTO event_versions (tenant_no, thing, version, at) SELECT * FROM unnest(" ? tenant_no: Array<Integer>
    ", " ? thing: Array<Binary>
    ", " ? version: Array<BigInt>
    ", " ? at: Array<BigInt>
    ") ON CONFLICT (tenant_no, thing) DO UPDATE SET version = excluded.version, at = excluded.at"
}

statement! {
    /// Moves the heads of tenants of which only events were written.
    MoveHeads {
        tenant_no: Vec<i32> => Array<Integer>, event_id: Vec<i64> => Array<BigInt>,
        received_at: Vec<i64> => Array<BigInt>,
    } =
    "UPDATE stream_head AS h SET event_id = w.event_id, received_at = w.received_at FROM unnest("
    ? tenant_no: Array<Integer>
    ", " ? event_id: Array<BigInt>
    ", " ? received_at: Array<BigInt>
    ") AS w(tenant_no, event_id, received_at) WHERE h.tenant_no = w.tenant_no"
}

/// The keys of the events that a group brings, each once.
#[derive(Default)]
pub(super) struct EventKeys<'a> {
    dedupe: BTreeSet<(i32, &'a [u8])>,
    things: BTreeSet<(i32, &'a [u8])>,
}

impl<'a> EventKeys<'a> {
    /// Takes note of the keys of what is to be published.
    pub(super) fn add(&mut self, submission: &'a Submission) {
        let tenant_no = tenant_sql(submission.tenant);
        for draft in submission.events.iter().filter(|draft| draft.durable) {
            self.dedupe.extend(draft.dedupe_key.iter().map(|key| (tenant_no, key.as_bytes())));
            self.things.extend(draft.version.iter().map(|(thing, _)| (tenant_no, thing.as_bytes())));
        }
    }

    /// Parts the keys of duplicates from what events tell of.
    pub(super) fn split(self) -> (Keyed<'a>, Keyed<'a>) {
        (self.dedupe.into_iter().unzip(), self.things.into_iter().unzip())
    }
}

/// Tenants and a key of each.
pub(super) type Keyed<'a> = (Vec<i32>, Vec<&'a [u8]>);

pub(super) async fn load_dedupe(
    mut pg: &AsyncPgConnection,
    (tenants, keys): Keyed<'_>,
) -> QueryResult<Vec<KeyedRow>> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    LoadDedupe { tenants, keys }.load(&mut pg).await
}

pub(super) async fn load_versions(
    mut pg: &AsyncPgConnection,
    (tenants, things): Keyed<'_>,
) -> QueryResult<Vec<KeyedRow>> {
    if things.is_empty() {
        return Ok(Vec::new());
    }
    LoadVersions { tenants, things }.load(&mut pg).await
}

/// Keeps what is known of keys.
pub(super) fn keep(
    state: &mut GroupState,
    dedupe: Vec<KeyedRow>,
    versions: Vec<KeyedRow>,
) -> Result<(), StoreError> {
    let text = |bytes| String::from_utf8(bytes).map_err(|_| corrupt("key"));
    for (tenant_no, key, event_id) in dedupe {
        state.dedupe.insert((tenant_of(tenant_no), text(key)?.into()), event_id.unsigned_abs());
    }
    for (tenant_no, thing, version) in versions {
        state.versions.insert((tenant_of(tenant_no), text(thing)?.into()), version.cast_unsigned());
    }
    Ok(())
}

impl<'a> PutEvents<'a> {
    pub(super) fn of(events: usize) -> Self {
        Self {
            tenant_no: Vec::with_capacity(events),
            event_id: Vec::with_capacity(events),
            kind: Vec::with_capacity(events),
            topics: Vec::with_capacity(events),
            refs: Vec::with_capacity(events),
            owner: Vec::with_capacity(events),
            vals: Vec::with_capacity(events),
            data: Vec::with_capacity(events),
            dedupe_key: Vec::with_capacity(events),
            at: Vec::with_capacity(events),
            kept_at: Vec::with_capacity(events),
            topic_no: Vec::with_capacity(events),
            topic_event: Vec::with_capacity(events),
        }
    }

    /// Adds an event, kept at a time, with the numbers of its topics.
    pub(super) fn push(&mut self, write: &'a EventWrite, numbers: &TopicNumbers, now: i64) {
        let Some(row) = EventInsert::new(write, now) else { return };
        self.topic_no.extend(
            write
                .event
                .topics
                .iter()
                .map(|topic| *numbers.get(topic).expect("every topic of the writes was taken down")),
        );
        self.topic_event.extend(write.event.topics.iter().map(|_| row.event_id));
        self.tenant_no.push(row.tenant_no);
        self.event_id.push(row.event_id);
        self.kind.push(row.event_type);
        self.topics.push(row.topics);
        self.refs.push(row.refs);
        self.owner.push(row.owner);
        self.vals.push(row.vals);
        self.data.push(row.data);
        self.dedupe_key.push(row.dedupe_key.map(str::as_bytes));
        self.at.push(row.at);
        self.kept_at.push(row.kept_at);
    }
}

impl<'a> PutVersions<'a> {
    pub(super) fn of(writes: &'a [((TenantNo, Box<str>), u64)], now: i64) -> Self {
        let mut put = Self { tenant_no: vec![], thing: vec![], version: vec![], at: vec![] };
        put.extend(writes, now);
        put
    }

    /// Adds states, written at a time.
    pub(super) fn extend(&mut self, writes: &'a [((TenantNo, Box<str>), u64)], now: i64) {
        for ((tenant, thing), version) in writes {
            self.tenant_no.push(tenant_sql(*tenant));
            self.thing.push(thing.as_bytes());
            self.version.push(version.cast_signed());
            self.at.push(now);
        }
    }
}
