//! The rows of uploads: the stores cannot be told apart, and what each does for itself.

mod support;

use std::thread;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::{Connection, SqliteConnection};
use driftline_engine::{
    ChunkReceipt, Joining, Kept, LeaseKey, LeaseSlot, Leased, Renewed, Store, StreamReceipt, UploadCaps,
    UploadOnce, UploadOpened, UploadRow, UploadRows, UploadTurn,
};
use driftline_idempotency::Fingerprint;
use driftline_testkit::{Author, Rng, World, block_on};
use driftline_uploads::{Digest, Form, RunningHash, State, Upload, UploadId};
use support::uploads::{self, PLENTY};

/// Something that is asked of the rows.
#[derive(Debug, Clone)]
enum Ask {
    Open(Box<UploadRow>, UploadCaps, Option<UploadOnce>),
    Read(UploadId),
    Chunk(ChunkReceipt),
    Stream(StreamReceipt),
    Turn(UploadTurn),
    Lease(LeaseKey, u64, u64, bool),
    Renew(LeaseKey, u64, u64),
    Release(LeaseKey, u64),
    Reserve(UploadId, u64, u64),
    Lists(u64, usize),
    Told(UploadId),
    Remove(UploadId),
    Forget(u64),
}

/// Asks, and gives the answer as text; of what goes wrong only that it does.
fn answer(rows: &dyn UploadRows, ask: &Ask, ids: &[UploadId], now_ms: u64) -> String {
    fn told<T: std::fmt::Debug, E>(answer: Result<T, E>) -> String {
        answer.map_or_else(|_| "an error".into(), |answer| format!("{answer:?}"))
    }
    match ask.clone() {
        Ask::Open(row, caps, once) => told(block_on(rows.open_upload(*row, caps, once))),
        Ask::Read(id) => shown(rows, id),
        Ask::Chunk(receipt) => told(block_on(rows.keep_chunk(receipt))),
        Ask::Stream(receipt) => told(block_on(rows.keep_stream(receipt))),
        Ask::Turn(turn) => {
            let (id, missing) = (turn.id, turn.missing.len());
            let chunks = || block_on(rows.chunks(id)).expect("a list").len();
            let (from, to, before) = (turn.from, turn.to, chunks());
            let turned = told(block_on(rows.turn_upload(turn)));
            let back = if to == State::Open && chunks() < before { "taken back" } else { "" };
            format!("{turned} {from:?} {to:?} {missing} {back} {}", shown(rows, id))
        }
        Ask::Lease(key, holder, until, evict) => {
            told(block_on(rows.lease(key, holder, now_ms, now_ms + until, evict)))
        }
        Ask::Renew(key, holder, until) => told(block_on(rows.renew(key, holder, now_ms, now_ms + until))),
        Ask::Release(key, holder) => told(block_on(rows.release(key, holder))),
        Ask::Reserve(id, bytes, quota_bytes) => told(block_on(rows.reserve_upload(id, bytes, quota_bytes))),
        Ask::Lists(at_ms, most) => {
            let lists = [
                block_on(rows.overdue_uploads(at_ms, most)),
                block_on(rows.unfinished_uploads(at_ms, most)),
                block_on(rows.untold_uploads(most)),
            ];
            let states = block_on(rows.upload_states(ids.to_vec()));
            format!("{lists:?} {states:?} {:?}", block_on(rows.upload_usage()))
        }
        Ask::Told(id) => told(block_on(rows.upload_told(id))),
        Ask::Remove(id) => told(block_on(rows.remove_file_row(id))),
        Ask::Forget(before_ms) => told(block_on(rows.forget_uploads(before_ms, before_ms))),
    }
}

/// Everything of an upload.
fn shown(rows: &dyn UploadRows, id: UploadId) -> String {
    let row = block_on(rows.upload(id)).expect("a read");
    let digest = row.as_ref().and_then(|row| row.running.as_ref()).map(RunningHash::digest);
    let chunks = block_on(rows.chunks(id)).expect("a list");
    let second = block_on(rows.chunk(id, 1)).expect("a read");
    format!("{row:?} {digest:?} {chunks:?} {second:?}")
}

/// Who asks.
const HOLDERS: u64 = 3;

/// What may be asked about a few uploads of two tenants.
struct History {
    rng: Rng,
    authors: [Author; 2],
    ids: Vec<UploadId>,
    now_ms: u64,
    /// What is asked before anything else is drawn.
    then: Vec<Ask>,
}

