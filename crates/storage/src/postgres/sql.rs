//! The statements of the hot path.
//!
//! Each is a query of its own with a static identity, so that it is prepared once per connection. What concerns many
//! rows takes one array per column, so that there is one statement per table however many rows there are.
//!
//! A plan may be made while the tables are still empty, when every way to read them looks the same, and be kept while
//! they grow. So a look-up leaves one way only: an order that the index of the whole key gives for nothing, with a limit
//! that keeps it from being planned together with the rest; and an addition of zero keeps a column from an index.

use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Binary, Bool, Integer, Nullable, Text};

use crate::rows::{AuditInsert, ConflictColumns, ConflictWrite, RecordSql, RecordWrite, ResultRow};

/// Declares a statement with named parts: SQL pieces and the values bound between them.
macro_rules! statement {
    ($(#[$doc:meta])* $name:ident $(<$life:lifetime>)? { $($field:ident: $rust:ty => $sql:ty),* $(,)? } = $($piece:tt)+) => {
        $(#[$doc])*
        pub(super) struct $name $(<$life>)? {
            $(pub(super) $field: $rust,)*
        }

        impl $(<$life>)? QueryId for $name $(<$life>)? {
            type QueryId = statement!(@id $name $($life)?);
            const HAS_STATIC_QUERY_ID: bool = true;
        }

        impl $(<$life>)? QueryFragment<Pg> for $name $(<$life>)? {
            fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
                statement!(@pieces self out $($piece)+);
                Ok(())
            }
        }
    };
    (@id $name:ident) => { $name };
    (@id $name:ident $life:lifetime) => { $name<'static> };
    (@pieces $self:ident $out:ident $($piece:literal $(? $bind:ident : $bsql:ty)?)+) => {
        $(
            $out.push_sql($piece);
            $($out.push_bind_param::<$bsql, _>(&$self.$bind)?;)?
        )+
    };
}

pub(super) use statement;

statement! {
    /// Ends a transaction. Prepared like every other statement, so that it stands behind those that travel with it.
    Commit {} = "COMMIT"
}

statement! {
    /// Locks a tenant's head, the first lock of every writing transaction.
    LockHead { tenant_no: i32 => Integer } =
    "SELECT epoch, seq, hlc, scopes_version, gc_floor, epoch_seq, event_id, received_at FROM stream_head \
     WHERE tenant_no = " ? tenant_no: Integer
    " FOR UPDATE"
}

impl Query for LockHead {
    type SqlType = (Text, BigInt, BigInt, BigInt, BigInt, BigInt, BigInt, BigInt);
}

/// A locked head as a query gives it: the head and the last time of receipt.
pub(super) type LockedHead = (String, i64, i64, i64, i64, i64, i64, i64);

#[cfg(test)]
statement! {
    /// As [`LockHead`], but for the lock: what goes wrong without it is shown by a test.
    ReadHead { tenant_no: i32 => Integer } =
    "SELECT epoch, seq, hlc, scopes_version, gc_floor, epoch_seq, event_id, received_at FROM stream_head \
     WHERE tenant_no = " ? tenant_no: Integer
    ""
}

#[cfg(test)]
impl Query for ReadHead {
    type SqlType = (Text, BigInt, BigInt, BigInt, BigInt, BigInt, BigInt, BigInt);
}

statement! {
    /// A tenant's head.
    LoadHead { tenant_no: i32 => Integer } =
    "SELECT epoch, seq, hlc, scopes_version, gc_floor, epoch_seq, event_id FROM stream_head WHERE tenant_no = " ? tenant_no: Integer
    ""
}

impl Query for LoadHead {
    type SqlType = crate::rows::HeadSql;
}

statement! {
    /// Names and states of devices, with the database's clock: behind the lock, for which it may have waited.
    LoadDevices { tenant_no: i32 => Integer, devices: Vec<i32> => Array<Integer> } =
    "SELECT device_no, sub, device_id, last_n, acked_n, (extract(epoch FROM clock_timestamp()) * 1000)::BIGINT \
     FROM devices WHERE device_no = ANY(" ? devices: Array<Integer>
    ") AND tenant_no + 0 = " ? tenant_no: Integer
    ""
}

impl Query for LoadDevices {
    type SqlType = (Integer, Text, Text, BigInt, BigInt, BigInt);
}

/// A device as a query gives it.
pub(super) type DeviceRow = (i32, String, String, i64, i64, i64);

statement! {
    /// Records by kind and id.
    LoadRecords<'a> { tenant_no: i32 => Integer, kinds: Vec<i32> => Array<Integer>, ids: Vec<&'a str> => Array<Text> } =
    "SELECT r.kind_no, r.id, r.seq, r.scope_no, r.owner, r.fields, r.default_mark, r.marks, r.del, r.live, \
     r.schema_version, r.states, r.entered FROM unnest(" ? kinds: Array<Integer>
    ", " ? ids: Array<Text>
    ") AS w(kind_no, id) CROSS JOIN LATERAL (SELECT * FROM records WHERE tenant_no = " ? tenant_no: Integer
    " AND kind_no = w.kind_no AND id >= w.id AND id <= w.id ORDER BY id LIMIT 1) AS r"
}

impl Query for LoadRecords<'_> {
    type SqlType = RecordSql;
}

