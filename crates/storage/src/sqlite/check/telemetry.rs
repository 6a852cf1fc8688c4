//! What must be true of samples, series, remembered answers and the registry of devices.

use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Binary, Integer, Nullable, Text};
use diesel::sqlite::Sqlite;
use driftline_engine::StoreError;
use driftline_model::{Object, RecordId};

use super::super::hot::statement;
use super::Report;
use super::tables::Tables;
use crate::codec::corrupt;
use crate::names::tenant_of;
use crate::once::{Kept, fingerprint_of};
use crate::rows::{point_of, sample_mark_of};

statement! {
    /// Every sample, with whether its device is its tenant's.
    AllSamples {} =
    "SELECT s.tenant_no, s.kind_no, s.id, s.at, s.received_at, s.hash, s.sent_at, s.fields, d.tenant_no \
     FROM samples AS s LEFT JOIN devices AS d ON d.device_no = s.device_no"
}

impl Query for AllSamples {
    type SqlType = (Integer, Integer, Text, BigInt, BigInt, BigInt, BigInt, Text, Nullable<Integer>);
}

type SampleRow = (i32, i32, String, i64, i64, i64, i64, String, Option<i32>);

statement! {
    /// Every point of a series.
    AllPoints {} = "SELECT p.tenant_no, p.hour, p.name, p.counter, p.sketch FROM series AS p"
}

impl Query for AllPoints {
    type SqlType = (Integer, BigInt, Text, BigInt, Binary);
}

statement! {
    /// Every key.
    AllKeys {} =
    "SELECT i.tenant_no, i.owner, i.key, i.fingerprint, i.expires_at, i.answer, i.attempt, i.lease_until \
     FROM idempotency AS i"
}

impl Query for AllKeys {
    type SqlType =
        (Integer, Text, Text, Binary, BigInt, Nullable<Binary>, Nullable<BigInt>, Nullable<BigInt>);
}

type KeyRow = (i32, String, String, Vec<u8>, i64, Option<Vec<u8>>, Option<i64>, Option<i64>);

statement! {
    /// Every batch that is recognised when it comes again.
    AllBatches {} =
    "SELECT b.tenant_no, b.sync_id, b.batch_seq, b.at, b.fingerprint, b.answer FROM sync_batches AS b \
     WHERE b.fingerprint IS NOT NULL OR b.answer IS NOT NULL"
}

impl Query for AllBatches {
    type SqlType = (Integer, Text, BigInt, BigInt, Nullable<Binary>, Nullable<Binary>);
}

type BatchRow = (i32, String, i64, i64, Option<Vec<u8>>, Option<Vec<u8>>);

statement! {
    /// Every device hash, with the tenant of the device that it leads to.
    AllDigests {} =
    "SELECT g.digest, g.tenant_no, g.device_no, d.tenant_no, d.retired_at FROM device_digests AS g \
     LEFT JOIN devices AS d ON d.device_no = g.device_no"
}

impl Query for AllDigests {
    type SqlType = (Binary, Integer, Integer, Nullable<Integer>, Nullable<BigInt>);
}

type DigestRow = (Vec<u8>, i32, i32, Option<i32>, Option<i64>);

impl Tables {
    pub(super) fn samples(
        &mut self,
        connection: &mut SqliteConnection,
        report: &mut Report,
    ) -> QueryResult<()> {
        for row in (AllSamples {}).load_iter::<SampleRow, _>(connection)? {
            let (tenant_no, kind_no, id, at, received_at, hash, sent_at, fields, device_of) = row?;
            let name = format!("tenant {tenant_no}, kind {kind_no}, {id:?}");
            let read = || {
                RecordId::new(&id).map_err(|_| corrupt("id"))?;
                sample_mark_of(hash, sent_at)?;
                Object::from_canonical(fields).map_err(|_| corrupt("fields"))?;
                if at < 0 || received_at < 0 { Err(corrupt("at")) } else { Ok(()) }
            };
            let of_tenant = |kind| self.names().kind(tenant_of(tenant_no), &kind) == Some(kind_no);
            let known = self.names().kind_name(kind_no).is_ok_and(|kind| tenant_no > 0 && of_tenant(kind));
            if !known || device_of != Some(tenant_no) {
                self.unreadable(report, "samples", name, &"its kind or device is not its tenant's");
            } else if let Err(error) = read() {
                self.unreadable(report, "samples", name, &error);
            }
        }
        Ok(())
    }

    pub(super) fn points(
        &mut self,
        connection: &mut SqliteConnection,
        report: &mut Report,
    ) -> QueryResult<()> {
        for row in (AllPoints {}).load_iter::<(i32, i64, String, i64, Vec<u8>), _>(connection)? {
            let (tenant_no, hour, name, counter, sketch) = row?;
            let read = point_of(counter, &sketch).map(|_| ());
            let read = if hour < 0 { Err(corrupt("hour")) } else { read };
            self.look(report, "series", (tenant_no, format!("{name:?} of hour {hour}")), read);
        }
        Ok(())
    }

    pub(super) fn keys(&mut self, connection: &mut SqliteConnection, report: &mut Report) -> QueryResult<()> {
        for row in (AllKeys {}).load_iter::<KeyRow, _>(connection)? {
            let (tenant_no, owner, key, fingerprint, expires_at, answer, attempt, lease_until) = row?;
            let kept = Kept::of(&fingerprint, expires_at, answer, (attempt, lease_until));
            let read = kept.and_then(|kept| kept.record()).map(|_| ());
            self.look(report, "idempotency", (tenant_no, format!("{key:?} of {owner:?}")), read);
        }
        Ok(())
    }

    pub(super) fn batches(
        &mut self,
        connection: &mut SqliteConnection,
        report: &mut Report,
    ) -> QueryResult<()> {
        for row in (AllBatches {}).load_iter::<BatchRow, _>(connection)? {
            let (tenant_no, sync_id, batch_seq, at, fingerprint, answer) = row?;
            let read = fingerprint_of(fingerprint.as_deref().unwrap_or_default()).and_then(|fingerprint| {
                let at_ms = u64::try_from(at).map_err(|_| corrupt("at"))?;
                Kept::of_batch(fingerprint, at_ms, answer).record().map(|_| ())
            });
            self.look(report, "sync_batches", (tenant_no, format!("batch {batch_seq} of {sync_id}")), read);
        }
        Ok(())
    }

    pub(super) fn digests(
        &mut self,
        connection: &mut SqliteConnection,
        report: &mut Report,
    ) -> QueryResult<()> {
        for row in (AllDigests {}).load_iter::<DigestRow, _>(connection)? {
            let (digest, tenant_no, device_no, device_of, retired_at) = row?;
            let whole = digest.len() == 32 && device_of == Some(tenant_no) && retired_at.is_none();
            if !whole {
                let name = format!("device {device_no}");
                self.unreadable(report, "device_digests", name, &"it leads to no device of its tenant");
            }
        }
        Ok(())
    }

    /// Lists a row that cannot be read, or belongs to nobody.
    pub(super) fn look(
        &mut self,
        report: &mut Report,
        table: &'static str,
        (tenant_no, row): (i32, String),
        read: Result<(), StoreError>,
    ) {
        match read {
            Err(error) => self.unreadable(report, table, row, &error),
            Ok(()) if !self.has_tenant(tenant_no) => {
                self.unreadable(report, table, row, &"it belongs to no tenant");
            }
            Ok(()) => {}
        }
    }
}