impl History {
    fn id(&mut self) -> UploadId {
        if self.ids.is_empty() || self.rng.percent(3) {
            return uploads::id(1 << 40);
        }
        let recent = self.ids.len().min(8);
        self.ids[self.ids.len() - 1 - self.rng.place(recent)]
    }

    fn running(&mut self, through: u64) -> Option<RunningHash> {
        self.rng.percent(40).then(|| {
            let mut running = RunningHash::default();
            running.update(&vec![3; usize::try_from(through).expect("short")]);
            running
        })
    }

    fn open(&mut self) -> Ask {
        let number = self.ids.len() as u64;
        let form = match self.rng.below(4) {
            0 => uploads::stream(None),
            1 => uploads::stream(Some(self.rng.below(40))),
            _ => uploads::chunks(self.rng.below(40)),
        };
        let author = self.rng.pick(&self.authors).clone();
        let row = uploads::row(&author, number, form);
        let expires_ms = self.now_ms + self.rng.below(60);
        let joinings = [Joining::Alone, Joining::Alone, Joining::Part, Joining::Whole];
        let row = UploadRow {
            owner: (*self.rng.pick(&["ada", "bob"])).into(),
            upload: Upload { opened_ms: self.now_ms, expires_ms, ..row.upload },
            joining: *self.rng.pick(&joinings),
            changed_ms: self.now_ms,
            ..row
        };
        let caps = UploadCaps { open_max: self.rng.between(1, 20), quota_bytes: self.rng.between(20, 300) };
        let once = self.rng.percent(50).then(|| UploadOnce {
            owner: row.owner.clone(),
            key: (*self.rng.pick(&["a", "b"])).into(),
            fingerprint: Fingerprint::builder("test").number(self.rng.below(2)).finish(),
            window_ms: self.rng.below(1_000),
        });
        if self.rng.percent(90) {
            self.ids.push(row.id);
        }
        Ask::Open(Box::new(row), caps, once)
    }

    fn turn(&mut self, now: Option<&UploadRow>) -> Ask {
        let from = match now {
            Some(row) if self.rng.percent(85) => row.upload.state,
            _ => *self.rng.pick(&State::ALL),
        };
        let chance = |rng: &mut Rng, text: &str| rng.percent(30).then(|| text.to_owned());
        let id = now.map_or(uploads::id(1 << 40), |row| row.id);
        let to = *self.rng.pick(&State::ALL);
        let holder = self.rng.percent(30).then(|| self.rng.below(HOLDERS));
        // Often there and back, on which way chunks are taken back.
        let to = match from {
            State::Open if self.rng.percent(40) => State::Finalizing,
            State::Finalizing if self.rng.percent(70) => State::Open,
            _ => to,
        };
        let is_back = (from, to) == (State::Finalizing, State::Open);
        let missing = if self.rng.percent(70) { self.missing(now) } else { Vec::new() };
        let turn = Ask::Turn(UploadTurn {
            id,
            from,
            to,
            holder,
            missing,
            whole: !is_back && self.rng.percent(20),
            overdue: !is_back && self.rng.percent(20),
            digest: chance(&mut self.rng, "digest").map(|text| Digest::hash(text.as_bytes())),
            fault: chance(&mut self.rng, "fault").map(Into::into),
            at_ms: self.now_ms,
        });
        match holder {
            Some(holder) => self.by_right(id, LeaseSlot::Finalize, holder, turn),
            None => turn,
        }
    }

    /// Chunks of an upload, of which not all are there, with their bytes.
    fn missing(&mut self, now: Option<&UploadRow>) -> Vec<(u64, u64)> {
        let plan = match now.map(|row| row.upload.form) {
            Some(Form::Chunks(plan)) => plan,
            _ => return vec![(0, 4)],
        };
        let some = (0..plan.chunks() + 1).filter(|_| self.rng.percent(50));
        some.map(|index| (index, plan.chunk(index).map_or(4, |(_, bytes)| bytes))).collect()
    }

    /// Asks for a right first, mostly, so that what is asked by it is done.
    fn by_right(&mut self, id: UploadId, slot: LeaseSlot, holder: u64, ask: Ask) -> Ask {
        if self.rng.percent(15) {
            return ask;
        }
        self.then.push(ask);
        Ask::Lease(LeaseKey { id, slot }, holder, self.rng.below(20), self.rng.percent(60))
    }