statement! {
    /// Remembered answers by device and number.
    KnownByNumber { devices: Vec<i32> => Array<Integer>, numbers: Vec<i64> => Array<BigInt> } =
    "SELECT o.device_no, o.n, o.op_id, o.hash, o.code, o.seq, o.more FROM unnest(" ? devices: Array<Integer>
    ", " ? numbers: Array<BigInt>
    ") AS w(device_no, n) JOIN op_results AS o ON o.device_no = w.device_no AND o.n = w.n"
}

statement! {
    /// Remembered answers by device and name.
    KnownByName { devices: Vec<i32> => Array<Integer>, names: Vec<Vec<u8>> => Array<Binary> } =
    "SELECT o.device_no, o.n, o.op_id, o.hash, o.code, o.seq, o.more FROM unnest(" ? devices: Array<Integer>
    ", " ? names: Array<Binary>
    ") AS w(device_no, op_id) JOIN op_results AS o ON o.device_no = w.device_no AND o.op_id = w.op_id"
}

/// A remembered answer with its device, as a query gives it.
pub(super) type KnownSqlOf = (Integer, BigInt, Nullable<Binary>, BigInt, Integer, BigInt, Nullable<Text>);

/// As above.
pub(super) type KnownRowOf = (i32, i64, Option<Vec<u8>>, i64, i32, i64, Option<String>);

impl Query for KnownByNumber {
    type SqlType = KnownSqlOf;
}

impl Query for KnownByName {
    type SqlType = KnownSqlOf;
}

statement! {
    /// The open conflicts of records.
    OpenConflicts<'a> { tenant_no: i32 => Integer, kinds: Vec<i32> => Array<Integer>, ids: Vec<&'a str> => Array<Text> } =
    "SELECT c.tenant_no, c.conflict_id, c.kind_no, c.id, c.scope_no, c.device_no, d.sub, d.device_id, c.op_id, c.n, c.op, \
     c.reason, c.fields, c.base_version, c.version, c.base, c.client, c.client_ns, c.server, c.policy_version, c.opened_at, \
     c.resolved_at, c.resolved_by, c.resolution, c.seq FROM unnest(" ? kinds: Array<Integer>
    ", " ? ids: Array<Text>
    ") AS w(kind_no, id) CROSS JOIN LATERAL (SELECT * FROM conflicts WHERE tenant_no = " ? tenant_no: Integer
    " AND kind_no = w.kind_no AND id >= w.id AND id <= w.id AND status = 'open' ORDER BY id) AS c \
     JOIN devices AS d ON d.device_no = c.device_no ORDER BY c.opened_at, c.conflict_id"
}

