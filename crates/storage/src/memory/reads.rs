//! What is read of a store in memory.

use std::collections::BTreeMap;

use driftline_engine::{
    AuditEntry, AuditQuery, AuditRow, AuditWrite, ConflictPlace, ConflictQuery, ConflictRow, Head, History,
    Left, Only, Page, PageQuery, PartSum, Place, Row, RowKey, ScopeSum, StoreError, SumQuery,
};
use driftline_model::{DeviceKey, DeviceNo, KindName, RecordId, ScopeName, Seq, TenantNo};
use driftline_protocol::row_sum;

use super::State;
use crate::marks::every_mark;
use crate::paging::{Item, cut, sort_sums};
use crate::parts::Parts;

impl State {
    fn rows_of(&self, tenant: TenantNo) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |(key, _)| key.tenant == tenant).map(|(_, row)| row)
    }

    pub(super) fn page(&self, query: &PageQuery) -> Result<Page, StoreError> {
        let head = self.head(query.tenant)?;
        let items = match &query.place {
            Place::After(after) => self.by_log(query, *after),
            Place::Key { after, only } => self.by_key(query, after.as_ref(), only),
            Place::Lost { after, lost } => self.lost(query, after.as_ref(), lost),
            Place::Range { kind, scope, after, until } => {
                let mut items = self.by_key(query, None, &Only::All);
                items.retain(|item| match item {
                    Item::Row(row) => {
                        (&row.kind, &row.scope) == (kind, scope)
                            && in_range(&row.id, after.as_ref(), until.as_ref())
                    }
                    Item::Left(_) => false,
                });
                items
            }
        };
        let mut page = cut(head, items, query, false);
        if query.sums {
            page.sums = self.scope_sums(query);
        }
        Ok(page)
    }

    fn by_log(&self, query: &PageQuery, after: Seq) -> Vec<Item> {
        let rows = self.rows_of(query.tenant).filter(|row| visible(query, row)).cloned().map(Item::Row);
        let mut items: Vec<Item> = rows.chain(self.left(query, &query.scopes)).collect();
        items.retain(|item| item.seq() > after);
        items.sort_by_key(Item::seq);
        items
    }

    fn by_key(&self, query: &PageQuery, after: Option<&(KindName, RecordId)>, only: &Only) -> Vec<Item> {
        let wanted = |row: &&Row| match only {
            Only::All => true,
            Only::Some { kinds, scopes } => kinds.contains(&row.kind) || scopes.contains(&row.scope),
        };
        self.rows_of(query.tenant)
            .filter(|row| visible(query, row) && !row.deleted)
            .filter(wanted)
            .filter(|row| comes_after(&row.kind, &row.id, after))
            .cloned()
            .map(Item::Row)
            .collect()
    }

    /// Records that left one of some scopes and are in none of the reader's.
    fn left(&self, query: &PageQuery, scopes: &[ScopeName]) -> impl Iterator<Item = Item> {
        self.exits.iter().filter_map(move |((tenant, scope, kind, id), exit)| {
            let wanted = *tenant == query.tenant && scopes.contains(scope) && wants(query, kind);
            let key = RowKey { tenant: *tenant, kind: kind.clone(), id: id.clone() };
            let here = self.rows.get(&key).is_some_and(|row| query.scopes.contains(&row.scope));
            (wanted && !here).then(|| {
                Item::Left(Left { kind: kind.clone(), id: id.clone(), scope: scope.clone(), seq: exit.seq })
            })
        })
    }

    fn lost(&self, query: &PageQuery, after: Option<&(KindName, RecordId)>, lost: &[ScopeName]) -> Vec<Item> {
        let here = self.rows_of(query.tenant).filter(|row| {
            lost.contains(&row.scope) && !query.scopes.contains(&row.scope) && wants(query, &row.kind)
        });
        let here = here.map(|row| {
            let (kind, id) = (row.kind.clone(), row.id.clone());
            Item::Left(Left { kind, id, scope: row.scope.clone(), seq: row.record.version })
        });
        let mut newest: BTreeMap<(KindName, RecordId), Left> = BTreeMap::new();
        for item in here.chain(self.left(query, lost)) {
            let Item::Left(left) = item else { continue };
            let key = (left.kind.clone(), left.id.clone());
            if newest.get(&key).is_none_or(|known| known.seq < left.seq) {
                newest.insert(key, left);
            }
        }
        newest.retain(|(kind, id), _| comes_after(kind, id, after));
        newest.into_values().map(Item::Left).collect()
    }

    fn scope_sums(&self, query: &PageQuery) -> Vec<ScopeSum> {
        let wanted = self.sums.iter().filter(|((tenant, scope, kind), (count, _))| {
            *tenant == query.tenant && query.scopes.contains(scope) && wants(query, kind) && *count > 0
        });
        let sums = wanted.map(|((_, scope, kind), (count, sum))| ScopeSum {
            scope: scope.clone(),
            kind: kind.clone(),
            count: count.unsigned_abs(),
            sum: *sum,
        });
        let mut sums: Vec<_> = sums.collect();
        sort_sums(&mut sums);
        sums
    }

    pub(super) fn part_sums(&self, query: &SumQuery) -> Result<(Head, Vec<PartSum>), StoreError> {
        let rows: Vec<&Row> = self
            .rows_of(query.tenant)
            .filter(|row| !row.deleted && row.kind == query.kind && row.scope == query.scope)
            .filter(|row| in_range(&row.id, query.after.as_ref(), query.until.as_ref()))
            .collect();
        let mut parts = Parts::new(query);
        parts.expect(rows.len() as u64);
        for row in rows {
            parts.add(row_sum(&row.kind, &row.id, row.record.version), row.id.clone());
        }
        Ok((self.head(query.tenant)?, parts.finish()))
    }

    pub(super) fn open_conflicts(&self, key: &RowKey) -> Vec<ConflictRow> {
        let mut open: Vec<_> = self
            .conflicts
            .iter()
            .filter(|((tenant, _), row)| {
                *tenant == key.tenant && row.status.is_open() && (&row.kind, &row.id) == (&key.kind, &key.id)
            })
            .map(|(_, row)| row.clone())
            .collect();
        open.sort_by_key(place_of);
        open
    }

    pub(super) fn listed_conflicts(&self, tenant: TenantNo, query: &ConflictQuery) -> Vec<ConflictRow> {
        let wanted = |row: &&ConflictRow| {
            query.scopes.contains(&row.scope)
                && (query.kinds.is_empty() || query.kinds.contains(&row.kind))
                && query.id.as_ref().is_none_or(|id| *id == row.id)
                && query.device.as_ref().is_none_or(|device| *device == row.device_key.device())
                && query.open.is_none_or(|open| open == row.status.is_open())
                && query.after.as_ref().is_none_or(|after| place_of(row) > *after)
        };
        let of_tenant = self.conflicts.iter().filter(|((of, _), _)| *of == tenant).map(|(_, row)| row);
        let mut rows: Vec<ConflictRow> = of_tenant.filter(wanted).cloned().collect();
        rows.sort_by_key(place_of);
        rows.truncate(query.rows);
        rows
    }

    pub(super) fn listed_audit(
        &self,
        tenant: TenantNo,
        query: &AuditQuery,
    ) -> Result<Vec<AuditEntry>, StoreError> {
        let mut entries = Vec::new();
        for (at, (at_ms, written)) in self.audit.iter().enumerate().rev() {
            if entries.len() >= query.rows {
                break;
            }
            if written.tenant != tenant {
                continue;
            }
            let entry = self.audit_entry(at, *at_ms, written)?;
            let key = RowKey { tenant, kind: entry.kind.clone(), id: entry.id.clone() };
            let visible = self.rows.get(&key).is_some_and(|row| query.scopes.contains(&row.scope));
            if visible && matches(query, &entry) {
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    fn audit_entry(&self, at: usize, at_ms: u64, written: &AuditWrite) -> Result<AuditEntry, StoreError> {
        Ok(AuditEntry {
            kind: written.kind.clone(),
            id: written.id.clone(),
            seq: written.seq,
            user: written.user.clone(),
            n: written.n,
            strategy: written.strategy.to_owned(),
            correlation: written.correlation.to_string(),
            row: AuditRow {
                audit_id: at as u64 + 1,
                at_ms,
                device: self.device_key(written.device)?,
                op_id: written.op_id.clone(),
                code: written.code,
                policy_version: written.policy_version,
                detail: written.detail.clone(),
            },
        })
    }

    pub(super) fn device_key(&self, device: DeviceNo) -> Result<DeviceKey, StoreError> {
        let found = self.devices.0.get(device.number() as usize);
        found.map(|device| device.key.clone()).ok_or_else(|| StoreError::Corrupt("device".into()))
    }

    pub(super) fn history(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        id: &RecordId,
    ) -> Result<Option<History>, StoreError> {
        let key = RowKey { tenant, kind: kind.clone(), id: id.clone() };
        let Some(row) = self.rows.get(&key).cloned() else { return Ok(None) };
        let devices = (0_u32..)
            .zip(&self.devices.0)
            .filter(|(_, device)| device.tenant == tenant)
            .map(|(at, device)| (DeviceNo::new(at), device.key.clone()))
            .collect();
        let of_record = self
            .audit
            .iter()
            .enumerate()
            .filter(|(_, (_, audit))| audit.tenant == tenant && audit.kind == *kind && audit.id == *id);
        let mut ops: Vec<_> = every_mark(&row.record)
            .filter_map(|mark| {
                let (known, _) = self.known.get(&(mark.device, mark.n))?;
                Some((mark.device, mark.n, known.op_id.clone()?))
            })
            .collect();
        let mut audit = Vec::new();
        for (at, (at_ms, written)) in of_record {
            if let Some(op_id) = &written.op_id {
                ops.push((written.device, written.n, op_id.clone()));
            }
            audit.push(self.audit_entry(at, *at_ms, written)?.row);
        }
        Ok(Some(History { row, devices, ops, audit }))
    }
}

fn wants(query: &PageQuery, kind: &KindName) -> bool {
    query.kinds.is_empty() || query.kinds.contains(kind)
}

fn visible(query: &PageQuery, row: &Row) -> bool {
    query.scopes.contains(&row.scope) && wants(query, &row.kind)
}

fn comes_after(kind: &KindName, id: &RecordId, after: Option<&(KindName, RecordId)>) -> bool {
    after.is_none_or(|(last_kind, last_id)| (kind, id) > (last_kind, last_id))
}

fn in_range(id: &RecordId, after: Option<&RecordId>, until: Option<&RecordId>) -> bool {
    after.is_none_or(|after| id > after) && until.is_none_or(|until| id <= until)
}

fn place_of(row: &ConflictRow) -> ConflictPlace {
    ConflictPlace { opened_ms: row.opened_ms, conflict_id: row.conflict_id.clone() }
}

fn matches(query: &AuditQuery, entry: &AuditEntry) -> bool {
    let row = &entry.row;
    (query.kinds.is_empty() || query.kinds.contains(&entry.kind))
        && query.id.as_ref().is_none_or(|id| *id == entry.id)
        && query.device.as_ref().is_none_or(|device| *device == row.device.device())
        && query.strategy.as_ref().is_none_or(|strategy| *strategy == entry.strategy)
        && query.code.is_none_or(|code| code == row.code)
        && query.from_ms.is_none_or(|from| row.at_ms >= from)
        && query.until_ms.is_none_or(|until| row.at_ms < until)
        && query.before.is_none_or(|before| row.audit_id < before)
}
