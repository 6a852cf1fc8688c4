//! What the log loses when its time has passed.
//!
//! Events go a transaction of bounded size at a time. No head is locked, so that no writer waits: what is removed is
//! written by nobody else, and whoever reads a page reads it at one moment.

use std::collections::{BTreeSet, HashMap};

use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use driftline_engine::{StoreError, TopicRules};
use tokio::join;

use super::prune::database_ms;
use super::snapshot::give_back;
use super::sql::{Commit, statement};
use super::{Shared, store_error};
use crate::log::{USED_MS, VERSIONS_MS};
use crate::rows::sql_ms;

/// Topics that are looked at in one go.
const TOPICS: i64 = 1_000;
/// Rows that one transaction removes at most.
const REMOVED: i64 = 2_000;

statement! {
    /// Topics by their numbers.
    LoadTopics { after: i32 => Integer, rows: i64 => BigInt } =
    "SELECT topic_no, tenant_no, topic FROM topics WHERE topic_no > " ? after: Integer
    " ORDER BY topic_no LIMIT " ? rows: BigInt
    ""
}

impl Query for LoadTopics {
    type SqlType = (Integer, Integer, Text);
}

statement! {
    /// Up to which number events of tenants were kept before a time. Numbers and times rise together, so that the place
    /// is found by halving: everything up to `low` is older, and nothing above `high` is.
    AgedUpTo { tenants: Vec<i32> => Array<Integer>, before: Vec<i64> => Array<BigInt> } =
    "SELECT w.tenant_no, w.before, s.low FROM unnest(" ? tenants: Array<Integer>
    ", " ? before: Array<BigInt>
    ") AS w(tenant_no, before) CROSS JOIN LATERAL (WITH RECURSIVE halves(low, high) AS (\
     SELECT 0::BIGINT, (SELECT event_id FROM stream_head WHERE tenant_no = w.tenant_no) \
     UNION ALL SELECT CASE WHEN e.old THEN e.event_id ELSE h.low END, \
     CASE WHEN e.old THEN h.high ELSE (h.low + h.high) / 2 END FROM halves AS h LEFT JOIN LATERAL (\
     SELECT event_id, kept_at < w.before AS old FROM events WHERE tenant_no = w.tenant_no \
     AND event_id > (h.low + h.high) / 2 AND event_id <= h.high ORDER BY event_id LIMIT 1) AS e ON true \
     WHERE h.low < h.high) SELECT max(low) AS low FROM halves) AS s"
}

impl Query for AgedUpTo {
    type SqlType = (Integer, BigInt, BigInt);
}

statement! {
    /// Of topics that have something to lose, up to which number: `aged` by its age, or what stands behind the newest
    /// ones that are kept.
    Cuts {
        topics: Vec<i32> => Array<Integer>, aged: Vec<i64> => Array<BigInt>,
        keep: Vec<Option<i64>> => Array<Nullable<BigInt>>,
    } =
    "SELECT topic_no, through FROM (SELECT w.topic_no, greatest(w.aged, (SELECT event_id FROM event_topics \
     WHERE topic_no = w.topic_no AND w.keep IS NOT NULL ORDER BY event_id DESC OFFSET w.keep LIMIT 1)) AS through, \
     (SELECT event_id FROM event_topics WHERE topic_no = w.topic_no ORDER BY event_id LIMIT 1) AS first FROM unnest("
    ? topics: Array<Integer>
    ", " ? aged: Array<BigInt>
    ", " ? keep: Array<Nullable<BigInt>>
    ") AS w(topic_no, aged, keep)) AS c WHERE first <= through"
}

impl Query for Cuts {
    type SqlType = (Integer, BigInt);
}