impl Query for OpenConflicts<'_> {
    type SqlType = ConflictColumns;
}

statement! {
    /// Writes records.
    PutRecords<'a> {
        tenant_no: i32 => Integer, now: i64 => BigInt, kind_no: Vec<i32> => Array<Integer>, id: Vec<&'a str> => Array<Text>,
        seq: Vec<i64> => Array<BigInt>, scope_no: Vec<i32> => Array<Integer>, owner: Vec<&'a str> => Array<Text>,
        fields: Vec<&'a str> => Array<Text>, default_mark: Vec<Vec<u8>> => Array<Binary>,
        marks: Vec<Option<Vec<u8>>> => Array<Nullable<Binary>>, del: Vec<Option<Vec<u8>>> => Array<Nullable<Binary>>,
        live: Vec<Option<Vec<u8>>> => Array<Nullable<Binary>>, schema_version: Vec<i32> => Array<Integer>,
        states: Vec<Option<Vec<u8>>> => Array<Nullable<Binary>>, entered: Vec<i64> => Array<BigInt>,
    } =
    "INSERT INTO records (tenant_no, kind_no, id, seq, scope_no, owner, fields, default_mark, marks, del, live, \
     schema_version, states, entered, changed_at) SELECT " ? tenant_no: Integer
    ", w.*, " ? now: BigInt
    " FROM unnest(" ? kind_no: Array<Integer>
    ", " ? id: Array<Text>
    ", " ? seq: Array<BigInt>
    ", " ? scope_no: Array<Integer>
    ", " ? owner: Array<Text>
    ", " ? fields: Array<Text>
    ", " ? default_mark: Array<Binary>
    ", " ? marks: Array<Nullable<Binary>>
    ", " ? del: Array<Nullable<Binary>>
    ", " ? live: Array<Nullable<Binary>>
    ", " ? schema_version: Array<Integer>
    ", " ? states: Array<Nullable<Binary>>
    ", " ? entered: Array<BigInt>
    ") AS w ON CONFLICT (tenant_no, kind_no, id) DO UPDATE SET seq = excluded.seq, scope_no = excluded.scope_no, \
     fields = excluded.fields, default_mark = excluded.default_mark, marks = excluded.marks, del = excluded.del, \
     live = excluded.live, schema_version = excluded.schema_version, states = excluded.states, \
     entered = excluded.entered, changed_at = excluded.changed_at"
}

statement! {
    /// Remembers answers.
    PutAnswers {
        tenant_no: i32 => Integer, now: i64 => BigInt, device_no: Vec<i32> => Array<Integer>, n: Vec<i64> => Array<BigInt>,
        op_id: Vec<Option<Vec<u8>>> => Array<Nullable<Binary>>, hash: Vec<i64> => Array<BigInt>,
        code: Vec<i32> => Array<Integer>, seq: Vec<i64> => Array<BigInt>, more: Vec<Option<String>> => Array<Nullable<Text>>,
    } =
    "INSERT INTO op_results (tenant_no, device_no, n, op_id, hash, code, seq, more, at) SELECT " ? tenant_no: Integer
    ", w.*, " ? now: BigInt
    " FROM unnest(" ? device_no: Array<Integer>
    ", " ? n: Array<BigInt>
    ", " ? op_id: Array<Nullable<Binary>>
    ", " ? hash: Array<BigInt>
    ", " ? code: Array<Integer>
    ", " ? seq: Array<BigInt>
    ", " ? more: Array<Nullable<Text>>
    ") AS w"
}

statement! {
    /// Forgets the answers that devices have heard.
    ForgetAnswers { device_no: Vec<i32> => Array<Integer>, acked_n: Vec<i64> => Array<BigInt> } =
    "DELETE FROM op_results AS o USING unnest(" ? device_no: Array<Integer>
    ", " ? acked_n: Array<BigInt>
    ") AS w(device_no, acked_n) WHERE o.device_no = w.device_no AND o.n <= w.acked_n"
}

