//! Commit groups: load, plan, write, commit, in two flights of statements.
//!
//! A flight is statements that travel together. The first begins the transaction, locks the head and loads what the
//! plan needs: under READ COMMITTED every statement behind the lock sees all that was committed before it was granted.
//! The second writes and commits: when one of its statements fails, the commit that follows it takes everything back.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use diesel::QueryableByName;
use diesel::result::{DatabaseErrorKind, Error};
use diesel::sql_query;
use diesel::sql_types::BigInt;
use diesel_async::RunQueryDsl;
use driftline_engine::{
    Answered, Entry, EventDraft, PlanEnv, Planned, Receipt, StoreError, Submission, Task, plan,
};
use driftline_model::{KindName, ScopeName, TenantNo};

use super::connect::Lease;
use super::lanes::Answer;
use super::load::{Loaded, load};
use super::tell::Turn;
use super::write::{Numbers, Unwritten, write};
use super::{Shared, names, store_error, topics};
use crate::codec::encode_receipt;
use crate::group::{Lookup, unproven};
use crate::rows::sql;

/// Why a group was not committed.
pub(super) enum Failure {
    /// A name of a change came again under another number, or may have: every answer must be looked up.
    DoubledName,
    /// The audit has no partition for the time of receipt yet.
    NoMonth(u64),
    /// Names that have no numbers yet: they showed in the plan.
    Unnamed(Unnamed),
    /// There was no connection: nothing was applied.
    Away(String),
    /// The connection went away before the commit was asked for: nothing was applied.
    Lost(String),
    /// The connection went away while the commit was under way: nobody knows what became of it. Of each batch, whether
    /// it is recognised when it comes again.
    Unknown(String, Vec<bool>),
    /// The database or the store refused; nothing was applied.
    Refused(StoreError),
}

/// Names that have no numbers yet.
#[derive(Default)]
pub(super) struct Unnamed {
    pub(super) kinds: BTreeSet<KindName>,
    pub(super) scopes: BTreeSet<ScopeName>,
    pub(super) topics: BTreeSet<Box<str>>,
}

impl Unnamed {
    pub(super) fn is_empty(&self) -> bool {
        self.kinds.is_empty() && self.scopes.is_empty() && self.topics.is_empty()
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _) => Self::DoubledName,
            // The primary has become a standby; another one takes the writes.
            Error::DatabaseError(DatabaseErrorKind::ReadOnlyTransaction, told) => {
                Self::Lost(told.message().to_owned())
            }
            other => Self::Refused(store_error(other)),
        }
    }
}

impl Failure {
    fn reason(&self) -> StoreError {
        match self {
            Self::DoubledName => StoreError::Unavailable("a doubled key".into()),
            Self::Unnamed(..) => StoreError::Unavailable("a name has no number".into()),
            Self::NoMonth(_) => StoreError::Unavailable("the audit has no partition for this month".into()),
            Self::Away(reason) | Self::Lost(reason) => StoreError::Unavailable(reason.clone()),
            Self::Unknown(reason, _) => {
                StoreError::Unavailable(format!("{reason}; whether the batch was applied is not known yet"))
            }
            Self::Refused(error) => error.clone(),
        }
    }
}

/// How long is waited before a group is tried again, in milliseconds; so many times it is. That outlasts a restart of
/// the database; the last waits are short, because what a tenant sends meanwhile waits behind its group.
const AGAIN_MS: [u64; 10] = [20, 100, 250, 250, 250, 250, 250, 250, 250, 250];

/// So many connections a group may cost before its batches run alone.
const LOST_MAX: usize = 4;

