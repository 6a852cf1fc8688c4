//! The review queue and the audit log.

use std::sync::Arc;

use driftline_conflict::Policy;
use driftline_idempotency::{Decision, decide};
use driftline_model::{ConflictId, DeviceKey, KindName};
use driftline_protocol::{
    ConflictResolved, ErrorCode, Fault, FieldError, ItemCode, RecordView, ResolveConflict, Whole,
};

use super::{Engine, judged, not_found, reused, unavailable};
use crate::events::announcing;
use crate::group::{
    Entry, Once, OnceKey, Placement, Remembered, Resolve, Resolved, Submission, SubmissionResult, Task,
};
use crate::plan::view;
use crate::policies::Policies;
use crate::ports::{AuditEntry, Identity, Observer, Store};
use crate::review::{AuditQuery, ConflictQuery, ConflictRow, conflict_doc};

/// The device under whose name a reviewer's decisions are written, beside the devices that count their own changes.
const REVIEW_DEVICE: &str = "$review";

/// The most rows of one page.
const ROWS_MAX: usize = 500;

impl<S: Store, O: Observer> Engine<S, O> {
    /// Lists conflicts of the kinds that the user may decide, in the scopes that the user reads.
    ///
    /// # Errors
    /// `FORBIDDEN` without the right to decide any; `STORE_UNAVAILABLE`.
    pub async fn conflicts(
        &self,
        identity: &Identity,
        mut query: ConflictQuery,
    ) -> Result<Vec<ConflictRow>, Fault> {
        query.kinds = reviewed_kinds(identity, query.kinds)?;
        query.scopes.clone_from(&identity.scopes);
        query.rows = query.rows.clamp(1, ROWS_MAX + 1);
        self.store.conflicts(identity.tenant, query).await.map_err(|error| unavailable(&error))
    }

    /// Reads one conflict: a reviewer any, a device its own.
    ///
    /// # Errors
    /// `CONFLICT_NOT_FOUND`, also for what the user may not see; `STORE_UNAVAILABLE`.
    pub async fn conflict(
        &self,
        identity: &Identity,
        conflict_id: &ConflictId,
    ) -> Result<ConflictRow, Fault> {
        let row = self.store.conflict(identity.tenant, conflict_id).await;
        let row = row.map_err(|error| unavailable(&error))?.ok_or_else(no_conflict)?;
        // The record may have moved since the row was written: its own scope counts.
        let record = self.store.record(identity.tenant, &row.kind, &row.id).await;
        let record = record.map_err(|error| unavailable(&error))?;
        let scope = record.map_or_else(|| row.scope.clone(), |record| record.scope);
        let own = *row.device_key.user() == *identity.user.to_string();
        let sees = identity.scopes.contains(&scope) && (own || identity.reviews.contains(&row.kind));
        if sees { Ok(row) } else { Err(no_conflict()) }
    }

    /// Decides a conflict, if its record is still the one that the reviewer saw.
    ///
    /// # Errors
    /// `CONFLICT_NOT_FOUND`; `FORBIDDEN` without the right to decide it; `CONFLICT_ALREADY_RESOLVED`;
    /// `CONFLICT_STALE` with the record as it is now: nothing was decided; `VALIDATION_ERROR` for values that the kind
    /// does not take; `STORE_UNAVAILABLE`.
    pub async fn resolve(
        &self,
        identity: &Identity,
        request: ResolveConflict,
        now_ms: u64,
        correlation: &str,
    ) -> Result<ConflictResolved, Fault> {
        let resolved = self.resolve_once(identity, request, None, now_ms, correlation).await;
        resolved.map(|(resolved, _)| resolved)
    }

