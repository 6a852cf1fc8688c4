//! Accounts of decisions between SQL and the engine.

use diesel::prelude::*;
use diesel::query_builder::QueryId;
use diesel::sql_types::{BigInt, Binary, Integer, Nullable, Text};
use driftline_engine::{AuditEntry, AuditRow, AuditWrite, StoreError};
use driftline_model::{DeviceNo, RecordId};

use super::{seq_of, sql};
use crate::codec::{corrupt, decode_code, decode_op, encode_code, encode_op};
use crate::names::{Names, device_key, device_of, device_sql, tenant_sql};

/// A row of `audit` to be written.
#[derive(QueryId)]
pub(crate) struct AuditInsert {
    pub(crate) tenant_no: i32,
    pub(crate) at: i64,
    pub(crate) kind_no: i32,
    pub(crate) id: String,
    pub(crate) seq: i64,
    pub(crate) device_no: i32,
    pub(crate) sub: String,
    pub(crate) op_id: Option<Vec<u8>>,
    pub(crate) n: i64,
    pub(crate) code: i32,
    pub(crate) strategy: &'static str,
    pub(crate) policy_version: i64,
    pub(crate) correlation_id: String,
    pub(crate) detail: String,
}

impl AuditInsert {
    pub(crate) fn new(audit: &AuditWrite, kind_no: i32, now: i64) -> Self {
        Self {
            tenant_no: tenant_sql(audit.tenant),
            at: now,
            kind_no,
            id: audit.id.as_str().to_owned(),
            seq: sql(audit.seq.number()),
            device_no: device_sql(audit.device),
            sub: audit.user.to_string(),
            op_id: audit.op_id.as_ref().map(encode_op),
            n: sql(audit.n),
            code: encode_code(audit.code),
            strategy: audit.strategy,
            policy_version: sql(audit.policy_version),
            correlation_id: audit.correlation.to_string(),
            detail: audit.detail.clone(),
        }
    }
}

#[derive(QueryableByName)]
pub(crate) struct AuditSql {
    #[diesel(sql_type = BigInt)]
    audit_id: i64,
    #[diesel(sql_type = BigInt)]
    at: i64,
    #[diesel(sql_type = Integer)]
    pub(crate) kind_no: i32,
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = BigInt)]
    seq: i64,
    #[diesel(sql_type = Integer)]
    device_no: i32,
    #[diesel(sql_type = Text)]
    device_sub: String,
    #[diesel(sql_type = Text)]
    device_id: String,
    #[diesel(sql_type = Text)]
    sub: String,
    #[diesel(sql_type = Nullable<Binary>)]
    op_id: Option<Vec<u8>>,
    #[diesel(sql_type = BigInt)]
    n: i64,
    #[diesel(sql_type = Integer)]
    code: i32,
    #[diesel(sql_type = Text)]
    strategy: String,
    #[diesel(sql_type = BigInt)]
    policy_version: i64,
    #[diesel(sql_type = Text)]
    correlation_id: String,
    #[diesel(sql_type = Text)]
    detail: String,
}

impl AuditSql {
    pub(crate) fn entry(self, names: &Names) -> Result<(DeviceNo, AuditEntry), StoreError> {
        let unsigned = |number: i64| u64::try_from(number).map_err(|_| corrupt("audit"));
        let entry = AuditEntry {
            kind: names.kind_name(self.kind_no)?,
            id: RecordId::new(&self.id).map_err(|_| corrupt("id"))?,
            seq: seq_of(self.seq)?,
            user: self.sub.into(),
            n: unsigned(self.n)?,
            strategy: self.strategy,
            correlation: self.correlation_id,
            row: AuditRow {
                audit_id: unsigned(self.audit_id)?,
                at_ms: unsigned(self.at)?,
                device: device_key(&self.device_sub, &self.device_id),
                op_id: self.op_id.as_deref().map(decode_op).transpose()?,
                code: decode_code(self.code)?,
                policy_version: unsigned(self.policy_version)?,
                detail: self.detail,
            },
        };
        Ok((device_of(self.device_no), entry))
    }
}