statement! {
    /// What every group moves, in one statement: devices, answered batches, the sums of live rows, and the head if it
    /// moved. Sums of integers do not wrap, so the halves are added: the lower ones carry into the upper ones.
    Settle {
        tenant_no: i32 => Integer, now: i64 => BigInt, moved: bool => Bool, head_seq: i64 => BigInt, hlc: i64 => BigInt,
        event_id: i64 => BigInt,
        device_no: Vec<i32> => Array<Integer>, last_n: Vec<i64> => Array<BigInt>, acked_n: Vec<i64> => Array<BigInt>,
        batch_device: Vec<i32> => Array<Integer>, sync_id: Vec<String> => Array<Text>,
        batch_seq: Vec<i64> => Array<BigInt>, fingerprint: Vec<Option<Vec<u8>>> => Array<Nullable<Binary>>,
        answer: Vec<Option<Vec<u8>>> => Array<Nullable<Binary>>, scope_no: Vec<i32> => Array<Integer>,
        kind_no: Vec<i32> => Array<Integer>, count: Vec<i64> => Array<BigInt>, sum: Vec<i64> => Array<BigInt>,
    } =
    "WITH devices_moved AS (UPDATE devices AS d SET last_n = w.last_n, acked_n = w.acked_n, last_seen_at = " ? now: BigInt
    " FROM unnest(" ? device_no: Array<Integer>
    ", " ? last_n: Array<BigInt>
    ", " ? acked_n: Array<BigInt>
    ") AS w(device_no, last_n, acked_n) WHERE d.device_no = w.device_no), \
     batches_put AS (INSERT INTO sync_batches (tenant_no, device_no, sync_id, batch_seq, fingerprint, answer, at) \
     SELECT " ? tenant_no: Integer
    ", w.*, " ? now: BigInt
    " FROM unnest(" ? batch_device: Array<Integer>
    ", " ? sync_id: Array<Text>
    ", " ? batch_seq: Array<BigInt>
    ", " ? fingerprint: Array<Nullable<Binary>>
    ", " ? answer: Array<Nullable<Binary>>
    ") AS w ON CONFLICT (tenant_no, device_no, sync_id, batch_seq) DO UPDATE SET fingerprint = excluded.fingerprint, \
     answer = excluded.answer, at = excluded.at), \
     sums_added AS (INSERT INTO scope_sums AS s (tenant_no, scope_no, kind_no, count, sum) SELECT " ? tenant_no: Integer
    ", w.* FROM unnest(" ? scope_no: Array<Integer>
    ", " ? kind_no: Array<Integer>
    ", " ? count: Array<BigInt>
    ", " ? sum: Array<BigInt>
    ") AS w ON CONFLICT (tenant_no, scope_no, kind_no) DO UPDATE SET count = s.count + excluded.count, \
     sum = ((((s.sum >> 32) & 4294967295) + ((excluded.sum >> 32) & 4294967295) \
     + (((s.sum & 4294967295) + (excluded.sum & 4294967295)) >> 32)) << 32) \
     | (((s.sum & 4294967295) + (excluded.sum & 4294967295)) & 4294967295)) \
     UPDATE stream_head SET seq = " ? head_seq: BigInt
    ", hlc = " ? hlc: BigInt
    ", event_id = " ? event_id: BigInt
    ", received_at = " ? now: BigInt
    " WHERE tenant_no = " ? tenant_no: Integer
    " AND " ? moved: Bool
    ""
}

statement! {
    /// Remembers that records left a scope.
    PutExits {
        tenant_no: i32 => Integer, now: i64 => BigInt, scope_no: Vec<i32> => Array<Integer>,
        kind_no: Vec<i32> => Array<Integer>, id: Vec<String> => Array<Text>, seq: Vec<i64> => Array<BigInt>,
    } =
    "INSERT INTO scope_exits (tenant_no, scope_no, kind_no, id, seq, at) SELECT " ? tenant_no: Integer
    ", w.*, " ? now: BigInt
    " FROM unnest(" ? scope_no: Array<Integer>
    ", " ? kind_no: Array<Integer>
    ", " ? id: Array<Text>
    ", " ? seq: Array<BigInt>
    ") AS w ON CONFLICT (tenant_no, scope_no, kind_no, id) DO UPDATE SET seq = excluded.seq, at = excluded.at"
}

