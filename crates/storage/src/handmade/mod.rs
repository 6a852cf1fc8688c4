//! Both stores under writes that are made by hand, whatever the plan would make.
//!
//! A history of random writes goes into both; then everything that can be read must be the same, and what a plain model
//! says.

mod checks;
mod history;

use driftline_model::Limits;
use driftline_testkit::{Author, World, block_on};

use crate::{MemoryStore, SqliteOptions, SqliteStore};

use history::History;

fn memory(world: &World) -> MemoryStore {
    let World { clock, random, listeners, .. } = world;
    let store = MemoryStore::new(clock.clone(), random.clone(), listeners.clone(), Limits::default());
    // The numbers of devices begin at one in the other store.
    let _ = Author::join(&store, "acme", "nobody", "none");
    store
}

fn sqlite(world: &World) -> SqliteStore {
    let World { clock, random, listeners, folder } = world;
    SqliteStore::open(SqliteOptions {
        file: folder.path().join("driftline.db"),
        clock: clock.clone(),
        random: random.clone(),
        listeners: listeners.clone(),
        fatal: Box::new(|reason| panic!("{reason}")),
        skew_ms_max: 60_000,
        record_bytes: 1 << 20,
        readers: 1,
        outbox_claims: Vec::new(),
    })
    .expect("the store opens")
}

#[test]
fn the_stores_read_alike_and_as_the_model_says() {
    for seed in 0..12 {
        println!("seed {seed}");
        let worlds = [World::new(seed), World::new(seed)];
        let stores = (memory(&worlds[0]), sqlite(&worlds[1]));
        let mut histories = [History::new(seed, &stores.0), History::new(seed, &stores.1)];
        assert_eq!(histories[0].devices[1].device, histories[1].devices[1].device);
        for step in 0..30 {
            let [mine, theirs] = &mut histories;
            let (planned, state) = if step == 0 { mine.begin() } else { mine.step() };
            stores.0.write_planned(planned, state, mine.now_ms);
            let (planned, state) = if step == 0 { theirs.begin() } else { theirs.step() };
            block_on(stores.1.write_planned(planned, state, theirs.now_ms)).expect("a write");
        }
        let history = &mut histories[0];
        assert!(!history.exits.is_empty() && !history.conflicts.is_empty());
        checks::check_pages(history, (&stores.0, &stores.1));
        checks::check_sums(history, (&stores.0, &stores.1));
        checks::check_lists(history, (&stores.0, &stores.1));
        checks::check_loads(history, &stores.0, &stores.1);
    }
}
