//! Cursors and pages.

use driftline_conflict::Life;
use driftline_model::{Epoch, KindName, Object, RecordId, ScopeName, Seq};
use driftline_protocol::{
    Change, ChangeKind, Checksum, Cursor, ErrorCode, Fault, Missing, Phase, Progress, Resume, ResyncReason,
};
use thiserror::Error;

use crate::plan::{change_row, changed_since};
use crate::ports::{Head, Identity, Left, Only, Page, PageQuery, Place, Row, ScopeSum, StoreError};
use crate::service::unavailable;

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

impl PullFault {
    /// Returns what the reader is told. What the store says of itself is not for readers.
    #[must_use]
    pub fn fault(&self) -> Fault {
        let code = match self {
            Self::CursorInvalid(_) | Self::EpochChanged(_) | Self::Ahead(_) => ErrorCode::CursorInvalid,
            Self::CursorExpired(_) => ErrorCode::CursorExpired,
            Self::Store(error) => return unavailable(error),
        };
        Fault::new(code, self.to_string())
    }

    /// Returns what the reader has to do before it pulls again, if anything.
    #[must_use]
    pub fn resync(&self) -> Option<(ResyncReason, Epoch)> {
        match self {
            Self::CursorInvalid(epoch) | Self::CursorExpired(epoch) => {
                Some((ResyncReason::CursorExpired, *epoch))
            }
            Self::EpochChanged(epoch) | Self::Ahead(epoch) => Some((ResyncReason::EpochChanged, *epoch)),
            Self::Store(_) => None,
        }
    }
}

/// One step of a pull: what to ask the store and how to tell the rows.
#[derive(Debug)]
pub(crate) struct Step {
    /// The kinds that the next cursor covers; empty: all.
    kinds: Vec<KindName>,
    /// The reader's scopes, sorted.
    scopes: Vec<ScopeName>,
    given: Option<Epoch>,
    phase: StepPhase,
}

#[derive(Debug)]
enum StepPhase {
    Log(Resume),
    /// Rows of scopes that the reader lost.
    Evict {
        after: Option<Key>,
        lost: Vec<ScopeName>,
        missing: Missing,
        then: Resume,
    },
    /// A snapshot; the log follows from `then`, or from the head of the first page.
    Snapshot {
        after: Option<Key>,
        missing: Missing,
        sent: u64,
        then: Option<Resume>,
    },
}

type Key = (KindName, RecordId);

/// A page as it is told to the reader.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) changes: Vec<Change>,
    pub(crate) cursor: Cursor,
    pub(crate) has_more: bool,
    /// What the reader should hold now; empty unless it is caught up.
    pub(crate) checksums: Vec<Checksum>,
    pub(crate) progress: Option<Progress>,
    pub(crate) epoch_seq: Option<Seq>,
}

impl Step {
    /// Plans the step after a cursor, for kinds that the reader wants and may read, in the scopes that it reads.
    ///
    /// Kinds and scopes that the cursor lacks come as a snapshot of their own, then one log tells of all. Scopes that
    /// the cursor has and the reader lost are told as evictions before that.
    pub(crate) fn new(cursor: Option<Cursor>, wanted: Vec<KindName>, scopes: &[ScopeName]) -> Self {
        let mut scopes = scopes.to_vec();
        scopes.sort();
        scopes.dedup();
        let Some(cursor) = cursor else {
            let missing = Missing { all: true, ..Missing::default() };
            let phase = StepPhase::Snapshot { after: None, missing, sent: 0, then: None };
            return Self { kinds: wanted, scopes, given: None, phase };
        };
        let fresh = lacking(&cursor, &wanted, &scopes);
        let lost: Vec<ScopeName> =
            cursor.scopes.iter().filter(|scope| !scopes.contains(scope)).cloned().collect();
        let phase = match cursor.phase {
            Phase::Log(then) => begin(lost, fresh, then),
            Phase::Evict { after, lost: before, missing, then } => {
                let mut still: Vec<ScopeName> =
                    before.into_iter().filter(|scope| !scopes.contains(scope)).collect();
                let missing = united(missing, fresh);
                if lost.is_empty() && !still.is_empty() {
                    StepPhase::Evict { after, lost: still, missing, then }
                } else {
                    still.extend(lost);
                    begin(still, missing, then)
                }
            }
            Phase::Snapshot { after, missing, sent, then } if lost.is_empty() && fresh.is_none() => {
                // Kinds and scopes that the reader wants no more, or may read no more, are not paged any further.
                let missing = narrowed(missing, &wanted, &scopes);
                if missing.is_none() {
                    StepPhase::Log(then)
                } else {
                    StepPhase::Snapshot { after, missing, sent, then: Some(then) }
                }
            }
            Phase::Snapshot { missing, then, .. } => {
                begin(lost, united(narrowed(missing, &wanted, &scopes), fresh), then)
            }
        };
        Self { kinds: wanted, scopes, given: Some(cursor.epoch), phase }
    }

