//! Receipts of chunks and of streams.

use driftline_engine::{ChunkReceipt, ChunkThere, Kept, Store, StreamReceipt, UploadRow};
use driftline_uploads::{Digest, Form, State};

use super::super::Bed;
use super::{HOUR_MS, QUOTA, Yard, at, chunk, chunks, id_of, part, running, shown, stream, turn};
use crate::wait::block_on;

const fn kept(received: u64) -> Kept {
    Kept::Kept { received }
}

pub(in super::super) fn chunks_come_in_any_order<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    let (id, beside) = (yard.open(1, chunks(10)), yard.open(2, chunks(10)));
    let untouched = shown(&yard.read(beside));
    let digest = |index| block_on(yard.rows().chunk(id, index)).expect("a read");
    assert_eq!(digest(2), None);
    let last = ChunkReceipt {
        tag: Some("etag \u{e9}".into()),
        at_ms: at(10),
        expires_ms: at(2 * HOUR_MS),
        ..chunk(id, 2, 2)
    };
    assert_eq!(yard.keep(last.clone()), kept(2));
    let row = yard.read(id);
    assert_eq!((row.upload.received, row.reserved), (2, 10), "its whole size is reserved");
    assert_eq!((row.changed_ms, row.upload.expires_ms), (at(10), at(2 * HOUR_MS)));
    assert_eq!((digest(2), digest(1), digest(3)), (Some(last.digest), None, None));
    // The same again, and another one in its place, change nothing.
    let seen = shown(&row);
    let other = ChunkReceipt {
        digest: Digest::hash(b"another"),
        tag: Some("other".into()),
        running: Some(running(10)),
        at_ms: at(20),
        ..last.clone()
    };
    assert_eq!((yard.keep(last.clone()), yard.keep(other)), (Kept::Overtaken, Kept::Overtaken));
    assert_eq!((shown(&yard.read(id)), digest(2)), (seen, Some(last.digest)));
    // A receipt that is late does not take the time back.
    assert_eq!(yard.keep(ChunkReceipt { at_ms: at(5), ..chunk(id, 0, 4) }), kept(6));
    assert_eq!(yard.read(id).changed_ms, at(10));
    assert_eq!(yard.keep(chunk(id, 1, 4)), kept(10));
    let listed = block_on(yard.rows().chunks(id)).expect("a list");
    let there = |index, bytes, tag: Option<&str>| ChunkThere {
        index,
        digest: chunk(id, index, bytes).digest,
        tag: tag.map(Into::into),
    };
    assert_eq!(listed, [there(0, 4, None), there(1, 4, None), there(2, 2, Some("etag \u{e9}"))]);
    assert_eq!((shown(&yard.read(beside)), yard.received(beside)), (untouched, vec![]));
    assert_eq!(digest(1), Some(chunk(id, 1, 4).digest));
}

pub(in super::super) fn what_is_not_open_takes_no_chunk<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    assert_eq!(yard.keep(chunk(id_of(9), 0, 4)), Kept::NotOpen(None));
    assert_eq!(yard.go_on(part(id_of(9), 0, 4)), Kept::NotOpen(None));
    let states = [State::Finalizing, State::Done, State::Cancelled, State::Expired];
    for (number, state) in (1..).zip(states) {
        let (id, flow) = (yard.open(number, chunks(10)), yard.open(number + 10, stream(Some(10))));
        assert_eq!((yard.keep(chunk(id, 0, 4)), yard.go_on(part(flow, 0, 4))), (kept(4), kept(4)));
        yard.bring(id, state);
        yard.bring(flow, state);
        let seen = [id, flow].map(|id| (shown(&yard.read(id)), yard.received(id)));
        // Whether the chunk is there or not.
        for index in [0, 1] {
            assert_eq!(yard.keep(chunk(id, index, 4)), Kept::NotOpen(Some(state)));
        }
        for from in [4, 0] {
            assert_eq!(yard.go_on(part(flow, from, 10)), Kept::NotOpen(Some(state)));
        }
        assert_eq!([id, flow].map(|id| (shown(&yard.read(id)), yard.received(id))), seen);
    }
    // Open again it goes on where it was.
    assert!(yard.turn(turn(id_of(1), State::Finalizing, State::Open)));
    assert_eq!(
        (yard.keep(chunk(id_of(1), 0, 4)), yard.keep(chunk(id_of(1), 1, 4))),
        (Kept::Overtaken, kept(8))
    );
}

pub(in super::super) fn a_running_hash_only_goes_forward<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    let (id, flow) = (yard.open(1, chunks(40)), yard.open(2, stream(None)));
    let state = |id| {
        let running = yard.read(id).running;
        running.map(|running| (running.through(), running.digest()))
    };
    let with = |index, through: Option<usize>| {
        let running = through.map(running);
        yard.keep(ChunkReceipt { running, ..chunk(id, index, 4) })
    };
    let of = |bytes: usize| Some((bytes as u64, Digest::hash(&vec![7; bytes])));
    with(5, None);
    assert_eq!(state(id), None);
    with(0, Some(4));
    assert_eq!(state(id), of(4));
    with(2, Some(12));
    // It came from somebody who was slower.
    with(1, Some(8));
    assert_eq!(state(id), of(12));
    with(3, None);
    assert_eq!(state(id), of(12));
    with(4, Some(20));
    assert_eq!(state(id), of(20));

    let go = |from, to, through: Option<usize>| {
        let running = through.map(running);
        yard.go_on(StreamReceipt { running, ..part(flow, from, to) })
    };
    go(0, 100, Some(100));
    assert_eq!(state(flow), of(100));
    go(100, 200, None);
    assert_eq!(state(flow), of(100), "the rest is hashed at the end");
    go(200, 200, Some(50));
    assert_eq!(state(flow), of(100));
    go(200, 300, Some(300));
    assert_eq!(state(flow), of(300));
}

