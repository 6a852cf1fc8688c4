//! What must be true of every row, and between the tables.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_query;
use diesel::sql_types::{BigInt, Binary, Integer, Nullable, Text};
use diesel::sqlite::Sqlite;
use driftline_engine::StoreError;
use driftline_model::{Seq, TenantId};

use super::super::hot::statement;
use super::super::{audit, conflicts, names, store_error, sums};
use super::{Finding, LISTED_MAX, Report};
use crate::names::{Names, tenant_of};
use crate::rows::{
    AuditSql, ConflictSql, HeadRow, HeadSql, KnownRow, KnownSql, RecordRow, RecordSql, head_of, known_of,
    row_of, seq_of,
};

statement! {
    /// Every tenant with its head, if it has one.
    AllHeads {} =
    "SELECT t.tenant_no, t.tenant, h.tenant_no IS NOT NULL, coalesce(h.epoch, ''), coalesce(h.seq, 0), \
     coalesce(h.hlc, 0), coalesce(h.scopes_version, 0), coalesce(h.gc_floor, 0), coalesce(h.epoch_seq, 0), \
     coalesce(h.event_id, 0) \
     FROM tenants AS t LEFT JOIN stream_head AS h ON h.tenant_no = t.tenant_no"
}

impl Query for AllHeads {
    type SqlType = (Integer, Text, Integer, HeadSql);
}

statement! {
    /// Every record.
    AllRecords {} =
    "SELECT r.tenant_no, r.kind_no, r.id, r.seq, r.scope_no, r.owner, r.fields, r.default_mark, r.marks, r.del, \
     r.live, r.schema_version, r.states, r.entered FROM records AS r"
}

impl Query for AllRecords {
    type SqlType = (Integer, RecordSql);
}

statement! {
    /// Every remembered answer.
    AllKnown {} =
    "SELECT o.tenant_no, o.device_no, o.n, o.op_id, o.hash, o.code, o.seq, o.more FROM op_results AS o"
}

impl Query for AllKnown {
    type SqlType = (Integer, Integer, KnownSql);
}

statement! {
    /// The numbers of the sequence that stand in other tables.
    AllSeqs {} =
    "SELECT 'scope_exits', tenant_no, id, seq FROM scope_exits UNION ALL \
     SELECT 'conflicts', tenant_no, conflict_id, seq FROM conflicts UNION ALL \
     SELECT 'audit', tenant_no, CAST(audit_id AS TEXT), seq FROM audit"
}

impl Query for AllSeqs {
    type SqlType = (Text, Integer, Text, BigInt);
}

statement! {
    /// The kept sums.
    AllSums {} = "SELECT tenant_no, scope_no, kind_no, count, sum FROM scope_sums WHERE count <> 0 OR sum <> 0"
}

impl Query for AllSums {
    type SqlType = (Integer, Integer, Integer, BigInt, BigInt);
}

/// Goes through one table.
type Look = fn(&mut Tables, &mut SqliteConnection, &mut Report) -> QueryResult<()>;

/// Goes through the tables, row by row.
#[derive(Default)]
pub(super) struct Tables {
    names: Names,
    /// Where the sequence of each tenant ends.
    heads: HashMap<i32, Seq>,
    /// Where the log of each tenant ends.
    last_events: HashMap<i32, u64>,
    counted: BTreeMap<&'static str, u64>,
}

