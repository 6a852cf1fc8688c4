//! What a commit group writes.

use std::collections::BTreeMap;

use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Integer, Text};
use diesel::sqlite::Sqlite;
use driftline_engine::{ExitWrite, GroupState, Planned};

use super::hot::{ForgetAnswers, MoveDevice, MoveHead, Rows, binds, insert, statement};
use super::writer::{GroupError, Writer};
use crate::names::{device_sql, tenant_sql};
use crate::rows::{AuditInsert, ConflictWrite, ResultRow, SumAdd, sql, write_of};

/// A row of `scope_exits` to be written.
#[derive(QueryId)]
struct ExitRow {
    tenant_no: i32,
    scope_no: i32,
    kind_no: i32,
    id: String,
    seq: i64,
    at: i64,
}

impl Rows for ExitRow {
    const HEAD: &'static str = "INSERT INTO scope_exits (tenant_no, scope_no, kind_no, id, seq, at) VALUES ";
    const TAIL: &'static str =
        " ON CONFLICT (tenant_no, scope_no, kind_no, id) DO UPDATE SET seq = excluded.seq, at = excluded.at";

    fn bind<'b>(&'b self, out: &mut AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        binds!(self, out, Integer => tenant_no, Integer => scope_no, Integer => kind_no, Text => id, BigInt => seq,
            BigInt => at)
    }
}

statement! {
    /// Forgets that a record left a scope.
    ForgetExit { tenant_no: i32 => Integer, scope_no: i32 => Integer, kind_no: i32 => Integer, id: String => Text } =
    "DELETE FROM scope_exits WHERE tenant_no = " ? tenant_no: Integer
    " AND scope_no = " ? scope_no: Integer
    " AND kind_no = " ? kind_no: Integer
    " AND id = " ? id: Text
}

impl Writer {
    /// Writes everything that was planned, one statement per table and chunk.
    pub(super) fn write(
        &mut self,
        planned: &Planned,
        state: &GroupState,
        now: i64,
    ) -> Result<(), GroupError> {
        let writes = &planned.writes;
        let mut records = Vec::with_capacity(writes.rows.len());
        for key in &writes.rows {
            let Some(Some(row)) = state.rows.get(key) else { continue };
            let kind_no = self.intern_kind(key.tenant, &key.kind)?;
            let scope_no = self.intern_scope(key.tenant, &row.scope)?;
            records.push(write_of(key.tenant, (kind_no, scope_no), row, now));
        }
        insert(&mut self.connection, &records)?;
        self.write_exits(&writes.exits, now)?;
        self.write_sums(planned)?;
        self.write_results(planned, now)?;
        self.write_audit(planned, now)?;
        self.write_conflicts(planned)?;
        self.write_samples(planned, now)?;
        self.write_events(planned, now)?;
        self.move_heads(planned, now)?;
        self.write_once(planned, now)
    }

    /// Records that left a scope or came back, each as the last of its rows says.
    fn write_exits(&mut self, exits: &[ExitWrite], now: i64) -> Result<(), GroupError> {
        let keyed = exits.iter().map(|exit| ((exit.tenant, &exit.scope, &exit.kind, &exit.id), exit.seq));
        let last: BTreeMap<_, _> = keyed.collect();
        let mut rows = Vec::new();
        for ((tenant, scope, kind, id), seq) in last {
            let (kind_no, scope_no) = (self.intern_kind(tenant, kind)?, self.intern_scope(tenant, scope)?);
            let (tenant_no, id) = (tenant_sql(tenant), id.to_string());
            match seq {
                Some(seq) => {
                    let seq = sql(seq.number());
                    rows.push(ExitRow { tenant_no, scope_no, kind_no, id, seq, at: now });
                }
                None => {
                    let back = ForgetExit { tenant_no, scope_no, kind_no, id };
                    back.execute(&mut self.connection)?;
                }
            }
        }
        insert(&mut self.connection, &rows)?;
        Ok(())
    }

    fn write_sums(&mut self, planned: &Planned) -> Result<(), GroupError> {
        let mut rows = Vec::with_capacity(planned.writes.sums.len());
        for add in planned.writes.sums.iter().filter(|add| (add.count, add.sum) != (0, 0)) {
            rows.push(SumAdd {
                tenant_no: tenant_sql(add.tenant),
                scope_no: self.intern_scope(add.tenant, &add.scope)?,
                kind_no: self.intern_kind(add.tenant, &add.kind)?,
                count: add.count,
                sum: add.sum.cast_signed(),
            });
        }
        insert(&mut self.connection, &rows)?;
        Ok(())
    }

    fn write_conflicts(&mut self, planned: &Planned) -> Result<(), GroupError> {
        let mut rows = Vec::with_capacity(planned.writes.conflicts.len());
        for (tenant, row) in &planned.writes.conflicts {
            let kind_no = self.intern_kind(*tenant, &row.kind)?;
            let scope_no = self.intern_scope(*tenant, &row.scope)?;
            rows.push(ConflictWrite::new(*tenant, (kind_no, scope_no), row));
        }
        insert(&mut self.connection, &rows)?;
        Ok(())
    }

    fn write_results(&mut self, planned: &Planned, now: i64) -> Result<(), GroupError> {
        let writes = &planned.writes;
        for device in writes.devices.iter().filter(|device| device.state.acked_n > device.acked_before) {
            let acked_n = sql(device.state.acked_n);
            ForgetAnswers { device_no: device_sql(device.device), acked_n }.execute(&mut self.connection)?;
        }
        let results: Vec<_> = writes.results.iter().map(|result| ResultRow::new(result, now)).collect();
        insert(&mut self.connection, &results)?;
        Ok(())
    }

    fn move_heads(&mut self, planned: &Planned, now: i64) -> Result<(), GroupError> {
        let writes = &planned.writes;
        for device in &writes.devices {
            let (last_n, acked_n) = (sql(device.state.last_n), sql(device.state.acked_n));
            MoveDevice { last_n, acked_n, at: now, device_no: device_sql(device.device) }
                .execute(&mut self.connection)?;
        }
        for (tenant, head) in &writes.heads {
            let (seq, hlc) = (sql(head.seq.number()), head.hlc.bits().cast_signed());
            let (event_id, tenant_no) = (sql(head.event_id), tenant_sql(*tenant));
            MoveHead { seq, hlc, event_id, tenant_no }.execute(&mut self.connection)?;
        }
        Ok(())
    }

    fn write_audit(&mut self, planned: &Planned, now: i64) -> Result<(), GroupError> {
        let mut rows = Vec::with_capacity(planned.writes.audits.len());
        for audit in &planned.writes.audits {
            let kind_no = self.intern_kind(audit.tenant, &audit.kind)?;
            rows.push(AuditInsert::new(audit, kind_no, now));
        }
        insert(&mut self.connection, &rows)?;
        Ok(())
    }
}