pub(in super::super) fn a_stream_goes_on_where_it_ended<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    let id = yard.open(1, stream(Some(100)));
    let first = StreamReceipt { at_ms: at(10), expires_ms: at(2 * HOUR_MS), ..part(id, 0, 30) };
    assert_eq!(yard.go_on(first.clone()), kept(30));
    let row = yard.read(id);
    assert_eq!((row.upload.received, row.reserved, row.upload.form), (30, 100, stream(Some(100))));
    assert_eq!((row.changed_ms, row.upload.expires_ms), (at(10), at(2 * HOUR_MS)));
    for from in [0, 29, 31] {
        assert_eq!(yard.go_on(StreamReceipt { at_ms: at(20), ..part(id, from, 60) }), Kept::Overtaken);
    }
    assert_eq!(yard.go_on(first), Kept::Overtaken, "its answer was lost");
    assert_eq!(shown(&yard.read(id)), shown(&row));
    assert_eq!(yard.go_on(StreamReceipt { at_ms: at(5), ..part(id, 30, 100) }), kept(100));
    assert_eq!((yard.read(id).changed_ms, yard.read(id).upload.is_whole()), (at(10), true));
}

pub(in super::super) fn the_size_of_a_stream_is_settled_once<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    let id = yard.open(1, stream(None));
    let go = |from, to, size| yard.go_on(StreamReceipt { size, ..part(id, from, to) });
    let seen = || {
        let row = yard.read(id);
        (row.upload.form, row.upload.received, row.reserved)
    };
    assert_eq!((go(0, 10, None), seen()), (kept(10), (stream(None), 10, 10)));
    // From now on all of it is reserved, whether or not bytes come along.
    assert_eq!((go(10, 10, Some(50)), seen()), (kept(10), (stream(Some(50)), 10, 50)));
    assert_eq!((go(10, 20, None), seen()), (kept(20), (stream(Some(50)), 20, 50)), "it stays");
    assert_eq!((go(20, 30, Some(50)), seen()), (kept(30), (stream(Some(50)), 30, 50)));
    assert_eq!((go(30, 40, Some(60)), seen()), (Kept::Overtaken, (stream(Some(50)), 30, 50)));
    assert_eq!((go(30, 50, None), seen()), (kept(50), (stream(Some(50)), 50, 50)));
    assert!(yard.read(id).upload.is_whole());
    // With the last bytes, and of a file without any.
    let (late, empty) = (yard.open(2, stream(None)), yard.open(3, stream(None)));
    assert_eq!(yard.go_on(StreamReceipt { size: Some(7), ..part(late, 0, 7) }), kept(7));
    assert_eq!(yard.go_on(StreamReceipt { size: Some(0), ..part(empty, 0, 0) }), kept(0));
    let whole = |id| (yard.read(id).upload.is_whole(), yard.read(id).reserved);
    assert_eq!((whole(late), whole(empty)), ((true, 7), (true, 0)));
}

pub(in super::super) fn a_stream_reserves_what_comes_beyond<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    let (id, told) = (yard.open(1, stream(None)), yard.open(2, stream(Some(40))));
    yard.open_row(&UploadRow { tenant: yard.other, ..yard.row(3, chunks(1000)) });
    let go = |from, to, size, quota_bytes| {
        yard.go_on(StreamReceipt { size, quota_bytes, running: Some(running(3)), ..part(id, from, to) })
    };
    assert_eq!((go(0, 60, None, 100), yard.read(id).reserved), (kept(60), 60));
    let seen = shown(&yard.read(id));
    for (to, size, quota) in
        [(61, None, 100), (60, Some(61), 100), (100, None, 139), (u64::MAX >> 11, None, QUOTA)]
    {
        assert_eq!(go(60, to, size, quota), Kept::NoRoom, "{to} {size:?} {quota}");
    }
    assert_eq!(shown(&yard.read(id)), seen, "nothing was written");
    // What is within what it has reserved comes in, whatever the quota is now.
    assert_eq!(go(60, 60, Some(60), 0), kept(60));
    assert_eq!(yard.go_on(StreamReceipt { quota_bytes: 0, ..part(told, 0, 40) }), kept(40));
    assert_eq!(yard.read(told).upload.form, Form::Stream { size: Some(40) });
    let more = yard.open(4, stream(None));
    assert_eq!(yard.go_on(StreamReceipt { quota_bytes: 130, ..part(more, 0, 31) }), Kept::NoRoom);
    assert_eq!(yard.go_on(StreamReceipt { quota_bytes: 131, ..part(more, 0, 31) }), kept(31));
    assert_eq!((yard.used(yard.acme), yard.used(yard.other)), (131, 1000));
    assert_eq!(yard.go_on(StreamReceipt { quota_bytes: u64::MAX, ..part(more, 31, 32) }), kept(32));
}