statement! {
    /// Forgets that records left a scope.
    ForgetExits {
        tenant_no: i32 => Integer, scope_no: Vec<i32> => Array<Integer>, kind_no: Vec<i32> => Array<Integer>,
        id: Vec<String> => Array<Text>,
    } =
    "DELETE FROM scope_exits WHERE ctid = ANY(ARRAY(SELECT e.ctid FROM unnest(" ? scope_no: Array<Integer>
    ", " ? kind_no: Array<Integer>
    ", " ? id: Array<Text>
    ") AS w(scope_no, kind_no, id) CROSS JOIN LATERAL (SELECT ctid FROM scope_exits WHERE tenant_no = " ? tenant_no: Integer
    " AND scope_no = w.scope_no AND kind_no = w.kind_no AND id >= w.id AND id <= w.id ORDER BY id LIMIT 1) AS e))"
}

statement! {
    /// Writes accounts of decisions, in their order.
    PutAudit {
        tenant_no: i32 => Integer, now: i64 => BigInt, kind_no: Vec<i32> => Array<Integer>, id: Vec<String> => Array<Text>,
        seq: Vec<i64> => Array<BigInt>, device_no: Vec<i32> => Array<Integer>, sub: Vec<String> => Array<Text>,
        op_id: Vec<Option<Vec<u8>>> => Array<Nullable<Binary>>, n: Vec<i64> => Array<BigInt>,
        code: Vec<i32> => Array<Integer>, strategy: Vec<&'static str> => Array<Text>,
        policy_version: Vec<i64> => Array<BigInt>, correlation_id: Vec<String> => Array<Text>,
        detail: Vec<String> => Array<Text>,
    } =
    "INSERT INTO audit (tenant_no, kind_no, id, seq, device_no, sub, op_id, n, code, strategy, policy_version, \
     correlation_id, detail, at) SELECT " ? tenant_no: Integer
    ", w.*, " ? now: BigInt
    " FROM unnest(" ? kind_no: Array<Integer>
    ", " ? id: Array<Text>
    ", " ? seq: Array<BigInt>
    ", " ? device_no: Array<Integer>
    ", " ? sub: Array<Text>
    ", " ? op_id: Array<Nullable<Binary>>
    ", " ? n: Array<BigInt>
    ", " ? code: Array<Integer>
    ", " ? strategy: Array<Text>
    ", " ? policy_version: Array<BigInt>
    ", " ? correlation_id: Array<Text>
    ", " ? detail: Array<Text>
    ") AS w"
}