/// Writes a group, and answers each of its batches: with its receipt, or that it must be sent again.
pub(super) async fn run_group(
    shared: &Shared,
    tenant: TenantNo,
    mut group: Vec<Submission>,
    mut answers: Vec<Answer>,
) {
    let mut lookup = Lookup::Likely;
    let mut tries = AGAIN_MS.iter();
    let mut lost = 0;
    let failure = loop {
        let failure = match transact(shared, tenant, &group, lookup).await {
            Ok(receipts) => {
                for (answer, receipt) in answers.into_iter().zip(receipts) {
                    // Nobody waits any more: the batch is applied all the same and a resend is recognised.
                    let _ = answer.send(Ok(receipt));
                }
                return;
            }
            Err(failure) => failure,
        };
        let failure = match prepare(shared, tenant, &failure).await {
            None => failure,
            Some(Ok(())) if tries.next().is_some() => continue,
            Some(Ok(())) => break failure,
            Some(Err(failure)) => failure,
        };
        match failure {
            Failure::Away(_) => {}
            Failure::Lost(_) => lost += 1,
            // What was committed is recognised when it is planned again, if it can be recognised at all.
            Failure::Unknown(_, ref recognisable) => {
                lost += 1;
                (group, answers) = keep_recognisable(group, answers, recognisable, &failure);
            }
            _ => break failure,
        }
        // It may be the group that costs the connection: too large a message, or too long a plan.
        if lost == LOST_MAX {
            break failure;
        }
        // Once per group, which is tried again and again.
        if lookup == Lookup::Likely {
            tracing::warn!(reason = %failure.reason(), batches = group.len(), "commit group lost its connection, trying again");
        }
        lookup = Lookup::Thorough;
        match tries.next() {
            // Whoever asked is told to come again when the time to wait is over.
            Some(wait_ms) if !answers.iter().all(Answer::is_closed) => {
                tokio::time::sleep(Duration::from_millis(*wait_ms)).await;
                if answers.iter().all(Answer::is_closed) {
                    break failure;
                }
            }
            _ => break failure,
        }
    };
    one_by_one(shared, tenant, group, answers, failure).await;
}

/// Makes what a group lacked, if that is why it failed.
async fn prepare(shared: &Shared, tenant: TenantNo, failure: &Failure) -> Option<Result<(), Failure>> {
    match failure {
        Failure::NoMonth(at_ms) => Some(make_month(shared, *at_ms).await),
        Failure::Unnamed(unnamed) => Some(name(shared, tenant, unnamed).await),
        _ => None,
    }
}

/// Borrows a connection to write; without one, nothing was applied.
async fn writer(shared: &Shared) -> Result<Lease, Failure> {
    shared.writer().await.map_err(|error| match error {
        StoreError::Unavailable(reason) => Failure::Away(reason),
        other => other.into(),
    })
}

async fn name(shared: &Shared, tenant: TenantNo, unnamed: &Unnamed) -> Result<(), Failure> {
    let lease = writer(shared).await?;
    let topics = unnamed.topics.iter().map(|topic| &**topic).collect();
    if let Err(error) = intern(shared, &lease, tenant, (&unnamed.kinds, &unnamed.scopes), topics).await {
        return Err(ended(lease, error.into()).await);
    }
    lease.done();
    Ok(())
}

async fn intern(
    shared: &Shared,
    lease: &Lease,
    tenant: TenantNo,
    (kinds, scopes): (&BTreeSet<KindName>, &BTreeSet<ScopeName>),
    topics: BTreeSet<&str>,
) -> Result<(), StoreError> {
    names::intern(&shared.caches.names, lease.pg(), tenant, kinds, scopes).await?;
    topics::intern(&shared.caches, lease.pg(), tenant, topics).await
}

/// Answers the batches that cannot be recognised when they come again.
fn keep_recognisable(
    group: Vec<Submission>,
    answers: Vec<Answer>,
    recognisable: &[bool],
    failure: &Failure,
) -> (Vec<Submission>, Vec<Answer>) {
    let mut kept = (Vec::new(), Vec::new());
    for ((submission, answer), recognisable) in group.into_iter().zip(answers).zip(recognisable) {
        if *recognisable {
            kept.0.push(submission);
            kept.1.push(answer);
        } else {
            let _ = answer.send(Err(failure.reason()));
        }
    }
    kept
}

