//! Bytes that are reserved before they come.

use driftline_engine::{Kept, LeaseSlot, Store, StreamReceipt, UploadRow};
use driftline_uploads::{State, UploadId};

use super::super::Bed;
use super::{Yard, chunks, id_of, part, shown, stream};
use crate::wait::block_on;

fn reserve<S: Store>(yard: &Yard<'_, S>, id: UploadId, bytes: u64, quota_bytes: u64) -> bool {
    let has = block_on(yard.rows().reserve_upload(id, bytes, quota_bytes)).expect("an answer");
    yard.check_sums();
    has
}

pub(in super::super) fn bytes_are_reserved_within_the_quota<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    let (id, beside) = (yard.open(1, stream(None)), yard.open(2, chunks(30)));
    yard.open_row(&UploadRow { tenant: yard.other, ..yard.row(3, chunks(1000)) });
    assert!(reserve(&yard, id, 0, 0) && reserve(&yard, id, 20, 100));
    assert_eq!((yard.read(id).reserved, yard.read(id).upload.received), (20, 0));
    // What it has it keeps, whatever the quota is now.
    assert!(reserve(&yard, id, 20, 0) && reserve(&yard, id, 7, 0));
    let row = shown(&yard.read(id));
    assert!(!reserve(&yard, id, 71, 100) && !reserve(&yard, id, 21, 0));
    assert_eq!((shown(&yard.read(id)), yard.used(yard.acme)), (row, 50));
    assert!(reserve(&yard, id, 70, 100));
    assert_eq!((yard.used(yard.acme), yard.used(yard.other), yard.read(beside).reserved), (100, 1000, 30));
    // What comes within it needs no more room, and what comes beyond it does.
    let go = |from, to, quota_bytes| yard.go_on(StreamReceipt { quota_bytes, ..part(id, from, to) });
    assert_eq!((go(0, 70, 0), go(70, 71, 100)), (Kept::Kept { received: 70 }, Kept::NoRoom));
    assert_eq!(go(70, 71, 101), Kept::Kept { received: 71 });
    assert!(reserve(&yard, id, 71, 0) && !reserve(&yard, id, 72, 101));
    // It is nobody's business who has the right to write.
    assert_eq!(
        super::take_right(yard.rows(), id, LeaseSlot::Stream, 2),
        driftline_engine::Leased::Busy { until_ms: super::at(super::HOUR_MS) }
    );
    assert!(reserve(&yard, id, 72, 102));
}

pub(in super::super) fn what_is_reserved_ends_with_the_size<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    let (id, long) = (yard.open(1, stream(None)), yard.open(2, stream(None)));
    assert!(reserve(&yard, id, 50, 100) && reserve(&yard, long, 50, 100));
    let settle = |id, to, size, quota_bytes| {
        yard.go_on(StreamReceipt { size: Some(size), quota_bytes, ..part(id, 0, to) })
    };
    assert_eq!((settle(id, 5, 10, 0), yard.read(id).reserved), (Kept::Kept { received: 5 }, 10));
    assert_eq!(settle(long, 5, 91, 100), Kept::NoRoom);
    assert_eq!((settle(long, 5, 90, 100), yard.used(yard.acme)), (Kept::Kept { received: 5 }, 100));
    // Whose size is known has what it needs, and no more.
    assert!(reserve(&yard, id, 10, 0) && !reserve(&yard, id, 11, 1000));
    assert_eq!(yard.read(id).reserved, 10);
}

pub(in super::super) fn what_is_not_needed_is_given_back<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    let release = |id| {
        block_on(yard.rows().release_upload(id)).expect("an answer");
        yard.check_sums();
    };
    let (id, beside) = (yard.open(1, stream(None)), yard.open(2, chunks(30)));
    assert!(reserve(&yard, id, 50, 100));
    assert_eq!(yard.go_on(part(id, 0, 20)), Kept::Kept { received: 20 });
    for id in [id, id, beside, id_of(9)] {
        release(id);
    }
    assert_eq!((yard.read(id).reserved, yard.read(beside).reserved, yard.used(yard.acme)), (20, 30, 50));
    assert!(reserve(&yard, id, 70, 100));
    yard.bring(id, State::Cancelled);
    let sized = yard.open(3, stream(Some(40)));
    let before = [id, sized].map(|id| shown(&yard.read(id)));
    release(id);
    release(sized);
    assert_eq!([id, sized].map(|id| shown(&yard.read(id))), before);
}

pub(in super::super) fn only_what_is_open_reserves<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    assert!(!reserve(&yard, id_of(9), 0, 100));
    for (number, state) in (1..).zip(State::ALL) {
        let id = yard.open(number, stream(None));
        assert!(reserve(&yard, id, 10, 1000));
        yard.bring(id, state);
        let before = shown(&yard.read(id));
        for bytes in [0, 10, 20] {
            assert_eq!(reserve(&yard, id, bytes, 1000), state == State::Open, "{state:?}");
        }
        assert_eq!(shown(&yard.read(id)) == before, state != State::Open);
    }
}