statement! {
    /// Writes conflicts.
    PutConflicts {
        tenant_no: i32 => Integer, conflict_id: Vec<String> => Array<Text>, kind_no: Vec<i32> => Array<Integer>,
        id: Vec<String> => Array<Text>, scope_no: Vec<i32> => Array<Integer>, device_no: Vec<i32> => Array<Integer>,
        op_id: Vec<Option<Vec<u8>>> => Array<Nullable<Binary>>, n: Vec<i64> => Array<BigInt>,
        op: Vec<&'static str> => Array<Text>, reason: Vec<&'static str> => Array<Text>,
        status: Vec<&'static str> => Array<Text>, fields: Vec<String> => Array<Text>,
        base_version: Vec<i64> => Array<BigInt>, version: Vec<i64> => Array<BigInt>, base: Vec<String> => Array<Text>,
        client: Vec<String> => Array<Text>, client_ns: Vec<String> => Array<Text>, server: Vec<String> => Array<Text>,
        policy_version: Vec<i64> => Array<BigInt>, opened_at: Vec<i64> => Array<BigInt>,
        resolved_at: Vec<Option<i64>> => Array<Nullable<BigInt>>,
        resolved_by: Vec<Option<String>> => Array<Nullable<Text>>,
        resolution: Vec<Option<&'static str>> => Array<Nullable<Text>>, seq: Vec<i64> => Array<BigInt>,
    } =
    "INSERT INTO conflicts (tenant_no, conflict_id, kind_no, id, scope_no, device_no, op_id, n, op, reason, status, \
     fields, base_version, version, base, client, client_ns, server, policy_version, opened_at, resolved_at, \
     resolved_by, resolution, seq) SELECT " ? tenant_no: Integer
    ", w.* FROM unnest(" ? conflict_id: Array<Text>
    ", " ? kind_no: Array<Integer>
    ", " ? id: Array<Text>
    ", " ? scope_no: Array<Integer>
    ", " ? device_no: Array<Integer>
    ", " ? op_id: Array<Nullable<Binary>>
    ", " ? n: Array<BigInt>
    ", " ? op: Array<Text>
    ", " ? reason: Array<Text>
    ", " ? status: Array<Text>
    ", " ? fields: Array<Text>
    ", " ? base_version: Array<BigInt>
    ", " ? version: Array<BigInt>
    ", " ? base: Array<Text>
    ", " ? client: Array<Text>
    ", " ? client_ns: Array<Text>
    ", " ? server: Array<Text>
    ", " ? policy_version: Array<BigInt>
    ", " ? opened_at: Array<BigInt>
    ", " ? resolved_at: Array<Nullable<BigInt>>
    ", " ? resolved_by: Array<Nullable<Text>>
    ", " ? resolution: Array<Nullable<Text>>
    ", " ? seq: Array<BigInt>
    ") AS w ON CONFLICT (tenant_no, conflict_id) DO UPDATE SET scope_no = excluded.scope_no, op_id = excluded.op_id, \
     n = excluded.n, op = excluded.op, reason = excluded.reason, status = excluded.status, fields = excluded.fields, \
     base_version = excluded.base_version, version = excluded.version, base = excluded.base, client = excluded.client, \
     client_ns = excluded.client_ns, server = excluded.server, policy_version = excluded.policy_version, \
     opened_at = excluded.opened_at, resolved_at = excluded.resolved_at, resolved_by = excluded.resolved_by, \
     resolution = excluded.resolution, seq = excluded.seq"
}

impl<'a> PutRecords<'a> {
    pub(super) fn of(tenant_no: i32, now: i64, rows: usize) -> Self {
        Self {
            tenant_no,
            now,
            kind_no: Vec::with_capacity(rows),
            id: Vec::with_capacity(rows),
            seq: Vec::with_capacity(rows),
            scope_no: Vec::with_capacity(rows),
            owner: Vec::with_capacity(rows),
            fields: Vec::with_capacity(rows),
            default_mark: Vec::with_capacity(rows),
            marks: Vec::with_capacity(rows),
            del: Vec::with_capacity(rows),
            live: Vec::with_capacity(rows),
            schema_version: Vec::with_capacity(rows),
            states: Vec::with_capacity(rows),
            entered: Vec::with_capacity(rows),
        }
    }

    pub(super) fn push(&mut self, row: RecordWrite<'a>) {
        self.kind_no.push(row.kind_no);
        self.id.push(row.id);
        self.seq.push(row.seq);
        self.scope_no.push(row.scope_no);
        self.owner.push(row.owner);
        self.fields.push(row.fields);
        self.default_mark.push(row.default_mark);
        self.marks.push(row.marks);
        self.del.push(row.del);
        self.live.push(row.live);
        self.schema_version.push(row.schema_version);
        self.states.push(row.states);
        self.entered.push(row.entered);
    }
}

impl PutAnswers {
    pub(super) fn of(tenant_no: i32, now: i64, rows: usize) -> Self {
        Self {
            tenant_no,
            now,
            device_no: Vec::with_capacity(rows),
            n: Vec::with_capacity(rows),
            op_id: Vec::with_capacity(rows),
            hash: Vec::with_capacity(rows),
            code: Vec::with_capacity(rows),
            seq: Vec::with_capacity(rows),
            more: Vec::with_capacity(rows),
        }
    }