/// One batch is at fault, or a name came again: each batch runs alone, with every answer looked up. A database that is
/// away is not asked again for each of them.
async fn one_by_one(
    shared: &Shared,
    tenant: TenantNo,
    group: Vec<Submission>,
    answers: Vec<Answer>,
    failure: Failure,
) {
    let mut away = matches!(failure, Failure::Away(_));
    if !away && !matches!(failure, Failure::DoubledName) {
        tracing::warn!(reason = %failure.reason(), batches = group.len(), "commit group failed, batches run one by one");
    }
    for (submission, answer) in group.into_iter().zip(answers) {
        if away || answer.is_closed() {
            let _ = answer.send(Err(failure.reason()));
            continue;
        }
        let done = alone(shared, tenant, &submission).await;
        away = matches!(done, Err(Failure::Away(_)));
        let _ = answer.send(match done {
            Ok(mut receipts) => receipts.pop().ok_or_else(|| StoreError::Unavailable("no receipt".into())),
            Err(failure) => Err(failure.reason()),
        });
    }
}

async fn alone(shared: &Shared, tenant: TenantNo, submission: &Submission) -> Result<Vec<Receipt>, Failure> {
    let batch = std::slice::from_ref(submission);
    for _ in AGAIN_MS {
        let failure = match transact(shared, tenant, batch, Lookup::Thorough).await {
            Ok(receipts) => return Ok(receipts),
            Err(failure) => failure,
        };
        match prepare(shared, tenant, &failure).await {
            Some(Ok(())) => {}
            Some(Err(failure)) => return Err(failure),
            None => return Err(failure),
        }
    }
    Err(StoreError::Unavailable("the batch needs new names again and again".into()).into())
}

/// Loads, plans, writes and commits; or leaves everything as it was.
async fn transact(
    shared: &Shared,
    tenant: TenantNo,
    group: &[Submission],
    lookup: Lookup,
) -> Result<Vec<Receipt>, Failure> {
    let lease = writer(shared).await?;
    let (kinds, scopes) = names::of_group(group);
    let topics = topics::of_group(group);
    if let Err(error) = intern(shared, &lease, tenant, (&kinds, &scopes), topics).await {
        return Err(ended(lease, error.into()).await);
    }
    let loaded = match load(shared, lease.pg(), tenant, group, lookup).await {
        Ok(loaded) => loaded,
        Err(failure) => return Err(ended(lease, failure).await),
    };
    #[cfg(test)]
    if let Some(faults) = shared.faults.get() {
        faults.pause().await;
    }
    let (planned, loaded) = match planned(shared, group, loaded, lookup) {
        Ok(planned) => planned,
        Err(failure) => return Err(ended(lease, failure).await),
    };
    let state = &loaded.state;
    let numbers = match Numbers::of(&shared.caches, tenant, &planned.writes, state) {
        Ok(numbers) => numbers,
        Err(failure) => return Err(ended(lease, failure).await),
    };
    let turn = shared.caches.tellers.take_turn(tenant);
    match write(lease.pg(), tenant, (&planned, state), &numbers, loaded.now_ms).await {
        Ok(()) => lease.done(),
        Err(failed) => return Err(unwritten(lease, failed, || recognisable(group, &planned))),
    }
    Ok(told(shared, turn, planned).await)
}

/// Says what became of a group whose writes or commit failed.
fn unwritten(lease: Lease, failed: Unwritten, recognisable: impl FnOnce() -> Vec<bool>) -> Failure {
    match failed {
        Unwritten::Unknown(error) => Failure::Unknown(error.to_string(), recognisable()),
        Unwritten::Ended(error) => Failure::Lost(error.to_string()),
        Unwritten::TakenBack(error) => {
            let failure = error.into();
            if !matches!(failure, Failure::Lost(_)) {
                lease.done();
            }
            failure
        }
    }
}

/// Tells of each batch whether it is recognised when it comes again, if it was committed: by its own name, with an answer
/// that is kept whole, or because every item of it is.
fn recognisable(group: &[Submission], planned: &Planned) -> Vec<bool> {
    let writes = &planned.writes;
    let keys = writes.once.iter().map(|write| write.receipt);
    let batches = writes.batches.iter().filter_map(|write| Some(write.answer?.1));
    let named: BTreeSet<usize> = keys.chain(batches).collect();
    let known = |entry: &Entry| match entry.task {
        Task::Append(_) => true,
        Task::Aggregate(_) => false,
        Task::Apply(_) | Task::Refuse(..) | Task::Resolve(_) => entry.n.is_some() || entry.op_id.is_some(),
    };
    // One that is not kept was not told of either.
    let published = |draft: &EventDraft| !draft.durable || draft.dedupe_key.is_some();
    let both = group.iter().zip(&planned.receipts).enumerate();
    both.map(|(at, (submission, receipt))| {
        let did_nothing = receipt.answered != Answered::Applied;
        did_nothing
            || (submission.entries.iter().all(known) && submission.events.iter().all(published))
            || (named.contains(&at) && encode_receipt(receipt).is_some())
    })
    .collect()
}

