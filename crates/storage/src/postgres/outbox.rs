//! What other programs publish: rows that they insert in transactions of their own.
//!
//! One session at a time picks rows up, whichever node it is of, and marks them in the transaction that puts their
//! events into the log. The turn is asked for and rows that somebody holds are passed over, so that nothing is waited
//! for but the heads of the touched tenants, which are locked in the order of their numbers: nobody who holds one of
//! them waits for another, or for a row of the outbox.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text};
use diesel::{QueryResult, Queryable};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use driftline_engine::{
    Drained, EventDraft, GroupState, OutboxRouter, OutboxRow, PlanEnv, Planned, StoreError, Submission, plan,
};
use driftline_model::{DeviceNo, TenantId, TenantNo};
use futures_util::future::{BoxFuture, FutureExt as _, join_all};
use tokio::join;

use super::claims;
use super::connect::Lease;
use super::events::{self, EventKeys, MoveHeads, PutEvents, PutVersions, load_dedupe, load_versions};
use super::snapshot::give_back;
use super::sql::{Commit, statement};
use super::topics::{self, TopicNumbers};
use super::write::{Unwritten, outcome};
use super::{Shared, queries, registry, store_error};
use crate::codec::corrupt;
use crate::group::{DeviceNames, GROUP_BYTES};
use crate::log::{named, own};
use crate::names::{tenant_of, tenant_sql};
use crate::rows::{head_of, sql, sql_ms};

/// How often names are given to what has none before somebody else may try.
const TRIES: usize = 4;
/// The most rows of one transaction.
const BATCH_MAX: usize = 1_000;
/// Rows that one transaction removes at most.
const REMOVED: i64 = 2_000;
/// Characters of what is wrong with a row that are kept.
const ERROR_CHARS: usize = 500;
/// The last Unix millisecond that can be written as a time.
const AT_MS_MAX: u64 = 253_402_300_799_999;

statement! {
    /// Takes the turn to pick rows up until the transaction ends, unless somebody else has it.
    TakeTurn {} = "SELECT pg_try_advisory_xact_lock(hashtext('driftline.outbox'))"
}

impl Query for TakeTurn {
    type SqlType = Bool;
}

statement! {
    /// Locks the first rows that wait and that nobody holds, with the bytes of their payloads.
    PickRows { rows: i64 => BigInt } =
    "SELECT id, coalesce(octet_length(payload), 0)::BIGINT FROM sync_events WHERE processed_at IS NULL ORDER BY id LIMIT "
    ? rows: BigInt
    " FOR UPDATE SKIP LOCKED"
}

impl Query for PickRows {
    type SqlType = (BigInt, BigInt);
}

statement! {
    /// Locks the heads of tenants in the order of their numbers.
    LockHeads { tenants: Vec<i32> => Array<Integer> } =
    "SELECT tenant_no, received_at, epoch, seq, hlc, scopes_version, gc_floor, epoch_seq, event_id FROM stream_head \
     WHERE tenant_no = ANY(" ? tenants: Array<Integer>
    ") ORDER BY tenant_no FOR UPDATE"
}

impl Query for LockHeads {
    type SqlType = (Integer, BigInt, crate::rows::HeadSql);
}

statement! {
    /// Marks rows as processed, with what was wrong with them.
    MarkRows { at: i64 => BigInt, ids: Vec<i64> => Array<BigInt>, errors: Vec<Option<String>> => Array<Nullable<Text>> } =
    "UPDATE sync_events AS s SET processed_at = to_timestamp(" ? at: BigInt
    " / 1000.0), error = w.error FROM unnest(" ? ids: Array<BigInt>
    ", " ? errors: Array<Nullable<Text>>
    ") AS w(id, error) WHERE s.id = w.id"
}

statement! {
    /// Removes rows that were processed before a time.
    CleanRows { before: i64 => BigInt, rows: i64 => BigInt } =
    "DELETE FROM sync_events WHERE id = ANY(ARRAY(SELECT id FROM sync_events WHERE processed_at < to_timestamp("
    ? before: BigInt
    " / 1000.0) ORDER BY processed_at LIMIT " ? rows: BigInt
    " FOR UPDATE SKIP LOCKED))"
}

/// Reads rows, with the columns of the configured claims.
struct ReadRows {
    sql: String,
    ids: Vec<i64>,
}

