//! What a commit group writes: one statement per table, all of them and the commit in one flight.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::query_builder::{QueryFragment, QueryId};
use diesel::result::{DatabaseErrorKind, Error};
use diesel_async::methods::ExecuteDsl;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use driftline_engine::{BatchWrite, DeviceWrite, GroupState, Planned, Receipt, Writes};
use driftline_model::{KindName, ScopeName, TenantNo};
use futures_util::future::{BoxFuture, join_all};

use super::caches::Caches;
use super::commit::{Failure, Unnamed};
use super::events::{MoveHeads, PutEvents, PutVersions};
use super::once::put_keys;
use super::samples::{PutSamples, PutSeries};
use super::sql::{
    Commit, ForgetAnswers, ForgetExits, PutAnswers, PutAudit, PutConflicts, PutExits, PutRecords, Settle,
};
use super::topics::{self, TopicNumbers};
use crate::codec::encode_receipt;
use crate::names::{device_sql, tenant_sql};
use crate::rows::{AuditInsert, ConflictWrite, ResultRow, sql, write_of};

/// The numbers of every name that a group writes, taken down at one moment.
pub(super) struct Numbers<'a> {
    kinds: HashMap<&'a KindName, i32>,
    scopes: HashMap<&'a ScopeName, i32>,
    topics: TopicNumbers,
}

impl<'a> Numbers<'a> {
    /// Finds the numbers; fails with the names that have none yet.
    pub(super) fn of(
        caches: &Caches,
        tenant: TenantNo,
        writes: &'a Writes,
        state: &'a GroupState,
    ) -> Result<Self, Failure> {
        let mut kinds: BTreeSet<&KindName> = BTreeSet::new();
        let mut scopes: BTreeSet<&ScopeName> = BTreeSet::new();
        for key in &writes.rows {
            kinds.insert(&key.kind);
            scopes.extend(state.rows.get(key).and_then(Option::as_ref).map(|row| &row.scope));
        }
        kinds.extend(writes.exits.iter().map(|exit| &exit.kind));
        scopes.extend(writes.exits.iter().map(|exit| &exit.scope));
        kinds.extend(writes.sums.iter().map(|add| &add.kind));
        scopes.extend(writes.sums.iter().map(|add| &add.scope));
        kinds.extend(writes.conflicts.iter().map(|(_, row)| &row.kind));
        scopes.extend(writes.conflicts.iter().map(|(_, row)| &row.scope));
        kinds.extend(writes.audits.iter().map(|audit| &audit.kind));
        kinds.extend(writes.samples.iter().map(|sample| &sample.key.kind));
        let names = &caches.names;
        let mut unnamed = Unnamed::default();
        let mut numbers = Self { kinds: HashMap::new(), scopes: HashMap::new(), topics: HashMap::new() };
        for kind in kinds {
            match names.kind(tenant, kind) {
                Some(number) => drop(numbers.kinds.insert(kind, number)),
                None => drop(unnamed.kinds.insert(kind.clone())),
            }
        }
        for scope in scopes {
            match names.scope(tenant, scope) {
                Some(number) => drop(numbers.scopes.insert(scope, number)),
                None => drop(unnamed.scopes.insert(scope.clone())),
            }
        }
        match topics::numbers(caches, tenant, &writes.events) {
            Ok(topics) => numbers.topics = topics,
            Err(topics) => unnamed.topics = topics,
        }
        if unnamed.is_empty() { Ok(numbers) } else { Err(Failure::Unnamed(unnamed)) }
    }

    fn kind(&self, kind: &KindName) -> i32 {
        *self.kinds.get(kind).expect("every name of the writes was taken down")
    }

    fn scope(&self, scope: &ScopeName) -> i32 {
        *self.scopes.get(scope).expect("every name of the writes was taken down")
    }
}

/// Statements that travel together, in this order. More than this many futures would not be polled in their order.
const FLIGHT_MAX: usize = 30;

