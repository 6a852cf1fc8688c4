//! Many at once.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use driftline_engine::{
    ChunkReceipt, Kept, LeaseKey, LeaseSlot, Leased, Store, StreamReceipt, UploadCaps, UploadOnce,
    UploadOpened, UploadRow, UploadTurn,
};
use driftline_idempotency::WINDOW_MS_DEFAULT;
use driftline_uploads::{State, UploadId};

use super::super::Bed;
use super::super::once::print_of;
use super::{
    PLENTY, WRITER, Yard, at, chunk, chunks, id_of, keep_chunk, keep_stream, part, running, stream,
    take_right, turn,
};
use crate::wait::block_on;

const WRITERS: u64 = 8;

/// Runs something on several threads at once; gives what each of them came to.
fn at_once<T: Send>(work: impl Fn(u64) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                scope.spawn({
                    let work = &work;
                    move || work(writer)
                })
            })
            .collect();
        writers.into_iter().map(|writer| writer.join().expect("a writer")).collect()
    })
}

/// Every writer sends every chunk of an upload, each in an order of its own: one of them has it counted.
pub(in super::super) fn chunks_at_once_add_up<S: Store>(bed: &Bed<S>) {
    const CHUNKS: u64 = 60;
    let yard = Yard::new(bed);
    let id = yard.open(1, chunks(CHUNKS * 4));
    let rows = bed.store.uploads();
    // By one right, as if all of them were the same one.
    for index in 0..CHUNKS {
        take_right(rows, id, LeaseSlot::Chunk(index), WRITER);
    }
    let kept: Vec<u64> = at_once(|writer| {
        let mut highest = 0;
        let mut own = 0;
        for step in 0..CHUNKS {
            let index = (step * 7 + writer * 11) % CHUNKS;
            let running = (index < 20).then(|| running(usize::try_from(index).expect("few") * 4 + 4));
            match block_on(rows.keep_chunk(ChunkReceipt { running, ..chunk(id, index, 4) }))
                .expect("an answer")
            {
                Kept::Kept { received } => {
                    assert!(received > highest && received % 4 == 0, "it only rises");
                    (highest, own) = (received, own + 1);
                }
                Kept::Overtaken => {}
                other => panic!("{other:?}"),
            }
        }
        own
    });
    assert_eq!(kept.iter().sum::<u64>(), CHUNKS, "each is counted once: {kept:?}");
    let row = yard.read(id);
    assert_eq!((row.upload.received, row.upload.is_whole()), (CHUNKS * 4, true));
    assert_eq!(yard.received(id), (0..CHUNKS).collect::<Vec<_>>());
    assert_eq!(row.running.map(|running| running.through()), Some(80), "the farthest stays");
    yard.check_sums();
}

/// The chunks of an upload, and what it has reserved, go at the moment when it is given up: none comes after it.
pub(in super::super) fn a_turn_is_between_chunks<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    let rows = bed.store.uploads();
    for round in 0..10 {
        let id = yard.open(round, chunks(4_000));
        let came = AtomicU64::new(0);
        at_once(|writer| {
            if writer == 0 {
                while came.load(Ordering::SeqCst) < 10 {
                    std::thread::yield_now();
                }
                return assert_eq!(
                    block_on(rows.turn_upload(turn(id, State::Open, State::Cancelled))),
                    Ok(true)
                );
            }
            for step in 0.. {
                match keep_chunk(rows, chunk(id, step * WRITERS + writer, 4)) {
                    Kept::Kept { .. } => came.fetch_add(1, Ordering::SeqCst),
                    kept => return assert_eq!(kept, Kept::NotOpen(Some(State::Cancelled))),
                };
            }
        });
        let row = yard.read(id);
        assert_eq!((row.upload.received, row.reserved), (came.into_inner() * 4, 0));
        assert_eq!(yard.received(id), [0; 0]);
    }
    yard.check_sums();
}

