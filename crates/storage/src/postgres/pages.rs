//! Pages of rows.

use diesel_async::{AsyncPgConnection, RunQueryDsl};
use driftline_engine::{Left, Only, Page, PageQuery, Place, Row, StoreError};
use driftline_model::{KindName, RecordId, ScopeName, Seq, TenantNo};
use tokio::try_join;

use super::paged::{LeftByLog, LeftRow, LostByKey, PageByKey, PageByLog, PageByRange, PagedRow};
use super::snapshot::{first, give_back, last, whole};
use super::sql::{LoadHead, LoadRecords};
use super::sums::{SumRow, SumsOfScopes, named};
use super::{Shared, names, store_error};
use crate::codec::corrupt;
use crate::names::{Names, tenant_sql};
use crate::paging::{Item, cut};
use crate::rows::{HeadRow, RecordRow, head_of, row_of, seq_of, sql};

/// Scopes with at most so many live rows are read as a whole and sorted. Of others the tenant's rows are read in the
/// wanted order, and those of other scopes left out.
pub(super) const FEW: i64 = 10_000;

/// Reads a page, at one moment.
pub(super) async fn page(shared: &Shared, query: &PageQuery) -> Result<Page, StoreError> {
    let lease = shared.reader().await?;
    let (names, pg) = (&shared.caches.names, lease.pg());
    let read = async {
        let asked = Asked::new(query);
        // A name is looked up after the moment was fixed: one that has no number has no rows in it.
        let found = if asked.all_known(names) {
            whole(&lease, Reader::new(pg, names, query).found()).await?
        } else {
            first(&lease, names::find(names, pg, query.tenant, asked.kinds, asked.scopes)).await?;
            last(&lease, Reader::new(pg, names, query).found()).await?
        };
        found.page(names, pg, query).await
    };
    let page = read.await;
    give_back(lease, page).await
}

pub(super) async fn record(
    shared: &Shared,
    tenant: TenantNo,
    kind: &KindName,
    id: &RecordId,
) -> Result<Option<Row>, StoreError> {
    let lease = shared.reader().await?;
    let (names, pg) = (&shared.caches.names, lease.pg());
    let read = async {
        names::find(names, pg, tenant, [kind], []).await?;
        let Some(kind_no) = names.kind(tenant, kind) else { return Ok(None) };
        let (tenant_no, kinds, ids) = (tenant_sql(tenant), vec![kind_no], vec![id.as_str()]);
        let rows = LoadRecords { tenant_no, kinds, ids }.load::<RecordRow>(&mut { pg }).await;
        let Some(row) = rows.map_err(store_error)?.into_iter().next() else { return Ok(None) };
        names::learn(names, pg, [], [row.3]).await?;
        row_of(names, row).map(Some)
    };
    let record = read.await;
    give_back(lease, record).await
}

/// The names that a query speaks of.
struct Asked<'a> {
    tenant: TenantNo,
    kinds: Vec<&'a KindName>,
    scopes: Vec<&'a ScopeName>,
}

impl<'a> Asked<'a> {
    fn new(query: &'a PageQuery) -> Self {
        let mut kinds: Vec<_> = query.kinds.iter().collect();
        let mut scopes: Vec<_> = query.scopes.iter().collect();
        match &query.place {
            Place::After(_) => {}
            Place::Key { after, only } => {
                kinds.extend(after.as_ref().map(|(kind, _)| kind));
                if let Only::Some { kinds: only_kinds, scopes: only_scopes } = only {
                    kinds.extend(only_kinds);
                    scopes.extend(only_scopes);
                }
            }
            Place::Lost { after, lost } => {
                kinds.extend(after.as_ref().map(|(kind, _)| kind));
                scopes.extend(lost);
            }
            Place::Range { kind, scope, .. } => {
                kinds.push(kind);
                scopes.push(scope);
            }
        }
        Self { tenant: query.tenant, kinds, scopes }
    }

    fn all_known(&self, names: &Names) -> bool {
        self.kinds.iter().all(|kind| names.kind(self.tenant, kind).is_some())
            && self.scopes.iter().all(|scope| names.scope(self.tenant, scope).is_some())
    }
}

/// What was found at the moment of a page, in numbers.
struct Found {
    head: HeadRow,
    rows: Vec<PagedRow>,
    left: Vec<LeftRow>,
    sums: Vec<SumRow>,
}