struct Flight<'a> {
    pg: &'a AsyncPgConnection,
    numbers: &'a Numbers<'a>,
    tenant_no: i32,
    now: i64,
    statements: Vec<BoxFuture<'a, QueryResult<usize>>>,
}

/// Why a flight of writes did not end well.
pub(super) enum Unwritten {
    /// The database refused a statement, and the commit behind it took everything back.
    TakenBack(Error),
    /// The database refused a statement and ended the connection: nothing was applied.
    Ended(Error),
    /// A statement or the commit got no answer, or the commit got a bad one: it may have been done before the connection
    /// was ended.
    Unknown(Error),
}

/// Writes everything that was planned, and commits.
pub(super) async fn write(
    pg: &AsyncPgConnection,
    tenant: TenantNo,
    (planned, state): (&Planned, &GroupState),
    numbers: &Numbers<'_>,
    now_ms: u64,
) -> Result<(), Unwritten> {
    let writes = &planned.writes;
    let mut flight =
        Flight { pg, numbers, tenant_no: tenant_sql(tenant), now: sql(now_ms), statements: Vec::new() };
    flight.records(tenant, writes, state);
    flight.exits(writes);
    flight.answers(writes);
    flight.audit(writes);
    flight.conflicts(writes);
    flight.samples(writes);
    flight.names(planned);
    flight.events(writes);
    flight.settle(tenant, planned);
    flight.add(Commit {});
    debug_assert!(flight.statements.len() <= FLIGHT_MAX);
    outcome(join_all(flight.statements).await)
}

/// What the answers to a flight's statements, of which the last is the commit, say of all of it.
pub(super) fn outcome(mut done: Vec<QueryResult<usize>>) -> Result<(), Unwritten> {
    let committed = done.pop().unwrap_or(Ok(0));
    let failed = done.into_iter().find_map(Result::err);
    match (failed, committed) {
        (None, Ok(_)) => Ok(()),
        (None, Err(error)) => Err(Unwritten::Unknown(error)),
        (Some(error), _) if !is_refused(&error) => Err(Unwritten::Unknown(error)),
        (Some(error), Ok(_)) => Err(Unwritten::TakenBack(error)),
        (Some(error), Err(_)) => Err(Unwritten::Ended(error)),
    }
}

/// Whether the database itself said that a statement failed.
fn is_refused(error: &Error) -> bool {
    use DatabaseErrorKind::{ClosedConnection, UnableToSendCommand};
    matches!(error, Error::DatabaseError(kind, _) if !matches!(kind, ClosedConnection | UnableToSendCommand))
}

impl<'a> Flight<'a> {
    fn add<S>(&mut self, statement: S)
    where
        S: QueryFragment<Pg> + QueryId + ExecuteDsl<&'a AsyncPgConnection> + 'a,
    {
        let mut pg = self.pg;
        self.statements.push(statement.execute(&mut pg));
    }

    fn records(&mut self, tenant: TenantNo, writes: &Writes, state: &'a GroupState) {
        let mut put = PutRecords::of(self.tenant_no, self.now, writes.rows.len());
        for key in &writes.rows {
            let Some(Some(row)) = state.rows.get(key) else { continue };
            let numbers = (self.numbers.kind(&key.kind), self.numbers.scope(&row.scope));
            put.push(write_of(tenant, numbers, row, self.now));
        }
        if !put.id.is_empty() {
            self.add(put);
        }
    }

    /// Records that left a scope or came back, each as the last of its rows says.
    fn exits(&mut self, writes: &Writes) {
        let (tenant_no, now) = (self.tenant_no, self.now);
        let keyed = writes.exits.iter().map(|exit| ((&exit.scope, &exit.kind, &exit.id), exit.seq));
        let last: BTreeMap<_, _> = keyed.collect();
        let mut put = PutExits { tenant_no, now, scope_no: vec![], kind_no: vec![], id: vec![], seq: vec![] };
        let mut forget = ForgetExits { tenant_no, scope_no: vec![], kind_no: vec![], id: vec![] };
        for ((scope, kind, id), seq) in last {
            let (scope_no, kind_no, id) =
                (self.numbers.scope(scope), self.numbers.kind(kind), id.as_str().to_owned());
            if let Some(seq) = seq {
                put.scope_no.push(scope_no);
                put.kind_no.push(kind_no);
                put.id.push(id);
                put.seq.push(sql(seq.number()));
            } else {
                forget.scope_no.push(scope_no);
                forget.kind_no.push(kind_no);
                forget.id.push(id);
            }
        }
        if !forget.id.is_empty() {
            self.add(forget);
        }
        if !put.id.is_empty() {
            self.add(put);
        }
    }