impl QueryId for ReadRows {
    type QueryId = ();
    // Prepared once for each text, which is the same as long as the claims are.
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl QueryFragment<Pg> for ReadRows {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(&self.sql);
        out.push_bind_param::<Array<BigInt>, _>(&self.ids)?;
        out.push_sql(") ORDER BY s.id");
        Ok(())
    }
}

impl Query for ReadRows {
    type SqlType = (
        BigInt,
        Nullable<Text>,
        Nullable<Text>,
        Nullable<Text>,
        Nullable<Text>,
        Nullable<Text>,
        Nullable<Text>,
        Bool,
        Nullable<Text>,
        Nullable<BigInt>,
        Array<Nullable<Text>>,
        BigInt,
    );
}

impl ReadRows {
    fn new(ids: Vec<i64>, claims: &[Box<str>]) -> Self {
        let claims: Vec<String> = claims.iter().map(|claim| format!("s.\"{claim}\"::TEXT")).collect();
        let sql = format!(
            "SELECT s.id, s.tenant::TEXT, s.event_type::TEXT, s.topic::TEXT, s.user_id::TEXT, s.role::TEXT, \
             CASE WHEN octet_length(s.payload::TEXT) <= {GROUP_BYTES} THEN s.payload::TEXT END, \
             coalesce(octet_length(s.payload::TEXT) > {GROUP_BYTES}, false), s.dedupe_key::TEXT, \
             CASE WHEN isfinite(s.created_at) THEN (extract(epoch FROM s.created_at) * 1000)::BIGINT END, \
             ARRAY[{}]::TEXT[], (extract(epoch FROM clock_timestamp()) * 1000)::BIGINT \
             FROM sync_events AS s WHERE s.id = ANY(",
            claims.join(", ")
        );
        Self { sql, ids }
    }
}

/// A row as a query gives it.
#[derive(Queryable)]
struct Picked {
    id: i64,
    tenant: Option<String>,
    event_type: Option<String>,
    topic: Option<String>,
    user_id: Option<String>,
    role: Option<String>,
    payload: Option<String>,
    too_large: bool,
    dedupe_key: Option<String>,
    created_ms: Option<i64>,
    claims: Vec<Option<String>>,
    now_ms: i64,
}

/// Why nothing was picked up.
enum Halt {
    /// Tenants and topics that have no numbers yet.
    Unnamed(BTreeSet<TenantId>, Vec<(TenantNo, BTreeSet<Box<str>>)>),
    /// The database refused what was written of so many rows, the first of which is named, and took it back.
    TakenBack(usize, i64, StoreError),
    Refused(StoreError),
}

