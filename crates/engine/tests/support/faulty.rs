//! Planted faults around the reading side.

use driftline_engine::{Page, PageQuery, Place, Store, StoreError};
use driftline_model::{ScopeName, Seq, TenantId};
use driftline_protocol::{Cursor, CursorKey, Phase};
use driftline_storage::MemoryStore;
use driftline_testkit::{Hook, Wrapped};

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Nothing,
    /// Every page of the log but the first starts one place too late.
    SkipsAPlace,
    /// Tombstones are left out of the log.
    HidesTombstones,
    /// A page that was cut says that nothing follows.
    NeverMore,
    /// Rows of the log come by key.
    ForgetsTheOrder,
    /// Tombstones are purged without raising the floor.
    ForgetsTheFloor,
    /// Pages pass, and the changes are told against the last page instead of where the reader was caught up.
    FromIsAt,
    /// A cursor says that it covers kinds that it does not.
    CoversAll,
    /// The log after a snapshot starts at its end.
    SnapshotEndsLate,
    /// Rows that left a scope are not told.
    ForgetsExits,
    /// A row that came into the reader's scopes is told as if the reader had had it before.
    ForgetsEntries,
    /// Rows of a scope that the reader lost stay with the reader.
    KeepsTheLost,
    /// Of the rows of a scope that the reader lost, the deleted ones are not told.
    KeepsTheLostDead,
    /// A cursor says that it covers scopes that were granted after it.
    CoversGrants,
    /// The sums miss the last row that moved.
    SumsLate,
}

/// A store with a fault.
pub(crate) type Faulty = Wrapped<MemoryStore, Fault>;

/// Spoils a cursor on its way to the reader.
pub(crate) fn spoil(store: &Faulty, tenant: &TenantId, sealed: String, seq: Seq) -> String {
    let key = CursorKey::new(&store.cursor_secret());
    let Ok(mut cursor) = key.open(tenant, &sealed) else { return sealed };
    let Cursor { kinds, scopes, phase, .. } = &mut cursor;
    match (store.hook, phase) {
        (Fault::FromIsAt, Phase::Log(resume)) => resume.from = resume.at,
        (Fault::CoversAll, _) => kinds.clear(),
        (Fault::CoversGrants, _) => {
            scopes.extend((0..3).map(|at| ScopeName::group("g", &format!("n{at}")).expect("a scope")));
            scopes.sort();
            scopes.dedup();
        }
        (Fault::SnapshotEndsLate, Phase::Snapshot { then, .. }) => (then.from, then.at) = (seq, seq),
        _ => return sealed,
    }
    key.seal(tenant, &cursor)
}

impl Hook<MemoryStore> for Fault {
    async fn page(&self, inner: &MemoryStore, query: PageQuery) -> Result<Page, StoreError> {
        let mut spoiled = query.clone();
        let mut page = match (self, &query.place) {
            (Self::SkipsAPlace, Place::After(at)) if *at > Seq::ZERO => {
                spoiled.place = Place::After(at.next());
                inner.page(spoiled).await?
            }
            (Fault::ForgetsTheOrder, Place::After(_)) => {
                (spoiled.rows, spoiled.bytes) = (usize::MAX, usize::MAX);
                let mut page = inner.page(spoiled).await?;
                page.rows.sort_by(|a, b| a.id.cmp(&b.id));
                page.more = page.rows.len() > query.rows;
                page.rows.truncate(query.rows);
                page
            }
            _ => inner.page(spoiled).await?,
        };
        match self {
            Fault::HidesTombstones => page.rows.retain(|row| !row.deleted),
            Fault::NeverMore => page.more = false,
            Fault::ForgetsTheFloor => page.head.gc_floor = Seq::ZERO,
            Fault::ForgetsExits if matches!(query.place, Place::After(_)) => page.left.clear(),
            Fault::KeepsTheLostDead if matches!(query.place, Place::Lost { .. }) => {
                let mut living = Vec::new();
                for left in page.left {
                    let row = inner.record(query.tenant, &left.kind, &left.id).await?;
                    living.extend(row.is_some_and(|row| !row.deleted).then_some(left));
                }
                page.left = living;
            }
            Fault::KeepsTheLost if matches!(query.place, Place::Lost { .. }) => page.left.clear(),
            Fault::ForgetsEntries => page.rows.iter_mut().for_each(|row| row.entered = Seq::ZERO),
            Fault::SumsLate => {
                if let Some(sum) = page.sums.first_mut() {
                    sum.sum = sum.sum.wrapping_sub(1);
                }
            }
            _ => {}
        }
        Ok(page)
    }
}