    /// Decides a conflict as [`Engine::resolve`] does; tells whether the same request decided it before, of which the
    /// decided conflict is the answer.
    ///
    /// # Errors
    /// As [`Engine::resolve`]; `IDEMPOTENCY_KEY_REUSED`, `IDEMPOTENCY_IN_PROGRESS`.
    pub async fn resolve_once(
        &self,
        identity: &Identity,
        request: ResolveConflict,
        once: Option<Once>,
        now_ms: u64,
        correlation: &str,
    ) -> Result<(ConflictResolved, bool), Fault> {
        let row = self.conflict(identity, &request.conflict_id).await?;
        if !identity.reviews.contains(&row.kind) {
            return Err(may_not_review());
        }
        if let Some(once) = &once
            && let Some(known) = self.known(identity, once, now_ms).await?
        {
            let record = match known {
                Remembered::Receipt(receipt) => receipt.results.into_iter().next(),
                _ => None,
            };
            let record = record.and_then(|result| result.record);
            return self.decided(identity, &request.conflict_id, record).await;
        }
        if !row.status.is_open() {
            return Err(already(&row));
        }
        let conflict_id = request.conflict_id.clone();
        let mut submission = self.resolution(identity, &row, request, now_ms, correlation).await?;
        submission.once.extend(once);
        let receipt = self.commit(identity, submission, now_ms).await.map_err(|error| unavailable(&error))?;
        if judged(receipt.answered)? {
            let record = receipt.results.into_iter().next().and_then(|result| result.record);
            return self.decided(identity, &conflict_id, record).await;
        }
        let result = receipt.results.into_iter().next();
        let result = result.unwrap_or_else(|| SubmissionResult::of(ItemCode::RetryLater));
        match result.resolved.as_deref() {
            Some(Resolved::Done(row)) => Ok((resolved(row, result.record.clone()), false)),
            Some(Resolved::Already(row)) => Err(already(row)),
            Some(Resolved::Stale(_)) => Err(stale(result.record)),
            // Only open conflicts are loaded: it was decided since it was read here.
            Some(Resolved::NotFound) => Err(already(&row)),
            None => Err(refused(result)),
        }
    }

    /// Tells whether a request was answered before.
    ///
    /// # Errors
    /// `IDEMPOTENCY_KEY_REUSED` when its key was used for another one; `STORE_UNAVAILABLE`.
    pub async fn is_known(&self, identity: &Identity, once: &Once, now_ms: u64) -> Result<bool, Fault> {
        self.known(identity, once, now_ms).await.map(|known| known.is_some())
    }

    /// Finds what is remembered of a request that was answered before.
    async fn known(
        &self,
        identity: &Identity,
        once: &Once,
        now_ms: u64,
    ) -> Result<Option<Remembered>, Fault> {
        let OnceKey::Request { owner, key } = &once.key else { return Ok(None) };
        let known = self.store.remembered(identity.tenant, owner, key).await;
        let known = known.map_err(|error| unavailable(&error))?;
        match decide(known.as_ref(), &once.fingerprint, now_ms) {
            Decision::Replay(answer) => Ok(Some(answer.clone())),
            Decision::Mismatch => Err(reused()),
            Decision::Execute | Decision::TakeOver { .. } | Decision::InProgress { .. } => Ok(None),
        }
    }

    /// Answers again what was decided, with the record as it stood then or, where that is not known any more, stands
    /// now.
    async fn decided(
        &self,
        identity: &Identity,
        conflict_id: &ConflictId,
        record: Option<RecordView>,
    ) -> Result<(ConflictResolved, bool), Fault> {
        let row = self.conflict(identity, conflict_id).await?;
        let record = match record {
            Some(record) => Some(record),
            None => {
                let found = self.store.record(identity.tenant, &row.kind, &row.id).await;
                let found = found.map_err(|error| unavailable(&error))?;
                found.map(|found| view(&found.record, found.deleted))
            }
        };
        Ok((resolved(&row, record), true))
    }