    fn answers(&mut self, writes: &Writes) {
        let mut forget = ForgetAnswers { device_no: vec![], acked_n: vec![] };
        for device in writes.devices.iter().filter(|device| device.state.acked_n > device.acked_before) {
            forget.device_no.push(device_sql(device.device));
            forget.acked_n.push(sql(device.state.acked_n));
        }
        if !forget.device_no.is_empty() {
            self.add(forget);
        }
        let mut put = PutAnswers::of(self.tenant_no, self.now, writes.results.len());
        for result in &writes.results {
            put.push(ResultRow::new(result, self.now));
        }
        if !put.n.is_empty() {
            self.add(put);
        }
    }

    fn audit(&mut self, writes: &Writes) {
        let mut put = PutAudit::of(self.tenant_no, self.now, writes.audits.len());
        for audit in &writes.audits {
            put.push(AuditInsert::new(audit, self.numbers.kind(&audit.kind), self.now));
        }
        if !put.n.is_empty() {
            self.add(put);
        }
    }

    fn conflicts(&mut self, writes: &Writes) {
        let mut put = PutConflicts::of(self.tenant_no, writes.conflicts.len());
        for (tenant, row) in &writes.conflicts {
            let numbers = (self.numbers.kind(&row.kind), self.numbers.scope(&row.scope));
            put.push(ConflictWrite::new(*tenant, numbers, row));
        }
        if !put.n.is_empty() {
            self.add(put);
        }
    }

    fn samples(&mut self, writes: &'a Writes) {
        let mut put = PutSamples::of(self.tenant_no, self.now);
        for sample in &writes.samples {
            put.push(self.numbers.kind(&sample.key.kind), sample);
        }
        if !writes.samples.is_empty() {
            self.add(put);
        }
        if !writes.series.is_empty() {
            self.add(PutSeries::of(self.tenant_no, &writes.series));
        }
    }

    fn names(&mut self, planned: &Planned) {
        if !planned.writes.once.is_empty() {
            self.add(put_keys(self.tenant_no, &planned.writes.once, &planned.receipts));
        }
    }

    fn events(&mut self, writes: &'a Writes) {
        let mut put = PutEvents::of(writes.events.len());
        for write in &writes.events {
            put.push(write, &self.numbers.topics, self.now);
        }
        if !writes.events.is_empty() {
            self.add(put);
        }
        if !writes.versions.is_empty() {
            self.add(PutVersions::of(&writes.versions, self.now));
        }
    }

    fn settle(&mut self, tenant: TenantNo, planned: &Planned) {
        let writes = &planned.writes;
        let head = writes.heads.iter().find(|(of, _)| *of == tenant).map(|(_, head)| head);
        if writes.devices.is_empty() {
            // There were only events.
            if let Some(head) = head {
                let (tenant_no, event_id) = (vec![self.tenant_no], vec![sql(head.event_id)]);
                self.add(MoveHeads { tenant_no, event_id, received_at: vec![self.now] });
            }
            return;
        }
        // In the order in which whoever notes signs of devices locks their rows.
        let mut devices: Vec<&DeviceWrite> = writes.devices.iter().collect();
        devices.sort_by_key(|device| device.device);
        let mut settle = Settle {
            tenant_no: self.tenant_no,
            now: self.now,
            moved: head.is_some(),
            head_seq: head.map_or(0, |head| sql(head.seq.number())),
            hlc: head.map_or(0, |head| head.hlc.bits().cast_signed()),
            event_id: head.map_or(0, |head| sql(head.event_id)),
            device_no: devices.iter().map(|device| device_sql(device.device)).collect(),
            last_n: devices.iter().map(|device| sql(device.state.last_n)).collect(),
            acked_n: devices.iter().map(|device| sql(device.state.acked_n)).collect(),
            batch_device: Vec::new(),
            sync_id: Vec::new(),
            batch_seq: Vec::new(),
            fingerprint: Vec::new(),
            answer: Vec::new(),
            scope_no: Vec::new(),
            kind_no: Vec::new(),
            count: Vec::new(),
            sum: Vec::new(),
        };
        batches(&writes.batches, &planned.receipts, &mut settle);
        self.sums(writes, &mut settle);
        self.add(settle);
    }