    pub(crate) fn query(&self, identity: &Identity, rows: usize, bytes: usize) -> PageQuery {
        let (place, kinds) = match &self.phase {
            StepPhase::Log(resume) => (Place::After(resume.at), self.kinds.clone()),
            // What is lost is lost in every kind.
            StepPhase::Evict { after, lost, .. } => {
                (Place::Lost { after: after.clone(), lost: lost.clone() }, Vec::new())
            }
            StepPhase::Snapshot { after, missing, .. } => {
                let only = if missing.all {
                    Only::All
                } else {
                    Only::Some { kinds: missing.kinds.clone(), scopes: missing.scopes.clone() }
                };
                (Place::Key { after: after.clone(), only }, self.kinds.clone())
            }
        };
        let sums = !matches!(self.phase, StepPhase::Evict { .. });
        PageQuery { tenant: identity.tenant, scopes: self.scopes.clone(), kinds, place, rows, bytes, sums }
    }

    /// Checks the place against the head that was read with the page.
    pub(crate) fn check(&self, head: &Head) -> Result<(), PullFault> {
        if self.given.is_some_and(|given| given != head.epoch) {
            return Err(PullFault::EpochChanged(head.epoch));
        }
        let resume = match &self.phase {
            StepPhase::Log(resume) | StepPhase::Evict { then: resume, .. } => Some(resume),
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
        let head = page.head;
        let (mut progress, mut epoch_seq) = (None, None);
        let (changes, phase, sums) = match self.phase {
            StepPhase::Log(resume) => tell_log(resume, page),
            StepPhase::Evict { lost, missing, then, after } => tell_lost(after, lost, missing, then, page),
            StepPhase::Snapshot { after, missing, sent, then } => {
                let then = then.unwrap_or(Resume { from: head.seq, at: head.seq });
                let sent = sent + page.rows.len() as u64;
                epoch_seq = missing.all.then_some(head.epoch_seq);
                progress = Some(Progress { sent, total: total(&missing, &page.sums).max(sent) });
                let last = page.rows.last().map(|row| (row.kind.clone(), row.id.clone())).or(after);
                let changes = page.rows.iter().map(put).collect();
                if page.more {
                    (changes, Phase::Snapshot { after: last, missing, sent, then }, Vec::new())
                } else {
                    (changes, Phase::Log(then), page.sums)
                }
            }
        };
        let has_more = match &phase {
            Phase::Log(resume) => resume.at < head.seq || resume.from < resume.at,
            Phase::Evict { .. } | Phase::Snapshot { .. } => true,
        };
        let checksums = if has_more { Vec::new() } else { sums.into_iter().map(checksum).collect() };
        let cursor = Cursor { epoch: head.epoch, kinds: self.kinds, scopes: self.scopes, phase };
        Told { changes, cursor, has_more, checksums, progress, epoch_seq }
    }
}

/// What a reader wants and may read that a cursor does not cover.
fn lacking(cursor: &Cursor, wanted: &[KindName], scopes: &[ScopeName]) -> Missing {
    let partial = !cursor.kinds.is_empty();
    let lacks = |kind: &&KindName| partial && !cursor.kinds.contains(kind);
    Missing {
        all: partial && wanted.is_empty(),
        kinds: wanted.iter().filter(lacks).cloned().collect(),
        scopes: scopes.iter().filter(|scope| !cursor.scopes.contains(scope)).cloned().collect(),
    }
}

/// Goes on from a place in the log: what is lost first, then what is missing.
fn begin(lost: Vec<ScopeName>, missing: Missing, then: Resume) -> StepPhase {
    if !lost.is_empty() {
        StepPhase::Evict { after: None, lost, missing, then }
    } else if missing.is_none() {
        StepPhase::Log(then)
    } else {
        StepPhase::Snapshot { after: None, missing, sent: 0, then: Some(then) }
    }
}

fn united(mut missing: Missing, more: Missing) -> Missing {
    missing.all |= more.all;
    missing.kinds.extend(more.kinds);
    missing.kinds.sort();
    missing.kinds.dedup();
    missing.scopes.extend(more.scopes);
    missing.scopes.sort();
    missing.scopes.dedup();
    missing
}

fn narrowed(mut missing: Missing, wanted: &[KindName], scopes: &[ScopeName]) -> Missing {
    missing.kinds.retain(|kind| wanted.is_empty() || wanted.contains(kind));
    missing.scopes.retain(|scope| scopes.contains(scope));
    missing
}

fn tell_log(Resume { from, at }: Resume, page: Page) -> (Vec<Change>, Phase, Vec<ScopeSum>) {
    let mut changes: Vec<Change> = page.rows.iter().map(|row| since(row, from)).collect();
    changes.extend(page.left.into_iter().map(evict));
    changes.sort_by_key(|change| change.version);
    let last = changes.last().map_or(at, |change| change.version);
    let head = page.head.seq;
    let resume = if page.more { Resume { from, at: last } } else { Resume { from: head, at: head } };
    (changes, Phase::Log(resume), page.sums)
}

fn tell_lost(
    after: Option<Key>,
    lost: Vec<ScopeName>,
    missing: Missing,
    then: Resume,
    page: Page,
) -> (Vec<Change>, Phase, Vec<ScopeSum>) {
    let last = page.left.last().map(|left| (left.kind.clone(), left.id.clone())).or(after);
    let changes = page.left.into_iter().map(evict).collect();
    let phase = if page.more {
        Phase::Evict { after: last, lost, missing, then }
    } else if missing.is_none() {
        Phase::Log(then)
    } else {
        Phase::Snapshot { after: None, missing, sent: 0, then }
    };
    (changes, phase, Vec::new())
}

/// How many rows a snapshot holds in all.
fn total(missing: &Missing, sums: &[ScopeSum]) -> u64 {
    let wanted = |sum: &&ScopeSum| {
        missing.all || missing.kinds.contains(&sum.kind) || missing.scopes.contains(&sum.scope)
    };
    sums.iter().filter(wanted).map(|sum| sum.count).sum()
}

fn checksum(sum: ScopeSum) -> Checksum {
    Checksum { scope: sum.scope, kind: sum.kind, count: sum.count, sum: sum.sum }
}

fn evict(left: Left) -> Change {
    Change {
        kind: left.kind,
        id: left.id,
        scope: left.scope,
        version: left.seq,
        change: ChangeKind::Evict,
        fields: Object::empty(),
    }
}

pub(crate) fn put(row: &Row) -> Change {
    change_row(row, ChangeKind::Put, row.record.fields.clone())
}

/// A row as it is told to a reader who was caught up at `from`.
fn since(row: &Row, from: Seq) -> Change {
    let record = &row.record;
    if row.deleted {
        return change_row(row, ChangeKind::Delete, Object::empty());
    }
    let created = record.default_mark.fv > from;
    // Where more than the clocks decides, they do not tell when the record came back.
    let revived = record.del.is_some() && (record.live.fv > from || record.life != Life::Clocks);
    if created || revived || row.entered > from {
        return put(row);
    }
    change_row(row, ChangeKind::Patch, changed_since(record, from))
}
