//! The one thread that writes.
//!
//! What queued up while the last commit ran becomes the next commit group: no timer, and one sync for many
//! batches. Answers go out after the commit. A commit that fails for another reason than a busy database ends
//! the process, because nobody can tell what is on the disk then.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use driftline_engine::{
    Clock, DeviceState, GroupState, Head, Listeners, PlanEnv, Planned, Random, Receipt, StoreError,
    Submission, Task, plan,
};
use driftline_model::{DeviceNo, KindName, ScopeName, TenantNo};
use tokio::sync::oneshot;

use super::hot::is_unique_violation;
use super::log::Topics;
use super::{Fatal, names, store_error};
use crate::group::{DeviceNames, GROUP_BATCHES, GROUP_BYTES, Lookup, QUEUED_BYTES_MAX, unproven};
use crate::names::{Fresh, Names};
use crate::rows::sql;

/// What the writer is asked to do.
pub(super) enum Job {
    /// Apply a batch.
    Commit(Submission, oneshot::Sender<Result<Receipt, StoreError>>, Queued),
    /// Do something else on the writing connection, between two commit groups.
    Run(Box<dyn FnOnce(&mut Writer) + Send>),
}

/// Bytes of batches that wait for the writer, as long as they do.
pub(super) struct Queued {
    bytes: usize,
    waiting: Arc<AtomicUsize>,
}

impl Queued {
    /// Counts a batch in, unless too much waits already.
    pub(super) fn count(waiting: &Arc<AtomicUsize>, bytes: usize) -> Option<Self> {
        let before = waiting.fetch_add(bytes, Ordering::Relaxed);
        let queued = Self { bytes, waiting: Arc::clone(waiting) };
        (before + bytes <= QUEUED_BYTES_MAX).then_some(queued)
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.waiting.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

pub(super) struct Writer {
    pub(super) connection: SqliteConnection,
    pub(super) names: Arc<Names>,
    /// Heads for look-ups; the lock is held for one of them.
    heads: Arc<Mutex<HashMap<TenantNo, Head>>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) random: Arc<dyn Random>,
    pub(super) listeners: Arc<dyn Listeners>,
    pub(super) fatal: Fatal,
    pub(super) skew_ms_max: u64,
    pub(super) record_bytes: usize,
    latest_ms: u64,
    /// States of devices, as they are in the table: this thread alone writes it.
    pub(super) states: HashMap<DeviceNo, DeviceState>,
    pub(super) devices: DeviceNames,
    /// Numbers of kinds and scopes that the transaction which runs has given.
    pub(super) fresh: Fresh,
    pub(super) topics: Topics,
}

/// Why a group was not committed.
pub(super) enum GroupError {
    /// A name of a change came again under another number, or may have: every answer must be looked up.
    DoubledName,
    Store(StoreError),
    /// No transaction could be begun, for example because another program holds the lock: no batch is at fault.
    NotBegun(StoreError),
}

impl From<StoreError> for GroupError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<GroupError> for StoreError {
    fn from(error: GroupError) -> Self {
        match error {
            GroupError::DoubledName => Self::Unavailable("a doubled key".into()),
            GroupError::Store(error) | GroupError::NotBegun(error) => error,
        }
    }
}

impl From<diesel::result::Error> for GroupError {
    fn from(error: diesel::result::Error) -> Self {
        if is_unique_violation(&error) { Self::DoubledName } else { Self::Store(store_error(error)) }
    }
}

impl Writer {
    pub(super) fn new(
        connection: SqliteConnection,
        (names, heads): (Arc<Names>, Arc<Mutex<HashMap<TenantNo, Head>>>),
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
        listeners: Arc<dyn Listeners>,
        fatal: Fatal,
        (skew_ms_max, record_bytes): (u64, usize),
    ) -> Self {
        Self {
            connection,
            names,
            heads,
            clock,
            random,
            listeners,
            fatal,
            skew_ms_max,
            record_bytes,
            latest_ms: 0,
            states: HashMap::new(),
            devices: DeviceNames::default(),
            fresh: Fresh::default(),
            topics: Topics::default(),
        }
    }

    /// The time of receipt: the clock's, and never an earlier one than before.
    pub(super) fn now_ms(&mut self) -> u64 {
        self.latest_ms = self.latest_ms.max(self.clock.now_ms());
        self.latest_ms
    }

    /// Keeps a head for look-ups.
    pub(super) fn keep_head(&self, tenant: TenantNo, head: Head) {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).insert(tenant, head);
    }