statement! {
    /// Takes the oldest events from a topic, up to a number; gives how many it took, and how many of them went because
    /// no topic has them any more.
    CutTopic { topic_no: i32 => Integer, through: i64 => BigInt, tenant_no: i32 => Integer, rows: i64 => BigInt } =
    "WITH taken AS (DELETE FROM event_topics WHERE topic_no = " ? topic_no: Integer
    " AND event_id <= (SELECT max(event_id) FROM (SELECT event_id FROM event_topics WHERE topic_no = "
    ? topic_no: Integer
    " AND event_id <= " ? through: BigInt
    " ORDER BY event_id LIMIT " ? rows: BigInt
    ") AS t) RETURNING event_id), gone AS (DELETE FROM events AS e USING taken AS t WHERE e.tenant_no = "
    ? tenant_no: Integer
    " AND e.event_id = t.event_id AND e.refs <= 1 RETURNING 1), \
     released AS (UPDATE events AS e SET refs = e.refs - 1 FROM taken AS t WHERE e.tenant_no = " ? tenant_no: Integer
    " AND e.event_id = t.event_id AND e.refs > 1), \
     raised AS (UPDATE topics SET floor = greatest(floor, (SELECT max(event_id) FROM taken)) WHERE topic_no = "
    ? topic_no: Integer
    ") SELECT (SELECT count(*) FROM taken), (SELECT count(*) FROM gone)"
}

impl Query for CutTopic {
    type SqlType = (BigInt, BigInt);
}

statement! {
    /// Forgets states of before a time, but for those that somebody writes now.
    ForgetVersions { before: i64 => BigInt, rows: i64 => BigInt } =
    "DELETE FROM event_versions WHERE ctid = ANY(ARRAY(SELECT ctid FROM event_versions WHERE at < " ? before: BigInt
    " LIMIT " ? rows: BigInt
    " FOR UPDATE SKIP LOCKED))"
}

statement! {
    /// Forgets what users read before a time, and what was used before another one.
    ForgetReads { before: i64 => BigInt, used: i64 => BigInt } =
    "DELETE FROM notice_reads WHERE at < " ? before: BigInt
    " OR (sub = '~tickets' AND at < " ? used: BigInt
    ")"
}

statement! {
    /// Takes the turn to trim until the transaction ends, unless somebody else has it.
    TakeTurn {} = "SELECT pg_try_advisory_xact_lock(hashtext('driftline.trim'))"
}

impl Query for TakeTurn {
    type SqlType = Bool;
}

/// What a topic is to lose: everything up to a number.
#[derive(Debug, Clone, Copy)]
struct Cut {
    tenant_no: i32,
    topic_no: i32,
    through: i64,
}

/// Removes what is past its retention; gives the number of events that went. While another node is at it, it is left to
/// that one.
pub(super) async fn trim(shared: &Shared, now_ms: u64, rules: &dyn TopicRules) -> Result<u64, StoreError> {
    // A node whose clock runs ahead must not remove what the others still need.
    let now_ms = if shared.clock.is_some() { now_ms } else { database_ms(shared).await? };
    let (mut after, mut removed) = (0, 0);
    while let Some((last, cuts)) = find_cuts(shared, now_ms, rules, after).await? {
        after = last;
        for cut in cuts {
            match cut_topic(shared, cut).await? {
                Some(gone) => removed += gone,
                None => return Ok(removed),
            }
        }
    }
    forget_versions(shared, sql_ms(now_ms.saturating_sub(VERSIONS_MS))).await?;
    let (before, used) = (sql_ms(now_ms.saturating_sub(VERSIONS_MS)), sql_ms(now_ms.saturating_sub(USED_MS)));
    let lease = shared.writer().await?;
    let forgotten = ForgetReads { before, used }.execute(&mut lease.pg()).await;
    give_back(lease, forgotten.map_err(store_error)).await?;
    Ok(removed)
}

/// Looks at the topics behind one; gives the last of them and what they are to lose, or nothing behind the last topic.
async fn find_cuts(
    shared: &Shared,
    now_ms: u64,
    rules: &dyn TopicRules,
    after: i32,
) -> Result<Option<(i32, Vec<Cut>)>, StoreError> {
    let lease = shared.reader().await?;
    let found = cuts_behind(lease.pg(), now_ms, rules, after).await;
    give_back(lease, found.map_err(store_error)).await
}