impl From<StoreError> for Halt {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

impl From<diesel::result::Error> for Halt {
    fn from(error: diesel::result::Error) -> Self {
        Self::Refused(store_error(error))
    }
}

/// Publishes at most so many rows and marks them, in one transaction.
pub(super) async fn drain(
    shared: &Shared,
    batch: usize,
    router: &dyn OutboxRouter,
) -> Result<Drained, StoreError> {
    let mut batch = batch.clamp(1, BATCH_MAX);
    for _ in 0..TRIES {
        match attempt(shared, batch, router).await {
            Ok(drained) => return Ok(drained),
            Err(Halt::Unnamed(tenants, topics)) => name(shared, tenants, topics).await?,
            // One of the rows is at fault: the first goes alone, and the next time the one behind it.
            Err(Halt::TakenBack(rows, ..)) if rows > 1 => batch = 1,
            Err(Halt::TakenBack(_, id, error)) => return refuse(shared, id, &error).await,
            Err(Halt::Refused(error)) => return Err(error),
        }
    }
    Err(StoreError::Unavailable("the outbox needs new names again and again".into()))
}

async fn attempt(shared: &Shared, batch: usize, router: &dyn OutboxRouter) -> Result<Drained, Halt> {
    let lease = shared.writer().await?;
    let picked = match pick(&lease, batch, &shared.outbox_claims).await {
        Ok(picked) if picked.is_empty() => {
            lease.roll_back().await;
            return Ok(Drained::default());
        }
        Ok(picked) => picked,
        Err(error) => {
            lease.roll_back().await;
            return Err(error.into());
        }
    };
    let prepared = prepare(shared, &lease, picked, router).await;
    match prepared {
        Ok(batch) => publish(shared, lease, batch).await,
        Err(halt) => {
            lease.roll_back().await;
            Err(halt)
        }
    }
}

/// Gives numbers to tenants and topics that have none.
async fn name(
    shared: &Shared,
    tenants: BTreeSet<TenantId>,
    topics: Vec<(TenantNo, BTreeSet<Box<str>>)>,
) -> Result<(), StoreError> {
    for tenant in tenants {
        queries::tenant(shared, &tenant).await?;
    }
    for (tenant, topics) in topics {
        let lease = shared.writer().await?;
        let topics = topics.iter().map(|topic| &**topic).collect();
        let named = topics::intern(&shared.caches, lease.pg(), tenant, topics).await;
        give_back(lease, named).await?;
    }
    Ok(())
}

/// Marks a row of which the database takes nothing.
async fn refuse(shared: &Shared, id: i64, error: &StoreError) -> Result<Drained, StoreError> {
    let lease = shared.writer().await?;
    let now_ms = shared.now(super::prune::DatabaseClock {}.get_result(&mut lease.pg()).await.unwrap_or(0));
    let mark =
        MarkRows { at: sql_ms(now_ms), ids: vec![id], errors: vec![Some(shortened(&error.to_string()))] };
    let marked = mark.execute(&mut lease.pg()).await;
    give_back(lease, marked.map_err(store_error)).await?;
    Ok(Drained { processed: 1, failed: 1 })
}

/// Begins a transaction and locks rows that wait; none while somebody else is at it.
async fn pick(lease: &Lease, batch: usize, claims: &[Box<str>]) -> QueryResult<Vec<Picked>> {
    let mut pg = lease.pg();
    let turn = TakeTurn {}.get_result::<bool>(&mut { pg });
    let (begun, turn) = join!(biased; pg.batch_execute("BEGIN"), turn);
    begun?;
    if !turn? {
        return Ok(Vec::new());
    }
    let waiting: Vec<(i64, i64)> = PickRows { rows: sql(batch as u64) }.load(&mut { pg }).await?;
    let mut bytes = 0;
    let fits = waiting.into_iter().take_while(|(_, payload)| {
        let first = bytes == 0;
        bytes += usize::try_from(*payload).unwrap_or_default().clamp(1, GROUP_BYTES);
        first || bytes <= GROUP_BYTES
    });
    let ids: Vec<i64> = fits.map(|(id, _)| id).collect();
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    ReadRows::new(ids, claims).load(&mut pg).await
}

/// Rows that are ready to be published.
struct Batch {
    /// The rows, each with what is wrong with it.
    marks: Vec<(i64, Option<String>)>,
    /// The events of each tenant.
    groups: BTreeMap<TenantNo, Vec<EventDraft>>,
    topics: HashMap<TenantNo, TopicNumbers>,
    /// The clock's time.
    now_ms: u64,
}

/// Makes events of rows, and finds the numbers of their tenants and topics.
async fn prepare(
    shared: &Shared,
    lease: &Lease,
    picked: Vec<Picked>,
    router: &dyn OutboxRouter,
) -> Result<Batch, Halt> {
    let now_ms = shared.now(picked.iter().map(|row| row.now_ms).max().unwrap_or_default());
    let mut batch = Batch { marks: vec![], groups: BTreeMap::new(), topics: HashMap::new(), now_ms };
    let (mut unknown, mut owners) = (BTreeSet::new(), HashMap::new());
    for row in picked {
        let id = row.id;
        let error = match row_of(row, &shared.outbox_claims).and_then(|row| route(router, &row, now_ms)) {
            Ok((tenant, mut draft)) => match shared.caches.tenants.get(&tenant) {
                Some(tenant) => {
                    let owned = match router.device_of(&draft) {
                        None => Ok(()),
                        Some(device_id) => {
                            let name = (tenant, device_id);
                            if !owners.contains_key(&name) {
                                let rows = registry::devices(shared, tenant, &named(name.1.clone())).await?;
                                owners.insert(name.clone(), rows);
                            }
                            own(&mut draft, owners.get(&name).cloned().unwrap_or_default())
                        }
                    };
                    if owned.is_ok() {
                        batch.groups.entry(tenant).or_default().push(draft);
                    }
                    owned.err()
                }
                None => {
                    unknown.insert(tenant);
                    None
                }
            },
            Err(reason) => Some(shortened(&reason)),
        };
        batch.marks.push((id, error));
    }
    let mut unnamed = Vec::new();
    for (tenant, drafts) in &batch.groups {
        let kept = drafts.iter().filter(|draft| draft.durable);
        let wanted: BTreeSet<&str> = kept.flat_map(|draft| &draft.topics).map(|topic| &**topic).collect();
        let found = topics::find(&shared.caches, lease.pg(), *tenant, wanted.iter().copied()).await?;
        let new: BTreeSet<Box<str>> =
            wanted.into_iter().filter(|topic| !found.contains_key(*topic)).map(Into::into).collect();
        if !new.is_empty() {
            unnamed.push((*tenant, new));
        }
        batch.topics.insert(*tenant, found);
    }
    if unknown.is_empty() && unnamed.is_empty() { Ok(batch) } else { Err(Halt::Unnamed(unknown, unnamed)) }
}

fn row_of(row: Picked, claims: &[Box<str>]) -> Result<OutboxRow, String> {
    if row.too_large {
        return Err("payload is too large".into());
    }
    let named = claims.iter().zip(&row.claims);
    let claims = named.filter_map(|(claim, value)| Some((claim.clone(), claims::json(value.as_ref()?))));
    Ok(OutboxRow {
        id: row.id,
        tenant: row.tenant.ok_or("tenant is null")?,
        kind: row.event_type,
        topic: row.topic,
        user: row.user_id,
        role: row.role,
        claims: claims.collect(),
        payload: row.payload,
        dedupe_key: row.dedupe_key,
        created_ms: row.created_ms.and_then(|at| u64::try_from(at).ok()).filter(|at| *at <= AT_MS_MAX),
    })
}

fn route(router: &dyn OutboxRouter, row: &OutboxRow, now_ms: u64) -> Result<(TenantId, EventDraft), String> {
    let (tenant, draft) = router.route(row, now_ms)?;
    let named =
        !draft.topics.is_empty() && draft.topics.iter().all(|topic| !topic.contains(char::is_whitespace));
    if named { Ok((tenant, draft)) } else { Err("it has no topic".into()) }
}

/// What is kept of what is wrong with a row: nothing that the database does not take.
fn shortened(reason: &str) -> String {
    reason.chars().filter(|char| *char != '\0').take(ERROR_CHARS).collect()
}

fn publication(tenant: TenantNo, events: Vec<EventDraft>) -> Submission {
    Submission {
        tenant,
        // Nobody: no state of a device is looked at.
        device: DeviceNo::new(0),
        user: "".into(),
        scopes: Vec::new(),
        epoch: None,
        acked_n: None,
        batch: None,
        once: Vec::new(),
        correlation: "outbox".into(),
        entries: Vec::new(),
        events,
    }
}

/// Writes the events of rows and marks them; commits, and tells listeners.
async fn publish(shared: &Shared, lease: Lease, batch: Batch) -> Result<Drained, Halt> {
    let Batch { marks, groups, topics, now_ms } = batch;
    let group: Vec<Submission> =
        groups.into_iter().map(|(tenant, events)| publication(tenant, events)).collect();
    let planned = match planned(shared, lease.pg(), &group, now_ms).await {
        Ok(planned) => planned,
        Err(halt) => {
            lease.roll_back().await;
            return Err(halt);
        }
    };
    let failed = marks.iter().filter(|(_, error)| error.is_some()).count() as u64;
    let drained = Drained { processed: marks.len() as u64, failed };
    let (rows, first) = (marks.len(), marks.iter().map(|(id, _)| *id).next().unwrap_or_default());
    let turns: Vec<_> = planned.iter().map(|(tenant, ..)| shared.caches.tellers.take_turn(*tenant)).collect();
    match write(lease.pg(), marks, &planned, &topics, now_ms).await {
        Ok(()) => lease.done(),
        Err(Unwritten::TakenBack(error)) => {
            lease.done();
            return Err(Halt::TakenBack(rows, first, store_error(error)));
        }
        Err(Unwritten::Ended(error) | Unwritten::Unknown(error)) => return Err(error.into()),
    }
    for (turn, (_, planned, _)) in turns.into_iter().zip(planned) {
        if let Some(committed) = planned.commits.into_iter().next() {
            turn.tell(shared, committed).await;
        }
    }
    Ok(drained)
}

/// Locks the heads of the group's tenants and plans it, each tenant with its own time of receipt.
async fn planned(
    shared: &Shared,
    pg: &AsyncPgConnection,
    group: &[Submission],
    now_ms: u64,
) -> Result<Vec<(TenantNo, Planned, u64)>, Halt> {
    if group.is_empty() {
        return Ok(Vec::new());
    }
    let mut keys = EventKeys::default();
    group.iter().for_each(|submission| keys.add(submission));
    let (dedupe, things) = keys.split();
    let tenants = group.iter().map(|submission| tenant_sql(submission.tenant)).collect();
    let (heads, dedupe, versions) = join!(
        biased;
        LockHeads { tenants }.load::<(i32, i64, crate::rows::HeadRow)>(&mut { pg }),
        load_dedupe(pg, dedupe),
        load_versions(pg, things),
    );
    let (mut state, mut received) = (GroupState::default(), HashMap::new());
    for (tenant_no, received_at, head) in heads? {
        received
            .insert(tenant_of(tenant_no), u64::try_from(received_at).map_err(|_| corrupt("received_at"))?);
        state.heads.insert(tenant_of(tenant_no), head_of(head)?);
    }
    events::keep(&mut state, dedupe?, versions?)?;
    let mut all = Vec::with_capacity(group.len());
    for submission in group {
        // A failover came between: the tenant's number stands for nobody.
        let received = received.get(&submission.tenant).copied();
        let received = received.ok_or_else(|| StoreError::Unavailable("a tenant was forgotten".into()))?;
        let env = PlanEnv {
            now_ms: now_ms.max(received),
            skew_ms_max: shared.skew_ms_max,
            record_bytes: shared.record_bytes,
            devices: &DeviceNames::default(),
            listening: &|tenant| shared.listeners.listening(tenant),
        };
        let planned = plan(std::slice::from_ref(submission), &mut state, &env);
        all.push((submission.tenant, planned, env.now_ms));
    }
    Ok(all)
}

/// Writes everything and commits, in one flight.
async fn write(
    pg: &AsyncPgConnection,
    marks: Vec<(i64, Option<String>)>,
    planned: &[(TenantNo, Planned, u64)],
    topics: &HashMap<TenantNo, TopicNumbers>,
    now_ms: u64,
) -> Result<(), Unwritten> {
    let mut put = PutEvents::of(marks.len());
    let mut versions = PutVersions::of(&[], 0);
    let mut heads = MoveHeads { tenant_no: vec![], event_id: vec![], received_at: vec![] };
    for (tenant, planned, at_ms) in planned {
        for write in &planned.writes.events {
            if let Some(numbers) = topics.get(tenant) {
                put.push(write, numbers, sql(*at_ms));
            }
        }
        versions.extend(&planned.writes.versions, sql(*at_ms));
        for (_, head) in &planned.writes.heads {
            heads.tenant_no.push(tenant_sql(*tenant));
            heads.event_id.push(sql(head.event_id));
            heads.received_at.push(sql(*at_ms));
        }
    }
    let (ids, errors) = marks.into_iter().unzip();
    let mark = MarkRows { at: sql_ms(now_ms), ids, errors };
    let mut flight: Vec<BoxFuture<'_, QueryResult<usize>>> = Vec::new();
    if !heads.tenant_no.is_empty() {
        flight.push(put.execute(&mut { pg }).boxed());
        flight.push(versions.execute(&mut { pg }).boxed());
        flight.push(heads.execute(&mut { pg }).boxed());
    }
    flight.push(mark.execute(&mut { pg }).boxed());
    flight.push(Commit {}.execute(&mut { pg }).boxed());
    outcome(join_all(flight).await)
}

/// Removes rows that were processed before a time; gives their number.
pub(super) async fn clean(shared: &Shared, before_ms: u64) -> Result<u64, StoreError> {
    let mut removed = 0;
    loop {
        let lease = shared.writer().await?;
        let clean = CleanRows { before: sql_ms(before_ms.min(AT_MS_MAX)), rows: REMOVED };
        let gone = clean.execute(&mut lease.pg()).await;
        let gone = give_back(lease, gone.map_err(store_error)).await? as u64;
        removed += gone;
        if gone < REMOVED.unsigned_abs() {
            return Ok(removed);
        }
    }
}
