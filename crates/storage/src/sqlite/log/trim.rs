//! What the log loses when its time has passed.
//!
//! Where to cut is found on a reading connection; the writer removes in pieces, and commit groups go between.

use std::collections::HashMap;
use std::sync::Arc;

use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Integer, Text};
use diesel::sqlite::Sqlite;
use driftline_engine::{StoreError, TopicRetention, TopicRules};
use driftline_model::TenantNo;

use super::super::hot::statement;
use super::super::prune::STEP;
use super::super::writer::Writer;
use super::super::{SqliteStore, store_error};
use crate::log::{USED_MS, VERSIONS_MS};
use crate::names::{tenant_of, tenant_sql};
use crate::rows::{sql, sql_ms};

/// Topics that are looked at in one go.
const TOPICS: usize = 1000;

statement! {
    /// Topics by their numbers.
    LoadTopics { after: i32 => Integer, limit: i64 => BigInt } =
    "SELECT topic_no, tenant_no, topic FROM topics WHERE topic_no > " ? after: Integer
    " ORDER BY topic_no LIMIT " ? limit: BigInt
}

impl Query for LoadTopics {
    type SqlType = (Integer, Integer, Text);
}

statement! {
    /// The first event of a topic.
    FirstOfTopic { topic_no: i32 => Integer } =
    "SELECT event_id FROM event_topics WHERE topic_no = " ? topic_no: Integer
    " ORDER BY event_id LIMIT 1"
}

impl Query for FirstOfTopic {
    type SqlType = BigInt;
}

statement! {
    /// The newest event of a topic behind so many newer ones.
    BehindNewest { topic_no: i32 => Integer, keep: i64 => BigInt } =
    "SELECT event_id FROM event_topics WHERE topic_no = " ? topic_no: Integer
    " ORDER BY event_id DESC LIMIT 1 OFFSET " ? keep: BigInt
}

impl Query for BehindNewest {
    type SqlType = BigInt;
}

statement! {
    /// The first event of a tenant from a number on, with the time when it was kept.
    KeptFrom { tenant_no: i32 => Integer, from: i64 => BigInt } =
    "SELECT event_id, kept_at FROM events WHERE tenant_no = " ? tenant_no: Integer
    " AND event_id >= " ? from: BigInt
    " ORDER BY event_id LIMIT 1"
}

impl Query for KeptFrom {
    type SqlType = (BigInt, BigInt);
}

statement! {
    /// The last event of a tenant.
    LastKept { tenant_no: i32 => Integer } =
    "SELECT event_id FROM events WHERE tenant_no = " ? tenant_no: Integer
    " ORDER BY event_id DESC LIMIT 1"
}

impl Query for LastKept {
    type SqlType = BigInt;
}

statement! {
    /// Takes the oldest events from a topic, up to a number.
    TakeFromTopic { topic_no: i32 => Integer, cut: i64 => BigInt, limit: i64 => BigInt } =
    "DELETE FROM event_topics WHERE topic_no = " ? topic_no: Integer
    " AND event_id IN (SELECT t.event_id FROM event_topics AS t WHERE t.topic_no = " ? topic_no: Integer
    " AND t.event_id <= " ? cut: BigInt
    " ORDER BY t.event_id LIMIT " ? limit: BigInt
    ") RETURNING event_id"
}

impl Query for TakeFromTopic {
    type SqlType = BigInt;
}

statement! {
    /// Counts one topic less for events whose numbers stand in a JSON array.
    Release { tenant_no: i32 => Integer, ids: String => Text } =
    "UPDATE events SET refs = refs - 1 WHERE tenant_no = " ? tenant_no: Integer
    " AND event_id IN (SELECT value FROM json_each(" ? ids: Text
    "))"
}

statement! {
    /// Removes those of them that no topic has any more.
    RemoveReleased { tenant_no: i32 => Integer, ids: String => Text } =
    "DELETE FROM events WHERE tenant_no = " ? tenant_no: Integer
    " AND event_id IN (SELECT value FROM json_each(" ? ids: Text
    ")) AND refs <= 0"
}

statement! {
    /// Remembers the highest event that a topic lost.
    RaiseFloor { floor: i64 => BigInt, topic_no: i32 => Integer } =
    "UPDATE topics SET floor = max(floor, " ? floor: BigInt
    ") WHERE topic_no = " ? topic_no: Integer
}