    /// One of the chunks that an upload has.
    fn chunk(&mut self, id: UploadId, now: Option<&UploadRow>) -> Ask {
        let plan = match now.map(|row| row.upload.form) {
            Some(Form::Chunks(plan)) if plan.chunks() > 0 => plan,
            _ => return Ask::Read(id),
        };
        let index = self.rng.below(plan.chunks());
        let (begin, bytes) = plan.chunk(index).expect("there is one");
        let running = self.running(begin + bytes);
        let tag = self.rng.percent(30).then(|| format!("tag {index}").into());
        let (at_ms, expires_ms) = (self.now_ms, self.now_ms + self.rng.below(60));
        let holder = self.rng.below(HOLDERS);
        let chunk = uploads::chunk(id, index, bytes);
        let receipt = ChunkReceipt { running, tag, holder, at_ms, expires_ms, ..chunk };
        self.by_right(id, LeaseSlot::Chunk(index), holder, Ask::Chunk(receipt))
    }

    /// More of a stream, up to its size.
    fn stream(&mut self, id: UploadId, now: Option<&UploadRow>) -> Ask {
        let (received, told) = now.map_or((0, None), |row| (row.upload.received, row.upload.form.size()));
        let from = if self.rng.percent(85) { received } else { self.rng.below(40) };
        let to = (from + self.rng.below(15)).min(told.unwrap_or(u64::MAX)).max(from);
        let running = self.running(to);
        let size = self.rng.percent(15).then(|| to + self.rng.below(20));
        let (at_ms, expires_ms) = (self.now_ms, self.now_ms + self.rng.below(60));
        let quota_bytes = self.rng.between(20, 300);
        let part = uploads::part(id, from, to);
        let holder = self.rng.below(HOLDERS);
        let receipt = StreamReceipt { size, running, holder, at_ms, expires_ms, quota_bytes, ..part };
        self.by_right(id, LeaseSlot::Stream, holder, Ask::Stream(receipt))
    }

    fn key(&mut self) -> LeaseKey {
        if self.rng.percent(20) {
            return LeaseKey { id: self.id(), slot: LeaseSlot::Finalize };
        }
        let slot = *self.rng.pick(&[LeaseSlot::Chunk(0), LeaseSlot::Stream]);
        LeaseKey { id: uploads::id(0), slot }
    }

    /// Draws the next thing to ask. `now` tells of an upload that is likely to be the one.
    fn next(&mut self, model: &dyn UploadRows) -> Ask {
        if let Some(ask) = self.then.pop() {
            return ask;
        }
        self.now_ms += self.rng.below(4);
        let id = self.id();
        let now = block_on(model.upload(id)).expect("a read");
        let is_stream = now.as_ref().is_none_or(|row| matches!(row.upload.form, Form::Stream { .. }));
        let holder = self.rng.below(HOLDERS);
        match self.rng.below(100) {
            0..9 => self.open(),
            9..13 => Ask::Read(id),
            13..16 => Ask::Reserve(id, self.rng.below(60), self.rng.between(20, 300)),
            16..45 if !is_stream => self.chunk(id, now.as_ref()),
            16..55 if is_stream => self.stream(id, now.as_ref()),
            16..55 => Ask::Read(id),
            55..77 => self.turn(now.as_ref()),
            77..84 => Ask::Lease(self.key(), holder, self.rng.below(300), self.rng.percent(60)),
            84..87 => Ask::Renew(self.key(), holder, self.rng.below(300)),
            87 => Ask::Release(self.key(), holder),
            88..94 => Ask::Lists(self.now_ms - self.rng.below(20), self.rng.place(20)),
            94 | 95 => Ask::Told(id),
            96..98 => Ask::Remove(id),
            _ => Ask::Forget(self.now_ms - self.rng.below(30)),
        }
    }
}

/// Checks that what is kept of a tenant's sum is what the rows say.
fn check_usage(rows: &dyn UploadRows, ids: &[UploadId]) {
    let rows_of = ids.iter().filter_map(|id| block_on(rows.upload(*id)).expect("a read"));
    let reserved: u64 = rows_of.map(|row| row.reserved).sum();
    assert_eq!(block_on(rows.upload_usage()).expect("a read").bytes, reserved);
}