pub(in super::super) fn opens_at_once_keep_within<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    let rows = bed.store.uploads();
    let open = |number, caps, once| {
        let row = yard.row(number, chunks(10));
        (row, caps, once)
    };
    let count = |caps: UploadCaps, first: u64| {
        let asked: Vec<Vec<_>> = (0..WRITERS)
            .map(|writer| (0..10).map(|at| open(first + writer * 10 + at, caps, None)).collect())
            .collect();
        let opened = at_once(|writer| {
            let own = usize::try_from(writer).expect("few");
            let asked = asked[own].iter().cloned();
            let opened = asked.map(|(row, caps, once)| block_on(rows.open_upload(row, caps, once)));
            opened.filter(|opened| *opened == Ok(UploadOpened::Opened)).count()
        });
        yard.ids.borrow_mut().extend((first..first + WRITERS * 10).map(id_of));
        yard.check_sums();
        opened.into_iter().sum::<usize>()
    };
    assert_eq!(count(UploadCaps { open_max: 7, ..PLENTY }, 0), 7);
    assert_eq!(count(UploadCaps { quota_bytes: 205, ..PLENTY }, 1_000), 13, "20 with those before");
    // One of those who come with the same key at once opens it.
    let once = UploadOnce {
        owner: "user:ada".into(),
        key: "k".into(),
        fingerprint: print_of("one"),
        window_ms: WINDOW_MS_DEFAULT,
    };
    let asked: Vec<UploadRow> = (2_000..2_000 + WRITERS).map(|number| yard.row(number, chunks(1))).collect();
    let opened = at_once(|writer| {
        let row = asked[usize::try_from(writer).expect("few")].clone();
        let id = row.id;
        (id, block_on(rows.open_upload(row, PLENTY, Some(once.clone()))).expect("an answer"))
    });
    let first: Vec<UploadId> =
        opened.iter().filter(|(_, opened)| *opened == UploadOpened::Opened).map(|(id, _)| *id).collect();
    assert_eq!(first.len(), 1, "{opened:?}");
    let others = opened.iter().filter(|(id, _)| *id != first[0]);
    assert!(others.clone().all(|(_, opened)| *opened == UploadOpened::Before(first[0])), "{opened:?}");
    yard.ids.borrow_mut().extend(first);
    yard.check_sums();
}

/// Streams reserve while others of the tenant are opened, given up, done and removed: nobody waits for ever, and what is
/// kept of the sums is right in the end.
pub(in super::super) fn sums_stand_under_load<S: Store>(bed: &Bed<S>) {
    const ROUNDS: u64 = 12;
    let yard = Yard::new(bed);
    let rows = bed.store.uploads();
    let number = |writer: u64, round: u64| writer * 100 + round;
    let asked: Vec<Vec<UploadRow>> = (0..WRITERS)
        .map(|writer| (0..ROUNDS).map(|round| yard.row(number(writer, round), stream(None))).collect())
        .collect();
    let told = |turned: UploadTurn| block_on(rows.turn_upload(turned)).expect("an answer");
    at_once(|writer| {
        for row in asked[usize::try_from(writer).expect("few")].iter().cloned() {
            let id = row.id;
            assert_eq!(block_on(rows.open_upload(row, PLENTY, None)), Ok(UploadOpened::Opened));
            for step in 0..3 {
                let receipt = part(id, step * 5, step * 5 + 5);
                assert_eq!(keep_stream(rows, receipt), Kept::Kept { received: step * 5 + 5 });
            }
            let settled = StreamReceipt { size: Some(15), ..part(id, 15, 15) };
            assert_eq!(keep_stream(rows, settled), Kept::Kept { received: 15 });
            if writer % 2 == 0 {
                assert!(told(turn(id, State::Open, State::Cancelled)));
            } else {
                assert!(told(turn(id, State::Open, State::Finalizing)));
                assert!(told(turn(id, State::Finalizing, State::Done)));
                if writer % 4 == 1 {
                    assert_eq!(block_on(rows.remove_file_row(id)), Ok(true));
                }
            }
            block_on(rows.forget_uploads(at(3), at(3))).expect("an answer");
        }
    });
    yard.ids.borrow_mut().extend(asked.iter().flatten().map(|row| row.id));
    yard.check_sums();
    assert_eq!(yard.used(yard.acme), WRITERS / 4 * ROUNDS * 15, "the files that are left");
}

/// Several append to one stream at once: each byte of it is counted once, and its quota holds.
pub(in super::super) fn a_stream_is_not_torn<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    let rows = bed.store.uploads();
    let id = yard.open(1, stream(None));
    take_right(rows, id, LeaseSlot::Stream, WRITER);
    let steps: u64 = at_once(|_| {
        let (mut from, mut own) = (0, 0);
        while from < 200 {
            let receipt = StreamReceipt { quota_bytes: 200, ..part(id, from, from + 5) };
            match block_on(rows.keep_stream(receipt)).expect("an answer") {
                Kept::Kept { received } => {
                    assert_eq!(received, from + 5);
                    (from, own) = (received, own + 1);
                }
                Kept::Overtaken => {
                    let row = block_on(rows.upload(id)).expect("a read").expect("a row");
                    from = row.upload.received;
                }
                other => panic!("{other:?}"),
            }
        }
        own
    })
    .into_iter()
    .sum();
    assert_eq!((steps, yard.read(id).upload.received, yard.read(id).reserved), (40, 200, 200));
    yard.check_sums();
    assert_eq!(yard.go_on(StreamReceipt { quota_bytes: 200, ..part(id, 200, 201) }), Kept::NoRoom);
}