impl Tables {
    pub(super) fn check(mut self, connection: &mut SqliteConnection, report: &mut Report) {
        if let Err(error) = names::load(&self.names, connection) {
            self.unreadable(report, "kinds and scopes", "names".into(), &error);
            return;
        }
        self.secret(connection, report);
        let tables: [(&'static str, Look); 19] = [
            ("stream_head", Self::heads),
            ("records", Self::records),
            ("op_results", Self::answers),
            ("conflicts", Self::reviews),
            ("audit", Self::accounts),
            ("seqs", Self::seqs),
            ("samples", Self::samples),
            ("series", Self::points),
            ("idempotency", Self::keys),
            ("sync_batches", Self::batches),
            ("device_digests", Self::digests),
            ("events", Self::events),
            ("event_topics", Self::event_topics),
            ("topics", Self::topics),
            ("event_versions", Self::event_versions),
            ("event_devices", Self::event_devices),
            ("uploads", Self::uploads),
            ("upload_chunks", Self::upload_chunks),
            ("upload_usage", Self::upload_usage),
        ];
        for (table, check) in tables {
            if let Err(error) = check(&mut self, connection, report) {
                self.unreadable(report, table, "all rows".into(), &error);
            }
        }
        // A row that cannot be read would be told a second time.
        if report.findings.is_empty()
            && let Err(error) = self.sums(connection, report)
        {
            self.unreadable(report, "scope_sums", "all rows".into(), &error);
        }
        for (table, count) in self.counted {
            let count = count.saturating_sub(LISTED_MAX as u64);
            if count > 0 {
                report.findings.push(Finding::More { table, count });
            }
        }
    }

    /// Lists a finding, or counts it when enough of its table are listed.
    fn find(&mut self, report: &mut Report, table: &'static str, finding: Finding) {
        let counted = self.counted.entry(table).or_default();
        *counted += 1;
        if *counted <= LISTED_MAX as u64 {
            report.findings.push(finding);
        }
    }

    pub(super) const fn names(&self) -> &Names {
        &self.names
    }

    /// Where a tenant's log ends.
    pub(super) fn last_event(&self, tenant_no: i32) -> Option<u64> {
        self.last_events.get(&tenant_no).copied()
    }

    pub(super) fn has_tenant(&self, tenant_no: i32) -> bool {
        self.heads.contains_key(&tenant_no)
    }

    pub(super) fn unreadable(
        &mut self,
        report: &mut Report,
        table: &'static str,
        row: String,
        error: &dyn fmt::Display,
    ) {
        self.find(report, table, Finding::Unreadable { table, row, reason: error.to_string() });
    }

    /// Compares a row's number with its tenant's head.
    fn compare(
        &mut self,
        report: &mut Report,
        table: &'static str,
        (tenant_no, row): (i32, String),
        seq: Seq,
    ) {
        match self.heads.get(&tenant_no) {
            None => self.unreadable(report, table, row, &"it belongs to no tenant"),
            Some(&head) if seq > head => {
                self.find(report, table, Finding::AheadOfHead { table, row, seq, head });
            }
            Some(_) => {}
        }
    }

    fn secret(&mut self, connection: &mut SqliteConnection, report: &mut Report) {
        #[derive(QueryableByName)]
        struct Secret {
            #[diesel(sql_type = Nullable<Binary>)]
            value: Option<Vec<u8>>,
        }
        let secret: QueryResult<Secret> =
            sql_query("SELECT value FROM meta WHERE name = 'cursor_secret'").get_result(connection);
        let whole = secret.is_ok_and(|secret| secret.value.is_some_and(|value| value.len() == 32));
        if !whole {
            report.findings.push(Finding::Secret);
        }
    }

    fn heads(&mut self, connection: &mut SqliteConnection, report: &mut Report) -> QueryResult<()> {
        let rows: Vec<(i32, String, i32, HeadRow)> = AllHeads {}.load(connection)?;
        for (tenant_no, tenant, has_head, head) in rows {
            let reason = match (tenant_no > 0 && TenantId::new(&tenant).is_ok(), has_head, head_of(head)) {
                (false, ..) => "it has no proper name or number".to_owned(),
                (_, 0, _) => "it has no head".to_owned(),
                (_, _, Err(error)) => error.to_string(),
                (_, _, Ok(head)) => {
                    self.heads.insert(tenant_no, head.seq);
                    self.last_events.insert(tenant_no, head.event_id);
                    if head.epoch_seq <= head.seq && head.gc_floor <= head.seq {
                        continue;
                    }
                    format!("its epoch or its purge lies above its seq {}", head.seq)
                }
            };
            self.find(report, "stream_head", Finding::Head { tenant, reason });
        }
        Ok(())
    }

    fn records(&mut self, connection: &mut SqliteConnection, report: &mut Report) -> QueryResult<()> {
        let rows = AllRecords {};
        for row in rows.load_iter::<(i32, RecordRow), _>(connection)? {
            let (tenant_no, row) = match row {
                Ok(row) => row,
                Err(error) => {
                    self.unreadable(report, "records", "a row".into(), &error);
                    continue;
                }
            };
            let (kind_no, scope_no) = (row.0, row.3);
            let name = format!("tenant {tenant_no}, kind {kind_no}, {:?}", row.1);
            match row_of(&self.names, row) {
                Err(error) => self.unreadable(report, "records", name, &error),
                Ok(row) if tenant_no > 0 => {
                    let tenant = tenant_of(tenant_no);
                    let own = self.names.kind(tenant, &row.kind) == Some(kind_no)
                        && self.names.scope(tenant, &row.scope) == Some(scope_no);
                    if !own {
                        self.unreadable(report, "records", name, &"its kind or scope is another tenant's");
                        continue;
                    }
                    self.compare(report, "records", (tenant_no, name), row.record.version);
                }
                Ok(_) => self.unreadable(report, "records", name, &"it belongs to no tenant"),
            }
        }
        Ok(())
    }

    fn answers(&mut self, connection: &mut SqliteConnection, report: &mut Report) -> QueryResult<()> {
        let rows = AllKnown {};
        for row in rows.load_iter::<(i32, i32, KnownRow), _>(connection)? {
            let (tenant_no, device_no, row) = match row {
                Ok(row) => row,
                Err(error) => {
                    self.unreadable(report, "op_results", "a row".into(), &error);
                    continue;
                }
            };
            let name = format!("device {device_no}, n {}", row.0);
            match known_of(row) {
                Ok(known) => self.compare(report, "op_results", (tenant_no, name), known.version),
                Err(error) => self.unreadable(report, "op_results", name, &error),
            }
        }
        Ok(())
    }

    fn reviews(&mut self, connection: &mut SqliteConnection, report: &mut Report) -> QueryResult<()> {
        let rows = sql_query(conflicts::SELECT);
        let mut read = 0;
        for row in rows.load_iter::<ConflictSql, _>(connection)? {
            read += 1;
            let row = row.map_err(|error| StoreError::Corrupt(error.to_string()));
            if let Err(error) = row.and_then(|row| row.row(&self.names)) {
                self.unreadable(report, "conflicts", format!("row {read}"), &error);
            }
        }
        self.orphans(connection, report, "conflicts", read)
    }

    fn accounts(&mut self, connection: &mut SqliteConnection, report: &mut Report) -> QueryResult<()> {
        let rows = sql_query(audit::SELECT);
        let mut read = 0;
        for row in rows.load_iter::<AuditSql, _>(connection)? {
            read += 1;
            let row = row.map_err(|error| StoreError::Corrupt(error.to_string()));
            if let Err(error) = row.and_then(|row| row.entry(&self.names)) {
                self.unreadable(report, "audit", format!("row {read}"), &error);
            }
        }
        self.orphans(connection, report, "audit", read)
    }

    /// Finds rows that are not read because their device is unknown.
    fn orphans(
        &mut self,
        connection: &mut SqliteConnection,
        report: &mut Report,
        table: &'static str,
        read: i64,
    ) -> QueryResult<()> {
        #[derive(QueryableByName)]
        struct Count {
            #[diesel(sql_type = BigInt)]
            count: i64,
        }
        let all: Count =
            sql_query(format!("SELECT count(*) AS count FROM {table}")).get_result(connection)?;
        if all.count > read {
            let lost = all.count - read;
            self.unreadable(report, table, format!("{lost} rows"), &"their device is unknown");
        }
        Ok(())
    }

    fn seqs(&mut self, connection: &mut SqliteConnection, report: &mut Report) -> QueryResult<()> {
        let rows = AllSeqs {};
        for row in rows.load_iter::<(String, i32, String, i64), _>(connection)? {
            let (table, tenant_no, name, seq) = row?;
            let table = ["scope_exits", "conflicts", "audit"].into_iter().find(|known| *known == table);
            let table = table.unwrap_or("seqs");
            match seq_of(seq) {
                Ok(seq) => self.compare(report, table, (tenant_no, name), seq),
                Err(error) => self.unreadable(report, table, name, &error),
            }
        }
        Ok(())
    }

    fn sums(&mut self, connection: &mut SqliteConnection, report: &mut Report) -> Result<(), StoreError> {
        if !sums::are_made(connection)? {
            return Ok(());
        }
        let kept: Vec<(i32, i32, i32, i64, i64)> = AllSums {}.load(connection).map_err(store_error)?;
        let mut differing: BTreeMap<(i32, i32, i32), (i64, i64)> = kept
            .into_iter()
            .map(|(tenant, scope, kind, count, sum)| ((tenant, scope, kind), (count, sum)))
            .collect();
        for add in sums::recount(connection, &self.names)? {
            let key = (add.tenant_no, add.scope_no, add.kind_no);
            if differing.get(&key) == Some(&(add.count, add.sum)) {
                differing.remove(&key);
            } else {
                differing.insert(key, (add.count, add.sum));
            }
        }
        for (_, scope_no, kind_no) in differing.into_keys() {
            let scope = self
                .names
                .scope_name(scope_no)
                .map_or_else(|_| scope_no.to_string(), |name| name.to_string());
            let kind =
                self.names.kind_name(kind_no).map_or_else(|_| kind_no.to_string(), |name| name.to_string());
            self.find(report, "scope_sums", Finding::Sums { kind, scope });
        }
        Ok(())
    }
}
