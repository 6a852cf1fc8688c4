//! Events in a commit group: what is known of their keys, and their rows.

use std::collections::BTreeMap;

use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Integer, Nullable, Text};
use diesel::sqlite::Sqlite;
use driftline_engine::{GroupState, Planned, Submission, Writes};
use driftline_model::TenantNo;

use super::super::hot::{Rows, binds, insert, statement};
use super::super::load::json_array;
use super::super::writer::{GroupError, Writer};
use crate::codec::corrupt;
use crate::names::tenant_sql;
use crate::rows::{EventInsert, sql_ms};

/// Topics whose numbers the writer holds in memory.
const TOPICS_MAX: usize = 200_000;

impl QueryId for EventInsert<'_> {
    type QueryId = EventInsert<'static>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl Rows for EventInsert<'_> {
    const HEAD: &'static str = "INSERT INTO events (tenant_no, event_id, event_type, topics, refs, owner, vals, data, \
         dedupe_key, at, kept_at) VALUES ";
    const TAIL: &'static str = "";

    fn bind<'b>(&'b self, out: &mut AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        binds!(self, out, Integer => tenant_no, BigInt => event_id, Text => event_type, Text => topics, Integer => refs,
            Nullable<Text> => owner, Text => vals, Text => data, Nullable<Text> => dedupe_key, BigInt => at,
            BigInt => kept_at)
    }
}

/// A row of `event_topics` to be written.
#[derive(QueryId)]
struct TopicInsert {
    topic_no: i32,
    event_id: i64,
}

impl Rows for TopicInsert {
    const HEAD: &'static str = "INSERT INTO event_topics (topic_no, event_id) VALUES ";
    const TAIL: &'static str = "";

    fn bind<'b>(&'b self, out: &mut AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        binds!(self, out, Integer => topic_no, BigInt => event_id)
    }
}

/// A row of `event_versions` to be written.
#[derive(QueryId)]
struct VersionInsert {
    tenant_no: i32,
    thing: String,
    version: i64,
    at: i64,
}

impl Rows for VersionInsert {
    const HEAD: &'static str = "INSERT INTO event_versions (tenant_no, thing, version, at) VALUES ";
    const TAIL: &'static str =
        " ON CONFLICT (tenant_no, thing) DO UPDATE SET version = excluded.version, at = excluded.at";

    fn bind<'b>(&'b self, out: &mut AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        binds!(self, out, Integer => tenant_no, Text => thing, BigInt => version, BigInt => at)
    }
}

statement! {
    /// The events of keys that stand in a JSON array.
    LoadDedupe { keys: String => Text, tenant_no: i32 => Integer } =
    "SELECT e.dedupe_key, e.event_id FROM json_each(" ? keys: Text
    ") AS j CROSS JOIN events AS e ON e.tenant_no = " ? tenant_no: Integer
    " AND e.dedupe_key = j.value"
}

impl Query for LoadDedupe {
    type SqlType = (Text, BigInt);
}

statement! {
    /// The latest states of things that stand in a JSON array.
    LoadVersions { things: String => Text, tenant_no: i32 => Integer } =
    "SELECT v.thing, v.version FROM json_each(" ? things: Text
    ") AS j CROSS JOIN event_versions AS v ON v.tenant_no = " ? tenant_no: Integer
    " AND v.thing = j.value"
}

impl Query for LoadVersions {
    type SqlType = (Text, BigInt);
}

statement! {
    /// A topic's number.
    FindTopic { tenant_no: i32 => Integer, topic: String => Text } =
    "SELECT topic_no FROM topics WHERE tenant_no = " ? tenant_no: Integer
    " AND topic = " ? topic: Text
}

impl Query for FindTopic {
    type SqlType = Integer;
}

statement! {
    /// Gives a topic a number.
    MakeTopic { tenant_no: i32 => Integer, topic: String => Text } =
    "INSERT INTO topics (tenant_no, topic) VALUES (" ? tenant_no: Integer
    ", " ? topic: Text
    ") RETURNING topic_no"
}

impl Query for MakeTopic {
    type SqlType = Integer;
}