statement! {
    /// States by their tenant and thing, from behind one of them on.
    LoadStates { tenant_no: i32 => Integer, thing: String => Text, limit: i64 => BigInt } =
    "SELECT tenant_no, thing, at FROM event_versions WHERE (tenant_no, thing) > (" ? tenant_no: Integer
    ", " ? thing: Text
    ") ORDER BY tenant_no, thing LIMIT " ? limit: BigInt
}

impl Query for LoadStates {
    type SqlType = (Integer, Text, BigInt);
}

statement! {
    /// Forgets a state that was kept before a time.
    ForgetState { tenant_no: i32 => Integer, thing: String => Text, before: i64 => BigInt } =
    "DELETE FROM event_versions WHERE tenant_no = " ? tenant_no: Integer
    " AND thing = " ? thing: Text
    " AND at < " ? before: BigInt
}

statement! {
    /// Forgets what users read before a time, and what was used before another one.
    ForgetReads { before: i64 => BigInt, used: i64 => BigInt } =
    "DELETE FROM notice_reads WHERE at < " ? before: BigInt
    " OR (sub = '~tickets' AND at < " ? used: BigInt
    ")"
}

/// What a topic is to lose: everything up to a number.
#[derive(Debug, Clone, Copy)]
struct Cut {
    tenant_no: i32,
    topic_no: i32,
    through: i64,
}

/// Up to which number the events of a tenant are older than an age, by tenant and age.
type Aged = HashMap<(i32, u64), i64>;

impl SqliteStore {
    pub(super) async fn trim(&self, now_ms: u64, rules: Arc<dyn TopicRules>) -> Result<u64, StoreError> {
        let (mut after, mut aged, mut removed) = (0, Aged::new(), 0);
        loop {
            let rules = Arc::clone(&rules);
            let (cuts, last, known) = self
                .read(move |connection, _| {
                    let (cuts, last) = find_cuts(connection, (now_ms, &*rules), after, &mut aged)?;
                    Ok((cuts, last, aged))
                })
                .await?;
            aged = known;
            removed += self.cut(cuts).await?;
            match last {
                Some(last) => after = last,
                None => break,
            }
        }
        self.forget_states(now_ms.saturating_sub(VERSIONS_MS)).await?;
        let (before, used) =
            (sql_ms(now_ms.saturating_sub(VERSIONS_MS)), sql_ms(now_ms.saturating_sub(USED_MS)));
        let forget = ForgetReads { before, used };
        self.write(move |writer| forget.execute(&mut writer.connection).map_err(store_error)).await?;
        Ok(removed)
    }

    async fn cut(&self, mut cuts: Vec<Cut>) -> Result<u64, StoreError> {
        let mut removed = 0;
        while !cuts.is_empty() {
            let gone;
            (gone, cuts) = self.write(move |writer| cut_step(writer, cuts)).await?;
            removed += gone;
        }
        Ok(removed)
    }

    /// Forgets states that were kept before a time.
    async fn forget_states(&self, before_ms: u64) -> Result<(), StoreError> {
        let (before, mut place) = (sql_ms(before_ms), (0, String::new()));
        loop {
            let (tenant_no, thing) = place;
            let states: Vec<(i32, String, i64)> = self
                .read(move |connection, _| {
                    let limit = sql(STEP as u64);
                    LoadStates { tenant_no, thing, limit }.load(connection).map_err(store_error)
                })
                .await?;
            let Some((tenant_no, thing, _)) = states.last() else { return Ok(()) };
            place = (*tenant_no, thing.clone());
            let old: Vec<_> = states.into_iter().filter(|(.., at)| *at < before).collect();
            if !old.is_empty() {
                self.write(move |writer| forget(writer, old, before)).await?;
            }
        }
    }
}

fn forget(writer: &mut Writer, old: Vec<(i32, String, i64)>, before: i64) -> Result<(), StoreError> {
    for (tenant_no, thing, _) in old {
        ForgetState { tenant_no, thing, before }.execute(&mut writer.connection).map_err(store_error)?;
    }
    Ok(())
}