    /// Has the next look-up read the table, after a change beside the commit groups.
    pub(super) fn forget_head(&self, tenant: TenantNo) {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).remove(&tenant);
    }

    /// Works until every sender is gone.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        let mut held: Option<Job> = None;
        loop {
            let first = match held.take() {
                Some(job) => job,
                None => match jobs.recv() {
                    Ok(job) => job,
                    Err(_) => return,
                },
            };
            match first {
                Job::Run(run) => run(&mut self),
                Job::Commit(submission, answer, queued) => {
                    drop(queued);
                    let mut bytes = submission.bytes();
                    let (mut group, mut answers) = (vec![submission], vec![answer]);
                    while group.len() < GROUP_BATCHES && bytes < GROUP_BYTES {
                        match jobs.try_recv() {
                            Ok(Job::Commit(submission, answer, queued)) => {
                                drop(queued);
                                bytes += submission.bytes();
                                group.push(submission);
                                answers.push(answer);
                            }
                            Ok(other) => {
                                held = Some(other);
                                break;
                            }
                            Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                        }
                    }
                    self.commit(&group, answers);
                }
            }
        }
    }

    fn commit(&mut self, group: &[Submission], answers: Vec<oneshot::Sender<Result<Receipt, StoreError>>>) {
        match self.transact(group, Lookup::Likely) {
            Ok(receipts) => {
                for (answer, receipt) in answers.into_iter().zip(receipts) {
                    // Nobody waits any more: the batch is applied all the same and a resend is recognised.
                    let _ = answer.send(Ok(receipt));
                }
            }
            Err(GroupError::NotBegun(error)) => {
                for answer in answers {
                    let _ = answer.send(Err(error.clone()));
                }
            }
            // One batch is at fault, or a name came again: each batch runs alone, with every answer looked up.
            Err(error) => {
                if let GroupError::Store(error) = &error {
                    tracing::warn!(%error, batches = group.len(), "commit group failed, batches run one by one");
                }
                for (submission, answer) in group.iter().zip(answers) {
                    let receipt = self.transact(std::slice::from_ref(submission), Lookup::Thorough);
                    let _ = answer.send(match receipt {
                        Ok(mut receipts) => {
                            receipts.pop().ok_or(StoreError::Unavailable("no receipt".into()))
                        }
                        Err(error) => Err(error.into()),
                    });
                }
            }
        }
    }

    /// Loads, plans, writes and commits; or leaves everything as it was.
    fn transact(&mut self, group: &[Submission], lookup: Lookup) -> Result<Vec<Receipt>, GroupError> {
        let interned = self.intern(group);
        // Each of them is committed already, those before a failure too.
        self.fresh.clear();
        interned.map_err(GroupError::NotBegun)?;
        let begun = self.connection.batch_execute("BEGIN IMMEDIATE").map_err(store_error);
        begun.map_err(GroupError::NotBegun)?;
        match self.apply(group, lookup) {
            Ok((planned, state)) => {
                if let Err(error) = self.connection.batch_execute("COMMIT") {
                    (self.fatal)(&format!("the commit failed: {error}"));
                    return Err(GroupError::Store(store_error(error)));
                }
                drop(state);
                Ok(self.committed(planned))
            }
            Err(error) => {
                self.roll_back();
                Err(error)
            }
        }
    }

    /// Holds in memory what was committed, and tells of it.
    pub(super) fn committed(&mut self, planned: Planned) -> Vec<Receipt> {
        self.fresh.clear();
        self.topics.committed();
        for write in &planned.writes.devices {
            self.states.insert(write.device, write.state);
        }
        for (tenant, head) in &planned.writes.heads {
            self.keep_head(*tenant, *head);
        }
        for committed in planned.commits {
            self.listeners.committed(committed);
        }
        planned.receipts
    }

    /// Undoes the transaction and what was held in memory of it.
    pub(super) fn roll_back(&mut self) {
        if let Err(error) = self.connection.batch_execute("ROLLBACK") {
            tracing::error!(%error, "rollback failed");
        }
        self.names.forget(&mut self.fresh);
        self.topics.rolled_back();
    }

    pub(super) fn intern_kind(&mut self, tenant: TenantNo, kind: &KindName) -> Result<i32, StoreError> {
        names::intern_kind(&self.names, &mut self.connection, tenant, kind, &mut self.fresh)
    }

    pub(super) fn intern_scope(&mut self, tenant: TenantNo, scope: &ScopeName) -> Result<i32, StoreError> {
        names::intern_scope(&self.names, &mut self.connection, tenant, scope, &mut self.fresh)
    }

    /// Gives numbers to new kinds and scopes, before the transaction, so that they stay if it fails.
    fn intern(&mut self, group: &[Submission]) -> Result<(), StoreError> {
        for submission in group {
            let mut last: Option<(&KindName, Option<ScopeName>)> = None;
            for entry in &submission.entries {
                if matches!(entry.task, Task::Refuse(..)) {
                    continue;
                }
                let Some(kind) = &entry.kind else { continue };
                let scope = entry.scope();
                if last.as_ref().is_some_and(|(known, place)| *known == kind && *place == scope) {
                    continue;
                }
                self.intern_kind(submission.tenant, kind)?;
                if let Some(scope) = &scope {
                    self.intern_scope(submission.tenant, scope)?;
                }
                last = Some((kind, scope));
            }
        }
        Ok(())
    }

    /// Loads, plans and writes in the transaction that runs.
    pub(super) fn apply(
        &mut self,
        group: &[Submission],
        lookup: Lookup,
    ) -> Result<(Planned, GroupState), GroupError> {
        let mut state = self.load(group, lookup)?;
        let listeners = Arc::clone(&self.listeners);
        let now_ms = self.now_ms();
        let env = PlanEnv {
            now_ms,
            skew_ms_max: self.skew_ms_max,
            record_bytes: self.record_bytes,
            devices: &self.devices,
            listening: &|tenant| listeners.listening(tenant),
        };
        let planned = plan(group, &mut state, &env);
        if lookup == Lookup::Likely && unproven(group, &planned) {
            return Err(GroupError::DoubledName);
        }
        let now = sql(env.now_ms);
        self.write(&planned, &state, now)?;
        Ok((planned, state))
    }
}