#[test]
fn the_stores_cannot_be_told_apart() {
    let signs = ["Opened", "Before(", "Reused", "TooMany", "NoRoom {", "Overtaken", "NotOpen(Some", "Kept {"];
    let more =
        ["NoRoom", "Busy {", "Wanted", "Lost", "taken back", "true", "Whole", "fault: Some", "running: Some"];
    let mut bites: Vec<(&str, usize)> = signs.into_iter().chain(more).map(|sign| (sign, 0)).collect();
    for seed in 0..10 {
        println!("seed {seed}");
        let worlds = [World::new(seed), World::new(seed), World::new(seed)];
        let stores =
            (support::memory(&worlds[0]), support::sqlite(&worlds[1]), support::postgres(&worlds[2]));
        let join = |tenant| {
            // The others give the same numbers.
            let author = Author::join(&stores.1, tenant, "ada", "phone");
            assert_eq!(Author::join(&stores.0, tenant, "ada", "phone").tenant, author.tenant);
            assert_eq!(Author::join(&stores.2, tenant, "ada", "phone").tenant, author.tenant);
            author
        };
        let authors = ["acme", "other"].map(join);
        let mut history = History {
            rng: Rng::new(seed),
            authors,
            ids: Vec::new(),
            now_ms: World::BEGIN_MS,
            then: Vec::new(),
        };
        for step in 0..1_200 {
            let ask = history.next(stores.0.uploads());
            for world in &worlds {
                world.clock.set(history.now_ms);
            }
            let (ids, now_ms) = (&history.ids, history.now_ms);
            let wanted = answer(stores.0.uploads(), &ask, ids, now_ms);
            let sqlite = answer(stores.1.uploads(), &ask, ids, now_ms);
            assert_eq!(sqlite, wanted, "seed {seed}, step {step}: {ask:?}");
            let postgres = answer(stores.2.uploads(), &ask, ids, now_ms);
            assert_eq!(postgres, wanted, "seed {seed}, step {step}: {ask:?}");
            for (sign, count) in &mut bites {
                *count += usize::from(wanted.contains(*sign));
            }
        }
        for rows in [stores.0.uploads(), stores.1.uploads(), stores.2.uploads()] {
            check_usage(rows, &history.ids);
        }
        drop(stores);
        let findings = driftline_storage::SqliteStore::check(&support::file(&worlds[1])).findings;
        assert_eq!(findings, [], "seed {seed}");
    }
    println!("{bites:?}");
    assert!(bites.iter().all(|(_, count)| *count > 10), "the histories bite: {bites:?}");
}

/// A state that another version of the hash put away is none; the file is hashed from its beginning.
#[test]
fn a_hash_that_cannot_be_read_is_none() {
    let check = |store: &dyn UploadRows, author: &Author, ruin: &dyn Fn(&str)| {
        let mut running = RunningHash::default();
        running.update(b"abcd");
        let row = UploadRow { running: Some(running), ..uploads::row(author, 1, uploads::chunks(8)) };
        assert_eq!(block_on(store.open_upload(row, PLENTY, None)), Ok(UploadOpened::Opened));
        let read = || block_on(store.upload(uploads::id(1))).expect("a read").expect("a row").running;
        assert!(read().is_some());
        ruin("UPDATE uploads SET running = substr(running, 2)");
        assert!(read().is_none());
    };
    let (sqlite, postgres) = (World::new(1), World::new(2));
    let store = support::sqlite(&sqlite);
    check(store.uploads(), &Author::join(&store, "acme", "ada", "phone"), &|sql| {
        beside(&sqlite).batch_execute(sql).expect("a write");
    });
    let store = support::postgres(&postgres);
    check(store.uploads(), &Author::join(&store, "acme", "ada", "phone"), &|sql| {
        support::database(&postgres).sql(sql);
    });
}

/// Another connection to the file of a world.
fn beside(world: &World) -> SqliteConnection {
    let file = support::file(world);
    SqliteConnection::establish(file.to_str().expect("UTF-8")).expect("a connection")
}

