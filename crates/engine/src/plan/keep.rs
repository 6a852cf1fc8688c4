//! Changed records on their way into the state, the head, the writes and the news.

use std::collections::hash_map::Entry as Slot;

use driftline_conflict::Record;
use driftline_model::{DeviceNo, Hlc, Object, ObjectBuilder, ScopeName, Seq};
use driftline_protocol::{Change, ChangeKind, RecordView, row_sum};

use super::{ExitWrite, Plan, Savepoint, SumWrite};
use crate::events::{Announcing, quoted};
use crate::group::RowKey;
use crate::hub::{CommittedChange, Moved};
use crate::ports::{Head, Row};

/// Where a record was before a commit group, as far as sums and exits go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stood {
    scope: ScopeName,
    version: Seq,
    live: bool,
}

impl Stood {
    fn of(row: &Row) -> Self {
        Self { scope: row.scope.clone(), version: row.record.version, live: !row.deleted }
    }
}

/// A record as a change leaves it.
pub(super) struct Kept {
    pub(super) key: RowKey,
    pub(super) scope: ScopeName,
    /// The owner and schema version of a record that did not exist before.
    pub(super) owner: Box<str>,
    pub(super) schema_version: u32,
    pub(super) record: Record,
    /// Who made the change; none: the server.
    pub(super) device: Option<DeviceNo>,
    /// The event that the change publishes.
    pub(super) announce: Option<Announcing>,
}

impl Plan<'_> {
    /// Takes a changed record over into the state, the head and the writes.
    pub(super) fn keep(&mut self, kept: Kept, savepoint: Option<&mut Savepoint>) {
        let Kept { key, scope, owner, schema_version, record, device, announce } = kept;
        let deleted = record.is_deleted(self.env.devices);
        let before = self.state.rows.entry(key.clone()).or_default().take();
        let moved = before.as_ref().is_none_or(|before| before.scope != scope);
        let row = Row {
            kind: key.kind.clone(),
            id: key.id.clone(),
            entered: match &before {
                Some(before) if !moved => before.entered,
                _ => record.version,
            },
            scope,
            owner: before.as_ref().map_or(owner, |before| before.owner.clone()),
            schema_version: match &before {
                Some(before) if schema_version == 0 => before.schema_version,
                _ => schema_version,
            },
            deleted,
            record,
        };
        let head = self.state.heads.entry(key.tenant).or_insert_with(Head::unknown);
        head.seq = row.record.version;
        head.hlc = row.record.all_marks().map(|mark| mark.hlc).fold(head.hlc, Hlc::max);
        if let Some(changes) = self.changes(key.tenant) {
            changes.push(committed(device, &row, before.as_ref()));
        }
        if let Slot::Vacant(vacant) = self.written.entry(key.clone()) {
            vacant.insert(before.as_ref().map(Stood::of));
            self.out.writes.rows.push(key.clone());
        }
        if let Some(savepoint) = savepoint {
            savepoint.rows.push((key.clone(), before));
        }
        if let Some(announcing) = announce {
            let id = quoted(row.id.as_str());
            let first: [(&str, &str); 2] = [("id", &id), ("deleted", "true")];
            let first = if deleted { &first[..] } else { &first[..1] };
            self.announce(key.tenant, &announcing, first, &row.record.fields);
        }
        self.state.rows.insert(key, Some(row));
    }

    /// Tells what the group changed of the sums, and which records left a scope or came back into one.
    pub(super) fn settle_scopes(&mut self) {
        let mut sums: Vec<SumWrite> = Vec::new();
        for key in &self.out.writes.rows {
            let Some(Some(row)) = self.state.rows.get(key) else { continue };
            let (before, after) = (self.written.get(key).and_then(Option::as_ref), Stood::of(row));
            if let Some(before) = before.filter(|before| before.live) {
                let sum = row_sum(&key.kind, &key.id, before.version);
                add(&mut sums, key, &before.scope, (-1, sum.wrapping_neg()));
            }
            if after.live {
                add(&mut sums, key, &after.scope, (1, row_sum(&key.kind, &key.id, after.version)));
            }
            let Some(before) = before.filter(|before| before.scope != after.scope) else { continue };
            let exit = |scope: &ScopeName, seq| ExitWrite {
                tenant: key.tenant,
                scope: scope.clone(),
                kind: key.kind.clone(),
                id: key.id.clone(),
                seq,
            };
            self.out.writes.exits.push(exit(&before.scope, Some(row.entered)));
            self.out.writes.exits.push(exit(&after.scope, None));
        }
        sums.retain(|sum| sum.count != 0 || sum.sum != 0);
        self.out.writes.sums = sums;
    }
}

/// Adds a row to the sum of its scope and kind, of which a group touches few.
fn add(sums: &mut Vec<SumWrite>, key: &RowKey, scope: &ScopeName, (count, sum): (i64, u64)) {
    let same =
        |known: &&mut SumWrite| known.kind == key.kind && known.scope == *scope && known.tenant == key.tenant;
    if let Some(known) = sums.iter_mut().find(same) {
        known.count += count;
        known.sum = known.sum.wrapping_add(sum);
    } else {
        let (tenant, scope, kind) = (key.tenant, scope.clone(), key.kind.clone());
        sums.push(SumWrite { tenant, scope, kind, count, sum });
    }
}

/// A record as its readers see it: a deleted one without fields.
pub(crate) fn view(record: &Record, deleted: bool) -> RecordView {
    let fields = if deleted { Object::empty() } else { record.fields.clone() };
    RecordView { version: record.version.number(), deleted, fields }
}

fn committed(device: Option<DeviceNo>, row: &Row, before: Option<&Row>) -> CommittedChange {
    let was_live = before.is_some_and(|before| !before.deleted);
    let moved = before.filter(|before| before.scope != row.scope).map(|before| {
        let left = before.scope.clone();
        let put = change_of(row, false);
        let evict = Change { scope: left.clone(), ..change_row(row, ChangeKind::Evict, Object::empty()) };
        Box::new(Moved { left, put, evict })
    });
    CommittedChange { device, change: change_of(row, was_live), moved }
}

/// A change as readers get it who had the record as it was before.
fn change_of(row: &Row, was_live: bool) -> Change {
    let (change, fields) = match (row.deleted, was_live) {
        (true, _) => (ChangeKind::Delete, Object::empty()),
        (false, false) => (ChangeKind::Put, row.record.fields.clone()),
        (false, true) => {
            (ChangeKind::Patch, changed_since(&row.record, Seq::new(row.record.version.number() - 1)))
        }
    };
    change_row(row, change, fields)
}

pub(crate) fn change_row(row: &Row, change: ChangeKind, fields: Object) -> Change {
    Change {
        kind: row.kind.clone(),
        id: row.id.clone(),
        scope: row.scope.clone(),
        version: row.record.version,
        change,
        fields,
    }
}

/// The fields that changed after a place in the sequence.
pub(crate) fn changed_since(record: &Record, from: Seq) -> Object {
    if record.marks.is_empty() && record.default_mark.fv > from {
        return record.fields.clone();
    }
    let mut built = ObjectBuilder::with_capacity(record.fields.as_str().len(), record.fields.len());
    for (name, value, mark) in record.fields() {
        if mark.fv > from {
            built.push(name, value);
        }
    }
    built.finish()
}
