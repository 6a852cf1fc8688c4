//! What a database file holds, once no server has it.

use std::path::Path;
use std::sync::Arc;

use driftline_engine::{SampleQuery, SeriesQuery, Silent, Store as _};
use driftline_model::{KindName, TenantId};
use driftline_storage::{SqliteOptions, SqliteStore};
use driftline_testkit::{World, block_on};

/// The most rows of one query.
const ROWS: usize = 100_000;

/// Counts samples, adds up what was counted, and reads the head of the sequence.
pub(crate) fn held(file: &Path) -> [u64; 3] {
    let world = World::new(1);
    let store = SqliteStore::open(SqliteOptions {
        file: file.to_owned(),
        clock: world.clock.clone(),
        random: world.random.clone(),
        listeners: Arc::new(Silent),
        fatal: Box::new(|reason| panic!("{reason}")),
        skew_ms_max: 60_000,
        record_bytes: 1 << 20,
        readers: 1,
        outbox_claims: Vec::new(),
    });
    let store = store.expect("the file is whole");
    let tenant = block_on(store.tenant(&TenantId::new("t1").expect("a name"))).expect("a tenant");
    let to_ms = 2 * World::BEGIN_MS;
    let kind = KindName::new("reading").expect("a kind");
    let query = SampleQuery { kind, devices: None, from_ms: 0, to_ms, after: None, rows: ROWS };
    let samples = block_on(store.samples(tenant, query)).expect("a read").len() as u64;
    let query = SeriesQuery { from_ms: 0, to_ms, after: None, rows: ROWS };
    let points = block_on(store.series(tenant, query)).expect("a read");
    let counted = points.iter().map(|row| row.point.counter).sum();
    let head = block_on(store.head(tenant)).expect("a read");
    [samples, counted, head.seq.number()]
}