    /// What is added to each sum, once.
    fn sums(&self, writes: &Writes, settle: &mut Settle) {
        let mut adds: BTreeMap<(i32, i32), (i64, u64)> = BTreeMap::new();
        for add in writes.sums.iter().filter(|add| (add.count, add.sum) != (0, 0)) {
            let key = (self.numbers.scope(&add.scope), self.numbers.kind(&add.kind));
            let (count, sum) = adds.entry(key).or_default();
            *count += add.count;
            *sum = sum.wrapping_add(add.sum);
        }
        for ((scope_no, kind_no), (count, sum)) in adds {
            settle.scope_no.push(scope_no);
            settle.kind_no.push(kind_no);
            settle.count.push(count);
            settle.sum.push(sum.cast_signed());
        }
    }
}

/// Answered batches, each once and as it was answered last: one may have come twice in a group.
fn batches(writes: &[BatchWrite], receipts: &[Receipt], settle: &mut Settle) {
    let keyed =
        writes.iter().map(|batch| ((batch.device, batch.sync_id.as_str(), batch.number), batch.answer));
    for ((device, sync_id, number), answer) in keyed.collect::<BTreeMap<_, _>>() {
        settle.batch_device.push(device_sql(device));
        settle.sync_id.push(sync_id.to_owned());
        settle.batch_seq.push(sql(number));
        settle.fingerprint.push(answer.map(|(fingerprint, _)| fingerprint.as_bytes().to_vec()));
        settle.answer.push(answer.and_then(|(_, receipt)| encode_receipt(&receipts[receipt])));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(kind: DatabaseErrorKind) -> QueryResult<usize> {
        Err(Error::DatabaseError(kind, Box::new("failed".to_owned())))
    }

    #[test]
    fn the_answers_to_a_flight_tell_what_became_of_it() {
        use DatabaseErrorKind::{CheckViolation, UnableToSendCommand, Unknown};
        let table: [(&str, [QueryResult<usize>; 3], &str); 7] = [
            ("all is well", [Ok(1), Ok(1), Ok(0)], "written"),
            ("a statement is refused", [Ok(1), failed(CheckViolation), Ok(0)], "taken back"),
            ("and the connection ended", [Ok(1), failed(Unknown), failed(UnableToSendCommand)], "ended"),
            (
                "no answer but the first",
                [Ok(1), failed(UnableToSendCommand), failed(UnableToSendCommand)],
                "unknown",
            ),
            ("no answer to the commit", [Ok(1), Ok(1), failed(UnableToSendCommand)], "unknown"),
            // Told to end behind a commit that was done, before it was answered.
            ("a bad answer to the commit", [Ok(1), Ok(1), failed(Unknown)], "unknown"),
            ("an answer that cannot be read", [Ok(1), Err(Error::NotFound), Ok(0)], "unknown"),
        ];
        for (what, done, wanted) in table {
            let told = match outcome(done.into()) {
                Ok(()) => "written",
                Err(Unwritten::TakenBack(_)) => "taken back",
                Err(Unwritten::Ended(_)) => "ended",
                Err(Unwritten::Unknown(_)) => "unknown",
            };
            assert_eq!(told, wanted, "{what}");
        }
    }
}
