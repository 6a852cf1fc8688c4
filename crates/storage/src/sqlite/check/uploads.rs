//! What must be true of uploads and files.

use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_query;
use diesel::sql_types::{BigInt, Integer, Nullable, Text};
use diesel::sqlite::Sqlite;
use driftline_engine::{StoreError, UploadRow};
use driftline_uploads::{Form, State};

use super::super::hot::statement;
use super::Report;
use super::tables::Tables;
use crate::codec::corrupt;
use crate::rows::{UPLOAD_SELECT, UploadSql};

statement! {
    /// Uploads of no tenant, which are not read otherwise.
    StrayUploads {} =
    "SELECT lower(hex(u.id)) FROM uploads AS u LEFT JOIN tenants AS t ON t.tenant_no = u.tenant_no \
     WHERE t.tenant_no IS NULL"
}

impl Query for StrayUploads {
    type SqlType = Text;
}

statement! {
    /// The uploads that come in chunks, with what is received of each by its row and by its chunks.
    AllReceived {} =
    "SELECT lower(hex(u.id)), u.received, coalesce(sum(min(u.chunk_bytes, u.size - c.chunk_no * u.chunk_bytes)), 0) \
     FROM uploads AS u LEFT JOIN upload_chunks AS c ON c.upload = u.id \
     WHERE u.chunk_bytes IS NOT NULL AND u.state IN ('open', 'finalizing') GROUP BY u.id"
}

impl Query for AllReceived {
    type SqlType = (Text, BigInt, BigInt);
}

statement! {
    /// Chunks that no upload has which is under way, that are of a place that it does not have, or whose digest is none.
    StrayChunks {} =
    "SELECT lower(hex(c.upload)), c.chunk_no FROM upload_chunks AS c LEFT JOIN uploads AS u ON u.id = c.upload \
     WHERE u.id IS NULL OR u.state NOT IN ('open', 'finalizing') OR coalesce(c.chunk_no * u.chunk_bytes >= u.size, 1) \
     OR c.chunk_no < 0 OR length(c.digest) <> 32"
}

impl Query for StrayChunks {
    type SqlType = (Text, BigInt);
}

statement! {
    /// What is kept of what tenants' uploads and files take, beside what their rows say.
    AllUsages {} =
    "SELECT coalesce(k.tenant_no, r.tenant_no), k.bytes, r.bytes FROM upload_usage AS k \
     FULL JOIN (SELECT tenant_no, sum(reserved) AS bytes FROM uploads GROUP BY tenant_no) AS r \
     ON r.tenant_no = k.tenant_no"
}

impl Query for AllUsages {
    type SqlType = (Integer, Nullable<BigInt>, Nullable<BigInt>);
}

impl Tables {
    pub(super) fn uploads(
        &mut self,
        connection: &mut SqliteConnection,
        report: &mut Report,
    ) -> QueryResult<()> {
        let mut read = 0;
        for row in sql_query(UPLOAD_SELECT).load_iter::<UploadSql, _>(connection)? {
            read += 1;
            let row = row.map_err(|error| StoreError::Corrupt(error.to_string()));
            match row.and_then(UploadSql::row) {
                Err(error) => self.unreadable(report, "uploads", format!("row {read}"), &error),
                Ok(row) => {
                    let (name, tenant) = (format!("upload {}", row.id), row.tenant.number());
                    let tenant_no = i32::try_from(tenant).unwrap_or_default();
                    self.look(report, "uploads", (tenant_no, name), reserves_what_it_should(&row));
                }
            }
        }
        for id in (StrayUploads {}).load_iter::<String, _>(connection)? {
            self.unreadable(report, "uploads", format!("upload {}", id?), &"it belongs to no tenant");
        }
        Ok(())
    }

    pub(super) fn upload_chunks(
        &mut self,
        connection: &mut SqliteConnection,
        report: &mut Report,
    ) -> QueryResult<()> {
        for row in (StrayChunks {}).load_iter::<(String, i64), _>(connection)? {
            let (id, chunk_no) = row?;
            let name = format!("upload {id}, chunk {chunk_no}");
            self.unreadable(report, "upload_chunks", name, &"there is no such chunk");
        }
        for row in (AllReceived {}).load_iter::<(String, i64, i64), _>(connection)? {
            let (id, received, came) = row?;
            if received != came {
                let reason = format!("its chunks have {came} bytes, not {received}");
                self.unreadable(report, "uploads", format!("upload {id}"), &reason);
            }
        }
        Ok(())
    }

    pub(super) fn upload_usage(
        &mut self,
        connection: &mut SqliteConnection,
        report: &mut Report,
    ) -> QueryResult<()> {
        for row in (AllUsages {}).load_iter::<(i32, Option<i64>, Option<i64>), _>(connection)? {
            let (tenant_no, kept, reserved) = row?;
            let (kept, reserved) = (kept.unwrap_or_default(), reserved.unwrap_or_default());
            let read = if kept == reserved {
                Ok(())
            } else {
                let reason = format!("{kept} bytes are kept, and its uploads and files take {reserved}");
                Err(StoreError::Corrupt(reason))
            };
            self.look(report, "upload_usage", (tenant_no, format!("tenant {tenant_no}")), read);
        }
        Ok(())
    }
}

/// Checks that an upload takes of its tenant's quota what it should.
fn reserves_what_it_should(row: &UploadRow) -> Result<(), StoreError> {
    let upload = &row.upload;
    let wanted = match (upload.state, upload.form) {
        (State::Cancelled | State::Expired, _) => 0,
        (_, Form::Chunks(plan)) => plan.size(),
        (_, Form::Stream { size }) => size.unwrap_or(row.reserved).max(upload.received),
    };
    let fits = row.reserved == wanted && upload.form.size().is_none_or(|size| upload.received <= size);
    if fits { Ok(()) } else { Err(corrupt("reserved")) }
}
