//! Stored records: one, many, and why they are what they are.

use driftline_model::{KindName, RecordId};
use driftline_protocol::{
    ChecksumPart, Checksums, ErrorCode, Fault, Range, RequestChecksums, ServerData, encode_changes,
};

use super::{Engine, RecordPage, not_found, unavailable};
use crate::explain::{Explanation, explain};
use crate::ports::{Identity, Observer, Only, PageQuery, Place, Row, Store, SumQuery};
use crate::pull::{PullFault, put};
use crate::work::Pulled;

impl<S: Store, O: Observer> Engine<S, O> {
    /// Reads one record that the reader may see.
    ///
    /// # Errors
    /// `NOT_FOUND`, also for what others own; `STORE_UNAVAILABLE`.
    pub async fn record(&self, identity: &Identity, kind: &KindName, id: &RecordId) -> Result<Row, Fault> {
        self.readable(identity, kind)?;
        let row = self.store.record(identity.tenant, kind, id).await.map_err(|error| unavailable(&error))?;
        row.filter(|row| identity.scopes.contains(&row.scope)).ok_or_else(not_found)
    }

    /// Reads a page of a kind's records, by id.
    ///
    /// # Errors
    /// As [`Engine::record`].
    pub async fn records(
        &self,
        identity: &Identity,
        kind: &KindName,
        after: Option<RecordId>,
        limit: usize,
    ) -> Result<RecordPage, Fault> {
        self.readable(identity, kind)?;
        let query = PageQuery {
            tenant: identity.tenant,
            scopes: identity.scopes.clone(),
            kinds: vec![kind.clone()],
            place: Place::Key { after: after.map(|id| (kind.clone(), id)), only: Only::All },
            rows: limit.clamp(1, self.limits.page_rows),
            bytes: self.limits.page_bytes,
            sums: false,
        };
        let page = self.store.page(query).await.map_err(|error| unavailable(&error))?;
        let next = page.rows.last().filter(|_| page.more).map(|row| row.id.clone());
        Ok(RecordPage { rows: page.rows, next })
    }

    /// Explains why a record is what it is.
    ///
    /// # Errors
    /// As [`Engine::record`].
    pub async fn explain(
        &self,
        identity: &Identity,
        kind: &KindName,
        id: &RecordId,
    ) -> Result<Explanation, Fault> {
        self.readable(identity, kind)?;
        let history =
            self.store.history(identity.tenant, kind, id).await.map_err(|error| unavailable(&error))?;
        let history =
            history.filter(|history| identity.scopes.contains(&history.row.scope)).ok_or_else(not_found)?;
        Ok(explain(&history))
    }

    fn readable(&self, identity: &Identity, kind: &KindName) -> Result<(), Fault> {
        self.catalogue.kind(kind).ok_or_else(not_found)?;
        if self.catalogue.may_read(kind, &identity.roles) {
            return Ok(());
        }
        Err(Fault::new(ErrorCode::Forbidden, "the token's roles may not read this kind"))
    }

    /// Reads the rows of a range, for a reader whose own do not add up. The answer names the range that it covers.
    ///
    /// A kind or a scope that the reader may not read holds nothing.
    pub(super) async fn range(
        &self,
        identity: &Identity,
        range: Range,
        cursor: Option<String>,
    ) -> Result<Pulled, PullFault> {
        let visible = self.sees(identity, &range);
        let query = PageQuery {
            tenant: identity.tenant,
            scopes: vec![range.scope.clone()],
            kinds: vec![range.kind.clone()],
            place: Place::Range {
                kind: range.kind.clone(),
                scope: range.scope.clone(),
                after: range.after.clone(),
                until: range.until.clone(),
            },
            rows: if visible { self.limits.page_rows } else { 0 },
            bytes: self.limits.page_bytes,
            sums: false,
        };
        let page = self.store.page(query).await?;
        let rows = if visible { page.rows } else { Vec::new() };
        let until =
            if page.more && visible { rows.last().map(|row| row.id.clone()) } else { range.until.clone() };
        let changes: Vec<_> = rows.iter().map(put).collect();
        let data = ServerData {
            changes: encode_changes(&changes),
            cursor: cursor.unwrap_or_default(),
            seq: page.head.seq,
            hlc: page.head.hlc,
            has_more: page.more && visible,
            checksums: Vec::new(),
            progress: None,
            range: Some(Range { until, ..range }),
            epoch_seq: None,
        };
        Ok(Pulled { data, rows: changes.len() as u64 })
    }

    /// Sums the parts of a range.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn checksums(
        &self,
        identity: &Identity,
        request: RequestChecksums,
    ) -> Result<Checksums, Fault> {
        let RequestChecksums { range, parts } = request;
        if !self.sees(identity, &range) {
            let head = self.head(identity).await?;
            let nothing =
                ChecksumPart { after: range.after.clone(), until: range.until.clone(), count: 0, sum: 0 };
            return Ok(Checksums { seq: head.seq, range, parts: vec![nothing] });
        }
        self.observer.checksum_mismatch();
        let query = SumQuery {
            tenant: identity.tenant,
            kind: range.kind.clone(),
            scope: range.scope.clone(),
            after: range.after.clone(),
            until: range.until.clone(),
            parts: usize::try_from(parts).unwrap_or(1),
        };
        let (head, parts) = self.store.sums(query).await.map_err(|error| unavailable(&error))?;
        let part = |part: crate::ports::PartSum| ChecksumPart {
            after: part.after,
            until: part.until,
            count: part.count,
            sum: part.sum,
        };
        Ok(Checksums { seq: head.seq, range, parts: parts.into_iter().map(part).collect() })
    }

    fn sees(&self, identity: &Identity, range: &Range) -> bool {
        self.catalogue.may_read(&range.kind, &identity.roles) && identity.scopes.contains(&range.scope)
    }
}