    pub(super) fn push(&mut self, row: ResultRow) {
        self.device_no.push(row.device_no);
        self.n.push(row.n);
        self.op_id.push(row.op_id);
        self.hash.push(row.hash);
        self.code.push(row.code);
        self.seq.push(row.seq);
        self.more.push(row.more);
    }
}

impl PutAudit {
    pub(super) fn of(tenant_no: i32, now: i64, rows: usize) -> Self {
        Self {
            tenant_no,
            now,
            kind_no: Vec::with_capacity(rows),
            id: Vec::with_capacity(rows),
            seq: Vec::with_capacity(rows),
            device_no: Vec::with_capacity(rows),
            sub: Vec::with_capacity(rows),
            op_id: Vec::with_capacity(rows),
            n: Vec::with_capacity(rows),
            code: Vec::with_capacity(rows),
            strategy: Vec::with_capacity(rows),
            policy_version: Vec::with_capacity(rows),
            correlation_id: Vec::with_capacity(rows),
            detail: Vec::with_capacity(rows),
        }
    }

    pub(super) fn push(&mut self, row: AuditInsert) {
        self.kind_no.push(row.kind_no);
        self.id.push(row.id);
        self.seq.push(row.seq);
        self.device_no.push(row.device_no);
        self.sub.push(row.sub);
        self.op_id.push(row.op_id);
        self.n.push(row.n);
        self.code.push(row.code);
        self.strategy.push(row.strategy);
        self.policy_version.push(row.policy_version);
        self.correlation_id.push(row.correlation_id);
        self.detail.push(row.detail);
    }
}

impl PutConflicts {
    pub(super) fn of(tenant_no: i32, rows: usize) -> Self {
        Self {
            tenant_no,
            conflict_id: Vec::with_capacity(rows),
            kind_no: Vec::with_capacity(rows),
            id: Vec::with_capacity(rows),
            scope_no: Vec::with_capacity(rows),
            device_no: Vec::with_capacity(rows),
            op_id: Vec::with_capacity(rows),
            n: Vec::with_capacity(rows),
            op: Vec::with_capacity(rows),
            reason: Vec::with_capacity(rows),
            status: Vec::with_capacity(rows),
            fields: Vec::with_capacity(rows),
            base_version: Vec::with_capacity(rows),
            version: Vec::with_capacity(rows),
            base: Vec::with_capacity(rows),
            client: Vec::with_capacity(rows),
            client_ns: Vec::with_capacity(rows),
            server: Vec::with_capacity(rows),
            policy_version: Vec::with_capacity(rows),
            opened_at: Vec::with_capacity(rows),
            resolved_at: Vec::with_capacity(rows),
            resolved_by: Vec::with_capacity(rows),
            resolution: Vec::with_capacity(rows),
            seq: Vec::with_capacity(rows),
        }
    }

    pub(super) fn push(&mut self, row: ConflictWrite) {
        self.conflict_id.push(row.conflict_id);
        self.kind_no.push(row.kind_no);
        self.id.push(row.id);
        self.scope_no.push(row.scope_no);
        self.device_no.push(row.device_no);
        self.op_id.push(row.op_id);
        self.n.push(row.n);
        self.op.push(row.op);
        self.reason.push(row.reason);
        self.status.push(row.status);
        self.fields.push(row.fields);
        self.base_version.push(row.base_version);
        self.version.push(row.version);
        self.base.push(row.base);
        self.client.push(row.client);
        self.client_ns.push(row.client_ns);
        self.server.push(row.server);
        self.policy_version.push(row.policy_version);
        self.opened_at.push(row.opened_at);
        self.resolved_at.push(row.resolved_at);
        self.resolved_by.push(row.resolved_by);
        self.resolution.push(row.resolution);
        self.seq.push(row.seq);
    }
}