    async fn resolution(
        &self,
        identity: &Identity,
        row: &ConflictRow,
        request: ResolveConflict,
        now_ms: u64,
        correlation: &str,
    ) -> Result<Submission, Fault> {
        let own = self.own_policies(identity, now_ms).await?;
        let policy = Policies::policy(&own, &self.catalogue, &row.kind);
        let policy = policy.unwrap_or_else(|| Arc::new(Policy::field_merge()));
        let rule = self.catalogue.kind(&row.kind).ok_or_else(not_found)?;
        // What a reviewer writes has to be what the kind takes, as from anybody else.
        let errors = rule.schema.as_ref().map(|schema| schema.check(&request.fields, Whole::Patch));
        if let Some(errors) = errors.filter(|errors| !errors.is_empty()) {
            let fault = Fault::new(ErrorCode::ValidationError, "the kind does not take these values");
            return Err(Fault { errors, ..fault });
        }
        let placement = match rule.scope.placement(&identity.user) {
            Placement::Fixed(_) => Placement::Fixed(row.scope.clone()),
            group @ Placement::Group(_) => group,
        };
        let announce = announcing(rule.announce.as_ref(), None);
        let key = DeviceKey::from_text(&format!("{}\u{1}{REVIEW_DEVICE}", identity.user));
        let device = self.store.device(identity.tenant, &key).await.map_err(|error| unavailable(&error))?;
        let entry = Entry {
            op_id: None,
            n: None,
            hash: 0,
            kind: Some(row.kind.clone()),
            id: Some(row.id.clone()),
            group: None,
            task: Task::Resolve(Resolve {
                conflict_id: request.conflict_id,
                resolution: request.resolution,
                fields: request.fields,
                version: request.version,
                placement,
                policy,
                announce,
            }),
        };
        Ok(Submission {
            once: Vec::new(),
            tenant: identity.tenant,
            device,
            user: identity.user.to_string().into(),
            scopes: identity.scopes.clone(),
            epoch: None,
            acked_n: None,
            batch: None,
            correlation: correlation.into(),
            entries: vec![entry],
            events: Vec::new(),
        })
    }

    /// Lists audit rows of the kinds that the user may decide conflicts of, and of records in the scopes that the user
    /// reads, newest first.
    ///
    /// # Errors
    /// `FORBIDDEN` without the right to decide any; `STORE_UNAVAILABLE`.
    pub async fn audit(&self, identity: &Identity, mut query: AuditQuery) -> Result<Vec<AuditEntry>, Fault> {
        query.kinds = reviewed_kinds(identity, query.kinds)?;
        query.scopes.clone_from(&identity.scopes);
        query.rows = query.rows.clamp(1, ROWS_MAX + 1);
        self.store.audit(identity.tenant, query).await.map_err(|error| unavailable(&error))
    }
}

/// Returns the wanted kinds, if the user may decide conflicts of all of them; where none is named, all that it may.
fn reviewed_kinds(identity: &Identity, wanted: Vec<KindName>) -> Result<Vec<KindName>, Fault> {
    let reviews = &identity.reviews;
    if reviews.is_empty() || !wanted.iter().all(|kind| reviews.contains(kind)) {
        return Err(may_not_review());
    }
    if wanted.is_empty() { Ok(reviews.kinds().map(<[_]>::to_vec).unwrap_or_default()) } else { Ok(wanted) }
}

/// What is told when a conflict was decided.
pub(crate) fn resolved(row: &ConflictRow, record: Option<RecordView>) -> ConflictResolved {
    ConflictResolved { conflict: conflict_doc(row), record }
}

fn no_conflict() -> Fault {
    Fault::new(ErrorCode::ConflictNotFound, "there is no such conflict here")
}

fn may_not_review() -> Fault {
    Fault::new(ErrorCode::Forbidden, "the token's roles may not decide these conflicts")
}

fn already(row: &ConflictRow) -> Fault {
    let by = match &row.status {
        crate::review::ConflictStatus::Resolved { by, .. } => format!(" by {by}"),
        crate::review::ConflictStatus::Open => String::new(),
    };
    Fault::new(ErrorCode::ConflictAlreadyResolved, format!("the conflict was decided before{by}"))
}

fn stale(record: Option<RecordView>) -> Fault {
    let message = "the record changed since it was read: look at it again and send its version";
    let fault = Fault::new(ErrorCode::ConflictStale, message);
    match record {
        Some(record) => fault.with_record(record),
        None => fault,
    }
}

/// A decision whose values the record does not take.
fn refused(result: SubmissionResult) -> Fault {
    let code = match result.code {
        ItemCode::Forbidden => ErrorCode::Forbidden,
        ItemCode::RetryLater | ItemCode::Busy => ErrorCode::StoreUnavailable,
        _ => ErrorCode::ValidationError,
    };
    let mut fault = Fault::new(code, format!("the decision was not carried out: {}", result.code));
    fault.errors = result.errors;
    if fault.errors.is_empty() && code == ErrorCode::ValidationError {
        fault.errors.push(FieldError {
            code: result.code.as_str().into(),
            pointer: "/fields".into(),
            message: "the record does not take these values".into(),
        });
    }
    fault
}