/// Finds where topics are to be cut, and the last topic that was looked at; none: there are no more.
fn find_cuts(
    connection: &mut SqliteConnection,
    (now_ms, rules): (u64, &dyn TopicRules),
    after: i32,
    aged: &mut Aged,
) -> Result<(Vec<Cut>, Option<i32>), StoreError> {
    let query = LoadTopics { after, limit: sql(TOPICS as u64) };
    let topics: Vec<(i32, i32, String)> = query.load(connection).map_err(store_error)?;
    let last = topics.last().map(|(topic_no, ..)| *topic_no);
    let mut cuts = Vec::new();
    for (topic_no, tenant_no, topic) in topics {
        let kept = rules.retention(&topic);
        let through = cut_of(connection, (tenant_no, topic_no), (now_ms, kept), aged)?;
        cuts.extend(through.map(|through| Cut { tenant_no, topic_no, through }));
    }
    Ok((cuts, last))
}

/// Up to which number a topic is to be cut, if it has anything to lose.
fn cut_of(
    connection: &mut SqliteConnection,
    (tenant_no, topic_no): (i32, i32),
    (now_ms, kept): (u64, TopicRetention),
    aged: &mut Aged,
) -> Result<Option<i64>, StoreError> {
    let counted: Option<i64> = match kept.keep {
        Some(keep) => BehindNewest { topic_no, keep: sql_ms(keep) }
            .get_result(connection)
            .optional()
            .map_err(store_error)?,
        None => None,
    };
    let old = match kept.age_ms {
        Some(age_ms) => match aged.get(&(tenant_no, age_ms)) {
            Some(through) => Some(*through),
            None => {
                let before = sql_ms(now_ms.saturating_sub(age_ms));
                let through = last_before(connection, tenant_of(tenant_no), before)?;
                aged.insert((tenant_no, age_ms), through);
                Some(through)
            }
        },
        None => None,
    };
    let Some(through) = counted.max(old) else { return Ok(None) };
    let first: Option<i64> =
        FirstOfTopic { topic_no }.get_result(connection).optional().map_err(store_error)?;
    Ok(first.is_some_and(|first| first <= through).then_some(through))
}

/// The number up to which the events of a tenant were kept before a time. Numbers and times rise together, so that the
/// place is found by halving.
fn last_before(connection: &mut SqliteConnection, tenant: TenantNo, before: i64) -> Result<i64, StoreError> {
    let tenant_no = tenant_sql(tenant);
    let last: Option<i64> = LastKept { tenant_no }.get_result(connection).optional().map_err(store_error)?;
    // Everything up to `old` is older, and everything from `young` on is not.
    let (mut old, mut young) = (0, last.unwrap_or(0) + 1);
    while young - old > 1 {
        let middle = old + (young - old) / 2;
        let found: Option<(i64, i64)> =
            KeptFrom { tenant_no, from: middle }.get_result(connection).optional().map_err(store_error)?;
        match found {
            Some((id, kept_at)) if kept_at < before => old = id,
            _ => young = middle,
        }
    }
    Ok(old)
}

/// Removes a step; gives the number of events that went, and what is left to cut.
fn cut_step(writer: &mut Writer, mut cuts: Vec<Cut>) -> Result<(u64, Vec<Cut>), StoreError> {
    let (mut left, mut removed) = (STEP, 0);
    while left > 0
        && let Some(Cut { tenant_no, topic_no, through }) = cuts.last().copied()
    {
        let connection = &mut writer.connection;
        let take = TakeFromTopic { topic_no, cut: through, limit: sql(left as u64) };
        let ids: Vec<i64> = take.load(connection).map_err(store_error)?;
        if let Some(floor) = ids.iter().copied().max() {
            RaiseFloor { floor, topic_no }.execute(connection).map_err(store_error)?;
            let texts: Vec<String> = ids.iter().map(i64::to_string).collect();
            let ids = format!("[{}]", texts.join(","));
            Release { tenant_no, ids: ids.clone() }.execute(connection).map_err(store_error)?;
            removed += RemoveReleased { tenant_no, ids }.execute(connection).map_err(store_error)? as u64;
        }
        if ids.len() < left {
            cuts.pop();
        }
        // A topic that loses nothing costs something too.
        left = left.saturating_sub(ids.len().max(1));
    }
    Ok((removed, cuts))
}