impl Found {
    /// Gives everything its name and cuts the page.
    async fn page(
        self,
        names: &Names,
        pg: &AsyncPgConnection,
        query: &PageQuery,
    ) -> Result<Page, StoreError> {
        let rows = self.rows.iter().map(|(row, _)| (row.0, row.3));
        let left = self.left.iter().map(|row| (row.0, row.2));
        let sums = self.sums.iter().map(|row| (row.1, row.0));
        let (kinds, scopes): (Vec<i32>, Vec<i32>) = rows.chain(left).chain(sums).unzip();
        names::learn(names, pg, kinds, scopes).await?;
        // Rows that the bytes left no room for: what comes after the last of the others is not known.
        let more = self.rows.last().is_some_and(|(_, total)| usize::try_from(*total) != Ok(self.rows.len()));
        let mut items = Vec::with_capacity(self.rows.len() + self.left.len());
        for (row, _) in self.rows {
            items.push(Item::Row(row_of(names, row)?));
        }
        let horizon = items.last().map(Item::seq).filter(|_| more);
        for left in self.left {
            items.push(Item::Left(left_of(names, left)?));
        }
        if matches!(query.place, Place::After(_)) {
            items.sort_by_key(Item::seq);
            items.retain(|item| horizon.is_none_or(|horizon| item.seq() <= horizon));
        }
        let mut page = cut(head_of(self.head)?, items, query, more);
        page.sums = named(names, self.sums)?;
        Ok(page)
    }
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    pg: &'a AsyncPgConnection,
    names: &'a Names,
    query: &'a PageQuery,
    tenant_no: i32,
    /// One row more than wanted tells whether more wait.
    limit: i64,
    bytes: i64,
}

impl<'a> Reader<'a> {
    fn new(pg: &'a AsyncPgConnection, names: &'a Names, query: &'a PageQuery) -> Self {
        let limit = i64::try_from(query.rows).unwrap_or(i64::MAX - 1).saturating_add(1);
        let bytes = i64::try_from(query.bytes).unwrap_or(i64::MAX);
        Self { pg, names, query, tenant_no: tenant_sql(query.tenant), limit, bytes }
    }

    /// Reads the head, the rows and the sums. Every statement is on its way when this first waits.
    async fn found(self) -> Result<Found, StoreError> {
        let head = async {
            let head = LoadHead { tenant_no: self.tenant_no }.get_result::<HeadRow>(&mut { self.pg }).await;
            head.map_err(store_error)
        };
        let (head, (rows, left), sums) = try_join!(biased; head, self.items(), self.sums())?;
        Ok(Found { head, rows, left, sums })
    }

    async fn items(self) -> Result<(Vec<PagedRow>, Vec<LeftRow>), StoreError> {
        match &self.query.place {
            Place::After(after) => self.by_log(*after).await,
            Place::Key { after, only } => Ok((self.by_key(after.as_ref(), only).await?, Vec::new())),
            Place::Lost { after, lost } => Ok((Vec::new(), self.lost(after.as_ref(), lost).await?)),
            Place::Range { kind, scope, after, until } => {
                Ok((self.range(kind, scope, after.as_ref(), until.as_ref()).await?, Vec::new()))
            }
        }
    }

    async fn sums(self) -> Result<Vec<SumRow>, StoreError> {
        if !self.query.sums {
            return Ok(Vec::new());
        }
        let sums = SumsOfScopes { tenant_no: self.tenant_no, scopes: self.scopes(), kinds: self.kinds() };
        sums.load(&mut { self.pg }).await.map_err(store_error)
    }

    /// What changed in the scopes and what left them.
    async fn by_log(self, after: Seq) -> Result<(Vec<PagedRow>, Vec<LeftRow>), StoreError> {
        let (tenant_no, after, rows, bytes) = (self.tenant_no, sql(after.number()), self.limit, self.bytes);
        let (scopes, kinds) = (self.scopes(), self.kinds());
        let changed =
            PageByLog { scopes: scopes.clone(), tenant_no, after, kinds: kinds.clone(), rows, bytes };
        let left = LeftByLog { scopes, tenant_no, after, kinds, rows };
        try_join!(biased; changed.load(&mut { self.pg }), left.load(&mut { self.pg })).map_err(store_error)
    }