/// A receipt that cannot be written does not fail those that wait with it.
#[test]
fn a_bad_receipt_fails_alone() {
    let world = World::new(1);
    let store = support::sqlite(&world);
    let ada = Author::join(&store, "acme", "ada", "phone");
    let id = uploads::open(&store, &uploads::row(&ada, 1, uploads::chunks(400)));
    uploads::take_rights(&store, id, 100);
    let mut other = beside(&world);
    other
        .batch_execute(
            "CREATE TRIGGER bad BEFORE INSERT ON upload_chunks WHEN NEW.chunk_no = 13 \
             BEGIN SELECT RAISE(ABORT, 'a bad one'); END",
        )
        .expect("a trigger");
    for first in [0, 50] {
        // While somebody else writes, the writer stands at something else and the receipts wait.
        other.batch_execute("BEGIN IMMEDIATE").expect("the lock");
        let probe = uploads::begun(store.probe());
        let keep = |index| uploads::begun(store.uploads().keep_chunk(uploads::chunk(id, index, 4)));
        let waiting: Vec<_> = (first..first + 20).map(keep).collect();
        other.batch_execute("COMMIT").expect("it ends");
        assert_eq!(block_on(probe), Ok(()));
        for (index, kept) in (first..).zip(waiting.into_iter().map(block_on)) {
            match kept {
                Err(error) => assert!(index == 13 && error.to_string().contains("a bad one"), "{error}"),
                Ok(Kept::Kept { .. }) => assert!(index != 13),
                other => panic!("{other:?}"),
            }
        }
    }
    let row = block_on(store.uploads().upload(id)).expect("a read").expect("a row");
    assert_eq!(row.upload.received, 39 * 4, "each is counted once, those of the failed transaction too");
}

/// Receipts of an upload that wait while others are committed are one transaction, and a bad one fails alone all the same.
#[test]
fn a_bad_receipt_fails_alone_among_those_that_wait() {
    let world = World::new(1);
    let store = support::postgres(&world);
    let ada = Author::join(&store, "acme", "ada", "phone");
    let id = uploads::open(&store, &uploads::row(&ada, 1, uploads::chunks(400)));
    uploads::take_rights(&store, id, 100);
    let commits = "SELECT count(DISTINCT xmin::text) FROM upload_chunks";
    let keep = |index: u64| {
        // No text of the database holds it.
        let tag = (index == 13).then(|| "\0".into());
        uploads::asked(store.uploads().keep_chunk(ChunkReceipt { tag, ..uploads::chunk(id, index, 4) }))
    };
    for first in [0, 50] {
        let waiting: Vec<_> = (first..first + 50).map(keep).collect();
        for (index, kept) in (first..).zip(waiting.into_iter().map(block_on)) {
            assert_eq!(matches!(kept, Ok(Kept::Kept { .. })), index != 13, "{index}: {kept:?}");
        }
    }
    let row = block_on(store.uploads().upload(id)).expect("a read").expect("a row");
    assert_eq!(row.upload.received, 99 * 4, "each is counted once, those of the failed transaction too");
    let commits: u64 = support::database(&world).sql(commits).trim().parse().expect("a number");
    assert!(commits < 90, "{commits} transactions");
}

/// Answers that nobody waits for are given up; the work is done.
#[test]
fn a_receipt_is_written_whoever_waits() {
    for open in [
        |world: &World| support::sqlite(world).into_any(),
        |world: &World| support::postgres(world).into_any(),
    ] {
        let world = World::new(1);
        let store = open(&world);
        let ada = Author::join(&store, "acme", "ada", "phone");
        let id = uploads::open(&store, &uploads::row(&ada, 1, uploads::chunks(8)));
        uploads::take_rights(&store, id, 1);
        drop(uploads::asked(store.uploads().keep_chunk(uploads::chunk(id, 0, 4))));
        let seen = || block_on(store.uploads().upload(id)).expect("a read").expect("a row").upload.received;
        assert!(
            (0..2_000).any(|_| {
                thread::sleep(Duration::from_millis(10));
                seen() == 4
            }),
            "it is written"
        );
    }
}

trait IntoAny {
    fn into_any(self) -> driftline_storage::AnyStore;
}

impl IntoAny for driftline_storage::SqliteStore {
    fn into_any(self) -> driftline_storage::AnyStore {
        driftline_storage::AnyStore::Sqlite(self)
    }
}

impl IntoAny for driftline_storage::PostgresStore {
    fn into_any(self) -> driftline_storage::AnyStore {
        driftline_storage::AnyStore::Postgres(self)
    }
}