impl Writer {
    /// Loads which keys of a group's events are known, and the latest states of what they tell of.
    pub(in super::super) fn load_events(
        &mut self,
        group: &[Submission],
        state: &mut GroupState,
    ) -> Result<(), GroupError> {
        let mut keys: BTreeMap<TenantNo, Vec<&str>> = BTreeMap::new();
        let mut things: BTreeMap<TenantNo, Vec<&str>> = BTreeMap::new();
        for submission in group {
            for draft in submission.events.iter().filter(|draft| draft.durable) {
                if let Some(key) = &draft.dedupe_key {
                    keys.entry(submission.tenant).or_default().push(key);
                }
                if let Some((thing, _)) = &draft.version {
                    things.entry(submission.tenant).or_default().push(thing);
                }
            }
        }
        for (tenant, keys) in keys {
            let query = LoadDedupe { keys: json_array(&keys), tenant_no: tenant_sql(tenant) };
            for (key, event_id) in query.load::<(String, i64)>(&mut self.connection)? {
                let id = u64::try_from(event_id).map_err(|_| corrupt("event_id"))?;
                state.dedupe.insert((tenant, key.into()), id);
            }
        }
        for (tenant, things) in things {
            let query = LoadVersions { things: json_array(&things), tenant_no: tenant_sql(tenant) };
            for (thing, version) in query.load::<(String, i64)>(&mut self.connection)? {
                state.versions.insert((tenant, thing.into()), version.cast_unsigned());
            }
        }
        Ok(())
    }

    pub(in super::super) fn write_events(&mut self, planned: &Planned, now: i64) -> Result<(), GroupError> {
        let writes = &planned.writes;
        if writes.events.is_empty() && writes.versions.is_empty() {
            return Ok(());
        }
        let rows: Vec<_> = writes.events.iter().filter_map(|write| EventInsert::new(write, now)).collect();
        insert(&mut self.connection, &rows)?;
        let topics = self.topics_of(writes)?;
        insert(&mut self.connection, &topics)?;
        let version = |((tenant, thing), version): &((TenantNo, Box<str>), u64)| VersionInsert {
            tenant_no: tenant_sql(*tenant),
            thing: thing.to_string(),
            version: version.cast_signed(),
            at: now,
        };
        let versions: Vec<_> = writes.versions.iter().map(version).collect();
        insert(&mut self.connection, &versions)?;
        Ok(())
    }

    /// The rows that say which topics have which events.
    fn topics_of(&mut self, writes: &Writes) -> Result<Vec<TopicInsert>, GroupError> {
        let mut rows = Vec::with_capacity(writes.events.len());
        for write in &writes.events {
            let Some(id) = write.event.id else { continue };
            for topic in &write.event.topics {
                let topic_no = self.intern_topic(write.tenant, topic)?;
                rows.push(TopicInsert { topic_no, event_id: sql_ms(id) });
            }
        }
        Ok(rows)
    }

    /// Finds a topic's number, giving it one in the transaction that runs.
    fn intern_topic(&mut self, tenant: TenantNo, topic: &str) -> Result<i32, GroupError> {
        if let Some(number) = self.topics.known(tenant, topic) {
            return Ok(number);
        }
        let (tenant_no, name) = (tenant_sql(tenant), topic.to_owned());
        let find = FindTopic { tenant_no, topic: name.clone() };
        let found: Option<i32> = find.get_result(&mut self.connection).optional()?;
        let number = match found {
            Some(number) => number,
            None => MakeTopic { tenant_no, topic: name }.get_result(&mut self.connection)?,
        };
        self.topics.keep(tenant, topic, number);
        Ok(number)
    }
}

/// Numbers of topics that the writer has met.
#[derive(Debug, Default)]
pub(in super::super) struct Topics {
    known: std::collections::HashMap<TenantNo, std::collections::HashMap<Box<str>, i32>>,
    /// Those that the transaction which runs has met first: it may have given them.
    fresh: Vec<(TenantNo, Box<str>)>,
    count: usize,
}

impl Topics {
    fn known(&self, tenant: TenantNo, topic: &str) -> Option<i32> {
        self.known.get(&tenant)?.get(topic).copied()
    }

    fn keep(&mut self, tenant: TenantNo, topic: &str, number: i32) {
        self.known.entry(tenant).or_default().insert(topic.into(), number);
        self.fresh.push((tenant, topic.into()));
        self.count += 1;
    }

    /// Keeps the numbers: their rows are committed.
    pub(in super::super) fn committed(&mut self) {
        self.fresh.clear();
        if self.count > TOPICS_MAX {
            self.known.clear();
            self.count = 0;
        }
    }

    /// Forgets the numbers whose rows were rolled back.
    pub(in super::super) fn rolled_back(&mut self) {
        for (tenant, topic) in self.fresh.drain(..) {
            if let Some(of_tenant) = self.known.get_mut(&tenant)
                && of_tenant.remove(&topic).is_some()
            {
                self.count -= 1;
            }
        }
    }
}
