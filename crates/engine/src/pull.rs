//! Cursors and pages.

use driftline_model::{Epoch, KindName, Seq};
use driftline_protocol::{Change, ChangeKind, Cursor, Phase, Resume};
use thiserror::Error;

use crate::plan::{change_row, changed_since};
use crate::ports::{Head, Identity, Page, PageQuery, Place, Row, StoreError};

/// Why a pull gave no page.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PullFault {
    /// The text is no cursor of this server and tenant.
    #[error("the cursor is not one of this server")]
    CursorInvalid(Epoch),
    /// The sequence began a new life since the cursor was given.
    #[error("the cursor is of another epoch")]
    EpochChanged(Epoch),
    /// The cursor is older than what is retained.
    #[error("the cursor is older than what is retained")]
    CursorExpired(Epoch),
    /// A genuine cursor is ahead of the head: the store was rolled back.
    #[error("the cursor is ahead of the server")]
    Ahead(Epoch),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One step of a pull: what to ask the store and how to tell the rows.
#[derive(Debug)]
pub(crate) struct Step {
    /// The kinds that the next cursor covers; empty: all.
    kinds: Vec<KindName>,
    given: Option<Epoch>,
    phase: StepPhase,
}

#[derive(Debug)]
enum StepPhase {
    Log(Resume),
    /// A snapshot; the log follows from `then`, or from the head of the first page.
    Snapshot {
        after: Option<(KindName, driftline_model::RecordId)>,
        missing: Vec<KindName>,
        then: Option<Resume>,
    },
}

/// A page as it is told to the reader.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) changes: Vec<Change>,
    pub(crate) cursor: Cursor,
    pub(crate) has_more: bool,
}

impl Step {
    /// Plans the step after a cursor, for kinds that the reader wants and may read.
    pub(crate) fn new(cursor: Option<Cursor>, wanted: Vec<KindName>) -> Self {
        let Some(cursor) = cursor else {
            let phase = StepPhase::Snapshot { after: None, missing: Vec::new(), then: None };
            return Self { kinds: wanted, given: None, phase };
        };
        let lacking: Vec<KindName> =
            wanted.iter().filter(|kind| !cursor.kinds.contains(kind)).cloned().collect();
        let covers_all = cursor.kinds.is_empty();
        let widened = !covers_all && (wanted.is_empty() || !lacking.is_empty());
        let phase = match (cursor.phase, widened) {
            (Phase::Log(resume), false) => StepPhase::Log(resume),
            // Kinds that the cursor lacks come as a snapshot of their own, then one log tells of all.
            (Phase::Log(resume), true) => {
                StepPhase::Snapshot { after: None, missing: lacking, then: Some(resume) }
            }
            (Phase::Snapshot { after, mut missing, then }, false) => {
                // Kinds that the reader wants no more, or may read no more, are not paged any further.
                let partial = !missing.is_empty();
                missing.retain(|kind| wanted.is_empty() || wanted.contains(kind));
                if partial && missing.is_empty() {
                    StepPhase::Log(then)
                } else {
                    StepPhase::Snapshot { after, missing, then: Some(then) }
                }
            }
            (Phase::Snapshot { then, .. }, true) => {
                StepPhase::Snapshot { after: None, missing: Vec::new(), then: Some(then) }
            }
        };
        Self { kinds: wanted, given: Some(cursor.epoch), phase }
    }

    pub(crate) fn query(&self, identity: &Identity, rows: usize, bytes: usize) -> PageQuery {
        let (place, kinds) = match &self.phase {
            StepPhase::Log(resume) => (Place::After(resume.at), &self.kinds),
            StepPhase::Snapshot { after, missing, .. } => (
                Place::Key { after: after.clone(), only: crate::ports::Only::All },
                if missing.is_empty() { &self.kinds } else { missing },
            ),
        };
        PageQuery {
            tenant: identity.tenant,
            scopes: identity.scopes.clone(),
            kinds: kinds.clone(),
            place,
            rows,
            bytes,
            sums: false,
        }
    }

    /// Checks the place against the head that was read with the page.
    pub(crate) fn check(&self, head: &Head) -> Result<(), PullFault> {
        if self.given.is_some_and(|given| given != head.epoch) {
            return Err(PullFault::EpochChanged(head.epoch));
        }
        let resume = match &self.phase {
            StepPhase::Log(resume) => Some(resume),
            StepPhase::Snapshot { then, .. } => then.as_ref(),
        };
        match resume {
            Some(resume) if resume.at > head.seq => Err(PullFault::Ahead(head.epoch)),
            Some(resume) if resume.from < head.gc_floor => Err(PullFault::CursorExpired(head.epoch)),
            _ => Ok(()),
        }
    }

    /// Turns rows into changes, decided against where the reader was last caught up.
    pub(crate) fn tell(self, page: Page) -> Told {
        let Page { head, rows, more, .. } = page;
        let (changes, phase, has_more) = match self.phase {
            StepPhase::Log(Resume { from, at }) => {
                let last = rows.last().map_or(at, |row| row.record.version);
                let changes = rows.iter().map(|row| since(row, from)).collect();
                let resume =
                    if more { Resume { from, at: last } } else { Resume { from: head.seq, at: head.seq } };
                (changes, Phase::Log(resume), more)
            }
            StepPhase::Snapshot { after, missing, then } => {
                let then = then.unwrap_or(Resume { from: head.seq, at: head.seq });
                let last = rows.last().map(|row| (row.kind.clone(), row.id.clone())).or(after);
                let put = |row: &Row| change_row(row, ChangeKind::Put, row.record.fields.clone());
                let changes = rows.iter().map(put).collect();
                if more {
                    (changes, Phase::Snapshot { after: last, missing, then }, true)
                } else {
                    (changes, Phase::Log(then), then.at < head.seq)
                }
            }
        };
        let cursor =
            Cursor { epoch: head.epoch, kinds: self.kinds, scopes_version: head.scopes_version, phase };
        Told { changes, cursor, has_more }
    }
}

/// A row as it is told to a reader who was caught up at `from`.
fn since(row: &Row, from: Seq) -> Change {
    let record = &row.record;
    if row.deleted {
        return change_row(row, ChangeKind::Delete, driftline_model::Object::empty());
    }
    let created = record.default_mark.fv > from;
    let revived = record.del.is_some() && record.live.fv > from;
    if created || revived {
        return change_row(row, ChangeKind::Put, record.fields.clone());
    }
    change_row(row, ChangeKind::Patch, changed_since(record, from))
}