/// Several nodes on one database: what one of them does, the others know.
#[test]
fn nodes_share_uploads_and_rights() {
    const CHUNKS: u64 = 100;
    let world = World::new(1);
    let nodes: Vec<_> = (0..3).map(|_| support::postgres(&world)).collect();
    let ada = Author::join(&nodes[0], "acme", "ada", "phone");
    let id = uploads::open(&nodes[0], &uploads::row(&ada, 1, uploads::chunks(CHUNKS * 4)));
    uploads::take_rights(&nodes[0], id, CHUNKS);
    let kept: u64 = thread::scope(|scope| {
        let senders: Vec<_> = (0..6)
            .map(|sender| {
                let rows = nodes[sender % nodes.len()].uploads();
                scope.spawn(move || {
                    let keep = |index| block_on(rows.keep_chunk(uploads::chunk(id, index, 4)));
                    (0..CHUNKS).filter(|index| matches!(keep(*index), Ok(Kept::Kept { .. }))).count() as u64
                })
            })
            .collect();
        senders.into_iter().map(|sender| sender.join().expect("a sender")).sum()
    });
    let row = block_on(nodes[1].uploads().upload(id)).expect("a read").expect("a row");
    assert_eq!((kept, row.upload.received), (CHUNKS, CHUNKS * 4));

    // So many as may be, whichever node is asked.
    let caps = UploadCaps { open_max: 5, quota_bytes: u64::MAX };
    let opened: usize = thread::scope(|scope| {
        let openers: Vec<_> = (0..6)
            .map(|opener| {
                let (rows, ada) = (nodes[opener % nodes.len()].uploads(), &ada);
                scope.spawn(move || {
                    let row = |at| uploads::row(ada, 100 + opener as u64 * 10 + at, uploads::chunks(1));
                    let open = |at| block_on(rows.open_upload(row(at), caps, None));
                    (0..10).filter(|at| open(*at) == Ok(UploadOpened::Opened)).count()
                })
            })
            .collect();
        openers.into_iter().map(|opener| opener.join().expect("an opener")).sum()
    });
    assert_eq!(opened, 4, "one was open before");

    // Whoever had a right on one node keeps nothing once it was taken over on another one.
    let other = uploads::open(&nodes[0], &uploads::row(&ada, 2, uploads::chunks(8)));
    let chunk = LeaseKey { id: other, slot: LeaseSlot::Chunk(0) };
    let take = |node: usize, now_ms| {
        block_on(nodes[node].uploads().lease(chunk, node as u64, now_ms, now_ms + 10, false))
    };
    assert_eq!((take(0, 0), take(1, 10)), (Ok(Leased::Held), Ok(Leased::TakenOver)));
    for (holder, kept) in [(0, Kept::Lost), (1, Kept::Kept { received: 4 }), (0, Kept::Overtaken)] {
        let receipt = ChunkReceipt { holder, ..uploads::chunk(other, 0, 4) };
        assert_eq!(block_on(nodes[2].uploads().keep_chunk(receipt)), Ok(kept));
    }
    for (node, slot) in [(1, chunk.slot)].into_iter().chain((0..CHUNKS).map(|at| (0, LeaseSlot::Chunk(at)))) {
        let (id, holder) = if node == 1 { (other, 1) } else { (id, uploads::WRITER) };
        block_on(nodes[node].uploads().release(LeaseKey { id, slot }, holder)).expect("an answer");
    }

    let key = LeaseKey { id, slot: LeaseSlot::Chunk(3) };
    let lease = |node: usize, now, until, evict| {
        block_on(nodes[node].uploads().lease(key, node as u64, now, until, evict)).expect("an answer")
    };
    assert_eq!(
        (lease(0, 0, 100, false), lease(1, 1, 50, true)),
        (Leased::Held, Leased::Busy { until_ms: 100 })
    );
    let renew = |node: usize| block_on(nodes[node].uploads().renew(key, node as u64, 2, 150));
    assert_eq!((renew(0), renew(1)), (Ok(Renewed::Wanted), Ok(Renewed::Lost)));
    // Rights that ended long ago are removed with the uploads that are over.
    let count = || support::database(&world).sql("SELECT count(*) FROM upload_leases");
    for (before_ms, left) in [(150, "1"), (151, "0")] {
        block_on(nodes[2].uploads().forget_uploads(before_ms, before_ms)).expect("an answer");
        assert_eq!(count().trim(), left);
    }
    let logged = "SELECT relpersistence FROM pg_class WHERE relname = 'upload_leases'";
    assert_eq!(support::database(&world).sql(logged).trim(), "u", "no disk is waited for");
}