    async fn by_key(
        self,
        after: Option<&(KindName, RecordId)>,
        only: &Only,
    ) -> Result<Vec<PagedRow>, StoreError> {
        let (kind_no, id) = self.start(after);
        let (only_kinds, only_scopes) = match only {
            Only::All => (None, None),
            Only::Some { kinds, scopes } => {
                (Some(self.kind_numbers(kinds)), Some(self.scope_numbers(scopes)))
            }
        };
        let page = PageByKey {
            tenant_no: self.tenant_no,
            kind_no,
            id,
            scopes: self.scopes(),
            kinds: self.kinds(),
            only_kinds,
            only_scopes,
            rows: self.limit,
            bytes: self.bytes,
            few: FEW,
        };
        page.load(&mut { self.pg }).await.map_err(store_error)
    }

    async fn range(
        self,
        kind: &KindName,
        scope: &ScopeName,
        after: Option<&RecordId>,
        until: Option<&RecordId>,
    ) -> Result<Vec<PagedRow>, StoreError> {
        let wanted = self.query.kinds.is_empty() || self.query.kinds.contains(kind);
        let visible = self.query.scopes.contains(scope);
        let numbers = (self.names.kind(self.query.tenant, kind), self.names.scope(self.query.tenant, scope));
        let (Some(kind_no), Some(scope_no)) = numbers else { return Ok(Vec::new()) };
        if !wanted || !visible {
            return Ok(Vec::new());
        }
        let page = PageByRange {
            tenant_no: self.tenant_no,
            kind_no,
            after: start_id(after),
            until: until_id(until),
            scope_no,
            rows: self.limit,
            bytes: self.bytes,
            few: FEW,
        };
        page.load(&mut { self.pg }).await.map_err(store_error)
    }

    async fn lost(
        self,
        after: Option<&(KindName, RecordId)>,
        lost: &[ScopeName],
    ) -> Result<Vec<LeftRow>, StoreError> {
        let (kind_no, id) = self.start(after);
        let page = LostByKey {
            tenant_no: self.tenant_no,
            kind_no,
            id,
            lost: self.scope_numbers(lost),
            scopes: self.scopes(),
            kinds: self.kinds(),
            rows: self.limit,
            few: FEW,
        };
        page.load(&mut { self.pg }).await.map_err(store_error)
    }

    /// Where a page by key starts. A kind that has no number has no rows: everything comes after it.
    fn start(&self, after: Option<&(KindName, RecordId)>) -> (i32, String) {
        after.map_or((0, String::new()), |(kind, id)| {
            (self.names.kind(self.query.tenant, kind).unwrap_or(0), id.as_str().to_owned())
        })
    }

    /// The numbers of the reader's scopes.
    fn scopes(&self) -> Vec<i32> {
        self.scope_numbers(&self.query.scopes)
    }

    /// The wanted kinds as a statement takes them; nothing stands for all.
    fn kinds(&self) -> Option<Vec<i32>> {
        (!self.query.kinds.is_empty()).then(|| self.kind_numbers(&self.query.kinds))
    }

    fn scope_numbers(&self, scopes: &[ScopeName]) -> Vec<i32> {
        let known = scopes.iter().filter_map(|scope| self.names.scope(self.query.tenant, scope));
        let mut numbers: Vec<i32> = known.collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    fn kind_numbers(&self, kinds: &[KindName]) -> Vec<i32> {
        kinds.iter().filter_map(|kind| self.names.kind(self.query.tenant, kind)).collect()
    }
}

fn left_of(names: &Names, (kind_no, id, scope_no, seq): LeftRow) -> Result<Left, StoreError> {
    Ok(Left {
        kind: names.kind_name(kind_no)?,
        id: RecordId::new(&id).map_err(|_| corrupt("id"))?,
        scope: names.scope_name(scope_no)?,
        seq: seq_of(seq)?,
    })
}

/// The id before the first of a range.
pub(super) fn start_id(after: Option<&RecordId>) -> String {
    after.map_or_else(String::new, |id| id.as_str().to_owned())
}

/// The last id of a range. An id has at most 128 bytes, so none is greater than more of the greatest character.
pub(super) fn until_id(until: Option<&RecordId>) -> String {
    until.map_or_else(|| char::MAX.to_string().repeat(33), |id| id.as_str().to_owned())
}