/// Of those who ask for a right at once, one has it.
pub(in super::super) fn a_right_is_taken_once<S: Store>(bed: &Bed<S>) {
    let rows = bed.store.uploads();
    for round in 0..20 {
        let key = LeaseKey { id: id_of(round), slot: LeaseSlot::Stream };
        let held =
            at_once(|writer| block_on(rows.lease(key, writer, at(0), at(10), true)).expect("an answer"));
        assert_eq!(held.iter().filter(|leased| **leased == Leased::Held).count(), 1, "{held:?}");
    }
}

/// Rights are taken over while receipts are committed. Whoever has one and reads that the chunk is not there writes where it
/// belongs: after that no receipt of an earlier holder is kept.
pub(in super::super) fn who_takes_over_sees_what_was_kept<S: Store>(bed: &Bed<S>) {
    const CHUNKS: usize = 40;
    let yard = Yard::new(bed);
    let rows = bed.store.uploads();
    let id = yard.open(1, chunks(CHUNKS as u64 * 4));
    // Rights are given one after the other, in the order of their holders.
    let given: Vec<Mutex<u64>> = (0..CHUNKS).map(|_| Mutex::default()).collect();
    let wrote: Vec<AtomicU64> = (0..CHUNKS).map(|_| AtomicU64::new(0)).collect();
    let kept: Vec<AtomicU64> = (0..CHUNKS).map(|_| AtomicU64::new(0)).collect();
    let counts = at_once(|writer| {
        let (mut taken, mut lost) = (0_u64, 0_u64);
        for at_chunk in 0..CHUNKS {
            let index = at_chunk as u64;
            let key = LeaseKey { id, slot: LeaseSlot::Chunk(index) };
            let holder = {
                let mut holder = given[at_chunk].lock().expect("nobody panics");
                // It ends as it begins, so that everybody takes it over.
                let leased = block_on(rows.lease(key, *holder + 1, at(5), at(5), false)).expect("an answer");
                if matches!(leased, Leased::Busy { .. }) {
                    continue;
                }
                *holder += 1;
                *holder
            };
            if block_on(rows.chunk(id, index)).expect("a read").is_some() {
                continue;
            }
            wrote[at_chunk].fetch_max(holder, Ordering::SeqCst);
            taken += 1;
            let receipt = ChunkReceipt { holder, ..chunk(id, index, 4) };
            match block_on(rows.keep_chunk(receipt)).expect("an answer") {
                Kept::Kept { .. } => assert_eq!(kept[at_chunk].swap(holder, Ordering::SeqCst), 0, "once"),
                Kept::Lost | Kept::Overtaken => lost += 1,
                other => panic!("{other:?}"),
            }
            if writer % 2 == 0 {
                block_on(rows.release(key, holder)).expect("an answer");
            }
        }
        (taken, lost)
    });
    for (kept, wrote) in kept.iter().zip(&wrote) {
        assert_eq!(
            kept.load(Ordering::SeqCst),
            wrote.load(Ordering::SeqCst),
            "the last who wrote: {counts:?}"
        );
    }
    assert_eq!(yard.read(id).upload.received, CHUNKS as u64 * 4);
    yard.check_sums();
}

/// Uploads of unknown size reserve what their tenant's quota has, and no more, while others append.
pub(in super::super) fn reserves_at_once_keep_within<S: Store>(bed: &Bed<S>) {
    const QUOTA: u64 = 100;
    let yard = Yard::new(bed);
    let rows = bed.store.uploads();
    for number in 0..WRITERS {
        yard.open(number, stream(None));
    }
    let ends = at_once(|writer| {
        let id = id_of(writer);
        let mut end = 0;
        for step in 1..20 {
            let more = step * 3 + writer % 3;
            let has = if writer % 2 == 0 {
                block_on(rows.reserve_upload(id, more, QUOTA)).expect("an answer")
            } else {
                let receipt = StreamReceipt { quota_bytes: QUOTA, ..part(id, end, more) };
                keep_stream(rows, receipt) == Kept::Kept { received: more }
            };
            if has {
                end = more;
            }
            assert!(block_on(rows.upload_usage()).expect("a read").bytes <= QUOTA);
        }
        end
    });
    let reserved: Vec<u64> = (0..WRITERS).map(|number| yard.read(id_of(number)).reserved).collect();
    assert_eq!(reserved, ends, "who was told that it has them has them");
    let used: u64 = reserved.iter().sum();
    assert!((QUOTA - 10..=QUOTA).contains(&used), "{reserved:?}");
    yard.check_sums();
}