/// Plans a loaded group.
fn planned(
    shared: &Shared,
    group: &[Submission],
    mut loaded: Loaded,
    lookup: Lookup,
) -> Result<(Planned, Loaded), Failure> {
    let env = PlanEnv {
        now_ms: loaded.now_ms,
        skew_ms_max: shared.skew_ms_max,
        record_bytes: shared.record_bytes,
        devices: &loaded.devices,
        listening: &|tenant| shared.listeners.listening(tenant),
    };
    let planned = plan(group, &mut loaded.state, &env);
    if lookup == Lookup::Likely && unproven(group, &planned) {
        return Err(Failure::DoubledName);
    }
    if !planned.writes.audits.is_empty() && !shared.caches.months.cover(loaded.now_ms) {
        return Err(Failure::NoMonth(loaded.now_ms));
    }
    Ok((planned, loaded))
}

/// Tells of a commit, after it.
async fn told(shared: &Shared, turn: Turn<'_>, planned: Planned) -> Vec<Receipt> {
    for write in &planned.writes.devices {
        shared.caches.last_ns.insert(write.device, write.state.last_n);
    }
    // A group is of one tenant.
    if let Some(committed) = planned.commits.into_iter().next() {
        turn.tell(shared, committed).await;
    }
    planned.receipts
}

/// Ends a transaction that failed before its commit was asked for.
async fn ended(lease: Lease, failure: Failure) -> Failure {
    if matches!(failure, Failure::Lost(_)) {
        drop(lease);
        return failure;
    }
    let stood = lease.roll_back().await;
    match failure {
        Failure::Refused(StoreError::Unavailable(reason)) if !stood => Failure::Lost(reason),
        other => other,
    }
}

/// The months that the audit is known to have partitions for.
#[derive(Default)]
pub(super) struct Months {
    /// Beginnings and ends. The lock is held for a look-up or an insertion.
    known: Mutex<Vec<(u64, u64)>>,
}

impl Months {
    fn cover(&self, at_ms: u64) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().any(|(begin, end)| (*begin..*end).contains(&at_ms))
    }

    pub(super) fn clear(&self) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[derive(QueryableByName)]
struct Month {
    #[diesel(sql_type = BigInt)]
    month_begin: i64,
    #[diesel(sql_type = BigInt)]
    month_end: i64,
}

/// Makes the audit's partition for a time, unless it is there.
async fn make_month(shared: &Shared, at_ms: u64) -> Result<(), Failure> {
    let lease = writer(shared).await?;
    let made = sql_query("SELECT month_begin, month_end FROM audit_month($1)")
        .bind::<BigInt, _>(sql(at_ms))
        .get_result::<Month>(&mut lease.pg())
        .await;
    let month = match made {
        Ok(month) => month,
        Err(error) => return Err(ended(lease, store_error(error).into()).await),
    };
    lease.done();
    let bound = |ms: i64| u64::try_from(ms).unwrap_or_default();
    let mut known = shared.caches.months.known.lock().unwrap_or_else(PoisonError::into_inner);
    known.push((bound(month.month_begin), bound(month.month_end)));
    Ok(())
}

/// What tests make worse.
#[cfg(test)]
#[derive(Default)]
pub(super) struct Faults {
    /// Milliseconds, drawn anew for every transaction, that it waits between its two flights.
    pub(super) pause_ms: Option<Box<dyn Fn() -> u64 + Send + Sync>>,
    /// Leaves the head unlocked.
    pub(super) head_unlocked: bool,
}

#[cfg(test)]
impl Faults {
    async fn pause(&self) {
        if let Some(draw) = &self.pause_ms {
            tokio::time::sleep(Duration::from_millis(draw())).await;
        }
    }
}