async fn cuts_behind(
    pg: &AsyncPgConnection,
    now_ms: u64,
    rules: &dyn TopicRules,
    after: i32,
) -> QueryResult<Option<(i32, Vec<Cut>)>> {
    let topics: Vec<(i32, i32, String)> = LoadTopics { after, rows: TOPICS }.load(&mut { pg }).await?;
    let Some(last) = topics.iter().map(|topic| topic.0).next_back() else { return Ok(None) };
    let before = |age_ms: u64| sql_ms(now_ms.saturating_sub(age_ms));
    let kept: Vec<_> = topics.iter().map(|(.., topic)| rules.retention(topic)).collect();
    let both = topics.iter().zip(&kept);
    let ages: BTreeSet<(i32, i64)> =
        both.filter_map(|(topic, kept)| Some((topic.1, before(kept.age_ms?)))).collect();
    let (tenants, times) = ages.into_iter().unzip();
    let aged: Vec<(i32, i64, i64)> = AgedUpTo { tenants, before: times }.load(&mut { pg }).await?;
    let aged: HashMap<(i32, i64), i64> =
        aged.into_iter().map(|(tenant_no, before, through)| ((tenant_no, before), through)).collect();
    let through = |tenant_no, age_ms| aged.get(&(tenant_no, before(age_ms))).copied().unwrap_or(0);
    let mut asked = Cuts { topics: vec![], aged: vec![], keep: vec![] };
    for ((topic_no, tenant_no, _), kept) in topics.iter().zip(&kept) {
        asked.topics.push(*topic_no);
        asked.aged.push(kept.age_ms.map_or(0, |age_ms| through(*tenant_no, age_ms)));
        asked.keep.push(kept.keep.map(sql_ms));
    }
    let cuts: Vec<(i32, i64)> = asked.load(&mut { pg }).await?;
    let tenants: HashMap<i32, i32> =
        topics.iter().map(|(topic_no, tenant_no, _)| (*topic_no, *tenant_no)).collect();
    let cut = |(topic_no, through)| Some(Cut { tenant_no: *tenants.get(&topic_no)?, topic_no, through });
    Ok(Some((last, cuts.into_iter().filter_map(cut).collect())))
}

/// Cuts a topic, piece by piece; gives the number of events that went, or nothing while another node is at it.
async fn cut_topic(shared: &Shared, cut: Cut) -> Result<Option<u64>, StoreError> {
    let mut removed = 0;
    loop {
        let lease = shared.writer().await?;
        let piece = match begun(lease.pg()).await {
            Ok(true) => cut_piece(lease.pg(), cut).await,
            Ok(false) => {
                lease.roll_back().await;
                return Ok(None);
            }
            Err(error) => Err(error),
        };
        let (taken, gone) = give_back(lease, piece.map_err(store_error)).await?;
        removed += gone.unsigned_abs();
        if taken < REMOVED {
            return Ok(Some(removed));
        }
    }
}

async fn begun(mut pg: &AsyncPgConnection) -> QueryResult<bool> {
    let turn = TakeTurn {}.get_result::<bool>(&mut { pg });
    let (begun, turn) = join!(biased; pg.batch_execute("BEGIN"), turn);
    begun?;
    turn
}

async fn cut_piece(pg: &AsyncPgConnection, cut: Cut) -> QueryResult<(i64, i64)> {
    let Cut { tenant_no, topic_no, through } = cut;
    let piece = CutTopic { topic_no, through, tenant_no, rows: REMOVED };
    let (gone, ended) =
        join!(biased; piece.get_result::<(i64, i64)>(&mut { pg }), Commit {}.execute(&mut { pg }));
    let gone = gone?;
    ended?;
    Ok(gone)
}

async fn forget_versions(shared: &Shared, before: i64) -> Result<(), StoreError> {
    loop {
        let lease = shared.writer().await?;
        let forgotten = ForgetVersions { before, rows: REMOVED }.execute(&mut lease.pg()).await;
        let forgotten = give_back(lease, forgotten.map_err(store_error)).await?;
        if i64::try_from(forgotten).unwrap_or(i64::MAX) < REMOVED {
            return Ok(());
        }
    }
}
